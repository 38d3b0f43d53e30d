//! Every message comes out as it went in, and nothing that is not a message does any harm.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{io, path::PathBuf, time::Duration};

use llm_node_core::{
    chat::conversation::{
        Call, Choice, Conversation, Effort, Format, Grammar, Input, Json, Message, Part as Said, Thinking,
        Tool, ToolInput,
    },
    error::{ErrorCode, Fault},
    event::{Event, Finish, Part, PickedToken, Piece, TokenLogprobs, Usage},
    facts::{ChatFacts, ModelFacts},
    memory::{Estimate, Figures, GpuAddress, MemoryUse},
    request::{Prompt, Request, Sampling},
    session::{Occupancy, StepMicros},
    shape::{ContextSize, Shape, Sizing},
    text::infill::{Extra, Infill},
};
use llm_node_wire::{
    frame::{FrameError, FrameReader, FrameWriter, MAX_FRAME, decode},
    message::{
        Answer, EmbedInput, EngineAddress, EngineDevice, EngineFacts, EngineRefusal, FromWorker, LoadPlan,
        Question, Scheduling, Speculation, ToWorker,
    },
};
use proptest::{collection::vec, option, prelude::*};
use serde::{Serialize, de::DeserializeOwned};

fn written<M: Serialize>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::new();
    FrameWriter::new(&mut bytes).write(message).unwrap();
    bytes
}

fn returns<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: &M) {
    let bytes = written(message);
    let mut reader = FrameReader::new(&bytes[..]);
    assert_eq!(&reader.read::<M>().unwrap(), message);
    assert!(matches!(reader.read::<M>(), Err(FrameError::Closed)));
}

// NaN differs from itself, so equality could not be seen; its bits are tested apart.
fn float() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("NaN differs from itself", |x| !x.is_nan())
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), ".{0,40}", "[\\x00-\\x7f]{0,200}"]
}

fn code() -> impl Strategy<Value = ErrorCode> {
    proptest::sample::select(ErrorCode::ALL)
}

prop_compose! {
    fn fault()(code in code(), message in text(), param in option::of(text()), details in option::of(text())) -> Fault {
        Fault { code, message, param, details }
    }
}

prop_compose! {
    fn call()(id in text(), name in text(), cut in any::<bool>()) -> Call {
        let object = Json::new("{\"b\": 1, \"a\": [null]}").unwrap();
        Call { id, name, input: if cut { Input::Text("{".into()) } else { Input::Object(object) } }
    }
}

// Boxed, as other large unions are: a value's tree lies on the stack of a test's thread.
fn message() -> BoxedStrategy<Message> {
    let parts = || vec(text().prop_map(Said::Text), 0..3);
    prop_oneof![
        text().prop_map(|text| Message::System { text }),
        (parts(), option::of(text())).prop_map(|(parts, name)| Message::User { parts, name }),
        (text(), text(), vec(call(), 0..3)).prop_map(|(reasoning, text, calls)| Message::Assistant {
            reasoning,
            text,
            calls
        }),
        (text(), text(), parts(), any::<bool>()).prop_map(|(call, name, parts, failed)| Message::Result {
            call,
            name,
            parts,
            failed
        }),
    ]
    .boxed()
}

fn choice() -> impl Strategy<Value = Choice> {
    prop_oneof![
        Just(Choice::None),
        Just(Choice::Auto),
        Just(Choice::Required),
        text().prop_map(Choice::Named),
        (vec(text(), 0..3), any::<bool>()).prop_map(|(names, required)| Choice::Among { names, required }),
    ]
}

fn thinking() -> impl Strategy<Value = Thinking> {
    prop_oneof![
        Just(Thinking::Model),
        Just(Thinking::Off),
        any::<Option<u32>>().prop_map(|budget| Thinking::On { effort: Some(Effort::Low), budget }),
    ]
}

prop_compose! {
    fn tool()(name in text(), description in option::of(text()), plain in any::<bool>(), strict in any::<bool>()) -> Tool {
        let input = if plain { ToolInput::Text(Some(Grammar::Lark("start: A".into()))) } else { ToolInput::Object(Json::default()) };
        Tool { name, description, input, strict }
    }
}

