//! @ID@: an engine of tier 0, the least there is. One model, one prompt at a time, all tokens at the end.
//!
//! Its model is a text of some lines, and its answer goes on from the prompt as those lines do. What belongs
//! to that model is marked YOUR WORK: put your own in its place.

use std::ffi::CStr;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use llm_node_sdk::{Config, Engine, Failure, Finish, Generation, Piece, export_engine};

const MOST_TOKENS: usize = 256;

struct Tiny {
    /// YOUR WORK: the model. Here it is a text.
    text: Mutex<Vec<u8>>,
    max_tokens: usize,
}

impl Engine for Tiny {
    const ID: &'static CStr = c"@ID@"; // as in the manifest
    const VERSION: &'static CStr = c"0.1.0";

    fn init(config: &Config) -> Result<Self, Failure> {
        let max_tokens = if config.max_tokens == 0 { MOST_TOKENS } else { config.max_tokens as usize };
        Ok(Self { text: Mutex::default(), max_tokens })
    }

    fn load_model(&self, path: &Path) -> Result<(), Failure> {
        // YOUR WORK: read the model, and believe nothing that stands in it before you have checked it.
        let text = fs::read(path).map_err(|error| Failure::not_found(error.to_string()))?;
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
        Ok(())
    }

    fn generate(&self, prompt: &[u8]) -> Result<Generation, Failure> {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = &text[place_after(&text, prompt)..];
        let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let shown = &line[..line.len().min(self.max_tokens)];
        let pieces = shown.iter().map(|byte| Piece { text: vec![*byte], ..Piece::default() });
        let finish = if shown.len() < line.len() { Finish::Length } else { Finish::Stop };
        Ok(Generation { pieces: pieces.collect(), finish })
    }
}

/// YOUR WORK: where the answer goes on. Here: after the place in the text that has most in common with the end
/// of what was said.
fn place_after(text: &[u8], said: &[u8]) -> usize {
    let common = |at: usize| {
        let pairs = text[..at].iter().rev().zip(said.iter().rev());
        pairs.take_while(|(one, other)| one == other).count()
    };
    // The first of several that are as good.
    (1..text.len()).rev().max_by_key(|at| common(*at)).unwrap_or(0)
}

export_engine!(Tiny);
