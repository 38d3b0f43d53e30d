//! llama.cpp's log and its assertions, on their way to the host.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};
use std::panic::catch_unwind;
use std::ptr;
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

use super::shim::shim_install;

/// How loud a line of llama.cpp's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

static LOG: OnceLock<fn(Level, &str)> = OnceLock::new();

thread_local! {
    /// A line that has not ended yet.
    static LINE: RefCell<(Option<Level>, String)> = const { RefCell::new((None, String::new())) };
    /// Error lines of the guarded call under way on this thread.
    pub(super) static ERRORS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    /// The call under way on this thread only finds something out: nobody can act on its warnings.
    pub(super) static IS_TRIAL: Cell<bool> = const { Cell::new(false) };
}

/// Does llama.cpp warn of what is as it is meant to be? It takes a pool for the context of one sequence. How long
/// that may be the host knows, and a pool of several is longer.
fn is_usual(warning: &str) -> bool {
    warning.contains("possible training context overflow")
}

extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // A panic must not reach C; there is nobody to tell.
    let _ = catch_unwind(|| {
        if text.is_null() {
            return;
        }
        // SAFETY: llama.cpp passes a terminated string that lives as long as the call.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        LINE.with_borrow_mut(|(line_level, line)| {
            if level != sys::GGML_LOG_LEVEL_CONT {
                line.clear();
                *line_level = match level {
                    sys::GGML_LOG_LEVEL_INFO => Some(Level::Info),
                    sys::GGML_LOG_LEVEL_WARN if IS_TRIAL.get() => Some(Level::Info),
                    sys::GGML_LOG_LEVEL_WARN => Some(Level::Warn),
                    sys::GGML_LOG_LEVEL_ERROR => Some(Level::Error),
                    _ => None,
                };
            }
            let Some(level) = *line_level else { return };
            line.push_str(&text);
            if line.ends_with('\n') {
                let done = std::mem::take(line);
                let done = done.trim_end();
                let level = if is_usual(done) { Level::Info } else { level };
                if level == Level::Error {
                    ERRORS.with_borrow_mut(|errors| {
                        if let Some(errors) = errors {
                            errors.push(done.to_owned());
                        }
                    });
                }
                if let (Some(log), false) = (LOG.get(), done.is_empty()) {
                    log(level, done);
                }
            }
        });
    });
}

extern "C" fn on_abort(message: *const c_char) {
    let _ = catch_unwind(|| {
        if let (Some(log), false) = (LOG.get(), message.is_null()) {
            // SAFETY: ggml_abort passes its own terminated buffer.
            let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
            log(Level::Error, &format!("llama.cpp ends the process: {message}"));
        }
    });
}

/// Routes the log, and assertions, before anything else of llama.cpp runs. The first `log` stays.
pub(crate) fn start(log: fn(Level, &str)) {
    let _ = LOG.set(log);
    // SAFETY: both callbacks are valid for the life of the process and need no user data.
    unsafe {
        sys::llama_log_set(Some(on_log), ptr::null_mut());
        shim_install(on_abort);
    }
}
