//! Scripts of calls on a context: what they are, how they read, how they are made up, and how they are cut
//! down to what still shows a difference.

use std::fmt;
use std::time::{Duration, Instant};

use fastrand::Rng;
use llm_node_core::engine::{SequenceId, Token};

/// Tokens that a sequence is fed in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feed {
    pub(crate) sequence: SequenceId,
    pub(crate) tokens: Vec<Token>,
    /// Rows wanted, for the last so many tokens.
    pub(crate) rows: u32,
}

/// One call. Where a slice begins follows from what came before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Step(Vec<Feed>),
    Copy {
        from: SequenceId,
        to: SequenceId,
        end: u32,
    },
    Remove {
        sequence: SequenceId,
        begin: u32,
    },
    /// `seq_save`, and `seq_restore` into another sequence.
    Move {
        from: SequenceId,
        to: SequenceId,
    },
}

/// What the cache must hold: the tokens of each sequence.
pub(crate) type Held = Vec<Vec<Token>>;

/// What a script must keep within.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) sequences: u32,
    pub(crate) length: u32,
    pub(crate) step_tokens: u32,
    pub(crate) step_rows: u32,
    pub(crate) rollback: u32,
    pub(crate) moves: bool,
}

impl Call {
    /// The call as far as it makes sense now: without slices that do not fit. `None`: it makes none.
    pub(crate) fn fitting(&self, held: &Held, bounds: &Bounds) -> Option<Self> {
        let of = |sequence: SequenceId| held.get(sequence as usize);
        match self {
            Self::Step(feeds) => {
                let (mut tokens, mut rows, mut seen) = (0, 0, Vec::new());
                let mut fitting = Vec::new();
                for feed in feeds {
                    let Some(before) = of(feed.sequence) else { continue };
                    let count = feed.tokens.len() as u32;
                    let wanted = feed.rows.min(count).min(bounds.step_rows - rows);
                    if count == 0
                        || seen.contains(&feed.sequence)
                        || before.len() as u32 + count > bounds.length
                        || tokens + count > bounds.step_tokens
                    {
                        continue;
                    }
                    seen.push(feed.sequence);
                    tokens += count;
                    rows += wanted;
                    fitting.push(Feed { rows: wanted, ..feed.clone() });
                }
                (!fitting.is_empty()).then_some(Self::Step(fitting))
            }
            Self::Copy { from, to, end } => {
                let (source, target) = (of(*from)?, of(*to)?);
                let fits = from != to && target.is_empty() && *end > 0 && *end as usize <= source.len();
                fits.then(|| self.clone())
            }
            Self::Remove { sequence, begin } => {
                let length = of(*sequence)?.len() as u32;
                let back = length.checked_sub(*begin)?;
                (back > 0 && (*begin == 0 || back <= bounds.rollback)).then(|| self.clone())
            }
            Self::Move { from, to } => {
                let fits = bounds.moves && from != to && !of(*from)?.is_empty() && of(*to)?.is_empty();
                fits.then(|| self.clone())
            }
        }
    }

    /// What it makes of what is held.
    pub(crate) fn apply(&self, held: &mut Held) {
        match self {
            Self::Step(feeds) => {
                for feed in feeds {
                    held[feed.sequence as usize].extend(&feed.tokens);
                }
            }
            Self::Copy { from, to, end } => {
                held[*to as usize] = held[*from as usize][..*end as usize].to_vec();
            }
            Self::Remove { sequence, begin } => held[*sequence as usize].truncate(*begin as usize),
            Self::Move { from, to } => held[*to as usize] = held[*from as usize].clone(),
        }
    }
}

