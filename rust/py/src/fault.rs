//! `Fault`, the one exception.
//!
//! The stable ABI below Python 3.12 lets no native class derive from an exception, so this class is
//! made from Python source.

use std::fmt::Display;

use llm_node_core::error::{ErrorCode, Fault};
use pyo3::{
    prelude::*,
    sync::PyOnceLock,
    types::{PyDict, PyType},
};

static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// The class, made once.
pub(crate) fn class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    CLASS
        .get_or_try_init(py, || {
            let source = std::ffi::CString::new(include_str!("fault.py"))?;
            let names = PyDict::new(py);
            names.set_item("__name__", "llm_node._core")?;
            py.run(&source, Some(&names), None)?;
            Ok(names.as_any().get_item("Fault")?.cast_into::<PyType>()?.unbind())
        })
        .map(|class| class.bind(py))
}

/// An instance, to be raised or handed on.
pub(crate) fn instance<'py>(py: Python<'py>, fault: &Fault) -> PyResult<Bound<'py, PyAny>> {
    let details = fault.details.as_deref().map(|text| object(py, text)).transpose()?;
    class(py)?.call1((fault.code.as_str(), &fault.message, &fault.param, details))
}

/// The fault as pyo3 raises it.
pub(crate) fn raised(py: Python<'_>, fault: &Fault) -> PyErr {
    instance(py, fault).map_or_else(|error| error, PyErr::from_value)
}

/// What Python handed over is not what it should be.
pub(crate) fn malformed(what: &str, error: &impl Display) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, format!("{what}: {error}"))
}

/// JSON text to a dict; text that is no JSON object to one with the text in it.
fn object<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    let parsed = py.import("json")?.call_method1("loads", (text,));
    match parsed {
        Ok(value) if value.is_instance_of::<PyDict>() => Ok(value),
        _ => {
            let details = PyDict::new(py);
            details.set_item("text", text)?;
            Ok(details.into_any())
        }
    }
}
