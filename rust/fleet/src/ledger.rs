//! What models may be placed on, and how much of it is spoken for.
//!
//! Owns the translation between an engine's account of memory and the node's devices, the question whether
//! there is room, and the words of a refusal. Figures of what is free, and of what processes are seen to take, are
//! told to it: what a model holds is what its engine says, or what is seen where that is more.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::{Figures, GpuAddress, MemoryUse, normal_bus_id, usual_reserve},
    shape::Place,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    Device, DeviceKind, DeviceState, Moment, Need, Reading, WorkerId,
    event::HOST,
    shape::Spare,
    size::{format_down, format_up},
};

/// After a process has ended, its memory of the host may take so long until it shows as free.
const SETTLE: Duration = Duration::from_secs(1);
/// A load may take so much more than was reserved for it without a word.
const UNSAID: u64 = 64 << 20;
/// A GPU counts a process's memory rightly where it is no further off than this factor: in containers the number
/// of a process may be another's.
const BELIEVED: u64 = 2;
/// Where it counts none rightly, what a device has less after a load is the model's, up to that factor and so much.
const BEYOND: u64 = 1 << 30;

/// Is what was taken little more than what was to be, if it is more?
pub(crate) fn goes_unsaid(granted: u64, taken: u64) -> bool {
    taken.saturating_sub(granted) <= UNSAID.max(granted / 50)
}

/// All devices, and what each worker holds of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// The backend is the CPU: then the host's memory is the device, and the limit counts there.
    on_cpu: bool,
    limit: Option<u64>,
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
    /// By account: what is to come back, and how much is free once most of it has.
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
}

#[derive(Clone, Debug)]
struct Holding {
    model_id: String,
    /// Of its process.
    pid: Option<u32>,
    /// Bytes by account: what counts.
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

/// What a load came to, beside what was reserved for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Commitment {
    /// By device.
    pub(crate) measured: Vec<MemoryUse>,
    /// It is more than what was reserved: so much, of so much.
    pub(crate) excess: Option<String>,
    /// There is no room for that.
    pub(crate) shortage: Option<Fault>,
    /// Another load was under way beside it.
    pub(crate) is_disturbed: bool,
}

/// A device, what models hold of it, and what they may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What the node calls it: [`Device::id`].
    pub id: String,
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
    /// How much.
    pub bytes: u64,
    /// It goes for nobody's sake.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

/// The use that stands for files of so many bytes: on a GPU, or on the host.
pub fn guessed(bytes: u64, gpu: Option<&Device>) -> MemoryUse {
    MemoryUse {
        device: gpu.map_or(HOST.to_owned(), |gpu| gpu.name.clone()),
        id: gpu.map(Device::id),
        bus_id: gpu.and_then(|gpu| gpu.bus_id.clone()),
        is_host: gpu.is_none(),
        weights: bytes,
        ..MemoryUse::default()
    }
}

