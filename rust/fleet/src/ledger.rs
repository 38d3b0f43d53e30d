//! What models may be placed on, and how much of it is spoken for.
//!
//! Figures of what is free, and of what processes are seen to take, are told to it: what a model holds is what its
//! engine says, or what is seen where that is more. Which device an engine means is said in `devices`, whether there
//! is room in `room`, and what a load came to in `commitment`.

mod commitment;
mod devices;
mod room;

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use llm_node_core::{
    memory::{MemoryUse, usual_reserve},
    options::MemoryLimit,
};
use serde::Serialize;

pub(crate) use self::commitment::{Commitment, goes_unsaid};
pub use self::devices::guessed;
use crate::{
    Device, DeviceKind, DeviceState, KeptBy, Moment, Reading, WorkerId, event::HOST, shape::Spare,
    size::format_up,
};

/// After a process has ended, its memory of the host may take so long until it shows as free.
const SETTLE: Duration = Duration::from_secs(1);
/// A GPU counts a process's memory rightly where it is no further off than this factor: in containers the number
/// of a process may be another's.
const BELIEVED: u64 = 2;

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
struct Settling {
    model_id: String,
    /// By GPU: what is to come back, and how much is free once most of it has.
    owed: BTreeMap<String, (u64, u64)>,
    /// It is waited for no longer than until then.
    by: Moment,
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

/// A device, what models hold of it, and what they may. One that shares the host's memory has none of its own: its
/// figures are 0, and what models hold there is told of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What the node calls it: [`Device::id`].
    pub id: String,
    /// Of which device its memory is.
    pub account: String,
    /// As it was measured last.
    pub device: Device,
    /// Most that models may hold, in bytes.
    pub limit_bytes: u64,
    /// What others take of it, in bytes.
    pub foreign_bytes: u64,
    /// What they hold, in bytes.
    pub reserved_bytes: u64,
    /// So much of that is beyond what their engines say, in bytes.
    pub unexplained_bytes: u64,
    /// What models that have gone held, and what does not show as free yet, in bytes.
    pub settling_bytes: u64,
    /// Each of them.
    pub holders: Vec<Holder>,
}

/// Who holds memory of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// A model.
    pub model_id: String,
    /// Which of its workers.
    #[serde(skip)]
    pub worker: WorkerId,
    /// Of which device: what the node calls it.
    pub device: String,
    /// How much.
    pub bytes: u64,
    /// What keeps it where another needs the room, as far as that is known; `None`: it may go.
    pub kept_by: Option<KeptBy>,
}

impl Account {
    fn of_shared_memory(id: &str, device: &Device) -> Self {
        Self {
            id: id.to_owned(),
            account: HOST.to_owned(),
            device: Device { total_bytes: 0, free_bytes: 0, ..device.clone() },
            limit_bytes: 0,
            foreign_bytes: 0,
            reserved_bytes: 0,
            unexplained_bytes: 0,
            settling_bytes: 0,
            holders: Vec::new(),
        }
    }
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

    /// Takes new figures over, and says who holds memory of GPUs that are lost since, with the name of one.
    pub(crate) fn read(&mut self, reading: Reading) -> Vec<(WorkerId, String)> {
        let (lost_before, began) = (self.lost(), reading.began);
        if reading.is_whole {
            let seen: Vec<String> = reading.devices.iter().map(Device::id).collect();
            let unseen = |(name, _): &(&String, &mut Entry)| *name != HOST && !seen.contains(name);
            for (_, entry) in self.entries.iter_mut().filter(unseen) {
                entry.device.state = DeviceState::Unreadable;
            }
        }
        let (hosts, gpus): (Vec<_>, Vec<_>) =
            reading.devices.into_iter().partition(|device| device.kind == DeviceKind::Host);
        // What may be taken of the host follows from the GPUs that there are.
        for device in gpus.into_iter().chain(hosts) {
            let key = device.id();
            let counts = self.is_for_models(device.kind);
            let is_host = device.kind == DeviceKind::Host;
            let usual = usual_reserve(is_host, device.total_bytes);
            let reserve = self.reserve.filter(|_| counts).unwrap_or(usual);
            let most = device.total_bytes.saturating_sub(reserve).min(self.most_for(device.kind));
            let limit = self.limit_for(&device).map_or(most, |limit| limit.min(most));
            for process in &device.processes {
                self.see(&key, &device, process.pid, process.bytes);
            }
            for settling in self.settling.values_mut() {
                settling.owed.retain(|account, (_, free)| *account != key || device.free_bytes < *free);
            }
            self.settling.retain(|_, settling| !settling.owed.is_empty());
            let taken_when_measured = self.shown(&key);
            let was_calm = self.holdings.values().all(|holding| !holding.is_pending);
            let is_low = device.kind != DeviceKind::Unified
                && device.state == DeviceState::Ok
                && device.free_bytes < reserve / 2;
            let since = self.entries.get(&key).and_then(|entry| entry.low).map_or(began, |(since, _)| since);
            let low = is_low.then(|| (since, began.since(since)));
            self.entries.insert(key, Entry { device, limit, reserve, taken_when_measured, was_calm, low });
        }
        let lost: Vec<String> = self.lost().difference(&lost_before).cloned().collect();
        let of = |(worker, holding): (&WorkerId, &Holding)| {
            let name = lost.iter().find(|name| holding.needs.get(*name).is_some_and(|bytes| *bytes > 0))?;
            Some((*worker, self.name_of(name)))
        };
        self.holdings.iter().filter_map(of).collect()
    }

