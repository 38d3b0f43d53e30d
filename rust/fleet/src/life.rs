//! One model: its workers, who waits for it, and what went wrong with it last.

use std::{sync::Arc, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::{Figures, MemoryUse, length_of},
    options::ModelOptions,
    shape::Shape,
};
use serde_json::json;

use crate::{
    Basis, Deadlines, Death, Files, Foreseen, FoundModel, Loaded, Moment, Setup, Ticket, WorkerId,
    back::GaveUp, placing::Search, replace::Replacement, reshape::Growing,
};

/// After the first crash; doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// So many crashes in a row are no accident: requests load it no more, before somebody wants that.
const MOST_CRASHES: u32 = 6;
/// Never longer than this, where another worker answers.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// Of a pause that is no longer, whoever wants the model waits for its end.
const WAITED_OUT: Duration = Duration::from_secs(2);
/// So long a model stays that is asked again and again, and four times as long as its load took.
const SHORTEST_TURN: Duration = Duration::from_secs(30);
/// Whoever has just had an answer, or a load, may be about to ask.
pub(crate) const BETWEEN_REQUESTS: Duration = Duration::from_millis(500);
/// Whoever had it loaded may take so long to ask, however short it is to stay without being asked; and so long nobody
/// takes the place of a model that was loaded for a request.
const BEFORE_THE_FIRST_REQUEST: Duration = Duration::from_secs(10);
/// A worker that lived so long was well; the count of crashes begins anew.
pub(crate) const HEALTHY_AFTER: Duration = Duration::from_mins(1);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelLife {
    /// In the order in which they were begun.
    pub(crate) workers: Vec<Worker>,
    /// Who wants it loaded.
    pub(crate) waiting: Vec<Waiting>,
    /// Who wants it gone.
    pub(crate) leaving: Vec<Leaving>,
    pub(crate) trouble: Option<Trouble>,
    /// It is being loaded anew, as somebody else wants it.
    pub(crate) replacement: Option<Replacement>,
    /// No further worker is begun before, while another answers.
    pub(crate) next_replica: Moment,
    /// Crashes in a row.
    pub(crate) crashes: u32,
    pub(crate) last_crash: Option<Crash>,
}

/// Somebody who wants a model to be loaded.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) ticket: Ticket,
    pub(crate) wishes: ModelOptions,
    pub(crate) format: Option<String>,
    /// What the model would come to as these wishes have it, where it is to be loaded anew for them.
    pub(crate) instead: Option<Box<Foreseen>>,
    /// The load under way is as these wishes have it.
    pub(crate) is_met: bool,
    /// They have a request for it.
    pub(crate) for_request: bool,
    /// Which is of so many tokens at least; 0: nobody knows.
    pub(crate) tokens: u32,
}

/// Somebody who wants a model to be gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    pub(crate) ticket: Ticket,
    /// For so long they wait.
    pub(crate) by: Moment,
}

/// Why a model without a worker has none.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// Its worker crashed; the next attempt waits.
    Cooling { until: Moment, fault: Fault },
    /// The last load failed; whoever asks next tries again.
    Failed { fault: Fault, files: Files },
    /// It crashed too often; only an order to load or unload it begins anew.
    GivenUp { fault: Fault },
}

/// How a worker of the model died last, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// When.
    pub at: Moment,
    /// With which engine.
    pub engine: String,
    /// How.
    pub death: Death,
    /// So many in a row. What one request did again is not counted.
    pub in_a_row: u32,
}

