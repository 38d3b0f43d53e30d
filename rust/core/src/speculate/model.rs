//! Proposals of a second, smaller model with the same vocabulary.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use super::{Drafter, Want};
use crate::{
    engine::{
        EngineFault, EngineFaultKind, Limits, SequenceId, Slice, StepEngine, Token, Vocabulary, attribute,
    },
    request::Sampling,
    sample::{Forbidden, Job, Occurrences, Sampler, candidates_for},
};

/// Proposes what a small model finds likeliest, for all requests together in one pass per token.
///
/// Each request has a sequence in the small model's context, as long as there are enough; the one that
/// has not drafted for longest gives its up. A fault of the engine ends the drafting for good, and
/// costs no request anything.
#[derive(Debug)]
pub struct DraftModel<E> {
    engine: E,
    vocabulary: Arc<Vocabulary>,
    catch_up: u32,
    limits: Limits,
    /// How many of the likeliest tokens suffice.
    candidates: u32,
    greedy: Sampling,
    forbidden: Forbidden,
    sampler: Sampler,
    /// Ids `0..at_once`, kept dense: engines run a batch whose ids have no holes fastest.
    sequences: BTreeMap<SequenceId, Held>,
    at_once: u32,
    /// Calls so far.
    now: u64,
    fault: Option<EngineFault>,
}

/// What a sequence holds.
#[derive(Debug)]
struct Held {
    id: u64,
    tokens: Vec<Token>,
    /// The last call that drafted with it.
    used: u64,
}

/// A draft that is being written.
struct Writing<'a, 'b> {
    sequence: SequenceId,
    want: &'a mut Want<'b>,
    most: usize,
}

impl<E: StepEngine> DraftModel<E> {
    /// Drafts with a context that holds no sequence. `vocabulary` is that of the model that answers,
    /// and that of the small one must be the same. Prompts are fed in pieces, at most `catch_up` tokens
    /// per call, so that none holds up a step; at least 1.
    pub fn new(engine: E, vocabulary: Arc<Vocabulary>, catch_up: u32) -> Self {
        let limits = engine.limits().clone();
        let forbidden = Forbidden::of(&vocabulary, limits.n_vocab as usize);
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        Self {
            candidates: candidates_for(&greedy, None, &forbidden, &limits),
            forbidden,
            greedy,
            sampler: Sampler::default(),
            sequences: BTreeMap::new(),
            at_once: limits.max_sequences.min(limits.max_rows).min(limits.max_batch_tokens),
            catch_up: catch_up.max(1),
            now: 0,
            fault: None,
            engine,
            vocabulary,
            limits,
        }
    }

