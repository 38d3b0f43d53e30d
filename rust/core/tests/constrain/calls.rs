//! Calls that a model is made to write are calls that its syntax reads.

use std::{collections::BTreeSet, sync::Arc};

use llm_node_core::{
    chat::{
        conversation::{Choice, Conversation, Format, Grammar, Json, Tool, ToolInput},
        derive::Tokens,
        families,
        parse::{Calling, Found, Known, Parser, Watch},
        syntax::{Body, Family, Frame, Hole, InputSyntax, Literal, Object, Shape, Tags, ToolSyntax},
    },
    constrain::{Constraint, Prototype, Wanted},
    engine::{Token, attribute},
    error::ErrorCode,
    event::Part,
    text::answer::{AnswerText, Told},
};
use serde_json::{Value, json};

use crate::support::{END, VOCABULARY, compile, draw, schema_of, walk_tokens};

fn literal(text: &str) -> Literal {
    Literal::new(text, VOCABULARY.control_tokens())
}

fn syntax(call: (&str, &str), between: &str, body: Body) -> ToolSyntax {
    ToolSyntax {
        section: None,
        call: (literal(call.0), literal(call.1)),
        between: literal(between),
        body,
        anywhere: false,
        bare: false,
        family: Family::Derived,
        parallel: true,
        frame: Frame::Plain,
    }
}

fn object(shape: Shape, list: bool) -> Body {
    Body::Object(Object { name_key: "name".into(), input_key: "arguments".into(), shape, list })
}

/// Hermes and Qwen, Mistral, Llama 3.1's kind, Qwen3-Coder, DeepSeek's kinds, LFM2, Llama 4, Gemma 4,
/// MiniMax M3 with marks of both kinds, Muse Glimmer, Kimi K3, gpt-oss.
fn syntaxes() -> Vec<(&'static str, ToolSyntax)> {
    let tags = Tags {
        before_key: literal("<parameter="),
        after_key: literal(">\n"),
        kind: None,
        after_value: literal("\n</parameter>\n"),
    };
    let tagged = Body::Pattern {
        pieces: vec![Hole::Lit(literal("<function=")), Hole::Name, Hole::Lit(literal(">\n")), Hole::Input],
        input: InputSyntax::Tagged(tags),
    };
    let named = Body::Pattern {
        pieces: vec![Hole::Name, Hole::Lit(literal("<|tool|>")), Hole::Input],
        input: InputSyntax::Json,
    };
    let marked = Body::Pattern {
        pieces: vec![Hole::Name, Hole::Lit(literal("\">\n")), Hole::Input],
        input: InputSyntax::Tagged(Tags {
            before_key: literal("<｜DSML｜parameter name=\""),
            after_key: literal("\" string=\""),
            kind: Some(("true".into(), literal("\">"))),
            after_value: literal("</｜DSML｜parameter>\n"),
        }),
    };
    let input = InputSyntax::Quoted(literal("<|\"|>"));
    let spelled = Body::Pattern { pieces: vec![Hole::Name, Hole::Input], input };
    let plain = syntax(("", ""), "", Body::Python);
    let family = |name| families::named(name, Tokens::of(&VOCABULARY)).unwrap();
    let nested = |mark| Body::Pattern {
        pieces: vec![Hole::Name, Hole::Lit(literal("\">")), Hole::Input],
        input: InputSyntax::Nested(literal(mark)),
    };
    vec![
        ("hermes", syntax(("<tool_call>\n", "\n</tool_call>"), "\n", object(Shape::Flat, false))),
        (
            "list",
            ToolSyntax {
                section: Some((literal("<|tool|>"), literal(""))),
                ..syntax(("", ""), "", object(Shape::Flat, true))
            },
        ),
        ("within", syntax(("<call>", "</call>"), "", object(Shape::Within("function".into()), false))),
        ("tagged", syntax(("<tool_call>\n", "</function>\n</tool_call>"), "\n", tagged)),
        (
            "section",
            ToolSyntax {
                section: Some((literal("<calls>"), literal("</calls>"))),
                ..syntax(("<|tool|>", "<end>"), "\n", named)
            },
        ),
        ("marked", syntax(("<｜DSML｜invoke name=\"", "</｜DSML｜invoke>"), "\n", marked)),
        ("python", ToolSyntax { section: Some((literal("<|tool|>"), literal("<end>"))), ..plain.clone() }),
        ("bare", ToolSyntax { bare: true, ..plain }),
        ("quoted", syntax(("<|tool|>call:", "<call>"), "", spelled)),
        ("nested", syntax(("<|\"|><invoke name=\"", "<|\"|></invoke>"), "\n", nested("<|\"|>"))),
        ("spelled", syntax(("</<invoke name=\"", "</</invoke>"), "\n", nested("</"))),
        ("atem", family("atem")),
        ("kimi_k3", family("kimi_k3")),
        ("harmony", family("harmony")),
    ]
}

