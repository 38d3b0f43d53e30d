//! Sequences that change their place: copied, moved, saved and restored. Whatever happens to one, it goes
//! on token by token as if nothing had.
#![allow(clippy::unwrap_used, reason = "a failing call fails the test")]

mod support;

use std::path::PathBuf;

use llm_node_abi as abi;
use support::{Context, Model, Params, demo, engine, greedy, stories};

// Models with narrow heads would go without flash attention.
const UNIFIED: &[(&str, &str)] = &[("cache_mode", "unified"), ("flash_attention", "on")];
const SPLIT: &[(&str, &str)] = &[("cache_mode", "split"), ("flash_attention", "on")];
/// Without flash attention V lies transposed: a token's part of it is in many places.
const TRANSPOSED: &[(&str, &str)] = &[("cache_mode", "split"), ("flash_attention", "off")];
const QUANTISED: &[(&str, &str)] =
    &[("cache_mode", "split"), ("cache_type_k", "q8_0"), ("cache_type_v", "q8_0"), ("flash_attention", "on")];

fn params(options: &'static [(&'static str, &'static str)]) -> Params {
    Params { sequences: 5, length: 256, options, ..Params::default() }
}

/// The kinds of cache that a model can have: its heads must be as wide as a quantised block.
fn kinds(model: &Model<'_>) -> impl Iterator<Item = &'static [(&'static str, &'static str)]> {
    let wide = model.try_context(params(QUANTISED)).is_ok();
    [UNIFIED, SPLIT, TRANSPOSED].into_iter().chain(wide.then_some(QUANTISED))
}

fn models() -> impl Iterator<Item = PathBuf> {
    stories().into_iter().chain([demo()])
}

/// Prompts of different length, so that a mistaken place shows.
fn prompts(model: &Model<'_>) -> Vec<Vec<i32>> {
    ["Once upon a time, there was a little", "Lily", "What is an engine? The"]
        .iter()
        .map(|text| model.tokenize(text.as_bytes(), true))
        .collect()
}

/// A sequence, what comes next in it, and what came so far.
struct Story {
    sequence: u32,
    answer: Vec<i32>,
}

impl Story {
    fn begin(context: &mut Context<'_>, sequence: u32, prompt: &[i32]) -> Self {
        let row = context.run(&[(sequence, prompt)]).remove(0);
        Self { sequence, answer: vec![greedy(&row)] }
    }
}

/// One step for all, `count` times.
fn go_on(context: &mut Context<'_>, stories: &mut [&mut Story], count: usize) {
    for _ in 0..count {
        let last: Vec<(u32, Vec<i32>)> = stories
            .iter()
            .map(|story| (story.sequence, story.answer.last().into_iter().copied().collect()))
            .collect();
        let slices: Vec<(u32, &[i32])> =
            last.iter().map(|(sequence, tokens)| (*sequence, tokens.as_slice())).collect();
        let rows = context.run(&slices);
        for (story, row) in stories.iter_mut().zip(rows) {
            story.answer.push(greedy(&row));
        }
    }
}

/// What each prompt is answered with when nobody disturbs it.
fn expected(model: &Model<'_>, options: Params, prompts: &[Vec<i32>]) -> Vec<Vec<i32>> {
    prompts
        .iter()
        .map(|prompt| {
            let mut context = model.context(options);
            let mut story = Story::begin(&mut context, 0, prompt);
            go_on(&mut context, &mut [&mut story], 47);
            story.answer
        })
        .collect()
}

/// Each of the models in each kind of cache; `body` gets a context, the prompts and their answers.
fn everywhere(body: impl Fn(&mut Context<'_>, &[Vec<i32>], &[Vec<i32>])) {
    let (engine, _turn) = engine();
    for path in models() {
        let model = engine.try_load(&path).unwrap();
        let prompts = prompts(&model);
        for options in kinds(&model) {
            let expected = expected(&model, params(options), &prompts);
            assert_ne!(expected[0], expected[2]);
            body(&mut model.context(params(options)), &prompts, &expected);
        }
    }
}

fn same(story: &Story, expected: &[i32]) {
    assert_eq!(story.answer, expected[..story.answer.len()], "sequence {}", story.sequence);
}

#[test]
fn a_copy_and_its_source_go_on_alike() {
    everywhere(|context, prompts, expected| {
        let mut source = Story::begin(context, 0, &prompts[0]);
        go_on(context, &mut [&mut source], 9);
        assert!(context.copy(0, 3, context.end(0)).is_ok());
        let mut copy = Story { sequence: 3, answer: source.answer.clone() };
        go_on(context, &mut [&mut source, &mut copy], 20);
        same(&source, &expected[0]);
        same(&copy, &expected[0]);
    });
}

/// A pool takes more ids than were asked for, so that prefixes can be kept.
#[test]
fn a_pool_has_ids_to_spare() {
    let (engine, _turn) = engine();
    for path in models() {
        let model = engine.try_load(&path).unwrap();
        let prompts = prompts(&model);
        let expected = expected(&model, params(UNIFIED), &prompts);
        let mut context = model.context(params(UNIFIED));
        let mut source = Story::begin(&mut context, 0, &prompts[0]);
        go_on(&mut context, &mut [&mut source], 9);
        assert!(context.copy(0, 31, context.end(0)).is_ok());
        let mut copy = Story { sequence: 31, answer: source.answer.clone() };
        go_on(&mut context, &mut [&mut source, &mut copy], 20);
        same(&source, &expected[0]);
        same(&copy, &expected[0]);
    }
}

/// The prompt's own prefix, as a cache of prefixes has it: the rest of the prompt is decoded again.
#[test]
fn a_copied_prefix_goes_on_as_the_prompt() {
    everywhere(|context, prompts, expected| {
        let mut source = Story::begin(context, 0, &prompts[0]);
        go_on(context, &mut [&mut source], 30);
        let end = prompts[0].len() as u32 - 2;
        assert!(context.copy(0, 2, end).is_ok());
        assert!(context.remove(0, 0).is_ok());
        let mut copy = Story::begin(context, 2, &prompts[0][end as usize..]);
        go_on(context, &mut [&mut copy], 20);
        same(&copy, &expected[0]);
    });
}

/// What the scheduler does to keep sequences dense, all before the next step: 0 ends, 2 moves to 0, 1
/// moves to 2, a new one comes into 1.
#[test]
fn moves_in_a_row_mix_nothing_up() {
    everywhere(|context, prompts, expected| {
        let mut stories: Vec<Story> =
            (0..3).map(|index| Story::begin(context, index as u32, &prompts[index])).collect();
        let [first, second, third] = &mut stories[..] else { unreachable!() };
        go_on(context, &mut [first, second, third], 9);
        let free = context.free();
        assert!(context.remove(0, 0).is_ok());
        for (from, to) in [(2, 0), (1, 2)] {
            assert!(context.copy(from, to, context.end(from)).is_ok());
            assert!(context.remove(from, 0).is_ok());
        }
        assert_eq!(context.free(), free + prompts[0].len() as u64 + 9);
        (third.sequence, second.sequence) = (0, 2);
        let mut fresh = Story::begin(context, 1, &prompts[0]);
        go_on(context, &mut [third, &mut fresh, second], 20);
        same(third, &expected[2]);
        same(second, &expected[1]);
        same(&fresh, &expected[0]);
    });
}

#[test]
fn a_restored_sequence_goes_on_where_it_was_saved() {
    everywhere(|context, prompts, expected| {
        let mut stories: Vec<Story> =
            (0..3).map(|index| Story::begin(context, index as u32, &prompts[index])).collect();
        let [first, second, third] = &mut stories[..] else { unreachable!() };
        // Step by step, so that in a pool the cells of the three lie among each other.
        go_on(context, &mut [first, second, third], 9);
        let (end, free) = (context.end(0), context.free());
        let state = context.save(0).unwrap();
        // Saving disturbs nobody.
        go_on(context, &mut [first, second, third], 3);
        first.answer.truncate(10);
        assert!(context.remove(0, 0).is_ok());

        // Into another place, where there are holes, and then into its own.
        for sequence in [4, 0] {
            assert_eq!(context.restore(sequence, &state), abi::ERR_OK);
            assert_eq!((context.range(sequence), context.free()), ((0, end), free - 6));
            let mut again = Story { sequence, answer: first.answer.clone() };
            go_on(context, &mut [&mut again], 15);
            same(&again, &expected[0]);
            // Restored positions can be cut back as others.
            assert!(context.remove(sequence, end).is_ok());
            again.answer.truncate(10);
            go_on(context, &mut [&mut again], 5);
            same(&again, &expected[0]);
            assert!(context.remove(sequence, 0).is_ok());
        }
        go_on(context, &mut [second, third], 10);
        same(second, &expected[1]);
        same(third, &expected[2]);
    });
}

/// Copies, saves and restores that touch the same places with no step in between.
#[test]
fn cache_operations_happen_in_their_order() {
    everywhere(|context, prompts, expected| {
        let mut first = Story::begin(context, 0, &prompts[0]);
        let mut second = Story::begin(context, 1, &prompts[2]);
        go_on(context, &mut [&mut first, &mut second], 9);
        // A copy is saved before a step has seen it, and its source overwritten by another state.
        let state = context.save(1).unwrap();
        assert!(context.copy(0, 2, context.end(0)).is_ok());
        assert!(context.remove(0, 0).is_ok());
        assert!(context.restore(0, &state).is_ok());
        let copied = context.save(2).unwrap();
        assert!(context.remove(2, 0).is_ok());
        assert!(context.copy(0, 2, context.end(0)).is_ok());
        assert!(context.remove(1, 0).is_ok());
        assert!(context.restore(1, &copied).is_ok());
        first.sequence = 1;
        second.sequence = 0;
        let mut other = Story { sequence: 2, answer: second.answer.clone() };
        go_on(context, &mut [&mut second, &mut first, &mut other], 20);
        same(&first, &expected[0]);
        same(&second, &expected[2]);
        same(&other, &expected[2]);
    });
}

/// A context of the same kind takes the state over; one of another kind, or of another model, sees that
/// it cannot.
#[test]
fn a_state_is_good_for_contexts_made_alike() {
    let (engine, _turn) = engine();
    for path in models() {
        let model = engine.try_load(&path).unwrap();
        let prompts = prompts(&model);
        for options in [UNIFIED, SPLIT] {
            let expected = expected(&model, params(options), &prompts);
            let mut context = model.context(params(options));
            let mut story = Story::begin(&mut context, 0, &prompts[0]);
            go_on(&mut context, &mut [&mut story], 9);
            let state = context.save(0).unwrap();
            drop(context);

            let mut alike = model.context(params(options));
            assert_eq!(alike.restore(1, &state), abi::ERR_OK);
            story.sequence = 1;
            go_on(&mut alike, &mut [&mut story], 20);
            same(&story, &expected[0]);

            for other in kinds(&model).filter(|other| *other != options) {
                let context = model.context(params(other));
                assert_eq!(context.restore(1, &state), abi::ERR_INVALID_ARGUMENT);
                assert_eq!(context.range(1), (0, 0));
            }
            for path in models().filter(|other| *other != path) {
                let model = engine.try_load(&path).unwrap();
                let context = model.context(params(options));
                assert_eq!(context.restore(1, &state), abi::ERR_INVALID_ARGUMENT);
            }
        }
    }
}

#[test]
fn what_is_no_state_is_refused() {
    everywhere(|context, prompts, expected| {
        let mut story = Story::begin(context, 0, &prompts[0]);
        assert_eq!(context.save(1), Err(abi::ERR_INVALID_ARGUMENT));
        assert_eq!(context.save(256), Err(abi::ERR_INVALID_ARGUMENT));
        let state = context.save(0).unwrap();
        let (range, free) = (context.range(0), context.free());
        assert_eq!(context.restore(0, &state), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(context.restore(256, &state), abi::ERR_INVALID_ARGUMENT);

        let lengths = (0..64).chain([state.len() / 2, state.len() - 1]);
        for length in lengths {
            assert_eq!(context.restore(1, &state[..length]), abi::ERR_INVALID_ARGUMENT, "{length} bytes");
        }
        let longer = [&state[..], &[0]].concat();
        assert_eq!(context.restore(1, &longer), abi::ERR_INVALID_ARGUMENT);
        for byte in (0..64).chain((64..state.len()).step_by(997)) {
            let mut damaged = state.clone();
            damaged[byte] ^= 0x40;
            assert_eq!(context.restore(1, &damaged), abi::ERR_INVALID_ARGUMENT, "byte {byte}");
        }
        assert_eq!((context.range(0), context.range(1), context.free()), (range, (0, 0), free));
        go_on(context, &mut [&mut story], 20);
        same(&story, &expected[0]);
    });
}

#[test]
fn a_state_that_finds_no_room_changes_nothing() {
    let (engine, _turn) = engine();
    let model = engine.try_load(&demo()).unwrap();
    let prompts = prompts(&model);
    let long: Vec<i32> = prompts[0].iter().copied().cycle().take(200).collect();
    let mut context = model.context(Params { cache: 256, ..params(UNIFIED) });
    let row = context.run(&[(0, &long)]).remove(0);
    let state = context.save(0).unwrap();
    assert_eq!(context.restore(1, &state), abi::ERR_CACHE_FULL);
    assert_eq!((context.range(1), context.free()), ((0, 0), 56));
    let next = greedy(&row);
    let expected = context.run(&[(0, &[next])]).remove(0);
    assert!(context.remove(0, 0).is_ok());
    assert_eq!(context.restore(1, &state), abi::ERR_OK);
    assert_eq!((context.range(1), context.free()), ((0, 200), 56));
    assert_eq!(greedy(&context.run(&[(1, &[next])]).remove(0)), greedy(&expected));
}
