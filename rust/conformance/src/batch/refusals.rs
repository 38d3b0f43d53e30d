//! What has to be refused, or ended, and leaves everything as it was.

use std::mem::size_of;
use std::time::Duration;

use llm_node_abi::{
    ENGINE_TOKEN_PREVIOUS, ERR_CACHE_FULL, ERR_CANCELLED, ERR_INVALID_ARGUMENT, ERR_UNSUPPORTED, EngineRow,
    EngineSlice,
};
use llm_node_core::engine::{EngineFaultKind, StepEngine, Token};
use llm_node_host::{Context, EngineError};

use crate::bench::{Bench, context, context_for, plain_tokens};
use crate::check::{Stop, Verdict, ensure};
use crate::raw::batch as raw;
use crate::world::{World, fed};

use super::{SOME, feed, step, step_of};

/// A call with wrong arguments, and what is wrong with them.
type Wrong<'c> = (&'static str, &'c dyn Fn(&mut Context) -> Result<(), EngineError>);

pub(super) fn invalid(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn invalid_sequences(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn tickets(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn cancel(bench: &Bench<'_>) -> Verdict {
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