/// One that no grammar can say.
fn unwritable() -> ToolSyntax {
    let input = InputSyntax::Tagged(Tags {
        before_key: literal("<"),
        after_key: literal(" "),
        kind: Some(("words".into(), literal(">"))),
        after_value: literal("</>"),
    });
    syntax(("<call>", "</call>"), "", Body::Pattern { pieces: vec![Hole::Name, Hole::Input], input })
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, schema: Value| Tool {
        name: name.into(),
        description: None,
        input: ToolInput::Object(Json::new(schema.to_string()).unwrap()),
        strict: false,
    };
    vec![
        tool(
            "get_weather",
            json!({ "type": "object", "properties": {
                "city": { "type": "string", "maxLength": 12, "pattern": "^[A-Z][a-z]+$" },
                "days": { "type": "integer", "minimum": 1, "maximum": 7 },
            }, "required": ["city", "days"], "additionalProperties": false }),
        ),
        tool(
            "set-light",
            json!({ "properties": { "on": { "type": "boolean" } }, "required": ["on"], "additionalProperties": false }),
        ),
    ]
}

fn watch(syntax: &ToolSyntax) -> Watch {
    let (reasoning, said) = match syntax.frame.clone() {
        Frame::Elements(it) => (Some(Arc::new(it.thoughts)), Some(Arc::new(it.text))),
        _ => (None, None),
    };
    Watch {
        tools: Some(Arc::new(syntax.clone())),
        reasoning,
        said,
        known: tools().iter().map(Known::of).collect(),
        parallel: true,
        ..Watch::default()
    }
}

/// Does it write text as it is?
fn is_loose(name: &str) -> bool {
    ["tagged", "marked", "quoted", "nested", "spelled", "atem", "kimi_k3"].contains(&name)
}

/// The calls that an answer holds, and whatever else is in it.
fn read(syntax: &ToolSyntax, tokens: &[i32]) -> (Vec<(String, String)>, String) {
    read_as(watch(syntax), tokens)
}

fn read_as(watch: Watch, tokens: &[i32]) -> (Vec<(String, String)>, String) {
    let mut parser = Parser::new(Arc::new(watch));
    let (mut found, mut bytes) = (Vec::new(), Vec::new());
    for &token in tokens {
        let name = VOCABULARY.token_bytes(token);
        if VOCABULARY.has(token, attribute::CONTROL) {
            parser.push(std::str::from_utf8(&bytes).unwrap(), &mut found);
            bytes.clear();
            parser.push_control(name, &mut found);
        } else {
            bytes.extend(name);
        }
    }
    parser.push(std::str::from_utf8(&bytes).unwrap(), &mut found);
    parser.finish(true, &mut found);
    let (mut calls, mut text, mut open) = (Vec::new(), String::new(), false);
    for it in found {
        match it.found {
            Found::Text(more) => text.push_str(&more),
            Found::Control(name) => text.push_str(&String::from_utf8_lossy(&name)),
            Found::Reasoning(_) => panic!("nobody thinks"),
            Found::CallBegan(name) => {
                assert!(!open);
                open = true;
                calls.push((name, String::new()));
            }
            Found::Input(more) => calls.last_mut().unwrap().1.push_str(&more),
            Found::CallEnded => open = false,
        }
    }
    assert!(!open, "{calls:?} {text:?} {tokens:?}");
    (calls, text)
}

