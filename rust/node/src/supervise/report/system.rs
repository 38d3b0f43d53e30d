//! The node as a whole: devices, ledger, line, versions.

use std::collections::BTreeMap;

use llm_node_core::{error::Fault, options::MemoryLimit};
use llm_node_fleet::{
    Account, Device, DeviceKind, DeviceState, FleetView, Holder, Look, ModelView, Moment, Place, Status,
};
use llm_node_wire::message::PROTOCOL_VERSION;
use serde::Serialize;

use super::{
    Inner,
    busy::{DemandRow, LoadRow},
    life::{LifeRow, is_mended},
    seconds_until, written,
};
use crate::supervise::load::measure_host;

/// Devices, ledger, workers, versions.
#[derive(Serialize)]
pub(in crate::supervise) struct SystemRow<'a> {
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

impl SystemRow<'_> {
    /// Written where it is made, since it is made of what is here only for a moment.
    pub(in crate::supervise) fn written(inner: &Inner) -> Result<String, Fault> {
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
                .map(|(model_id, it)| WorkerRow {
                    model_id,
                    life: LifeRow::of(inner, it, accounts),
                    demand: DemandRow::of(inner, &view, model_id),
                })
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

/// A model that is not merely available.
#[derive(Serialize)]
struct WorkerRow<'a> {
    model_id: &'a str,
    #[serde(flatten)]
    life: LifeRow<'a>,
    #[serde(flatten)]
    demand: DemandRow,
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

#[derive(Serialize)]
struct Versions {
    llm_node: &'static str,
    abi: u32,
    protocol: u32,
}
