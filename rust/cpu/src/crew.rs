//! Threads that stay from call to call, and work on what the caller has borrowed.
//!
//! `std::thread::scope` can borrow, but starts threads anew each time; threads that stay can, in safe
//! Rust, only be given what they own. Waiting threads sleep: where cores are few, spinning costs the
//! engine more than a wake-up costs here.

use std::{
    any::Any,
    io,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// The calling thread and its helpers. The helpers end when this is dropped.
#[derive(Debug)]
pub struct Crew {
    shared: Arc<Shared>,
    helpers: Vec<thread::JoinHandle<()>>,
}

type Work<'a> = &'a (dyn Fn(usize) + Sync);

#[derive(Default)]
struct State {
    /// Rises with each call.
    round: u64,
    /// Present while a call lasts. In truth it lives only so long.
    work: Option<Work<'static>>,
    parts: usize,
    /// Helpers that still work in this round.
    busy: usize,
    panic: Option<Box<dyn Any + Send>>,
    end: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    begun: Condvar,
    done: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    /// Work is never done under the lock, so nothing can leave the state half changed.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crew {
    /// As many threads as pay at most: half of the cores, as the other half is another thread of the
    /// same core or the engine's, and no more than 8.
    pub fn usual_size() -> NonZeroUsize {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        NonZeroUsize::new((cores / 2).min(8)).unwrap_or(NonZeroUsize::MIN)
    }

    /// A crew of `size` threads, of which the calling thread is one; the others are called `name-1`
    /// and so on. With a size of 1 there are no others.
    pub fn new(size: NonZeroUsize, name: &str) -> io::Result<Self> {
        let mut crew = Self { shared: Arc::default(), helpers: Vec::new() };
        for index in 1..size.get() {
            let shared = Arc::clone(&crew.shared);
            let helper = thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || help(&shared, index, size.get()))?;
            crew.helpers.push(helper);
        }
        Ok(crew)
    }

    /// How many threads work, the caller's included.
    pub fn size(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work` once with each number below `parts`, and returns when all calls have. Thread `i`
    /// takes `i`, `i + size` and so on; the caller's is 0. A panic in any of them comes out here, after
    /// the others have ended.
    pub fn run(&mut self, parts: usize, work: Work<'_>) {
        let size = self.size();
        if parts <= 1 || size == 1 {
            (0..parts).for_each(work);
            return;
        }
        {
            let mut state = self.shared.lock();
            state.round += 1;
            // SAFETY: only the lifetime changes. Helpers use the reference while they count as busy;
            // `Busy` waits until none does and takes it out of the state, and does so when this
            // function returns as well as when it unwinds, both while `work` is still borrowed. `&mut
            // self` keeps a second call from beginning before that.
            state.work = Some(unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) });
            state.parts = parts;
            state.panic = None;
            state.busy = parts.min(size) - 1;
        }
        let busy = Busy(&self.shared);
        self.shared.begun.notify_all();
        (0..parts).step_by(size).for_each(work);
        drop(busy);
        let panic = self.shared.lock().panic.take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.lock().end = true;
        self.shared.begun.notify_all();
        for helper in self.helpers.drain(..) {
            // It has caught what panicked.
            let _ = helper.join();
        }
    }
}

/// Waits until no helper works any more.
struct Busy<'a>(&'a Shared);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        while state.busy > 0 {
            state = self.0.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.work = None;
    }
}

fn help(shared: &Shared, index: usize, size: usize) {
    let mut seen = 0;
    let mut state = shared.lock();
    while !state.end {
        if state.round == seen {
            state = shared.begun.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        seen = state.round;
        let parts = state.parts;
        // One whose number is not needed may come late, and find the round at its end.
        let Some(work) = state.work.filter(|_| index < parts) else { continue };
        drop(state);
        let panic = catch_unwind(AssertUnwindSafe(|| (index..parts).step_by(size).for_each(work))).err();
        state = shared.lock();
        if panic.is_some() {
            state.panic = panic;
        }
        state.busy -= 1;
        if state.busy == 0 {
            shared.done.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    fn crew(size: usize) -> Crew {
        Crew::new(NonZeroUsize::new(size).unwrap(), "test").unwrap()
    }

    #[test]
    fn each_part_is_done_once() {
        for size in [1, 2, 3, 8] {
            let mut crew = crew(size);
            assert_eq!(crew.size(), size);
            for round in 0..200 {
                let parts = round % 20;
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                crew.run(parts, &|part| {
                    counts[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|it| it.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn part_belongs_to_thread() {
        let mut crew = crew(3);
        let names = Mutex::new(BTreeSet::new());
        crew.run(6, &|part| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            names.lock().unwrap().insert((part, name));
        });
        let names = names.into_inner().unwrap();
        let own = thread::current().name().unwrap_or_default().to_owned();
        let expected = (0..6).map(|it| (it, [own.as_str(), "test-1", "test-2"][it % 3].to_owned()));
        assert_eq!(names, expected.collect());
    }

    #[test]
    fn a_panic_comes_out_after_all_have_ended() {
        let mut crew = crew(3);
        for culprit in 0..3 {
            let ended = AtomicUsize::new(0);
            let panic = catch_unwind(AssertUnwindSafe(|| {
                crew.run(3, &|part| {
                    if part == culprit {
                        resume_unwind(Box::new(part));
                    }
                    thread::sleep(std::time::Duration::from_millis(20));
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert_eq!(panic.unwrap_err().downcast_ref(), Some(&culprit));
            assert_eq!(ended.load(Ordering::Relaxed), 2);
        }
        crew.run(3, &|_| {});
    }

    #[test]
    fn threads_end_with_their_crew() {
        let crew = crew(4);
        let shared = Arc::downgrade(&crew.shared);
        assert_eq!(shared.strong_count(), 4);
        drop(crew);
        assert_eq!(shared.strong_count(), 0);
    }
}
