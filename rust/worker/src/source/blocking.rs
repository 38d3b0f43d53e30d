//! Requests to engines that run the loop by themselves: a call blocks until its request is done.
//!
//! Owns the queue, the threads (one for each call that may run at once) and the making of events.
//! Tokens come from a [`Generator`]: `stream.rs` gets them one by one, `tier0.rs` all at the end.

use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use llm_node_core::{
    engine::{EngineFault, Token},
    error::{ErrorCode, Fault},
    event::{Event, Finish, PickedToken, Piece, Usage},
    sample::rng::call_id,
    schedule::admission::Queue,
    session::Occupancy,
    text::answer::{AnswerText, Told},
};
use llm_node_wire::message::RequestId;

use super::{Prepared, stopped};
use crate::report::{self, Report, Reporter};

/// A way to run one request to its end.
pub(crate) trait Generator: Send + Sync + 'static {
    /// Blocks until the request is done. Each token goes to `on_token`; once that gives false, the
    /// request is to end as soon as can be, with any result.
    fn generate(&self, request: &Prepared, on_token: &mut OnToken<'_>) -> Result<Finish, EngineFault>;

    /// Tokens that arrive singly are sent singly; a finished array goes in larger pieces.
    fn events_at_once(&self) -> usize;
}

/// What a token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    /// So many bytes of the answer.
    Text(&'a [u8]),
    /// Nothing: it is a control token of this name.
    Control(&'a [u8]),
}

/// Takes what a token says, and its number (-1: not known); false: no more of them.
pub(crate) type OnToken<'a> = dyn FnMut(Said<'_>, Token) -> bool + 'a;

pub(crate) struct BlockingSource {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Calls that may run at once.
    at_once: usize,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    generator: Box<dyn Generator>,
    report: Reporter,
}

/// A request that no thread has taken yet.
struct Waiting {
    id: RequestId,
    request: Prepared,
    taken: Instant,
}

struct State {
    waiting: Queue<Waiting>,
    /// The flag is set when the client has left.
    running: HashMap<RequestId, Arc<AtomicBool>>,
    draining: bool,
    stopping: bool,
    /// Why the engine is of no more use.
    lost: Option<Fault>,
}

impl BlockingSource {
    pub(crate) fn start(
        generator: Box<dyn Generator>,
        threads: u32,
        queue_limit: u32,
        report: Reporter,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                waiting: Queue::new(queue_limit as usize, usize::MAX),
                running: HashMap::new(),
                draining: false,
                stopping: false,
                lost: None,
            }),
            changed: Condvar::new(),
            generator,
            report,
        });
        let at_once = threads.max(1) as usize;
        let threads = (0..at_once)
            .map(|n| {
                let shared = Arc::clone(&shared);
                thread::Builder::new().name(format!("generate-{n}")).spawn(move || {
                    // Tokens do not wait behind a load on the same core.
                    llm_node_cpu::ask_for_short_slices();
                    shared.work();
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { shared, threads: Mutex::new(threads), at_once })
    }

    pub(crate) fn submit(&self, id: RequestId, request: Prepared) {
        let mut state = self.shared.lock();
        let (source, weight) = (request.source, request.weight);
        let queued = if let Some(fault) = &state.lost {
            Err(fault.clone())
        } else if state.draining || state.stopping {
            Err(stopped())
        } else {
            state.waiting.push(Waiting { id, request, taken: Instant::now() }, source, weight, 0)
        };
        drop(state);
        match queued {
            Ok(()) => self.shared.changed.notify_one(),
            Err(fault) => self.shared.report.event(id, Event::Failed(fault)),
        }
    }

    /// How busy it is. Of a cache nothing is known.
    pub(crate) fn occupancy(&self) -> Occupancy {
        let state = self.shared.lock();
        Occupancy {
            queued: state.waiting.len(),
            queued_tokens: state.waiting.tokens(),
            running: state.running.len(),
            max_running: self.at_once,
            ..Occupancy::default()
        }
    }

    pub(crate) fn cancel(&self, id: RequestId) {
        let mut state = self.shared.lock();
        if let Some(flag) = state.running.get(&id) {
            flag.store(true, Ordering::Relaxed);
        } else if let Some(request) = state.waiting.remove(|waiting| waiting.id == id) {
            drop(state);
            let usage = Usage { waited: request.taken.elapsed(), ..Usage::default() };
            let finished = Event::Finished { reason: Finish::Cancelled, stop: None, usage };
            self.shared.report.event(id, finished);
        }
    }

    /// Refuses what comes, finishes what is here.
    pub(crate) fn drain(&self) {
        let mut state = self.shared.lock();
        state.draining = true;
        let done = state.waiting.is_empty() && state.running.is_empty();
        drop(state);
        if done {
            self.shared.report.tell(Report::Drained);
        }
    }

    /// Ends all requests and waits for the calls under way; calls that cannot be cancelled take
    /// their time.
    pub(crate) fn stop(&self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        for flag in state.running.values() {
            flag.store(true, Ordering::Relaxed);
        }
        let left = state.fail_waiting(&stopped());
        drop(state);
        self.shared.report.events(left);
        self.shared.changed.notify_all();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread catches its panics; there is nothing else to learn from it.
            let _ = thread.join();
        }
    }
}

