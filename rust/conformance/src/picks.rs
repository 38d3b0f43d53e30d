//! Picking a token on the engine's side: what it makes of a row must be what the host would make of it.

use fastrand::Rng;
use llm_node_abi::{
    ENGINE_PICK_BIAS, ENGINE_PICK_FREQUENCY, ENGINE_PICK_LATE_MASK, ENGINE_PICK_MASK, ENGINE_PICK_MIN_P,
    ENGINE_PICK_PRESENCE, ENGINE_PICK_REPEAT, ENGINE_PICK_TEMPERATURE, ENGINE_PICK_TOP_K, ENGINE_PICK_TOP_P,
    ENGINE_STAGE_LOGITS, ENGINE_STAGE_TOKEN, ENGINE_STAGE_TOP, ENGINE_TOKEN_PREVIOUS, EngineBias, EngineRow,
    EngineSlice,
};
use llm_node_core::engine::{StepEngine, Token};
use llm_node_host::Context;

use crate::bench::{Bench, context, plain_tokens};
use crate::check::{Stop, Verdict, ensure};
use crate::raw::batch::{self as raw, Pick, Row, Shape};
use crate::world::apart;

/// Rows of a step whose picks are looked at.
const ROWS: u32 = 2;
/// The number of the picks among what is made up.
const PICKS: u64 = 1 << 30;
/// Tokens of its slice.
const TOKENS: usize = 7;
/// How far numbers that decide may be off: what is decided within that is not compared.
const NEAR: f64 = 3e-3;
/// How far logits may be off, in units of the spread of their row.
const SPREAD: f64 = 0.05;

const NAMES: [(u32, &str); 10] = [
    (ENGINE_PICK_REPEAT, "REPEAT"),
    (ENGINE_PICK_FREQUENCY, "FREQUENCY"),
    (ENGINE_PICK_PRESENCE, "PRESENCE"),
    (ENGINE_PICK_BIAS, "BIAS"),
    (ENGINE_PICK_MASK, "MASK"),
    (ENGINE_PICK_LATE_MASK, "LATE_MASK"),
    (ENGINE_PICK_TEMPERATURE, "TEMPERATURE"),
    (ENGINE_PICK_TOP_K, "TOP_K"),
    (ENGINE_PICK_TOP_P, "TOP_P"),
    (ENGINE_PICK_MIN_P, "MIN_P"),
];
const PENALTIES: u32 = ENGINE_PICK_REPEAT | ENGINE_PICK_FREQUENCY | ENGINE_PICK_PRESENCE;
const MASKS: u32 = ENGINE_PICK_MASK | ENGINE_PICK_LATE_MASK;

/// What is asked for at once: each alone where it means something alone, and all together.
const USES: [u32; 12] = [
    0,
    ENGINE_PICK_REPEAT,
    ENGINE_PICK_FREQUENCY,
    ENGINE_PICK_PRESENCE,
    ENGINE_PICK_BIAS,
    ENGINE_PICK_MASK,
    ENGINE_PICK_TEMPERATURE,
    ENGINE_PICK_TEMPERATURE | ENGINE_PICK_TOP_K,
    ENGINE_PICK_TEMPERATURE | ENGINE_PICK_TOP_P,
    ENGINE_PICK_TEMPERATURE | ENGINE_PICK_MIN_P,
    PENALTIES | ENGINE_PICK_BIAS | ENGINE_PICK_MASK,
    0x3ff & !ENGINE_PICK_LATE_MASK,
];

/// The names of bits, for people.
fn named(uses: u32) -> String {
    let names: Vec<&str> = NAMES.iter().filter(|(bit, _)| uses & bit != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(" and ") }
}

