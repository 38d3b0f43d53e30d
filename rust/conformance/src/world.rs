//! A model, what it says of every text that it is asked for alone, and whether a context says the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use llm_node_core::engine::{EngineFault, EngineFaultKind, Limits, SequenceId, Slice, StepEngine, Token};
use llm_node_host::{Context, Model};

use crate::bench::{Bench, context, plain_tokens};
use crate::check::{Finding, Stop, ensure};
use crate::script::{Bounds, Call, Feed, Held, Shown, documents, smallest};

/// Rows that differ by more, in units of their own spread, are of another text, whatever the kernels.
const FARTHEST: f32 = 0.08;
/// Differences that are nobody's fault.
const NEAREST: f32 = 1e-4;
/// The number of the texts among what is made up; scripts have those from 0 on.
const TEXTS: u64 = 1 << 31;
/// How long a script is cut down.
const PATIENCE: Duration = Duration::from_secs(4);

/// What is known of a model by asking it alone.
pub(crate) struct World {
    pub(crate) model: Arc<Model>,
    alone: Context,
    known: HashMap<Vec<Token>, Vec<f32>>,
    /// Texts to ask for.
    pub(crate) texts: Vec<Vec<Token>>,
    tolerance: f32,
}

/// Where a script shows something.
pub(crate) struct Shows {
    seen: String,
    mend: Option<String>,
    /// The sequence whose row is another one's.
    wrong: Option<SequenceId>,
}

impl From<EngineFault> for Shows {
    fn from(fault: EngineFault) -> Self {
        fault.to_string().into()
    }
}

impl From<String> for Shows {
    fn from(seen: String) -> Self {
        Self { seen, mend: None, wrong: None }
    }
}

impl Shows {
    fn mended(self, mend: impl Into<String>) -> Self {
        Self { mend: Some(mend.into()), ..self }
    }
}

impl World {
    pub(crate) fn new(bench: &Bench<'_>) -> Result<Self, Stop> {
        let model = bench.model_with("engine.batch/1")?;
        let vocabulary = plain_tokens(&model)?;
        let alone = context(&model, 1)?;
        let length = (alone.limits().context_length as usize).min(40);
        let texts = documents(&mut bench.rng(TEXTS), &vocabulary, length);
        let mut world = Self { model, alone, known: HashMap::new(), texts, tolerance: FARTHEST };
        world.tolerance = (8.0 * world.noise()?).clamp(NEAREST, FARTHEST);
        Ok(world)
    }

    /// How far rows of the same text lie apart when it is read whole and token by token: each is right.
    fn noise(&mut self) -> Result<f32, Stop> {
        let text = self.texts[0].clone();
        let whole = self.row_alone(&text)?;
        self.alone.truncate(0, 0)?;
        let mut last = Vec::new();
        for (position, token) in text.iter().enumerate() {
            last = one_row(&mut self.alone, position as u32, &[*token])?;
        }
        Ok(apart(&whole, &last))
    }

    /// What the model says after `text`, alone in an empty cache.
    pub(crate) fn row_alone(&mut self, text: &[Token]) -> Result<Vec<f32>, EngineFault> {
        if let Some(row) = self.known.get(text) {
            return Ok(row.clone());
        }
        self.alone.truncate(0, 0)?;
        let step = self.alone.limits().max_batch_tokens as usize;
        let (mut position, mut row) = (0, Vec::new());
        for piece in text.chunks(step) {
            row = one_row(&mut self.alone, position, piece)?;
            position += piece.len() as u32;
        }
        self.known.insert(text.to_vec(), row.clone());
        Ok(row)
    }

    pub(crate) fn bounds(limits: &Limits) -> Bounds {
        Bounds {
            sequences: limits.max_sequences,
            length: limits.context_length.min(40),
            step_tokens: limits.max_batch_tokens,
            step_rows: limits.max_rows,
            rollback: limits.max_rollback,
            moves: limits.saves && limits.max_rollback == u32::MAX,
        }
    }