prop_compose! {
    fn chat()(
        messages in vec(message(), 0..4),
        tools in vec(tool(), 0..3),
        choice in choice(),
        parallel in any::<bool>(),
        thinking in thinking(),
    ) -> Conversation {
        Conversation { messages, tools, choice, parallel, thinking, variables: Json::default() }
    }
}

prop_compose! {
    fn infill()(prefix in text(), suffix in text(), extra in vec((text(), text()), 0..3)) -> Infill {
        let extra = extra.into_iter().map(|(name, text)| Extra { name, text }).collect();
        Infill { prefix, suffix, extra }
    }
}

fn prompt() -> BoxedStrategy<Prompt> {
    prop_oneof![
        text().prop_map(Prompt::Text),
        infill().prop_map(Prompt::Infill),
        vec(any::<i32>(), 0..50).prop_map(Prompt::Tokens),
        chat().prop_map(Prompt::Chat),
    ]
    .boxed()
}

prop_compose! {
    fn sampling()(
        (temperature, top_k, top_p, min_p) in (float(), any::<u32>(), float(), float()),
        (repeat_penalty, frequency_penalty, presence_penalty) in (float(), float(), float()),
        seed in any::<Option<u64>>(),
        bias in vec((any::<i32>(), float()), 0..5),
    ) -> Sampling {
        Sampling {
            temperature, top_k, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty, seed, bias,
        }
    }
}

fn format() -> impl Strategy<Value = Format> {
    prop_oneof![
        Just(Format::Text),
        Just(Format::Object),
        any::<bool>().prop_map(|strict| Format::Schema { schema: Json::default(), strict }),
        text().prop_map(Format::Regex),
        text().prop_map(Format::Lark),
    ]
}

prop_compose! {
    fn request()(
        prompt in prompt(),
        max_tokens in any::<Option<u32>>(),
        sampling in sampling(),
        stop in vec(text(), 0..4),
        ignore_eos in any::<bool>(),
        logprobs in any::<Option<u32>>(),
        (format, source) in (format(), any::<u64>()),
    ) -> Request {
        Request { prompt, max_tokens, sampling, stop, ignore_eos, logprobs, format, source }
    }
}

prop_compose! {
    fn address()(
        id in text(), version in text(), gpu_backend in text(), directory in text(), binary in text(),
        libraries in vec(text(), 0..3),
    ) -> EngineAddress {
        let libraries = libraries.into_iter().map(Into::into).collect();
        EngineAddress { id, version, gpu_backend, directory: directory.into(), binary: binary.into(), libraries }
    }
}

prop_compose! {
    fn context_size()(
        (context_length, max_sequences, cache_tokens) in (any::<Option<u32>>(), any::<Option<u32>>(), any::<Option<u64>>()),
    ) -> ContextSize {
        ContextSize { context_length, max_sequences, cache_tokens }
    }
}

prop_compose! {
    fn shape()(
        (context_length, max_sequences, cache_tokens) in (any::<u32>(), any::<u32>(), any::<u64>()),
    ) -> Shape {
        Shape { context_length, max_sequences, cache_tokens }
    }
}

prop_compose! {
    fn sizing()(size in context_size(), shape in option::of(shape())) -> Sizing {
        Sizing { size, shape }
    }
}

prop_compose! {
    fn plan()(
        engine in address(),
        model in text(),
        model_id in text(),
        (size, usual_size) in (context_size(), context_size()),
        (gpu_layers, threads, vram_limit_bytes, step_timeout_seconds) in (any::<i32>(), any::<u32>(), any::<u64>(), any::<u32>()),
        (queue_limit, target_step_ms, keep_prefixes) in (any::<u32>(), any::<u32>(), any::<bool>()),
        (tool_syntax, chat_template) in (option::of(text()), option::of(text())),
        speculation in prop_oneof![
            Just(Speculation::Off), Just(Speculation::Lookup), text().prop_map(|it| Speculation::Model(it.into())),
        ],
        options in vec((text(), text()), 0..4),
        figures in option::of(figures()),
        place in vec((text(), any::<u32>(), option::of(text())).prop_map(|(id, index, bus_id)| GpuAddress { id, index, bus_id }), 0..3),
    ) -> LoadPlan {
        LoadPlan {
            engine, model: model.into(), model_id, size, usual_size, gpu_layers, place, threads,
            vram_limit_bytes, step_timeout_seconds, speculation, tool_syntax, chat_template, options, figures,
            scheduling: Scheduling { queue_limit, target_step_ms, keep_prefixes },
        }
    }
}

