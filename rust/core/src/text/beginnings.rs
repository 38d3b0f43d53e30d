//! Prompts that begin as an earlier one did are tokenised from where they go on.
//!
//! A conversation is sent whole at each turn, with all its tools, and a tokenizer reads some megabytes in a second. So
//! the tokens of the last prompts are kept. A new one takes over those before the last control token that both have in
//! common: there tokenizers part a text, whatever stands on either side.

use std::{
    collections::VecDeque,
    fmt, iter,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::engine::{EngineFault, Token, Tokenizer, Vocabulary, attribute};

/// Bytes of a text that is worth it.
const LEAST: usize = 1 << 10;
/// Most texts that are kept.
const MOST: usize = 32;
/// Bytes that they may take together, and a single one.
const MOST_BYTES: usize = 4 << 20;
const MOST_BYTES_EACH: usize = MOST_BYTES / 4;

/// The tokens of prompts that came lately.
#[derive(Debug, Default)]
pub struct Beginnings {
    /// The one that came last is the last.
    kept: Mutex<VecDeque<Kept>>,
}

impl Beginnings {
    /// A tokenizer that knows them. All that is asked of it must be of one model.
    pub fn of<'a>(&'a self, tokenizer: &'a dyn Tokenizer) -> impl Tokenizer + use<'a> {
        Remembering { beginnings: self, tokenizer }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tokens that a text begins with, as far as they are known, and where it goes on.
    fn known(&self, text: &str) -> Option<(Vec<Token>, usize)> {
        let kept = self.lock();
        let (common, like) =
            kept.iter().map(|it| (common(it.text.as_bytes(), text.as_bytes()), it)).max_by_key(|it| it.0)?;
        let shared = like.cuts.partition_point(|it| it.end <= common);
        let cut = &like.cuts[shared.checked_sub(1)?];
        Some((like.tokens[..cut.token].to_vec(), cut.begin))
    }

    fn keep(&self, it: Kept) {
        if it.bytes() > MOST_BYTES_EACH {
            return;
        }
        let mut kept = self.lock();
        // What the new one begins with says nothing beside it.
        kept.retain(|old| !it.text.starts_with(old.text.as_str()));
        kept.push_back(it);
        let mut bytes: usize = kept.iter().map(Kept::bytes).sum();
        while kept.len() > MOST || bytes > MOST_BYTES {
            bytes -= kept.pop_front().map_or(bytes, |it| it.bytes());
        }
    }
}

/// A text and its tokens.
struct Kept {
    text: String,
    tokens: Vec<Token>,
    cuts: Vec<Cut>,
}

impl Kept {
    fn bytes(&self) -> usize {
        self.text.len() + size_of_val(&self.tokens[..]) + size_of_val(&self.cuts[..])
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What people say is for no log.
        f.debug_struct("Kept").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

/// A control token: where it stands in a text, and its number among the tokens.
struct Cut {
    begin: usize,
    end: usize,
    token: usize,
}

/// The control tokens of a text. `None`: those in the tokens are not the ones that are spelled in it.
fn cuts(text: &str, tokens: &[Token], vocabulary: &Vocabulary) -> Option<Vec<Cut>> {
    let mut spelled = vocabulary.control_tokens().find(text);
    let mut cuts = Vec::new();
    for (token, &id) in tokens.iter().enumerate().filter(|it| vocabulary.has(*it.1, attribute::CONTROL)) {
        let place = spelled.next()?;
        if text.as_bytes()[place.clone()] != *vocabulary.token_bytes(id) {
            return None;
        }
        cuts.push(Cut { begin: place.start, end: place.end, token });
    }
    spelled.next().is_none().then_some(cuts)
}

/// How many bytes both begin with.
fn common(one: &[u8], other: &[u8]) -> usize {
    const BLOCK: usize = 256;
    let blocks = iter::zip(one.chunks_exact(BLOCK), other.chunks_exact(BLOCK));
    let equal = BLOCK * blocks.take_while(|(a, b)| a == b).count();
    equal + iter::zip(&one[equal..], &other[equal..]).take_while(|(a, b)| a == b).count()
}

struct Remembering<'a> {
    beginnings: &'a Beginnings,
    tokenizer: &'a dyn Tokenizer,
}

impl Remembering<'_> {
    /// The tokens of a prompt in which control tokens are read.
    fn prompt(&self, text: &str) -> Result<Vec<Token>, EngineFault> {
        let vocabulary = self.tokenizer.vocabulary();
        if let Some((mut tokens, place)) = self.beginnings.known(text) {
            tokens.extend(self.tokenizer.tokenize(&text[place..], false, true)?);
            if let Some(cuts) = cuts(text, &tokens, vocabulary) {
                self.beginnings.keep(Kept { text: text.to_owned(), tokens: tokens.clone(), cuts });
                return Ok(tokens);
            }
        }
        let tokens = self.tokenizer.tokenize(text, false, true)?;
        if let Some(cuts) = cuts(text, &tokens, vocabulary).filter(|it| !it.is_empty()) {
            self.beginnings.keep(Kept { text: text.to_owned(), tokens: tokens.clone(), cuts });
        }
        Ok(tokens)
    }
}

impl Tokenizer for Remembering<'_> {
    fn vocabulary(&self) -> &Vocabulary {
        self.tokenizer.vocabulary()
    }

    fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, EngineFault> {
        if text.len() < LEAST || add_special || !parse_special {
            return self.tokenizer.tokenize(text, add_special, parse_special);
        }
        self.prompt(text)
    }

    fn detokenize(&self, tokens: &[Token]) -> Result<Vec<u8>, EngineFault> {
        self.tokenizer.detokenize(tokens)
    }

    fn chat_template(&self) -> Option<&str> {
        self.tokenizer.chat_template()
    }
}
