//! A conversation in neutral words, and what is asked of the answer to it.
//!
//! Every API dialect is translated into these types, and `chat::render` makes of them what a model's
//! template wants. Their mirror in Python is `python/llm_node/api/conversation.py`.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

use crate::error::{ErrorCode, Fault};

/// Messages so far, and what the model may do in its next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// In order. A last one of the assistant is the beginning of the answer, which goes on from there.
    pub messages: Vec<Message>,
    /// What the model may call.
    #[serde(default)]
    pub tools: Vec<Tool>,
    /// Which of the tools it may or must call.
    #[serde(default)]
    pub choice: Choice,
    /// May one answer hold several calls?
    #[serde(default = "yes")]
    pub parallel: bool,
    /// Is it to think before it answers?
    #[serde(default)]
    pub thinking: Thinking,
    /// An object of further variables for the template, which win over all others but the messages.
    #[serde(default)]
    pub variables: Json,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Instructions of whoever runs the application.
    System {
        /// What it says.
        text: String,
    },
    /// What a person says.
    User {
        /// In order.
        parts: Vec<Part>,
        /// Which person it is, where several take part.
        #[serde(default)]
        name: Option<String>,
    },
    /// What the model said.
    Assistant {
        /// What it thought before; empty: nothing, or nobody kept it.
        #[serde(default)]
        reasoning: String,
        /// What it said.
        #[serde(default)]
        text: String,
        /// What it called.
        #[serde(default)]
        calls: Vec<Call>,
    },
    /// What came of a call.
    Result {
        /// The call's `id`.
        call: String,
        /// The tool's name.
        name: String,
        /// What the tool gave.
        parts: Vec<Part>,
        /// Did it fail?
        #[serde(default)]
        failed: bool,
    },
}

/// A piece of what somebody says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Plain text.
    Text(String),
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Names the call in its conversation, without a dialect's prefix where the node drew it.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// What the tool is given.
    pub input: Input,
}

/// What a tool is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// A JSON object.
    Object(Json),
    /// Plain text: for tools with such an input, and for calls whose object was cut short.
    Text(String),
}

/// Something that the model may call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// How it is called.
    pub name: String,
    /// What it does, for the model.
    #[serde(default)]
    pub description: Option<String>,
    /// What it is given.
    pub input: ToolInput,
    /// Must its input be valid by the schema in every case?
    #[serde(default)]
    pub strict: bool,
}

/// What kind of input a tool takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolInput {
    /// A JSON object, by this JSON schema.
    Object(Json),
    /// Plain text, by this grammar if there is one.
    Text(Option<Grammar>),
}

/// What a plain text must look like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grammar {
    /// A regular expression, over all of it.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
}

/// Which tools the model may or must call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Choice {
    /// None: tools are neither shown to it nor looked for.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
    /// Only some, although all are shown.
    Among {
        /// Their names.
        names: Vec<String>,
        /// Must it call at least one of them?
        required: bool,
    },
}

impl Choice {
    /// Must a tool be called?
    pub fn is_forced(&self) -> bool {
        matches!(self, Choice::Required | Choice::Named(_) | Choice::Among { required: true, .. })
    }
}

/// Is the model to think before it answers?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Thinking {
    /// As the model's template has it.
    #[default]
    Model,
    /// No.
    Off,
    /// Yes.
    On {
        /// How hard; `None`: as the template has it.
        #[serde(default)]
        effort: Option<Effort>,
        /// Most tokens of it; `None`: as many as it likes.
        #[serde(default)]
        budget: Option<u32>,
    },
}

/// How hard the model is to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effort {
    /// As little as it can.
    Minimal,
    /// Less than usual.
    Low,
    /// As usual.
    Medium,
    /// More than usual.
    High,
    /// As much as it can.
    Max,
}

/// What the text of an answer must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Format {
    /// Anything.
    #[default]
    Text,
    /// Any JSON object.
    Object,
    /// JSON, by this schema.
    Schema {
        /// A JSON schema.
        schema: Json,
        /// Must all of the schema be enforced? Else what cannot be is left out of it.
        strict: bool,
    },
    /// A regular expression, over all of it.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
}

/// Text that was checked to be JSON. Keeps the order of keys, and travels where a tree of values cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Json(String);

/// Why a text is no [`Json`].
#[derive(Debug, thiserror::Error)]
pub enum NotJson {
    /// It is not written as JSON is.
    #[error("it is not JSON: {0}")]
    Malformed(serde_json::Error),
    /// It is JSON that nobody can be sure to read.
    #[error("its values are nested more than 128 deep")]
    TooDeep,
}

impl From<serde_json::Error> for NotJson {
    fn from(error: serde_json::Error) -> Self {
        // It has no kind of its own.
        if error.to_string().starts_with("recursion limit") { Self::TooDeep } else { Self::Malformed(error) }
    }
}

