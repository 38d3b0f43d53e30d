//! `engine.memory/1`: devices, and the memory a model needs before it is loaded and holds after.

use core::ffi::{CStr, c_char};

use crate::{Code, EngineContextParams, EngineModel, EngineModelParams};

/// The id of [`EngineMemory`].
pub const ENGINE_EXT_MEMORY: &CStr = c"engine.memory/1";
/// Plain memory of the host, in the place of a device's index.
pub const ENGINE_DEVICE_HOST: u32 = u32::MAX;

/// The processor.
pub const ENGINE_DEVICE_CPU: u32 = 0;
/// A GPU with memory of its own.
pub const ENGINE_DEVICE_GPU: u32 = 1;
/// A GPU that shares the host's memory.
pub const ENGINE_DEVICE_INTEGRATED: u32 = 2;
/// Anything else.
pub const ENGINE_DEVICE_OTHER: u32 = 3;

/// One device of an engine.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineDevice {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `ENGINE_DEVICE_`.
    pub kind: u32,
    /// "CUDA0".
    pub name: *const c_char,
    /// "NVIDIA H200".
    pub description: *const c_char,
    /// PCI, "0000:c1:00.0"; NULL: none.
    pub bus_id: *const c_char,
    /// All of its memory.
    pub total_bytes: u64,
    /// What is free now.
    pub free_bytes: u64,
}

/// What one model takes on one device, in bytes. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineMemoryUse {
    /// Index, or [`ENGINE_DEVICE_HOST`].
    pub device: u32,
    /// 0.
    pub reserved: u32,
    /// Weights.
    pub weights: u64,
    /// KV cache and recurrent state.
    pub cache: u64,
    /// Everything else.
    pub compute: u64,
    /// What `cache` grows by per token of capacity.
    pub cache_per_token: u64,
    /// What `cache` grows by per sequence.
    pub cache_per_sequence: u64,
}

/// The table of `engine.memory/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineMemory {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `[any]`
    pub device_count: Option<unsafe extern "C" fn() -> u32>,
    /// `[any]`
    pub device_get: Option<unsafe extern "C" fn(index: u32, device: *mut EngineDevice) -> Code>,
    /// `[load]`
    pub estimate: Option<
        unsafe extern "C" fn(
            model: *const EngineModelParams,
            context: *const EngineContextParams,
            uses: *mut EngineMemoryUse,
            capacity: usize,
            count: *mut usize,
        ) -> Code,
    >,
    /// `[any]`
    pub usage: Option<
        unsafe extern "C" fn(
            model: *const EngineModel,
            uses: *mut EngineMemoryUse,
            capacity: usize,
            count: *mut usize,
        ) -> Code,
    >,
}

crate::growing!(EngineDevice);
crate::extension!(EngineMemory, ENGINE_EXT_MEMORY);