    /// Plays a script on a context of its own, for so many sequences. What it shows is cut down to the
    /// smallest script that shows anything.
    pub(crate) fn play(&mut self, bench: &Bench<'_>, sequences: u32, script: Vec<Call>) -> Result<(), Stop> {
        let model = Arc::clone(&self.model);
        let once = |world: &mut Self, script: &[Call]| -> Result<(Vec<String>, Option<Shows>), Stop> {
            bench.trail.begin();
            bench.trail.call("batch.create");
            let mut context = context(&model, sequences)?;
            let mut lines = Vec::new();
            let shows = world.go_through(bench, &mut context, script, &mut lines);
            bench.trail.call("batch.destroy");
            Ok((lines, shows.err()))
        };
        let (_, None) = once(self, &script)? else {
            let fails = |script: &[Call]| once(self, script).is_ok_and(|(_, shows)| shows.is_some());
            let small = smallest(script, PATIENCE, fails);
            let (script, shows) = once(self, &small)?;
            let Shows { seen, mend, wrong } = shows.unwrap_or_else(|| {
                Shows::from("What the same calls bring differs from one time to the next.".to_owned()).mended(
                    "Look for what the engine reads and has not written: memory that is new or was freed.",
                )
            });
            let mend = wrong.and_then(|sequence| spoilt(&small, sequence)).or(mend);
            return Err(Stop::Finding(Finding { seen, mend, script }));
        };
        Ok(())
    }

    fn go_through(
        &mut self,
        bench: &Bench<'_>,
        context: &mut Context,
        script: &[Call],
        lines: &mut Vec<String>,
    ) -> Result<(), Shows> {
        let limits = context.limits().clone();
        let bounds = Self::bounds(&limits);
        let mut held: Held = vec![Vec::new(); limits.max_sequences as usize];
        for call in script {
            let Some(call) = call.fitting(&held, &bounds) else { continue };
            let line = Shown(&call, &held).to_string();
            bench.trail.call(&line);
            lines.push(line);
            let done = match &call {
                Call::Step(feeds) => self.step(context, feeds, &held)?,
                Call::Copy { from, to, end } => {
                    // "if only the whole of `from` can be copied"
                    let may_be = *end as usize != held[*from as usize].len();
                    declined(context.copy_prefix(*from, *to, *end), may_be).map_err(|fault| {
                        // The host has looked where the copy ends.
                        let is_of_range = fault.kind == EngineFaultKind::Misbehaved;
                        let shows = Shows::from(fault);
                        if is_of_range { shows.mended(ends_after(&call)) } else { shows }
                    })?
                }
                Call::Remove { sequence, begin } => {
                    context.truncate(*sequence, *begin)?;
                    true
                }
                Call::Move { from, to } => {
                    let state = context.save(*from)?;
                    declined_when_full(context.restore(*to, &state))?
                }
            };
            if done {
                call.apply(&mut held);
            }
            keeps_account(context, &held, &limits, &call)?;
        }
        Ok(())
    }

    /// Whether it was done: where the cache is full it need not be.
    fn step(&mut self, context: &mut Context, feeds: &[Feed], held: &Held) -> Result<bool, Shows> {
        let slices: Vec<Slice<'_>> = feeds
            .iter()
            .map(|feed| Slice {
                sequence: feed.sequence,
                position: held[feed.sequence as usize].len() as u32,
                tokens: &feed.tokens,
                rows: feed.rows,
                candidates: 0,
            })
            .collect();
        let free = context.cache_free();
        let ticket = match context.step(&slices) {
            Err(fault) if fault.kind == EngineFaultKind::CacheFull => {
                let page = u64::from(context.limits().cache_page);
                let needed: u64 =
                    feeds.iter().map(|feed| (feed.tokens.len() as u64).div_ceil(page) * page).sum();
                // A page that is shared may have to be copied before it is written to.
                let spare = if page > 1 { page * feeds.len() as u64 } else { 0 };
                if needed + spare <= free {
                    return Err(format!(
                        "A step of {needed} tokens failed with ERR_CACHE_FULL, while cache_free said {free}."
                    )
                    .into());
                }
                return Ok(false);
            }
            other => other?,
        };
        let count: usize = feeds.iter().map(|feed| feed.rows as usize).sum();
        if count == 0 {
            return Ok(true); // "A step without rows need not be collected."
        }
        let rows: Vec<Vec<f32>> =
            context.collect(ticket, count)?.iter().map(whole).collect::<Result<_, String>>()?;
        let mut index = 0;
        for feed in feeds {
            let before = &held[feed.sequence as usize];
            for row in 0..feed.rows as usize {
                let read = feed.tokens.len() - feed.rows as usize + row + 1;
                let text = [before.as_slice(), &feed.tokens[..read]].concat();
                let right = self.row_alone(&text)?;
                let distance = apart(&right, &rows[index]);
                if distance.is_nan() || distance > self.tolerance {
                    let place = format!(
                        "row {index}, of sequence {} after position {}",
                        feed.sequence,
                        text.len() - 1
                    );
                    return Err(self.differs(feed.sequence, &place, &rows[index], distance, feeds, held));
                }
                index += 1;
            }
        }
        Ok(true)
    }

