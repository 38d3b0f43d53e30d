//! One worker process, from its start to its end.
//!
//! Owns the socket, the child's output and the watch over it. Nothing here waits without a deadline,
//! and whoever waits for the child to connect watches at the same time whether it still lives.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use interprocess::local_socket::{ListenerNonblockingMode, ListenerOptions, Stream, traits::Listener as _};
use llm_node_core::error::{ErrorCode, Fault};
use llm_node_wire::{
    endpoint::{self, FromWorkerReader},
    frame::{FrameError, FrameReader, FrameWriter},
    message::{FromWorker, PROTOCOL_VERSION, ToWorker},
};
use parking_lot::{Condvar, Mutex};

use super::{
    environment,
    inflight::{Link, Outgoing, Traffic, too_large},
};
use crate::platform::{self, Ending};

/// Lines of a child's output that are kept for the log of its crash.
const TAIL: usize = 50;
/// Longest line of a child's output; a longer one is cut into several.
const MAX_LINE: u64 = 8192;
/// How long a child may take to end once it has closed its socket: a crash may write a core dump.
const LAST_BREATH: Duration = Duration::from_secs(5);
/// Between two looks at a child that is to connect or to end.
const GLANCE: Duration = Duration::from_millis(5);

/// What a load, a probe or an unload hears from its worker.
#[derive(Debug)]
pub(super) enum Control {
    Message(FromWorker),
    /// Nothing more comes.
    Died(Death),
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub(super) struct Death {
    pub(super) ending: Ending,
    /// The engine call under way.
    pub(super) stage: String,
    /// Was it told to stop, or killed by us?
    pub(super) expected: bool,
    /// The last error that it logged, or what it did to the protocol.
    pub(super) complaint: Option<String>,
}

impl Death {
    /// "signal 11 (SIGSEGV) during engine_init"
    pub(super) fn describe(&self) -> String {
        let during = if self.stage.is_empty() { "its start" } else { &self.stage };
        let complaint = self.complaint.as_ref().map(|complaint| format!(": {complaint}")).unwrap_or_default();
        format!("{} during {during}{complaint}", self.ending)
    }
}

/// What a new process needs.
pub(super) struct Launch<'a> {
    pub(super) command: &'a [String],
    /// Variables that engines get beside the usual ones.
    pub(super) engine_env: &'a [String],
    pub(super) start_timeout: Duration,
    /// Prefix of its lines in the log.
    pub(super) label: String,
    /// Decides what the worker's streams are told when it dies.
    pub(super) on_death: Box<dyn FnOnce(&Death) -> Fault + Send>,
}

/// All processes that run, so that none outlives the node.
#[derive(Debug, Default)]
pub(super) struct Processes {
    next: AtomicU64,
    running: Mutex<HashMap<u64, Arc<Process>>>,
    closed: AtomicBool,
}

/// A worker process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) link: Link,
    label: String,
    pid: u32,
    child: Mutex<Child>,
    stage: Mutex<String>,
    /// In thousandths.
    progress: AtomicU32,
    complaint: Mutex<Option<String>>,
    tail: Mutex<VecDeque<String>>,
    expected: AtomicBool,
    death: Mutex<Option<Death>>,
    died: Condvar,
}

