//! The threads that mind one worker: one reads what it says, one notices its end.
//!
//! A worker has ended when its process has, whoever may still hold an end of its pipes: an engine may have
//! forked a helper. What a worker said before its end is heard before anybody is told of the end.

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use interprocess::local_socket::Stream;
use llm_node_core::{
    error::{ErrorCode, Fault},
    event::Event,
};
use llm_node_wire::{
    endpoint::FromWorkerReader,
    frame::{FrameError, FrameReader, FrameWriter},
    message::{FromWorker, PROTOCOL_VERSION, RequestId, ToWorker},
};

use super::{
    inflight::{Outgoing, Traffic, too_large},
    process::{Process, Processes},
};
use crate::platform::Ending;

/// How long a worker may take to end once it was killed, or has closed its connection: a crash may write a
/// core dump.
pub(super) const DYING_DEADLINE: Duration = Duration::from_secs(5);
/// How long what it said before its end may take to be read: what got away from its group may hold the pipes.
pub(super) const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);

/// Takes what a worker says of itself. Called from the threads that mind it: it must not block.
pub(super) type Hear = Arc<dyn Fn(Control) + Send + Sync>;

/// What is heard of a worker beside its answers.
#[derive(Debug)]
pub(super) enum Control {
    Message(FromWorker),
    /// Nothing more comes.
    Died(Death),
}

/// What decides over a worker's end.
#[derive(Debug)]
pub(super) enum Fate {
    /// It says nothing more.
    Closed,
    /// It was killed.
    Killed,
    /// It has ended.
    Ended(Ending),
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub(super) struct Death {
    pub(super) engine: String,
    /// `None`: it only looked at the engine.
    pub(super) model: Option<String>,
    pub(super) ending: Ending,
    /// The engine call under way.
    pub(super) stage: String,
    /// It served, and nothing was asked of it.
    pub(super) is_idle: bool,
    /// Was it told to stop, or killed by us?
    pub(super) expected: bool,
    /// The last error that it logged, or what it did to the protocol.
    pub(super) complaint: Option<String>,
    /// The last lines of its log, the newest last.
    pub(super) last_lines: Vec<String>,
    /// Why it was ended as one that crashed, if it was.
    pub(super) given_up: Option<GivenUp>,
}

/// Why nothing comes of a worker any more.
#[derive(Clone, Debug)]
pub(super) enum GivenUp {
    /// Nothing was heard of it for so many seconds.
    Silent(u32),
    /// The GPU of this name is lost.
    DeviceLost(String),
}

impl Death {
    /// "Engine 'a' of model 'm' died in engine_init: signal 11 (SIGSEGV)"
    pub(super) fn describe(&self) -> String {
        let of_model = self.model.as_ref().map(|model| format!(" of model '{model}'")).unwrap_or_default();
        let who = format!("Engine '{}'{of_model}", self.engine);
        let when = if self.is_idle {
            "while nothing was asked of it".to_owned()
        } else {
            format!("in {}", self.call())
        };
        match &self.given_up {
            Some(GivenUp::Silent(seconds)) => {
                return format!("{who} stood still {when}: nothing was heard of its worker for {seconds} s");
            }
            Some(GivenUp::DeviceLost(device)) => {
                return format!("{who} was ended {when}: its GPU, {device}, is lost");
            }
            None => {}
        }
        let complaint = self.complaint.as_ref().map(|complaint| format!(": {complaint}")).unwrap_or_default();
        format!("{who} died {when}: {}{complaint}", self.ending)
    }

    /// Did the engine do something wrong, and was not ended by somebody else?
    pub(super) fn is_by_fault(&self) -> bool {
        let is_of_engine = match self.ending {
            Ending::Signal { name, .. } => {
                !matches!(name, Some("SIGKILL" | "SIGTERM" | "SIGINT" | "SIGHUP" | "SIGQUIT"))
            }
            Ending::Code(_) => true,
            Ending::Unknown => false,
        };
        is_of_engine && self.given_up.is_none()
    }

    /// The call that is to blame.
    pub(super) fn call(&self) -> &str {
        match &*self.stage {
            _ if self.is_idle => "none",
            "" => "its start",
            stage => stage,
        }
    }
}

/// Notices a worker's end, and says so to all who wait.
pub(super) struct Minding {
    pub(super) process: Arc<Process>,
    pub(super) processes: Arc<Processes>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) hear: Hear,
    pub(super) fates: mpsc::Receiver<Fate>,
    /// These hear when nothing more is to be read.
    pub(super) read_out: mpsc::Receiver<()>,
    pub(super) pumps: Vec<mpsc::Receiver<()>>,
}

