//! What a row says must not depend on what else is computed beside it, nor on how its text is cut.

use std::mem::size_of;

use llm_node_abi::{
    ENGINE_STAGE_LOGITS, ENGINE_STAGE_TOKEN, ENGINE_STAGE_TOP, ENGINE_TOKEN_NONE, EngineRow, EngineSlice,
};
use llm_node_core::engine::{Row, Slice, StepEngine, Token};
use llm_node_host::Context;

use crate::bench::{Bench, context, context_for, plain_tokens};
use crate::check::{Stop, Verdict, ensure};
use crate::raw::batch as raw;
use crate::script::Call;
use crate::world::{World, apart};

use super::{OTHERS, SAME, SOME, feed, step, whole};

pub(super) fn rows(bench: &Bench<'_>) -> Verdict {
    World::new(bench)?;
    Ok(())
}

pub(super) fn repeat(bench: &Bench<'_>) -> Verdict {
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
pub(super) fn last_token(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn cut(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn several_rows(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn together(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn mixed(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn memory_of_a_step(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn rows_stay(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn strides(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn top(bench: &Bench<'_>) -> Verdict {
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

pub(super) fn stages(bench: &Bench<'_>) -> Verdict {
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