impl Processes {
    /// Refuses new processes from now on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn all(&self) -> Vec<Arc<Process>> {
        self.running.lock().values().cloned().collect()
    }

    /// Starts a worker and waits until it has introduced itself.
    pub(super) fn start(
        self: &Arc<Self>,
        launch: Launch<'_>,
        traffic: &Arc<Traffic>,
    ) -> Result<(Arc<Process>, mpsc::Receiver<Control>), Fault> {
        if self.is_closed() {
            return Err(shutting_down());
        }
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Fault::new(ErrorCode::Internal, format!("A worker could not be started: {what}: {error}"))
        };
        let meeting = Meeting::new().map_err(|error| failed("its socket", &error))?;
        let deadline = Instant::now() + launch.start_timeout;
        let mut child = Self::spawn(&launch, &meeting)
            .map_err(|error| failed(launch.command.first().map_or("", String::as_str), &error))?;
        let output = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        let (outbox, outgoing) = mpsc::channel();
        let process = self.adopt(child, launch.label, outbox);
        let pumps: Vec<mpsc::Receiver<()>> =
            output.into_iter().flatten().map(|pipe| pump(Arc::clone(&process), pipe)).collect();
        let start_failed = |fault: Fault| {
            process.kill();
            process.finish(&pumps, self);
            fault
        };
        let stream = match process.accept(&meeting, deadline, launch.start_timeout) {
            Ok(stream) => stream,
            Err(fault) => return Err(start_failed(fault)),
        };
        // Both have what they need: the socket's name can go.
        let secret = meeting.secret.clone();
        drop(meeting);
        let reading_end = match endpoint::send_pipe(&stream) {
            Ok(reading_end) => reading_end,
            Err(error) => return Err(start_failed(failed("its socket", &error))),
        };
        let (control, controls) = mpsc::channel();
        let reading = Reading {
            process: Arc::clone(&process),
            processes: Arc::clone(self),
            traffic: Arc::clone(traffic),
            control,
            secret,
            pumps,
            on_death: launch.on_death,
        };
        spawn_thread("worker-reader", move || reading.run(reading_end));
        let traffic = Arc::clone(traffic);
        let worker = process.link.worker;
        spawn_thread("worker-writer", move || write(worker, stream, &outgoing, &traffic));
        // The reader lets nothing through but a proper introduction.
        match controls.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Control::Message(FromWorker::Hello { .. })) => Ok((process, controls)),
            Ok(Control::Died(death)) => {
                Err(Fault::new(ErrorCode::EngineCrashed, format!("A worker died: {}", death.describe())))
            }
            _ => {
                process.kill();
                Err(did_not_start(launch.start_timeout))
            }
        }
    }

    fn spawn(launch: &Launch<'_>, meeting: &Meeting) -> io::Result<Child> {
        let (program, arguments) = launch
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program is named"))?;
        let mut command = Command::new(program);
        environment::prepare(&mut command, launch.engine_env);
        command
            .args(arguments)
            .arg(&meeting.endpoint)
            .env("LLM_NODE_WORKER_SECRET", &meeting.secret)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        platform::detach_from_terminal(&mut command);
        command.spawn()
    }

    fn adopt(&self, child: Child, label: String, outbox: mpsc::Sender<Outgoing>) -> Arc<Process> {
        let worker = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let process = Arc::new(Process {
            link: Link { worker, outbox },
            label,
            pid: child.id(),
            child: Mutex::new(child),
            stage: Mutex::default(),
            progress: AtomicU32::new(0),
            complaint: Mutex::default(),
            tail: Mutex::default(),
            expected: AtomicBool::new(false),
            death: Mutex::default(),
            died: Condvar::new(),
        });
        self.running.lock().insert(worker, Arc::clone(&process));
        if self.is_closed() {
            // Shutdown may have looked at the list before this one was in it.
            process.kill();
        }
        process
    }
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// The engine call that began last.
    pub(super) fn stage(&self) -> String {
        self.stage.lock().clone()
    }

    /// How far the load is, 0 to 1.
    pub(super) fn progress(&self) -> f32 {
        self.progress.load(Ordering::Relaxed) as f32 / 1000.0
    }

    /// How it ended, once it has.
    pub(super) fn death(&self) -> Option<Death> {
        self.death.lock().clone()
    }

    /// Its death is our doing from now on.
    pub(super) fn expect_death(&self) {
        self.expected.store(true, Ordering::SeqCst);
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        self.expect_death();
        // An error means that it has ended already.
        let _ = self.child.lock().kill();
    }

    /// Asks it to end, and ends it where it has not by the deadline. True: it went by itself.
    pub(super) fn stop(&self, deadline: Instant) -> bool {
        self.expect_death();
        self.link.send(ToWorker::Stop);
        if self.wait(deadline) {
            return true;
        }
        log::warn!("[{}] did not stop in time during {}: killed", self.label, self.stage());
        self.kill();
        self.wait(Instant::now() + LAST_BREATH);
        false
    }

    /// Waits for its end. False: the deadline came first.
    pub(super) fn wait(&self, deadline: Instant) -> bool {
        let mut death = self.death.lock();
        while death.is_none() {
            if self.died.wait_until(&mut death, deadline).timed_out() {
                return death.is_some();
            }
        }
        true
    }

    fn accept(&self, meeting: &Meeting, deadline: Instant, timeout: Duration) -> Result<Stream, Fault> {
        loop {
            match meeting.listener.accept() {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    return Err(Fault::new(ErrorCode::Internal, format!("A worker cannot connect: {error}")));
                }
            }
            if let Ok(Some(status)) = self.child.lock().try_wait() {
                thread::sleep(Duration::from_millis(50)); // its last words are on their way
                let words = self.tail.lock().back().cloned().unwrap_or_default();
                return Err(Fault::new(
                    ErrorCode::EngineCrashed,
                    format!("A worker ended before it connected: {}: {words}", platform::ending(status)),
                ));
            }
            if Instant::now() >= deadline {
                return Err(did_not_start(timeout));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Waits for the exit status of a child that has closed its socket, or was killed.
    fn reap(&self) -> Ending {
        let deadline = Instant::now() + LAST_BREATH;
        let mut killed = false;
        loop {
            match self.child.lock().try_wait() {
                Ok(Some(status)) if killed => {
                    log::warn!("[{}] closed its connection and went on; killed", self.label);
                    return platform::ending(status);
                }
                Ok(Some(status)) => return platform::ending(status),
                Ok(None) => {}
                Err(_) => return Ending::Unknown,
            }
            if Instant::now() >= deadline {
                if killed {
                    return Ending::Unknown; // not even a kill ends it: stuck in the kernel
                }
                let _ = self.child.lock().kill();
                killed = true;
            }
            thread::sleep(GLANCE);
        }
    }

    /// Says to all who wait that it is over. Its last lines are in the log by then.
    fn finish(&self, pumps: &[mpsc::Receiver<()>], processes: &Processes) -> Death {
        let ending = self.reap();
        // A pipe stays open while somebody else has it; then its last lines may come later.
        let patience = Instant::now() + Duration::from_millis(500);
        for pump in pumps {
            let _ = pump.recv_timeout(patience.saturating_duration_since(Instant::now()));
        }
        let death = Death {
            ending,
            stage: self.stage(),
            expected: self.expected.load(Ordering::SeqCst),
            complaint: self.complaint.lock().clone(),
        };
        let _ = self.link.outbox.send(Outgoing::Close);
        processes.running.lock().remove(&self.link.worker);
        if !death.expected && death.ending != Ending::Code(0) {
            log::error!("[{}] {}", self.label, death.describe());
            for line in self.tail.lock().iter() {
                log::error!("[{}] | {line}", self.label);
            }
        }
        *self.death.lock() = Some(death.clone());
        self.died.notify_all();
        death
    }

    fn keep(&self, line: &str) {
        let mut tail = self.tail.lock();
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
    }

    fn log(&self, severity: u8, message: &str) {
        let level = match severity {
            0 => log::Level::Debug,
            1 => log::Level::Info,
            2 => log::Level::Warn,
            _ => log::Level::Error,
        };
        for line in message.lines().filter(|line| !line.trim().is_empty()) {
            log::log!(level, "[{}] {line}", self.label);
            self.keep(line);
        }
        if level == log::Level::Error {
            *self.complaint.lock() = message.lines().next_back().map(str::to_owned);
        }
    }
}

/// The thread that reads from a worker, and notices its end.
struct Reading {
    process: Arc<Process>,
    processes: Arc<Processes>,
    traffic: Arc<Traffic>,
    control: mpsc::Sender<Control>,
    secret: String,
    pumps: Vec<mpsc::Receiver<()>>,
    on_death: Box<dyn FnOnce(&Death) -> Fault + Send>,
}

impl Reading {
    fn run(self, reading_end: FromWorkerReader) {
        let mut reader = FrameReader::new(reading_end);
        if self.greeting(&mut reader) {
            self.messages(&mut reader);
        }
        drop(reader);
        let death = self.process.finish(&self.pumps, &self.processes);
        let fault = (self.on_death)(&death);
        self.traffic.end_of_worker(self.process.link.worker, &fault);
        let _ = self.control.send(Control::Died(death));
    }

    fn greeting(&self, reader: &mut FrameReader<FromWorkerReader>) -> bool {
        let complaint = match reader.read() {
            Ok(FromWorker::Hello { protocol, secret })
                if protocol == PROTOCOL_VERSION && secret == self.secret =>
            {
                let hello = FromWorker::Hello { protocol, secret: String::new() };
                return self.control.send(Control::Message(hello)).is_ok();
            }
            Ok(FromWorker::Hello { protocol, .. }) if protocol != PROTOCOL_VERSION => {
                format!("it speaks version {protocol} of the protocol, not {PROTOCOL_VERSION}")
            }
            Ok(_) => "it did not introduce itself".to_owned(),
            Err(error) if error.is_end() => return false,
            Err(error) => error.to_string(),
        };
        self.break_off(complaint);
        false
    }

    fn messages(&self, reader: &mut FrameReader<FromWorkerReader>) {
        let worker = self.process.link.worker;
        let mut unwritten = false;
        loop {
            // Steps that came while the last were written go out together.
            if unwritten && !reader.has_another() {
                self.traffic.write();
                unwritten = false;
            }
            match reader.read() {
                Ok(FromWorker::Step(events)) => {
                    self.traffic.step(worker, events);
                    unwritten = true;
                }
                Ok(FromWorker::Answer { id, answer }) => self.traffic.answer(worker, id, answer),
                Ok(FromWorker::Beat { .. }) => {}
                Ok(FromWorker::Stage(stage)) => *self.process.stage.lock() = stage,
                Ok(FromWorker::Progress(fraction)) => {
                    let thousandths = (fraction.clamp(0.0, 1.0) * 1000.0) as u32;
                    self.process.progress.store(thousandths, Ordering::Relaxed);
                }
                Ok(FromWorker::Log { severity, message }) => self.process.log(severity, &message),
                Ok(message) => {
                    let _ = self.control.send(Control::Message(message));
                }
                Err(error) if error.is_end() => return,
                Err(error) => return self.break_off(error.to_string()),
            }
        }
    }

    /// It does not keep to the protocol: nothing that it says can be used.
    fn break_off(&self, complaint: String) {
        *self.process.complaint.lock() = Some(complaint);
        let _ = self.process.child.lock().kill();
    }
}

fn write(worker: u64, stream: Stream, outgoing: &mpsc::Receiver<Outgoing>, traffic: &Traffic) {
    let mut writer = FrameWriter::new(stream);
    while let Ok(Outgoing::Message(message)) = outgoing.recv() {
        match (writer.write(message.as_ref()), *message) {
            (Ok(()), _) => {}
            (
                Err(FrameError::TooLarge { .. } | FrameError::Malformed(_)),
                ToWorker::Generate { id, .. } | ToWorker::Ask { id, .. },
            ) => traffic.fail(worker, id, &too_large()),
            (Err(FrameError::TooLarge { .. } | FrameError::Malformed(_)), other) => {
                log::error!("a message could not be written: {other:?}");
            }
            // Gone; the reading thread sees it too.
            (Err(_), _) => return,
        }
    }
}

/// Reads a child's output into the log; the receiver hears when there is no more.
fn pump(process: Arc<Process>, pipe: Box<dyn Read + Send>) -> mpsc::Receiver<()> {
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
                log::info!("[{}] {text}", process.label);
                process.keep(text);
            }
        }
    });
    receiver
}

