//! What needs no supervisor: this process, the machine under it, where engines may lie, headers of files.

use std::path::PathBuf;

use llm_node_core::error::{ErrorCode, Fault};
use llm_node_node::{
    host_memory,
    models::{gguf, quantization},
    platform,
    registry::search,
};
use pyo3::prelude::*;

use crate::{fault::raised, supervisor::json};

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
pub(crate) fn end_with_parent() -> PyResult<()> {
    Ok(platform::end_with_parent()?)
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn engines_folder_meant(py: Python<'_>, folder: PathBuf) -> Option<PathBuf> {
    py.detach(move || search::meant(&folder))
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn gguf_header(py: Python<'_>, prefix: &[u8], length: u64) -> PyResult<Option<String>> {
    py.detach(|| match gguf::of_prefix(prefix, length) {
        Ok(None) => Ok(None),
        Ok(Some(header)) => json(&header).map(Some),
        Err(error) => Err(Fault::new(ErrorCode::ModelCorrupt, error.to_string())),
    })
    .map_err(|fault| raised(py, &fault))
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn quantization_in(stem: &str) -> Option<String> {
    quantization::from_file_name(stem)
}
