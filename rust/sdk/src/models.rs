//! `engine.models/1`: several models, each a handle.

use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::sync::Arc;

use llm_node_abi as abi;

use crate::instance::{Exported, ModelHandle};
use crate::{Engine, Failure, Options, guard, read};

/// What to load, and where to.
#[derive(Clone, Debug)]
pub struct ModelParams {
    /// A file, or a directory.
    pub path: PathBuf,
    /// Layers to put on the devices; negative: all.
    pub gpu_layers: i32,
    /// Indices as in [`Memory::devices`](crate::Memory::devices); `None`: the engine's choice.
    pub devices: Option<Vec<u32>>,
    /// Engine-specific settings.
    pub options: Options,
}

impl ModelParams {
    /// # Safety
    ///
    /// What the header says of `EngineModelParams`.
    pub(crate) unsafe fn read(raw: &abi::EngineModelParams) -> Result<Self, Failure> {
        // SAFETY: passed on to the caller.
        unsafe {
            Ok(Self {
                path: read::path(raw.path, "path")?,
                gpu_layers: raw.gpu_layers,
                devices: if raw.devices.is_null() {
                    None
                } else {
                    Some(read::slice(raw.devices, raw.n_devices, "devices")?.to_vec())
                },
                options: Options::read(raw.options, raw.n_options)?,
            })
        }
    }
}

/// What a loaded model is.
#[derive(Clone, Debug, Default)]
pub struct ModelInfo {
    /// It generates text.
    pub generates: bool,
    /// It makes embeddings.
    pub embeds: bool,
    /// It ranks pairs of texts.
    pub ranks: bool,
    /// Its state cannot be cut back to an earlier position.
    pub recurrent: bool,
    /// "llama", "qwen3", ...
    pub architecture: CString,
    /// "gguf", "safetensors", ...
    pub format: CString,
    /// "Q4_K_M", "bf16", ...; `None`: not known.
    pub quantization: Option<CString>,
    /// Number of weights.
    pub n_parameters: u64,
    /// Their size.
    pub size_bytes: u64,
    /// Width of a row of logits.
    pub n_vocab: u32,
    /// The longest sequence it was trained for, in tokens.
    pub n_context: u32,
    /// Width of one embedding, or of one rank result where it ranks.
    pub n_embedding: u32,
}

/// `engine.models/1`.
pub trait Models: Engine {
    /// A loaded model. It is shared by calls on any thread.
    type Model: Send + Sync + 'static;