/// The shaped logits of a row: steps 1 to 3 of the chain, as plainly as can be.
fn shaped(row: &[f32], uses: u32, shape: &Shape, further: &[Token], mask: Option<&[u32]>) -> Vec<f64> {
    let used = |bit: u32| uses & bit != 0;
    let mut logits: Vec<f64> = row.iter().copied().map(f64::from).collect();
    if used(PENALTIES) {
        let mut counts = vec![0_u32; row.len()];
        for token in shape.history.iter().chain(further) {
            counts[*token as usize] += 1;
        }
        for (logit, count) in logits.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
            if used(ENGINE_PICK_REPEAT) {
                let penalty = f64::from(shape.repeat_penalty);
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
            if used(ENGINE_PICK_FREQUENCY) {
                *logit -= f64::from(shape.frequency_penalty) * f64::from(count);
            }
            if used(ENGINE_PICK_PRESENCE) {
                *logit -= f64::from(shape.presence_penalty);
            }
        }
    }
    if used(ENGINE_PICK_BIAS) {
        for bias in &shape.bias {
            logits[bias.token as usize] += f64::from(bias.bias);
        }
    }
    if let Some(mask) = mask {
        for (token, logit) in logits.iter_mut().enumerate() {
            if mask[token / 32] >> (token % 32) & 1 == 0 {
                *logit = f64::NEG_INFINITY;
            }
        }
    }
    logits
}

/// Tokens by their logits, best first; equal ones by lower id.
fn best_first(logits: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    order
}

/// Steps 4 to 8. `off` moves each number that decides by so much.
fn drawn(logits: &[f64], uses: u32, shape: &Shape, uniform: f32, off: f64) -> usize {
    let order = best_first(logits);
    if uses & ENGINE_PICK_TEMPERATURE == 0 {
        return order[0];
    }
    let most = logits[order[0]];
    let weight = |token: &usize| ((logits[*token] - most) / f64::from(shape.temperature)).exp();
    let mut kept: Vec<(usize, f64)> = order.iter().map(|token| (*token, weight(token))).collect();
    let share = |kept: &mut Vec<(usize, f64)>| {
        let sum: f64 = kept.iter().map(|(_, weight)| weight).sum();
        for (_, weight) in kept {
            *weight /= sum;
        }
    };
    if uses & ENGINE_PICK_TOP_K != 0 {
        kept.truncate(shape.top_k as usize);
    }
    share(&mut kept);
    if uses & ENGINE_PICK_TOP_P != 0 {
        let mut sum = 0.0;
        let enough = kept.iter().position(|(_, weight)| {
            sum += weight;
            sum >= f64::from(shape.top_p) + off
        });
        kept.truncate(enough.map_or(kept.len(), |place| place + 1));
        share(&mut kept);
    }
    if uses & ENGINE_PICK_MIN_P != 0 {
        let least = (f64::from(shape.min_p) + off) * kept[0].1;
        kept.retain(|(_, weight)| *weight >= least);
        share(&mut kept);
    }
    let mut sum = 0.0;
    let at = kept.iter().position(|(_, weight)| {
        sum += weight;
        sum > f64::from(uniform) + off
    });
    kept[at.unwrap_or(kept.len() - 1)].0
}

/// The token of a row, where nothing that decides is near.
fn certain(logits: &[f64], uses: u32, shape: &Shape, uniform: f32) -> Option<usize> {
    let token = drawn(logits, uses, shape, uniform, 0.0);
    let order = best_first(logits);
    let lead = logits[order[0]] - logits[order[1]];
    if uses & ENGINE_PICK_TEMPERATURE == 0 {
        return (lead > SPREAD * spread(logits)).then_some(token);
    }
    let same = |off: f64| drawn(logits, uses, shape, uniform, off) == token;
    (same(NEAR) && same(-NEAR)).then_some(token)
}

fn spread(logits: &[f64]) -> f64 {
    let finite: Vec<f64> = logits.iter().copied().filter(|logit| logit.is_finite()).collect();
    let mean = finite.iter().sum::<f64>() / finite.len().max(1) as f64;
    (finite.iter().map(|logit| (logit - mean).powi(2)).sum::<f64>() / finite.len().max(1) as f64).sqrt()
}

