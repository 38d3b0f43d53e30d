//! `engine.stream/1`: one request at a time, token by token, for an engine that runs the loop itself.

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use llm_node_abi::{
    ENGINE_PICK_FREQUENCY, ENGINE_PICK_MIN_P, ENGINE_PICK_PRESENCE, ENGINE_PICK_REPEAT,
    ENGINE_PICK_TEMPERATURE, ENGINE_PICK_TOP_K, ENGINE_PICK_TOP_P, ENGINE_STAGE_TOKEN, ERR_CANCELLED,
    EnginePick, EngineRequest, EngineStr, Growing, TokenResult,
};
use llm_node_core::engine::Token;

use crate::callbacks::checked;
use crate::calls;
use crate::error::EngineError;
use crate::model::Model;
use crate::readable;
use crate::tier0::{Finish, GeneratedToken, copy_token};

/// What to go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// For an engine with a tokenizer.
    Tokens(&'a [Token]),
    /// For one without.
    Text(&'a str),
}

/// How tokens are picked; what is `None` is not done. All `None` is greedy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Above 0.
    pub temperature: Option<f32>,
    /// How many of the best stay.
    pub top_k: Option<u32>,
    /// Probability mass that stays.
    pub top_p: Option<f32>,
    /// Share of the best one's probability that stays.
    pub min_p: Option<f32>,
    /// Divides positive logits of what occurred.
    pub repeat_penalty: Option<f32>,
    /// Subtracted once per occurrence.
    pub frequency_penalty: Option<f32>,
    /// Subtracted once if it occurs.
    pub presence_penalty: Option<f32>,
}

impl Sampling {
    fn to_abi(self) -> EnginePick {
        let mut uses = 0;
        let mut used = |bit: u32, value: Option<f32>| {
            uses |= if value.is_some() { bit } else { 0 };
            value.unwrap_or_default()
        };
        let repeat_penalty = used(ENGINE_PICK_REPEAT, self.repeat_penalty);
        let frequency_penalty = used(ENGINE_PICK_FREQUENCY, self.frequency_penalty);
        let presence_penalty = used(ENGINE_PICK_PRESENCE, self.presence_penalty);
        let temperature = used(ENGINE_PICK_TEMPERATURE, self.temperature);
        let top_p = used(ENGINE_PICK_TOP_P, self.top_p);
        let min_p = used(ENGINE_PICK_MIN_P, self.min_p);
        if self.top_k.is_some() {
            uses |= ENGINE_PICK_TOP_K;
        }
        EnginePick {
            stage: ENGINE_STAGE_TOKEN,
            uses,
            repeat_penalty,
            frequency_penalty,
            presence_penalty,
            temperature,
            top_p,
            min_p,
            top_k: self.top_k.unwrap_or_default(),
            ..EnginePick::GREEDY
        }
    }
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct StreamRequest<'a> {
    /// What to go on from.
    pub prompt: Prompt<'a>,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// How they are picked.
    pub sampling: Sampling,
    /// Of the engine's random numbers.
    pub seed: u64,
    /// Strings that let the engine end sooner. The caller still cuts at them.
    pub stop: &'a [String],
}

struct Listener<'a> {
    model: &'a Model,
    on_token: &'a mut dyn FnMut(GeneratedToken) -> ControlFlow<()>,
    finish: Option<Finish>,
    cancelled: bool,
    problem: Option<EngineError>,
    panic: Option<Box<dyn Any + Send>>,
}

const CALL: &str = "stream.generate";

