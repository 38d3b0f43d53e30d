//! The child process: a greeting, then a verdict, or a model until the node says stop.
//!
//! The reader owns the receiving side of the socket from the very start and does nothing else, so that the
//! worker ends the moment its node is gone, even while the engine hangs. The outbox writes. This one, the
//! control thread, opens the engine, takes requests and cancellations. The intake's threads tokenise what is
//! long. The scheduler steps. The watch sees that no call of the engine hangs.
//!
//! Whoever starts a worker sets `GGML_NO_BACKTRACE=1` in its environment: engines built on ggml then
//! neither install a terminate handler nor fork a debugger. It cannot be set here, where threads may
//! run already.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::Duration,
};

use interprocess::local_socket::{Stream, traits::Stream as _};
use llm_node_core::{
    error::{ErrorCode, Fault},
    event::Event,
    session::Occupancy,
    shape::Sizing,
};
use llm_node_host::Watch;
use llm_node_wire::{
    endpoint,
    frame::{FrameError, FrameReader},
    message::{EngineAddress, FromWorker, LoadPlan, PROTOCOL_VERSION, ToWorker},
};

use crate::{
    engine::{Engine, EngineSettings},
    model::RunningModel,
    outbox::Outbox,
    report::{Report, Reporter},
    sandbox::{self, Sandbox, leave, leave_with_helpers},
    sending::Sending,
};

/// Exit codes of a worker.
pub mod exit {
    /// All went well: the verdict is given, or the node said stop.
    pub const DONE: i32 = 0;
    /// The model could not be loaded; the node has been told why.
    pub const LOAD_FAILED: i32 = 10;
    /// There is no node at the endpoint.
    pub const NO_NODE: i32 = 11;
    /// The node is gone.
    pub const ORPHANED: i32 = 12;
    /// The node sent what is not a message, or stopped reading.
    pub const PROTOCOL: i32 = 13;
    /// The engine is of no more use: device lost, or contract broken.
    pub const ENGINE_LOST: i32 = 14;
}

/// Log severities of the ABI.
const DEBUG: u8 = 0;
const INFO: u8 = 1;
const WARNING: u8 = 2;
const ERROR: u8 = 3;

/// How often the calls of an engine that serves are looked at, and how busy it is.
const LOOK: Duration = Duration::from_millis(250);
/// How often the node is told that somebody looked, whatever was seen: one time in so many.
const BEAT: u32 = 4;

enum Input {
    Message(Box<ToWorker>),
    Garbled(FrameError),
    Lost(Fault),
}

/// Be a worker: connects to the node at `endpoint`, greets it with `secret`, and serves until it is
/// done. Gives the exit code, one of [`exit`]; the process should end with it at once, without
/// running destructors of an engine that may still be mapped. When the node disappears the process
/// ends from within.
pub fn run_worker(endpoint: &str, secret: String) -> i32 {
    sandbox::close_inherited_sockets();
    let Ok(name) = endpoint::name(endpoint) else { return exit::NO_NODE };
    let Ok(socket) = Stream::connect(name) else { return exit::NO_NODE };
    let Ok((waiting, direct)) = endpoint::receive_pipe(&socket).and_then(Sending::pair) else {
        return exit::NO_NODE;
    };
    // The way to the node is made, and there is one thread: see there.
    let sandbox = sandbox::apply();
    let (sender, inputs) = mpsc::channel();
    let reading = sender.clone();
    let reader = thread::Builder::new().name("reader".into()).spawn(move || read(socket, &reading));
    let Ok(outbox) = Outbox::start(waiting, direct, || leave(exit::PROTOCOL)) else {
        return exit::NO_NODE;
    };
    if reader.is_err() {
        return exit::NO_NODE;
    }
    outbox.send(FromWorker::Hello { protocol: PROTOCOL_VERSION, secret });
    // There is one only if somebody embeds a worker in a program of their own; then it is theirs.
    if log::set_boxed_logger(Box::new(LogToNode(outbox.clone()))).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    match sandbox {
        Ok(Sandbox::Applied) => log(&outbox, DEBUG, "the engine is shut in"),
        Ok(Sandbox::Unsupported) => log(&outbox, DEBUG, "no sandbox here: the engine is not shut in"),
        Err(error) => log(&outbox, WARNING, &error),
    }
    let worker = Worker { outbox, sender, inputs, is_driver_asked: Arc::default() };
    let code = worker.work();
    worker.outbox.flush();
    code
}

