//! Answers of several syntaxes, written by hand, and what is read in them.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::{
    chat::{
        conversation::Json,
        derive::Tokens,
        families::named,
        syntax::{Body, Family, Frame, Hole, InputSyntax, Literal, Object, Shape, Tags},
        values::quoted,
    },
    engine::{Vocabulary, attribute},
};

pub(crate) fn vocabulary(control: &[&str]) -> Vocabulary {
    let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
    for name in control {
        vocabulary.bytes.extend(name.as_bytes());
        vocabulary.offsets.push(vocabulary.bytes.len() as u32);
        vocabulary.attributes.push(attribute::CONTROL);
    }
    vocabulary
}

const CONTROL: [&str; 16] = [
    "<|python_tag|>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|end|>",
    "<|constrain|>",
    "<|call|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|other|>",
    "<|eom|>",
    "<|open|>",
    "<|close|>",
    "<|sep|>",
];

/// Made once: finding control tokens takes an automaton.
static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| vocabulary(&CONTROL));
static ALL: LazyLock<Vec<ToolSyntax>> = LazyLock::new(|| {
    let named = |name| named(name, Tokens::of(&VOCABULARY)).unwrap();
    let framed = ["atem", "kimi_k3", "harmony"].map(named);
    vec![hermes(), mistral(), coder(), nemo(), lfm2(), llama3(), pythonic()]
        .into_iter()
        .chain(framed)
        .collect()
});

fn literal(text: &str) -> Literal {
    Literal::new(text, VOCABULARY.control_tokens())
}

fn syntax(call: (&str, &str), body: Body) -> ToolSyntax {
    ToolSyntax {
        section: None,
        call: (literal(call.0), literal(call.1)),
        between: literal("\n"),
        body,
        anywhere: false,
        bare: false,
        family: Family::Derived,
        parallel: true,
        frame: Frame::Plain,
    }
}

fn flat(list: bool) -> Body {
    let (name_key, input_key) = ("name".to_owned(), "arguments".to_owned());
    Body::Object(Object { name_key, input_key, shape: Shape::Flat, list })
}

fn hermes() -> ToolSyntax {
    ToolSyntax { bare: true, ..syntax(("<tool_call>\n", "\n</tool_call>"), flat(false)) }
}

fn mistral() -> ToolSyntax {
    let pieces = vec![Hole::Name, Hole::Lit(literal("[ARGS]")), Hole::Input];
    syntax(("[TOOL_CALLS]", ""), Body::Pattern { pieces, input: InputSyntax::Json })
}

fn coder() -> ToolSyntax {
    let tags = Tags {
        before_key: literal("\n<parameter="),
        after_key: literal(">\n"),
        kind: None,
        after_value: literal("\n</parameter>\n"),
    };
    let pieces = vec![Hole::Name, Hole::Lit(literal(">\n")), Hole::Input];
    syntax(
        ("<tool_call>\n<function=", "</function>\n</tool_call>"),
        Body::Pattern { pieces, input: InputSyntax::Tagged(tags) },
    )
}

fn gemma() -> ToolSyntax {
    let pieces = vec![Hole::Name, Hole::Input];
    let input = InputSyntax::Quoted(literal("<|\"|>"));
    syntax(("<|tool_call_start|>", "<|tool_call_end|>"), Body::Pattern { pieces, input })
}

fn nemo() -> ToolSyntax {
    let section = Some((literal("<tools>"), literal("</tools>")));
    ToolSyntax { section, ..syntax(("", ""), flat(true)) }
}

fn lfm2() -> ToolSyntax {
    named("lfm2", Tokens::of(&VOCABULARY)).unwrap()
}

fn llama3() -> ToolSyntax {
    named("llama3", Tokens::of(&VOCABULARY)).unwrap()
}

fn pythonic() -> ToolSyntax {
    named("pythonic", Tokens::of(&VOCABULARY)).unwrap()
}