/// A shape that changes which tokens of this row are the best. `last`: of the slice, which its later rows penalise.
fn made_up(rng: &mut Rng, row: &[f32], last: Token) -> Shape {
    let order = best_first(&row.iter().copied().map(f64::from).collect::<Vec<_>>());
    let token = |place: usize| order[place.min(order.len() - 1)] as Token;
    let mask = |rng: &mut Rng, barred: [Token; 2]| -> Vec<u32> {
        let mut words: Vec<u32> = (0..row.len().div_ceil(32)).map(|_| rng.u32(..) | rng.u32(..)).collect();
        // Some of the best stay, so that what is left is a choice.
        for token in (2..6).map(token).chain([last]) {
            words[token as usize / 32] |= 1 << (token % 32);
        }
        for token in barred {
            words[token as usize / 32] &= !(1 << (token % 32));
        }
        words
    };
    let mut bias = vec![
        EngineBias { token: token(0), bias: -2.5 },
        EngineBias { token: token(5), bias: 3.0 },
        EngineBias { token: token(2), bias: f32::NEG_INFINITY },
    ];
    if bias.iter().all(|bias| bias.token != last) {
        // Into the midst of the best.
        bias.push(EngineBias { token: last, bias: row[token(1) as usize] - row[last as usize] + 2.0 });
    }
    let masks = vec![Some(mask(rng, [token(0), token(1)])), Some(mask(rng, [token(0), token(0)]))];
    Shape {
        repeat_penalty: 1.5,
        frequency_penalty: 0.75,
        presence_penalty: 1.25,
        temperature: 0.6 + rng.f32(),
        top_p: 0.5 + 0.4 * rng.f32(),
        min_p: 0.1 + 0.3 * rng.f32(),
        top_k: rng.u32(2..6),
        bias,
        history: vec![token(0), token(3), token(0), token(1)],
        masks,
        // The last ones that are kept, too.
        uniforms: vec![rng.f32(), 0.95 + 0.04 * rng.f32()],
    }
}

/// One token is allowed: it alone can be picked.
fn only(token: Token, n_vocab: usize) -> Vec<Option<Vec<u32>>> {
    let mut words = vec![0; n_vocab.div_ceil(32)];
    words[token as usize / 32] = 1 << (token % 32);
    vec![Some(words); ROWS as usize]
}

pub(crate) fn picks(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 2)?;
    let n_vocab = context.limits().n_vocab as usize;
    let late = context.info().takes_late_masks;
    let mut rng = bench.rng(PICKS);
    let tokens: Vec<Token> = (0..TOKENS).map(|_| vocabulary[rng.usize(..vocabulary.len())]).collect();
    let bare = submitted(&mut context, &tokens, None)?;
    ensure!(bare.len() == ROWS as usize, "A step of {ROWS} rows brought {}.", bare.len());
    for turn in 0..bench.times(4, 8) {
        for uses in USES.iter().copied().chain(late.then_some(ENGINE_PICK_LATE_MASK)) {
            let mut shape = made_up(&mut rng, &bare[0].logits, tokens[TOKENS - 1]);
            if turn == 0 && uses & MASKS != 0 {
                shape.masks = only(vocabulary[rng.usize(..vocabulary.len())], n_vocab);
            }
            for stage in [ENGINE_STAGE_TOP, ENGINE_STAGE_TOKEN] {
                bench.trail.begin();
                bench.trail.call(&format!("batch.step: a pick of stage {stage} that uses {}", named(uses)));
                let pick = Pick { stage, uses, n_candidates: 5, shape: shape.clone() };
                let rows = submitted(&mut context, &tokens, Some(&pick))?;
                for (index, (row, bare)) in rows.iter().zip(&bare).enumerate() {
                    is_due(row, index, &bare.logits, &pick, &tokens)?;
                }
            }
        }
    }
    Ok(())
}