fn question() -> BoxedStrategy<Question> {
    prop_oneof![
        (text(), any::<bool>(), any::<bool>()).prop_map(|(text, add_special, parse_special)| {
            Question::Tokenize { text, add_special, parse_special }
        }),
        vec(any::<i32>(), 0..50).prop_map(|tokens| Question::Detokenize { tokens }),
        chat().prop_map(Question::ApplyTemplate),
        chat().prop_map(Question::CountTokens),
        vec(embed_input(), 0..4).prop_map(|inputs| Question::Embed { inputs }),
        vec(any::<i32>(), 0..50).prop_map(|tokens| Question::Pieces { tokens }),
        (text(), vec(text(), 0..4)).prop_map(|(query, documents)| Question::Rerank { query, documents }),
        Just(Question::ChatTemplate),
        Just(Question::MemoryUse),
    ]
    .boxed()
}

fn to_worker() -> impl Strategy<Value = ToWorker> {
    prop_oneof![
        address().prop_map(ToWorker::Probe),
        address().prop_map(ToWorker::List),
        plan().prop_map(ToWorker::Load),
        any::<u64>().prop_map(|number| ToWorker::Devices { number }),
        option::of(shape()).prop_map(ToWorker::Proceed),
        (any::<u64>(), request()).prop_map(|(id, request)| ToWorker::Generate { id, request }),
        any::<u64>().prop_map(|id| ToWorker::Cancel { id }),
        (any::<u64>(), question()).prop_map(|(id, question)| ToWorker::Ask { id, question }),
        sizing().prop_map(ToWorker::Size),
        sizing().prop_map(ToWorker::Reshape),
        Just(ToWorker::Drain),
        Just(ToWorker::Stop),
    ]
}

fn engine_device() -> impl Strategy<Value = EngineDevice> {
    (text(), option::of(text()), any::<bool>(), any::<u64>(), any::<u64>()).prop_map(
        |(name, bus_id, is_integrated, total_bytes, free_bytes)| EngineDevice {
            name,
            bus_id,
            is_integrated,
            total_bytes,
            free_bytes,
        },
    )
}

prop_compose! {
    fn occupancy()(
        (queued, queued_tokens, prompt_rate, running, max_running, kept) in any::<(usize, usize, u32, usize, usize, usize)>(),
        (cache_used, cache_tokens, kept_tokens, preemptions, drafted, accepted) in any::<(u64, u64, u64, u64, u64, u64)>(),
        (prompts, answers, mixed, saving) in any::<(u64, u64, u64, u64)>(),
    ) -> Occupancy {
        Occupancy {
            queued, queued_tokens, prompt_rate, running, max_running, cache_used, cache_tokens, kept, kept_tokens, preemptions, drafted, accepted,
            step_micros: StepMicros { prompts, answers, mixed, saving },
        }
    }
}

prop_compose! {
    fn figures()(one in vec(memory_use(), 0..3), draft in vec(memory_use(), 0..2)) -> Figures {
        Figures { one, draft }
    }
}

prop_compose! {
    fn memory_use()(
        device in text(), id in option::of(text()), bus_id in option::of(text()), is_host in any::<bool>(),
        (weights, cache, compute, cache_per_token, cache_per_sequence) in any::<(u64, u64, u64, u64, u64)>(),
    ) -> MemoryUse {
        MemoryUse { device, id, bus_id, is_host, weights, cache, compute, cache_per_token, cache_per_sequence }
    }
}

fn embed_input() -> impl Strategy<Value = EmbedInput> {
    prop_oneof![text().prop_map(EmbedInput::Text), vec(any::<i32>(), 0..5).prop_map(EmbedInput::Tokens)]
}

