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
use serde_json::Value;

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

/// Reads what Python made of a caller's arguments. Where that fails, the argument is named, with what it is: the
/// innermost without which the rest could be read. All is read once more for each that may be it: of very many, the
/// outer ones alone may be.
pub(crate) fn arguments<T>(
    what: &str,
    text: &str,
    read: impl Fn(&str) -> serde_json::Result<T>,
) -> Result<T, Fault> {
    read(text).map_err(|error| {
        let whole = serde_json::from_str(text).unwrap_or_default();
        let blamed = places(&whole).into_iter().rev().find(|place| {
            let mut rest = whole.clone();
            let Some(name) = place.last() else { return false };
            remove(&mut rest, place);
            // Where all else is right, what cannot be left out is what is missing.
            let lacks =
                |error: serde_json::Error| error.to_string().starts_with(&format!("missing field `{name}`"));
            read(&rest.to_string()).map_or_else(lacks, |_| true)
        });
        let Some(place) = blamed else { return malformed(what, &error) };
        let value = place.iter().try_fold(&whole, |inner, name| inner.get(name)).unwrap_or_default();
        // Words of the core that no caller says.
        let said = place.iter().filter(|it| *it != "sampling" && !it.starts_with(char::is_uppercase));
        let name = said.map(String::as_str).collect::<Vec<_>>().join(".");
        let why = error.to_string();
        let why = why.split(" at line ").next().unwrap_or_default();
        let why = TYPES.iter().fold(why.to_owned(), |why, (from, to)| why.replace(from, to));
        let mut shown = value.to_string();
        if let Some((end, _)) = shown.char_indices().nth(MOST_SHOWN) {
            shown.truncate(end);
            shown.push('…');
        }
        Fault::new(ErrorCode::InvalidRequest, format!("{name} is {shown}: {why}")).param(name)
    })
}

/// Members that are looked at, at most.
const MOST_PLACES: usize = 256;
/// Characters of a wrong value that are shown, at most.
const MOST_SHOWN: usize = 200;

/// Rust's types in words.
const TYPES: [(&str, &str); 4] = [
    ("expected u32", "expected a whole number from 0 to 4294967295"),
    ("expected u64", "expected a whole number from 0 to 18446744073709551615"),
    ("expected i32", "expected a whole number from -2147483648 to 2147483647"),
    ("expected f32", "expected a number"),
];

/// The places of members, outer ones first.
fn places(value: &Value) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = vec![Vec::new()];
    let mut at = 0;
    while let Some(place) = found.get(at).filter(|_| found.len() < MOST_PLACES).cloned() {
        let inner = place.iter().try_fold(value, |inner, name| inner.get(name));
        for name in inner.and_then(Value::as_object).into_iter().flat_map(|it| it.keys()) {
            found.push([&place[..], std::slice::from_ref(name)].concat());
        }
        at += 1;
    }
    found.truncate(MOST_PLACES);
    found
}

fn remove(value: &mut Value, place: &[String]) {
    let Some((name, outer)) = place.split_last() else { return };
    let inner = outer.iter().try_fold(value, |inner, name| inner.get_mut(name));
    if let Some(Value::Object(fields)) = inner {
        fields.remove(name);
    }
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
