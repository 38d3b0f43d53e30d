//! Who renders and tokenises what comes, and in what order.
//!
//! A short text is read at once, on the thread that brings it: that takes microseconds, about what it costs
//! to wake another thread. Longer ones go into lanes, each a queue and a thread: the thread that brings
//! requests brings cancellations as well, and megabytes take a tokenizer seconds. A lane keeps the order in
//! which its texts came. There are two, so that a text of some pages does not wait for a library, a third
//! one for calls to the engine that make embeddings, where no scheduler makes them between its steps, and a
//! fourth one where requests wait until the grammar of their answers is compiled. From there they go on into the
//! lane of their length.

use std::{
    collections::VecDeque,
    io, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use llm_node_core::{
    constrain::{Prototype, Wanted},
    error::{ErrorCode, Fault},
    event::{Event, Finish, Usage},
    request::{Prompt, Request},
    session::Occupancy,
};
use llm_node_wire::message::{EmbedInput, Question, RequestId};

use crate::{
    served::{Kept, Reply, Served, Work},
    source::stopped,
};

/// Bytes of a text that is read at once.
const AT_ONCE: usize = 4 << 10;
/// Bytes of the longest text that does not count as long.
const SOME_PAGES: usize = 256 << 10;
/// Bytes that may wait in all lanes together, unless a single text is longer.
const MOST_BYTES: usize = 256 << 20;

/// The places of the lanes in [`State::lanes`].
const PAGES: usize = 0;
const LONG: usize = 1;
const EMBEDDINGS: usize = 2;
const GRAMMARS: usize = 3;
const NAMES: [&str; 4] = ["read", "read-long", "embed", "compile"];

/// Takes what comes, in front of the model. Dropping it stops the model.
pub(crate) struct Intake {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    served: Served,
    state: Mutex<State>,
    /// One for each lane: something came, or it is over.
    changed: [Condvar; NAMES.len()],
    queue_limit: usize,
}

#[derive(Default)]
struct State {
    lanes: [Lane; NAMES.len()],
    /// Bytes of all that waits.
    bytes: usize,
    draining: bool,
    /// The source knows that it is to drain.
    drained: bool,
    stopping: bool,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Task>,
    busy: bool,
    /// The request that is being read, unless it has had its ending meanwhile.
    reading: Option<RequestId>,
}

enum Task {
    Request(RequestId, Box<Request>, Option<Arc<Prototype>>),
    /// A request whose answer has to keep to something that is not compiled.
    Compile(RequestId, Box<Request>, Box<Wanted>),
    Question(Question, Reply),
    Work(Work),
}

impl Intake {
    pub(crate) fn start(served: Served, queue_limit: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            served,
            state: Mutex::default(),
            changed: Default::default(),
            queue_limit: queue_limit.max(1),
        });
        let intake = Self { shared: Arc::clone(&shared), threads: Mutex::default() };
        for (lane, name) in NAMES.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(name.into()).spawn(move || shared.work(lane))?;
            intake.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(intake)
    }

    pub(crate) fn served(&self) -> &Served {
        &self.shared.served
    }

    /// Tells how busy the model is, for as long as it runs.
    pub(crate) fn occupancy(&self) -> impl Fn() -> Occupancy + Send + 'static {
        let shared = Arc::downgrade(&self.shared);
        move || shared.upgrade().map_or_else(Occupancy::default, |shared| shared.occupancy())
    }

    pub(crate) fn submit(&self, id: RequestId, request: Request) {
        let bytes = request_bytes(&request);
        let (lane, kept) = match self.served().kept(&request) {
            Kept::Wanted(wanted) => (GRAMMARS, Err(wanted)),
            Kept::Compiled(prototype) => (lane_of(bytes), Ok(Some(prototype))),
            Kept::Nothing => (lane_of(bytes), Ok(None)),
        };
        let mut state = self.shared.lock();
        if state.draining || state.stopping {
            drop(state);
            return self.served().reporter.event(id, Event::Failed(stopped()));
        }
        let task = match kept {
            Ok(kept) if bytes <= AT_ONCE => {
                drop(state);
                return self.served().begin(id, self.served().prepare(request, kept));
            }
            Ok(kept) => Task::Request(id, Box::new(request), kept),
            Err(wanted) => Task::Compile(id, Box::new(request), wanted),
        };
        if let Some(fault) = self.shared.full(&state, lane, bytes) {
            drop(state);
            self.served().reporter.event(id, Event::Failed(fault));
        } else {
            self.shared.put(&mut state, lane, task);
        }
    }

    pub(crate) fn ask(&self, question: Question, reply: Reply) {
        let bytes = question_bytes(&question);
        let mut state = self.shared.lock();
        let is_embedding = matches!(question, Question::Embed { .. } | Question::Rerank { .. });
        let full = if is_embedding { self.shared.full(&state, EMBEDDINGS, 0) } else { None };
        if state.stopping {
            // Its drop is the answer.
            drop(state);
            drop(reply);
        } else if let Some(fault) = full {
            drop(state);
            reply.send(Err(fault));
        } else if bytes <= AT_ONCE {
            drop(state);
            self.shared.answer(question, reply);
        } else if let Some(fault) = self.shared.full(&state, lane_of(bytes), bytes) {
            drop(state);
            reply.send(Err(fault));
        } else {
            self.shared.put(&mut state, lane_of(bytes), Task::Question(question, reply));
        }
    }

    pub(crate) fn cancel(&self, id: RequestId) {
        let mut state = self.shared.lock();
        if state.forget(id) {
            drop(state);
            let (reason, usage) = (Finish::Cancelled, Usage::default());
            let finished = Event::Finished { reason, stop: None, usage };
            self.served().reporter.event(id, finished);
        } else {
            drop(state);
            self.served().cancel(id);
        }
    }

    /// Refuses new requests; the source drains once nothing is left to be read.
    pub(crate) fn drain(&self) {
        let mut state = self.shared.lock();
        state.draining = true;
        self.shared.drain_if_done(&mut state);
    }

    /// Ends all requests, and waits for the calls under way.
    pub(crate) fn stop(&self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        state.bytes = 0;
        let mut ended = Vec::new();
        let mut unanswered = Vec::new();
        for lane in &mut state.lanes {
            ended.extend(lane.reading.take());
            for task in mem::take(&mut lane.waiting) {
                match task {
                    Task::Request(id, ..) | Task::Compile(id, ..) => ended.push(id),
                    // Their drop is the answer.
                    task @ (Task::Question(..) | Task::Work(_)) => unanswered.push(task),
                }
            }
        }
        drop(state);
        drop(unanswered);
        let failed = |id| (id, Event::Failed(stopped()));
        self.served().reporter.events(ended.into_iter().map(failed).collect());
        for changed in &self.shared.changed {
            changed.notify_all();
        }
        let threads = mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A lane catches its panics; there is nothing else to learn from it.
            let _ = thread.join();
        }
        self.served().stop();
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    /// What waits to be read is queued as well.
    fn occupancy(&self) -> Occupancy {
        let is_request = |task: &&Task| matches!(task, Task::Request(..));
        let state = self.lock();
        let waits = |lane: &Lane| {
            lane.waiting.iter().filter(is_request).count() + usize::from(lane.reading.is_some())
        };
        let unread: usize = state.lanes.iter().map(waits).sum();
        drop(state);
        let occupancy = self.served.occupancy();
        Occupancy { queued: occupancy.queued + unread, ..occupancy }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is there no room for so many bytes more in this lane?
    fn full(&self, state: &State, lane: usize, bytes: usize) -> Option<Fault> {
        let waiting = state.lanes[lane].waiting.len();
        let is_full = waiting >= self.queue_limit || (state.bytes > 0 && state.bytes + bytes > MOST_BYTES);
        is_full.then(|| {
            let message = match lane {
                EMBEDDINGS => format!("{waiting} embeddings wait already; try again later"),
                GRAMMARS => format!(
                    "{waiting} requests wait already until what they ask of their answers is compiled; try again later"
                ),
                _ => format!(
                    "{waiting} long texts wait already to be tokenised, {} bytes in all; try again later",
                    state.bytes
                ),
            };
            Fault::new(ErrorCode::QueueFull, message)
        })
    }

    fn put(&self, state: &mut State, lane: usize, task: Task) {
        state.bytes += task.bytes();
        state.lanes[lane].waiting.push_back(task);
        self.changed[lane].notify_one();
    }

    fn answer(&self, question: Question, reply: Reply) {
        if let Some(work) = self.served.ask(question, reply) {
            let mut state = self.lock();
            // Dropped, it answers that it is too late.
            if !state.stopping {
                self.put(&mut state, EMBEDDINGS, Task::Work(work));
            }
        }
    }

    /// The thread of a lane.
    fn work(&self, lane: usize) {
        let mut state = self.lock();
        loop {
            let Some(task) = state.lanes[lane].waiting.pop_front() else {
                if state.stopping {
                    return;
                }
                state = self.changed[lane].wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.bytes = state.bytes.saturating_sub(task.bytes());
            state.lanes[lane].busy = true;
            state = match task {
                Task::Compile(id, request, wanted) => {
                    state.lanes[lane].reading = Some(id);
                    drop(state);
                    let compiled = catch_unwind(AssertUnwindSafe(|| self.served.compile(&request, &wanted)));
                    let mut state = self.lock();
                    // Whoever cancels, and whoever stops the model, has told it its ending.
                    if state.lanes[lane].reading.take() == Some(id) {
                        match compiled.unwrap_or_else(|_| Err(panicked())) {
                            Ok(kept) => {
                                let lane = lane_of(request_bytes(&request));
                                self.put(&mut state, lane, Task::Request(id, request, kept));
                            }
                            Err(fault) => self.served.begin(id, Err(fault)),
                        }
                    }
                    state
                }
                Task::Request(id, request, kept) => {
                    state.lanes[lane].reading = Some(id);
                    drop(state);
                    // What panics here must not take the lane down with it.
                    let prepared = catch_unwind(AssertUnwindSafe(|| self.served.prepare(*request, kept)));
                    let mut state = self.lock();
                    // Under the lock: whoever cancels finds it either here or at its source.
                    if state.lanes[lane].reading.take() == Some(id) {
                        self.served.begin(id, prepared.unwrap_or_else(|_| Err(panicked())));
                    }
                    state
                }
                Task::Question(question, reply) => {
                    drop(state);
                    // The reply answers by itself where it is dropped.
                    let _ = catch_unwind(AssertUnwindSafe(|| self.answer(question, reply)));
                    self.lock()
                }
                Task::Work(work) => {
                    drop(state);
                    let _ = catch_unwind(AssertUnwindSafe(work));
                    self.lock()
                }
            };
            state.lanes[lane].busy = false;
            self.drain_if_done(&mut state);
        }
    }

    fn drain_if_done(&self, state: &mut State) {
        let is_idle = state.lanes.iter().all(|lane| lane.waiting.is_empty() && !lane.busy);
        if state.draining && is_idle && !mem::replace(&mut state.drained, true) {
            self.served.drain();
        }
    }
}

impl State {
    /// Takes a request out of the lanes. `false`: it is in none.
    fn forget(&mut self, id: RequestId) -> bool {
        let is_it = |task: &Task| matches!(task, Task::Request(waiting, ..) | Task::Compile(waiting, ..) if *waiting == id);
        for lane in &mut self.lanes {
            if lane.reading == Some(id) {
                lane.reading = None;
                return true;
            }
            if let Some(task) = lane.waiting.iter().position(is_it).and_then(|at| lane.waiting.remove(at)) {
                self.bytes = self.bytes.saturating_sub(task.bytes());
                return true;
            }
        }
        false
    }
}

impl Task {
    fn bytes(&self) -> usize {
        match self {
            Task::Request(_, request, _) | Task::Compile(_, request, _) => request_bytes(request),
            Task::Question(question, _) => question_bytes(question),
            Task::Work(_) => 0,
        }
    }
}

fn lane_of(bytes: usize) -> usize {
    if bytes <= SOME_PAGES { PAGES } else { LONG }
}

fn request_bytes(request: &Request) -> usize {
    match &request.prompt {
        Prompt::Text(text) | Prompt::Literal(text) => text.len(),
        // There is nothing to read.
        Prompt::Tokens(_) => 0,
        Prompt::Infill(infill) => infill.size(),
        Prompt::Chat(conversation) => conversation.size(),
    }
}

fn question_bytes(question: &Question) -> usize {
    match question {
        Question::Tokenize { text, .. } => text.len(),
        Question::Detokenize { tokens } | Question::Pieces { tokens } => size_of_val(&tokens[..]),
        Question::ApplyTemplate(conversation) | Question::CountTokens(conversation) => conversation.size(),
        Question::Rerank { query, documents } => documents.iter().map(|it| it.len() + query.len()).sum(),
        Question::Embed { inputs } => inputs
            .iter()
            .map(|input| match input {
                EmbedInput::Text(text) => text.len(),
                EmbedInput::Tokens(_) => 0,
            })
            .sum(),
        Question::MemoryUse | Question::ChatTemplate => 0,
    }
}

fn panicked() -> Fault {
    Fault::new(ErrorCode::Internal, "the host panicked; this is a defect of llm-node")
}