fn known() -> Vec<Known> {
    let schema =
        r#"{"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}"#;
    let tool =
        |name: &str, input| Known::of(&Tool { name: name.into(), description: None, input, strict: false });
    vec![
        tool("get_weather", ToolInput::Object(Json::new(schema).unwrap())),
        tool("now", ToolInput::Object(Json::default())),
        tool("patch", ToolInput::Text(None)),
    ]
}

fn watch(tools: Option<ToolSyntax>, thinks: bool) -> Arc<Watch> {
    let (reasoning, said) = match tools.as_ref().map(|it| it.frame.clone()) {
        Some(Frame::Elements(it)) => (it.thoughts, Some(Arc::new(it.text))),
        _ => (ReasoningSyntax { open: literal("<think>\n"), close: literal("\n</think>\n\n") }, None),
    };
    Arc::new(Watch {
        tools: tools.map(Arc::new),
        reasoning: Some(Arc::new(reasoning)),
        said,
        known: known(),
        thinks,
        says: false,
        parallel: true,
    })
}

/// Control tokens come whole, everything else in pieces of so many characters, one length after the other.
fn feed(parser: &mut Parser, text: &str, cuts: &[usize], out: &mut Vec<Parsed>) {
    let mut cuts = cuts.iter().cycle();
    let mut push = |parser: &mut Parser, out: &mut Vec<Parsed>, text: &str| {
        let characters: Vec<char> = text.chars().collect();
        let mut rest = &characters[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            parser.push(&now.iter().collect::<String>(), out);
            rest = later;
        }
    };
    let mut begin = 0;
    for found in VOCABULARY.control_tokens().find(text) {
        push(parser, out, &text[begin..found.start]);
        parser.push_control(text[found.clone()].as_bytes(), out);
        begin = found.end;
    }
    push(parser, out, &text[begin..]);
}

/// Neighbours of one kind as one.
fn joined(parsed: Vec<Parsed>) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for Parsed { found, .. } in parsed {
        match (all.last_mut(), found) {
            (_, Found::Control(_)) => {}
            (Some(Found::Text(text)), Found::Text(more))
            | (Some(Found::Reasoning(text)), Found::Reasoning(more))
            | (Some(Found::Input(text)), Found::Input(more)) => text.push_str(&more),
            (_, found) => all.push(found),
        }
    }
    all
}

fn read(watch: &Arc<Watch>, answer: &str) -> Vec<Found> {
    let (mut parser, mut out) = (Parser::new(Arc::clone(watch)), Vec::new());
    feed(&mut parser, answer, &[usize::MAX], &mut out);
    parser.finish(true, &mut out);
    assert_eq!(parser.held(), 0);
    joined(out)
}

fn text(text: &str) -> Found {
    Found::Text(text.into())
}

fn call(name: &str, input: &str) -> Vec<Found> {
    vec![Found::CallBegan(name.into()), Found::Input(input.into()), Found::CallEnded]
}

#[test]
fn calls_as_models_write_them() {
    let weather = call("get_weather", r#"{"city": "Köln", "days": 3}"#);
    let both = [weather.clone(), call("now", "{}")].concat();
    for (syntax, answer, expected) in [
        (
            hermes(),
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n</tool_call>",
            weather.clone(),
        ),
        // Other white space, and keys that the model adds.
        (
            hermes(),
            " <tool_call>{\"id\": 1, \"name\":\"get_weather\", \"arguments\":{\"city\": \"Köln\", \"days\": 3}, \"x\": [\"}\"]} </tool_call>\n",
            weather.clone(),
        ),
        // The object's last brace is forgotten, or the last mark.
        (
            hermes(),
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}",
            both.clone(),
        ),
        // Arguments first, as a string, missing, or no object.
        (
            hermes(),
            "<tool_call>{\"arguments\": {\"city\": \"Köln\", \"days\": 3}, \"name\": \"get_weather\"}</tool_call>",
            weather.clone(),
        ),
        (
            hermes(),
            r#"<tool_call>{"name": "get_weather", "arguments": "{\"city\": \"K\u00f6ln\", \"days\": 3}"}</tool_call>"#,
            weather.clone(),
        ),
        (hermes(), "<tool_call>{\"name\": \"now\"}</tool_call>", call("now", "{}")),
        (hermes(), "<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", call("now", "{}")),
        (
            mistral(),
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Köln\", \"days\": 3}[TOOL_CALLS]now[ARGS]{}",
            both.clone(),
        ),
        (
            coder(),
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
            both.clone(),
        ),
        (
            coder(),
            "<tool_call>\n<function=get_weather><parameter=city>Köln</parameter><parameter=days>3</parameter></function>\n</tool_call>",
            weather.clone(),
        ),
        (
            nemo(),
            "<tools>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}, {\"name\": \"now\", \"arguments\": {}}]</tools>",
            both.clone(),
        ),
        (
            lfm2(),
            "<|tool_call_start|>[get_weather(city='Köln', days=3), now()]<|tool_call_end|>",
            both.clone(),
        ),
        (
            llama3(),
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 3}}; {\"name\": \"now\", \"parameters\": {}}",
            both.clone(),
        ),
        (
            llama3(),
            "<|python_tag|>{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}",
            call("now", "{}"),
        ),
        // Llama 4.
        (pythonic(), "[get_weather(city=\"Köln\", days=3), now()]", both.clone()),
        (pythonic(), "[get_weather(city='Köln',days=3)]", weather.clone()),
    ] {
        assert_eq!(read(&watch(Some(syntax), false), answer), expected, "{answer}");
    }
}

