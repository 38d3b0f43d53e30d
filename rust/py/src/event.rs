//! `Event` and `Block`: what happened to a stream, as Python sees it.

use std::time::Duration;

use llm_node_core::event::{Event, Part, Piece, Usage};
use llm_node_node::{
    blocks::Block,
    pattern::{Items, Pattern, Place},
    supervise::Told,
};
use pyo3::{prelude::*, types::PyBytes};

use crate::fault;

/// See `_core.pyi`.
#[pyclass(frozen, name = "Event", module = "llm_node._core")]
pub(crate) struct PyEvent {
    #[pyo3(get)]
    stream: u64,
    #[pyo3(get)]
    kind: &'static str,
    piece: Piece,
    #[pyo3(get)]
    id: String,
    #[pyo3(get)]
    name: String,
    usage: Usage,
    #[pyo3(get)]
    relaxed: Vec<String>,
    #[pyo3(get)]
    finish: Option<&'static str>,
    #[pyo3(get)]
    stop: Option<String>,
    #[pyo3(get)]
    fault: Option<Py<PyAny>>,
    #[pyo3(get)]
    number: u64,
    #[pyo3(get)]
    blocks: Vec<Py<PyBlock>>,
}

#[pymethods]
impl PyEvent {
    #[getter]
    fn part(&self) -> &'static str {
        self.piece.part.as_str()
    }

    #[getter]
    fn text(&self) -> &str {
        &self.piece.text
    }

    #[getter]
    fn prompt_tokens(&self) -> u32 {
        self.usage.prompt_tokens
    }

    #[getter]
    fn completion_tokens(&self) -> u32 {
        self.usage.completion_tokens
    }

    #[getter]
    fn reasoning_tokens(&self) -> u32 {
        self.usage.reasoning_tokens
    }

    #[getter]
    fn cached_tokens(&self) -> u32 {
        self.usage.cached_tokens
    }

    #[getter]
    fn drafted_tokens(&self) -> u32 {
        self.usage.drafted_tokens
    }

    #[getter]
    fn accepted_tokens(&self) -> u32 {
        self.usage.accepted_tokens
    }

    #[getter]
    fn waited_ns(&self) -> u64 {
        nanoseconds(self.usage.waited)
    }

    #[getter]
    fn read_ns(&self) -> u64 {
        nanoseconds(self.usage.read)
    }

    #[getter]
    fn wrote_ns(&self) -> u64 {
        nanoseconds(self.usage.wrote)
    }

    fn fill<'py>(&self, py: Python<'py>, pattern: &str) -> PyResult<Bound<'py, PyBytes>> {
        filled(py, self.blocks.iter().map(|it| &it.get().0), pattern)
    }

    fn __repr__(&self) -> String {
        format!("<Event {} of stream {}>", self.kind, self.stream)
    }
}

impl PyEvent {
    pub(crate) fn new(py: Python<'_>, stream: u64, event: Event, told: Told) -> PyResult<Self> {
        let mut this = Self {
            stream,
            kind: "started",
            piece: Piece::default(),
            id: String::new(),
            name: String::new(),
            usage: Usage::default(),
            relaxed: Vec::new(),
            finish: None,
            stop: None,
            fault: None,
            number: told.number,
            blocks: Vec::with_capacity(told.blocks.len()),
        };
        for block in told.blocks {
            this.blocks.push(Py::new(py, PyBlock(block))?);
        }
        match event {
            Event::Started { prompt_tokens, cached_tokens, relaxed } => {
                this.usage = Usage { prompt_tokens, cached_tokens, ..Usage::default() };
                this.relaxed = relaxed;
            }
            Event::Piece(piece) => {
                this.kind = "piece";
                this.piece = piece;
            }
            Event::CallBegan { id, name, .. } => {
                this.kind = "call_began";
                (this.id, this.name) = (id, name);
            }
            Event::CallEnded => this.kind = "call_ended",
            Event::Finished { reason, stop, usage } => {
                this.kind = "finished";
                this.finish = Some(reason.as_str());
                this.stop = stop;
                this.usage = usage;
            }
            Event::Failed(fault) => {
                this.kind = "failed";
                this.fault = Some(fault::instance(py, &fault)?.unbind());
            }
        }
        Ok(this)
    }
}

/// See `_core.pyi`.
#[pyclass(frozen, name = "Block", module = "llm_node._core")]
pub(crate) struct PyBlock(Block);

#[pymethods]
impl PyBlock {
    #[getter]
    fn part(&self) -> &'static str {
        self.0.part.as_str()
    }

    #[getter]
    fn text(&self) -> &str {
        &self.0.text
    }

    #[getter]
    fn id(&self) -> &str {
        &self.0.id
    }

    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }

    #[getter]
    fn complete(&self) -> bool {
        self.0.complete
    }

    #[getter]
    fn tokens(&self) -> Vec<i32> {
        self.0.tokens.iter().map(|it| it.id).collect()
    }

    fn fill<'py>(&self, py: Python<'py>, pattern: &str) -> PyResult<Bound<'py, PyBytes>> {
        filled(py, std::iter::once(&self.0), pattern)
    }

    fn __repr__(&self) -> String {
        format!("<Block of {}, {} bytes>", self.0.part.as_str(), self.0.text.len())
    }
}

/// The log-probabilities of the text in these blocks.
fn filled<'py, 'a>(
    py: Python<'py>,
    blocks: impl Iterator<Item = &'a Block>,
    pattern: &str,
) -> PyResult<Bound<'py, PyBytes>> {
    let pattern = self::pattern(py, pattern)?;
    let (mut items, mut place) = (Items::default(), Place::default());
    for block in blocks.filter(|it| it.part == Part::Text) {
        items.append(pattern.items(&block.tokens, &mut place));
    }
    let mut json = Vec::new();
    pattern.write(&items, &mut json);
    Ok(PyBytes::new(py, &json))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How log-probabilities are written; see `rust/node/src/pattern.rs`.
pub(crate) fn pattern(py: Python<'_>, text: &str) -> PyResult<Pattern> {
    Pattern::parse(text).map_err(|error| fault::raised(py, &fault::malformed("the pattern", &error)))
}
