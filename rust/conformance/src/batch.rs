//! `engine.batch/1`: what the model says of a text must not depend on what else is computed beside it, on how
//! it is cut, or on where it lies in the cache.

mod contexts;
mod refusals;
mod room;
mod rows;
mod sequences;

use llm_node_core::engine::{Row, Slice, StepEngine, Token};
use llm_node_host::Context;

use crate::check::{Check, Level};
use crate::picks;
use crate::script::{Call, Feed};

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
        ask: contexts::create,
    },
    Check {
        name: "batch.rows",
        level: Level::Must,
        what: "One step of a few tokens brings one row: n_vocab numbers, in a known format, at the stage asked for.",
        contract: "Waits for that step and describes its rows; n_rows is the sum over its slices.",
        mend: "Fill every member of EngineRow: stage, dtype, n = n_vocab, ids NULL, and logits that are numbers.",
        after: &["batch.create", "tokenizer.vocabulary"],
        ask: rows::rows,
    },
    Check {
        name: "batch.repeat",
        level: Level::Must,
        what: "The same tokens bring the same row again, after the sequence was removed, and in another sequence.",
        contract: "It comes into being when tokens are put into it and is gone when they are all removed.",
        mend: "Set back all that belongs to a sequence when it is removed, and keep nothing of a step for the next.",
        after: ALONE,
        ask: rows::repeat,
    },
    Check {
        name: "batch.last-token",
        level: Level::Should,
        what: "A row depends on the token that it stands behind, and not only on those before it.",
        contract: "rows wanted, for the LAST n_rows tokens of the slice",
        mend: "Put the token of a row into the cache first, and compute the row from all up to it then.",
        after: ALONE,
        ask: rows::last_token,
    },
    Check {
        name: "batch.cut",
        level: Level::Must,
        what: "A prompt that is cut at any place brings the row that it brings whole.",
        contract: "of tokens[0]; it must be where the sequence ends",
        mend: "Begin each slice at its position, and let its tokens look at all that the sequence holds before it.",
        after: ALONE,
        ask: rows::cut,
    },
    Check {
        name: "batch.several-rows",
        level: Level::Must,
        what: "Row i of several is what a step that ends at its token would bring.",
        contract: "rows wanted, for the LAST n_rows tokens of the slice; mostly 0, 1",
        mend: "Give the rows of the last n_rows tokens, the earliest first, each of what comes before it alone.",
        after: CUT,
        ask: rows::several_rows,
    },
    Check {
        name: "batch.together",
        level: Level::Must,
        what: "Sequences that are computed in one step, in any order and with holes between them, bring what each \
               brings alone.",
        contract: "Rows come in the order of the slices, and within a slice in the order of its tokens.",
        mend: "Give rows in the order of the slices, not of the sequences, and let no sequence look at another.",
        after: CUT,
        ask: rows::together,
    },
    Check {
        name: "batch.mixed",
        level: Level::Must,
        what: "Running sequences and pieces of prompts, with no row, one and several, bring in one step what each \
               brings alone.",
        contract: "step(batch 2) the chosen tokens of the running sequences, a piece of a new prompt, ...",
        mend: "Count rows over slices as they come: those of a slice begin where those of the slice before end.",
        after: &["batch.together", "batch.several-rows"],
        ask: rows::mixed,
    },
    Check {
        name: "batch.copy",
        level: Level::Must,
        what: "A copy goes on as its original would; a copy of a copy as well, and when the original is gone.",
        contract: "Makes positions [0, end) of `from` the beginning of `to`, which must be empty.",
        mend: "Count who holds each cell, and copy before you write to one that several sequences hold.",
        after: CUT,
        ask: sequences::copy,
    },
    Check {
        name: "batch.remove",
        level: Level::Must,
        what: "What is removed is gone, and what others hold stays.",
        contract: "Removes positions from `begin` on; none where the sequence ends before. 0 always succeeds",
        mend: "Free the cells from `begin` on of this sequence alone, and forget them in the attention mask.",
        after: CUT,
        ask: sequences::remove,
    },
    Check {
        name: "batch.rollback",
        level: Level::Must,
        what: "Drafts are computed, some of them taken back, and the text goes on as if they had not been.",
        contract: "Speculative decoding is a slice with n_rows > 1 and a seq_remove",
        mend: "Put the sequence's end back to `begin`, and write the next tokens over what was there.",
        after: &["batch.several-rows", "batch.remove"],
        ask: sequences::rollback,
    },
    Check {
        name: "batch.account",
        level: Level::Must,
        what: "cache_free is the capacity when nothing is held, falls with what is, and comes back.",
        contract: "Tokens that the cache can still take, whole pages counted as full; cache_tokens where no sequence \
                   has any.",
        mend: "Count free cells where they are taken and given back, and once only where several sequences hold one.",
        after: ALONE,
        ask: room::account,
    },
    Check {
        name: "batch.full",
        level: Level::Must,
        what: "A step that does not fit fails with ERR_CACHE_FULL and changes nothing; after a removal it is taken.",
        contract: "ERR_CACHE_FULL, ERR_INVALID_ARGUMENT: nothing was changed.",
        mend: "Count what a step needs before you take the first cell of it.",
        after: &["batch.account"],
        ask: room::full,
    },
    Check {
        name: "batch.length",
        level: Level::Must,
        what: "A sequence grows to context_length, and no further.",
        contract: "for a sequence that would outgrow context_length",
        mend: "Take tokens up to position context_length - 1, and return ERR_INVALID_ARGUMENT beyond.",
        after: ALONE,
        ask: room::length,
    },
    Check {
        name: "batch.limits",
        level: Level::Must,
        what: "A step as large as the context says it takes is taken: all its tokens, rows and sequences.",
        contract: "most tokens in one step; 0: the engine's choice",
        mend: "Report in EngineContextInfo what step takes, and cut the batch into what the device takes in step.",
        after: &["batch.several-rows"],
        ask: room::limits,
    },
    Check {
        name: "batch.invalid",
        level: Level::Must,
        what: "Wrong sequences, positions, tokens, numbers of rows and of tokens are refused, and change nothing.",
        contract: "ERR_INVALID_ARGUMENT for a sequence, a position or a token that there is not",
        mend: "Look at every slice before you compute the first, and return ERR_INVALID_ARGUMENT.",
        after: ALONE,
        ask: refusals::invalid,
    },
    Check {
        name: "batch.invalid-sequences",
        level: Level::Must,
        what: "seq_copy, seq_remove and seq_range refuse sequences that there are not, and ends that there are not.",
        contract: "A sequence is a number from 0 to max_sequences - 1.",
        mend: "Compare each sequence with max_sequences, `end` with where `from` ends, and look whether `to` is empty.",
        after: ALONE,
        ask: refusals::invalid_sequences,
    },
    Check {
        name: "batch.tickets",
        level: Level::Must,
        what: "Tickets count from 1, a step that fails takes none, and an unknown one cannot be collected.",
        contract: "*ticket counts up by one: the first is 1, and 0 is none. A step that fails has no ticket.",
        mend: "Add one to the ticket when a step was taken, and compare it in collect.",
        after: ALONE,
        ask: refusals::tickets,
    },
    Check {
        name: "batch.memory-of-a-step",
        level: Level::Must,
        what: "What step was given is overwritten when it returns; the rows are as they must be.",
        contract: "it has copied all it needs from `batch`",
        mend: "Copy slices, tokens and picks in step: they are the host's, and gone when it returns.",
        after: ALONE,
        ask: rows::memory_of_a_step,
    },
    Check {
        name: "batch.rows-stay",
        level: Level::Must,
        what: "Rows stay as they are while the cache is changed, and when they are collected again.",
        contract: "and are valid until max_in_flight further steps are submitted.",
        mend: "Keep the rows of a step in memory of their own until the next one.",
        after: ALONE,
        ask: rows::rows_stay,
    },
    Check {
        name: "batch.strides",
        level: Level::Must,
        what: "Slices and rows of a newer and of an older host are taken, at their strides.",
        contract: "sizeof(EngineSlice), as the host knows it",
        mend: "Go from slice to slice by slice_stride and from row to row by row_stride, and write min(stride, sizeof).",
        after: &["batch.memory-of-a-step"],
        ask: rows::strides,
    },
    Check {
        name: "batch.top",
        level: Level::Must,
        what: "Candidates are the best of the row, best first, each once, with the row's own logits and log_sum.",
        contract: "the n_candidates largest shaped logits, best first; equal ones by lower id",
        mend: "Sort by logit downwards and by id upwards, and give at most n_candidates.",
        after: ALONE,
        ask: rows::top,
    },
    Check {
        name: "batch.stages",
        level: Level::Must,
        what: "No row goes further than wished; with a use that nobody knows it stays at LOGITS; a greedy token is \
               the best one.",
        contract: "an engine that does not do everything that `uses` names stays at LOGITS.",
        mend: "Compare `uses` with a mask of what you do, and answer LOGITS when any other bit is set.",
        after: &["batch.memory-of-a-step"],
        ask: rows::stages,
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
        ask: sequences::save,
    },
    Check {
        name: "batch.save-sizes",
        level: Level::Must,
        what: "Capacity 0 asks how many bytes there are, one too few is too few, and bytes that are no state are refused.",
        contract: "with ERR_BUFFER_TOO_SMALL, how many are needed, never 0, and `data` is untouched",
        mend: "Set *size in either case, write nothing when the capacity is less, and put a mark and a checksum first.",
        after: ALONE,
        ask: sequences::save_sizes,
    },
    Check {
        name: "batch.cancel",
        level: Level::Must,
        what: "cancel from another thread ends a step or does nothing; the context goes on, and the other one is not \
               touched.",
        contract: "Asks the step that is running to end with ERR_CANCELLED.",
        mend: "Set a flag of the context that its step looks at and takes back when it begins.",
        after: CUT,
        ask: refusals::cancel,
    },
    Check {
        name: "batch.contexts",
        level: Level::Must,
        what: "Two contexts of a model work by turns, and on two threads at once, each as if it were alone.",
        contract: "calls for different contexts may run at once.",
        mend: "Keep cache, rows and scratch memory in the context, and nothing of it in the model or in static variables.",
        after: CUT,
        ask: contexts::contexts,
    },
    Check {
        name: "batch.threads",
        level: Level::Must,
        what: "Each step of a context is made by another thread.",
        contract: "The OS thread may change from call to call: keep nothing in thread-local state",
        mend: "Keep what belongs to a context in it, and select the device at each entry.",
        after: CUT,
        ask: contexts::threads,
    },
    Check {
        name: "batch.destroy",
        level: Level::Must,
        what: "Contexts are made and destroyed over and over, also with a step that was not collected, and leave \
               nothing behind.",
        contract: "Handles are destroyed by the function that belongs to them",
        mend: "Wait for what still runs, then free all that create and steps have allocated.",
        after: ALONE,
        ask: contexts::destroy,
    },
    Check {
        name: "batch.steady",
        level: Level::Should,
        what: "Memory does not grow from step to step.",
        contract: "Nobody frees what the other side allocated.",
        mend: "Allocate in create what steps need, or free at the end of a step what it has allocated.",
        after: ALONE,
        ask: contexts::steady,
    },
    Check {
        name: "batch.scripts",
        level: Level::Must,
        what: "Scripts of all these calls, made up at random, bring after every call what a model of the cache says.",
        contract: "The host owns the schedule: which sequences take part in the next forward pass, with how many \
                   tokens each.",
        mend: "Follow the calls below by hand: they are the fewest that still go wrong.",
        after: &["batch.mixed", "batch.copy", "batch.rollback", "batch.account"],
        ask: contexts::scripts,
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

fn whole(row: Row<'_>) -> Vec<f32> {
    match row {
        Row::Whole(logits) => logits.into_owned(),
        Row::Best(_) => Vec::new(),
    }
}
