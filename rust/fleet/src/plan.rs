//! What a load would come to, without one.

use std::time::Duration;

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::{Figures, GpuAddress, MemoryUse, length_of},
    options::ModelOptions,
    shape::Shape,
};
use serde::Serialize;

use crate::{
    Fleet, History, Holder, Known, LoadKey, Moment, Place, Setup, WorkerId,
    ledger::Ledger,
    life::{ModelLife, Worker, retry_after},
    line::Waiter,
    placing::{figures_on, on},
    replace::NOBODY,
    room::Way,
    shape::{self, Chosen, MOST_ROUNDS, Spare},
    wishes::Fit,
};

/// Where it comes from what a load will take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Such a load was measured before.
    Measured,
    /// The engine says so.
    #[default]
    Engine,
    /// The engine cannot say: it is the size of the files.
    FileSize,
}

/// What is known of a load that has not begun.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Foreseen {
    /// Id of the engine that would do it.
    pub engine: String,
    /// Size of its files, in bytes.
    pub size_bytes: u64,
    /// What it would take, by device; nothing, where its engine cannot say.
    pub memory: Vec<MemoryUse>,
    /// Where that comes from.
    pub basis: Basis,
    /// How long such a load took before.
    pub seconds: Option<f64>,
    /// What its engine says of a context; then `memory` follows from what is free.
    pub figures: Figures,
    /// What tells such a load from others.
    pub key: LoadKey,
    /// As what it would be loaded.
    pub setup: Option<Box<Setup>>,
    /// What such a load came to before.
    pub before: Option<Box<Known>>,
    /// What its engine says of contexts that it was asked about.
    pub sized: Vec<(Shape, Vec<MemoryUse>)>,
}

impl Foreseen {
    /// What a worker has taken.
    fn of(worker: &Worker) -> Self {
        Self {
            engine: worker.engine(),
            size_bytes: worker.found.as_ref().map_or(0, |found| found.size_bytes),
            memory: worker.memory(),
            basis: if worker.loaded.is_some() { Basis::Measured } else { worker.basis },
            seconds: None,
            figures: worker.figures.clone(),
            key: LoadKey::default(),
            setup: None,
            before: None,
            sized: Vec::new(),
        }
    }

    /// What it takes at least, by what loads came to before.
    pub fn least(&self, history: &History) -> Result<Vec<MemoryUse>, Fault> {
        match &self.setup {
            Some(setup) if self.figures.are_of_contexts() => {
                let (shape, sums) = shape::least(setup, &self.figures)?;
                // Engines round small contexts up, which no sum tells.
                let said = self.sized.iter().find(|(sized, _)| *sized == shape).map(|(_, said)| said.clone());
                Ok(history.corrected(&self.key, said.unwrap_or(sums)))
            }
            _ if self.before.is_some() => Ok(self.memory.clone()),
            _ => Ok(history.corrected(&self.key, self.memory.clone())),
        }
    }

    /// On these GPUs. What was measured before is good for as many alone.
    fn on(self, place: &[GpuAddress]) -> Self {
        let (memory, figures) = (on(&self.memory, place), figures_on(&self.figures, place));
        let was_measured = self.before.is_some();
        let before = self.before.and_then(|before| before.on(place)).map(Box::new);
        let (basis, seconds) = match before {
            None if was_measured => (Basis::Engine, None),
            _ => (self.basis, self.seconds),
        };
        let sized = self.sized.into_iter().map(|(shape, uses)| (shape, on(&uses, place))).collect();
        Self { memory, basis, seconds, figures, before, sized, ..self }
    }

    /// The model's own length; `None`: its engine does not say.
    pub fn longest(&self) -> Option<u32> {
        Some(length_of(&self.figures.one)).filter(|length| *length > 0)
    }

    /// How long the load would take: as long as before, or as it takes to read what it reads.
    fn ready_seconds(&self) -> f64 {
        let bytes: u64 = self.memory.iter().map(|use_| use_.weights).fold(0, u64::saturating_add);
        self.seconds.unwrap_or(bytes as f64 / READ_IN_A_SECOND)
    }
}

/// Bytes of weights, where nothing was measured.
pub(crate) const READ_IN_A_SECOND: f64 = 1e9;

