//! Rust's log, handed to Python's `logging`.
//!
//! A thread of its own does that: whoever logs never waits for the interpreter.

use std::{
    sync::{OnceLock, mpsc},
    time::Duration,
};

use log::{Level, LevelFilter, Metadata, Record};
use pyo3::prelude::*;

/// Where an engine in this process logs to: `engine::ID`.
const ENGINE: &str = "engine::";

enum Entry {
    Line { level: Level, name: String, message: String },
    Flush(mpsc::Sender<()>),
}

struct Forward {
    lines: mpsc::Sender<Entry>,
}

static FORWARD: OnceLock<Forward> = OnceLock::new();

/// Starts forwarding, once, and sets what is worth it: "error", "warning", "info", "debug" or "trace".
pub(crate) fn start(level: &str) {
    let level = match level.to_ascii_lowercase().as_str() {
        "off" => LevelFilter::Off,
        "critical" | "error" => LevelFilter::Error,
        "warning" | "warn" => LevelFilter::Warn,
        "debug" => LevelFilter::Debug,
        "trace" => LevelFilter::Trace,
        _ => LevelFilter::Info,
    };
    log::set_max_level(level);
    let forward = FORWARD.get_or_init(|| {
        let (lines, receiver) = mpsc::channel();
        // Without the thread nothing is forwarded, and nothing else is lost.
        let _ = std::thread::Builder::new().name("log".to_owned()).spawn(move || forward(&receiver));
        Forward { lines }
    });
    // An error means that it is set already.
    let _ = log::set_logger(forward);
}

/// What a program without a node wants to see: as much as its own logging shows, or only errors where
/// it has set none up, since a script's output is no place for an engine's remarks.
pub(crate) fn wanted(py: Python<'_>) -> PyResult<String> {
    let logging = py.import("logging")?;
    let logger = logging.call_method1("getLogger", ("llm_node",))?;
    if !logger.call_method0("hasHandlers")?.extract::<bool>()? {
        return Ok("error".to_owned());
    }
    let level = logger.call_method0("getEffectiveLevel")?;
    logging.call_method1("getLevelName", (level,))?.extract()
}

/// Waits, shortly, until all that was logged is with Python. Not to be called with the GIL held.
pub(crate) fn flush() {
    if let Some(forward) = FORWARD.get() {
        let (sender, receiver) = mpsc::channel();
        if forward.lines.send(Entry::Flush(sender)).is_ok() {
            let _ = receiver.recv_timeout(Duration::from_secs(1));
        }
    }
}

impl log::Log for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries' own chatter is not the node's.
        metadata.target().starts_with("llm_node") || metadata.target().starts_with(ENGINE)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let target = record.target().replace("::", ".");
            let name = match target.strip_prefix("llm_node_") {
                Some(own) => format!("llm_node.{own}"),
                None => format!("llm_node.{target}"),
            };
            let message = record.args().to_string();
            let _ = self.lines.send(Entry::Line { level: record.level(), name, message });
        }
    }

    fn flush(&self) {}
}

fn forward(entries: &mpsc::Receiver<Entry>) {
    while let Ok(entry) = entries.recv() {
        match entry {
            Entry::Line { level, name, message } => {
                // `None`: the interpreter is going away, and nobody reads the log any more.
                let told = Python::try_attach(|py| tell(py, level, &name, &message));
                if told.is_none() {
                    return;
                }
            }
            Entry::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
}

fn tell(py: Python<'_>, level: Level, name: &str, message: &str) {
    let number = match level {
        Level::Error => 40,
        Level::Warn => 30,
        Level::Info => 20,
        Level::Debug => 10,
        Level::Trace => 5,
    };
    let told = (|| {
        let logger = py.import("logging")?.call_method1("getLogger", (name,))?;
        logger.call_method1("log", (number, "%s", message))?;
        PyResult::Ok(())
    })();
    if let Err(error) = told {
        error.write_unraisable(py, None);
    }
}
