//! Answers that keep to a format: which tokens a grammar admits next.
//!
//! Owns everything that is said to `llguidance`; no other module names it. It reads the clock for its own
//! counters. No result depends on that, and it is the one exception to "the core has no clock".
//!
//! Nothing here waits or starts threads. To make [`Tables`] and to compile take long: whoever does it has a
//! thread for it.

mod cache;
mod formats;
mod limits;
mod schema;
mod tokens;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar, earley::SlicedBiasComputer, regex_to_lark};
use serde_json::{Map, Value, json};
use toktrie::InferenceCapabilities;

pub use cache::Prototypes;
pub use limits::MAX_BYTES;

use crate::{
    chat::{
        conversation::{Choice, Conversation, Format, Tool, ToolInput},
        grammar::{self, Callable},
        syntax::ToolSyntax,
    },
    engine::{Token, Vocabulary},
    error::{ErrorCode, Fault},
    sample::Mask,
};

/// White space between the parts of JSON. Without a bound small models never leave it.
const WHITE_SPACE: &str = r"[ \n\t]{1,20}";

/// What an answer has to keep to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The form of its text.
    pub format: Format,
    /// Calls: in place of text if that may have any form, else beside it.
    pub calls: Option<Calls>,
}

/// Calls that may or must be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calls {
    /// How the model writes them.
    pub syntax: Arc<ToolSyntax>,
    /// What may be called.
    pub tools: Vec<Tool>,
    /// More than one?
    pub several: bool,
}

impl From<Format> for Wanted {
    fn from(format: Format) -> Self {
        Self { format, calls: None }
    }
}

impl Wanted {
    /// What an answer to a conversation has to keep to from its first token on.
    pub fn of(format: Format, conversation: &Conversation, syntax: &Arc<ToolSyntax>) -> Self {
        if conversation.offered().is_empty() {
            return format.into();
        }
        let only = |names: &[String]| -> Vec<Tool> {
            conversation.tools.iter().filter(|it| names.contains(&it.name)).cloned().collect()
        };
        let (tools, must, several) = match &conversation.choice {
            Choice::None | Choice::Auto => (conversation.tools.clone(), false, conversation.parallel),
            Choice::Required => (conversation.tools.clone(), true, conversation.parallel),
            Choice::Named(name) => (only(std::slice::from_ref(name)), true, false),
            Choice::Among { names, required } => (only(names), *required, conversation.parallel),
        };
        let calls = Calls { syntax: Arc::clone(syntax), tools, several };
        match (must, format) {
            (true, _) => Self { format: Format::Text, calls: Some(calls) },
            (false, Format::Text) => Self::default(),
            (false, format) => Self { format, calls: Some(calls) },
        }
    }

    /// May the answer be anything?
    pub fn is_anything(&self) -> bool {
        self.format == Format::Text && self.calls.is_none()
    }

    /// Bytes of what it consists of.
    pub fn size(&self) -> usize {
        let format = match &self.format {
            Format::Text | Format::Object => 0,
            Format::Schema { schema, .. } => schema.as_str().len(),
            Format::Regex(text) | Format::Lark(text) => text.len(),
        };
        let tool = |tool: &Tool| match &tool.input {
            ToolInput::Object(schema) => schema.as_str().len(),
            ToolInput::Text(_) => 0,
        };
        format + self.calls.iter().flat_map(|it| &it.tools).map(tool).sum::<usize>()
    }
}

/// What compiling against one vocabulary takes.
pub struct Tables {
    factory: ParserFactory,
    vocabulary: Arc<Vocabulary>,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

/// A compiled format, of which each answer gets a copy.
pub struct Prototype {
    constraint: Constraint,
    relaxed: Vec<String>,
}

impl Prototype {
    /// A constraint that stands at the beginning of an answer.
    pub fn constraint(&self) -> Constraint {
        self.constraint.clone()
    }

    /// JSON pointers to the keywords that are not enforced.
    pub fn relaxed(&self) -> &[String] {
        &self.relaxed
    }
}

impl fmt::Debug for Prototype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prototype").field("relaxed", &self.relaxed).finish_non_exhaustive()
    }
}

impl Tables {
    /// The tables of a vocabulary. For 128,000 tokens that takes 0.4 s and 64 MB.
    ///
    /// # Errors
    ///
    /// `unsupported_feature` where the model has no end-of-generation token.
    pub fn new(vocabulary: Arc<Vocabulary>) -> Result<Self, Fault> {
        guarded(|| {
            let environment = tokens::environment(&vocabulary)?;
            let slices = SlicedBiasComputer::json_slices();
            let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
                .map_err(internal)?;
            *factory.limits_mut() = limits::parser();
            factory.quiet();
            Ok(Self { factory, vocabulary })
        })
        .unwrap_or_else(|panic| Err(internal(panic)))
    }

