//! Drafts of a second model, on a toy engine: what it proposes is always what it would have generated
//! after exactly this text, whatever was proposed, rejected, evicted or forgotten before.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use crate::toy_engine::{EOS, N_VOCAB, POISON, ToyEngine, ToyTokenizer, limits};
use llm_node_core::{
    engine::{
        EngineFault, EngineFaultKind, Limits, Row, SequenceId, Slice, StepEngine, Ticket, Token, Tokenizer,
        Vocabulary,
    },
    request::Sampling,
    sample::{Forbidden, Job, Occurrences, Sampler},
    speculate::{DraftModel, Drafter, Want},
};
use proptest::prelude::*;

/// Tokens of each step, by sequence.
type Steps = Arc<Mutex<Vec<Vec<(SequenceId, usize)>>>>;

/// A toy that fails on demand, and tells what it was asked for.
#[derive(Debug)]
struct Watched {
    toy: ToyEngine,
    /// What the next calls answer: fine, or a fault.
    faults: VecDeque<Option<EngineFaultKind>>,
    steps: Steps,
}

impl Watched {
    fn new(limits: Limits) -> Self {
        Self { toy: ToyEngine::new(limits), faults: VecDeque::new(), steps: Arc::default() }
    }

    fn outcome(&mut self, call: &'static str) -> Result<(), EngineFault> {
        match self.faults.pop_front().flatten() {
            Some(kind) => Err(EngineFault { kind, message: "as wished".into(), call }),
            None => Ok(()),
        }
    }
}

impl StepEngine for Watched {
    fn limits(&self) -> &Limits {
        self.toy.limits()
    }

    fn step(&mut self, slices: &[Slice<'_>]) -> Result<Ticket, EngineFault> {
        self.outcome("step")?;
        let ticket = self.toy.step(slices)?;
        self.steps.lock().unwrap().push(slices.iter().map(|it| (it.sequence, it.tokens.len())).collect());
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket, rows: usize) -> Result<Vec<Row<'_>>, EngineFault> {
        self.outcome("collect")?;
        self.toy.collect(ticket, rows)
    }

    fn copy_prefix(&mut self, from: SequenceId, to: SequenceId, end: u32) -> Result<(), EngineFault> {
        self.toy.copy_prefix(from, to, end)
    }

    fn truncate(&mut self, sequence: SequenceId, begin: u32) -> Result<(), EngineFault> {
        self.outcome("truncate")?;
        let (_, end) = self.toy.range(sequence)?;
        assert!(begin == 0 || end - begin <= self.limits().max_rollback);
        self.toy.truncate(sequence, begin)
    }

    fn range(&self, sequence: SequenceId) -> Result<(u32, u32), EngineFault> {
        self.toy.range(sequence)
    }

    fn cache_free(&self) -> u64 {
        self.toy.cache_free()
    }
}

fn vocabulary() -> Arc<Vocabulary> {
    Arc::new(ToyTokenizer::new().vocabulary().clone())
}

/// What the model generates after a text, greedily: up to `most` tokens, and none after the end.
fn greedy(tokens: &[Token], most: usize) -> Vec<Token> {
    let mut engine = ToyEngine::new(Limits { max_sequences: 1, context_length: u32::MAX, ..limits() });
    let forbidden = Forbidden::of(&vocabulary(), N_VOCAB as usize);
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut text = tokens.to_vec();
    let mut position = 0;
    while text.len() < tokens.len() + most && (text.len() == tokens.len() || text.last() != Some(&EOS)) {
        let slice = Slice {
            sequence: 0,
            position: position as u32,
            tokens: &text[position..],
            rows: 1,
            candidates: 0,
        };
        position = text.len();
        let ticket = engine.step(&[slice]).unwrap();
        let rows = engine.collect(ticket, 1).unwrap();
        let occurrences = Occurrences::default();
        let job = Job {
            row: &rows[0],
            sampling: &sampling,
            occurrences: &occurrences,
            mask: None,
            uniform: 0.0,
            logprobs: None,
        };
        let picked = Sampler::default().pick_from(&job, &forbidden);
        match picked {
            Ok(picked) => text.push(picked.token),
            Err(_) => break,
        }
    }
    text.split_off(tokens.len())
}

fn draft<E: StepEngine + std::fmt::Debug + Send>(
    model: &mut DraftModel<E>,
    texts: &[(u64, &[Token], u32)],
) -> Vec<Vec<Token>> {
    let mut wants: Vec<_> =
        texts.iter().map(|&(id, tokens, most)| Want { id, tokens, most, draft: Vec::new() }).collect();
    model.draft_all(&mut wants);
    wants.into_iter().map(|it| it.draft).collect()
}

