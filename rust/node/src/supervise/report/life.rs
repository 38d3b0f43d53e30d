//! What a model is doing: its state, its workers, what it is loaded as, and how it died last.

use llm_node_core::{error::Fault, facts::ModelFacts, options::ModelOptions, session::Occupancy};
use llm_node_fleet::{Account, Crash, Kept, KeptBy, Loaded, ModelView, Moment, Status, WorkerId, WorkerView};
use serde::Serialize;

use super::{ErrorRow, Inner, MemoryRow, busy, id_of, seconds_until, written};
use crate::supervise::load::are_unchanged;

#[derive(Default, Serialize)]
pub(super) struct LifeRow<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorRow<'a>>,
    /// Seconds until a model that crashed may be loaded again; 0: whoever asks next has it loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
    #[serde(flatten)]
    loading: Option<LoadingRow>,
    #[serde(flatten)]
    loaded: Option<LoadedRow<'a>>,
    #[serde(flatten)]
    serving: Option<ServingRow>,
    /// What is counted as taken by it, on all devices together.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_bytes: Option<u64>,
    /// What it is loaded with, where anything is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a ModelOptions>,
    /// Who waits for its load.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<usize>,
    #[serde(flatten)]
    kept: Option<KeptRow>,
    /// Of a model with several: each, those that answer first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    workers: Vec<ReplicaRow<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_crash: Option<CrashRow<'a>>,
}

impl<'a> LifeRow<'a> {
    /// Of a model of which nothing is known but its file.
    pub(super) fn of_nothing() -> Self {
        Self { status: Status::Available.word(), ..Self::default() }
    }

    /// Of one whose file has this against it.
    pub(super) fn with_problem(self, problem: &'a Fault) -> Self {
        if self.status != Status::Available.word() {
            return self;
        }
        let error = ErrorRow { code: problem.code, message: &problem.message };
        Self { status: Status::Failed(problem.clone()).word(), error: Some(error), ..self }
    }

    /// `accounts`: of the devices.
    pub(super) fn of(inner: &Inner, view: &'a ModelView, accounts: &[Account]) -> Self {
        let process = view.workers.first().and_then(|worker| inner.processes.get(worker.id));
        let error = |fault: &'a Fault| Some(ErrorRow { code: fault.code, message: &fault.message });
        let status = if is_mended(view) { &Status::Available } else { &view.status };
        let row = Self { status: status.word(), ..Self::default() };
        let row = match status {
            Status::Available | Status::Loaded | Status::Draining { .. } => row,
            Status::Loading | Status::Waiting => Self {
                loading: Some(LoadingRow {
                    progress: process.as_ref().map_or(0.0, |process| process.progress()),
                    stage: process.as_ref().map(|process| process.output.stage()),
                    pid: process.as_ref().map(|process| process.pid()),
                }),
                waiting: Some(view.waiting),
                ..row
            },
            Status::Cooling { fault, .. } => {
                Self { error: error(fault), retry_after: view.pause_seconds(inner.fleet.now()), ..row }
            }
            Status::Failed(fault) | Status::GivenUp(fault) => Self { error: error(fault), ..row },
        };
        let serving = view.loaded().map(|(since, _)| ServingRow {
            pid: process.as_ref().map(|process| process.pid()),
            streams: busy::streams_of(inner, view),
            draining: matches!(view.status, Status::Draining { .. }),
            pinned: view.is_pinned,
            idle_seconds: view.idle_since.map(|since| inner.fleet.now().since(since).as_secs()),
            goes_in_seconds: view.unused_from.map(|from| from.since(inner.fleet.now()).as_secs()),
            ready_seconds: inner.fleet.now().since(*since).as_secs(),
            silent_seconds: process.as_ref().map_or(0, |process| process.silence.seconds()),
            call_seconds: process.as_ref().map_or(0, |process| process.call_seconds()),
            tokens_per_second: busy::tokens_per_second(inner, view),
            occupancy: busy::occupancy_of(inner, view),
        });
        Self {
            loaded: LoadedRow::of_all(view),
            serving,
            held_bytes: (!view.workers.is_empty())
                .then(|| held(accounts, |worker| view.workers.iter().any(|it| it.id == worker))),
            workers: if view.is_of_several() || view.workers.len() > 1 {
                ReplicaRow::of_all(inner, view, accounts)
            } else {
                Vec::new()
            },
            kept: KeptRow::of(view.kept, inner.fleet.now()),
            options: view.options.as_ref().filter(|options| **options != ModelOptions::default()),
            last_crash: view.last_crash.as_ref().map(|crash| CrashRow::of(inner, crash)),
            ..row
        }
    }
}

/// Has the file been written since its last load failed? Then it may be mended.
pub(super) fn is_mended(view: &ModelView) -> bool {
    matches!(view.status, Status::Failed(_)) && !are_unchanged(&view.files)
}

/// What such workers hold of all devices.
fn held(accounts: &[Account], is_it: impl Fn(WorkerId) -> bool) -> u64 {
    let holders = accounts.iter().flat_map(|account| &account.holders);
    holders.filter(|holder| is_it(holder.worker)).map(|holder| holder.bytes).sum()
}

/// What keeps a model where another needs the room.
#[derive(Serialize)]
struct KeptRow {
    kept_by: KeptBy,
    /// Of its turn; `None`: it has none, or that is over.
    turn_seconds: Option<u64>,
}

