//! `Supervisor`: `llm_node_node::supervise::Supervisor`, in JSON.

use std::{
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use llm_node_core::error::{ErrorCode, Fault};
use llm_node_node::{
    blocks::Blocks,
    config::NodeConfig,
    frames::Writing,
    platform::wake_pair,
    registry::surroundings::Surroundings,
    supervise::{Delivery, Form, LoadRequest, Supervisor, Waiting, Waker, What},
};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyString},
};
use serde::Serialize;

use crate::{
    event::PyEvent,
    fault::{arguments, instance, malformed, raised},
    frames::{PyFrames, frames},
    logging,
};

/// Items by client, outcomes by ticket.
type Drained<'py> = (Vec<(u64, Bound<'py, PyAny>)>, Vec<(u64, Bound<'py, PyAny>)>);

/// See `_core.pyi`.
#[pyclass(frozen, name = "Supervisor", module = "llm_node._core")]
pub(crate) struct PySupervisor {
    inner: Supervisor,
}

#[pymethods]
impl PySupervisor {
    #[new]
    fn new(py: Python<'_>, config: &str) -> PyResult<Self> {
        let config = NodeConfig::parse(config).map_err(|fault| raised(py, &fault))?;
        logging::start(&config.log_level);
        Ok(Self { inner: py.detach(|| Supervisor::new(config)) })
    }

    fn reconfigure(&self, py: Python<'_>, config: &str) -> PyResult<()> {
        let config = NodeConfig::parse(config).map_err(|fault| raised(py, &fault))?;
        py.detach(|| self.inner.reconfigure(config));
        Ok(())
    }

    fn search_in(&self, py: Python<'_>, surroundings: &str) -> PyResult<()> {
        let surroundings: Surroundings = serde_json::from_str(surroundings)
            .map_err(|error| raised(py, &malformed("the surroundings of engines", &error)))?;
        py.detach(|| self.inner.search_in(surroundings));
        Ok(())
    }

    #[pyo3(signature = (refresh=false))]
    fn engines(&self, py: Python<'_>, refresh: bool) -> u64 {
        py.detach(|| self.inner.engines(refresh))
    }

    fn models(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.models())
    }

    fn model(&self, py: Python<'_>, name: &str) -> u64 {
        py.detach(|| self.inner.model(name))
    }

    fn alias(&self, py: Python<'_>, alias: &str, name: &str) -> u64 {
        py.detach(|| self.inner.alias(alias, name))
    }

    fn unlisted(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.unlisted())
    }

    fn obstacles(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.obstacles())
    }

    #[pyo3(signature = (path, context_length=None))]
    fn plan(&self, py: Python<'_>, path: PathBuf, context_length: Option<u32>) -> u64 {
        py.detach(|| self.inner.plan(path, context_length))
    }

    fn plan_load(&self, py: Python<'_>, request: &str) -> PyResult<u64> {
        let request = arguments("the request to plan", request, LoadRequest::parse)
            .map_err(|fault| raised(py, &fault))?;
        Ok(py.detach(|| self.inner.plan_load(request)))
    }

    fn load(&self, py: Python<'_>, request: &str) -> PyResult<u64> {
        let request = arguments("the request to load", request, LoadRequest::parse)
            .map_err(|fault| raised(py, &fault))?;
        Ok(py.detach(|| self.inner.load(request)))
    }

    fn unload(&self, py: Python<'_>, model_id: &str, timeout_seconds: f64) -> u64 {
        let timeout = duration(timeout_seconds);
        py.detach(|| self.inner.unload(model_id, timeout))
    }

    #[pyo3(signature = (is_fresh=false))]
    fn system(&self, py: Python<'_>, is_fresh: bool) -> u64 {
        py.detach(|| self.inner.system(is_fresh))
    }

    fn incidents(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.incidents())
    }

    fn meters(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.meters())
    }

    fn standstill(&self, py: Python<'_>) -> Option<String> {
        py.detach(|| self.inner.standstill())
    }

    fn await_defect(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.await_defect())
    }

    fn blind_seconds(&self, py: Python<'_>) -> Option<u64> {
        py.detach(|| self.inner.blind_seconds())
    }

    fn next_reading(&self, py: Python<'_>, interval_seconds: f64) -> bool {
        py.detach(|| self.inner.next_reading(duration(interval_seconds)))
    }

    fn update_devices(&self, py: Python<'_>, devices: &str) -> PyResult<()> {
        let devices =
            serde_json::from_str(devices).map_err(|error| raised(py, &malformed("the devices", &error)))?;
        py.detach(|| self.inner.update_devices(devices));
        Ok(())
    }

    #[pyo3(signature = (model_id, request, client, frames=None, whole=false))]
    fn submit(
        &self,
        py: Python<'_>,
        model_id: &str,
        request: &str,
        client: u64,
        frames: Option<PyFrames>,
        whole: bool,
    ) -> PyResult<u64> {
        let form = match frames {
            Some(given) => Form::Bytes(Writing::new(self::frames(py, given)?)),
            None if whole => Form::Whole(Blocks::default()),
            None => Form::Events,
        };
        py.detach(|| {
            let request = arguments("the request", request, |text| serde_json::from_str(text))?;
            self.inner.submit(model_id, request, client, form)
        })
        .map_err(|fault| raised(py, &fault))
    }

    fn cancel(&self, py: Python<'_>, stream: u64) {
        py.detach(|| self.inner.cancel(stream));
    }

    fn ask(&self, py: Python<'_>, model_id: &str, question: &str) -> PyResult<u64> {
        py.detach(|| {
            let question = arguments("the question", question, |text| serde_json::from_str(text))?;
            self.inner.ask(model_id, question)
        })
        .map_err(|fault| raised(py, &fault))
    }

    fn park(&self, py: Python<'_>, model_id: &str, requests: usize) {
        py.detach(|| self.inner.park(model_id, requests));
    }

    fn unpark(&self, py: Python<'_>, model_id: &str, requests: usize) {
        py.detach(|| self.inner.unpark(model_id, requests));
    }

    fn forget(&self, py: Python<'_>, ticket: u64) {
        py.detach(|| self.inner.forget(ticket));
    }

    fn wake_socket(&self, py: Python<'_>) -> PyResult<i64> {
        let (writing, number) = wake_pair()?;
        let writing = Mutex::new(writing);
        // A full socket has bytes that nobody has read yet; a broken one has nobody left to be woken.
        let wake: Waker = Arc::new(move || {
            let _ = writing.lock().unwrap_or_else(PoisonError::into_inner).write(&[1]);
        });
        py.detach(|| self.inner.set_waker(Some(wake)));
        Ok(number)
    }

    fn drain<'py>(&self, py: Python<'py>) -> PyResult<Drained<'py>> {
        let Waiting { deliveries, outcomes } = py.detach(|| self.inner.drain());
        let mut items = Vec::with_capacity(deliveries.len());
        for Delivery { client, what } in deliveries {
            let item = match what {
                What::Bytes(mut bytes) => PyBytes::new(py, bytes.frame()).into_any(),
                What::Event { stream, event, told } => {
                    Bound::new(py, PyEvent::new(py, stream, event, told)?)?.into_any()
                }
                What::Overflow => py.None().into_bound(py),
            };
            items.push((client, item));
        }
        let mut told = Vec::with_capacity(outcomes.len());
        for (ticket, outcome) in outcomes {
            let outcome = match outcome {
                Ok(json) => PyString::new(py, &json).into_any(),
                Err(fault) => instance(py, &fault)?,
            };
            told.push((ticket, outcome));
        }
        Ok((items, told))
    }

    fn hold(&self, py: Python<'_>, client: u64, unsent: usize) -> u64 {
        py.detach(|| self.inner.hold(client, unsent))
    }

    #[pyo3(signature = (client, socket=None))]
    fn release(&self, py: Python<'_>, client: u64, socket: Option<i64>) {
        py.detach(|| self.inner.release(client, socket));
    }

    fn disconnect(&self, py: Python<'_>, client: u64) {
        py.detach(|| self.inner.disconnect(client));
    }

    fn shutdown(&self, py: Python<'_>, drain_seconds: f64) {
        let limit = duration(drain_seconds);
        py.detach(|| {
            self.inner.shutdown(limit);
            logging::flush();
        });
    }
}

pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, Fault> {
    serde_json::to_string(value)
        .map_err(|error| Fault::new(ErrorCode::Internal, format!("an answer cannot be written: {error}")))
}

/// Seconds from Python: what is negative or no number means at once, what is too much means for ever.
fn duration(seconds: f64) -> Duration {
    if seconds > 0.0 {
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_hours(24))
    } else {
        Duration::ZERO
    }
}