/// A call with where its slices begin, as people read it.
pub(crate) struct Shown<'s>(pub(crate) &'s Call, pub(crate) &'s Held);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Call::Step(feeds) => {
                write!(f, "batch.step:")?;
                for (index, feed) in feeds.iter().enumerate() {
                    let comma = if index > 0 { ";" } else { "" };
                    let at = self.1.get(feed.sequence as usize).map_or(0, Vec::len);
                    let rows = if feed.rows == 1 { "row" } else { "rows" };
                    write!(
                        f,
                        "{comma} sequence {} from {at}, tokens {:?}, {} {rows}",
                        feed.sequence, feed.tokens, feed.rows
                    )?;
                }
                Ok(())
            }
            Call::Copy { from, to, end } => write!(f, "batch.seq_copy: from {from} to {to}, end {end}"),
            Call::Remove { sequence, begin } => {
                write!(f, "batch.seq_remove: sequence {sequence}, begin {begin}")
            }
            Call::Move { from, to } => {
                write!(f, "batch.seq_save: sequence {from}, and batch.seq_restore of it: sequence {to}")
            }
        }
    }
}

/// Texts that begin alike and go on differently, so that sequences share beginnings as they do in a node.
pub(crate) fn documents(rng: &mut Rng, vocabulary: &[Token], length: usize) -> Vec<Vec<Token>> {
    let mut documents: Vec<Vec<Token>> = Vec::new();
    for index in 0..5_usize {
        let mut text = match documents.first() {
            Some(first) if index % 2 == 1 => first[..length / (index + 1)].to_vec(),
            _ => Vec::new(),
        };
        while text.len() < length {
            text.push(vocabulary[rng.usize(..vocabulary.len())]);
        }
        documents.push(text);
    }
    documents
}

/// A script of `calls` calls, made up.
pub(crate) fn made_up(rng: &mut Rng, documents: &[Vec<Token>], bounds: &Bounds, calls: usize) -> Vec<Call> {
    let n = bounds.sequences as usize;
    let mut held: Held = vec![Vec::new(); n];
    let mut script = Vec::new();
    while script.len() < calls {
        let call = match rng.u32(..10) {
            0..=5 => {
                let mut order: Vec<usize> = (0..n).collect();
                rng.shuffle(&mut order);
                let feeds = order.into_iter().take(1 + rng.usize(..n.min(3))).filter_map(|sequence| {
                    let before = &held[sequence];
                    let going_on: Vec<&Vec<Token>> = documents
                        .iter()
                        .filter(|text| text.starts_with(before) && text.len() > before.len())
                        .collect();
                    let text = going_on.get(rng.usize(..going_on.len().max(1)))?;
                    let most = if rng.bool() { 1 } else { 9 };
                    let count = (1 + rng.usize(..most)).min(text.len() - before.len());
                    let rows = if rng.bool() { 1 } else { rng.u32(..4) };
                    let tokens = text[before.len()..before.len() + count].to_vec();
                    Some(Feed { sequence: sequence as u32, tokens, rows })
                });
                Call::Step(feeds.collect())
            }
            6 | 7 => {
                let sequence = rng.usize(..n);
                let length = held[sequence].len() as u32;
                let back = 1 + rng.u32(..8);
                let begin = if rng.u32(..3) == 0 { 0 } else { length.saturating_sub(back) };
                Call::Remove { sequence: sequence as u32, begin }
            }
            kind => {
                // Into an empty sequence, which there soon is.
                let from = rng.usize(..n);
                let Some(to) = held.iter().position(Vec::is_empty) else {
                    let call = Call::Remove { sequence: rng.u32(..bounds.sequences), begin: 0 };
                    call.apply(&mut held);
                    script.push(call);
                    continue;
                };
                let length = held[from].len() as u32;
                let end = if rng.bool() { length } else { rng.u32(..=length) };
                let (from, to) = (from as u32, to as u32);
                if kind == 8 || !bounds.moves {
                    Call::Copy { from, to, end }
                } else {
                    Call::Move { from, to }
                }
            }
        };
        if let Some(call) = call.fitting(&held, bounds) {
            call.apply(&mut held);
            script.push(call);
        }
    }
    script
}