impl Drop for BlockingSource {
    fn drop(&mut self) {
        self.stop();
    }
}

impl State {
    /// Empties the queue; gives the endings of those that waited.
    fn fail_waiting(&mut self, fault: &Fault) -> Vec<(RequestId, Event)> {
        let waiting = std::iter::from_fn(|| self.waiting.take(0));
        waiting.map(|it| (it.id, Event::Failed(fault.clone()))).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            let Some(waiting) = state.waiting.take(0) else {
                if state.stopping || state.lost.is_some() {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let id = waiting.id;
            let cancelled = Arc::new(AtomicBool::new(false));
            state.running.insert(id, Arc::clone(&cancelled));
            drop(state);
            let lost = self.run(&waiting, &cancelled);
            state = self.lock();
            state.running.remove(&id);
            if let Some(fault) = lost
                && state.lost.is_none()
            {
                state.lost = Some(fault.clone());
                let left = state.fail_waiting(&fault);
                drop(state);
                self.report.events(left);
                self.report.tell(Report::Lost(fault));
                self.changed.notify_all();
                return;
            }
            if state.draining && state.waiting.is_empty() && state.running.is_empty() {
                drop(state);
                self.report.tell(Report::Drained);
                state = self.lock();
            }
        }
    }

    /// Runs one request to its ending. Gives the fault after which the engine is of no more use.
    fn run(&self, waiting: &Waiting, cancelled: &AtomicBool) -> Option<Fault> {
        let request = &waiting.request;
        let mut answer = Answer::new(waiting);
        let result = if request.max_tokens == Some(0) {
            Ok(Ok(Finish::Length))
        } else {
            let at_once = self.generator.events_at_once();
            let mut on_token = |said: Said<'_>, token: Token| {
                if cancelled.load(Ordering::Relaxed) {
                    answer.finish = Some(Finish::Cancelled);
                    return false;
                }
                let more = answer.push(said, token);
                if answer.events.len() >= at_once {
                    self.report.events(std::mem::take(&mut answer.events));
                }
                more
            };
            // The generator's own code must not take the queue down with it.
            catch_unwind(AssertUnwindSafe(|| self.generator.generate(request, &mut on_token)))
        };
        if cancelled.load(Ordering::Relaxed) {
            answer.finish.get_or_insert(Finish::Cancelled);
        }
        let mut lost = None;
        let result = match result {
            Ok(Err(fault)) if fault.kind.ends_engine() => Err(lost.insert(super::lost(fault)).clone()),
            Ok(result) => result.map_err(Fault::from),
            Err(_) => Err(Fault::new(ErrorCode::Internal, "the host panicked; this is a defect of llm-node")),
        };
        let ending = match (result, answer.finish) {
            (Err(fault), _) if lost.is_some() => Err(fault),
            (Ok(_) | Err(_), Some(finish)) | (Ok(finish), None) => Ok(finish),
            (Err(fault), None) => Err(fault),
        };
        if let Err(fault) = &ending {
            report::note(fault);
        }
        self.report.events(answer.end(ending));
        lost
    }
}

