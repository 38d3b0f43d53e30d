//! Requests for engines without a tokenizer: text in, text out, and none of what needs tokens.

use llm_node_core::{
    chat::parse::Watch,
    error::{ErrorCode, Fault},
    event::Finish,
    request::{Prompt, Request, Sampling, Weight},
    text::{answer::AnswerText, control::ControlTokens},
};

use super::{EnginePrompt, Prepared};

/// What the engine behind can honour beside `max_tokens` and stop strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Honours {
    /// Nothing: it samples as it likes.
    Nothing,
    /// The chain of `EnginePick`, and a seed.
    Sampling,
}

/// Refuses, by name, whatever would change the answer and cannot be honoured. Temperatures 0 and 1
/// pass in any case: they are what clients send when they have no wish.
pub(crate) fn prepare(request: Request, honours: Honours, seed: u64) -> Result<Prepared, Fault> {
    request.check()?;
    if let Some(name) = not_honoured(&request, honours) {
        return Err(unsupported(name));
    }
    without_format(&request)?;
    let text = match request.prompt {
        Prompt::Text(text) | Prompt::Literal(text) => text,
        Prompt::Tokens(_) => return Err(without("tokens", "prompt")),
        Prompt::Chat(_) => return Err(without("messages", "messages")),
        Prompt::Infill(_) => return Err(without("suffix", "suffix")),
    };
    if text.contains('\0') {
        let message = "the prompt holds a zero character, which this engine cannot take";
        return Err(Fault::new(ErrorCode::InvalidRequest, message).param("prompt"));
    }
    // Nobody can count the tokens of such a text; there are not more than bytes.
    let weight = Weight { prompt: text.len(), answer: request.max_tokens.unwrap_or(u32::MAX) };
    Ok(Prepared {
        weight,
        source: request.source,
        prompt: EnginePrompt::Text(text),
        prompt_tokens: 0,
        max_tokens: request.max_tokens,
        limit: if request.max_tokens.is_some() { Finish::Length } else { Finish::Context },
        answer: AnswerText::new(&request.stop, &ControlTokens::default(), Watch::default(), ""),
        stop: request.stop,
        seed: request.sampling.seed.unwrap_or(seed),
        sampling: request.sampling,
    })
}

/// The first parameter that would change the answer and cannot be honoured.
#[expect(clippy::float_cmp, reason = "the defaults are exact: a client sent them, or sent nothing")]
pub(crate) fn not_honoured(request: &Request, honours: Honours) -> Option<&'static str> {
    let usual = Sampling::default();
    let sampling = &request.sampling;
    let in_chain = [
        ("temperature", sampling.temperature != usual.temperature && sampling.temperature != 0.0),
        ("top_k", sampling.top_k != usual.top_k),
        ("top_p", sampling.top_p != usual.top_p),
        ("min_p", sampling.min_p != usual.min_p),
        ("repeat_penalty", sampling.repeat_penalty != usual.repeat_penalty),
        ("frequency_penalty", sampling.frequency_penalty != usual.frequency_penalty),
        ("presence_penalty", sampling.presence_penalty != usual.presence_penalty),
        ("seed", sampling.seed.is_some()),
    ];
    let beside_it = [
        ("logit_bias", !sampling.bias.is_empty()),
        ("logprobs", request.logprobs.is_some()),
        ("ignore_eos", request.ignore_eos),
    ];
    in_chain
        .into_iter()
        .filter(|_| honours == Honours::Nothing)
        .chain(beside_it)
        .find_map(|(name, differs)| differs.then_some(name))
}

pub(crate) fn unsupported(name: &str) -> Fault {
    let message = format!("'{name}' would change the answer, and the model's engine cannot honour it");
    Fault::new(ErrorCode::UnsupportedParameter, message).param(name)
}

/// Formats are kept to by masks over rows of logits, which this engine does not give.
pub(crate) fn without_format(request: &Request) -> Result<(), Fault> {
    let Some(param) = request.promises() else { return Ok(()) };
    let message = "the model's engine gives text and no logits, so its answers cannot be kept to anything";
    Err(Fault::new(ErrorCode::UnsupportedFeature, message).param(param))
}

fn without(what: &str, param: &str) -> Fault {
    let message = format!("the model's engine has no tokenizer, so it takes plain text, not {what}");
    Fault::new(ErrorCode::UnsupportedFeature, message).param(param)
}

#[cfg(test)]
mod tests {
    use llm_node_core::chat::conversation::{Conversation, Format};

    use super::*;

    fn request(text: &str) -> Request {
        Request {
            prompt: Prompt::Text(text.into()),
            max_tokens: Some(3),
            sampling: Sampling::default(),
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            format: Format::Text,
            source: 0,
        }
    }

    fn refusal(change: impl FnOnce(&mut Request)) -> (ErrorCode, Option<String>) {
        let mut request = request("hello");
        change(&mut request);
        let fault = prepare(request, Honours::Nothing, 0).unwrap_err();
        (fault.code, fault.param)
    }

    #[test]
    fn plain_requests_pass() {
        for temperature in [0.0, 1.0] {
            let mut request = request("hello");
            request.sampling.temperature = temperature;
            let prepared = prepare(request, Honours::Nothing, 7).unwrap();
            assert_eq!(prepared.prompt, EnginePrompt::Text("hello".into()));
            assert_eq!(prepared.seed, 7);
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        type Change = fn(&mut Request);
        let changes: [(&str, Change); 11] = [
            ("temperature", |r| r.sampling.temperature = 0.5),
            ("top_k", |r| r.sampling.top_k = 1),
            ("top_p", |r| r.sampling.top_p = 0.5),
            ("min_p", |r| r.sampling.min_p = 0.5),
            ("repeat_penalty", |r| r.sampling.repeat_penalty = 1.1),
            ("frequency_penalty", |r| r.sampling.frequency_penalty = 0.1),
            ("presence_penalty", |r| r.sampling.presence_penalty = 0.1),
            ("seed", |r| r.sampling.seed = Some(1)),
            ("logit_bias", |r| r.sampling.bias = vec![(1, 1.0)]),
            ("logprobs", |r| r.logprobs = Some(0)),
            ("ignore_eos", |r| r.ignore_eos = true),
        ];
        for (name, change) in changes {
            assert_eq!(refusal(change), (ErrorCode::UnsupportedParameter, Some(name.into())));
        }
    }

    #[test]
    fn chat_and_tokens_need_a_tokenizer() {
        let conversation = Conversation::default();
        assert_eq!(refusal(|r| r.prompt = Prompt::Chat(conversation)).0, ErrorCode::UnsupportedFeature);
        assert_eq!(refusal(|r| r.prompt = Prompt::Tokens(vec![1])).0, ErrorCode::UnsupportedFeature);
    }

    #[test]
    fn an_empty_prompt_or_one_with_a_zero_is_refused() {
        for text in ["", "a\0b"] {
            assert_eq!(
                refusal(|r| r.prompt = Prompt::Text(text.into())),
                (ErrorCode::InvalidRequest, Some("prompt".into()))
            );
        }
    }
}
