//! How long steps take, and what follows from it: how much of a prompt a step may carry, what one more
//! token costs, and whether a hole among the sequence ids is worth closing.
//!
//! It learns from the steps of one session and holds figures only. Nothing that a client gets depends
//! on it but *when* it comes.

use std::time::Duration;

/// Upper bounds of the classes of steps by their number of tokens: [1], [2], [3], [4], [5, 6], ...
const CLASSES: [u32; 18] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, u32::MAX];
/// Weight of the newest figure.
const NEWEST: f64 = 0.15;
/// Steps after which what was measured of another size counts no more by itself: the machine may have changed its
/// speed, and what seems dear would never be tried again.
const LASTING: u64 = 256;
/// What the tokens cost in a step of answers, as a share of the step, where steps of other sizes do not tell.
const PRESUMED_SHARE: f64 = 0.4;
/// How much that presumption counts beside a class of steps: the square of by how much each may be off, a tenth
/// and a third.
const PRESUMED_WEIGHT: f64 = 0.1;
/// Least prompt tokens per step, whatever it takes: a prompt must come to its end. With 16 each takes a quarter
/// more time on a CPU, and between them answers have twice as many steps, so that prompts wait twice as long.
const LEAST_PREFILL: u32 = 32;
/// Up to so many targets a piece is one tile nevertheless: with half of one, a prompt takes an eighth more time, and
/// twice as many steps of the answers come between.
const STRETCH: f64 = 4.0;
/// Fewer prompt tokens in a step say nothing of what more of them take.
const TELLING: u32 = 16;
/// Prompt tokens in a step that holds nobody up: about what engines take in one physical pass.
const UNDISTURBED_PREFILL: u32 = 512;
/// The least of these where nobody waits at all. With fewer, the pass over the weights and attention token by token
/// cost more than half as much again, which a large model on slow processors would never get rid of.
const LEAST_UNDISTURBED: u32 = 128;
/// Engines compute the attention of so many tokens of a prompt in one go. With one token less, llama.cpp's
/// CPU kernels compute it token by token, which takes up to twelve times as long.
const TILE: u32 = 64;
/// Where prompts end together, the pass over the weights that they share costs this part of their time, which
/// is what any of them loses by being read apart.
const SHARED_PASS: f64 = 0.04;
/// Least tokens of prompts that end together. A pass costs at least what ten of them do, whatever the line through
/// the steps of answers says: where all of these are alike, or the machine has changed its speed between them, it
/// says nothing.
const LEAST_JOINT: u32 = 4 * TILE;
/// Steps of the target's length for which a burst of prompts may hold up answers that have only begun: those of
/// the burst itself. In a burst of their own they would each have their first token later.
const MOST_HELD_STEPS: u32 = 31;
/// The same where an answer is in the middle of its stream: somebody reads it.
const STREAMS_HELD_STEPS: u32 = 4;

/// A running mean in which the old fades.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mean(Option<f64>);

impl Mean {
    fn learn(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |old| old + NEWEST * (value - old)));
    }
}

/// The ids between the first and the last running sequence that do not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holes {
    /// How many stretches of them there are: each costs one more pass over the weights.
    pub gaps: u32,
    /// How many ids.
    pub width: u32,
    /// How many sequences have to move so that there is none.
    pub moves: u32,
    /// Steps for which that counts.
    pub steps: u32,
}

/// What happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// It stays: the engine's further pass costs less than anything else.
    Leave,
    /// A dummy token is put into it, and taken back.
    Pad,
    /// The highest sequence moves into it.
    Fill,
}

/// Steps of about one size.
#[derive(Clone, Copy, Debug, Default)]
struct Class {
    tokens: Mean,
    seconds: Mean,
    /// How many steps there have been when one of these was the last.
    seen_at: u64,
}

/// What a session has learned of its engine's speed. Seconds throughout.
#[derive(Clone, Debug)]
pub struct Pace {
    target: f64,
    first_prefill: u32,
    /// Of steps without prompts.
    decodes: [Class; CLASSES.len()],
    /// How many of these there were.
    steps: u64,
    /// Of one prompt token.
    prefill: Mean,
    /// Of copying one sequence to another.
    copy: Mean,
    /// Of writing a sequence down, and its bytes, per token.
    save: Mean,
    saved_bytes: Mean,
}

