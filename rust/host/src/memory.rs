//! `engine.memory/1`: devices, and the memory of a model before and after loading.

use std::ffi::c_char;

use llm_node_abi::{
    Code, ENGINE_DEVICE_CPU, ENGINE_DEVICE_GPU, ENGINE_DEVICE_HOST, ENGINE_DEVICE_INTEGRATED, EngineDevice,
    EngineMemoryUse, Growing,
};

use crate::callbacks::checked;
use crate::context::ContextParams;
use crate::engine::LoadedEngine;
use crate::error::EngineError;
use crate::model::{Model, ModelParams};
use crate::readable::{self, NAME_LIMIT};

/// No machine has more.
const MOST_DEVICES: usize = 1024;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A GPU with memory of its own.
    Gpu,
    /// A GPU that shares the host's memory.
    Integrated,
    /// Anything else.
    Other,
}

/// One device of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// How [`ModelParams::devices`] and [`MemoryUse::device`] name it.
    pub index: u32,
    /// What it is.
    pub kind: DeviceKind,
    /// "CUDA0".
    pub name: String,
    /// "NVIDIA H200".
    pub description: String,
    /// PCI, "0000:c1:00.0"; the same in every engine.
    pub bus_id: Option<String>,
    /// All of its memory.
    pub total_bytes: u64,
    /// What is free now.
    pub free_bytes: u64,
}

/// What one model takes on one device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Index of the device; `None`: plain memory of the host.
    pub device: Option<u32>,
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

impl MemoryUse {
    fn from_abi(one: &EngineMemoryUse) -> Self {
        Self {
            device: (one.device != ENGINE_DEVICE_HOST).then_some(one.device),
            weights: one.weights,
            cache: one.cache,
            compute: one.compute,
            cache_per_token: one.cache_per_token,
            cache_per_sequence: one.cache_per_sequence,
        }
    }

    /// All of it together.
    pub const fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.compute)
    }
}

impl LoadedEngine {
    /// The devices that the engine can use.
    pub fn devices(&self) -> Result<Vec<Device>, EngineError> {
        const CALL: &str = "memory.device_get";
        let table = self.tables().memory;
        let (Some(count), Some(get)) =
            (table.and_then(|table| table.device_count), table.and_then(|table| table.device_get))
        else {
            return Err(EngineError::unsupported(CALL));
        };
        // SAFETY: [any].
        let count = unsafe { count() };
        if count as usize > MOST_DEVICES {
            return Err(EngineError::misbehaved("memory.device_count", format!("{count} devices")));
        }
        (0..count)
            .map(|index| {
                let mut device = EngineDevice {
                    struct_size: EngineDevice::SIZE,
                    kind: 0,
                    name: std::ptr::null(),
                    description: std::ptr::null(),
                    bus_id: std::ptr::null(),
                    total_bytes: 0,
                    free_bytes: 0,
                };
                // SAFETY: [any]; `device` is a local of the size that it says.
                checked(CALL, || unsafe { get(index, &raw mut device) })?;
                let text = |what: &str, address: *const c_char| {
                    // SAFETY: zero-terminated and valid until engine_shutdown, the header says.
                    unsafe { readable::optional_text(address, NAME_LIMIT) }.map_err(|problem| {
                        EngineError::misbehaved(CALL, format!("{what} of device {index} {problem}"))
                    })
                };
                Ok(Device {
                    index,
                    kind: match device.kind {
                        ENGINE_DEVICE_CPU => DeviceKind::Cpu,
                        ENGINE_DEVICE_GPU => DeviceKind::Gpu,
                        ENGINE_DEVICE_INTEGRATED => DeviceKind::Integrated,
                        _ => DeviceKind::Other,
                    },
                    name: text("the name", device.name)?.ok_or_else(|| {
                        EngineError::misbehaved(CALL, format!("device {index} has no name"))
                    })?,
                    description: text("the description", device.description)?.unwrap_or_default(),
                    bus_id: text("the bus id", device.bus_id)?,
                    total_bytes: device.total_bytes,
                    free_bytes: device.free_bytes,
                })
            })
            .collect()
    }

    /// What loading a model, and creating a context for it, would take. Neither is done.
    pub fn estimate(
        &self,
        model: &ModelParams,
        context: Option<&ContextParams>,
    ) -> Result<Vec<MemoryUse>, EngineError> {
        const CALL: &str = "memory.estimate";
        let function = self
            .tables()
            .memory
            .and_then(|table| table.estimate)
            .ok_or_else(|| EngineError::unsupported(CALL))?;
        let estimate = |context: *const _| {
            model.with_abi(CALL, None, |model| {
                let _one_at_a_time = self.load_lock();
                self.announce(CALL);
                self.uses(CALL, |array, capacity, count| {
                    // SAFETY: [load]: the lock is held. All parameters outlive the call, and the engine
                    // writes at most `capacity` elements.
                    unsafe { function(&raw const *model, context, array, capacity, count) }
                })
            })
        };
        match context {
            None => estimate(std::ptr::null()),
            Some(context) => context.with_abi(CALL, |context| estimate(&raw const *context)),
        }
    }
}

impl Model {
    /// What the model takes now, its contexts included.
    pub fn memory_use(&self) -> Result<Vec<MemoryUse>, EngineError> {
        const CALL: &str = "memory.usage";
        let function = self
            .engine()
            .tables()
            .memory
            .and_then(|table| table.usage)
            .ok_or_else(|| EngineError::unsupported(CALL))?;
        self.engine().uses(CALL, |array, capacity, count| {
            // SAFETY: [any]; the engine writes at most `capacity` elements.
            unsafe { function(self.as_ptr(), array, capacity, count) }
        })
    }
}

impl LoadedEngine {
    fn uses(
        &self,
        call: &'static str,
        function: impl Fn(*mut EngineMemoryUse, usize, *mut usize) -> Code,
    ) -> Result<Vec<MemoryUse>, EngineError> {
        let mut array = vec![EngineMemoryUse::default(); 16];
        loop {
            let mut count = usize::MAX;
            checked(call, || function(array.as_mut_ptr(), array.len(), &raw mut count))?;
            if count > MOST_DEVICES {
                return Err(EngineError::misbehaved(call, format!("uses of {count} devices")));
            }
            if count > array.len() {
                array = vec![EngineMemoryUse::default(); MOST_DEVICES];
                continue;
            }
            array.truncate(count);
            break;
        }
        let uses: Vec<_> = array.iter().map(MemoryUse::from_abi).collect();
        if let Some(count) = self.tables().memory.and_then(|table| table.device_count) {
            // SAFETY: [any].
            let count = unsafe { count() };
            if let Some(index) = uses.iter().filter_map(|one| one.device).find(|index| *index >= count) {
                let what = format!("a use of device {index}, where memory.device_count says {count}");
                return Err(EngineError::misbehaved(call, what));
            }
        }
        Ok(uses)
    }
}
