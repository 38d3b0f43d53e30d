//! What templates make of conversations, byte for byte what Jinja2 makes of them; and that they refuse none.
//!
//! Jinja2 is asked through the Python of the test environment; without one that has it the test says so and looks at
//! nothing.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use llm_node_core::{
    chat::{
        conversation::{Conversation, Effort, Message, Thinking},
        model::{ModelChat, SyntaxChoice},
        render::objects,
    },
    text::template::ChatTemplate,
};
use serde_json::{Value, json};

use super::support::{ENDS, TEMPLATES, assistant, call, of, result, root, system, tool, user, vocabulary};

const NOW: i64 = 1_700_000_000;

/// Templates that make something else of some conversation than Jinja2 makes, and why that stays.
const DIFFERENT: [(&str, &str); 7] = [
    (
        "Apriel-1.6-15b-Thinker-fixed",
        "it prints tools as Python prints a dict; numbers with an exponent are Rust's there",
    ),
    ("unsloth-Apriel-1.5", "as before"),
    (
        "CohereForAI-c4ai-command-r-plus-tool_use",
        "a loop over no tools is empty; Jinja2 refuses to loop over None",
    ),
    ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "as before"),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "as before"),
    ("llama-cpp-deepseek-r1", "`map` gives a list that can be written as JSON; Jinja2 refuses its generator"),
    (
        "meetkai-functionary-medium-v3.1",
        "`safe` escapes nothing; in Jinja2 it escapes what is joined to such a text",
    ),
];

/// Templates that refuse some of these conversations, and why.
const REFUSING: [(&str, &str); 2] = [
    ("google-gemma-2-2b-it", "it knows neither calls nor results"),
    ("fireworks-ai-llama-3-firefunction-v2", "it wants variables that nobody gives it, even for a question"),
];

/// A Python that has Jinja2.
fn python() -> Option<String> {
    let own = root().join(".venv/bin/python").to_string_lossy().into_owned();
    [own, "python3".to_owned()].into_iter().find(|it| {
        Command::new(it)
            .args(["-c", "import jinja2"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|it| it.success())
    })
}

/// Conversations that show what templates do with words, calls, results and thoughts.
fn conversations() -> Vec<(&'static str, Conversation)> {
    let schema = r#"{"type": "object", "properties": {"city": {"type": "string", "description": "Where: \"Köln\" <b>&'\n",
        "enum": ["Köln", "a\\b", "🦙"]}, "days": {"type": ["integer", "null"], "minimum": 0, "maximum": 1e2, "default": null},
        "when": {"anyOf": [{"type": "string", "format": "date"}, {"type": "number"}], "examples": [-0.5, 1.0, 1e20, 1.5e-7]},
        "more": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "boolean"}},
        "required": ["a"], "additionalProperties": false}}}, "required": ["city"], "additionalProperties": false}"#;
    let tools = [
        tool("get_weather", "The weather.\nIn <b>every</b> city & \"town\".", schema),
        tool("now", "", r#"{"type": "object", "properties": {}}"#),
    ];
    let weather = call(
        "call_0123456789",
        "get_weather",
        r#"{"city": "Köln <b>&'\"\\\n🦙", "days": 3, "when": 1.5, "more": [{"a": true}, {"a": null}, [], {}]}"#,
    );
    let now = call("toolu_1", "now", "{}");
    let result_of = |it| result(it, "{\"sky\": \"blue's\", \"grad\": [1, 2.5, \"é\"]}\n<done>");
    let asked = || vec![system(" Be kind.\n"), user("How is <Köln> & \"Ulm\"?\n")];
    let and = |mut before: Vec<_>, more: Vec<_>| {
        before.extend(more);
        before
    };
    let turns = and(asked(), vec![assistant("", "It's fine.", vec![]), user("And now?")]);
    let one = and(
        asked(),
        vec![assistant("", "", vec![weather.clone()]), result_of(&weather), assistant("", "Fine.", vec![])],
    );
    let two = and(
        asked(),
        vec![
            assistant("I must look.", "Let me see.", vec![weather.clone(), now.clone()]),
            result_of(&weather),
            result_of(&now),
        ],
    );
    let thought = and(
        asked(),
        vec![
            assistant("Easy.\nYes: <b>.", "Fine.", vec![]),
            user("Sure?"),
            assistant("Let me think.", "", vec![now.clone()]),
            result_of(&now),
        ],
    );
    let thinks = |thinking, messages| Conversation { thinking, ..of(messages, &[]) };
    let on = |effort| Thinking::On { effort, budget: None };
    vec![
        ("a question", of(vec![user("Hi")], &[])),
        ("turns", of(turns.clone(), &[])),
        ("turns with tools", of(turns.clone(), &tools)),
        ("a call", of(one.clone(), &tools)),
        ("a call and a question", of(and(one.clone(), vec![user("Sure?")]), &tools)),
        ("a call without tools", of(one, &[])),
        ("two calls", of(two.clone(), &tools)),
        ("two calls and a question", of(and(two, vec![assistant("", "So.", vec![]), user("Sure?")]), &tools)),
        ("thoughts", of(thought.clone(), &[])),
        ("thoughts with tools", of(thought, &tools)),
        ("no thinking", thinks(Thinking::Off, turns.clone())),
        ("thinking", thinks(on(None), turns.clone())),
        ("hard thinking", thinks(on(Some(Effort::High)), turns)),
        (
            "a late instruction",
            of(and(asked(), vec![assistant("", "Yes.", vec![]), system("Stop."), user("Well?")]), &[]),
        ),
        ("neighbours", of(vec![user("One."), user("Two."), assistant("", "Three.", vec![])], &[])),
        ("a call that begins", of(vec![user("Go."), assistant("", "", vec![now])], &tools)),
    ]
}