impl Json {
    /// Checks a text. JSON that is nested more than 128 deep is refused.
    pub fn new(text: impl Into<String>) -> Result<Self, NotJson> {
        let text = text.into();
        serde_json::from_str::<Checked>(&text)?;
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is it an object?
    pub fn is_object(&self) -> bool {
        self.0.trim_start_matches([' ', '\n', '\r', '\t']).starts_with('{')
    }
}

impl Default for Json {
    /// An object without fields.
    fn default() -> Self {
        Self("{}".to_owned())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// JSON that was looked through and not kept. Unlike `IgnoredAny` it minds how deep it is nested, so
/// that whoever reads the text later does not fail.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Checked)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Checked>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        while fields.next_entry::<Checked, Checked>()?.is_some() {}
        Ok(self)
    }
}

impl Default for Conversation {
    /// Without messages, and with nothing asked.
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            tools: Vec::new(),
            choice: Choice::default(),
            parallel: true,
            thinking: Thinking::default(),
            variables: Json::default(),
        }
    }
}

impl Conversation {
    /// Checks all that can be checked without the model.
    pub fn check(&self) -> Result<(), Fault> {
        if !self.variables.is_object() {
            return Err(invalid("variables", "the variables for the chat template must be an object"));
        }
        if let Some(Message::Assistant { calls, .. }) = self.messages.last() {
            if !calls.is_empty() {
                let message = "the last message calls tools: what came of each call must follow it";
                return Err(invalid("messages", message));
            }
            if matches!(self.thinking, Thinking::On { .. }) {
                let message = "an answer that is begun already (the last message is the assistant's) cannot \
                               be thought about before";
                return Err(invalid("messages", message));
            }
        }
        self.check_results()?;
        self.check_tools()
    }

    /// Of calls side by side each has a result, or none has: where one lacks, templates that tell results by their
    /// order alone would give its place to the next.
    fn check_results(&self) -> Result<(), Fault> {
        let told: HashSet<&str> = self
            .messages
            .iter()
            .filter_map(|it| if let Message::Result { call, .. } = it { Some(call.as_str()) } else { None })
            .collect();
        for message in &self.messages {
            let Message::Assistant { calls, .. } = message else { continue };
            let (with, without): (Vec<&Call>, Vec<&Call>) =
                calls.iter().partition(|it| told.contains(it.id.as_str()));
            if let (Some(answered), Some(open)) = (with.first(), without.first()) {
                let message = format!(
                    "the call {:?} of the tool '{}' has no result, but {:?} beside it has one",
                    open.id, open.name, answered.id
                );
                return Err(invalid("messages", message));
            }
        }
        Ok(())
    }

    /// The beginning of the answer, if the conversation gives one.
    pub fn prefill(&self) -> Option<&str> {
        match self.messages.last() {
            Some(Message::Assistant { text, .. }) => Some(text),
            _ => None,
        }
    }

    /// Does a message say which person it is of?
    pub fn names_people(&self) -> bool {
        self.messages.iter().any(|it| matches!(it, Message::User { name: Some(_), .. }))
    }

    /// Its tools, as far as the model is told of them.
    pub fn offered(&self) -> &[Tool] {
        if self.choice == Choice::None { &[] } else { &self.tools }
    }

    /// Bytes that it takes, roughly.
    pub fn size(&self) -> usize {
        let parts = |parts: &[Part]| parts.iter().map(|Part::Text(text)| text.len()).sum::<usize>();
        let messages = self.messages.iter().map(|message| match message {
            Message::System { text } => text.len(),
            Message::User { parts: said, name } => parts(said) + name.as_ref().map_or(0, String::len),
            Message::Assistant { reasoning, text, calls } => {
                reasoning.len() + text.len() + calls.iter().map(Call::size).sum::<usize>()
            }
            Message::Result { name, parts: given, .. } => name.len() + parts(given),
        });
        let tools = self.offered().iter().map(|tool| {
            let schema = match &tool.input {
                ToolInput::Object(schema) => schema.as_str().len(),
                ToolInput::Text(_) => 0,
            };
            tool.name.len() + tool.description.as_ref().map_or(0, String::len) + schema
        });
        messages.sum::<usize>() + tools.sum::<usize>() + self.variables.as_str().len()
    }

    fn check_tools(&self) -> Result<(), Fault> {
        let mut names = HashSet::new();
        for tool in &self.tools {
            if tool.name.is_empty() {
                return Err(invalid("tools", "a tool must have a name"));
            }
            if !names.insert(tool.name.as_str()) {
                return Err(invalid("tools", format!("two tools are called '{}'", tool.name)));
            }
            if let ToolInput::Object(schema) = &tool.input
                && !schema.is_object()
            {
                let message = format!("the schema of the tool '{}' must be an object", tool.name);
                return Err(invalid("tools", message));
            }
        }
        let chosen = match &self.choice {
            Choice::None | Choice::Auto => return Ok(()),
            Choice::Required => &[][..],
            Choice::Named(name) => std::slice::from_ref(name),
            Choice::Among { names, .. } => names,
        };
        if self.tools.is_empty() {
            return Err(invalid("tool_choice", "a tool must be called, but there is none"));
        }
        match chosen.iter().find(|it| !names.contains(it.as_str())) {
            Some(unknown) => Err(invalid("tool_choice", format!("there is no tool called '{unknown}'"))),
            None => Ok(()),
        }
    }
}

