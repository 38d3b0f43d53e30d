//! One model's place: what state its worker is in, and what whoever asks for it is told.
//!
//! Starting, Ready, Draining, Backoff or Failed. Owns the single flight (however many ask for a model, one of
//! them loads it, and no thread waits for the others) and the pause after a crash.

use std::{
    fmt, mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use llm_node_core::error::{ErrorCode, Fault};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    inflight::{Reply, Traffic},
    load::LoadRequest,
    minding::{Control, Death},
    process::Process,
    wishes::{Setup, Wishes},
};
use crate::{devices::Room, platform::Ending};

/// After the first crash; doubled by each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Never longer than this.
const LONGEST_BACKOFF: Duration = Duration::from_mins(1);
/// A worker that lived so long was well; the count of crashes begins anew.
const HEALTHY_AFTER: Duration = Duration::from_mins(1);

/// What a load came to, as clients see it.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    /// The model's own name, also where the client used another.
    pub model_id: String,
    /// "loaded"
    pub status: &'static str,
    /// The engine's id.
    pub engine: String,
    /// The engine's version.
    pub engine_version: String,
    /// The engine's backend.
    pub gpu_backend: String,
    /// Names of the devices that it lies on.
    pub devices: Vec<String>,
    /// What it takes on each device, in bytes, with a `total`.
    pub memory: Vec<Value>,
    /// How long the load took, in milliseconds.
    pub load_ms: u64,
    /// All that the worker says of the model.
    pub facts: llm_node_wire::message::ModelFacts,
}

/// A worker that answers requests.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Arc<Process>,
    pub(super) loaded: Loaded,
    pub(super) setup: Setup,
    /// Given back only after the process has ended.
    pub(super) room: Mutex<Option<Room>>,
    pub(super) controls: Mutex<std::sync::mpsc::Receiver<Control>>,
    pub(super) since: Instant,
}

enum State {
    /// Nothing is loaded.
    Idle,
    Starting(Starting),
    Ready(Arc<Running>),
    Draining(Arc<Running>),
    /// It crashed; the next attempt waits.
    Backoff {
        until: Instant,
        fault: Fault,
    },
    /// The last load failed; the next request tries again.
    Failed(Fault),
}

/// A load is under way.
struct Starting {
    /// Once there is one.
    process: Option<Arc<Process>>,
    setup: Setup,
    /// It was unloaded before it was loaded.
    is_given_up: bool,
}

pub(super) struct Slot {
    pub(super) model_id: String,
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    state: State,
    /// Crashes in a row.
    crashes: u32,
    last_crash: Option<Crash>,
    /// Counts the loads.
    attempt: u64,
    /// Who waits for the load under way; or for the end of what has to end before there can be one.
    waiting: Vec<Waiter>,
}

/// Somebody who wants the model to be loaded.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) request: LoadRequest,
    pub(super) reply: Reply,
}

/// How a worker of the model died last, for people.
#[derive(Clone, Debug, Serialize)]
struct Crash {
    /// Seconds since 1970.
    at: u64,
    engine: String,
    call: String,
    /// "signal 11 (SIGSEGV)"
    ending: String,
    signal: Option<i64>,
    message: String,
}

/// What `begin` came to.
pub(super) enum Begin {
    /// The caller loads, and calls `end_load`; the asker waits.
    Load,
    /// The asker waits for somebody else's load.
    Waits,
    /// It is known already.
    Known(Reply, Box<Result<Loaded, Fault>>),
}

/// What `begin_unload` found.
pub(super) enum Unload {
    /// A worker to be drained and ended; then `end_unload`.
    Drain(Arc<Running>),
    /// A load or an unload is under way, and ends by itself. These waited for the load.
    Wait(Vec<Waiter>),
    /// There is nothing to wait for.
    Done,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("model_id", &self.model_id).finish_non_exhaustive()
    }
}