    /// Says of which text the row is, if it is one that can be guessed.
    fn differs(
        &mut self,
        sequence: SequenceId,
        place: &str,
        row: &[f32],
        distance: f32,
        feeds: &[Feed],
        held: &Held,
    ) -> Shows {
        let mut texts: Vec<(String, Vec<Token>)> = Vec::new();
        for (sequence, before) in held.iter().enumerate() {
            let fed = feeds.iter().find(|feed| feed.sequence as usize == sequence);
            let whole = [before.as_slice(), fed.map_or(&[][..], |feed| &feed.tokens)].concat();
            for end in 1..=whole.len() {
                let name = format!("sequence {sequence} after position {}", end - 1);
                texts.push((name, whole[..end].to_vec()));
            }
        }
        for feed in feeds {
            texts.push((
                format!("the tokens of the slice of sequence {} alone", feed.sequence),
                feed.tokens.clone(),
            ));
        }
        let found = texts.into_iter().find_map(|(name, text)| {
            let other = self.row_alone(&text).ok()?;
            (apart(&other, row) <= self.tolerance).then_some(name)
        });
        let of = match &found {
            Some(name) => format!("it is the row of {name}"),
            None => format!(
                "it is of no text here (the two lie {distance:.2} times their spread apart), as where memory was \
                 freed, moved or written to before it was read"
            ),
        };
        Shows {
            seen: format!("In the last call, {place}, is not what the same tokens alone give: {of}."),
            mend: found.map(|name| format!("Look at how the row comes to be that of {name}.")),
            wrong: Some(sequence),
        }
    }
}

/// What may have spoilt a sequence that is another than it must be at the end of a script, of which nothing can be left
/// out: the last call but steps of its own that it depends on. `None`: there is none.
fn spoilt(script: &[Call], sequence: SequenceId) -> Option<String> {
    let touches = |call: &Call, other: SequenceId| match call {
        Call::Step(feeds) => feeds.iter().any(|feed| feed.sequence == other),
        Call::Copy { to, .. } | Call::Move { to, .. } => *to == other,
        Call::Remove { sequence, .. } => *sequence == other,
    };
    let (at, call) = script.iter().enumerate().rev().find(|(_, call)| match call {
        Call::Step(_) => false,
        Call::Copy { from, to, .. } => [*from, *to].contains(&sequence),
        Call::Move { to, .. } => *to == sequence,
        Call::Remove { sequence: of, begin } => *of == sequence && *begin > 0,
    })?;
    let since = |other| script[at + 1..].iter().any(|call| touches(call, other));
    let shared = "Count who holds each cell, and copy before you write to one, or free it, that several hold";
    Some(match *call {
        Call::Copy { from, to, .. } if sequence == to && !since(from) => format!(
            "Let seq_copy give sequence {to} all that sequence {from} holds of positions 0 to end - 1: the last one too, \
             and in every layer."
        ),
        Call::Copy { from, to, .. } if sequence == from && !since(to) => {
            format!("Let seq_copy leave sequence {from}, which is copied, as it is.")
        }
        Call::Copy { from, to, .. } => {
            let other = if sequence == to { from } else { to };
            format!("{shared}: what was done to sequence {other} after the copy changed sequence {sequence}.")
        }
        Call::Move { from, to } => format!(
            "Let seq_save write all that sequence {from} holds, and seq_restore give all of it to sequence {to}."
        ),
        Call::Remove { begin, .. } => format!(
            "Let seq_remove keep what stands before position {begin}, and let what comes next be written from there on."
        ),
        Call::Step(_) => return None,
    })
}

/// Where sequences must end after a call.
fn ends_after(call: &Call) -> &'static str {
    match call {
        Call::Step(_) => {
            "Let a step end each sequence behind the last token of its slice, and leave the others."
        }
        Call::Copy { .. } => "Let seq_copy end `to` at `end`, wherever `from` ends, and leave the others.",
        Call::Remove { .. } => "Let seq_remove end the sequence at `begin`, and leave the others.",
        Call::Move { .. } => "Let seq_restore end the sequence where the one ended that was saved.",
    }
}

/// What must become of the room in the cache.
fn room_after(call: &Call) -> &'static str {
    match call {
        Call::Step(_) => {
            "Take what a step puts into the cache from cache_free: tokens, or the pages that they begin."
        }
        Call::Copy { .. } => {
            "Take what a copy puts into the cache from cache_free, where it does not share its cells."
        }
        Call::Remove { .. } => {
            "Give what seq_remove takes out of the cache back to cache_free, once nobody holds it."
        }
        Call::Move { .. } => "Take what seq_restore puts into the cache from cache_free.",
    }
}

