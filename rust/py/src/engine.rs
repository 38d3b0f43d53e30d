//! `Engine`, `Model` and `Stream`: an engine in this process, without a node.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    event::Event,
    memory::usual_reserve,
    options::{ModelOptions, OptionValue},
    shape::ContextSize,
};
use llm_node_node::{
    host_memory,
    registry::{
        manifest::{self, EngineManifest},
        surroundings::Surroundings,
        verdict::Refusal,
    },
    supervise::Told,
};
use llm_node_wire::message::{EngineAddress, LoadPlan, RequestId, Scheduling, Speculation};
use llm_node_worker::{Engine, EngineSettings, Report, Reporter, RunningModel, unobserved};
use pyo3::prelude::*;

use crate::{
    event::PyEvent,
    fault::{arguments, malformed, raised},
    logging,
    supervisor::json,
};

/// One program's own requests: a mistake, if more than these wait.
const SCHEDULING: Scheduling = Scheduling { queue_limit: 4096, target_step_ms: 150, keep_prefixes: true };
/// Between two looks at whether the user has pressed Ctrl-C.
const PATIENCE: Duration = Duration::from_millis(100);

/// See `_core.pyi`.
#[pyclass(frozen, name = "Engine", module = "llm_node._core")]
pub(crate) struct PyEngine {
    engine: Mutex<Option<Arc<Engine>>>,
    address: EngineAddress,
    manifest: EngineManifest,
    settings: EngineSettings,
    #[pyo3(get)]
    extensions: Vec<String>,
}

#[pymethods]
impl PyEngine {
    #[new]
    #[pyo3(signature = (path, options="{}", packaged="[]"))]
    fn new(py: Python<'_>, path: &str, options: &str, packaged: &str) -> PyResult<Self> {
        logging::start(&logging::wanted(py)?);
        py.detach(|| Self::open(Path::new(path), options, packaged)).map_err(|fault| raised(py, &fault))
    }

    #[getter]
    fn id(&self) -> &str {
        &self.address.id
    }

    #[getter]
    fn version(&self) -> &str {
        &self.address.version
    }

    #[getter]
    fn gpu_backend(&self) -> &str {
        &self.address.gpu_backend
    }

    #[pyo3(signature = (path, options="{}"))]
    fn load(&self, py: Python<'_>, path: &str, options: &str) -> PyResult<PyModel> {
        py.detach(|| self.load_model(Path::new(path), options)).map_err(|fault| raised(py, &fault))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.engine).take()));
    }
}

impl PyEngine {
    fn open(path: &Path, options: &str, packaged: &str) -> Result<Self, Fault> {
        let options: BTreeMap<String, OptionValue> =
            arguments("the engine's options", options, |text| serde_json::from_str(text))?;
        let packaged =
            serde_json::from_str(packaged).map_err(|error| malformed("the libraries of packages", &error))?;
        let directory = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let refused = |refusal: Refusal| Fault::new(refusal.code(), refusal.to_string());
        let (manifest, refusal) = manifest::read(&directory.join("manifest.json")).map_err(refused)?;
        if let Some(refusal) = refusal {
            return Err(refused(refusal));
        }
        manifest.knows(options.keys())?;
        let libraries = Surroundings { packaged, ..Surroundings::default() }.libraries_of(&manifest);
        let named = manifest.clone();
        let address = EngineAddress {
            binary: directory.join(&manifest.binary),
            libraries: libraries.found,
            id: manifest.id,
            version: manifest.version,
            gpu_backend: manifest.gpu_backend,
            directory,
        };
        let settings = EngineSettings { options: texts(&options), ..EngineSettings::default() };
        let engine =
            Engine::open(&address, &settings, unobserved()).map_err(|refusal| {
                match Refusal::Probed(refusal).with_missing(&libraries.missing) {
                    Refusal::Probed(refusal) => refusal.fault,
                    other => refused(other),
                }
            })?;
        let extensions = engine.facts().extensions;
        Ok(Self {
            engine: Mutex::new(Some(Arc::new(engine))),
            address,
            manifest: named,
            settings,
            extensions,
        })
    }

    fn load_model(&self, path: &Path, options: &str) -> Result<PyModel, Fault> {
        let engine = lock(&self.engine).clone().ok_or_else(|| closed("engine"))?;
        let options: ModelOptions =
            arguments("the options of the load", options, |text| serde_json::from_str(text))?;
        if options.engine.is_some() {
            return Err(Fault::new(ErrorCode::InvalidRequest, "the engine is this one").param("engine"));
        }
        self.manifest.knows(options.options.iter().flat_map(|all| all.keys()))?;
        let mut settings = self.settings.options.clone();
        settings.extend(options.options_as_text());
        let plan = LoadPlan {
            engine: self.address.clone(),
            model: std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf()),
            model_id: path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            size: ContextSize::from(&options),
            usual_size: ContextSize::default(),
            gpu_layers: options.gpu_layers.unwrap_or(-1),
            place: Vec::new(),
            threads: options.threads.unwrap_or(0),
            vram_limit_bytes: 0,
            scheduling: SCHEDULING,
            // Nobody could end this process but its owner.
            step_timeout_seconds: 0,
            speculation: Speculation::from(&options),
            tool_syntax: options.tool_syntax.clone(),
            chat_template: options.chat_template.clone(),
            options: settings,
            figures: None,
        };
        let host = host_memory::read();
        let host_free = host.available.saturating_sub(usual_reserve(true, host.total));
        let shape = engine.shape(&plan, host_free)?;
        let model = engine.load(&plan, shape, &mut |_| {})?;
        let streams = Arc::new(Streams::default());
        let reports = Arc::clone(&streams);
        let running = model
            .start(SCHEDULING, Reporter::new(move |report| reports.report(report)))
            .map_err(|error| Fault::new(ErrorCode::Internal, format!("no thread for the model: {error}")))?;
        Ok(PyModel { running: Mutex::new(Some(Arc::new(running))), streams, next: AtomicU64::new(0) })
    }
}

