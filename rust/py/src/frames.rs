//! The frames of a stream, as Python hands them over.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
};

use llm_node_node::frames::{Frames, Hole, PartTemplates, Template, Told};
use pyo3::{
    prelude::*,
    pybacked::{PyBackedBytes, PyBackedStr},
};

use crate::{
    event::pattern,
    fault::{malformed, raised},
};

/// Bytes, each with the name of the hole behind it; and the bytes behind the last hole.
type PyTemplate = (Vec<(PyBackedBytes, PyBackedStr)>, PyBackedBytes);

/// Begin, delta, end, cut.
type PyPart = (Option<PyTemplate>, Option<PyTemplate>, Option<PyTemplate>, Option<PyTemplate>);

/// Templates of text, reasoning and input; further ones, and the tools by whose calls they are used, each with
/// which one and the name that is told; the pattern of log-probabilities; whether the connection takes chunks;
/// whether the blocks are wanted at the end; and the first number.
pub(crate) type PyFrames = (
    Option<PyPart>,
    Option<PyPart>,
    Option<PyPart>,
    Vec<PyPart>,
    HashMap<String, (usize, String)>,
    Option<PyBackedStr>,
    bool,
    bool,
    u64,
);

/// The same as the node has it.
pub(crate) fn frames(py: Python<'_>, frames: PyFrames) -> PyResult<Frames> {
    let (text, reasoning, input, further, tools, logprobs, chunked, keeps, number) = frames;
    let further = further
        .into_iter()
        .map(|it| part(py, Some(it)).map(Arc::new))
        .collect::<PyResult<Vec<Arc<PartTemplates>>>>()?;
    let told = |(tool, (which, name)): (String, (usize, String))| {
        let templates = further.get(which).cloned().ok_or_else(|| {
            raised(py, &malformed("the frames of a tool", &format!("there is no template {which}")))
        })?;
        Ok((tool, Told { templates, name }))
    };
    Ok(Frames {
        text: part(py, text)?,
        reasoning: part(py, reasoning)?,
        input: part(py, input)?,
        tools: tools.into_iter().map(told).collect::<PyResult<_>>()?,
        pattern: logprobs.map(|it| pattern(py, &it)).transpose()?,
        chunked,
        keeps,
        number: AtomicU64::new(number),
    })
}

fn part(py: Python<'_>, part: Option<PyPart>) -> PyResult<PartTemplates> {
    let Some((begin, delta, end, cut)) = part else { return Ok(PartTemplates::default()) };
    let template = |it: Option<PyTemplate>| it.map(|it| template(py, it)).transpose();
    Ok(PartTemplates {
        begin: template(begin)?,
        delta: template(delta)?,
        end: template(end)?,
        cut: template(cut)?,
    })
}

fn template(py: Python<'_>, (segments, tail): PyTemplate) -> PyResult<Template> {
    let segment = |(bytes, name): (PyBackedBytes, PyBackedStr)| {
        let hole = Hole::of(&name)
            .ok_or_else(|| raised(py, &malformed("a template", &format!("no hole is called {name}"))))?;
        Ok((bytes.to_vec(), hole))
    };
    let segments = segments.into_iter().map(segment).collect::<PyResult<_>>()?;
    Ok(Template::new(segments, tail.to_vec()))
}
