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
};

use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar, earley::SlicedBiasComputer};
use serde_json::{Value, json};
use toktrie::InferenceCapabilities;

pub use cache::Prototypes;
pub use limits::MAX_BYTES;

use crate::{
    chat::conversation::Format,
    engine::{Token, Vocabulary},
    error::{ErrorCode, Fault},
    sample::Mask,
};

/// White space between the parts of JSON. Without a bound small models never leave it.
const WHITE_SPACE: &str = r"[ \n\t]{1,20}";

/// What compiling against one vocabulary takes.
pub struct Tables {
    factory: ParserFactory,
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
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, Fault> {
        guarded(|| {
            let environment = tokens::environment(vocabulary)?;
            let slices = SlicedBiasComputer::json_slices();
            let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
                .map_err(internal)?;
            *factory.limits_mut() = limits::parser();
            factory.quiet();
            Ok(Self { factory })
        })
        .unwrap_or_else(|panic| Err(internal(panic)))
    }

    /// Compiles a format. A millisecond as a rule; for the worst that the limits let through, seconds.
    ///
    /// # Errors
    ///
    /// `unsupported_parameter` for what cannot be enforced, with keyword and JSON pointer; `invalid_request`
    /// for what is no schema or grammar, or too long.
    pub fn compile(&self, format: &Format) -> Result<Prototype, Fault> {
        let (matcher, relaxed) = match format {
            Format::Text => {
                (self.matcher(TopLevelGrammar::from_regex("(?s:.*)")).map_err(internal)?, Vec::new())
            }
            Format::Object => (self.json(&json!({ "type": "object" })).map_err(internal)?, Vec::new()),
            Format::Schema { schema, strict } => {
                short("the schema", schema.as_str())?;
                let schema: Value = serde_json::from_str(schema.as_str()).map_err(internal)?;
                schema::enforced(&schema, *strict, |schema| self.json(schema))?
            }
            Format::Regex(regex) => {
                short("the regular expression", regex)?;
                (self.grammar("the regular expression", TopLevelGrammar::from_regex(regex))?, Vec::new())
            }
            Format::Lark(lark) => {
                short("the grammar", lark)?;
                (self.grammar("the grammar", TopLevelGrammar::from_lark(lark.clone()))?, Vec::new())
            }
        };
        Ok(Prototype { constraint: Constraint { matcher }, relaxed })
    }

    /// `schema` is one that `schema.rs` made.
    fn json(&self, schema: &Value) -> Result<Matcher, String> {
        let schema = match schema {
            Value::Object(map) => {
                let mut map = map.clone();
                map.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITE_SPACE }));
                Value::Object(map)
            }
            other => json!({ "allOf": [other], "x-guidance": { "whitespace_pattern": WHITE_SPACE } }),
        };
        self.matcher(TopLevelGrammar::from_json_schema(schema))
    }

    fn grammar(&self, what: &str, grammar: TopLevelGrammar) -> Result<Matcher, Fault> {
        self.matcher(grammar).map_err(|message| {
            refused(ErrorCode::InvalidRequest, format!("{what} cannot be used: {message}"))
        })
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
    matcher: Matcher,
}

impl Clone for Constraint {
    /// A copy of its own: copies of a matcher share a lock otherwise.
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone() }
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
