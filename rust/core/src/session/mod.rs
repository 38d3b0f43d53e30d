//! Schedule, run, sample, emit: the generating loop over one context of one engine.
//!
//! A session is driven from outside: whoever owns it calls [`Session::step`] while it is not idle. It
//! starts no thread, and the clock that it is given decides only *when* things happen: the same requests
//! give the same answers, whatever runs beside them.

mod turns;
mod verify;

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc, time::Duration};

use llm_node_cpu::Crew;
use serde::{Deserialize, Serialize};

use crate::{
    engine::{EngineFault, EngineFaultKind, Limits, SequenceId, Slice, StepEngine, Token, Vocabulary},
    error::{ErrorCode, Fault},
    event::{Event, Finish},
    request::{ValidRequest, longest},
    sample::{Forbidden, Samplers},
    schedule::{
        admission::{Queue, in_pages},
        batch::{Share, Turn, plan},
        generation::{Generation, Saved},
        pace::Pace,
        preempt::victim,
    },
    sequences::{Clock, Sequences},
    speculate::{Drafter, Speller},
};

pub use verify::MOST_DRAFTED;

/// Tokens that a prompt must have in common with one that is just being read, beyond what the cache
/// holds, to wait for it. Both would take them from the same steps, so waiting costs nothing.
const WORTH_WAITING: u32 = 16;
/// How many of those that wait are looked at for one that need not.
const LOOK_AHEAD: usize = 256;

/// How much a session takes on.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Requests that may wait before new ones are refused.
    pub queue_limit: usize,
    /// Prompt tokens that may wait before new requests are refused; one request is always taken.
    pub queue_tokens: usize,
    /// Requests under way at once; 0: as many as the engine has sequences.
    pub max_running: u32,
    /// How long the prompts in a step may make it, while answers are under way.
    pub target_step: Duration,
    /// Prompt tokens per step while answers are under way, until it is known how long these take.
    pub prefill_tokens: u32,
    /// Keep what the cache holds of answers that ended, for prompts that begin alike?
    pub keep_prefixes: bool,
    /// Host memory for sequences that had to give way, in bytes.
    pub saved_bytes: usize,
    /// Tells the time that has passed.
    pub clock: Clock,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            queue_limit: 256,
            queue_tokens: 1 << 20,
            max_running: 0,
            target_step: Duration::from_millis(150),
            prefill_tokens: 128,
            keep_prefixes: true,
            saved_bytes: 1 << 30,
            clock: || Duration::ZERO,
        }
    }
}

/// How busy a model is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Requests that wait for admission.
    pub queued: usize,
    /// Prompt tokens of these.
    pub queued_tokens: usize,
    /// Prompt tokens that are read in a second; 0: nobody knows.
    pub prompt_rate: u32,
    /// Requests under way.
    pub running: usize,
    /// Requests that may be under way at once.
    pub max_running: usize,
    /// Tokens that the KV cache holds, those of kept sequences included.
    pub cache_used: u64,
    /// Tokens that the KV cache can hold.
    pub cache_tokens: u64,
    /// Sequences that are kept for prompts to come.
    pub kept: usize,
    /// What these hold; it goes as soon as somebody needs the room.
    pub kept_tokens: u64,
    /// Times that a request had to give way since the session began.
    pub preemptions: u64,
    /// Tokens proposed by a drafter since the session began, and how many of them were right.
    pub drafted: u64,
    /// See [`Occupancy::drafted`].
    pub accepted: u64,
    /// Where the time of its steps went since the session began.
    pub step_micros: StepMicros,
}

/// Microseconds that an engine computed, by what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepMicros {
    /// Steps of prompts alone.
    pub prompts: u64,
    /// Steps of answers alone.
    pub answers: u64,
    /// Steps of both.
    pub mixed: u64,
    /// Writing sequences down that had to give way.
    pub saving: u64,
}

impl StepMicros {
    fn stepped(&mut self, answers: bool, prompts: bool, took: Duration) {
        let sum = match (answers, prompts) {
            (true, true) => &mut self.mixed,
            (false, true) => &mut self.prompts,
            _ => &mut self.answers,
        };
        *sum += took.as_micros() as u64;
    }
}

