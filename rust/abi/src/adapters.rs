//! `engine.adapters/1`, a draft: LoRA adapters.

use core::ffi::{CStr, c_char};

use crate::{Code, EngineModel};

/// The id of [`EngineAdapters`].
pub const ENGINE_EXT_ADAPTERS: &CStr = c"engine.adapters/1";

crate::opaque! {
    /// A loaded adapter.
    EngineAdapter
}

/// The table of `engine.adapters/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineAdapters {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `[load]`
    pub load: Option<
        unsafe extern "C" fn(
            model: *mut EngineModel,
            path: *const c_char,
            adapter: *mut *mut EngineAdapter,
        ) -> Code,
    >,
    /// `[load]`
    pub unload: Option<unsafe extern "C" fn(adapter: *mut EngineAdapter)>,
}

crate::extension!(EngineAdapters, ENGINE_EXT_ADAPTERS);
