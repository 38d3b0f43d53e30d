//! How a model writes a call of a tool, and how it writes what it thinks.
//!
//! The types alone: `derive` finds them in a chat template, `families` has those that cannot be found,
//! `parse` reads answers by them. Nothing here knows a model by its name.

use std::fmt;

use crate::{
    engine::{Token, Vocabulary, attribute},
    text::control::ControlTokens,
};

/// What stands around the name of a control token among the bytes that are looked through. No text in
/// UTF-8 has these bytes, so that letters and tokens are told apart.
pub(crate) const OPEN: u8 = 0xfe;
/// See [`OPEN`].
pub(crate) const CLOSE: u8 = 0xff;

/// The control token of that name.
pub(crate) fn control_token(vocabulary: &Vocabulary, name: &[u8]) -> Option<Token> {
    (0..vocabulary.len() as Token)
        .find(|&it| vocabulary.has(it, attribute::CONTROL) && vocabulary.token_bytes(it) == name)
}

/// A text that the syntax asks for. White space at its edges may be missing or be other white space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Literal {
    text: String,
    /// Without the white space at its edges; control tokens stand between [`OPEN`] and [`CLOSE`].
    core: Vec<u8>,
}

impl Literal {
    /// Where a control token is spelled in it, that token is meant and not its letters.
    pub fn new(text: impl Into<String>, control: &ControlTokens) -> Self {
        let text = text.into();
        let inner = text.trim();
        let mut core = Vec::with_capacity(inner.len() + 2);
        let mut begin = 0;
        for found in control.find(inner) {
            core.extend_from_slice(&inner.as_bytes()[begin..found.start]);
            core.push(OPEN);
            core.extend_from_slice(&inner.as_bytes()[found.clone()]);
            core.push(CLOSE);
            begin = found.end;
        }
        core.extend_from_slice(&inner.as_bytes()[begin..]);
        Self { text, core }
    }

    /// As the template writes it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is looked for: bytes of text, and control tokens in their marks.
    pub(crate) fn core(&self) -> &[u8] {
        &self.core
    }

    /// Is there nothing but white space in it?
    pub fn is_blank(&self) -> bool {
        self.core.is_empty()
    }

    /// The control token that it consists of, if it is one.
    pub(crate) fn token(&self, vocabulary: &Vocabulary) -> Option<Token> {
        let name = self.core.strip_prefix(&[OPEN])?.strip_suffix(&[CLOSE])?;
        control_token(vocabulary, name)
    }

    /// The marks that it consists of: its lines, and in these its control tokens and what stands between them.
    pub(crate) fn marks(&self) -> impl Iterator<Item = &[u8]> {
        let lines = self.core.split(|&it| it == b'\n');
        lines.flat_map(|line| line.split_inclusive(|&it| it == CLOSE)).flat_map(|part| {
            let (text, token) = part.split_at(part.iter().position(|&it| it == OPEN).unwrap_or(part.len()));
            [text.trim_ascii(), token].into_iter().filter(|it| !it.is_empty())
        })
    }

    /// The white space before it.
    pub(crate) fn lead(&self) -> &str {
        &self.text[..self.text.len() - self.text.trim_start().len()]
    }

    /// The white space behind it.
    pub(crate) fn trail(&self) -> &str {
        if self.is_blank() { "" } else { &self.text[self.text.trim_end().len()..] }
    }
}

/// How a model calls tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolSyntax {
    /// What stands around all calls of a message; `None`: calls stand alone.
    pub section: Option<(Literal, Literal)>,
    /// What stands around one call.
    pub call: (Literal, Literal),
    /// What stands between two calls.
    pub between: Literal,
    /// How a call is written.
    pub body: Body,
    /// Do calls follow text on the same line?
    pub anywhere: bool,
    /// May an answer that begins with a body be a call without the mark?
    pub bare: bool,
    /// Where it comes from.
    pub family: Family,
    /// Can a message hold several calls?
    pub parallel: bool,
    /// What the rest of an answer consists of.
    pub frame: Frame,
}

/// What the format of an answer marks besides calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Frame {
    /// Nothing, or what is found in the template apart from calls.
    #[default]
    Plain,
    /// Elements in this order: thoughts, text, calls. That of the text is always there, be it empty.
    Elements(Box<Elements>),
    /// Messages, each behind a header that says for whom it is. Calls stand in messages, one in each.
    Messages(&'static Messages),
}

/// What stands around the elements of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements {
    /// Around thoughts.
    pub thoughts: ReasoningSyntax,
    /// Around text.
    pub text: SaidSyntax,
}

