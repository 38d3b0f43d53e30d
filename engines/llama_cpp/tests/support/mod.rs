//! The engine as a host sees it: its library opened, its tables called.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing call fails the test")]

pub(crate) mod gguf;

use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use llm_node_abi as abi;

/// What the engine said, for all tests together.
pub(crate) static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What the engine logged, for all tests together.
pub(crate) static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// `ENGINE_LOG=1` shows what the engine logs.
unsafe extern "C" fn log(_: *const abi::EngineHost, _: i32, message: *const c_char) {
    // SAFETY: the engine passes a terminated text.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    if std::env::var_os("ENGINE_LOG").is_some() {
        eprintln!("{message}");
    }
    LOG.lock().unwrap().push(message);
}

unsafe extern "C" fn set_error(_: *const abi::EngineHost, message: *const c_char) {
    // SAFETY: the engine passes a terminated text.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    ERRORS.lock().unwrap().push(message);
}

struct Host(abi::EngineHost);
// SAFETY: the pointers in it are constants.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

static HOST: Host = Host(abi::EngineHost {
    struct_size: size_of::<abi::EngineHost>() as u32,
    abi_version: abi::ENGINE_ABI_VERSION,
    name: c"test".as_ptr(),
    version: c"0".as_ptr(),
    private_data: ptr::null_mut(),
    log: Some(log),
    set_error: Some(set_error),
    get_extension: None,
});

/// The model of the tests, where the checkout has one.
pub(crate) fn stories() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("../shared/models/stories260K.gguf");
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there", path.display());
    None
}

/// The model that comes with the node.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/llm_node/demo/llm-node-demo.gguf")
}

/// The opened engine.
pub(crate) struct Engine {
    library: libloading::Library,
    pub(crate) models: abi::EngineModels,
    pub(crate) memory: abi::EngineMemory,
    pub(crate) tokenizer: abi::EngineTokenizer,
    pub(crate) batch: abi::EngineBatching,
    pub(crate) embed: abi::EngineEmbedding,
}

/// The library that cargo has just built, or, with `LLAMA_ENGINE_DIR`, an installed one.
fn library() -> PathBuf {
    let name = format!("{}llama_engine{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    if let Ok(directory) = std::env::var("LLAMA_ENGINE_DIR") {
        return Path::new(&directory).join(name);
    }
    let test = std::env::current_exe().unwrap();
    test.ancestors().map(|folder| folder.join(&name)).find(|path| path.is_file()).unwrap()
}

impl Engine {
    fn open() -> Self {
        // SAFETY: the library is the one under test; its functions are called as the header says.
        unsafe {
            let library = libloading::Library::new(library()).unwrap();
            let info = *library.get::<abi::EngineGetInfoFn>(b"engine_get_info\0").unwrap();
            let info = *info();
            assert_eq!(info.abi_version, abi::ENGINE_ABI_VERSION);
            assert_eq!(CStr::from_ptr(info.engine_id), c"llama_cpp");
            let engine = Self {
                models: table(&library),
                memory: table(&library),
                tokenizer: table(&library),
                batch: table(&library),
                embed: table(&library),
                library,
            };
            assert_eq!(engine.start(), abi::ERR_OK);
            engine
        }
    }

    pub(crate) fn start(&self) -> abi::Code {
        let directory = std::env::var("LLAMA_ENGINE_DIR");
        let directory = directory.unwrap_or_else(|_| env!("LLAMA_ENGINE_BACKENDS").to_owned());
        let directory = CString::new(directory).unwrap();
        let mut config = abi::EngineConfig {
            struct_size: size_of::<abi::EngineConfig>() as u32,
            // One: threads of a small model wait for each other, and longest on a busy machine.
            n_threads: 1,
            host: &raw const HOST.0,
            engine_dir: directory.as_ptr(),
            gpu_backend: c"cpu".as_ptr(),
            vram_limit_bytes: 0,
            ram_limit_bytes: 0,
            context_length: 0,
            max_tokens: 0,
            options: ptr::null(),
            n_options: 0,
        };
        // SAFETY: as the header says.
        unsafe {
            let init = *self.library.get::<abi::EngineInitFn>(b"engine_init\0").unwrap();
            init(&raw mut config)
        }
    }

