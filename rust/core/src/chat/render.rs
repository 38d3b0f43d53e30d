//! A conversation to the objects that a model's template wants.
//!
//! With `habits` the only place where the words of templates stand: `role`, `tool_calls`,
//! `reasoning_content`. What a template cannot bear is said in another way, and never refused.

use std::{borrow::Cow, fmt::Write};

use serde_json::{Value, json};

use super::{
    conversation::{Call, Conversation, Input, Message, Thinking, Tool, ToolInput, joined},
    habits::{Habits, NoText, ToolsIn},
    values::quoted,
};
use crate::text::conversation::Chat;

/// What the template is given for a conversation.
pub fn objects(conversation: &Conversation, habits: &Habits) -> Chat {
    let offered = conversation.offered();
    let list = |write: fn(&Tool, &Habits) -> String| {
        let all: Vec<String> = offered.iter().map(|it| write(it, habits)).collect();
        (!all.is_empty()).then(|| format!("[{}]", all.join(", ")))
    };
    let mut said = said(conversation, habits);
    let mut variables = variables(conversation, habits);
    let tools = list(tool);
    match (habits.tools, &tools) {
        (ToolsIn::Variable(name), Some(tools)) if name != "tools" => {
            variables = with_variable(name, tools, &variables);
        }
        (ToolsIn::System, Some(_)) => {
            if said.first().is_none_or(|it| it.role != "system") {
                said.insert(0, Said::of("system", ""));
            }
            let functions = list(function).unwrap_or_default();
            let _ = write!(said[0].more, ", \"tools\": {}", quoted(&functions));
        }
        _ => {}
    }
    Chat { messages: array(&said), tools, variables: Some(variables) }
}

/// A tool, as templates know it from the field's first vendor.
fn tool(tool: &Tool, habits: &Habits) -> String {
    format!("{{\"type\": \"function\", \"function\": {}}}", function(tool, habits))
}

fn function(tool: &Tool, habits: &Habits) -> String {
    let schema = match &tool.input {
        ToolInput::Object(schema) => {
            let schema = with_properties(schema.as_str());
            if habits.any_schema { schema } else { plain(&schema).into_owned().into() }
        }
        ToolInput::Text(_) => {
            "{\"type\": \"object\", \"properties\": {\"input\": {\"type\": \"string\"}}, \"required\": [\"input\"]}".into()
        }
    };
    let description = tool.description.as_deref().or_else(|| (!habits.undescribed).then_some(""));
    let description = description.map_or(String::new(), |it| format!("\"description\": {}, ", quoted(it)));
    format!("{{\"name\": {}, {description}\"parameters\": {schema}}}", quoted(&tool.name))
}

/// A schema that says which properties there are, be it none: some templates go through them without a look.
fn with_properties(schema: &str) -> Cow<'_, str> {
    let inner = schema.trim().strip_prefix('{').and_then(|it| it.strip_suffix('}'));
    let Some(inner) = inner.filter(|_| !schema.contains("\"properties\"")) else { return schema.into() };
    let kind = if inner.contains("\"type\"") { "" } else { "\"type\": \"object\"" };
    let all = [kind, inner.trim(), "\"properties\": {}"];
    let all: Vec<&str> = all.into_iter().filter(|it| !it.is_empty()).collect();
    format!("{{{}}}", all.join(", ")).into()
}

