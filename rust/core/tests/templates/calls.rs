//! Every call that a template renders is read back by the syntax that was found for it: whatever it holds,
//! wherever its bytes are cut, and as far as it came where the answer ends inside it.

use std::{collections::BTreeSet, sync::Arc};

use llm_node_core::{
    chat::{
        conversation::{Call, Conversation, Json, Tool},
        model::{Asked, ModelChat, SyntaxChoice},
        parse::{Found, Known, Parsed, Parser, Watch},
        render::objects,
        syntax::{Body, InputSyntax, ToolSyntax},
    },
    text::{control::Rendered, template::ChatTemplate},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Map, Value, json};

use super::support::{ENDS, TEMPLATES, assistant, call, of, tool, user, vocabulary};

/// Templates whose calls must be read back, at least.
const LEAST: usize = 61;
/// Conversations for each template.
const CASES: u32 = 8;
const SAID: &str = "Let me see.";

/// What a template spells that is a control token in models: `<|…|>`, `<｜…｜>`, `[WORD]`.
fn marks(source: &str) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (at, _) in source.match_indices(['<', '[']) {
        let rest = &source[at..];
        let close = if rest.starts_with('<') { '>' } else { ']' };
        let Some(end) = rest.find(close).filter(|it| *it < 48) else { continue };
        let inner = &rest[1..end];
        let is_mark = if close == '>' {
            inner.contains(['|', '｜'])
                && !inner.contains(|it: char| it.is_whitespace() || "'+{}<$".contains(it))
        } else {
            let word = inner.strip_prefix('/').unwrap_or(inner);
            word.len() > 3 && word.chars().all(|it| it.is_ascii_uppercase() || it == '_')
        };
        if is_mark {
            found.insert(rest[..=end].to_owned());
        }
    }
    found.into_iter().collect()
}

/// An argument of a call: its name, its schema, and what it is.
type Argument = (String, Value, Value);

/// A call, its tool made to measure.
#[derive(Clone, Debug)]
struct Planned {
    name: String,
    arguments: Vec<Argument>,
}

impl Planned {
    fn tool(&self) -> Tool {
        let properties: Map<String, Value> =
            self.arguments.iter().map(|(key, schema, _)| (key.clone(), schema.clone())).collect();
        tool(&self.name, "Does it.", &json!({"type": "object", "properties": properties}).to_string())
    }

    fn input(&self) -> Value {
        Value::Object(self.arguments.iter().map(|(key, _, value)| (key.clone(), value.clone())).collect())
    }
}

fn name() -> impl Strategy<Value = String> {
    // Short names may be words of a syntax.
    "[a-z][a-z0-9_-]{3,12}"
        .prop_filter("a word of syntaxes", |it| !["call", "name", "function"].contains(&it.as_str()))
}

/// Words that syntaxes are made of, quotes, escapes, other alphabets.
fn text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "it's",
        "\"so\"",
        "\\",
        "\n",
        "\t",
        " ",
        "é",
        "語",
        "🦙",
        "<",
        ">",
        "&",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ":",
        ",",
        "=",
        "3",
        "-1.5",
        "true",
        "null",
        "<b>",
        "```",
        "```json\n",
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "<|im_end|>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "</function>",
        "functions.f:0",
        "\"name\": \"x\"",
        "; ",
        "\\u00e9",
        "\\n",
        "%}",
        "{{",
    ]);
    prop::collection::vec(piece, 0..8).prop_map(|it| it.concat())
}

fn nested() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-1000i64..1000).prop_map(Value::from),
        (-8i32..8).prop_map(|it| Value::from(f64::from(it) / 4.0)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..3)
                .prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

fn planned() -> impl Strategy<Value = Planned> {
    let value = prop_oneof![
        4 => text().prop_map(|it| (json!({"type": "string"}), Value::from(it))),
        1 => (-1000i64..1000).prop_map(|it| (json!({"type": "integer"}), Value::from(it))),
        1 => any::<bool>().prop_map(|it| (json!({"type": "boolean"}), Value::from(it))),
        1 => prop::collection::vec(nested(), 0..3).prop_map(|it| (json!({"type": "array"}), Value::from(it))),
        1 => prop::collection::btree_map("[a-z]{1,4}", nested(), 0..3)
            .prop_map(|it| (json!({"type": "object"}), Value::Object(it.into_iter().collect()))),
    ];
    let arguments = prop::collection::btree_map("[a-z][a-z_]{0,7}", value, 0..4);
    (name(), arguments).prop_map(|(name, arguments)| Planned {
        name,
        arguments: arguments.into_iter().map(|(key, (schema, value))| (key, schema, value)).collect(),
    })
}

