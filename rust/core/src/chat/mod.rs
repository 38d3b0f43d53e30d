//! Conversations: what they are in neutral words, and how a model writes its part of them.
//!
//! It owns the words that every API dialect is translated into, and the reading of answers: text,
//! reasoning, calls. It refuses to know any dialect's own words, and any model by its name.

pub mod builtin;
pub mod conversation;
pub mod derive;
pub mod families;
pub(crate) mod grammar;
pub mod habits;
pub mod model;
pub mod parse;
pub mod render;
pub mod syntax;
mod values;
