//! Engines that start well and then break the contract: each lie is a typed error that names the call.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use llm_node_core::engine::{EngineFault, EngineFaultKind, Slice, StepEngine, Tokenizer, attribute};
use llm_node_host::{
    Context, ContextParams, EngineError, Model, ModelParams, ModelTokenizer, Pooling, Prompt, Sampling,
    StreamRequest,
};
use support::*;

fn assert_misbehaved<T: std::fmt::Debug>(result: Result<T, EngineError>, call: &str, words: &str) {
    match result {
        Err(EngineError::Misbehaved { call: actual, what }) => {
            assert_eq!(actual, call);
            assert!(what.contains(words), "{what:?} does not say {words:?}");
        }
        other => panic!("{call}: {other:?}"),
    }
}

#[test]
fn results_without_end() {
    let mut engine = loaded("no_end", &["NO_END_MARKER"]);
    engine.tier0_load(&toy_model("no_end", "")).unwrap();
    assert_misbehaved(engine.tier0_generate("once"), "engine_generate", "no end within 65536");
}

#[cfg(target_os = "linux")]
#[test]
fn results_that_point_into_nothing() {
    for switch in ["GARBAGE_RESULTS", "GARBAGE_TEXT"] {
        let mut engine = loaded(switch, &[switch]);
        engine.tier0_load(&toy_model(switch, "eog_every=0\n")).unwrap();
        assert_misbehaved(engine.tier0_generate("once"), "engine_generate", "unreadable memory");
    }
}

#[test]
fn models_that_are_none() {
    for (switch, call, words) in [
        ("NULL_MODEL", "models.load", "NULL"),
        ("NULL_ARCHITECTURE", "models.info", "architecture is NULL"),
        ("HUGE_VOCAB", "models.info", "4294967295"),
    ] {
        let engine = Arc::new(loaded(switch, &[switch]));
        assert_misbehaved(Model::load(&engine, &ModelParams::new(toy_model(switch, "")), None), call, words);
    }
}

#[test]
fn a_code_that_nobody_knows_is_internal() {
    let engine = Arc::new(loaded("code_4711", &["LOAD_CODE=4711"]));
    let error = Model::load(&engine, &ModelParams::new(toy_model("code_4711", "")), None).unwrap_err();
    assert_eq!(error.to_string(), "models.load failed with unknown code 4711: the toy would not load");
    assert_eq!(error.kind(), EngineFaultKind::Internal);
}

#[test]
fn vocabularies_that_cannot_be() {
    for (switch, words) in [
        ("OFFSETS_FALL", "do not rise"),
        ("VOCAB_TOO_SHORT", "256 tokens, but rows of logits are 258 wide"),
        ("SPECIAL_OUT_OF_RANGE", "eos is token 258"),
    ] {
        assert_misbehaved(ModelTokenizer::new(&model(switch, &[switch])), "tokenizer.vocab", words);
    }
}

#[test]
fn tokens_that_do_not_exist() {
    for (switch, words) in
        [("TOKENS_OUT_OF_RANGE", "token 258 is outside the vocabulary"), ("COUNT_TOO_LARGE", "into room for")]
    {
        let tokenizer = ModelTokenizer::new(&model(switch, &[switch])).unwrap();
        let fault = tokenizer.tokenize("once", true, false).unwrap_err();
        assert_eq!((fault.kind, fault.call), (EngineFaultKind::Misbehaved, "tokenizer.tokenize"));
        assert!(fault.message.contains(words), "{fault}");
    }
}

#[test]
fn contexts_that_are_none() {
    for (switch, call, words) in [
        ("NULL_CONTEXT", "batch.create", "NULL"),
        ("ZERO_LIMITS", "batch.info", "max_batch_tokens is 0"),
        ("FEWER_SEQUENCES", "batch.info", "max_sequences is 7, and 8 were asked for"),
        ("SHORTER_CONTEXT", "batch.info", "context_length is 63, and 64 were asked for"),
        ("SMALLER_CACHE", "batch.info", "cache_tokens is 99, and 100 were asked for"),
        ("ENDLESS_SEQUENCES", "batch.info", "max_sequences is 4294967295"),
    ] {
        // What is asked of a cache that is too small for it need not be given.
        let cache_tokens = if switch == "SHORTER_CONTEXT" { 0 } else { 100 };
        let params = ContextParams { max_rows: 12, cache_tokens, ..params() };
        assert_misbehaved(Context::create(&model(switch, &[switch]), &params), call, words);
    }
}