impl Pace {
    /// `target`: how long a step may become by the prompts in it. `first_prefill`: prompt tokens per
    /// step until it is known how long these take.
    pub fn new(target: Duration, first_prefill: u32) -> Self {
        Self {
            target: target.as_secs_f64(),
            first_prefill: first_prefill.max(1),
            decodes: <[Class; CLASSES.len()]>::default(),
            steps: 0,
            prefill: Mean::default(),
            copy: Mean::default(),
            save: Mean::default(),
            saved_bytes: Mean::default(),
        }
    }

    /// A step with `decodes` tokens of answers and `prompt` tokens of prompts took so long. A clock that
    /// stands still teaches nothing.
    pub fn stepped(&mut self, decodes: u32, prompt: u32, took: Duration) {
        let took = took.as_secs_f64();
        if took <= 0.0 {
            return;
        }
        if prompt == 0 {
            self.steps += 1;
            let class = &mut self.decodes[class_of(decodes)];
            class.tokens.learn(f64::from(decodes));
            class.seconds.learn(took);
            class.seen_at = self.steps;
        } else if prompt >= TELLING.min(self.first_prefill) {
            let rest = (took - self.step(decodes).unwrap_or(0.0)).max(took / 10.0);
            self.prefill.learn(rest / f64::from(prompt));
        }
    }

    /// A sequence was copied in so long.
    pub fn copied(&mut self, took: Duration) {
        if took > Duration::ZERO {
            self.copy.learn(took.as_secs_f64());
        }
    }

    /// Prompt tokens for a step with so many tokens of answers, `most` in all. `apart`: the answers have a pass of
    /// their own. In one pass with them a tile takes a third longer: it is computed for all that any of its tokens
    /// looks at.
    pub fn prefill_tokens(&self, decodes: u32, apart: bool, most: u32) -> u32 {
        let ceiling = if decodes == 0 { UNDISTURBED_PREFILL.max(self.first_prefill) } else { u32::MAX };
        let tokens = match self.prefill.0 {
            None if decodes == 0 => ceiling,
            None => self.first_prefill,
            Some(each) => {
                let decode = self.step(decodes).unwrap_or(0.0);
                // Where answers alone take long, prompts still get half of the time.
                let room =
                    if decodes == 0 { 2.0 * self.target } else { self.target.max(2.0 * decode) - decode };
                let tile = f64::from(TILE) * each;
                let room = if apart && tile <= STRETCH * self.target { room.max(tile) } else { room };
                in_tiles((room / each).min(f64::from(u32::MAX / 2)) as u32)
            }
        };
        tokens.clamp(LEAST_PREFILL.min(self.first_prefill), ceiling).min(most)
    }

    /// The same where no answer is under way.
    pub fn undisturbed_tokens(&self, most: u32) -> u32 {
        self.prefill_tokens(0, true, most).max(LEAST_UNDISTURBED).min(most)
    }

    /// Prompt tokens up to which prompts are read together in a step that holds no answer up. Each has its
    /// first token at the end of the step, so more would only make them wait for each other.
    pub fn joint_tokens(&self) -> u32 {
        match (self.line(), self.prefill.0) {
            (Some((pass, _)), Some(each)) => in_tiles((pass / (each * SHARED_PASS)) as u32).max(LEAST_JOINT),
            // The first burst tells, and takes no more memory than those after it.
            _ => LEAST_JOINT,
        }
    }

    /// Prompt tokens in a second, beside what else is computed. 0: nothing is known yet.
    pub fn prompt_rate(&self) -> u32 {
        self.prefill.0.map_or(0, |each| (1.0 / each) as u32)
    }

    /// Tokens of a prompt that take as long as a step should. 0: nothing is known yet.
    pub fn dear(&self) -> u32 {
        self.prefill.0.map_or(0, |each| (self.target / each) as u32)
    }

    /// Do answers wait for a burst of prompts, the last step with answers being so long ago? `prompts`: how
    /// many were under way at once since then that a step can read whole. Most of them have to wait for a
    /// first token: each beyond the first lets the answers wait for a step's time, up to a bound, which is lower
    /// where some of them are `streaming`, with more than their first token told.
    pub fn holds_decodes(&self, prompts: u32, streaming: bool, since: Duration) -> bool {
        let most = if streaming { STREAMS_HELD_STEPS } else { MOST_HELD_STEPS };
        let steps = prompts.saturating_sub(1).min(most);
        self.prefill.0.is_some() && since.as_secs_f64() < f64::from(steps) * self.target
    }