/// A worker, from the wish for it until it is gone.
#[derive(Clone, Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) setup: Setup,
    pub(crate) stage: Stage,
    pub(crate) begun: Moment,
    /// Once it is known.
    pub(crate) found: Option<FoundModel>,
    /// The model's files as they were then.
    pub(crate) files: Files,
    /// Its process, once it has one.
    pub(crate) pid: Option<u32>,
    /// What it will take.
    pub(crate) estimate: Vec<MemoryUse>,
    /// Where that comes from.
    pub(crate) basis: Basis,
    /// What its engine says that it will take, or what stands for that.
    pub(crate) said: Vec<MemoryUse>,
    /// What this comes of.
    pub(crate) figures: Figures,
    /// The size of its context, where it follows from these.
    pub(crate) shape: Option<Shape>,
    /// How often it was chosen.
    pub(crate) rounds: u8,
    /// Another context could not be made.
    pub(crate) is_stiff: bool,
    /// What it had before it gave up a part of its context for others.
    pub(crate) gave_up: Option<GaveUp>,
    /// How often it did, or could not have it back.
    pub(crate) setbacks: u32,
    /// It is loaded, and what it takes is still to be measured.
    pub(crate) answers: Option<Box<ModelFacts>>,
    /// Once it is loaded.
    pub(crate) loaded: Option<Arc<Loaded>>,
    /// Since when it answers, or has been wanted.
    pub(crate) since: Moment,
    /// Since when it has nothing to answer; `None`: it has.
    pub(crate) idle_since: Option<Moment>,
    /// How long it usually has nothing to answer until it is asked again, of late; `None`: it was not.
    pub(crate) pause: Option<Duration>,
    /// Somebody had it loaded, and nobody has asked it anything since.
    pub(crate) is_awaited: bool,
    /// It was loaded for a request, which has not come yet.
    pub(crate) is_expected: bool,
    /// How long it waited for room.
    pub(crate) waited: Duration,
    /// How far it has come with finding its GPUs.
    pub(crate) search: Search,
    /// While it answers: the way to another context.
    pub(crate) growing: Option<Growing>,
    /// It answers until one that is loaded as somebody else wants it does.
    pub(crate) is_outgoing: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Stage {
    /// It has no process yet.
    Finding { by: Moment },
    /// Its process is to introduce itself. It may have died already: whoever starts it says so.
    Starting { by: Moment, died: Option<(Death, bool)> },
    /// It loads.
    Loading { by: Moment },
    /// What it takes is known, and others are to make room for it.
    Waiting { by: Moment },
    /// It answers.
    Serving,
    /// It ends what is under way: where it is retired without a deadline, for no answer is cut.
    Draining { by: Option<Moment>, is_retired: bool },
    /// It is to end; where it does not by then, it is killed, and where that does not help, given up.
    Ending { by: Moment, is_killed: bool, because: Because },
}

/// Why a worker is to end.
#[derive(Clone, Debug)]
pub(crate) enum Because {
    /// Its load has failed, or is refused.
    Failed(Fault),
    /// Its load takes too long.
    Late,
    /// Nobody wants it any more.
    Dismissed,
    /// By no order: another needs the room, or nobody has asked it anything for long.
    Retired,
    /// Its load begins again, on other GPUs.
    Moved,
}

impl Worker {
    pub(crate) fn new(id: WorkerId, setup: Setup, begun: Moment, deadlines: &Deadlines) -> Self {
        let stage = Stage::Finding { by: begun + deadlines.find };
        Self {
            id,
            setup,
            stage,
            begun,
            found: None,
            files: Files::new(),
            pid: None,
            estimate: Vec::new(),
            basis: Basis::Engine,
            said: Vec::new(),
            figures: Figures::default(),
            shape: None,
            rounds: 0,
            is_stiff: false,
            gave_up: None,
            setbacks: 0,
            answers: None,
            loaded: None,
            since: begun,
            idle_since: Some(begun),
            pause: None,
            is_awaited: true,
            is_expected: false,
            waited: Duration::ZERO,
            search: Search::default(),
            growing: None,
            is_outgoing: false,
        }
    }

    pub(crate) fn engine(&self) -> String {
        self.found.as_ref().map(|found| found.engine.id.clone()).unwrap_or_default()
    }

