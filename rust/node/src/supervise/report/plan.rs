//! What a load would come to, as who asks gets it. Owns the names of all these fields.

use std::collections::BTreeMap;

use llm_node_core::{
    error::Fault,
    options::{ModelOptions, OptionValue},
};
use llm_node_fleet::{Basis, Foreseen, Holder, Moment, Planned, Verdict};
use serde::Serialize;

use super::{ErrorRow, MemoryRow, seconds_until, written};

/// The verdict on a load that would not begin.
const REFUSED: &str = "refused";

#[derive(Default, Serialize)]
struct PlanRow<'a> {
    verdict: &'static str,
    /// `None`: there is none, or the model is refused before one is chosen.
    engine: Option<&'a str>,
    /// Where the figures come from; `None`: there are none.
    basis: Option<Basis>,
    /// When such a load was measured last, in seconds since 1970; `None`: the figures are no measured ones of a load.
    measured_at: Option<u64>,
    memory: Vec<MemoryRow<'a>>,
    devices: Vec<NeedRow<'a>>,
    /// The size of its context; `None`: its engine does not say what that takes.
    shape: Option<ShapeRow>,
    shrink: Vec<ShrinkRow<'a>>,
    unload: Vec<LeaverRow<'a>>,
    holders: &'a [Holder],
    /// Until there would be room, of one that would wait; `None`: it would not, or nobody can say.
    wait_seconds: Option<u64>,
    /// Until it would answer; `None`: nobody can say, or it never would.
    ready_seconds: Option<f64>,
    /// For one sequence, with all gone that may; `None`: its engine does not say what a token takes.
    largest_context: Option<u32>,
    /// What a load may say in place of what was said, each with the longest context that there is room for then;
    /// `None`: nobody can say, or there is nothing better.
    would_fit: Option<Vec<OfferRow<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<RefusalRow<'a>>,
}

#[derive(Serialize)]
struct NeedRow<'a> {
    id: &'a str,
    device: &'a str,
    required_bytes: u64,
    available_bytes: u64,
    limit_bytes: u64,
    foreign_bytes: u64,
}

#[derive(Serialize)]
struct ShapeRow {
    context_length: u32,
    max_sequences: u32,
    cache_tokens: u64,
}

#[derive(Serialize)]
struct ShrinkRow<'a> {
    model_id: &'a str,
    bytes: u64,
}

#[derive(Serialize)]
struct LeaverRow<'a> {
    model_id: &'a str,
    idle_seconds: Option<u64>,
    reload_seconds: f64,
}

/// As the body of a load has it.
#[derive(Serialize)]
struct OfferRow<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<&'a BTreeMap<String, OptionValue>>,
}

impl<'a> OfferRow<'a> {
    fn of(offer: &'a ModelOptions) -> Self {
        let ModelOptions { context_length, cache_tokens, options, .. } = offer;
        Self { context_length: *context_length, cache_tokens: *cache_tokens, options: options.as_ref() }
    }
}

#[derive(Serialize)]
struct RefusalRow<'a> {
    #[serde(flatten)]
    error: ErrorRow<'a>,
    param: Option<&'a str>,
}

impl<'a> RefusalRow<'a> {
    fn of(fault: &'a Fault) -> Self {
        Self { error: ErrorRow { code: fault.code, message: &fault.message }, param: fault.param.as_deref() }
    }
}

/// A load that would be refused whatever room there is, as who asked what it would come to gets it.
pub(in crate::supervise) fn refused(fault: &Fault) -> Result<String, Fault> {
    written(&PlanRow { verdict: REFUSED, error: Some(RefusalRow::of(fault)), ..PlanRow::default() })
}

/// What a load would come to, as who asked gets it. `offers`: what would fit.
pub(in crate::supervise) fn planned(
    now: Moment,
    planned: &Planned,
    offers: Option<&[ModelOptions]>,
) -> Result<String, Fault> {
    let (verdict, fault) = match &planned.verdict {
        Verdict::Loaded => ("loaded", None),
        Verdict::Fits => ("fits", None),
        Verdict::AfterShrinking => ("after_shrinking", None),
        Verdict::AfterUnloading => ("after_unloading", None),
        Verdict::AfterWaiting => ("after_waiting", None),
        Verdict::Refused(fault) => (REFUSED, Some(fault)),
    };
    let devices = planned.needs.iter().map(|need| NeedRow {
        id: &need.id,
        device: &need.device,
        required_bytes: need.required_bytes,
        available_bytes: need.available_bytes,
        limit_bytes: need.limit_bytes,
        foreign_bytes: need.foreign_bytes,
    });
    let shrink = planned.shrink.iter();
    let unload = planned.unload.iter().map(|leaver| LeaverRow {
        model_id: &leaver.model_id,
        idle_seconds: leaver.idle_since.map(|since| now.since(since).as_secs()),
        reload_seconds: leaver.reload_seconds,
    });
    let Foreseen { engine, memory, basis, before, .. } = &planned.foreseen;
    let measured = before.as_ref().filter(|_| *basis == Basis::Measured);
    written(&PlanRow {
        verdict,
        engine: Some(engine),
        basis: Some(*basis),
        measured_at: measured.map(|before| before.date),
        memory: memory.iter().map(MemoryRow::of).collect(),
        devices: devices.collect(),
        shape: planned.shape.map(|shape| ShapeRow {
            context_length: shape.context_length,
            max_sequences: shape.max_sequences,
            cache_tokens: shape.cells(),
        }),
        shrink: shrink.map(|(model_id, bytes)| ShrinkRow { model_id, bytes: *bytes }).collect(),
        unload: unload.collect(),
        holders: &planned.holders,
        wait_seconds: planned.room_from.map(|from| seconds_until(now, from)),
        ready_seconds: planned.ready_seconds,
        largest_context: planned.largest_context,
        would_fit: offers.map(|offers| offers.iter().map(OfferRow::of).collect()),
        error: fault.map(RefusalRow::of),
    })
}