#[test]
fn what_is_no_call_is_text() {
    for (syntax, answer) in [
        (hermes(), "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>"),
        (hermes(), "<tool_call>\nhello"),
        (hermes(), "the mark <tool_call>\n{\"name\": \"now\", \"arguments\": {}}"),
        (hermes(), "<tool_call>{\"name\": \"no"),
        (hermes(), "so: {\"name\": \"now\", \"arguments\": {}}"),
        (hermes(), "```json\n{\"name\": \"unknown\", \"arguments\": {}}\n```"),
        (hermes(), "```python\nnow()\n```"),
        (llama3(), "{\"name\": \"unknown\"}"),
        (llama3(), "so: {\"name\": \"now\", \"parameters\": {}}"),
        (llama3(), "{\"a\": 1}"),
        (coder(), "<tool_call>\n<function=other>\n"),
        (nemo(), "<tools>[]</tools>"),
        (nemo(), "<tools>"),
        (pythonic(), "[1, 2]"),
        (pythonic(), "[unknown()]"),
        (pythonic(), "so: [now()]"),
    ] {
        assert_eq!(read(&watch(Some(syntax), false), answer), [text(answer)], "{answer}");
    }
    let mark = "a <tool_call> b";
    assert_eq!(read(&watch(None, false), mark), [text(mark)]);
}

