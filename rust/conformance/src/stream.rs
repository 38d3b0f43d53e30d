//! `engine.stream/1`: one request at a time, token by token.

use std::sync::Arc;

use llm_node_abi::{
    ENGINE_FINISH_LENGTH, ENGINE_FINISH_STOP, ERR_CANCELLED, ERR_INVALID_ARGUMENT, ERR_UNSUPPORTED,
};
use llm_node_core::engine::{Row, Slice, StepEngine, Token};
use llm_node_host::{EngineError, Model};

use crate::bench::{Bench, context};
use crate::check::{Check, Level, Stop, Verdict, ensure};
use crate::raw::calls::{self, Streamed};
use crate::tokenizer::some_tokens;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "stream.tokens",
        level: Level::Must,
        what: "Tokens of the vocabulary come one by one, max_tokens at most, then one ending element, and nothing \
               after it.",
        contract: "Each token, the ending element (text == NULL) last, on the thread of generate",
        mend: "Call on_token once per token, and once more at the end with text NULL and the reason in finish.",
        after: &["models.load"],
        ask: tokens,
    },
    Check {
        name: "stream.repeat",
        level: Level::Must,
        what: "The same greedy request brings the same tokens again.",
        contract: "NULL: greedy",
        mend: "Begin each request with an empty cache, and draw nothing where there is no pick.",
        after: &["stream.tokens"],
        ask: repeat,
    },
    Check {
        name: "stream.cancel",
        level: Level::Must,
        what: "A result of on_token other than 0 ends the request with ERR_CANCELLED, at once.",
        contract: "A result other than 0 cancels: ERR_CANCELLED.",
        mend: "Look at the result of on_token each time, and return ERR_CANCELLED without calling it again.",
        after: &["stream.tokens"],
        ask: cancel,
    },
    Check {
        name: "stream.uses",
        level: Level::Must,
        what: "A request that asks for what nobody knows is refused.",
        contract: "ERR_UNSUPPORTED if not all of `uses` is done.",
        mend: "Compare pick->uses with a mask of what you do, and return ERR_UNSUPPORTED for any other bit.",
        after: &["stream.tokens"],
        ask: uses,
    },
    Check {
        name: "stream.as-batch",
        level: Level::Should,
        what: "A greedy answer is what the best tokens of engine.batch/1 make.",
        contract: "From a row of logits to a token there is one fixed chain",
        mend: "Let both run the same forward pass, and pick the largest logit, the lower id of equal ones.",
        after: &["stream.tokens", "batch.cut"],
        ask: as_batch,
    },
];

fn generated(
    bench: &Bench<'_>,
    model: &Model,
    prompt: &[Token],
    max_tokens: u32,
    uses: u32,
    cancel_after: usize,
) -> Result<(Result<(), EngineError>, Streamed), Stop> {
    bench.trail.call(&format!("stream.generate: of {} tokens, {max_tokens} at most", prompt.len()));
    calls::generate(model, prompt, max_tokens, uses, cancel_after)
        .ok_or_else(|| Stop::skip("there is no generate"))
}

fn with_prompt(bench: &Bench<'_>) -> Result<(Arc<Model>, Vec<Token>), Stop> {
    let model = bench.model_with("engine.stream/1")?;
    if !model.info().generates {
        return Err(Stop::skip("the model does not generate"));
    }
    let prompt = some_tokens(&model, "Hello")?;
    Ok((model, prompt))
}