fn cases() -> impl Strategy<Value = (Vec<Planned>, bool)> {
    let calls = prop::collection::vec(planned(), 1..4).prop_filter("two tools of one name", |all| {
        all.iter().map(|it| &it.name).collect::<BTreeSet<_>>().len() == all.len()
    });
    (calls, any::<bool>())
}

/// Can the syntax say it? What stands between tags cannot hold the tag that ends it.
fn can_say(syntax: &ToolSyntax, planned: &Planned) -> bool {
    let texts = |it: &dyn Fn(&str) -> bool| {
        planned.arguments.iter().all(|(_, _, value)| value.as_str().is_none_or(it))
    };
    let input = match &syntax.body {
        Body::Pattern { input, .. } => input,
        // Templates do not escape backslashes.
        Body::Python => return texts(&|it| !it.contains('\\')),
        Body::Object(_) => return true,
    };
    let mark = match input {
        InputSyntax::Json => return true,
        InputSyntax::Tagged(tags) => tags.after_value.text().trim(),
        // Elements do not tell an empty list or object from an empty text.
        InputSyntax::Nested(_) if planned.arguments.iter().any(|it| it.2.is_array() || it.2.is_object()) => {
            return false;
        }
        InputSyntax::Quoted(mark) | InputSyntax::Nested(mark) => mark.text(),
    };
    texts(&|it| !it.contains(mark))
}

/// A template and all that is known about it.
pub(super) struct Model {
    pub(super) chat: ModelChat,
    template: ChatTemplate,
    control: Vec<String>,
}

/// What a model writes: text, or a control token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Text(String),
    Control(String),
}

impl Model {
    pub(super) fn of(source: &str) -> Self {
        let mut control = marks(source);
        // Of models whose template does not spell it.
        control.push("<|python_tag|>".to_owned());
        let vocabulary = vocabulary(&control);
        control.extend(ENDS.map(str::to_owned));
        let template = ChatTemplate::compile(source, &vocabulary).unwrap();
        let chat = ModelChat::of(template.clone(), &vocabulary, &SyntaxChoice::Found);
        Self { chat, template, control }
    }

    /// A conversation as the model is asked it. Some templates leave it to the client to show tools; those are read
    /// as if they had.
    pub(super) fn asked(&self, conversation: &Conversation) -> Option<Asked> {
        if self.chat.habits().shows_tools {
            return self.chat.render(conversation, 0).ok();
        }
        let plain = Conversation { tools: Vec::new(), ..conversation.clone() };
        let mut asked = self.chat.render(&plain, 0).ok()?;
        asked.watch.tools = self.chat.calls().ok().cloned();
        asked.watch.known = conversation.tools.iter().map(Known::of).collect();
        Some(asked)
    }

    /// A conversation whose last message is an answer that has been given.
    fn history(&self, conversation: &Conversation) -> Option<Rendered> {
        let variables = Json::new("{\"add_generation_prompt\": false}").unwrap();
        let conversation = Conversation { variables, ..conversation.clone() };
        self.template.render(&objects(&conversation, self.chat.habits()), 0).ok()
    }

    /// The answer that ends a conversation, as the model writes it, and what to look for in it.
    fn answer(&self, conversation: &Conversation) -> Option<(Vec<Written>, Watch)> {
        let mut question = conversation.clone();
        question.messages.pop();
        let asked = self.asked(&question)?;
        let history = self.history(conversation)?;
        let (prompt, whole) = (asked.prompt.text(), history.text());
        let mut watch = asked.watch;
        let mut begin = prompt.len() - asked.begun.len();
        if !whole.starts_with(prompt) {
            // History leaves out what a prompt opens, and the prompt has closed it.
            let same = whole.char_indices().zip(prompt.chars()).take_while(|((_, a), b)| a == b);
            begin = same.last().map_or(0, |((at, it), _)| at + it.len_utf8());
            let inside = |at: &usize| !whole[*at..begin].contains(['>', ']']);
            begin = whole[..begin].rfind(['<', '[']).filter(inside).unwrap_or(begin);
            if let Some(reasoning) = self.chat.reasoning() {
                let rest = whole[begin..].trim_start();
                let closed = rest.strip_prefix(reasoning.close.text().trim()).unwrap_or(rest);
                begin = whole.len() - closed.len();
            }
            watch.thinks = false;
        }
        // What stands behind any answer is not the model's.
        question.messages.push(assistant("", SAID, Vec::new()));
        let said = self.history(&question)?;
        let behind = said.text().rfind(SAID).map_or("", |at| &said.text()[at + SAID.len()..]);
        let marks = behind.match_indices(['<', '[']).map(|it| &behind[it.0..]);
        let end = ENDS.into_iter().chain(marks).filter_map(|it| whole.trim_end().strip_suffix(it.trim_end()));
        let end = end.map(|it| it.trim_end().len()).min().unwrap_or(whole.len());
        (begin <= end).then(|| (self.written(&history, begin, end), watch))
    }

