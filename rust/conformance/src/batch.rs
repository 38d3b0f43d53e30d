//! `engine.batch/1`: what the model says of a text must not depend on what else is computed beside it, on how
//! it is cut, or on where it lies in the cache.

use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use llm_node_abi::{
    ENGINE_STAGE_LOGITS, ENGINE_STAGE_TOKEN, ENGINE_STAGE_TOP, ENGINE_TOKEN_NONE, ENGINE_TOKEN_PREVIOUS,
    ERR_BUFFER_TOO_SMALL, ERR_CACHE_FULL, ERR_CANCELLED, ERR_INVALID_ARGUMENT, ERR_UNSUPPORTED, EngineRow,
    EngineSlice,
};
use llm_node_core::engine::{EngineFaultKind, Row, Slice, StepEngine, Token};
use llm_node_host::{Context, ContextParams, EngineError};

use crate::bench::{Bench, LONGEST, context, context_for, plain_tokens};
use crate::check::{Check, Level, Stop, Verdict, ensure};
use crate::picks;
use crate::raw::{batch as raw, process};
use crate::script::{Call, Feed, made_up};
use crate::world::{World, apart, fed};

const ALONE: &[&str] = &["batch.rows"];
const CUT: &[&str] = &["batch.cut"];

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "batch.create",
        level: Level::Must,
        what: "A context is made, has at least what was asked for, and is destroyed.",
        contract: "What was made of the parameters: at least what was asked for, or create fails",
        mend: "Report in EngineContextInfo what the context has, and refuse in create what it cannot have.",
        after: &["models.load"],
        ask: create,
    },
    Check {
        name: "batch.rows",
        level: Level::Must,
        what: "One step of a few tokens brings one row: n_vocab numbers, in a known format, at the stage asked for.",
        contract: "Waits for that step and describes its rows; n_rows is the sum over its slices.",
        mend: "Fill every member of EngineRow: stage, dtype, n = n_vocab, ids NULL, and logits that are numbers.",
        after: &["batch.create", "tokenizer.vocabulary"],
        ask: rows,
    },
    Check {
        name: "batch.repeat",
        level: Level::Must,
        what: "The same tokens bring the same row again, after the sequence was removed, and in another sequence.",
        contract: "It comes into being when tokens are put into it and is gone when they are all removed.",
        mend: "Set back all that belongs to a sequence when it is removed, and keep nothing of a step for the next.",
        after: ALONE,
        ask: repeat,
    },
    Check {
        name: "batch.last-token",
        level: Level::Should,
        what: "A row depends on the token that it stands behind, and not only on those before it.",
        contract: "rows wanted, for the LAST n_rows tokens of the slice",
        mend: "Put the token of a row into the cache first, and compute the row from all up to it then.",
        after: ALONE,
        ask: last_token,
    },
    Check {
        name: "batch.cut",
        level: Level::Must,
        what: "A prompt that is cut at any place brings the row that it brings whole.",
        contract: "of tokens[0]; it must be where the sequence ends",
        mend: "Begin each slice at its position, and let its tokens look at all that the sequence holds before it.",
        after: ALONE,
        ask: cut,
    },
    Check {
        name: "batch.several-rows",
        level: Level::Must,
        what: "Row i of several is what a step that ends at its token would bring.",
        contract: "rows wanted, for the LAST n_rows tokens of the slice; mostly 0, 1",
        mend: "Give the rows of the last n_rows tokens, the earliest first, each of what comes before it alone.",
        after: CUT,
        ask: several_rows,
    },
    Check {
        name: "batch.together",
        level: Level::Must,
        what: "Sequences that are computed in one step, in any order and with holes between them, bring what each \
               brings alone.",
        contract: "Rows come in the order of the slices, and within a slice in the order of its tokens.",
        mend: "Give rows in the order of the slices, not of the sequences, and let no sequence look at another.",
        after: CUT,
        ask: together,
    },
    Check {
        name: "batch.mixed",
        level: Level::Must,
        what: "Running sequences and pieces of prompts, with no row, one and several, bring in one step what each \
               brings alone.",
        contract: "step(batch 2) the chosen tokens of the running sequences, a piece of a new prompt, ...",
        mend: "Count rows over slices as they come: those of a slice begin where those of the slice before end.",
        after: &["batch.together", "batch.several-rows"],
        ask: mixed,
    },
    Check {
        name: "batch.copy",
        level: Level::Must,
        what: "A copy goes on as its original would; a copy of a copy as well, and when the original is gone.",
        contract: "Makes positions [0, end) of `from` the beginning of `to`, which must be empty.",
        mend: "Count who holds each cell, and copy before you write to one that several sequences hold.",
        after: CUT,
        ask: copy,
    },
    Check {
        name: "batch.remove",
        level: Level::Must,
        what: "What is removed is gone, and what others hold stays.",
        contract: "Removes positions from `begin` on; none where the sequence ends before. 0 always succeeds",
        mend: "Free the cells from `begin` on of this sequence alone, and forget them in the attention mask.",
        after: CUT,
        ask: remove,
    },
    Check {
        name: "batch.rollback",
        level: Level::Must,
        what: "Drafts are computed, some of them taken back, and the text goes on as if they had not been.",
        contract: "Speculative decoding is a slice with n_rows > 1 and a seq_remove",
        mend: "Put the sequence's end back to `begin`, and write the next tokens over what was there.",
        after: &["batch.several-rows", "batch.remove"],
        ask: rollback,
    },
    Check {
        name: "batch.account",
        level: Level::Must,
        what: "cache_free is the capacity when nothing is held, falls with what is, and comes back.",
        contract: "Tokens that the cache can still take, whole pages counted as full; cache_tokens where no sequence \
                   has any.",
        mend: "Count free cells where they are taken and given back, and once only where several sequences hold one.",
        after: ALONE,
        ask: account,
    },
    Check {
        name: "batch.full",
        level: Level::Must,
        what: "A step that does not fit fails with ERR_CACHE_FULL and changes nothing; after a removal it is taken.",
        contract: "ERR_CACHE_FULL, ERR_INVALID_ARGUMENT: nothing was changed.",
        mend: "Count what a step needs before you take the first cell of it.",
        after: &["batch.account"],
        ask: full,
    },
    Check {
        name: "batch.length",
        level: Level::Must,
        what: "A sequence grows to context_length, and no further.",
        contract: "for a sequence that would outgrow context_length",
        mend: "Take tokens up to position context_length - 1, and return ERR_INVALID_ARGUMENT beyond.",
        after: ALONE,
        ask: length,
    },
    Check {
        name: "batch.limits",
        level: Level::Must,
        what: "A step as large as the context says it takes is taken: all its tokens, rows and sequences.",
        contract: "most tokens in one step; 0: the engine's choice",
        mend: "Report in EngineContextInfo what step takes, and cut the batch into what the device takes in step.",
        after: &["batch.several-rows"],
        ask: limits,
    },
    Check {
        name: "batch.invalid",
        level: Level::Must,
        what: "Wrong sequences, positions, tokens, numbers of rows and of tokens are refused, and change nothing.",
        contract: "ERR_INVALID_ARGUMENT for a sequence, a position or a token that there is not",
        mend: "Look at every slice before you compute the first, and return ERR_INVALID_ARGUMENT.",
        after: ALONE,
        ask: invalid,
    },
    Check {
        name: "batch.invalid-sequences",
        level: Level::Must,
        what: "seq_copy, seq_remove and seq_range refuse sequences that there are not, and ends that there are not.",
        contract: "A sequence is a number from 0 to max_sequences - 1.",
        mend: "Compare each sequence with max_sequences, `end` with where `from` ends, and look whether `to` is empty.",
        after: ALONE,
        ask: invalid_sequences,
    },
    Check {
        name: "batch.tickets",
        level: Level::Must,
        what: "Tickets count from 1, a step that fails takes none, and an unknown one cannot be collected.",
        contract: "*ticket counts up by one: the first is 1, and 0 is none. A step that fails has no ticket.",
        mend: "Add one to the ticket when a step was taken, and compare it in collect.",
        after: ALONE,
        ask: tickets,
    },
    Check {
        name: "batch.memory-of-a-step",
        level: Level::Must,
        what: "What step was given is overwritten when it returns; the rows are as they must be.",
        contract: "it has copied all it needs from `batch`",
        mend: "Copy slices, tokens and picks in step: they are the host's, and gone when it returns.",
        after: ALONE,
        ask: memory_of_a_step,
    },
    Check {
        name: "batch.rows-stay",
        level: Level::Must,
        what: "Rows stay as they are while the cache is changed, and when they are collected again.",
        contract: "and are valid until max_in_flight further steps are submitted.",
        mend: "Keep the rows of a step in memory of their own until the next one.",
        after: ALONE,
        ask: rows_stay,
    },
    Check {
        name: "batch.strides",
        level: Level::Must,
        what: "Slices and rows of a newer and of an older host are taken, at their strides.",
        contract: "sizeof(EngineSlice), as the host knows it",
        mend: "Go from slice to slice by slice_stride and from row to row by row_stride, and write min(stride, sizeof).",
        after: &["batch.memory-of-a-step"],
        ask: strides,
    },
    Check {
        name: "batch.top",
        level: Level::Must,
        what: "Candidates are the best of the row, best first, each once, with the row's own logits and log_sum.",
        contract: "the n_candidates largest shaped logits, best first; equal ones by lower id",
        mend: "Sort by logit downwards and by id upwards, and give at most n_candidates.",
        after: ALONE,
        ask: top,
    },
    Check {
        name: "batch.stages",
        level: Level::Must,
        what: "No row goes further than wished; with a use that nobody knows it stays at LOGITS; a greedy token is \
               the best one.",
        contract: "an engine that does not do everything that `uses` names stays at LOGITS.",
        mend: "Compare `uses` with a mask of what you do, and answer LOGITS when any other bit is set.",
        after: &["batch.memory-of-a-step"],
        ask: stages,
    },
    Check {
        name: "batch.picks",
        level: Level::Must,
        what: "Penalties, bias, masks and the draw lead where the chain leads, for each that `uses` may name; a row at \
               LOGITS is the model's own, and members that are not named are not read.",
        contract: "From a row of logits to a token there is one fixed chain",
        mend: "Do each step of the chain as the header says it, or answer LOGITS for a pick that uses it.",
        after: &["batch.stages", "batch.several-rows"],
        ask: picks::picks,
    },
    Check {
        name: "batch.chain",
        level: Level::Must,
        what: "Steps that go on with the token before, unseen, bring the tokens that come one by one.",
        contract: "the token that the engine picked for this sequence in the step before, which the host has not yet seen",
        mend: "Put the token that the step before has picked for the sequence in the place of ENGINE_TOKEN_PREVIOUS.",
        after: &["batch.picks"],
        ask: picks::chain,
    },
    Check {
        name: "batch.save",
        level: Level::Must,
        what: "A sequence that was saved goes on in another place, and in another context, as it would have.",
        contract: "Makes the sequence, which must be empty, what was saved of this or another one.",
        mend: "Write all that the sequence holds, and its length; read it back into cells of the new place.",
        after: CUT,
        ask: save,
    },
    Check {
        name: "batch.save-sizes",
        level: Level::Must,
        what: "Capacity 0 asks how many bytes there are, one too few is too few, and bytes that are no state are refused.",
        contract: "with ERR_BUFFER_TOO_SMALL, how many are needed, never 0, and `data` is untouched",
        mend: "Set *size in either case, write nothing when the capacity is less, and put a mark and a checksum first.",
        after: ALONE,
        ask: save_sizes,
    },
    Check {
        name: "batch.cancel",
        level: Level::Must,
        what: "cancel from another thread ends a step or does nothing; the context goes on, and the other one is not \
               touched.",
        contract: "Asks the step that is running to end with ERR_CANCELLED.",
        mend: "Set a flag of the context that its step looks at and takes back when it begins.",
        after: CUT,
        ask: cancel,
    },
    Check {
        name: "batch.contexts",
        level: Level::Must,
        what: "Two contexts of a model work by turns, and on two threads at once, each as if it were alone.",
        contract: "calls for different contexts may run at once.",
        mend: "Keep cache, rows and scratch memory in the context, and nothing of it in the model or in static variables.",
        after: CUT,
        ask: contexts,
    },
    Check {
        name: "batch.threads",
        level: Level::Must,
        what: "Each step of a context is made by another thread.",
        contract: "The OS thread may change from call to call: keep nothing in thread-local state",
        mend: "Keep what belongs to a context in it, and select the device at each entry.",
        after: CUT,
        ask: threads,
    },
    Check {
        name: "batch.destroy",
        level: Level::Must,
        what: "Contexts are made and destroyed over and over, also with a step that was not collected, and leave \
               nothing behind.",
        contract: "Handles are destroyed by the function that belongs to them",
        mend: "Wait for what still runs, then free all that create and steps have allocated.",
        after: ALONE,
        ask: destroy,
    },
    Check {
        name: "batch.steady",
        level: Level::Should,
        what: "Memory does not grow from step to step.",
        contract: "Nobody frees what the other side allocated.",
        mend: "Allocate in create what steps need, or free at the end of a step what it has allocated.",
        after: ALONE,
        ask: steady,
    },
    Check {
        name: "batch.scripts",
        level: Level::Must,
        what: "Scripts of all these calls, made up at random, bring after every call what a model of the cache says.",
        contract: "The host owns the schedule: which sequences take part in the next forward pass, with how many \
                   tokens each.",
        mend: "Follow the calls below by hand: they are the fewest that still go wrong.",
        after: &["batch.mixed", "batch.copy", "batch.rollback", "batch.account"],
        ask: scripts,
    },
];

