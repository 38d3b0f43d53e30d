//! Text at both ends of a model: conversations to prompts, tokens' bytes to answers.
//!
//! It owns chat templates, decoding across token borders, and stop strings. It refuses to know
//! tokenizers: those belong to the engine.

pub mod answer;
pub mod beginnings;
pub mod control;
pub mod conversation;
pub mod density;
pub mod detok;
pub mod infill;
mod list;
mod offered;
pub mod pair;
pub mod stop;
pub mod template;