fn tokens(bench: &Bench<'_>) -> Verdict {
    let (model, prompt) = with_prompt(bench)?;
    for max_tokens in [1, 2, 8, 24] {
        let (result, heard) = generated(bench, &model, &prompt, max_tokens, 0, usize::MAX)?;
        result?;
        ensure!(
            heard.tokens.len() <= max_tokens as usize,
            "{} tokens came, where max_tokens is {max_tokens}.",
            heard.tokens.len()
        );
        ensure!(heard.endings == 1, "{} ending elements came, and there must be one.", heard.endings);
        ensure!(heard.late == 0, "on_token was called {} times after the ending element.", heard.late);
        ensure!(heard.elsewhere == 0, "on_token was called on another thread than that of generate.");
        let full = heard.tokens.len() == max_tokens as usize;
        ensure!(
            heard.finish == if full { ENGINE_FINISH_LENGTH } else { ENGINE_FINISH_STOP }
                || (full && heard.finish == ENGINE_FINISH_STOP),
            "{} tokens of {max_tokens} came, and finish is {}.",
            heard.tokens.len(),
            heard.finish
        );
        let outside = heard
            .tokens
            .iter()
            .find(|token| u32::try_from(**token).map_or(true, |id| id >= model.info().n_vocab));
        ensure!(
            outside.is_none(),
            "Token {} came, of a vocabulary of {}.",
            outside.unwrap_or(&0),
            model.info().n_vocab
        );
    }
    Ok(())
}

fn repeat(bench: &Bench<'_>) -> Verdict {
    let (model, prompt) = with_prompt(bench)?;
    let (first, heard) = generated(bench, &model, &prompt, 12, 0, usize::MAX)?;
    first?;
    let (second, again) = generated(bench, &model, &prompt, 12, 0, usize::MAX)?;
    second?;
    ensure!(heard.tokens == again.tokens, "First it was {:?}, and then {:?}.", heard.tokens, again.tokens);
    Ok(())
}

fn cancel(bench: &Bench<'_>) -> Verdict {
    let (model, prompt) = with_prompt(bench)?;
    for after in [1, 3] {
        let (result, heard) = generated(bench, &model, &prompt, 24, 0, after)?;
        if heard.tokens.len() < after {
            return Err(Stop::skip("the answer is too short to be cancelled"));
        }
        ensure!(
            heard.late == 0 && heard.tokens.len() == after,
            "on_token returned 1 after {after} tokens, and was called {} times more.",
            heard.late
        );
        match result {
            Err(EngineError::Failed { code, .. }) if code == ERR_CANCELLED => {}
            Err(error) => return Err(Stop::seen(format!("A cancelled request: {error}."))),
            Ok(()) => return Err(Stop::seen("A cancelled request returned ERR_OK.")),
        }
    }
    let (result, heard) = generated(bench, &model, &prompt, 4, 0, usize::MAX)?;
    result?;
    ensure!(heard.endings == 1, "The request after a cancelled one had {} ending elements.", heard.endings);
    Ok(())
}

fn uses(bench: &Bench<'_>) -> Verdict {
    let (model, prompt) = with_prompt(bench)?;
    let (result, heard) = generated(bench, &model, &prompt, 4, 1 << 30, usize::MAX)?;
    match result {
        Err(EngineError::Failed { code, .. }) if code == ERR_UNSUPPORTED || code == ERR_INVALID_ARGUMENT => {
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(()) => Err(Stop::seen(format!(
            "A request with the unknown bit 0x40000000 in `uses` brought {} tokens.",
            heard.tokens.len()
        ))),
    }
}

fn as_batch(bench: &Bench<'_>) -> Verdict {
    let (model, prompt) = with_prompt(bench)?;
    if !model.engine().offers("engine.batch/1") {
        return Err(Stop::skip("engine.batch/1 is not offered"));
    }
    let (result, heard) = generated(bench, &model, &prompt, 8, 0, usize::MAX)?;
    result?;
    let mut batch = context(&model, 1)?;
    let mut text = prompt.clone();
    let mut position = 0;
    for (index, token) in heard.tokens.iter().enumerate() {
        let slice = Slice { sequence: 0, position, tokens: &text, rows: 1, candidates: 0 };
        let ticket = batch.step(&[slice])?;
        let rows = batch.collect(ticket, 1)?;
        let Some(Row::Whole(logits)) = rows.first() else { return Ok(()) };
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let own = logits.get(*token as usize).copied().unwrap_or(f32::NAN);
        ensure!(
            best - own <= 1e-3_f32.max(best.abs() * 0.02),
            "Token {index} of the stream is {token}, whose logit in the batch is {own}; the best is {best}."
        );
        position += text.len() as u32;
        text = vec![*token];
    }
    Ok(())
}