/// Sequences at once in a check that wants some.
const SOME: u32 = 5;
/// Tokens that are tried in one place.
const OTHERS: usize = 16;
/// Rows that differ by no more, in units of their own spread, are the same.
const SAME: f32 = 1e-4;

fn feed(sequence: u32, tokens: &[Token], rows: u32) -> Feed {
    Feed { sequence, tokens: tokens.to_vec(), rows }
}

fn step(feeds: Vec<Feed>) -> Call {
    Call::Step(feeds)
}

fn create(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    ensure!(
        model.engine().offers("engine.tokenizer/1"),
        "engine.batch/1 is offered without engine.tokenizer/1, and so not used."
    );
    if !model.info().generates {
        return Err(Stop::skip("the model does not generate"));
    }
    let n_context = model.info().n_context;
    for (max_sequences, context_length) in [(1, 0), (2, 16), (SOME, 32), (8, LONGEST)] {
        let length = if n_context == 0 { context_length } else { context_length.min(n_context) };
        let params = ContextParams { max_sequences, context_length: length, ..ContextParams::default() };
        // A model may be trained for more than this machine can hold.
        let large = context_length == 0 && n_context > 1 << 15;
        if large {
            continue;
        }
        match Context::create(&model, &params) {
            Ok(context) => {
                let limits = context.limits();
                let all = u64::from(max_sequences) * u64::from(length);
                ensure!(
                    limits.cache_tokens >= all,
                    "cache_tokens is {}, where 0 was asked for: {max_sequences} sequences of {length} tokens need \
                     {all}.",
                    limits.cache_tokens
                );
                let sizes = &context.info().decode_sizes;
                ensure!(
                    sizes.first() != Some(&0) && sizes.windows(2).all(|pair| pair[0] < pair[1]),
                    "decode_sizes are {sizes:?}: numbers of slices, which rise."
                );
            }
            Err(EngineError::Failed { code, message, .. }) if max_sequences > 1 => {
                ensure!(
                    code.name().is_some(),
                    "batch.create returned {}, which is no code of the header.",
                    code.0
                );
                ensure!(message.is_some(), "batch.create refused {params:?} with {code}, and no word.");
            }
            Err(error) => return Err(error.into()),
        }
    }
    // Nothing at all is no context.
    match Context::create(&model, &ContextParams::default()) {
        Err(EngineError::Misbehaved { .. } | EngineError::Failed { .. }) | Ok(_) => Ok(()),
    }
}

