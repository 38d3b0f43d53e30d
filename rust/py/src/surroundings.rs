//! What needs no supervisor: this process, the machine under it, and where engines may lie.

use std::path::PathBuf;

use llm_node_node::{host_memory, platform, registry::search};
use pyo3::prelude::*;

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn host_memory_bytes(py: Python<'_>) -> (u64, u64) {
    let memory = py.detach(host_memory::read);
    (memory.total, memory.available)
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn keep_memory_private() -> PyResult<()> {
    Ok(platform::keep_memory_private()?)
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn engines_folder_meant(py: Python<'_>, folder: PathBuf) -> Option<PathBuf> {
    py.detach(move || search::meant(&folder))
}