    /// The bytes from `begin` to `end` of a rendering, its control tokens as such.
    fn written(&self, rendered: &Rendered, begin: usize, end: usize) -> Vec<Written> {
        let (mut all, mut place) = (Vec::new(), 0);
        for (part, has_tokens) in rendered.parts() {
            let from = begin.clamp(place, place + part.len()) - place;
            let to = end.clamp(place, place + part.len()) - place;
            place += part.len();
            self.split(&part[from..to], has_tokens, &mut all);
        }
        all
    }

    /// An answer in which control tokens are spelled.
    pub(super) fn spelled(&self, answer: &str) -> Vec<Written> {
        let mut all = Vec::new();
        self.split(answer, true, &mut all);
        all
    }

    fn split(&self, text: &str, has_tokens: bool, all: &mut Vec<Written>) {
        let mut rest = text;
        while !rest.is_empty() {
            // The first, and of these the longest.
            let next = |it: &String| rest.find(it.as_str()).map(|at| (at, usize::MAX - it.len()));
            let found = self.control.iter().filter_map(next).min().filter(|_| has_tokens);
            let (at, length) = found.map_or((rest.len(), 0), |(at, length)| (at, usize::MAX - length));
            if at > 0 {
                all.push(Written::Text(rest[..at].to_owned()));
            }
            if length > 0 {
                all.push(Written::Control(rest[at..at + length].to_owned()));
            }
            rest = &rest[at + length..];
        }
    }
}

pub(super) fn push(parser: &mut Parser, written: &Written, out: &mut Vec<Parsed>) {
    match written {
        Written::Text(text) => parser.push(text, out),
        Written::Control(name) => parser.push_control(name.as_bytes(), out),
    }
}

/// Neighbours of one kind as one, and control tokens left out.
pub(super) fn joined(parsed: &[Parsed]) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    for Parsed { found, .. } in parsed {
        match (all.last_mut(), found) {
            (_, Found::Control(_)) => {}
            (Some(Found::Text(text)), Found::Text(more))
            | (Some(Found::Reasoning(text)), Found::Reasoning(more))
            | (Some(Found::Input(text)), Found::Input(more)) => text.push_str(more),
            (_, found) => all.push(found.clone()),
        }
    }
    all
}

fn read(watch: &Arc<Watch>, answer: &[Written]) -> Vec<Found> {
    let (mut parser, mut out) = (Parser::new(Arc::clone(watch)), Vec::new());
    for written in answer {
        push(&mut parser, written, &mut out);
    }
    parser.finish(true, &mut out);
    joined(&out)
}

/// The calls, and all text.
fn calls_and_text(found: &[Found]) -> (Vec<(String, Value)>, String) {
    let (mut calls, mut text) = (Vec::new(), String::new());
    for part in found {
        match part {
            Found::Text(more) => text.push_str(more),
            Found::CallBegan(name) => calls.push((name.clone(), Value::Null)),
            Found::Input(json) => {
                if let Some(last) = calls.last_mut() {
                    last.1 = serde_json::from_str(json).unwrap_or_else(|_| Value::from(json.as_str()));
                }
            }
            Found::Reasoning(_) | Found::CallEnded | Found::Control(_) => {}
        }
    }
    (calls, text)
}

