//! The host's services: its log, and where it takes the reason of a failure.

use std::ffi::CString;
use std::sync::atomic::{AtomicPtr, Ordering};

use llm_node_abi as abi;

use crate::read;

/// One library is one engine, and has one host at a time. NULL before `engine_init` and after
/// `engine_shutdown`.
static HOST: AtomicPtr<abi::EngineHost> = AtomicPtr::new(std::ptr::null_mut());

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// For people who debug the engine.
    Debug,
    /// For the record.
    Info,
    /// Something an administrator may want to change.
    Warn,
    /// Something failed.
    Error,
}

/// Writes one message to the node's log. From any thread, until `engine_shutdown` returns; before
/// `engine_init` and after that it is dropped.
pub fn log(severity: Severity, message: &str) {
    let severity = match severity {
        Severity::Debug => abi::ENGINE_LOG_DEBUG,
        Severity::Info => abi::ENGINE_LOG_INFO,
        Severity::Warn => abi::ENGINE_LOG_WARN,
        Severity::Error => abi::ENGINE_LOG_ERROR,
    };
    let host = HOST.load(Ordering::Acquire);
    // SAFETY: the host keeps the struct alive until engine_shutdown returns, where `forget` runs.
    if let Some(log) = unsafe { read::growing(host.cast_const()) }.and_then(|table| table.log) {
        let message = terminated(message);
        // SAFETY: the host's own function, its own struct, and a terminated text that it copies.
        unsafe { log(host, severity, message.as_ptr()) };
    }
}

/// Tells the host why the call under way on this thread is about to fail.
pub(crate) fn set_error(message: &str) {
    let host = HOST.load(Ordering::Acquire);
    // SAFETY: as in `log`.
    if let Some(set_error) = unsafe { read::growing(host.cast_const()) }.and_then(|table| table.set_error) {
        let message = terminated(message);
        // SAFETY: as in `log`.
        unsafe { set_error(host, message.as_ptr()) };
    }
}

/// Is there a host to talk to?
pub(crate) fn is_there() -> bool {
    !HOST.load(Ordering::Acquire).is_null()
}

/// Uses this host from now on.
///
/// # Safety
///
/// NULL, or a struct that stays valid until [`forget`] was called.
pub(crate) unsafe fn remember(host: *const abi::EngineHost) {
    HOST.store(host.cast_mut(), Ordering::Release);
}

/// Uses no host any more.
pub(crate) fn forget() {
    HOST.store(std::ptr::null_mut(), Ordering::Release);
}

fn terminated(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}