#[test]
fn what_an_engine_may_have_less_of() {
    // Rows beyond one for each sequence are for drafts, which there are fewer of then.
    let params = ContextParams { max_rows: 12, ..params() };
    let context = context("FEWER_ROWS", &["FEWER_ROWS"], &params);
    assert_eq!(context.limits().max_rows, 11);
    let params = ContextParams { cache_tokens: 100, ..params };
    let error = Context::create(&model("SHORTER_CONTEXT", &["SHORTER_CONTEXT"]), &params).unwrap_err();
    assert_eq!((error.kind(), error.call()), (EngineFaultKind::InvalidInput, "batch.create"));
    assert!(
        error.to_string().contains("a KV cache of 100 tokens leaves room for sequences of 63"),
        "{error}"
    );
}

#[test]
fn memory_on_a_device_that_is_not_there() {
    let model = model("device", &["NO_SUCH_DEVICE"]);
    assert_misbehaved(model.memory_use(), "memory.usage", "device 7, where memory.device_count says 1");
    let params = ModelParams::new(toy_model("device", ""));
    assert_misbehaved(model.engine().estimate(&params, None), "memory.estimate", "device 7");
}

#[test]
fn rows_that_cannot_be_used() {
    for (switch, words) in [
        ("NULL_LOGITS", "NULL"),
        ("CROOKED_LOGITS", "not aligned"),
        ("ROW_TOO_NARROW", "257 logits"),
        ("ROWS_UNWRITTEN", "not written"),
        ("STAGE_TOO_FAR", "stage 2"),
        ("UNKNOWN_DTYPE", "number format 77"),
    ] {
        let mut context = context(switch, &[switch], &params());
        let ticket = context.step(&[slice(0, 0, &[1, 2, 3], 1)]).unwrap();
        let fault = context.collect(ticket, 1).unwrap_err();
        assert_eq!((fault.kind, fault.call), (EngineFaultKind::Misbehaved, "batch.collect"), "{switch}");
        assert!(fault.message.contains(words), "{fault}");
    }
}

#[test]
fn candidates_that_cannot_be_used() {
    for (switch, words) in [
        ("TOP_NOTHING", "0 candidates, where 5 were wanted"),
        ("TOP_TOO_MANY", "6 candidates"),
        ("TOP_OUTSIDE", "candidate 258 of a vocabulary of 258"),
        ("TOP_NEGATIVE", "candidate -1"),
        ("TOP_TWICE", "not in order"),
        ("TOP_UNSORTED", "not in order"),
        ("TOP_NULL_IDS", "without ids"),
        ("TOP_CROOKED_IDS", "ids are not aligned"),
        ("TOP_NULL_LOGITS", "logits are NULL"),
    ] {
        let mut context = context(switch, &["TOP=8", switch], &params());
        let ticket = context.step(&[Slice { candidates: 5, ..slice(0, 0, &[1, 2, 3], 1) }]).unwrap();
        let fault = context.collect(ticket, 1).unwrap_err();
        assert_eq!((fault.kind, fault.call), (EngineFaultKind::Misbehaved, "batch.collect"), "{switch}");
        assert!(fault.message.contains(words), "{fault}");
    }
    let mut context = context("TOP_UNASKED", &["TOP=8", "TOP_UNASKED"], &params());
    let ticket = context.step(&[slice(0, 0, &[1, 2, 3], 1)]).unwrap();
    let fault = context.collect(ticket, 1).unwrap_err();
    assert!(fault.message.contains("stage 1, where logits were wanted"), "{fault}");
}

/// A model that computes nonsense costs the request its answer, not the engine its life.
#[test]
fn candidates_that_are_no_numbers_are_handed_on() {
    let mut context = context("nan_top", &["TOP=8", "NAN_LOGITS"], &params());
    let ticket = context.step(&[Slice { candidates: 5, ..slice(0, 0, &[1], 1) }]).unwrap();
    assert!(best(&context.collect(ticket, 1).unwrap()[0]).logits.iter().all(|logit| logit.is_nan()));
}

/// Whoever picks a token reads every number anyway; the host hands NaN on.
#[test]
fn nan_is_handed_on() {
    let mut context = context("nan", &["NAN_LOGITS"], &params());
    let ticket = context.step(&[slice(0, 0, &[1], 1)]).unwrap();
    assert!(whole(&context.collect(ticket, 1).unwrap()[0]).iter().all(|logit| logit.is_nan()));
}

#[test]
fn tickets_that_jump() {
    let mut context = context("tickets", &["TICKETS_JUMP"], &params());
    context.step(&[slice(0, 0, &[1], 0)]).unwrap();
    let fault = context.step(&[slice(0, 1, &[1], 0)]).unwrap_err();
    assert_eq!((fault.kind, fault.call), (EngineFaultKind::Misbehaved, "batch.step"));
}

#[test]
fn a_first_ticket_that_is_none() {
    let mut context = context("ticket_zero", &["TICKET_ZERO"], &params());
    let fault = context.step(&[slice(0, 0, &[1], 0)]).unwrap_err();
    assert_eq!((fault.kind, fault.call), (EngineFaultKind::Misbehaved, "batch.step"));
    assert!(fault.message.contains("they count from 1"), "{fault}");
}

