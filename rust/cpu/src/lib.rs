//! What the core needs of the processor and safe Rust has no words for: code compiled for the
//! instruction sets that this machine has ([`Level`]), threads that stay and work on borrowed data
//! ([`Crew`]), and threads that get their turn soon ([`ask_for_short_slices`]).
//!
//! There is no arithmetic here, and no policy: what is computed, and how it is shared out, the core
//! says.
#![warn(missing_docs)]

mod crew;
mod level;
mod slice;

pub use crew::Crew;
pub use level::{Kernel, Level};
pub use slice::ask_for_short_slices;