#[test]
fn an_answer_is_drafted_as_it_would_be_generated() {
    let mut model = DraftModel::new(Watched::new(limits()), vocabulary(), 64);
    let (prompt, answer) =
        (0..256).map(|it| ([3, it], greedy(&[3, it], 40))).max_by_key(|(_, it)| it.len()).unwrap();
    assert!(answer.len() > 20);
    let mut text = prompt.to_vec();
    while let Some(rest) = answer.get(text.len() - prompt.len()..).filter(|it| !it.is_empty()) {
        let proposed = draft(&mut model, &[(1, &text, 4)]).remove(0);
        assert_eq!(proposed, rest[..rest.len().min(4)]);
        // All of it was accepted, and the model's own next token follows.
        text.extend(&rest[..rest.len().min(proposed.len() + 1)]);
    }
}

#[test]
fn requests_share_each_pass() {
    let engine = Watched::new(limits());
    let steps = Arc::clone(&engine.steps);
    let mut model = DraftModel::new(engine, vocabulary(), 64);
    let texts: [&[Token]; 3] = [&[1, 2, 3], &[4, 5], &[6]];
    let drafts = draft(&mut model, &[(7, texts[0], 3), (8, texts[1], 1), (9, texts[2], 2)]);
    for ((drafted, tokens), most) in drafts.iter().zip(texts).zip([3, 1, 2]) {
        assert_eq!(*drafted, greedy(tokens, most));
    }
    let expected = [vec![(0, 3), (1, 2), (2, 1)], vec![(0, 1), (2, 1)], vec![(0, 1)]];
    assert_eq!(*steps.lock().unwrap(), expected);
}

#[test]
fn a_long_prompt_holds_up_no_step() {
    let engine = Watched::new(limits());
    let steps = Arc::clone(&engine.steps);
    let mut model = DraftModel::new(engine, vocabulary(), 8);
    let long: Vec<Token> = (0..50).collect();
    let mut short = vec![1, 2, 3];
    let mut calls = 0;
    loop {
        let drafts = draft(&mut model, &[(0, &long, 2), (1, &short, 2)]);
        calls += 1;
        assert_eq!(drafts[1], greedy(&short, 2), "the one that lacks little is not held up");
        if !drafts[0].is_empty() {
            assert_eq!(drafts[0], greedy(&long, 2));
            break;
        }
        short.push(9);
    }
    assert!((5..=8).contains(&calls), "{calls}");
    for step in &*steps.lock().unwrap() {
        assert!(step.iter().map(|(_, tokens)| tokens).sum::<usize>() <= 8 + 2);
    }
}

#[test]
fn the_least_recently_used_gives_way() {
    let engine = Watched::new(Limits { max_sequences: 2, ..limits() });
    let steps = Arc::clone(&engine.steps);
    let mut model = DraftModel::new(engine, vocabulary(), 64);
    let text: &[Token] = &[1, 2, 3, 4];
    for id in [0, 1, 0, 2] {
        assert_eq!(draft(&mut model, &[(id, text, 1)]), [greedy(text, 1)]);
    }
    // 0 was used after 1, so 1 was evicted for 2, at its sequence; 0 has all but the last token.
    assert_eq!(draft(&mut model, &[(0, text, 1)]), [greedy(text, 1)]);
    let steps = steps.lock().unwrap().concat();
    assert_eq!(steps, [(0, 4), (1, 4), (0, 1), (1, 4), (0, 1)]);
}

#[test]
fn those_that_draft_now_are_not_evicted_for_others() {
    let mut model = DraftModel::new(Watched::new(Limits { max_sequences: 2, ..limits() }), vocabulary(), 64);
    let text: &[Token] = &[1, 2, 3, 4];
    let wants: Vec<_> = (0..4).map(|id| (id, text, 2)).collect();
    for _ in 0..3 {
        let expected = [greedy(text, 2), greedy(text, 2), Vec::new(), Vec::new()];
        assert_eq!(draft(&mut model, &wants), expected);
    }
}

#[test]
fn logits_that_are_no_numbers_propose_nothing() {
    let mut model = DraftModel::new(Watched::new(limits()), vocabulary(), 64);
    assert_eq!(draft(&mut model, &[(0, &[1, POISON], 4), (1, &[1], 4)]), [Vec::new(), greedy(&[1], 4)]);
    assert_eq!(model.fault(), None);
}

#[test]
fn a_fault_ends_the_drafting() {
    for (calls, name) in [(0, "step"), (1, "collect"), (4, "truncate")] {
        let mut engine = Watched::new(limits());
        engine.faults.extend(std::iter::repeat_n(None, calls));
        engine.faults.push_back(Some(EngineFaultKind::Internal));
        let mut model = DraftModel::new(engine, vocabulary(), 64);
        for text in [[1, 2, 3], [1, 2, 4], [1, 7, 4]] {
            draft(&mut model, &[(0, &text, 2)]);
        }
        assert_eq!(model.fault().unwrap().call, name);
        assert_eq!(draft(&mut model, &[(1, &[1, 2, 3], 2)]), [Vec::<Token>::new()]);
        model.forget(0);
    }
}

