//! What [`export_engine!`](crate::export_engine) expands to: the five functions, the list of handles,
//! and one table per extension. Public for the macro, and no part of the interface.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

pub use llm_node_abi as abi;

use crate::models::ModelInfo;
use crate::tokenizer::Vocabulary;
use crate::{Config, Device, Engine, Failure, Finish, Generation, Models, guard, host, read};

pub use crate::batch::table as batch;
pub use crate::embed::table as embed;
pub use crate::memory::table as memory;
pub use crate::models::table as models;
pub use crate::tokenizer::table as tokenizer;

/// An engine that was named to the macro.
pub trait Exported: Engine {
    /// Where its one instance lives.
    fn slot() -> &'static Slot<Self>;
}

/// The one instance of an engine, and what it has handed out.
pub struct Slot<E> {
    engine: RwLock<Option<Arc<E>>>,
    contexts: Handles,
    models: Handles,
    results: Mutex<Option<Results>>,
    devices: RwLock<Option<Arc<Vec<Device>>>>,
}

impl<E: Engine> Slot<E> {
    /// An engine that is not running.
    #[expect(clippy::new_without_default, reason = "a static needs a const fn")]
    pub const fn new() -> Self {
        Self {
            engine: RwLock::new(None),
            contexts: Handles::new(),
            models: Handles::new(),
            results: Mutex::new(None),
            devices: RwLock::new(None),
        }
    }

    pub(crate) fn engine(&self) -> Result<Arc<E>, Failure> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        engine.clone().ok_or_else(|| Failure::internal("the engine is not running: engine_init comes first"))
    }

    pub(crate) fn models(&self) -> &Handles {
        &self.models
    }

    pub(crate) fn contexts(&self) -> &Handles {
        &self.contexts
    }

    /// The devices, asked of the engine once and kept until it shuts down: their names are handed out.
    pub(crate) fn devices(&self, ask: impl FnOnce(&E) -> Vec<Device>) -> Option<Arc<Vec<Device>>> {
        let known = self.devices.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return known;
        }
        let asked = Arc::new(ask(self.engine().ok()?.as_ref()));
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(devices.get_or_insert(asked)))
    }
}

/// An address that was handed out, and what frees it.
type Handle = (usize, unsafe fn(*mut c_void));

/// What was handed out and not yet given back.
pub struct Handles(Mutex<Vec<Handle>>);

impl Handles {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn list(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, pointer: *mut c_void, free: unsafe fn(*mut c_void)) {
        self.list().push((pointer.expose_provenance(), free));
    }

    /// Frees a handle; one that is not in the list (NULL, or freed before) is left alone.
    pub(crate) fn remove(&self, pointer: *mut c_void) {
        let found = {
            let mut list = self.list();
            list.iter()
                .position(|(address, _)| *address == pointer.addr())
                .map(|index| list.swap_remove(index))
        };
        if let Some((_, free)) = found {
            // SAFETY: it was in the list, so it is alive, and is no longer in it.
            unsafe { free(pointer) };
        }
    }

    fn clear(&self) {
        loop {
            let Some((address, free)) = self.list().pop() else { return };
            guard::value("engine_shutdown", (), || {
                // SAFETY: as in `remove`; the host has ended all calls.
                unsafe { free(std::ptr::with_exposed_provenance_mut(address)) };
                Ok(())
            });
        }
    }
}

/// Chat templates by name; `None` is the name of the default one, and the template of a name that the
/// model does not have.
type Templates = HashMap<Option<String>, Option<Box<[u8]>>>;

/// What stands behind an `EngineModel *`.
pub struct ModelHandle<E: Models> {
    pub(crate) info: ModelInfo,
    pub(crate) metadata: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) vocabulary: OnceLock<Result<Vocabulary, Failure>>,
    /// Templates that were asked for; never taken out again, since their text is handed out.
    pub(crate) templates: Mutex<Templates>,
    /// Embedding is one at a time per model.
    pub(crate) embedding: Mutex<()>,
    pub(crate) model: Arc<E::Model>,
}

/// The result array of tier 0, and the texts that it points to.
struct Results {
    elements: Vec<abi::TokenResult>,
    _generation: Generation,
}

