//! What an answer keeps to: which tokens may come next, and from where to where that holds.
//!
//! A format holds from where the model has thought up to the end of the answer. A call that a model makes by itself is
//! held to its grammar from where its input begins up to the end of the section that it stands in. Elsewhere any token
//! may come, and nothing is computed.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    chat::parse::Calling,
    constrain::{Constraint, Layout, Prototype},
    engine::{Token, Vocabulary, attribute},
    error::Fault,
    sample::Mask,
    speculate::Speller,
};

/// How long a model may think, and what ends that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinkingBudget {
    /// Most tokens of it.
    pub tokens: u32,
    /// The mark behind it.
    pub close: Vec<Token>,
}

/// What one answer keeps to, as far as it has come.
#[derive(Clone, Debug)]
pub(super) struct Keeping {
    prototype: Option<Arc<Prototype>>,
    /// The grammar that holds now. In a call: with the place where its input began.
    holds: Option<(Option<u64>, Constraint)>,
    /// How what holds to that was laid out so far.
    layout: Layout,
    /// What may come next, and behind each token of the draft that is being looked at.
    masks: VecDeque<Mask>,
    /// None: as long as it likes, or it has been told to end.
    budget: Option<ThinkingBudget>,
    /// What has to come next.
    closing: VecDeque<Token>,
}

impl Keeping {
    pub(super) fn new(prototype: Option<Arc<Prototype>>, budget: Option<ThinkingBudget>) -> Self {
        let from_the_start = prototype.as_ref().filter(|it| !it.is_of_calls());
        Self {
            holds: from_the_start.map(|it| (None, it.constraint())),
            prototype,
            layout: Layout::default(),
            masks: VecDeque::new(),
            budget,
            closing: VecDeque::new(),
        }
    }

    /// Does what may come next depend on what came?
    pub(super) fn holds(&self) -> bool {
        self.holds.is_some() || !self.closing.is_empty()
    }

    /// Is a call that begins now to be held to something?
    pub(super) fn awaits_calls(&self) -> bool {
        self.holds.is_none() && self.prototype.as_ref().is_some_and(|it| it.is_of_calls())
    }

    /// What may come next; `None`: any token.
    pub(super) fn mask(&self) -> Option<&Mask> {
        self.masks.front()
    }

    /// Is it known what may come next?
    pub(super) fn is_computed(&self) -> bool {
        !self.masks.is_empty() || !self.holds()
    }

    /// How many tokens of a draft may follow. `thinks`: does the model think?
    pub(super) fn admits(&mut self, draft: &[Token], thinks: bool, vocabulary: &Vocabulary) -> usize {
        if !self.closing.is_empty() {
            return draft.iter().zip(&self.closing).take_while(|(a, b)| a == b).count();
        }
        let Some((_, constraint)) = self.holds.as_mut().filter(|_| !thinks) else { return draft.len() };
        let ends = |token: &&Token| vocabulary.has(**token, attribute::END_OF_GENERATION);
        let length = draft.iter().take_while(|token| !ends(token)).count();
        // What fails here fails where the mask is needed, which is told.
        constraint.admits(&draft[..length]).unwrap_or_default()
    }

    /// Tokens that most likely come next, behind these bytes; see [`Constraint::foreseen`].
    pub(super) fn foreseen(&self, thinks: bool, speller: Option<&Speller>, before: &[u8]) -> Vec<Token> {
        if !self.closing.is_empty() {
            return self.closing.iter().copied().collect();
        }
        match (self.holds.as_ref().filter(|_| !thinks), speller) {
            (Some((_, constraint)), Some(speller)) => {
                speller.spell(before, &constraint.foreseen(&self.layout))
            }
            _ => Vec::new(),
        }
    }

    /// Computes what may come next, and what behind each token of a draft of which all are admitted. While the
    /// model thinks anything but an end may come; where it stops to do so is not known beforehand, so that the
    /// draft's masks are computed when they are needed. `opens`: a token with which it may begin to think.
    pub(super) fn compute(
        &mut self,
        draft: &[Token],
        thinks: bool,
        opens: Option<Token>,
        vocabulary: &Vocabulary,
    ) -> Result<(), Fault> {
        self.masks.clear();
        if let Some(&only) = self.closing.front() {
            self.masks.push_back(Mask::with(vocabulary.len(), |token| token == only));
            return Ok(());
        }
        let Some((_, constraint)) = &mut self.holds else { return Ok(()) };
        if thinks {
            let ends = |token| vocabulary.has(token, attribute::END_OF_GENERATION);
            self.masks.push_back(Mask::with(vocabulary.len(), |token| !ends(token)));
            return Ok(());
        }
        let mut mask = constraint.mask()?;
        if let Some(token) = opens {
            mask.admit(token);
        }
        self.masks.push_back(mask);
        for &token in draft {
            constraint.consume(token)?;
            self.masks.push_back(constraint.mask()?);
        }
        constraint.rollback(draft.len())
    }

    /// A token was taken.
    pub(super) fn took(&mut self) {
        self.masks.pop_front();
        self.closing.pop_front();
    }

    /// A call begins, with these bytes of its input. False: its grammar does not admit them.
    pub(super) fn begin(&mut self, call: &Calling, begun: &[u8]) -> bool {
        let Some(constraint) = self.prototype.as_ref().and_then(|it| it.within(call, begun)) else {
            return false;
        };
        self.masks.clear();
        self.layout = Layout::default();
        self.layout.read(begun);
        self.holds = Some((Some(call.begin), constraint));
        true
    }

    /// Goes on by a token of the answer that is no part of what the model thinks. `call`: the one under way.
    pub(super) fn follow(
        &mut self,
        token: Token,
        call: Option<&Calling>,
        vocabulary: &Vocabulary,
    ) -> Result<(), Fault> {
        let Some((begin, constraint)) = &mut self.holds else { return Ok(()) };
        constraint.consume(token)?;
        self.layout.read(vocabulary.token_bytes(token));
        if begin.is_some() && call.map(|it| it.begin) != *begin {
            self.release();
        }
        Ok(())
    }

    /// What a call was held to holds no longer.
    pub(super) fn release(&mut self) {
        if self.holds.as_ref().is_some_and(|it| it.0.is_some()) {
            self.holds = None;
            self.masks.clear();
        }
    }

    /// The model has thought with so many tokens, and goes on to: is that enough?
    pub(super) fn thought(&mut self, tokens: u32) {
        if let Some(budget) = self.budget.take_if(|it| tokens >= it.tokens) {
            self.closing = budget.close.into();
            self.masks.clear();
        }
    }
}