    fn try_draft(&mut self, wants: &mut [Want<'_>]) -> Result<(), EngineFault> {
        self.now += 1;
        let mut writing = self.seat(wants)?;
        // A token each for those that lack no more is not what holds up a step.
        let mut room = (self.catch_up as usize).saturating_add(writing.len());
        while !writing.is_empty() {
            if self.pass(&mut writing, room)? {
                // What the rest of a prompt did not fit into waits for the next call.
                room = writing.len();
            } else {
                self.make_way(&mut writing)?;
            }
        }
        Ok(())
    }

    /// A sequence for each want that can be met, holding no token that its text does not begin with.
    fn seat<'a, 'b>(&mut self, wants: &'a mut [Want<'b>]) -> Result<Vec<Writing<'a, 'b>>, EngineFault> {
        let longest = u64::from(self.limits.context_length).min(self.limits.cache_tokens) as usize;
        // All but the last token of a draft are fed, and may have to be taken back.
        let rollback = (self.limits.max_rollback as usize).saturating_add(1);
        let possible = |want: &Want<'_>| {
            let context = (longest + 1).saturating_sub(want.tokens.len());
            if want.tokens.is_empty() || !want.draft.is_empty() { 0 } else { context.min(rollback) }
        };
        let mut writing = Vec::with_capacity(wants.len());
        let mut without = Vec::new();
        for want in wants {
            let most = possible(want).min(want.most as usize);
            if most == 0 {
                continue;
            }
            match self.sequence_of(want.id) {
                Some(sequence) => writing.push(Writing { sequence, want, most }),
                None => without.push((want, most)),
            }
        }
        for it in &writing {
            self.keep_common(it.sequence, it.want.tokens)?;
        }
        for (want, most) in without {
            if self.free_id().is_none() && !self.evict()? {
                break;
            }
            let Some(sequence) = self.free_id() else { break };
            self.sequences.insert(sequence, Held { id: want.id, tokens: Vec::new(), used: self.now });
            writing.push(Writing { sequence, want, most });
        }
        writing.sort_unstable_by_key(|it| it.sequence);
        Ok(writing)
    }

    fn free_id(&self) -> Option<SequenceId> {
        (0..self.at_once).find(|id| !self.sequences.contains_key(id))
    }

    fn sequence_of(&self, id: u64) -> Option<SequenceId> {
        self.sequences.iter().find(|(_, it)| it.id == id).map(|(&sequence, _)| sequence)
    }

    /// Takes back what the text turned out not to say. Its last token always has to be fed: the row that
    /// follows it is where a draft begins.
    fn keep_common(&mut self, sequence: SequenceId, tokens: &[Token]) -> Result<(), EngineFault> {
        let Some(held) = self.sequences.get_mut(&sequence) else { return Ok(()) };
        held.used = self.now;
        let fed = &tokens[..tokens.len() - 1];
        let common = held.tokens.iter().zip(fed).take_while(|(left, right)| left == right).count();
        let back = held.tokens.len() - common;
        if back > 0 {
            let keep = if back <= self.limits.max_rollback as usize { common } else { 0 };
            self.engine.truncate(sequence, keep as u32)?;
            held.tokens.truncate(keep);
        }
        Ok(())
    }

    /// One step of the small model: what the texts lack, `room` tokens at most, those first that lack
    /// least; then a token for each that lacks nothing more. The finished and those that did not come
    /// this far leave. `false`: the cache is full, and nothing was changed.
    fn pass(&mut self, writing: &mut Vec<Writing<'_, '_>>, room: usize) -> Result<bool, EngineFault> {
        let mut room = room.min(self.limits.max_batch_tokens as usize);
        let held =
            |it: &Writing<'_, '_>| self.sequences.get(&it.sequence).map_or(0, |held| held.tokens.len());
        let lacks: Vec<_> =
            writing.iter().map(|it| it.want.tokens.len() + it.want.draft.len() - held(it)).collect();
        let mut order: Vec<_> = (0..writing.len()).collect();
        order.sort_by_key(|&index| lacks[index]);
        let mut shares = vec![0; writing.len()];
        for index in order {
            shares[index] = lacks[index].min(room);
            room -= shares[index];
        }
        let slices: Vec<_> = (0..writing.len())
            .filter(|&index| shares[index] > 0)
            .map(|index| {
                let it = &writing[index];
                let position = held(it);
                let tokens = match it.want.draft.as_slice() {
                    [] => &it.want.tokens[position..position + shares[index]],
                    draft => &draft[draft.len() - 1..],
                };
                let rows = u32::from(shares[index] == lacks[index]);
                let candidates = if rows > 0 { self.candidates } else { 0 };
                Slice { sequence: it.sequence, position: position as u32, tokens, rows, candidates }
            })
            .collect();
        let wanted = slices.iter().filter(|it| it.rows > 0).count();
        let ticket = match self.engine.step(&slices) {
            Ok(ticket) => ticket,
            Err(fault) if fault.kind == EngineFaultKind::CacheFull => return Ok(false),
            Err(fault) => return Err(fault),
        };
        for slice in &slices {
            if let Some(held) = self.sequences.get_mut(&slice.sequence) {
                held.tokens.extend_from_slice(slice.tokens);
            }
        }
        let mut index = 0;
        writing.retain(|_| {
            index += 1;
            shares[index - 1] == lacks[index - 1]
        });
        if wanted == 0 {
            return Ok(true);
        }
        let rows = self.engine.collect(ticket, wanted)?;
        let width = self.limits.n_vocab as usize;
        if rows.len() != wanted || rows.iter().any(|it| it.n_vocab() != width) {
            return Err(EngineFault {
                kind: EngineFaultKind::Misbehaved,
                message: format!("{wanted} rows of {width} logits were due, and came otherwise"),
                call: "engine.batch collect",
            });
        }
        let mut rows = rows.iter();
        writing.retain_mut(|it| {
            let Some(row) = rows.next() else { return false };
            let occurrences = Occurrences::default();
            let job = Job {
                row,
                sampling: &self.greedy,
                occurrences: &occurrences,
                mask: None,
                uniform: 0.0,
                logprobs: None,
            };
            let picked = self.sampler.pick_from(&job, &self.forbidden);
            // Logits that are not numbers propose nothing, nor do candidates that do not decide.
            let Ok(picked) = picked else { return false };
            it.want.draft.push(picked.token);
            it.want.draft.len() < it.most && !self.vocabulary.has(picked.token, attribute::END_OF_GENERATION)
        });
        Ok(true)
    }

    /// Frees room in the cache: what does not draft now goes first, then what holds most.
    fn make_way(&mut self, writing: &mut Vec<Writing<'_, '_>>) -> Result<(), EngineFault> {
        if self.evict()? {
            return Ok(());
        }
        let largest = (0..writing.len()).max_by_key(|&index| writing[index].want.tokens.len());
        if let Some(index) = largest {
            self.free(writing.remove(index).sequence)?;
        }
        Ok(())
    }

    /// Frees the sequence that has not drafted for longest, if there is one that does not draft now.
    fn evict(&mut self) -> Result<bool, EngineFault> {
        let idle = self.sequences.iter().filter(|(_, it)| it.used < self.now);
        let Some((&sequence, _)) = idle.max_by_key(|(_, it)| Reverse(it.used)) else { return Ok(false) };
        self.free(sequence)?;
        Ok(true)
    }

    fn free(&mut self, sequence: SequenceId) -> Result<(), EngineFault> {
        self.engine.truncate(sequence, 0)?;
        self.sequences.remove(&sequence);
        Ok(())
    }
}

impl<E: StepEngine + std::fmt::Debug + Send> Drafter for DraftModel<E> {
    fn draft_all(&mut self, wants: &mut [Want<'_>]) {
        if self.fault.is_none() {
            self.fault = self.try_draft(wants).err();
        }
    }

    fn forget(&mut self, id: u64) {
        if self.fault.is_none()
            && let Some(sequence) = self.sequence_of(id)
        {
            self.fault = self.free(sequence).err();
        }
    }

    fn fault(&self) -> Option<&EngineFault> {
        self.fault.as_ref()
    }
}
