//! The good toy engine through every wrapper: what the host makes of an engine that keeps the contract.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::ops::ControlFlow;
use std::sync::Arc;

use llm_node_core::engine::{EngineFaultKind, Slice, StepEngine, Ticket, Token, Tokenizer, attribute};
use llm_node_host::{
    Context, ContextParams, Device, DeviceKind, EngineError, Finish, InitConfig, MemoryUse, Model,
    ModelParams, ModelTokenizer, OpenedEngine, Pooling, Prompt, Sampling, StreamRequest,
};
use support::*;

fn bytes(text: &str) -> Vec<Token> {
    text.bytes().map(Token::from).collect()
}

#[test]
fn calls_are_announced_in_their_order() {
    let (observer, heard) = recorder();
    let opened = OpenedEngine::open(&fake("announced", &[]), "fake", "1.0.0", observer).unwrap();
    assert_eq!((opened.id(), opened.version()), ("fake", "1.0.0"));
    assert_eq!(
        opened.extensions(),
        [
            "engine.models/1",
            "engine.memory/1",
            "engine.tokenizer/1",
            "engine.batch/1",
            "engine.stream/1",
            "engine.embed/1"
        ]
    );
    let engine = Arc::new(opened.init(&config()).unwrap());
    let model = Model::load(&engine, &ModelParams::new(toy_model("announced", "")), None).unwrap();
    let context = Context::create(&model, &params()).unwrap();
    // The engine outlives all that is made of it, in whatever order the owners go.
    drop((engine, model));
    drop(context);
    assert_eq!(
        *heard.lock().unwrap(),
        [
            "dlopen",
            "engine_get_info",
            "engine_get_extension",
            "engine_init",
            "models.load",
            "batch.create",
            "batch.destroy",
            "models.unload",
            "engine_shutdown"
        ]
    );
}

#[test]
fn an_engine_starts_again_after_shutdown() {
    let mut opened = open(&fake("restart", &[])).unwrap();
    for _ in 0..3 {
        let mut engine = opened.init(&config()).unwrap();
        engine.tier0_load(&toy_model("restart", "")).unwrap();
        opened = engine.shutdown();
    }
}

#[test]
fn tier_0_answers() {
    let mut engine = {
        let opened = open(&fake("tier0", &["NO_EXTENSIONS"])).unwrap();
        assert!(opened.extensions().is_empty());
        opened.init(&InitConfig { max_tokens: 12, ..config() }).unwrap()
    };
    let error = engine.tier0_generate("once").unwrap_err();
    assert_eq!(error.to_string(), "engine_generate failed with ERR_INVALID_ARGUMENT: the toy has no model");

    engine.tier0_load(&toy_model("tier0", "eog_every=0\n")).unwrap();
    let answer = engine.tier0_generate("once").unwrap();
    assert_eq!((answer.tokens.len(), answer.finish), (12, Finish::Length));
    assert!(
        answer
            .tokens
            .iter()
            .all(|token| token.text.len() == 1 && token.id == Some(Token::from(token.text[0])))
    );
    assert_eq!(engine.tier0_generate("once").unwrap(), answer);
    assert_ne!(engine.tier0_generate("twice").unwrap(), answer);

    engine.tier0_load(&toy_model("tier0", "eog_every=1\n")).unwrap();
    let answer = engine.tier0_generate("once").unwrap();
    assert_eq!((answer.tokens.len(), answer.finish), (0, Finish::Stop));

    let Err(EngineError::Failed { call: "engine_generate", .. }) = engine.tier0_generate("a\0b") else {
        panic!("a zero byte came through");
    };
}

#[test]
fn what_is_not_offered_is_unsupported() {
    let bare = Arc::new(loaded("bare", &["NO_GET_EXTENSION"]));
    let unsupported = |error: EngineError| assert_eq!(error.kind(), EngineFaultKind::Unsupported);
    let params = ModelParams::new(toy_model("bare", ""));
    unsupported(Model::load(&bare, &params, None).unwrap_err());
    unsupported(bare.devices().unwrap_err());
    unsupported(bare.estimate(&params, None).unwrap_err());

    let less = model("less", &["NO_BATCH", "NO_TOKENIZER", "NO_ESTIMATE", "NO_CANCEL"]);
    unsupported(Context::create(&less, &support::params()).unwrap_err());
    unsupported(ModelTokenizer::new(&less).unwrap_err());
    unsupported(less.engine().estimate(&params, None).unwrap_err());
}