    /// Compiles what is wanted. A millisecond as a rule; for the worst that the limits let through, seconds.
    ///
    /// # Errors
    ///
    /// `unsupported_parameter` for what cannot be enforced, with keyword and JSON pointer; `invalid_request`
    /// for what is no schema or grammar, or too long; `unsupported_feature` where the model's way of writing
    /// calls cannot be enforced.
    pub fn compile(&self, wanted: &Wanted) -> Result<Prototype, Fault> {
        let mut relaxed = Vec::new();
        let format = self.format(&wanted.format, &mut relaxed).map_err(|fault| fault.param("format"))?;
        let (grammar, param) = match (&wanted.format, &wanted.calls) {
            // It has a start of its own.
            (Format::Lark(lark), None) => (lark.clone(), "format"),
            (_, None) => (format!("start: {format}"), "format"),
            (Format::Text, Some(calls)) => {
                (format!("start: calls\n{}", self.calls(calls, &mut relaxed)?), "tools")
            }
            (_, Some(calls)) => {
                let calls = self.calls(calls, &mut relaxed)?;
                (format!("start: format | calls\nformat: {format}\n{calls}"), "format")
            }
        };
        let matcher = self.matcher(TopLevelGrammar::from_lark(grammar)).map_err(|message| {
            let what = match &wanted.format {
                Format::Regex(_) => "regular expression",
                Format::Lark(_) => "grammar",
                _ => param,
            };
            refused(ErrorCode::InvalidRequest, format!("the {what} cannot be used: {message}")).param(param)
        })?;
        Ok(Prototype { constraint: Constraint { matcher: Box::new(matcher) }, relaxed })
    }

    /// A format as a term in Lark.
    fn format(&self, format: &Format, relaxed: &mut Vec<String>) -> Result<String, Fault> {
        Ok(match format {
            Format::Text => "/(?s:.*)/".to_owned(),
            Format::Object => json_term(json!({ "type": "object" })),
            Format::Schema { schema, strict } => {
                short("the schema", schema.as_str())?;
                let schema: Value = serde_json::from_str(schema.as_str()).map_err(internal)?;
                let (schema, left_out) = schema::enforced(&schema, *strict, |it| self.json(it))?;
                relaxed.extend(left_out);
                json_term(schema)
            }
            Format::Regex(regex) => {
                short("the regular expression", regex)?;
                format!("/{}/", regex_to_lark(regex, ""))
            }
            Format::Lark(lark) => {
                short("the grammar", lark)?;
                format!("%lark {{\n{lark}\n}}")
            }
        })
    }

    /// Rules for calls, of which the first is `calls`.
    fn calls(&self, calls: &Calls, relaxed: &mut Vec<String>) -> Result<String, Fault> {
        let mut callable = Vec::with_capacity(calls.tools.len());
        let bytes: usize = Wanted { format: Format::Text, calls: Some(calls.clone()) }.size();
        if bytes > limits::MAX_TOOL_BYTES {
            let message = format!(
                "the schemas of the tools have {bytes} bytes, and at most {} are allowed",
                limits::MAX_TOOL_BYTES
            );
            return Err(refused(ErrorCode::InvalidRequest, message).param("tools"));
        }
        for tool in &calls.tools {
            let schema = match &tool.input {
                ToolInput::Object(schema) => {
                    short("the schema of a tool", schema.as_str()).map_err(|fault| fault.param("tools"))?;
                    object_schema(serde_json::from_str(schema.as_str()).map_err(internal)?)
                }
                // Plain text travels in an object.
                ToolInput::Text(_) => json!({
                    "type": "object",
                    "properties": { "input": { "type": "string" } },
                    "required": ["input"],
                    "additionalProperties": false,
                }),
            };
            let (schema, left_out) =
                schema::enforced(&schema, tool.strict, |it| self.json(it)).map_err(|fault| Fault {
                    message: format!("the tool '{}': {fault}", tool.name),
                    param: Some("tools".to_owned()),
                    ..fault
                })?;
            relaxed.extend(left_out.into_iter().map(|it| format!("tools.{}{it}", tool.name)));
            callable.push(Callable { name: tool.name.clone(), schema: with_white_space(schema) });
        }
        let mut loose = Vec::new();
        let rules = grammar::calls(&calls.syntax, &callable, calls.several, &self.vocabulary, &mut loose);
        let strict = |name: &str| calls.tools.iter().any(|it| it.name == name && it.strict);
        if let Some((name, place)) = loose.iter().find(|it| strict(&it.0)) {
            let message = format!(
                "the tool '{name}': this model writes text as it is, so that nothing but its type can be enforced \
                 of {place}"
            );
            return Err(refused(ErrorCode::UnsupportedParameter, message).param("tools"));
        }
        relaxed.extend(loose.into_iter().map(|(name, place)| format!("tools.{name}{place}")));
        rules.ok_or_else(|| {
            let message = "This model writes calls in a way that cannot be enforced; leave the choice to it.";
            refused(ErrorCode::UnsupportedFeature, message).param("tool_choice")
        })
    }

