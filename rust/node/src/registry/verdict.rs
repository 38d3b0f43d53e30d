//! What became of a candidate: usable, or one of the typed refusals, each with its path.

use std::path::PathBuf;

use llm_node_core::error::{ErrorCode, Fault};
use llm_node_wire::message::{EngineFacts, EngineRefusal};
use serde::Serialize;

use super::manifest::{Claim, EngineManifest};
use crate::platform::Ending;

/// Where a wrong ABI version was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbiPlace {
    /// In `manifest.json`.
    Manifest,
    /// In `EngineInfo`.
    Binary,
}

/// Why a candidate cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The file is not there, or cannot be read.
    #[error("{}: cannot be read: {reason}", path.display())]
    ManifestUnreadable {
        /// The manifest.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A field is missing or wrong, or it is no JSON object.
    #[error("{}:{} {reason}", path.display(), quoted(field))]
    ManifestInvalid {
        /// The manifest.
        path: PathBuf,
        /// Which field; empty: the whole file.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Everybody may write it, so anybody's code would run.
    #[error("{}: writable by every user of this machine; take that right away (chmod o-w)", path.display())]
    WritableByOthers {
        /// The file or folder.
        path: PathBuf,
    },
    /// The same engine was found before.
    #[error("engine '{id}' was found before, in {}", kept.display())]
    DuplicateEngine {
        /// The id that both have, for the same backend.
        id: String,
        /// Folder of the one that is used.
        kept: PathBuf,
        /// Folder of this one.
        refused: PathBuf,
    },
    /// It works with newer drivers alone.
    #[error("it needs NVIDIA's driver {needed} or a newer one; this machine has {driver}. Update the driver")]
    DriverTooOld {
        /// By the manifest.
        needed: String,
        /// What there is.
        driver: String,
    },
    /// Built for another ABI.
    #[error("ABI version mismatch: expected {expected}, got {got}")]
    AbiMismatch {
        /// The host's.
        expected: u32,
        /// The engine's.
        got: u32,
        /// Who said so.
        place: AbiPlace,
        /// The manifest or the binary.
        path: PathBuf,
    },
    /// The manifest names a library that is not there.
    #[error("{}: no such file", path.display())]
    BinaryNotFound {
        /// The library.
        path: PathBuf,
    },
    /// The engine killed the process that looked at it.
    #[error("{}: {signal} during {during}", path.display())]
    Crashed {
        /// The library.
        path: PathBuf,
        /// How the process ended.
        signal: Ending,
        /// The call under way.
        during: String,
    },
    /// The engine did not answer.
    #[error("{}: {during} did not return within {seconds} s", path.display())]
    TimedOut {
        /// The library.
        path: PathBuf,
        /// The call under way.
        during: String,
        /// The deadline.
        seconds: f64,
    },
    /// What the process that looked at it found: WrongArch, LoadFailed, MissingSymbol, NullInfo,
    /// IdMismatch, InitFailed, or a wrong ABI version in the binary.
    #[error("{}", .0.fault.message)]
    Probed(EngineRefusal),
    /// Nothing can be said of the engine: the process that was to look at it could not be started.
    #[error("the engine could not be looked at: {0}")]
    NotProbed(Fault),
}

fn quoted(field: &str) -> String {
    if field.is_empty() { String::new() } else { format!(" `{field}`") }
}

impl Refusal {
    /// The name of the refusal.
    pub fn kind(&self) -> &str {
        match self {
            Refusal::ManifestUnreadable { .. } => "ManifestUnreadable",
            Refusal::ManifestInvalid { .. } => "ManifestInvalid",
            Refusal::WritableByOthers { .. } => "WritableByOthers",
            Refusal::DuplicateEngine { .. } => "DuplicateEngine",
            Refusal::DriverTooOld { .. } => "DriverTooOld",
            Refusal::AbiMismatch { .. } => "AbiMismatch",
            Refusal::BinaryNotFound { .. } => "BinaryNotFound",
            Refusal::Crashed { .. } => "Crashed",
            Refusal::TimedOut { .. } => "TimedOut",
            Refusal::Probed(refusal) => &refusal.kind,
            Refusal::NotProbed(_) => "NotProbed",
        }
    }

    /// The code that a client would see for it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Refusal::AbiMismatch { .. } => ErrorCode::AbiMismatch,
            Refusal::Crashed { .. } => ErrorCode::EngineCrashed,
            Refusal::TimedOut { .. } => ErrorCode::Timeout,
            Refusal::Probed(refusal) => refusal.fault.code,
            Refusal::NotProbed(fault) => fault.code,
            _ => ErrorCode::LoadFailed,
        }
    }

    /// Was it refused for its ABI version?
    pub fn is_abi_mismatch(&self) -> bool {
        self.code() == ErrorCode::AbiMismatch
    }

    /// With words on libraries that are missing, where it is that the library could not be opened.
    #[must_use]
    pub fn with_missing(self, missing: &[String]) -> Self {
        match self {
            Refusal::Probed(mut refusal) if refusal.kind == "LoadFailed" && !missing.is_empty() => {
                refusal.fault.message = format!("{}; {}", refusal.fault.message, missing.join("; "));
                Refusal::Probed(refusal)
            }
            other => other,
        }
    }

    /// May a second look find something else although no file changed?
    pub fn is_passing(&self) -> bool {
        matches!(self, Refusal::NotProbed(_))
    }
}