fn wanted(syntax: &ToolSyntax, choice: Choice, format: Format) -> Wanted {
    let conversation = Conversation { tools: tools(), choice, ..Conversation::default() };
    Wanted::of(format, &conversation, &Arc::new(syntax.clone()))
}

#[test]
fn forced_calls_are_read_back() {
    for (name, syntax) in syntaxes() {
        let among = Choice::Among { names: vec!["set-light".into()], required: true };
        for (choice, only) in [
            (Choice::Required, None),
            (Choice::Named("get_weather".into()), Some("get_weather")),
            (among, Some("set-light")),
        ] {
            let named = matches!(choice, Choice::Named(_));
            let prototype = compile(wanted(&syntax, choice, Format::Text)).unwrap();
            // Text between tags is what it is.
            let loose = prototype.relaxed() == ["tools.get_weather#/properties/city"];
            assert!(loose == (is_loose(name) && only != Some("set-light")), "{:?}", prototype.relaxed());
            let mut ended = 0;
            for seed in 0..12 {
                let Some(tokens) = walk_tokens(&prototype.constraint(), seed) else { continue };
                ended += 1;
                let (calls, text) = read(&syntax, &tokens);
                assert!(!calls.is_empty() && text.trim().is_empty(), "{name}: {calls:?} {text:?}");
                assert!(!named || calls.len() == 1);
                for (tool, input) in calls {
                    assert!(only.is_none_or(|it| it == tool), "{name}: {tool}");
                    let schema = schema_of(&tools(), &tool);
                    let input: Value =
                        serde_json::from_str(&input).unwrap_or_else(|it| panic!("{name}: {it}: {input}"));
                    let valid = jsonschema::is_valid(&schema, &input);
                    assert!(input.is_object() && (valid || loose), "{name}: {input}");
                }
            }
            assert!(ended > 2, "{name}: {ended}");
        }
    }
}

#[test]
fn a_format_beside_tools_leaves_the_choice() {
    let (_, syntax) = syntaxes().swap_remove(0);
    let prototype = compile(wanted(&syntax, Choice::Auto, Format::Object)).unwrap();
    let mut mask = prototype.constraint();
    let mask = mask.mask().unwrap();
    assert!(mask.admits(i32::from(b'{')) && mask.admits(i32::from(b'<')));
    assert!(!mask.admits(i32::from(b'a')) && !mask.admits(END));
    assert!(wanted(&syntax, Choice::Auto, Format::Text).is_optional());
    assert!(wanted(&syntax, Choice::None, Format::Text).is_anything());
    assert!(wanted(&unwritable(), Choice::Auto, Format::Text).is_anything());
}

/// In Harmony it stands in the last message, behind what the model thinks.
#[test]
fn a_format_of_messages_is_that_of_the_last() {
    let (_, syntax) = syntaxes().pop().unwrap();
    for tools in [tools(), Vec::new()] {
        let conversation = Conversation { tools, ..Conversation::default() };
        let wanted = Wanted::of(Format::Regex("[ab]{3}".into()), &conversation, &Arc::new(syntax.clone()));
        let prototype = compile(wanted).unwrap();
        let channel = control("<|channel|>");
        let final_message = |it: &mut Vec<Token>| {
            it.push(channel);
            it.extend(b"final".map(Token::from));
            it.push(control("<|message|>"));
            it.extend(b"aba".map(Token::from));
        };
        let mut direct = Vec::new();
        final_message(&mut direct);
        // What is thought is not seen by it.
        let mut behind = vec![channel];
        behind.extend(b"analysis".map(Token::from));
        behind.push(control("<|start|>"));
        behind.extend(b"assistant".map(Token::from));
        final_message(&mut behind);
        for tokens in [direct, behind] {
            let mut constraint = prototype.constraint();
            for token in tokens {
                assert!(constraint.mask().unwrap().admits(token));
                constraint.consume(token).unwrap();
            }
            assert!(constraint.is_accepting().unwrap());
        }
        assert!(!prototype.constraint().mask().unwrap().admits(Token::from(b'a')));
    }
}