/// The rows of the last tokens, of a slice with this pick.
fn submitted(context: &mut Context, tokens: &[Token], pick: Option<&Pick>) -> Result<Vec<Row>, Stop> {
    context.truncate(0, 0)?;
    let slice =
        raw::Slice { tokens: tokens.to_vec(), n_rows: ROWS, pick: pick.cloned(), ..raw::Slice::default() };
    let ticket = raw::step(context, &[slice], size_of::<EngineSlice>())?;
    let late = pick.filter(|pick| pick.uses & ENGINE_PICK_LATE_MASK != 0);
    let masks = late.map_or(&[][..], |pick| &pick.shape.masks[..]);
    raw::collect_masked(context, ticket, ROWS as usize, size_of::<EngineRow>(), masks)
}

/// Is this row what the chain makes of the bare one?
fn is_due(row: &Row, index: usize, bare: &[f32], pick: &Pick, tokens: &[Token]) -> Verdict {
    let Pick { uses, ref shape, .. } = *pick;
    let asked = named(uses);
    if row.stage == ENGINE_STAGE_LOGITS {
        let distance = apart(bare, &row.logits);
        ensure!(
            distance < 0.08,
            "A row of stage LOGITS, whose pick uses {asked}, is not the model's own output: it lies {distance:.2} times \
             its spread off."
        );
        return Ok(());
    }
    // Later rows look at the tokens in between as well.
    let first = tokens.len() - ROWS as usize;
    let further = &tokens[first + 1..=first + index];
    let mask = shape.masks.get(index).filter(|_| uses & MASKS != 0).and_then(Option::as_deref);
    let logits = shaped(bare, uses, shape, further, mask);
    let (order, near) = (best_first(&logits), SPREAD * spread(&logits).max(1.0));
    let least = usize::from(row.stage == ENGINE_STAGE_TOP);
    ensure!(
        row.ids.len() == row.logits.len() && (least..=pick.n_candidates as usize).contains(&row.ids.len()),
        "A row of stage {} has {} candidates, where {} were wanted.",
        row.stage,
        row.ids.len(),
        pick.n_candidates
    );
    for (place, (id, logit)) in row.ids.iter().zip(&row.logits).enumerate() {
        let Some(own) = usize::try_from(*id).ok().and_then(|id| logits.get(id)) else {
            return Err(Stop::seen(format!("Candidate {place} is token {id}, which there is not.")));
        };
        let due = logits[order[place]];
        // What is forbidden has minus infinity.
        let close =
            |one: f64| (one - f64::from(*logit)).abs() <= near || (one.is_infinite() && logit.is_infinite());
        ensure!(
            close(*own) && close(due),
            "With a pick that uses {asked}, candidate {place} of row {index} is token {id} with {logit}; the chain comes \
             to token {} with {due:.3}.",
            order[place]
        );
        ensure!(!row.ids[..place].contains(id), "Token {id} is twice among the candidates.");
    }
    if row.stage == ENGINE_STAGE_TOKEN {
        let uniform = shape.uniforms.get(index).copied().unwrap_or_default();
        if let Some(due) = certain(&logits, uses, shape, uniform) {
            ensure!(
                row.token as usize == due,
                "With a pick that uses {asked}, row {index} has token {}, and the chain comes to {due}.",
                row.token
            );
        }
    }
    Ok(())
}

/// Steps of one token each, in a chain.
const LINKS: usize = 6;

