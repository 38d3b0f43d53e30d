//! One worker process: how it is started, asked to end, and ended.
//!
//! Nothing here waits without a deadline, and whoever waits for the child to connect watches at the same time
//! whether it still lives. Who notices its end is in `minding`, what it says in `output`.

use std::{
    collections::HashMap,
    io::{self, Read},
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use interprocess::local_socket::{ListenerNonblockingMode, ListenerOptions, Stream, traits::Listener as _};
use llm_node_core::{
    error::{ErrorCode, Fault},
    session::Occupancy,
};
use llm_node_wire::{endpoint, message::ToWorker};
use parking_lot::{Condvar, Mutex};

use super::{
    environment::{self, Sight},
    inflight::{Link, Outgoing, Traffic},
    minding::{DYING_DEADLINE, Death, Fate, GivenUp, Hear, LAST_WORDS_DEADLINE, Minding, Reading, write},
    output::{Output, pump},
    silence::Silence,
};
use crate::platform::{self, Ending};

/// Between two looks at a child that is to connect.
const GLANCE: Duration = Duration::from_millis(5);

/// Workers that are none of the fleet's have numbers from here on.
const FIRST_PROBE: u64 = 1 << 63;

/// For so long the number of a worker that stood still names nobody else after its end.
const NUMBER_STAYS: Duration = Duration::from_secs(2);

/// What a new process needs.
pub(super) struct Launch<'a> {
    pub(super) command: &'a [String],
    pub(super) start_timeout: Duration,
    /// Variables that engines get beside the usual ones.
    pub(super) engine_env: &'a [String],
    /// The GPUs that it sees.
    pub(super) sight: Sight,
    /// Id of the engine that it is to open.
    pub(super) engine: String,
    /// The model that it is to load.
    pub(super) model: Option<String>,
    /// Its number.
    pub(super) worker: u64,
    /// Hears what it says of itself, and of its end.
    pub(super) hear: Hear,
}

/// All processes that run, so that none outlives the node.
#[derive(Debug, Default)]
pub(super) struct Processes {
    probes: AtomicU64,
    known: Mutex<Known>,
    closed: OnceLock<Fault>,
}

#[derive(Debug, Default)]
struct Known {
    running: HashMap<u64, Arc<Process>>,
    /// What is to have a process soon; true: it is to be ended as soon as it has.
    awaited: HashMap<u64, bool>,
}

/// A worker process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) link: Link,
    pub(super) output: Output,
    pub(super) silence: Silence,
    engine: String,
    model: Option<String>,
    pid: u32,
    child: Mutex<Child>,
    /// Its exit status was taken: its number may be somebody else's by now. Changed while `child` is locked.
    is_reaped: AtomicBool,
    fates: mpsc::Sender<Fate>,
    /// In thousandths.
    progress: AtomicU32,
    /// Seconds that the engine's call under way had taken at the last beat.
    call_seconds: AtomicU32,
    occupancy: Mutex<Option<Occupancy>>,
    expected: AtomicBool,
    given_up: Mutex<Option<GivenUp>>,
    death: Mutex<Option<Death>>,
    died: Condvar,
}

impl Processes {
    /// Refuses new processes from now on, for the reason that was given first.
    pub(super) fn close(&self, because: Fault) {
        let _ = self.closed.set(because);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get().is_some()
    }

    /// Why nothing new is taken, if that is so.
    pub(super) fn refuse_if_closed(&self) -> Result<(), Fault> {
        self.closed.get().map_or(Ok(()), |because| Err(because.clone()))
    }

    pub(super) fn all(&self) -> Vec<Arc<Process>> {
        self.known.lock().running.values().cloned().collect()
    }

    pub(super) fn get(&self, worker: u64) -> Option<Arc<Process>> {
        self.known.lock().running.get(&worker).cloned()
    }

    /// A number for a worker that is none of the fleet's.
    pub(super) fn number_of_probe(&self) -> u64 {
        FIRST_PROBE + self.probes.fetch_add(1, Ordering::Relaxed)
    }

    /// The worker is about to be started.
    pub(super) fn expect(&self, worker: u64) {
        self.known.lock().awaited.insert(worker, false);
    }

