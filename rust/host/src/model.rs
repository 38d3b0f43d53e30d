//! `engine.models/1`: a loaded model and what it is.

use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llm_node_abi::{
    ENGINE_MODEL_EMBEDS, ENGINE_MODEL_GENERATES, ENGINE_MODEL_RANKS, ENGINE_MODEL_RECURRENT, EngineModel,
    EngineModelInfo, EngineModelParams, EngineStr, Growing,
};

use crate::callbacks::checked;
use crate::engine::LoadedEngine;
use crate::error::EngineError;
use crate::parameters::{self, Options};
use crate::readable::{self, NAME_LIMIT, TEXT_LIMIT};

/// No vocabulary is larger.
pub(crate) const MOST_TOKENS: u32 = 1 << 24;
/// No model file says more about itself.
const MOST_METADATA: usize = 1 << 16;
/// No embedding is wider.
const WIDEST_EMBEDDING: u32 = 1 << 20;

/// How far loading is, from 0 to 1; `Break` ends it with `ERR_CANCELLED`. Called on the loading thread.
pub type Progress<'a> = &'a mut dyn FnMut(f32) -> ControlFlow<()>;

/// What to load, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelParams {
    /// A file, or a directory.
    pub path: PathBuf,
    /// Layers to put on the devices; negative: all.
    pub gpu_layers: i32,
    /// Indices as in [`LoadedEngine::devices`]; empty: the engine's choice.
    pub devices: Vec<u32>,
    /// Settings for the engine: key and value.
    pub options: Vec<(String, String)>,
}

impl ModelParams {
    /// All layers on the devices that the engine chooses.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), gpu_layers: -1, devices: Vec::new(), options: Vec::new() }
    }

    /// Calls `function` with the parameters as C reads them.
    pub(crate) fn with_abi<R>(
        &self,
        call: &'static str,
        progress: Option<Progress<'_>>,
        function: impl FnOnce(&EngineModelParams) -> Result<R, EngineError>,
    ) -> Result<R, EngineError> {
        let path = parameters::path(&self.path)
            .ok_or_else(|| EngineError::invalid(call, "the path contains a zero byte"))?;
        let options = Options::new(&self.options)
            .ok_or_else(|| EngineError::invalid(call, "an option contains a zero byte"))?;
        let mut progress = progress;
        let given = progress.is_some();
        function(&EngineModelParams {
            struct_size: EngineModelParams::SIZE,
            gpu_layers: self.gpu_layers,
            path: path.as_ptr(),
            devices: if self.devices.is_empty() { std::ptr::null() } else { self.devices.as_ptr() },
            n_devices: self.devices.len(),
            options: options.as_ptr(),
            n_options: options.len(),
            progress: if given { Some(on_progress) } else { None },
            user: (&raw mut progress).cast(),
        })
    }
}

unsafe extern "C" fn on_progress(user: *mut c_void, fraction: f32) -> i32 {
    catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `with_abi` passes its local, which lives until the load returns; the header says that
        // this is called on the loading thread, so nothing else uses it.
        let progress = unsafe { &mut *user.cast::<Option<Progress<'_>>>() };
        match progress {
            Some(progress) => i32::from(progress(fraction).is_break()),
            None => 0,
        }
    }))
    .unwrap_or(1)
}

/// What a loaded model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Generates text.
    pub generates: bool,
    /// Makes embeddings.
    pub embeds: bool,
    /// Ranks pairs of texts.
    pub ranks: bool,
    /// Its state cannot be cut back to an earlier position.
    pub recurrent: bool,
    /// "llama", "qwen3", ...
    pub architecture: String,
    /// "gguf", "safetensors", ...
    pub format: String,
    /// "Q4_K_M", "bf16", ..., if known.
    pub quantization: Option<String>,
    /// Number of weights.
    pub n_parameters: u64,
    /// Their size.
    pub size_bytes: u64,
    /// The width of a row of logits.
    pub n_vocab: u32,
    /// The longest sequence it was trained for, in tokens.
    pub n_context: u32,
    /// The width of one embedding, or of one rank result.
    pub n_embedding: u32,
    /// Calls of `engine.stream/1` that may run at once.
    pub max_streams: u32,
}

