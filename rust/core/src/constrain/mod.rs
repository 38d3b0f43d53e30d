//! Answers that keep to a format: which tokens a grammar admits next.
//!
//! Owns everything that is said to `llguidance`; no other module names it. It reads the clock for its own
//! counters. No result depends on that, and it is the one exception to "the core has no clock".
//!
//! Nothing here waits or starts threads. To make [`Tables`] and to compile take long: whoever does it has a
//! thread for it.

mod cache;
mod enforce;
mod foresee;
mod formats;
mod limits;
mod schema;
mod tokens;
mod words;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar, earley::SlicedBiasComputer, regex_to_lark};
use serde_json::{Map, Value, json};
use toktrie::{InferenceCapabilities, TokEnv};

pub use cache::Prototypes;
pub use foresee::Layout;
pub use limits::MAX_BYTES;

use crate::{
    chat::{
        conversation::{Choice, Conversation, Format, Grammar, Tool, ToolInput},
        grammar::{self, Callable, Written},
        parse::Calling,
        syntax::{Frame, ToolSyntax},
    },
    engine::{Token, Vocabulary},
    error::{ErrorCode, Fault},
    sample::Mask,
};

/// White space between the parts of JSON: a space, or a new line and its indent. Without a bound small models never leave
/// it, and where twenty spaces may stand they write twenty.
const WHITE_SPACE: &str = r" |\n{1,2}[ \t]{0,20}";

/// What an answer has to keep to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The form of its text.
    pub format: Format,
    /// The form of its calls.
    pub calls: Option<Calls>,
    /// What stands around its text.
    pub frame: Frame,
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
    /// At least one, from the beginning of the answer on? Else the answer is text in its form or calls, and where that
    /// is any text, calls may begin anywhere in it.
    pub must: bool,
}

impl From<Format> for Wanted {
    fn from(format: Format) -> Self {
        Self { format, ..Self::default() }
    }
}

impl Wanted {
    /// What an answer to a conversation has to keep to. Calls that are left to the model are held to their form
    /// wherever that can be told, and to their schema where a tool is strict.
    pub fn of(format: Format, conversation: &Conversation, syntax: &Arc<ToolSyntax>) -> Self {
        let frame = if format == Format::Text { Frame::Plain } else { syntax.frame.clone() };
        if conversation.offered().is_empty() {
            return Self { frame, ..format.into() };
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
        if !must
            && format == Format::Text
            && !grammar::is_writable(syntax)
            && !tools.iter().any(|it| it.strict)
        {
            return Self::default();
        }
        let calls = Calls { syntax: Arc::clone(syntax), tools, several, must };
        Self { format: if must { Format::Text } else { format }, calls: Some(calls), frame }
    }

    /// May the answer be anything?
    pub fn is_anything(&self) -> bool {
        self.format == Format::Text && self.calls.is_none()
    }

    /// Is it about calls alone, wherever they begin in the answer?
    pub fn is_of_calls(&self) -> bool {
        self.format == Format::Text && self.calls.as_ref().is_some_and(|it| !it.must)
    }

    /// Would the answer be of use if nothing of it were enforced?
    pub fn is_optional(&self) -> bool {
        self.is_of_calls() && self.calls.iter().flat_map(|it| &it.tools).all(|it| !it.strict)
    }

    /// Bytes of what it consists of.
    pub fn size(&self) -> usize {
        let format = match &self.format {
            Format::Text | Format::Object => 0,
            Format::Schema { schema, .. } => schema.as_str().len(),
            Format::Regex(text) | Format::Lark(text) => text.len(),
        };
        format + self.calls.iter().flat_map(|it| &it.tools).map(schema_size).sum::<usize>()
    }
}

/// Bytes of the schema of a tool's input.
fn schema_size(tool: &Tool) -> usize {
    match &tool.input {
        ToolInput::Object(schema) => schema.as_str().len(),
        ToolInput::Text(_) => 0,
    }
}

/// How much of tools' schemas is put into a grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    /// All that can be enforced.
    All,
    /// What strict tools were promised. Of others, that their input is an object.
    Promised,
}

/// What compiling against one vocabulary takes.
pub struct Tables {
    factory: ParserFactory,
    environment: TokEnv,
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
    /// Is it about calls alone? Then it begins with one of them, behind a selector.
    of_calls: bool,
    environment: TokEnv,
}

impl Prototype {
    /// A constraint that stands at the beginning of an answer.
    pub fn constraint(&self) -> Constraint {
        self.constraint.clone()
    }

    /// For one [of calls](Self::is_of_calls): a constraint that stands in a call whose input has begun with these
    /// bytes. `None`: no such input is admitted.
    pub fn within(&self, call: &Calling, begun: &[u8]) -> Option<Constraint> {
        let mut constraint = self.constraint.clone();
        let bytes = [grammar::selector(call.tool, call.marked).as_bytes(), begun].concat();
        let trie = self.environment.tok_trie();
        let tokens = trie.greedy_tokenize(&bytes);
        // Bytes that no token has are left out there.
        if trie.decode_raw(&tokens) != bytes {
            return None;
        }
        let tokens: Vec<Token> = tokens.into_iter().map(|it| it as Token).collect();
        if constraint.admits(&tokens).ok()? < tokens.len() {
            return None;
        }
        tokens.iter().try_for_each(|&token| constraint.consume(token)).ok()?;
        Some(constraint)
    }

