//! A small vocabulary, and ways to walk a constraint.

use std::sync::{Arc, LazyLock};

use llm_node_core::{
    chat::conversation::{Format, Json, Tool, ToolInput},
    constrain::{Constraint, Prototype, Tables, Wanted},
    engine::{Token, Vocabulary, attribute},
    error::Fault,
    sample::{Mask, rng},
};
use serde_json::Value;

/// Tokens of more than one byte, as a model for JSON would have them.
const PIECES: [&str; 27] = [
    "{\"",
    "\":",
    "\": ",
    "\",",
    "\", \"",
    "\"}",
    "\"]",
    "\"}]",
    "},",
    "}]",
    "[{",
    "[\"",
    "true",
    "false",
    "null",
    "  ",
    "\n  ",
    "12",
    "00",
    ".5",
    "name",
    "the",
    " and",
    "語",
    "\n</parameter>\n",
    "</",
    "</atem:parameter>\n",
];

/// Tokens of marks.
const CONTROL: [&str; 11] = [
    "<|tool|>",
    "<|\"|>",
    "<|channel|>",
    "<|message|>",
    "<|start|>",
    "<|constrain|>",
    "<|eom|>",
    "<|open|>",
    "<|close|>",
    "<|sep|>",
    "｜DSML｜",
];
/// Those that end a text.
const MARK: &[u8] = "｜DSML｜".as_bytes();
const CLOSE: &[u8] = b"<|close|>";
const QUOTE: &[u8] = b"<|\"|>";

pub(crate) const END: Token = 256 + PIECES.len() as Token;

pub(crate) static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let mut texts: Vec<(Vec<u8>, u32)> = (0..=255).map(|byte| (vec![byte], attribute::BYTE)).collect();
    texts.extend(PIECES.iter().map(|it| (it.as_bytes().to_vec(), 0)));
    texts.push((b"<|end|>".to_vec(), attribute::CONTROL | attribute::END_OF_GENERATION));
    texts.extend(CONTROL.map(|it| (it.as_bytes().to_vec(), attribute::CONTROL)));
    texts.push((b"unused".to_vec(), attribute::UNUSED));
    let mut vocabulary = Vocabulary { offsets: vec![0], eos: Some(END), ..Vocabulary::default() };
    for (bytes, attributes) in texts {
        vocabulary.bytes.extend(bytes);
        vocabulary.offsets.push(vocabulary.bytes.len() as u32);
        vocabulary.attributes.push(attributes);
    }
    vocabulary
});

/// The token of one of the [`PIECES`].
pub(crate) fn token(piece: &str) -> Token {
    256 + PIECES.iter().position(|it| *it == piece).expect(piece) as Token
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| Tables::new(Arc::new(VOCABULARY.clone())).unwrap());

pub(crate) fn compile(wanted: impl Into<Wanted>) -> Result<Prototype, Fault> {
    TABLES.compile(&wanted.into())
}

pub(crate) fn schema(schema: &Value, strict: bool) -> Format {
    Format::Schema { schema: Json::new(schema.to_string()).unwrap(), strict }
}

/// Is this text a whole answer, byte by byte?
pub(crate) fn accepts(constraint: &Constraint, text: &str) -> bool {
    let mut constraint = constraint.clone();
    let tokens: Vec<Token> = text.bytes().map(Token::from).collect();
    let admitted = constraint.admits(&tokens).unwrap();
    if admitted < tokens.len() {
        return false;
    }
    for token in tokens {
        constraint.consume(token).unwrap();
    }
    constraint.is_accepting().unwrap()
}

/// A random answer, or nothing where it did not end.
pub(crate) fn walk(constraint: &Constraint, seed: u64) -> Option<String> {
    let bytes = walk_tokens(constraint, seed)?.into_iter().flat_map(|it| VOCABULARY.token_bytes(it)).copied();
    Some(String::from_utf8(bytes.collect()).expect("an answer is text"))
}

/// The same as tokens.
pub(crate) fn walk_tokens(constraint: &Constraint, seed: u64) -> Option<Vec<Token>> {
    let mut constraint = constraint.clone();
    let mut tokens = Vec::new();
    for position in 0..600 {
        let token = draw(&constraint.mask().unwrap(), seed, position);
        if token == END {
            return Some(tokens);
        }
        constraint.consume(token).unwrap();
        tokens.push(token);
    }
    None
}

/// One of the tokens that are admitted; the longer the answer is, the sooner one that ends something.
pub(crate) fn draw(mask: &Mask, seed: u64, position: u64) -> Token {
    let admitted: Vec<Token> = (0..VOCABULARY.len() as Token).filter(|&it| mask.admits(it)).collect();
    assert_eq!(admitted.len(), mask.count() as usize);
    assert!(!admitted.is_empty());
    let ends = |it: &&Token| {
        **it == END
            || matches!(
                VOCABULARY.token_bytes(**it),
                b"\""
                    | b"}"
                    | b"]"
                    | b"\"}"
                    | b"\n</parameter>\n"
                    | b"</atem:parameter>\n"
                    | b"</"
                    | MARK
                    | CLOSE
                    | QUOTE
            )
    };
    let draw = rng::uniform(seed, 2 * position);
    let ending: Vec<Token> = admitted.iter().filter(ends).copied().collect();
    let to_end = !ending.is_empty() && draw < 0.1 + position as f32 / 100.0;
    let all = if to_end { ending } else { admitted };
    all[(rng::uniform(seed, 2 * position + 1) * all.len() as f32) as usize]
}

/// The schema of a tool's input.
pub(crate) fn schema_of(tools: &[Tool], name: &str) -> Value {
    let tool = tools.iter().find(|it| it.name == name).expect("it was offered");
    let ToolInput::Object(schema) = &tool.input else { panic!("{name} takes text") };
    serde_json::from_str(schema.as_str()).unwrap()
}