/// Marks that models leave out.
#[test]
fn calls_whose_marks_are_not_all_there() {
    let weather = call("get_weather", r#"{"city": "Köln", "days": 3}"#);
    let now = || call("now", "{}");
    let body = "<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>";
    let kimi = |id: &str| {
        let mut pieces = vec![Hole::Name];
        if !id.is_empty() {
            pieces.extend([Hole::Lit(literal(id)), Hole::Id]);
        }
        pieces.extend([Hole::Lit(literal("[ARGS]")), Hole::Input]);
        let section = Some((literal("<|tool_call_start|>"), literal("<|tool_call_end|>")));
        let body = Body::Pattern { pieces, input: InputSyntax::Json };
        ToolSyntax { section, ..syntax(("[TOOL_CALLS]functions.", "<|other|>"), body) }
    };
    for (syntax, answer, expected) in [
        (coder(), format!("{body}\n</tool_call>"), weather.clone()),
        (coder(), format!("Look.\n\n{body}"), [vec![text("Look.")], weather.clone()].concat()),
        (coder(), format!("{body}\n<function=now>\n</function>"), [weather.clone(), now()].concat()),
        (coder(), format!("<tool_call>\n{body}\n\nSo."), [weather, vec![text("So.")]].concat()),
        (kimi(":"), "[TOOL_CALLS]functions.now:0[ARGS]{}<|other|>".to_owned(), now()),
        (
            kimi(":"),
            "<|tool_call_start|>[TOOL_CALLS]now:0[ARGS]{}<|other|>[TOOL_CALLS]now[ARGS]{}<|other|><|tool_call_end|>"
                .to_owned(),
            [now(), now()].concat(),
        ),
        (kimi(""), "<|tool_call_start|>[TOOL_CALLS]functions.now[ARGS]{}<|tool_call_end|>So.".to_owned(), [now(), vec![text("So.")]].concat()),
    ] {
        assert_eq!(read(&watch(Some(syntax), false), &answer), expected, "{answer}");
    }
}

#[test]
fn marks_of_text_are_no_part_of_it() {
    let watch = |open: &str, close: &str, tools| {
        let said = SaidSyntax { open: literal(open), close: literal(close), end: Literal::default() };
        Arc::new(Watch { said: Some(Arc::new(said)), ..(*watch(tools, false)).clone() })
    };
    let think = |it: &str| Found::Reasoning(it.into());
    for (answer, expected) in [
        ("<response>yes</response>", vec![text("yes")]),
        (
            "<think>hm</think>\n<response>\nyes <response>\n</response>\n",
            vec![think("hm"), text("yes <response>")],
        ),
        ("<response>yes, cut </resp", vec![text("yes, cut </resp")]),
        ("no</response>", vec![text("no</response>")]),
        ("say <response>", vec![text("say <response>")]),
    ] {
        for tools in [None, Some(hermes())] {
            assert_eq!(read(&watch("<response>", "</response>", tools), answer), expected, "{answer}");
        }
    }
    let answer = "I <b>look.\n<response>At it.</response>\n<tool_call>{\"name\": \"now\"}</tool_call>";
    let expected = [vec![text("I <b>look.At it.")], call("now", "{}")].concat();
    assert_eq!(read(&watch("<response>", "</response>", Some(hermes())), answer), expected);
    let token = watch("<|message|>", "<|end|>", None);
    assert_eq!(read(&token, "so: <|message|>yes<|end|>"), [text("so:yes")]);
}

#[test]
fn text_around_calls() {
    let now = || call("now", "{}");
    let answer =
        "Let me look.\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n\nThere.";
    let expected = [vec![text("Let me look.")], now(), vec![text("There.")]].concat();
    assert_eq!(read(&watch(Some(hermes()), false), answer), expected);
    // A control token is a mark anywhere.
    let answer = "Look: [TOOL_CALLS]now[ARGS]{}";
    let expected = [vec![text("Look:")], now()].concat();
    assert_eq!(read(&watch(Some(mistral()), false), answer), expected);
}

#[test]
fn reasoning_is_told_apart() {
    let think = |it: &str| Found::Reasoning(it.into());
    for (thinks, answer, expected) in [
        (false, "<think>\nhm\n</think>\n\nyes", vec![think("hm"), text("yes")]),
        (false, "\n<think>hm</think>yes", vec![think("hm"), text("yes")]),
        (false, "<think>\n\n</think>\n\nyes", vec![text("yes")]),
        (false, "no <think>hm</think>", vec![text("no <think>hm</think>")]),
        (true, "hm\n</think>\n\nyes <think>", vec![think("hm"), text("yes <think>")]),
        (true, "<think>\nhm\n</think>\nyes", vec![think("hm"), text("yes")]),
        (true, "hm < b", vec![think("hm < b")]),
        (true, "hm </thin", vec![think("hm </thin")]),
        (false, "<thin", vec![text("<thin")]),
        // A model that does not think may say so.
        (false, "</think>\n\nyes", vec![text("yes")]),
        (false, "yes </think>", vec![text("yes </think>")]),
    ] {
        for tools in [None, Some(hermes())] {
            assert_eq!(read(&watch(tools, thinks), answer), expected, "{answer}");
        }
    }
    // A mark in reasoning is none, but a control token ends it.
    let answer = "hm <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call></think>";
    assert_eq!(read(&watch(Some(hermes()), true), answer), [think(&answer[..answer.len() - 8])]);
    let expected = [vec![think("hm")], call("now", "{}")].concat();
    assert_eq!(read(&watch(Some(mistral()), true), "hm [TOOL_CALLS]now[ARGS]{}"), expected);
}

#[test]
fn harmony_transcripts() {
    let watch = watch(ALL.last().cloned(), false);
    let think = |it: &str| Found::Reasoning(it.into());
    let weather = call("get_weather", "{\"city\":\"Köln\"}");
    for (answer, expected) in [
        ("<|channel|>final<|message|>Hi!", vec![text("Hi!")]),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi!",
            vec![think("Hm."), text("Hi!")],
        ),
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\":\"Köln\"}<|call|>",
            [vec![think("Hm.")], weather.clone()].concat(),
        ),
        (
            " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\":\"Köln\"}<|call|>",
            weather.clone(),
        ),
        // A preamble, then a call.
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary<|message|>{\"city\":\"Köln\"}",
            [vec![text("I look.")], weather.clone()].concat(),
        ),
        ("<|channel|>commentary to=functions.unknown<|message|>{}<|call|>", vec![text("{}")]),
        ("<|channel|>analysis<|message|>Hm, cut", vec![think("Hm, cut")]),
        ("Hi without a header", vec![text("Hi without a header")]),
        ("<|channel|>fin", vec![]),
    ] {
        assert_eq!(read(&watch, answer), expected, "{answer}");
    }
}

