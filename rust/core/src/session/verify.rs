//! What is proposed for answers, and what the rows of a step say of it: how many of the tokens were right.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{Session, misbehaved};
use crate::{
    engine::{EngineFault, Row, SequenceId, StepEngine, Ticket, Token},
    error::Fault,
    event::{Event, Finish},
    sample::PickFault,
    schedule::batch::Share,
    speculate::{Pays, Want},
};

/// Most tokens drafted for one request in one step.
pub const MOST_DRAFTED: u32 = 16;

/// Masks at once for which other threads are woken: one takes 50 us as a rule, and so does waking.
const WORTH_A_CREW: usize = 3;

/// Who came to an end, and how.
type Ended = (SequenceId, Result<Finish, Fault>);

impl<E: StepEngine> Session<E> {
    /// What is proposed for those that decode, by sequence: the token that is due, and after it the proposed ones.
    /// That is what its form foresees, where an answer keeps to something, or what the drafter gives. Nothing while
    /// prompts are read: these need the time more.
    pub(super) fn drafts(&mut self, shares: &[Share], pads: u32) -> BTreeMap<SequenceId, Vec<Token>> {
        if self.reads_prompts() {
            return BTreeMap::new();
        }
        let limits = self.sequences.limits();
        let decodes = shares.len() as u32;
        let pace = &self.pace;
        let worth = |pays: &Pays, most: u32| pays.tokens(decodes, most, |more| pace.stretch(decodes, more));
        let most = MOST_DRAFTED.min(limits.max_rollback);
        let mut room = u64::from(limits.max_rows.min(limits.max_batch_tokens - pads).saturating_sub(decodes))
            .min(self.sequences.room().saturating_sub(u64::from(decodes) * u64::from(limits.cache_page)));
        let mut drafts = BTreeMap::new();
        let mut asked = Vec::new();
        let mut wants = Vec::new();
        for (&sequence, it) in &mut self.running {
            let most = most
                .min(it.remaining().saturating_sub(1))
                .min(limits.context_length.saturating_sub(it.length()))
                .min(u32::try_from(room).unwrap_or(u32::MAX));
            it.pays.step();
            it.foreseen_pays.step();
            it.is_foreseen = false;
            if !shares.iter().any(|share| share.sequence == sequence) {
                continue;
            }
            if it.is_constrained() && worth(&it.foreseen_pays, most) > 0 {
                let mut foreseen = it.foreseen(self.speller.as_ref(), &self.vocabulary);
                foreseen.truncate(worth(&it.foreseen_pays, most.min(foreseen.len() as u32)) as usize);
                if let (false, Some(&due)) = (foreseen.is_empty(), it.tokens().last()) {
                    room -= foreseen.len() as u64;
                    it.is_foreseen = true;
                    foreseen.insert(0, due);
                    drafts.insert(sequence, foreseen);
                    continue;
                }
            }
            let most = worth(&it.pays, most);
            if self.drafter.is_some() && most > 0 {
                room -= u64::from(most);
                asked.push(sequence);
                wants.push(Want { id: it.id, tokens: it.tokens(), most, draft: Vec::new() });
            }
        }
        if let (Some(drafter), false) = (&mut self.drafter, wants.is_empty()) {
            drafter.draft_all(&mut wants);
        }
        let known = |token: &Token| usize::try_from(*token).is_ok_and(|it| it < self.vocabulary.len());
        drafts.extend(asked.into_iter().zip(wants).filter_map(|(sequence, want)| {
            let due = *want.tokens.last()?;
            let draft = want.draft.into_iter().take(want.most as usize).take_while(known);
            Some((sequence, std::iter::once(due).chain(draft).collect::<Vec<_>>()))
        }));
        drafts.retain(|sequence, tokens| {
            if let Some(generation) = self.running.get_mut(sequence) {
                let admitted = generation.admits(&tokens[1..], &self.vocabulary) as u32;
                let pays = if generation.is_foreseen { &generation.foreseen_pays } else { &generation.pays };
                // Fewer than were wanted may be of a size that does not pay.
                tokens.truncate(1 + worth(pays, admitted) as usize);
            }
            tokens.len() > 1
        });
        drafts
    }

    /// Computes which tokens are admitted behind those of a step, while the engine works on it. Who cannot
    /// go on is told by its fault.
    pub(super) fn compute_masks(
        &mut self,
        shares: &[Share],
        drafts: &BTreeMap<SequenceId, Vec<Token>>,
        rows: &[u32],
    ) -> BTreeMap<SequenceId, Fault> {
        let vocabulary = &self.vocabulary;
        let due = |sequence: SequenceId| {
            shares.iter().zip(rows).any(|(share, &rows)| share.sequence == sequence && rows > 0)
        };
        let all: Vec<_> = self
            .running
            .iter_mut()
            .filter(|(sequence, it)| it.is_constrained() && due(**sequence))
            .map(|(&sequence, it)| {
                let draft = drafts.get(&sequence).map_or(&[][..], |it| &it[1..]);
                Mutex::new((sequence, it, draft, Ok(())))
            })
            .collect();
        let work = |part: usize| {
            let (_, generation, draft, result) =
                &mut *all[part].lock().unwrap_or_else(PoisonError::into_inner);
            *result = generation.compute_masks(draft, vocabulary);
        };
        match &mut self.crew {
            Some(crew) if all.len() >= WORTH_A_CREW => crew.run(all.len(), &work),
            _ => (0..all.len()).for_each(work),
        }
        all.into_iter()
            .filter_map(|it| {
                let (sequence, _, _, result) = it.into_inner().unwrap_or_else(PoisonError::into_inner);
                Some((sequence, result.err()?))
            })
            .collect()
    }