/// In elements it stands in one, which the prompt may have opened.
#[test]
fn a_format_of_elements_is_that_of_their_text() {
    let (_, syntax) = syntaxes().into_iter().find(|it| it.0 == "kimi_k3").unwrap();
    let conversation = Conversation { tools: tools(), ..Conversation::default() };
    let wanted = Wanted::of(Format::Regex("[ab]{3}".into()), &conversation, &Arc::new(syntax));
    let prototype = compile(wanted).unwrap();
    let element = |mark: &str, name: &str| {
        [vec![control(mark)], name.bytes().map(Token::from).collect(), vec![control("<|sep|>")]].concat()
    };
    let text: Vec<Token> = b"aba".map(Token::from).to_vec();
    let (open, close) = (element("<|open|>", "response"), element("<|close|>", "response"));
    let end = element("<|close|>", "message");
    for tokens in [
        [open.clone(), text.clone(), close.clone(), end].concat(),
        [open, text.clone(), close.clone()].concat(),
        [text.clone(), close].concat(),
        text,
    ] {
        let mut constraint = prototype.constraint();
        for token in tokens {
            assert!(constraint.mask().unwrap().admits(token));
            constraint.consume(token).unwrap();
        }
        assert!(constraint.is_accepting().unwrap());
    }
}

fn control(name: &str) -> Token {
    (0..VOCABULARY.len() as Token).find(|&it| VOCABULARY.token_bytes(it) == name.as_bytes()).unwrap()
}

/// A call that must be made comes behind a message of thoughts, of which the grammar sees neither the text nor the marks
/// around it; as the scheduler has it.
#[test]
fn what_is_thought_before_a_message_with_a_call_is_free() {
    let (_, syntax) = syntaxes().pop().unwrap();
    let prototype = compile(wanted(&syntax, Choice::Required, Format::Text)).unwrap();
    let (mut constraint, mut told) = (prototype.constraint(), Vec::new());
    let mut answer = AnswerText::new(&[], VOCABULARY.control_tokens(), watch(&syntax), "");
    let bytes = |text: &str| text.bytes().map(Token::from).collect::<Vec<_>>();
    let call = [
        vec![control("<|channel|>")],
        bytes("commentary to=functions.set-light "),
        vec![control("<|constrain|>")],
        bytes("json"),
        vec![control("<|message|>")],
        bytes("{\"on\": true}"),
    ]
    .concat();
    let thought = [
        vec![control("<|channel|>")],
        bytes("analysis"),
        vec![control("<|message|>")],
        bytes("Hm, {\"on\"."),
        vec![END, control("<|start|>")],
        bytes("assistant"),
    ]
    .concat();
    for token in [thought.clone(), thought, call].concat() {
        let thought = answer.thinks();
        if !thought {
            assert!(constraint.mask().unwrap().admits(token), "{token} {told:?}");
        }
        if VOCABULARY.has(token, attribute::CONTROL) {
            answer.push_control(VOCABULARY.token_bytes(token), &mut told);
        } else {
            answer.push(VOCABULARY.token_bytes(token), &mut told);
        }
        if !thought && !answer.thinks() {
            constraint.consume(token).unwrap();
        }
    }
    assert!(constraint.is_accepting().unwrap());
    answer.finish(true, &mut told);
    let mut input = String::new();
    for it in &told {
        match it {
            Told::Piece { part: Part::Input, text, .. } => input += text,
            Told::Piece { part: Part::Text, text, .. } => panic!("{text}"),
            _ => {}
        }
    }
    assert_eq!(input, "{\"on\": true}", "{told:?}");
}