/// What is silently not done to the cache would let answers go on from what nobody said.
#[test]
fn cache_operations_that_do_something_else() {
    type Operation = fn(&mut Context) -> Result<(), EngineFault>;
    let cases: [(&str, &str, &str, Operation); 7] = [
        ("REMOVE_NOTHING", "batch.seq_remove", "ends at position 3 after it, not at 2", |context| {
            context.truncate(0, 2)
        }),
        ("REMOVE_NOTHING", "batch.seq_remove", "ends at position 3 after it, not at 0", |context| {
            context.truncate(0, 0)
        }),
        ("REMOVE_LEAKS", "batch.cache_free", "room for 509 tokens in an empty cache of 512", |context| {
            context.truncate(0, 0)
        }),
        ("COPY_SHORT", "batch.seq_copy", "sequence 1 ends at position 1 after it, not at 2", |context| {
            context.copy_prefix(0, 1, 2)
        }),
        ("COPY_SPOILS", "batch.seq_copy", "sequence 0 ends at position 2 after it, not at 3", |context| {
            context.copy_prefix(0, 1, 2)
        }),
        ("RESTORE_NOTHING", "batch.seq_restore", "sequence 1 ends at position 0", moved),
        ("RESTORE_SHORT", "batch.seq_restore", "sequence 1 ends at position 2 after it, not at 3", moved),
    ];
    for (switch, call, words, operation) in cases {
        let mut context = context(switch, &[switch], &params());
        context.step(&[slice(0, 0, &[1, 2, 3], 0)]).unwrap();
        let fault = operation(&mut context).unwrap_err();
        assert_eq!((fault.kind, fault.call), (EngineFaultKind::Misbehaved, call), "{switch}: {fault}");
        assert!(fault.message.contains(words), "{switch}: {fault}");
    }
}

fn moved(context: &mut Context) -> Result<(), EngineFault> {
    let state = context.save(0)?;
    context.restore(1, &state)
}

#[test]
fn an_end_without_its_attribute_is_an_end() {
    let tokenizer = ModelTokenizer::new(&model("eos_no_end", &["EOS_IS_NO_END"])).unwrap();
    let vocabulary = tokenizer.vocabulary();
    assert!(vocabulary.has(vocabulary.eos.unwrap(), attribute::END_OF_GENERATION));
    assert!(!vocabulary.has(vocabulary.bos.unwrap(), attribute::END_OF_GENERATION));
}

#[test]
fn a_text_that_an_engine_refuses_is_the_client_s() {
    let tokenizer = ModelTokenizer::new(&model("refuses", &["REFUSE_TEXT"])).unwrap();
    let fault = tokenizer.tokenize("why?", true, false).unwrap_err();
    assert_eq!((fault.kind, fault.call), (EngineFaultKind::InvalidInput, "tokenizer.tokenize"));
    assert_eq!(tokenizer.tokenize("because", false, false).unwrap().len(), 7);
}

#[test]
fn a_range_that_runs_backwards() {
    let context = context("backwards", &["RANGE_BACKWARDS"], &params());
    let fault = context.range(0).unwrap_err();
    assert_eq!((fault.kind, fault.call), (EngineFaultKind::Misbehaved, "batch.seq_range"));
}

#[test]
fn states_of_a_size_that_cannot_be() {
    for (switch, words) in [
        ("SAVE_NEEDS_NOTHING", "needs no room"),
        ("SAVE_NEEDS_ALL", "bytes for 3 tokens"),
        ("SAVE_NEEDS_MORE", "40 bytes do not do"),
        ("SAVE_WROTE_MORE", "41 bytes into room for 40"),
    ] {
        let mut context = context(switch, &[switch], &params());
        context.step(&[slice(0, 0, &[1, 2, 3], 0)]).unwrap();
        let fault = context.save(0).unwrap_err();
        assert_eq!((fault.kind, fault.call), (EngineFaultKind::Misbehaved, "batch.seq_save"), "{switch}");
        assert!(fault.message.contains(words), "{fault}");
    }
}

#[test]
fn streams_that_end_wrongly() {
    for (switch, words) in
        [("NO_END_ELEMENT", "without an ending element"), ("TOKEN_AFTER_END", "a token after the end")]
    {
        let request = StreamRequest {
            prompt: Prompt::Tokens(&[1, 2, 3]),
            max_tokens: 4,
            sampling: Sampling::default(),
            seed: 0,
            stop: &[],
        };
        let result = model(switch, &[switch]).generate(&request, &mut |_| ControlFlow::Continue(()));
        assert_misbehaved(result, "stream.generate", words);
    }
}

#[test]
fn vectors_that_are_too_short() {
    let result = model("short", &["SHORT_VECTORS"]).embed(&[vec![1, 2, 3]], Pooling::Model);
    assert_misbehaved(result, "embed.embed", "not finite");
}
