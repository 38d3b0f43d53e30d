//! The sequences of one context: which ids are running, what each holds, and what is kept of answers
//! that ended, so that a prompt which begins alike need not be computed again.
//!
//! Every change to the engine's cache goes through here, so that the [`PrefixTree`] always says what the
//! engine holds. Nobody else touches the cache.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    engine::{EngineFault, EngineFaultKind, Limits, Row, SequenceId, Slice, StepEngine, Ticket, Token},
    prefix::{LEAST_KEPT, Match, PrefixTree, habit::Habit},
};

/// Tells how much time has passed since some moment. One that stands still is a clock too.
pub type Clock = fn() -> Duration;

/// A place for a request, and what it need not compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub sequence: SequenceId,
    /// Tokens that the cache holds of it already.
    pub held: u32,
    /// What copying took, if anything was copied.
    pub copied: Option<Duration>,
}

/// What ended and is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kept {
    /// When it was of use last.
    used: u64,
    /// How many of its tokens others begin with, too.
    shared: u32,
}

/// An engine's context and its sequences.
#[derive(Debug)]
pub struct Sequences<E> {
    engine: E,
    limits: Limits,
    clock: Clock,
    keeps: bool,
    /// Each sequence has room for the longest: who gets an id gets the room.
    walled: bool,
    tree: PrefixTree,
    /// Where what is kept costs every step, as it does in one pool.
    habit: Option<Habit>,
    running: BTreeSet<SequenceId>,
    /// Ids of answers that ended.
    kept: BTreeMap<SequenceId, Kept>,
    uses: u64,
}

impl<E: StepEngine> Sequences<E> {
    /// Over a context that holds nothing. `keeps`: what ended stays until its place is needed.
    pub fn new(engine: E, keeps: bool, clock: Clock) -> Self {
        let limits = engine.limits().clone();
        Self {
            engine,
            clock,
            keeps,
            walled: is_walled(&limits),
            habit: (keeps && limits.shares_prefixes).then(Habit::default),
            limits,
            tree: PrefixTree::new(),
            running: BTreeSet::new(),
            kept: BTreeMap::new(),
            uses: 0,
        }
    }

    /// What the context can take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The engine, to look at.
    pub fn engine(&self) -> &E {
        &self.engine
    }

    /// Gives the engine back.
    pub fn into_engine(self) -> E {
        self.engine
    }

    /// Has the context made anew, which may have other limits then. Nothing is held any more.
    pub fn remake<T>(&mut self, remake: impl FnOnce(&mut E) -> T) -> T {
        let made = remake(&mut self.engine);
        let limits = self.engine.limits().clone();
        self.walled = is_walled(&limits);
        self.habit = (self.keeps && limits.shares_prefixes).then(Habit::default);
        self.limits = limits;
        self.tree = PrefixTree::new();
        self.running.clear();
        self.kept.clear();
        made
    }

    /// Tokens that the cache can still take.
    pub fn room(&self) -> u64 {
        if self.walled { u64::MAX } else { self.engine.cache_free() }
    }

    /// Sequences that are kept.
    pub fn n_kept(&self) -> usize {
        self.kept.len()
    }

    /// Tokens that kept sequences hold; what several share counts for each.
    pub fn kept_tokens(&self) -> u64 {
        self.kept.keys().map(|sequence| self.tree.held(*sequence) as u64).sum()
    }

    /// How much of a prompt the cache holds already. The last token is always left to be computed: its
    /// row of logits is not kept.
    pub fn known(&self, tokens: &[Token]) -> u32 {
        self.longest(tokens).length as u32
    }

    /// Takes an id for `tokens`, and makes what the cache knows of them its beginning. `worth`: least
    /// tokens that are worth a copy where it is not free. `None`: every id is running.
    pub fn take(&mut self, tokens: &[Token], worth: u32) -> Result<Option<Place>, EngineFault> {
        let found = self.longest(tokens);
        let Some(sequence) = self.next_id(&found.holders) else { return Ok(None) };
        if let Some(habit) = &mut self.habit {
            habit.saw(tokens, found.length);
        }
        for holder in &found.holders {
            self.touch(*holder);
        }
        let beginning = &tokens[..found.length];
        let worth = if self.limits.shares_prefixes { 0 } else { worth as usize };
        let began = (self.clock)();
        let (held, copied) = if self.kept.contains_key(&sequence) && found.holders.contains(&sequence) {
            self.cut_back(sequence, beginning, worth)?
        } else {
            let copied = self.clear(sequence, worth)?;
            let held = self.copy_from_any(sequence, beginning, worth)?;
            (held, copied || held > 0)
        };
        self.start(sequence);
        let copied = copied.then(|| (self.clock)().saturating_sub(began));
        Ok(Some(Place { sequence, held: held as u32, copied }))
    }

