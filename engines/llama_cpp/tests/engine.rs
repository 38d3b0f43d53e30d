//! What is this engine's own: its options, its threads, its numbers, with a small real model. What every engine
//! must do is asked by `llm-node engine check`, of a cache in one piece and of a split one (tests/conformance).
#![allow(clippy::unwrap_used, reason = "a failing call fails the test")]

mod support;

use std::ffi::CStr;
use std::ptr;

use llm_node_abi as abi;
use support::{Model, Params, engine, greedy, stories};

const PROMPT: &[u8] = b"Once upon a time";
const STORY: &str = ", there was a little girl named Lily. She loved to play outside in the park. One day, \
                     she saw a big, red ball.";

fn split(sequences: u32) -> Params {
    Params { sequences, length: 512, options: &[("cache_mode", "split")], ..Params::default() }
}

fn unified(sequences: u32) -> Params {
    Params { sequences, length: 512, options: &[("cache_mode", "unified")], ..Params::default() }
}

/// Greedy tokens after `prompt` in sequence 0 of a context of its own.
fn alone(model: &Model<'_>, prompt: &[i32], count: usize) -> Vec<i32> {
    let mut context = model.context(unified(1));
    let mut row = context.run(&[(0, prompt)]).remove(0);
    let mut answer = Vec::new();
    for _ in 0..count {
        let token = greedy(&row);
        answer.push(token);
        row = context.run(&[(0, &[token])]).remove(0);
    }
    answer
}

fn text(model: &Model<'_>, tokens: &[i32]) -> String {
    String::from_utf8(model.detokenize(tokens)).unwrap()
}

#[test]
fn greedy_text_is_the_known_story() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let prompt = model.tokenize(PROMPT, true);
    let answer = text(&model, &alone(&model, &prompt, 80));
    assert!(answer.starts_with(STORY), "{answer:?}");
}

/// Threads of this process that OpenMP made for the crowd of `waiting`; they bear its name.
#[cfg(target_os = "linux")]
fn crowd() -> usize {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(entry.unwrap().path().join("comm")).unwrap_or_default()
    };
    std::fs::read_dir("/proc/self/task").unwrap().map(name).filter(|name| name.trim() == "crowd").count()
}

#[test]
#[cfg(target_os = "linux")]
fn a_policy_of_waiting_changes_no_text_and_leaves_no_threads() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let prompt = model.tokenize(PROMPT, true);
    let told = |options: &'static [(&'static str, &'static str)]| {
        let params = Params { sequences: 1, length: 512, options, ..Params::default() };
        let mut context = model.context(params);
        let mut row = context.run(&[(0, &prompt)]).remove(0);
        let mut answer = Vec::new();
        for _ in 0..24 {
            answer.push(greedy(&row));
            row = context.run(&[(0, &answer[answer.len() - 1..])]).remove(0);
        }
        (answer, crowd())
    };
    let (active, none) = told(&[("threads", "2"), ("wait_policy", "active")]);
    let (passive, some) = told(&[("threads", "2"), ("wait_policy", "passive")]);
    let (auto, _) = told(&[("threads", "2")]);
    assert_eq!(active, alone(&model, &prompt, 24));
    assert_eq!((&active, &active), (&passive, &auto));
    assert!(none == 0 && some > 1, "{none} and {some} threads only sleep");
    assert_eq!(crowd(), 0);
}

fn close(left: &[f32], right: &[f32]) {
    let worst = left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-3, "rows differ by {worst}");
}

#[test]
fn contexts_that_cannot_be_are_refused() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let bad = Params { options: &[("cache_type_k", "q3")], ..Params::default() };
    assert_eq!(model.try_context(bad).err(), Some(abi::ERR_INVALID_ARGUMENT));
    let many = Params { sequences: 1000, ..Params::default() };
    assert_eq!(model.try_context(many).err(), Some(abi::ERR_INVALID_ARGUMENT));
    // In a split cache a part is as long as the context, and more than that can never fit.
    let mut context = model.context(Params { cache: 768, ..split(3) });
    let tokens = vec![5; 200];
    context.run(&[(0, &tokens)]);
    assert_eq!(context.free(), 568);
    let code = context.submit(&[(2, 0, &tokens[..10], 1), (0, 200, &tokens[..100], 1)]);
    assert_eq!(code, Err(abi::ERR_INVALID_ARGUMENT));
}

/// Threads of this process that carry the calling thread's name, as those do that it started.
#[cfg(target_os = "linux")]
fn namesakes() -> usize {
    let own = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let comm = task.as_ref().unwrap().path().join("comm");
            std::fs::read_to_string(comm).is_ok_and(|name| name == own)
        })
        .count()
}