pub(crate) fn chain(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.batch/1")?;
    let vocabulary = plain_tokens(&model)?;
    let mut context = context(&model, 2)?;
    if !context.info().chains {
        return Err(Stop::skip("the engine does not chain steps"));
    }
    let window = context.info().max_in_flight as usize;
    let prompt: Vec<Token> = vocabulary.iter().cycle().take(4).copied().collect();
    let pick = Pick { stage: ENGINE_STAGE_TOKEN, ..Pick::default() };
    let slice = |position: usize, tokens: Vec<Token>| raw::Slice {
        position: position as u32,
        tokens,
        n_rows: 1,
        pick: Some(pick.clone()),
        ..raw::Slice::default()
    };
    let token_of = |context: &mut Context, ticket: u64| -> Result<Token, Stop> {
        let rows = raw::collect(context, ticket, 1, size_of::<EngineRow>())?;
        let row = rows.first().filter(|row| row.stage == ENGINE_STAGE_TOKEN);
        row.map(|row| row.token).ok_or_else(|| {
            Stop::seen("ENGINE_CONTEXT_CHAIN is set, and a greedy row did not reach stage TOKEN.")
        })
    };
    let mut known = Vec::new();
    let mut next = prompt.clone();
    for position in std::iter::once(0).chain(prompt.len()..).take(LINKS) {
        let ticket = raw::step(&mut context, &[slice(position, next)], size_of::<EngineSlice>())?;
        let token = token_of(&mut context, ticket)?;
        known.push(token);
        next = vec![token];
    }
    context.truncate(0, 0)?;
    let (mut tickets, mut blind) = (std::collections::VecDeque::new(), Vec::new());
    let mut next = prompt.clone();
    for position in std::iter::once(0).chain(prompt.len()..).take(LINKS) {
        bench.trail.call(&format!("batch.step: tokens {next:?} at position {position}"));
        tickets.push_back(raw::step(&mut context, &[slice(position, next)], size_of::<EngineSlice>())?);
        next = vec![ENGINE_TOKEN_PREVIOUS];
        if tickets.len() == window {
            let ticket = tickets.pop_front().unwrap_or_default();
            blind.push(token_of(&mut context, ticket)?);
        }
    }
    for ticket in tickets {
        blind.push(token_of(&mut context, ticket)?);
    }
    ensure!(
        blind == known,
        "Steps that went on with ENGINE_TOKEN_PREVIOUS brought the tokens {blind:?}, and {known:?} came one by one."
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            repeat_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            temperature: 1.0,
            top_p: 0.6,
            min_p: 0.4,
            top_k: 2,
            bias: vec![EngineBias { token: 2, bias: 1.5 }],
            history: vec![0, 0],
            masks: Vec::new(),
            uniforms: Vec::new(),
        }
    }

    #[test]
    fn logits_are_shaped_in_the_order_of_the_header() {
        let all = PENALTIES | ENGINE_PICK_BIAS;
        let logits = shaped(&[4.0, -1.0, 0.0], all, &shape(), &[1], Some(&[0b011]));
        assert_eq!(logits, [4.0 / 2.0 - 2.0 * 0.5 - 0.25, -2.0 - 0.5 - 0.25, f64::NEG_INFINITY]);
        assert_eq!(shaped(&[4.0, -1.0, 0.0], ENGINE_PICK_BIAS, &shape(), &[], None), [4.0, -1.0, 1.5]);
    }

    #[test]
    fn the_draw_is_the_first_that_exceeds_the_number() {
        // Of the weights 4, 2, 1, 1 eighths.
        let logits = [0.0, 4.0_f64.ln(), 2.0_f64.ln(), 0.0];
        let draw =
            |uses: u32, uniform: f32| drawn(&logits, ENGINE_PICK_TEMPERATURE | uses, &shape(), uniform, 0.0);
        assert_eq!([0.0, 0.49, 0.51, 0.76, 0.9].map(|uniform| draw(0, uniform)), [1, 1, 2, 0, 3]);
        assert_eq!([0.66, 0.67].map(|uniform| draw(ENGINE_PICK_TOP_K, uniform)), [1, 2]);
        assert_eq!([0.66, 0.67].map(|uniform| draw(ENGINE_PICK_TOP_P, uniform)), [1, 2]);
        assert_eq!([0.66, 0.99].map(|uniform| draw(ENGINE_PICK_MIN_P, uniform)), [1, 2]);
        assert_eq!(drawn(&logits, 0, &shape(), 0.9, 0.0), 1);
        assert_eq!(certain(&logits, ENGINE_PICK_TEMPERATURE, &shape(), 0.501), None);
        assert_eq!(certain(&logits, ENGINE_PICK_TEMPERATURE, &shape(), 0.6), Some(2));
    }
}