fn rows(bench: &Bench<'_>) -> Verdict {
    World::new(bench)?;
    Ok(())
}

fn repeat(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let text = world.texts[0][..7].to_vec();
    let other = world.texts[2][..5].to_vec();
    let script = vec![
        step(vec![feed(0, &text, 1)]),
        Call::Remove { sequence: 0, begin: 0 },
        step(vec![feed(0, &text, 1)]),
        Call::Remove { sequence: 0, begin: 0 },
        step(vec![feed(0, &other, 1)]),
        Call::Remove { sequence: 0, begin: 0 },
        step(vec![feed(0, &text, 1)]),
        step(vec![feed(1, &text, 1)]),
        step(vec![feed(SOME - 1, &text, 1)]),
    ];
    world.play(bench, SOME, script)
}

/// That a row is always of one token less contradicts nothing else: only a model can say it. There are models that
/// look at no token.
fn last_token(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let before = world.texts[0][..4].to_vec();
    let vocabulary = plain_tokens(&world.model)?;
    let mut rows = Vec::new();
    for token in vocabulary.iter().step_by(vocabulary.len().div_ceil(OTHERS)) {
        rows.push(world.row_alone(&[before.as_slice(), &[*token]].concat())?);
    }
    if rows.len() < 2 {
        return Err(Stop::skip("the vocabulary has one token"));
    }
    ensure!(
        rows.iter().any(|row| apart(&rows[0], row) > SAME),
        "Behind the {} tokens {before:?}, each of {} others brought the same row.",
        before.len(),
        rows.len()
    );
    Ok(())
}

fn cut(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let text = world.texts[0].clone();
    let most = text.len().min(bench.times(10, 24));
    for place in 1..most {
        let script = vec![step(vec![feed(0, &text[..place], 0)]), step(vec![feed(0, &text[place..most], 1)])];
        world.play(bench, 1, script)?;
    }
    let one_by_one = text.iter().map(|token| step(vec![feed(0, &[*token], 1)])).collect();
    world.play(bench, 1, one_by_one)
}

fn several_rows(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let text = world.texts[0].clone();
    for rows in [2, 3, 5, 8] {
        let script = vec![
            step(vec![feed(0, &text[..4], 0)]),
            step(vec![feed(0, &text[4..12], rows)]),
            step(vec![feed(0, &text[12..16], 4)]),
        ];
        world.play(bench, SOME, script)?;
    }
    Ok(())
}

fn together(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let texts = world.texts.clone();
    drop(context_for(&world.model, SOME, 2)?);
    let orders: [&[u32]; 5] = [&[0, 1], &[1, 0], &[0, 1, 2, 3, 4], &[4, 2, 0, 3, 1], &[4, 1]];
    for order in orders {
        let prompts = order.iter().map(|s| feed(*s, &texts[*s as usize][..3 + *s as usize], 1)).collect();
        let mut script = vec![step(prompts)];
        for next in 0..3 {
            let tokens = order.iter().rev().map(|s| {
                let at = 3 + *s as usize + next;
                feed(*s, &texts[*s as usize][at..=at], 1)
            });
            script.push(step(tokens.collect()));
        }
        world.play(bench, SOME, script)?;
    }
    Ok(())
}

fn mixed(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let texts = world.texts.clone();
    let script = vec![
        step(vec![feed(1, &texts[1][..6], 1)]),
        step(vec![feed(3, &texts[3][..4], 0), feed(1, &texts[1][6..7], 1)]),
        step(vec![feed(0, &texts[0][..5], 2), feed(3, &texts[3][4..9], 1), feed(1, &texts[1][7..8], 1)]),
        step(vec![feed(3, &texts[3][9..10], 1), feed(4, &texts[4][..3], 0), feed(0, &texts[0][5..9], 4)]),
        step(vec![feed(4, &texts[4][3..6], 3), feed(1, &texts[1][8..9], 1), feed(0, &texts[0][9..10], 1)]),
    ];
    world.play(bench, SOME, script)
}

fn copy(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let texts = world.texts.clone();
    drop(context_for(&world.model, SOME, 2)?);
    // Text 1 goes on from the first half of text 0.
    let shared = texts[0].iter().zip(&texts[1]).take_while(|(a, b)| a == b).count();
    let (whole, part) = (&texts[0][..shared], shared as u32 - 2);
    let going_on =
        |sequence: u32, text: &[Token], at: usize| step(vec![feed(sequence, &text[at..at + 2], 2)]);
    let scripts = [
        // The whole, and both go on, apart from each other.
        vec![
            step(vec![feed(0, whole, 0)]),
            Call::Copy { from: 0, to: 1, end: shared as u32 },
            going_on(1, &texts[1], shared),
            going_on(0, &texts[0], shared),
            going_on(1, &texts[1], shared + 2),
        ],
        // A part, and the original is gone.
        vec![
            step(vec![feed(0, whole, 0)]),
            Call::Copy { from: 0, to: 1, end: part },
            Call::Remove { sequence: 0, begin: 0 },
            going_on(1, &texts[1], shared - 2),
            step(vec![feed(0, &texts[2][..6], 1)]),
            going_on(1, &texts[1], shared),
        ],
        // A copy of a copy.
        vec![
            step(vec![feed(2, whole, 1)]),
            Call::Copy { from: 2, to: 4, end: shared as u32 },
            Call::Copy { from: 4, to: 0, end: shared as u32 },
            Call::Remove { sequence: 4, begin: 0 },
            step(vec![feed(0, &texts[1][shared..=shared], 1), feed(2, &texts[0][shared..=shared], 1)]),
        ],
        // The copy is taken back, and something else put in its place.
        vec![
            step(vec![feed(0, whole, 0)]),
            Call::Copy { from: 0, to: 1, end: shared as u32 },
            Call::Remove { sequence: 1, begin: part },
            going_on(1, &texts[1], shared - 2),
            going_on(0, &texts[0], shared),
            Call::Remove { sequence: 1, begin: 0 },
            step(vec![feed(1, &texts[2][..4], 1)]),
            going_on(0, &texts[0], shared + 2),
        ],
    ];
    scripts.into_iter().try_for_each(|script| world.play(bench, SOME, script))
}