/// An answer as the model writes it by itself, token by token.
struct Written<'a> {
    prototype: &'a Prototype,
    answer: AnswerText,
    told: Vec<Told>,
    holds: Option<Constraint>,
    tokens: Vec<Token>,
}

impl<'a> Written<'a> {
    fn new(prototype: &'a Prototype, syntax: &ToolSyntax) -> Self {
        let answer = AnswerText::new(&[], VOCABULARY.control_tokens(), watch(syntax), "");
        Self { prototype, answer, told: Vec::new(), holds: None, tokens: Vec::new() }
    }

    fn push(&mut self, token: Token) {
        let bytes = VOCABULARY.token_bytes(token);
        let before = self.answer.calling();
        if VOCABULARY.has(token, attribute::CONTROL) {
            self.answer.push_control(bytes, &mut self.told);
        } else {
            self.answer.push(bytes, &mut self.told);
        }
        self.tokens.push(token);
        let call = self.answer.calling();
        if let Some(constraint) = &mut self.holds {
            constraint.consume(token).unwrap();
        } else if let (None, Some(call)) = (before, call) {
            let begun = (self.answer.place() - call.begin) as usize;
            let written: Vec<u8> =
                self.tokens.iter().flat_map(|&it| VOCABULARY.token_bytes(it)).copied().collect();
            self.holds = Some(
                self.prototype.within(&call, &written[written.len() - begun..]).expect("it may begin so"),
            );
        }
        self.holds = self.holds.take().filter(|_| call.is_some());
    }
}

/// What a model writes as it was taught is admitted, and whatever is admitted is a call.
#[test]
fn calls_that_begin_by_themselves_go_on_as_they_must() {
    for (name, syntax) in syntaxes() {
        let forced = compile(wanted(&syntax, Choice::Required, Format::Text)).unwrap();
        let prototype = compile(wanted(&syntax, Choice::Auto, Format::Text)).unwrap();
        assert!(prototype.is_of_calls());
        let (mut ended, mut begun) = (0, 0);
        for seed in 0..20 {
            let Some(tokens) = walk_tokens(&forced.constraint(), seed) else { continue };
            let mut written = Written::new(&prototype, &syntax);
            // Somewhere in the call the model takes another way.
            let turn = tokens.len() * (seed as usize % 4) / 3;
            // Without a mark it has to begin the answer, and so has its header.
            let said = if syntax.bare || name == "atem" { "" } else { "so:\n" };
            for (at, token) in said.bytes().map(Token::from).chain(tokens).enumerate() {
                if let Some(constraint) = &mut written.holds {
                    assert!(constraint.mask().unwrap().admits(token), "{name}: {:?}", written.told);
                    begun += 1;
                    if at > turn {
                        break;
                    }
                }
                written.push(token);
            }
            for position in 0..400 {
                let Some(constraint) = &mut written.holds else { break };
                let token = draw(&constraint.mask().unwrap(), seed, position);
                if token == END {
                    break;
                }
                written.push(token);
            }
            if written.holds.as_mut().is_some_and(|it| !it.is_accepting().unwrap()) {
                continue;
            }
            ended += 1;
            let (calls, text) = read(&syntax, &written.tokens);
            assert_eq!(text.trim(), said.trim(), "{name}");
            for (tool, input) in calls {
                let input: Value =
                    serde_json::from_str(&input).unwrap_or_else(|it| panic!("{name}: {it}: {input}"));
                let valid = jsonschema::is_valid(&schema_of(&tools(), &tool), &input);
                assert!(input.is_object() && (valid || is_loose(name)), "{name}: {input}");
            }
        }
        assert!(ended > 8 && begun > 20, "{name}: {ended} {begun}");
    }
}