    /// How many times as long a step of `decodes` tokens takes with `more` of them. Kernels take rows in blocks, so that
    /// two tokens may take longer than twice one, and four hardly longer than two: what was measured counts first.
    pub fn stretch(&self, decodes: u32, more: u32) -> f32 {
        let decodes = decodes.max(1);
        let stretch = match (self.answers(decodes), self.answers(decodes + more)) {
            (Some(now), Some(then)) if now > 0.0 => then / now,
            _ => 1.0 + PRESUMED_SHARE * f64::from(more) / f64::from(decodes),
        };
        stretch.max(1.0) as f32
    }

    /// Least tokens for which copying them beats computing them.
    pub fn worth_copying(&self) -> u32 {
        const LEAST: f64 = 32.0;
        match (self.copy.0, self.prefill.0) {
            (Some(copy), Some(each)) => (2.0 * copy / each).clamp(LEAST, 4096.0) as u32,
            _ => LEAST as u32,
        }
    }

    /// A sequence of so many tokens was written down, as so many bytes, in so long.
    pub fn saved(&mut self, tokens: u32, bytes: usize, took: Duration) {
        self.saved_bytes.learn(bytes as f64 / f64::from(tokens.max(1)));
        if took > Duration::ZERO {
            self.save.learn(took.as_secs_f64() / f64::from(tokens.max(1)));
        }
    }

    /// Is a sequence of so many tokens sooner back from what was written down, within so many bytes, than
    /// computed again? Where nothing is known yet it is worth a try.
    pub fn saving_pays(&self, tokens: u32, room: usize) -> bool {
        let fits = self.saved_bytes.0.is_none_or(|each| each * f64::from(tokens) <= room as f64);
        let sooner = match (self.save.0, self.prefill.0) {
            // There and back.
            (Some(save), Some(compute)) => 2.0 * save < compute,
            _ => true,
        };
        room > 0 && fits && sooner
    }

    /// What to do with holes.
    pub fn holes(&self, holes: &Holes) -> Hole {
        let (Some((base, each)), Some(copy)) = (self.line(), self.copy.0) else { return Hole::Fill };
        let steps = f64::from(holes.steps.max(1));
        let leave = base * f64::from(holes.gaps) * steps;
        let pad = each * f64::from(holes.width) * steps;
        let fill = copy * f64::from(holes.moves);
        if fill <= leave.min(pad) {
            Hole::Fill
        } else if pad <= leave {
            Hole::Pad
        } else {
            Hole::Leave
        }
    }

    /// Seconds of a step with so many tokens of answers.
    fn step(&self, decodes: u32) -> Option<f64> {
        if decodes == 0 {
            return Some(0.0);
        }
        self.line().map(|(base, each)| base + each * f64::from(decodes))
    }

    /// The same, by steps of about this size where there were some lately.
    fn answers(&self, tokens: u32) -> Option<f64> {
        let (base, each) = self.line()?;
        let class = &self.decodes[class_of(tokens)];
        let lately = self.steps - class.seen_at < LASTING;
        match (class.tokens.0, class.seconds.0) {
            (Some(seen), Some(seconds)) if lately => Some(seconds + each * (f64::from(tokens) - seen)),
            _ => Some(base + each * f64::from(tokens)),
        }
    }

    /// Seconds of a step, and of each token in it: the least squares over the classes that were seen, and over
    /// what is presumed of the step. Between classes that lie side by side the presumption counts for most, since
    /// the machine is never equally fast for both; with few tokens and with many seen, it hardly counts.
    fn line(&self) -> Option<(f64, f64)> {
        let seen = self.decodes.iter().filter_map(|it| Some((it.tokens.0?, it.seconds.0?)));
        let (mut n, mut sum_x, mut sum_y, mut sum_xx, mut sum_xy) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (x, y) in seen {
            // Relative errors count, so that the long steps do not drown the short ones.
            let weight = 1.0 / (y * y);
            n += weight;
            sum_x += weight * x;
            sum_y += weight * y;
            sum_xx += weight * x * x;
            sum_xy += weight * x * y;
        }
        if n <= 0.0 {
            return None;
        }
        // A step without tokens, as the presumption has it.
        let base = (1.0 - PRESUMED_SHARE) * sum_y / n;
        let weight = PRESUMED_WEIGHT * (n / sum_y).powi(2);
        n += weight;
        sum_y += weight * base;
        let spread = n * sum_xx - sum_x * sum_x;
        let each = ((n * sum_xy - sum_x * sum_y) / spread).max(0.0);
        Some((((sum_y - each * sum_x) / n).max(0.0), each))
    }
}

