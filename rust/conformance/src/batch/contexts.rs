//! Contexts: how they are made and destroyed, several of them, threads, and calls made up by chance.

use std::sync::Arc;

use llm_node_core::engine::{Slice, StepEngine, Token};
use llm_node_host::{Context, ContextParams, EngineError};

use crate::bench::{Bench, LONGEST, context, context_for, plain_tokens};
use crate::check::{Stop, Verdict, ensure};
use crate::raw::process;
use crate::script::made_up;
use crate::world::{World, apart, fed};

use super::{SOME, whole};

pub(super) fn create(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn contexts(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn threads(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn destroy(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn steady(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn scripts(bench: &Bench<'_>) -> Verdict {
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