    /// Is it about calls alone, wherever they begin in an answer?
    pub fn is_of_calls(&self) -> bool {
        self.of_calls
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
            Ok(Self { factory, environment, vocabulary })
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
        match (self.attempt(wanted, Detail::All), &wanted.calls) {
            // One odd schema among many must not cost a conversation its tools.
            (Err(fault), Some(_)) => self.attempt(wanted, Detail::Promised).map_err(|_| fault),
            (compiled, _) => compiled,
        }
    }

    fn attempt(&self, wanted: &Wanted, detail: Detail) -> Result<Prototype, Fault> {
        let mut relaxed = Vec::new();
        let mut format = self.format(&wanted.format, &mut relaxed).map_err(|fault| fault.param("format"))?;
        if let Some((before, behind)) = grammar::around_text(&wanted.frame, &self.vocabulary) {
            format = format!("{before} {format} {behind}");
        }
        let (grammar, param) = match (&wanted.format, &wanted.calls) {
            // It has a start of its own.
            (Format::Lark(lark), None) if wanted.frame == Frame::Plain => (lark.clone(), "format"),
            (_, None) => (format!("start: {format}"), "format"),
            (Format::Text, Some(calls)) => {
                let start = if calls.must { "calls" } else { "rests" };
                (format!("start: {start}\n{}", self.calls(calls, detail, &mut relaxed)?), "tools")
            }
            (_, Some(calls)) => {
                let calls = self.calls(&Calls { must: true, ..calls.clone() }, detail, &mut relaxed)?;
                (format!("start: format | calls\nformat: {format}\n{calls}"), "format")
            }
        };
        let matcher = self.matcher(TopLevelGrammar::from_lark(grammar)).map_err(|message| {
            let (what, why) = match &wanted.format {
                Format::Regex(_) => ("regular expression", words::of_expression(&message)),
                Format::Lark(_) => ("grammar", words::of_grammar(&message)),
                _ => (param, words::of_schema(&message)),
            };
            refused(ErrorCode::InvalidRequest, format!("the {what} cannot be used: {why}")).param(param)
        })?;
        Ok(Prototype {
            constraint: Constraint { matcher: Box::new(matcher) },
            relaxed,
            of_calls: wanted.is_of_calls(),
            environment: Arc::clone(&self.environment),
        })
    }

    /// A format as a term in Lark.
    fn format(&self, format: &Format, relaxed: &mut Vec<String>) -> Result<String, Fault> {
        Ok(match format {
            Format::Text => "/(?s:.*)/".to_owned(),
            Format::Object => json_term(json!({ "type": "object" })),
            Format::Schema { schema, strict } => {
                short("the schema", schema.as_str())?;
                let schema: Value = serde_json::from_str(schema.as_str()).map_err(internal)?;
                let (schema, left_out) = enforce::enforced(&schema, *strict, |it| self.json(it))?;
                relaxed.extend(left_out);
                json_term(schema)
            }
            Format::Regex(regex) => {
                short("the regular expression", regex)?;
                let lark = expression(regex, "").ok_or_else(|| {
                    let message = "the regular expression cannot be used: it ends in a backslash";
                    refused(ErrorCode::InvalidRequest, message)
                })?;
                format!("/{lark}/")
            }
            Format::Lark(lark) => {
                self.check_lark(lark)?;
                format!("%lark {{\n{lark}\n}}")
            }
        })
    }

    /// A grammar may hold schemas, which have to be such as can be enforced.
    fn check_lark(&self, lark: &str) -> Result<(), Fault> {
        short("the grammar", lark)?;
        for (_, rest) in lark.match_indices(JSON_IN_LARK).map(|(at, word)| lark.split_at(at + word.len())) {
            // Where no JSON follows it is a part of a text, or llguidance says what is wrong.
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            if let Some(Ok(schema)) = values.next() {
                enforce::enforced(&schema, true, |it| self.json(it))?;
            }
        }
        Ok(())
    }