    /// Is it loaded, and only what it takes is not known yet?
    pub(crate) fn is_measured(&self) -> bool {
        self.answers.is_some() && matches!(self.stage, Stage::Loading { .. })
    }

    /// The longest sequence that the model takes, as its engine says.
    pub(crate) fn longest(&self) -> Option<u32> {
        Some(length_of(&self.figures.one)).filter(|length| *length > 0)
    }

    /// How long its load took, without what it waited for room.
    pub(crate) fn load_time(&self) -> Duration {
        let took = self.loaded.as_ref().map_or(Duration::ZERO, |loaded| loaded.took);
        took.saturating_sub(self.waited)
    }

    /// It waits for room no longer, for which it waited so long at most.
    pub(crate) fn wait_ends(&mut self, now: Moment, longest: Duration) {
        if let Stage::Waiting { by } = self.stage {
            self.waited += longest.saturating_sub(by.since(now));
        }
    }

    /// When its stage must have ended.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        match &self.stage {
            Stage::Serving => self.growing.as_ref().map(|growing| growing.by),
            Stage::Finding { by }
            | Stage::Starting { by, .. }
            | Stage::Loading { by }
            | Stage::Waiting { by }
            | Stage::Ending { by, .. } => Some(*by),
            Stage::Draining { by, .. } => *by,
        }
    }

    /// When it may be asked to make room; `None`: never. Who has had its turn may be asked while it answers:
    /// what is new for it waits then, so that two models that are both in demand come to answer by turns.
    pub(crate) fn may_go_from(&self, longest_wait: Duration) -> Option<Moment> {
        let (Stage::Serving, None) = (&self.stage, &self.growing) else { return None };
        let turn = self.since + SHORTEST_TURN.max(self.load_time().saturating_mul(4)).min(longest_wait / 2);
        let between = if self.is_expected { BEFORE_THE_FIRST_REQUEST } else { self.between_requests() };
        let idle = self.idle_since.map(|since| since + between);
        (!self.setup.is_pinned()).then_some(idle.map_or(turn, |idle| idle.min(turn)))
    }

    /// For so long it may be about to be asked again. To wait for that longer than its load takes is of no use.
    fn between_requests(&self) -> Duration {
        let load = self.load_time();
        let pause = self.pause.filter(|pause| *pause <= load).unwrap_or_default();
        BETWEEN_REQUESTS.max(pause.saturating_mul(2).min(load))
    }

    /// When it goes because nobody asks it anything; `None`: never, as things are.
    pub(crate) fn is_unused_from(&self) -> Option<Moment> {
        let (Stage::Serving, None, Some(idle_since)) = (&self.stage, &self.growing, self.idle_since) else {
            return None;
        };
        let shortest = if self.is_awaited { BEFORE_THE_FIRST_REQUEST } else { BETWEEN_REQUESTS };
        let keep_alive = self.setup.keep_alive().filter(|_| !self.setup.is_pinned())?;
        Some(idle_since + keep_alive.max(shortest))
    }

    /// Is it, or will it be, what somebody wants who asks now?
    pub(crate) fn is_wanted(&self) -> bool {
        !self.is_outgoing
            && !matches!(
                &self.stage,
                Stage::Draining { .. } | Stage::Ending { because: Because::Dismissed | Because::Retired, .. }
            )
    }

    /// Is it on its way out?
    pub(crate) fn is_going(&self) -> bool {
        matches!(&self.stage, Stage::Draining { .. } | Stage::Ending { .. })
    }

    /// Is it on its way out by no order?
    pub(crate) fn is_retired(&self) -> bool {
        matches!(
            &self.stage,
            Stage::Draining { is_retired: true, .. } | Stage::Ending { because: Because::Retired, .. }
        )
    }

    /// What its engine does not say of its model, as far as it is known without it.
    pub(crate) fn complete(&self, loaded: &mut Loaded) {
        let Some(found) = &self.found else { return };
        let facts = &mut loaded.facts;
        if facts.architecture.is_empty() {
            facts.architecture = found.architecture.clone().unwrap_or_default();
        }
        if facts.format.is_empty() {
            facts.format.clone_from(&found.format);
        }
        if facts.memory.iter().all(|use_| use_.total() == 0) {
            facts.memory.clone_from(&self.estimate);
        }
        facts.quantization = facts.quantization.take().or_else(|| found.quantization.clone());
    }
}

