//! Conversations: what they are in neutral words.
//!
//! It owns the words that every API dialect is translated into. It refuses to know any dialect's own.

pub mod conversation;