    /// Rules for calls, of which the first is `calls`; or for what follows where one has begun, of which it is `rests`.
    fn calls(&self, calls: &Calls, detail: Detail, relaxed: &mut Vec<String>) -> Result<String, Fault> {
        let in_detail = |tool: &&Tool| tool.strict || detail == Detail::All;
        let bytes: usize = calls.tools.iter().filter(in_detail).map(schema_size).sum();
        if bytes > limits::MAX_TOOL_BYTES {
            let message = format!(
                "the schemas of the tools have {bytes} bytes, and at most {} are allowed",
                limits::MAX_TOOL_BYTES
            );
            return Err(refused(ErrorCode::InvalidRequest, message).param("tools"));
        }
        let mut callable = Vec::with_capacity(calls.tools.len());
        for tool in &calls.tools {
            let (schema, left_out) = match &tool.input {
                ToolInput::Object(_) if !in_detail(&tool) => {
                    (json!({ "type": "object" }), vec!["#".to_owned()])
                }
                ToolInput::Object(schema) => self.input(tool, schema.as_str()).map_err(|fault| Fault {
                    message: format!("the tool '{}': {fault}", tool.name),
                    param: Some("tools".to_owned()),
                    ..fault
                })?,
                ToolInput::Text(form) => self.plain_text(form.as_ref())?,
            };
            relaxed.extend(left_out.into_iter().map(|it| format!("tools.{}{it}", tool.name)));
            callable.push(Callable { name: tool.name.clone(), schema: with_options(schema) });
        }
        let mut loose = Vec::new();
        let Calls { syntax, several, .. } = calls;
        let written = Written { syntax, tools: &callable, several: *several, vocabulary: &self.vocabulary };
        let rules = if calls.must {
            grammar::calls(written, &mut loose)
        } else {
            grammar::rests(written, &mut loose)
        };
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
            let (advice, param) = if calls.must {
                ("leave the choice to it", "tool_choice")
            } else {
                ("leave out 'strict'", "tools")
            };
            let message = format!("This model writes calls in a way that cannot be enforced; {advice}.");
            refused(ErrorCode::UnsupportedFeature, message).param(param)
        })
    }

    /// What of the form of a plain text is enforced, and what is left out. It travels in an object, where an expression
    /// can be enforced and a grammar cannot.
    fn plain_text(&self, form: Option<&Grammar>) -> Result<(Value, Vec<String>), Fault> {
        let text = match form {
            Some(Grammar::Regex(regex)) => json!({ "type": "string", "pattern": format!("^(?:{regex})$") }),
            Some(Grammar::Lark(_)) | None => json!({ "type": "string" }),
        };
        let schema = json!({
            "type": "object",
            "properties": { "input": text },
            "required": ["input"],
            "additionalProperties": false,
        });
        let (schema, mut left_out) = enforce::enforced(&schema, false, |it| self.json(it))?;
        if let Some(Grammar::Lark(_)) = form {
            left_out.push("#/properties/input".to_owned());
        }
        Ok((schema, left_out))
    }

    /// What of the schema of a tool's input is enforced, and what is left out.
    fn input(&self, tool: &Tool, schema: &str) -> Result<(Value, Vec<String>), Fault> {
        short("its schema", schema)?;
        let schema = object_schema(serde_json::from_str(schema).map_err(internal)?);
        enforce::enforced(&schema, tool.strict, |it| self.json(it))
    }

    /// Does this compile? `schema` is one that `schema.rs` made, and comes back.
    fn json(&self, schema: &Value) -> Result<Value, String> {
        self.matcher(TopLevelGrammar::from_json_schema(with_options(schema.clone())))?;
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
        self.call(|matcher| {
            // It keeps its last mask by the state of its lexer and the number of its row, and does not notice that
            // the row becomes another.
            matcher.invalidate_bias_cache();
            matcher.rollback(tokens)
        })
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
                let why = words::of_grammar(&error.to_string());
                let message = format!("the format cannot be enforced any further: {why}");
                Err(refused(ErrorCode::UnsupportedParameter, message))
            }
            Err(panic) => Err(internal(panic)),
        }
    }
}

/// With what may stand between the parts of the JSON, and with letters that are spelled by their number: a model that
/// was taught to escape them would otherwise find itself before numbers of other letters.
fn with_options(schema: Value) -> Value {
    let mut map = match schema {
        Value::Object(map) => map,
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    let options = json!({ "whitespace_pattern": WHITE_SPACE, "json_allow_general_unicode_escapes": true });
    map.insert("x-guidance".to_owned(), options);
    Value::Object(map)
}

fn json_term(schema: Value) -> String {
    format!("%json {}", with_options(schema))
}

/// Inputs of tools are objects, whatever their schema says.
fn object_schema(schema: Value) -> Value {
    let mut map = match schema {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    map.insert("type".to_owned(), Value::from("object"));
    Value::Object(map)
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

/// What a schema in a grammar begins with.
const JSON_IN_LARK: &str = "%json";

/// A regular expression as it stands in Lark. `ascii`: the classes that have letters of ASCII alone. `None`: it ends
/// in a backslash, which would be dropped.
fn expression(regex: &str, ascii: &str) -> Option<String> {
    let escapes = regex.len() - regex.trim_end_matches('\\').len();
    escapes.is_multiple_of(2).then(|| regex_to_lark(regex, ascii))
}

fn refused(code: ErrorCode, message: impl Into<String>) -> Fault {
    Fault::new(code, message)
}

fn internal(message: impl fmt::Display) -> Fault {
    Fault::new(ErrorCode::Internal, format!("the grammar failed: {message}"))
}