/// A schema as templates read it that turn it into a signature: no `type` is a list, but alternatives stand in `anyOf`,
/// and `null` beside one type is left out; each property has a description, and what objects and arrays hold is said. The
/// answer is held to the schema as it was.
fn plain(schema: &str) -> Cow<'_, str> {
    fn walk(value: &mut Value, is_root: bool) {
        let object = match value {
            Value::Object(object) => object,
            Value::Array(all) => return all.iter_mut().for_each(|it| walk(it, false)),
            _ => return,
        };
        if let Some(Value::Array(types)) = object.get("type") {
            let types: Vec<Value> = types.iter().filter(|it| *it != "null").cloned().collect();
            if let [only] = &types[..] {
                object.insert("type".to_owned(), only.clone());
            } else {
                object.shift_remove("type");
                let all = types.into_iter().map(|it| json!({ "type": it })).collect();
                object.entry("anyOf").or_insert(Value::Array(all));
            }
        }
        // What is left out admits anything.
        for (kind, inside) in [("object", "additionalProperties"), ("array", "items")] {
            if !is_root && object.get("type").is_some_and(|it| it == kind) {
                object.entry(inside).or_insert_with(|| json!({}));
            }
        }
        let properties = object.get_mut("properties").and_then(Value::as_object_mut);
        for property in properties.into_iter().flat_map(|it| it.values_mut()).filter_map(Value::as_object_mut)
        {
            property.entry("description").or_insert("".into());
        }
        object.values_mut().for_each(|it| walk(it, false));
    }
    let Ok(mut value) = serde_json::from_str(schema) else { return schema.into() };
    walk(&mut value, true);
    value.to_string().into()
}

/// The client's variables, which win over those that switch thinking and say how hard it is to be.
fn variables(conversation: &Conversation, habits: &Habits) -> String {
    let (switch, effort) = match conversation.thinking {
        Thinking::Model => (None, None),
        Thinking::Off => (habits.switch.map(|it| (it.variable, it.off)), None),
        Thinking::On { effort, .. } => {
            let word = habits.efforts.zip(effort);
            let word = word.and_then(|(all, effort)| Some((all.variable, all.word(effort)?)));
            // Some templates have one variable for both.
            let switch = habits.switch.filter(|it| word.is_none_or(|word| word.0 != it.variable));
            (switch.map(|it| (it.variable, it.on)), word)
        }
    };
    let given = conversation.variables.as_str().to_owned();
    let all = [effort, switch].into_iter().flatten();
    all.fold(given, |object, (name, value)| with_variable(name, value, &object))
}

/// An object with one more field. Of two with one name the last counts, which is that of the object.
pub(super) fn with_variable(name: &str, value: &str, object: &str) -> String {
    let inner = object.trim().trim_start_matches('{').trim_start();
    let separator = if inner.starts_with('}') { "" } else { ", " };
    format!("{{\"{name}\": {value}{separator}{inner}")
}

/// A message under way.
struct Said {
    role: &'static str,
    text: String,
    /// Further fields of its object, each with a comma before it.
    more: String,
    /// May a neighbour of the same role be joined to it?
    joins: bool,
}

impl Said {
    /// A message of text.
    fn of(role: &'static str, text: &str) -> Self {
        Self { role, text: quoted(text), more: String::new(), joins: true }
    }
}