fn spawn_thread(name: &str, body: impl FnOnce() + Send + 'static) {
    // Where no thread can be had, the sender that `body` owns is dropped, and whoever waits sees that.
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(body) {
        log::error!("no thread for {name}: {error}");
    }
}

/// Where node and worker meet, for as long as that takes.
struct Meeting {
    endpoint: String,
    secret: String,
    // Before its folder, which it lies in.
    listener: interprocess::local_socket::Listener,
    _folder: Option<tempfile::TempDir>,
}

impl Meeting {
    fn new() -> io::Result<Self> {
        let secret = random_text()?;
        let (endpoint, folder) = if cfg!(windows) {
            (format!("llm-node-{}", random_text()?), None)
        } else {
            // Only its own user may enter a folder that `tempfile` makes.
            let folder = tempfile::Builder::new().prefix("llm-node-").tempdir()?;
            let path = folder.path().join("worker");
            let path = path.to_str().ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "the temporary folder's name is not UTF-8")
            })?;
            (path.to_owned(), Some(folder))
        };
        let listener = ListenerOptions::new()
            .name(endpoint::name(&endpoint)?)
            .nonblocking(ListenerNonblockingMode::Accept)
            .create_sync()?;
        Ok(Self { endpoint, secret, listener, _folder: folder })
    }
}

fn random_text() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u128::from_ne_bytes(bytes).to_string())
}

fn did_not_start(timeout: Duration) -> Fault {
    Fault::new(
        ErrorCode::Timeout,
        format!("A worker process did not start within {} s", timeout.as_secs_f64()),
    )
}

pub(super) fn shutting_down() -> Fault {
    Fault::new(ErrorCode::ShuttingDown, "The node is shutting down")
}