fn one_row(context: &mut Context, position: u32, tokens: &[Token]) -> Result<Vec<f32>, EngineFault> {
    let ticket = context.step(&[Slice { sequence: 0, position, tokens, rows: 1, candidates: 0 }])?;
    let rows = context.collect(ticket, 1)?;
    rows.first().map(whole).transpose().map(Option::unwrap_or_default).map_err(|message| EngineFault {
        kind: EngineFaultKind::Misbehaved,
        message,
        call: "batch.collect",
    })
}

/// The logits of a row, which must be numbers.
fn whole(row: &llm_node_core::engine::Row<'_>) -> Result<Vec<f32>, String> {
    let llm_node_core::engine::Row::Whole(logits) = row else {
        return Err("A row has candidates where logits were wanted.".to_owned());
    };
    // Minus infinity forbids a token.
    match logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        Some(index) => Err(format!("Logit {index} of a row is {}.", logits[index])),
        None => Ok(logits.to_vec()),
    }
}

/// How far two rows lie apart, in units of the spread of the first.
pub(crate) fn apart(one: &[f32], other: &[f32]) -> f32 {
    let pairs = || one.iter().zip(other).filter(|(a, b)| a.is_finite() || b.is_finite());
    let count = pairs().count().max(1) as f32;
    let finite = |number: f32| number.clamp(-1e9, 1e9);
    let mean = pairs().map(|(a, _)| finite(*a)).sum::<f32>() / count;
    let spread = (pairs().map(|(a, _)| (finite(*a) - mean).powi(2)).sum::<f32>() / count).sqrt();
    let apart = (pairs().map(|(a, b)| (finite(*a) - finite(*b)).powi(2)).sum::<f32>() / count).sqrt();
    if one.len() == other.len() { apart / spread.max(1e-6) } else { f32::NAN }
}

fn declined(result: Result<(), EngineFault>, may_be: bool) -> Result<bool, EngineFault> {
    match result {
        Err(fault) if may_be && fault.kind == EngineFaultKind::Unsupported => Ok(false),
        other => declined_when_full(other),
    }
}

fn declined_when_full(result: Result<(), EngineFault>) -> Result<bool, EngineFault> {
    match result {
        Err(fault) if fault.kind == EngineFaultKind::CacheFull => Ok(false),
        other => other.map(|()| true),
    }
}

/// Do all sequences end where they must, and is there as much room as there can be?
fn keeps_account(context: &Context, held: &Held, limits: &Limits, call: &Call) -> Result<(), Shows> {
    for (sequence, tokens) in held.iter().enumerate() {
        let (begin, end) = context.range(sequence as u32)?;
        if end as usize != tokens.len() {
            let seen = format!(
                "After the last call sequence {sequence} ends at position {end}, and must end at {}.",
                tokens.len()
            );
            return Err(Shows::from(seen).mended(ends_after(call)));
        }
        if end == 0 && begin != 0 {
            return Err(
                format!("After the last call the empty sequence {sequence} begins at {begin}.").into()
            );
        }
    }
    let page = u64::from(limits.cache_page.max(1));
    let (free, all) = (context.cache_free(), limits.cache_tokens);
    let longest = held.iter().map(|tokens| tokens.len() as u64).max().unwrap_or_default();
    let paged: u64 = held.iter().map(|tokens| (tokens.len() as u64).div_ceil(page) * page).sum();
    if free < all.saturating_sub(paged) {
        let seen = format!(
            "After the last call the sequences hold {paged} tokens of a cache of {all}, but cache_free says {free}."
        );
        return Err(Shows::from(seen).mended(room_after(call)));
    }
    // A window forgets what slid out of it, so that less may be held.
    let slides =
        (0..held.len()).any(|sequence| context.range(sequence as u32).is_ok_and(|(begin, _)| begin > 0));
    let least =
        if limits.shares_prefixes { longest } else { held.iter().map(|tokens| tokens.len() as u64).sum() };
    if !slides && free > all - least.min(all) {
        let seen = format!(
            "After the last call the cache holds at least {least} tokens of {all}, but cache_free says {free}."
        );
        return Err(Shows::from(seen).mended(room_after(call)));
    }
    Ok(())
}

/// Fails unless a step that fits is taken.
pub(crate) fn fed(context: &mut Context, sequence: u32, tokens: &[Token]) -> Result<(), Stop> {
    let position = context.range(sequence)?.1;
    let ticket = context.step(&[Slice { sequence, position, tokens, rows: 1, candidates: 0 }])?;
    let rows = context.collect(ticket, 1)?;
    ensure!(rows.len() == 1, "A step of one row brought {}.", rows.len());
    Ok(())
}
