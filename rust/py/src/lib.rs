//! The only pyo3: translates, decides nothing.
//!
//! What Python sees is written down in `python/llm_node/_core.pyi`. Every call that may wait gives the
//! GIL back first.
#![forbid(unsafe_code)]

mod bench;
mod conformance;
mod engine;
mod event;
mod fault;
mod frames;
mod logging;
mod supervisor;
mod surroundings;
mod worker;

use llm_node_core::chat::model::SyntaxChoice;
use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("ABI_VERSION", llm_node_abi::ENGINE_ABI_VERSION)?;
    let codes: Vec<&str> = llm_node_core::error::ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    module.add("ERROR_CODES", codes)?;
    module.add("TOOL_SYNTAXES", SyntaxChoice::names().collect::<Vec<_>>())?;
    module.add("Fault", fault::class(py)?)?;
    module.add_class::<event::PyEvent>()?;
    module.add_class::<event::PyBlock>()?;
    module.add_class::<supervisor::PySupervisor>()?;
    module.add_class::<engine::PyEngine>()?;
    module.add_class::<engine::PyModel>()?;
    module.add_class::<engine::PyStream>()?;
    module.add_function(wrap_pyfunction!(bench::run_load, module)?)?;
    module.add_function(wrap_pyfunction!(conformance::check_engine, module)?)?;
    module.add_function(wrap_pyfunction!(conformance::conformance_checks, module)?)?;
    module.add_function(wrap_pyfunction!(conformance::conformance_items, module)?)?;
    module.add_function(wrap_pyfunction!(conformance::engine_at, module)?)?;
    module.add_function(wrap_pyfunction!(conformance::engine_claims, module)?)?;
    module.add_function(wrap_pyfunction!(conformance::run_check, module)?)?;
    module.add_function(wrap_pyfunction!(surroundings::engines_folder_meant, module)?)?;
    module.add_function(wrap_pyfunction!(surroundings::end_with_parent, module)?)?;
    module.add_function(wrap_pyfunction!(surroundings::gguf_header, module)?)?;
    module.add_function(wrap_pyfunction!(surroundings::host_memory_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(surroundings::keep_memory_private, module)?)?;
    module.add_function(wrap_pyfunction!(surroundings::quantization_in, module)?)?;
    module.add_function(wrap_pyfunction!(worker::run_worker, module)?)
}
