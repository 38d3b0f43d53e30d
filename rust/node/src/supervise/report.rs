//! What the node says of itself: models, workers and devices. What loads would come to, and what has happened
//! lately, have files of their own.
//!
//! Owns the names of all these fields. Puts together what the fleet, the processes and the traffic know; asks no
//! worker anything.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::MemoryUse,
    options::{MemoryLimit, ModelOptions},
    session::Occupancy,
};
use llm_node_fleet::{
    Account, Crash, Device, DeviceKind, DeviceState, FleetView, Holder, Kept, KeptBy, Loaded, Look,
    ModelView, Moment, Place, Status, WorkerId, WorkerView,
};
use llm_node_wire::message::PROTOCOL_VERSION;
use serde::Serialize;

use super::{
    Inner,
    load::{are_unchanged, measure_host},
    written,
};
use crate::{config::Origin, models::Model};

/// A prompt that waits so long until it is read finds its model full.
const FULL_WAIT_SECONDS: f64 = 2.0;

/// What a load came to, as who asked for it gets it.
pub(super) fn loaded(loaded: &Loaded) -> Result<String, Fault> {
    #[derive(Serialize)]
    struct Answer<'a> {
        model_id: &'a str,
        status: &'static str,
        #[serde(flatten)]
        loaded: LoadedRow<'a>,
    }
    written(&Answer { model_id: &loaded.model_id, status: "loaded", loaded: LoadedRow::of(loaded) })
}

/// A model, with what its file tells and what it is doing.
#[derive(Serialize)]
pub(super) struct ModelRow<'a> {
    id: &'a str,
    #[serde(flatten)]
    file: Option<FileRow<'a>>,
    #[serde(flatten)]
    life: LifeRow<'a>,
}

#[derive(Serialize)]
struct FileRow<'a> {
    format: &'a str,
    architecture: Option<&'a str>,
    name: Option<&'a str>,
    quantization: Option<&'a str>,
    task: Option<&'a str>,
    size_bytes: u64,
    context_length: Option<u64>,
    origin: Origin,
    path: String,
    files: Vec<String>,
    also: Vec<String>,
    modified: u64,
    /// It was written since the model was loaded, which is what it was before.
    changed: bool,
}

/// A model that is not merely available.
#[derive(Serialize)]
struct WorkerRow<'a> {
    model_id: &'a str,
    #[serde(flatten)]
    life: LifeRow<'a>,
}

#[derive(Default, Serialize)]
struct LifeRow<'a> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorRow<'a>>,
    /// Seconds until a model that crashed may be loaded again.
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

#[derive(Serialize)]
pub(super) struct ErrorRow<'a> {
    pub(super) code: ErrorCode,
    pub(super) message: &'a str,
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

#[derive(Serialize)]
pub(super) struct MemoryRow<'a> {
    device: &'a str,
    /// Of the device among the node's; `None`: it does not know that one.
    id: Option<&'a str>,
    bus_id: Option<&'a str>,
    is_host: bool,
    weights_bytes: u64,
    cache_bytes: u64,
    compute_bytes: u64,
    total_bytes: u64,
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

/// Devices, ledger, workers, versions.
#[derive(Serialize)]
pub(super) struct SystemRow<'a> {
    /// Since the node began.
    uptime_seconds: u64,
    /// Since the devices were read last.
    reading_age_seconds: f64,
    gpu_backend: Option<&'a str>,
    vram_limit_bytes: &'a MemoryLimit,
    devices: Vec<DeviceRow<'a>>,
    workers: Vec<WorkerRow<'a>>,
    /// The models that wait until others have made room, in their order.
    line: Vec<PlaceRow<'a>>,
    load: LoadRow,
    /// How often of each kind something has happened to models.
    events: BTreeMap<&'static str, u64>,
    /// How often loads were refused for want of memory, by the error's code.
    refusals: BTreeMap<&'static str, u64>,
    /// How often workers crashed, by their engine's id.
    crashes: BTreeMap<String, u64>,
    versions: Versions,
}

