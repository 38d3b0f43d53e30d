//! `Event`: what happened to a stream, as Python sees it.

use llm_node_core::event::{Event, Piece};
use llm_node_node::pattern::{Pattern, Place};
use pyo3::{prelude::*, types::PyBytes};

use crate::fault;

/// See `_core.pyi`.
#[pyclass(frozen, name = "Event", module = "llm_node._core")]
pub(crate) struct PyEvent {
    #[pyo3(get)]
    stream: u64,
    #[pyo3(get)]
    kind: &'static str,
    piece: Option<Piece>,
    #[pyo3(get)]
    prompt_tokens: u32,
    #[pyo3(get)]
    completion_tokens: u32,
    #[pyo3(get)]
    cached_tokens: u32,
    #[pyo3(get)]
    drafted_tokens: u32,
    #[pyo3(get)]
    accepted_tokens: u32,
    #[pyo3(get)]
    finish: Option<&'static str>,
    #[pyo3(get)]
    fault: Option<Py<PyAny>>,
}

#[pymethods]
impl PyEvent {
    #[getter]
    fn text(&self) -> &str {
        self.piece.as_ref().map_or("", |piece| &piece.text)
    }

    fn fill<'py>(&self, py: Python<'py>, pattern: &str) -> PyResult<Bound<'py, PyBytes>> {
        let pattern = self::pattern(py, pattern)?;
        let tokens = self.piece.as_ref().map_or(&[][..], |piece| &piece.tokens);
        let mut json = Vec::new();
        pattern.write(&pattern.items(tokens, &mut Place::default()), &mut json);
        Ok(PyBytes::new(py, &json))
    }

    fn __repr__(&self) -> String {
        format!("<Event {} of stream {}>", self.kind, self.stream)
    }
}

impl PyEvent {
    pub(crate) fn new(py: Python<'_>, stream: u64, event: Event) -> PyResult<Self> {
        let mut this = Self {
            stream,
            kind: "started",
            piece: None,
            prompt_tokens: 0,
            completion_tokens: 0,
            cached_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            finish: None,
            fault: None,
        };
        match event {
            Event::Started { prompt_tokens } => this.prompt_tokens = prompt_tokens,
            Event::Piece(piece) => {
                this.kind = "piece";
                this.piece = Some(piece);
            }
            Event::Finished { reason, usage } => {
                this.kind = "finished";
                this.finish = Some(reason.as_str());
                this.prompt_tokens = usage.prompt_tokens;
                this.completion_tokens = usage.completion_tokens;
                this.cached_tokens = usage.cached_tokens;
                this.drafted_tokens = usage.drafted_tokens;
                this.accepted_tokens = usage.accepted_tokens;
            }
            Event::Failed(fault) => {
                this.kind = "failed";
                this.fault = Some(fault::instance(py, &fault)?.unbind());
            }
        }
        Ok(this)
    }
}

/// How log-probabilities are written; see `rust/node/src/pattern.rs`.
pub(crate) fn pattern(py: Python<'_>, text: &str) -> PyResult<Pattern> {
    Pattern::parse(text).map_err(|error| fault::raised(py, &fault::malformed("the pattern", &error)))
}