/// The white space that a model chooses, and a call without its marks.
#[test]
fn calls_that_are_written_otherwise_are_held_to_their_input() {
    let (_, mut syntax) = syntaxes().swap_remove(0);
    syntax.bare = true;
    let prototype = compile(wanted(&syntax, Choice::Auto, Format::Text)).unwrap();
    let light = r#"{"name":"set-light","arguments":"#;
    for (begin, end, goes_on) in [
        (format!("<tool_call>{light}"), "{\"on\":true}}\n</tool_call>", false),
        (format!("<tool_call>\n {light}"), " {\"on\": true}}\n</tool_call>", false),
        (light.to_owned(), "{\"on\":true}}", false),
        (format!("```json\n{light}"), "\n{\"on\":true}}", false),
        (light.to_owned(), "{\"on\":tr", true),
    ] {
        let mut written = Written::new(&prototype, &syntax);
        for byte in begin.bytes() {
            written.push(Token::from(byte));
        }
        assert!(written.holds.is_some(), "{begin}");
        for byte in end.bytes() {
            let mask = written.holds.as_mut().expect(end).mask().unwrap();
            assert!(mask.admits(Token::from(byte)), "{begin}{end}");
            assert!(
                !mask.admits(Token::from(b'x')) || written.tokens.ends_with(&[Token::from(b'}')]),
                "{begin}{end}"
            );
            written.push(Token::from(byte));
        }
        assert_eq!(written.holds.is_some(), goes_on, "{begin}{end}");
    }
}

/// An object that its schema does not admit as it begins.
#[test]
fn a_call_may_not_begin_as_it_cannot_go_on() {
    let (_, syntax) = syntaxes().swap_remove(0);
    let prototype = compile(wanted(&syntax, Choice::Auto, Format::Text)).unwrap();
    let call = Calling { tool: 0, marked: true, begin: 0 };
    assert!(prototype.within(&call, b" {\"ci").is_some());
    assert!(prototype.within(&call, b"{}").is_none() && prototype.within(&call, b"7").is_none());
    let light = Calling { tool: 1, ..call };
    assert!(prototype.within(&light, b"{\"ci").is_none() && prototype.within(&light, b"{\"on\":t").is_some());
}