// SAFETY: the pointers in `elements` point into `_generation`, which nobody changes.
unsafe impl Send for Results {}

impl Results {
    fn new(generation: Generation) -> Self {
        let empty = abi::TokenResult {
            text: std::ptr::null(),
            text_len: 0,
            token_id: abi::ENGINE_TOKEN_NONE,
            flags: 0,
            logprob: 0.0,
            finish: 0,
            top: std::ptr::null(),
            n_top: 0,
        };
        let mut elements: Vec<abi::TokenResult> = generation
            .pieces
            .iter()
            .map(|piece| abi::TokenResult {
                // Empty texts still have a pointer, dangling but not NULL: NULL is the ending.
                text: piece.text.as_ptr().cast(),
                text_len: piece.text.len(),
                token_id: piece.token.unwrap_or(abi::ENGINE_TOKEN_NONE),
                flags: u32::from(piece.token.is_some()) * abi::ENGINE_RESULT_ID
                    + u32::from(piece.logprob.is_some()) * abi::ENGINE_RESULT_LOGPROB,
                logprob: piece.logprob.unwrap_or(0.0),
                ..empty
            })
            .collect();
        elements.push(abi::TokenResult {
            finish: match generation.finish {
                Finish::Stop => abi::ENGINE_FINISH_STOP,
                Finish::Length => abi::ENGINE_FINISH_LENGTH,
                Finish::Cancelled => abi::ENGINE_FINISH_CANCELLED,
            },
            ..empty
        });
        Self { elements, _generation: generation }
    }
}

/// The engine's `EngineInfo`, which the ABI hands out as a pointer to non-const.
pub struct Info(UnsafeCell<abi::EngineInfo>);

// SAFETY: this side never touches it after making it; the host only reads it.
unsafe impl Sync for Info {}

impl Info {
    /// Of an engine.
    pub const fn new<E: Engine>() -> Self {
        Self(UnsafeCell::new(abi::EngineInfo {
            abi_version: abi::ENGINE_ABI_VERSION,
            engine_id: E::ID.as_ptr(),
            version: E::VERSION.as_ptr(),
        }))
    }

    /// For `engine_get_info`.
    pub const fn get(&self) -> *mut abi::EngineInfo {
        self.0.get()
    }
}

/// `engine_init`
///
/// # Safety
///
/// What the header says of it.
pub unsafe fn init<E: Exported>(config: *mut abi::EngineConfig) -> abi::Code {
    // SAFETY: the host passes what the header asks for.
    let raw = unsafe { read::growing(config.cast_const()) };
    let running = E::slot().engine().is_ok();
    if let (Some(raw), false) = (&raw, running) {
        // SAFETY: the host's struct is valid until engine_shutdown returns.
        unsafe { host::remember(raw.host) };
    }
    let code = guard::code("engine_init", || {
        let raw = raw.ok_or_else(|| Failure::invalid("config is NULL"))?;
        if running {
            return Err(Failure::invalid("engine_init was called before, without engine_shutdown since"));
        }
        // SAFETY: as above.
        let config = unsafe { Config::read(&raw) }?;
        let engine = E::init(&config)?;
        *E::slot().engine.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(engine));
        Ok(())
    });
    if !code.is_ok() && !running {
        // No engine_shutdown need follow, so nothing says how long the host's struct stays.
        host::forget();
    }
    code
}

/// `engine_load_model`
///
/// # Safety
///
/// What the header says of it.
pub unsafe fn load_model<E: Exported>(path: *const c_char) -> abi::Code {
    guard::code("engine_load_model", || {
        // SAFETY: the host passes a terminated path.
        let path = unsafe { read::path(path, "model_path") }?;
        *E::slot().results.lock().unwrap_or_else(PoisonError::into_inner) = None;
        E::slot().engine()?.load_model(&path)
    })
}

/// `engine_generate`
///
/// # Safety
///
/// What the header says of it.
pub unsafe fn generate<E: Exported>(prompt: *const c_char, results: *mut *mut abi::TokenResult) -> abi::Code {
    guard::code("engine_generate", || {
        if prompt.is_null() || results.is_null() {
            return Err(Failure::invalid("prompt or results is NULL"));
        }
        // SAFETY: the host passes a terminated text.
        let prompt = unsafe { CStr::from_ptr(prompt) }.to_bytes();
        let generation = E::slot().engine()?.generate(prompt)?;
        let mut kept = E::slot().results.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.insert(Results::new(generation));
        // SAFETY: checked above.
        unsafe { results.write(kept.elements.as_mut_ptr()) };
        Ok(())
    })
}

