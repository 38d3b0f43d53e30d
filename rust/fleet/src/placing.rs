//! A load finds its GPUs.
//!
//! A worker sees no other GPUs than its own from its start on, and only then can its engine say what its model takes.
//! So a place is chosen by what such a load took before, or by the size of its files, and once more by what the engine
//! says. Where another is better then, or becomes so while the load waits for room, the worker ends, and another one
//! begins there. A guess refuses nothing.

mod asked;
mod uses;

use std::collections::{BTreeMap, BTreeSet};

use llm_node_core::{
    error::Fault,
    memory::{GpuAddress, MemoryUse},
    options::Devices,
};

pub(crate) use self::uses::{figures_located, figures_on, located, on};
use self::uses::{gpus_of, load_of};
use crate::{
    Fleet, FoundModel, Moment, Setup, WorkerId,
    life::{Because, ModelLife, Stage, Worker},
    placement::{Choice, Load, Loss, Space, choose},
    replace::NOBODY,
};

/// So often a load begins again elsewhere.
const MOST_MOVES: u8 = 3;

/// How far a load has come with finding its GPUs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Search {
    /// How often it has begun again.
    moves: u8,
    /// Fewer were not enough.
    at_least: usize,
    /// What it takes, once its engine has said so.
    load: Option<Load>,
    /// What it is thought to take of each of its GPUs until then, in bytes.
    claim: u64,
}

/// A load that looks for its GPUs.
struct Sought<'a> {
    /// Who has some of them already.
    worker: WorkerId,
    model_id: &'a str,
    setup: &'a Setup,
    load: Load,
    at_least: usize,
    /// The model's other workers stay where they are.
    is_one_more: bool,
}

impl Sought<'_> {
    /// On how many GPUs it may lie, at least and at most. `joining`: those that may be some of several.
    fn count(&self, joining: usize) -> (usize, usize) {
        let workers = self.setup.replicas();
        let each = |count: usize| (count / workers).max(1);
        match self.setup.devices() {
            Some(Devices::Count(count)) => (each(*count as usize), each(*count as usize)),
            Some(Devices::Named(names)) => (each(names.len()), each(names.len())),
            None if workers > 1 => (1, 1),
            None => (1, joining.max(1)),
        }
    }
}

impl Fleet {
    /// Is there a GPU for one more worker of a model?
    pub(crate) fn has_place_left(&self, model_id: &str, setup: &Setup) -> bool {
        let (load, worker, at_least, is_one_more) = (Load::default(), NOBODY, 0, true);
        let sought = Sought { worker, model_id, setup, load, at_least, is_one_more };
        self.candidates(&sought).len() >= sought.count(usize::MAX).0
    }

    /// The GPUs for a worker whose model is found. What is known of such loads is good for as many as these alone.
    /// False: there are not as many as it needs.
    pub(crate) fn place_found(&mut self, now: Moment, worker: WorkerId, found: &mut FoundModel) -> bool {
        let Some(it) = self.worker_at(worker) else { return false };
        let known = found.known.as_ref().filter(|known| !gpus_of(&known.uses).is_empty());
        let load = it.search.load.or_else(|| known.map(|known| load_of(&known.uses)));
        // Of an engine that is not asked yet, the files.
        let load = load.unwrap_or(Load { shared: found.size_bytes, each: 0 });
        let Some((model_id, _)) = self.workers().find(|(_, it)| it.id == worker) else { return false };
        let (setup, at_least, is_one_more) = (&it.setup, it.search.at_least, true);
        let sought = Sought { worker, model_id, setup, load, at_least, is_one_more };
        let place = match self.place(now, &sought) {
            _ if !setup.place.is_empty() => setup.place.clone(),
            Some((place, _)) => place,
            // Its engine says whether that is so.
            None => self.largest(now, &sought, sought.count(1).0),
        };
        let has_all = place.len() >= sought.count(1).0 || self.ledger.gpus_for_models().is_empty();
        let claim = load.on(place.len()).div_ceil(place.len().max(1) as u64);
        found.known = found.known.take().and_then(|known| known.on(&place));
        if let Some((_, it)) = self.worker(worker) {
            it.search.claim = claim;
            it.setup.place = place;
        }
        has_all
    }