    pub(crate) fn stop(&self) {
        // SAFETY: as the header says.
        unsafe { (*self.library.get::<abi::EngineShutdownFn>(b"engine_shutdown\0").unwrap())() };
    }

    pub(crate) fn try_load(&self, path: &Path) -> Result<Model<'_>, abi::Code> {
        self.try_load_with(path, &[])
    }

    /// The same with options.
    pub(crate) fn try_load_with(
        &self,
        path: &Path,
        options: &[abi::EngineOption],
    ) -> Result<Model<'_>, abi::Code> {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let params = abi::EngineModelParams {
            options: options.as_ptr(),
            n_options: options.len(),
            ..model_params(&path)
        };
        let mut model = ptr::null_mut();
        // SAFETY: as the header says.
        let code = unsafe { self.models.load.unwrap()(&raw const params, &raw mut model) };
        if code.is_ok() { Ok(Model { engine: self, raw: model }) } else { Err(code) }
    }

    /// Why a model at `path` that the engine cannot run is refused, before it is loaded.
    #[allow(dead_code, reason = "each test program uses its part")]
    pub(crate) fn refusal(&self, path: &Path) -> (abi::Code, String) {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let params = model_params(&path);
        // SAFETY: all zero is a valid value of the struct.
        let mut uses: [abi::EngineMemoryUse; 8] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: as the header says.
        let code = unsafe {
            self.memory.estimate.unwrap()(
                &raw const params,
                ptr::null(),
                uses.as_mut_ptr(),
                uses.len(),
                &raw mut count,
            )
        };
        (code, ERRORS.lock().unwrap().last().cloned().unwrap_or_default())
    }

    /// What the model at `path` would take, with a context of these parameters or without one.
    pub(crate) fn estimate(
        &self,
        path: &Path,
        context: Option<&abi::EngineContextParams>,
    ) -> Vec<abi::EngineMemoryUse> {
        let path = CString::new(path.to_str().unwrap()).unwrap();
        let params = model_params(&path);
        let context = context.map_or(ptr::null(), ptr::from_ref);
        memory_uses(|uses, capacity, count| {
            // SAFETY: as the header says.
            unsafe { self.memory.estimate.unwrap()(&raw const params, context, uses, capacity, count) }
        })
    }
}

fn memory_uses(
    ask: impl FnOnce(*mut abi::EngineMemoryUse, usize, *mut usize) -> abi::Code,
) -> Vec<abi::EngineMemoryUse> {
    // SAFETY: all zero is a valid value of the struct.
    let none: abi::EngineMemoryUse = unsafe { std::mem::zeroed() };
    let (mut uses, mut count) = (vec![none; 8], 0);
    assert_eq!(ask(uses.as_mut_ptr(), uses.len(), &raw mut count), abi::ERR_OK);
    uses.truncate(count);
    uses
}

pub(crate) fn model_params(path: &CStr) -> abi::EngineModelParams {
    abi::EngineModelParams {
        struct_size: size_of::<abi::EngineModelParams>() as u32,
        gpu_layers: -1,
        path: path.as_ptr(),
        devices: ptr::null(),
        n_devices: 0,
        options: ptr::null(),
        n_options: 0,
        progress: None,
        user: ptr::null_mut(),
    }
}

unsafe fn table<T: abi::Extension>(library: &libloading::Library) -> T {
    // SAFETY: the engine answers with a table of that type or NULL.
    unsafe {
        let get = *library.get::<abi::EngineGetExtensionFn>(b"engine_get_extension\0").unwrap();
        assert!(get(c"engine.unknown/1".as_ptr()).is_null());
        let found = get(T::ID.as_ptr());
        assert_eq!(found, get(T::ID.as_ptr()));
        *found.cast::<T>()
    }
}

