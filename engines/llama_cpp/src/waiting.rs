//! The team of threads that runs the passes, on Linux: it watches how long they are ready to run and
//! do not, and does what `contention` chooses.
//!
//! How long GNU OpenMP's threads look at a barrier before they sleep is fixed when the runtime is loaded
//! (GOMP_SPINCOUNT), with one exception: while the process has more OpenMP threads than processors, it
//! is a hundred looks at most. A second team that only sleeps makes that true, and its end makes it
//! false again.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use llm_node_sdk::{Severity, log};

use crate::contention::{Chooser, Turn, Way, work};
use crate::llama::{self, Context};
use crate::options::WaitPolicy;

/// Between two lines in the log about the same matter.
const QUIET: Duration = Duration::from_secs(10);

/// A team of threads that only sleeps; it is there as long as this value.
struct Crowd {
    leave: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// `None`: the system gives no thread.
    fn gather(threads: u32) -> Option<Self> {
        let (leave, left) = mpsc::channel::<()>();
        let (gathered, is_gathered) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("crowd".to_owned())
            .spawn(move || {
                llama::team(threads);
                let _ = gathered.send(());
                // The other end never sends: it goes.
                let _ = left.recv();
            })
            .ok()?;
        let _ = is_gathered.recv();
        Some(Self { leave: Some(leave), thread: Some(thread) })
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.leave.take());
        if let Some(thread) = self.thread.take() {
            // The runtime takes the team down with the thread that made it.
            let _ = thread.join();
        }
    }
}

/// What the kernel counts for each thread of a team.
struct Team {
    /// Whose passes it runs: OpenMP has a team for each thread that asks.
    of: ThreadId,
    counters: Vec<File>,
}

impl Team {
    fn of_this_thread(threads: u32) -> Self {
        let open = |id: &i32| File::open(format!("/proc/self/task/{id}/schedstat")).ok();
        let counters = llama::team(threads).iter().filter_map(open).collect();
        Self { of: thread::current().id(), counters }
    }

    /// How long the threads were ready to run and did not, since each began; `None`: one is gone, or the
    /// kernel does not count.
    fn delay(&self) -> Option<Duration> {
        let mut nanoseconds = 0;
        for counter in &self.counters {
            let mut text = [0; 64];
            let length = counter.read_at(&mut text, 0).ok()?;
            // Time run, time waited, times run.
            let text = str::from_utf8(&text[..length]).ok()?;
            nanoseconds += text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(nanoseconds))
    }
}

/// A turn under way.
struct Watch {
    team: Team,
    /// The team's when the turn began.
    delay: Duration,
    /// Within passes.
    elapsed: Duration,
    work: f64,
}

/// How the threads of a context wait for each other, and those of its prefill pool.
pub(crate) struct Waiting {
    /// `None`: it stays as it is.
    chooser: Option<Chooser>,
    crowd: Option<Crowd>,
    /// What a context begins with.
    all: Way,
    /// How many threads the turn under way has.
    threads: u32,
    watch: Option<Watch>,
    /// When the turn before ended.
    ended: Instant,
    /// What the log was told, and when it was told something.
    told: Way,
    told_at: Option<Instant>,
}

impl Waiting {
    /// For a context of `threads` that runs on the CPU.
    pub(crate) fn new(policy: WaitPolicy, threads: u32) -> Self {
        let alone = threads < 2;
        let all = Way { threads, passive: false };
        Self {
            chooser: (policy == WaitPolicy::Auto && !alone).then(|| Chooser::new(threads)),
            crowd: if policy == WaitPolicy::Passive && !alone { crowd(threads) } else { None },
            all,
            threads,
            watch: None,
            ended: Instant::now(),
            told: all,
            told_at: None,
        }
    }

    /// Runs a pass of so many tokens.
    pub(crate) fn pass<T>(
        &mut self,
        context: &mut Context,
        tokens: usize,
        pass: impl FnOnce(&mut Context) -> T,
    ) -> T {
        if self.chooser.is_none() {
            return pass(context);
        }
        self.begin();
        context.set_threads(self.threads);
        let began = Instant::now();
        let result = pass(context);
        self.end(began.elapsed(), tokens);
        result
    }

    /// Before a pass: another turn, unless one is under way.
    fn begin(&mut self) {
        let Some(chooser) = &self.chooser else { return };
        let here = thread::current().id();
        if self.watch.as_ref().is_some_and(|watch| watch.team.of == here) {
            return;
        }
        let (way, _) = chooser.next();
        self.threads = way.threads;
        if way.passive != self.crowd.is_some() {
            self.crowd = if way.passive { crowd(way.threads) } else { None };
        }
        let team = Team::of_this_thread(way.threads);
        if let Some(delay) = team.delay() {
            self.watch = Some(Watch { team, delay, elapsed: Duration::ZERO, work: 0.0 });
        } else {
            log(Severity::Debug, "the kernel does not tell how long threads wait: wait_policy is active");
            self.chooser = None;
        }
    }

    /// After a pass.
    fn end(&mut self, elapsed: Duration, tokens: usize) {
        let (Some(chooser), Some(watch)) = (&mut self.chooser, &mut self.watch) else { return };
        watch.elapsed += elapsed;
        watch.work += work(tokens);
        if watch.elapsed < chooser.next().1 {
            return;
        }
        let now = Instant::now();
        // Threads that are gone were not the ones that ran the turn, which then says nothing.
        if let Some(delay) = watch.team.delay() {
            chooser.learn(&Turn {
                elapsed: watch.elapsed,
                passed: now - self.ended,
                work: watch.work,
                lacking: delay.saturating_sub(watch.delay).as_secs_f64() / watch.elapsed.as_secs_f64(),
            });
        }
        self.ended = now;
        self.watch = None;
        let chosen = chooser.chosen();
        self.tell(chosen, now);
    }

    /// One line about a change, and not more often than every ten seconds.
    fn tell(&mut self, chosen: Way, now: Instant) {
        if chosen == self.told || self.told_at.is_some_and(|at| now - at < QUIET) {
            return;
        }
        (self.told, self.told_at) = (chosen, Some(now));
        let threads = chosen.threads;
        log(
            Severity::Info,
            &if chosen == self.all {
                format!("passes run on all {threads} CPU threads again")
            } else if chosen.passive {
                format!(
                    "other work wants the cores: the {threads} CPU threads sleep while they wait for each other"
                )
            } else {
                format!(
                    "other work wants the cores: passes run on {threads} of {} CPU threads",
                    self.all.threads
                )
            },
        );
    }
}

/// So large that there are more OpenMP threads than processors.
fn crowd(threads: u32) -> Option<Crowd> {
    Crowd::gather((llama::processors() + 2).saturating_sub(threads).max(2))
}
