//! The threads that compile what answers have to keep to, and what they keep.
//!
//! Nothing of it is there until the first request asks for a format: the tables of a vocabulary take more memory
//! than the rest of a worker. They go when no request has asked for a while.
//!
//! A compilation cannot be stopped. One that takes too long is waited for no longer, and a second thread takes
//! what comes meanwhile.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use llm_node_core::{
    constrain::{Prototype, Prototypes, Tables, Wanted},
    engine::Vocabulary,
    error::{ErrorCode, Fault},
};

/// How long a request waits for its format to be compiled.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long tables and compiled formats are kept without a request that has one.
const KEPT: Duration = Duration::from_mins(10);
/// Threads, of which one is for what comes while the other is stuck.
const MOST_THREADS: usize = 2;
/// Address space for a thread's stack: schemas within schemas are compiled by recursion.
const STACK: usize = 64 << 20;

/// Compiles formats, for all requests to one model.
pub(crate) struct Grammars {
    shared: Arc<Shared>,
}

struct Shared {
    /// Not the tokenizer: a thread that is stuck must not keep an engine alive.
    vocabulary: Arc<Vocabulary>,
    state: Mutex<State>,
    changed: Condvar,
    tables: Mutex<Option<Arc<Tables>>>,
    /// See [`KEPT`].
    kept: Duration,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    /// Jobs that threads have taken and not answered.
    busy: usize,
    prototypes: Prototypes,
    /// When a request asked for something last, be it there already.
    asked: Option<Instant>,
    stopping: bool,
}

struct Job {
    wanted: Wanted,
    tell: Sender<Told>,
}

enum Told {
    /// The tables are there, and the compilation begins.
    Begun,
    Done(Result<Arc<Prototype>, Fault>),
}

impl Grammars {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self::keeping(vocabulary, KEPT)
    }

    fn keeping(vocabulary: Arc<Vocabulary>, kept: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                vocabulary,
                state: Mutex::default(),
                changed: Condvar::new(),
                tables: Mutex::default(),
                kept,
            }),
        }
    }

    /// What is compiled already.
    pub(crate) fn find(&self, wanted: &Wanted) -> Option<Arc<Prototype>> {
        let mut state = self.shared.lock();
        let found = state.prototypes.get(wanted);
        if found.is_some() {
            state.asked = Some(Instant::now());
        }
        found
    }

    /// Compiles a format, or finds it compiled. Waits for that, and not for ever.
    pub(crate) fn compile(&self, wanted: &Wanted) -> Result<Arc<Prototype>, Fault> {
        let (tell, told) = mpsc::channel();
        let mut state = self.shared.lock();
        state.asked = Some(Instant::now());
        if let Some(prototype) = state.prototypes.get(wanted) {
            return Ok(prototype);
        }
        if state.waiting.len() + state.busy >= state.threads {
            if state.threads == MOST_THREADS {
                let message = "Formats are being compiled already, and take their time; try again later.";
                return Err(Fault::new(ErrorCode::QueueFull, message));
            }
            let shared = Arc::clone(&self.shared);
            thread::Builder::new()
                .name("grammar".into())
                .stack_size(STACK)
                .spawn(move || shared.work())
                .map_err(|error| {
                    Fault::new(ErrorCode::Internal, format!("no thread for grammars: {error}"))
                })?;
            state.threads += 1;
        }
        state.waiting.push_back(Job { wanted: wanted.clone(), tell });
        drop(state);
        self.shared.changed.notify_one();
        // To make tables takes as long as it takes; what comes in between is `Begun`.
        let first = told.recv();
        match first {
            Ok(Told::Begun) => match told.recv_timeout(PATIENCE) {
                Ok(Told::Done(compiled)) => compiled,
                _ => Err(Fault::new(
                    ErrorCode::UnsupportedParameter,
                    format!(
                        "the format takes longer than {} s to compile; make it simpler",
                        PATIENCE.as_secs()
                    ),
                )),
            },
            Ok(Told::Done(compiled)) => compiled,
            Err(_) => Err(Fault::new(ErrorCode::Internal, "the thread for grammars has ended")),
        }
    }
}

impl Drop for Grammars {
    /// Threads end when they are done with what they do, and nobody waits for that.
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn work(&self) {
        while let Some(Job { wanted, tell }) = self.next() {
            let compiled = self.tables().and_then(|tables| {
                // Whoever has asked may have left.
                let _ = tell.send(Told::Begun);
                tables.compile(&wanted).map(Arc::new)
            });
            if let Ok(prototype) = &compiled {
                self.lock().prototypes.put(wanted, Arc::clone(prototype));
            }
            // Before the answer: whoever gets it may ask again at once, and this thread is there for it.
            self.lock().busy -= 1;
            let _ = tell.send(Told::Done(compiled));
        }
    }