impl Model {
    /// Generates an answer, and blocks until it is done. `on_token` is called for each token on this
    /// thread, and cancels with `Break`.
    ///
    /// One request at a time per model, whatever its `max_streams`.
    pub fn generate(
        &self,
        request: &StreamRequest<'_>,
        on_token: &mut dyn FnMut(GeneratedToken) -> ControlFlow<()>,
    ) -> Result<Finish, EngineError> {
        let function = self
            .engine()
            .tables()
            .stream
            .and_then(|table| table.generate)
            .ok_or_else(|| EngineError::unsupported(CALL))?;
        let mut listener =
            Listener { model: self, on_token, finish: None, cancelled: false, problem: None, panic: None };
        let pick = request.sampling.to_abi();
        let stop: Vec<EngineStr> = request
            .stop
            .iter()
            .map(|text| EngineStr { data: text.as_ptr().cast(), len: text.len() })
            .collect();
        let (tokens, text): (&[Token], &str) = match request.prompt {
            Prompt::Tokens(tokens) => (tokens, ""),
            Prompt::Text(text) => (&[], text),
        };
        let is_text = matches!(request.prompt, Prompt::Text(_));
        let c_request = EngineRequest {
            struct_size: EngineRequest::SIZE,
            max_tokens: request.max_tokens,
            tokens: if is_text { std::ptr::null() } else { tokens.as_ptr() },
            n_tokens: tokens.len(),
            text: if is_text { text.as_ptr().cast::<c_char>() } else { std::ptr::null() },
            text_len: text.len(),
            pick: &raw const pick,
            seed: request.seed,
            stop: if stop.is_empty() { std::ptr::null() } else { stop.as_ptr() },
            n_stop: stop.len(),
            adapter: std::ptr::null_mut(),
            adapter_scale: 0.0,
            priority: 0,
            fill_mask: None,
            on_token: Some(on_token_from_c),
            user: (&raw mut listener).cast(),
        };
        let result = {
            let _one_at_a_time = self.step_lock();
            self.engine().announce(CALL);
            // SAFETY: [step]: the model's lock is held. The request and what it points to, the listener
            // among it, outlive the call, during which alone the callback may be called.
            checked(CALL, || unsafe { function(self.as_ptr(), &raw const c_request) })
        };
        if let Some(panic) = listener.panic {
            resume_unwind(panic);
        }
        if let Some(problem) = listener.problem {
            return Err(problem);
        }
        match result {
            Err(EngineError::Failed { code: ERR_CANCELLED, .. }) if listener.cancelled => {
                Ok(Finish::Cancelled)
            }
            Err(error) => Err(error),
            Ok(()) if listener.cancelled => Ok(Finish::Cancelled),
            Ok(()) => listener
                .finish
                .ok_or_else(|| EngineError::misbehaved(CALL, "it ended without an ending element")),
        }
    }
}

impl Listener<'_> {
    fn hear(&mut self, result: &TokenResult) -> Result<ControlFlow<()>, EngineError> {
        calls::alive();
        if self.finish.is_some() || self.cancelled {
            return Err(EngineError::misbehaved(CALL, "a token after the end"));
        }
        if result.text.is_null() {
            self.finish = Some(Finish::from_abi(result.finish));
            return Ok(ControlFlow::Continue(()));
        }
        // SAFETY: valid during this call.
        let token = unsafe { copy_token(result, CALL) }?;
        if let Some(id) = token.id {
            self.model.check_tokens(CALL, &[id])?;
        }
        Ok((self.on_token)(token))
    }
}

unsafe extern "C" fn on_token_from_c(user: *mut c_void, token: *const TokenResult) -> i32 {
    // SAFETY: `generate` passes its own listener, and is waiting on this very thread.
    let listener = unsafe { &mut *user.cast::<Listener<'_>>() };
    // SAFETY: valid during this call, the header says.
    let result = unsafe { readable::value(token) };
    let heard = catch_unwind(AssertUnwindSafe(|| match result {
        Ok(result) => listener.hear(&result),
        Err(problem) => Err(EngineError::misbehaved(CALL, format!("the token {problem}"))),
    }));
    match heard {
        Ok(Ok(ControlFlow::Continue(()))) => return 0,
        Ok(Ok(ControlFlow::Break(()))) => {}
        Ok(Err(problem)) => drop(listener.problem.get_or_insert(problem)),
        Err(panic) => drop(listener.panic.get_or_insert(panic)),
    }
    listener.cancelled = true;
    1
}
