//! A load generator for servers that stream completions the way OpenAI's API does.
//!
//! It shares its machine with the server that it measures, so it is one thread, does no more than the
//! measurement needs, and speaks plain HTTP/1.1 only. Bodies come as templates and are sent as they are:
//! which fields a request has is the caller's business. What it knows of the answers' JSON stands in one
//! file, `answer.rs`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod answer;
mod client;
mod exchange;
mod http;
mod plan;
mod prompt;
mod report;
mod schedule;
mod sse;

pub use client::{LoadError, Progress, run};
pub use plan::{Arrivals, Limit, Part, Plan, PlanError, Prompts, Word};
pub use report::{ErrorCount, Report, RequestReport, Summary};