/// The reader thread.
fn read(socket: Stream, inputs: &Sender<Input>) {
    let mut reader = FrameReader::new(socket);
    loop {
        let input = match reader.read() {
            Ok(message) => Input::Message(Box::new(message)),
            Err(error @ (FrameError::Malformed(_) | FrameError::TooLarge { .. })) => Input::Garbled(error),
            Err(_) => leave_with_helpers(exit::ORPHANED),
        };
        // Once garbled there is nothing more to say, but the end must still be seen.
        let _ = inputs.send(input);
    }
}

fn no_thread(error: &io::Error) -> Fault {
    Fault::new(ErrorCode::Internal, format!("no thread for the model: {error}"))
}

fn log(outbox: &Outbox, severity: u8, message: &(impl ToString + ?Sized)) {
    outbox.send(FromWorker::Log { severity, message: message.to_string() });
}

/// Ends the process. No shutdown: it would call into an engine that is known to be broken.
fn give_up(outbox: &Outbox, fault: &Fault) -> ! {
    log(outbox, ERROR, fault);
    outbox.flush();
    leave(exit::ENGINE_LOST)
}

/// Tells the node that the process is alive, and how busy when that changes, and ends it once a call of the engine
/// has not returned for so long (0: never), until what it gives is dropped. A thread of its own: the control
/// thread makes calls itself.
fn watch(
    outbox: Outbox,
    timeout_seconds: u32,
    occupancy: impl Fn() -> Occupancy + Send + 'static,
) -> io::Result<Sender<()>> {
    let (watching, over) = mpsc::channel();
    thread::Builder::new().name("watch".into()).spawn(move || {
        let mut calls = Watch::default();
        let mut told = None;
        for look in 1_u32.. {
            if over.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let now = occupancy();
            if told != Some(now) {
                told = Some(now);
                outbox.send(FromWorker::Busy(now));
            }
            if !look.is_multiple_of(BEAT) {
                continue;
            }
            let longest = calls.longest();
            outbox.send(FromWorker::Beat { call_seconds: longest.map_or(0, |(_, seconds)| seconds) });
            if let Some((call, seconds)) = longest
                && timeout_seconds > 0
                && seconds > timeout_seconds
            {
                // A hung call cannot be cancelled, only left behind with its process.
                let message = format!("{call} did not return within {timeout_seconds} s");
                give_up(&outbox, &Fault::new(ErrorCode::Timeout, message));
            }
        }
    })?;
    Ok(watching)
}

struct Worker {
    outbox: Outbox,
    sender: Sender<Input>,
    inputs: Receiver<Input>,
    is_driver_asked: Arc<AtomicBool>,
}

impl Worker {
    fn work(&self) -> i32 {
        loop {
            match self.next() {
                Ok(ToWorker::Probe(address)) => return self.probe(&address),
                Ok(ToWorker::List(address)) => return self.list(&address),
                Ok(ToWorker::Load(plan)) => return self.load(&plan),
                Ok(ToWorker::Stop) => return exit::DONE,
                Ok(other) => self.too_early(&other),
                Err(code) => return code,
            }
        }
    }

    /// The next message; or the exit code, where there is none.
    fn next(&self) -> Result<ToWorker, i32> {
        self.inputs.recv().map_or(Err(exit::ORPHANED), |input| self.message(input))
    }

    fn message(&self, input: Input) -> Result<ToWorker, i32> {
        match input {
            Input::Message(message) => Ok(*message),
            Input::Garbled(error) => {
                log(&self.outbox, ERROR, &format!("the node sent what is not a message: {error}"));
                Err(exit::PROTOCOL)
            }
            Input::Lost(fault) => give_up(&self.outbox, &fault),
        }
    }

    fn probe(&self, address: &EngineAddress) -> i32 {
        let stages = Arc::new(Stages::new(self.outbox.clone()));
        let verdict = Engine::inspect(address, Arc::new(move |call| stages.begin(call)));
        self.outbox.send(FromWorker::Verdict(verdict));
        exit::DONE
    }