/// Character by character it gives the same, and wherever it ends before, the call that is open is told as far as
/// it came.
fn keeps_the_promise(watch: &Arc<Watch>, answer: &[Written], whole: &[Found]) -> Result<(), TestCaseError> {
    let inputs: Vec<&String> =
        whole.iter().filter_map(|it| if let Found::Input(it) = it { Some(it) } else { None }).collect();
    let (mut parser, mut out) = (Parser::new(Arc::clone(watch)), Vec::new());
    for written in answer {
        let pieces = match written {
            Written::Text(text) => text.chars().map(|it| Written::Text(it.to_string())).collect(),
            control @ Written::Control(_) => vec![control.clone()],
        };
        for piece in pieces {
            push(&mut parser, &piece, &mut out);
            let (mut cut, mut ending) = (parser.clone(), Vec::new());
            cut.finish(false, &mut ending);
            let mut all = out.clone();
            all.extend(ending);
            let mut calls = 0;
            let all = joined(&all);
            for (at, found) in all.iter().enumerate() {
                match found {
                    Found::CallBegan(_) => calls += 1,
                    Found::Input(input) => {
                        prop_assert!(calls > 0 && calls <= inputs.len(), "{all:?}");
                        prop_assert!(inputs[calls - 1].starts_with(input.as_str()), "{input} {inputs:?}");
                    }
                    Found::CallEnded => {
                        prop_assert!(
                            matches!(&all[at - 1], Found::Input(it) if it == inputs[calls - 1]),
                            "{all:?}"
                        );
                    }
                    Found::Text(_) | Found::Reasoning(_) | Found::Control(_) => {}
                }
            }
        }
    }
    parser.finish(true, &mut out);
    prop_assert_eq!(joined(&out), whole);
    Ok(())
}

/// Reads back what the template makes of a case. False: it renders no call of it.
fn read_back(
    model: &Model,
    syntax: &ToolSyntax,
    planned: &[Planned],
    says: bool,
) -> Result<bool, TestCaseError> {
    let most = if syntax.parallel && model.chat.habits().several_calls { planned.len() } else { 1 };
    let planned: Vec<&Planned> = planned.iter().filter(|it| can_say(syntax, it)).take(most).collect();
    let calls: Vec<Call> = planned
        .iter()
        .enumerate()
        .map(|(at, it)| call(&format!("idAlpha{at:02}"), &it.name, &it.input().to_string()))
        .collect();
    let tools: Vec<Tool> = planned.iter().map(|it| it.tool()).collect();
    let text = if says { SAID } else { "" };
    let Some((answer, watch)) = model.answer(&of(vec![user("Go."), assistant("", text, calls)], &tools))
    else {
        return Ok(false);
    };
    let spells =
        |it: &Written| if let Written::Text(it) = it { it.contains(&planned[0].name) } else { false };
    // Some make a message of the text, and one of the calls.
    let ends = |it: &Written| matches!(it, Written::Control(it) if ENDS.contains(&it.as_str()));
    if planned.is_empty() || !answer.iter().any(spells) || answer.iter().any(ends) {
        return Ok(false);
    }
    let watch = Arc::new(watch);
    let whole = read(&watch, &answer);
    let (calls, said) = calls_and_text(&whole);
    let expected: Vec<(String, Value)> = planned.iter().map(|it| (it.name.clone(), it.input())).collect();
    prop_assert_eq!(&calls, &expected, "{:?}", answer);
    // Some templates leave out text beside calls.
    prop_assert!(["", SAID].contains(&said.trim()), "{:?} {:?}", said, answer);
    if text.is_empty() {
        keeps_the_promise(&watch, &answer, &whole)?;
    }
    Ok(true)
}

#[test]
fn calls_that_templates_render_are_read_back() {
    if TEMPLATES.is_empty() {
        return;
    }
    let (mut count, mut failed) = (0, Vec::new());
    for (name, source) in &*TEMPLATES {
        let model = Model::of(source);
        let Ok(syntax) = model.chat.calls().cloned() else { continue };
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let seen = std::cell::Cell::new(false);
        let outcome = TestRunner::new_with_rng(config, random).run(&cases(), |(planned, says)| {
            seen.set(seen.get() | read_back(&model, &syntax, &planned, says)?);
            Ok(())
        });
        match outcome {
            Ok(()) => count += usize::from(seen.get()),
            Err(why) => failed.push(format!("{name}: {why}")),
        }
    }
    assert!(failed.is_empty(), "{} are not read back\n{}", failed.len(), failed.join("\n"));
    assert!(count >= LEAST, "{count} of {} templates", TEMPLATES.len());
}
