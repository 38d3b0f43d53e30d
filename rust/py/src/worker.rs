//! `run_worker`: the whole life of a worker process.

use pyo3::prelude::*;

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn run_worker(py: Python<'_>, endpoint: &str) -> PyResult<i32> {
    let secret: String = py
        .import("os")?
        .getattr("environ")?
        .call_method1("pop", ("LLM_NODE_WORKER_SECRET", ""))?
        .extract()?;
    Ok(py.detach(|| llm_node_worker::serve::run_worker(endpoint, secret)))
}
