//! Every error code there is, and [`Fault`], the one error that travels to a client.
//!
//! This module owns the vocabulary. It refuses to know HTTP: status, type and `Retry-After` of a
//! code stand in one table, `python/llm_node/errors.py`, and a test fails when a row is missing.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)?) => {
        /// What went wrong, in the words that clients see in `error.code`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[$doc])* $variant),+ }

        impl ErrorCode {
            /// All codes, in the order of the table.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant),+];

            /// The code as clients see it.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $text),+ }
            }
        }
    };
}

codes! {
    /// The body is not JSON, or not an object.
    InvalidJson = "invalid_json",
    /// The bytes are no HTTP request.
    MalformedRequest = "malformed_request",
    /// A field has the wrong type or range.
    InvalidRequest = "invalid_request",
    /// A parameter that would change the answer cannot be honoured.
    UnsupportedParameter = "unsupported_parameter",
    /// Prompt and answer do not fit the context. Nothing is ever truncated.
    ContextLengthExceeded = "context_length_exceeded",
    /// The engine's manifest does not name the model's architecture.
    ArchitectureMismatch = "architecture_mismatch",
    /// No engine reads the model's format.
    FormatMismatch = "format_mismatch",
    /// The engine or the model lacks what was asked for.
    UnsupportedFeature = "unsupported_feature",
    /// The API key is missing or unknown.
    InvalidApiKey = "invalid_api_key",
    /// An inference key was used on an admin route.
    InsufficientScope = "insufficient_scope",
    /// The request names a host that may be anybody's.
    HostNotAllowed = "host_not_allowed",
    /// The request comes from a web page of another origin.
    OriginNotAllowed = "origin_not_allowed",
    /// The owner of a model wants terms to be accepted first.
    GatedModel = "gated_model",
    /// No model of that name.
    ModelNotFound = "model_not_found",
    /// No answer with the id that is to be gone on from is kept.
    PreviousResponseNotFound = "previous_response_not_found",
    /// The model is loaded, or being loaded, in another way than was asked for.
    ModelLoadedDifferently = "model_loaded_differently",
    /// No such route.
    NotFound = "not_found",
    /// The route does not know the method.
    MethodNotAllowed = "method_not_allowed",
    /// Headers or body did not come in time.
    RequestTimeout = "request_timeout",
    /// The body is larger than the limit.
    RequestTooLarge = "request_too_large",
    /// The body is encoded in a way that the node does not read.
    UnsupportedEncoding = "unsupported_encoding",
    /// The client expects what the node does not do.
    ExpectationFailed = "expectation_failed",
    /// The headers are larger than the limit.
    HeadersTooLarge = "headers_too_large",
    /// The admission queue is full.
    QueueFull = "queue_full",
    /// The client left.
    Cancelled = "cancelled",
    /// The engine was built for another ABI version.
    AbiMismatch = "abi_mismatch",
    /// The engine could not load the model.
    LoadFailed = "load_failed",
    /// The model file is damaged.
    ModelCorrupt = "model_corrupt",
    /// Anything unmapped.
    Internal = "internal",
    /// The engine failed at its work, or gave what it must not give.
    EngineFault = "engine_fault",
    /// No engine fits; the message lists each candidate with its reason.
    EngineNotFound = "engine_not_found",
    /// The model's worker died.
    EngineCrashed = "engine_crashed",
    /// No usable GPU, and nobody chose the CPU.
    GpuNotFound = "gpu_not_found",
    /// As many connections are open as may be.
    TooManyConnections = "too_many_connections",
    /// The node is going down.
    ShuttingDown = "shutting_down",
    /// The model is still being loaded.
    ModelLoading = "model_loading",
    /// What was fetched is not what was promised.
    ChecksumMismatch = "checksum_mismatch",
    /// The source of a model cannot be reached, or answers with what cannot be understood.
    SourceUnreachable = "source_unreachable",
    /// The source of a model wants to be left alone for a while.
    SourceBusy = "source_busy",
    /// The node may open no connection outwards.
    Offline = "offline",
    /// A deadline passed.
    Timeout = "timeout",
    /// Not enough GPU memory.
    OomVram = "oom_vram",
    /// Not enough memory of the host.
    OomRam = "oom_ram",
    /// Not enough room on the disk.
    DiskFull = "disk_full",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One failure, as it reaches a client: a code, a message that says what was wrong, where, and what
/// to do, and the request field concerned where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Fault {
    /// Which row of the error table.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// The request field that was wrong.
    pub param: Option<String>,
    /// Further fields beside the message, as the text of a JSON object.
    pub details: Option<String>,
}

impl Fault {
    /// A fault without field and details.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None, details: None }
    }

    /// The same fault, naming the request field that was wrong.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>) -> Self {
        self.param = Some(name.into());
        self
    }

    /// The same fault with further fields; `details` is the text of a JSON object.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_serde_agree_on_every_code() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
        }
    }
}
