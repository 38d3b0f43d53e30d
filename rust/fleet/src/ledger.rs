//! What models may be placed on, and how much of it is spoken for.
//!
//! Figures of what is free, and of what processes are seen to take, are told to it: what a model holds is what its
//! engine says, or what is seen where that is more. What is seen is taken over in `reading`, and what is told in
//! `account`. Which device an engine means is said in `devices`, whether there is room in `room`, what a load came to in
//! `commitment`, and what comes back of one that has ended in `settling`.

mod account;
mod commitment;
mod devices;
mod reading;
mod room;
mod settling;

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use llm_node_core::{memory::MemoryUse, options::MemoryLimit};

pub(crate) use self::commitment::{Commitment, goes_unsaid};
use self::settling::Settling;
pub use self::{
    account::{Account, Holder},
    devices::guessed,
};
use crate::{Device, Moment, WorkerId, event::HOST, shape::Spare};

/// After a process has ended, its memory of the host may take so long until it shows as free.
const SETTLE: Duration = Duration::from_secs(1);

/// All devices, and what each worker holds of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// The backend is the CPU: then the host's memory is the device, and the limit counts there.
    on_cpu: bool,
    limit: MemoryLimit,
    /// What is left to others of each device that the limit counts for; `None`: a part of it.
    reserve: Option<u64>,
    /// A load may take one part in so many of what is free for its cache.
    parts: u64,
    entries: BTreeMap<String, Entry>,
    holdings: BTreeMap<WorkerId, Holding>,
    /// What workers that have ended held of GPUs, as long as it does not show as free.
    settling: BTreeMap<WorkerId, Settling>,
    /// What was held last may not show as free before then.
    settled_from: Moment,
}

#[derive(Clone, Debug)]
struct Entry {
    device: Device,
    limit: u64,
    /// What of it is left to others.
    reserve: u64,
    /// What was reserved, and taken already, when `device.free_bytes` was measured.
    taken_when_measured: u64,
    /// No load was under way then.
    was_calm: bool,
    /// Since when less than half of the reserve is free, and for how long that was seen.
    low: Option<(Moment, Duration)>,
}

#[derive(Clone, Debug)]
struct Holding {
    model_id: String,
    /// Of its process.
    pid: Option<u32>,
    /// Bytes by device: what counts.
    needs: BTreeMap<String, u64>,
    /// What its engine says; until it is loaded, what was reserved.
    said: BTreeMap<String, u64>,
    /// What its process was seen to take when somebody looked last.
    seen: BTreeMap<String, u64>,
    /// What was free when it was reserved.
    free_before: BTreeMap<String, u64>,
    /// What a GPU had less after its load, beyond what its engine says.
    beyond: BTreeMap<String, u64>,
    /// It holds something for the first time.
    is_first: bool,
    /// Its load is under way: the device's figure does not show it yet.
    is_pending: bool,
    is_pinned: bool,
    /// Another load was under way on one of its devices meanwhile.
    is_disturbed: bool,
}

impl Ledger {
    /// `limit`: most that models may take.
    pub(crate) fn new(on_cpu: bool, limit: MemoryLimit) -> Self {
        Self { on_cpu, limit, parts: 1, ..Self::default() }
    }

    /// So many bytes of each device that the limit counts for are left to others.
    pub(crate) fn reserving(self, reserve: Option<u64>) -> Self {
        Self { reserve, ..self }
    }

    /// A load may take one part in so many of what is free for its cache.
    pub(crate) fn in_parts(self, parts: u64) -> Self {
        Self { parts, ..self }
    }

    /// Is the host's memory the device that models are placed on?
    pub(crate) fn is_on_cpu(&self) -> bool {
        self.on_cpu
    }

    /// What it holds is held by this process.
    pub(crate) fn runs_as(&mut self, worker: WorkerId, pid: u32) {
        if let Some(holding) = self.holdings.get_mut(&worker) {
            holding.pid = Some(pid);
        }
    }

