//! Which way to run the passes while something else wants the same cores. Pure: it is told how turns of
//! several passes went, and says how to run the next one.
//!
//! While nobody is in the way, all threads wait actively for each other, which is fastest. Where the
//! team has to wait for processors, no rule holds on all machines: two threads that sleep beat one on
//! some kernels, and take eight times as long on others. So the ways are tried, turn by turn, and the
//! fastest is kept. From time to time all threads run for a turn again, to see whether the others left.
//! Nothing is tried while the machine is calm.

use std::mem;
use std::time::Duration;

/// One way to run passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) threads: u32,
    /// Threads that wait for each other sleep at once, instead of looking for a while.
    pub(crate) passive: bool,
}

/// How the passes of one turn went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Time within the passes.
    pub(crate) elapsed: Duration,
    /// Time since the turn before, passes or not.
    pub(crate) passed: Duration,
    /// What was done, see [`work`].
    pub(crate) work: f64,
    /// Processors that the team was without: how long its threads were ready to run and did not, as a
    /// share of `elapsed`, added up.
    pub(crate) lacking: f64,
}

/// The work of a pass, in tokens: each costs about the same, and reading the weights about as much as
/// one and a half more (135 M parameters on two cores: 7, 27, 41 and 79 ms for 1, 8, 16 and 32 tokens).
/// It need not be exact, because ways take turns, and so meet the same mixture of passes.
pub(crate) fn work(tokens: usize) -> f64 {
    tokens as f64 + 1.5
}

/// From here on something is in the way; what a machine does besides costs less.
const CONTENDED: f64 = 0.15;
/// Below, it is not any more.
const CALM: f64 = 0.08;
/// So many turns in a row must be contended, so that what is over in a moment changes nothing.
const PATIENCE: u32 = 2;
/// How long a turn is; to try a way, less must do.
const TURN: Duration = Duration::from_millis(100);
const TRY: Duration = Duration::from_millis(40);
/// Each way is tried so many times, unless it is [`HOPELESS`] times slower than another.
const ROUNDS: u32 = 3;
const HOPELESS: f64 = 1.5;
/// Another way must be that much faster than all threads at once, or the one in use.
const BETTER: f64 = 0.95;
/// How long the fastest way is kept before all threads are tried again: at first, and at most.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(4);
/// After so many rests all ways are compared again.
const RESTS: u32 = 8;

/// A way that is being tried.
#[derive(Clone, Copy, Debug)]
struct Tried {
    way: Way,
    elapsed: f64,
    work: f64,
}

impl Tried {
    /// Seconds per token.
    fn cost(&self) -> f64 {
        self.elapsed / self.work
    }
}

/// The fastest way, in use.
#[derive(Clone, Copy, Debug)]
struct Settled {
    way: Way,
    cost: f64,
    rest: Duration,
    rested: Duration,
    rests: u32,
}

#[derive(Debug)]
enum State {
    /// All threads, actively.
    Calm {
        contended: u32,
    },
    /// Every way in turn; the first of them is all threads.
    Trying {
        ways: Vec<Tried>,
        next: usize,
        round: u32,
        before: Way,
    },
    Settled(Settled),
    /// All threads for a turn.
    Looking(Settled),
}

/// Chooses.
#[derive(Debug)]
pub(crate) struct Chooser {
    all: Way,
    state: State,
}

impl Chooser {
    /// For a team of `threads`, at least two.
    pub(crate) fn new(threads: u32) -> Self {
        Self { all: Way { threads, passive: false }, state: State::Calm { contended: 0 } }
    }

    /// How to run the turn that begins, and how long at least.
    pub(crate) fn next(&self) -> (Way, Duration) {
        match &self.state {
            State::Calm { .. } => (self.all, TURN),
            State::Trying { ways, next, .. } => (ways[*next].way, TRY),
            State::Settled(settled) => (settled.way, TURN),
            State::Looking(_) => (self.all, TRY),
        }
    }

    /// The way that is in use, trials apart.
    pub(crate) fn chosen(&self) -> Way {
        match &self.state {
            State::Calm { .. } => self.all,
            State::Trying { before, .. } => *before,
            State::Settled(settled) | State::Looking(settled) => settled.way,
        }
    }