    /// A load that waits for room goes to other GPUs where these are better for it. True: it is on its way.
    pub(crate) fn moves_on(&mut self, now: Moment, worker: WorkerId) -> bool {
        let Some(search) = self.better_place(now, worker) else { return false };
        if let Some((_, it)) = self.worker(worker) {
            it.search = search;
        }
        self.end(now, worker, Because::Moved);
        true
    }

    fn better_place(&self, now: Moment, worker: WorkerId) -> Option<Search> {
        let it = self.worker_at(worker).filter(|it| matches!(it.stage, Stage::Waiting { .. }))?;
        let (here, search, uses) = (&it.setup.place, it.search, it.needs()?);
        let is_at_home = here.len() == 1 && self.obstacle(now, uses).is_none();
        if here.is_empty()
            || search.moves >= MOST_MOVES
            || (is_at_home && self.ledger.has_room(uses, |other| other != worker))
        {
            return None;
        }
        let (model_id, load) = (self.workers().find(|(_, it)| it.id == worker)?.0, load_of(uses));
        let (setup, at_least, is_one_more) = (&it.setup, search.at_least, true);
        let mut sought = Sought { worker, model_id, setup, load, at_least, is_one_more };
        let loss_here = self.loss_here(now, &sought, uses);
        if loss_here.is_none() && here.len() > 1 {
            // It is divided otherwise than was thought.
            sought.at_least = here.len() + 1;
        }
        let (place, loss) = self.place(now, &sought)?;
        let is_better = match loss_here {
            None => true,
            Some(here) if loss == here => place.len() < setup.place.len(),
            Some(here) => loss < here,
        };
        let search =
            Search { moves: search.moves + 1, at_least: sought.at_least, load: Some(load), claim: 0 };
        (is_better && place != *here).then_some(search)
    }

    /// What others lose where a load lies now; `None`: it cannot be there.
    fn loss_here(&self, now: Moment, sought: &Sought<'_>, uses: &[MemoryUse]) -> Option<Loss> {
        let here = &sought.setup.place;
        let candidates = self.candidates(sought);
        if !here.iter().all(|gpu| candidates.contains(gpu)) {
            return None;
        }
        let spaces = self.spaces(now, sought.worker, here);
        let accounts = self.ledger.by_account(uses);
        let needed = |gpu: &GpuAddress| {
            let here = accounts.get(self.ledger.account_of(&gpu.id)).map(Vec::as_slice).unwrap_or_default();
            here.iter().map(MemoryUse::total).fold(0, u64::saturating_add)
        };
        let fits = |loss: &Loss| here.iter().zip(&spaces).all(|(gpu, space)| needed(gpu) <= space.at(*loss));
        [Loss::Nothing, Loss::Shrinking, Loss::Unloading, Loss::Waiting].into_iter().find(fits)
    }

    /// Where a load would go, in place of all that its model has; where it fits nowhere, the largest place, and why not.
    pub(crate) fn sought_place(
        &self,
        now: Moment,
        worker: WorkerId,
        model_id: &str,
        setup: &Setup,
        uses: &[MemoryUse],
    ) -> (Vec<GpuAddress>, Option<Fault>) {
        let (load, at_least, is_one_more) = (load_of(uses), 0, false);
        let sought = Sought { worker, model_id, setup, load, at_least, is_one_more };
        let candidates = self.candidates(&sought);
        if candidates.is_empty() || gpus_of(uses).is_empty() {
            return (candidates.into_iter().take(1).collect(), None);
        }
        if let Some((place, _)) = self.place(now, &sought) {
            return (place, None);
        }
        let joining = candidates.iter().filter(|gpu| self.can_join(gpu)).count();
        let place = self.largest(now, &sought, sought.count(joining).1);
        let why_not = self.could_fit(now, worker, &on(uses, &place)).err();
        (place, why_not)
    }

