//! One answer under way: its tokens, its text, and what became of it.

use std::{collections::VecDeque, time::Duration};

use crate::{
    chat::parse::Calling,
    engine::{Limits, Row, Token, Vocabulary, attribute},
    error::{ErrorCode, Fault},
    event::{Event, Finish, Part, PickedToken, Piece, TokenLogprobs, Usage},
    request::{ValidRequest, nothing_allowed},
    sample::{Forbidden, Job, Occurrences, PickFault, Picked, candidates_for, penalise, rng},
    schedule::{admission::ANSWER_SHARE, keeping::Keeping},
    speculate::{Pays, Speller},
    text::answer::{AnswerText, Told},
};

/// A sequence outside the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Tokens that it holds.
    pub held: u32,
    /// The engine's own bytes.
    pub state: Vec<u8>,
}

/// Rows that came as candidates and decided, per one that did not and had to be fetched, below which
/// candidates are not worth it.
const WORTH_CANDIDATES: u32 = 4;
/// Rows for which the past counts.
const MEMORY: u32 = 16;

/// A token that was picked, and where its bytes stand in the answer.
#[derive(Clone, Debug)]
struct Unsent {
    token: PickedToken,
    begin: u64,
    end: u64,
}

/// When what happened to a request, by the session's clock.
#[derive(Clone, Copy, Debug)]
struct Times {
    taken: Duration,
    admitted: Option<Duration>,
    /// The first token of its answer.
    answered: Option<Duration>,
}

/// A request from its admission to its end. It outlives the sequence it runs in: after a preemption
/// it goes on in another.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The caller's name for it.
    pub id: u64,
    /// Order of arrival: lower is older.
    pub age: u64,
    /// Tokens that the cache holds of it.
    pub held: u32,
    /// Tokens of the prompt that came from the prefix cache.
    pub cached: u32,
    /// What the cache held of it when it had to give way, as the engine wrote it down.
    pub saved: Option<Saved>,
    /// Whether drafts have paid so far.
    pub pays: Pays,
    /// The same of tokens that its form foresees.
    pub foreseen_pays: Pays,
    /// Are those what is being looked at?
    pub is_foreseen: bool,
    /// Tokens that were drafted for it, and how many of these were right.
    pub drafted: u32,
    /// See [`Generation::drafted`].
    pub accepted: u32,
    request: ValidRequest,
    times: Times,
    /// Prompt and answer.
    tokens: Vec<Token>,
    occurrences: Occurrences,
    answer: AnswerText,
    /// What the answer keeps to.
    keeping: Keeping,
    /// Picked, but not yet part of a piece.
    unsent: VecDeque<Unsent>,
    /// Calls that were begun.
    calls: u32,
    /// Tokens that the model thought with.
    thought: u32,
    /// Tokens of prompt and answer that admission found room for.
    promised: u32,
    /// How well candidates have done lately; 0: rows come whole from now on.
    candidates_pay: u32,
}

impl Generation {
    /// Nothing is computed yet. `now`: by the session's clock, as in all that follows.
    pub fn new(id: u64, age: u64, request: ValidRequest, now: Duration) -> Self {
        let tokens = request.prompt().to_vec();
        let occurrences =
            if penalise(request.sampling()) { Occurrences::of(&tokens) } else { Occurrences::default() };
        let answer = request.answer();
        let keeping = Keeping::new(request.kept().cloned(), request.thinking_budget().cloned());
        let mut generation = Self {
            id,
            age,
            held: 0,
            cached: 0,
            saved: None,
            pays: Pays::default(),
            foreseen_pays: Pays::of_what_is_likely(),
            is_foreseen: false,
            drafted: 0,
            accepted: 0,
            request,
            times: Times { taken: now, admitted: None, answered: None },
            tokens,
            occurrences,
            answer,
            keeping,
            unsent: VecDeque::new(),
            calls: 0,
            thought: 0,
            promised: 0,
            candidates_pay: WORTH_CANDIDATES,
        };
        generation.restart();
        generation
    }

    /// Its sequence is gone: everything has to be computed again. What was generated stays.
    pub fn restart(&mut self) {
        self.held = 0;
        self.promised = self.length() + self.remaining().min(ANSWER_SHARE);
    }

