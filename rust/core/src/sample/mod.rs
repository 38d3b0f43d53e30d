//! From a row of logits to a token, exactly as the chain of the engine interface says:
//! penalties, bias, mask; then temperature, top-k, top-p, min-p and the draw.
//!
//! Everything here is a function of the row, the request and one number in `[0, 1)`. There is no
//! random state, so an answer depends neither on the batch around it nor on preemption.
//!
//! Nor does the token depend on the machine: what decides on it is computed in one fixed order of
//! operations at every instruction set, and without the functions of the system's mathematical library.
//! Log-probabilities alone may differ in their last bit between machines.
//!
//! It refuses to build a list of the whole vocabulary: one streaming pass leaves the maximum of
//! each block of the row, and what follows touches few blocks.

mod best;
mod blockmax;
mod chain;
mod deep;
mod filters;
mod forbidden;
mod job;
mod lanes;
mod mask;
mod penalties;
mod picked;
pub mod rng;
mod rows;

pub use best::candidates_for;
pub use blockmax::Candidate;
pub use chain::Sampler;
pub use forbidden::Forbidden;
pub use job::Job;
pub use mask::Mask;
pub use penalties::{Occurrences, penalise};
pub use picked::{PickFault, Picked};
pub use rows::Samplers;
