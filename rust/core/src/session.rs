//! Schedule, run, sample, emit: the generating loop over one context of one engine.
//!
//! A session is driven from outside: whoever owns it calls [`Session::step`] while it is not idle. It
//! keeps no clock and starts no thread, so the same requests give the same answers.

use std::sync::Arc;

use crate::{
    engine::{EngineFault, EngineFaultKind, Limits, SequenceId, Slice, StepEngine, Vocabulary},
    error::{ErrorCode, Fault},
    event::{Event, Finish},
    request::ValidRequest,
    sample::{Forbidden, PickFault, Sampler},
    schedule::{
        admission::{Queue, admits, in_pages},
        batch::{Budget, Demand, Share, plan},
        generation::Generation,
        preempt::victim,
        slots::Slots,
    },
};

/// Tokens of prompts per step while no answer is under way that a long step would hold up.
const UNDISTURBED_PREFILL: u32 = 512;

/// How much a session takes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Requests that may wait before new ones are refused.
    pub queue_limit: usize,
    /// Prompt tokens that may wait before new requests are refused; one request is always taken.
    pub queue_tokens: usize,
    /// Prompt tokens per step while answers are under way: the bound on how long these are held up.
    pub prefill_tokens: u32,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { queue_limit: 256, queue_tokens: 1 << 20, prefill_tokens: 128 }
    }
}

/// How busy a session is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests that wait for admission.
    pub queued: usize,
    /// Prompt tokens of these.
    pub queued_tokens: usize,
    /// Requests under way.
    pub running: usize,
    /// Requests that may be under way at once.
    pub max_running: usize,
    /// Tokens that the KV cache holds.
    pub cache_used: u64,
    /// Tokens that the KV cache can hold.
    pub cache_tokens: u64,
    /// Times that a request had to give way since the session began.
    pub preemptions: u64,
}

/// All requests to one loaded model, and the engine that answers them.
#[derive(Debug)]
pub struct Session<E> {
    engine: E,
    vocabulary: Arc<Vocabulary>,
    options: SessionOptions,
    limits: Limits,
    forbidden: Forbidden,
    sampler: Sampler,
    queue: Queue<Generation>,
    running: Slots<Generation>,
    arrivals: u64,
    preemptions: u64,
    /// What ended the engine.
    ended: Option<EngineFault>,
}

impl<E: StepEngine> Session<E> {
    /// A session over a context that holds no sequence.
    pub fn new(engine: E, vocabulary: Arc<Vocabulary>, options: SessionOptions) -> Self {
        let limits = engine.limits().clone();
        // So many that each can have a token and a row in every step.
        let at_once = limits.max_sequences.min(limits.max_rows).min(limits.max_batch_tokens);
        Self {
            forbidden: Forbidden::of(&vocabulary, limits.n_vocab as usize),
            sampler: Sampler::default(),
            queue: Queue::new(options.queue_limit, options.queue_tokens),
            running: Slots::new(at_once.max(1) as usize),
            arrivals: 0,
            preemptions: 0,
            ended: None,
            engine,
            vocabulary,
            options,
            limits,
        }
    }

    /// What the engine's context can take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Puts a request into the queue, or refuses it with `queue_full`. `id` names it in events, and is
    /// unique among the requests under way.
    pub fn submit(&mut self, id: u64, request: ValidRequest) -> Result<(), Fault> {
        if let Some(fault) = &self.ended {
            return Err(crashed(fault));
        }
        let tokens = request.prompt().len();
        let room = self.running.capacity() - self.running.len();
        self.queue.push(Generation::new(id, self.arrivals, request), tokens, room)?;
        self.arrivals += 1;
        Ok(())
    }

    /// Ends a request: its sequence is free before the next step. Unknown ids are ignored.
    pub fn cancel(&mut self, id: u64, events: &mut Vec<(u64, Event)>) {
        let sequence = self.running.iter().find(|(_, it)| it.id == id).map(|(sequence, _)| sequence);
        let generation = match sequence {
            Some(sequence) => match self.release(sequence) {
                Ok(generation) => generation,
                Err(fault) => {
                    self.end(fault, events);
                    return;
                }
            },
            None => self.queue.remove(|it| it.id == id),
        };
        if let Some(generation) = generation {
            events.push((id, Event::Finished { reason: Finish::Cancelled, usage: generation.usage() }));
        }
    }

