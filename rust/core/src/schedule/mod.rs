//! Which requests take part in the next step, with how many tokens each.
//!
//! It decides and refuses to act: the engine is called by [`Session`](crate::session::Session).

pub mod admission;
pub mod batch;
pub mod generation;
pub mod keeping;
pub mod pace;
pub mod preempt;
