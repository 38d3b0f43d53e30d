//! An engine as the header has it, for who tests engines: calls that no safe method makes, because no node
//! makes them.
//!
//! Nothing here is called by a node. What is read through it is checked by nobody but the caller.

pub use crate::callbacks::{HostServices, checked};
pub use crate::engine::Extensions;
pub use crate::library::{Symbols, check_file};
pub use crate::readable::{AnyBits, Problem, bytes, value, values};