/// See `_core.pyi`.
#[pyclass(frozen, name = "Model", module = "llm_node._core")]
pub(crate) struct PyModel {
    running: Mutex<Option<Arc<RunningModel>>>,
    streams: Arc<Streams>,
    next: AtomicU64,
}

#[pymethods]
impl PyModel {
    fn facts(&self, py: Python<'_>) -> PyResult<String> {
        self.running().and_then(|running| json(running.facts())).map_err(|fault| raised(py, &fault))
    }

    fn generate(&self, py: Python<'_>, request: &str) -> PyResult<PyStream> {
        py.detach(|| {
            let request = arguments("the request", request, |text| serde_json::from_str(text))?;
            let running = self.running()?;
            let id = self.next.fetch_add(1, Ordering::Relaxed);
            let events = self.streams.open(id);
            running.submit(id, request);
            let model = Arc::downgrade(&running);
            Ok(PyStream { id, process: process::id(), model, events: Mutex::new(Some(events)) })
        })
        .map_err(|fault| raised(py, &fault))
    }

    fn ask(&self, py: Python<'_>, question: &str) -> PyResult<String> {
        py.detach(|| {
            let question = arguments("the question", question, |text| serde_json::from_str(text))?;
            let (sender, answers) = mpsc::channel();
            self.running()?.ask(question, move |answer| {
                let _ = sender.send(answer);
            });
            // The model answers exactly once, also when it stops.
            let answer = answers.recv().unwrap_or_else(|_| Err(closed("model")))?;
            json(&answer)
        })
        .map_err(|fault| raised(py, &fault))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            if let Some(running) = lock(&self.running).take() {
                running.stop();
            }
        });
    }
}

impl PyModel {
    fn running(&self) -> Result<Arc<RunningModel>, Fault> {
        lock(&self.running).clone().ok_or_else(|| closed("model"))
    }
}

/// Where the events of each request go.
#[derive(Default)]
struct Streams {
    open: Mutex<HashMap<RequestId, mpsc::Sender<Event>>>,
}

impl Streams {
    fn open(&self, id: RequestId) -> mpsc::Receiver<Event> {
        let (sender, events) = mpsc::channel();
        lock(&self.open).insert(id, sender);
        events
    }

    fn report(&self, report: Report) {
        match report {
            Report::Events(events) => {
                let mut open = lock(&self.open);
                for (id, event) in events {
                    let last = matches!(event, Event::Finished { .. } | Event::Failed(_));
                    if let Some(sender) = open.get(&id) {
                        // Nobody listens: the stream was thrown away, and cancelled with that.
                        let _ = sender.send(event);
                    }
                    if last {
                        open.remove(&id);
                    }
                }
            }
            Report::Lost(fault) => log::error!("{fault}"),
            Report::Drained => {}
        }
    }
}

/// See `_core.pyi`.
#[pyclass(frozen, name = "Stream", module = "llm_node._core")]
pub(crate) struct PyStream {
    id: RequestId,
    /// Where its model computes. A process that was forked from that has a copy of this, and no such threads.
    process: u32,
    model: Weak<RunningModel>,
    /// `None` after the last event.
    events: Mutex<Option<mpsc::Receiver<Event>>>,
}

#[pymethods]
impl PyStream {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<PyEvent>> {
        loop {
            let next = py.detach(|| {
                let mut events = lock(&self.events);
                let Some(receiver) = events.as_ref() else { return Ok(None) };
                let next = receiver.recv_timeout(PATIENCE);
                match &next {
                    Ok(Event::Finished { .. } | Event::Failed(_))
                    | Err(mpsc::RecvTimeoutError::Disconnected) => *events = None,
                    _ => {}
                }
                next.map(Some)
            });
            match next {
                Ok(Some(event)) => return PyEvent::new(py, self.id, event, Told::default()).map(Some),
                Ok(None) | Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(None),
                Err(mpsc::RecvTimeoutError::Timeout) => py.check_signals()?,
            }
        }
    }

    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.leave());
    }
}

impl PyStream {
    fn leave(&self) {
        if self.process != process::id() {
            return;
        }
        if let Some(model) = self.model.upgrade() {
            model.cancel(self.id);
        }
    }
}

impl Drop for PyStream {
    fn drop(&mut self) {
        let unfinished = self.events.get_mut().is_ok_and(|events| events.is_some());
        if unfinished {
            self.leave();
        }
    }
}

fn texts(options: &BTreeMap<String, OptionValue>) -> Vec<(String, String)> {
    options.iter().map(|(name, value)| (name.clone(), value.to_text())).collect()
}

fn closed(what: &str) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, format!("the {what} is closed"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked here is replaced in one step; a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