impl ModelLife {
    /// The workers that are, or will be, what somebody wants who asks now.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| worker.is_wanted())
    }

    /// Does one answer until another takes its place?
    pub(crate) fn has_outgoing(&self) -> bool {
        self.workers.iter().any(|it| it.is_outgoing)
    }

    /// Does one answer, or will one that is wanted?
    pub(crate) fn is_there(&self) -> bool {
        self.is_wanted() || self.has_outgoing()
    }

    /// Is there one that is wanted?
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted().next().is_some()
    }

    /// The one that stands for all: the first that answers, else the first that will.
    pub(crate) fn lead(&self) -> Option<&Worker> {
        let rank = |worker: &&Worker| (!matches!(worker.stage, Stage::Serving), !worker.is_wanted());
        self.workers.iter().min_by_key(rank)
    }

    /// As what it gets one more worker, and from when on, while one answers; `None`: it lacks none, or none answers.
    pub(crate) fn lacks(&self) -> Option<(Setup, Moment)> {
        let lead = self.lead().filter(|it| it.is_serving() && self.replacement.is_none())?;
        let setup = &lead.setup;
        (self.wanted().count() < setup.replicas())
            .then(|| (setup.grown(&ModelOptions::default()), self.next_replica))
    }

    /// The numbers of all.
    pub(crate) fn ids(&self) -> Vec<WorkerId> {
        self.workers.iter().map(|worker| worker.id).collect()
    }

    /// Since when none has anything to answer; `None`: one has.
    pub(crate) fn idle_since(&self) -> Option<Moment> {
        let all: Option<Vec<Moment>> = self.workers.iter().map(|worker| worker.idle_since).collect();
        all?.into_iter().max()
    }

    /// When it goes because nobody asks it anything; `None`: never, as things are.
    pub(crate) fn unused_from(&self) -> Option<Moment> {
        if self.replacement.is_some() {
            return None;
        }
        let all: Option<Vec<Moment>> = self.wanted().map(Worker::is_unused_from).collect();
        all?.into_iter().max()
    }

    /// When all of it may be asked to make room; `None`: never, as things are.
    pub(crate) fn may_go_from(&self, longest_wait: Duration) -> Option<Moment> {
        if self.replacement.is_some() {
            return None;
        }
        let all: Option<Vec<Moment>> = self.wanted().map(|worker| worker.may_go_from(longest_wait)).collect();
        all?.into_iter().max()
    }

    /// Until when it is not loaded after a crash.
    pub(crate) fn cools_until(&self, now: Moment) -> Option<Moment> {
        match &self.trouble {
            Some(Trouble::Cooling { until, .. }) if now < *until => Some(*until),
            _ => None,
        }
    }

    /// Why nobody waits for the end of its pause after a crash, where it is too long for that.
    pub(crate) fn cooling(&self, now: Moment) -> Option<Fault> {
        match &self.trouble {
            Some(Trouble::Cooling { until, fault }) if self.workers.is_empty() => {
                too_long(now, *until, fault)
            }
            _ => None,
        }
    }

    /// Why requests do not have it loaded.
    pub(crate) fn given_up(&self) -> Option<&Fault> {
        match &self.trouble {
            Some(Trouble::GivenUp { fault }) => Some(fault),
            _ => None,
        }
    }

    /// Has it crashed too often?
    pub(crate) fn is_hopeless(&self) -> bool {
        self.crashes >= MOST_CRASHES
    }

    /// Nothing is to be said of it.
    pub(crate) fn is_plain(&self) -> bool {
        self.workers.is_empty() && self.trouble.is_none() && self.crashes == 0 && self.last_crash.is_none()
    }

    /// Counts a crash, and gives the pause that it costs.
    pub(crate) fn crashed(&mut self, now: Moment, engine: String, death: Death, is_known: bool) -> Duration {
        if !is_known {
            self.crashes = self.crashes.saturating_add(1);
        }
        self.last_crash = Some(Crash { at: now, engine, death, in_a_row: self.crashes });
        pause(self.crashes.saturating_sub(1))
    }

    /// The next point in time at which something is overdue.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let workers = self.workers.iter().filter_map(Worker::deadline);
        let pause = match &self.trouble {
            Some(Trouble::Cooling { until, .. }) if self.is_waited_out() => Some(*until),
            _ => None,
        };
        self.leaving.iter().map(|leaving| leaving.by).chain(workers).chain(pause).min()
    }

    /// Somebody waits until its pause after a crash is over.
    pub(crate) fn is_waited_out(&self) -> bool {
        self.workers.is_empty() && !self.waiting.is_empty()
    }
}

