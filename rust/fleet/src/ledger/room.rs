//! Is there room, beside those that stay? First by the limits, then by what devices say that they have.

use std::collections::{BTreeMap, BTreeSet};

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::{Figures, MemoryUse},
    shape::{Place, whole_cells},
};
use serde_json::json;

use super::{Holder, Ledger, sum};
use crate::{
    Moment, Need, WorkerId,
    event::HOST,
    size::{format_down, format_up},
};

impl Ledger {
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
        let is_pinned = |other| other != worker && self.is_pinned(other);
        if self.is_calm(now) {
            return self.room(uses, is_pinned);
        }
        self.room_by_limits(&self.needs(uses), &is_pinned)
    }

    /// Does it go for nobody's sake?
    pub(crate) fn is_pinned(&self, worker: WorkerId) -> bool {
        self.holdings.get(&worker).is_some_and(|holding| holding.is_pinned)
    }

    /// The same as [`Self::room`], where nobody is told what is lacking: a refusal takes longer than its figures.
    pub(crate) fn has_room(&self, uses: &[MemoryUse], stays: impl Fn(WorkerId) -> bool) -> bool {
        self.needs(uses).iter().all(|(name, required)| *required <= self.left(name, &stays))
    }

    pub(super) fn room_by_limits(
        &self,
        needs: &BTreeMap<String, u64>,
        stays: &impl Fn(WorkerId) -> bool,
    ) -> Result<(), Fault> {
        let there = |name: &str| self.limit_of(name).saturating_sub(self.held(name, stays));
        self.is_there(needs, stays, there, |name, _| self.limit_of(name))
    }

    /// Is there so much of each account? A refusal has the figures of the one that lacks most, or of all GPUs together
    /// where they lack it together. `limit`: what stood in the way of an account, and what there is of it.
    pub(super) fn is_there(
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

    /// Do the figures of what is free show all that is held, and nothing that has gone?
    pub(crate) fn is_calm(&self, now: Moment) -> bool {
        !self.is_settling(now) && self.entries.values().all(|entry| entry.was_calm)
    }

    /// Does something that has gone perhaps not show as free yet?
    pub(crate) fn is_settling(&self, now: Moment) -> bool {
        now < self.settled_from || !self.settling.is_empty()
    }

    /// The longest context, in tokens, for which there is room for one sequence beside those that stay; `longest`: no
    /// model takes more than it takes. `None`: it is not known what a token takes.
    pub(crate) fn largest_context(
        &self,
        uses: &[MemoryUse],
        stays: impl Fn(WorkerId) -> bool,
        longest: Option<u32>,
    ) -> Option<u32> {
        if uses.iter().all(|use_| use_.cache_per_token == 0) {
            return None;
        }
        let mut most = u64::from(longest.unwrap_or(u32::MAX));
        for name in self.needs(uses).keys() {
            let of = |part: fn(&MemoryUse) -> u64| {
                let here = uses.iter().filter(|use_| self.account_of(&self.device_of(use_)) == name);
                here.map(part).fold(0, u64::saturating_add)
            };
            let beside = of(|use_| use_.total().saturating_sub(use_.cache));
            let fixed = beside.saturating_add(of(|use_| use_.cache_per_sequence));
            let Some(left) = self.left(name, &stays).checked_sub(fixed) else { return Some(0) };
            most = left.checked_div(of(|use_| use_.cache_per_token)).map_or(most, |tokens| most.min(tokens));
        }
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Some(if longest.is_some_and(|longest| most >= longest) { most } else { whole_cells(most) })
    }

    /// What there is for the cache of a load, beside all that others than this worker hold.
    pub(crate) fn places(&self, figures: &Figures, worker: WorkerId) -> Vec<Place> {
        let all = [&figures.one[..], &figures.draft].concat();
        let place = |(name, here): (String, Vec<MemoryUse>)| {
            let sum = |of: fn(&MemoryUse) -> u64| here.iter().map(of).fold(0, u64::saturating_add);
            let free = self.free_for(&name, worker).saturating_sub(sum(MemoryUse::beside_cache));
            let is_host = here.iter().all(|use_| use_.is_host);
            // A GPU that shares the host's memory leaves half of that to the rest of the machine, as the CPU does.
            let is_shared = name == HOST && !is_host;
            Place {
                is_host,
                free: if is_shared { free / 2 } else { free } / self.parts,
                per_token: sum(|it| it.cache_per_token),
                per_sequence: sum(|it| it.cache_per_sequence),
            }
        };
        self.by_account(&all).into_iter().map(place).collect()
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

    /// What is lacking of each account that uses concern, in bytes, beside all but those that have gone; and what
    /// would be free of each once these went, too.
    pub(crate) fn lacking(
        &self,
        uses: &[MemoryUse],
        gone: &BTreeSet<WorkerId>,
        candidates: impl Iterator<Item = impl AsRef<[WorkerId]>>,
    ) -> (Vec<u64>, Vec<Vec<u64>>) {
        let needs = self.needs(uses);
        let lack = |(name, need): (&String, &u64)| {
            let held = self.held(name, &|worker| !gone.contains(&worker));
            let there = self.limit_of(name).min(self.on_device(name));
            if *need > 0 { held.saturating_add(*need).saturating_sub(there) } else { 0 }
        };
        let gain = |workers: &[WorkerId]| {
            let go = || workers.iter().filter(|worker| !gone.contains(worker));
            needs.keys().map(|name| sum(go().map(|worker| self.held_by(*worker, name)))).collect()
        };
        (needs.iter().map(lack).collect(), candidates.map(|workers| gain(workers.as_ref())).collect())
    }

    /// A device that nobody knows has no room.
    pub(super) fn limit_of(&self, name: &str) -> u64 {
        self.entries.get(name).map_or(0, |entry| entry.limit)
    }

    /// What the device itself still has, after all that was promised since it was measured, beside those that
    /// stay.
    pub(super) fn available(&self, name: &str, stays: &impl Fn(WorkerId) -> bool) -> u64 {
        self.on_device(name).saturating_sub(self.held(name, stays))
    }

    /// What the device itself would have, if nothing were held of it.
    fn on_device(&self, name: &str) -> u64 {
        self.entries.get(name).map_or(0, |entry| {
            let before = entry.device.free_bytes.saturating_add(entry.taken_when_measured);
            before.saturating_sub(entry.reserve)
        })
    }

    /// What was set for the host's memory, where that plays the part of a GPU's.
    fn limit_of_host(&self) -> Option<u64> {
        self.limit_for(&self.entries.get(HOST)?.device)
    }

    /// `limit`: what stood in the way.
    pub(super) fn shortage(&self, name: &str, limit: u64, required: u64, available: u64) -> Fault {
        // With a limit the host's memory plays the part of a GPU's; without one it is only memory.
        let is_video = name != HOST || self.limit_of_host() == Some(limit);
        let (code, memory) = if is_video { (ErrorCode::OomVram, "VRAM") } else { (ErrorCode::OomRam, "RAM") };
        let (required, available) = (format_up(required), format_down(available));
        Fault::new(code, format!("Insufficient {memory}: required {required}, available {available}"))
    }

    pub(super) fn refusal(
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
}
