//! `engine.embed/1`.

use std::sync::Arc;

use llm_node_abi::{ERR_BUFFER_TOO_SMALL, ERR_INVALID_ARGUMENT, ERR_UNSUPPORTED};
use llm_node_core::engine::Token;
use llm_node_host::{EngineError, Model};

use crate::bench::{Bench, plain_tokens};
use crate::check::{Check, Level, Stop, Verdict, ensure};
use crate::raw::calls;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "embed.vectors",
        level: Level::Must,
        what: "Every number of every vector is written, and is one; several inputs bring what each brings alone.",
        contract: "Writes n_inputs vectors of EngineModelInfo.n_embedding floats, one after the other, not normalised.",
        mend: "Write n_inputs * n_embedding numbers, and let no input look at another.",
        after: &["models.load"],
        ask: vectors,
    },
    Check {
        name: "embed.capacity",
        level: Level::Must,
        what: "Too little room is refused, and nothing is written beyond it.",
        contract: "ERR_BUFFER_TOO_SMALL = 12",
        mend: "Compare capacity with n_inputs * n_embedding before you write the first number.",
        after: &["embed.vectors"],
        ask: capacity,
    },
];

fn embedding(bench: &Bench<'_>) -> Result<(Arc<Model>, Vec<Vec<Token>>), Stop> {
    let model = bench.model_with("engine.embed/1")?;
    if !model.info().embeds {
        return Err(Stop::skip("the model does not embed"));
    }
    let vocabulary = plain_tokens(&model)?;
    let mut tokens = vocabulary.into_iter().cycle();
    let inputs = [1, 4, 9, 2].map(|length| tokens.by_ref().take(length).collect()).to_vec();
    Ok((model, inputs))
}

fn of(model: &Model, inputs: &[Vec<Token>]) -> Result<Vec<f32>, Stop> {
    let due = inputs.len() * model.info().n_embedding as usize;
    let filled = calls::embed(model, inputs, due).ok_or_else(|| Stop::skip("there is no embed"))?;
    filled.result?;
    ensure!(!filled.overrun, "embed.embed wrote beyond the {due} numbers that it was given room for.");
    let numbers: Vec<f32> = filled.elements.iter().map(|bits| f32::from_bits(*bits)).collect();
    let not = numbers.iter().position(|number| !number.is_finite());
    ensure!(
        not.is_none(),
        "Number {} of {due} is {}, or was not written.",
        not.unwrap_or_default(),
        numbers.get(not.unwrap_or_default()).copied().unwrap_or_default()
    );
    Ok(numbers)
}

fn vectors(bench: &Bench<'_>) -> Verdict {
    let (model, inputs) = embedding(bench)?;
    bench.trail.call("embed.embed: several inputs at once");
    let together = of(&model, &inputs)?;
    let width = model.info().n_embedding as usize;
    for (index, (input, vector)) in inputs.iter().zip(together.chunks(width)).enumerate() {
        bench.trail.call(&format!("embed.embed: input {index} alone"));
        let alone = of(&model, std::slice::from_ref(input))?;
        let length = alone.iter().map(|number| number * number).sum::<f32>().sqrt().max(1e-6);
        let apart = alone.iter().zip(vector).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt() / length;
        ensure!(apart < 0.02, "Input {index} of {} brings another vector than alone.", inputs.len());
    }
    Ok(())
}

fn capacity(bench: &Bench<'_>) -> Verdict {
    let (model, inputs) = embedding(bench)?;
    let due = inputs.len() * model.info().n_embedding as usize;
    for room in [0, due - 1] {
        let Some(filled) = calls::embed(&model, &inputs, room) else { return Ok(()) };
        ensure!(!filled.overrun, "embed.embed wrote beyond the {room} numbers that it was given room for.");
        match filled.result {
            Err(EngineError::Failed { code, .. })
                if [ERR_BUFFER_TOO_SMALL, ERR_INVALID_ARGUMENT, ERR_UNSUPPORTED].contains(&code) => {}
            Err(error) => return Err(error.into()),
            Ok(()) => {
                return Err(Stop::seen(format!(
                    "With room for {room} of {due} numbers embed.embed returned ERR_OK."
                )));
            }
        }
    }
    Ok(())
}
