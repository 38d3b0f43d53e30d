//! What a request must be like, and what is said of one that is not.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::toy_engine::{BOS, TURN, ToyTokenizer, limits};
use llm_node_core::{
    chat::{
        conversation::{Conversation, Format, Message, Part},
        model::{ModelChat, SyntaxChoice},
    },
    engine::{EngineFault, Limits, Token, Tokenizer, Vocabulary},
    error::{ErrorCode, Fault},
    event::Finish,
    request::{Prompt, Request, Sampling, ValidRequest},
    text::template::ChatTemplate,
};

fn request(prompt: Prompt) -> Request {
    Request {
        prompt,
        max_tokens: None,
        sampling: Sampling::default(),
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        format: Format::Text,
        source: 0,
    }
}

/// A model whose template is that.
fn model_chat(source: &str) -> ModelChat {
    let tokenizer = ToyTokenizer::new();
    let template = ChatTemplate::compile(source, tokenizer.vocabulary()).unwrap();
    ModelChat::of(template, tokenizer.vocabulary(), &SyntaxChoice::Found)
}

fn chat(text: &str) -> Prompt {
    let messages = vec![Message::User { parts: vec![Part::Text(text.into())], name: None }];
    Prompt::Chat(Conversation { messages, ..Conversation::default() })
}

fn check(request: Request, template: Option<&ModelChat>, limits: &Limits) -> Result<ValidRequest, Fault> {
    ValidRequest::new(request, &ToyTokenizer::new(), template, limits, 42, 0)
}

fn refusal(change: impl FnOnce(&mut Request)) -> (ErrorCode, String, String) {
    let mut request = request(Prompt::Text("abc".into()));
    change(&mut request);
    let fault = check(request, None, &limits()).unwrap_err();
    (fault.code, fault.param.unwrap_or_default(), fault.message)
}

#[test]
fn ranges_are_checked_and_named_in_public_words() {
    type Change = fn(&mut Request);
    let changes: [(&str, Change); 22] = [
        ("temperature", |it| it.sampling.temperature = -0.1),
        ("temperature", |it| it.sampling.temperature = f32::NAN),
        ("temperature", |it| it.sampling.temperature = f32::INFINITY),
        ("top_p", |it| it.sampling.top_p = 0.0),
        ("top_p", |it| it.sampling.top_p = 1.01),
        ("min_p", |it| it.sampling.min_p = -0.01),
        ("min_p", |it| it.sampling.min_p = f32::NAN),
        ("repeat_penalty", |it| it.sampling.repeat_penalty = 0.0),
        ("frequency_penalty", |it| it.sampling.frequency_penalty = f32::INFINITY),
        ("presence_penalty", |it| it.sampling.presence_penalty = f32::NAN),
        ("logit_bias", |it| it.sampling.bias = vec![(265, 1.0)]),
        ("logit_bias", |it| it.sampling.bias = vec![(-1, 1.0)]),
        ("logit_bias", |it| it.sampling.bias = vec![(1, f32::INFINITY)]),
        ("stop", |it| it.stop = vec![String::new()]),
        ("stop", |it| it.stop = vec!["a".into(); 65]),
        ("stop", |it| it.stop = vec!["a".repeat(1025)]),
        ("logprobs", |it| it.logprobs = Some(129)),
        ("ignore_eos", |it| (it.ignore_eos, it.format) = (true, Format::Object)),
        ("prompt", |it| it.prompt = Prompt::Text(String::new())),
        ("prompt", |it| it.prompt = Prompt::Tokens(Vec::new())),
        ("prompt", |it| it.prompt = Prompt::Tokens(vec![0, 265])),
        ("prompt", |it| it.prompt = Prompt::Tokens(vec![-1])),
    ];
    for (name, change) in changes {
        let (code, param, message) = refusal(change);
        assert_eq!((code, param.as_str()), (ErrorCode::InvalidRequest, name), "{message}");
    }
}