fn remove(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let texts = world.texts.clone();
    let script = vec![
        step(vec![feed(0, &texts[0][..8], 0), feed(1, &texts[1][..8], 0), feed(2, &texts[2][..8], 0)]),
        Call::Remove { sequence: 1, begin: 0 },
        step(vec![feed(2, &texts[2][8..10], 2), feed(0, &texts[0][8..10], 2)]),
        Call::Remove { sequence: 0, begin: 7 },
        step(vec![feed(1, &texts[4][..6], 1)]),
        step(vec![feed(0, &texts[0][7..9], 1), feed(2, &texts[2][10..11], 1)]),
        Call::Remove { sequence: 0, begin: 0 },
        Call::Remove { sequence: 2, begin: 0 },
        step(vec![feed(1, &texts[4][6..8], 2)]),
    ];
    world.play(bench, SOME, script)
}

fn rollback(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let (text, wrong) = (world.texts[0].clone(), world.texts[2].clone());
    if context(&world.model, SOME)?.limits().max_rollback == 0 {
        return Err(Stop::skip("the model takes nothing back"));
    }
    for accepted in 0..=3_usize {
        let mut drafts = text[5..5 + accepted].to_vec();
        drafts.extend(&wrong[..3 - accepted]);
        let script = vec![
            step(vec![feed(0, &text[..5], 1), feed(1, &wrong[..5], 1)]),
            step(vec![feed(0, &drafts, 3), feed(1, &wrong[5..6], 1)]),
            Call::Remove { sequence: 0, begin: 5 + accepted as u32 },
            step(vec![feed(1, &wrong[6..7], 1), feed(0, &text[5 + accepted..8 + accepted], 3)]),
        ];
        world.play(bench, SOME, script)?;
    }
    Ok(())
}

fn account(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let texts = world.texts.clone();
    let script = vec![
        step(vec![feed(0, &texts[0][..9], 0)]),
        step(vec![feed(1, &texts[1][..4], 1)]),
        Call::Copy { from: 0, to: 2, end: 9 },
        Call::Remove { sequence: 0, begin: 0 },
        Call::Remove { sequence: 1, begin: 2 },
        Call::Remove { sequence: 2, begin: 0 },
        Call::Remove { sequence: 1, begin: 0 },
        step(vec![feed(0, &texts[0][..9], 0)]),
        Call::Remove { sequence: 0, begin: 0 },
    ];
    world.play(bench, SOME, script)?;
    let mut context = context(&world.model, SOME)?;
    let (all, said) = (context.limits().cache_tokens, raw::cache_free(&mut context));
    ensure!(said == all, "cache_free of a new context says {said}, and cache_tokens is {all}.");
    if context.limits().shares_prefixes && context.limits().max_sequences > 1 {
        fed(&mut context, 0, &texts[0][..9])?;
        let before = raw::cache_free(&mut context);
        context.copy_prefix(0, 1, 9)?;
        let after = raw::cache_free(&mut context);
        // The page that both will write to may be copied at once.
        let page = u64::from(context.limits().cache_page);
        ensure!(
            after + if page > 1 { page } else { 0 } >= before,
            "A copy of 9 tokens cost {} of the cache, where ENGINE_CONTEXT_SHARE says that it costs none.",
            before.saturating_sub(after)
        );
    }
    Ok(())
}

/// The cache as full as single tokens make it; what was put into each sequence.
fn fill(context: &mut Context, vocabulary: &[Token]) -> Result<Vec<usize>, Stop> {
    let limits = context.limits().clone();
    let mut held = vec![0; limits.max_sequences as usize];
    let mut tokens = vocabulary.iter().cycle();
    for (sequence, held) in held.iter_mut().enumerate() {
        while *held < limits.context_length as usize {
            let count =
                (limits.context_length as usize - *held).min(16).min(limits.max_batch_tokens as usize);
            let piece: Vec<Token> = tokens.by_ref().take(count).copied().collect();
            match step_of(context, sequence as u32, *held as u32, &piece) {
                Err(fault) if fault.kind == EngineFaultKind::CacheFull && count > 1 => {
                    match step_of(context, sequence as u32, *held as u32, &piece[..1]) {
                        Err(fault) if fault.kind == EngineFaultKind::CacheFull => return Ok(vec![]),
                        other => other?,
                    }
                    *held += 1;
                }
                Err(fault) if fault.kind == EngineFaultKind::CacheFull => break,
                other => {
                    other?;
                    *held += count;
                }
            }
        }
    }
    Ok(held)
}

fn step_of(
    context: &mut Context,
    sequence: u32,
    position: u32,
    tokens: &[Token],
) -> Result<(), llm_node_core::engine::EngineFault> {
    let slice = Slice { sequence, position, tokens, rows: 1, candidates: 0 };
    let ticket = context.step(&[slice])?;
    context.collect(ticket, 1).map(drop)
}

fn full(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let length = if model.info().n_context == 0 { 64 } else { model.info().n_context.min(64) };
    let params = ContextParams {
        max_sequences: 3,
        context_length: length,
        cache_tokens: u64::from(length) + 8,
        ..ContextParams::default()
    };
    let mut context = match Context::create(&model, &params) {
        Err(EngineError::Failed { .. }) => {
            return Err(Stop::skip("the engine has no cache of less than all"));
        }
        other => other?,
    };
    let limits = context.limits().clone();
    if limits.cache_tokens >= u64::from(limits.max_sequences) * u64::from(limits.context_length) {
        return Err(Stop::skip("the engine gives every sequence its own, whatever is asked for"));
    }
    if limits.cache_tokens > 1 << 14 {
        return Err(Stop::skip("the smallest cache is too large to be filled"));
    }
    bench.trail.call("batch.step: until the cache is full");
    fill(&mut context, &vocabulary)?;
    let ends = |context: &mut Context| -> Result<Vec<u32>, Stop> {
        (0..limits.max_sequences).map(|sequence| Ok(context.range(sequence)?.1)).collect()
    };
    let (before, free) = (ends(&mut context)?, raw::cache_free(&mut context));
    // One more than there is room for, in a sequence that may grow.
    let Some(sequence) =
        before.iter().position(|end| u64::from(*end) + free < u64::from(limits.context_length))
    else {
        return Err(Stop::skip("no sequence can grow beyond the cache"));
    };
    let room = free.max(limits.cache_page.into());
    let tokens: Vec<Token> = vocabulary.iter().cycle().take(room as usize + 1).copied().collect();
    let slice = raw::Slice {
        sequence: sequence as u32,
        position: before[sequence],
        tokens: tokens.clone(),
        n_rows: 1,
        pick: None,
    };
    match raw::step(&mut context, std::slice::from_ref(&slice), size_of::<EngineSlice>()) {
        Err(EngineError::Failed { code, .. }) if code == ERR_CACHE_FULL => {}
        Err(EngineError::Failed { code, .. }) => {
            return Err(Stop::seen(format!(
                "A step of {} tokens into a full cache returned {code}.",
                tokens.len()
            )));
        }
        Err(error) => return Err(error.into()),
        Ok(_) => {
            return Err(Stop::seen(format!(
                "A step of {} tokens was taken, where cache_free said {free}.",
                tokens.len()
            )));
        }
    }
    let after = (ends(&mut context)?, raw::cache_free(&mut context));
    ensure!(
        after == (before.clone(), free),
        "A step that failed with ERR_CACHE_FULL changed the ends from {before:?} to {:?}, and cache_free from {free} \
         to {}.",
        after.0,
        after.1
    );
    let fullest = before.iter().enumerate().max_by_key(|(index, end)| (*index != sequence, **end));
    let Some((fullest, _)) = fullest else { return Ok(()) };
    context.truncate(fullest as u32, 0)?;
    raw::step(&mut context, &[slice], size_of::<EngineSlice>())?;
    Ok(())
}

