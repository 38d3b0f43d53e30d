//! Text as the tokens that a model would write it with.

use std::{fmt, sync::Arc};

use crate::engine::{Token, Tokenizer};

/// Spells text that follows other text.
#[derive(Clone)]
pub struct Speller {
    tokenizer: Arc<dyn Tokenizer>,
}

impl fmt::Debug for Speller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Speller").finish_non_exhaustive()
    }
}

impl Speller {
    /// By the tokens of a model.
    pub fn new(tokenizer: Arc<dyn Tokenizer>) -> Self {
        Self { tokenizer }
    }

    /// The tokens of `text` where these bytes stand before it. A word at the end is left out, since more of it may
    /// follow. Nothing, where the tokenizer sees no border between the two, or `text` does not come back from it.
    pub fn spell(&self, before: &[u8], text: &[u8]) -> Vec<Token> {
        // Some tokenizers put a space before whatever a text begins with.
        let found = [before, b"", b"\n"].into_iter().find_map(|before| self.behind(before, text));
        let Some(mut tokens) = found else { return Vec::new() };
        if text.last().is_some_and(|it| it.is_ascii_alphanumeric() || !it.is_ascii()) {
            tokens.pop();
        }
        tokens
    }

    fn behind(&self, before: &[u8], text: &[u8]) -> Option<Vec<Token>> {
        let whole = [before, text].concat();
        let mut tokens = self.tokenizer.tokenize(std::str::from_utf8(&whole).ok()?, false, false).ok()?;
        let vocabulary = self.tokenizer.vocabulary();
        let mut rest = text;
        let mut begin = tokens.len();
        while !rest.is_empty() {
            begin = begin.checked_sub(1)?;
            rest = rest.strip_suffix(vocabulary.token_bytes(tokens[begin]))?;
        }
        Some(tokens.split_off(begin))
    }
}