#[test]
fn models_and_their_metadata() {
    let engine = Arc::new(loaded("models", &[]));
    let path = toy_model("models", "n_context=128\ngeneral.name=A toy\n");
    let model = Model::load(&engine, &ModelParams::new(&path), None).unwrap();
    let info = model.info();
    assert_eq!((info.architecture.as_str(), info.format.as_str(), &info.quantization), ("toy", "toy", &None));
    assert_eq!((info.n_vocab, info.n_context, info.n_embedding), (258, 128, 8));
    assert!(info.generates && info.embeds && !info.ranks && !info.recurrent);
    assert_eq!(
        model.metadata().unwrap(),
        [("n_context".to_owned(), "128".to_owned()), ("general.name".to_owned(), "A toy".to_owned())]
    );
    // Two at once, unloaded in whatever order.
    let second = Model::load(&engine, &ModelParams::new(&path), None).unwrap();
    drop(model);
    assert_eq!(second.metadata().unwrap().len(), 2);
}

#[test]
fn files_that_are_no_model() {
    let engine = Arc::new(loaded("no_model", &[]));
    let folder = scratch("no_model");
    std::fs::write(folder.join("noise"), [0x5a; 1000]).unwrap();
    std::fs::write(folder.join("empty"), []).unwrap();
    for (name, kind) in [
        ("noise", EngineFaultKind::ModelCorrupt),
        ("empty", EngineFaultKind::ModelCorrupt),
        (".", EngineFaultKind::ModelCorrupt),
        ("absent", EngineFaultKind::NotFound),
        ("a\0b", EngineFaultKind::InvalidInput),
    ] {
        let error = Model::load(&engine, &ModelParams::new(folder.join(name)), None).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(matches!(error, EngineError::Failed { message: Some(_), .. }), "{name}");
    }
}

#[test]
fn loading_reports_and_can_be_ended() {
    let engine = Arc::new(loaded("progress", &[]));
    let params = ModelParams::new(toy_model("progress", ""));
    let mut seen = Vec::new();
    let mut listen = |fraction: f32| {
        seen.push(fraction);
        ControlFlow::Continue(())
    };
    Model::load(&engine, &params, Some(&mut listen)).unwrap();
    assert_eq!(seen, [0.0, 0.25, 0.5, 0.75, 1.0]);

    let error = Model::load(&engine, &params, Some(&mut |_| ControlFlow::Break(()))).unwrap_err();
    assert_eq!(error.kind(), EngineFaultKind::Cancelled);
    // A panic in a callback does not cross C: it ends the load.
    let error = Model::load(&engine, &params, Some(&mut |_| panic!("on purpose"))).unwrap_err();
    assert_eq!(error.kind(), EngineFaultKind::Cancelled);
}

#[test]
fn devices_and_memory() {
    let opened = open(&fake("memory", &[])).unwrap();
    let engine = Arc::new(opened.init(&InitConfig { gpu_backend: "cuda".to_owned(), ..config() }).unwrap());
    assert_eq!(
        engine.devices().unwrap(),
        [Device {
            index: 0,
            kind: DeviceKind::Gpu,
            name: "TOY0".to_owned(),
            description: "a toy device".to_owned(),
            bus_id: Some("0000:01:00.0".to_owned()),
            total_bytes: 8 << 30,
            free_bytes: 8 << 30,
        }]
    );
    let params = ModelParams::new(toy_model("memory", "estimate_bytes=1000000\n"));
    let bare = MemoryUse {
        device: Some(0),
        weights: 1_000_000,
        cache: 0,
        compute: 4096,
        cache_per_token: 64,
        cache_per_sequence: 0,
    };
    assert_eq!(engine.estimate(&params, None).unwrap(), [bare]);
    let context = ContextParams { max_sequences: 4, context_length: 100, ..ContextParams::default() };
    let whole = MemoryUse { cache: 64 * 400, ..bare };
    assert_eq!(engine.estimate(&params, Some(&context)).unwrap(), [whole]);
    assert_eq!(whole.total(), 1_000_000 + 64 * 400 + 4096);

    let model = Model::load(&engine, &params, None).unwrap();
    assert_eq!(model.memory_use().unwrap(), [bare]);
    let context = Context::create(&model, &context).unwrap();
    assert_eq!(model.memory_use().unwrap(), [whole]);
    drop(context);
    assert_eq!(model.memory_use().unwrap(), [bare]);
}

