//! `run_load`: the load generator, driven from the thread that calls it.

use std::ops::ControlFlow;

use llm_node_core::error::{ErrorCode, Fault};
use llm_node_load::{LoadError, Plan};
use pyo3::{exceptions::PyKeyboardInterrupt, prelude::*};

use crate::{fault::raised, supervisor::json};

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn run_load(py: Python<'_>, plan: &str, progress: &Bound<'_, PyAny>) -> PyResult<String> {
    let plan = Plan::parse(plan)
        .map_err(|error| raised(py, &Fault::new(ErrorCode::InvalidRequest, error.to_string())))?;
    let progress = progress.clone().unbind();
    let (report, stopped) = py.detach(|| {
        let mut stopped = None;
        let report = llm_node_load::run(&plan, &mut |now| {
            let called = Python::attach(|py| {
                // Ctrl-C reaches Python only where Python code runs.
                py.check_signals()?;
                progress.call1(py, (now.seconds, now.completed, now.failed, now.events)).map(drop)
            });
            match called {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    stopped = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        (report, stopped)
    });
    match (report, stopped) {
        // Who stops a run wants to see what it came to.
        (_, Some(error)) if !error.is_instance_of::<PyKeyboardInterrupt>(py) => Err(error),
        (Ok(report), _) => json(&report).map_err(|fault| raised(py, &fault)),
        (Err(error @ LoadError::Poll(_)), _) => {
            Err(raised(py, &Fault::new(ErrorCode::Internal, error.to_string())))
        }
    }
}