impl Occupancy {
    /// Of two sessions together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            queued: self.queued + other.queued,
            queued_tokens: self.queued_tokens + other.queued_tokens,
            prompt_rate: self.prompt_rate.saturating_add(other.prompt_rate),
            running: self.running + other.running,
            max_running: self.max_running + other.max_running,
            cache_used: self.cache_used + other.cache_used,
            cache_tokens: self.cache_tokens + other.cache_tokens,
            kept: self.kept + other.kept,
            kept_tokens: self.kept_tokens + other.kept_tokens,
            preemptions: self.preemptions + other.preemptions,
            drafted: self.drafted + other.drafted,
            accepted: self.accepted + other.accepted,
            step_micros: StepMicros {
                prompts: self.step_micros.prompts + other.step_micros.prompts,
                answers: self.step_micros.answers + other.step_micros.answers,
                mixed: self.step_micros.mixed + other.step_micros.mixed,
                saving: self.step_micros.saving + other.step_micros.saving,
            },
        }
    }
}

/// A context that was made anew.
#[derive(Debug)]
pub struct Remade {
    /// Requests under way at once; 0: as many as it has sequences.
    pub max_running: u32,
    /// Who proposes how answers go on.
    pub drafter: Option<Box<dyn Drafter>>,
}

/// All requests to one loaded model, and the engine that answers them.
#[derive(Debug)]
pub struct Session<E> {
    sequences: Sequences<E>,
    vocabulary: Arc<Vocabulary>,
    options: SessionOptions,
    forbidden: Forbidden,
    samplers: Samplers,
    /// Who helps with picking and with masks.
    crew: Option<Crew>,
    queue: Queue<Generation>,
    running: BTreeMap<SequenceId, Generation>,
    max_running: usize,
    pace: Pace,
    drafter: Option<Box<dyn Drafter>>,
    /// Who spells what the forms of answers foresee.
    speller: Option<Speller>,
    /// When the last step with answers in it ended, or none was under way.
    answered: Duration,
    /// Short prompts that were under way at once since then, at most.
    burst: u32,
    /// Is it the prompts' turn, where answers and prompts do not share steps?
    prompts_next: bool,
    /// Steps in a row with holes among the ids.
    steps_with_holes: u32,
    arrivals: u64,
    preemptions: u64,
    drafted: u64,
    accepted: u64,
    step_micros: StepMicros,
    /// What ended the engine.
    ended: Option<EngineFault>,
}

impl<E: StepEngine> Session<E> {
    /// A session over a context that holds no sequence.
    pub fn new(engine: E, vocabulary: Arc<Vocabulary>, options: SessionOptions) -> Self {
        let limits = engine.limits();
        Self {
            forbidden: Forbidden::of(&vocabulary, limits.n_vocab as usize),
            samplers: Samplers::default(),
            crew: None,
            queue: Queue::new(options.queue_limit, options.queue_tokens),
            running: BTreeMap::new(),
            max_running: at_once(limits, options.max_running),
            pace: Pace::new(options.target_step, options.prefill_tokens),
            drafter: None,
            speller: None,
            answered: Duration::ZERO,
            burst: 0,
            prompts_next: false,
            steps_with_holes: 0,
            arrivals: 0,
            preemptions: 0,
            drafted: 0,
            accepted: 0,
            step_micros: StepMicros::default(),
            ended: None,
            sequences: Sequences::new(engine, options.keep_prefixes, options.clock),
            vocabulary,
            options,
        }
    }

    /// Lets `drafter` propose how answers go on. What it proposes is checked, so answers stay the same.
    #[must_use]
    pub fn with_drafter(mut self, drafter: Box<dyn Drafter>) -> Self {
        self.drafter = Some(drafter);
        self
    }

    /// Lets what the forms of answers foresee be proposed, spelled by the model's tokenizer. It is checked as well.
    #[must_use]
    pub fn with_speller(mut self, speller: Speller) -> Self {
        self.speller = Some(speller);
        self
    }

    /// Lets the threads of `crew` help where there are many tokens to pick, or many masks to compute.
    #[must_use]
    pub fn with_crew(mut self, crew: Crew) -> Self {
        self.samplers = Samplers::new(crew.size());
        self.crew = Some(crew);
        self
    }

    /// What the engine's context can take.
    pub fn limits(&self) -> &Limits {
        self.sequences.limits()
    }

