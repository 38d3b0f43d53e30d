//! Runs each check in a process of its own, and says what that process died of.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bench::Bench;
use crate::check::{CHECKS, Check, Finding, Outcome, Status, Stop};
use crate::{Subject, raw};

/// Lines of calls that are shown of a check whose process died.
const SHOWN_CALLS: usize = 24;
/// Characters of what a process said before it died.
const LONGEST_WORDS: usize = 240;
/// So many times its deadline a check has where its threads wait for a processor instead of running.
const MOST_PATIENCE: u32 = 10;
/// What sanitizers begin their words with.
const SANITIZERS: [&str; 2] = ["Sanitizer: ", ": runtime error: "];
/// Some of them end with a line that names what and where; UndefinedBehaviorSanitizer names no more than the kind.
const SUMMARY: &str = "SUMMARY: ";
/// What stands in the first line of a panic: the second has its message, and the last ones a backtrace.
const PANICS: &str = " panicked at ";

/// What keeps checks from being run at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No check has such a name.
    #[error("no check is called {0:?}, and no group of them")]
    UnknownCheck(String),
    /// A process could not be started, or its report not be read.
    #[error("{what}: {source}")]
    Process {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A check panicked: a defect of this crate.
    #[error("the check {check} itself failed: {words}")]
    Broken {
        /// Which.
        check: &'static str,
        /// Its words.
        words: String,
    },
}

/// Which checks, and for how long each.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Names of checks or of groups of them; empty: all.
    pub names: Vec<String>,
    /// A check that makes no further call for so long hangs.
    pub deadline: Duration,
}

/// What a process is told.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    subject: Subject,
    check: String,
    report: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// Runs checks on an engine. `program` and its arguments start a process that calls [`child`] with the one
/// argument that is added to them. `observer` is told each outcome, and ends the run with `Break`.
pub fn run(
    subject: &Subject,
    selection: &Selection,
    program: &[OsString],
    observer: &mut dyn FnMut(&Outcome) -> ControlFlow<()>,
) -> Result<Vec<Outcome>, RunError> {
    let all = || CHECKS.iter().copied().flatten();
    let is_meant = |check: &Check, name: &str| {
        check.name == name || check.name.split_once('.').is_some_and(|(group, _)| group == name)
    };
    if let Some(unknown) = selection.names.iter().find(|name| !all().any(|check| is_meant(check, name))) {
        return Err(RunError::UnknownCheck(unknown.clone()));
    }
    let meant = |check: &Check| {
        selection.names.is_empty() || selection.names.iter().any(|name| is_meant(check, name))
    };
    let mut outcomes: Vec<Outcome> = Vec::new();
    for check in all().filter(|check| meant(check)) {
        let begun = Instant::now();
        let status = match check.after.iter().find_map(|ground| lacking(ground, &outcomes)) {
            Some(why) => Status::Skipped { why },
            None => in_a_process(subject, check, selection.deadline, program)?,
        };
        let outcome = Outcome { check, status, seconds: begun.elapsed().as_secs_f64() };
        let goes_on = observer(&outcome);
        outcomes.push(outcome);
        if goes_on.is_break() {
            break;
        }
    }
    Ok(outcomes)
}

/// Why nothing can be said where the check `ground` was asked before, and did not pass.
fn lacking(ground: &str, outcomes: &[Outcome]) -> Option<String> {
    match &outcomes.iter().find(|other| other.check.name == ground)?.status {
        Status::Passed => None,
        Status::Failed(_) => Some(format!("{ground} failed")),
        Status::Skipped { why } => Some(why.clone()),
    }
}

