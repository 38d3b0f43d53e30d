//! What is taken of GPUs: on which of the node's GPUs, and what the same load would take of others.

use llm_node_core::memory::{Figures, GpuAddress, MemoryUse, normal_bus_id};

use crate::{Known, placement::Load};

impl Known {
    /// The same on these GPUs; `None`: it was on another number of them.
    pub(crate) fn on(self, place: &[GpuAddress]) -> Option<Self> {
        let count = gpus_of(&self.uses).len();
        if place.is_empty() || count == 0 {
            return Some(self);
        }
        (count == place.len()).then(|| Self {
            uses: on(&self.uses, place),
            estimated: on(&self.estimated, place),
            figures: figures_on(&self.figures, place),
            ..self
        })
    }
}

/// What an engine says, with the node's ids of the GPUs that its worker sees.
pub(crate) fn located(mut uses: Vec<MemoryUse>, place: &[GpuAddress]) -> Vec<MemoryUse> {
    let has_no_buses = place.iter().all(|gpu| gpu.bus_id.is_none());
    for use_ in uses.iter_mut().filter(|use_| !use_.is_host) {
        if place.iter().any(|gpu| use_.id.as_ref() == Some(&gpu.id)) {
            continue;
        }
        let bus_id = use_.bus_id.as_deref().map(normal_bus_id);
        let digits = use_.device.trim_start_matches(|c: char| !c.is_ascii_digit());
        let found = if bus_id.is_none() || has_no_buses {
            digits.parse().ok().and_then(|order: usize| place.get(order)).or(place.first())
        } else {
            place.iter().find(|gpu| gpu.bus_id.as_deref().map(normal_bus_id) == bus_id)
        };
        use_.id = found.map(|gpu| gpu.id.clone());
    }
    uses
}

pub(crate) fn figures_located(figures: Figures, place: &[GpuAddress]) -> Figures {
    Figures { one: located(figures.one, place), draft: located(figures.draft, place) }
}

/// What is taken of some GPUs, on these instead: in their order where they are as many, else divided evenly.
pub(crate) fn on(uses: &[MemoryUse], place: &[GpuAddress]) -> Vec<MemoryUse> {
    let gpus = gpus_of(uses);
    if place.is_empty() || gpus.is_empty() {
        return uses.to_vec();
    }
    let there = |use_: &MemoryUse, gpu: &GpuAddress| MemoryUse {
        device: format!("GPU {}", gpu.index),
        id: Some(gpu.id.clone()),
        bus_id: gpu.bus_id.clone(),
        ..use_.clone()
    };
    if gpus.len() == place.len() {
        let at = |use_: &MemoryUse| {
            let at = gpus.iter().position(|gpu| *gpu == name_of(use_));
            at.filter(|_| !use_.is_host).map_or_else(|| use_.clone(), |at| there(use_, &place[at]))
        };
        return uses.iter().map(at).collect();
    }
    let of_gpus = || uses.iter().filter(|use_| !use_.is_host);
    let sum = |of: fn(&MemoryUse) -> u64| of_gpus().map(of).fold(0, u64::saturating_add);
    let count = place.len();
    let share = |bytes: u64| Load { shared: bytes, each: 0 }.on(count).div_ceil(count as u64);
    let part = MemoryUse {
        weights: share(sum(|it| it.weights)),
        cache: share(sum(|it| it.cache)),
        compute: Load { shared: 0, each: load_of(uses).each }.on(count).div_ceil(count as u64),
        cache_per_token: share(sum(|it| it.cache_per_token)),
        cache_per_sequence: share(sum(|it| it.cache_per_sequence)),
        ..MemoryUse::default()
    };
    let host = uses.iter().filter(|use_| use_.is_host).cloned();
    host.chain(place.iter().map(|gpu| there(&part, gpu))).collect()
}

pub(crate) fn figures_on(figures: &Figures, place: &[GpuAddress]) -> Figures {
    Figures { one: on(&figures.one, place), draft: on(&figures.draft, place) }
}

/// What is taken of GPUs.
pub(super) fn load_of(uses: &[MemoryUse]) -> Load {
    let gpus = || uses.iter().filter(|use_| !use_.is_host);
    let shared = gpus().map(|use_| use_.weights.saturating_add(use_.cache)).fold(0, u64::saturating_add);
    Load { shared, each: gpus().map(|use_| use_.compute).max().unwrap_or(0) }
}

/// The GPUs that something is taken of, in their order.
pub(super) fn gpus_of(uses: &[MemoryUse]) -> Vec<(Option<&str>, &str, Option<&str>)> {
    let mut gpus = Vec::new();
    for use_ in uses.iter().filter(|use_| !use_.is_host) {
        if !gpus.contains(&name_of(use_)) {
            gpus.push(name_of(use_));
        }
    }
    gpus
}

/// What tells a GPU from others.
fn name_of(use_: &MemoryUse) -> (Option<&str>, &str, Option<&str>) {
    match &use_.id {
        Some(id) => (Some(id), "", None),
        None => (None, &use_.device, use_.bus_id.as_deref()),
    }
}
