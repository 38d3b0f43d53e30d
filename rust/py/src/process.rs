//! This process and the machine under it: what `platform` and `host_memory` of `rust/node` know.

use llm_node_node::{host_memory, platform};
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
