//! The other functions as no node calls them.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::{offset_of, size_of};
use std::ptr;

use llm_node_abi::{
    EngineConfig, EngineDevice, EngineEmbedParams, EngineInfo, EngineMemoryUse, EngineModelInfo,
    EngineModelParams, EnginePick, EngineRequest, EngineStr, EngineToken, EngineVocab, Growing, TokenResult,
};
use llm_node_host::raw::{Extensions, HostServices, Symbols, checked, value, values};
use llm_node_host::{EngineError, InitConfig, LoadedEngine, Model};

use super::process::Pages;
use super::{CANARY, MARGIN};
use crate::check::{Stop, ensure};

/// A struct of `T` that says it is `size` bytes long, at the end of readable memory, with canaries behind it
/// where it is shorter than the memory.
struct Sized<T> {
    bytes: Vec<u64>,
    size: usize,
    marker: std::marker::PhantomData<T>,
}

impl<T: Growing> Sized<T> {
    /// Zeros up to `size`, canaries from there on, and `size` in the first member.
    fn new(size: usize) -> Self {
        let mut bytes = vec![0_u64; size.max(size_of::<T>()).div_ceil(8) + MARGIN];
        // SAFETY: all of it, seen as bytes.
        let all = unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast::<u8>(), bytes.len() * 8) };
        all[size..].fill(CANARY);
        all[..4].copy_from_slice(&(size as u32).to_ne_bytes());
        Self { bytes, size, marker: std::marker::PhantomData }
    }

    fn as_mut_ptr(&mut self) -> *mut T {
        self.bytes.as_mut_ptr().cast()
    }

    /// Was anything written behind its end?
    fn overrun(&self) -> bool {
        // SAFETY: all of it, seen as bytes.
        let all =
            unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast::<u8>(), self.bytes.len() * 8) };
        all[self.size..].iter().any(|byte| *byte != CANARY)
    }
}

/// How an `EngineConfig` ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ConfigEnd {
    /// As this version of the header has it.
    Known,
    /// A newer host's: longer, with what this version knows nothing of.
    Longer,
    /// An older host's, that ended with this many bytes.
    After(usize),
}

/// Sizes of an older host's `EngineConfig`: each ends on a member.
pub(crate) const SHORTER_CONFIGS: [usize; 4] = [
    offset_of!(EngineConfig, engine_dir),
    offset_of!(EngineConfig, vram_limit_bytes),
    offset_of!(EngineConfig, context_length),
    offset_of!(EngineConfig, options),
];

/// `engine_init` with a config that ends in some way, at the end of readable memory; then `engine_shutdown`.
/// Says whether anything behind its end was written.
pub(crate) fn init_with(symbols: &Symbols, config: &InitConfig, end: ConfigEnd) -> Result<bool, EngineError> {
    let known = size_of::<EngineConfig>();
    let (size, filled) = match end {
        ConfigEnd::Known => (known, known),
        ConfigEnd::Longer => (known + 64, known),
        ConfigEnd::After(size) => (size, size),
    };
    let text = |text: &str| CString::new(text).unwrap_or_default();
    let (dir, backend) = (text(&config.engine_dir.to_string_lossy()), text(&config.gpu_backend));
    let whole = EngineConfig {
        struct_size: size as u32,
        n_threads: config.n_threads,
        host: HostServices::new("check").table(),
        engine_dir: dir.as_ptr(),
        gpu_backend: backend.as_ptr(),
        vram_limit_bytes: 0,
        ram_limit_bytes: 0,
        context_length: 0,
        max_tokens: config.max_tokens,
        options: ptr::null(),
        n_options: 0,
    };
    let mut memory = vec![u64::from_ne_bytes([CANARY; 8]); size.div_ceil(8) + MARGIN];
    let base = memory.as_mut_ptr().cast::<u8>();
    // SAFETY: `memory` is longer than `filled`, and a config is at least as long.
    unsafe { ptr::copy_nonoverlapping((&raw const whole).cast::<u8>(), base, filled) };
    // SAFETY: nothing else runs on this engine. The config and what it points to outlive the call.
    checked("engine_init", || unsafe { (symbols.init)(base.cast()) })?;
    // SAFETY: all of it, seen as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(base.cast_const(), memory.len() * 8) };
    let overrun = bytes[filled..].iter().any(|byte| *byte != CANARY);
    // SAFETY: it is initialised, and nothing runs on it.
    unsafe { (symbols.shutdown)() };
    Ok(overrun)
}

