//! What an engine logs reaches the node's log under the engine's name. Its own program, since a logger
//! is set once.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Mutex;

use log::{LevelFilter, Log, Metadata, Record};
use support::*;

struct Lines(Mutex<Vec<String>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.lock().unwrap().push(format!("{} {}: {}", record.level(), record.target(), record.args()));
        // Foreign code may do anything; it must not unwind into the engine.
        assert!(!record.args().to_string().contains("the toy is up"), "on purpose");
    }

    fn flush(&self) {}
}

#[test]
fn a_line_of_an_engine() {
    static LINES: Lines = Lines(Mutex::new(Vec::new()));
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Debug);
    drop(loaded("log", &[]));
    log::set_max_level(LevelFilter::Info);
    drop(loaded("log_quiet", &[]));
    assert_eq!(*LINES.0.lock().unwrap(), ["DEBUG engine::fake: the toy is up"]);
}
