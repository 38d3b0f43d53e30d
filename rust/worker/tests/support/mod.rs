//! A node in miniature: it listens on a real socket, starts a real worker process, and talks to it.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

pub use llm_node_fixtures::root;

use interprocess::local_socket::{ListenerOptions, Stream, traits::Listener as _};
use llm_node_core::{
    chat::conversation::Format,
    event::{Event, Finish, Usage},
    facts::ModelFacts,
    request::{Prompt, Request, Sampling},
    shape::ContextSize,
};
use llm_node_wire::{
    endpoint::{self, FromWorkerReader},
    frame::{FrameError, FrameReader, FrameWriter},
    message::{
        EngineAddress, FromWorker, LoadPlan, PROTOCOL_VERSION, RequestId, Scheduling, Speculation, ToWorker,
    },
};

pub const SECRET: &str = "open sesame";

/// Longest that anything here may take. Nothing is expected to; it only ends a test that hangs.
const DEADLINE: Duration = Duration::from_mins(1);

/// Compiles a C engine into a folder of its own.
pub fn compile(folder: &Path, source: &Path, id: &str, flags: &[&str]) -> EngineAddress {
    let address = address(folder, id);
    llm_node_fixtures::compile(source, &address.binary, flags);
    address
}

/// The shared fake with some of its switches.
pub fn fake(folder: &Path, switches: &[&str]) -> EngineAddress {
    let address = address(folder, "fake");
    llm_node_fixtures::compile_fake(&address.binary, switches);
    address
}

fn address(folder: &Path, id: &str) -> EngineAddress {
    EngineAddress {
        id: id.into(),
        version: "1.0.0".into(),
        gpu_backend: "cpu".into(),
        directory: folder.into(),
        binary: folder.join(format!("lib{id}.so")),
        libraries: Vec::new(),
    }
}

/// A model that the fake takes.
pub fn toy_model(folder: &Path) -> PathBuf {
    llm_node_fixtures::toy_model(folder, "")
}

pub fn plan(engine: EngineAddress, model: PathBuf) -> LoadPlan {
    LoadPlan {
        engine,
        model,
        model_id: "toy".into(),
        size: ContextSize::default(),
        usual_size: ContextSize::default(),
        gpu_layers: -1,
        place: Vec::new(),
        threads: 1,
        vram_limit_bytes: 0,
        scheduling: SCHEDULING,
        step_timeout_seconds: 0,
        speculation: Speculation::default(),
        tool_syntax: None,
        chat_template: None,
        options: Vec::new(),
        figures: None,
    }
}

pub const SCHEDULING: Scheduling = Scheduling { queue_limit: 256, target_step_ms: 150, keep_prefixes: true };

pub fn greedy(prompt: &str, max_tokens: u32) -> Request {
    Request {
        prompt: Prompt::Text(prompt.into()),
        max_tokens: Some(max_tokens),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        format: Format::Text,
        source: 0,
    }
}

/// What became of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub started: bool,
    pub text: String,
    pub tokens: Vec<i32>,
    pub pieces: usize,
    pub ending: Option<Event>,
}

impl Outcome {
    pub fn take(&mut self, event: Event) {
        assert!(self.ending.is_none(), "{event:?} after the end");
        match event {
            Event::Started { .. } => self.started = true,
            Event::Piece(piece) => {
                self.text += &piece.text;
                self.pieces += 1;
                self.tokens.extend(piece.tokens.iter().map(|token| token.id));
            }
            ending => self.ending = Some(ending),
        }
    }

    pub fn finished(&self) -> (Finish, Usage) {
        match self.ending {
            Some(Event::Finished { reason, usage, .. }) => (reason, usage),
            ref other => panic!("{other:?}"),
        }
    }
}