/// `engine_get_info`, as numbers: what it points to.
pub(crate) fn info(symbols: &Symbols) -> (usize, u32) {
    // SAFETY: may be called at any time.
    let info: *mut EngineInfo = unsafe { (symbols.get_info)() };
    // SAFETY: the host has read it before, and it lives as long as the process.
    (info.addr(), unsafe { value(info.cast::<u32>()) }.unwrap_or_default())
}

/// What `engine_get_extension` answers, as a number; `None`: it is not exported.
pub(crate) fn extension(symbols: &Symbols, id: &CStr) -> Option<usize> {
    // SAFETY: may be asked at any time, by any thread; the id outlives the call.
    symbols.get_extension.map(|function| unsafe { function(id.as_ptr()) }.addr())
}

/// The functions of all tables that are offered, by name.
pub(crate) fn functions(tables: &Extensions) -> Vec<(&'static str, usize)> {
    let mut found = Vec::new();
    macro_rules! of {
        ($table:ident: $($function:ident),+) => {
            if let Some(table) = &tables.$table {
                $(if let Some(function) = table.$function {
                    found.push((concat!(stringify!($table), ".", stringify!($function)), function as usize));
                })+
            }
        };
    }
    of!(models: load, unload, info, meta_count, meta_get);
    of!(memory: device_count, device_get, estimate, usage);
    of!(tokenizer: vocab, tokenize, detokenize, chat_template);
    of!(batch: create, destroy, info, step, collect, fetch, cancel, seq_copy, seq_remove, seq_range, cache_free,
        seq_save, seq_restore);
    of!(stream: generate);
    of!(embed: embed);
    found
}

/// `models.load` of a path: the handle that was put into `*model`, or that it was left as it was.
pub(crate) fn load(engine: &LoadedEngine, path: &CStr) -> (Result<(), EngineError>, bool) {
    let untouched = ptr::without_provenance_mut(0x5a5a);
    let mut model = untouched;
    let Some(load) = engine.tables().models.and_then(|table| table.load) else { return (Ok(()), false) };
    let params = EngineModelParams {
        struct_size: EngineModelParams::SIZE,
        gpu_layers: -1,
        path: path.as_ptr(),
        devices: ptr::null(),
        n_devices: 0,
        options: ptr::null(),
        n_options: 0,
        progress: None,
        user: ptr::null_mut(),
    };
    // SAFETY: [load]: this process makes no other call. The parameters outlive it.
    let result = checked("models.load", || unsafe { load(&raw const params, &raw mut model) });
    let touched = model != untouched;
    let unload = engine.tables().models.and_then(|table| table.unload);
    if let Some(unload) = unload.filter(|_| result.is_ok() && touched && !model.is_null()) {
        // SAFETY: [load]: the handle is of this engine, and nothing uses it.
        unsafe { unload(model) };
    }
    (result, touched)
}

/// Calls a function with structs of several sizes, and says at which size it wrote behind the end.
fn overrun_at<T: Growing>(
    sizes: &[usize],
    call: &'static str,
    mut function: impl FnMut(*mut T) -> llm_node_abi::Code,
) -> Result<Option<usize>, EngineError> {
    for &size in sizes {
        let mut room = Sized::<T>::new(size);
        checked(call, || function(room.as_mut_ptr()))?;
        if room.overrun() {
            return Ok(Some(size));
        }
    }
    Ok(None)
}

/// At which size of the struct `models.info` writes behind its end, if at one.
pub(crate) fn model_info_overrun(model: &Model) -> Result<Option<usize>, EngineError> {
    let Some(info) = model.engine().tables().models.and_then(|table| table.info) else { return Ok(None) };
    let sizes = [
        offset_of!(EngineModelInfo, n_parameters),
        offset_of!(EngineModelInfo, n_embedding),
        size_of::<EngineModelInfo>() + 32,
    ];
    // SAFETY: [any]; there is room for more than the struct says it has.
    overrun_at::<EngineModelInfo>(&sizes, "models.info", |room| unsafe { info(model.as_ptr(), room) })
}

