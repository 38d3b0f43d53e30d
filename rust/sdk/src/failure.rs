//! Why a call failed: an `ERR_` code and a sentence.

use std::fmt;

use llm_node_abi as abi;

/// A code of the ABI and a message for people. The message reaches the host through `set_error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub code: abi::Code,
    /// What was wrong, where, and what to do about it.
    pub message: String,
}

impl Failure {
    /// Any code with a message.
    pub fn new(code: abi::Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// `ERR_UNSUPPORTED`
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(abi::ERR_UNSUPPORTED, message)
    }

    /// `ERR_INVALID_ARGUMENT`
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(abi::ERR_INVALID_ARGUMENT, message)
    }

    /// `ERR_INTERNAL`
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(abi::ERR_INTERNAL, message)
    }

    /// `ERR_NOT_FOUND`
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(abi::ERR_NOT_FOUND, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}
