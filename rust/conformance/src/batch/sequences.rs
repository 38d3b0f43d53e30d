//! Sequences that are copied, cut, saved and restored.

use llm_node_abi::{ERR_BUFFER_TOO_SMALL, ERR_INVALID_ARGUMENT, ERR_UNSUPPORTED};
use llm_node_core::engine::{Slice, StepEngine, Token};
use llm_node_host::{Context, EngineError};

use crate::bench::{Bench, context, context_for, plain_tokens};
use crate::check::{Stop, Verdict, ensure};
use crate::raw::batch as raw;
use crate::script::Call;
use crate::world::{World, apart, fed};

use super::{SOME, feed, step, whole};

pub(super) fn copy(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn remove(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn rollback(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn save(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn save_sizes(bench: &Bench<'_>) -> Verdict {
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