/// As [`model_info_overrun`], for `tokenizer.vocab`.
pub(crate) fn vocab_overrun(model: &Model) -> Result<Option<usize>, EngineError> {
    let Some(vocab) = model.engine().tables().tokenizer.and_then(|table| table.vocab) else {
        return Ok(None);
    };
    let sizes = [offset_of!(EngineVocab, bos), size_of::<EngineVocab>() + 32];
    // SAFETY: [any]; there is room for more than the struct says it has.
    overrun_at::<EngineVocab>(&sizes, "tokenizer.vocab", |room| unsafe { vocab(model.as_ptr(), room) })
}

/// As [`model_info_overrun`], for `memory.device_get` of the first device.
pub(crate) fn device_overrun(engine: &LoadedEngine) -> Result<Option<usize>, EngineError> {
    let Some(get) = engine.tables().memory.and_then(|table| table.device_get) else { return Ok(None) };
    let sizes = [offset_of!(EngineDevice, total_bytes), size_of::<EngineDevice>() + 32];
    // SAFETY: [any]; there is room for more than the struct says it has.
    overrun_at::<EngineDevice>(&sizes, "memory.device_get", |room| unsafe { get(0, room) })
}

/// `memory.device_get` of any number.
pub(crate) fn device_exists(engine: &LoadedEngine, index: u32) -> bool {
    let Some(get) = engine.tables().memory.and_then(|table| table.device_get) else { return false };
    let mut room = Sized::<EngineDevice>::new(size_of::<EngineDevice>());
    // SAFETY: [any]; there is room.
    checked("memory.device_get", || unsafe { get(index, room.as_mut_ptr()) }).is_ok()
}

/// `models.meta_get` of any number.
pub(crate) fn metadata_exists(model: &Model, index: usize) -> bool {
    let Some(get) = model.engine().tables().models.and_then(|table| table.meta_get) else { return false };
    let (mut key, mut text) =
        (EngineStr { data: ptr::null(), len: 0 }, EngineStr { data: ptr::null(), len: 0 });
    // SAFETY: [any]; both are locals.
    checked("models.meta_get", || unsafe { get(model.as_ptr(), index, &raw mut key, &raw mut text) }).is_ok()
}

/// What a function that fills a buffer did with room for `capacity` elements.
#[derive(Debug)]
pub(crate) struct Filled<T> {
    pub(crate) result: Result<(), EngineError>,
    pub(crate) count: usize,
    pub(crate) elements: Vec<T>,
    pub(crate) overrun: bool,
}

fn filled<T: Copy + PartialEq>(
    call: &'static str,
    capacity: usize,
    canary: T,
    function: impl FnOnce(*mut T, *mut usize) -> llm_node_abi::Code,
) -> Filled<T> {
    let mut elements = vec![canary; capacity + MARGIN];
    let mut count = usize::MAX;
    let result = checked(call, || function(elements.as_mut_ptr(), &raw mut count));
    let overrun = elements[capacity..].iter().any(|element| *element != canary);
    elements.truncate(capacity);
    Filled { result, count, elements, overrun }
}

/// `tokenizer.tokenize` with room for `capacity` tokens.
pub(crate) fn tokenize(
    model: &Model,
    text: &[u8],
    flags: u32,
    capacity: usize,
) -> Option<Filled<EngineToken>> {
    let tokenize = model.engine().tables().tokenizer?.tokenize?;
    Some(filled("tokenizer.tokenize", capacity, -0x5a5a, |tokens, count| {
        // SAFETY: [any]; there is room for more than `capacity` tokens, and the text outlives the call.
        unsafe { tokenize(model.as_ptr(), text.as_ptr().cast(), text.len(), flags, tokens, capacity, count) }
    }))
}

