//! How busy models are, and the node.

use llm_node_core::session::Occupancy;
use llm_node_fleet::{FleetView, ModelView};
use serde::Serialize;

use super::Inner;

/// A prompt that waits so long until it is read finds its model full.
const FULL_WAIT_SECONDS: f64 = 2.0;

/// How busy the whole node is, in one figure for who divides requests among several.
#[derive(Default, Serialize)]
pub(super) struct LoadRow {
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
    pub(super) fn of(inner: &Inner, view: &FleetView) -> Self {
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

/// Of its sequences, its cache and the time that may pass until a prompt is read, whichever is nearest its end.
fn fullness(occupancy: &Occupancy) -> f64 {
    let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let sequences = share(occupancy.running as u64, occupancy.max_running as u64);
    // What is kept for prompts to come goes as soon as somebody needs the room.
    let cache = share(occupancy.cache_used.saturating_sub(occupancy.kept_tokens), occupancy.cache_tokens);
    let wait = share(occupancy.queued_tokens as u64, occupancy.prompt_rate.into()) / FULL_WAIT_SECONDS;
    sequences.max(cache).max(wait)
}

/// How much a model is wanted, loaded or not.
#[derive(Serialize)]
pub(super) struct DemandRow {
    /// Of late; what was asked a quarter of an hour ago counts half.
    requests_per_minute: f64,
    /// Requests that wait for its load.
    parked: usize,
}

impl DemandRow {
    pub(super) fn of(inner: &Inner, view: &FleetView, model_id: &str) -> Self {
        let a_minute = view.use_rates.a_minute(inner.fleet.now(), model_id);
        Self { requests_per_minute: (100.0 * a_minute).round() / 100.0, parked: inner.parked_for(model_id) }
    }
}

/// Requests of all its workers that have had no ending.
pub(super) fn streams_of(inner: &Inner, view: &ModelView) -> usize {
    view.workers.iter().map(|worker| inner.traffic.streams_of(worker.id)).sum()
}

/// Tokens of answers that all its workers made in the last second.
pub(super) fn tokens_per_second(inner: &Inner, view: &ModelView) -> f64 {
    view.workers.iter().map(|worker| inner.traffic.tokens_per_second(worker.id)).sum()
}

/// What the schedulers of all its workers know, together; `None` until one has said so.
pub(super) fn occupancy_of(inner: &Inner, view: &ModelView) -> Option<Occupancy> {
    let processes = view.workers.iter().filter_map(|worker| inner.processes.get(worker.id));
    processes.filter_map(|process| process.occupancy()).reduce(Occupancy::and)
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
