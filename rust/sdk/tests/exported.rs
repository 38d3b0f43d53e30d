//! A whole engine in safe Rust, exported and called through its C tables as a host calls it.
//!
//! Its model is a number, and its logits are the count of tokens in the sequence: enough to see that
//! everything arrives, and that what is wrong (a panic, a short struct, a NULL) ends at the wall.
//!
//! Miri runs this, and it opens no libraries. What an engine made with the SDK must do as any other is asked
//! by `llm-node engine check` of those that `llm-node engine new --lang rust` makes (tests/conformance).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failing call fails the test")]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llm_node_abi as abi;
use llm_node_sdk::{
    Batch, Batching, Config, ContextInfo, ContextParams, Device, DeviceKind, Embedding, Engine, Failure,
    Finish, Generation, Inputs, Masks, Memory, MemoryUse, ModelInfo, ModelParams, Models, Piece, Pooling,
    Row, Rows, Severity, Tokenizer, Vocabulary, attribute, export_engine, log,
};

const N_VOCAB: usize = 40;

/// Engines, models and contexts that are alive.
static ALIVE: AtomicU32 = AtomicU32::new(0);

struct Alive;

impl Alive {
    fn new() -> Self {
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Toy {
    loaded: AtomicBool,
    _alive: Alive,
}

struct ToyModel {
    name: String,
    _alive: Alive,
}

struct ToyContext {
    lengths: Vec<u32>,
    rows: Vec<Vec<f32>>,
    /// Per row, its candidates where these suffice.
    ids: Vec<Option<Vec<i32>>>,
    cancelled: Arc<AtomicBool>,
    _alive: Alive,
}

impl Engine for Toy {
    const ID: &'static CStr = c"toy";
    const VERSION: &'static CStr = c"1.2.3";

    fn init(config: &Config) -> Result<Self, Failure> {
        log(Severity::Info, "starting\0up");
        if config.options.get("fail").is_some() {
            return Err(Failure::new(abi::ERR_DEVICE_LOST, "asked to fail"));
        }
        assert_eq!(config.options.get("panic"), None, "asked to panic");
        assert_eq!((config.n_threads, config.gpu_backend.as_str()), (3, "cpu"));
        assert_eq!(config.engine_dir, Path::new("/engines/toy"));
        Ok(Self { loaded: AtomicBool::new(false), _alive: Alive::new() })
    }

    fn load_model(&self, path: &Path) -> Result<(), Failure> {
        self.loaded.store(path.ends_with("model"), Ordering::Relaxed);
        Ok(())
    }

    fn generate(&self, prompt: &[u8]) -> Result<Generation, Failure> {
        if !self.loaded.load(Ordering::Relaxed) {
            return Err(Failure::new(abi::ERR_LOAD_FAILED, "no model"));
        }
        let pieces = prompt
            .split(|byte| *byte == b' ')
            .enumerate()
            .map(|(index, word)| Piece {
                text: word.to_vec(),
                token: (index != 1).then_some(index as i32),
                logprob: (index == 0).then_some(-0.5),
            })
            .collect();
        Ok(Generation { pieces, finish: Finish::Length })
    }
}

impl Models for Toy {
    type Model = ToyModel;

    fn load(&self, params: &ModelParams, progress: &mut dyn FnMut(f32) -> bool) -> Result<ToyModel, Failure> {
        let name = params.path.to_str().unwrap_or_default().to_owned();
        assert_ne!(name, "panic", "asked to panic");
        if !progress(0.5) {
            return Err(Failure::new(abi::ERR_CANCELLED, "stopped"));
        }
        Ok(ToyModel { name, _alive: Alive::new() })
    }

    fn info(model: &ToyModel) -> ModelInfo {
        ModelInfo {
            generates: true,
            embeds: true,
            architecture: CString::new(model.name.as_str()).unwrap_or_default(),
            format: c"toy".to_owned(),
            n_vocab: N_VOCAB as u32,
            n_context: 100,
            n_embedding: 2,
            ..ModelInfo::default()
        }
    }

    fn metadata(model: &ToyModel) -> Vec<(Vec<u8>, Vec<u8>)> {
        vec![(b"name".to_vec(), model.name.clone().into_bytes())]
    }
}

impl Memory for Toy {
    const ESTIMATES: bool = false;

    fn devices(&self) -> Vec<Device> {
        vec![Device {
            kind: DeviceKind::Gpu,
            name: c"TOY0".to_owned(),
            description: c"A toy".to_owned(),
            bus_id: Some(c"0000:01:00.0".to_owned()),
        }]
    }

    fn device_memory(&self, _index: u32) -> (u64, u64) {
        (10, 20)
    }

    fn usage(_model: &ToyModel) -> Result<Vec<MemoryUse>, Failure> {
        Ok(vec![
            MemoryUse { weights: 7, ..MemoryUse::default() },
            MemoryUse { device: Some(0), cache: 9, ..MemoryUse::default() },
        ])
    }
}

impl Tokenizer for Toy {
    fn vocabulary(model: &ToyModel) -> Result<Vocabulary, Failure> {
        let mut vocabulary = Vocabulary { bos: Some(0), adds_bos: true, ..Vocabulary::default() };
        for token in 0..N_VOCAB {
            vocabulary.push(&[b'A' + token as u8], if token == 0 { attribute::CONTROL } else { 0 });
        }
        if model.name == "broken" {
            vocabulary.offsets.pop();
        }
        Ok(vocabulary)
    }

    fn tokenize(
        _model: &ToyModel,
        text: &[u8],
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<i32>, Failure> {
        assert!(!parse_special, "asked to panic");
        let mut tokens = if add_special { vec![0] } else { vec![] };
        tokens.extend(text.iter().map(|byte| i32::from(*byte) - i32::from(b'A')));
        Ok(tokens)
    }

    fn chat_template(_model: &ToyModel, name: Option<&str>) -> Option<String> {
        match name {
            None => Some("default".to_owned()),
            Some("tools") => Some("with tools".to_owned()),
            Some(_) => None,
        }
    }
}

impl Batching for Toy {
    type Context = ToyContext;
    const CANCELS: bool = true;
    const SAVES: bool = true;

    fn create(
        &self,
        model: &Arc<ToyModel>,
        params: &ContextParams,
    ) -> Result<(ToyContext, ContextInfo), Failure> {
        assert!(!model.name.is_empty());
        let info = ContextInfo {
            max_sequences: params.max_sequences,
            context_length: params.context_length,
            max_rollback: u32::MAX,
            decode_sizes: vec![1, 2, 4],
            ..ContextInfo::default()
        };
        let context = ToyContext {
            lengths: vec![0; params.max_sequences as usize],
            rows: Vec::new(),
            ids: Vec::new(),
            cancelled: Arc::default(),
            _alive: Alive::new(),
        };
        Ok((context, info))
    }

    fn canceller(context: &ToyContext) -> Box<dyn Fn() + Send + Sync> {
        let cancelled = Arc::clone(&context.cancelled);
        Box::new(move || cancelled.store(true, Ordering::Relaxed))
    }

    fn step(context: &mut ToyContext, batch: &Batch<'_>, ticket: u64) -> Result<(), Failure> {
        if context.cancelled.swap(false, Ordering::Relaxed) {
            return Err(Failure::new(abi::ERR_CANCELLED, "stopped"));
        }
        context.rows.clear();
        context.ids.clear();
        for slice in batch.iter() {
            assert_ne!(slice.tokens, [13], "asked to panic");
            let length = &mut context.lengths[slice.sequence as usize];
            if slice.position != *length {
                return Err(Failure::invalid("wrong position"));
            }
            *length += slice.tokens.len() as u32;
            let mut row = vec![*length as f32; N_VOCAB];
            row[0] = ticket as f32;
            let candidates = slice.candidates()?;
            if candidates > 0 {
                row.truncate(candidates as usize);
                context.ids.extend((0..slice.rows).map(|_| Some((0..candidates as i32).collect())));
                context.rows.extend((0..slice.rows).map(|_| row.clone()));
                continue;
            }
            context.ids.extend((0..slice.rows).map(|_| None));
            if let Some(pick) = slice.pick()? {
                assert_eq!(pick.raw.stage, abi::ENGINE_STAGE_TOKEN);
                assert_eq!((pick.bias.len(), pick.history.len()), (1, 0));
                let mask = pick.masks.and_then(|masks| masks.row(0));
                row[1] = mask.map_or(-1.0, |mask| mask[1] as f32);
                row[2] = pick.uniforms[0];
            }
            context.rows.extend((0..slice.rows).map(|_| row.clone()));
        }
        Ok(())
    }

    fn collect<'a>(
        context: &'a mut ToyContext,
        _ticket: u64,
        _late_masks: Option<Masks<'_>>,
        rows: &mut Rows<'a>,
    ) -> Result<(), Failure> {
        context.rows.iter().zip(&context.ids).try_for_each(|(row, ids)| {
            rows.push(match ids {
                Some(ids) => Row::top(ids, row, 9.5),
                None => Row::logits(row),
            })
        })
    }

    fn copy(context: &mut ToyContext, _from: u32, to: u32, end: u32) -> Result<(), Failure> {
        context.lengths[to as usize] = end;
        Ok(())
    }

    fn remove(context: &mut ToyContext, sequence: u32, begin: u32) -> Result<(), Failure> {
        context.lengths[sequence as usize] = begin;
        Ok(())
    }

    fn range(context: &ToyContext, sequence: u32) -> Result<(u32, u32), Failure> {
        Ok((0, context.lengths[sequence as usize]))
    }

    fn cache_free(context: &ToyContext) -> u64 {
        1000 - context.lengths.iter().map(|length| u64::from(*length)).sum::<u64>()
    }

    fn saved_size(_context: &mut ToyContext, _sequence: u32) -> Result<usize, Failure> {
        Ok(6)
    }

    fn save(context: &mut ToyContext, sequence: u32, data: &mut [u8]) -> Result<usize, Failure> {
        assert_eq!(data.len(), 6);
        let length = context.lengths[sequence as usize];
        assert_ne!(length, 13, "asked to panic");
        data[..4].copy_from_slice(&length.to_le_bytes());
        // One that says more than it announced.
        Ok(if length == 12 { 7 } else { 4 })
    }

    fn restore(context: &mut ToyContext, sequence: u32, data: &[u8]) -> Result<(), Failure> {
        let length = data.try_into().map_err(|_| Failure::invalid("no state of the toy's"))?;
        context.lengths[sequence as usize] = u32::from_le_bytes(length);
        Ok(())
    }
}

impl Embedding for Toy {
    fn embed(
        &self,
        _model: &Arc<ToyModel>,
        pooling: Pooling,
        inputs: &Inputs<'_>,
        vectors: &mut [f32],
    ) -> Result<(), Failure> {
        assert_eq!(pooling, Pooling::Mean);
        for (vector, input) in vectors.chunks_mut(2).zip(inputs.iter()) {
            vector[0] = input.len() as f32;
            vector[1] = input[0] as f32;
        }
        Ok(())
    }
}

export_engine!(Toy: models, memory, tokenizer, batch, embed);

// ------------------------------------------------------------------------------------- the host side

unsafe extern "C" {
    fn engine_get_info() -> *mut abi::EngineInfo;
    fn engine_init(config: *mut abi::EngineConfig) -> abi::Code;
    fn engine_load_model(path: *const c_char) -> abi::Code;
    fn engine_generate(prompt: *const c_char, results: *mut *mut abi::TokenResult) -> abi::Code;
    fn engine_shutdown();
    fn engine_get_extension(id: *const c_char) -> *const c_void;
}

thread_local! {
    static ERROR: RefCell<String> = const { RefCell::new(String::new()) };
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C" fn on_log(_: *const abi::EngineHost, _: i32, message: *const c_char) {
    // SAFETY: the engine passes a terminated text.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    LOGGED.with_borrow_mut(|lines| lines.push(message));
}

unsafe extern "C" fn on_error(_: *const abi::EngineHost, message: *const c_char) {
    // SAFETY: the engine passes a terminated text.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    ERROR.with_borrow_mut(|error| *error = message);
}

struct Host(abi::EngineHost);
// SAFETY: the pointers in it are constants.
unsafe impl Sync for Host {}

static HOST: Host = Host(abi::EngineHost {
    struct_size: size_of::<abi::EngineHost>() as u32,
    abi_version: abi::ENGINE_ABI_VERSION,
    name: c"test".as_ptr(),
    version: c"0".as_ptr(),
    private_data: ptr::null_mut(),
    log: Some(on_log),
    set_error: Some(on_error),
    get_extension: None,
});

fn error() -> String {
    ERROR.take()
}

fn start(option: Option<&CStr>) -> abi::Code {
    let options = option.map(|key| abi::EngineOption { key: key.as_ptr(), value: c"yes".as_ptr() });
    let mut config = abi::EngineConfig {
        struct_size: size_of::<abi::EngineConfig>() as u32,
        n_threads: 3,
        host: &raw const HOST.0,
        engine_dir: c"/engines/toy".as_ptr(),
        gpu_backend: c"cpu".as_ptr(),
        vram_limit_bytes: 0,
        ram_limit_bytes: 0,
        context_length: 0,
        max_tokens: 0,
        options: options.as_ref().map_or(ptr::null(), ptr::from_ref),
        n_options: usize::from(option.is_some()),
    };
    // SAFETY: as the header says.
    unsafe { engine_init(&raw mut config) }
}

/// The running engine, one test at a time.
struct Running(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn running() -> Running {
    let turn = turn();
    assert_eq!(start(None), abi::ERR_OK);
    Running(turn)
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: as the header says.
        unsafe { engine_shutdown() };
    }
}

fn table<T: abi::Extension>() -> T {
    // SAFETY: the engine answers with a table of that type.
    unsafe {
        let found = engine_get_extension(T::ID.as_ptr());
        assert_eq!(found, engine_get_extension(T::ID.as_ptr()));
        let table = found.cast::<T>().read();
        assert_eq!(found.cast::<u32>().read(), size_of::<T>() as u32);
        table
    }
}

fn zeroed<T: abi::Growing>() -> T {
    // SAFETY: a zeroed Growing struct is valid.
    let mut value: T = unsafe { std::mem::zeroed() };
    // SAFETY: it begins with its size.
    unsafe { (&raw mut value).cast::<u32>().write(T::SIZE) };
    value
}

fn load(name: &CStr) -> Result<*mut abi::EngineModel, abi::Code> {
    let params = abi::EngineModelParams { path: name.as_ptr(), ..zeroed() };
    let mut model = ptr::null_mut();
    // SAFETY: as the header says.
    let code = unsafe { table::<abi::EngineModels>().load.unwrap()(&raw const params, &raw mut model) };
    if code.is_ok() { Ok(model) } else { Err(code) }
}

fn context(model: *mut abi::EngineModel) -> *mut abi::EngineContext {
    let params = abi::EngineContextParams { max_sequences: 4, context_length: 50, ..zeroed() };
    let mut context = ptr::null_mut();
    let table = table::<abi::EngineBatching>();
    // SAFETY: as the header says.
    let code = unsafe { table.create.unwrap()(model, &raw const params, &raw mut context) };
    assert_eq!(code, abi::ERR_OK);
    context
}

fn slice(sequence: u32, position: u32, tokens: &[i32], n_rows: u32) -> abi::EngineSlice {
    abi::EngineSlice {
        sequence,
        position,
        n_tokens: tokens.len() as u32,
        n_rows,
        tokens: tokens.as_ptr(),
        pick: ptr::null(),
        adapter: ptr::null_mut(),
        adapter_scale: 0.0,
        reserved: 0,
    }
}

fn step(context: *mut abi::EngineContext, slices: &[abi::EngineSlice]) -> Result<u64, abi::Code> {
    let batch = abi::EngineBatch {
        n_slices: slices.len() as u32,
        slice_stride: size_of::<abi::EngineSlice>(),
        slices: slices.as_ptr(),
        ..zeroed()
    };
    let mut ticket = 0;
    // SAFETY: as the header says.
    let code =
        unsafe { table::<abi::EngineBatching>().step.unwrap()(context, &raw const batch, &raw mut ticket) };
    if code.is_ok() { Ok(ticket) } else { Err(code) }
}

fn collect(context: *mut abi::EngineContext, ticket: u64, n_rows: usize) -> Result<Vec<Vec<f32>>, abi::Code> {
    // SAFETY: all zero is a valid row.
    let mut rows: Vec<abi::EngineRow> = vec![unsafe { std::mem::zeroed() }; n_rows];
    // SAFETY: as the header says.
    let code = unsafe {
        table::<abi::EngineBatching>().collect.unwrap()(
            context,
            ticket,
            ptr::null(),
            rows.as_mut_ptr(),
            n_rows,
            size_of::<abi::EngineRow>(),
        )
    };
    if !code.is_ok() {
        return Err(code);
    }
    // SAFETY: rows are n long.
    let read =
        |row: &abi::EngineRow| unsafe { std::slice::from_raw_parts(row.logits.cast(), row.n as usize) };
    Ok(rows.iter().map(|row| read(row).to_vec()).collect())
}

#[test]
fn it_says_who_it_is_before_it_starts() {
    let _turn = turn();
    // SAFETY: as the header says.
    unsafe {
        let info = *engine_get_info();
        assert_eq!(info.abi_version, 1);
        assert_eq!((CStr::from_ptr(info.engine_id), CStr::from_ptr(info.version)), (c"toy", c"1.2.3"));
        for id in [c"engine.serve/1", c"engine.models/2", c""] {
            assert!(engine_get_extension(id.as_ptr()).is_null());
        }
        assert!(engine_get_extension(ptr::null()).is_null());
        let memory = table::<abi::EngineMemory>();
        assert!(memory.estimate.is_none() && memory.usage.is_some());
        let batch = table::<abi::EngineBatching>();
        assert!(batch.fetch.is_none() && batch.cancel.is_some());
        // Nothing works yet, and nothing crashes.
        assert_eq!(memory.device_count.unwrap()(), 0);
        assert_eq!(load(c"early").err(), Some(abi::ERR_INTERNAL));
        assert_eq!(engine_load_model(c"early".as_ptr()), abi::ERR_INTERNAL);
    }
}

#[test]
fn a_start_that_fails_says_why_and_may_be_tried_again() {
    let turn = turn();
    assert_eq!(start(Some(c"fail")), abi::ERR_DEVICE_LOST);
    assert_eq!(error(), "asked to fail");
    assert_eq!(LOGGED.take(), ["starting\u{fffd}up"]);
    assert_eq!(start(Some(c"panic")), abi::ERR_INTERNAL);
    let said = error();
    assert!(
        said.contains("engine_init") && said.contains("asked to panic") && said.contains("exported.rs"),
        "{said}"
    );
    // SAFETY: as the header says.
    assert_eq!(unsafe { engine_init(ptr::null_mut()) }, abi::ERR_INVALID_ARGUMENT);
    assert_eq!(start(None), abi::ERR_OK);
    assert_eq!(start(None), abi::ERR_INVALID_ARGUMENT);
    drop(Running(turn));
}

#[test]
fn tier_0_hands_out_an_array_with_an_end() {
    let _running = running();
    // SAFETY: as the header says.
    unsafe {
        let mut results = ptr::null_mut();
        assert_eq!(engine_generate(c"one".as_ptr(), &raw mut results), abi::ERR_LOAD_FAILED);
        assert!(results.is_null());
        assert_eq!(engine_load_model(c"/a/model".as_ptr()), abi::ERR_OK);
        assert_eq!(engine_generate(c"one  three".as_ptr(), &raw mut results), abi::ERR_OK);
        let all = std::slice::from_raw_parts(results, 4);
        let text =
            |index: usize| std::slice::from_raw_parts(all[index].text.cast::<u8>(), all[index].text_len);
        assert_eq!((text(0), text(1), text(2)), (&b"one"[..], &b""[..], &b"three"[..]));
        assert_eq!(all[0].flags, abi::ENGINE_RESULT_ID | abi::ENGINE_RESULT_LOGPROB);
        assert_eq!((all[1].flags, all[1].token_id), (0, abi::ENGINE_TOKEN_NONE));
        assert!(all[3].text.is_null());
        assert_eq!(all[3].finish, abi::ENGINE_FINISH_LENGTH);
        assert_eq!(engine_generate(ptr::null(), &raw mut results), abi::ERR_INVALID_ARGUMENT);
    }
}

#[test]
fn panics_end_at_the_wall() {
    let _running = running();
    LOGGED.take();
    assert_eq!(load(c"panic").err(), Some(abi::ERR_INTERNAL));
    let said = error();
    assert!(said.contains("load: ") && said.contains("asked to panic"), "{said}");
    assert_eq!(LOGGED.take(), [said]);

    let model = load(c"good").unwrap();
    let tokenizer = table::<abi::EngineTokenizer>();
    let mut count = 0;
    // SAFETY: as the header says.
    let code = unsafe {
        tokenizer.tokenize.unwrap()(
            model,
            c"A".as_ptr(),
            1,
            abi::ENGINE_TOKENIZE_PARSE_SPECIAL,
            ptr::null_mut(),
            0,
            &raw mut count,
        )
    };
    assert_eq!((code, count), (abi::ERR_INTERNAL, 0));
    // A context that panicked goes on.
    let context = context(model);
    assert_eq!(step(context, &[slice(0, 0, &[13], 1)]), Err(abi::ERR_INTERNAL));
    assert!(error().contains("step: "));
    assert_eq!(step(context, &[slice(0, 0, &[1], 1)]), Ok(1));
}

unsafe extern "C" fn progress(user: *mut c_void, fraction: f32) -> i32 {
    // SAFETY: the test passes a number.
    unsafe { *user.cast::<f32>() = fraction };
    1
}

#[test]
fn loading_asks_for_leave_and_leaves_nothing_behind() {
    let _running = running();
    let mut seen = 0.0_f32;
    let params = abi::EngineModelParams {
        path: c"good".as_ptr(),
        progress: Some(progress),
        user: (&raw mut seen).cast(),
        ..zeroed()
    };
    let models = table::<abi::EngineModels>();
    let mut model = ptr::dangling_mut();
    // SAFETY: as the header says.
    let code = unsafe { models.load.unwrap()(&raw const params, &raw mut model) };
    assert_eq!((code, seen, model), (abi::ERR_CANCELLED, 0.5, ptr::dangling_mut()));
    assert_eq!(ALIVE.load(Ordering::Relaxed), 1);
    // SAFETY: as the header says.
    unsafe {
        assert_eq!(models.load.unwrap()(ptr::null(), &raw mut model), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(models.load.unwrap()(&raw const params, ptr::null_mut()), abi::ERR_INVALID_ARGUMENT);
        models.unload.unwrap()(ptr::null_mut());
    }
}

#[test]
fn what_the_host_forgets_goes_with_the_engine() {
    let running = running();
    let first = load(c"first").unwrap();
    let second = load(c"second").unwrap();
    let context = context(second);
    assert_eq!(ALIVE.load(Ordering::Relaxed), 4);
    // SAFETY: as the header says.
    unsafe { table::<abi::EngineModels>().unload.unwrap()(first) };
    assert_eq!(ALIVE.load(Ordering::Relaxed), 3);
    // SAFETY: giving back twice is the host's mistake, and harmless.
    unsafe { table::<abi::EngineModels>().unload.unwrap()(first) };
    drop(running);
    assert_eq!(ALIVE.load(Ordering::Relaxed), 0);
    // SAFETY: as above.
    unsafe { table::<abi::EngineBatching>().destroy.unwrap()(context) };
}

#[test]
fn structs_of_older_and_newer_hosts_are_filled_as_far_as_they_reach() {
    let _running = running();
    let model = load(c"arch").unwrap();
    let info_of = table::<abi::EngineModels>().info.unwrap();
    let mut info: abi::EngineModelInfo = zeroed();
    // SAFETY: as the header says.
    unsafe {
        assert_eq!(info_of(model, &raw mut info), abi::ERR_OK);
        assert_eq!(info.struct_size, size_of::<abi::EngineModelInfo>() as u32);
        assert_eq!(CStr::from_ptr(info.architecture), c"arch");
        assert!(info.quantization.is_null());
        assert_eq!(info.flags, abi::ENGINE_MODEL_GENERATES | abi::ENGINE_MODEL_EMBEDS);

        // An older host, whose struct ends before n_vocab.
        let mut old = [0xEE_u8; size_of::<abi::EngineModelInfo>()];
        let end = std::mem::offset_of!(abi::EngineModelInfo, n_vocab);
        old[..4].copy_from_slice(&(end as u32).to_ne_bytes());
        let mut aligned = info;
        ptr::copy_nonoverlapping(old.as_ptr(), (&raw mut aligned).cast(), old.len());
        assert_eq!(info_of(model, &raw mut aligned), abi::ERR_OK);
        ptr::copy_nonoverlapping((&raw const aligned).cast(), old.as_mut_ptr(), old.len());
        assert!(old[end..].iter().all(|byte| *byte == 0xEE));
        assert_eq!((aligned.struct_size as usize, aligned.n_parameters), (end, 0));

        // A newer one, whose struct goes on.
        let mut new = [0xEE_u8; size_of::<abi::EngineModelInfo>() + 16].map(u64::from);
        let size = size_of::<abi::EngineModelInfo>() as u32 + 16;
        new.as_mut_ptr().cast::<u32>().write(size);
        assert_eq!(info_of(model, new.as_mut_ptr().cast()), abi::ERR_OK);
        assert_eq!(new[size_of::<abi::EngineModelInfo>() / 8], 0xEE);

        info.struct_size = 0;
        assert_eq!(info_of(model, &raw mut info), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(info_of(model, ptr::null_mut()), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(info_of(ptr::null(), &raw mut info), abi::ERR_INVALID_ARGUMENT);
    }
}

#[test]
fn texts_stay_where_they_are() {
    let _running = running();
    let model = load(c"good").unwrap();
    let tokenizer = table::<abi::EngineTokenizer>();
    let mut first = abi::EngineStr { data: ptr::null(), len: 0 };
    let (mut again, mut tools) = (first, first);
    // SAFETY: as the header says.
    unsafe {
        let template = tokenizer.chat_template.unwrap();
        assert_eq!(template(model, ptr::null(), &raw mut first), abi::ERR_OK);
        assert_eq!(template(model, c"tools".as_ptr(), &raw mut tools), abi::ERR_OK);
        for index in 0..100 {
            let name = CString::new(format!("name {index}")).unwrap();
            assert_eq!(template(model, name.as_ptr(), &raw mut again), abi::ERR_NOT_FOUND);
        }
        assert!(error().contains("name 99"));
        assert_eq!(template(model, ptr::null(), &raw mut again), abi::ERR_OK);
        assert_eq!(first.data, again.data);
        let text = std::slice::from_raw_parts(tools.data.cast::<u8>(), tools.len);
        assert_eq!(text, b"with tools");

        let mut vocab: abi::EngineVocab = zeroed();
        let mut second = vocab;
        assert_eq!(tokenizer.vocab.unwrap()(model, &raw mut vocab), abi::ERR_OK);
        assert_eq!(tokenizer.vocab.unwrap()(model, &raw mut second), abi::ERR_OK);
        assert_eq!((vocab.n_tokens as usize, vocab.bytes), (N_VOCAB, second.bytes));
        assert_eq!((vocab.bos, vocab.eos, vocab.adds_bos), (0, abi::ENGINE_TOKEN_NONE, 1));
        assert_eq!(std::slice::from_raw_parts(vocab.offsets, N_VOCAB + 1)[N_VOCAB] as usize, N_VOCAB);
        let broken = load(c"broken").unwrap();
        assert_eq!(tokenizer.vocab.unwrap()(broken, &raw mut vocab), abi::ERR_INTERNAL);
    }
}

#[test]
fn buffers_are_filled_to_their_end_and_no_further() {
    let _running = running();
    let model = load(c"good").unwrap();
    let tokenizer = table::<abi::EngineTokenizer>();
    for capacity in [0, 1, 3, 4, 9] {
        let mut tokens = [-7; 10];
        let mut count = 0;
        // SAFETY: as the header says.
        let code = unsafe {
            tokenizer.tokenize.unwrap()(
                model,
                c"BCD".as_ptr(),
                3,
                abi::ENGINE_TOKENIZE_ADD_SPECIAL,
                if capacity == 0 { ptr::null_mut() } else { tokens.as_mut_ptr() },
                capacity,
                &raw mut count,
            )
        };
        let fits = capacity >= 4;
        assert_eq!(code, if fits { abi::ERR_OK } else { abi::ERR_BUFFER_TOO_SMALL });
        assert_eq!(count, 4);
        let written = capacity.min(4);
        assert_eq!(tokens[..written], [0, 1, 2, 3][..written]);
        assert!(tokens[written..].iter().all(|token| *token == -7));
    }
    let mut text = [0_u8; 8];
    let mut count = 0;
    // SAFETY: as the header says.
    unsafe {
        let detokenize = tokenizer.detokenize.unwrap();
        let tokens = [1, 2, 3];
        let code = detokenize(model, tokens.as_ptr(), 3, text.as_mut_ptr().cast(), 8, &raw mut count);
        assert_eq!((code, &text[..count]), (abi::ERR_OK, &b"BCD"[..]));
        let code = detokenize(model, [99].as_ptr(), 1, text.as_mut_ptr().cast(), 8, &raw mut count);
        assert_eq!(code, abi::ERR_INVALID_ARGUMENT);
        let code = detokenize(model, ptr::null(), 3, text.as_mut_ptr().cast(), 8, &raw mut count);
        assert_eq!(code, abi::ERR_INVALID_ARGUMENT);
    }
}

#[test]
fn steps_and_rows_go_through() {
    let _running = running();
    let model = load(c"good").unwrap();
    let context = context(model);
    let batching = table::<abi::EngineBatching>();
    let mut info: abi::EngineContextInfo = zeroed();
    // SAFETY: as the header says.
    assert!(unsafe { batching.info.unwrap()(context, &raw mut info) }.is_ok());
    assert_eq!((info.max_in_flight, info.cache_page, info.n_decode_sizes), (1, 1, 3));

    let ticket = step(context, &[slice(2, 0, &[1, 2, 3], 2), slice(0, 0, &[4], 1)]).unwrap();
    let rows = collect(context, ticket, 3).unwrap();
    assert_eq!((rows[0][5], rows[1][5], rows[2][5], rows[0][0]), (3.0, 3.0, 1.0, 1.0));
    assert_eq!(collect(context, ticket, 2), Err(abi::ERR_INVALID_ARGUMENT));
    assert_eq!(collect(context, ticket, 4), Err(abi::ERR_INVALID_ARGUMENT));
    assert_eq!(collect(context, ticket + 1, 3), Err(abi::ERR_INVALID_ARGUMENT));
    assert_eq!(collect(context, 0, 3), Err(abi::ERR_INVALID_ARGUMENT));

    // What no engine should have to check.
    let adapter = abi::EngineSlice { adapter: ptr::dangling_mut(), ..slice(1, 0, &[1], 1) };
    let null = abi::EngineSlice { tokens: ptr::null(), ..slice(1, 0, &[1], 1) };
    for wrong in [slice(4, 0, &[1], 1), slice(1, 0, &[1], 2), slice(1, 0, &[], 0), adapter, null] {
        assert_eq!(step(context, &[wrong]), Err(abi::ERR_INVALID_ARGUMENT));
    }
    assert_eq!(step(context, &[]), Err(abi::ERR_INVALID_ARGUMENT));
    // A failed step has no ticket.
    assert_eq!(step(context, &[slice(1, 0, &[1], 1)]), Ok(2));

    // SAFETY: as the header says.
    unsafe {
        let (mut begin, mut end) = (9, 9);
        assert_eq!(batching.seq_copy.unwrap()(context, 2, 3, 2), abi::ERR_OK);
        assert_eq!(batching.seq_range.unwrap()(context, 3, &raw mut begin, &raw mut end), abi::ERR_OK);
        assert_eq!((begin, end), (0, 2));
        assert_eq!(batching.seq_copy.unwrap()(context, 2, 2, 2), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(batching.seq_remove.unwrap()(context, 4, 0), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(batching.seq_remove.unwrap()(context, 3, 1), abi::ERR_OK);
        assert_eq!(batching.cache_free.unwrap()(context), 1000 - 6);
        batching.cancel.unwrap()(context);
        assert_eq!(step(context, &[slice(1, 1, &[1], 1)]), Err(abi::ERR_CANCELLED));
    }
}

#[test]
fn a_sequence_is_saved_and_restored() {
    let _running = running();
    let model = load(c"good").unwrap();
    let context = context(model);
    let batching = table::<abi::EngineBatching>();
    let (save, restore) = (batching.seq_save.unwrap(), batching.seq_restore.unwrap());
    let mut data = [9_u8; 8];
    let mut size = 77;
    let pointer = data.as_mut_ptr().cast::<c_void>();
    step(context, &[slice(0, 0, &[1, 2, 3], 0), slice(1, 0, &[1; 12], 0), slice(2, 0, &[1; 13], 0)]).unwrap();
    // SAFETY: as the header says.
    unsafe {
        assert_eq!(save(context, 0, ptr::null_mut(), 0, &raw mut size), abi::ERR_BUFFER_TOO_SMALL);
        assert_eq!(size, 6);
        size = 77;
        assert_eq!(save(context, 0, pointer, 5, &raw mut size), abi::ERR_BUFFER_TOO_SMALL);
        assert_eq!((size, data), (6, [9; 8]));
        assert_eq!(save(context, 0, pointer, 8, &raw mut size), abi::ERR_OK);
        assert_eq!((size, data), (4, [3, 0, 0, 0, 9, 9, 9, 9]));

        size = 77;
        for sequence in [3, 4] {
            assert_eq!(save(context, sequence, pointer, 8, &raw mut size), abi::ERR_INVALID_ARGUMENT);
        }
        assert_eq!(save(context, 0, ptr::null_mut(), 8, &raw mut size), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(save(context, 0, pointer, 8, ptr::null_mut()), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(save(context, 1, pointer, 8, &raw mut size), abi::ERR_INTERNAL);
        assert_eq!(save(context, 2, pointer, 8, &raw mut size), abi::ERR_INTERNAL);
        assert_eq!(size, 77, "untouched on failure");

        let state = [5_u8, 0, 0, 0];
        let pointer = state.as_ptr().cast::<c_void>();
        assert_eq!(restore(context, 0, pointer, 4), abi::ERR_INVALID_ARGUMENT);
        assert!(error().contains("not empty"));
        assert_eq!(restore(context, 4, pointer, 4), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(restore(context, 3, ptr::null(), 4), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(restore(context, 3, ptr::null(), 0), abi::ERR_INVALID_ARGUMENT);
        assert_eq!(restore(context, 3, pointer, 4), abi::ERR_OK);
        let (mut begin, mut end) = (9, 9);
        assert_eq!(batching.seq_range.unwrap()(context, 3, &raw mut begin, &raw mut end), abi::ERR_OK);
        assert_eq!((begin, end), (0, 5));
    }
}

#[test]
fn slices_and_rows_may_be_of_another_size() {
    // Of a host that knows no member behind `ids`.
    const SHORT: usize = size_of::<abi::EngineRow>() - 8;
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Wide(abi::EngineSlice, [u64; 2]);
    let _running = running();
    let model = load(c"good").unwrap();
    let context = context(model);
    let batching = table::<abi::EngineBatching>();
    let slices = [Wide(slice(0, 0, &[1, 2], 1), [9; 2]), Wide(slice(1, 0, &[1], 1), [9; 2])];
    let batch = abi::EngineBatch {
        n_slices: 2,
        slice_stride: size_of::<Wide>(),
        slices: slices.as_ptr().cast(),
        ..zeroed()
    };
    let mut ticket = 0;
    // SAFETY: as the header says.
    unsafe {
        assert!(batching.step.unwrap()(context, &raw const batch, &raw mut ticket).is_ok());
        let mut rows = [0xEE_EE_EE_EE_EE_EE_EE_EE_u64; SHORT / 8 * 2 + 1];
        let code =
            batching.collect.unwrap()(context, ticket, ptr::null(), rows.as_mut_ptr().cast(), 2, SHORT);
        assert_eq!(code, abi::ERR_OK);
        assert_eq!(rows[SHORT / 8 * 2], 0xEE_EE_EE_EE_EE_EE_EE_EE);
        let second = rows.as_ptr().add(SHORT / 8).cast::<u32>();
        assert_eq!((second.read(), second.add(2).read()), (abi::ENGINE_STAGE_LOGITS, N_VOCAB as u32));
    }
}

#[test]
fn picks_are_read_as_far_as_they_are_used() {
    let _running = running();
    let model = load(c"good").unwrap();
    let context = context(model);
    let bias = abi::EngineBias { token: 1, bias: 2.0 };
    let mask = [5_u32, 6];
    let masks = [mask.as_ptr()];
    let uniform = 0.25_f32;
    let pick = abi::EnginePick {
        stage: abi::ENGINE_STAGE_TOKEN,
        uses: abi::ENGINE_PICK_BIAS | abi::ENGINE_PICK_MASK | abi::ENGINE_PICK_TEMPERATURE,
        n_bias: 1,
        bias: &raw const bias,
        masks: masks.as_ptr(),
        uniforms: &raw const uniform,
        // Not used, so not read.
        history: ptr::dangling(),
        n_history: 1 << 40,
        ..zeroed()
    };
    let with_pick = abi::EngineSlice { pick: &raw const pick, ..slice(0, 0, &[1], 1) };
    let ticket = step(context, &[with_pick]).unwrap();
    assert_eq!(collect(context, ticket, 1).unwrap()[0][1..3], [6.0, 0.25]);
}

#[test]
fn rows_can_be_cut_down_to_candidates() {
    let _running = running();
    let model = load(c"good").unwrap();
    let context = context(model);
    let pick = abi::EnginePick { stage: abi::ENGINE_STAGE_TOP, n_candidates: 2, ..zeroed() };
    let wants = abi::EngineSlice { pick: &raw const pick, ..slice(0, 0, &[1], 1) };
    let ticket = step(context, &[wants, slice(1, 0, &[1, 2], 1)]).unwrap();
    // SAFETY: all zero is a valid row.
    let mut rows: [abi::EngineRow; 2] = unsafe { std::mem::zeroed() };
    // SAFETY: as the header says.
    unsafe {
        let collect = table::<abi::EngineBatching>().collect.unwrap();
        let stride = size_of::<abi::EngineRow>();
        let code = collect(context, ticket, ptr::null(), rows.as_mut_ptr(), 2, stride);
        assert_eq!(code, abi::ERR_OK);
        let [cut, whole] = &rows;
        assert_eq!((cut.stage, cut.n, cut.log_sum), (abi::ENGINE_STAGE_TOP, 2, 9.5));
        assert_eq!(std::slice::from_raw_parts(cut.ids, 2), [0, 1]);
        assert_eq!(std::slice::from_raw_parts(cut.logits.cast::<f32>(), 2), [ticket as f32, 1.0]);
        assert_eq!((whole.stage, whole.n), (abi::ENGINE_STAGE_LOGITS, N_VOCAB as u32));
        assert!(whole.ids.is_null() && whole.log_sum.is_nan());
    }
}

#[test]
fn memory_and_embeddings_go_through() {
    let _running = running();
    let model = load(c"good").unwrap();
    let memory = table::<abi::EngineMemory>();
    // SAFETY: as the header says.
    unsafe {
        assert_eq!(memory.device_count.unwrap()(), 1);
        let mut device: abi::EngineDevice = zeroed();
        assert_eq!(memory.device_get.unwrap()(0, &raw mut device), abi::ERR_OK);
        assert_eq!(CStr::from_ptr(device.bus_id), c"0000:01:00.0");
        assert_eq!((device.kind, device.free_bytes, device.total_bytes), (abi::ENGINE_DEVICE_GPU, 10, 20));
        assert_eq!(memory.device_get.unwrap()(1, &raw mut device), abi::ERR_NOT_FOUND);

        let mut uses = [abi::EngineMemoryUse::default(); 2];
        let mut count = 0;
        assert_eq!(memory.usage.unwrap()(model, uses.as_mut_ptr(), 1, &raw mut count), abi::ERR_OK);
        assert_eq!((count, uses[0].device, uses[0].weights), (2, abi::ENGINE_DEVICE_HOST, 7));
        assert_eq!(uses[1].cache, 0);

        let embed = table::<abi::EngineEmbedding>().embed.unwrap();
        let inputs: [&[i32]; 2] = [&[5, 6, 7], &[8]];
        let pointers = inputs.map(<[i32]>::as_ptr);
        let lengths = inputs.map(<[i32]>::len);
        let params = abi::EngineEmbedParams {
            pooling: abi::ENGINE_POOL_MEAN,
            inputs: pointers.as_ptr(),
            lengths: lengths.as_ptr(),
            n_inputs: 2,
            ..zeroed()
        };
        let mut vectors = [f32::NAN; 5];
        assert_eq!(embed(model, &raw const params, vectors.as_mut_ptr(), 3), abi::ERR_BUFFER_TOO_SMALL);
        assert_eq!(embed(model, &raw const params, vectors.as_mut_ptr(), 5), abi::ERR_OK);
        assert_eq!(vectors[..4], [3.0, 5.0, 1.0, 8.0]);
        assert!(vectors[4].is_nan());
        let unknown = abi::EngineEmbedParams { pooling: 99, ..params };
        assert_eq!(embed(model, &raw const unknown, vectors.as_mut_ptr(), 5), abi::ERR_UNSUPPORTED);
        let empty = [3, 0];
        let hollow = abi::EngineEmbedParams { lengths: empty.as_ptr(), ..params };
        assert_eq!(embed(model, &raw const hollow, vectors.as_mut_ptr(), 5), abi::ERR_INVALID_ARGUMENT);
    }
}
