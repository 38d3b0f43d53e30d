//! Tier 0: the call gives all tokens at the end, and they are replayed.

use std::sync::{Arc, Mutex, PoisonError};

use llm_node_core::{
    engine::{EngineFault, EngineFaultKind},
    event::Finish,
};
use llm_node_host::LoadedEngine;

use super::{
    EnginePrompt, Prepared,
    blocking::{Generator, OnToken, Said},
    finish,
};

pub(crate) struct Tier0Generator {
    engine: Arc<Mutex<LoadedEngine>>,
}

impl Tier0Generator {
    pub(crate) fn new(engine: Arc<Mutex<LoadedEngine>>) -> Self {
        Self { engine }
    }
}

impl Generator for Tier0Generator {
    fn generate(&self, request: &Prepared, on_token: &mut OnToken<'_>) -> Result<Finish, EngineFault> {
        let EnginePrompt::Text(prompt) = &request.prompt else {
            return Err(EngineFault {
                kind: EngineFaultKind::InvalidArgument,
                message: "tier 0 takes text".into(),
                call: "engine_generate",
            });
        };
        let generated = self.engine.lock().unwrap_or_else(PoisonError::into_inner).tier0_generate(prompt)?;
        for token in &generated.tokens {
            if !on_token(Said::Text(&token.text), token.id.unwrap_or(-1)) {
                break;
            }
        }
        Ok(finish(generated.finish))
    }

    fn events_at_once(&self) -> usize {
        256
    }
}