    /// Ends a worker at once, also one that is expected.
    pub(super) fn kill(&self, worker: u64) {
        let mut known = self.known.lock();
        if let Some(is_unwanted) = known.awaited.get_mut(&worker) {
            *is_unwanted = true;
        }
        let Some(process) = known.running.get(&worker).cloned() else { return };
        drop(known);
        if process.is_expected_to_die() {
            log::warn!("{} did not stop in time in {}, and is killed", process.who(), process.output.stage());
        }
        process.kill();
    }

    /// Starts a worker and waits until it has introduced itself.
    pub(super) fn start(
        self: &Arc<Self>,
        launch: Launch<'_>,
        traffic: &Arc<Traffic>,
    ) -> Result<Arc<Process>, Fault> {
        let worker = launch.worker;
        let started = self.start_process(launch, traffic);
        self.known.lock().awaited.remove(&worker);
        started
    }

    fn start_process(
        self: &Arc<Self>,
        launch: Launch<'_>,
        traffic: &Arc<Traffic>,
    ) -> Result<Arc<Process>, Fault> {
        self.refuse_if_closed()?;
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
        let (fate, fates) = mpsc::channel();
        let (greet, greeted) = mpsc::channel();
        let (read_out, read) = mpsc::channel();
        let link = Link { worker: launch.worker, outbox };
        let process = self.adopt(child, launch.engine, launch.model, link, fate);
        let minding = Minding {
            process: Arc::clone(&process),
            processes: Arc::clone(self),
            traffic: Arc::clone(traffic),
            hear: Arc::clone(&launch.hear),
            fates,
            read_out: read,
            pumps: output.into_iter().flatten().map(|pipe| pump(Arc::clone(&process), pipe)).collect(),
        };
        spawn_thread("worker-minder", move || minding.run());
        let waiting = Arc::clone(&process);
        spawn_thread("worker-end", move || waiting.await_end());
        let start_failed = |fault: Fault| {
            process.kill();
            process.wait(Instant::now() + DYING_DEADLINE + LAST_WORDS_DEADLINE);
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
        let reading = Reading {
            process: Arc::clone(&process),
            traffic: Arc::clone(traffic),
            hear: launch.hear,
            greet,
            secret,
            read_out,
        };
        spawn_thread("worker-reader", move || {
            // Tokens do not wait behind a load on the same core.
            llm_node_cpu::ask_for_short_slices();
            reading.run(reading_end);
        });
        let traffic = Arc::clone(traffic);
        let worker = process.link.worker;
        spawn_thread("worker-writer", move || write(worker, stream, &outgoing, &traffic));
        match greeted.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(()) => Ok(process),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(start_failed(did_not_start(launch.start_timeout))),
            // Nothing more is read from it: it has died, or does so now.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                if !process.wait(deadline) {
                    return Err(start_failed(did_not_start(launch.start_timeout)));
                }
                let died = |death: Death| Fault::new(ErrorCode::EngineCrashed, death.describe());
                Err(process.death().map_or_else(|| did_not_start(launch.start_timeout), died))
            }
        }
    }

    fn spawn(launch: &Launch<'_>, meeting: &Meeting) -> io::Result<Child> {
        let (program, arguments) = launch
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program is named"))?;
        let mut command = Command::new(program);
        environment::prepare(&mut command, launch.engine_env, &launch.sight);
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

    fn adopt(
        &self,
        child: Child,
        engine: String,
        model: Option<String>,
        link: Link,
        fates: mpsc::Sender<Fate>,
    ) -> Arc<Process> {
        let worker = link.worker;
        let process = Arc::new(Process {
            link,
            output: Output::new(engine.clone()),
            silence: Silence::default(),
            engine,
            model,
            pid: child.id(),
            child: Mutex::new(child),
            is_reaped: AtomicBool::new(false),
            fates,
            progress: AtomicU32::new(0),
            call_seconds: AtomicU32::new(0),
            occupancy: Mutex::default(),
            expected: AtomicBool::new(false),
            given_up: Mutex::default(),
            death: Mutex::default(),
            died: Condvar::new(),
        });
        let is_unwanted = {
            let mut known = self.known.lock();
            known.running.insert(worker, Arc::clone(&process));
            known.awaited.get(&worker) == Some(&true)
        };
        if is_unwanted || self.is_closed() {
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

    /// Does it only look at an engine?
    pub(super) fn is_probe(&self) -> bool {
        self.model.is_none()
    }

    /// For the log: "engine 'a' of model 'm'".
    pub(super) fn who(&self) -> String {
        match &self.model {
            Some(model) => format!("engine '{}' of model '{model}'", self.engine),
            None => format!("engine '{}'", self.engine),
        }
    }

    /// How far the load is, 0 to 1.
    pub(super) fn progress(&self) -> f32 {
        self.progress.load(Ordering::Relaxed) as f32 / 1000.0
    }

    pub(super) fn set_progress(&self, fraction: f32) {
        self.progress.store((fraction.clamp(0.0, 1.0) * 1000.0) as u32, Ordering::Relaxed);
    }

    /// For how many seconds the engine's call under way had been running at the last beat.
    pub(super) fn call_seconds(&self) -> u32 {
        self.call_seconds.load(Ordering::Relaxed)
    }

    pub(super) fn set_call_seconds(&self, seconds: u32) {
        self.call_seconds.store(seconds, Ordering::Relaxed);
    }

    /// How busy it said that it was last.
    pub(super) fn occupancy(&self) -> Option<Occupancy> {
        *self.occupancy.lock()
    }

    pub(super) fn set_occupancy(&self, occupancy: Occupancy) {
        *self.occupancy.lock() = Some(occupancy);
    }

    /// How it ended, once it has.
    pub(super) fn death(&self) -> Option<Death> {
        self.death.lock().clone()
    }

    /// Its death is our doing from now on.
    pub(super) fn expect_death(&self) {
        self.expected.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_expected_to_die(&self) -> bool {
        self.expected.load(Ordering::SeqCst)
    }

    /// Ends it at once, because we want it to.
    pub(super) fn kill(&self) {
        self.expect_death();
        self.put_down();
    }

    /// Ends it at once, because nothing comes of it any more.
    pub(super) fn give_up(&self, because: GivenUp) {
        self.given_up.lock().get_or_insert(because);
        self.put_down();
    }

    /// Ends it at once, with all that it has started.
    pub(super) fn put_down(&self) {
        let mut child = self.child.lock();
        if !self.is_reaped.load(Ordering::Relaxed) {
            platform::kill_group(&mut child);
            let _ = self.fates.send(Fate::Killed);
        }
    }

    /// It says nothing more.
    pub(super) fn closed(&self) {
        let _ = self.fates.send(Fate::Closed);
    }

    /// Waits for the end of the process, and ends what it has started.
    fn await_end(&self) {
        let ending = platform::await_end(&self.child);
        platform::kill_group(&mut self.child.lock());
        let _ = self.fates.send(Fate::Ended(ending));
        if self.given_up.lock().is_some() {
            // Somebody else may have seen it stand still, and be about to end it by its number.
            thread::sleep(NUMBER_STAYS);
        }
        let mut child = self.child.lock();
        // It has ended: this does not wait.
        let _ = child.wait();
        self.is_reaped.store(true, Ordering::Relaxed);
    }

    /// Asks it to end.
    pub(super) fn stop(&self) {
        self.expect_death();
        self.link.send(ToWorker::Stop);
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
            if let Some(death) = self.death() {
                let words = self.output.last_lines().pop().unwrap_or_default();
                return Err(Fault::new(
                    ErrorCode::EngineCrashed,
                    format!("A worker ended before it connected: {}: {words}", death.ending),
                ));
            }
            if Instant::now() >= deadline {
                return Err(did_not_start(timeout));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Says to all who wait that it is over. Its last lines are in the log by then.
    pub(super) fn has_ended(&self, ending: Ending, is_idle: bool, processes: &Processes) -> Death {
        let death = Death {
            engine: self.engine.clone(),
            model: self.model.clone(),
            ending,
            stage: self.output.stage(),
            is_idle,
            expected: self.is_expected_to_die(),
            complaint: self.output.complaint(),
            last_lines: self.output.last_lines(),
            given_up: self.given_up.lock().clone(),
        };
        let _ = self.link.outbox.send(Outgoing::Close);
        processes.known.lock().running.remove(&self.link.worker);
        *self.death.lock() = Some(death.clone());
        self.died.notify_all();
        death
    }
}

pub(super) fn spawn_thread(name: &str, body: impl FnOnce() + Send + 'static) {
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