    /// Where one more worker of a model has room as things are; none: wherever its engine puts it.
    pub(crate) fn place_without_loss(
        &self,
        now: Moment,
        model_id: &str,
        setup: &Setup,
        uses: &[MemoryUse],
    ) -> Option<Vec<GpuAddress>> {
        let (load, worker, at_least, is_one_more) = (load_of(uses), NOBODY, 0, true);
        let sought = Sought { worker, model_id, setup, load, at_least, is_one_more };
        if self.ledger.gpus_for_models().is_empty() {
            return Some(Vec::new());
        }
        self.place(now, &sought).filter(|(_, loss)| *loss == Loss::Nothing).map(|(place, _)| place)
    }

    /// The GPUs that all workers of a load could have, and how many each of them has.
    pub(crate) fn shares_of(&self, setup: &Setup) -> (Vec<GpuAddress>, usize) {
        let (load, worker, model_id, at_least, is_one_more) = (Load::default(), NOBODY, "", 0, false);
        let sought = Sought { worker, model_id, setup, load, at_least, is_one_more };
        let candidates = self.candidates(&sought);
        let mut gpus = self.ledger.gpus_by_room();
        gpus.retain(|gpu| candidates.contains(gpu));
        (gpus, sought.count(1).0)
    }

    fn place(&self, now: Moment, sought: &Sought<'_>) -> Option<(Vec<GpuAddress>, Loss)> {
        let gpus = self.candidates(sought);
        let joining = gpus.iter().filter(|gpu| self.can_join(gpu)).count();
        let (least, most) = sought.count(joining);
        let spaces = self.spaces(now, sought.worker, &gpus);
        let Choice { gpus: chosen, loss } = choose(sought.load, &spaces, least.max(sought.at_least), most)?;
        Some((chosen.into_iter().map(|at| gpus[at].clone()).collect(), loss))
    }

    /// So many with most room once all have gone that may.
    fn largest(&self, now: Moment, sought: &Sought<'_>, count: usize) -> Vec<GpuAddress> {
        let gpus = self.candidates(sought);
        let spaces = self.spaces(now, sought.worker, &gpus);
        let mut by_room: Vec<(u64, GpuAddress)> =
            gpus.into_iter().zip(spaces).map(|(gpu, space)| (space.left_by_all, gpu)).collect();
        by_room.sort_by_key(|(left, gpu)| (std::cmp::Reverse(*left), gpu.is_part(), gpu.index));
        let mut place: Vec<GpuAddress> = by_room.into_iter().take(count).map(|(_, gpu)| gpu).collect();
        place.sort_by_key(|gpu| gpu.index);
        place
    }

    /// The GPUs that it may lie on.
    fn candidates(&self, sought: &Sought<'_>) -> Vec<GpuAddress> {
        let mut gpus = match sought.setup.devices() {
            Some(Devices::Named(names)) => {
                let mut gpus = self.known_gpus();
                gpus.retain(|gpu| names.iter().any(|name| name.is_of(gpu)));
                gpus
            }
            Some(Devices::Count(_)) | None => self.ledger.gpus_for_models(),
        };
        if sought.is_one_more && sought.setup.replicas() > 1 {
            let workers = self.models.get(sought.model_id).map(|life| &life.workers[..]).unwrap_or_default();
            let others = || workers.iter().filter(|other| other.id != sought.worker);
            let is_taken = |gpu: &GpuAddress, are_going: bool| {
                others().any(|it| it.is_outgoing == are_going && it.setup.place.contains(gpu))
            };
            gpus.retain(|gpu| !is_taken(gpu, false));
            // Those that it takes the place of have theirs until then.
            let free: Vec<GpuAddress> = gpus.iter().filter(|gpu| !is_taken(gpu, true)).cloned().collect();
            if free.len() >= sought.count(1).0 {
                gpus = free;
            }
        }
        gpus
    }