prop_compose! {
    fn picked()(
        id in any::<i32>(),
        logprobs in option::of((vec(any::<u8>(), 0..5), any::<bool>(), float(), vec((vec(any::<u8>(), 0..5), any::<i32>(), float()), 0..4))),
    ) -> PickedToken {
        PickedToken { id, logprobs: logprobs.map(|(bytes, is_text, logprob, top)| TokenLogprobs { bytes, is_text, logprob, top }) }
    }
}

fn usage() -> impl Strategy<Value = Usage> {
    (any::<[u32; 6]>(), any::<[Duration; 3]>()).prop_map(|(tokens, [waited, read, wrote])| {
        let [
            prompt_tokens,
            completion_tokens,
            reasoning_tokens,
            cached_tokens,
            drafted_tokens,
            accepted_tokens,
        ] = tokens;
        Usage {
            prompt_tokens,
            completion_tokens,
            reasoning_tokens,
            cached_tokens,
            drafted_tokens,
            accepted_tokens,
            waited,
            read,
            wrote,
        }
    })
}

fn event() -> BoxedStrategy<Event> {
    let part = || proptest::sample::select(&[Part::Text, Part::Reasoning, Part::Input][..]);
    let reason = proptest::sample::select(
        &[
            Finish::Stop,
            Finish::StopString,
            Finish::Length,
            Finish::Context,
            Finish::Calls,
            Finish::Cancelled,
        ][..],
    );
    prop_oneof![
        (any::<u32>(), any::<u32>(), vec(text(), 0..3)).prop_map(
            |(prompt_tokens, cached_tokens, relaxed)| {
                Event::Started { prompt_tokens, cached_tokens, relaxed }
            }
        ),
        (part(), text(), vec(picked(), 0..4)).prop_map(|(part, text, tokens)| Event::Piece(Piece {
            part,
            text,
            tokens
        })),
        (any::<u32>(), text(), text()).prop_map(|(index, id, name)| Event::CallBegan { index, id, name }),
        Just(Event::CallEnded),
        (reason, option::of(text()), usage()).prop_map(|(reason, stop, usage)| Event::Finished {
            reason,
            stop,
            usage
        }),
        fault().prop_map(Event::Failed),
    ]
    .boxed()
}

fn answer() -> BoxedStrategy<Answer> {
    prop_oneof![
        vec(any::<i32>(), 0..50).prop_map(Answer::Tokens),
        text().prop_map(Answer::Text),
        any::<u64>().prop_map(Answer::Count),
        (vec(vec(float(), 0..20), 0..4), vec(any::<u32>(), 0..4))
            .prop_map(|(vectors, tokens)| Answer::Embeddings { vectors, tokens }),
        vec(vec(any::<u8>(), 0..5), 0..5).prop_map(Answer::Pieces),
        (vec(float(), 0..4), vec(any::<u32>(), 0..4))
            .prop_map(|(scores, tokens)| Answer::Scores { scores, tokens }),
        option::of(text()).prop_map(Answer::ChatTemplate),
        vec(memory_use(), 0..3).prop_map(Answer::MemoryUse),
    ]
    .boxed()
}

prop_compose! {
    fn model_facts()(
        (architecture, format, source) in (text(), text(), text()),
        quantization in option::of(text()),
        n_parameters in any::<u64>(),
        (context_length, max_sequences, n_embedding) in any::<(u32, u32, u32)>(),
        (generates, has_chat_template, ranks, fills_gaps) in any::<(bool, bool, bool, bool)>(),
        chat in option::of((any::<bool>(), any::<bool>(), option::of(text())).prop_map(|(tools, thinking, syntax)| ChatFacts { tools, thinking, syntax })),
        memory in vec(memory_use(), 0..3),
    ) -> ModelFacts {
        ModelFacts {
            architecture, format, quantization, n_parameters, context_length, max_sequences, n_embedding,
            ranks, fills_gaps, generates, has_chat_template, chat, memory, source,
        }
    }
}