fn value(json: Option<&str>) -> Value {
    json.map_or(Value::Null, |it| serde_json::from_str(it).unwrap())
}

#[test]
fn as_jinja2_renders_them() {
    if TEMPLATES.is_empty() {
        return;
    }
    let Some(python) = python() else {
        eprintln!("skipped: no Python here has jinja2");
        return;
    };
    let vocabulary = vocabulary(&[]);
    let conversations = conversations();
    let (mut ours, mut asked) = (Vec::new(), Vec::new());
    for (_, source) in &*TEMPLATES {
        let template = ChatTemplate::compile(source, &vocabulary).unwrap();
        let model = ModelChat::of(template.clone(), &vocabulary, &SyntaxChoice::Found);
        let (mut texts, mut chats) = (Vec::new(), Vec::new());
        for (_, conversation) in &conversations {
            let chat = objects(conversation, model.habits());
            for begins in [true, false] {
                let mut all = json!({"bos_token": "", "eos_token": ENDS[0], "documents": null});
                for (key, value) in value(chat.variables.as_deref()).as_object().unwrap() {
                    all[key] = value.clone();
                }
                all["add_generation_prompt"] = begins.into();
                all["messages"] = value(Some(&chat.messages));
                all["tools"] = value(chat.tools.as_deref());
                chats.push(all);
                texts.push(template.render_plain(&chat, begins, NOW));
            }
        }
        ours.push(texts);
        asked.push(json!({"template": source, "chats": chats}));
    }

    let program = root().join("rust/core/tests/templates/jinja.py");
    let mut child =
        Command::new(python).arg(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(Value::from(asked).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let theirs: Vec<Vec<Option<String>>> = serde_json::from_slice(&output.stdout).unwrap();

    let (mut different, mut known) = (Vec::new(), BTreeSet::new());
    for ((name, _), (ours, theirs)) in TEMPLATES.iter().zip(ours.iter().zip(&theirs)) {
        assert_eq!(ours.len(), theirs.len());
        for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            let what = conversations[at / 2].0;
            if ours.as_deref().ok() == theirs.as_deref() {
                continue;
            }
            if let Some((name, _)) = DIFFERENT.iter().find(|it| it.0 == name) {
                known.insert(*name);
            } else {
                different.push(format!("{name}, {what}: {}", first_difference(ours, theirs.as_deref())));
            }
        }
    }
    assert_eq!(known.len(), DIFFERENT.len(), "{known:?} differ still");
    assert!(different.is_empty(), "{} differ\n{}", different.len(), different.join("\n"));
}

/// A chat that goes on does not end because a template is particular about ids, roles or what stands beside calls.
#[test]
fn no_conversation_is_refused() {
    let vocabulary = vocabulary(&[]);
    let (mut refused, mut known) = (Vec::new(), BTreeSet::new());
    for (name, source) in &*TEMPLATES {
        let template = ChatTemplate::compile(source, &vocabulary).unwrap();
        let model = ModelChat::of(template, &vocabulary, &SyntaxChoice::Found);
        for (what, mut conversation) in conversations() {
            if let Some(Message::Assistant { calls, .. }) = conversation.messages.last() {
                let results: Vec<_> = calls.iter().map(|it| result(it, "Done.")).collect();
                let goes_on = if results.is_empty() { vec![user("Go on.")] } else { results };
                conversation.messages.extend(goes_on);
            }
            if !conversation.tools.is_empty() && !model.has_tools() {
                continue;
            }
            let Err(fault) = model.render(&conversation, NOW) else { continue };
            if let Some((name, _)) = REFUSING.iter().find(|it| it.0 == name) {
                known.insert(*name);
            } else {
                refused.push(format!("{name}, {what}: {}", fault.message));
            }
        }
    }
    assert!(refused.is_empty(), "{} are refused\n{}", refused.len(), refused.join("\n"));
    assert!(TEMPLATES.is_empty() || known.len() == REFUSING.len(), "{known:?} refuse still");
}

/// Schemas of tools, as servers of tools have them: with nothing said where anything may be, with alternatives,
/// references, and without a type.
const SCHEMAS: [&str; 11] = [
    "{}",
    r#"{"type": "object"}"#,
    r#"{"type": "object", "properties": {}, "additionalProperties": false}"#,
    r#"{"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}}}}}"#,
    r#"{"type": "object", "properties": {"a": {"type": "object"}, "b": {"type": "array"}}}"#,
    r#"{"type": "object", "properties": {"a": {"type": ["string", "null"], "default": null}}}"#,
    r#"{"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}"#,
    r#"{"type": "object", "properties": {"a": {"enum": ["x", 1, null]}, "b": {"const": 1}}, "required": []}"#,
    r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "integer"}}}"##,
    r#"{"type": "object", "properties": {"a": {}, "b": {"description": "d", "type": "number"}}}"#,
    r#"{"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object", "properties":
        {"b": {"type": "array", "items": {"type": ["integer", "string"]}}}}}}}"#,
];