    /// Prompt and answer.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Their number.
    pub fn length(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Tokens that the cache does not hold yet: at least 1.
    pub fn pending(&self) -> u32 {
        self.length() - self.held
    }

    /// Tokens that may still be generated.
    pub fn remaining(&self) -> u32 {
        self.request.max_tokens().saturating_sub(self.generated())
    }

    /// Tokens of the cache that are spoken for: what admission promised, and in any case what has to
    /// follow now.
    pub fn promised(&self) -> u32 {
        self.promised.max(self.length())
    }

    /// It has a sequence. The first time, that is told.
    pub fn admitted(&mut self, now: Duration, events: &mut Vec<(u64, Event)>) {
        if self.times.admitted.is_none() {
            self.times.admitted = Some(now);
            self.cached = self.held;
            let prompt_tokens = self.request.prompt().len() as u32;
            let started = Event::Started {
                prompt_tokens,
                cached_tokens: self.cached,
                relaxed: self.request.relaxed().to_vec(),
            };
            events.push((self.id, started));
        }
    }

    /// A step has ended that may have brought its first token.
    pub fn stepped(&mut self, now: Duration) {
        if self.times.answered.is_none() && self.generated() > 0 {
            self.times.answered = Some(now);
        }
    }

    /// What is told at its end. `reason`: see [`Generation::take`].
    pub fn finished(&self, reason: Finish, now: Duration) -> Event {
        let stop = (reason == Finish::StopString).then(|| self.answer.stopped_by().map(str::to_owned));
        Event::Finished { reason, stop: stop.flatten(), usage: self.usage(now) }
    }

    fn usage(&self, now: Duration) -> Usage {
        let admitted = self.times.admitted.unwrap_or(now);
        let answered = self.times.answered.unwrap_or(now);
        Usage {
            prompt_tokens: self.request.prompt().len() as u32,
            completion_tokens: self.generated(),
            reasoning_tokens: self.thought,
            cached_tokens: self.cached,
            drafted_tokens: self.drafted,
            accepted_tokens: self.accepted,
            waited: admitted.saturating_sub(self.times.taken),
            read: answered.saturating_sub(admitted),
            wrote: now.saturating_sub(answered),
        }
    }

    /// How many of the likeliest tokens suffice to pick the next one; 0: the row must be whole.
    pub fn candidates(&self, forbidden: &Forbidden, limits: &Limits) -> u32 {
        // A mask may leave none of them.
        let risky = self.keeping.holds() && !limits.fetches;
        if limits.max_candidates == 0 || self.candidates_pay == 0 || risky {
            return 0;
        }
        candidates_for(self.request.sampling(), self.request.logprobs(), forbidden, limits)
    }

    /// Candidates came, and did or did not decide.
    pub fn candidates_came(&mut self, decided: bool) {
        self.candidates_pay = if decided {
            (self.candidates_pay + 1).min(MEMORY)
        } else {
            self.candidates_pay.saturating_sub(WORTH_CANDIDATES)
        };
    }

    /// Does what may come next depend on what came?
    pub fn is_constrained(&self) -> bool {
        self.keeping.holds()
    }

    /// How many tokens of a draft may follow.
    pub fn admits(&mut self, draft: &[Token], vocabulary: &Vocabulary) -> usize {
        self.keeping.admits(draft, self.answer.thinks(), vocabulary)
    }

    /// Tokens that most likely come next, by the form that it has.
    pub fn foreseen(&self, speller: Option<&Speller>, vocabulary: &Vocabulary) -> Vec<Token> {
        let last = self.tokens.last().filter(|&&it| !vocabulary.has(it, attribute::CONTROL));
        let before = last.map_or(&[][..], |&it| vocabulary.token_bytes(it));
        self.keeping.foreseen(self.answer.thinks(), speller, before)
    }

    /// Of the draft that was looked at the first `accepted` tokens were right, and what is behind `looked_at` of them
    /// nobody knows.
    pub fn learn(&mut self, draft: usize, looked_at: usize, accepted: usize) {
        if self.is_foreseen {
            self.foreseen_pays.learn(looked_at as u32, accepted as u32);
        } else {
            self.pays.learn(looked_at as u32, accepted as u32);
            self.drafted += draft as u32;
            self.accepted += accepted as u32;
        }
    }

    /// Computes what may come next, and what behind each token of a draft of which all are admitted.
    pub fn compute_masks(&mut self, draft: &[Token], vocabulary: &Vocabulary) -> Result<(), Fault> {
        let opens = self.request.thinks().filter(|_| self.generated() == 0);
        self.keeping.compute(draft, self.answer.thinks(), opens, vocabulary)
    }

    /// Computes what may come next, unless that is known.
    pub fn compute_mask(&mut self, vocabulary: &Vocabulary) -> Result<(), Fault> {
        if self.keeping.is_computed() { Ok(()) } else { self.compute_masks(&[], vocabulary) }
    }

    /// How the next token is picked from its row of logits.
    pub fn job<'a>(&'a self, row: &'a Row<'a>) -> Job<'a> {
        Job {
            row,
            sampling: self.request.sampling(),
            occurrences: &self.occurrences,
            mask: self.keeping.mask(),
            uniform: rng::uniform(self.request.seed(), self.tokens.len() as u64),
            logprobs: self.request.logprobs(),
        }
    }

    /// What is said where no token could be picked.
    pub fn unpickable(&self, fault: PickFault) -> Fault {
        let forbids = |it: &(Token, f32)| it.1 == f32::NEG_INFINITY;
        if fault == PickFault::NothingAllowed && self.request.sampling().bias.iter().any(forbids) {
            return nothing_allowed(if self.keeping.mask().is_some() {
                "may come next in the format, or the call, that was asked for"
            } else {
                "the model could generate"
            });
        }
        let position = self.length();
        match fault {
            PickFault::NotANumber | PickFault::Empty => Fault::new(
                ErrorCode::EngineFault,
                format!("batch.collect: the row of position {position} is of no use: {fault}"),
            ),
            // The host had asked for candidates where they might not be enough, or forbids all there is.
            PickFault::Undecided | PickFault::NothingAllowed => Fault::new(
                ErrorCode::Internal,
                format!("No token can be picked at position {position}: {fault}."),
            ),
        }
    }

    /// Takes the next token, and tells what that brings. `Some`: the answer is at its end, and unless it
    /// failed all of its text has been told.
    pub fn take(
        &mut self,
        picked: Picked,
        vocabulary: &Vocabulary,
        events: &mut Vec<(u64, Event)>,
    ) -> Option<Result<Finish, Fault>> {
        let token = picked.token;
        self.tokens.push(token);
        if penalise(self.request.sampling()) {
            self.occurrences.add(token);
        }
        if vocabulary.has(token, attribute::END_OF_GENERATION) {
            if !self.request.ignore_eos() {
                return Some(Ok(self.flush(Finish::Stop, events)));
            }
            // The answer goes on, and no grammar does.
            self.keeping.release();
        }
        self.keeping.took();
        let (begin, mut told) = (self.answer.place(), Vec::new());
        self.thought += u32::from(self.answer.thinks());
        if let Err(fault) = self.read(token, vocabulary, &mut told) {
            return Some(Err(fault));
        }
        if self.answer.thinks() && self.answer.incomplete().is_empty() {
            self.keeping.thought(self.thought);
        }
        // Bytes of an incomplete character become part of one that begins where they stand.
        let end = self.answer.place().max(begin + 1);
        self.unsent.push_back(Unsent { token: named(picked, vocabulary), begin, end });
        self.tell(told, events);
        if self.answer.stopped_by().is_some() {
            // Tokens that lie wholly in the stop string or behind it are no part of the answer.
            self.unsent.clear();
            return Some(Ok(Finish::StopString));
        }
        if self.answer.is_done() {
            return Some(Ok(Finish::Calls));
        }
        if self.remaining() == 0 {
            return Some(Ok(self.flush(self.request.limit(), events)));
        }
        None
    }

    /// Reads a token, and goes on by it in what the answer keeps to. A call that begins as its grammar does not
    /// admit is none: it is text, marks and all.
    fn read(&mut self, token: Token, vocabulary: &Vocabulary, told: &mut Vec<Told>) -> Result<(), Fault> {
        let awaits = self.keeping.awaits_calls();
        if awaits
            && !vocabulary.has(token, attribute::CONTROL)
            && self.answer.pass(vocabulary.token_bytes(token), told)
        {
            return Ok(());
        }
        let thought = self.answer.thinks();
        let before = awaits.then(|| self.answer.clone());
        self.push(token, vocabulary, told);
        let call = self.answer.calling();
        let Some(before) = before else {
            // What the model thinks, and the marks around it, are no part of what is kept to.
            let counts = !thought && !self.answer.thinks();
            return if counts { self.keeping.follow(token, call.as_ref(), vocabulary) } else { Ok(()) };
        };
        if let Some(call) = call.filter(|it| before.calling().as_ref() != Some(it))
            && !self.begun(&call, vocabulary).is_some_and(|begun| self.keeping.begin(&call, &begun))
        {
            told.clear();
            self.answer = before;
            self.answer.deny(told);
            self.push(token, vocabulary, told);
        }
        Ok(())
    }

    fn push(&mut self, token: Token, vocabulary: &Vocabulary, told: &mut Vec<Told>) {
        let bytes = vocabulary.token_bytes(token);
        if vocabulary.has(token, attribute::CONTROL) {
            self.answer.push_control(bytes, told);
        } else {
            self.answer.push(bytes, told);
        }
    }

    /// The bytes of a call's input so far, half a character at their end included. `None`: there are control tokens
    /// among them.
    fn begun(&self, call: &Calling, vocabulary: &Vocabulary) -> Option<Vec<u8>> {
        let count = (self.answer.place() - call.begin) as usize + self.answer.incomplete().len();
        let mut begin = self.tokens.len();
        let mut found = 0;
        while found < count {
            begin -= 1;
            let token = *self.tokens.get(begin).filter(|_| begin >= self.request.prompt().len())?;
            if vocabulary.has(token, attribute::CONTROL) {
                return None;
            }
            found += vocabulary.token_bytes(token).len();
        }
        let bytes = self.tokens[begin..].iter().flat_map(|&it| vocabulary.token_bytes(it));
        Some(bytes.skip(found - count).copied().collect())
    }

    /// Tokens of the answer so far, those of before a preemption included.
    pub fn generated(&self) -> u32 {
        (self.tokens.len() - self.request.prompt().len()) as u32
    }

    /// Tells what was held back. Gives why the answer ends: the last incomplete character may have
    /// completed a stop string, and an answer that calls ends for that.
    fn flush(&mut self, reason: Finish, events: &mut Vec<(u64, Event)>) -> Finish {
        let mut told = Vec::new();
        self.answer.finish(reason == Finish::Stop, &mut told);
        self.tell(told, events);
        if self.answer.stopped_by().is_some() {
            return Finish::StopString;
        }
        if !self.answer.has_parts() && self.request.logprobs().is_some() && !self.unsent.is_empty() {
            let tokens = self.unsent.drain(..).map(|it| it.token).collect();
            events.push((self.id, Event::Piece(Piece { part: Part::Text, text: String::new(), tokens })));
        }
        if reason == Finish::Stop && self.calls > 0 { Finish::Calls } else { reason }
    }

    /// Tells parts of the answer, and with each piece the tokens whose first visible byte lies in it.
    fn tell(&mut self, told: Vec<Told>, events: &mut Vec<(u64, Event)>) {
        for one in told {
            let event = match one {
                Told::Piece { part, text, begin, end } => {
                    // Of tokens that are marks nothing is to be seen. Those of plain text are all told.
                    while self.answer.has_parts() && self.unsent.front().is_some_and(|it| it.end <= begin) {
                        self.unsent.pop_front();
                    }
                    let count = self.unsent.iter().take_while(|it| it.begin < end).count();
                    let tokens = self.unsent.drain(..count).map(|it| it.token).collect();
                    Event::Piece(Piece { part, text, tokens })
                }
                Told::CallBegan(name) => {
                    let index = self.calls;
                    self.calls += 1;
                    let id = rng::call_id(self.request.seed(), self.tokens.len() as u64, index);
                    Event::CallBegan { index, id, name }
                }
                Told::CallEnded => Event::CallEnded,
            };
            events.push((self.id, event));
        }
    }
}

fn named(picked: Picked, vocabulary: &Vocabulary) -> PickedToken {
    let bytes = |token| vocabulary.token_bytes(token).to_vec();
    let logprobs = picked.logprobs.map(|(logprob, top)| TokenLogprobs {
        bytes: bytes(picked.token),
        is_text: !vocabulary.has(picked.token, attribute::CONTROL),
        logprob,
        top: top.into_iter().map(|(token, logprob)| (bytes(token), token, logprob)).collect(),
    });
    PickedToken { id: picked.token, logprobs }
}