/// The engine, one test at a time.
pub(crate) fn engine() -> (&'static Engine, MutexGuard<'static, ()>) {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    (ENGINE.get_or_init(Engine::open), turn)
}

// SAFETY: tables are plain functions.
unsafe impl Sync for Engine {}
// SAFETY: as above.
unsafe impl Send for Engine {}

pub(crate) struct Model<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) raw: *mut abi::EngineModel,
}

impl Drop for Model<'_> {
    fn drop(&mut self) {
        // SAFETY: as the header says.
        unsafe { self.engine.models.unload.unwrap()(self.raw) };
    }
}

impl Model<'_> {
    /// What it takes, with its contexts.
    pub(crate) fn usage(&self) -> Vec<abi::EngineMemoryUse> {
        memory_uses(|uses, capacity, count| {
            // SAFETY: as the header says.
            unsafe { self.engine.memory.usage.unwrap()(self.raw, uses, capacity, count) }
        })
    }

    pub(crate) fn info(&self) -> abi::EngineModelInfo {
        // SAFETY: all zero is a valid value of the struct.
        let mut info: abi::EngineModelInfo = unsafe { std::mem::zeroed() };
        info.struct_size = size_of::<abi::EngineModelInfo>() as u32;
        // SAFETY: as the header says.
        assert!(unsafe { self.engine.models.info.unwrap()(self.raw, &raw mut info) }.is_ok());
        info
    }

    pub(crate) fn vocab(&self) -> abi::EngineVocab {
        // SAFETY: all zero is a valid value of the struct.
        let mut vocab: abi::EngineVocab = unsafe { std::mem::zeroed() };
        vocab.struct_size = size_of::<abi::EngineVocab>() as u32;
        // SAFETY: as the header says.
        assert!(unsafe { self.engine.tokenizer.vocab.unwrap()(self.raw, &raw mut vocab) }.is_ok());
        vocab
    }

    pub(crate) fn tokenize(&self, text: &[u8], add_special: bool) -> Vec<i32> {
        self.try_tokenize(text, add_special).unwrap()
    }

    pub(crate) fn try_tokenize(&self, text: &[u8], add_special: bool) -> Result<Vec<i32>, abi::Code> {
        let flags = if add_special { abi::ENGINE_TOKENIZE_ADD_SPECIAL } else { 0 };
        let mut tokens = vec![-7; text.len() * 3 + 4];
        let mut count = 0;
        // SAFETY: as the header says.
        let code = unsafe {
            self.engine.tokenizer.tokenize.unwrap()(
                self.raw,
                text.as_ptr().cast(),
                text.len(),
                flags,
                tokens.as_mut_ptr(),
                tokens.len(),
                &raw mut count,
            )
        };
        tokens.truncate(count);
        if code.is_ok() { Ok(tokens) } else { Err(code) }
    }

    pub(crate) fn detokenize(&self, tokens: &[i32]) -> Vec<u8> {
        let mut text = vec![0_u8; tokens.len() * 64 + 16];
        let mut count = 0;
        // SAFETY: as the header says.
        let code = unsafe {
            self.engine.tokenizer.detokenize.unwrap()(
                self.raw,
                tokens.as_ptr(),
                tokens.len(),
                text.as_mut_ptr().cast(),
                text.len(),
                &raw mut count,
            )
        };
        assert_eq!(code, abi::ERR_OK);
        text.truncate(count);
        text
    }

    pub(crate) fn context(&self, params: Params) -> Context<'_> {
        self.try_context(params).unwrap()
    }

    pub(crate) fn try_context(&self, params: Params) -> Result<Context<'_>, abi::Code> {
        let texts: Vec<(CString, CString)> = params
            .options
            .iter()
            .map(|(key, value)| (CString::new(*key).unwrap(), CString::new(*value).unwrap()))
            .collect();
        let options: Vec<abi::EngineOption> = texts
            .iter()
            .map(|(key, value)| abi::EngineOption { key: key.as_ptr(), value: value.as_ptr() })
            .collect();
        let raw_params = params.raw(&options);
        let mut raw = ptr::null_mut();
        // SAFETY: as the header says.
        let code =
            unsafe { self.engine.batch.create.unwrap()(self.raw, &raw const raw_params, &raw mut raw) };
        if !code.is_ok() {
            return Err(code);
        }
        Ok(Context { model: self, raw, n_vocab: self.info().n_vocab as usize })
    }
}