fn length(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 1)?;
    let limits = context.limits().clone();
    if limits.context_length > 1 << 12 {
        return Err(Stop::skip("the shortest context is too long to be filled"));
    }
    let tokens: Vec<Token> =
        vocabulary.iter().cycle().take(limits.context_length as usize).copied().collect();
    let mut position = 0;
    for piece in tokens.chunks(limits.max_batch_tokens as usize) {
        step_of(&mut context, 0, position, piece)?;
        position += piece.len() as u32;
    }
    let slice = raw::Slice { sequence: 0, position, tokens: vec![tokens[0]], n_rows: 1, pick: None };
    let beyond = raw::step(&mut context, &[slice], size_of::<EngineSlice>());
    ensure!(
        beyond.is_err(),
        "A token at position {position} was taken, where context_length is {}.",
        limits.context_length
    );
    let end = context.range(0)?.1;
    ensure!(end == position, "A step that failed moved the end from {position} to {end}.");
    Ok(())
}

fn limits(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, SOME)?;
    let limits = context.limits().clone();
    let sequences = limits.max_sequences;
    let each = (limits.max_batch_tokens / sequences).min(limits.context_length).min(
        u32::try_from(limits.cache_tokens / u64::from(sequences) / u64::from(limits.cache_page))
            .unwrap_or(u32::MAX)
            * limits.cache_page,
    );
    let tokens: Vec<Token> = vocabulary.iter().cycle().take(each.min(1 << 12) as usize).copied().collect();
    let mut rows = limits.max_rows;
    let slices: Vec<Slice<'_>> = (0..sequences)
        .map(|sequence| {
            let wanted = rows.min(tokens.len() as u32);
            rows -= wanted;
            Slice { sequence, position: 0, tokens: &tokens, rows: wanted, candidates: 0 }
        })
        .collect();
    let count = slices.iter().map(|slice| slice.rows as usize).sum();
    bench.trail.call(&format!("batch.step: {sequences} slices of {} tokens, {count} rows", tokens.len()));
    let ticket = context.step(&slices)?;
    context.collect(ticket, count)?;
    Ok(())
}

fn invalid(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, SOME)?;
    let limits = context.limits().clone();
    fed(&mut context, 0, &vocabulary[..2])?;
    let good = |sequence: u32, position: u32, tokens: &[Token], n_rows: u32| raw::Slice {
        sequence,
        position,
        tokens: tokens.to_vec(),
        n_rows,
        pick: None,
    };
    let token = vocabulary[0];
    let n_vocab = i32::try_from(limits.n_vocab).unwrap_or(i32::MAX);
    let many: Vec<Token> =
        vocabulary.iter().cycle().take(limits.max_batch_tokens as usize + 1).copied().collect();
    let most = limits.max_sequences;
    let mut wrong = vec![
        ("a sequence that there is not", vec![good(most, 0, &[token], 1)]),
        ("sequence 4294967295", vec![good(u32::MAX, 0, &[token], 1)]),
        ("a position before the end", vec![good(0, 1, &[token], 1)]),
        ("a position behind the end", vec![good(0, 3, &[token], 1)]),
        ("a token of n_vocab", vec![good(0, 2, &[n_vocab], 1)]),
        ("token -5", vec![good(0, 2, &[-5], 1)]),
        ("more rows than tokens", vec![good(0, 2, &[token], 2)]),
        ("more tokens than max_batch_tokens", vec![good(0, 2, &many, 1)]),
        ("no slice", vec![]),
        ("a slice of no token", vec![good(0, 2, &[], 0)]),
    ];
    if most > 1 {
        wrong.push((
            "a good slice and one of a wrong position",
            vec![good(0, 2, &[token], 1), good(1, 5, &[token], 1)],
        ));
        wrong.push((
            "a good slice and one of a wrong token",
            vec![good(1, 0, &[token], 1), good(0, 2, &[n_vocab], 1)],
        ));
        wrong.push(("a sequence twice", vec![good(0, 2, &[token], 1), good(0, 2, &[token], 1)]));
    }
    if !context.info().chains {
        wrong.push((
            "ENGINE_TOKEN_PREVIOUS, which is not understood",
            vec![good(0, 2, &[ENGINE_TOKEN_PREVIOUS], 1)],
        ));
    }
    let rows = limits.max_rows;
    if rows < limits.max_batch_tokens && rows < limits.context_length - 2 && rows < 1 << 12 {
        let tokens: Vec<Token> = vocabulary.iter().cycle().take(rows as usize + 1).copied().collect();
        wrong.push(("more rows than max_rows", vec![good(0, 2, &tokens, rows + 1)]));
    }
    let before: Vec<u32> = (0..most).map(|one| Ok(context.range(one)?.1)).collect::<Result<_, Stop>>()?;
    let free = raw::cache_free(&mut context);
    for (name, slices) in wrong {
        bench.trail.begin();
        bench.trail.call(&format!("batch.step: {name}"));
        match raw::step(&mut context, &slices, size_of::<EngineSlice>()) {
            Err(EngineError::Failed { code, .. }) if code == ERR_INVALID_ARGUMENT => {}
            Err(EngineError::Failed { code, .. }) => {
                return Err(Stop::seen(format!(
                    "A step with {name} returned {code}, not ERR_INVALID_ARGUMENT."
                )));
            }
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(Stop::seen(format!("A step with {name} was taken."))),
        }
        let after: Vec<u32> = (0..most).map(|one| Ok(context.range(one)?.1)).collect::<Result<_, Stop>>()?;
        ensure!(after == before, "A refused step with {name} changed the ends from {before:?} to {after:?}.");
        let now = raw::cache_free(&mut context);
        ensure!(now == free, "A refused step with {name} changed cache_free from {free} to {now}.");
    }
    fed(&mut context, 0, &vocabulary[..1])?;
    Ok(())
}

/// A call with wrong arguments, and what is wrong with them.
type Wrong<'c> = (&'static str, &'c dyn Fn(&mut Context) -> Result<(), EngineError>);