/// A model that waits for room.
#[derive(Serialize)]
struct PlaceRow<'a> {
    model_id: &'a str,
    /// From 1 on.
    position: usize,
    needs_bytes: u64,
    /// Who is in its way.
    waits_for: &'a [String],
    /// Until there is room for it, as things stand.
    expected_seconds: u64,
}

impl<'a> PlaceRow<'a> {
    fn of(at: usize, place: &'a Place, now: Moment) -> Self {
        Self {
            model_id: &place.model_id,
            position: at + 1,
            needs_bytes: place.needs_bytes,
            waits_for: &place.waits_for,
            expected_seconds: seconds_until(now, place.expected),
        }
    }
}

#[derive(Serialize)]
struct DeviceRow<'a> {
    id: &'a str,
    /// Of which device its memory is. One that shares another's has none of its own, and its figures are 0.
    account: &'a str,
    index: u32,
    name: &'a str,
    bus_id: Option<&'a str>,
    kind: &'static str,
    state: DeviceState,
    total_bytes: u64,
    free_bytes: u64,
    limit_bytes: u64,
    /// What others than models take.
    foreign_bytes: u64,
    reserved_bytes: u64,
    /// What of it is beyond what their engines say.
    unexplained_bytes: u64,
    /// Of models that have gone, and not free yet.
    settling_bytes: u64,
    /// Of a GPU that tells.
    look: Option<Look>,
    holders: Vec<Holder>,
}

/// How busy the whole node is, in one figure for who divides requests among several.
#[derive(Default, Serialize)]
struct LoadRow {
    /// Requests under way, those that wait included.
    requests: usize,
    /// How many could be computed at once by the models that are loaded.
    capacity: usize,
    /// Prompt tokens of requests that wait.
    queued_tokens: usize,
    /// Of the fullest model; 1: full. For who starts nodes and ends them.
    value: f64,
}

impl LoadRow {
    fn of(inner: &Inner, view: &FleetView) -> Self {
        let mut load = Self::default();
        for model in view.models.values() {
            load.requests += streams_of(inner, model);
            let loaded = model.workers.iter().filter_map(|worker| worker.loaded.as_ref());
            load.capacity += loaded.map(|(_, loaded)| loaded.facts.max_sequences as usize).sum::<usize>();
            if let Some(occupancy) = occupancy_of(inner, model) {
                load.queued_tokens += occupancy.queued_tokens;
                load.value = load.value.max(fullness(&occupancy));
            }
        }
        load
    }
}

/// Requests of all its workers that have had no ending.
fn streams_of(inner: &Inner, view: &ModelView) -> usize {
    view.workers.iter().map(|worker| inner.traffic.streams_of(worker.id)).sum()
}

/// Tokens of answers that all its workers made in the last second.
fn tokens_per_second(inner: &Inner, view: &ModelView) -> f64 {
    view.workers.iter().map(|worker| inner.traffic.tokens_per_second(worker.id)).sum()
}

/// What the schedulers of all its workers know, together; `None` until one has said so.
fn occupancy_of(inner: &Inner, view: &ModelView) -> Option<Occupancy> {
    let processes = view.workers.iter().filter_map(|worker| inner.processes.get(worker.id));
    processes.filter_map(|process| process.occupancy()).reduce(Occupancy::and)
}

/// Of its sequences, its cache and the time that may pass until a prompt is read, whichever is nearest its end.
fn fullness(occupancy: &Occupancy) -> f64 {
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let sequences = share(occupancy.running as u64, occupancy.max_running as u64);
    // What is kept for prompts to come goes as soon as somebody needs the room.
    let cache = share(occupancy.cache_used.saturating_sub(occupancy.kept_tokens), occupancy.cache_tokens);
    let wait = share(occupancy.queued_tokens as u64, occupancy.prompt_rate.into()) / FULL_WAIT_SECONDS;
    sequences.max(cache).max(wait)
}

#[derive(Serialize)]
struct Versions {
    llm_node: &'static str,
    abi: u32,
    protocol: u32,
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
}