/// How an answer is divided into messages. A header may have its parts in any order.
#[derive(Debug, PartialEq, Eq)]
pub struct Messages {
    /// Behind a header.
    pub(crate) message: &'static str,
    /// Before the header of a further message.
    pub(crate) next: &'static str,
    /// What ends a message.
    pub(crate) ends: &'static [&'static str],
    /// What begins the next message and ends this one as well.
    pub(crate) begins: &'static [&'static str],
    /// With what else a header may begin.
    pub(crate) headers: &'static [&'static str],
    /// In the header of thoughts: what stands before a word, and the word.
    pub(crate) thinks: (&'static str, &'static str),
    /// In the header of text in which no calls are looked for.
    pub(crate) says: Option<(&'static str, &'static str)>,
    /// How the header of thoughts is written.
    pub(crate) thoughts: &'static str,
    /// How the header of text is written.
    pub(crate) text: &'static str,
    /// How the header of a call is written: before and behind the tool's name.
    pub(crate) call: (&'static str, &'static str),
    /// Before the names of a client's tools. It may be missing.
    pub(crate) prefix: &'static str,
    /// Does the header alone name the tool, and is the message its input?
    pub(crate) names_tool: bool,
}

/// Where a syntax comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// The chat template's renderings.
    Derived,
    /// A list of those that cannot be derived.
    Named(&'static str),
}

impl Family {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::Derived => "derived",
            Family::Named(name) => name,
        }
    }
}

/// What stands inside the marks of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A JSON object with the name and the input.
    Object(Object),
    /// Name, literals and input one after the other.
    Pattern {
        /// In order; the last piece is the input.
        pieces: Vec<Hole>,
        /// How the input is written.
        input: InputSyntax,
    },
    /// Calls as Python writes them, in a list: `[name(key='value'), other()]`.
    Python,
}

impl Body {
    /// Braces that the call itself has around its input.
    pub fn depth(&self) -> usize {
        match self {
            Body::Object(Object { shape: Shape::Within(_), .. }) => 2,
            Body::Object(_) => 1,
            Body::Pattern { .. } | Body::Python => 0,
        }
    }
}

/// A JSON object that is a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The key of the tool's name.
    pub name_key: String,
    /// The key of its input.
    pub input_key: String,
    /// Where they stand.
    pub shape: Shape,
    /// Are the calls of a message the items of an array?
    pub list: bool,
}

/// Where name and input stand in a call's object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `{"name": …, "arguments": …}`
    Flat,
    /// The same inside `{"function": …}`, whose key this is.
    Within(String),
    /// `{"the_name": {…}}`
    NameIsKey,
}

/// A piece of a call that is no JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hole {
    /// The tool's name.
    Name,
    /// The call's id, or a number that counts calls: read and not kept.
    Id,
    /// A fixed text.
    Lit(Literal),
    /// What the tool is given.
    Input,
}

/// How a call's input is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputSyntax {
    /// A JSON object.
    Json,
    /// A tag for each argument.
    Tagged(Tags),
    /// As Gemma 4 writes it: `{key:<|"|>text<|"|>,other:7}`, where this is the quotation mark.
    Quoted(Literal),
    /// Elements inside elements, each behind this mark.
    Nested(Literal),
}

/// Tags around the arguments of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Before an argument's name.
    pub before_key: Literal,
    /// Between its name and its value.
    pub after_key: Literal,
    /// Where the tag tells text from other values: what it says of text, and what stands behind that.
    pub kind: Option<(String, Literal)>,
    /// Behind the value.
    pub after_value: Literal,
}

/// How a model marks what it says, where it does. The marks are no part of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaidSyntax {
    /// Before it.
    pub open: Literal,
    /// Behind it; counts only after the other.
    pub close: Literal,
    /// Behind all of an answer.
    pub end: Literal,
}

/// How a model marks what it thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasoningSyntax {
    /// Before it.
    pub open: Literal,
    /// Behind it.
    pub close: Literal,
}

/// In short, for people.
impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Object(Object { name_key, input_key, shape, list }) => {
                let list = if *list { ", a list" } else { "" };
                match shape {
                    Shape::Flat => write!(f, "object {name_key:?} {input_key:?}{list}"),
                    Shape::Within(key) => write!(f, "object {name_key:?} {input_key:?} in {key:?}{list}"),
                    Shape::NameIsKey => write!(f, "object whose key is the name{list}"),
                }
            }
            Body::Pattern { pieces, input } => {
                f.write_str("pattern")?;
                for piece in pieces {
                    match piece {
                        Hole::Name => f.write_str(" NAME")?,
                        Hole::Id => f.write_str(" ID")?,
                        Hole::Lit(literal) => write!(f, " {:?}", literal.text())?,
                        Hole::Input => f.write_str(" INPUT")?,
                    }
                }
                match input {
                    InputSyntax::Json => f.write_str(", json"),
                    InputSyntax::Tagged(Tags { before_key, after_key, kind, after_value }) => {
                        write!(f, ", tags {:?} {:?}", before_key.text(), after_key.text())?;
                        if let Some((word, behind)) = kind {
                            write!(f, " kind {word:?} {:?}", behind.text())?;
                        }
                        write!(f, " {:?}", after_value.text())
                    }
                    InputSyntax::Quoted(mark) => write!(f, ", quoted {:?}", mark.text()),
                    InputSyntax::Nested(mark) => write!(f, ", nested {:?}", mark.text()),
                }
            }
            Body::Python => f.write_str("python"),
        }
    }
}