#[test]
fn an_estimate_can_be_set() {
    let engine = Arc::new(loaded("giant", &["ESTIMATE_BYTES=17179869184ULL"]));
    let uses = engine.estimate(&ModelParams::new(toy_model("giant", "")), None).unwrap();
    let all = uses[0].weights + uses[0].cache + uses[0].compute;
    assert_eq!((all, uses[0].device), (16 << 30, None));
}

#[test]
fn the_tokenizer() {
    let model = model("tokenizer", &[]);
    let tokenizer = ModelTokenizer::new(&model).unwrap();
    let vocabulary = tokenizer.vocabulary();
    assert_eq!(
        (vocabulary.len(), vocabulary.bos, vocabulary.eos, vocabulary.eot),
        (258, Some(256), Some(257), None)
    );
    assert!(vocabulary.adds_bos);
    assert_eq!(vocabulary.token_bytes(256), b"<s>");
    assert!(vocabulary.has(257, attribute::END_OF_GENERATION) && vocabulary.has(65, attribute::BYTE));

    assert_eq!(tokenizer.tokenize("hi", false, false).unwrap(), [104, 105]);
    assert_eq!(tokenizer.tokenize("hi", true, false).unwrap(), [256, 104, 105]);
    assert_eq!(tokenizer.tokenize("h</s>", false, true).unwrap(), [104, 257]);
    assert_eq!(tokenizer.tokenize("</s>", false, false).unwrap(), bytes("</s>"));
    assert!(tokenizer.tokenize("", false, false).unwrap().is_empty());

    // More tokens than the first guess has room for; and every kind of byte there and back.
    for text in ["x".repeat(10_000), "漢字 and 🙂 and \0".repeat(100)] {
        let tokens = tokenizer.tokenize(&text, false, false).unwrap();
        assert_eq!(tokens, bytes(&text));
        assert_eq!(tokenizer.detokenize(&tokens).unwrap(), text.as_bytes());
    }
    assert_eq!(tokenizer.detokenize(&[257; 100]).unwrap(), "</s>".repeat(100).as_bytes());
    assert_eq!(tokenizer.detokenize(&[258]).unwrap_err().kind, EngineFaultKind::InvalidInput);
    assert!(tokenizer.chat_template().unwrap().contains("messages"));
    assert_eq!(tokenizer.named_chat_template("tool_use").unwrap(), None);

    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(tokenizer.tokenize("hi", true, false).unwrap(), [256, 104, 105]));
        }
    });
}

#[test]
fn a_model_without_chat_template() {
    let tokenizer = ModelTokenizer::new(&model("no_template", &["NO_CHAT_TEMPLATE"])).unwrap();
    assert_eq!(tokenizer.chat_template(), None);
}

#[test]
fn the_limits_of_a_context() {
    let params = ContextParams { cache_tokens: 100, max_batch_tokens: 32, max_rows: 5, ..params() };
    let context = context("limits", &[], &params);
    let limits = context.limits();
    assert_eq!((limits.max_sequences, limits.context_length, limits.n_vocab), (8, 64, 258));
    assert_eq!(
        (limits.max_batch_tokens, limits.max_rows, limits.cache_tokens, limits.cache_page),
        (32, 5, 100, 1)
    );
    assert!(limits.shares_prefixes && limits.max_rollback == u32::MAX);
    assert_eq!(context.cache_free(), 100);
    assert_eq!(context.info().max_in_flight, 1);
}