impl<'a> LoadedRow<'a> {
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

/// Has the file been written since its last load failed? Then it may be mended.
fn is_mended(view: &ModelView) -> bool {
    matches!(view.status, Status::Failed(_)) && !are_unchanged(&view.files)
}

/// What such workers hold of all devices.
fn held(accounts: &[Account], is_it: impl Fn(WorkerId) -> bool) -> u64 {
    let holders = accounts.iter().flat_map(|account| &account.holders);
    holders.filter(|holder| is_it(holder.worker)).map(|holder| holder.bytes).sum()
}

/// Of the device among the node's.
fn id_of(use_: &MemoryUse) -> Option<&str> {
    if use_.is_host { Some("host") } else { use_.id.as_deref() }
}

impl<'a> MemoryRow<'a> {
    pub(super) fn of(use_: &'a MemoryUse) -> Self {
        Self {
            device: &use_.device,
            id: id_of(use_),
            bus_id: use_.bus_id.as_deref(),
            is_host: use_.is_host,
            weights_bytes: use_.weights,
            cache_bytes: use_.cache,
            compute_bytes: use_.compute,
            total_bytes: use_.total(),
        }
    }
}

impl<'a> FileRow<'a> {
    fn of(model: &'a Model, view: Option<&ModelView>) -> Self {
        Self {
            format: &model.format,
            architecture: model.architecture.as_deref(),
            name: model.name.as_deref(),
            quantization: model.quantization.as_deref(),
            task: model.task,
            size_bytes: model.size_bytes,
            context_length: model.context_length,
            origin: model.origin,
            path: model.path.display().to_string(),
            files: shown(&model.parts),
            also: shown(&model.also),
            modified: modified(&model.path),
            changed: view.is_some_and(|view| !view.workers.is_empty() && !are_unchanged(&view.files)),
        }
    }
}

impl<'a> DeviceRow<'a> {
    /// `host`: as it is now.
    fn of(account: &'a Account, host: &'a Device, view: &FleetView, now: Moment) -> Self {
        let Account { id, device, limit_bytes, foreign_bytes, reserved_bytes, .. } = account;
        let device = if device.kind == DeviceKind::Host { host } else { device };
        Self {
            id,
            account: &account.account,
            index: device.index,
            name: &device.name,
            bus_id: device.bus_id.as_deref(),
            kind: device.kind_word(),
            state: device.state,
            total_bytes: device.total_bytes,
            free_bytes: device.free_bytes,
            limit_bytes: *limit_bytes,
            foreign_bytes: *foreign_bytes,
            reserved_bytes: *reserved_bytes,
            unexplained_bytes: account.unexplained_bytes,
            settling_bytes: account.settling_bytes,
            look: device.look,
            holders: account.holders.iter().map(|holder| kept_now(holder, view, now)).collect(),
        }
    }
}

/// With what keeps it now.
fn kept_now(holder: &Holder, view: &FleetView, now: Moment) -> Holder {
    let kept = view.models.get(&holder.model_id).and_then(|model| model.kept?.at(now));
    Holder { kept_by: kept.map(|kept| kept.by), ..holder.clone() }
}

impl<'a> LifeRow<'a> {
    /// `accounts`: of the devices.
    fn of(inner: &Inner, view: &'a ModelView, accounts: &[Account]) -> Self {
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
            streams: streams_of(inner, view),
            draining: matches!(view.status, Status::Draining { .. }),
            pinned: view.is_pinned,
            idle_seconds: view.idle_since.map(|since| inner.fleet.now().since(since).as_secs()),
            goes_in_seconds: view.unused_from.map(|from| from.since(inner.fleet.now()).as_secs()),
            ready_seconds: inner.fleet.now().since(*since).as_secs(),
            silent_seconds: process.as_ref().map_or(0, |process| process.silence.seconds()),
            call_seconds: process.as_ref().map_or(0, |process| process.call_seconds()),
            tokens_per_second: tokens_per_second(inner, view),
            occupancy: occupancy_of(inner, view),
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

impl<'a> ModelRow<'a> {
    pub(super) fn of(inner: &Inner, model: &'a Model, fleet: &'a FleetView) -> Self {
        let view = fleet.models.get(&model.id).map(AsRef::as_ref);
        let mut life = view.map_or_else(
            || LifeRow { status: "available", ..LifeRow::default() },
            |view| LifeRow::of(inner, view, &fleet.accounts),
        );
        if let Some(problem) = &model.problem
            && life.status == "available"
        {
            life.status = "failed";
            life.error = Some(ErrorRow { code: problem.code, message: &problem.message });
        }
        Self { id: &model.id, file: Some(FileRow::of(model, view)), life }
    }

    /// Of one whose file has gone; `None`: there is nothing left of it.
    pub(super) fn without_file(inner: &Inner, id: &'a str, fleet: &'a FleetView) -> Option<Self> {
        let view = fleet.models.get(id).filter(|view| !view.workers.is_empty())?;
        Some(Self { id, file: None, life: LifeRow::of(inner, view, &fleet.accounts) })
    }
}

impl SystemRow<'_> {
    /// Written where it is made, since it is made of what is here only for a moment.
    pub(super) fn written(inner: &Inner) -> Result<String, Fault> {
        let (view, now) = (inner.fleet.view(), inner.fleet.now());
        let host = measure_host();
        let is_busy = |view: &ModelView| !matches!(view.status, Status::Available) && !is_mended(view);
        let busy = view.models.iter().filter(|(_, view)| is_busy(view));
        let accounts = &view.accounts;
        let incidents = inner.fleet.incidents();
        written(&SystemRow {
            uptime_seconds: inner.fleet.now().0.as_secs(),
            reading_age_seconds: inner.fleet.age_of_reading().as_secs_f64(),
            gpu_backend: inner.config.gpu_backend.as_deref(),
            vram_limit_bytes: &inner.config.vram_limit_bytes,
            devices: accounts.iter().map(|account| DeviceRow::of(account, &host, &view, now)).collect(),
            workers: busy
                .map(|(model_id, view)| WorkerRow { model_id, life: LifeRow::of(inner, view, accounts) })
                .collect(),
            line: view.line.iter().enumerate().map(|(at, place)| PlaceRow::of(at, place, now)).collect(),
            load: LoadRow::of(inner, &view),
            events: incidents.counts,
            refusals: incidents.refusals,
            crashes: incidents.crashes,
            versions: Versions {
                llm_node: env!("CARGO_PKG_VERSION"),
                abi: llm_node_abi::ENGINE_ABI_VERSION,
                protocol: PROTOCOL_VERSION,
            },
        })
    }
}

/// Rounded up.
pub(super) fn seconds_until(now: Moment, until: Moment) -> u64 {
    until.since(now).as_millis().div_ceil(1000) as u64
}

fn shown(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

/// When a file was written last, in seconds since 1970; 0: nobody knows.
fn modified(path: &Path) -> u64 {
    let written = fs::metadata(path).and_then(|file| file.modified());
    written.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_as_full_as_what_is_nearest_its_end() {
        let idle = Occupancy { max_running: 8, cache_tokens: 1000, prompt_rate: 500, ..Occupancy::default() };
        let full = |change: fn(&mut Occupancy)| {
            let mut occupancy = idle;
            change(&mut occupancy);
            fullness(&occupancy)
        };
        let cases = [
            (full(|_| ()), 0.0),
            (full(|it| it.running = 4), 0.5),
            (full(|it| (it.running, it.cache_used) = (4, 900)), 0.9),
            (full(|it| (it.cache_used, it.kept_tokens) = (900, 600)), 0.3),
            (full(|it| (it.running, it.queued_tokens) = (8, 3000)), 3.0),
            // Nothing is known of its speed, or of its cache.
            (full(|it| (it.queued_tokens, it.prompt_rate) = (3000, 0)), 0.0),
            (full(|it| (it.running, it.cache_tokens) = (8, 0)), 1.0),
        ];
        for (found, wanted) in cases {
            assert!((found - wanted).abs() < 1e-9, "{found} {wanted}");
        }
    }
}