/// What a load would come to now.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// In one word.
    pub verdict: Verdict,
    /// Of one that is loaded, what it has.
    pub foreseen: Foreseen,
    /// What it would take of each device, with what there is for it.
    pub needs: Vec<Need>,
    /// The size of its context; `None`: its engine does not say what that takes.
    pub shape: Option<Shape>,
    /// Who would have to give up a part of its context, and how much, in bytes.
    pub shrink: Vec<(String, u64)>,
    /// Who would have to go for it.
    pub unload: Vec<Leaver>,
    /// Who holds something of where it would go.
    pub holders: Vec<Holder>,
    /// When there would be room for one that would wait, as things stand; `None`: it would not, or nobody can say.
    pub room_from: Option<Moment>,
    /// How long it would be until it answers, those that go included; `None`: nobody can say, or it never would.
    pub ready_seconds: Option<f64>,
    /// The longest context, in tokens, for which there would be room for one sequence once all had gone that may;
    /// 0: there is no room for any; `None`: the engine does not say what a token takes.
    pub largest_context: Option<u32>,
}

/// How a load would end.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is loaded, or being loaded, as it is asked for.
    Loaded,
    /// There is room.
    Fits,
    /// There is room once others have given up what they can do without.
    AfterShrinking,
    /// There is room once others have gone, which they may at once.
    AfterUnloading,
    /// Others are to make room, and may not yet.
    AfterWaiting,
    /// It would be refused.
    Refused(Fault),
}

/// A device that a load would take something of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// By its address, or "host".
    pub id: String,
    /// For people.
    pub device: String,
    /// What it would take, in bytes.
    pub required_bytes: u64,
    /// What there is beside all that is held now, in bytes.
    pub available_bytes: u64,
    /// Most that models may hold, in bytes.
    pub limit_bytes: u64,
    /// What others than models take of it, in bytes.
    pub foreign_bytes: u64,
}

/// A model that would go.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaver {
    /// Which.
    pub model_id: String,
    /// Since when it has nothing to answer; `None`: it has, and would end that first.
    pub idle_since: Option<Moment>,
    /// How long its load took: it would take as long to have it back.
    pub reload_seconds: f64,
}

impl Leaver {
    fn of(model_id: &str, worker: &Worker) -> Self {
        let reload_seconds = worker.load_time().as_secs_f64();
        Self { model_id: model_id.to_owned(), idle_since: worker.idle_since, reload_seconds }
    }
}