    /// Does this compile? `schema` is one that `schema.rs` made, and comes back.
    fn json(&self, schema: &Value) -> Result<Value, String> {
        self.matcher(TopLevelGrammar::from_json_schema(with_white_space(schema.clone())))?;
        Ok(schema.clone())
    }

    /// Compiles, and sees to it that an answer can begin.
    fn matcher(&self, grammar: TopLevelGrammar) -> Result<Matcher, String> {
        guarded(|| {
            let matcher = Matcher::new(self.factory.create_parser(grammar));
            let begins = match matcher.get_error() {
                Some(error) => Err(error),
                None => {
                    matcher.deep_clone().compute_mask_or_eos().map(|_| ()).map_err(|error| error.to_string())
                }
            };
            begins.map(|()| matcher)
        })
        .unwrap_or_else(Err)
        .map_err(|message| first_line(&message))
    }
}

/// A grammar and how far an answer has come in it.
pub struct Constraint {
    /// Most answers have none, and it is large.
    matcher: Box<Matcher>,
}

impl Clone for Constraint {
    /// A copy of its own: copies of a matcher share a lock otherwise.
    fn clone(&self) -> Self {
        Self { matcher: Box::new(self.matcher.deep_clone()) }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Constraint {
    /// The tokens that may come next: an end-of-generation token wherever the format is complete.
    ///
    /// # Errors
    ///
    /// `unsupported_parameter` where the grammar takes more work than it may.
    pub fn mask(&mut self) -> Result<Mask, Fault> {
        self.call(Matcher::compute_mask_or_eos).map(|set| Mask::of(set.as_slice()))
    }

    /// Goes on by a token of [`Self::mask`].
    ///
    /// # Errors
    ///
    /// As [`Self::mask`], and for a token that is not in it.
    pub fn consume(&mut self, token: Token) -> Result<(), Fault> {
        self.call(|matcher| matcher.consume_token(token as u32))
    }

    /// Goes back by so many tokens.
    pub fn rollback(&mut self, tokens: usize) -> Result<(), Fault> {
        self.call(|matcher| matcher.rollback(tokens))
    }

    /// How many of these tokens the grammar admits, one after the other. An end-of-generation token is not
    /// among them.
    pub fn admits(&mut self, tokens: &[Token]) -> Result<usize, Fault> {
        let tokens: Vec<u32> = tokens.iter().map(|&it| it as u32).collect();
        self.call(|matcher| matcher.validate_tokens(&tokens))
    }

    /// Is the format complete, so that the answer may end here?
    pub fn is_accepting(&mut self) -> Result<bool, Fault> {
        self.call(Matcher::is_accepting)
    }

    /// What panicked once is not used again: the matcher is in error from then on.
    fn call<T, E: fmt::Display>(
        &mut self,
        work: impl FnOnce(&mut Matcher) -> Result<T, E>,
    ) -> Result<T, Fault> {
        let matcher = &mut self.matcher;
        match guarded(|| work(matcher)) {
            Ok(Ok(it)) => Ok(it),
            Ok(Err(error)) => {
                let message = first_line(&error.to_string());
                Err(refused(
                    ErrorCode::UnsupportedParameter,
                    format!("the format cannot be enforced any further: {message}; make it simpler"),
                ))
            }
            Err(panic) => Err(internal(panic)),
        }
    }
}

/// With what may stand between the parts of the JSON.
fn with_white_space(schema: Value) -> Value {
    let mut map = match schema {
        Value::Object(map) => map,
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    map.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITE_SPACE }));
    Value::Object(map)
}

fn json_term(schema: Value) -> String {
    format!("%json {}", with_white_space(schema))
}

/// Inputs of tools are objects, whether their schema says so or not.
fn object_schema(schema: Value) -> Value {
    match schema {
        Value::Object(mut map) => {
            map.entry("type").or_insert_with(|| Value::from("object"));
            Value::Object(map)
        }
        _ => json!({ "type": "object" }),
    }
}

/// Calls into llguidance, whose panics must not reach anybody else.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("panic: {}", text.unwrap_or("without a message"))
    })
}

fn short(what: &str, text: &str) -> Result<(), Fault> {
    if text.len() <= MAX_BYTES {
        return Ok(());
    }
    let message = format!("{what} has {} bytes, and at most {MAX_BYTES} are allowed", text.len());
    Err(refused(ErrorCode::InvalidRequest, message))
}

/// The words of an error without the state that follows.
fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}

fn refused(code: ErrorCode, message: impl Into<String>) -> Fault {
    Fault::new(code, message)
}

fn internal(message: impl fmt::Display) -> Fault {
    Fault::new(ErrorCode::Internal, format!("the grammar failed: {message}"))
}