#[test]
fn atem_transcripts() {
    let watch = watch(ALL.iter().find(|it| it.family.as_str() == "atem").cloned(), false);
    let think = |it: &str| Found::Reasoning(it.into());
    let block = |name: &str, inner: &str| {
        format!(
            "<atem:function_calls>\n<atem:invoke name=\"{name}\">\n{inner}</atem:invoke>\n</atem:function_calls>"
        )
    };
    let city = "<atem:parameter name=\"city\"> a <b>\n</atem:parameter>\n";
    let weather = block("get_weather", &format!("{city}<atem:parameter name=\"days\">3</atem:parameter>\n"));
    let is_weather = || call("get_weather", "{\"city\": \" a <b>\\n\", \"days\": 3}");
    let now = block("now", "");
    let next = "<|eom|><|start|>assistant";
    for (answer, expected) in [
        (" to=user<|message|>Hi!".to_owned(), vec![text("Hi!")]),
        (format!(" to=self<|message|>Hm.{next} to=user<|message|>Hi!"), vec![think("Hm."), text("Hi!")]),
        (
            format!(" to=self<|message|>Hm.{next} to=get_weather<|message|>{weather}{next} to=now<|message|>{now}"),
            [vec![think("Hm.")], is_weather(), call("now", "{}")].concat(),
        ),
        // Behind a word to the user, and without a space.
        (
            format!("to=user<|message|>I look.{next}to=now<|message|>{now}"),
            [vec![text("I look.")], call("now", "{}")].concat(),
        ),
        // Without the tool in the header, and without a header.
        (format!("<|message|>{now}"), call("now", "{}")),
        (now.clone(), call("now", "{}")),
        // Two in one block.
        (
            " to=now<|message|><atem:function_calls>\n<atem:invoke name=\"now\">\n</atem:invoke>\n<atem:invoke name=\"now\">\n</atem:invoke>\n</atem:function_calls>".to_owned(),
            [call("now", "{}"), call("now", "{}")].concat(),
        ),
        // What the user is shown is no call.
        (format!(" to=user<|message|>{now}"), vec![text(&now)]),
        (format!(" to=unknown<|message|>{}", block("unknown", "")), vec![text(&block("unknown", ""))]),
        // Cut in a call, in a header, and before a mark.
        (
            format!(" to=get_weather<|message|>{}", weather.split_once("</atem:parameter>").unwrap().0),
            vec![Found::CallBegan("get_weather".into()), Found::Input("{\"city\": \" a <b>\\n".into())],
        ),
        (" to=us".to_owned(), vec![]),
        ("Hi without a header".to_owned(), vec![text("Hi without a header")]),
    ] {
        assert_eq!(read(&watch, &answer), expected, "{answer}");
    }
}