/// `tokenizer.detokenize` with room for `capacity` bytes.
pub(crate) fn detokenize(model: &Model, tokens: &[EngineToken], capacity: usize) -> Option<Filled<u8>> {
    let detokenize = model.engine().tables().tokenizer?.detokenize?;
    Some(filled("tokenizer.detokenize", capacity, CANARY, |text, count| {
        // SAFETY: [any]; there is room for more than `capacity` bytes, and the tokens outlive the call.
        unsafe {
            detokenize(model.as_ptr(), tokens.as_ptr(), tokens.len(), text.cast::<c_char>(), capacity, count)
        }
    }))
}

/// `memory.usage` with room for `capacity` elements.
pub(crate) fn usage(model: &Model, capacity: usize) -> Option<Filled<u8>> {
    let usage = model.engine().tables().memory?.usage?;
    let element = size_of::<EngineMemoryUse>();
    let mut room = vec![u64::from_ne_bytes([CANARY; 8]); capacity * element / 8 + MARGIN];
    let mut count = usize::MAX;
    // SAFETY: [any]; there is room for more than `capacity` elements.
    let result = checked("memory.usage", || unsafe {
        usage(model.as_ptr(), room.as_mut_ptr().cast(), capacity, &raw mut count)
    });
    let canary = u64::from_ne_bytes([CANARY; 8]);
    let overrun = room[capacity * element / 8..].iter().any(|word| *word != canary);
    Some(Filled { result, count, elements: Vec::new(), overrun })
}

/// `embed.embed` of these inputs with room for `capacity` numbers, which are NaN where nothing was written.
pub(crate) fn embed(model: &Model, inputs: &[Vec<EngineToken>], capacity: usize) -> Option<Filled<u32>> {
    let embed = model.engine().tables().embed?.embed?;
    let pointers: Vec<*const EngineToken> = inputs.iter().map(Vec::as_ptr).collect();
    let lengths: Vec<usize> = inputs.iter().map(Vec::len).collect();
    let params = EngineEmbedParams {
        struct_size: EngineEmbedParams::SIZE,
        pooling: 0,
        inputs: pointers.as_ptr(),
        lengths: lengths.as_ptr(),
        n_inputs: inputs.len(),
    };
    Some(filled("embed.embed", capacity, f32::NAN.to_bits() | 0x5a5a, |vectors, _| {
        // SAFETY: [step]: this process makes no other call. There is room for more than `capacity` numbers.
        unsafe { embed(model.as_ptr(), &raw const params, vectors.cast::<f32>(), capacity) }
    }))
}

/// What a stream did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streamed {
    pub(crate) tokens: Vec<EngineToken>,
    pub(crate) endings: usize,
    pub(crate) finish: u32,
    /// Calls after the ending element, or after it was cancelled.
    pub(crate) late: usize,
    /// On another thread than that of `generate`.
    pub(crate) elsewhere: usize,
}

struct Listener {
    heard: Streamed,
    cancel_after: usize,
    cancelled: bool,
    thread: std::thread::ThreadId,
}

unsafe extern "C" fn on_token(user: *mut c_void, token: *const TokenResult) -> i32 {
    // SAFETY: it is the listener of the call that is running, which calls this from one thread at a time.
    let listener = unsafe { &mut *user.cast::<Listener>() };
    // SAFETY: the token is valid during the call.
    let token = unsafe { &*token };
    let heard = &mut listener.heard;
    heard.elsewhere += usize::from(std::thread::current().id() != listener.thread);
    heard.late += usize::from(heard.endings > 0 || listener.cancelled);
    if token.text.is_null() {
        heard.endings += 1;
        heard.finish = token.finish;
        return 0;
    }
    heard.tokens.push(token.token_id);
    listener.cancelled = heard.tokens.len() >= listener.cancel_after;
    i32::from(listener.cancelled)
}

