//! Memory of workers that have ended: it counts until it shows as free.

use std::{collections::BTreeMap, time::Duration};

use super::{Ledger, SETTLE, sum};
use crate::{DeviceKind, Moment, WorkerId, size::format_up};

/// What a worker that has ended held of GPUs.
#[derive(Clone, Debug)]
pub(super) struct Settling {
    model_id: String,
    /// By GPU: what is to come back, and how much is free once most of it has.
    pub(super) owed: BTreeMap<String, (u64, u64)>,
    /// It is waited for no longer than until then.
    by: Moment,
}

impl Ledger {
    /// It is gone, and its memory of GPUs is counted until it shows as free, `settle` at the longest.
    pub(crate) fn release(&mut self, now: Moment, worker: WorkerId, settle: Duration) {
        let Some(holding) = self.holdings.remove(&worker) else { return };
        self.settled_from = now + SETTLE;
        let mut owed = BTreeMap::new();
        for (name, &bytes) in holding.needs.iter().filter(|(_, bytes)| **bytes > 0) {
            let Some(entry) = self.entries.get(name) else { continue };
            if entry.device.kind != DeviceKind::Gpu {
                continue;
            }
            let bytes = holding.seen.get(name).copied().unwrap_or(bytes);
            // What does not show as taken does not show as free either: nobody waits for that.
            let others = self.shown(name).saturating_sub(self.settling_of(name));
            let taken = entry.device.total_bytes.saturating_sub(entry.device.free_bytes);
            let back = bytes.min(taken.saturating_sub(others.saturating_add(self.settling_of(name))));
            if back < bytes / 10 && !holding.is_pending {
                continue;
            }
            let most = back - back / 10;
            // Of a load that was under way, nobody knows how much had been taken.
            let free = match holding.free_before.get(name).filter(|_| holding.is_pending) {
                Some(free) => free.saturating_sub(bytes / 10),
                None => entry.device.free_bytes.saturating_add(self.settling_of(name)).saturating_add(most),
            };
            owed.insert(name.clone(), (bytes, free));
        }
        if !owed.is_empty() {
            self.settling.insert(worker, Settling { model_id: holding.model_id, owed, by: now + settle });
        }
    }

    /// Workers that have ended, and whose memory does not show as free yet.
    pub(crate) fn settling(&self) -> impl Iterator<Item = WorkerId> {
        self.settling.keys().copied()
    }

    /// When the first of them is waited for no longer.
    pub(crate) fn settles_by(&self) -> Option<Moment> {
        self.settling.values().map(|settling| settling.by).min()
    }

    /// Those that are waited for no longer: whose they were, and what does not show as free.
    pub(crate) fn given_up(&mut self, now: Moment) -> Vec<(String, String)> {
        let (late, in_time): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.settling).into_iter().partition(|(_, settling)| settling.by <= now);
        self.settling = in_time;
        for (name, (bytes, _)) in late.values().flat_map(|settling| &settling.owed) {
            // Whatever takes it, it is no model.
            if let Some(entry) = self.entries.get_mut(name) {
                entry.taken_when_measured = entry.taken_when_measured.saturating_sub(*bytes);
            }
        }
        let words = |settling: Settling| {
            let of = |(name, (bytes, _)): (&String, &(u64, u64))| {
                format!("{} of {}", format_up(*bytes), self.name_of(name))
            };
            let words: Vec<String> = settling.owed.iter().map(of).collect();
            (settling.model_id, words.join(", "))
        };
        late.into_values().map(words).collect()
    }

    pub(super) fn settling_of(&self, name: &str) -> u64 {
        sum(self.settling.values().filter_map(|settling| Some(&settling.owed.get(name)?.0)))
    }
}
