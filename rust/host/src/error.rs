//! What can go wrong with an engine: [`LoadError`] before it runs, [`EngineError`] after.

use std::path::PathBuf;

use llm_node_abi::{
    Code, ERR_CACHE_FULL, ERR_CANCELLED, ERR_DEVICE_LOST, ERR_INVALID_ARGUMENT, ERR_LOAD_FAILED,
    ERR_MODEL_CORRUPT, ERR_NOT_FOUND, ERR_OOM_RAM, ERR_OOM_VRAM, ERR_TIMEOUT, ERR_UNSUPPORTED,
};
use llm_node_core::engine::{EngineFault, EngineFaultKind};
use llm_node_core::error::{ErrorCode, Fault};

/// Why an engine cannot be used, with the library concerned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {kind}", path.display())]
pub struct LoadError {
    /// The shared library.
    pub path: PathBuf,
    /// What is wrong with it.
    pub kind: LoadErrorKind,
}

/// Where an ABI version was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbiSource {
    /// manifest.json; found by whoever reads it.
    Manifest,
    /// `engine_get_info`.
    Binary,
}

/// The verdicts on an engine that does not get as far as running.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadErrorKind {
    /// Built for another version of the ABI. Nothing but `engine_get_info` was called.
    #[error("ABI version mismatch: expected {expected}, got {got}")]
    AbiMismatch {
        /// The host's.
        expected: u32,
        /// The engine's.
        got: u32,
        /// Who said so.
        found_in: AbiSource,
    },
    /// There is no such file.
    #[error("the engine's library does not exist")]
    BinaryNotFound,
    /// The file is there, but cannot be read.
    #[error("the engine's library cannot be read: {reason}")]
    BinaryUnreadable {
        /// The system's words.
        reason: String,
    },
    /// The file is not a shared library of this platform, or only part of one.
    #[error("not a shared library: {reason}")]
    NotALibrary {
        /// What it is instead.
        reason: String,
    },
    /// A shared library for another processor.
    #[error("built for {got}, but this machine is {expected}")]
    WrongArch {
        /// This machine.
        expected: String,
        /// The library's.
        got: String,
    },
    /// The dynamic loader refused it.
    #[error("cannot be loaded: {dlerror}")]
    LoadFailed {
        /// The loader's words.
        dlerror: String,
    },
    /// One of the five functions is not exported.
    #[error("missing symbol {name}")]
    MissingSymbol {
        /// Which.
        name: &'static str,
    },
    /// `engine_get_info` returned NULL.
    #[error("engine_get_info returned NULL")]
    NullInfo,
    /// `engine_get_info` returned something that cannot be read as an `EngineInfo`.
    #[error("engine_get_info: {field} {problem}")]
    InfoUnreadable {
        /// Which part of it.
        field: &'static str,
        /// Why.
        problem: String,
    },
    /// The binary is another engine than its manifest says.
    #[error("the binary says it is engine {got:?}, its manifest says {expected:?}")]
    IdMismatch {
        /// The manifest's.
        expected: String,
        /// The binary's.
        got: String,
    },
    /// The binary is another version than its manifest says.
    #[error("the binary says its version is {got:?}, its manifest says {expected:?}")]
    VersionMismatch {
        /// The manifest's.
        expected: String,
        /// The binary's.
        got: String,
    },
    /// The table of an extension cannot be used.
    #[error("extension {id}: {problem}")]
    ExtensionBroken {
        /// Which extension.
        id: &'static str,
        /// Why.
        problem: String,
    },
    /// The same library is already initialised in this process; its globals exist only once.
    #[error("the engine is already running in this process")]
    AlreadyRunning,
    /// `engine_init` failed.
    #[error("engine_init failed with {code}{}", reason(message.as_ref()))]
    InitFailed {
        /// With which code.
        code: Code,
        /// The engine's words.
        message: Option<String>,
    },
    /// A setting cannot be passed to the engine.
    #[error("{what} contains a zero byte")]
    UnusableSetting {
        /// Which.
        what: &'static str,
    },
}