impl KeptRow {
    fn of(kept: Option<Kept>, now: Moment) -> Option<Self> {
        let kept = kept?.at(now)?;
        let left = kept.left(now).map(|_| kept.until).and_then(|until| Some(seconds_until(now, until?)));
        Some(Self { kept_by: kept.by, turn_seconds: left })
    }
}

#[derive(Serialize)]
struct LoadingRow {
    progress: f32,
    stage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
}

#[derive(Serialize)]
struct LoadedRow<'a> {
    engine: &'a str,
    engine_version: &'a str,
    gpu_backend: &'a str,
    /// Names of the devices that it lies on.
    devices: Vec<&'a str>,
    memory: Vec<MemoryRow<'a>>,
    load_ms: u64,
    /// By its engine's estimate; `None` with another context than it was loaded with.
    estimated_bytes: Option<u64>,
    facts: &'a ModelFacts,
}

impl<'a> LoadedRow<'a> {
    fn of(loaded: &'a Loaded) -> Self {
        Self {
            engine: &loaded.engine.id,
            engine_version: &loaded.engine.version,
            gpu_backend: &loaded.engine.gpu_backend,
            devices: loaded.facts.memory.iter().map(|use_| id_of(use_).unwrap_or(&use_.device)).collect(),
            memory: loaded.facts.memory.iter().map(MemoryRow::of).collect(),
            load_ms: loaded.took.as_millis() as u64,
            estimated_bytes: loaded.estimated_bytes,
            facts: &loaded.facts,
        }
    }

    /// What stands for all its workers, with what each of them takes.
    fn of_all(view: &'a ModelView) -> Option<Self> {
        let all = view.workers.iter().filter_map(|worker| worker.loaded.as_ref());
        let mut row = Self::of(&view.loaded()?.1);
        for (_, loaded) in all.skip(1) {
            let Self { devices, memory, estimated_bytes, .. } = Self::of(loaded);
            row.estimated_bytes = row.estimated_bytes.zip(estimated_bytes).map(|(one, more)| one + more);
            row.devices.extend(devices);
            row.memory.extend(memory);
        }
        Some(row)
    }
}

#[derive(Serialize)]
struct ServingRow {
    pid: Option<u32>,
    streams: usize,
    draining: bool,
    /// It makes room for nobody.
    pinned: bool,
    /// How long nothing has been asked of it; `None`: it has something to answer.
    idle_seconds: Option<u64>,
    /// In how long it goes where nobody asks it anything; `None`: it stays, or has something to answer.
    goes_in_seconds: Option<u64>,
    ready_seconds: u64,
    silent_seconds: u32,
    call_seconds: u32,
    /// Tokens of its answers in the last second.
    tokens_per_second: f64,
    /// What its scheduler knows; `None` until it has said so.
    occupancy: Option<Occupancy>,
}

/// One worker of several.
#[derive(Serialize)]
struct ReplicaRow<'a> {
    status: &'static str,
    /// It ends what it has, and goes.
    draining: bool,
    /// Of its load.
    progress: f32,
    pid: Option<u32>,
    requests: usize,
    devices: Vec<&'a str>,
    memory: Vec<MemoryRow<'a>>,
    held_bytes: u64,
    silent_seconds: u32,
    tokens_per_second: f64,
    occupancy: Option<Occupancy>,
}

impl<'a> ReplicaRow<'a> {
    fn of_all(inner: &Inner, view: &'a ModelView, accounts: &[Account]) -> Vec<Self> {
        let row = |worker: &'a WorkerView| {
            let process = inner.processes.get(worker.id);
            let loaded = worker.loaded.as_ref().map(|(_, loaded)| LoadedRow::of(loaded));
            let (devices, memory) = loaded.map(|row| (row.devices, row.memory)).unwrap_or_default();
            Self {
                status: worker.status.word(),
                draining: matches!(worker.status, Status::Draining { .. }),
                progress: process.as_ref().map_or(0.0, |process| process.progress()),
                pid: process.as_ref().map(|process| process.pid()),
                requests: inner.traffic.streams_of(worker.id),
                devices,
                memory,
                held_bytes: held(accounts, |worker_of| worker_of == worker.id),
                silent_seconds: process.as_ref().map_or(0, |process| process.silence.seconds()),
                tokens_per_second: inner.traffic.tokens_per_second(worker.id),
                occupancy: process.as_ref().and_then(|process| process.occupancy()),
            }
        };
        view.workers.iter().map(row).collect()
    }
}

#[derive(Serialize)]
struct CrashRow<'a> {
    /// Seconds since 1970.
    at: u64,
    engine: &'a str,
    call: &'a str,
    ending: &'a str,
    signal: Option<i64>,
    message: &'a str,
    in_a_row: u32,
}

impl<'a> CrashRow<'a> {
    fn of(inner: &Inner, crash: &'a Crash) -> Self {
        Self {
            at: inner.fleet.date_of(crash.at),
            engine: &crash.engine,
            call: &crash.death.call,
            ending: &crash.death.ending,
            signal: crash.death.signal,
            message: &crash.death.message,
            in_a_row: crash.in_a_row,
        }
    }
}

/// What a load came to, as who asked for it gets it.
pub(in crate::supervise) fn loaded(loaded: &Loaded) -> Result<String, Fault> {
    #[derive(Serialize)]
    struct Answer<'a> {
        model_id: &'a str,
        status: &'static str,
        #[serde(flatten)]
        loaded: LoadedRow<'a>,
    }
    written(&Answer { model_id: &loaded.model_id, status: "loaded", loaded: LoadedRow::of(loaded) })
}
