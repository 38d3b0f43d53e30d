//! What [`export_engine!`](crate::export_engine) expands to: the five functions, and one table per extension.
//! Public for the macro, and no part of the interface.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char};
use std::sync::{Arc, PoisonError};

pub use llm_node_abi as abi;

use crate::instance::Results;
use crate::{Config, Engine, Failure, guard, host, read};

pub use crate::instance::{Exported, Slot};

pub use crate::batch::table as batch;
pub use crate::embed::table as embed;
pub use crate::memory::table as memory;
pub use crate::models::table as models;
pub use crate::tokenizer::table as tokenizer;

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
