//! Speculative decoding: guess how a text goes on, verify the guesses in one step of the engine.
//!
//! A [`Drafter`] proposes tokens; the session appends them to what it feeds, samples each row with the
//! request's own settings, and keeps what agrees. An answer therefore never depends on what was
//! proposed, only its speed does. [`Pays`] says for each request how many tokens are worth it.
//!
//! Nothing here verifies: that is the session's.

mod lookup;
mod model;
mod policy;
mod spelling;

pub use lookup::Lookup;
pub use model::DraftModel;
pub use policy::Pays;
pub use spelling::Speller;

use std::fmt;

use crate::engine::{EngineFault, Token};

/// What one request wants proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want<'a> {
    /// The request, by the same name for its whole life.
    pub id: u64,
    /// Prompt and answer so far.
    pub tokens: &'a [Token],
    /// At most so many tokens.
    pub most: u32,
    /// The proposal; comes empty.
    pub draft: Vec<Token>,
}

/// Proposes how texts go on. A proposal may be wrong in any way but one: its tokens are tokens of the
/// model's vocabulary, so that they can be fed.
pub trait Drafter: fmt::Debug + Send {
    /// Fills each draft with at most `most` tokens that may follow its `tokens`; with none where it has
    /// no idea. All requests that draft in one step come in one call, each id once.
    fn draft_all(&mut self, wants: &mut [Want<'_>]);

    /// The request is over. Unknown ids are ignored.
    fn forget(&mut self, id: u64);

    /// What ended the drafting for good, if anything did: worth a line in the log.
    fn fault(&self) -> Option<&EngineFault> {
        None
    }
}