fn invalid_sequences(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context_for(&model, SOME, 2)?;
    let most = context.limits().max_sequences;
    fed(&mut context, 0, &vocabulary[..2])?;
    fed(&mut context, 1, &vocabulary[..1])?;
    let refused = |name: &str, result: Result<(), EngineError>| -> Verdict {
        match result {
            Err(EngineError::Failed { code, .. })
                if code == ERR_INVALID_ARGUMENT || code == ERR_UNSUPPORTED || code == ERR_CACHE_FULL =>
            {
                Ok(())
            }
            Err(EngineError::Failed { code, .. }) => {
                Err(Stop::seen(format!("{name} returned {code}, not ERR_INVALID_ARGUMENT.")))
            }
            Err(error) => Err(error.into()),
            Ok(()) => Err(Stop::seen(format!("{name} returned ERR_OK."))),
        }
    };
    let calls: [Wrong<'_>; 7] = [
        ("batch.seq_copy from a sequence that there is not", &|it| raw::seq_copy(it, most, most - 1, 1)),
        ("batch.seq_copy to a sequence that there is not", &|it| raw::seq_copy(it, 0, most, 2)),
        ("batch.seq_copy to a sequence that is not empty", &|it| raw::seq_copy(it, 0, 1, 2)),
        ("batch.seq_copy of more than there is", &|it| raw::seq_copy(it, 1, most - 1, 2)),
        ("batch.seq_remove of a sequence that there is not", &|it| raw::seq_remove(it, most, 0)),
        ("batch.seq_range of a sequence that there is not", &|it| raw::seq_range(it, most).map(drop)),
        ("batch.seq_range of sequence 4294967295", &|it| raw::seq_range(it, u32::MAX).map(drop)),
    ];
    for (name, call) in calls {
        if most == 2 && name.ends_with("more than there is") {
            continue; // there is no empty sequence left
        }
        bench.trail.begin();
        bench.trail.call(name);
        refused(name, call(&mut context))?;
        let ends = (context.range(0)?.1, context.range(1)?.1);
        ensure!(ends == (2, 1), "{name} was refused, and changed where sequences end.");
    }
    // What is empty already is removed once more.
    context.truncate(most - 1, 0)?;
    context.truncate(0, 0)?;
    context.truncate(0, 0)?;
    Ok(())
}

fn tickets(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 1)?;
    let stride = size_of::<EngineRow>();
    let one = |position: u32| raw::Slice {
        position,
        tokens: vec![vocabulary[0]],
        n_rows: 1,
        ..raw::Slice::default()
    };
    for ticket in [0, 1, 7] {
        bench.trail.call(&format!("batch.collect: ticket {ticket}, before the first step"));
        ensure!(
            raw::collect(&mut context, ticket, 1, stride).is_err(),
            "Ticket {ticket} was collected before the first step."
        );
    }
    let wrong = raw::Slice { position: 9, ..one(0) };
    for due in 1..=4 {
        if raw::step(&mut context, std::slice::from_ref(&wrong), size_of::<EngineSlice>()).is_ok() {
            return Err(Stop::seen("A step at a wrong position was taken."));
        }
        let ticket = raw::step(&mut context, &[one(due as u32 - 1)], size_of::<EngineSlice>())?;
        ensure!(ticket == due, "The ticket of step {due} is {ticket}.");
        raw::collect(&mut context, ticket, 1, stride)?;
        for unknown in [0, ticket + 1, u64::MAX] {
            bench.trail.call(&format!("batch.collect: ticket {unknown}, where the last one is {ticket}"));
            ensure!(
                raw::collect(&mut context, unknown, 1, stride).is_err(),
                "Ticket {unknown} was collected, where the last one is {ticket}."
            );
        }
    }
    Ok(())
}

/// The rows of a step of this slice alone, and the last of them as another context gives it.
fn both_ways(
    context: &mut Context,
    alone: &mut Context,
    slice: &raw::Slice,
) -> Result<(Vec<raw::Row>, Vec<f32>), Stop> {
    context.truncate(slice.sequence, 0)?;
    let ticket = raw::step(context, std::slice::from_ref(slice), size_of::<EngineSlice>())?;
    let rows = raw::collect(context, ticket, slice.n_rows as usize, size_of::<EngineRow>())?;
    alone.truncate(0, 0)?;
    let ticket =
        alone.step(&[Slice { sequence: 0, position: 0, tokens: &slice.tokens, rows: 1, candidates: 0 }])?;
    let right = alone.collect(ticket, 1)?.into_iter().next().map(whole).unwrap_or_default();
    Ok((rows, right))
}

fn memory_of_a_step(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 2)?;
    let tokens: Vec<Token> = vocabulary.iter().cycle().take(6).copied().collect();
    let slice = raw::Slice { tokens, n_rows: 1, ..raw::Slice::default() };
    let (rows, right) = both_ways(&mut context, &mut self::context(&model, 1)?, &slice)?;
    let distance = rows.first().map_or(f32::NAN, |row| apart(&right, &row.logits));
    ensure!(
        distance < 0.08,
        "When tokens, slices and picks are overwritten after step, its row is another ({distance:.2} times its spread)."
    );
    Ok(())
}

fn rows_stay(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 2)?;
    let stride = size_of::<EngineRow>();
    let tokens: Vec<Token> = vocabulary.iter().cycle().take(4).copied().collect();
    let slice = raw::Slice { tokens, n_rows: 2, ..raw::Slice::default() };
    let ticket = raw::step(&mut context, &[slice], size_of::<EngineSlice>())?;
    let first = raw::collect(&mut context, ticket, 2, stride)?;
    raw::seq_remove(&mut context, 0, 0)?;
    let again = raw::collect(&mut context, ticket, 2, stride)?;
    for (one, other) in first.iter().zip(&again) {
        ensure!(
            one.logits == other.logits,
            "The rows of ticket {ticket} are others after seq_remove, and no step was submitted in between."
        );
    }
    Ok(())
}

fn strides(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context_for(&model, 2, 2)?;
    let tokens: Vec<Token> = vocabulary.iter().cycle().take(5).copied().collect();
    let slice = raw::Slice { tokens: tokens.clone(), n_rows: 1, ..raw::Slice::default() };
    let (_, right) = both_ways(&mut context, &mut self::context(&model, 1)?, &slice)?;
    context.truncate(0, 0)?;
    let second = raw::Slice { sequence: 1, tokens: tokens[..3].to_vec(), n_rows: 1, ..raw::Slice::default() };
    let ticket = raw::step(&mut context, &[second, slice.clone()], size_of::<EngineSlice>() + 16)?;
    let rows = raw::collect(&mut context, ticket, 2, size_of::<EngineRow>() + 16)?;
    let distance = rows.get(1).map_or(f32::NAN, |row| apart(&right, &row.logits));
    ensure!(
        distance < 0.08,
        "With slices that lie 16 bytes farther apart the second row is another ({distance:.2} times its spread)."
    );
    // An older host's, that knows no logits: of what is left, the first member must be right.
    let short = raw::collect(&mut context, ticket, 2, size_of::<EngineRow>() - 8)?;
    ensure!(
        short.iter().all(|row| row.stage == ENGINE_STAGE_LOGITS && row.n == context.limits().n_vocab),
        "Rows of {} bytes are not what they are with {}.",
        size_of::<EngineRow>() - 8,
        size_of::<EngineRow>()
    );
    Ok(())
}

