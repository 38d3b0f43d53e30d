//! What the host offers an engine: a log, and a place to say why a call is about to fail.
//!
//! These functions are entered from any thread of the engine. They copy and return: they never block,
//! and nothing that goes wrong in them unwinds into C.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use llm_node_abi::{
    Code, ENGINE_ABI_VERSION, ENGINE_LOG_DEBUG, ENGINE_LOG_ERROR, ENGINE_LOG_INFO, EngineHost, Growing,
};

use crate::calls;
use crate::error::EngineError;
use crate::readable;

/// Longest message that is kept whole; a longer one is dropped for a note that it was too long.
const MESSAGE_LIMIT: usize = 64 << 10;

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => c"",
};

thread_local! {
    /// What the engine gave to `set_error` during the call that is running on this thread.
    static REASON: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The host as an engine sees it, with the engine's name for the log.
pub struct HostServices {
    table: EngineHost,
    log_target: String,
}

// SAFETY: never written after it was made; the pointers in it are to statics and to itself.
unsafe impl Sync for HostServices {}
// SAFETY: as above.
unsafe impl Send for HostServices {}

impl HostServices {
    /// One for each engine that is initialised. Leaked on purpose: a thread that an engine has failed
    /// to end still logs after `engine_shutdown`, and must then not find freed memory.
    pub fn new(engine_id: &str) -> &'static Self {
        let services = Box::leak(Box::new(Self {
            table: EngineHost {
                struct_size: EngineHost::SIZE,
                abi_version: ENGINE_ABI_VERSION,
                name: c"llm-node".as_ptr(),
                version: VERSION.as_ptr(),
                private_data: std::ptr::null_mut(),
                log: Some(log),
                set_error: Some(set_error),
                get_extension: Some(get_extension),
            },
            log_target: format!("engine::{engine_id}"),
        }));
        services.table.private_data = (&raw mut *services).cast();
        services
    }

    /// What an engine gets in `EngineConfig.host`.
    pub const fn table(&'static self) -> *const EngineHost {
        &raw const self.table
    }
}

/// Runs one call of an engine and attaches what it said to the code that it returns.
pub fn checked(call: &'static str, function: impl FnOnce() -> Code) -> Result<(), EngineError> {
    REASON.with_borrow_mut(|reason| *reason = None);
    let code = calls::under_way(call, function);
    let message = REASON.with_borrow_mut(Option::take);
    if code.is_ok() { Ok(()) } else { Err(EngineError::Failed { code, message, call }) }
}

fn message(address: *const c_char) -> Option<String> {
    // SAFETY: the engine hands over a zero-terminated text that is valid during the call.
    unsafe { readable::lossy_text(address, MESSAGE_LIMIT) }
        .or_else(|| (!address.is_null()).then(|| "(a message that cannot be read)".to_owned()))
}

unsafe extern "C" fn log(host: *const EngineHost, severity: i32, text: *const c_char) {
    // Unwinding into C would end the process, and a logger is foreign code to this crate.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let level = match severity {
            ..=ENGINE_LOG_DEBUG => log::Level::Debug,
            ENGINE_LOG_INFO => log::Level::Info,
            ENGINE_LOG_ERROR.. => log::Level::Error,
            _ => log::Level::Warn,
        };
        if host.is_null() || level > log::max_level() {
            return;
        }
        // SAFETY: `host` is what `HostServices::table` gave out, since an engine has no other.
        let private = unsafe { (*host).private_data };
        // SAFETY: it was set to the services around the table, which are never freed.
        let Some(services) = (unsafe { private.cast::<HostServices>().as_ref() }) else { return };
        if let Some(text) = message(text) {
            log::log!(target: &services.log_target, level, "{}", text.trim_end());
        }
    }));
}

unsafe extern "C" fn set_error(_: *const EngineHost, text: *const c_char) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        let text = message(text);
        // A thread that is ending has no place any more; then the reason is lost.
        let _ = REASON.try_with(|reason| {
            if let Ok(mut reason) = reason.try_borrow_mut() {
                *reason = text;
            }
        });
    }));
}

unsafe extern "C" fn get_extension(_: *const EngineHost, _: *const c_char) -> *const c_void {
    std::ptr::null()
}