/// From tokens to events.
struct Answer {
    id: RequestId,
    text: AnswerText,
    /// Calls that were begun.
    calls: u32,
    seed: u64,
    usage: Usage,
    max_tokens: Option<u32>,
    /// Why an answer of so many tokens ends.
    limit: Finish,
    began: Instant,
    /// When its first token came.
    answered: Option<Instant>,
    /// Why we, not the engine, ended it.
    finish: Option<Finish>,
    events: Vec<(RequestId, Event)>,
}

impl Answer {
    fn new(Waiting { id, request, taken }: &Waiting) -> Self {
        let (id, prompt_tokens) = (*id, request.prompt_tokens);
        let began = Instant::now();
        Self {
            id,
            text: request.answer.clone(),
            calls: 0,
            seed: request.seed,
            usage: Usage { prompt_tokens, waited: began.duration_since(*taken), ..Usage::default() },
            max_tokens: request.max_tokens,
            limit: request.limit,
            began,
            answered: None,
            finish: None,
            events: vec![(id, Event::Started { prompt_tokens, cached_tokens: 0, relaxed: Vec::new() })],
        }
    }

    /// false: that was the last one.
    fn push(&mut self, said: Said<'_>, token: Token) -> bool {
        // An engine that goes on after being told to end adds nothing.
        if self.finish.is_some() {
            return false;
        }
        self.usage.completion_tokens += 1;
        self.answered.get_or_insert_with(Instant::now);
        self.usage.reasoning_tokens += u32::from(self.text.thinks());
        let mut told = Vec::new();
        match said {
            Said::Text(bytes) => self.text.push(bytes, &mut told),
            Said::Control(name) => self.text.push_control(name, &mut told),
        }
        let mut tokens = vec![PickedToken { id: token, logprobs: None }];
        // A token of text that says nothing yet is told all the same: the client sees that it came.
        if told.is_empty() && !self.text.has_parts() {
            let piece = Piece { tokens: std::mem::take(&mut tokens), ..Piece::default() };
            self.events.push((self.id, Event::Piece(piece)));
        }
        self.tell(told, tokens);
        if self.text.stopped_by().is_some() {
            self.finish = Some(Finish::StopString);
        } else if self.text.is_done() {
            self.finish = Some(Finish::Calls);
        } else if self.max_tokens.is_some_and(|most| self.usage.completion_tokens >= most) {
            self.finish = Some(self.limit);
        }
        self.finish.is_none()
    }

    /// Tells parts of the answer; the tokens with the first piece.
    fn tell(&mut self, told: Vec<Told>, mut tokens: Vec<PickedToken>) {
        for one in told {
            let event = match one {
                Told::Piece { part, text, .. } => {
                    Event::Piece(Piece { part, text, tokens: std::mem::take(&mut tokens) })
                }
                Told::CallBegan(name) => {
                    let index = self.calls;
                    self.calls += 1;
                    let position = self.usage.prompt_tokens + self.usage.completion_tokens;
                    let id = call_id(self.seed, position.into(), index);
                    Event::CallBegan { index, id, name }
                }
                Told::CallEnded => Event::CallEnded,
            };
            self.events.push((self.id, event));
        }
    }

    fn end(mut self, ending: Result<Finish, Fault>) -> Vec<(RequestId, Event)> {
        let last = match ending {
            Ok(reason) => {
                let mut told = Vec::new();
                self.text.finish(reason == Finish::Stop, &mut told);
                self.tell(told, Vec::new());
                // The last incomplete character may have completed a stop string.
                let stop = self.text.stopped_by().map(str::to_owned);
                let reason = match (&stop, reason) {
                    (Some(_), _) => Finish::StopString,
                    // The engine's word for both limits.
                    (None, Finish::Length) => self.limit,
                    (None, Finish::Stop) if self.calls > 0 => Finish::Calls,
                    (None, reason) => reason,
                };
                let now = Instant::now();
                let answered = self.answered.unwrap_or(now);
                self.usage.read = answered.duration_since(self.began);
                self.usage.wrote = now.duration_since(answered);
                Event::Finished { reason, stop, usage: self.usage }
            }
            Err(fault) => Event::Failed(fault),
        };
        self.events.push((self.id, last));
        self.events
    }
}
