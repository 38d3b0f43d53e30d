//! What a load came to: what its engine says, or what is seen where that is more.

use std::collections::{BTreeMap, BTreeSet};

use llm_node_core::{error::Fault, memory::MemoryUse};

use super::{Ledger, devices::of_files, reading::BELIEVED};
use crate::{DeviceKind, WorkerId, size::format_up};

/// A load may take so much more than was reserved for it without a word.
pub(super) const UNSAID: u64 = 64 << 20;
/// Where a GPU counts no process rightly, what it has less after a load is the model's: up to [`BELIEVED`] times what
/// its engine says, and so much beside.
const BEYOND: u64 = 1 << 30;

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

/// Is what was taken little more than what was to be, if it is more?
pub(crate) fn goes_unsaid(granted: u64, taken: u64) -> bool {
    taken.saturating_sub(granted) <= UNSAID.max(granted / 50)
}

impl Ledger {
    /// Its load is done: the devices' figures show it from now on. `uses` is what its engine says that it came to. It
    /// holds that, or what is seen of it where that is more.
    pub(crate) fn commit(&mut self, worker: WorkerId, uses: &[MemoryUse]) -> Commitment {
        let said = self.by_device(uses);
        let beyond = self.beyond(worker, &said);
        let Some(holding) = self.holdings.get_mut(&worker) else { return Commitment::default() };
        // What a device has less by then may be what others have taken since.
        (holding.is_pending, holding.is_first) = (false, false);
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
        let more = |name: &str| {
            let (granted, taken) = (self.on_account(&granted, name), self.on_account(&needs, name));
            (!goes_unsaid(granted, taken)).then(|| (name.to_owned(), taken, granted))
        };
        let accounts: BTreeSet<&str> = needs.keys().map(|device| self.account_of(device)).collect();
        let excess = accounts.iter().find_map(|name| more(name));
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
        let of_account = |name: &&str| ((*name).to_owned(), self.on_account(&needs, name));
        let of_accounts = accounts.iter().map(of_account).collect();
        Commitment {
            measured: self.measured(uses, &needs, &said),
            shortage: shortage.map(|fault| self.refusal(&of_accounts, fault, &|_| true)),
            excess: excess.map(words),
            is_disturbed,
        }
    }

    /// What GPUs that its process is not seen on have less after an undisturbed load, beyond what its engine says.
    pub(super) fn beyond(&self, worker: WorkerId, said: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
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

    /// What a worker holds beyond what its engine says, which another context does not change.
    pub(crate) fn unsaid(&self, worker: WorkerId, said: &[MemoryUse]) -> Vec<MemoryUse> {
        let holding = self.holdings.get(&worker);
        holding.map(|holding| self.measured(&[], &holding.needs, &self.by_device(said))).unwrap_or_default()
    }

    /// What an engine says, and beside it what was seen beyond that.
    pub(super) fn measured(
        &self,
        uses: &[MemoryUse],
        needs: &BTreeMap<String, u64>,
        said: &BTreeMap<String, u64>,
    ) -> Vec<MemoryUse> {
        let mut measured = uses.to_vec();
        for (name, &taken) in needs {
            let beyond = taken.saturating_sub(said.get(name).copied().unwrap_or(0));
            match measured.iter_mut().find(|use_| self.device_of(use_) == *name) {
                Some(use_) => use_.compute = use_.compute.saturating_add(beyond),
                None => measured.push(MemoryUse {
                    compute: beyond,
                    weights: 0,
                    ..of_files(
                        0,
                        self.entries
                            .get(name)
                            .map(|entry| &entry.device)
                            .filter(|it| it.kind != DeviceKind::Host),
                    )
                }),
            }
        }
        measured.retain(|use_| use_.total() > 0);
        measured
    }
}