#[test]
#[cfg(target_os = "linux")]
fn threads_end_with_their_context() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let before = namesakes();
    let mut context = model.context(Params { options: &[("threads", "3")], ..unified(1) });
    context.run(&[(0, &[1, 2, 3])]);
    assert_eq!(namesakes(), before + 2);
    drop(context);
    // A thread is listed for a moment after it was joined.
    for _ in 0..1000 {
        if namesakes() == before {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("{} threads are left", namesakes() - before);
}

#[test]
fn options_reach_llama_cpp() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let options: &[&'static [(&str, &str)]] = &[
        &[("flash_attention", "on")],
        &[("flash_attention", "off")],
        &[("n_ubatch", "8"), ("threads", "1")],
        &[("cache_type_k", "f32"), ("cache_type_v", "f32")],
        &[("swa_full", "on"), ("what", "ever")],
    ];
    let prompt = model.tokenize(PROMPT, true);
    for options in options {
        let mut context = model.context(Params { options, ..unified(2) });
        let mut answer = vec![greedy(&context.run(&[(0, &prompt)]).remove(0))];
        for _ in 0..8 {
            let last = *answer.last().unwrap();
            answer.push(greedy(&context.run(&[(0, &[last])]).remove(0)));
        }
        assert!(STORY.starts_with(&text(&model, &answer)), "{options:?}");
    }
}

#[test]
fn the_vocabulary_is_the_model_s() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let vocab = model.vocab();
    assert_eq!(vocab.n_tokens, model.info().n_vocab);
    assert_eq!((vocab.bos, vocab.eos, vocab.adds_bos), (1, 2, 1));
    let n = vocab.n_tokens as usize;
    // SAFETY: the header says how long they are.
    let (offsets, attributes) = unsafe {
        (std::slice::from_raw_parts(vocab.offsets, n + 1), std::slice::from_raw_parts(vocab.attributes, n))
    };
    // SAFETY: as above.
    let bytes = unsafe { std::slice::from_raw_parts(vocab.bytes, offsets[n] as usize) };
    let piece = |token: usize| &bytes[offsets[token] as usize..offsets[token + 1] as usize];
    assert_eq!(attributes[1] & abi::ENGINE_ATTR_CONTROL, abi::ENGINE_ATTR_CONTROL);
    assert_eq!(attributes[2] & abi::ENGINE_ATTR_EOG, abi::ENGINE_ATTR_EOG);
    assert_eq!(piece(1), b"<s>");
    // Byte tokens follow the three specials in this vocabulary.
    for byte in 0..=255_u8 {
        assert_eq!(piece(3 + byte as usize), [byte]);
        assert_ne!(attributes[3 + byte as usize] & abi::ENGINE_ATTR_BYTE, 0);
    }
    // Text that is no UTF-8 is somebody's, too.
    let _ = model.tokenize(&[0xff, 0xc3, b'a', 0xed, 0xa0, 0x80], false);
    assert!(model.tokenize(b"", false).is_empty());
    assert_eq!(model.tokenize(b"", true), [1]);
}

#[test]
fn the_model_says_what_it_is() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let info = model.info();
    // SAFETY: the engine gives terminated texts.
    let text = |text| unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned();
    assert_eq!((text(info.architecture), text(info.format)), ("llama".to_owned(), "gguf".to_owned()));
    assert_eq!(text(info.quantization), "F32");
    assert_eq!(info.flags, abi::ENGINE_MODEL_GENERATES);
    assert_eq!((info.n_vocab, info.n_context, info.n_embedding), (512, 512, 64));
    assert!(info.n_parameters > 200_000 && info.size_bytes == info.n_parameters * 4);

    let mut source = abi::EngineStr { data: ptr::null(), len: 0 };
    // SAFETY: as the header says.
    unsafe {
        let template = engine.tokenizer.chat_template.unwrap();
        assert_eq!(template(model.raw, ptr::null(), &raw mut source), abi::ERR_NOT_FOUND);
        assert_eq!(template(model.raw, c"tool_use".as_ptr(), &raw mut source), abi::ERR_NOT_FOUND);
        let count = engine.models.meta_count.unwrap()(model.raw);
        let mut found = false;
        for index in 0..count {
            let (mut key, mut value) = (source, source);
            let get = engine.models.meta_get.unwrap();
            assert_eq!(get(model.raw, index, &raw mut key, &raw mut value), abi::ERR_OK);
            let key = std::slice::from_raw_parts(key.data.cast::<u8>(), key.len);
            let value = std::slice::from_raw_parts(value.data.cast::<u8>(), value.len);
            found |= (key, value) == (b"general.architecture", b"llama");
        }
        assert!(found);
        let mut end = source;
        assert_eq!(
            engine.models.meta_get.unwrap()(model.raw, count, &raw mut source, &raw mut end),
            abi::ERR_NOT_FOUND
        );
    }
}

fn total(uses: &[abi::EngineMemoryUse]) -> (u64, u64, u64) {
    uses.iter()
        .fold((0, 0, 0), |sum, memory| (sum.0 + memory.weights, sum.1 + memory.cache, sum.2 + memory.compute))
}