#[test]
fn elements_hold_thoughts_text_and_calls() {
    let kimi = ALL.iter().find(|it| it.family.as_str() == "kimi_k3").cloned();
    let think = |it: &str| Found::Reasoning(it.into());
    let argument = |key: &str, kind: &str, value: &str| {
        format!("<|open|>argument key=\"{key}\" type=\"{kind}\"<|sep|>{value}<|close|>argument<|sep|>")
    };
    let called = |name: &str, index: usize, inner: &str| {
        format!("<|open|>call tool=\"{name}\" index=\"{index}\"<|sep|>{inner}<|close|>call<|sep|>")
    };
    let inner =
        argument("city", "string", "3") + &argument("days", "number", "3") + &argument("x", "string", "true");
    let weather = called("get_weather", 1, &inner);
    let is_weather = || call("get_weather", "{\"city\": \"3\", \"days\": 3, \"x\": \"true\"}");
    let tools =
        |inner: &str| format!("<|open|>tools<|sep|>{inner}<|close|>tools<|sep|><|close|>message<|sep|>");
    let said = |it: &str| format!("<|open|>response<|sep|>{it}<|close|>response<|sep|>");
    for (answer, expected) in [
        (
            format!("Hm.<|close|>think<|sep|>{}<|close|>message<|sep|>", said("Hi!")),
            vec![think("Hm."), text("Hi!")],
        ),
        (
            format!(
                "Hm.<|close|>think<|sep|>{}{}",
                said(""),
                tools(&(weather.clone() + &called("now", 2, "")))
            ),
            [vec![think("Hm.")], is_weather(), call("now", "{}")].concat(),
        ),
        (
            format!("<|close|>think<|sep|>{}{}", said("I look."), tools(&weather)),
            [vec![text("I look.")], is_weather()].concat(),
        ),
        // Without the mark behind its thoughts, around its text, around all calls, without a number.
        (format!("Hm.{}", said("Hi!")), vec![think("Hm."), text("Hi!")]),
        ("Hm.<|close|>think<|sep|>Hi!<|close|>message<|sep|>".to_owned(), vec![think("Hm."), text("Hi!")]),
        (format!("Hm.{}", tools(&weather)), [vec![think("Hm.")], is_weather()].concat()),
        (weather.clone(), is_weather()),
        (weather.replace(" index=\"1\"", ""), is_weather()),
        // No such tool.
        (
            format!("<|close|>think<|sep|>{}", called("other", 1, "")),
            vec![text("call tool=\"other\" index=\"1\"call")],
        ),
        ("<|close|>think<|sep|><|open|>response<|sep|>Hi".to_owned(), vec![text("Hi")]),
    ] {
        assert_eq!(read(&watch(kimi.clone(), true), &answer), expected, "{answer}");
    }
    // The prompt has begun the text, whether there are tools or not.
    for known in [known(), Vec::new()] {
        let says = Arc::new(Watch { says: true, known, ..(*watch(kimi.clone(), false)).clone() });
        let answer = "Hi!<|close|>response<|sep|><|close|>message<|sep|>";
        assert_eq!(read(&says, answer), [text("Hi!")]);
    }
}