fn class_of(tokens: u32) -> usize {
    CLASSES.iter().position(|&most| tokens <= most).unwrap_or(0)
}

/// Whole tiles, about so many tokens; fewer than half of one stay what they are.
fn in_tiles(tokens: u32) -> u32 {
    if tokens < TILE / 2 { tokens } else { (tokens + TILE / 2) / TILE * TILE }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn taught(target: Duration) -> Pace {
        let mut pace = Pace::new(target, 64);
        for _ in 0..60 {
            for n in [1, 8, 32] {
                pace.stepped(n, 0, ms(4 + 2 * u64::from(n)));
            }
            pace.stepped(8, 100, ms(20 + 100));
        }
        pace
    }

    #[test]
    fn a_clock_that_stands_still_changes_nothing() {
        let mut pace = Pace::new(ms(100), 64);
        pace.stepped(4, 64, Duration::ZERO);
        pace.stepped(4, 0, Duration::ZERO);
        assert_eq!((pace.prefill_tokens(4, true, 4096), pace.prefill_tokens(0, true, 4096)), (64, 512));
        assert_eq!(pace.holes(&Holes { gaps: 1, width: 1, moves: 1, steps: 1 }), Hole::Fill);
        assert!(pace.saving_pays(10, 1) && !pace.saving_pays(10, 0));
    }

    #[test]
    fn prompts_fill_the_step_up_to_its_target() {
        let pace = taught(ms(120));
        // 20 ms for 8 answers leave 100 ms at 1 ms per token: a tile and a half, and a little.
        assert_eq!(pace.prefill_tokens(8, true, 4096), 128, "{pace:?}");
        // 68 ms for 32 answers: half of the step goes to prompts.
        assert_eq!(pace.prefill_tokens(32, true, 4096), 64);
        assert_eq!(pace.prefill_tokens(8, true, 50), 50);
        assert_eq!(taught(ms(1)).prefill_tokens(1, true, 4096), LEAST_PREFILL);
        // Too slow for the target: 64 ms for a tile, up to four times of it.
        assert_eq!(taught(ms(17)).prefill_tokens(1, true, 4096), TILE);
        assert_eq!(taught(ms(17)).prefill_tokens(1, false, 4096), LEAST_PREFILL);
        assert_eq!(taught(ms(15)).prefill_tokens(1, true, 4096), LEAST_PREFILL);
        // Where no answer waits, twice the target, and two tiles at least.
        assert_eq!(taught(ms(120)).undisturbed_tokens(4096), 256);
        assert_eq!(taught(ms(1)).undisturbed_tokens(4096), 128);
        assert_eq!(taught(ms(1)).undisturbed_tokens(50), 50);
    }

    #[test]
    fn what_takes_a_step_is_dear() {
        assert_eq!(Pace::new(ms(120), 64).dear(), 0);
        assert!(taught(ms(120)).dear().abs_diff(120) <= 1, "1 ms each");
        assert_eq!(Pace::new(ms(120), 64).prompt_rate(), 0);
        assert!(taught(ms(120)).prompt_rate().abs_diff(1000) <= 10);
    }

    #[test]
    fn prompts_that_end_together_fill_a_pass() {
        assert_eq!(Pace::new(ms(120), 64).joint_tokens(), 256, "nothing is known yet");
        // A pass takes 4 ms and a prompt token 1 ms: a hundred of them would be enough.
        assert_eq!(taught(ms(120)).joint_tokens(), 256);
        let mut dear = Pace::new(ms(120), 64);
        for n in [1, 8, 32] {
            dear.stepped(n, 0, ms(40 + 2 * u64::from(n)));
        }
        dear.stepped(0, 100, ms(100));
        assert!((960..=1024).contains(&dear.joint_tokens()), "40 ms");
    }

    #[test]
    fn pieces_are_whole_tiles_unless_they_are_small() {
        assert_eq!([16, 31, 32, 95, 96, 512].map(in_tiles), [16, 31, 64, 64, 128, 512]);
    }

    #[test]
    fn a_burst_holds_answers_up_but_not_for_long() {
        let pace = taught(ms(100));
        for (prompts, streaming, most) in [
            (2, false, 100),
            (9, false, 800),
            (90, false, 3100),
            (2, true, 100),
            (9, true, 400),
            (90, true, 400),
        ] {
            let holds = |since| pace.holds_decodes(prompts, streaming, ms(since));
            assert!(holds(most - 1) && !holds(most + 1), "{prompts} {streaming}");
        }
        assert!(!pace.holds_decodes(0, false, ms(0)) && !pace.holds_decodes(1, false, ms(0)));
        assert!(!Pace::new(ms(100), 64).holds_decodes(30, false, ms(0)), "nothing is known yet");
    }

    #[test]
    fn a_further_token_is_dear_where_the_step_is_all_tokens() {
        let pace = taught(ms(120));
        assert!((pace.stretch(1, 3) - 2.0).abs() < 0.05, "{}", pace.stretch(1, 3));
        assert!((pace.stretch(32, 16) - 100.0 / 68.0).abs() < 0.05);
        assert!((Pace::new(ms(120), 64).stretch(1, 2) - 1.8).abs() < 1e-6, "presumed");
    }

    #[test]
    fn what_was_measured_counts_before_the_line() {
        let mut pace = taught(ms(120));
        pace.stepped(2, 0, ms(15));
        pace.stepped(4, 0, ms(12));
        assert!((pace.stretch(1, 1) - 2.5).abs() < 0.05 && (pace.stretch(1, 3) - 2.0).abs() < 0.05);
        for _ in 0..LASTING {
            pace.stepped(1, 0, ms(6));
        }
        assert!(pace.stretch(1, 1) < 2.0, "by the line again: {}", pace.stretch(1, 1));
    }

    #[test]
    fn what_was_measured_on_a_busy_machine_is_corrected_by_a_try() {
        let mut pace = Pace::new(ms(120), 64);
        pace.stepped(7, 0, ms(20));
        for _ in 0..1000 {
            pace.stepped(1, 0, ms(2));
        }
        assert!(pace.stretch(1, 1) > 1.9, "as if each token took a seventh of the long step");
        pace.stepped(2, 0, Duration::from_micros(2200));
        assert!(pace.stretch(1, 1) < 1.2, "{}", pace.stretch(1, 1));
    }

    #[test]
    fn steps_of_one_size_say_nothing_of_their_parts() {
        let mut pace = Pace::new(ms(120), 64);
        // 8 ms and 1 ms per token, on a machine that is a tenth slower at one time than at the other.
        pace.stepped(37, 0, ms(41));
        pace.stepped(64, 0, ms(79));
        let (base, _) = pace.line().unwrap();
        assert!(base > 0.003 && base < 0.03, "{base}");
        let mut one = Pace::new(ms(120), 64);
        one.stepped(64, 0, ms(70));
        let (base, each) = one.line().unwrap();
        assert!((base - 0.042).abs() < 1e-3 && (each * 64.0 - 0.028).abs() < 1e-3, "{base} {each}");
        // Where it can be seen, it is.
        let (base, each) = taught(ms(120)).line().unwrap();
        assert!((base - 0.004).abs() < 2e-4 && (each - 0.002).abs() < 1e-4, "{base} {each}");
    }

    #[test]
    fn holes_are_closed_the_cheapest_way() {
        let mut pace = taught(ms(120));
        pace.copied(ms(10));
        let holes = |width, steps| pace.holes(&Holes { gaps: 1, width, moves: 1, steps });
        // Per step: 4 ms for a further pass, 2 ms for a dummy token. Moving the one above takes 10 ms.
        assert_eq!([holes(1, 100), holes(1, 2), holes(3, 2)], [Hole::Fill, Hole::Pad, Hole::Leave]);
    }

    #[test]
    fn what_is_computed_faster_is_not_written_down() {
        let mut pace = taught(ms(120));
        pace.saved(100, 1000, ms(10));
        assert!(pace.saving_pays(50, 500) && !pace.saving_pays(51, 500));
        for _ in 0..50 {
            pace.saved(100, 1000, ms(60));
        }
        assert!(!pace.saving_pays(50, 500));
    }

    proptest! {
        #[test]
        fn a_prompt_always_goes_on(
            steps in prop::collection::vec((0u32..300, 0u32..3000, 0u64..100_000), 0..60),
            target in 0u64..10_000, first in 0u32..4096, decodes in 0u32..300, apart: bool, most in 1u32..5000,
        ) {
            let mut pace = Pace::new(Duration::from_millis(target), first);
            for (decodes, prompt, micros) in steps {
                pace.stepped(decodes, prompt, Duration::from_micros(micros));
            }
            let tokens = pace.prefill_tokens(decodes, apart, most);
            prop_assert!(tokens >= 1 && tokens <= most);
            prop_assert!(pace.stretch(decodes, most) >= 1.0);
            pace.holes(&Holes { gaps: 1, width: decodes, moves: 1, steps: most });
        }
    }
}