#[test]
fn estimates_are_close_to_what_is_used() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    for params in [unified(1), unified(8), split(8), Params { cache: 2048, ..unified(8) }] {
        let option = abi::EngineOption {
            key: c"cache_mode".as_ptr(),
            value: if params.options[0].1 == "split" { c"split".as_ptr() } else { c"unified".as_ptr() },
        };
        let uses = engine.estimate(&path, Some(&params.raw(std::slice::from_ref(&option))));
        let estimate = total(&uses);
        // 5 layers, 32 wide on either side, 2 bytes each.
        assert_eq!(uses[0].cache_per_token, 5 * 2 * 32 * 2);
        assert_eq!(uses[0].cache_per_sequence, 0);
        assert_eq!(uses[0].device, abi::ENGINE_DEVICE_HOST);

        let model = engine.try_load(&path).unwrap();
        let _context = model.context(params);
        let usage = total(&model.usage());
        let near = |a: u64, b: u64| a.abs_diff(b) * 10 <= a.max(b);
        assert!(near(estimate.0, usage.0) && near(estimate.1, usage.1), "{estimate:?} {usage:?}");
        assert!(near(estimate.2, usage.2) && estimate.2 >= usage.2, "{estimate:?} {usage:?}");
    }
    // Without a context there are only weights, before and after loading.
    let estimate = total(&engine.estimate(&path, None));
    assert!(estimate.0 > 1_000_000 && estimate.1 == 0 && estimate.2 == 0, "{estimate:?}");
    assert_eq!(total(&engine.try_load(&path).unwrap().usage()), estimate);
}

fn embed(model: &Model<'_>, pooling: u32, inputs: &[Vec<i32>]) -> Result<Vec<Vec<f32>>, abi::Code> {
    let pointers: Vec<*const i32> = inputs.iter().map(Vec::as_ptr).collect();
    let lengths: Vec<usize> = inputs.iter().map(Vec::len).collect();
    let params = abi::EngineEmbedParams {
        struct_size: size_of::<abi::EngineEmbedParams>() as u32,
        pooling,
        inputs: pointers.as_ptr(),
        lengths: lengths.as_ptr(),
        n_inputs: inputs.len(),
    };
    let width = model.info().n_embedding as usize;
    let mut vectors = vec![f32::NAN; width * inputs.len()];
    // SAFETY: as the header says.
    let code = unsafe {
        model.engine.embed.embed.unwrap()(model.raw, &raw const params, vectors.as_mut_ptr(), vectors.len())
    };
    if !code.is_ok() {
        return Err(code);
    }
    Ok(vectors.chunks(width).map(<[f32]>::to_vec).collect())
}

fn normal(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter().map(|value| value / length).collect()
}

#[test]
fn embeddings_of_many_are_those_of_each() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let inputs: Vec<Vec<i32>> = (0..100)
        .map(|index| model.tokenize(format!("{} {index} times", &STORY[..index]).as_bytes(), true))
        .collect();
    for pooling in [abi::ENGINE_POOL_MEAN, abi::ENGINE_POOL_LAST] {
        let many = embed(&model, pooling, &inputs).unwrap();
        assert!(many.iter().flatten().all(|value| value.is_finite()));
        for index in [0, 1, 50, 63, 64, 99] {
            let one = embed(&model, pooling, &inputs[index..=index]).unwrap();
            close(&normal(&one[0]), &normal(&many[index]));
        }
    }
    // A model for text generation names no pooling, and takes nothing longer than its context.
    assert_eq!(embed(&model, abi::ENGINE_POOL_MODEL, &inputs).err(), Some(abi::ERR_UNSUPPORTED));
    assert_eq!(embed(&model, abi::ENGINE_POOL_RANK, &inputs).err(), Some(abi::ERR_UNSUPPORTED));
    let long = vec![vec![5; 513]];
    assert_eq!(embed(&model, abi::ENGINE_POOL_MEAN, &long).err(), Some(abi::ERR_INVALID_ARGUMENT));
    assert_eq!(embed(&model, abi::ENGINE_POOL_MEAN, &[vec![]]).err(), Some(abi::ERR_INVALID_ARGUMENT));
    assert!(embed(&model, abi::ENGINE_POOL_MEAN, &[]).unwrap().is_empty());
    // Generation goes on beside it.
    let prompt = model.tokenize(PROMPT, true);
    assert!(text(&model, &alone(&model, &prompt, 20)).starts_with(&STORY[..20]));
}

#[test]
fn what_the_host_forgot_goes_with_the_engine() {
    let Some(path) = stories() else { return };
    let (engine, _turn) = engine();
    for _ in 0..3 {
        let model = engine.try_load(&path).unwrap();
        let other = engine.try_load(&path).unwrap();
        let prompt = model.tokenize(PROMPT, true);
        assert_eq!(alone(&model, &prompt, 8), alone(&other, &prompt, 8));
        let context = other.context(unified(1));
        // Giving it back afterwards harms nobody.
        engine.stop();
        drop(context);
        drop(model);
        assert_eq!(engine.start(), abi::ERR_OK);
        assert_eq!(engine.start(), abi::ERR_INVALID_ARGUMENT);
    }
}