    /// A turn is over, which was run as [`Self::next`] said.
    pub(crate) fn learn(&mut self, turn: &Turn) {
        let state = mem::replace(&mut self.state, State::Calm { contended: 0 });
        self.state = match state {
            State::Calm { .. } if turn.lacking < CONTENDED => State::Calm { contended: 0 },
            State::Calm { contended } if contended + 1 < PATIENCE => State::Calm { contended: contended + 1 },
            State::Calm { .. } => self.compare(self.all, turn.lacking),
            State::Trying { ways, next, round, before } => self.tried(ways, next, round, before, turn),
            State::Settled(settled) => self.rested(settled, turn),
            State::Looking(settled) => self.looked(settled, turn),
        };
    }

    /// Begins to compare all ways that are worth it, where `now` lacks so many processors.
    fn compare(&self, now: Way, lacking: f64) -> State {
        // What is lacking is what the others took; without as many threads nobody waits.
        let fewer = now.threads.saturating_sub(lacking.ceil().max(1.0) as u32).max(1);
        let mut ways = vec![self.all];
        for way in [Way { threads: fewer, passive: false }, Way { passive: true, ..self.all }, now] {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        let ways = ways.iter().map(|&way| Tried { way, elapsed: 0.0, work: 0.0 }).collect();
        State::Trying { ways, next: 0, round: 1, before: now }
    }

    fn tried(&self, mut ways: Vec<Tried>, next: usize, round: u32, before: Way, turn: &Turn) -> State {
        let tried = &mut ways[next];
        if tried.way == self.all && turn.lacking < CALM {
            return State::Calm { contended: 0 };
        }
        tried.elapsed += turn.elapsed.as_secs_f64();
        tried.work += turn.work;
        if next + 1 < ways.len() {
            return State::Trying { ways, next: next + 1, round, before };
        }
        let least = ways.iter().map(Tried::cost).fold(f64::INFINITY, f64::min);
        if round < ROUNDS {
            // The first stays, however slow, since it is the one that tells when all is calm again.
            let all = self.all;
            ways.retain(|tried| tried.way == all || tried.cost() < least * HOPELESS);
            return State::Trying { ways, next: 0, round: round + 1, before };
        }
        let mut best = ways.iter().find(|tried| tried.way == before).copied().unwrap_or(ways[0]);
        for tried in &ways {
            if tried.cost() < best.cost() * BETTER {
                best = *tried;
            }
        }
        State::Settled(Settled {
            way: best.way,
            cost: best.cost(),
            rest: FIRST_REST,
            rested: Duration::ZERO,
            rests: 0,
        })
    }

    fn rested(&self, mut settled: Settled, turn: &Turn) -> State {
        if settled.way == self.all && turn.lacking < CALM {
            return State::Calm { contended: 0 };
        }
        // Batches change; the newer half counts.
        settled.cost = settled.cost.midpoint(turn.elapsed.as_secs_f64() / turn.work);
        settled.rested += turn.passed;
        if settled.rested < settled.rest {
            return State::Settled(settled);
        }
        settled.rests += 1;
        settled.rested = Duration::ZERO;
        settled.rest = (settled.rest * 2).min(LONGEST_REST);
        if settled.rests < RESTS {
            State::Looking(settled)
        } else {
            // Where even fewer threads wait for processors, yet fewer are one of the ways.
            self.compare(settled.way, turn.lacking)
        }
    }

    fn looked(&self, settled: Settled, turn: &Turn) -> State {
        if turn.lacking < CALM {
            return State::Calm { contended: 0 };
        }
        if turn.elapsed.as_secs_f64() / turn.work < settled.cost * BETTER {
            return self.compare(self.all, turn.lacking);
        }
        State::Settled(settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Way = Way { threads: 2, passive: false };
    const SLEEPING: Way = Way { threads: 2, passive: true };
    const ONE: Way = Way { threads: 1, passive: false };

    /// Runs turns on a machine that costs so many milliseconds per token, and lacks so many processors;
    /// gives the ways that were run and the way in use at the end.
    fn run(chooser: &mut Chooser, turns: usize, machine: impl Fn(Way) -> (f64, f64)) -> (Vec<Way>, Way) {
        let mut ways = Vec::new();
        for _ in 0..turns {
            let (way, length) = chooser.next();
            let (cost, lacking) = machine(way);
            ways.push(way);
            let work = length.as_secs_f64() * 1e3 / cost;
            chooser.learn(&Turn { elapsed: length, passed: length, work, lacking });
        }
        (ways, chooser.chosen())
    }

    fn quiet(way: Way) -> (f64, f64) {
        (if way == ALL { 3.8 } else { 7.0 }, 0.01)
    }

    /// One of two cores is taken, on a kernel that lets who slept go first.
    fn kind(way: Way) -> (f64, f64) {
        match way {
            ALL => (10.0, 0.5),
            SLEEPING => (5.5, 0.1),
            _ => (6.7, 0.0),
        }
    }

    /// The same, where who slept waits for a slice of the other.
    fn unkind(way: Way) -> (f64, f64) {
        match way {
            ALL => (9.5, 0.5),
            SLEEPING => (64.0, 0.9),
            _ => (8.0, 0.0),
        }
    }

    #[test]
    fn a_calm_machine_is_left_alone() {
        let mut chooser = Chooser::new(2);
        let (ways, chosen) = run(&mut chooser, 1000, quiet);
        assert!(ways.iter().all(|way| *way == ALL));
        assert_eq!(chosen, ALL);
    }

    #[test]
    fn a_moment_changes_nothing() {
        let mut chooser = Chooser::new(2);
        for _ in 0..10 {
            assert!(run(&mut chooser, 1, kind).0.iter().all(|way| *way == ALL));
            assert!(run(&mut chooser, 1, quiet).0.iter().all(|way| *way == ALL));
        }
    }

    #[test]
    fn the_fastest_way_is_found_on_either_kernel() {
        for (machine, fastest) in [(kind as fn(Way) -> (f64, f64), SLEEPING), (unkind, ONE)] {
            let mut chooser = Chooser::new(2);
            assert_eq!(run(&mut chooser, 12, machine).1, fastest);
            let (ways, chosen) = run(&mut chooser, 2000, machine);
            assert_eq!(chosen, fastest);
            let other = ways.iter().filter(|way| **way != fastest).count();
            assert!(other < 120, "{other} of 2000 turns went to other ways");
        }
    }

    #[test]
    fn a_hopeless_way_is_tried_once_per_comparison() {
        let mut chooser = Chooser::new(2);
        let (ways, _) = run(&mut chooser, 20, unkind);
        assert_eq!(ways.iter().filter(|way| **way == SLEEPING).count(), 1);
    }

    #[test]
    fn all_threads_run_again_when_the_others_have_left() {
        let mut chooser = Chooser::new(2);
        run(&mut chooser, 200, unkind);
        let (ways, chosen) = run(&mut chooser, 60, quiet);
        assert_eq!(chosen, ALL);
        assert!(ways[50..].iter().all(|way| *way == ALL));
    }

    #[test]
    fn after_a_long_pause_it_looks_at_once() {
        let mut chooser = Chooser::new(2);
        run(&mut chooser, 200, unkind);
        let (way, length) = chooser.next();
        assert_eq!(way, ONE);
        let passed = Duration::from_mins(10);
        chooser.learn(&Turn { elapsed: length, passed, work: 10.0, lacking: 0.0 });
        assert_eq!(chooser.next().0, ALL);
    }

    #[test]
    fn threads_leave_room_for_as_many_as_took_processors() {
        // Sixteen processors, five of them taken; all threads get their fair share.
        let machine = |way: Way| {
            let threads = f64::from(way.threads);
            let lacking = (threads + 5.0 - 16.0).max(0.0) * threads / (threads + 5.0);
            let cost = if way.passive || lacking > 0.0 { 3.0 + lacking } else { 16.0 / threads };
            (cost, lacking)
        };
        let mut chooser = Chooser::new(16);
        let (_, chosen) = run(&mut chooser, 600, machine);
        assert!((10..=11).contains(&chosen.threads) && !chosen.passive, "{chosen:?}");
    }

    #[test]
    fn where_all_threads_are_fastest_all_the_same_they_stay() {
        let busy = |way: Way| (if way == ALL { 4.0 } else { 7.0 }, 0.3);
        let mut chooser = Chooser::new(2);
        assert_eq!(run(&mut chooser, 500, busy).1, ALL);
    }
}