/// Greedy text of prompts one by one = all in one batch = with the prompts cut into pieces.
#[test]
fn batching_changes_nothing() {
    let mut context = context("equivalence", &[], &params());
    let prompts: Vec<Vec<Token>> =
        ["a", "once", "once upon", "once upon a time"].iter().map(|text| bytes(text)).collect();
    let alone: Vec<Vec<Token>> = prompts
        .iter()
        .map(|prompt| {
            let answer = continued(&mut context, 0, prompt, 10);
            context.truncate(0, 0).unwrap();
            answer
        })
        .collect();
    assert!(alone.windows(2).all(|pair| pair[0] != pair[1]));

    // Together; and every second prompt comes in two pieces, the first of which wants no row.
    let mut answers: Vec<Vec<Token>> = vec![Vec::new(); prompts.len()];
    let first: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| {
            if index % 2 == 0 {
                slice(index as u32, 0, prompt, 1)
            } else {
                slice(index as u32, 0, &prompt[..2], 0)
            }
        })
        .collect();
    let tokens = advance(&mut context, &first);
    assert_eq!(tokens.len(), 2);
    (answers[0], answers[2]) = (vec![tokens[0]], vec![tokens[1]]);
    for _ in 0..9 {
        let pieces: Vec<Vec<Token>> = (0..prompts.len())
            .map(|index| match answers[index].last() {
                Some(last) => vec![*last],
                None => prompts[index][2..].to_vec(),
            })
            .collect();
        let slices: Vec<_> = pieces
            .iter()
            .enumerate()
            .map(|(index, tokens)| slice(index as u32, context.range(index as u32).unwrap().1, tokens, 1))
            .collect();
        for (index, token) in advance(&mut context, &slices).into_iter().enumerate() {
            answers[index].push(token);
        }
    }
    for (index, answer) in answers.iter().enumerate() {
        assert_eq!(answer[..9], alone[index][..9], "prompt {index}");
    }
}

/// Row i of a step with many rows = the last row of a step that ends at token i.
#[test]
fn rows_of_all_tokens() {
    let mut context = context("rows", &[], &params());
    let prompt = bytes("upon");
    let whole = advance(&mut context, &[slice(0, 0, &prompt, 4)]);
    for end in 1..=4 {
        context.truncate(0, 0).unwrap();
        assert_eq!(advance(&mut context, &[slice(0, 0, &prompt[..end], 1)]), [whole[end - 1]]);
    }
}

#[test]
fn rows_in_half_the_width() {
    let prompt = bytes("once upon");
    let mut wide = context("wide", &[], &params());
    let ticket = wide.step(&[slice(0, 0, &prompt, 1)]).unwrap();
    let expected = whole(&wide.collect(ticket, 1).unwrap()[0]).to_vec();
    for (switch, precision) in [("ROWS_F16", 1.0 / 1024.0), ("ROWS_BF16", 1.0 / 128.0)] {
        let mut narrow = context(switch, &[switch], &params());
        let ticket = narrow.step(&[slice(0, 0, &prompt, 1)]).unwrap();
        let rows = narrow.collect(ticket, 1).unwrap();
        for (narrow, wide) in whole(&rows[0]).iter().zip(&expected) {
            assert!(
                (narrow - wide).abs() <= wide.abs().mul_add(precision, 1e-4),
                "{switch}: {narrow} for {wide}"
            );
        }
    }
}

