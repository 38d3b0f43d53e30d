//! `engine.stream/1`: the call gives its tokens one by one.

use std::{ops::ControlFlow, sync::Arc};

use llm_node_core::{
    engine::{EngineFault, Tokenizer, attribute},
    event::Finish,
    request::Sampling,
};
use llm_node_host::{Model, ModelTokenizer, Prompt, StreamRequest};

use super::{
    EnginePrompt, Prepared,
    blocking::{Generator, OnToken, Said},
    finish,
};

pub(crate) struct StreamGenerator {
    model: Arc<Model>,
    tokenizer: Option<Arc<ModelTokenizer>>,
}

impl StreamGenerator {
    pub(crate) fn new(model: Arc<Model>, tokenizer: Option<Arc<ModelTokenizer>>) -> Self {
        Self { model, tokenizer }
    }

    /// An engine with a tokenizer may give the number alone.
    fn said_by(&self, token: i32) -> Said<'_> {
        match self.tokenizer.as_ref().map(|tokenizer| tokenizer.vocabulary()) {
            Some(vocabulary) if vocabulary.has(token, attribute::CONTROL) => {
                Said::Control(vocabulary.token_bytes(token))
            }
            Some(vocabulary) => Said::Text(vocabulary.token_bytes(token)),
            None => Said::Text(&[]),
        }
    }
}

impl Generator for StreamGenerator {
    fn generate(&self, request: &Prepared, on_token: &mut OnToken<'_>) -> Result<Finish, EngineFault> {
        let stream = StreamRequest {
            prompt: match &request.prompt {
                EnginePrompt::Text(text) => Prompt::Text(text),
                EnginePrompt::Tokens(tokens) => Prompt::Tokens(tokens),
            },
            max_tokens: request.max_tokens.unwrap_or(u32::MAX),
            sampling: pick(&request.sampling),
            seed: request.seed,
            stop: &request.stop,
        };
        let finished = self.model.generate(&stream, &mut |token| {
            let said = match token.id {
                Some(id) if token.text.is_empty() => self.said_by(id),
                _ => Said::Text(&token.text),
            };
            if on_token(said, token.id.unwrap_or(-1)) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(finish(finished))
    }

    fn events_at_once(&self) -> usize {
        1
    }
}

/// What changes nothing is not asked for: an engine refuses what it cannot do.
#[expect(clippy::float_cmp, reason = "the neutral values are exact")]
fn pick(sampling: &Sampling) -> llm_node_host::Sampling {
    let unless = |value: f32, neutral: f32| (value != neutral).then_some(value);
    let draws = sampling.temperature > 0.0;
    llm_node_host::Sampling {
        temperature: draws.then_some(sampling.temperature),
        top_k: (draws && sampling.top_k > 0).then_some(sampling.top_k),
        top_p: unless(sampling.top_p, 1.0).filter(|_| draws),
        min_p: unless(sampling.min_p, 0.0).filter(|_| draws),
        repeat_penalty: unless(sampling.repeat_penalty, 1.0),
        frequency_penalty: unless(sampling.frequency_penalty, 0.0),
        presence_penalty: unless(sampling.presence_penalty, 0.0),
    }
}