    /// The next job; `None`: this thread is not needed any more.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        let job = loop {
            if let Some(job) = state.waiting.pop_front() {
                state.busy += 1;
                break Some(job);
            }
            if state.stopping {
                break None;
            }
            let rest = state.asked.map_or(Duration::ZERO, |it| self.kept.saturating_sub(it.elapsed()));
            if rest.is_zero() {
                break None;
            }
            state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        };
        if job.is_none() {
            state.threads -= 1;
            if state.threads == 0 {
                let prototypes = mem::take(&mut state.prototypes);
                drop(state);
                drop(prototypes);
                self.tables.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        }
        job
    }

    fn tables(&self) -> Result<Arc<Tables>, Fault> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        match &*tables {
            Some(tables) => Ok(Arc::clone(tables)),
            None => Ok(Arc::clone(tables.insert(Arc::new(Tables::new(Arc::clone(&self.vocabulary))?)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use llm_node_core::{chat::conversation::Format, engine::attribute};

    use super::*;

    fn vocabulary() -> Arc<Vocabulary> {
        let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
        for byte in 0..=255u8 {
            vocabulary.bytes.push(byte);
            vocabulary.offsets.push(vocabulary.bytes.len() as u32);
            vocabulary.attributes.push(if byte == 0 { attribute::END_OF_GENERATION } else { 0 });
        }
        Arc::new(vocabulary)
    }

    #[test]
    fn equal_formats_are_compiled_once() {
        let grammars = Grammars::new(vocabulary());
        assert_eq!(grammars.shared.lock().threads, 0);
        let first = grammars.compile(&Format::Object.into()).unwrap();
        assert!(Arc::ptr_eq(&first, &grammars.compile(&Format::Object.into()).unwrap()));
        let other = grammars.compile(&Format::Regex("a".into()).into()).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        assert_eq!(grammars.shared.lock().threads, 1);
    }

    #[test]
    fn refusals_come_through_and_are_not_kept() {
        let grammars = Grammars::new(vocabulary());
        for _ in 0..2 {
            let fault = grammars.compile(&Format::Lark("start: missing".into()).into()).unwrap_err();
            assert_eq!(fault.code, ErrorCode::InvalidRequest, "{fault}");
        }
        let empty = Grammars::new(Arc::default());
        assert_eq!(empty.compile(&Format::Object.into()).unwrap_err().code, ErrorCode::UnsupportedFeature);
    }

    #[test]
    fn many_at_once_are_answered_or_told_to_come_again() {
        let grammars = Grammars::new(vocabulary());
        let results: Vec<_> = thread::scope(|scope| {
            let ask = |n: usize| {
                let grammars = &grammars;
                scope.spawn(move || grammars.compile(&Format::Regex(format!("a{{{n}}}")).into()).map(|_| ()))
            };
            let all: Vec<_> = (1..9).map(ask).collect();
            all.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert!(results.iter().any(Result::is_ok));
        for fault in results.into_iter().filter_map(Result::err) {
            assert_eq!(fault.code, ErrorCode::QueueFull, "{fault}");
        }
        assert!(grammars.shared.lock().threads <= MOST_THREADS);
    }

    /// A thread that has answered counts as free at once.
    #[test]
    fn one_after_the_other_takes_one_thread() {
        let grammars = Grammars::new(vocabulary());
        for n in 1..100 {
            grammars.compile(&Format::Regex(format!("a{{{n}}}")).into()).unwrap();
        }
        assert_eq!(grammars.shared.lock().threads, 1);
    }

    #[test]
    fn threads_end_with_the_model() {
        let grammars = Grammars::new(vocabulary());
        grammars.compile(&Format::Object.into()).unwrap();
        let shared = Arc::downgrade(&grammars.shared);
        drop(grammars);
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn what_nobody_asks_for_goes_after_a_while() {
        let grammars = Grammars::keeping(vocabulary(), Duration::from_millis(20));
        grammars.compile(&Format::Object.into()).unwrap();
        while grammars.shared.lock().threads > 0 {
            thread::yield_now();
        }
        assert!(grammars.find(&Format::Object.into()).is_none());
        while grammars.shared.tables.lock().unwrap().is_some() {
            thread::yield_now();
        }
        assert!(grammars.compile(&Format::Object.into()).is_ok(), "it comes again");
    }

    /// Coding clients send the same tools for hours, and nothing is compiled anew meanwhile.
    #[test]
    fn what_is_asked_for_stays_though_nothing_is_compiled() {
        let kept = Duration::from_secs(1);
        let grammars = Grammars::keeping(vocabulary(), kept);
        let began = Instant::now();
        let first = grammars.compile(&Format::Object.into()).unwrap();
        let mut before = Instant::now();
        while began.elapsed() < 3 * kept / 2 {
            thread::sleep(Duration::from_millis(5));
            let found = grammars.find(&Format::Object.into());
            if before.elapsed() >= kept {
                return; // The machine stood still for so long.
            }
            before = Instant::now();
            assert!(found.is_some_and(|it| Arc::ptr_eq(&it, &first)));
        }
    }
}