impl Fleet {
    /// What a load would come to. `foreseen`: of a model that was not loaded when somebody looked.
    pub(crate) fn plan(
        &self,
        now: Moment,
        model_id: &str,
        wishes: &ModelOptions,
        foreseen: Option<Foreseen>,
    ) -> Result<Planned, Fault> {
        let life = self.models.get(model_id);
        let setup = Setup::new(model_id, wishes.clone(), &self.usual);
        let mut worker = life.and_then(ModelLife::lead).filter(|it| it.is_wanted() || it.is_outgoing);
        let (mut unload, mut is_beside) = (Vec::new(), false);
        if let Some(worker) = worker {
            let verdict = match worker.setup.fits(wishes, model_id, "is loaded") {
                Fit::Differs(fault) if worker.loaded.is_none() || foreseen.is_none() => {
                    Some(Verdict::Refused(fault))
                }
                Fit::Joins if worker.needs().is_none() => Some(Verdict::Loaded),
                Fit::Joins => Some(Verdict::AfterWaiting),
                Fit::Grows(_) if worker.loaded.is_none() => Some(Verdict::AfterWaiting),
                Fit::Grows(_) if worker.is_in_steps() => None,
                Fit::Differs(_) | Fit::Grows(_)
                    if life.zip(foreseen.as_ref()).is_some_and(|(life, foreseen)| {
                        self.line().is_empty()
                            && self.place_beside_of(now, model_id, life, &setup, foreseen).is_some()
                    }) =>
                {
                    is_beside = true;
                    None
                }
                Fit::Differs(_) | Fit::Grows(_) => {
                    unload.push(Leaver::of(model_id, worker));
                    None
                }
            };
            if let Some(verdict) = verdict {
                let of_others = life.into_iter().flat_map(ModelLife::wanted).filter(|it| it.id != worker.id);
                let mut foreseen = Foreseen::of(worker);
                foreseen.memory.extend(of_others.flat_map(Worker::memory));
                let answers = verdict == Verdict::Loaded && worker.loaded.is_some();
                let (shape, ready_seconds) = (worker.shape, answers.then_some(0.0));
                let mut places = self.places.iter().filter(|place| place.model_id == model_id);
                let room_from = places.next().map(|place| place.expected);
                let planned = self.planned(now, verdict, worker.id, foreseen);
                return Ok(Planned { shape, room_from, ready_seconds, ..planned });
            }
        }
        // Its context is made anew where it lies.
        let stays = worker.filter(|_| unload.is_empty() && !is_beside).map(|it| it.setup.place.clone());
        if is_beside {
            worker = None;
        }
        let worker = worker.map_or(NOBODY, |worker| worker.id);
        // What was wanted when somebody looked may be on its way out by now: it would take that once more.
        let leaving = || life.and_then(ModelLife::lead).map(Foreseen::of);
        let Some(foreseen) = foreseen.or_else(leaving) else {
            let message = format!("Model '{model_id}' has just changed; ask again");
            return Err(retry_after(Fault::new(ErrorCode::ModelLoading, message), Duration::from_secs(1)));
        };
        // What is wrong with the order itself is said as a load says it.
        self.has_places(model_id, &setup)?;
        let foreseen = self.guessed(foreseen, &[]);
        let least = foreseen.least(&self.history)?;
        let (place, no_place) = match stays {
            Some(place) => (place, None),
            None => self.sought_place(now, worker, model_id, &setup, &least),
        };
        let foreseen = self.guessed(foreseen.on(&place), &place);
        let is_guess = foreseen.basis == Basis::FileSize;
        let least = if is_guess { foreseen.least(&self.history)? } else { on(&least, &place) };
        let why_not = life
            .and_then(|life| life.cooling(now))
            .or_else(|| self.cannot_tell(now, model_id, &least))
            .or(no_place)
            .or_else(|| self.could_fit(now, worker, &least).err());
        if let Some(fault) = why_not {
            let foreseen = Foreseen { memory: self.of_all(&setup, least), ..foreseen };
            return Ok(self.planned(now, Verdict::Refused(fault), worker, foreseen));
        }
        // Those that wait already have their room first.
        let line = self.line();
        let ahead = line.iter().flat_map(|(_, worker)| self.estimate_of(*worker));
        let all: Vec<MemoryUse> = ahead.chain(least.iter().cloned()).collect();
        let has_room = self.ledger.has_room(&least, |other| other != worker)
            && self.ledger.hope(now, worker, &all).is_ok();
        let way = if has_room {
            Some(Way::default())
        } else if line.is_empty() {
            self.who_makes_room(now, worker, &least)
        } else {
            None
        };
        let Some(mut way) = way else {
            return Ok(self.waits(now, (model_id, worker), &setup, least, foreseen));
        };
        let mut shape = None;
        let mut foreseen = Foreseen { memory: least.clone(), ..foreseen };
        if let Some(setup) = foreseen.setup.as_deref().filter(|_| foreseen.figures.are_of_contexts()) {
            let choose = |ledger: &Ledger| {
                let beyond = Some((&*self.history, &foreseen.key));
                shape::choose(ledger, setup, &foreseen.figures, foreseen.before.as_deref(), beyond, worker)
            };
            let longest = length_of(&foreseen.figures.one);
            let is_enough = |chosen: &Chosen| chosen.shape.is_enough(setup.wish(), longest);
            // Where those that go anyway are enough, it is not known yet what they leave.
            if has_room || !way.is_empty() {
                let gets = |ledger: &Ledger| choose(ledger).ok();
                way = self.way_to_enough(now, (worker, &least), &self.ledger, way, gets, is_enough);
            }
            let without = self.ledger.without(way.gone());
            let then = without.after(&way.shrink);
            let mut chosen = choose(&then)?;
            if !chosen.is_known {
                chosen = self.as_said(&then, &foreseen, setup, chosen, worker);
            }
            if !then.has_room(&chosen.uses, |other| other != worker) {
                // Its engine says that it takes more than was thought: it waits for that, or is refused.
                let planned = match self.could_fit(now, worker, &chosen.uses) {
                    Ok(()) => self.waits(now, (model_id, worker), setup, chosen.uses, foreseen.clone()),
                    Err(fault) => {
                        let memory = self.of_all(setup, chosen.uses);
                        let foreseen = Foreseen { memory, ..foreseen.clone() };
                        self.planned(now, Verdict::Refused(fault), worker, foreseen)
                    }
                };
                return Ok(Planned { shape: Some(chosen.shape), ..planned });
            }
            (foreseen.memory, shape) = (chosen.uses, Some(chosen.shape));
            if !chosen.is_known {
                (foreseen.basis, foreseen.seconds) = (Basis::Engine, None);
            }
        }
        let leads = way.unload.iter().filter_map(|(_, gone)| Some((gone, self.models.get(gone)?.lead()?)));
        unload.extend(leads.map(|(model_id, worker)| Leaver::of(model_id, worker)));
        let verdict = match (unload.is_empty(), way.shrink.is_empty()) {
            (true, true) => Verdict::Fits,
            (true, false) => Verdict::AfterShrinking,
            (false, _) => Verdict::AfterUnloading,
        };
        let gained = |spare: &Spare| spare.gain.iter().map(MemoryUse::total).fold(0, u64::saturating_add);
        let shrink = way.shrink.iter().map(|spare| (spare.model_id.clone(), gained(spare))).collect();
        let ready_seconds = Some(foreseen.ready_seconds());
        foreseen.memory = self.of_all(&setup, foreseen.memory);
        Ok(Planned { shape, shrink, unload, ready_seconds, ..self.planned(now, verdict, worker, foreseen) })
    }