fn said(conversation: &Conversation, habits: &Habits) -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    // What stands before the first user's text where there is no system message.
    let mut instructions = String::new();
    let mut begins = true;
    let mut rest = conversation.messages.iter().peekable();
    while let Some(message) = rest.next() {
        match message {
            Message::System { text } if begins && habits.system => {
                put(&mut all, "system", text, habits);
            }
            Message::System { text } if begins => {
                if !instructions.is_empty() {
                    instructions.push_str("\n\n");
                }
                instructions.push_str(text);
            }
            Message::System { text } => {
                // A template without system messages bears none later either.
                let role = if habits.late_system && habits.system { "system" } else { "user" };
                put(&mut all, role, text, habits);
            }
            Message::User { parts, name } => {
                let mut text = std::mem::take(&mut instructions);
                if !text.is_empty() {
                    text.push_str("\n\n");
                }
                text.push_str(&joined(parts));
                put(&mut all, "user", &text, habits);
                if let (Some(name), Some(last)) = (name, all.last_mut().filter(|it| it.more.is_empty())) {
                    last.more = format!(", \"name\": {}", quoted(name));
                }
            }
            Message::Assistant { reasoning, text, calls } => {
                if !instructions.is_empty() {
                    put(&mut all, "user", &std::mem::take(&mut instructions), habits);
                }
                let apart = !habits.text_beside_thoughts
                    && ![reasoning.is_empty(), text.is_empty(), calls.is_empty()].contains(&true);
                let text = if apart {
                    all.push(assistant("", text, &[], habits));
                    ""
                } else {
                    text
                };
                let mut results: Vec<&Message> = Vec::new();
                while let Some(Message::Result { .. }) = rest.peek() {
                    results.extend(rest.next());
                }
                let is_of =
                    |it: &Message, one: &Call| matches!(it, Message::Result { call, .. } if *call == one.id);
                let place = |it: &Message| calls.iter().position(|one| is_of(it, one));
                // In the order of their calls, since many templates tell them by that alone.
                results.sort_by_key(|it| place(it).unwrap_or(usize::MAX));
                let (own, late): (Vec<&Message>, Vec<&Message>) =
                    results.into_iter().partition(|it| place(it).is_some());
                if calls.len() < 2 || habits.several_calls {
                    all.push(assistant(reasoning, text, calls, habits));
                    all.extend(own.iter().filter_map(|it| result(it, habits)));
                } else {
                    // Call, result, call, result.
                    for (at, one) in calls.iter().enumerate() {
                        let (reasoning, text) = if at == 0 { (reasoning.as_str(), text) } else { ("", "") };
                        all.push(assistant(reasoning, text, std::slice::from_ref(one), habits));
                        let of_it = own.iter().filter(|it| is_of(it, one));
                        all.extend(of_it.filter_map(|it| result(it, habits)));
                    }
                }
                all.extend(late.iter().filter_map(|it| result(it, habits)));
            }
            Message::Result { .. } => all.extend(result(message, habits)),
        }
        begins &= matches!(message, Message::System { .. });
    }
    if !instructions.is_empty() {
        put(&mut all, "user", &instructions, habits);
    }
    all
}

fn array(all: &[Said]) -> String {
    let mut out = String::from("[");
    for (at, Said { role, text, more, .. }) in all.iter().enumerate() {
        let separator = if at == 0 { "" } else { ", " };
        // Writing to a String does not fail.
        let _ = write!(out, "{separator}{{\"role\": \"{role}\", \"content\": {text}{more}}}");
    }
    out.push(']');
    out
}

/// A message of text, joined to its neighbour where the template bears no two of one role.
fn put(all: &mut Vec<Said>, role: &'static str, text: &str, habits: &Habits) {
    if !habits.neighbours
        && let Some(last) = all.last_mut().filter(|it| it.joins && it.role == role)
    {
        let both = serde_json::from_str::<String>(&last.text).unwrap_or_default() + "\n\n" + text;
        last.text = quoted(&both);
        return;
    }
    all.push(Said::of(role, text));
}

fn assistant(reasoning: &str, text: &str, calls: &[Call], habits: &Habits) -> Said {
    let mut more = String::new();
    if let Some(key) = habits.reasoning.filter(|_| !reasoning.is_empty()) {
        let _ = write!(more, ", \"{key}\": {}", quoted(reasoning));
    }
    if !calls.is_empty() {
        let calls: Vec<String> = calls.iter().map(|it| call(it, habits)).collect();
        let _ = write!(more, ", \"tool_calls\": [{}]", calls.join(", "));
    }
    let text = match habits.no_text {
        NoText::Null if text.is_empty() && !calls.is_empty() => "null".to_owned(),
        _ => quoted(text),
    };
    Said { role: "assistant", text, more, joins: false }
}

fn call(call: &Call, habits: &Habits) -> String {
    let wrapped = |text: &str| format!("{{\"input\": {}}}", quoted(text));
    let input = match &call.input {
        Input::Object(json) if json.is_object() => json.as_str().to_owned(),
        Input::Object(json) => wrapped(json.as_str()),
        Input::Text(text) => wrapped(text),
    };
    let input = if habits.encoded { quoted(&input) } else { input };
    format!(
        "{{\"id\": {}, \"type\": \"function\", \"function\": {{\"name\": {}, \"arguments\": {input}}}}}",
        quoted(&id(&call.id, habits)),
        quoted(&call.name)
    )
}