    /// Loads all of it or nothing. `progress` takes a fraction from 0 to 1; when it answers false, the
    /// load is to end with `ERR_CANCELLED`.
    fn load(
        &self,
        params: &ModelParams,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Self::Model, Failure>;

    /// What the model is; asked once, after loading.
    fn info(model: &Self::Model) -> ModelInfo;

    /// The model file's own metadata, arrays and objects as JSON; asked once, after loading.
    fn metadata(model: &Self::Model) -> Vec<(Vec<u8>, Vec<u8>)> {
        let _ = model;
        Vec::new()
    }
}

/// The table of an engine's functions.
pub const fn table<E: Exported + Models>() -> abi::EngineModels {
    abi::EngineModels {
        struct_size: size_of::<abi::EngineModels>() as u32,
        load: Some(load::<E>),
        unload: Some(unload::<E>),
        info: Some(info::<E>),
        meta_count: Some(meta_count::<E>),
        meta_get: Some(meta_get::<E>),
    }
}

unsafe extern "C" fn load<E: Exported + Models>(
    params: *const abi::EngineModelParams,
    model: *mut *mut abi::EngineModel,
) -> abi::Code {
    guard::code("load", || {
        // SAFETY: the host passes what the header asks for.
        let raw = unsafe { read::required(params, "params") }?;
        if model.is_null() {
            return Err(Failure::invalid("model is NULL"));
        }
        // SAFETY: as above.
        let params = unsafe { ModelParams::read(&raw) }?;
        let mut progress = |fraction: f32| {
            raw.progress.is_none_or(|progress| {
                // SAFETY: the host's own function with its own data, on the thread that loads.
                unsafe { progress(raw.user, fraction) == 0 }
            })
        };
        let loaded = E::slot().engine()?.load(&params, &mut progress)?;
        let handle = ModelHandle::<E>::new(Arc::new(loaded));
        let pointer = Box::into_raw(Box::new(handle)).cast::<abi::EngineModel>();
        E::slot().models.insert(pointer.cast::<c_void>(), free::<E>);
        // SAFETY: checked above, and written on success only.
        unsafe { model.write(pointer) };
        Ok(())
    })
}

/// # Safety
///
/// A pointer that `load` of the same engine made, and that nobody uses any more.
unsafe fn free<E: Exported + Models>(pointer: *mut c_void) {
    // SAFETY: passed on to the caller.
    drop(unsafe { Box::from_raw(pointer.cast::<ModelHandle<E>>()) });
}

unsafe extern "C" fn unload<E: Exported + Models>(model: *mut abi::EngineModel) {
    guard::value("unload", (), || {
        E::slot().models.remove(model.cast());
        Ok(())
    });
}

unsafe extern "C" fn info<E: Exported + Models>(
    model: *const abi::EngineModel,
    info: *mut abi::EngineModelInfo,
) -> abi::Code {
    guard::code("info", || {
        // SAFETY: the host passes a handle of ours and a struct of its own.
        unsafe {
            let handle = ModelHandle::<E>::from_raw(model)?;
            let facts = &handle.info;
            let flags = [
                (facts.generates, abi::ENGINE_MODEL_GENERATES),
                (facts.embeds, abi::ENGINE_MODEL_EMBEDS),
                (facts.ranks, abi::ENGINE_MODEL_RANKS),
                (facts.recurrent, abi::ENGINE_MODEL_RECURRENT),
            ];
            let value = abi::EngineModelInfo {
                struct_size: 0,
                flags: flags.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum(),
                architecture: facts.architecture.as_ptr(),
                format: facts.format.as_ptr(),
                quantization: facts
                    .quantization
                    .as_ref()
                    .map_or(std::ptr::null(), |quantization| quantization.as_ptr()),
                n_parameters: facts.n_parameters,
                size_bytes: facts.size_bytes,
                n_vocab: facts.n_vocab,
                n_context: facts.n_context,
                n_embedding: facts.n_embedding,
                max_streams: 0,
            };
            read::fill(info, &value, "info")
        }
    })
}

unsafe extern "C" fn meta_count<E: Exported + Models>(model: *const abi::EngineModel) -> usize {
    // SAFETY: the host passes a handle of ours.
    guard::value("meta_count", 0, || Ok(unsafe { ModelHandle::<E>::from_raw(model) }?.metadata.len()))
}

unsafe extern "C" fn meta_get<E: Exported + Models>(
    model: *const abi::EngineModel,
    index: usize,
    key: *mut abi::EngineStr,
    value: *mut abi::EngineStr,
) -> abi::Code {
    guard::code("meta_get", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ModelHandle::<E>::from_raw(model) }?;
        let (found_key, found_value) = handle.metadata.get(index).ok_or_else(|| {
            Failure::not_found(format!("metadata has {} entries, not {index}", handle.metadata.len()))
        })?;
        if key.is_null() || value.is_null() {
            return Err(Failure::invalid("key or value is NULL"));
        }
        // SAFETY: checked above.
        unsafe {
            key.write(view(found_key));
            value.write(view(found_value));
        }
        Ok(())
    })
}

/// Bytes as the ABI passes them.
pub(crate) fn view(bytes: &[u8]) -> abi::EngineStr {
    abi::EngineStr { data: bytes.as_ptr().cast(), len: bytes.len() }
}

impl<E: Exported + Models> ModelHandle<E> {
    fn new(model: Arc<E::Model>) -> Self {
        let info = E::info(&model);
        let metadata = E::metadata(&model);
        Self {
            info,
            metadata,
            vocabulary: std::sync::OnceLock::new(),
            templates: std::sync::Mutex::default(),
            embedding: std::sync::Mutex::default(),
            model,
        }
    }

    /// # Safety
    ///
    /// NULL, or a handle that `load` of this engine made and that was not unloaded, for `'a`.
    pub(crate) unsafe fn from_raw<'a>(pointer: *const abi::EngineModel) -> Result<&'a Self, Failure> {
        // SAFETY: passed on to the caller.
        unsafe { pointer.cast::<Self>().as_ref() }.ok_or_else(|| Failure::invalid("model is NULL"))
    }
}