#[test]
fn a_row_that_is_missing_ends_the_drafting() {
    let mut engine = Watched::new(limits());
    engine.toy.forget_a_row = true;
    let mut model = DraftModel::new(engine, vocabulary(), 64);
    assert_eq!(draft(&mut model, &[(0, &[1, 2, 3], 2)]), [Vec::<Token>::new()]);
    assert_eq!(model.fault().unwrap().kind, EngineFaultKind::Misbehaved);
}

#[derive(Clone, Debug)]
enum Act {
    /// Accept so many tokens of the last draft, then go on with this token; per request.
    Go(Vec<(u64, usize, Token, u32)>),
    Forget(u64),
    Another(u64, Vec<Token>),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let token = || 0..200;
    let go = prop::collection::btree_map(0u64..5, (0usize..5, token(), 0u32..5), 1..5).prop_map(|it| {
        Act::Go(it.into_iter().map(|(id, (accept, own, most))| (id, accept, own, most)).collect())
    });
    let another = (0u64..5, prop::collection::vec(token(), 1..60)).prop_map(|(id, it)| Act::Another(id, it));
    let act = prop_oneof![8 => go, 1 => (0u64..5).prop_map(Act::Forget), 1 => another];
    prop::collection::vec(act, 1..40)
}

/// `all`: is there room for everything, so that every draft has to be as long as it can be?
fn play(
    engine: Watched,
    catch_up: u32,
    acts: Vec<Act>,
    all: bool,
) -> Result<DraftModel<Watched>, TestCaseError> {
    let mut model = DraftModel::new(engine, vocabulary(), catch_up);
    let mut texts: BTreeMap<u64, (Vec<Token>, Vec<Token>)> = BTreeMap::new();
    for act in acts {
        match act {
            Act::Forget(id) => {
                model.forget(id);
                texts.remove(&id);
            }
            Act::Another(id, text) => {
                texts.insert(id, (text, Vec::new()));
            }
            Act::Go(wants) => {
                for &(id, accept, own, _) in &wants {
                    let (text, drafted) = texts.entry(id).or_default();
                    text.extend(drafted.drain(..).take(accept));
                    text.push(own);
                }
                let asked: Vec<_> =
                    wants.iter().map(|(id, _, _, most)| (*id, texts[id].0.as_slice(), *most)).collect();
                let drafts = draft(&mut model, &asked);
                for ((id, text, most), drafted) in asked.iter().zip(&drafts) {
                    let expected = greedy(text, *most as usize);
                    prop_assert!(expected.starts_with(drafted), "{id}: {drafted:?}, not {expected:?}");
                    prop_assert!(
                        !all || drafted.len() == expected.len(),
                        "{id}: {drafted:?}, not {expected:?}"
                    );
                }
                let ids: Vec<_> = wants.iter().map(|it| it.0).collect();
                for (id, drafted) in ids.into_iter().zip(drafts) {
                    texts.entry(id).or_default().1 = drafted;
                }
            }
        }
    }
    Ok(model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn with_room_for_all_every_draft_is_whole(acts in acts(), max_sequences in 5u32..8) {
        let limits = Limits { max_sequences, context_length: 4096, ..limits() };
        let model = play(Watched::new(limits), u32::MAX, acts, true)?;
        prop_assert_eq!(model.fault(), None);
    }

    #[test]
    fn drafts_are_right_whatever_went_before(
        acts in acts(), max_sequences in 1u32..6, max_rows in 1u32..6, max_batch_tokens in 1u32..40,
        context_length in 1u32..120, cache_tokens in 1u64..200, cache_page in 1u32..5,
        max_rollback in prop_oneof![0u32..4, Just(u32::MAX)], catch_up in 0u32..40,
    ) {
        let limits = Limits {
            max_sequences, max_rows, max_batch_tokens, context_length, cache_tokens, cache_page, max_rollback,
            ..limits()
        };
        let model = play(Watched::new(limits), catch_up, acts, false)?;
        prop_assert_eq!(model.fault(), None);
    }

    #[test]
    fn faults_never_panic_and_never_propose_what_is_wrong(
        acts in acts(), calls in 0usize..60, max_sequences in 1u32..6,
        faults in prop::collection::vec(prop_oneof![
            Just(None), Just(Some(EngineFaultKind::CacheFull)), Just(Some(EngineFaultKind::Internal)),
            Just(Some(EngineFaultKind::Cancelled)), Just(Some(EngineFaultKind::DeviceLost)),
        ], 1..20),
    ) {
        let mut engine = Watched::new(Limits { max_sequences, ..limits() });
        engine.faults.extend(std::iter::repeat_n(None, calls));
        engine.faults.extend(faults);
        play(engine, 16, acts, false)?;
    }
}
