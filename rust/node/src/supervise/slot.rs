//! One model's place: what state its worker is in, and what whoever asks for it is told.
//!
//! Starting, Ready, Draining, Backoff or Failed. Owns the single flight (however many ask for a model,
//! one of them loads it) and the patience after a crash.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use llm_node_core::error::{ErrorCode, Fault};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    inflight::Traffic,
    process::{Death, Process},
};
use crate::devices::Room;

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
    /// Given back only after the process has ended.
    pub(super) room: Mutex<Option<Room>>,
    pub(super) controls: Mutex<std::sync::mpsc::Receiver<super::process::Control>>,
    pub(super) since: Instant,
}

pub(super) enum State {
    /// Nothing is loaded.
    Idle,
    /// A load is under way; its process, once there is one.
    Starting {
        process: Option<Arc<Process>>,
        given_up: bool,
    },
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

pub(super) struct Slot {
    pub(super) model_id: String,
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    state: State,
    /// Crashes in a row.
    crashes: u32,
    /// Loads so far, and what the last one came to.
    attempt: u64,
    outcome: Option<Result<Loaded, Fault>>,
}

/// What `begin` found.
pub(super) enum Begin {
    /// The caller loads, and calls `end_load`.
    Load,
    /// It is there already, or a load under way has ended.
    Done(Box<Result<Loaded, Fault>>),
}

fn done(result: Result<Loaded, Fault>) -> Begin {
    Begin::Done(Box::new(result))
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("model_id", &self.model_id).finish_non_exhaustive()
    }
}

impl Slot {
    pub(super) fn new(model_id: String) -> Self {
        Self {
            model_id,
            inner: Mutex::new(Inner { state: State::Idle, crashes: 0, attempt: 0, outcome: None }),
            changed: Condvar::new(),
        }
    }

    /// Becomes the one that loads, or waits for the one that does. Whatever it waits for has a
    /// deadline of its own; `limit` is beyond all of them.
    pub(super) fn begin(&self, limit: Instant) -> Begin {
        let mut inner = self.inner.lock();
        loop {
            match &inner.state {
                State::Idle | State::Failed(_) => {
                    inner.state = State::Starting { process: None, given_up: false };
                    inner.attempt += 1;
                    inner.outcome = None;
                    return Begin::Load;
                }
                State::Ready(running) => return done(Ok(running.loaded.clone())),
                State::Backoff { until, fault } => {
                    let now = Instant::now();
                    if now < *until {
                        return done(Err(retry_after(fault.clone(), *until - now)));
                    }
                    inner.state = State::Idle;
                }
                State::Starting { .. } => {
                    let attempt = inner.attempt;
                    while inner.attempt == attempt && inner.outcome.is_none() {
                        if self.changed.wait_until(&mut inner, limit).timed_out() {
                            return done(Err(self.too_long()));
                        }
                    }
                    if inner.attempt == attempt
                        && let Some(outcome) = &inner.outcome
                    {
                        return done(outcome.clone());
                    }
                }
                State::Draining(_) => {
                    if self.changed.wait_until(&mut inner, limit).timed_out() {
                        return done(Err(self.too_long()));
                    }
                }
            }
        }
    }

    fn too_long(&self) -> Fault {
        Fault::new(ErrorCode::Timeout, format!("Model '{}' was not ready in time", self.model_id))
    }

    /// The load's process is there. False: the load was given up meanwhile.
    pub(super) fn loading(&self, process: &Arc<Process>) -> bool {
        let mut inner = self.inner.lock();
        match &mut inner.state {
            State::Starting { process: place, given_up } if !*given_up => {
                *place = Some(Arc::clone(process));
                true
            }
            _ => false,
        }
    }

    /// Was the load under way given up by an unload?
    pub(super) fn is_given_up(&self) -> bool {
        matches!(self.inner.lock().state, State::Starting { given_up: true, .. })
    }

    /// The load has ended. `crashed`: the engine took its process down.
    pub(super) fn end_load(&self, result: Result<Arc<Running>, (Fault, bool)>) -> Result<Loaded, Fault> {
        let mut inner = self.inner.lock();
        let given_up = matches!(inner.state, State::Starting { given_up: true, .. });
        let outcome = match result {
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
            Err((fault, true)) => {
                let pause = inner.crashed();
                inner.state = State::Backoff { until: Instant::now() + pause, fault: fault.clone() };
                Err(retry_after(fault, pause))
            }
            Err((fault, false)) => {
                inner.state = State::Failed(fault.clone());
                Err(fault)
            }
        };
        inner.outcome = Some(outcome.clone());
        drop(inner);
        self.changed.notify_all();
        outcome
    }