fn top(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 2)?;
    let limits = context.limits().clone();
    if limits.max_candidates == 0 {
        return Err(Stop::skip("the engine makes no candidates"));
    }
    let tokens: Vec<Token> = vocabulary.iter().cycle().take(6).copied().collect();
    for wanted in [1, 2, limits.max_candidates.min(40), limits.max_candidates] {
        context.truncate(0, 0)?;
        let slice = Slice { sequence: 0, position: 0, tokens: &tokens, rows: 1, candidates: wanted };
        let ticket = context.step(&[slice])?;
        let best = match context.collect(ticket, 1)?.first() {
            Some(Row::Best(best)) => (best.ids.to_vec(), best.logits.to_vec(), best.log_sum),
            _ => continue, // "Going less far is always right"
        };
        let fetched = limits.fetches.then(|| context.fetch(ticket, 0).map(whole)).transpose()?;
        context.truncate(0, 0)?;
        let slice = Slice { sequence: 0, position: 0, tokens: &tokens, rows: 1, candidates: 0 };
        let ticket = context.step(&[slice])?;
        let right = context.collect(ticket, 1)?.into_iter().next().map(whole).unwrap_or_default();
        if let Some(fetched) = fetched {
            let distance = apart(&right, &fetched);
            ensure!(distance < 0.08, "fetch of a row of candidates brings another row than LOGITS does.");
        }
        let (ids, logits, log_sum) = best;
        let mut order: Vec<usize> = (0..right.len()).collect();
        order.sort_by(|a, b| right[*b].total_cmp(&right[*a]).then(a.cmp(b)));
        let spread = apart(&right, &vec![0.0; right.len()]).max(1.0);
        for (place, id) in ids.iter().enumerate() {
            let (due, own) = (right[order[place]], right[*id as usize]);
            ensure!(
                (logits[place] - own).abs() <= 0.05 * spread && (due - own).abs() <= 0.05 * spread,
                "Candidate {place} is token {id} with {}, whose logit is {own}; the logit of that place is {due}.",
                logits[place]
            );
        }
        if !log_sum.is_nan() {
            let most = right.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = right.iter().map(|logit| f64::from(logit - most).exp()).sum();
            let due = f64::from(most) + sum.ln();
            ensure!(
                (f64::from(log_sum) - due).abs() < 0.02,
                "log_sum is {log_sum}, and the logarithm of the sum over the row is {due:.4}."
            );
        }
    }
    Ok(())
}

fn whole(row: Row<'_>) -> Vec<f32> {
    match row {
        Row::Whole(logits) => logits.into_owned(),
        Row::Best(_) => Vec::new(),
    }
}

fn stages(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 2)?;
    let tokens: Vec<Token> = vocabulary.iter().cycle().take(5).copied().collect();
    let mut alone = self::context(&model, 1)?;
    let unknown = 1 << 30;
    for (stage, uses) in [
        (ENGINE_STAGE_LOGITS, 0),
        (ENGINE_STAGE_TOP, 0),
        (ENGINE_STAGE_TOKEN, 0),
        (ENGINE_STAGE_TOP, unknown),
        (ENGINE_STAGE_TOKEN, unknown),
    ] {
        let pick = raw::Pick { stage, uses, n_candidates: 4, ..raw::Pick::default() };
        let slice =
            raw::Slice { tokens: tokens.clone(), n_rows: 1, pick: Some(pick), ..raw::Slice::default() };
        bench.trail.call(&format!("batch.step: a pick of stage {stage}, uses {uses:#x}"));
        let (rows, right) = both_ways(&mut context, &mut alone, &slice)?;
        let Some(row) = rows.first() else { continue };
        ensure!(row.stage <= stage, "A row of stage {} was given, where {stage} was wished for.", row.stage);
        ensure!(
            uses == 0 || row.stage == ENGINE_STAGE_LOGITS,
            "With the unknown bit {unknown:#x} in `uses` a row of stage {} was given.",
            row.stage
        );
        if row.stage < ENGINE_STAGE_TOKEN {
            ensure!(
                row.token == ENGINE_TOKEN_NONE,
                "A row of stage {} has token {}, and not ENGINE_TOKEN_NONE.",
                row.stage,
                row.token
            );
        } else {
            let best = right.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            let best = best.map_or(-1, |(index, _)| index as Token);
            ensure!(row.token == best, "A greedy row has token {}, and the best one is {best}.", row.token);
        }
    }
    Ok(())
}

fn save(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let mut first = context_for(&world.model, SOME, 2)?;
    if !first.limits().saves {
        return Err(Stop::skip("the engine does not save sequences"));
    }
    let texts = world.texts.clone();
    let going_on =
        |sequence: u32, text: &[Token], at: usize| step(vec![feed(sequence, &text[at..at + 2], 2)]);
    if World::bounds(first.limits()).moves {
        let script = vec![
            step(vec![feed(0, &texts[0][..9], 0), feed(1, &texts[1][..5], 0)]),
            Call::Move { from: 0, to: 3 },
            going_on(3, &texts[0], 9),
            Call::Remove { sequence: 0, begin: 0 },
            going_on(1, &texts[1], 5),
            going_on(3, &texts[0], 11),
            Call::Move { from: 3, to: 0 },
            Call::Remove { sequence: 3, begin: 0 },
            going_on(0, &texts[0], 13),
        ];
        world.play(bench, SOME, script)?;
    }
    // Into another context, made alike, while the first one goes on.
    fed(&mut first, 0, &texts[0][..9])?;
    let state = first.save(0)?;
    let mut second = context_for(&world.model, SOME, 2)?;
    second.restore(1, &state)?;
    let row = |context: &mut Context, sequence: u32| -> Result<Vec<f32>, Stop> {
        let slice = Slice { sequence, position: 9, tokens: &texts[0][9..11], rows: 1, candidates: 0 };
        let ticket = context.step(&[slice])?;
        Ok(context.collect(ticket, 1)?.into_iter().next().map(whole).unwrap_or_default())
    };
    let (right, restored) = (row(&mut first, 0)?, row(&mut second, 1)?);
    let distance = apart(&right, &restored);
    ensure!(
        distance < 0.08,
        "A sequence that was restored in another context goes on differently ({distance:.2} times its spread)."
    );
    Ok(())
}

fn save_sizes(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context_for(&model, 2, 2)?;
    if !context.limits().saves {
        return Err(Stop::skip("the engine does not save sequences"));
    }
    let code = |result: &Result<(), EngineError>| match result {
        Err(EngineError::Failed { code, .. }) => *code,
        _ => llm_node_abi::ERR_OK,
    };
    let (empty, _) = raw::seq_save(&mut context, 0, 0)?;
    ensure!(
        code(&empty) == ERR_INVALID_ARGUMENT || code(&empty) == ERR_UNSUPPORTED,
        "batch.seq_save of an empty sequence returned {}.",
        code(&empty)
    );
    let tokens: Vec<Token> = vocabulary.iter().cycle().take(6).copied().collect();
    fed(&mut context, 0, &tokens)?;
    let (asked, needed) = raw::seq_save(&mut context, 0, 0)?;
    if code(&asked) == ERR_UNSUPPORTED {
        return Err(Stop::skip("the model cannot be saved"));
    }
    ensure!(code(&asked) == ERR_BUFFER_TOO_SMALL, "batch.seq_save into 0 bytes returned {}.", code(&asked));
    ensure!(
        needed > 0 && needed < 1 << 32,
        "batch.seq_save of {} tokens needs {needed} bytes.",
        tokens.len()
    );
    let (less, size) = raw::seq_save(&mut context, 0, needed - 1)?;
    ensure!(
        code(&less) == ERR_BUFFER_TOO_SMALL && size >= needed,
        "batch.seq_save into one byte less than it needs returned {}, and says that it needs {size}.",
        code(&less)
    );
    let (enough, size) = raw::seq_save(&mut context, 0, needed)?;
    ensure!(
        enough.is_ok(),
        "batch.seq_save into the {needed} bytes that it asked for returned {}.",
        code(&enough)
    );
    ensure!(size > 0 && size <= needed, "batch.seq_save wrote {size} bytes into room for {needed}.");
    let state = context.save(0)?;
    for (name, bytes) in
        [("nothing", &[][..]), ("zeros", &[0; 64][..]), ("half a state", &state[..state.len() / 2])]
    {
        bench.trail.call(&format!("batch.seq_restore: of {name}"));
        ensure!(
            raw::seq_restore(&mut context, 1, bytes).is_err(),
            "batch.seq_restore of {name} returned ERR_OK."
        );
        ensure!(
            context.range(1)?.1 == 0,
            "batch.seq_restore of {name} failed, and put something into the sequence."
        );
    }
    bench.trail.call("batch.seq_restore: into a sequence that is not empty");
    ensure!(
        raw::seq_restore(&mut context, 0, &state[..state.len() - 4]).is_err(),
        "batch.seq_restore into a sequence that is not empty returned ERR_OK."
    );
    Ok(())
}