    /// Where its engine cannot say what it would take there, what stands for it.
    fn guessed(&self, foreseen: Foreseen, place: &[GpuAddress]) -> Foreseen {
        match foreseen.basis {
            Basis::FileSize => Foreseen { memory: self.ledger.guess(foreseen.size_bytes, place), ..foreseen },
            Basis::Measured | Basis::Engine => foreseen,
        }
    }

    /// It would stand behind all who wait already. `of`: the model, and who has some of it already.
    fn waits(
        &self,
        now: Moment,
        of: (&str, WorkerId),
        setup: &Setup,
        uses: Vec<MemoryUse>,
        foreseen: Foreseen,
    ) -> Planned {
        let ((model_id, worker), is_pinned, load) = (of, setup.is_pinned(), Duration::ZERO);
        let mut waiters = self.waiters();
        let before = waiters.len();
        waiters.push(Waiter { worker, model_id: model_id.to_owned(), uses, is_pinned, load });
        let place = self.places(now, &waiters).pop();
        let uses = waiters.pop().map(|waiter| waiter.uses).unwrap_or_default();
        let room_from = place.as_ref().map(|place| place.expected);
        let verdict = match place.filter(|place| now + self.deadlines.room < place.expected) {
            Some(Place { waits_for, expected, .. }) => Verdict::Refused(self.would_wait_too_long(
                now,
                (model_id, before),
                &waits_for,
                expected,
                &uses,
            )),
            None => Verdict::AfterWaiting,
        };
        let foreseen = Foreseen { memory: self.of_all(setup, uses), ..foreseen };
        Planned { room_from, ..self.planned(now, verdict, worker, foreseen) }
    }

    /// What was chosen by sums, as far as its engine has said what that takes: a load would go by that.
    fn as_said(
        &self,
        ledger: &Ledger,
        foreseen: &Foreseen,
        setup: &Setup,
        mut chosen: Chosen,
        worker: WorkerId,
    ) -> Chosen {
        let has_room = |uses: &[MemoryUse]| ledger.has_room(uses, |other| other != worker);
        for _ in 0..MOST_ROUNDS {
            let said = foreseen.sized.iter().find(|(shape, _)| *shape == chosen.shape);
            let Some((_, said)) = said else { break };
            chosen.uses = self.history.corrected(&foreseen.key, said.clone());
            let again = shape::choose_again(ledger, setup, &foreseen.figures, &chosen.uses, worker);
            // What has just been said of that size is not taken back by a sum.
            match again.filter(|it| it.shape != chosen.shape && has_room(&it.uses)) {
                Some(again) if !has_room(&chosen.uses) || again.shape.cells() / 2 >= chosen.shape.cells() => {
                    chosen = again;
                }
                _ => break,
            }
        }
        chosen
    }

    /// `worker`: who has some of it already.
    fn planned(&self, now: Moment, verdict: Verdict, worker: WorkerId, foreseen: Foreseen) -> Planned {
        let needs = self.ledger.needs_of(&foreseen.memory, worker);
        let holders = self.holders_of(now, &foreseen.memory);
        let largest_context = self.largest_context(worker, &foreseen.memory, foreseen.longest());
        let (shape, shrink, unload) = (None, Vec::new(), Vec::new());
        let (room_from, ready_seconds) = (None, None);
        Planned {
            verdict,
            foreseen,
            needs,
            shape,
            shrink,
            unload,
            holders,
            room_from,
            ready_seconds,
            largest_context,
        }
    }
}
