//! What a worker says beside its answers: its log, what it and its libraries print, and which call it is in.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    sync::{Arc, mpsc},
};

use parking_lot::Mutex;

use super::process::{Process, spawn_thread};

/// Longest line of a child's output; a longer one is cut into several.
const MAX_LINE: u64 = 8192;
/// So many lines are kept for whoever asks what a worker said before its end, and so many characters of each.
const KEPT_LINES: usize = 20;
const KEPT_CHARACTERS: usize = 500;

/// See the module.
#[derive(Debug)]
pub(super) struct Output {
    /// Stands before each of its lines in the log.
    label: String,
    stage: Mutex<String>,
    complaint: Mutex<Option<String>>,
    /// The newest last.
    last_lines: Mutex<VecDeque<String>>,
}

impl Output {
    pub(super) fn new(label: String) -> Self {
        Self { label, stage: Mutex::default(), complaint: Mutex::default(), last_lines: Mutex::default() }
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

    /// The last lines of any kind, the newest last.
    pub(super) fn last_lines(&self) -> Vec<String> {
        self.last_lines.lock().iter().cloned().collect()
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
        let mut lines = self.last_lines.lock();
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(KEPT_CHARACTERS).collect());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_long_ones_in_part() {
        let output = Output::new("a".to_owned());
        assert!(output.last_lines().is_empty());
        for number in 0..KEPT_LINES + 3 {
            output.log(1, &format!("{number}\n\n"));
        }
        output.log(1, &"\u{e9}".repeat(2 * KEPT_CHARACTERS));
        let lines = output.last_lines();
        assert_eq!((lines.len(), &*lines[0]), (KEPT_LINES, "4"));
        assert_eq!(lines[KEPT_LINES - 1], "\u{e9}".repeat(KEPT_CHARACTERS));
    }
}
