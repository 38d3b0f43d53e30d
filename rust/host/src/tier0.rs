//! Tier 0: one model, one prompt at a time, all tokens at the end.
//!
//! `engine_load_model` and `engine_generate` are `[main]`: no other call into the engine may run. They
//! borrow the [`LoadedEngine`] mutably, which nobody can who shares it with a model.

use std::ffi::CString;
use std::path::Path;

use llm_node_abi::{
    ENGINE_FINISH_CANCELLED, ENGINE_FINISH_LENGTH, ENGINE_RESULT_ID, ENGINE_RESULT_LOGPROB, EngineStr,
    TokenLogprob, TokenResult,
};
use llm_node_core::engine::Token;

use crate::callbacks::checked;
use crate::engine::LoadedEngine;
use crate::error::EngineError;
use crate::parameters;
use crate::readable;

/// An array of results that goes on beyond this has no end.
const MOST_RESULTS: usize = 65_536;
/// No token is longer, in bytes.
const LONGEST_TOKEN: usize = 1 << 20;
/// Nobody asks for more.
const MOST_ALTERNATIVES: usize = 4096;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-generation token, or a stop string.
    Stop,
    /// The limit was reached.
    Length,
    /// Somebody cancelled it.
    Cancelled,
}

impl Finish {
    pub(crate) const fn from_abi(finish: u32) -> Self {
        match finish {
            ENGINE_FINISH_LENGTH => Self::Length,
            ENGINE_FINISH_CANCELLED => Self::Cancelled,
            // A reason that this version does not know is still an end that the engine chose.
            _ => Self::Stop,
        }
    }
}

/// One generated token, copied out of the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GeneratedToken {
    /// Its bytes, which may be part of a character. Empty if the engine gave only the number.
    pub text: Vec<u8>,
    /// Its number, if the engine gave it.
    pub id: Option<Token>,
    /// Natural logarithm of its probability, if the engine gave it.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, best first.
    pub top: Vec<Alternative>,
}

/// A token that could have stood in another's place.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// Its bytes.
    pub text: Vec<u8>,
    /// Its number.
    pub id: Token,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The tokens in their order.
    pub tokens: Vec<GeneratedToken>,
    /// Why there are no more.
    pub finish: Finish,
}

impl LoadedEngine {
    /// Makes the model at `path` the one model of tier 0, in the place of the one before it.
    pub fn tier0_load(&mut self, path: &Path) -> Result<(), EngineError> {
        const CALL: &str = "engine_load_model";
        let path = parameters::path(path)
            .ok_or_else(|| EngineError::invalid(CALL, "the path contains a zero byte"))?;
        self.announce(CALL);
        // SAFETY: `&mut self`: no other call is running. The path lives until the call returns.
        checked(CALL, || unsafe { (self.symbols().load_model)(path.as_ptr()) })
    }

    /// Generates an answer to `prompt`, and blocks until it is done.
    pub fn tier0_generate(&mut self, prompt: &str) -> Result<Generated, EngineError> {
        const CALL: &str = "engine_generate";
        let prompt = CString::new(prompt)
            .map_err(|_| EngineError::invalid(CALL, "the prompt contains a zero byte"))?;
        let mut results: *mut TokenResult = std::ptr::null_mut();
        self.announce(CALL);
        checked(CALL, || {
            // SAFETY: as for `tier0_load`; `results` is a local that outlives the call.
            unsafe { (self.symbols().generate)(prompt.as_ptr(), &raw mut results) }
        })?;
        if results.is_null() {
            return Ok(Generated { tokens: Vec::new(), finish: Finish::Stop });
        }
        let mut tokens = Vec::new();
        loop {
            // SAFETY: the engine says that an array begins at `results`; its end is not yet seen.
            let result = unsafe { readable::value(results.wrapping_add(tokens.len()).cast_const()) }
                .map_err(|problem| EngineError::misbehaved(CALL, format!("results {problem}")))?;
            if result.text.is_null() {
                return Ok(Generated { tokens, finish: Finish::from_abi(result.finish) });
            }
            if tokens.len() == MOST_RESULTS {
                return Err(EngineError::misbehaved(CALL, format!("no end within {MOST_RESULTS} results")));
            }
            // SAFETY: copied before any further call of this engine, which `&mut self` rules out.
            tokens.push(unsafe { copy_token(&result, CALL) }?);
        }
    }
}

/// Copies what a result points to.
///
/// # Safety
///
/// The engine has just handed it out, and its memory is still what it was.
pub(crate) unsafe fn copy_token(
    result: &TokenResult,
    call: &'static str,
) -> Result<GeneratedToken, EngineError> {
    let text = |data, len| {
        // SAFETY: as the caller says.
        unsafe { readable::bytes(EngineStr { data, len }, LONGEST_TOKEN) }
            .map_err(|problem| EngineError::misbehaved(call, format!("the text of a token {problem}")))
    };
    if result.n_top > MOST_ALTERNATIVES {
        return Err(EngineError::misbehaved(call, format!("{} alternatives to a token", result.n_top)));
    }
    let top: Vec<TokenLogprob> = if result.n_top == 0 {
        Vec::new()
    } else {
        // SAFETY: as the caller says.
        unsafe { readable::values(result.top, result.n_top) }
            .map_err(|problem| EngineError::misbehaved(call, format!("the list of alternatives {problem}")))?
    };
    Ok(GeneratedToken {
        text: text(result.text, result.text_len)?,
        id: (result.flags & ENGINE_RESULT_ID != 0).then_some(result.token_id),
        logprob: (result.flags & ENGINE_RESULT_LOGPROB != 0).then_some(result.logprob),
        top: top
            .iter()
            .map(|one| {
                Ok(Alternative {
                    text: text(one.text, one.text_len)?,
                    id: one.token_id,
                    logprob: one.logprob,
                })
            })
            .collect::<Result<_, EngineError>>()?,
    })
}