/// Why a pause after a crash is not waited for by whoever comes now; `None`: it is, or is over.
pub(crate) fn too_long(now: Moment, until: Moment, fault: &Fault) -> Option<Fault> {
    let left = until.since(now);
    (left > WAITED_OUT).then(|| retry_after(fault.clone(), left))
}

/// What whoever asks for a model is told that crashed too often. No time makes it better.
pub(crate) fn hopeless(model_id: &str, crashed: &Fault) -> Fault {
    let message = format!(
        "{}. Model '{model_id}' has crashed {MOST_CRASHES} times in a row, so requests do not load it any more: load or \
         unload it (POST /api/models/load, llm-node stop {model_id}) once the cause is mended",
        crashed.message
    );
    Fault { message, ..crashed.clone() }.details(json!({ "retry_after": null }).to_string())
}

/// 1 s, 2 s, 4 s, ... after so many crashes before this one.
fn pause(crashes: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(crashes.min(16))).min(LONGEST_PAUSE)
}

/// In whole seconds, and never at once.
pub(crate) fn retry_after(fault: Fault, pause: Duration) -> Fault {
    fault.details(json!({ "retry_after": whole_seconds(pause) }).to_string())
}

pub(crate) fn whole_seconds(pause: Duration) -> u64 {
    (pause.as_millis().div_ceil(1000) as u64).max(1)
}

/// What whoever waits for a model is told when somebody else unloads it.
pub(crate) fn unloaded(model_id: &str) -> Fault {
    let message = format!("Model '{model_id}' was unloaded by another client");
    retry_after(Fault::new(ErrorCode::ShuttingDown, message), FIRST_PAUSE)
}

/// What whoever wants a model to be gone is told that is not there.
pub fn not_loaded(model_id: &str) -> Fault {
    Fault::new(ErrorCode::ModelNotFound, format!("Model '{model_id}' is not loaded")).param("model")
}

pub(crate) fn shutting_down() -> Fault {
    Fault::new(ErrorCode::ShuttingDown, "The node is shutting down")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_minute() {
        let pauses: Vec<u64> = (0..9).map(|crashes| pause(crashes).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(u32::MAX).as_secs(), 60);
    }

    #[test]
    fn what_one_request_does_again_costs_the_others_no_longer_pause() {
        let mut life = ModelLife::default();
        let death =
            Death { ending: String::new(), signal: None, call: String::new(), message: String::new() };
        let pauses = [false, true, true, false, true]
            .map(|is_known| life.crashed(Moment::default(), "e".into(), death.clone(), is_known).as_secs());
        assert_eq!(pauses, [1, 1, 1, 2, 2]);
    }
}