    /// So much of the host's memory a GPU that shares it can use.
    fn most_for(&self, kind: DeviceKind) -> u64 {
        let is_shared = kind == DeviceKind::Host && !self.on_cpu && !self.has_memory_of_gpus();
        let most = self.gpus().map(|(_, entry)| entry.device.total_bytes).filter(|_| is_shared).max();
        most.unwrap_or(u64::MAX)
    }

    /// What was set for a device that models are placed on; of the host's memory what was set for a GPU that shares it.
    fn limit_for(&self, device: &Device) -> Option<u64> {
        if !self.is_for_models(device.kind) {
            return None;
        }
        let mut sharing = self.gpus().map(|(_, entry)| &entry.device).peekable();
        if device.kind == DeviceKind::Host && !self.on_cpu && sharing.peek().is_some() {
            return sharing.filter_map(|gpu| self.limit.of(&gpu.address())).min();
        }
        self.limit.of(&device.address())
    }

    /// Are models placed on such a device? On the host's memory also where no GPU is seen to have some of its own.
    fn is_for_models(&self, kind: DeviceKind) -> bool {
        match kind {
            DeviceKind::Gpu => !self.on_cpu,
            DeviceKind::Unified => false,
            DeviceKind::Host => self.on_cpu || !self.has_memory_of_gpus(),
        }
    }

    /// A process was seen to take so much.
    fn see(&mut self, name: &str, device: &Device, pid: u32, bytes: u64) {
        let is_near =
            |other: u64| bytes <= other.saturating_mul(BELIEVED) && other <= bytes.saturating_mul(BELIEVED);
        let Some(holding) = self.holdings.values_mut().find(|holding| holding.pid == Some(pid)) else {
            return;
        };
        let said = holding.said.get(name).copied().unwrap_or(0);
        let fell = holding.free_before.get(name).map_or(0, |free| free.saturating_sub(device.free_bytes));
        if device.kind != DeviceKind::Host && !is_near(said) && !is_near(fell) {
            return;
        }
        holding.seen.insert(name.to_owned(), bytes);
        if !holding.is_pending {
            holding.needs.insert(name.to_owned(), said.max(bytes));
        }
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

    /// Who holds something of where a load would go.
    pub(crate) fn holders_of(&self, uses: &[MemoryUse]) -> Vec<Holder> {
        let needs = self.needs(uses);
        needs.keys().flat_map(|name| self.holders(name)).collect()
    }

    /// All devices: GPUs by their number, the host last.
    pub(crate) fn accounts(&self) -> Vec<Account> {
        let mut accounts: Vec<Account> = self
            .entries
            .iter()
            .map(|(name, entry)| match entry.device.kind {
                DeviceKind::Unified => Account::of_shared_memory(name, &entry.device),
                DeviceKind::Gpu | DeviceKind::Host => self.account(name, entry),
            })
            .collect();
        accounts.sort_by_key(|account| (account.device.kind == DeviceKind::Host, account.device.index));
        accounts
    }

    fn account(&self, name: &str, entry: &Entry) -> Account {
        Account {
            id: name.to_owned(),
            account: name.to_owned(),
            device: entry.device.clone(),
            limit_bytes: entry.limit,
            foreign_bytes: self.foreign(name),
            reserved_bytes: self.reserved(name),
            unexplained_bytes: self.unexplained(name),
            settling_bytes: self.settling_of(name),
            holders: self.holders(name).collect(),
        }
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

    /// What others than models take of a device, or seem to.
    fn foreign(&self, name: &str) -> u64 {
        self.entries.get(name).map_or(0, |entry| {
            let taken = entry.device.total_bytes.saturating_sub(entry.device.free_bytes);
            taken.saturating_sub(entry.taken_when_measured)
        })
    }

    /// What a device's figure shows of what is held, and of what has not come back. The host's counts pages that were
    /// never touched, and those of files, as free.
    fn shown(&self, name: &str) -> u64 {
        let holdings = self.holdings.values().filter(|holding| !holding.is_pending);
        let shown = |holding: &Holding| {
            let needs = self.on_account(&holding.needs, name);
            let (Some(bytes), Some(seen)) = (holding.needs.get(HOST), holding.seen.get(HOST)) else {
                return needs;
            };
            if name == HOST { needs - bytes.saturating_sub(*seen) } else { needs }
        };
        holdings.map(shown).fold(self.settling_of(name), u64::saturating_add)
    }

    fn reserved(&self, name: &str) -> u64 {
        sum(self.holdings.values().map(|holding| self.on_account(&holding.needs, name)))
    }

    fn unexplained(&self, name: &str) -> u64 {
        let beyond = |holding: &Holding| {
            self.on_account(&holding.needs, name).saturating_sub(self.on_account(&holding.said, name))
        };
        self.holdings.values().filter(|holding| !holding.is_pending).map(beyond).fold(0, u64::saturating_add)
    }

    fn settling_of(&self, name: &str) -> u64 {
        sum(self.settling.values().filter_map(|settling| Some(&settling.owed.get(name)?.0)))
    }

    fn holders<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Holder> + 'a {
        self.holdings.iter().filter_map(move |(&worker, holding)| {
            let bytes = Some(self.on_account(&holding.needs, name)).filter(|bytes| *bytes > 0)?;
            let (model_id, device) = (holding.model_id.clone(), name.to_owned());
            let kept_by = match (holding.is_pinned, holding.is_pending) {
                (true, _) => Some(KeptBy::Pin),
                (false, true) => Some(KeptBy::Loading),
                (false, false) => None,
            };
            Some(Holder { model_id, worker, device, bytes, kept_by })
        })
    }
}

fn sum(all: impl Iterator<Item = impl std::borrow::Borrow<u64>>) -> u64 {
    all.fold(0, |sum, bytes| sum.saturating_add(*bytes.borrow()))
}

#[cfg(test)]
mod tests;