    /// Puts a request into the queue, or refuses it with `queue_full`. `id` names it in events, and is
    /// unique among the requests under way.
    pub fn submit(&mut self, id: u64, request: ValidRequest) -> Result<(), Fault> {
        if let Some(fault) = &self.ended {
            return Err(crashed(fault));
        }
        let (source, weight) = (request.source(), request.weight());
        let room = self.max_running - self.running.len();
        let generation = Generation::new(id, self.arrivals, request, (self.options.clock)());
        self.queue.push(generation, source, weight, room)?;
        self.arrivals += 1;
        Ok(())
    }

    /// Ends a request: its sequence is free before the next step. Unknown ids are ignored.
    pub fn cancel(&mut self, id: u64, events: &mut Vec<(u64, Event)>) {
        let found = self.running.iter().find(|(_, it)| it.id == id);
        let generation = match found.map(|(&sequence, it)| (sequence, it.tokens())) {
            Some((sequence, tokens)) => {
                if let Err(fault) = self.sequences.end(sequence, tokens, self.pace.dear()) {
                    self.end(fault, events);
                    return;
                }
                self.running.remove(&sequence)
            }
            None => self.queue.remove(|it| it.id == id),
        };
        if let Some(generation) = generation {
            let event = generation.finished(Finish::Cancelled, (self.options.clock)());
            self.tell_last(generation.id, event, events);
        }
    }

    /// Is there nothing to do?
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    /// Does the next step compute one more token of each answer, and nothing else?
    pub fn has_only_answers(&self) -> bool {
        !self.running.is_empty() && self.queue.is_empty() && !self.reads_prompts()
    }

    /// Has the engine's context made anew, of another size. What is under way goes on in it from its tokens, so that
    /// answers stay the same; what is longer than it can take fails. `Err`: there is no context any more, and all
    /// has failed.
    pub fn reshape(
        &mut self,
        events: &mut Vec<(u64, Event)>,
        remake: impl FnOnce(&mut E) -> Result<Remade, EngineFault>,
    ) -> Result<(), EngineFault> {
        if let Some(fault) = &self.ended {
            return Err(fault.clone());
        }
        let mut running: Vec<Generation> = std::mem::take(&mut self.running).into_values().collect();
        running.sort_by_key(|it| Reverse(it.age));
        for mut generation in running {
            generation.restart();
            self.queue.put_back(generation);
        }
        for generation in self.queue.iter_mut() {
            // An engine takes back what it wrote down of the same context alone.
            generation.saved = None;
        }
        // It may have a context of its own, and its room is needed.
        self.drafter = None;
        match self.sequences.remake(remake) {
            Ok(Remade { max_running, drafter }) => {
                self.drafter = drafter;
                self.max_running = at_once(self.limits(), max_running);
            }
            Err(fault) => {
                self.end(fault.clone(), events);
                return Err(fault);
            }
        }
        self.steps_with_holes = 0;
        self.prompts_next = false;
        let longest = longest(self.limits());
        let is_too_long = |it: &Generation| u64::from(it.length()) + u64::from(it.remaining()) > longest;
        while let Some(generation) = self.queue.remove(is_too_long) {
            let message = format!("The model's context has become smaller: it takes {longest} tokens now");
            let fault = Fault::new(ErrorCode::ContextLengthExceeded, message);
            self.tell_last(generation.id, Event::Failed(fault), events);
        }
        Ok(())
    }

    /// One step: admit, plan, run, sample, and tell what came of it. `Err` only for what ends the
    /// engine; all requests have failed then, and no further one is taken.
    pub fn step(&mut self, events: &mut Vec<(u64, Event)>) -> Result<(), EngineFault> {
        if self.ended.is_none()
            && let Err(fault) = self.try_step(events)
        {
            self.end(fault, events);
        }
        if self.ended.is_none() && self.is_idle() {
            debug_assert_eq!(self.check_integrity(), Ok(()));
        }
        self.ended.clone().map_or(Ok(()), Err)
    }

    /// How busy it is.
    pub fn occupancy(&self) -> Occupancy {
        let limits = self.limits();
        Occupancy {
            queued: self.queue.len(),
            queued_tokens: self.queue.tokens(),
            prompt_rate: self.pace.prompt_rate(),
            running: self.running.len(),
            max_running: self.max_running,
            cache_used: limits.cache_tokens.saturating_sub(self.engine().cache_free()),
            cache_tokens: limits.cache_tokens,
            kept: self.sequences.n_kept(),
            kept_tokens: self.sequences.kept_tokens(),
            preemptions: self.preemptions,
            drafted: self.drafted,
            accepted: self.accepted,
            step_micros: self.step_micros,
        }
    }

