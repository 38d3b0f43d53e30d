//! From a row of logits to a token, exactly as the chain of the engine interface says:
//! penalties, bias, mask; then temperature, top-k, top-p, min-p and the draw.
//!
//! Everything here is a function of the row, the request and one number in `[0, 1)`. There is no
//! random state, so an answer depends neither on the batch around it nor on preemption.
//!
//! It refuses to build a list of the whole vocabulary: one streaming pass leaves the maximum of
//! each block of the row, and what follows touches few blocks.

mod blockmax;
mod chain;
mod deep;
mod logprobs;
mod penalties;
pub mod rng;

pub use blockmax::Candidate;
pub use chain::{Forbidden, PickFault, Picked, Sampler};
pub use penalties::{Occurrences, penalise};