/// What a context is asked to be.
#[derive(Clone, Copy, Default)]
pub(crate) struct Params {
    pub(crate) sequences: u32,
    pub(crate) length: u32,
    pub(crate) cache: u64,
    pub(crate) rows: u32,
    pub(crate) batch: u32,
    pub(crate) options: &'static [(&'static str, &'static str)],
}

impl Params {
    pub(crate) fn raw(&self, options: &[abi::EngineOption]) -> abi::EngineContextParams {
        abi::EngineContextParams {
            struct_size: size_of::<abi::EngineContextParams>() as u32,
            max_sequences: self.sequences,
            context_length: self.length,
            max_batch_tokens: self.batch,
            max_rows: self.rows,
            rollback: 0,
            cache_tokens: self.cache,
            options: options.as_ptr(),
            n_options: options.len(),
        }
    }
}

pub(crate) struct Context<'a> {
    pub(crate) model: &'a Model<'a>,
    pub(crate) raw: *mut abi::EngineContext,
    n_vocab: usize,
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        // SAFETY: as the header says.
        unsafe { self.model.engine.batch.destroy.unwrap()(self.raw) };
    }
}

impl Context<'_> {
    pub(crate) fn table(&self) -> &abi::EngineBatching {
        &self.model.engine.batch
    }

    pub(crate) fn info(&self) -> abi::EngineContextInfo {
        // SAFETY: all zero is a valid value of the struct.
        let mut info: abi::EngineContextInfo = unsafe { std::mem::zeroed() };
        info.struct_size = size_of::<abi::EngineContextInfo>() as u32;
        // SAFETY: as the header says.
        assert!(unsafe { self.table().info.unwrap()(self.raw, &raw mut info) }.is_ok());
        info
    }

    /// Slices as (sequence, position, tokens, rows).
    pub(crate) fn submit(&self, slices: &[(u32, u32, &[i32], u32)]) -> Result<u64, abi::Code> {
        let slices: Vec<abi::EngineSlice> = slices
            .iter()
            .map(|(sequence, position, tokens, rows)| abi::EngineSlice {
                sequence: *sequence,
                position: *position,
                n_tokens: tokens.len() as u32,
                n_rows: *rows,
                tokens: tokens.as_ptr(),
                pick: ptr::null(),
                adapter: ptr::null_mut(),
                adapter_scale: 0.0,
                reserved: 0,
            })
            .collect();
        let batch = abi::EngineBatch {
            struct_size: size_of::<abi::EngineBatch>() as u32,
            n_slices: slices.len() as u32,
            slice_stride: size_of::<abi::EngineSlice>(),
            slices: slices.as_ptr(),
        };
        let mut ticket = 0;
        // SAFETY: as the header says.
        let code = unsafe { self.table().step.unwrap()(self.raw, &raw const batch, &raw mut ticket) };
        if code.is_ok() { Ok(ticket) } else { Err(code) }
    }

    pub(crate) fn collect(&self, ticket: u64, n_rows: usize) -> Result<Vec<Vec<f32>>, abi::Code> {
        let rows = self.describe(ticket, n_rows)?;
        Ok(rows
            .iter()
            .map(|row| {
                assert_eq!((row.stage, row.dtype, row.n as usize), (0, abi::ENGINE_F32, self.n_vocab));
                // SAFETY: the row is that long.
                unsafe { std::slice::from_raw_parts(row.logits.cast::<f32>(), self.n_vocab) }.to_vec()
            })
            .collect())
    }

    /// As [`Self::collect`], without a copy of the rows.
    pub(crate) fn wait(&self, ticket: u64, n_rows: usize) {
        assert!(self.describe(ticket, n_rows).is_ok());
    }

    fn describe(&self, ticket: u64, n_rows: usize) -> Result<Vec<abi::EngineRow>, abi::Code> {
        // SAFETY: all zero is a valid value of the struct.
        let mut rows: Vec<abi::EngineRow> = vec![unsafe { std::mem::zeroed() }; n_rows];
        // SAFETY: as the header says.
        let code = unsafe {
            self.table().collect.unwrap()(
                self.raw,
                ticket,
                ptr::null(),
                rows.as_mut_ptr(),
                n_rows,
                size_of::<abi::EngineRow>(),
            )
        };
        if code.is_ok() { Ok(rows) } else { Err(code) }
    }

    /// Appends tokens to sequences, and gives the last row of each slice, in the slices' order.
    pub(crate) fn run(&mut self, slices: &[(u32, &[i32])]) -> Vec<Vec<f32>> {
        let full: Vec<(u32, u32, &[i32], u32)> =
            slices.iter().map(|(sequence, tokens)| (*sequence, self.end(*sequence), *tokens, 1)).collect();
        let ticket = self.submit(&full).unwrap();
        self.collect(ticket, slices.len()).unwrap()
    }

    pub(crate) fn range(&self, sequence: u32) -> (u32, u32) {
        let (mut begin, mut end) = (9, 9);
        // SAFETY: as the header says.
        let code =
            unsafe { self.table().seq_range.unwrap()(self.raw, sequence, &raw mut begin, &raw mut end) };
        assert_eq!(code, abi::ERR_OK);
        (begin, end)
    }

    pub(crate) fn end(&self, sequence: u32) -> u32 {
        self.range(sequence).1
    }

    pub(crate) fn copy(&self, from: u32, to: u32, end: u32) -> abi::Code {
        // SAFETY: as the header says.
        unsafe { self.table().seq_copy.unwrap()(self.raw, from, to, end) }
    }

    pub(crate) fn remove(&self, sequence: u32, begin: u32) -> abi::Code {
        // SAFETY: as the header says.
        unsafe { self.table().seq_remove.unwrap()(self.raw, sequence, begin) }
    }

    /// A sequence's state, which takes as much room as was announced.
    pub(crate) fn save(&self, sequence: u32) -> Result<Vec<u8>, abi::Code> {
        let function = self.table().seq_save.unwrap();
        let mut size = 0;
        // SAFETY: as the header says.
        let code = unsafe { function(self.raw, sequence, ptr::null_mut(), 0, &raw mut size) };
        if code != abi::ERR_BUFFER_TOO_SMALL {
            return Err(code);
        }
        let mut state = vec![0; size];
        // SAFETY: as the header says.
        let code =
            unsafe { function(self.raw, sequence, state.as_mut_ptr().cast(), state.len(), &raw mut size) };
        assert_eq!(size, state.len());
        if code.is_ok() { Ok(state) } else { Err(code) }
    }

    pub(crate) fn restore(&self, sequence: u32, state: &[u8]) -> abi::Code {
        // SAFETY: as the header says.
        unsafe { self.table().seq_restore.unwrap()(self.raw, sequence, state.as_ptr().cast(), state.len()) }
    }

    /// Ends the step under way.
    pub(crate) fn cancel(&self) {
        // SAFETY: as the header says.
        unsafe { self.table().cancel.unwrap()(self.raw) };
    }

    pub(crate) fn free(&self) -> u64 {
        // SAFETY: as the header says.
        unsafe { self.table().cache_free.unwrap()(self.raw) }
    }
}

pub(crate) fn greedy(row: &[f32]) -> i32 {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best as i32
}