    /// The worker of a ready model has died; gives what its requests are told.
    pub(super) fn worker_died(&self, worker: u64, death: &Death) -> Fault {
        let mut inner = self.inner.lock();
        let fault = Fault::new(
            ErrorCode::EngineCrashed,
            format!("The worker of model '{}' died: {}", self.model_id, death.describe()),
        );
        let unloaded = || {
            Fault::new(
                ErrorCode::ShuttingDown,
                format!("Model '{}' was unloaded before the answer was complete", self.model_id),
            )
        };
        let running = match &inner.state {
            State::Ready(running) if running.process.link.worker == worker => Arc::clone(running),
            State::Draining(running) if running.process.link.worker == worker => {
                // The memory is free; whoever unloads says that the model is gone.
                *running.room.lock() = None;
                return if death.expected { unloaded() } else { fault };
            }
            _ => return if death.expected { unloaded() } else { fault },
        };
        *running.room.lock() = None;
        if death.expected {
            inner.state = State::Idle;
            drop(inner);
            self.changed.notify_all();
            return unloaded();
        }
        if running.since.elapsed() >= HEALTHY_AFTER {
            inner.crashes = 0;
        }
        let pause = inner.crashed();
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
            State::Starting { .. } => {
                Err(Fault::new(ErrorCode::ModelLoading, format!("Model '{}' is being loaded", self.model_id))
                    .details(json!({ "retry_after": 1 }).to_string()))
            }
            State::Draining(_) => Err(Fault::new(
                ErrorCode::ShuttingDown,
                format!("Model '{}' is being unloaded", self.model_id),
            )
            .details(json!({ "retry_after": 1 }).to_string())),
            State::Backoff { until, fault } => {
                Err(retry_after(fault.clone(), until.saturating_duration_since(Instant::now())))
            }
            // Whoever asks for it loads it, also when the last load failed.
            State::Failed(_) | State::Idle => Err(to_be_loaded(&self.model_id)),
        }
    }

    /// Begins an unload: gives the worker to drain, or nothing where there is nothing to wait for.
    pub(super) fn begin_unload(&self) -> Result<Option<Arc<Running>>, Fault> {
        let mut inner = self.inner.lock();
        match &mut inner.state {
            State::Ready(running) => {
                let running = Arc::clone(running);
                inner.state = State::Draining(Arc::clone(&running));
                Ok(Some(running))
            }
            State::Starting { process, given_up } => {
                *given_up = true;
                if let Some(process) = process {
                    process.kill();
                }
                Ok(None)
            }
            State::Draining(_) => Ok(None),
            State::Backoff { .. } | State::Failed(_) => {
                inner.state = State::Idle;
                inner.crashes = 0;
                Ok(None)
            }
            State::Idle => Err(not_loaded(&self.model_id)),
        }
    }

    /// The unload is done.
    pub(super) fn end_unload(&self) {
        let mut inner = self.inner.lock();
        if matches!(inner.state, State::Draining(_)) {
            inner.state = State::Idle;
            inner.crashes = 0;
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Waits until nothing is loaded, loading or draining.
    pub(super) fn wait_until_gone(&self, deadline: Instant) -> bool {
        let mut inner = self.inner.lock();
        while matches!(inner.state, State::Starting { .. } | State::Draining(_) | State::Ready(_)) {
            if self.changed.wait_until(&mut inner, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// What `/api/models` and `/api/system` show: status, and further fields.
    pub(super) fn report(&self, traffic: &Traffic) -> (&'static str, Value) {
        let inner = self.inner.lock();
        let failed = |fault: &Fault| json!({ "error": { "code": fault.code, "message": fault.message } });
        match &inner.state {
            State::Idle => ("available", json!({})),
            State::Starting { process, .. } => (
                "loading",
                json!({
                    "progress": process.as_ref().map_or(0.0, |process| process.progress()),
                    "stage": process.as_ref().map(|process| process.stage()),
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
        }
    }
}

impl Inner {
    /// Counts a crash, and gives the pause that it costs.
    fn crashed(&mut self) -> Duration {
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

fn not_loaded(model_id: &str) -> Fault {
    Fault::new(ErrorCode::ModelNotFound, format!("Model '{model_id}' is not loaded")).param("model")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_doubles_up_to_a_minute() {
        let pauses: Vec<u64> = (0..9).map(|crashes| backoff(crashes).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff(u32::MAX).as_secs(), 60);
    }

    #[test]
    fn a_load_is_one_flight() {
        let slot = Arc::new(Slot::new("m".into()));
        let limit = Instant::now() + Duration::from_secs(20);
        assert!(matches!(slot.begin(limit), Begin::Load));
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let slot = Arc::clone(&slot);
                std::thread::spawn(move || match slot.begin(limit) {
                    Begin::Done(result) => result.map(|loaded| loaded.model_id),
                    Begin::Load => panic!("a second flight"),
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(50));
        let fault = Fault::new(ErrorCode::LoadFailed, "no");
        assert!(slot.end_load(Err((fault.clone(), false))).is_err());
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), Err(fault.clone()));
        }
        assert!(matches!(slot.begin(limit), Begin::Load), "a failed load may be tried again at once");
    }

    #[test]
    fn after_a_crash_one_waits() {
        let slot = Slot::new("m".into());
        let limit = Instant::now() + Duration::from_secs(20);
        assert!(matches!(slot.begin(limit), Begin::Load));
        let _ = slot.end_load(Err((Fault::new(ErrorCode::EngineCrashed, "bang"), true)));
        match slot.begin(limit) {
            Begin::Done(result) => {
                let fault = result.unwrap_err();
                assert_eq!(fault.code, ErrorCode::EngineCrashed);
                assert_eq!(fault.details.as_deref(), Some(r#"{"retry_after":1}"#));
            }
            Begin::Load => panic!("no back-off"),
        }
        slot.begin_unload().unwrap();
        assert!(matches!(slot.begin(limit), Begin::Load), "an unload forgets the crash");
    }
}