fn in_a_process(
    subject: &Subject,
    check: &'static Check,
    deadline: Duration,
    program: &[OsString],
) -> Result<Status, RunError> {
    let failed = |what: &str| {
        let what = format!("{}: {what}", check.name);
        move |source| RunError::Process { what, source }
    };
    let folder = tempfile::Builder::new()
        .prefix("llm-node-check-")
        .tempdir()
        .map_err(failed("no folder for its report"))?;
    let job = Job {
        subject: subject.clone(),
        check: check.name.to_owned(),
        report: folder.path().join("report"),
        stdout: folder.path().join("stdout"),
        stderr: folder.path().join("stderr"),
    };
    let job_file = folder.path().join("job");
    let text = serde_json::to_vec(&job).map_err(io::Error::from).map_err(failed("a path is no text"))?;
    fs::write(&job_file, text).map_err(failed("no job"))?;
    let output = |path: &Path| File::create(path).map(Stdio::from).map_err(failed("no file for its output"));
    let (name, arguments) = program
        .split_first()
        .ok_or_else(|| failed("no program")(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let mut command = Command::new(name);
    command
        .args(arguments)
        .arg(&job_file)
        .stdin(Stdio::null())
        .stdout(output(&job.stdout)?)
        .stderr(output(&job.stderr)?)
        // ggml would take over the terminate handler, and fork a debugger when it aborts.
        .env("GGML_NO_BACKTRACE", "1");
    raw::process::lead_group(&mut command);
    let mut process = command.spawn().map_err(failed("it cannot be started"))?;
    let group = process.id();
    // A busy machine makes a check slow, and only a call that does not return makes it stand still.
    let mut since = (Instant::now(), raw::process::waited(group));
    let mut told = 0;
    let mut pause = Duration::from_micros(500);
    let exited = loop {
        if let Some(exited) = process.try_wait().map_err(failed("it cannot be waited for"))? {
            break Some(exited);
        }
        let length = fs::metadata(&job.report).map_or(0, |report| report.len());
        if length > told {
            (since, told) = ((Instant::now(), raw::process::waited(group)), length);
        }
        if since.0.elapsed() > deadline {
            let waited = raw::process::waited(group).saturating_sub(since.1);
            if since.0.elapsed().saturating_sub(waited) > deadline
                || since.0.elapsed() > MOST_PATIENCE * deadline
            {
                break None;
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    // With whatever the engine has started.
    raw::process::kill_group(group);
    if exited.is_none() {
        let _ = process.kill();
        process.wait().map_err(failed("it cannot be waited for"))?;
    }
    let report = fs::read_to_string(&job.report).unwrap_or_default();
    let told = Told::of(&report);
    match (told.end, exited) {
        (Some(End::Broken { words }), _) => Err(RunError::Broken { check: check.name, words }),
        (Some(End::Of(status)), _) => Ok(status),
        // It died before it could begin: that is no word about the engine.
        (None, Some(_)) if told.calls.is_empty() => {
            let words = fs::read_to_string(&job.stderr).unwrap_or_default();
            Err(RunError::Broken { check: check.name, words: words.trim().to_owned() })
        }
        (None, exited) => {
            let words = last_words(&fs::read(&job.stderr).unwrap_or_default());
            Ok(Status::Failed(death(&told.calls, exited, deadline, words.as_deref())))
        }
    }
}

/// What a process said before it died: what a sanitizer saw, the message of a panic, or else its last line.
fn last_words(stderr: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let sanitized = lines.iter().position(|line| is_of_sanitizer(line));
    let summary = lines.iter().position(|line| line.starts_with(SUMMARY) && !line.contains("Undefined"));
    let said = match (summary.or(sanitized), lines.iter().position(|line| line.contains(PANICS))) {
        (Some(at), _) => lines[at].to_owned(),
        (None, Some(at)) => lines[at..].iter().take(2).copied().collect::<Vec<_>>().join(" "),
        (None, None) => (*lines.last()?).to_owned(),
    };
    Some(said.chars().take(LONGEST_WORDS).collect())
}

fn is_of_sanitizer(line: &str) -> bool {
    SANITIZERS.iter().any(|mark| line.contains(mark))
}

fn death(
    calls: &[&str],
    exited: Option<ExitStatus>,
    deadline: Duration,
    last_words: Option<&str>,
) -> Finding {
    let within = calls.last().copied().unwrap_or("the beginning");
    let call = within.split(':').next().unwrap_or(within);
    let (seen, mend) = match exited {
        Some(_) if last_words.is_some_and(is_of_sanitizer) => (
            format!("A sanitizer ended the process in {call}."),
            "Look at the place that it names. With log_path=FILE among its options the whole report is in FILE.PID."
                .to_owned(),
        ),
        None => (
            format!("{call} did not return within {} s.", deadline.as_secs_f64()),
            format!("Look what {call} waits for: a lock that it holds already, a thread that has ended."),
        ),
        Some(status) => match raw::process::signal_of(status) {
            Some(signal) => (
                format!("The process died of signal {signal} in {call}."),
                format!("Run this check under a debugger or with -fsanitize=address, and look at {call}."),
            ),
            None => (
                format!("The engine ended the process with {status} in {call}."),
                "Return a code: an engine never calls exit or abort.".to_owned(),
            ),
        },
    };
    let seen = last_words.map_or_else(|| seen.clone(), |words| format!("{seen} Its last words: {words}"));
    let from = calls.len().saturating_sub(SHOWN_CALLS);
    Finding { seen, mend: Some(mend), script: calls[from..].iter().map(|call| (*call).to_owned()).collect() }
}

/// What stands in a report.
struct Told<'r> {
    calls: Vec<&'r str>,
    end: Option<End>,
}

#[derive(Serialize, Deserialize)]
enum End {
    Of(Status),
    Broken { words: String },
}

impl<'r> Told<'r> {
    fn of(report: &'r str) -> Self {
        let mut told = Self { calls: Vec::new(), end: None };
        for line in report.lines() {
            match line.split_once(' ') {
                Some(("call", call)) => told.calls.push(call),
                Some(("begin", _)) => told.calls.clear(),
                Some(("end", end)) => told.end = serde_json::from_str(end).ok(),
                _ => {}
            }
        }
        told
    }
}

/// A report that is being written: each line is there before the call that it announces.
#[derive(Clone)]
pub(crate) struct Trail(Arc<Mutex<File>>);

impl Trail {
    /// The call that is about to be made: its name, and after a colon with what.
    pub(crate) fn call(&self, call: &str) {
        self.line("call", call);
    }

    /// What was called before is of no interest any more.
    pub(crate) fn begin(&self) {
        self.line("begin", "-");
    }

    fn line(&self, kind: &str, text: &str) {
        let mut line = String::with_capacity(text.len() + 8);
        let _ = writeln!(line, "{kind} {text}");
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

/// The whole life of a process that [`run`] starts: runs the check that the file `job` names, and ends the
/// process. Nothing of the engine runs after that: no static destructor, no handler of `atexit`.
pub fn child(job: &Path) -> ! {
    raw::process::end(match work(job) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}: {error}", job.display());
            2
        }
    })
}

fn work(job: &Path) -> io::Result<()> {
    let job: Job = serde_json::from_slice(&fs::read(job)?)?;
    let trail = Trail(Arc::new(Mutex::new(File::create(&job.report)?)));
    let check = Check::named(&job.check).ok_or_else(|| io::Error::other("no such check"))?;
    let bench = Bench::new(&job.subject, trail.clone(), job.stdout, job.stderr);
    let end = match catch_unwind(AssertUnwindSafe(|| (check.ask)(&bench))) {
        Ok(Ok(())) => End::Of(Status::Passed),
        Ok(Err(Stop::Finding(finding))) => End::Of(Status::Failed(finding)),
        Ok(Err(Stop::Skip(why))) => End::Of(Status::Skipped { why }),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
            End::Broken { words: words.unwrap_or_default() }
        }
    };
    trail.line("end", &serde_json::to_string(&end)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_ones_that_tell_most() {
        let panic =
            "\nthread 'a' (9) panicked at src/lib.rs:5:1:\nindex out of bounds\nstack backtrace:\n  0: x\n";
        let told = "thread 'a' (9) panicked at src/lib.rs:5:1: index out of bounds";
        assert_eq!(last_words(panic.as_bytes()).as_deref(), Some(told));
        let sanitizer = format!("noise\n==9==ERROR: AddressSanitizer: heap-use-after-free\n{panic}");
        let told = "==9==ERROR: AddressSanitizer: heap-use-after-free";
        assert_eq!(last_words(sanitizer.as_bytes()).as_deref(), Some(told));
        let told = "SUMMARY: ThreadSanitizer: data race engine.c:7 in step";
        assert_eq!(last_words(format!("{sanitizer}{told}\n====\n").as_bytes()).as_deref(), Some(told));
        assert_eq!(last_words(b"one\n two\n\n").as_deref(), Some("two"));
        assert_eq!(last_words(b"\n"), None);
        assert!(is_of_sanitizer("engine.c:12:3: runtime error: signed integer overflow"));
        assert!(!is_of_sanitizer("fatal runtime error: Rust cannot catch foreign exceptions, aborting"));
    }
}