impl Call {
    /// Bytes that it takes, roughly.
    pub fn size(&self) -> usize {
        let (Input::Object(Json(input)) | Input::Text(input)) = &self.input;
        self.id.len() + self.name.len() + input.len()
    }
}

/// Several parts as one text: each is lines of its own, as templates expect it.
pub fn joined(parts: &[Part]) -> String {
    let texts: Vec<&str> = parts.iter().map(|Part::Text(text)| text.as_str()).collect();
    texts.join("\n")
}

const fn yes() -> bool {
    true
}

fn invalid(param: &str, message: impl Into<String>) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, message).param(param)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_is_checked_and_kept_as_it_is() {
        for text in ["{\"b\": 1, \"a\": [null, true, 1e3, \"\\u00e9\"]}", "1", " {} ", "\"x\""] {
            assert_eq!(Json::new(text).unwrap().as_str(), text);
        }
        for text in ["", "{", "{'a': 1}", "NaN", "[1,]", "{} x", "1e999", "\"\\ud800\""] {
            assert!(Json::new(text).is_err(), "{text}");
        }
        let deep = Json::new("[".repeat(100_000) + &"]".repeat(100_000)).unwrap_err();
        assert_eq!(deep.to_string(), "its values are nested more than 128 deep");
        assert!(Json::new("[]").is_ok_and(|it| !it.is_object()));
        assert!(Json::new("\n{}").is_ok_and(|it| it.is_object()));
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let text = r#"{"messages": [{"system": {"text": "s"}}, {"user": {"parts": [{"text": "u"}]}},
            {"assistant": {"calls": [{"id": "1", "name": "f", "input": {"object": "{}"}}]}},
            {"result": {"call": "1", "name": "f", "parts": []}}]}"#;
        let conversation: Conversation = serde_json::from_str(text).unwrap();
        assert!(conversation.parallel && conversation.tools.is_empty());
        assert_eq!((&conversation.choice, conversation.thinking), (&Choice::Auto, Thinking::Model));
        assert_eq!(conversation.variables.as_str(), "{}");
        assert!(conversation.check().is_ok() && conversation.prefill().is_none());
    }

    fn said(message: Message) -> Conversation {
        Conversation { messages: vec![message], ..Conversation::default() }
    }

    fn tool(name: &str) -> Tool {
        Tool {
            name: name.into(),
            description: None,
            input: ToolInput::Object(Json::default()),
            strict: false,
        }
    }

    #[test]
    fn what_cannot_be_asked_is_refused_by_name() {
        let begun = |calls| Message::Assistant { reasoning: String::new(), text: "I".into(), calls };
        let call = Call { id: "1".into(), name: "f".into(), input: Input::Text(String::new()) };
        let on = Thinking::On { effort: None, budget: None };
        let with = |tools: &[&str], choice| Conversation {
            tools: tools.iter().map(|it| tool(it)).collect(),
            choice,
            ..Conversation::default()
        };
        let among = |name: &str| Choice::Among { names: vec![name.into()], required: false };
        let array = Json::new("[]").unwrap();
        let told = |ids: &[&str]| {
            let calls = ["1", "2"].map(|id| Call { id: id.into(), ..call.clone() });
            let result = |id: &&str| Message::Result {
                call: (*id).into(),
                name: "f".into(),
                parts: vec![],
                failed: false,
            };
            let after = Message::User { parts: vec![], name: None };
            let messages =
                [vec![begun(calls.to_vec())], ids.iter().map(result).collect(), vec![after]].concat();
            Conversation { messages, ..Conversation::default() }
        };
        for (conversation, param) in [
            (told(&["2", "1"]), None),
            (told(&[]), None),
            (told(&["2"]), Some("messages")),
            (said(begun(vec![])), None),
            (said(begun(vec![call.clone()])), Some("messages")),
            (Conversation { thinking: on, ..said(begun(vec![])) }, Some("messages")),
            (Conversation { variables: array, ..Conversation::default() }, Some("variables")),
            (with(&["f", "g"], Choice::Named("g".into())), None),
            (with(&["f", "f"], Choice::Auto), Some("tools")),
            (with(&[""], Choice::Auto), Some("tools")),
            (with(&[], Choice::None), None),
            (with(&[], Choice::Required), Some("tool_choice")),
            (with(&["f"], Choice::Named("g".into())), Some("tool_choice")),
            (with(&["f"], among("g")), Some("tool_choice")),
        ] {
            let found = conversation.check().err().and_then(|it| it.param);
            assert_eq!(found.as_deref(), param, "{conversation:?}");
        }
    }

    #[test]
    fn tools_that_may_not_be_called_are_not_offered() {
        let mut conversation = Conversation { tools: vec![tool("f")], ..Conversation::default() };
        assert_eq!(conversation.offered().len(), 1);
        conversation.choice = Choice::None;
        assert!(conversation.offered().is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_json_exactly_if_it_can_be_read(text in "[\\[\\]{}\",:0-9eE.+\\-ntrufals\\\\ ]{0,24}") {
            prop_assert_eq!(Json::new(text.as_str()).is_ok(), serde_json::from_str::<serde_json::Value>(&text).is_ok());
        }
    }
}