#[test]
fn a_prefix_is_shared_and_outlives_its_source() {
    let params = ContextParams { cache_tokens: 20, ..params() };
    let mut context = context("prefix", &[], &params);
    let prompt = bytes("once upon a");
    let expected = continued(&mut context, 0, &prompt, 5);
    context.truncate(0, 0).unwrap();

    advance(&mut context, &[slice(0, 0, &prompt, 1)]);
    let free = context.cache_free();
    context.copy_prefix(0, 1, 10).unwrap();
    context.copy_prefix(1, 2, 10).unwrap();
    assert_eq!((context.cache_free(), context.range(2).unwrap()), (free, (0, 10)));
    context.truncate(0, 0).unwrap();
    context.truncate(1, 0).unwrap();
    // The last token of the prompt again, on the copy of the copy.
    assert_eq!(advance(&mut context, &[slice(2, 10, &prompt[10..], 1)]), expected[..1]);
    context.truncate(2, 0).unwrap();
    assert_eq!(context.cache_free(), 20);

    for (from, to, end) in [(0, 0, 0), (0, 1, 1), (8, 1, 0), (0, 8, 0)] {
        assert_eq!(context.copy_prefix(from, to, end).unwrap_err().kind, EngineFaultKind::InvalidArgument);
    }
}

#[test]
fn a_saved_sequence_goes_on_in_another_place() {
    let params = ContextParams { cache_tokens: 20, ..params() };
    let mut context = context("saved", &[], &params);
    assert!(context.limits().saves);
    let prompt = bytes("once upon a");
    let expected = continued(&mut context, 0, &prompt, 5);
    context.truncate(0, 0).unwrap();

    advance(&mut context, &[slice(0, 0, &prompt, 1)]);
    let state = context.save(0).unwrap();
    assert_eq!(context.range(0).unwrap(), (0, 11));
    // There is no room for both, and a refusal changes nothing.
    let fault = context.restore(3, &state).unwrap_err();
    assert_eq!((fault.kind, context.range(3).unwrap()), (EngineFaultKind::CacheFull, (0, 0)));
    context.truncate(0, 0).unwrap();
    advance(&mut context, &[slice(1, 0, &bytes("others"), 1)]);
    context.restore(3, &state).unwrap();
    assert_eq!((context.range(3).unwrap(), context.cache_free()), ((0, 11), 3));
    assert_eq!(advance(&mut context, &[slice(3, 11, &expected[..1], 1)]), expected[1..2]);

    // What is none, and where there is something already.
    context.truncate(1, 0).unwrap();
    for (sequence, bytes) in [(3, &state[..]), (1, &state[1..]), (1, &[0; 16]), (1, &[]), (8, &state[..])] {
        let fault = context.restore(sequence, bytes).unwrap_err();
        assert_eq!(fault.kind, EngineFaultKind::InvalidArgument);
    }
    assert_eq!((context.range(1).unwrap(), context.range(3).unwrap()), ((0, 0), (0, 12)));
    assert_eq!(context.save(1).unwrap_err().kind, EngineFaultKind::InvalidArgument);
    assert_eq!(context.save(8).unwrap_err().kind, EngineFaultKind::InvalidArgument);
}

/// An engine that does not offer it, and one whose header did not know of it.
#[test]
fn not_every_engine_saves() {
    let older = format!("TABLE_SIZE={}", std::mem::offset_of!(llm_node_abi::EngineBatching, seq_save));
    for (name, switch) in [("no_save", "NO_SAVE"), ("older", &older)] {
        let mut context = context(name, &[switch], &params());
        assert!(!context.limits().saves);
        advance(&mut context, &[slice(0, 0, &bytes("once"), 1)]);
        assert_eq!(context.save(0).unwrap_err().kind, EngineFaultKind::Unsupported);
        assert_eq!(context.restore(1, &[1]).unwrap_err().kind, EngineFaultKind::Unsupported);
    }
}

#[test]
fn rollback_goes_on_as_if_nothing_had_been() {
    let mut context = context("rollback", &[], &params());
    let prompt = bytes("once");
    let expected = continued(&mut context, 0, &prompt, 6);
    for kept in 0..=4 {
        context.truncate(1, 0).unwrap();
        advance(&mut context, &[slice(1, 0, &prompt, 1)]);
        // Four drafted tokens of which `kept` are right.
        let mut drafts = expected[..4].to_vec();
        for draft in &mut drafts[kept..] {
            *draft = 0;
        }
        advance(&mut context, &[slice(1, 4, &drafts, 4)]);
        context.truncate(1, 4 + kept as u32).unwrap();
        assert_eq!(
            advance(&mut context, &[slice(1, 4 + kept as u32, &expected[kept..=kept], 1)]),
            [expected[kept + 1]]
        );
    }
}