#[test]
fn tools_that_take_text() {
    let expected = call("patch", "a \"b\"\n<c>");
    for (syntax, answer) in [
        (hermes(), r#"<tool_call>{"name": "patch", "arguments": {"input": "a \"b\"\n<c>"}}</tool_call>"#),
        (
            coder(),
            "<tool_call>\n<function=patch>\n<parameter=input>\na \"b\"\n<c>\n</parameter>\n</function>\n</tool_call>",
        ),
        // What it is given stands before its name.
        (hermes(), r#"<tool_call>{"arguments": {"input": "a \"b\"\n<c>"}, "name": "patch"}</tool_call>"#),
        (lfm2(), r#"<|tool_call_start|>[patch(input='a "b"\n<c>')]<|tool_call_end|>"#),
        (pythonic(), r#"[patch(input="a \"b\"\n<c>")]"#),
        (
            gemma(),
            r#"<|tool_call_start|>patch{input:<|"|>a "b"
<c><|"|>}<|tool_call_end|>"#,
        ),
    ] {
        assert_eq!(read(&watch(Some(syntax), false), answer), expected, "{answer}");
    }
}

#[test]
fn one_call_is_enough_where_one_was_asked_for() {
    let mut one = (*watch(Some(hermes()), false)).clone();
    one.parallel = false;
    let mut parser = Parser::new(Arc::new(one));
    let mut out = Vec::new();
    parser.push("<tool_call>{\"name\": \"now\", \"arguments\": {}", &mut out);
    assert!(parser.is_done());
    parser.push("}</tool_call> more <tool_call>", &mut out);
    parser.finish(true, &mut out);
    assert_eq!(joined(out), call("now", "{}"));
}

#[test]
fn a_cut_call_stays_open_at_every_byte() {
    let answer =
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"a\\n\\u00e9\"}}\n</tool_call>";
    let input = r#"{"city": "a\n\u00e9"}"#;
    for cut in (0..=answer.len()).filter(|&it| answer.is_char_boundary(it)) {
        let (mut parser, mut out) = (Parser::new(watch(Some(hermes()), false)), Vec::new());
        parser.push(&answer[..cut], &mut out);
        parser.finish(false, &mut out);
        let found = joined(out);
        match found.first() {
            None => assert_eq!(cut, 0),
            Some(Found::Text(text)) => assert!(found.len() == 1 && *text == answer[..cut], "{cut}"),
            Some(_) => {
                let came = found
                    .iter()
                    .find_map(|it| if let Found::Input(it) = it { Some(it.as_str()) } else { None });
                assert!(input.starts_with(came.unwrap_or("")), "{found:?}");
                assert_eq!(found.last() == Some(&Found::CallEnded), came == Some(input), "{cut} {found:?}");
            }
        }
    }
}

#[test]
fn an_escape_is_never_split() {
    let answer = r#"<tool_call>{"name": "now", "arguments": {"a": "\n\u00e9\ud83e\udd99\\"}}</tool_call>"#;
    let (mut parser, mut out) = (Parser::new(watch(Some(hermes()), false)), Vec::new());
    for character in answer.chars() {
        parser.push(&character.to_string(), &mut out);
    }
    for part in out {
        if let Found::Input(piece) = part.found {
            let opened = piece.replace("\\\\", "");
            assert!(
                !opened.ends_with('\\') && !opened.ends_with("\\u") && !opened.ends_with("\\u0"),
                "{piece}"
            );
        }
    }
}

/// Pieces of marks, values and prose.
fn noise() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => prop::sample::select(vec![
            "<tool_call>", "</tool_call>", "<tools>", "</tools>", "[", "]", "{", "}", "<function=", "</function>",
            "<parameter=", "</parameter>", ">", "\n", " ", "<think>", "</think>", "\"name\": \"now\"",
            "\"name\": \"get_weather\"", "\"arguments\": {", "\"parameters\": ", "\"city\": \"x\"", ", ", ": ",
            "now", "get_weather", "patch", "city", "input", "(", ")", "='x'", "=3", "to=functions.now", "commentary",
            "analysis", "to=self", "to=user", "assistant", "<atem:function_calls>", "<atem:invoke name=\"", "\">", "response",
            "think", "tools", "message", "\\", "\"", "\\u00", "é", "<", "; ", "null",
        ]).prop_map(str::to_owned),
        2 => prop::sample::select(CONTROL.to_vec()).prop_map(str::to_owned),
        1 => "[a-z<>/ \n]{1,4}",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|it| it.concat())
}

/// Something like a call, with noise behind and before it.
fn answers() -> impl Strategy<Value = String> {
    let call = prop::sample::select(vec![
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": \"\\\"x\"}}\n</tool_call>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nx\n</parameter>\n</function>\n</tool_call>",
        "[TOOL_CALLS]now[ARGS]{\"a\": 1}",
        "<tools>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"get_weather\", \"arguments\": {\"city\": \"x\"}}]</tools>",
        "<|tool_call_start|>[now(), get_weather(city='x', days=[1, {'a': None}])]<|tool_call_end|>",
        "{\"name\": \"now\", \"parameters\": {}}; ",
        "<|channel|>commentary to=functions.now<|message|>{\"a\": \"b\"}<|call|>",
        "[now(), get_weather(city='x')]",
        " to=now<|message|><atem:function_calls>\n<atem:invoke name=\"get_weather\">\n<atem:parameter name=\"city\">x</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eom|><|start|>assistant to=user<|message|>x",
        "<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool=\"get_weather\" index=\"1\"<|sep|><|open|>argument key=\"city\" type=\"string\"<|sep|>x<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
        "<think>x</think>",
        "",
    ]);
    (prop::option::of(noise()), call, noise())
        .prop_map(|(before, call, after)| before.unwrap_or_default() + call + &after)
}

/// What a model says: text, a call of `get_weather` with that city, and so on; text at the end.
fn turns() -> impl Strategy<Value = (Vec<(String, String)>, String)> {
    let words = || "([a-z]{1,6}|the <tool_call> mark|a <b)( [a-z<>{}]{1,5}){0,3}";
    let text = || prop_oneof![1 => Just(String::new()), 2 => words()];
    let city = "[a-zé語🦙\"'<>{}\\[\\]\\\\ \n]{0,12}";
    (prop::collection::vec((text(), city), 0..4), text())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn events_do_not_depend_on_how_bytes_are_cut(
        answer in answers(),
        cuts in prop::collection::vec(1usize..8, 1..12),
        which in 0usize..11,
        thinks: bool,
        by_itself: bool,
    ) {
        let watch = watch(ALL.get(which).cloned(), thinks);
        let (mut whole, mut expected) = (Parser::new(Arc::clone(&watch)), Vec::new());
        feed(&mut whole, &answer, &[usize::MAX], &mut expected);
        whole.finish(by_itself, &mut expected);

        let (mut parser, mut out) = (Parser::new(Arc::clone(&watch)), Vec::new());
        feed(&mut parser, &answer, &cuts, &mut out);
        parser.finish(by_itself, &mut out);

        // Whatever it is, it comes from where it stands, in order.
        let mut place = 0;
        for part in &out {
            prop_assert!(part.begin >= place && part.end >= part.begin, "{:?}", out);
            place = part.end;
        }
        prop_assert_eq!(joined(out), joined(expected));
    }

    #[test]
    fn text_and_calls_come_out_as_they_went_in(
        (turns, last) in turns(),
        which in 0usize..3,
        cut in 1usize..9,
        thinks: bool,
    ) {
        let mut answer = if thinks { "hm\n</think>\n\n".to_owned() } else { String::new() };
        let mut expected = if thinks { vec![Found::Reasoning("hm".into())] } else { vec![] };
        for (said, city) in &turns {
            let input = format!("{{\"city\": {}}}", quoted(city));
            let call_of = match which {
                0 => format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {input}}}\n</tool_call>"),
                1 => format!("[TOOL_CALLS]get_weather[ARGS]{input}"),
                _ => format!("<|tool_call_start|>[get_weather(city={})]<|tool_call_end|>", quoted(city)),
            };
            if !said.is_empty() {
                answer.push_str(said);
                answer.push('\n');
                expected.push(text(said));
            }
            answer += &call_of;
            answer.push('\n');
            expected.extend(call("get_weather", &input));
        }
        if !last.is_empty() {
            answer += &last;
            expected.push(text(&last));
        }
        let watch = watch(Some([hermes(), mistral(), lfm2()][which].clone()), thinks);
        let (mut parser, mut out) = (Parser::new(watch), Vec::new());
        feed(&mut parser, &answer, &[cut], &mut out);
        parser.finish(true, &mut out);
        prop_assert_eq!(joined(out), expected, "{}", answer);
    }

    #[test]
    fn without_marks_every_byte_is_text(answer in "[a-z {}\\[\\]\":,\n]{0,40}", which in 0usize..4) {
        let watch = watch(ALL.get(which).cloned(), false);
        let expected: Vec<Found> = if answer.is_empty() { vec![] } else { vec![text(&answer)] };
        prop_assert_eq!(read(&watch, &answer), expected);
    }
}
