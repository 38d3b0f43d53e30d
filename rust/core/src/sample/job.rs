//! What picking one token takes.

use super::{mask::Mask, penalties::Occurrences};
use crate::{engine::Row, request::Sampling};

/// A row to pick from, and how.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// The engine's row.
    pub row: &'a Row<'a>,
    /// How to pick.
    pub sampling: &'a Sampling,
    /// What the sequence holds.
    pub occurrences: &'a Occurrences,
    /// The tokens that may be picked; `None`: all.
    pub mask: Option<&'a Mask>,
    /// In `[0, 1)`; see [`super::rng::uniform`].
    pub uniform: f32,
    /// How many of the likeliest tokens are wanted beside the picked one's log-probability.
    pub logprobs: Option<u32>,
}