/// `engine_shutdown`
pub fn shutdown<E: Exported>() {
    let slot = E::slot();
    // Contexts use their model, and models their engine.
    slot.contexts.clear();
    slot.models.clear();
    guard::value("engine_shutdown", (), || {
        *slot.results.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let engine = slot.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(engine);
        *slot.devices.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    });
    host::forget();
}

/// Is `id`, as the host passed it, the name of this table?
///
/// # Safety
///
/// NULL or terminated.
pub unsafe fn is<T: abi::Extension>(id: *const c_char) -> bool {
    // SAFETY: passed on to the caller.
    !id.is_null() && unsafe { CStr::from_ptr(id) } == T::ID
}

/// Exports an engine: `export_engine!(MyEngine: models, memory, tokenizer, batch, embed)`.
///
/// The list names the extensions, each of which needs its trait. A library exports one engine.
#[macro_export]
macro_rules! export_engine {
    ($engine:ty $(: $($extension:ident),+ $(,)?)?) => {
        #[allow(unsafe_code, reason = "exporting C functions is what the macro is for")]
        const _: () = {
            use ::std::ffi::{c_char, c_void};
            use $crate::export::abi;

            static SLOT: $crate::export::Slot<$engine> = $crate::export::Slot::new();
            static INFO: $crate::export::Info = $crate::export::Info::new::<$engine>();

            impl $crate::export::Exported for $engine {
                fn slot() -> &'static $crate::export::Slot<Self> {
                    &SLOT
                }
            }

            #[unsafe(no_mangle)]
            extern "C" fn engine_get_info() -> *mut abi::EngineInfo {
                INFO.get()
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn engine_init(config: *mut abi::EngineConfig) -> abi::Code {
                // SAFETY: the host calls as the header says.
                unsafe { $crate::export::init::<$engine>(config) }
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn engine_load_model(model_path: *const c_char) -> abi::Code {
                // SAFETY: the host calls as the header says.
                unsafe { $crate::export::load_model::<$engine>(model_path) }
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn engine_generate(
                prompt: *const c_char,
                results: *mut *mut abi::TokenResult,
            ) -> abi::Code {
                // SAFETY: the host calls as the header says.
                unsafe { $crate::export::generate::<$engine>(prompt, results) }
            }

            #[unsafe(no_mangle)]
            extern "C" fn engine_shutdown() {
                $crate::export::shutdown::<$engine>();
            }

            #[unsafe(no_mangle)]
            unsafe extern "C" fn engine_get_extension(id: *const c_char) -> *const c_void {
                $($($crate::export_engine!(@extension $engine, $extension, id);)+)?
                let _ = id;
                ::std::ptr::null()
            }
        };
    };
    (@extension $engine:ty, models, $id:ident) => {
        $crate::export_engine!(@table $engine, models, EngineModels, $id)
    };
    (@extension $engine:ty, memory, $id:ident) => {
        $crate::export_engine!(@table $engine, memory, EngineMemory, $id)
    };
    (@extension $engine:ty, tokenizer, $id:ident) => {
        $crate::export_engine!(@table $engine, tokenizer, EngineTokenizer, $id)
    };
    (@extension $engine:ty, batch, $id:ident) => {
        $crate::export_engine!(@table $engine, batch, EngineBatching, $id)
    };
    (@extension $engine:ty, embed, $id:ident) => {
        $crate::export_engine!(@table $engine, embed, EngineEmbedding, $id)
    };
    (@table $engine:ty, $make:ident, $table:ident, $id:ident) => {{
        // A static has one address for the life of the process, which the ABI asks for.
        static TABLE: abi::$table = $crate::export::$make::<$engine>();
        // SAFETY: the host passes NULL or a terminated text.
        if unsafe { $crate::export::is::<abi::$table>($id) } {
            return (&raw const TABLE).cast();
        }
    }};
}
