//! What crosses the border between node and worker, and nothing else.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod endpoint;
pub mod frame;
pub mod message;
mod os_path;