    /// Submits one forward pass. On failure, but for `CacheFull`, what the engine holds of these sequences
    /// is not known: they are to be removed.
    pub fn step(&mut self, slices: &[Slice<'_>]) -> Result<Ticket, EngineFault> {
        let ticket = self.engine.step(slices)?;
        for slice in slices {
            self.tree.extend(slice.sequence, slice.tokens);
        }
        Ok(ticket)
    }

    /// See [`StepEngine::collect`].
    pub fn collect(&mut self, ticket: Ticket, rows: usize) -> Result<Vec<Row<'_>>, EngineFault> {
        self.engine.collect(ticket, rows)
    }

    /// See [`StepEngine::fetch`].
    pub fn fetch(&mut self, ticket: Ticket, row: usize) -> Result<Row<'_>, EngineFault> {
        self.engine.fetch(ticket, row)
    }

    /// Takes back what a sequence holds beyond `len` tokens.
    pub fn cut(&mut self, sequence: SequenceId, len: u32) -> Result<(), EngineFault> {
        if self.tree.held(sequence) > len as usize {
            self.engine.truncate(sequence, len)?;
            self.tree.truncate(sequence, len as usize);
        }
        Ok(())
    }

    /// A running sequence has come to its end: what it holds of `tokens` is kept, if it may be of use. `dear`:
    /// from so many tokens on, computing them again takes long.
    pub fn end(&mut self, sequence: SequenceId, tokens: &[Token], dear: u32) -> Result<(), EngineFault> {
        let held = self.tree.held(sequence);
        if !self.keeps || held < LEAST_KEPT {
            return self.remove(sequence);
        }
        let tokens = &tokens[..held.min(tokens.len())];
        let shared = self.habit.as_mut().map_or(0, |habit| habit.ended(tokens)) as u32;
        self.running.remove(&sequence);
        self.kept.insert(sequence, Kept { used: 0, shared });
        self.touch(sequence);
        if self.habit.as_ref().is_some_and(|habit| !habit.likely()) {
            // The newest stays whole where it is dear, since that is the one which people go on with.
            let is_spared = |id: SequenceId| id == sequence && held >= dear as usize;
            let all: Vec<_> = self.kept.iter().map(|(&id, it)| (id, it.shared)).collect();
            for (id, shared) in all.into_iter().filter(|&(id, _)| !is_spared(id)) {
                self.cut_kept(id, shared)?;
            }
        }
        Ok(())
    }

    /// Frees a sequence, in the engine and here. On failure nothing is changed here.
    pub fn remove(&mut self, sequence: SequenceId) -> Result<(), EngineFault> {
        if let Err(fault) = self.engine.truncate(sequence, 0) {
            return Err(if fault.kind == EngineFaultKind::DeviceLost {
                fault
            } else {
                EngineFault {
                    kind: EngineFaultKind::Misbehaved,
                    message: format!("removing a whole sequence failed: {}", fault.message),
                    call: fault.call,
                }
            });
        }
        self.tree.truncate(sequence, 0);
        self.running.remove(&sequence);
        self.kept.remove(&sequence);
        Ok(())
    }

    /// Forgets the kept sequence that was of no use for longest. `false`: none is kept.
    pub fn evict(&mut self) -> Result<bool, EngineFault> {
        let Some(oldest) = self.oldest_kept(SequenceId::MAX) else { return Ok(false) };
        self.remove(oldest)?;
        Ok(true)
    }

    /// Writes a running sequence down and frees it.
    pub fn save(&mut self, sequence: SequenceId) -> Result<Vec<u8>, EngineFault> {
        let state = self.engine.save(sequence)?;
        self.remove(sequence)?;
        Ok(state)
    }

    /// Takes an id for what was saved; `tokens` is what it held. `None`: every id is running, or the
    /// engine does not take it back, which costs no more than computing it again.
    pub fn restore(&mut self, tokens: &[Token], state: &[u8]) -> Result<Option<Place>, EngineFault> {
        let Some(sequence) = self.next_id(&[]) else { return Ok(None) };
        self.clear(sequence, usize::MAX)?;
        match self.engine.restore(sequence, state) {
            Ok(()) => {
                self.tree.extend(sequence, tokens);
                self.start(sequence);
                Ok(Some(Place { sequence, held: tokens.len() as u32, copied: None }))
            }
            Err(fault) if fault.kind.ends_engine() => Err(fault),
            Err(_) => {
                self.remove(sequence)?;
                Ok(None)
            }
        }
    }

    /// Ids below the highest running one that do not run, where the engine is slower for them.
    pub fn holes(&self) -> Vec<SequenceId> {
        // Where prefixes are shared, the cache is one pool, and ids are but labels.
        let (false, Some(&first), Some(&last)) =
            (self.limits.shares_prefixes, self.running.first(), self.running.last())
        else {
            return Vec::new();
        };
        (first..last).filter(|id| !self.running.contains(id)).collect()
    }

    /// Moves a running sequence to an id that does not run, and gives what that took. What was kept there
    /// moves aside if it is worth it. `None`: the engine refuses.
    pub fn shift(
        &mut self,
        from: SequenceId,
        to: SequenceId,
        worth: u32,
    ) -> Result<Option<Duration>, EngineFault> {
        let began = (self.clock)();
        self.clear(to, worth as usize)?;
        if !self.move_all(from, to)? {
            return Ok(None);
        }
        self.start(to);
        Ok(Some((self.clock)().saturating_sub(began)))
    }

    /// Tokens that an id holds, running or not.
    pub fn held(&self, sequence: SequenceId) -> u32 {
        self.tree.held(sequence) as u32
    }

    /// Everything that must always be true, or the first thing that is not. Asks the engine too.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.tree.check_integrity()?;
        if let Some(id) = self.kept.keys().find(|id| self.running.contains(id)) {
            return Err(format!("sequence {id} is kept and running"));
        }
        for id in 0..self.limits.max_sequences {
            let (_, end) = self.engine.range(id).map_err(|fault| fault.to_string())?;
            let held = self.held(id);
            if end != held {
                return Err(format!("sequence {id} holds {end} tokens, and should hold {held}"));
            }
            if held > 0 && !self.running.contains(&id) && !self.kept.contains_key(&id) {
                return Err(format!("sequence {id} holds {held} tokens and belongs to nobody"));
            }
        }
        Ok(())
    }

    fn start(&mut self, sequence: SequenceId) {
        self.kept.remove(&sequence);
        self.running.insert(sequence);
    }

    fn touch(&mut self, sequence: SequenceId) {
        self.uses += 1;
        if let Some(kept) = self.kept.get_mut(&sequence) {
            kept.used = self.uses;
        }
    }

    fn longest(&self, tokens: &[Token]) -> Match {
        if !self.keeps {
            return Match::default();
        }
        let found = self.tree.longest(&tokens[..tokens.len().saturating_sub(1)]);
        if found.length < LEAST_KEPT { Match::default() } else { found }
    }

    /// The id that should run next. Best is one that holds what is wanted, then one that holds nothing,
    /// then the one that was of no use for longest.
    ///
    /// Where prefixes are not shared, the ids that run are kept together, for engines run a batch without
    /// holes fastest: a hole first, then the ids beside them.
    fn next_id(&self, holders: &[SequenceId]) -> Option<SequenceId> {
        let all = || (0..self.limits.max_sequences).filter(|id| !self.running.contains(id));
        let shares = self.limits.shares_prefixes;
        let best = |ids: &mut dyn Iterator<Item = SequenceId>| {
            ids.min_by_key(|id| match self.kept.get(id) {
                None => (1, 0),
                // A sequence that is shared from elsewhere need not give up its place.
                Some(kept) if holders.contains(id) => (if shares { 3 } else { 0 }, kept.used),
                Some(kept) => (2, kept.used),
            })
        };
        if shares {
            return best(&mut all());
        }
        let (Some(&first), Some(&last)) = (self.running.first(), self.running.last()) else {
            return best(&mut all());
        };
        best(&mut all().filter(|&id| first < id && id < last))
            .or_else(|| best(&mut all().filter(|&id| id + 1 == first || id == last + 1)))
    }

    fn used(&self, sequence: SequenceId) -> u64 {
        self.kept.get(&sequence).map_or(0, |it| it.used)
    }

    fn oldest_kept(&self, but: SequenceId) -> Option<SequenceId> {
        let others = self.kept.iter().filter(|(id, _)| **id != but);
        others.min_by_key(|(_, kept)| kept.used).map(|(&id, _)| id)
    }

    /// Takes back what a kept sequence holds beyond its first `length` tokens, and forgets it where these are
    /// too few.
    fn cut_kept(&mut self, sequence: SequenceId, length: u32) -> Result<(), EngineFault> {
        if self.held(sequence) <= length {
            return Ok(());
        }
        if (length as usize) < LEAST_KEPT {
            return self.remove(sequence);
        }
        self.shorten(sequence, length as usize).map(|_| ())
    }

    /// Takes back what the engine holds of a sequence beyond `length` tokens. `false`: it cannot, and the
    /// sequence is forgotten, since a state that cannot be taken back is of no use here.
    fn shorten(&mut self, sequence: SequenceId, length: usize) -> Result<bool, EngineFault> {
        if !accepted(self.engine.truncate(sequence, length as u32))? {
            self.remove(sequence)?;
            return Ok(false);
        }
        self.tree.truncate(sequence, length);
        Ok(true)
    }

    /// Makes a kept sequence its own beginning; what follows is copied elsewhere first if it is worth it.
    /// Gives the tokens that it holds then, and whether anything was copied.
    fn cut_back(
        &mut self,
        sequence: SequenceId,
        beginning: &[Token],
        worth: usize,
    ) -> Result<(usize, bool), EngineFault> {
        let length = beginning.len();
        let lost = self.tree.held(sequence) - length;
        let mut copied = false;
        if lost >= worth.max(LEAST_KEPT)
            && let Some(to) = self.refuge(sequence)?
        {
            if accepted(self.engine.copy_prefix(sequence, to, self.held(sequence)))? {
                self.tree.rename(sequence, to);
                self.tree.extend(sequence, beginning);
                let kept = self.kept.get(&sequence).copied().unwrap_or_default();
                self.kept.insert(to, kept);
                copied = true;
            } else {
                self.remove(to)?;
            }
        }
        let held = if lost == 0 || self.shorten(sequence, length)? { length } else { 0 };
        Ok((held, copied))
    }

    /// Empties an id that does not run; what is kept there moves elsewhere if it is worth it. Says whether
    /// it did.
    fn clear(&mut self, sequence: SequenceId, worth: usize) -> Result<bool, EngineFault> {
        let Some(&kept) = self.kept.get(&sequence) else { return Ok(false) };
        if !self.limits.shares_prefixes
            && self.tree.held(sequence) >= worth
            && let Some(to) = self.refuge(sequence)?
            && self.move_all(sequence, to)?
        {
            self.kept.insert(to, kept);
            return Ok(true);
        }
        self.remove(sequence)?;
        Ok(false)
    }

    /// An empty id for what is kept at `sequence`: a free one at the far end, else that of one which was
    /// of use even less lately.
    fn refuge(&mut self, sequence: SequenceId) -> Result<Option<SequenceId>, EngineFault> {
        let is_free = |id: &SequenceId| !self.running.contains(id) && !self.kept.contains_key(id);
        if let Some(free) = (0..self.limits.max_sequences).rev().find(is_free) {
            return Ok(Some(free));
        }
        match self.oldest_kept(sequence) {
            Some(older) if self.used(older) < self.used(sequence) => {
                self.remove(older)?;
                Ok(Some(older))
            }
            _ => Ok(None),
        }
    }

    /// Copies a beginning from one of its holders to an empty id. Gives the tokens copied.
    fn copy_from_any(
        &mut self,
        to: SequenceId,
        beginning: &[Token],
        worth: usize,
    ) -> Result<usize, EngineFault> {
        let length = beginning.len();
        if length == 0 || length < worth {
            return Ok(0);
        }
        // `clear` may have removed one of them, or moved it.
        let holders = self.tree.longest(beginning);
        if holders.length < length {
            return Ok(0);
        }
        for holder in holders.holders {
            if accepted(self.engine.copy_prefix(holder, to, length as u32))? {
                self.tree.extend(to, beginning);
                // What it holds beyond is not worth an id.
                if self.kept.contains_key(&holder) && self.tree.held(holder) - length < LEAST_KEPT {
                    self.remove(holder)?;
                }
                return Ok(length);
            }
            self.remove(to)?;
        }
        Ok(0)
    }

    /// `false`: the engine cannot, and `to` is empty.
    fn move_all(&mut self, from: SequenceId, to: SequenceId) -> Result<bool, EngineFault> {
        if accepted(self.engine.copy_prefix(from, to, self.held(from)))? {
            self.tree.rename(from, to);
            self.remove(from)?;
            return Ok(true);
        }
        self.remove(to)?;
        Ok(false)
    }
}

/// Has each sequence room for the longest, by itself?
fn is_walled(limits: &Limits) -> bool {
    let full = u64::from(limits.max_sequences) * u64::from(limits.context_length);
    !limits.shares_prefixes && limits.cache_page <= 1 && limits.cache_tokens >= full
}

/// Did the engine do it? Refusals cost nothing but time; what ends the engine is passed on.
fn accepted(result: Result<(), EngineFault>) -> Result<bool, EngineFault> {
    match result {
        Ok(()) => Ok(true),
        Err(fault) if fault.kind.ends_engine() => Err(fault),
        Err(_) => Ok(false),
    }
}
