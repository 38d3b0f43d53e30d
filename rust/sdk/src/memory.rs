//! `engine.memory/1`: devices, and the memory a model needs before it is loaded and holds after.

use std::ffi::CString;
use std::sync::Arc;

use llm_node_abi as abi;

use crate::instance::{Exported, ModelHandle};
use crate::{ContextParams, Failure, ModelParams, Models, guard, read};

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// Memory of its own.
    Gpu,
    /// Shares the host's memory.
    Integrated,
    /// Anything else.
    Other,
}

/// A device; its index is its place in the list.
#[derive(Clone, Debug)]
pub struct Device {
    /// What kind it is.
    pub kind: DeviceKind,
    /// "CUDA0"
    pub name: CString,
    /// "NVIDIA H200"
    pub description: CString,
    /// PCI, "0000:c1:00.0"; `None`: none.
    pub bus_id: Option<CString>,
}

/// What one model takes on one device, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Index into the list of devices; `None`: plain memory of the host.
    pub device: Option<u32>,
    /// The model's weights.
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

/// `engine.memory/1`.
pub trait Memory: Models {
    /// Set to false where [`Memory::estimate`] is not offered.
    const ESTIMATES: bool = true;

    /// All devices; asked once.
    fn devices(&self) -> Vec<Device>;

    /// Free and total bytes of a device, now. Any thread.
    fn device_memory(&self, index: u32) -> (u64, u64);

    /// What loading the model and creating the context would take together, without doing either.
    fn estimate(
        &self,
        model: &ModelParams,
        context: Option<&ContextParams>,
    ) -> Result<Vec<MemoryUse>, Failure> {
        let _ = (model, context);
        Err(Failure::unsupported("this engine does not estimate"))
    }

    /// What a loaded model takes now, its contexts included. Any thread.
    fn usage(model: &Self::Model) -> Result<Vec<MemoryUse>, Failure>;
}

/// The table of an engine's functions.
pub const fn table<E: Exported + Memory>() -> abi::EngineMemory {
    abi::EngineMemory {
        struct_size: size_of::<abi::EngineMemory>() as u32,
        device_count: Some(device_count::<E>),
        device_get: Some(device_get::<E>),
        estimate: if E::ESTIMATES { Some(estimate::<E>) } else { None },
        usage: Some(usage::<E>),
    }
}

fn known<E: Exported + Memory>() -> Result<Arc<Vec<Device>>, Failure> {
    E::slot().devices(Memory::devices).ok_or_else(|| Failure::internal("the engine is not running"))
}

unsafe extern "C" fn device_count<E: Exported + Memory>() -> u32 {
    guard::value("device_count", 0, || Ok(known::<E>()?.len() as u32))
}

unsafe extern "C" fn device_get<E: Exported + Memory>(
    index: u32,
    device: *mut abi::EngineDevice,
) -> abi::Code {
    guard::code("device_get", || {
        let devices = known::<E>()?;
        let found = devices
            .get(index as usize)
            .ok_or_else(|| Failure::not_found(format!("there are {} devices, not {index}", devices.len())))?;
        let (free_bytes, total_bytes) = E::slot().engine()?.device_memory(index);
        let value = abi::EngineDevice {
            struct_size: 0,
            kind: match found.kind {
                DeviceKind::Cpu => abi::ENGINE_DEVICE_CPU,
                DeviceKind::Gpu => abi::ENGINE_DEVICE_GPU,
                DeviceKind::Integrated => abi::ENGINE_DEVICE_INTEGRATED,
                DeviceKind::Other => abi::ENGINE_DEVICE_OTHER,
            },
            name: found.name.as_ptr(),
            description: found.description.as_ptr(),
            bus_id: found.bus_id.as_ref().map_or(std::ptr::null(), |id| id.as_ptr()),
            total_bytes,
            free_bytes,
        };
        // SAFETY: the host passes a struct of its own.
        unsafe { read::fill(device, &value, "device") }
    })
}

/// # Safety
///
/// `target` is valid for writes of `capacity` elements, `count` of one.
unsafe fn hand_out(
    uses: &[MemoryUse],
    target: *mut abi::EngineMemoryUse,
    capacity: usize,
    count: *mut usize,
) -> Result<(), Failure> {
    if count.is_null() || (target.is_null() && capacity > 0) {
        return Err(Failure::invalid("uses or count is NULL"));
    }
    for (index, memory) in uses.iter().take(capacity).enumerate() {
        // SAFETY: passed on to the caller.
        unsafe {
            target.add(index).write(abi::EngineMemoryUse {
                device: memory.device.unwrap_or(abi::ENGINE_DEVICE_HOST),
                reserved: 0,
                weights: memory.weights,
                cache: memory.cache,
                compute: memory.compute,
                cache_per_token: memory.cache_per_token,
                cache_per_sequence: memory.cache_per_sequence,
            });
        }
    }
    // SAFETY: passed on to the caller.
    unsafe { count.write(uses.len()) };
    Ok(())
}

unsafe extern "C" fn estimate<E: Exported + Memory>(
    model: *const abi::EngineModelParams,
    context: *const abi::EngineContextParams,
    uses: *mut abi::EngineMemoryUse,
    capacity: usize,
    count: *mut usize,
) -> abi::Code {
    guard::code("estimate", || {
        // SAFETY: the host passes what the header asks for.
        unsafe {
            let model = ModelParams::read(&read::required(model, "model")?)?;
            let context = match read::growing(context) {
                None => None,
                Some(raw) => Some(ContextParams::read(&raw)?),
            };
            let found = E::slot().engine()?.estimate(&model, context.as_ref())?;
            hand_out(&found, uses, capacity, count)
        }
    })
}

unsafe extern "C" fn usage<E: Exported + Memory>(
    model: *const abi::EngineModel,
    uses: *mut abi::EngineMemoryUse,
    capacity: usize,
    count: *mut usize,
) -> abi::Code {
    guard::code("usage", || {
        // SAFETY: the host passes a handle of ours and arrays of its own.
        unsafe {
            let found = E::usage(&ModelHandle::<E>::from_raw(model)?.model)?;
            hand_out(&found, uses, capacity, count)
        }
    })
}