impl Minding {
    pub(super) fn run(self) {
        let ending = self.ending();
        let deadline = Instant::now() + LAST_WORDS_DEADLINE;
        for read in self.pumps.iter().chain([&self.read_out]) {
            let _ = read.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let is_idle = self.traffic.owed_by(self.process.link.worker) == Some(0);
        let death = self.process.has_ended(ending, is_idle, &self.processes);
        (self.hear)(Control::Died(death));
    }

    fn ending(&self) -> Ending {
        let mut deadline: Option<Instant> = None;
        let mut killed = false;
        loop {
            let fate = match deadline {
                Some(deadline) => self.fates.recv_timeout(deadline.saturating_duration_since(Instant::now())),
                None => self.fates.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            };
            match fate {
                Ok(Fate::Ended(ending)) => return ending,
                Ok(Fate::Killed) => {
                    killed = true;
                    deadline.get_or_insert(Instant::now() + DYING_DEADLINE);
                }
                Ok(Fate::Closed) => {
                    deadline.get_or_insert(Instant::now() + DYING_DEADLINE);
                }
                // Not even a kill ends it: it is stuck in the kernel, and nobody shall wait for that.
                Err(_) if killed => return Ending::Unknown,
                Err(_) => {
                    log::warn!("{} closed its connection and went on; it is killed", self.process.who());
                    self.process.put_down();
                    killed = true;
                    deadline = Some(Instant::now() + DYING_DEADLINE);
                }
            }
        }
    }
}

/// The thread that reads from a worker.
pub(super) struct Reading {
    pub(super) process: Arc<Process>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) hear: Hear,
    /// Hears once that it is who it should be; dropped when that is not so, or nothing more is to be read.
    pub(super) greet: mpsc::Sender<()>,
    pub(super) secret: String,
    /// Dropped when nothing more is to be read.
    pub(super) read_out: mpsc::Sender<()>,
}

impl Reading {
    pub(super) fn run(self, reading_end: FromWorkerReader) {
        let mut reader = FrameReader::new(reading_end);
        if self.greeting(&mut reader) {
            self.messages(&mut reader);
        }
        drop(self.read_out);
        self.process.closed();
    }

    fn greeting(&self, reader: &mut FrameReader<FromWorkerReader>) -> bool {
        let complaint = match reader.read() {
            Ok(FromWorker::Hello { protocol, secret })
                if protocol == PROTOCOL_VERSION && secret == self.secret =>
            {
                return self.greet.send(()).is_ok();
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
            let message = reader.read();
            self.process.silence.heard();
            match message {
                Ok(FromWorker::Step(events)) => {
                    self.log_failures(&events);
                    self.traffic.step(worker, events);
                    unwritten = true;
                }
                Ok(FromWorker::Answer { id, answer }) => {
                    if let Err(fault) = &answer
                        && is_of_the_engine(fault)
                    {
                        self.log_failure(fault);
                    }
                    self.traffic.answer(worker, id, answer);
                }
                Ok(FromWorker::Beat { call_seconds }) => self.process.set_call_seconds(call_seconds),
                Ok(FromWorker::Busy(occupancy)) => self.process.set_occupancy(occupancy),
                Ok(FromWorker::Stage(stage)) => self.process.output.set_stage(stage),
                Ok(FromWorker::Progress(fraction)) => self.process.set_progress(fraction),
                Ok(FromWorker::Log { severity, message }) => self.process.output.log(severity, &message),
                Ok(message) => (self.hear)(Control::Message(message)),
                Err(error) if error.is_end() => return,
                Err(error) => return self.break_off(error.to_string()),
            }
        }
    }

    /// What went wrong with the engine is in the log, once, however many requests it ends.
    fn log_failures(&self, events: &[(RequestId, Event)]) {
        let mut last: Option<&Fault> = None;
        for (_, event) in events {
            if let Event::Failed(fault) = event
                && is_of_the_engine(fault)
                && last != Some(fault)
            {
                self.log_failure(fault);
                last = Some(fault);
            }
        }
    }

    fn log_failure(&self, fault: &Fault) {
        log::warn!("{}: a request failed: {fault}", self.process.who());
    }

    /// It does not keep to the protocol: nothing that it says can be used.
    fn break_off(&self, complaint: String) {
        self.process.output.set_complaint(complaint);
        self.process.put_down();
    }
}

/// Did the engine fail, and not the client?
fn is_of_the_engine(fault: &Fault) -> bool {
    matches!(
        fault.code,
        ErrorCode::Internal
            | ErrorCode::EngineCrashed
            | ErrorCode::LoadFailed
            | ErrorCode::Timeout
            | ErrorCode::OomVram
            | ErrorCode::OomRam
    )
}

pub(super) fn write(worker: u64, stream: Stream, outgoing: &mpsc::Receiver<Outgoing>, traffic: &Traffic) {
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