/// A tool that takes any object takes arguments in every syntax.
#[test]
fn any_object_is_any_arguments() {
    let input = ToolInput::Object(Json::new(r#"{"type": "object"}"#).unwrap());
    let tools = vec![Tool { name: "any".into(), description: None, input, strict: false }];
    let call = Calling { tool: 0, marked: true, begin: 0 };
    for (name, begun) in [
        ("hermes", r#"{"x": [1], "y": "#),
        ("tagged", "<parameter=x>\na b\n</parameter>\n<parameter=y>\n"),
        ("python", "x=[1, \"a\"], y="),
        ("quoted", "{x:[1,{y:true}],z:"),
        ("spelled", "</<x>a b</</x></<y>"),
        ("atem", "<atem:parameter name=\"x\">a b</atem:parameter>\n<atem:parameter name=\"y\">"),
        ("harmony", r#"{"x": [1], "y": "#),
    ] {
        let (_, syntax) = syntaxes().into_iter().find(|it| it.0 == name).unwrap();
        let conversation = Conversation { tools: tools.clone(), ..Conversation::default() };
        let prototype = compile(Wanted::of(Format::Text, &conversation, &Arc::new(syntax))).unwrap();
        assert!(prototype.within(&call, begun.as_bytes()).is_some(), "{name}");
    }
}

/// Elements inside elements say lists, objects and texts, and nothing that the schema does not admit.
#[test]
fn what_stands_in_elements_keeps_to_its_schema() {
    let schema = json!({ "type": "object", "properties": {
        "tags": { "type": "array", "items": { "type": "string" } },
        "at": { "type": "object", "properties": {
            "x": { "type": "integer" }, "note": { "type": "string" }, "kind": { "enum": ["7", "true"] },
        } },
        "rows": { "type": "array", "items": { "type": "array", "items": { "type": "boolean" } } },
        "mode": { "const": 3 },
    }, "required": ["tags", "at"] });
    let input = ToolInput::Object(Json::new(schema.to_string()).unwrap());
    let tools = vec![Tool { name: "put".into(), description: None, input, strict: true }];
    let mut kinds = BTreeSet::new();
    for name in ["nested", "spelled"] {
        let (_, syntax) = syntaxes().into_iter().find(|it| it.0 == name).unwrap();
        let choice = Choice::Named("put".into());
        let conversation = Conversation { tools: tools.clone(), choice, ..Conversation::default() };
        let prototype = compile(Wanted::of(Format::Text, &conversation, &Arc::new(syntax.clone()))).unwrap();
        assert!(prototype.relaxed().is_empty(), "{:?}", prototype.relaxed());
        for seed in 0..60 {
            let Some(tokens) = walk_tokens(&prototype.constraint(), seed) else { continue };
            let mut watch = watch(&syntax);
            watch.known = tools.iter().map(Known::of).collect();
            let (calls, text) = read_as(watch, &tokens);
            assert!(text.trim().is_empty() && calls.len() == 1, "{calls:?} {text:?}");
            let input: Value = serde_json::from_str(&calls[0].1).unwrap();
            assert!(jsonschema::is_valid(&schema, &input), "{name}: {input}");
            kinds.extend(input["at"].as_object().unwrap().keys().cloned());
            kinds.extend(input.as_object().unwrap().keys().cloned());
        }
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["at", "kind", "mode", "note", "rows", "tags", "x"]);
}

/// Tags tell text from other values, or the schema does: what is written is read as it was meant.
#[test]
fn what_stands_between_tags_keeps_to_its_types() {
    // Texts are short, lest a random one go on for ever; one that is written as it is keeps to no length.
    let of = |text: Value| {
        json!({ "type": "object", "properties": {
            "unit": { "type": "string", "enum": ["C", "7", "true"] },
            "note": { "anyOf": [text, { "type": "null" }] },
            "mixed": { "enum": ["C", 7, null] },
            "either": { "type": ["integer", "boolean"] },
            "list": { "type": "array", "items": { "type": "integer" } },
            "nothing": { "type": "object", "properties": {}, "additionalProperties": false },
        }, "required": ["unit", "note", "mixed", "either", "list", "nothing"], "additionalProperties": false })
    };
    let (schema, valid) = (of(json!({ "type": "string", "maxLength": 2 })), of(json!({ "type": "string" })));
    let input = ToolInput::Object(Json::new(schema.to_string()).unwrap());
    let tools = vec![Tool { name: "put".into(), description: None, input, strict: false }];
    for name in ["tagged", "marked", "atem", "kimi_k3"] {
        let (_, syntax) = syntaxes().into_iter().find(|it| it.0 == name).unwrap();
        let choice = Choice::Named("put".into());
        let conversation = Conversation { tools: tools.clone(), choice, ..Conversation::default() };
        let prototype = compile(Wanted::of(Format::Text, &conversation, &Arc::new(syntax.clone()))).unwrap();
        let (mut units, mut kinds) = (BTreeSet::new(), BTreeSet::new());
        for seed in 0..60 {
            let Some(tokens) = walk_tokens(&prototype.constraint(), seed) else { continue };
            let mut watch = watch(&syntax);
            watch.known = tools.iter().map(Known::of).collect();
            let (calls, text) = read_as(watch, &tokens);
            assert!(text.trim().is_empty() && calls.len() == 1, "{name}: {calls:?} {text:?}");
            let input: Value = serde_json::from_str(&calls[0].1).unwrap();
            assert!(jsonschema::is_valid(&valid, &input), "{name}: {input}");
            units.insert(input["unit"].to_string());
            kinds.insert((input["note"].is_null(), input["mixed"].is_string()));
        }
        assert!(units.len() > 1, "{name}: {units:?}");
        // Elsewhere a quotation mark is what a walk takes as soon as it may.
        assert!(name != "kimi_k3" || kinds.len() > 1, "{kinds:?}");
    }
}

/// Plain text travels in an object.
#[test]
fn the_form_of_a_plain_text_is_enforced_or_told() {
    let (_, syntax) = syntaxes().swap_remove(0);
    let of = |form| {
        let input = ToolInput::Text(form);
        let tools = vec![Tool { name: "say".into(), description: None, input, strict: false }];
        let conversation = Conversation { tools, ..Conversation::default() };
        compile(Wanted::of(Format::Text, &conversation, &Arc::new(syntax.clone()))).unwrap()
    };
    let call = Calling { tool: 0, marked: true, begin: 0 };
    let free = of(None);
    assert!(free.relaxed().is_empty() && free.within(&call, br#"{"input": "x"#).is_some());
    let regex = of(Some(Grammar::Regex("[ab]{2}".into())));
    assert!(regex.relaxed().is_empty() && regex.within(&call, br#"{"input": "ab"}"#).is_some());
    assert!(regex.within(&call, br#"{"input": "x"#).is_none());
    assert_eq!(of(Some(Grammar::Lark("start: \"a\"".into()))).relaxed(), ["tools.say#/properties/input"]);
}

/// What cannot be compiled of a tool that nobody was promised anything of.
#[test]
fn one_odd_tool_costs_the_others_nothing() {
    let (_, syntax) = syntaxes().swap_remove(0);
    let huge = format!("{{\"title\": \"{}\"}}", "a".repeat(300 << 10));
    let mut conversation = Conversation { tools: tools(), ..Conversation::default() };
    let input = ToolInput::Object(Json::new(huge).unwrap());
    conversation.tools.push(Tool { name: "huge".into(), description: None, input, strict: false });
    let of = |it: &Conversation| compile(Wanted::of(Format::Text, it, &Arc::new(syntax.clone())));
    let relaxed = of(&conversation).unwrap().relaxed().to_vec();
    assert!(relaxed.contains(&"tools.huge#".to_owned()), "{relaxed:?}");
    conversation.tools[0].strict = true;
    let prototype = of(&conversation).unwrap();
    let call = Calling { tool: 0, marked: true, begin: 0 };
    assert!(prototype.within(&call, b"{\"x").is_none());
    conversation.tools[2].strict = true;
    assert_eq!(of(&conversation).unwrap_err().code, ErrorCode::InvalidRequest);
}

#[test]
fn what_cannot_be_enforced_of_a_tool_is_told_or_refused() {
    let (_, syntax) = syntaxes().swap_remove(0);
    let odd = Json::new(r#"{"properties": {"a": {"not": {}}}}"#).unwrap();
    let mut conversation = Conversation { choice: Choice::Required, ..Conversation::default() };
    conversation.tools =
        vec![Tool { name: "odd".into(), description: None, input: ToolInput::Object(odd), strict: false }];
    let of = |it: &Conversation, syntax: &ToolSyntax| {
        compile(Wanted::of(Format::Text, it, &Arc::new(syntax.clone())))
    };
    assert_eq!(of(&conversation, &syntax).unwrap().relaxed(), ["tools.odd#/properties/a/not"]);
    let fault = of(&conversation, &unwritable()).unwrap_err();
    assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::UnsupportedFeature, Some("tool_choice")));
    conversation.tools[0].strict = true;
    let fault = of(&conversation, &syntax).unwrap_err();
    assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::UnsupportedParameter, Some("tools")));
    assert!(fault.message.contains("'odd'") && fault.message.contains("#/properties/a"), "{fault}");
}