    /// The engine, for what is not generation.
    pub fn engine(&self) -> &E {
        self.sequences.engine()
    }

    /// Ends the session and gives the engine back. What is under way gets no further event.
    pub fn into_engine(self) -> E {
        self.sequences.into_engine()
    }

    /// Everything that must always be true between two steps, or the first thing that is not.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.sequences.check_integrity()?;
        for (&sequence, it) in &self.running {
            let held = self.sequences.held(sequence);
            if held != it.held {
                return Err(format!("sequence {sequence} holds {held} tokens, its request says {}", it.held));
            }
        }
        Ok(())
    }

    fn try_step(&mut self, events: &mut Vec<(u64, Event)>) -> Result<(), EngineFault> {
        let mut gave_way = false;
        loop {
            // Whoever had to give way must not lose the room to a newcomer at once.
            if !gave_way {
                self.admit(events)?;
            }
            if self.running.is_empty() {
                return Ok(());
            }
            let (turn, held) = self.turn();
            // Answers have one token each, and a hole costs them a pass. Prompts have passes of their own.
            let pads = if turn == Turn::Prompts { Vec::new() } else { self.close_holes()? };
            let demands = self.demands();
            let outcome = match plan(&demands, &self.budget(&demands, turn, held, pads.len() as u32)) {
                Ok(shares) => self.run(&shares, &pads, events)?,
                Err(_) => Outcome::CacheFull,
            };
            if let Outcome::Done = outcome {
                return Ok(());
            }
            if self.sequences.evict()? {
                continue;
            }
            let Some(sequence) = victim(&demands) else {
                let fault = Fault::new(
                    ErrorCode::EngineFault,
                    "The engine's KV cache is full with one sequence that fits it by the engine's own figures.",
                );
                return self.fail(demands.iter().map(|it| it.sequence), &fault, events);
            };
            gave_way = true;
            self.preemptions += 1;
            self.give_way(sequence)?;
        }
    }

    /// Lets in what waits, in order, while there are sequences and room in the cache. Only those whose
    /// beginning is just being computed for another are passed over.
    fn admit(&mut self, events: &mut Vec<(u64, Event)>) -> Result<(), EngineFault> {
        let page = self.limits().cache_page;
        let growth = |it: &Generation| in_pages(it.promised(), page) - in_pages(it.held, page);
        let mut promised: u64 = self.running.values().map(growth).sum();
        let mut index = 0;
        while let Some(next) = self.queue.get(index) {
            if next.remaining() == 0 {
                let Some(mut generation) = self.queue.take(index) else { continue };
                let now = (self.options.clock)();
                generation.admitted(now, events);
                let event = generation.finished(Finish::Length, now);
                self.tell_last(generation.id, event, events);
                continue;
            }
            if self.running.len() >= self.max_running || index >= LOOK_AHEAD {
                return Ok(());
            }
            if self.is_being_read(next) {
                index += 1;
                continue;
            }
            let need = growth(next);
            // What it shares with those that stay needs no room of its own.
            let shared = |it: &Sequences<E>| {
                if it.limits().shares_prefixes { u64::from(it.known(next.tokens())) } else { 0 }
            };
            while promised + need.saturating_sub(shared(&self.sequences)) > self.sequences.room() {
                if !self.sequences.evict()? {
                    // Whatever passed validation fits the cache alone.
                    if self.running.is_empty() {
                        break;
                    }
                    return Ok(());
                }
            }
            let Some(mut generation) = self.queue.take(index) else { return Ok(()) };
            let sequence = match self.seat(&mut generation) {
                Ok(Some(sequence)) => sequence,
                // Whatever ends the engine, everybody must be told.
                otherwise => {
                    self.queue.put_back(generation);
                    return otherwise.map(|_| ());
                }
            };
            generation.admitted((self.options.clock)(), events);
            promised += growth(&generation);
            self.running.insert(sequence, generation);
        }
        Ok(())
    }

    /// Is the beginning of its prompt just being computed for another, so that it is there sooner if it
    /// waits?
    fn is_being_read(&self, next: &Generation) -> bool {
        if !self.options.keep_prefixes {
            return false;
        }
        let wanted = &next.tokens()[..next.tokens().len() - 1];
        self.running.values().filter(|it| it.pending() > 1).any(|leader| {
            let common = leader.tokens().iter().zip(wanted).take_while(|(a, b)| a == b).count() as u32;
            common > leader.held && common >= self.sequences.known(next.tokens()) + WORTH_WAITING
        })
    }

    /// Finds a sequence for a request, with as much of it as is there already.
    fn seat(&mut self, generation: &mut Generation) -> Result<Option<SequenceId>, EngineFault> {
        if let Some(Saved { held, state }) = generation.saved.take()
            && self.sequences.known(generation.tokens()) < held
            && let Some(place) = self.sequences.restore(&generation.tokens()[..held as usize], &state)?
        {
            generation.held = place.held;
            return Ok(Some(place.sequence));
        }
        let Some(place) = self.sequences.take(generation.tokens(), self.pace.worth_copying())? else {
            return Ok(None);
        };
        if let Some(took) = place.copied {
            self.pace.copied(took);
        }
        generation.held = place.held;
        Ok(Some(place.sequence))
    }

    /// Frees a sequence, whose request goes on later: from what the engine wrote down where that is
    /// sooner than computing it again.
    fn give_way(&mut self, sequence: SequenceId) -> Result<(), EngineFault> {
        let Some(mut generation) = self.running.remove(&sequence) else { return Ok(()) };
        let held = generation.held;
        let saved = self.queue.iter().filter_map(|it| it.saved.as_ref()).map(|it| it.state.len()).sum();
        generation.restart();
        if self.limits().saves && self.pace.saving_pays(held, self.options.saved_bytes.saturating_sub(saved))
        {
            let began = (self.options.clock)();
            match self.sequences.save(sequence) {
                Ok(state) => {
                    let took = (self.options.clock)().saturating_sub(began);
                    self.pace.saved(held, state.len(), took);
                    self.step_micros.saving += took.as_micros() as u64;
                    generation.saved = Some(Saved { held, state });
                }
                Err(fault) if fault.kind.ends_engine() => {
                    self.running.insert(sequence, generation);
                    return Err(fault);
                }
                Err(_) => {}
            }
        }
        let removed = if generation.saved.is_none() { self.sequences.remove(sequence) } else { Ok(()) };
        self.queue.put_back(generation);
        removed
    }

    fn run(
        &mut self,
        shares: &[Share],
        pads: &[SequenceId],
        events: &mut Vec<(u64, Event)>,
    ) -> Result<Outcome, EngineFault> {
        let began = (self.options.clock)();
        let drafts = self.drafts(shares, pads.len() as u32);
        let mut slices = Vec::with_capacity(shares.len() + pads.len());
        for share in shares {
            let Some(it) = self.running.get(&share.sequence) else { continue };
            let begin = it.held as usize;
            let (tokens, rows) = match drafts.get(&share.sequence) {
                Some(tokens) => (&tokens[..], tokens.len() as u32),
                None => (&it.tokens()[begin..begin + share.tokens as usize], u32::from(share.row)),
            };
            slices.push(Slice {
                sequence: share.sequence,
                position: it.held,
                tokens,
                rows,
                candidates: if rows > 0 { it.candidates(&self.forbidden, self.limits()) } else { 0 },
            });
        }
        slices.extend(pads.iter().map(|&sequence| Slice {
            sequence,
            position: self.sequences.held(sequence),
            tokens: &PADDING,
            rows: 0,
            candidates: 0,
        }));
        slices.sort_unstable_by_key(|it| it.sequence);
        let rows: Vec<u32> = shares
            .iter()
            .map(|share| drafts.get(&share.sequence).map_or(u32::from(share.row), |it| it.len() as u32))
            .collect();
        let ticket = match self.sequences.step(&slices) {
            Ok(ticket) => ticket,
            Err(fault) if fault.kind == EngineFaultKind::CacheFull => return Ok(Outcome::CacheFull),
            Err(fault) => return self.step_failed(shares, pads, fault, events),
        };
        for share in shares {
            if let Some(generation) = self.running.get_mut(&share.sequence) {
                generation.held = self.sequences.held(share.sequence);
            }
        }
        let wanted: u32 = rows.iter().sum();
        let ended = if wanted == 0 {
            Vec::new()
        } else {
            match self.pick(shares, &drafts, &rows, ticket, events)? {
                Ok(ended) => ended,
                Err(fault) => return self.step_failed(shares, pads, fault, events),
            }
        };
        let picked = (self.options.clock)();
        for share in shares {
            if let Some(generation) = self.running.get_mut(&share.sequence) {
                generation.stepped(picked);
            }
        }
        for &pad in pads {
            self.sequences.cut(pad, self.sequences.held(pad).saturating_sub(1))?;
        }
        for &sequence in drafts.keys() {
            // What was not accepted.
            if let Some(generation) = self.running.get(&sequence) {
                self.sequences.cut(sequence, generation.held)?;
            }
        }
        for (sequence, how) in ended {
            let tokens = self.running.get(&sequence).map_or(&[][..], Generation::tokens);
            match how {
                Ok(_) => self.sequences.end(sequence, tokens, self.pace.dear())?,
                Err(_) => self.sequences.remove(sequence)?,
            }
            let Some(generation) = self.running.remove(&sequence) else { continue };
            let event = match how {
                Ok(reason) => generation.finished(reason, picked),
                Err(fault) => Event::Failed(fault),
            };
            self.tell_last(generation.id, event, events);
        }
        let decodes: u32 = shares
            .iter()
            .zip(&rows)
            .map(|(share, &rows)| if share.tokens == 1 { rows.max(1) } else { 0 })
            .sum();
        let prompt: u32 = shares.iter().map(|it| it.tokens).filter(|&tokens| tokens > 1).sum();
        let now = (self.options.clock)();
        self.prompts_next = prompt == 0;
        if decodes > 0 {
            self.answered = now;
            self.burst = 0;
        }
        let took = now.saturating_sub(began);
        self.pace.stepped(decodes + pads.len() as u32, prompt, took);
        self.step_micros.stepped(decodes > 0, prompt > 0, took);
        Ok(Outcome::Done)
    }

    /// A step that failed costs the requests in it; what the engine holds of them is not known.
    fn step_failed(
        &mut self,
        shares: &[Share],
        pads: &[SequenceId],
        fault: EngineFault,
        events: &mut Vec<(u64, Event)>,
    ) -> Result<Outcome, EngineFault> {
        if fault.kind.ends_engine() {
            return Err(fault);
        }
        for &pad in pads {
            self.sequences.remove(pad)?;
        }
        self.fail(shares.iter().map(|it| it.sequence), &fault.into(), events)?;
        Ok(Outcome::Done)
    }

    fn fail(
        &mut self,
        sequences: impl Iterator<Item = SequenceId>,
        fault: &Fault,
        events: &mut Vec<(u64, Event)>,
    ) -> Result<(), EngineFault> {
        for sequence in sequences {
            self.sequences.remove(sequence)?;
            if let Some(generation) = self.running.remove(&sequence) {
                self.tell_last(generation.id, Event::Failed(fault.clone()), events);
            }
        }
        Ok(())
    }

    fn tell_last(&mut self, id: u64, event: Event, events: &mut Vec<(u64, Event)>) {
        if let Some(drafter) = &mut self.drafter {
            drafter.forget(id);
        }
        events.push((id, event));
    }

    /// The engine is beyond use: everything fails.
    fn end(&mut self, fault: EngineFault, events: &mut Vec<(u64, Event)>) {
        let running = std::mem::take(&mut self.running).into_values();
        let waiting = std::iter::from_fn(|| self.queue.take(0));
        let all: Vec<_> = running.chain(waiting).map(|it| it.id).collect();
        events.extend(all.into_iter().map(|id| (id, Event::Failed(crashed(&fault)))));
        self.ended = Some(fault);
    }
}

/// So many requests that each can have a token and a row in every step. `wanted`: 0: as many as there can be.
fn at_once(limits: &Limits, wanted: u32) -> usize {
    let at_once = limits.max_sequences.min(limits.max_rows).min(limits.max_batch_tokens);
    let wanted = if wanted == 0 { u32::MAX } else { wanted };
    at_once.min(wanted).max(1) as usize
}

/// What goes into a sequence only so that it takes part in a step. Any token will do.
const PADDING: [Token; 1] = [0];

/// What came of an attempt to run a step.
enum Outcome {
    Done,
    /// Nothing was changed; somebody has to give way.
    CacheFull,
}

fn misbehaved(message: String, call: &'static str) -> EngineFault {
    EngineFault { kind: EngineFaultKind::Misbehaved, message, call }
}

/// What requests are told whose engine is of no more use.
fn crashed(fault: &EngineFault) -> Fault {
    let code = if fault.kind == EngineFaultKind::Misbehaved {
        ErrorCode::EngineFault
    } else {
        ErrorCode::EngineCrashed
    };
    Fault::new(code, format!("The engine can no longer be used: {fault}"))
}