fn from_worker() -> impl Strategy<Value = FromWorker> {
    prop_oneof![
        (any::<u32>(), text()).prop_map(|(protocol, secret)| FromWorker::Hello { protocol, secret }),
        text().prop_map(FromWorker::Stage),
        (any::<u32>(), vec(text(), 0..9)).prop_map(|(abi_version, extensions)| FromWorker::Verdict(Ok(
            EngineFacts { abi_version, extensions }
        ))),
        (text(), fault()).prop_map(|(kind, fault)| FromWorker::Verdict(Err(EngineRefusal { kind, fault }))),
        (option::of(vec(memory_use(), 0..3)), figures())
            .prop_map(|(uses, figures)| FromWorker::Estimated(Estimate { uses, figures })),
        (any::<u64>(), vec(engine_device(), 0..3))
            .prop_map(|(number, devices)| FromWorker::Devices { number, devices }),
        float().prop_map(FromWorker::Progress),
        model_facts().prop_map(FromWorker::Ready),
        fault().prop_map(FromWorker::LoadFailed),
        option::of(vec(memory_use(), 0..3)).prop_map(|uses| FromWorker::Sized(Ok(uses))),
        fault().prop_map(|fault| FromWorker::Sized(Err(fault))),
        prop_oneof![model_facts().prop_map(Ok), fault().prop_map(Err)].prop_map(FromWorker::Reshaped),
        vec((any::<u64>(), event()), 0..20).prop_map(FromWorker::Step),
        (any::<u64>(), prop_oneof![answer().prop_map(Ok), fault().prop_map(Err)])
            .prop_map(|(id, answer)| FromWorker::Answer { id, answer }),
        (any::<u8>(), text()).prop_map(|(severity, message)| FromWorker::Log { severity, message }),
        Just(FromWorker::Drained),
        any::<u32>().prop_map(|call_seconds| FromWorker::Beat { call_seconds }),
        occupancy().prop_map(FromWorker::Busy),
    ]
}

/// Gives its bytes a few at a time, as a socket may.
struct Trickle<'a>(&'a [u8], usize);

impl io::Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = buffer.len().min(self.1).min(self.0.len());
        buffer[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

proptest! {
    #[test]
    fn messages_to_a_worker_come_out_as_they_went_in(message in to_worker()) {
        returns(&message);
    }

    #[test]
    fn messages_from_a_worker_come_out_as_they_went_in(message in from_worker()) {
        returns(&message);
    }

    #[test]
    fn frames_survive_any_cut_of_the_stream(messages in vec(from_worker(), 1..5), piece in 1usize..9) {
        let bytes: Vec<u8> = messages.iter().flat_map(written).collect();
        let mut reader = FrameReader::new(Trickle(&bytes, piece));
        for message in &messages {
            prop_assert_eq!(&reader.read::<FromWorker>().unwrap(), message);
        }
        prop_assert!(matches!(reader.read::<FromWorker>(), Err(FrameError::Closed)));
    }

    /// Whole frames alone count, so that whoever relies on it has not to wait.
    #[test]
    fn another_frame_is_announced_when_all_of_it_is_here(
        messages in vec(from_worker(), 2..5),
        at in any::<proptest::sample::Index>(),
    ) {
        let frames: Vec<_> = messages.iter().map(written).collect();
        let bytes = frames.concat();
        let arrived = at.index(bytes.len() + 1);
        let mut reader = FrameReader::new(&bytes[..arrived]);
        prop_assert!(!reader.has_another(), "nothing was read ahead yet");
        let mut end = 0;
        for pair in frames.windows(2) {
            end += pair[0].len();
            if reader.read::<FromWorker>().is_err() {
                break;
            }
            // What is read ahead is bounded, and these messages are far smaller.
            prop_assert_eq!(reader.has_another(), arrived >= end + pair[1].len());
        }
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_truncated(message in to_worker(), at in any::<proptest::sample::Index>()) {
        let bytes = written(&message);
        let end = 1 + at.index(bytes.len() - 1);
        prop_assert!(matches!(
            FrameReader::new(&bytes[..end]).read::<ToWorker>(),
            Err(FrameError::Truncated)
        ));
    }

    #[test]
    fn random_bytes_are_an_error_or_a_message(bytes in vec(any::<u8>(), 0..300)) {
        let _ = decode::<ToWorker>(&bytes);
        let _ = decode::<FromWorker>(&bytes);
        let _ = FrameReader::new(&bytes[..]).read::<ToWorker>();
    }

    // Random bytes seldom get past the first variant; one wrong byte in a real message does.
    #[test]
    fn a_damaged_message_is_an_error_or_a_message(
        message in from_worker(), at in any::<proptest::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = written(&message).split_off(4);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(other) = decode::<FromWorker>(&bytes) {
            let mut frame = Vec::new();
            prop_assert!(FrameWriter::new(&mut frame).write(&other).is_ok());
        }
    }

    #[test]
    fn nothing_may_follow_the_message(message in to_worker(), tail in vec(any::<u8>(), 1..5)) {
        let mut body = written(&message).split_off(4);
        body.extend(tail);
        prop_assert!(matches!(decode::<ToWorker>(&body), Err(FrameError::Malformed(_))));
    }
}

#[test]
fn a_length_over_the_cap_is_refused_before_the_body() {
    let bytes = u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes();
    let error = FrameReader::new(&bytes[..]).read::<ToWorker>().unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { length } if length == MAX_FRAME + 1), "{error}");
}