impl From<LoadError> for Fault {
    fn from(error: LoadError) -> Self {
        let code = match &error.kind {
            LoadErrorKind::AbiMismatch { .. } => ErrorCode::AbiMismatch,
            LoadErrorKind::InitFailed { code, .. } if *code == ERR_OOM_VRAM => ErrorCode::OomVram,
            LoadErrorKind::InitFailed { code, .. } if *code == ERR_OOM_RAM => ErrorCode::OomRam,
            // A setting that a load, or the node for all loads, has for the engine.
            LoadErrorKind::InitFailed { code, .. } if *code == ERR_INVALID_ARGUMENT => {
                return Fault::new(ErrorCode::InvalidRequest, error.to_string()).param("options");
            }
            LoadErrorKind::UnusableSetting { .. } => {
                return Fault::new(ErrorCode::InvalidRequest, error.to_string()).param("options");
            }
            _ => ErrorCode::LoadFailed,
        };
        Fault::new(code, error.to_string())
    }
}

/// Calls whose arguments are what a client sent, as it was sent, be it for a request or for a load.
const CLIENTS_OWN: [&str; 8] = [
    "engine_generate",
    "stream.generate",
    "tokenizer.tokenize",
    "tokenizer.detokenize",
    "embed.embed",
    "models.load",
    "memory.estimate",
    "batch.create",
];

/// Why a call into a running engine failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The engine returned a code.
    #[error("{call} failed with {code}{}", reason(message.as_ref()))]
    Failed {
        /// As returned; an unknown one counts as `ERR_INTERNAL`.
        code: Code,
        /// What the engine gave to `set_error` during the call.
        message: Option<String>,
        /// Which function.
        call: &'static str,
    },
    /// The engine broke the contract: what it returned cannot be used.
    #[error("the engine misbehaved in {call}: {what}")]
    Misbehaved {
        /// Which function.
        call: &'static str,
        /// What was wrong.
        what: String,
    },
}

impl EngineError {
    /// The engine does not offer the function.
    pub(crate) fn unsupported(call: &'static str) -> Self {
        Self::Failed {
            code: ERR_UNSUPPORTED,
            message: Some("the engine does not offer this function".to_owned()),
            call,
        }
    }

    /// The host refuses to pass something on.
    pub(crate) fn invalid(call: &'static str, message: impl Into<String>) -> Self {
        Self::Failed { code: ERR_INVALID_ARGUMENT, message: Some(message.into()), call }
    }

    pub(crate) fn misbehaved(call: &'static str, what: impl Into<String>) -> Self {
        Self::Misbehaved { call, what: what.into() }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> EngineFaultKind {
        let Self::Failed { code, call, .. } = self else { return EngineFaultKind::Misbehaved };
        match *code {
            ERR_INVALID_ARGUMENT if CLIENTS_OWN.contains(call) => EngineFaultKind::InvalidInput,
            ERR_OOM_VRAM => EngineFaultKind::OomVram,
            ERR_OOM_RAM => EngineFaultKind::OomRam,
            ERR_MODEL_CORRUPT => EngineFaultKind::ModelCorrupt,
            ERR_TIMEOUT => EngineFaultKind::Timeout,
            ERR_CANCELLED => EngineFaultKind::Cancelled,
            ERR_UNSUPPORTED => EngineFaultKind::Unsupported,
            ERR_LOAD_FAILED => EngineFaultKind::LoadFailed,
            ERR_INVALID_ARGUMENT => EngineFaultKind::InvalidArgument,
            ERR_NOT_FOUND => EngineFaultKind::NotFound,
            ERR_CACHE_FULL => EngineFaultKind::CacheFull,
            ERR_DEVICE_LOST => EngineFaultKind::DeviceLost,
            _ => EngineFaultKind::Internal,
        }
    }

    /// Which function of the ABI failed.
    pub const fn call(&self) -> &'static str {
        match self {
            Self::Failed { call, .. } | Self::Misbehaved { call, .. } => call,
        }
    }
}

impl From<EngineError> for EngineFault {
    fn from(error: EngineError) -> Self {
        let (kind, call) = (error.kind(), error.call());
        let message = match error {
            EngineError::Failed { code, message: Some(message), .. } if code.name().is_some() => message,
            EngineError::Failed { code, message, .. } => format!("{code}{}", reason(message.as_ref())),
            EngineError::Misbehaved { what, .. } => format!("the engine misbehaved: {what}"),
        };
        EngineFault { kind, message, call }
    }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Self {
        EngineFault::from(error).into()
    }
}

fn reason(message: Option<&String>) -> String {
    message.map(|message| format!(": {message}")).unwrap_or_default()
}
