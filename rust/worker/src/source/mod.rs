//! The ways to get tokens from an engine, one for each kind of engine.
//!
//! - `batch.rs`: the engine offers forward passes, and the host schedules (preferred).
//! - `stream.rs`: the engine runs a request and gives its tokens one by one.
//! - `tier0.rs`: the engine runs a request and gives its tokens at the end.
//!
//! `engine.serve/1` is a draft and not used.

pub(crate) mod batch;
pub(crate) mod blocking;
pub(crate) mod stream;
pub(crate) mod text;
pub(crate) mod tier0;

use llm_node_core::{
    engine::{EngineFault, EngineFaultKind, Token},
    error::{ErrorCode, Fault},
    event::Finish,
    request::{Sampling, Source, ValidRequest, Weight},
    text::answer::AnswerText,
};

/// A request as an engine that runs the loop by itself takes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) prompt: EnginePrompt,
    /// 0: the engine does not say.
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: Option<u32>,
    /// Why an answer of so many tokens ends.
    pub(crate) limit: Finish,
    pub(crate) stop: Vec<String>,
    /// The text of the answer, in which nothing stands yet.
    pub(crate) answer: AnswerText,
    pub(crate) sampling: Sampling,
    pub(crate) seed: u64,
    /// Whose it is, and what it asks for.
    pub(crate) source: Source,
    pub(crate) weight: Weight,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum EnginePrompt {
    Text(String),
    Tokens(Vec<Token>),
}

impl From<ValidRequest> for Prepared {
    fn from(request: ValidRequest) -> Self {
        Self {
            prompt: EnginePrompt::Tokens(request.prompt().to_vec()),
            prompt_tokens: request.prompt().len() as u32,
            max_tokens: Some(request.max_tokens()),
            limit: request.limit(),
            stop: request.stop().to_vec(),
            answer: request.answer(),
            sampling: request.sampling().clone(),
            seed: request.seed(),
            source: request.source(),
            weight: request.weight(),
        }
    }
}

fn finish(finish: llm_node_host::Finish) -> Finish {
    match finish {
        llm_node_host::Finish::Stop => Finish::Stop,
        llm_node_host::Finish::Length => Finish::Length,
        llm_node_host::Finish::Cancelled => Finish::Cancelled,
    }
}

/// What requests are told when such a fault has ended their engine.
pub(crate) fn lost(fault: EngineFault) -> Fault {
    match fault.kind {
        EngineFaultKind::DeviceLost => {
            Fault::new(ErrorCode::EngineCrashed, format!("the engine has lost its device: {fault}"))
        }
        _ => Fault::from(fault),
    }
}

/// What requests are told that come too late.
pub(crate) fn stopped() -> Fault {
    // By then it has gone, and whoever asks again has it loaded.
    Fault::new(ErrorCode::ShuttingDown, "the model is being unloaded")
        .details(r#"{"retry_after":1}"#.to_owned())
}