impl Ledger {
    /// `limit`: most bytes that models may take on each device.
    pub(crate) fn new(on_cpu: bool, limit: Option<u64>) -> Self {
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

    /// What there is for the cache of a load, beside all that others than this worker hold.
    pub(crate) fn places(&self, figures: &Figures, worker: WorkerId) -> Vec<Place> {
        let all = [&figures.one[..], &figures.draft].concat();
        let place = |(name, here): (String, Vec<MemoryUse>)| {
            let sum = |of: fn(&MemoryUse) -> u64| here.iter().map(of).fold(0, u64::saturating_add);
            let free = self.free_for(&name, worker).saturating_sub(sum(MemoryUse::beside_cache));
            Place {
                is_host: name == HOST,
                free: free / self.parts,
                per_token: sum(|it| it.cache_per_token),
                per_sequence: sum(|it| it.cache_per_sequence),
            }
        };
        self.by_account(&all).into_iter().map(place).collect()
    }

    /// Is the host's memory the device that models are placed on?
    pub(crate) fn is_on_cpu(&self) -> bool {
        self.on_cpu
    }

    /// Takes new figures over, and says who holds memory of GPUs that are lost since, with the name of one.
    pub(crate) fn read(&mut self, reading: Reading) -> Vec<(WorkerId, String)> {
        let lost_before = self.lost();
        if reading.is_whole {
            let seen: Vec<String> = reading.devices.iter().map(Device::id).collect();
            let unseen = |(name, _): &(&String, &mut Entry)| *name != HOST && !seen.contains(name);
            for (_, entry) in self.entries.iter_mut().filter(unseen) {
                entry.device.state = DeviceState::Unreadable;
            }
        }
        for device in reading.devices {
            let key = device.id();
            let counts = (device.kind == DeviceKind::Gpu) != self.on_cpu;
            let is_host = device.kind == DeviceKind::Host;
            let usual = usual_reserve(is_host, device.total_bytes);
            let reserve = self.reserve.filter(|_| counts).unwrap_or(usual);
            let most = device.total_bytes.saturating_sub(reserve);
            let limit = self.limit.filter(|_| counts).map_or(most, |limit| limit.min(most));
            for process in &device.processes {
                self.see(&key, &device, process.pid, process.bytes);
            }
            for settling in self.settling.values_mut() {
                settling.owed.retain(|account, (_, free)| *account != key || device.free_bytes < *free);
            }
            self.settling.retain(|_, settling| !settling.owed.is_empty());
            let taken_when_measured = self.shown(&key);
            let was_calm = self.holdings.values().all(|holding| !holding.is_pending);
            self.entries.insert(key, Entry { device, limit, reserve, taken_when_measured, was_calm });
        }
        let lost: Vec<String> = self.lost().difference(&lost_before).cloned().collect();
        let of = |(worker, holding): (&WorkerId, &Holding)| {
            let name = lost.iter().find(|name| holding.needs.get(*name).is_some_and(|bytes| *bytes > 0))?;
            Some((*worker, self.name_of(name)))
        };
        self.holdings.iter().filter_map(of).collect()
    }

    fn lost(&self) -> BTreeSet<String> {
        let lost = self.gpus().filter(|(_, entry)| entry.device.state == DeviceState::Lost);
        lost.map(|(name, _)| name.clone()).collect()
    }

    /// The GPUs that these take memory of, by name, whose state is such.
    pub(crate) fn gpus_of(
        &self,
        uses: &[MemoryUse],
        is_such: impl Fn(DeviceState) -> bool,
    ) -> impl Iterator<Item = (&str, DeviceState)> {
        let needs = self.needs(uses);
        let gpus =
            self.gpus().filter(move |(name, entry)| needs.contains_key(*name) && is_such(entry.device.state));
        gpus.map(|(_, entry)| (&*entry.device.name, entry.device.state))
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
        if device.kind == DeviceKind::Gpu && !is_near(said) && !is_near(fell) {
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

    /// Room for what an engine says that a load takes, in place of what the worker has; all of it or nothing. A
    /// refusal names every device concerned.
    pub(crate) fn reserve(
        &mut self,
        worker: WorkerId,
        uses: &[MemoryUse],
        model_id: &str,
        is_pinned: bool,
    ) -> Result<(), Fault> {
        self.room(uses, |other| other != worker)?;
        let mut needs = self.needs(uses);
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
        Ok(())
    }

    /// Is there room, beside those that stay? First by the limits, then by what is really there.
    pub(crate) fn room(&self, uses: &[MemoryUse], stays: impl Fn(WorkerId) -> bool) -> Result<(), Fault> {
        let needs = self.needs(uses);
        self.room_by_limits(&needs, &stays)?;
        let there = |name: &str| self.available(name, &stays);
        self.is_there(&needs, &stays, there, |_, available| available)
    }

    /// Could there be room for a worker, in place of what it has, if all others went that are not pinned? What is free is only looked at where its figures can
    /// be relied on.
    pub(crate) fn hope(&self, now: Moment, worker: WorkerId, uses: &[MemoryUse]) -> Result<(), Fault> {
        let is_pinned =
            |other| other != worker && self.holdings.get(&other).is_some_and(|holding| holding.is_pinned);
        if self.is_calm(now) {
            return self.room(uses, is_pinned);
        }
        self.room_by_limits(&self.needs(uses), &is_pinned)
    }

    /// Do the figures of what is free show all that is held, and nothing that has gone?
    pub(crate) fn is_calm(&self, now: Moment) -> bool {
        now >= self.settled_from
            && self.settling.is_empty()
            && self.entries.values().all(|entry| entry.was_calm)
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
        holding.is_some_and(|holding| holding.needs.iter().any(|(name, bytes)| *bytes > 0 && name != HOST))
    }

    /// The longest context, in tokens, for which a worker would have room for one sequence, in place of what it has, if
    /// all others went that are not pinned; `longest`: no model takes more than it takes. `None`: it is not known what a token takes.
    pub(crate) fn largest_context(
        &self,
        uses: &[MemoryUse],
        worker: WorkerId,
        longest: Option<u32>,
    ) -> Option<u32> {
        let is_pinned =
            |other| other != worker && self.holdings.get(&other).is_some_and(|holding| holding.is_pinned);
        if uses.iter().all(|use_| use_.cache_per_token == 0) {
            return None;
        }
        let mut most = u64::from(longest.unwrap_or(u32::MAX));
        for name in self.needs(uses).keys() {
            let of = |part: fn(&MemoryUse) -> u64| {
                let here = uses.iter().filter(|use_| self.account_of(use_) == *name);
                here.map(part).fold(0, u64::saturating_add)
            };
            let beside = of(|use_| use_.total().saturating_sub(use_.cache));
            let fixed = beside.saturating_add(of(|use_| use_.cache_per_sequence));
            let limit = self.limit_of(name).saturating_sub(self.held(name, &is_pinned));
            let Some(left) = limit.min(self.available(name, &is_pinned)).checked_sub(fixed) else {
                return Some(0);
            };
            most = left.checked_div(of(|use_| use_.cache_per_token)).map_or(most, |tokens| most.min(tokens));
        }
        Some(u32::try_from(most).unwrap_or(u32::MAX))
    }

    /// Whether it goes for nobody's sake.
    pub(crate) fn pin(&mut self, worker: WorkerId, is_pinned: bool) {
        if let Some(holding) = self.holdings.get_mut(&worker) {
            holding.is_pinned = is_pinned;
        }
    }

    fn room_by_limits(
        &self,
        needs: &BTreeMap<String, u64>,
        stays: &impl Fn(WorkerId) -> bool,
    ) -> Result<(), Fault> {
        let there = |name: &str| self.limit_of(name).saturating_sub(self.held(name, stays));
        self.is_there(needs, stays, there, |name, _| self.limit_of(name))
    }

    /// Is there so much of each account? A refusal has the figures of the one that lacks most, or of all GPUs together
    /// where they lack it together. `limit`: what stood in the way of an account, and what there is of it.
    fn is_there(
        &self,
        needs: &BTreeMap<String, u64>,
        stays: &impl Fn(WorkerId) -> bool,
        there: impl Fn(&str) -> u64,
        limit: impl Fn(&str, u64) -> u64,
    ) -> Result<(), Fault> {
        let lack = |(name, required): (&String, &u64)| {
            let lack = required.saturating_sub(there(name));
            (lack > 0).then_some((lack, name.clone(), *required))
        };
        let Some((_, name, required)) = needs.iter().filter_map(lack).max_by_key(|(lack, ..)| *lack) else {
            return Ok(());
        };
        let available = there(&name);
        let gpus = || needs.iter().filter(|(name, required)| *name != HOST && **required > 0);
        let in_all = (sum(gpus().map(|(_, required)| required)), sum(gpus().map(|(name, _)| there(name))));
        let is_short_in_all = name != HOST && gpus().count() > 1 && in_all.0 > in_all.1;
        let limit = limit(&name, available);
        let (required, available) = if is_short_in_all { in_all } else { (required, available) };
        Err(self.refusal(needs, self.shortage(&name, limit, required, available), stays))
    }

    /// Does it hold anything?
    pub(crate) fn holds(&self, worker: WorkerId) -> bool {
        self.holdings.contains_key(&worker)
    }

    /// Its load is done: the devices' figures show it from now on. `uses` is what its engine says that it came to. It
    /// holds that, or what is seen of it where that is more.
    pub(crate) fn commit(&mut self, worker: WorkerId, uses: &[MemoryUse]) -> Commitment {
        let said = self.needs(uses);
        let beyond = self.beyond(worker, &said);
        let Some(holding) = self.holdings.get_mut(&worker) else { return Commitment::default() };
        holding.is_pending = false;
        holding.beyond.extend(beyond);
        let granted = std::mem::take(&mut holding.needs);
        let mut needs = said.clone();
        for (name, &seen) in &holding.seen {
            let need = needs.entry(name.clone()).or_default();
            *need = seen.max(*need);
        }
        for (name, beyond) in holding.beyond.iter().filter(|(name, _)| !holding.seen.contains_key(*name)) {
            let need = needs.entry(name.clone()).or_default();
            *need = need.saturating_add(*beyond);
        }
        let is_disturbed = holding.is_disturbed;
        (holding.said, holding.needs) = (said.clone(), needs.clone());
        let more = |(name, taken): (&String, &u64)| {
            let granted = granted.get(name).copied().unwrap_or(0);
            (!goes_unsaid(granted, *taken)).then(|| (name.clone(), *taken, granted))
        };
        let excess = needs.iter().find_map(more);
        let is_too_much = |name: &str, taken: u64| {
            let others = self.held(name, &|other| other != worker);
            let there = self.limit_of(name).saturating_sub(others);
            let promised = self.held(name, &|other| {
                other != worker && self.holdings.get(&other).is_some_and(|holding| holding.is_pending)
            });
            let free = self.entries.get(name).map_or(0, |entry| entry.device.free_bytes);
            // What was read shows it already.
            let left = there.min(taken.saturating_add(free).saturating_sub(promised));
            (taken > left).then(|| self.shortage(name, self.limit_of(name), taken, left))
        };
        let shortage = excess.as_ref().and_then(|(name, taken, _)| is_too_much(name, *taken));
        let words = |(name, taken, granted): (String, u64, u64)| {
            format!(
                "{} of {}, and {} were reserved for it",
                format_up(taken),
                self.name_of(&name),
                format_up(granted)
            )
        };
        Commitment {
            measured: self.measured(uses, &needs, &said),
            shortage: shortage.map(|fault| self.refusal(&needs, fault, &|_| true)),
            excess: excess.map(words),
            is_disturbed,
        }
    }

    /// What GPUs that its process is not seen on have less after an undisturbed load, beyond what its engine says.
    fn beyond(&self, worker: WorkerId, said: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let holding = self.holdings.get(&worker).filter(|holding| holding.is_first && !holding.is_disturbed);
        let of = |(name, said): (&String, &u64)| {
            let (holding, entry) = (holding?, self.entries.get(name)?);
            let is_of_use = entry.device.kind == DeviceKind::Gpu && !holding.seen.contains_key(name);
            let fell = holding.free_before.get(name)?.checked_sub(entry.device.free_bytes)?;
            let most = said.saturating_mul(BELIEVED).saturating_add(BEYOND);
            let beyond = fell.checked_sub(*said).filter(|beyond| *beyond > 0)?;
            (is_of_use && fell <= most).then(|| (name.clone(), beyond))
        };
        said.iter().filter_map(of).collect()
    }

    /// What was reserved for a worker that has not begun is free again.
    pub(crate) fn withdraw(&mut self, worker: WorkerId) {
        self.holdings.remove(&worker);
    }

    /// As it will be once these have given up what they can do without.
    pub(crate) fn after(&self, spares: &[Spare]) -> Self {
        let mut after = self.clone();
        for Spare { worker, gain, .. } in spares {
            let gain = self.needs(gain);
            let Some(holding) = after.holdings.get_mut(worker) else { continue };
            for (name, bytes) in gain {
                if let Some(need) = holding.needs.get_mut(&name) {
                    *need = need.saturating_sub(bytes);
                }
            }
        }
        after
    }

    /// What there is of an account beside all that others than this worker hold.
    pub(crate) fn free_for(&self, name: &str, worker: WorkerId) -> u64 {
        self.left(name, &|other| other != worker)
    }

    /// What there is of an account beside those that stay.
    pub(crate) fn left(&self, name: &str, stays: &impl Fn(WorkerId) -> bool) -> u64 {
        self.left_by_limits(name, stays).min(self.available(name, stays))
    }

    /// The same, whatever the device itself says.
    pub(crate) fn left_by_limits(&self, name: &str, stays: &impl Fn(WorkerId) -> bool) -> u64 {
        self.limit_of(name).saturating_sub(self.held(name, stays))
    }

    /// The accounts that uses concern.
    pub(crate) fn by_account(&self, uses: &[MemoryUse]) -> BTreeMap<String, Vec<MemoryUse>> {
        let mut accounts: BTreeMap<String, Vec<MemoryUse>> = BTreeMap::new();
        for use_ in uses {
            accounts.entry(self.account_of(use_)).or_default().push(use_.clone());
        }
        accounts
    }

    /// What a worker holds beyond what its engine says, which another context does not change.
    pub(crate) fn unsaid(&self, worker: WorkerId, said: &[MemoryUse]) -> Vec<MemoryUse> {
        let holding = self.holdings.get(&worker);
        holding.map(|holding| self.measured(&[], &holding.needs, &self.needs(said))).unwrap_or_default()
    }

    /// What an engine says, and beside it what was seen beyond that.
    fn measured(
        &self,
        uses: &[MemoryUse],
        needs: &BTreeMap<String, u64>,
        said: &BTreeMap<String, u64>,
    ) -> Vec<MemoryUse> {
        let mut measured = uses.to_vec();
        for (name, &taken) in needs {
            let beyond = taken.saturating_sub(said.get(name).copied().unwrap_or(0));
            match measured.iter_mut().find(|use_| self.account_of(use_) == *name) {
                Some(use_) => use_.compute = use_.compute.saturating_add(beyond),
                None => measured.push(MemoryUse {
                    compute: beyond,
                    weights: 0,
                    ..guessed(
                        0,
                        self.entries
                            .get(name)
                            .map(|entry| &entry.device)
                            .filter(|it| it.kind == DeviceKind::Gpu),
                    )
                }),
            }
        }
        measured.retain(|use_| use_.total() > 0);
        measured
    }

    /// It is gone, and its memory of GPUs is counted until it shows as free, `settle` at the longest.
    pub(crate) fn release(&mut self, now: Moment, worker: WorkerId, settle: Duration) {
        let Some(holding) = self.holdings.remove(&worker) else { return };
        self.settled_from = now + SETTLE;
        let mut owed = BTreeMap::new();
        for (name, &bytes) in holding.needs.iter().filter(|(name, bytes)| **bytes > 0 && *name != HOST) {
            let Some(entry) = self.entries.get(name) else { continue };
            let bytes = holding.seen.get(name).copied().unwrap_or(bytes);
            let most = bytes - bytes / 10;
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

    /// What stands for a model whose engine cannot say: its files, on its GPUs, or else the first device.
    pub(crate) fn guess(&self, bytes: u64, place: &[GpuAddress]) -> Vec<MemoryUse> {
        let mut gpus: Vec<&Device> =
            self.gpus().filter(|_| !self.on_cpu).map(|(_, entry)| &entry.device).collect();
        if place.is_empty() {
            return vec![guessed(bytes, gpus.first().copied())];
        }
        gpus.retain(|gpu| place.contains(&gpu.address()));
        let each = bytes.div_ceil(gpus.len().max(1) as u64);
        gpus.into_iter().map(|gpu| guessed(each, Some(gpu))).collect()
    }

    /// What a load would take of each device, and what there is beside all that others than this worker hold.
    pub(crate) fn needs_of(&self, uses: &[MemoryUse], worker: WorkerId) -> Vec<Need> {
        let needs = self.needs(uses);
        let need = |(name, required_bytes): (&String, &u64)| Need {
            id: name.clone(),
            device: self.name_of(name),
            required_bytes: *required_bytes,
            available_bytes: self.free_for(name, worker),
            limit_bytes: self.limit_of(name),
            foreign_bytes: self.foreign(name),
        };
        needs.iter().map(need).collect()
    }

    /// Who holds something of where a load would go.
    pub(crate) fn holders_of(&self, uses: &[MemoryUse]) -> Vec<Holder> {
        let needs = self.needs(uses);
        needs.keys().flat_map(|name| self.holders(name)).collect()
    }

    /// The GPUs whose state is such, by their number, each with the name that people know it by.
    pub(crate) fn gpus_that_are(&self, is_such: impl Fn(DeviceState) -> bool) -> Vec<(GpuAddress, String)> {
        let gpus = self.gpus().filter(|(_, entry)| is_such(entry.device.state));
        let mut gpus: Vec<(GpuAddress, String)> =
            gpus.map(|(_, entry)| (entry.device.address(), entry.device.name.clone())).collect();
        gpus.sort_by_key(|(gpu, _)| gpu.index);
        gpus
    }

    /// Those that models are placed on: all that can be used, or all, where none can.
    pub(crate) fn gpus_for_models(&self) -> Vec<GpuAddress> {
        let all = |is_such: &dyn Fn(DeviceState) -> bool| {
            let gpus = self.gpus_that_are(|state| !self.on_cpu && is_such(state));
            gpus.into_iter().map(|(gpu, _)| gpu).collect::<Vec<_>>()
        };
        let usable = all(&|state| state == DeviceState::Ok);
        if usable.is_empty() { all(&|_| true) } else { usable }
    }

    /// The same, those with most room first.
    pub(crate) fn gpus_by_room(&self) -> Vec<GpuAddress> {
        let mut gpus = self.gpus_for_models();
        gpus.sort_by_key(|gpu| Reverse(self.left(&gpu.id, &|_| true)));
        gpus
    }

    /// All accounts: GPUs by their number, the host last.
    pub(crate) fn accounts(&self) -> Vec<Account> {
        let mut accounts: Vec<Account> = self
            .entries
            .iter()
            .map(|(name, entry)| Account {
                id: name.clone(),
                device: entry.device.clone(),
                limit_bytes: entry.limit,
                foreign_bytes: self.foreign(name),
                reserved_bytes: self.reserved(name),
                unexplained_bytes: self.unexplained(name),
                settling_bytes: self.settling_of(name),
                holders: self.holders(name).collect(),
            })
            .collect();
        accounts.sort_by_key(|account| (account.device.kind == DeviceKind::Host, account.device.index));
        accounts
    }

    fn needs(&self, uses: &[MemoryUse]) -> BTreeMap<String, u64> {
        let mut needs: BTreeMap<String, u64> = BTreeMap::new();
        for use_ in uses {
            let need = needs.entry(self.account_of(use_)).or_default();
            *need = need.saturating_add(use_.total());
        }
        needs
    }

    /// By those that stay, and by what has not come back of those that have gone.
    fn held(&self, name: &str, stays: &impl Fn(WorkerId) -> bool) -> u64 {
        let holdings = self.holdings.iter().filter(|(worker, _)| stays(**worker));
        let settling = self.settling.iter().filter(|(worker, _)| stays(**worker));
        let held = sum(holdings.filter_map(|(_, holding)| holding.needs.get(name)));
        held.saturating_add(sum(settling.filter_map(|(_, settling)| Some(&settling.owed.get(name)?.0))))
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
            let bytes = holding.needs.get(name).copied().unwrap_or(0);
            let seen = holding.seen.get(name).filter(|_| name == HOST);
            seen.map_or(bytes, |seen| bytes.min(*seen))
        };
        holdings.map(shown).fold(self.settling_of(name), u64::saturating_add)
    }

    fn reserved(&self, name: &str) -> u64 {
        sum(self.holdings.values().filter_map(|holding| holding.needs.get(name)))
    }

    fn unexplained(&self, name: &str) -> u64 {
        let beyond = |holding: &Holding| {
            let of = |all: &BTreeMap<String, u64>| all.get(name).copied().unwrap_or(0);
            of(&holding.needs).saturating_sub(of(&holding.said))
        };
        self.holdings.values().filter(|holding| !holding.is_pending).map(beyond).fold(0, u64::saturating_add)
    }

    fn settling_of(&self, name: &str) -> u64 {
        sum(self.settling.values().filter_map(|settling| Some(&settling.owed.get(name)?.0)))
    }

    fn name_of(&self, account: &str) -> String {
        self.entries.get(account).map_or_else(|| account.to_owned(), |entry| entry.device.name.clone())
    }

    fn holders<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Holder> + 'a {
        self.holdings.iter().filter_map(move |(&worker, holding)| {
            let bytes = *holding.needs.get(name).filter(|bytes| **bytes > 0)?;
            Some(Holder { model_id: holding.model_id.clone(), worker, bytes, pinned: holding.is_pinned })
        })
    }

    /// A device that nobody knows has no room.
    fn limit_of(&self, name: &str) -> u64 {
        self.entries.get(name).map_or(0, |entry| entry.limit)
    }

    /// What the device itself still has, after all that was promised since it was measured, beside those that
    /// stay.
    fn available(&self, name: &str, stays: &impl Fn(WorkerId) -> bool) -> u64 {
        let Some(entry) = self.entries.get(name) else { return 0 };
        let before = entry.device.free_bytes.saturating_add(entry.taken_when_measured);
        before.saturating_sub(self.held(name, stays)).saturating_sub(entry.reserve)
    }

    /// `limit`: what stood in the way.
    fn shortage(&self, name: &str, limit: u64, required: u64, available: u64) -> Fault {
        // With a limit the host's memory plays the part of a GPU's; without one it is only memory.
        let is_video = name != HOST || (self.on_cpu && self.limit == Some(limit));
        let (code, memory) = if is_video { (ErrorCode::OomVram, "VRAM") } else { (ErrorCode::OomRam, "RAM") };
        let (required, available) = (format_up(required), format_down(available));
        Fault::new(code, format!("Insufficient {memory}: required {required}, available {available}"))
    }

    fn refusal(
        &self,
        needs: &BTreeMap<String, u64>,
        shortage: Fault,
        stays: &impl Fn(WorkerId) -> bool,
    ) -> Fault {
        let devices: Vec<_> = needs
            .iter()
            .map(|(name, required)| {
                json!({
                    "id": name,
                    "device": self.entries.get(name).map_or(name.as_str(), |entry| &entry.device.name),
                    "required_bytes": required,
                    "available_bytes": self.left(name, stays),
                    "free_bytes": self.available(name, stays),
                    "limit_bytes": self.limit_of(name),
                    "foreign_bytes": self.foreign(name),
                })
            })
            .collect();
        let holders: Vec<Holder> = needs.keys().flat_map(|name| self.holders(name)).collect();
        shortage.details(json!({ "devices": devices, "holders": holders }).to_string())
    }

    fn gpus(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.device.kind == DeviceKind::Gpu)
    }

    fn account_of(&self, use_: &MemoryUse) -> String {
        if use_.is_host || self.gpus().next().is_none() {
            return HOST.to_owned();
        }
        let by_id = use_.id.clone().filter(|id| self.entries.contains_key(id));
        let number: Option<u32> = use_.device.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        let of = |is_it: &dyn Fn(&Device) -> bool| {
            self.gpus().find(|(_, entry)| is_it(&entry.device)).map(|(key, _)| key.clone())
        };
        let bus = |bus_id: &Option<String>| bus_id.as_deref().map(normal_bus_id);
        by_id
            .or_else(|| of(&|device| use_.bus_id.is_some() && bus(&device.bus_id) == bus(&use_.bus_id)))
            .or_else(|| of(&|device| device.name == use_.device))
            .or_else(|| of(&|device| Some(device.index) == number))
            .or_else(|| of(&|_| true))
            .unwrap_or_else(|| HOST.to_owned())
    }
}

fn sum(all: impl Iterator<Item = impl std::borrow::Borrow<u64>>) -> u64 {
    all.fold(0, |sum, bytes| sum.saturating_add(*bytes.borrow()))
}

#[cfg(test)]
mod tests;
