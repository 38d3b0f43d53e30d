//! What a worker says beside its answers: its log, what it and its libraries print, and which call it is in.

use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, mpsc},
};

use parking_lot::Mutex;

use super::process::{Process, spawn_thread};

/// Longest line of a child's output; a longer one is cut into several.
const MAX_LINE: u64 = 8192;

/// See the module.
#[derive(Debug)]
pub(super) struct Output {
    /// Stands before each of its lines in the log.
    label: String,
    stage: Mutex<String>,
    complaint: Mutex<Option<String>>,
    last_line: Mutex<String>,
}

impl Output {
    pub(super) fn new(label: String) -> Self {
        Self { label, stage: Mutex::default(), complaint: Mutex::default(), last_line: Mutex::default() }
    }

    /// The engine call that began last.
    pub(super) fn stage(&self) -> String {
        self.stage.lock().clone()
    }

    pub(super) fn set_stage(&self, stage: String) {
        *self.stage.lock() = stage;
    }

    /// The last error that it logged, or what it did to the protocol.
    pub(super) fn complaint(&self) -> Option<String> {
        self.complaint.lock().clone()
    }

    pub(super) fn set_complaint(&self, complaint: String) {
        *self.complaint.lock() = Some(complaint);
    }

    /// The last line of any kind.
    pub(super) fn last_line(&self) -> String {
        self.last_line.lock().clone()
    }

    /// A message of the engine, or of the worker.
    pub(super) fn log(&self, severity: u8, message: &str) {
        let level = match severity {
            0 => log::Level::Debug,
            1 => log::Level::Info,
            2 => log::Level::Warn,
            _ => log::Level::Error,
        };
        for line in message.lines().filter(|line| !line.trim().is_empty()) {
            self.line(level, line);
        }
        if level == log::Level::Error
            && let Some(line) = message.lines().next_back()
        {
            self.set_complaint(line.to_owned());
        }
    }

    fn line(&self, level: log::Level, line: &str) {
        log::log!(level, "[{}] {line}", self.label);
        line.clone_into(&mut self.last_line.lock());
    }
}

/// Reads a child's output into the log; the receiver hears when there is no more.
pub(super) fn pump(process: Arc<Process>, pipe: Box<dyn Read + Send>) -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    spawn_thread("worker-output", move || {
        let _ended = sender;
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            if !text.is_empty() {
                process.output.line(log::Level::Info, text);
            }
        }
    });
    receiver
}
