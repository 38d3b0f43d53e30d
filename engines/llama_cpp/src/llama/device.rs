//! ggml's backends and devices.

use std::ffi::CString;
use std::path::Path;
use std::sync::OnceLock;

use llama_cpp_sys_2 as sys;

use super::fault::{Fault, guarded, value};
use super::shim::shim_load_backends;
use super::text::{owned_text, path_text};

/// Loads the best of each kind of backend library in `directory`, once per process: backends stay
/// registered for good. False: there is none for the processor.
pub(crate) fn load_backends(directory: &Path) -> Result<bool, Fault> {
    static LOADED: OnceLock<Result<(), Fault>> = OnceLock::new();
    let directory = path_text(directory)?;
    LOADED
        .get_or_init(|| {
            // SAFETY: the path is terminated and outlives the call.
            value(guarded(|fault| unsafe { shim_load_backends(directory.as_ptr(), fault) }))
        })
        .clone()?;
    // SAFETY: a query without preconditions.
    let has_cpu = !unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) }.is_null();
    if has_cpu {
        // Only now: without backends it would search the current directory and where it was built.
        // SAFETY: it has no preconditions and may be called again.
        unsafe { sys::llama_backend_init() };
    }
    Ok(has_cpu)
}

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Cpu,
    Gpu,
    Integrated,
    Other,
}

/// One device of ggml; its index is its place in [`devices`].
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) kind: DeviceKind,
    pub(crate) name: CString,
    pub(crate) description: CString,
    pub(crate) bus_id: Option<CString>,
}

pub(super) fn device_handle(index: usize) -> Option<sys::ggml_backend_dev_t> {
    // SAFETY: the index is checked against the count, and devices are never taken away again.
    unsafe { (index < sys::ggml_backend_dev_count()).then(|| sys::ggml_backend_dev_get(index)) }
}

pub(super) fn device_index(device: sys::ggml_backend_dev_t) -> Option<u32> {
    (0..u32::MAX)
        .map_while(|index| Some((index, device_handle(index as usize)?)))
        .find_map(|(index, handle)| (handle == device).then_some(index))
}

/// All devices, in ggml's order.
pub(crate) fn devices() -> Vec<Device> {
    (0..)
        .map_while(device_handle)
        .map(|handle| {
            // SAFETY: all fields of the struct are valid when zero, and the call fills it.
            let properties = unsafe {
                let mut properties: sys::ggml_backend_dev_props = std::mem::zeroed();
                sys::ggml_backend_dev_get_props(handle, &raw mut properties);
                properties
            };
            Device {
                kind: match properties.type_ {
                    sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
                    sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Gpu,
                    sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::Integrated,
                    _ => DeviceKind::Other,
                },
                name: owned_text(properties.name).unwrap_or_default(),
                description: owned_text(properties.description).unwrap_or_default(),
                bus_id: owned_text(properties.device_id),
            }
        })
        .collect()
}

/// Free and total bytes of a device, now. Zero and zero where the device does not say.
pub(crate) fn device_memory(index: u32) -> (u64, u64) {
    let (mut free, mut total) = (0, 0);
    if let Some(handle) = device_handle(index as usize) {
        // SAFETY: the handle is one of ggml's, the out-parameters are locals.
        unsafe { sys::ggml_backend_dev_memory(handle, &raw mut free, &raw mut total) };
    }
    (free as u64, total as u64)
}