    /// Room for what an engine says that a load takes, in place of what the worker has; all of it or nothing, and then
    /// false: [`Self::room`] says what is lacking.
    pub(crate) fn reserve(
        &mut self,
        worker: WorkerId,
        uses: &[MemoryUse],
        model_id: &str,
        is_pinned: bool,
    ) -> bool {
        if !self.has_room(uses, |other| other != worker) {
            return false;
        }
        let mut needs = self.by_device(uses);
        let mut is_disturbed = false;
        for other in self.holdings.values_mut() {
            if other.is_pending && needs.keys().any(|name| other.needs.contains_key(name)) {
                other.is_disturbed = true;
                is_disturbed = true;
            }
        }
        let free = |name: &String| Some((name.clone(), self.entries.get(name)?.device.free_bytes));
        let free_before = needs.keys().filter_map(free).collect();
        let before = self.holdings.remove(&worker);
        for (name, &bytes) in before.iter().flat_map(|holding| &holding.needs) {
            // Until it has the new, it may have the old again.
            let need = needs.entry(name.clone()).or_default();
            *need = bytes.max(*need);
        }
        let holding = Holding {
            model_id: model_id.to_owned(),
            pid: before.as_ref().and_then(|holding| holding.pid),
            said: needs.clone(),
            // Until it is looked at again.
            seen: before.as_ref().map(|holding| holding.seen.clone()).unwrap_or_default(),
            is_first: before.is_none(),
            beyond: before.as_ref().map(|holding| holding.beyond.clone()).unwrap_or_default(),
            free_before: before.map_or(free_before, |holding| holding.free_before),
            needs,
            is_pending: true,
            is_pinned,
            is_disturbed,
        };
        self.holdings.insert(worker, holding);
        true
    }

    /// Does it hold memory of a GPU, which others than this machine's kernel count?
    pub(crate) fn is_on_gpu(&self, worker: WorkerId) -> bool {
        let holding = self.holdings.get(&worker);
        let is_counted = |(name, bytes): (&String, &u64)| *bytes > 0 && self.account_of(name) != HOST;
        holding.is_some_and(|holding| holding.needs.iter().any(is_counted))
    }

    /// Whether it goes for nobody's sake.
    pub(crate) fn pin(&mut self, worker: WorkerId, is_pinned: bool) {
        if let Some(holding) = self.holdings.get_mut(&worker) {
            holding.is_pinned = is_pinned;
        }
    }

    /// Does it hold anything?
    pub(crate) fn holds(&self, worker: WorkerId) -> bool {
        self.holdings.contains_key(&worker)
    }

    /// What was reserved for a worker is free again.
    pub(crate) fn withdraw(&mut self, worker: WorkerId) {
        self.holdings.remove(&worker);
        self.settling.remove(&worker);
    }

    /// As it will be once these have given up what they can do without.
    pub(crate) fn after(&self, spares: &[Spare]) -> Cow<'_, Self> {
        let mut after = Cow::Borrowed(self);
        for Spare { worker, gain, .. } in spares {
            let gain = self.by_device(gain);
            let Some(holding) = after.to_mut().holdings.get_mut(worker) else { continue };
            for (name, bytes) in gain {
                if let Some(need) = holding.needs.get_mut(&name) {
                    *need = need.saturating_sub(bytes);
                }
            }
        }
        after
    }

    /// As it will be once these have gone.
    pub(crate) fn without(&self, workers: impl IntoIterator<Item = WorkerId>) -> Self {
        let mut then = self.clone();
        workers.into_iter().for_each(|worker| then.withdraw(worker));
        then
    }

    /// As it would be if models alone took anything of devices.
    pub(crate) fn by_limits(&self) -> Self {
        let mut then = self.clone();
        for entry in then.entries.values_mut() {
            (entry.device.free_bytes, entry.taken_when_measured) = (entry.device.total_bytes, 0);
        }
        then
    }

    /// By those that stay, and by what has not come back of those that have gone.
    fn held(&self, name: &str, stays: &impl Fn(WorkerId) -> bool) -> u64 {
        let holdings = self.holdings.iter().filter(|(worker, _)| stays(**worker));
        let settling = self.settling.iter().filter(|(worker, _)| stays(**worker));
        let held = sum(holdings.map(|(_, holding)| self.on_account(&holding.needs, name)));
        held.saturating_add(sum(settling.filter_map(|(_, settling)| Some(&settling.owed.get(name)?.0))))
    }

    /// By one of them alone.
    pub(crate) fn held_by(&self, worker: WorkerId, name: &str) -> u64 {
        let held = self.holdings.get(&worker).map(|holding| self.on_account(&holding.needs, name));
        let owed = self.settling.get(&worker).and_then(|settling| Some(settling.owed.get(name)?.0));
        sum(held.into_iter().chain(owed))
    }

    fn reserved(&self, name: &str) -> u64 {
        sum(self.holdings.values().map(|holding| self.on_account(&holding.needs, name)))
    }
}

fn sum(all: impl Iterator<Item = impl std::borrow::Borrow<u64>>) -> u64 {
    all.fold(0, |sum, bytes| sum.saturating_add(*bytes.borrow()))
}

#[cfg(test)]
mod tests;
