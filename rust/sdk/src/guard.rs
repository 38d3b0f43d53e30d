//! The wall at each entry: no panic leaves it, and every failure comes with its reason.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use llm_node_abi as abi;

use crate::{Failure, Severity, host};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps panics off stderr: a library writes to the host's log. Panics outside the engine (in a test
/// that links this crate) go where they went before.
fn quiet() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.get() > 0 {
                PANIC.with_borrow_mut(|panic| *panic = Some(info.to_string()));
            } else if host::is_there() {
                host::log(Severity::Error, &info.to_string());
            } else {
                before(info);
            }
        }));
    });
}

struct Inside;

impl Inside {
    fn enter() -> Self {
        quiet();
        DEPTH.set(DEPTH.get() + 1);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

fn run<T>(call: &str, body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let inside = Inside::enter();
    let result = catch_unwind(AssertUnwindSafe(body));
    drop(inside);
    result.unwrap_or_else(|payload| {
        // Dropping a payload may panic in turn; leaking it cannot.
        std::mem::forget(payload);
        let what = PANIC.take().unwrap_or_else(|| "panicked".to_owned());
        let message = format!("{call}: {what}");
        host::log(Severity::Error, &message);
        Err(Failure::internal(message))
    })
}

/// Runs an entry that answers a code.
pub(crate) fn code(call: &str, body: impl FnOnce() -> Result<(), Failure>) -> abi::Code {
    match run(call, body) {
        Ok(()) => abi::ERR_OK,
        Err(failure) => {
            // Telling must not be able to unwind either.
            let _ = catch_unwind(AssertUnwindSafe(|| host::set_error(&failure.message)));
            if failure.code == abi::ERR_OK { abi::ERR_INTERNAL } else { failure.code }
        }
    }
}

/// Runs an entry that cannot say that it failed.
pub(crate) fn value<T>(call: &str, otherwise: T, body: impl FnOnce() -> Result<T, Failure>) -> T {
    run(call, body).unwrap_or(otherwise)
}