    /// Picks tokens from the rows of a step, and gives who came to an end by that. The inner error is one
    /// that costs this step's requests.
    pub(super) fn pick(
        &mut self,
        shares: &[Share],
        drafts: &BTreeMap<SequenceId, Vec<Token>>,
        rows: &[u32],
        ticket: Ticket,
        events: &mut Vec<(u64, Event)>,
    ) -> Result<Result<Vec<Ended>, EngineFault>, EngineFault> {
        let mut unmasked = self.compute_masks(shares, drafts, rows);
        let wanted = rows.iter().sum::<u32>() as usize;
        let width = self.limits().n_vocab as usize;
        let all = match self.sequences.collect(ticket, wanted) {
            Ok(all) => all,
            Err(fault) => return Ok(Err(fault)),
        };
        if all.len() != wanted || all.iter().any(|it| it.n_vocab() != width) {
            let what = format!("{wanted} rows of {width} logits were due, and came otherwise");
            return Err(misbehaved(what, "engine.batch collect"));
        }
        let mut next = 0;
        let mut own = Vec::with_capacity(shares.len());
        let mut jobs = Vec::with_capacity(shares.len());
        for (share, &rows) in shares.iter().zip(rows) {
            let begin = next;
            next += rows as usize;
            if rows > 0
                && !unmasked.contains_key(&share.sequence)
                && let Some(generation) = self.running.get(&share.sequence)
            {
                own.push((share.sequence, begin));
                jobs.push(generation.job(&all[begin]));
            }
        }
        let firsts: Vec<_> = self.samplers.pick(self.crew.as_mut(), &jobs, &self.forbidden).collect();
        let mut ended: Vec<Ended> = std::mem::take(&mut unmasked)
            .into_iter()
            .map(|(sequence, fault)| (sequence, Err(fault)))
            .collect();
        let mut undecided = Vec::new();
        for ((sequence, begin), first) in own.into_iter().zip(firsts) {
            let Some(generation) = self.running.get_mut(&sequence) else { continue };
            let draft = drafts.get(&sequence).map_or(&[][..], |it| &it[1..]);
            let (mut accepted, mut looked_at) = (0, 0);
            let mut pick = Some(first);
            while let Some(picked) = pick.take() {
                if let Row::Best(_) = all[begin + accepted] {
                    generation.candidates_came(picked != Err(PickFault::Undecided));
                }
                let finish = match picked {
                    Ok(picked) => generation.take(picked, &self.vocabulary, events),
                    Err(PickFault::Undecided) if accepted == 0 => {
                        undecided.push((sequence, begin));
                        break;
                    }
                    Err(PickFault::Undecided) => {
                        // Computed once more, its row is the first of its slice, and can be fetched.
                        generation.held -= 1;
                        break;
                    }
                    Err(fault) => Some(Err(generation.unpickable(fault))),
                };
                let proposed = draft.get(looked_at);
                if let Some(how) = finish {
                    ended.push((sequence, how));
                } else if proposed.is_some() && proposed == generation.tokens().last() {
                    // The proposal was right, so that the row behind it is of use.
                    accepted += 1;
                    match generation.compute_mask(&self.vocabulary) {
                        Ok(()) => {
                            let job = generation.job(&all[begin + accepted]);
                            pick = self.samplers.pick(None, &[job], &self.forbidden).next();
                        }
                        Err(fault) => ended.push((sequence, Err(fault))),
                    }
                }
                looked_at += usize::from(proposed.is_some());
            }
            generation.held -= (draft.len() - accepted) as u32;
            if !draft.is_empty() {
                generation.learn(draft.len(), looked_at, accepted);
                if !generation.is_foreseen {
                    self.drafted += draft.len() as u64;
                    self.accepted += accepted as u64;
                }
            }
        }
        drop(all);
        for (sequence, row) in undecided {
            ended.extend(self.pick_whole(sequence, ticket, row, events)?.map(|how| (sequence, how)));
        }
        Ok(Ok(ended))
    }

    /// Picks from the whole of a row whose candidates did not decide; `Some`: the answer is at its end.
    fn pick_whole(
        &mut self,
        sequence: SequenceId,
        ticket: Ticket,
        row: usize,
        events: &mut Vec<(u64, Event)>,
    ) -> Result<Option<Result<Finish, Fault>>, EngineFault> {
        let width = self.limits().n_vocab as usize;
        let Some(generation) = self.running.get_mut(&sequence) else { return Ok(None) };
        let row = match self.sequences.fetch(ticket, row) {
            Ok(row) => row,
            Err(fault) if fault.kind.ends_engine() => return Err(fault),
            Err(fault) => return Ok(Some(Err(fault.into()))),
        };
        if !matches!(&row, Row::Whole(logits) if logits.len() == width) {
            let what = format!("a whole row of {width} logits was due, and came otherwise");
            return Err(misbehaved(what, "engine.batch fetch"));
        }
        let picked = self.samplers.pick(None, &[generation.job(&row)], &self.forbidden).next();
        Ok(match picked {
            Some(Ok(picked)) => generation.take(picked, &self.vocabulary, events),
            Some(Err(fault)) => Some(Err(generation.unpickable(fault))),
            None => None,
        })
    }
}