#[test]
fn a_full_cache_changes_nothing() {
    let params = ContextParams { cache_tokens: 10, ..params() };
    let mut context = context("full", &[], &params);
    advance(&mut context, &[slice(0, 0, &bytes("12345678"), 1)]);
    let step = [1, 2, 3];
    let fault = context.step(&[slice(1, 0, &step, 1)]).unwrap_err();
    assert_eq!((fault.kind, fault.message.as_str()), (EngineFaultKind::CacheFull, "the toy's cache is full"));
    assert_eq!((context.range(0).unwrap(), context.range(1).unwrap()), ((0, 8), (0, 0)));
    assert_eq!(context.cache_free(), 2);
    context.truncate(0, 7).unwrap();
    advance(&mut context, &[slice(1, 0, &step, 1)]);
}

#[test]
fn arguments_that_are_wrong_change_nothing() {
    let params = ContextParams { max_batch_tokens: 16, max_rows: 2, ..params() };
    let mut context = context("arguments", &[], &params);
    advance(&mut context, &[slice(0, 0, &[1, 2, 3], 1)]);
    let long = [0; 17];
    for slices in [
        vec![slice(8, 0, &[1], 1)],
        vec![slice(0, 2, &[1], 1)],
        vec![slice(0, 4, &[1], 1)],
        vec![slice(0, 3, &[258], 1)],
        vec![slice(0, 3, &[-5], 1)],
        vec![slice(0, 3, &[], 0)],
        vec![slice(0, 3, &[1], 2)],
        vec![slice(1, 0, &[1], 1), slice(1, 1, &[1], 1)],
        vec![slice(1, 0, &long, 1)],
        vec![slice(1, 0, &[1, 2, 3], 3)],
        vec![],
    ] {
        assert_eq!(context.step(&slices).unwrap_err().kind, EngineFaultKind::InvalidArgument, "{slices:?}");
        assert_eq!((context.range(0).unwrap(), context.range(1).unwrap()), ((0, 3), (0, 0)));
    }
}

#[test]
fn rows_are_cut_down_where_candidates_suffice() {
    let prompt = bytes("once upon");
    let mut context = context("top", &["TOP=8"], &params());
    assert_eq!((context.limits().max_candidates, context.limits().fetches), (8, true));
    let wants = |sequence, candidates, rows| Slice { candidates, ..slice(sequence, 0, &prompt, rows) };
    let ticket = context.step(&[wants(0, 0, 1), wants(1, 3, 2), wants(2, 100, 1)]).unwrap();
    let rows = context.collect(ticket, 4).unwrap();
    let logits = whole(&rows[0]).to_vec();
    let mut order: Vec<Token> = (0..logits.len() as Token).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
    // No more than the engine says it can.
    for (row, n) in [(&rows[2], 3), (&rows[3], 8)] {
        let best = best(row);
        assert_eq!(*best.ids, order[..n]);
        let expected: Vec<f32> = order[..n].iter().map(|&id| logits[id as usize]).collect();
        assert_eq!(*best.logits, expected);
        assert!((best.log_sum - sum.ln()).abs() < 1e-4 && best.n_vocab == logits.len());
    }
    assert_eq!(best(&rows[1]).ids.len(), 3);
    drop(rows);
    assert_eq!(whole(&context.fetch(ticket, 3).unwrap()), logits);
}