pub struct Worker {
    pub child: Child,
    reader: FrameReader<FromWorkerReader>,
    writer: FrameWriter<Stream>,
    /// Stages seen so far.
    pub stages: Vec<String>,
    /// What it has written down so far.
    pub log: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Worker {
    /// Starts a worker and waits for its greeting.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = path.to_str().unwrap();
        let listener = ListenerOptions::new().name(endpoint::name(address).unwrap()).create_sync().unwrap();
        let child = Command::new(program())
            .arg(address)
            .env("LLM_NODE_WORKER_SECRET", SECRET)
            .env("GGML_NO_BACKTRACE", "1")
            .spawn()
            .unwrap();
        let socket = listener.accept().unwrap();
        let mut worker = Self {
            child,
            reader: FrameReader::new(endpoint::send_pipe(&socket).unwrap()),
            writer: FrameWriter::new(socket),
            stages: Vec::new(),
            log: Vec::new(),
            _folder: folder,
        };
        let hello = worker.next().unwrap();
        assert_eq!(hello, FromWorker::Hello { protocol: PROTOCOL_VERSION, secret: SECRET.into() });
        worker
    }

    /// Starts a worker and loads a model.
    pub fn load(plan: LoadPlan) -> (Self, ModelFacts) {
        let mut worker = Self::start();
        worker.send(&ToWorker::Load(plan));
        match worker.next().unwrap() {
            FromWorker::Estimated(_) => worker.send(&ToWorker::Proceed(None)),
            other => panic!("{other:?}"),
        }
        match worker.next().unwrap() {
            FromWorker::Ready(facts) => (worker, facts),
            other => panic!("{other:?}"),
        }
    }

    pub fn send(&mut self, message: &ToWorker) {
        self.writer.write(message).unwrap();
    }

    /// The next message that is neither stage nor log nor progress nor beat nor how busy it is.
    pub fn next(&mut self) -> Result<FromWorker, FrameError> {
        loop {
            match self.reader.read()? {
                FromWorker::Stage(stage) => self.stages.push(stage),
                FromWorker::Log { message, .. } => self.log.push(message),
                FromWorker::Progress(_) | FromWorker::Beat { .. } | FromWorker::Busy(_) => {}
                message => return Ok(message),
            }
        }
    }

    /// The next message, whatever it is.
    pub fn any(&mut self) -> Result<FromWorker, FrameError> {
        self.reader.read()
    }

    /// Waits until the worker says that it begins this call.
    pub fn wait_for_stage(&mut self, stage: &str) {
        loop {
            match self.reader.read().unwrap() {
                FromWorker::Stage(name) => {
                    self.stages.push(name);
                    if self.stages.last().unwrap().contains(stage) {
                        return;
                    }
                }
                FromWorker::Log { .. }
                | FromWorker::Progress(_)
                | FromWorker::Beat { .. }
                | FromWorker::Busy(_) => {}
                other => panic!("{other:?} before stage {stage}"),
            }
        }
    }

    pub fn generate(&mut self, id: RequestId, request: Request) {
        self.send(&ToWorker::Generate { id, request });
    }

    /// Takes events until all of these requests have ended.
    pub fn outcomes(&mut self, ids: &[RequestId]) -> HashMap<RequestId, Outcome> {
        let mut outcomes: HashMap<RequestId, Outcome> = HashMap::new();
        while !ids.iter().all(|id| outcomes.get(id).is_some_and(|o| o.ending.is_some())) {
            match self.next().unwrap() {
                FromWorker::Step(events) => {
                    for (id, event) in events {
                        outcomes.entry(id).or_default().take(event);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        outcomes
    }

    pub fn outcome(&mut self, id: RequestId) -> Outcome {
        self.outcomes(&[id]).remove(&id).unwrap()
    }

    /// Waits for the process to end by itself.
    pub fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }

    /// The node is gone: its side of the socket closes.
    pub fn abandon(self) -> Abandoned {
        let Self { child, reader, writer, _folder, .. } = self;
        drop((reader, writer));
        Abandoned(child)
    }
}

pub struct Abandoned(pub Child);

impl Abandoned {
    pub fn ended(mut self) -> ExitStatus {
        ended(&mut self.0)
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begin.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("the worker does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The example `worker`, which cargo builds beside the tests.
fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/worker")
}
