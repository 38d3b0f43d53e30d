//! Every kind of failure on the C++ side as a [`Fault`], and calls of the shim that may end in one.

use std::ffi::CStr;
use std::ptr::NonNull;

use super::log::ERRORS;
use super::shim::RawFault;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// An assertion of llama.cpp failed: the object concerned must not be used again.
    Assertion,
    /// The C++ side could not allocate.
    NoMemory,
    /// llama.cpp said no, with or without an exception.
    Refused,
}

/// Why llama.cpp did not do it, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self { kind: FaultKind::Refused, message: message.into() }
    }
}

/// Runs one function of the shim. What llama.cpp logged as errors meanwhile becomes the message where
/// the shim itself has none, and comes before the shim's own where it has.
pub(super) fn guarded<T>(call: impl FnOnce(*mut RawFault) -> T) -> (T, Option<Fault>, Vec<String>) {
    let mut raw = RawFault { code: 0, message: [0; 1020] };
    let outer = ERRORS.with(|errors| errors.replace(Some(Vec::new())));
    let result = call(&raw mut raw);
    let lines = ERRORS.with(|errors| errors.replace(outer)).unwrap_or_default();
    let kind = match raw.code {
        0 => return (result, None, lines),
        1 => FaultKind::Assertion,
        2 => FaultKind::NoMemory,
        _ => FaultKind::Refused,
    };
    // SAFETY: the shim terminates the message within its array.
    let own = unsafe { CStr::from_ptr(raw.message.as_ptr()) }.to_string_lossy().into_owned();
    let mut parts = lines.clone();
    parts.push(own);
    (result, Some(Fault { kind, message: parts.join("; ") }), lines)
}

pub(super) fn pointer<T>(
    (result, fault, lines): (*mut T, Option<Fault>, Vec<String>),
) -> Result<NonNull<T>, Fault> {
    if let Some(fault) = fault {
        return Err(fault);
    }
    NonNull::new(result).ok_or_else(|| refused(&lines))
}

pub(super) fn refused(lines: &[String]) -> Fault {
    Fault::refused(if lines.is_empty() { "llama.cpp gave no reason".to_owned() } else { lines.join("; ") })
}

/// A size, of which 0 means that it was refused.
pub(super) fn some((size, fault, lines): (usize, Option<Fault>, Vec<String>)) -> Result<usize, Fault> {
    match fault {
        Some(fault) => Err(fault),
        None if size == 0 => Err(refused(&lines)),
        None => Ok(size),
    }
}

pub(super) fn value<T>((result, fault, _): (T, Option<Fault>, Vec<String>)) -> Result<T, Fault> {
    fault.map_or(Ok(result), Err)
}