    /// May it be one of several? On more GPUs that share the host's memory there is no more of it.
    fn can_join(&self, gpu: &GpuAddress) -> bool {
        !gpu.is_part() && self.ledger.account_of(&gpu.id) == gpu.id
    }

    /// What there is of GPUs for a worker, in place of what it has.
    fn spaces(&self, now: Moment, worker: WorkerId, gpus: &[GpuAddress]) -> Vec<Space> {
        let claims = self.claims(worker);
        let account = |gpu: &'_ GpuAddress| self.ledger.account_of(&gpu.id).to_owned();
        let claim = |gpu: &GpuAddress| claims.get(self.ledger.account_of(&gpu.id)).copied().unwrap_or(0);
        let stays = |other| other != worker;
        let free = |gpu: &GpuAddress| self.ledger.left(&account(gpu), &stays);
        let can_join = |gpu: &GpuAddress| self.can_join(gpu);
        if self.deadlines.room.is_zero() {
            // Nobody goes for another.
            let space = |gpu: &GpuAddress| {
                let (now, can_join) = (free(gpu).saturating_sub(claim(gpu)), can_join(gpu));
                Space { now, shrunk: now, left_by_idle: now, left_by_all: free(gpu), can_join }
            };
            return gpus.iter().map(space).collect();
        }
        let lean = self.ledger.after(&self.spares(now, worker, &self.ledger.files(0, gpus)));
        let with_pinned = self.ledger.after(&self.spares_of_pinned());
        let models = self.models.values().filter(|life| life.idle_since().is_none());
        let busy: BTreeSet<WorkerId> = models.flat_map(ModelLife::ids).collect();
        let is_idle = |it: &Worker| {
            matches!(it.stage, Stage::Serving) && !it.setup.is_pinned() && !busy.contains(&it.id)
        };
        let of = |is_such: &dyn Fn(&Worker) -> bool| -> BTreeSet<WorkerId> {
            let workers = self.workers().filter(|(_, it)| it.id != worker && is_such(it));
            workers.map(|(_, it)| it.id).collect()
        };
        let (at_work, pinned) = (of(&|it| !it.is_going() && !is_idle(it)), of(&|it| it.setup.is_pinned()));
        let is_calm = self.ledger.is_calm(now);
        let space = |gpu: &GpuAddress| {
            let beside_claims = |bytes: u64| bytes.saturating_sub(claim(gpu));
            let is_pinned = |other| pinned.contains(&other);
            let left_by_all = if is_calm {
                with_pinned.left(&account(gpu), &is_pinned)
            } else {
                with_pinned.left_by_limits(&account(gpu), &is_pinned)
            };
            Space {
                now: beside_claims(free(gpu)),
                shrunk: beside_claims(lean.left(&account(gpu), &stays)),
                left_by_idle: beside_claims(lean.left(&account(gpu), &|other| at_work.contains(&other))),
                left_by_all,
                can_join: can_join(gpu),
            }
        };
        gpus.iter().map(space).collect()
    }

    /// What others are about to take of the memory of GPUs, by account, for which nothing is reserved yet.
    fn claims(&self, worker: WorkerId) -> BTreeMap<&str, u64> {
        let mut claims: BTreeMap<&str, u64> = BTreeMap::new();
        let is_loading = |it: &Worker| {
            matches!(it.stage, Stage::Starting { .. } | Stage::Loading { .. } | Stage::Waiting { .. })
        };
        let others = self.workers().map(|(_, it)| it);
        for it in others.filter(|it| it.id != worker && is_loading(it) && !self.ledger.holds(it.id)) {
            for gpu in &it.setup.place {
                let here = it.estimate.iter().filter(|use_| use_.id.as_ref() == Some(&gpu.id));
                let known = here.map(MemoryUse::total).fold(0, u64::saturating_add);
                let bytes = if it.estimate.is_empty() { it.search.claim } else { known };
                let claim = claims.entry(self.ledger.account_of(&gpu.id)).or_default();
                *claim = claim.saturating_add(bytes);
            }
        }
        claims
    }
}
