//! A vocabulary as the trie that grammars are walked with.
//!
//! It takes as much memory as a whole worker and some tenths of a second: who makes one keeps it.

use std::sync::Arc;

use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::{
    engine::{Token, Vocabulary, attribute},
    error::{ErrorCode, Fault},
};

/// Bytes of the longest token that the trie can hold.
const LONGEST: usize = 1000;

/// The trie of a vocabulary. No grammar admits a control token unless it names it.
pub(super) fn environment(vocabulary: &Vocabulary) -> Result<TokEnv, Fault> {
    let ends: Vec<u32> = (0..vocabulary.len() as Token)
        .filter(|&token| vocabulary.has(token, attribute::END_OF_GENERATION))
        .map(|token| token as u32)
        .collect();
    let Some(&end) = ends.first() else {
        let message =
            "The model has no end-of-generation token, so that nothing could end an answer with a format.";
        return Err(Fault::new(ErrorCode::UnsupportedFeature, message));
    };
    let words: Vec<Vec<u8>> = (0..vocabulary.len() as Token).map(|token| word(vocabulary, token)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words).with_eos_tokens(&ends);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

fn word(vocabulary: &Vocabulary, token: Token) -> Vec<u8> {
    let bytes = vocabulary.token_bytes(token);
    if bytes.len() > LONGEST || vocabulary.has(token, attribute::UNUSED) {
        Vec::new()
    } else if vocabulary.has(token, attribute::CONTROL | attribute::END_OF_GENERATION) {
        [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
    } else {
        bytes.to_vec()
    }
}