/// The shortest script that can be found within the time, and that still `fails`.
pub(crate) fn smallest(
    script: Vec<Call>,
    within: Duration,
    mut fails: impl FnMut(&[Call]) -> bool,
) -> Vec<Call> {
    let end = Instant::now() + within;
    let mut best = script;
    loop {
        let smaller = simpler(&best).into_iter().take_while(|_| Instant::now() < end).find(|one| fails(one));
        match smaller {
            Some(smaller) => best = smaller,
            None => return best,
        }
    }
}

/// Scripts that are a little less, the least first.
fn simpler(script: &[Call]) -> Vec<Vec<Call>> {
    let mut scripts = Vec::new();
    let with = |index: usize, call: Option<Call>| {
        let mut other = script.to_vec();
        match call {
            Some(call) => other[index] = call,
            None => drop(other.remove(index)),
        }
        other
    };
    let mut half = script.len() / 2;
    while half > 1 {
        let mut at = 0;
        while at < script.len() {
            scripts.push([&script[..at], &script[(at + half).min(script.len())..]].concat());
            at += half;
        }
        half /= 2;
    }
    for index in (0..script.len()).rev() {
        scripts.push(with(index, None));
    }
    for (index, call) in script.iter().enumerate() {
        match call {
            Call::Step(feeds) => {
                for slice in 0..feeds.len() {
                    let changed = |change: &dyn Fn(&mut Vec<Feed>)| {
                        let mut feeds = feeds.clone();
                        change(&mut feeds);
                        with(index, Some(Call::Step(feeds)))
                    };
                    if feeds.len() > 1 {
                        scripts.push(changed(&|feeds| drop(feeds.remove(slice))));
                    }
                    let count = feeds[slice].tokens.len();
                    if count > 1 {
                        scripts.push(changed(&|feeds| feeds[slice].tokens.truncate(count / 2)));
                        scripts.push(changed(&|feeds| feeds[slice].tokens.truncate(count - 1)));
                    }
                    if feeds[slice].rows > 0 {
                        scripts.push(changed(&|feeds| feeds[slice].rows -= 1));
                    }
                }
            }
            Call::Copy { from, to, end } if *end > 1 => {
                scripts.push(with(index, Some(Call::Copy { from: *from, to: *to, end: end - 1 })));
            }
            _ => {}
        }
    }
    scripts
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds =
        Bounds { sequences: 4, length: 40, step_tokens: 32, step_rows: 8, rollback: u32::MAX, moves: true };

    #[test]
    fn made_up_scripts_keep_within_bounds() {
        for seed in 0..50 {
            let mut rng = Rng::with_seed(seed);
            let texts = documents(&mut rng, &[1, 2, 3, 4, 5, 6], 40);
            let script = made_up(&mut rng, &texts, &BOUNDS, 30);
            let mut held: Held = vec![Vec::new(); 4];
            for call in &script {
                assert_eq!(call.fitting(&held, &BOUNDS).as_ref(), Some(call));
                call.apply(&mut held);
                for sequence in &held {
                    assert!(texts.iter().any(|text| text.starts_with(sequence)), "{sequence:?}");
                }
            }
        }
    }

    #[test]
    fn a_script_is_cut_down_to_what_shows_it() {
        let mut rng = Rng::with_seed(7);
        let texts = documents(&mut rng, &[1, 2, 3], 40);
        let script = made_up(&mut rng, &texts, &BOUNDS, 40);
        // Any copy of more than one token "fails".
        let fails = |script: &[Call]| {
            let mut held: Held = vec![Vec::new(); 4];
            script
                .iter()
                .filter_map(|call| {
                    let call = call.fitting(&held, &BOUNDS)?;
                    call.apply(&mut held);
                    Some(call)
                })
                .any(|call| matches!(call, Call::Copy { end, .. } if end > 1))
        };
        assert!(fails(&script), "the seed has such a copy");
        let small = smallest(script, Duration::from_secs(5), fails);
        assert_eq!(small.len(), 2, "{small:?}");
        assert!(matches!(&small[0], Call::Step(feeds) if feeds.len() == 1 && feeds[0].rows == 0));
    }
}