#[test]
fn an_answer_is_as_long_as_the_context_has_room_and_a_prompt_is_never_cut() {
    let tokens = |n: usize, max_tokens| Request { max_tokens, ..request(Prompt::Tokens(vec![1; n])) };
    let limits = limits();
    let room = |n, max| check(tokens(n, max), None, &limits).map(|it| (it.max_tokens(), it.limit()));
    for (n, max, most, limit) in [
        (200, Some(55), 55, Finish::Length),
        (200, Some(56), 56, Finish::Length),
        (200, Some(57), 56, Finish::Context),
        (9, Some(u32::MAX), 247, Finish::Context),
        (200, None, 56, Finish::Context),
        (255, None, 1, Finish::Context),
        (256, Some(0), 0, Finish::Length),
    ] {
        assert_eq!(room(n, max), Ok((most, limit)));
    }
    for (n, max) in [(256, None), (256, Some(1)), (300, Some(0)), (300, Some(32_000))] {
        let fault = room(n, max).unwrap_err();
        assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::ContextLengthExceeded, Some("prompt")));
        assert!(fault.message.contains("256") && fault.message.contains(&(n + 1).to_string()), "{fault}");
        let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
        assert_eq!(details, serde_json::json!({ "prompt_tokens": n, "context_length": 256 }));
    }
    // What can never fit the cache is refused here, and pages count whole.
    let small = Limits { cache_tokens: 100, cache_page: 32, ..limits };
    assert_eq!(check(tokens(50, None), None, &small).unwrap().max_tokens(), 46);
    assert!(check(tokens(96, None), None, &small).is_err());
}

#[test]
fn special_tokens_in_plain_text_are_read_unless_it_says_otherwise() {
    let tokens = |prompt| check(request(prompt), None, &limits()).unwrap().prompt().to_vec();
    assert_eq!(tokens(Prompt::Text("<|turn|>a".into())), [BOS, TURN, 0x61]);
    assert_eq!(tokens(Prompt::Literal("<s>".into())), [BOS, 0x3c, 0x73, 0x3e]);
}

#[test]
fn what_cannot_fit_by_its_length_is_not_tokenised() {
    /// Counts the calls.
    #[derive(Debug)]
    struct Counting(ToyTokenizer, AtomicU32);

    impl Tokenizer for Counting {
        fn vocabulary(&self) -> &Vocabulary {
            self.0.vocabulary()
        }

        fn tokenize(
            &self,
            text: &str,
            add_special: bool,
            parse_special: bool,
        ) -> Result<Vec<Token>, EngineFault> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.tokenize(text, add_special, parse_special)
        }

        fn detokenize(&self, tokens: &[Token]) -> Result<Vec<u8>, EngineFault> {
            self.0.detokenize(tokens)
        }

        fn chat_template(&self) -> Option<&str> {
            None
        }
    }

    let template = model_chat("{{ messages[0].content * 10 }}");
    // The longest token of the vocabulary has 8 characters, and the context 256 tokens.
    let long = "a".repeat(2048);
    for (prompt, param, calls) in [
        (Prompt::Text(long.clone()), "prompt", 0),
        (Prompt::Literal(long.clone()), "prompt", 0),
        (chat(&"a".repeat(205)), "messages", 0),
        (Prompt::Text(long[..2040].into()), "prompt", 1),
        (Prompt::Text(" ".repeat(4000)), "prompt", 1),
    ] {
        let tokenizer = Counting(ToyTokenizer::new(), AtomicU32::new(0));
        let fault =
            ValidRequest::new(request(prompt), &tokenizer, Some(&template), &limits(), 42, 0).unwrap_err();
        assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::ContextLengthExceeded, Some(param)));
        assert_eq!(tokenizer.1.load(Ordering::Relaxed), calls, "{fault}");
        assert!(fault.message.contains("256"), "{fault}");
        assert_eq!(
            fault.message.contains("at least 257 are needed: at least 256 for the prompt"),
            calls == 0 && param == "prompt",
            "{fault}"
        );
    }
}

#[test]
fn a_chat_has_bos_once() {
    let chat = || chat("a");
    let expected: [Token; 3] = [BOS, TURN, 0x61];
    for source in ["{{ bos_token }}<|turn|>{{ messages[0].content }}", "<|turn|>{{ messages[0].content }}"] {
        let template = model_chat(source);
        assert_eq!(check(request(chat()), Some(&template), &limits()).unwrap().prompt(), expected);
    }
    let fault = check(request(chat()), None, &limits()).unwrap_err();
    assert_eq!(fault.code, ErrorCode::UnsupportedFeature);
    assert!(fault.message.contains("/v1/completions"));
    let template = model_chat("{{ messages[0].content }}");
    let short = Limits { context_length: 2, ..limits() };
    let fault = check(request(chat()), Some(&template), &short).unwrap_err();
    assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::ContextLengthExceeded, Some("messages")));
}

#[test]
fn the_request_s_seed_comes_first() {
    let mut wanted = request(Prompt::Text("a".into()));
    assert_eq!(check(wanted.clone(), None, &limits()).unwrap().seed(), 42);
    wanted.sampling.seed = Some(7);
    assert_eq!(check(wanted, None, &limits()).unwrap().seed(), 7);
}