    fn list(&self, address: &EngineAddress) -> i32 {
        let stages = Arc::new(Stages::new(self.outbox.clone()));
        let opened =
            Engine::open(address, &EngineSettings::default(), Arc::new(move |call| stages.begin(call)));
        match opened.map_err(|refusal| refusal.fault).and_then(|engine| engine.devices()) {
            Ok(devices) => {
                self.outbox.send(FromWorker::Devices { number: 0, devices });
                exit::DONE
            }
            Err(fault) => {
                self.outbox.send(FromWorker::LoadFailed(fault));
                exit::LOAD_FAILED
            }
        }
    }

    fn load(&self, plan: &LoadPlan) -> i32 {
        let stages = Arc::new(Stages::new(self.outbox.clone()));
        let observer = Arc::clone(&stages);
        let observer = Arc::new(move |call| observer.begin(call));
        let opened = Engine::open(&plan.engine, &EngineSettings::from(plan), observer);
        // The engine goes last, after the node has heard: a shutdown may hang.
        match &opened {
            Ok(engine) => self.load_and_serve(engine, plan, &stages),
            Err(refusal) => Err(refusal.fault.clone()),
        }
        .unwrap_or_else(|fault| {
            self.outbox.send(FromWorker::LoadFailed(fault));
            exit::LOAD_FAILED
        })
    }

    fn load_and_serve(&self, engine: &Engine, plan: &LoadPlan, stages: &Arc<Stages>) -> Result<i32, Fault> {
        self.outbox.send(FromWorker::Estimated(engine.estimate(plan)?));
        let shape = loop {
            match self.next() {
                Ok(ToWorker::Proceed(shape)) => break shape,
                Ok(ToWorker::Size(Sizing { shape, .. })) => {
                    self.outbox.send(FromWorker::Sized(engine.size(plan, shape)));
                }
                Ok(ToWorker::Stop) => return Ok(exit::DONE),
                Ok(other) => self.too_early(&other),
                Err(code) => return Ok(code),
            }
        };
        let mut percent = None;
        let model = engine.load(plan, shape, &mut |fraction| {
            // A load may report a thousand times; nobody looks that closely.
            let now = (fraction.clamp(0.0, 1.0) * 100.0) as u8;
            if percent.replace(now) != Some(now) {
                self.outbox.send(FromWorker::Progress(fraction));
            }
        })?;
        let facts = model.facts().clone();
        let stage = model.serving_stage();
        stages.making(false, stage);
        let running = model.start(plan.scheduling, self.reporter()).map_err(|error| no_thread(&error))?;
        let running = Arc::new(running);
        let occupancy = running.occupancy();
        // First, so that whoever hears of a loaded model can see its cache.
        self.outbox.send(FromWorker::Busy(occupancy()));
        self.outbox.send(FromWorker::Ready(facts));
        let watching = watch(self.outbox.clone(), plan.step_timeout_seconds, occupancy)
            .map_err(|error| no_thread(&error))?;
        let code = self.serve(&running, stages, stage);
        drop(watching);
        stages.serving.store(false, Ordering::Relaxed);
        running.stop();
        Ok(code)
    }

    /// In a thread of its own: an estimate may read the file's header and its vocabulary.
    fn size(&self, model: &Arc<RunningModel>, sizing: Sizing) {
        let (outbox, model) = (self.outbox.clone(), Arc::clone(model));
        let sizing = thread::Builder::new().name("size".into()).spawn(move || {
            outbox.send(FromWorker::Sized(model.estimate(sizing)));
        });
        if let Err(error) = sizing {
            self.outbox.send(FromWorker::Sized(Err(no_thread(&error))));
        }
    }

    /// In a thread of its own: a driver may take its time. As long as it does, it is not asked again.
    fn devices(&self, model: &Arc<RunningModel>, number: u64) {
        let (outbox, model, is_asked) =
            (self.outbox.clone(), Arc::clone(model), Arc::clone(&self.is_driver_asked));
        if is_asked.swap(true, Ordering::Relaxed) {
            return;
        }
        let asking = thread::Builder::new().name("devices".into()).spawn(move || {
            let devices = model.devices();
            is_asked.store(false, Ordering::Relaxed);
            outbox.send(FromWorker::Devices { number, devices });
        });
        if let Err(error) = asking {
            log(&self.outbox, WARNING, &format!("the devices were not looked at: {error}"));
        }
    }