#[test]
fn a_message_over_the_cap_is_not_written() {
    let mut bytes = Vec::new();
    let error = FrameWriter::new(&mut bytes).write(&FromWorker::Stage("x".repeat(MAX_FRAME))).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { .. }), "{error}");
    assert!(bytes.is_empty());
}

#[test]
fn a_writer_goes_on_after_a_message_over_the_cap() {
    let mut bytes = Vec::new();
    let mut writer = FrameWriter::new(&mut bytes);
    writer.write(&FromWorker::Stage("x".repeat(MAX_FRAME))).unwrap_err();
    writer.write(&FromWorker::Drained).unwrap();
    assert_eq!(FrameReader::new(&bytes[..]).read::<FromWorker>().unwrap(), FromWorker::Drained);
}

/// Counts what a decoder would set aside for a count that no bytes stand behind.
#[test]
fn a_count_without_bytes_behind_it_allocates_nothing_of_note() {
    // Variant 8 is `Step`; then a count of u64::MAX, then nothing.
    let mut body = vec![8];
    body.extend([0xff; 9]);
    body.push(0x01);
    assert!(matches!(decode::<FromWorker>(&body), Err(FrameError::Malformed(_))));
    // The same for a text and for tokens.
    for variant in [1, 9] {
        body[0] = variant;
        assert!(matches!(decode::<FromWorker>(&body), Err(FrameError::Malformed(_))));
    }
}

#[test]
fn forbidding_a_token_survives() {
    let request = Request {
        prompt: Prompt::Text(String::new()),
        max_tokens: None,
        sampling: Sampling { bias: vec![(7, f32::NEG_INFINITY), (8, f32::INFINITY)], ..Sampling::default() },
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        format: Format::Text,
        source: 0,
    };
    returns(&ToWorker::Generate { id: 1, request });
}

#[test]
fn not_a_number_keeps_its_bits() {
    let bytes = written(&FromWorker::Progress(f32::NAN));
    let FromWorker::Progress(x) = FrameReader::new(&bytes[..]).read().unwrap() else {
        panic!("another variant")
    };
    assert_eq!(x.to_bits(), f32::NAN.to_bits());
}

/// A node and a worker of different versions must still understand each other's greeting.
#[test]
fn hello_never_changes_its_shape() {
    let hello = FromWorker::Hello { protocol: 300, secret: "ab".into() };
    assert_eq!(written(&hello), [6, 0, 0, 0, 0, 0xac, 0x02, 2, b'a', b'b']);
}

#[cfg(unix)]
#[test]
fn a_path_need_not_be_utf_8() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};

    let path = PathBuf::from(OsString::from_vec(b"/models/caf\xe9.gguf".to_vec()));
    returns(&ToWorker::Probe(EngineAddress {
        id: "a".into(),
        version: "1".into(),
        gpu_backend: "cpu".into(),
        directory: path.clone(),
        binary: path.clone(),
        libraries: vec![path],
    }));
}