/// A loaded model. Dropping the last owner unloads it.
pub struct Model {
    engine: Arc<LoadedEngine>,
    handle: NonNull<EngineModel>,
    info: ModelInfo,
    /// Held during `[step]` calls that belong to the model and not to a context.
    step_lock: Mutex<()>,
}

// SAFETY: the header lets every function be called from any thread; which ones may run at once is
// kept by the locks of this type and of the engine.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("engine", &self.engine.id())
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a model: all of it or nothing.
    pub fn load(
        engine: &Arc<LoadedEngine>,
        params: &ModelParams,
        progress: Option<Progress<'_>>,
    ) -> Result<Arc<Self>, EngineError> {
        const CALL: &str = "models.load";
        let table = engine.tables().models.ok_or_else(|| EngineError::unsupported(CALL))?;
        let load = table.load.ok_or_else(|| EngineError::unsupported(CALL))?;
        let mut handle = std::ptr::null_mut();
        params.with_abi(CALL, progress, |params| {
            let _one_at_a_time = engine.load_lock();
            engine.announce(CALL);
            // SAFETY: [load]: the lock is held. The parameters live until the call returns.
            checked(CALL, || unsafe { load(&raw const *params, &raw mut handle) })
        })?;
        let handle = NonNull::new(handle)
            .ok_or_else(|| EngineError::misbehaved(CALL, "it succeeded, but *model is NULL"))?;
        let mut model = Self {
            engine: Arc::clone(engine),
            handle,
            info: ModelInfo {
                generates: false,
                embeds: false,
                ranks: false,
                recurrent: false,
                architecture: String::new(),
                format: String::new(),
                quantization: None,
                n_parameters: 0,
                size_bytes: 0,
                n_vocab: 0,
                n_context: 0,
                n_embedding: 0,
                max_streams: 1,
            },
            step_lock: Mutex::new(()),
        };
        // From here on an error drops the model, which unloads it.
        model.info = model.read_info()?;
        Ok(Arc::new(model))
    }

    /// The engine that it runs on.
    pub fn engine(&self) -> &Arc<LoadedEngine> {
        &self.engine
    }

    /// What it is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model file's own metadata: keys as in GGUF where there is one, values as text, arrays and
    /// objects as JSON. Bytes that are not UTF-8 are replaced.
    pub fn metadata(&self) -> Result<Vec<(String, String)>, EngineError> {
        const CALL: &str = "models.meta_get";
        let table = self.engine.tables().models;
        let (Some(count), Some(get)) =
            (table.and_then(|table| table.meta_count), table.and_then(|table| table.meta_get))
        else {
            return Err(EngineError::unsupported(CALL));
        };
        // SAFETY: [any]; the handle is valid until self is dropped.
        let count = unsafe { count(self.as_ptr()) };
        if count > MOST_METADATA {
            return Err(EngineError::misbehaved("models.meta_count", format!("{count} entries")));
        }
        (0..count)
            .map(|index| {
                let empty = EngineStr { data: std::ptr::null(), len: 0 };
                let (mut key, mut value) = (empty, empty);
                // SAFETY: [any]; the out-parameters are locals.
                checked(CALL, || unsafe { get(self.as_ptr(), index, &raw mut key, &raw mut value) })?;
                let text = |what: &str, text, limit| {
                    // SAFETY: valid until the model is unloaded, the header says.
                    unsafe { readable::bytes(text, limit) }
                        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                        .map_err(|problem| EngineError::misbehaved(CALL, format!("{what} {index} {problem}")))
                };
                Ok((text("key", key, NAME_LIMIT)?, text("value", value, TEXT_LIMIT)?))
            })
            .collect()
    }

    /// The engine's handle, for calls that no method makes.
    pub const fn as_ptr(&self) -> *mut EngineModel {
        self.handle.as_ptr()
    }

    /// To be held during a `[step]` call that takes the model.
    pub(crate) fn step_lock(&self) -> MutexGuard<'_, ()> {
        self.step_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the engine's tokens, checked against the vocabulary.
    pub(crate) fn check_tokens(&self, call: &'static str, tokens: &[i32]) -> Result<(), EngineError> {
        match tokens.iter().find(|token| u32::try_from(**token).map_or(true, |id| id >= self.info.n_vocab)) {
            None => Ok(()),
            Some(token) => Err(EngineError::misbehaved(
                call,
                format!("token {token} is outside the vocabulary of {}", self.info.n_vocab),
            )),
        }
    }

    fn read_info(&self) -> Result<ModelInfo, EngineError> {
        const CALL: &str = "models.info";
        let function = self
            .engine
            .tables()
            .models
            .and_then(|table| table.info)
            .ok_or_else(|| EngineError::unsupported(CALL))?;
        let mut info = EngineModelInfo {
            struct_size: EngineModelInfo::SIZE,
            flags: 0,
            architecture: std::ptr::null(),
            format: std::ptr::null(),
            quantization: std::ptr::null(),
            n_parameters: 0,
            size_bytes: 0,
            n_vocab: 0,
            n_context: 0,
            n_embedding: 0,
            max_streams: 0,
        };
        // SAFETY: [any]; `info` is a local of the size that it says.
        checked(CALL, || unsafe { function(self.as_ptr(), &raw mut info) })?;
        let name = |what: &str, address: *const c_char| {
            // SAFETY: zero-terminated and valid until the model is unloaded, the header says.
            unsafe { readable::optional_text(address, NAME_LIMIT) }
                .map_err(|problem| EngineError::misbehaved(CALL, format!("{what} {problem}")))
        };
        let required = |what: &str, address| {
            name(what, address)?.ok_or_else(|| EngineError::misbehaved(CALL, format!("{what} is NULL")))
        };
        let generates = info.flags & ENGINE_MODEL_GENERATES != 0;
        if info.n_vocab > MOST_TOKENS || (generates && info.n_vocab == 0) {
            return Err(EngineError::misbehaved(CALL, format!("a vocabulary of {} tokens", info.n_vocab)));
        }
        if info.n_embedding > WIDEST_EMBEDDING {
            return Err(EngineError::misbehaved(CALL, format!("embeddings of {} numbers", info.n_embedding)));
        }
        Ok(ModelInfo {
            generates,
            embeds: info.flags & ENGINE_MODEL_EMBEDS != 0,
            ranks: info.flags & ENGINE_MODEL_RANKS != 0,
            recurrent: info.flags & ENGINE_MODEL_RECURRENT != 0,
            architecture: required("architecture", info.architecture)?,
            format: required("format", info.format)?,
            quantization: name("quantization", info.quantization)?,
            n_parameters: info.n_parameters,
            size_bytes: info.size_bytes,
            n_vocab: info.n_vocab,
            n_context: info.n_context,
            n_embedding: info.n_embedding,
            max_streams: info.max_streams.max(1),
        })
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        let Some(unload) = self.engine.tables().models.and_then(|table| table.unload) else { return };
        let _one_at_a_time = self.engine.load_lock();
        self.engine.announce("models.unload");
        // SAFETY: [load]: the lock is held. Contexts hold an Arc to the model, so none is left, and no
        // call on it is running, since each borrows it.
        unsafe { unload(self.handle.as_ptr()) };
    }
}

/// A name for C, if it is one.
pub(crate) fn c_name(call: &'static str, name: &str) -> Result<CString, EngineError> {
    CString::new(name).map_err(|_| EngineError::invalid(call, "the name contains a zero byte"))
}
