//! The pure heart of llm-node: what a request is, which sequences take part in the next step, which
//! token a row of logits gives, what text that makes.
//!
//! No files, sockets, threads, clock or environment: time and randomness are passed in.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod chat;
pub mod constrain;
pub mod engine;
pub mod error;
pub mod event;
pub mod facts;
pub mod memory;
pub mod options;
pub mod prefix;
pub mod request;
pub mod sample;
pub mod schedule;
pub mod sequences;
pub mod session;
pub mod shape;
pub mod speculate;
pub mod text;