    /// `stage`: the call that is to blame while requests run.
    fn serve(&self, model: &Arc<RunningModel>, stages: &Arc<Stages>, stage: &'static str) -> i32 {
        loop {
            match self.next() {
                Ok(ToWorker::Generate { id, request }) => model.submit(id, request),
                Ok(ToWorker::Cancel { id }) => model.cancel(id),
                Ok(ToWorker::Ask { id, question }) => {
                    let outbox = self.outbox.clone();
                    model.ask(question, move |answer| outbox.send(FromWorker::Answer { id, answer }));
                }
                Ok(ToWorker::Size(sizing)) => self.size(model, sizing),
                Ok(ToWorker::Devices { number }) => self.devices(model, number),
                Ok(ToWorker::Reshape(sizing)) => {
                    let (stages, serving) = (Arc::clone(stages), stage);
                    let outbox = self.outbox.clone();
                    model.reshape(
                        sizing,
                        move |is_making| stages.making(is_making, serving),
                        move |outcome| outbox.send(FromWorker::Reshaped(outcome)),
                    );
                }
                Ok(ToWorker::Drain) => model.drain(),
                Ok(ToWorker::Stop) => return exit::DONE,
                Ok(ToWorker::Probe(_) | ToWorker::List(_) | ToWorker::Load(_) | ToWorker::Proceed(_)) => {
                    log(&self.outbox, WARNING, "a worker loads one model, once");
                }
                Err(code) => return code,
            }
        }
    }

    fn reporter(&self) -> Reporter {
        let outbox = self.outbox.clone();
        let sender = self.sender.clone();
        Reporter::new(move |report| match report {
            Report::Events(events) => outbox.send(FromWorker::Step(events)),
            Report::Drained => outbox.send(FromWorker::Drained),
            // The control thread is there as long as the process is.
            Report::Lost(fault) => drop(sender.send(Input::Lost(fault))),
        })
    }

    fn too_early(&self, message: &ToWorker) {
        let fault = || Fault::new(ErrorCode::ModelLoading, "the model is still being loaded");
        match message {
            &ToWorker::Generate { id, .. } => {
                self.outbox.send(FromWorker::Step(vec![(id, Event::Failed(fault()))]));
            }
            &ToWorker::Ask { id, .. } => {
                self.outbox.send(FromWorker::Answer { id, answer: Err(fault()) });
            }
            ToWorker::Drain => self.outbox.send(FromWorker::Drained),
            _ => {}
        }
    }
}

/// Which engine call is under way, for the node to blame.
struct Stages {
    outbox: Outbox,
    /// While requests are served one stage stands for all: a frame for each call would cost more than
    /// the call.
    serving: AtomicBool,
}

impl Stages {
    fn new(outbox: Outbox) -> Self {
        Self { outbox, serving: AtomicBool::new(false) }
    }

    /// A context is being made, and each call counts; or that is over, and `stage` stands for all.
    fn making(&self, is_making: bool, stage: &str) {
        self.serving.store(false, Ordering::Relaxed);
        if !is_making {
            self.begin(stage);
            self.serving.store(true, Ordering::Relaxed);
        }
    }

    fn begin(&self, call: &str) {
        if !self.serving.load(Ordering::Relaxed) {
            self.outbox.send(FromWorker::Stage(call.to_owned()));
            // The call may crash or hang: by then the node must know which it was.
            self.outbox.flush();
        }
    }
}

/// What engines and this crate log, on its way to the node.
struct LogToNode(Outbox);

impl log::Log for LogToNode {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        let severity = match record.level() {
            log::Level::Error => ERROR,
            log::Level::Warn => WARNING,
            log::Level::Info => INFO,
            log::Level::Debug | log::Level::Trace => DEBUG,
        };
        log(&self.0, severity, record.args());
    }

    fn flush(&self) {}
}