/// A folder that holds, or ought to hold, an engine.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The manifest's id; the folder's name where there is no manifest to read.
    pub id: String,
    /// The manifest's backend; the folder's name where there is no manifest to read.
    pub gpu_backend: String,
    /// Folder of the manifest.
    pub directory: PathBuf,
    /// What it says, where it can be read.
    pub manifest: Option<EngineManifest>,
    /// Libraries that packages have brought for it.
    pub libraries: Vec<PathBuf>,
    /// What became of it.
    pub verdict: Result<EngineFacts, Refusal>,
}

impl Candidate {
    /// Can models be loaded with it?
    pub fn is_usable(&self) -> bool {
        self.verdict.is_ok()
    }
}

/// One line of `/api/engines`.
#[derive(Clone, Debug, Serialize)]
pub struct EngineRow {
    id: String,
    version: Option<String>,
    gpu_backend: String,
    architectures: Vec<String>,
    formats: Vec<String>,
    /// "loaded" or "rejected".
    status: &'static str,
    abi_version: Option<String>,
    path: String,
    extensions: Vec<String>,
    modalities: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conformance: Option<Claim>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RefusalRow>,
}

#[derive(Clone, Debug, Serialize)]
struct RefusalRow {
    code: ErrorCode,
    message: String,
    kind: String,
}

impl From<&Candidate> for EngineRow {
    fn from(candidate: &Candidate) -> Self {
        let manifest = candidate.manifest.as_ref();
        EngineRow {
            id: candidate.id.clone(),
            version: manifest.map(|manifest| manifest.version.clone()),
            gpu_backend: candidate.gpu_backend.clone(),
            architectures: manifest.map(|manifest| manifest.architectures.clone()).unwrap_or_default(),
            formats: manifest.map(|manifest| manifest.formats.clone()).unwrap_or_default(),
            status: if candidate.is_usable() { "loaded" } else { "rejected" },
            abi_version: manifest.map(|manifest| manifest.abi_version.clone()),
            path: candidate.directory.display().to_string(),
            extensions: candidate.verdict.as_ref().map(|facts| facts.extensions.clone()).unwrap_or_default(),
            modalities: vec!["text"],
            conformance: manifest.and_then(|manifest| manifest.conformance.clone()),
            error: candidate.verdict.as_ref().err().map(|refusal| RefusalRow {
                code: refusal.code(),
                message: refusal.to_string(),
                kind: refusal.kind().to_owned(),
            }),
        }
    }
}