impl Slot {
    pub(super) fn new(model_id: String) -> Self {
        let inner =
            Inner { state: State::Idle, crashes: 0, last_crash: None, attempt: 0, waiting: Vec::new() };
        Self { model_id, inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Makes the asker wait for a load, its own or another's, or gives it its answer back.
    pub(super) fn begin(&self, waiter: Waiter, wishes: &Wishes, setup: Setup) -> Begin {
        let mut inner = self.inner.lock();
        if let State::Backoff { until, .. } = &inner.state
            && Instant::now() >= *until
        {
            inner.state = State::Idle;
        }
        match &inner.state {
            State::Idle | State::Failed(_) => {
                inner.state = State::Starting(Starting { process: None, setup, is_given_up: false });
                inner.attempt += 1;
                inner.waiting.push(waiter);
                Begin::Load
            }
            State::Ready(running) => {
                let meets = running.setup.meets(wishes, &self.model_id, "is loaded");
                Begin::Known(waiter.reply, Box::new(meets.map(|()| running.loaded.clone())))
            }
            State::Backoff { until, fault } => {
                let fault = retry_after(fault.clone(), until.saturating_duration_since(Instant::now()));
                Begin::Known(waiter.reply, Box::new(Err(fault)))
            }
            State::Starting(starting) if !starting.is_given_up => {
                if let Err(fault) = starting.setup.meets(wishes, &self.model_id, "is being loaded") {
                    return Begin::Known(waiter.reply, Box::new(Err(fault)));
                }
                inner.waiting.push(waiter);
                Begin::Waits
            }
            State::Starting(_) | State::Draining(_) => {
                inner.waiting.push(waiter);
                Begin::Waits
            }
        }
    }

    /// The load's engine is chosen.
    pub(super) fn chosen(&self, engine: &str) {
        if let State::Starting(starting) = &mut self.inner.lock().state {
            starting.setup.chosen(engine);
        }
    }

    /// The load's process is there. False: the load was given up meanwhile.
    pub(super) fn loading(&self, process: &Arc<Process>) -> bool {
        match &mut self.inner.lock().state {
            State::Starting(starting) if !starting.is_given_up => {
                starting.process = Some(Arc::clone(process));
                true
            }
            _ => false,
        }
    }

    /// Was the load under way given up by an unload?
    pub(super) fn is_given_up(&self) -> bool {
        matches!(&self.inner.lock().state, State::Starting(starting) if starting.is_given_up)
    }

    /// The load has ended; an error with the death of the process that it took down, if it did. Gives what the
    /// waiting are told, and these: `true` where they are to ask again, because it was unloaded before they
    /// came.
    pub(super) fn end_load(
        &self,
        result: Result<Arc<Running>, Box<(Fault, Option<Death>)>>,
    ) -> (Result<Loaded, Fault>, Vec<Waiter>, bool) {
        let mut inner = self.inner.lock();
        let given_up = matches!(&inner.state, State::Starting(starting) if starting.is_given_up);
        let outcome = match result.map_err(|failure| *failure) {
            Ok(running) => {
                let loaded = running.loaded.clone();
                inner.state = State::Ready(running);
                Ok(loaded)
            }
            // Not a failure of the model's: the next request begins anew.
            Err((fault, _)) if given_up => {
                inner.state = State::Idle;
                Err(fault)
            }
            Err((fault, Some(death))) => {
                let pause = inner.crashed(&death, false);
                inner.state = State::Backoff { until: Instant::now() + pause, fault: fault.clone() };
                Err(retry_after(fault, pause))
            }
            Err((fault, None)) => {
                inner.state = State::Failed(fault.clone());
                Err(fault)
            }
        };
        let waiting = mem::take(&mut inner.waiting);
        drop(inner);
        self.changed.notify_all();
        (outcome, waiting, given_up)
    }

    /// The worker of a ready model has died; gives what its requests are told. `is_known`: nothing was under
    /// way but what had killed a worker before, which costs nobody else a longer pause.
    pub(super) fn worker_died(&self, worker: u64, death: &Death, is_known: bool) -> Fault {
        let mut inner = self.inner.lock();
        let fault = Fault::new(ErrorCode::EngineCrashed, death.describe());
        let running = match &inner.state {
            State::Ready(running) if running.process.link.worker == worker => Arc::clone(running),
            State::Draining(running) if running.process.link.worker == worker => {
                // The memory is free; whoever unloads says that the model is gone.
                *running.room.lock() = None;
                return if death.expected { self.unloaded() } else { fault };
            }
            _ => return if death.expected { self.unloaded() } else { fault },
        };
        *running.room.lock() = None;
        if death.expected {
            inner.state = State::Idle;
            drop(inner);
            self.changed.notify_all();
            return self.unloaded();
        }
        if running.since.elapsed() >= HEALTHY_AFTER {
            inner.crashes = 0;
        }
        let pause = inner.crashed(death, is_known);
        inner.state = State::Backoff { until: Instant::now() + pause, fault: fault.clone() };
        drop(inner);
        self.changed.notify_all();
        log::error!("{}; it may be loaded again in {} s", fault.message, pause.as_secs());
        retry_after(fault, pause)
    }

    /// The worker for a new request.
    pub(super) fn ready(&self) -> Result<Arc<Running>, Fault> {
        match &self.inner.lock().state {
            State::Ready(running) => Ok(Arc::clone(running)),
            State::Starting(_) => {
                Err(Fault::new(ErrorCode::ModelLoading, format!("Model '{}' is being loaded", self.model_id))
                    .details(json!({ "retry_after": 1 }).to_string()))
            }
            State::Draining(_) => Err(Fault::new(
                ErrorCode::ShuttingDown,
                format!("Model '{}' is being unloaded", self.model_id),
            )
            .details(json!({ "retry_after": 1 }).to_string())),
            State::Backoff { until, fault } if Instant::now() < *until => {
                Err(retry_after(fault.clone(), until.saturating_duration_since(Instant::now())))
            }
            // Whoever asks for it loads it, also when the last load failed.
            State::Backoff { .. } | State::Failed(_) | State::Idle => Err(to_be_loaded(&self.model_id)),
        }
    }

    /// Begins an unload.
    pub(super) fn begin_unload(&self) -> Result<Unload, Fault> {
        let mut inner = self.inner.lock();
        match &mut inner.state {
            State::Ready(running) => {
                let running = Arc::clone(running);
                inner.state = State::Draining(Arc::clone(&running));
                Ok(Unload::Drain(running))
            }
            State::Starting(starting) => {
                let first = !mem::replace(&mut starting.is_given_up, true);
                if let Some(process) = &starting.process {
                    process.kill();
                }
                // Who comes from now on wants another load.
                Ok(Unload::Wait(if first { mem::take(&mut inner.waiting) } else { Vec::new() }))
            }
            State::Draining(_) => Ok(Unload::Wait(Vec::new())),
            State::Backoff { .. } | State::Failed(_) => {
                inner.state = State::Idle;
                inner.crashes = 0;
                Ok(Unload::Done)
            }
            State::Idle => Err(not_loaded(&self.model_id)),
        }
    }

    /// The unload is done. Gives those who came meanwhile and want it loaded.
    pub(super) fn end_unload(&self) -> Vec<Waiter> {
        let mut inner = self.inner.lock();
        if matches!(inner.state, State::Draining(_)) {
            inner.state = State::Idle;
            inner.crashes = 0;
        }
        let waiting = mem::take(&mut inner.waiting);
        drop(inner);
        self.changed.notify_all();
        waiting
    }

    /// Waits until what is loaded, loading or draining now is gone.
    pub(super) fn wait_until_gone(&self, deadline: Instant) -> bool {
        let mut inner = self.inner.lock();
        let attempt = inner.attempt;
        while inner.attempt == attempt
            && matches!(inner.state, State::Starting(_) | State::Draining(_) | State::Ready(_))
        {
            if self.changed.wait_until(&mut inner, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// What whoever waits for the model is told when somebody else unloads it.
    pub(super) fn unloaded(&self) -> Fault {
        Fault::new(
            ErrorCode::ShuttingDown,
            format!("Model '{}' was unloaded by another client", self.model_id),
        )
        .details(json!({ "retry_after": 1 }).to_string())
    }

    /// A model that nothing has been heard of for longer than `limit` seconds.
    pub(super) fn stands_still(&self, limit: u32) -> Option<String> {
        let State::Ready(running) = &self.inner.lock().state else { return None };
        let seconds = running.process.silence.seconds();
        (seconds > limit).then(|| {
            let stage = running.process.output.stage();
            format!(
                "Model '{}' stands still in {stage}: nothing was heard of its worker for {seconds} s",
                self.model_id
            )
        })
    }

    /// What `/api/models` and `/api/system` show: status, and further fields.
    pub(super) fn report(&self, traffic: &Traffic) -> (&'static str, Value) {
        let inner = self.inner.lock();
        let failed = |fault: &Fault| json!({ "error": { "code": fault.code, "message": fault.message } });
        let (status, mut fields) = match &inner.state {
            State::Idle => ("available", json!({})),
            State::Starting(Starting { process, .. }) => (
                "loading",
                json!({
                    "progress": process.as_ref().map_or(0.0, |process| process.progress()),
                    "stage": process.as_ref().map(|process| process.output.stage()),
                    "pid": process.as_ref().map(|process| process.pid()),
                }),
            ),
            State::Ready(running) => ("loaded", running.report(traffic, false)),
            State::Draining(running) => ("loaded", running.report(traffic, true)),
            State::Backoff { until, fault } => {
                let pause = until.saturating_duration_since(Instant::now());
                let mut fields = failed(fault);
                if !pause.is_zero() {
                    fields["retry_after"] = json!(whole_seconds(pause));
                }
                ("failed", fields)
            }
            State::Failed(fault) => ("failed", failed(fault)),
        };
        if let Some(crash) = &inner.last_crash {
            fields["last_crash"] = json!(crash);
        }
        (status, fields)
    }
}

impl Inner {
    /// Counts a crash, and gives the pause that it costs.
    fn crashed(&mut self, death: &Death, is_known: bool) -> Duration {
        self.last_crash = Some(Crash {
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            engine: death.engine.clone(),
            call: death.call().to_owned(),
            ending: death.ending.to_string(),
            signal: match death.ending {
                Ending::Signal { number, .. } => Some(number),
                Ending::Code(_) | Ending::Unknown => None,
            },
            message: death.describe(),
        });
        if is_known {
            return backoff(self.crashes.saturating_sub(1));
        }
        let pause = backoff(self.crashes);
        self.crashes = self.crashes.saturating_add(1);
        pause
    }
}

impl Running {
    fn report(&self, traffic: &Traffic, draining: bool) -> Value {
        json!({
            "engine": self.loaded.engine,
            "engine_version": self.loaded.engine_version,
            "gpu_backend": self.loaded.gpu_backend,
            "devices": self.loaded.devices,
            "memory": self.loaded.memory,
            "load_ms": self.loaded.load_ms,
            "facts": self.loaded.facts,
            "pid": self.process.pid(),
            "streams": traffic.streams_of(self.process.link.worker),
            "draining": draining,
            "ready_seconds": self.since.elapsed().as_secs(),
            "silent_seconds": self.process.silence.seconds(),
            "call_seconds": self.process.call_seconds(),
        })
    }
}

/// 1 s, 2 s, 4 s, ... after so many crashes before this one.
fn backoff(crashes: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(crashes.min(16))).min(LONGEST_BACKOFF)
}

fn whole_seconds(pause: Duration) -> u64 {
    (pause.as_millis().div_ceil(1000) as u64).max(1)
}

fn retry_after(fault: Fault, pause: Duration) -> Fault {
    fault.details(json!({ "retry_after": whole_seconds(pause) }).to_string())
}

/// What a request is told that should have been a load before.
pub(super) fn to_be_loaded(model_id: &str) -> Fault {
    Fault::new(ErrorCode::ModelLoading, format!("Model '{model_id}' is not loaded"))
}

pub(super) fn not_loaded(model_id: &str) -> Fault {
    Fault::new(ErrorCode::ModelNotFound, format!("Model '{model_id}' is not loaded")).param("model")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;

    #[test]
    fn the_pause_doubles_up_to_a_minute() {
        let pauses: Vec<u64> = (0..9).map(|crashes| backoff(crashes).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff(u32::MAX).as_secs(), 60);
    }

    struct Askers(Arc<Traffic>, Slot);

    impl Askers {
        fn new() -> Self {
            Self(Arc::default(), Slot::new("m".into()))
        }

        fn begin(&self) -> Begin {
            let (_, reply) = self.0.ticket();
            let config = json!({
                "engines_dirs": [], "models_dir": "/m", "gpu_backend": "cpu", "worker_command": ["w"],
                "load_timeout_seconds": 1, "start_timeout_seconds": 1, "queue_limit": 1,
            });
            let setup = Setup::new(&Wishes::default(), &NodeConfig::parse(&config.to_string()).unwrap(), "m");
            self.1.begin(Waiter { request: LoadRequest::default(), reply }, &Wishes::default(), setup)
        }
    }

    fn death(expected: bool) -> Death {
        Death {
            engine: "e".into(),
            model: Some("m".into()),
            ending: Ending::Signal { number: 11, name: Some("SIGSEGV") },
            is_idle: false,
            stage: "engine_init".into(),
            expected,
            complaint: None,
            silent_for: None,
        }
    }

    #[test]
    fn a_load_is_one_flight() {
        let askers = Askers::new();
        assert!(matches!(askers.begin(), Begin::Load));
        assert!((0..4).all(|_| matches!(askers.begin(), Begin::Waits)));
        let fault = Fault::new(ErrorCode::LoadFailed, "no");
        let (outcome, waiting, again) = askers.1.end_load(Err(Box::new((fault.clone(), None))));
        assert_eq!((outcome.unwrap_err(), waiting.len(), again), (fault, 5, false));
        assert!(matches!(askers.begin(), Begin::Load), "a failed load may be tried again at once");
    }

    #[test]
    fn who_comes_after_an_unload_is_not_told_of_it() {
        let askers = Askers::new();
        assert!(matches!(askers.begin(), Begin::Load));
        assert!(matches!(askers.begin(), Begin::Waits));
        let Ok(Unload::Wait(before)) = askers.1.begin_unload() else { panic!("nothing to wait for") };
        assert_eq!(before.len(), 2);
        assert!(matches!(askers.begin(), Begin::Waits));
        let Ok(Unload::Wait(nobody)) = askers.1.begin_unload() else { panic!("nothing to wait for") };
        assert!(nobody.is_empty(), "who came after the first unload waits for what comes after it");
        let (_, after, again) = askers.1.end_load(Err(Box::new((askers.1.unloaded(), None))));
        assert_eq!((after.len(), again), (1, true));
        assert!(matches!(askers.begin(), Begin::Load));
    }

    #[test]
    fn after_a_crash_one_waits() {
        let askers = Askers::new();
        assert!(matches!(askers.begin(), Begin::Load));
        let died = death(false);
        let crashed = Box::new((Fault::new(ErrorCode::EngineCrashed, died.describe()), Some(died)));
        let _ = askers.1.end_load(Err(crashed));
        let Begin::Known(_, result) = askers.begin() else { panic!("no back-off") };
        let fault = result.unwrap_err();
        assert_eq!(fault.message, "Engine 'e' of model 'm' died in engine_init: signal 11 (SIGSEGV)");
        assert_eq!(fault.details.as_deref(), Some(r#"{"retry_after":1}"#));
        assert!(matches!(askers.1.begin_unload(), Ok(Unload::Done)));
        assert!(matches!(askers.begin(), Begin::Load), "an unload forgets the crash");
        let (_, fields) = askers.1.report(&askers.0);
        assert_eq!(fields["last_crash"]["ending"], "signal 11 (SIGSEGV)", "but not what it was");
    }

    #[test]
    fn what_one_request_does_again_costs_the_others_no_longer_pause() {
        let slot = Slot::new("m".into());
        let mut inner = slot.inner.lock();
        let pauses: Vec<u64> = [false, true, true, false, true]
            .map(|is_known| inner.crashed(&death(false), is_known).as_secs())
            .to_vec();
        assert_eq!(pauses, [1, 1, 1, 2, 2]);
    }
}