fn cancel(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let mut context = context(&world.model, 2)?;
    let canceller = context.canceller();
    let text = world.texts[0].clone();
    // Before a step it concerns none.
    canceller.cancel();
    let cancelled = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| -> Verdict {
        let stop = &cancelled;
        let thread = scope.spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                canceller.cancel();
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let result = (|| -> Verdict {
            for _ in 0..bench.times(30, 200) {
                context.truncate(0, 0)?;
                match step_of(&mut context, 0, 0, &text[..8]) {
                    Err(fault) if fault.kind == EngineFaultKind::Cancelled => {
                        let end = context.range(0)?.1;
                        ensure!(end <= 8, "A cancelled step of 8 tokens left {end} in its sequence.");
                    }
                    other => other?,
                }
            }
            Ok(())
        })();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        drop(thread.join());
        result
    })?;
    context.truncate(0, 0)?;
    // Nobody cancels any more: a step is taken, and what it brings is right.
    match step_of(&mut context, 0, 0, &text[..8]) {
        Err(fault) if fault.kind == EngineFaultKind::Cancelled => {
            return Err(Stop::seen(format!(
                "A step that began after the last cancel returned {ERR_CANCELLED}: one cancel ends one step at most."
            )));
        }
        other => other?,
    }
    drop(context);
    world.play(bench, 2, vec![step(vec![feed(0, &text[..8], 1)]), step(vec![feed(0, &text[8..10], 1)])])
}

fn contexts(bench: &Bench<'_>) -> Verdict {
    let world = World::new(bench)?;
    let rows_of = |text: &[Token], context: &mut Context| -> Result<Vec<Vec<f32>>, Stop> {
        context.truncate(0, 0)?;
        let mut rows = Vec::new();
        for (position, token) in text.iter().enumerate() {
            let position = position as u32;
            let slice =
                Slice { sequence: 0, position, tokens: std::slice::from_ref(token), rows: 1, candidates: 0 };
            let ticket = context.step(&[slice])?;
            rows.push(context.collect(ticket, 1)?.into_iter().next().map(whole).unwrap_or_default());
        }
        Ok(rows)
    };
    let times = bench.times(8, 60);
    let texts = [&world.texts[0][..12], &world.texts[2][..12]];
    let mut contexts = [context(&world.model, 1)?, context(&world.model, 1)?];
    let mut expected = Vec::new();
    for (text, context) in texts.iter().zip(&mut contexts) {
        expected.push(rows_of(text, context)?);
    }
    bench.trail.call("batch.collect: of one context, after a step of another one");
    let mut tickets = Vec::new();
    for (text, context) in texts.iter().zip(&mut contexts) {
        context.truncate(0, 0)?;
        let slice = Slice { sequence: 0, position: 0, tokens: &text[..1], rows: 1, candidates: 0 };
        tickets.push(context.step(&[slice])?);
    }
    for ((context, ticket), expected) in contexts.iter_mut().zip(tickets).zip(&expected) {
        let row = context.collect(ticket, 1)?.into_iter().next().map(whole).unwrap_or_default();
        ensure!(
            apart(&expected[0], &row) < 0.08,
            "The row of a step is another when another context made a step before it was collected."
        );
    }
    bench.trail.call("batch.step: two contexts on two threads at once");
    std::thread::scope(|scope| {
        let rows_of = &rows_of;
        let running: Vec<_> = contexts
            .iter_mut()
            .zip(texts)
            .zip(&expected)
            .map(|((context, text), expected)| {
                scope.spawn(move || -> Verdict {
                    for _ in 0..times {
                        for (position, (row, right)) in
                            rows_of(text, context)?.iter().zip(expected).enumerate()
                        {
                            let distance = apart(right, row);
                            ensure!(
                                distance < 0.08,
                                "With a second context at work, the row after position {position} is another."
                            );
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        running.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })
}

fn threads(bench: &Bench<'_>) -> Verdict {
    let world = World::new(bench)?;
    let mut alone = context(&world.model, 1)?;
    let mut moved = context(&world.model, 1)?;
    for (position, token) in world.texts[0].iter().take(12).enumerate() {
        let position = position as u32;
        let slice =
            || Slice { sequence: 0, position, tokens: std::slice::from_ref(token), rows: 1, candidates: 0 };
        let ticket = alone.step(&[slice()])?;
        let right = alone.collect(ticket, 1)?.into_iter().next().map(whole).unwrap_or_default();
        let (submitted, moved) = (slice(), &mut moved);
        let row = std::thread::scope(|scope| {
            scope
                .spawn(move || -> Result<Vec<f32>, Stop> {
                    let ticket = moved.step(&[submitted])?;
                    Ok(moved.collect(ticket, 1)?.into_iter().next().map(whole).unwrap_or_default())
                })
                .join()
                .unwrap_or_else(|_| Err(Stop::skip("a thread panicked")))
        })?;
        let distance = apart(&right, &row);
        ensure!(
            distance < 0.08,
            "Made by a thread of its own, the step at position {position} brings another row."
        );
    }
    Ok(())
}

fn destroy(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let turn = |times: usize| -> Verdict {
        for _ in 0..times {
            bench.trail.begin();
            let mut context = context(&model, 2)?;
            let slice = Slice { sequence: 0, position: 0, tokens: &vocabulary[..1], rows: 1, candidates: 0 };
            context.step(&[slice])?;
            bench.trail.call("batch.destroy");
        }
        process::give_back();
        Ok(())
    };
    turn(3)?;
    let threads = process::threads();
    let times = bench.times(20, 60);
    let limit = 2 << 10;
    let each = process::growth(times, limit, turn)?.unwrap_or_default();
    if let Some(threads) = threads {
        let now = process::threads_fall_to(threads).unwrap_or(threads);
        ensure!(now <= threads, "{} threads are left after {times} contexts.", now - threads);
    }
    ensure!(each < limit, "The process grew by {each} bytes with each context.");
    Ok(())
}

fn steady(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 2)?;
    let mut run = |times: usize| -> Verdict {
        for turn in 0..times {
            if turn % 16 == 0 {
                bench.trail.begin();
                context.truncate(0, 0)?;
            }
            fed(&mut context, 0, &vocabulary[turn % 2..=turn % 2])?;
        }
        process::give_back();
        Ok(())
    };
    run(100)?;
    let limit = 512;
    let each = process::growth(bench.times(400, 4_000), limit, run)?
        .ok_or_else(|| Stop::skip("the system does not say"))?;
    ensure!(each < limit, "The process grew by {each} bytes with each step of one token.");
    Ok(())
}

fn scripts(bench: &Bench<'_>) -> Verdict {
    let mut world = World::new(bench)?;
    let bounds = World::bounds(context_for(&world.model, SOME, 2)?.limits());
    let texts: Vec<Vec<Token>> = world.texts.clone();
    for seed in 0..bench.times(12, 80) as u64 {
        let mut rng = bench.rng(seed);
        let script = made_up(&mut rng, &texts, &bounds, 24);
        world.play(bench, SOME, script)?;
    }
    // The model outlives all of them.
    drop(Arc::clone(&world.model));
    Ok(())
}