#[test]
fn tickets_and_their_rows() {
    let mut context = context("rows_of", &[], &params());
    assert_eq!(context.collect(Ticket(0), 0).unwrap_err().kind, EngineFaultKind::InvalidArgument);
    let first = context.step(&[slice(0, 0, &[1, 2], 2)]).unwrap();
    assert_eq!(context.collect(first, 1).unwrap_err().kind, EngineFaultKind::InvalidArgument);
    let row = whole(&context.collect(first, 2).unwrap()[1]).to_vec();
    assert_eq!(whole(&context.fetch(first, 1).unwrap()), row);
    assert_eq!(context.fetch(first, 2).unwrap_err().kind, EngineFaultKind::InvalidArgument);
    let second = context.step(&[slice(0, 2, &[3], 0)]).unwrap();
    assert_eq!(second, Ticket(first.0 + 1));
    assert_eq!(context.collect(first, 2).unwrap_err().kind, EngineFaultKind::InvalidArgument);
    assert_eq!(context.collect(second, 0).unwrap().len(), 0);
}

#[test]
fn a_step_can_be_cancelled() {
    let params = ContextParams { options: vec![("step_us".to_owned(), "60000000".to_owned())], ..params() };
    let mut context = context("cancelled", &[], &params);
    let canceller = context.canceller();
    std::thread::scope(|scope| {
        let over = Arc::new(());
        let running = Arc::downgrade(&over);
        let canceller = canceller.clone();
        scope.spawn(move || {
            // Again and again: the first may come before the step has begun.
            while running.strong_count() > 0 {
                canceller.cancel();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let fault = context.step(&[slice(0, 0, &[1], 1)]).unwrap_err();
        assert_eq!(fault.kind, EngineFaultKind::Cancelled);
        assert_eq!(context.range(0).unwrap(), (0, 0));
        drop(over);
    });
    drop(context);
    canceller.cancel();
}

#[test]
fn two_contexts_on_two_threads() {
    let model = model("threads", &[]);
    let prompt = bytes("once upon");
    let run = || continued(&mut Context::create(&model, &params()).unwrap(), 0, &prompt, 20);
    let expected = run();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

#[test]
fn a_stream_gives_the_tokens_of_the_batch() {
    let model = model("stream", &[]);
    let prompt = bytes("once upon");
    let expected = continued(&mut Context::create(&model, &params()).unwrap(), 0, &prompt, 8);
    let request = StreamRequest {
        prompt: Prompt::Tokens(&prompt),
        max_tokens: 8,
        sampling: Sampling::default(),
        seed: 0,
        stop: &[],
    };
    let mut heard = Vec::new();
    let finish = model
        .generate(&request, &mut |token| {
            heard.push(token.id.unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((heard, finish), (expected.clone(), Finish::Length));

    let mut heard = Vec::new();
    let finish = model
        .generate(&request, &mut |token| {
            heard.push(token.id.unwrap());
            if heard.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((heard, finish), (expected[..3].to_vec(), Finish::Cancelled));

    let hot =
        StreamRequest { sampling: Sampling { temperature: Some(1.0), ..Sampling::default() }, ..request };
    let error = model.generate(&hot, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.kind(), EngineFaultKind::Unsupported);

    let text = StreamRequest { prompt: Prompt::Text("once upon"), ..request };
    assert_eq!(model.generate(&text, &mut |_| ControlFlow::Continue(())).unwrap(), Finish::Length);
}

/// It crosses the engine as a cancel, and goes on behind it.
#[test]
fn a_panic_in_a_listener_comes_out_again() {
    let model = model("panic", &[]);
    let request = StreamRequest {
        prompt: Prompt::Tokens(&[1]),
        max_tokens: 8,
        sampling: Sampling::default(),
        seed: 0,
        stop: &[],
    };
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        model.generate(&request, &mut |_| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    assert_eq!(model.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap(), Finish::Length);
}

#[test]
fn embeddings() {
    let model = model("embeddings", &[]);
    let inputs = [bytes("once"), bytes("upon a time"), Vec::new()];
    let together = model.embed(&inputs, Pooling::Model).unwrap();
    assert_eq!(together.len(), 3);
    for (input, vector) in inputs.iter().zip(&together) {
        assert_eq!(vector.len(), 8);
        assert_eq!(&model.embed(std::slice::from_ref(input), Pooling::Mean).unwrap()[0], vector);
    }
    assert_ne!(together[0], together[1]);
    assert!(model.embed(&[], Pooling::Model).unwrap().is_empty());
}