    /// Is there nothing to do?
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.queue.is_empty()
    }

    /// One step: admit, plan, run, sample, and tell what came of it. `Err` only for what ends the
    /// engine; all requests have failed then, and no further one is taken.
    pub fn step(&mut self, events: &mut Vec<(u64, Event)>) -> Result<(), EngineFault> {
        if self.ended.is_none()
            && let Err(fault) = self.try_step(events)
        {
            self.end(fault, events);
        }
        self.ended.clone().map_or(Ok(()), Err)
    }

    /// How busy it is.
    pub fn load(&self) -> Load {
        Load {
            queued: self.queue.len(),
            queued_tokens: self.queue.tokens(),
            running: self.running.len(),
            max_running: self.running.capacity(),
            cache_used: self.limits.cache_tokens.saturating_sub(self.engine.cache_free()),
            cache_tokens: self.limits.cache_tokens,
            preemptions: self.preemptions,
        }
    }

    /// The engine, for what is not generation.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Ends the session and gives the engine back. What is under way gets no further event.
    pub fn into_engine(self) -> E {
        self.engine
    }

    fn try_step(&mut self, events: &mut Vec<(u64, Event)>) -> Result<(), EngineFault> {
        let mut gave_way = false;
        loop {
            // Whoever had to give way must not lose the room to a newcomer at once.
            if !gave_way {
                self.admit(events);
            }
            let demands = self.demands();
            if demands.is_empty() {
                return Ok(());
            }
            let outcome = match plan(&demands, &self.budget(&demands)) {
                Ok(shares) => self.run(&shares, events)?,
                Err(_) => Outcome::CacheFull,
            };
            match (outcome, victim(&demands)) {
                (Outcome::Done, _) => return Ok(()),
                (Outcome::CacheFull, Some(sequence)) => {
                    gave_way = true;
                    self.preemptions += 1;
                    if let Some(mut generation) = self.release(sequence)? {
                        generation.restart();
                        self.queue.put_back(generation);
                    }
                }
                (Outcome::CacheFull, None) => {
                    let fault = Fault::new(
                        ErrorCode::Internal,
                        "The engine's KV cache is full with one sequence that should fit it.",
                    );
                    return self.fail(demands.iter().map(|it| it.sequence), &fault, events);
                }
            }
        }
    }

    /// Lets in what waits, in order, while there are sequences and room in the cache.
    fn admit(&mut self, events: &mut Vec<(u64, Event)>) {
        let page = self.limits.cache_page;
        let growth = |it: &Generation| in_pages(it.promised(), page) - in_pages(it.held, page);
        let mut promised: u64 = self.running.iter().map(|(_, it)| growth(it)).sum();
        let free = self.engine.cache_free();
        while let Some(next) = self.queue.front() {
            let wants_tokens = next.remaining() > 0;
            let need = growth(next);
            if wants_tokens
                && (self.running.is_full() || !admits(free, promised, need, !self.running.is_empty()))
            {
                return;
            }
            let Some(mut generation) = self.queue.pop() else { return };
            if !generation.started {
                generation.started = true;
                let prompt_tokens = generation.usage().prompt_tokens;
                events.push((generation.id, Event::Started { prompt_tokens }));
            }
            if !wants_tokens {
                let usage = generation.usage();
                events.push((generation.id, Event::Finished { reason: Finish::Length, usage }));
                continue;
            }
            promised += need;
            if let Err(generation) = self.running.insert(generation) {
                self.queue.put_back(generation);
                return;
            }
        }
    }

    fn demands(&self) -> Vec<Demand> {
        self.running
            .iter()
            .map(|(sequence, it)| Demand { sequence, age: it.age, held: it.held, pending: it.pending() })
            .collect()
    }

    fn budget(&self, demands: &[Demand]) -> Budget {
        let undisturbed = demands.iter().all(|it| it.pending > 1);
        let prefill = self.options.prefill_tokens;
        Budget {
            tokens: self.limits.max_batch_tokens,
            prefill_tokens: if undisturbed { prefill.max(UNDISTURBED_PREFILL) } else { prefill },
            // A sequence that is alone was found to fit; let the engine say otherwise.
            cache_free: if demands.len() == 1 { u64::MAX } else { self.engine.cache_free() },
            cache_page: self.limits.cache_page,
        }
    }

    fn run(&mut self, shares: &[Share], events: &mut Vec<(u64, Event)>) -> Result<Outcome, EngineFault> {
        let slices: Vec<_> = shares
            .iter()
            .filter_map(|share| {
                let it = self.running.get(share.sequence)?;
                let begin = it.held as usize;
                Some(Slice {
                    sequence: share.sequence,
                    position: it.held,
                    tokens: it.tokens().get(begin..begin + share.tokens as usize)?,
                    rows: u32::from(share.row),
                })
            })
            .collect();
        let ticket = match self.engine.step(&slices) {
            Ok(ticket) => ticket,
            Err(fault) if fault.kind == EngineFaultKind::CacheFull => return Ok(Outcome::CacheFull),
            Err(fault) => return self.step_failed(shares, fault, events),
        };
        for share in shares {
            if let Some(generation) = self.running.get_mut(share.sequence) {
                generation.held += share.tokens;
            }
        }
        let wanted = shares.iter().filter(|it| it.row).count();
        if wanted == 0 {
            return Ok(Outcome::Done);
        }
        let rows = match self.engine.collect(ticket, wanted) {
            Ok(rows) => rows,
            Err(fault) => return self.step_failed(shares, fault, events),
        };
        let width = self.limits.n_vocab as usize;
        if rows.len() != wanted || rows.iter().any(|it| it.len() != width) {
            return Err(misbehaved(
                "engine.batch collect",
                format!("{wanted} rows of {width} logits were due, and came otherwise"),
            ));
        }
        let mut ended = Vec::new();
        for (share, row) in shares.iter().filter(|it| it.row).zip(&rows) {
            let Some(generation) = self.running.get_mut(share.sequence) else { continue };
            match generation.advance(row, &mut self.sampler, &self.forbidden, &self.vocabulary, events) {
                Ok(None) => {}
                Ok(Some(reason)) => ended.push((share.sequence, Ok(reason))),
                Err(fault) => ended.push((share.sequence, Err(fault))),
            }
        }
        drop(rows);
        for (sequence, how) in ended {
            let Some(generation) = self.release(sequence)? else { continue };
            let event = match how {
                Ok(reason) => Event::Finished { reason, usage: generation.usage() },
                Err(fault) => Event::Failed(unpickable(fault, generation.length())),
            };
            events.push((generation.id, event));
        }
        Ok(Outcome::Done)
    }

    /// A step that failed costs the requests in it; what the engine holds of them is not known.
    fn step_failed(
        &mut self,
        shares: &[Share],
        fault: EngineFault,
        events: &mut Vec<(u64, Event)>,
    ) -> Result<Outcome, EngineFault> {
        if fault.kind.ends_engine() {
            return Err(fault);
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
            if let Some(generation) = self.release(sequence)? {
                events.push((generation.id, Event::Failed(fault.clone())));
            }
        }
        Ok(())
    }

    /// Frees a sequence, in the engine and here. On failure nothing is changed here.
    fn release(&mut self, sequence: SequenceId) -> Result<Option<Generation>, EngineFault> {
        if let Err(fault) = self.engine.truncate(sequence, 0) {
            return Err(if fault.kind == EngineFaultKind::DeviceLost {
                fault
            } else {
                misbehaved(fault.call, format!("removing a whole sequence failed: {}", fault.message))
            });
        }
        Ok(self.running.remove(sequence))
    }

    /// The engine is beyond use: everything fails.
    fn end(&mut self, fault: EngineFault, events: &mut Vec<(u64, Event)>) {
        let running: Vec<_> = self.running.iter().map(|(sequence, _)| sequence).collect();
        for sequence in running {
            if let Some(generation) = self.running.remove(sequence) {
                events.push((generation.id, Event::Failed(crashed(&fault))));
            }
        }
        while let Some(generation) = self.queue.pop() {
            events.push((generation.id, Event::Failed(crashed(&fault))));
        }
        self.ended = Some(fault);
    }
}

/// What came of an attempt to run a step.
enum Outcome {
    Done,
    /// Nothing was changed; somebody has to give way.
    CacheFull,
}

fn misbehaved(call: &'static str, message: String) -> EngineFault {
    EngineFault { kind: EngineFaultKind::Misbehaved, message, call }
}

fn crashed(fault: &EngineFault) -> Fault {
    Fault::new(ErrorCode::EngineCrashed, format!("The engine can no longer be used: {fault}"))
}

fn unpickable(fault: PickFault, position: u32) -> Fault {
    match fault {
        PickFault::NothingAllowed => Fault::new(
            ErrorCode::InvalidRequest,
            "logit_bias forbids every token that the model could generate",
        )
        .param("logit_bias"),
        PickFault::NotANumber | PickFault::Empty => Fault::new(
            ErrorCode::Internal,
            format!("No token can be picked at position {position}: {fault}."),
        ),
    }
}
