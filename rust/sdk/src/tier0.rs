//! Tier 0: what every engine is, and the one-model, one-prompt way of using it.

use std::ffi::CStr;
use std::path::Path;

use crate::{Config, Failure, Token};

/// One generated token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Its bytes, which may end inside a character.
    pub text: Vec<u8>,
    /// Its number in the vocabulary.
    pub token: Option<Token>,
    /// Natural logarithm of its probability.
    pub logprob: Option<f32>,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-generation token, or a stop string.
    #[default]
    Stop,
    /// The limit of tokens.
    Length,
    /// The request was cancelled.
    Cancelled,
}

/// All of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// Its tokens, in order.
    pub pieces: Vec<Piece>,
    /// Why it ended.
    pub finish: Finish,
}

/// An engine. Dropping it is `engine_shutdown`: when `drop` returns, every thread that the engine has
/// started has ended.
pub trait Engine: Sized + Send + Sync + 'static {
    /// The manifest's "id".
    const ID: &'static CStr;
    /// The manifest's "version".
    const VERSION: &'static CStr;

    /// Starts the engine. It may be started again after it was dropped.
    fn init(config: &Config) -> Result<Self, Failure>;

    /// Makes the model at `path` the one model of tier 0.
    fn load_model(&self, path: &Path) -> Result<(), Failure> {
        let _ = path;
        Err(Failure::unsupported("this engine loads models through engine.models/1"))
    }

    /// Generates all of an answer.
    fn generate(&self, prompt: &[u8]) -> Result<Generation, Failure> {
        let _ = prompt;
        Err(Failure::unsupported("this engine generates through its extensions"))
    }
}