/// Whoever has a tool of that kind among others would be refused with all of them.
#[test]
fn tools_as_clients_have_them_are_shown() {
    let vocabulary = vocabulary(&[]);
    let mut refused = Vec::new();
    for (name, source) in &*TEMPLATES {
        let template = ChatTemplate::compile(source, &vocabulary).unwrap();
        let model = ModelChat::of(template, &vocabulary, &SyntaxChoice::Found);
        for schema in SCHEMAS.iter().filter(|_| model.has_tools()) {
            let mut tools = vec![tool("look_up", "It does.", schema), tool("write_down", "", schema)];
            tools[1].description = None;
            let conversation =
                Conversation { messages: vec![user("Hello.")], tools, ..Conversation::default() };
            match model.render(&conversation, NOW) {
                Ok(asked) if ["look_up", "write_down"].iter().all(|it| asked.prompt.text().contains(it)) => {}
                Ok(_) => refused.push(format!("{name}, {schema}: is not shown")),
                Err(fault) => refused.push(format!("{name}, {schema}: {}", fault.message)),
            }
        }
    }
    assert!(refused.is_empty(), "{} are refused\n{}", refused.len(), refused.join("\n"));
}

/// Where two renderings part.
fn first_difference(ours: &Result<String, llm_node_core::error::Fault>, theirs: Option<&str>) -> String {
    let (ours, theirs) = match (ours, theirs) {
        (Ok(ours), Some(theirs)) => (ours, theirs),
        (Ok(_), None) => return "rendered here, refused by Jinja2".to_owned(),
        (Err(fault), _) => return format!("refused here: {}", fault.message),
    };
    let same = ours.char_indices().zip(theirs.chars()).take_while(|((_, a), b)| a == b);
    let at = same.last().map_or(0, |((at, it), _)| at + it.len_utf8());
    let around = |text: &str| {
        let begin = (0..=at.saturating_sub(40)).rev().find(|&it| text.is_char_boundary(it)).unwrap_or(0);
        text[begin..].chars().take(100).collect::<String>()
    };
    format!("\n  ours   {:?}\n  Jinja2 {:?}", around(ours), around(theirs))
}