/// `stream.generate`, greedily or with `uses`; cancelled after so many tokens.
pub(crate) fn generate(
    model: &Model,
    prompt: &[EngineToken],
    max_tokens: u32,
    uses: u32,
    cancel_after: usize,
) -> Option<(Result<(), EngineError>, Streamed)> {
    let generate = model.engine().tables().stream?.generate?;
    let pick = EnginePick { stage: 2, uses, temperature: 1.0, ..EnginePick::GREEDY };
    let mut listener = Listener {
        heard: Streamed::default(),
        cancel_after,
        cancelled: false,
        thread: std::thread::current().id(),
    };
    let request = EngineRequest {
        struct_size: EngineRequest::SIZE,
        max_tokens,
        tokens: prompt.as_ptr(),
        n_tokens: prompt.len(),
        text: ptr::null(),
        text_len: 0,
        pick: if uses == 0 { ptr::null() } else { &raw const pick },
        seed: 1,
        stop: ptr::null(),
        n_stop: 0,
        adapter: ptr::null_mut(),
        adapter_scale: 0.0,
        priority: 0,
        fill_mask: None,
        on_token: Some(on_token),
        user: (&raw mut listener).cast(),
    };
    // SAFETY: [step]: this process makes no other call. The request and the listener outlive it.
    let result = checked("stream.generate", || unsafe { generate(model.as_ptr(), &raw const request) });
    Some((result, listener.heard))
}

/// `engine_generate` of bytes that end with a zero: where the results lie, or the code. The prompt is
/// overwritten after the call.
pub(crate) fn tier0_generate(engine: &mut LoadedEngine, prompt: &[u8]) -> Result<Results, EngineError> {
    Prompt::new(prompt).generate(engine)
}

/// A prompt of tier 0, in memory that can be taken away.
pub(crate) struct Prompt(Pages);

impl Prompt {
    pub(crate) fn new(text: &[u8]) -> Self {
        let mut pages = Pages::of(text.len() + 1);
        pages.bytes()[..text.len()].copy_from_slice(text);
        Self(pages)
    }

    /// Generates from it.
    pub(crate) fn generate(&self, engine: &mut LoadedEngine) -> Result<Results, EngineError> {
        let mut results: *mut TokenResult = ptr::null_mut();
        let generate = engine.symbols().generate;
        // SAFETY: [main]: `&mut LoadedEngine`. The prompt outlives the call.
        checked("engine_generate", || unsafe { generate(self.0.begin.cast(), &raw mut results) })?;
        Ok(Results(results))
    }

    /// Overwrites it. It can still be read, so that it shows who looks at it.
    pub(crate) fn overwrite(&mut self) {
        self.0.bytes().fill(CANARY);
    }
}

/// Results of tier 0, where the engine has them.
pub(crate) struct Results(*mut TokenResult);

impl Results {
    /// The bytes of all tokens, read now.
    pub(crate) fn read(&self) -> Result<Vec<Vec<u8>>, Stop> {
        let mut tokens = Vec::new();
        if self.0.is_null() {
            return Ok(tokens);
        }
        loop {
            // SAFETY: valid until the next call of tier 0; where the kernel is asked, it may be anything.
            let one = unsafe { value(self.0.wrapping_add(tokens.len()).cast_const()) }
                .map_err(|problem| Stop::seen(format!("The results: their address {problem}.")))?;
            if one.text.is_null() {
                return Ok(tokens);
            }
            ensure!(tokens.len() < 65_536, "The results have no ending element within 65536.");
            let text = EngineStr { data: one.text, len: one.text_len };
            // SAFETY: as above.
            let text = unsafe { llm_node_host::raw::bytes(text, 1 << 20) }.map_err(|problem| {
                Stop::seen(format!("The text of token {}: it {problem}.", tokens.len()))
            })?;
            tokens.push(text);
        }
    }
}

/// eos and eot as the vocabulary has them, and the attributes of all tokens: the host mends both.
pub(crate) fn ends(model: &Model) -> Option<([EngineToken; 2], Vec<u32>)> {
    let vocab = model.engine().tables().tokenizer?.vocab?;
    let mut room = Sized::<EngineVocab>::new(size_of::<EngineVocab>());
    let at = room.as_mut_ptr();
    // SAFETY: [any]; there is room.
    checked("tokenizer.vocab", || unsafe { vocab(model.as_ptr(), at) }).ok()?;
    // SAFETY: written by the engine, or zero: any bytes are a value.
    let vocab = unsafe { at.read() };
    // SAFETY: valid until the model is unloaded, the header says.
    let attributes = unsafe { values(vocab.attributes, model.info().n_vocab as usize) }.ok()?;
    Some(([vocab.eos, vocab.eot], attributes))
}