fn result(message: &Message, habits: &Habits) -> Option<Said> {
    let Message::Result { call, name, parts, .. } = message else { return None };
    let more = format!(", \"tool_call_id\": {}, \"name\": {}", quoted(&id(call, habits)), quoted(name));
    Some(Said { role: "tool", text: quoted(&joined(parts)), more, joins: false })
}

/// Digits of short ids.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// An id as the template bears it: equal ones stay equal.
fn id(id: &str, habits: &Habits) -> String {
    let fits = id.len() == 9 && id.bytes().all(|it| it.is_ascii_alphanumeric());
    if !habits.short_ids || fits {
        return id.to_owned();
    }
    // FNV-1a.
    let mut hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut short = String::with_capacity(9);
    for _ in 0..9 {
        short.push(char::from(DIGITS[(hash % 62) as usize]));
        hash /= 62;
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{
        conversation::{Effort, Json, Part},
        habits::{Efforts, Switch},
    };

    fn user(text: &str) -> Message {
        Message::User { parts: vec![Part::Text(text.into())], name: None }
    }

    fn system(text: &str) -> Message {
        Message::System { text: text.into() }
    }

    fn call_of(id: &str, input: &str) -> Call {
        Call { id: id.into(), name: "f".into(), input: Input::Object(Json::new(input).unwrap()) }
    }

    fn result_of(id: &str) -> Message {
        Message::Result {
            call: id.into(),
            name: "f".into(),
            parts: vec![Part::Text(id.into())],
            failed: false,
        }
    }

    fn rendered(messages: Vec<Message>, habits: &Habits) -> Value {
        let conversation = Conversation { messages, ..Conversation::default() };
        serde_json::from_str(&objects(&conversation, habits).messages).unwrap()
    }

    fn roles(messages: &Value) -> Vec<&str> {
        messages.as_array().unwrap().iter().map(|it| it["role"].as_str().unwrap()).collect()
    }

    #[test]
    fn what_a_template_cannot_bear_is_said_otherwise() {
        let habits = Habits { system: false, late_system: false, neighbours: false, ..Habits::default() };
        let said = rendered(vec![system("s"), system("t"), user("a"), user("b"), system("c")], &habits);
        assert_eq!(said, serde_json::json!([{"role": "user", "content": "s\n\nt\n\na\n\nb\n\nc"}]));
        let late = Habits { late_system: false, ..Habits::default() };
        let said = rendered(vec![system("s"), user("a"), system("c")], &late);
        assert_eq!(roles(&said), ["system", "user", "user"]);
        assert_eq!(roles(&rendered(vec![system("s")], &habits)), ["user"]);
    }

    #[test]
    fn several_calls_become_one_after_the_other() {
        let habits = Habits { several_calls: false, ..Habits::default() };
        let calls = vec![call_of("1", "{}"), call_of("2", "{}")];
        let turn = Message::Assistant { reasoning: "r".into(), text: "t".into(), calls };
        let said = rendered(vec![user("u"), turn, result_of("2"), result_of("1"), user("v")], &habits);
        assert_eq!(roles(&said), ["user", "assistant", "tool", "assistant", "tool", "user"]);
        let ids: Vec<_> =
            [2, 4].iter().map(|&it| said[it]["tool_call_id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids, ["1", "2"]);
        assert_eq!((said[1]["content"].as_str(), said[3]["content"].as_str()), (Some("t"), Some("")));
    }

    #[test]
    fn results_stand_in_the_order_of_their_calls() {
        let turn = |ids: &[&str]| Message::Assistant {
            reasoning: String::new(),
            text: String::new(),
            calls: ids.iter().map(|id| call_of(id, "{}")).collect(),
        };
        let told = vec![turn(&["1", "2", "3"]), result_of("3"), result_of("1"), turn(&["4", "5"])];
        let late = vec![result_of("2"), result_of("5"), result_of("4")];
        let messages = [told, late].concat();
        for several_calls in [true, false] {
            let habits = Habits { several_calls, ..Habits::default() };
            let said = rendered(messages.clone(), &habits);
            let ids = said.as_array().unwrap().iter().filter_map(|it| it["tool_call_id"].as_str());
            let mut ids: Vec<&str> = ids.collect();
            assert_eq!(ids.pop(), Some("2"), "what came late stays");
            assert_eq!(ids, ["1", "3", "4", "5"]);
        }
    }

    #[test]
    fn input_keeps_its_order_and_a_cut_one_is_taken() {
        let cut = Call { id: "x".into(), name: "f".into(), input: Input::Text("{\"a\": [1, ".into()) };
        let calls = vec![call_of("i", r#"{"b": 1, "a": {"d": null, "c": "é"}}"#), cut];
        let turn = Message::Assistant { reasoning: String::new(), text: String::new(), calls };
        let chat = |habits: &Habits| {
            objects(&Conversation { messages: vec![turn.clone()], ..Conversation::default() }, habits)
                .messages
        };
        let plain = chat(&Habits::default());
        assert!(plain.contains(r#""arguments": {"b": 1, "a": {"d": null, "c": "é"}}"#), "{plain}");
        assert!(plain.contains(r#""arguments": {"input": "{\"a\": [1, "}"#), "{plain}");
        let encoded = chat(&Habits { encoded: true, no_text: NoText::Null, ..Habits::default() });
        assert!(encoded.contains(r#""arguments": "{\"b\": 1, "#), "{encoded}");
        assert!(encoded.contains(r#""content": null"#), "{encoded}");
    }

    #[test]
    fn foreign_ids_are_shortened_alike_in_call_and_result() {
        let habits = Habits { short_ids: true, ..Habits::default() };
        let turn = |id: &str| Message::Assistant {
            reasoning: String::new(),
            text: String::new(),
            calls: vec![call_of(id, "{}")],
        };
        let said = rendered(
            vec![turn("toolu_0123456789"), result_of("toolu_0123456789"), turn("AbCdEf123")],
            &habits,
        );
        let id = said[0]["tool_calls"][0]["id"].as_str().unwrap();
        assert!(id.len() == 9 && id.bytes().all(|it| it.is_ascii_alphanumeric()), "{id}");
        assert_eq!(said[1]["tool_call_id"], id);
        assert_eq!(said[2]["tool_calls"][0]["id"], "AbCdEf123");
    }

    #[test]
    fn text_stands_apart_where_it_may_not_stand_beside_thoughts() {
        let habits = Habits { text_beside_thoughts: false, reasoning: Some("thinking"), ..Habits::default() };
        let turn = |reasoning: &str, text: &str| Message::Assistant {
            reasoning: reasoning.into(),
            text: text.into(),
            calls: vec![call_of("a", "{}")],
        };
        let said = rendered(vec![turn("Hm.", "I look."), turn("Hm.", "")], &habits);
        assert_eq!(said.as_array().unwrap().len(), 3);
        assert_eq!((&said[0]["content"], said[0].get("tool_calls")), (&"I look.".into(), None));
        assert_eq!((&said[1]["thinking"], &said[1]["content"]), (&"Hm.".into(), &"".into()));
        assert!(said[1]["tool_calls"].is_array());
    }

    #[test]
    fn schemas_are_written_plainly_where_a_template_bears_no_others() {
        let schema = r#"{"type": "object", "properties": {"z": {"type": ["string", "null"]},
            "a": {"type": ["string", "array"], "items": {"type": ["integer", "null"]}, "description": "d"},
            "o": {"type": "object", "description": "d"}, "l": {"type": "array", "description": "d"}}}"#;
        let plainly = r#"{"type":"object","properties":{"z":{"type":"string","description":""},
            "a":{"items":{"type":"integer"},"description":"d","anyOf":[{"type":"string"},{"type":"array","items":{}}]},
            "o":{"type":"object","description":"d","additionalProperties":{}},
            "l":{"type":"array","description":"d","items":{}}}}"#;
        let without_blanks = |it: &str| it.split_whitespace().collect::<String>();
        assert_eq!(plain(schema), without_blanks(plainly));
        assert_eq!(plain("true"), "true");
    }

    #[test]
    fn an_effort_is_said_where_there_is_a_word_for_it() {
        let switch = |variable| Switch { variable, on: "\"high\"", off: "\"none\"" };
        let words = [Some("\"low\""), Some("\"medium\""), Some("\"high\""), None];
        let efforts = |variable| Efforts { variable, words };
        let one = |variable| Habits {
            switch: Some(switch(variable)),
            efforts: Some(efforts("reasoning_effort")),
            ..Habits::default()
        };
        for (variable, effort, expected) in [
            ("reasoning_effort", Some(Effort::Minimal), r#"{"reasoning_effort": "low"}"#),
            ("reasoning_effort", Some(Effort::Medium), r#"{"reasoning_effort": "medium"}"#),
            ("reasoning_effort", Some(Effort::Max), r#"{"reasoning_effort": "high"}"#),
            ("reasoning_effort", None, r#"{"reasoning_effort": "high"}"#),
            ("thinking", Some(Effort::Low), r#"{"thinking": "high", "reasoning_effort": "low"}"#),
            ("thinking", None, r#"{"thinking": "high"}"#),
        ] {
            let thinking = Thinking::On { effort, budget: None };
            let conversation = Conversation { thinking, ..Conversation::default() };
            assert_eq!(objects(&conversation, &one(variable)).variables.as_deref(), Some(expected));
        }
        let off = Conversation { thinking: Thinking::Off, ..Conversation::default() };
        assert_eq!(objects(&off, &one("thinking")).variables.as_deref(), Some(r#"{"thinking": "none"}"#));
    }

    #[test]
    fn tools_stand_where_the_template_looks_for_them() {
        let tool = Tool {
            name: "f".into(),
            description: None,
            input: ToolInput::Object(Json::default()),
            strict: false,
        };
        let asked = Conversation { messages: vec![user("u")], tools: vec![tool], ..Conversation::default() };
        let by = |tools| objects(&asked, &Habits { tools, ..Habits::default() });
        let wrapped = r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]"#;
        assert_eq!(by(ToolsIn::Variable("tools")).tools.as_deref(), Some(wrapped));
        let named = by(ToolsIn::Variable("xml_tools")).variables;
        assert_eq!(named, Some(format!("{{\"xml_tools\": {wrapped}}}")));
        let messages: Value = serde_json::from_str(&by(ToolsIn::System).messages).unwrap();
        assert_eq!(roles(&messages), ["system", "user"]);
        assert_eq!(
            messages[0]["tools"],
            r#"[{"name": "f", "parameters": {"type": "object", "properties": {}}}]"#
        );
    }

    #[test]
    fn a_schema_says_which_properties_there_are_be_it_none() {
        for (schema, shown) in [
            ("{}", r#"{"type": "object", "properties": {}}"#),
            (r#" {"type": "object" }"#, r#"{"type": "object", "properties": {}}"#),
            (r#"{"title": "T"}"#, r#"{"type": "object", "title": "T", "properties": {}}"#),
            (r#"{"properties": {"a": {}}}"#, r#"{"properties": {"a": {}}}"#),
            ("true", "true"),
        ] {
            assert_eq!(with_properties(schema), shown);
        }
    }

    #[test]
    fn thinking_is_switched_and_the_client_s_variables_win() {
        let switch = Switch { variable: "enable_thinking", on: "true", off: "false" };
        let habits = Habits { switch: Some(switch), ..Habits::default() };
        for (thinking, given, expected) in [
            (Thinking::Model, "{}", "{}"),
            (Thinking::Off, "{}", r#"{"enable_thinking": false}"#),
            (
                Thinking::On { effort: None, budget: None },
                r#" { "a": 1}"#,
                r#"{"enable_thinking": true, "a": 1}"#,
            ),
            (
                Thinking::Off,
                r#"{"enable_thinking": true}"#,
                r#"{"enable_thinking": false, "enable_thinking": true}"#,
            ),
        ] {
            let variables = Json::new(given).unwrap();
            let conversation = Conversation { thinking, variables, ..Conversation::default() };
            assert_eq!(objects(&conversation, &habits).variables.as_deref(), Some(expected));
        }
    }
}
