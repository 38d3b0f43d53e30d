//! Conversations with words that nobody says: what a template makes of them shows what it writes around them.

use super::super::conversation::{Call, Conversation, Input, Json, Message, Part, Tool, ToolInput};

pub(crate) const TOOLS: [&str; 2] = ["probe_alpha", "probe_beta"];
pub(super) const KEYS: [&str; 2] = ["keyalpha", "keybeta"];
pub(super) const VALUES: [&str; 2] = ["VALUEALPHA", "VALUEBETA"];
pub(super) const NUMBER: &str = "73519";
pub(super) const IDS: [&str; 2] = ["idAlpha01", "idBetaa02"];
pub(crate) const SAID: &str = "SAIDALPHA";
pub(crate) const THOUGHT: &str = "THOUGHTALPHA";

/// The tools that probes call.
pub(crate) fn tools() -> Vec<Tool> {
    let schema = |keys: &[&str]| {
        let properties: Vec<String> = keys
            .iter()
            .map(|it| format!("\"{it}\": {{\"type\": \"string\", \"description\": \"d\"}}"))
            .collect();
        let properties = properties.join(", ");
        Json::new(format!("{{\"type\": \"object\", \"properties\": {{{properties}}}, \"required\": []}}"))
    };
    TOOLS
        .iter()
        .map(|name| Tool {
            name: (*name).to_owned(),
            description: Some("probe".to_owned()),
            input: ToolInput::Object(schema(&KEYS).unwrap_or_default()),
            strict: false,
        })
        .collect()
}

/// A message of a probe: what is said, and calls by tool, id and input.
pub(crate) fn probe(text: &str, reasoning: &str, calls: &[(usize, &str)]) -> Conversation {
    let calls = calls.iter().enumerate().map(|(at, (tool, input))| Call {
        id: IDS[at].to_owned(),
        name: TOOLS[*tool].to_owned(),
        input: Input::Object(Json::new(*input).unwrap_or_default()),
    });
    Conversation {
        messages: vec![
            Message::User { parts: vec![Part::Text("ASKEDALPHA".to_owned())], name: None },
            Message::Assistant {
                reasoning: reasoning.to_owned(),
                text: text.to_owned(),
                calls: calls.collect(),
            },
        ],
        tools: tools(),
        ..Conversation::default()
    }
}
