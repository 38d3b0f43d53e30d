//! What an event of a streamed completion says, and what an error's body says: the only place that
//! knows the answers' JSON.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

/// Token counts, as the server states them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) prompt_tokens: u64,
    #[serde(default)]
    pub(crate) completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Prompt tokens that the server did not compute anew, where it says so.
    pub(crate) fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or_default()
    }
}

/// What one event says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A piece of an answer, with text or without (a role, a finish reason), perhaps with the counts.
    Piece { has_text: bool, usage: Option<Usage> },
    /// `[DONE]`.
    Done,
    /// The server's own words.
    Error(String),
    /// Not JSON of this kind.
    Unreadable(String),
}

/// Read the data of one event.
pub(crate) fn read(data: &[u8]) -> Said {
    if data == b"[DONE]" {
        return Said::Done;
    }
    match serde_json::from_slice::<Chunk>(data) {
        Ok(Chunk { error: Some(_), .. }) => Said::Error(error_message(data)),
        Ok(chunk) => Said::Piece { has_text: chunk.choices.0, usage: chunk.usage },
        Err(error) => Said::Unreadable(format!("an event cannot be read: {error}")),
    }
}

/// The message in the body of an error, in any of the shapes that servers use; else the body's beginning.
pub(crate) fn error_message(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let said = parsed.as_ref().and_then(|value| {
        ["/error/message", "/message", "/detail", "/error"]
            .iter()
            .find_map(|path| value.pointer(path)?.as_str())
    });
    match said {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body).trim().chars().take(200).collect(),
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Choices,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

/// Does any choice have text? Folded while reading, so that an event costs no allocation.
#[derive(Default)]
struct Choices(bool);

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Choices;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a list of choices")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut choices: A) -> Result<Choices, A::Error> {
                let mut any = false;
                while let Some(choice) = choices.next_element::<Choice>()? {
                    any |= choice.text.0 || choice.delta.is_some_and(|delta| delta.has_text());
                }
                Ok(Choices(any))
            }
        }
        deserializer.deserialize_seq(Any)
    }
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: Filled,
    #[serde(default)]
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Filled,
    #[serde(default)]
    reasoning_content: Filled,
    #[serde(default)]
    reasoning: Filled,
    #[serde(default)]
    tool_calls: Filled,
}

impl Delta {
    fn has_text(&self) -> bool {
        self.content.0 || self.reasoning_content.0 || self.reasoning.0 || self.tool_calls.0
    }
}

/// Neither null nor empty.
#[derive(Default)]
struct Filled(bool);

impl<'de> Deserialize<'de> for Filled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Filled;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a text, a list or null")
            }

            fn visit_unit<E>(self) -> Result<Filled, E> {
                Ok(Filled(false))
            }

            fn visit_str<E>(self, text: &str) -> Result<Filled, E> {
                Ok(Filled(!text.is_empty()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Filled, A::Error> {
                let mut any = false;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(Filled(any))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_text(json: &str) -> bool {
        match read(json.as_bytes()) {
            Said::Piece { has_text, .. } => has_text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_of_either_route() {
        assert!(has_text(r#"{"id": "x", "choices": [{"text": "a\u00e9", "index": 0}], "usage": null}"#));
        assert!(has_text(r#"{"choices": [{"delta": {"content": " "}}]}"#));
        assert!(has_text(r#"{"choices": [{"delta": {"reasoning_content": "hm", "content": null}}]}"#));
        assert!(has_text(r#"{"choices": [{"text": ""}, {"text": "b"}]}"#));
        assert!(has_text(r#"{"choices": [{"delta": {"tool_calls": [{"id": 1}]}}]}"#));
        assert!(!has_text(r#"{"choices": [{"delta": {"role": "assistant", "content": null}}]}"#));
        assert!(!has_text(r#"{"choices": [{"text": "", "finish_reason": "length"}]}"#));
        assert!(!has_text(r#"{"choices": [], "usage": {"prompt_tokens": 1}}"#));
    }

    #[test]
    fn counts() {
        let said = read(
            br#"{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 4}}}"#,
        );
        let Said::Piece { has_text: false, usage: Some(usage) } = said else { panic!("{said:?}") };
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens()), (5, 7, 4));
    }

    #[test]
    fn ends_and_errors() {
        assert_eq!(read(b"[DONE]"), Said::Done);
        assert_eq!(
            read(br#"{"error": {"message": "worker died", "code": "engine_crashed"}}"#),
            Said::Error("worker died".into())
        );
        assert!(matches!(read(b"{"), Said::Unreadable(_)));
    }

    #[test]
    fn messages_in_every_shape() {
        for body in [
            r#"{"error": {"message": "why"}}"#,
            r#"{"message": "why"}"#,
            r#"{"detail": "why"}"#,
            r#"{"error": "why"}"#,
            " why\n",
        ] {
            assert_eq!(error_message(body.as_bytes()), "why");
        }
    }
}
