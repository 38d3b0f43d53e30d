//! The room in a cache, and how its account is kept.

use std::mem::size_of;

use llm_node_abi::{ERR_CACHE_FULL, EngineSlice};
use llm_node_core::engine::{EngineFaultKind, Slice, StepEngine, Token};
use llm_node_host::{Context, ContextParams, EngineError};

use crate::bench::{Bench, context, plain_tokens};
use crate::check::{Stop, Verdict, ensure};
use crate::raw::batch as raw;
use crate::script::Call;
use crate::world::{World, fed};

use super::{SOME, feed, step, step_of};

pub(super) fn account(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn full(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn length(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn limits(bench: &Bench<'_>) -> Verdict {
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
