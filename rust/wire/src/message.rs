//! The messages, as they stand in a frame.
//!
//! Node to worker: [`ToWorker`]; back: [`FromWorker`]. Anything not named here does not cross.

use llm_node_core::{
    chat::conversation::Conversation,
    error::Fault,
    event::Event,
    facts::ModelFacts,
    memory::{Estimate, Figures, GpuAddress, MemoryUse},
    options::{Guesser, ModelOptions},
    request::Request,
    session::Occupancy,
    shape::{ContextSize, Shape, Sizing, Wish},
};
use serde::{Deserialize, Serialize};

/// Raised whenever a message changes its shape; a worker of another version is refused.
pub const PROTOCOL_VERSION: u32 = 12;

/// Names a request within one worker.
pub type RequestId = u64;

/// An engine as the registry found it. All paths are absolute, in the platform's own encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineAddress {
    /// The manifest's `id`, which the binary must repeat.
    pub id: String,
    /// The manifest's `version`, which the binary must repeat.
    pub version: String,
    /// The manifest's `gpu_backend`.
    pub gpu_backend: String,
    /// Folder of the manifest.
    #[serde(with = "crate::os_path")]
    pub directory: std::path::PathBuf,
    /// The shared library.
    #[serde(with = "crate::os_path")]
    pub binary: std::path::PathBuf,
    /// Libraries that are opened before it, by their paths, in this order.
    #[serde(with = "crate::os_path::list")]
    pub libraries: Vec<std::path::PathBuf>,
}

/// How the requests to one model are scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// Requests that may wait for admission before new ones are refused.
    pub queue_limit: u32,
    /// Milliseconds that the prompts in a step may make it, while answers are under way.
    pub target_step_ms: u32,
    /// Keep what the KV cache holds of answers that ended, for prompts that begin alike?
    pub keep_prefixes: bool,
}

/// A GPU as its engine tells of it (`engine.memory/1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineDevice {
    /// For people.
    pub name: String,
    /// PCI bus id, where it has one.
    pub bus_id: Option<String>,
    /// Does it share the host's memory?
    pub is_integrated: bool,
    /// All its memory, in bytes.
    pub total_bytes: u64,
    /// What is free now, in bytes.
    pub free_bytes: u64,
}

/// How to load a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadPlan {
    /// With which engine.
    pub engine: EngineAddress,
    /// File or folder of the model.
    #[serde(with = "crate::os_path")]
    pub model: std::path::PathBuf,
    /// What the node calls it.
    pub model_id: String,
    /// What this load was asked to be. A model that cannot be so is refused.
    pub size: ContextSize,
    /// What is taken where `size` says nothing, as far as the model and its engine go.
    pub usual_size: ContextSize,
    /// Layers on the devices; negative: all.
    pub gpu_layers: i32,
    /// The GPUs that it is to lie on, in the order in which the worker sees them; none: the engine's choice.
    pub place: Vec<GpuAddress>,
    /// CPU threads; 0: the engine's own choice.
    pub threads: u32,
    /// Device memory the engine may take, in bytes; 0: no limit.
    pub vram_limit_bytes: u64,
    /// How its requests are scheduled, where the host does that.
    pub scheduling: Scheduling,
    /// Seconds that one step of the engine may take before the worker gives the engine up; 0: any.
    pub step_timeout_seconds: u32,
    /// Who guesses tokens ahead.
    pub speculation: Speculation,
    /// How the model writes calls: a family's name or "none"; `None`: what its template says.
    pub tool_syntax: Option<String>,
    /// The source of the chat template, in place of the model's own.
    pub chat_template: Option<String>,
    /// Settings for the engine, as they stand in the configuration.
    pub options: Vec<(String, String)>,
    /// What the engine said of the same load before: then it is not asked again.
    pub figures: Option<Figures>,
}

/// Who proposes tokens that a step then verifies. It changes how fast an answer comes, never what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Speculation {
    /// Nobody: each step brings an answer one token.
    Off,
    /// What prompt and answer already hold.
    #[default]
    Lookup,
    /// A smaller model with the same vocabulary, which the same engine runs.
    Model(#[serde(with = "crate::os_path")] std::path::PathBuf),
}

impl LoadPlan {
    /// What is said of the size of its context.
    pub fn wish(&self) -> Wish {
        Wish { size: self.size, usual: self.usual_size }
    }
}

impl From<&ModelOptions> for Speculation {
    /// A draft model is named by its file.
    fn from(options: &ModelOptions) -> Self {
        match options.guesser() {
            Guesser::Nobody => Speculation::Off,
            Guesser::Lookup => Speculation::Lookup,
            Guesser::Model(path) => Speculation::Model(path.to_owned()),
        }
    }
}

/// From the node to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Open the engine, look at it, answer [`FromWorker::Verdict`], and end.
    Probe(EngineAddress),
    /// Open the engine, start it, answer [`FromWorker::Devices`], and end.
    List(EngineAddress),
    /// Open the engine, answer [`FromWorker::Estimated`], and wait.
    Load(LoadPlan),
    /// There is room for the estimate: load, with a context of that size; `None`: the engine gave no figures.
    Proceed(Option<Shape>),
    /// A new request.
    Generate {
        /// Chosen by the node, unique within the worker.
        id: RequestId,
        /// What is wanted.
        request: Request,
    },
    /// The client of a request has left.
    Cancel {
        /// Unknown ids are ignored.
        id: RequestId,
    },
    /// Something that is not generation.
    Ask {
        /// Chosen by the node, in the same series as those of requests.
        id: RequestId,
        /// What is asked.
        question: Question,
    },
    /// Say what the model would take with such a context: [`FromWorker::Sized`]. Before `Proceed`, as often as it
    /// takes; and of a model that answers, with what its load would have asked for.
    Size(Sizing),
    /// There is room for it: make the context anew, and answer [`FromWorker::Reshaped`]. What is under way goes on.
    Reshape(Sizing),
    /// Say what the devices are like now: [`FromWorker::Devices`]. Of a model that answers.
    Devices {
        /// Comes back with the answer, which nobody waits for any more where it comes late.
        number: u64,
    },
    /// Refuse new requests, finish those under way, answer [`FromWorker::Drained`].
    Drain,
    /// End at once: engine shutdown, then exit.
    Stop,
}

/// What can be asked of a loaded model beside generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Question {
    /// Text to tokens.
    Tokenize {
        /// The text.
        text: String,
        /// Add BOS and EOS as the model wants them.
        add_special: bool,
        /// Read special tokens in the text.
        parse_special: bool,
    },
    /// Tokens to text.
    Detokenize {
        /// The tokens.
        tokens: Vec<i32>,
    },
    /// What each token stands for.
    Pieces {
        /// The tokens.
        tokens: Vec<i32>,
    },
    /// A conversation to the prompt's text.
    ApplyTemplate(Conversation),
    /// A conversation to the number of tokens that it is as a prompt.
    CountTokens(Conversation),
    /// One vector for each input.
    Embed {
        /// The inputs.
        inputs: Vec<EmbedInput>,
    },
    /// How well each document answers a query.
    Rerank {
        /// What is asked.
        query: String,
        /// What may answer it.
        documents: Vec<String>,
    },
    /// The source of the chat template.
    ChatTemplate,
    /// What the model takes on each device now.
    MemoryUse,
}

/// What a vector is to be made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedInput {
    /// Text, in which the names of special tokens are only letters.
    Text(String),
    /// Tokens, exactly.
    Tokens(Vec<i32>),
}

/// The answers to [`Question`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// To `Tokenize`.
    Tokens(Vec<i32>),
    /// To `Detokenize` and `ApplyTemplate`.
    Text(String),
    /// To `CountTokens`.
    Count(u64),
    /// To `Embed`: the vectors, not normalised, and the tokens of each input.
    Embeddings {
        /// One vector for each input.
        vectors: Vec<Vec<f32>>,
        /// Tokens of each input.
        tokens: Vec<u32>,
    },
    /// To `Pieces`: bytes of each token; of a control token its name.
    Pieces(Vec<Vec<u8>>),
    /// To `Rerank`.
    Scores {
        /// From 0 to 1, one for each document.
        scores: Vec<f32>,
        /// Tokens of each document with the query.
        tokens: Vec<u32>,
    },
    /// To `ChatTemplate`.
    ChatTemplate(Option<String>),
    /// To `MemoryUse`.
    MemoryUse(Vec<MemoryUse>),
}

/// What a probe found out about a usable engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// The binary's own.
    pub abi_version: u32,
    /// Extensions that it offers: `engine.batch/1`, ...
    pub extensions: Vec<String>,
}

/// From a worker to the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The first message, before anything else.
    Hello {
        /// Must equal the node's [`PROTOCOL_VERSION`].
        protocol: u32,
        /// The secret that the node gave this worker at its start.
        secret: String,
    },
    /// The engine call that is about to begin; what the node blames if the worker dies or hangs.
    Stage(String),
    /// Answer to `Probe`.
    Verdict(Result<EngineFacts, EngineRefusal>),
    /// Answer to `List` and `Devices`: the GPUs that the engine can use; none, where it cannot say.
    Devices {
        /// Of `Devices`; 0: of `List`.
        number: u64,
        /// One after the other, as the engine has them.
        devices: Vec<EngineDevice>,
    },
    /// What the load will take, or the figures from which the size of its context follows. It waits for
    /// [`ToWorker::Size`] then, and for [`ToWorker::Proceed`].
    Estimated(Estimate),
    /// How far the load is, 0 to 1.
    Progress(f32),
    /// The model answers requests from now on.
    Ready(ModelFacts),
    /// The load failed; the worker ends.
    LoadFailed(Fault),
    /// Answer to `Size`: what it takes, `None` where the engine cannot say; or why there can be no such context.
    Sized(Result<Option<Vec<MemoryUse>>, Fault>),
    /// Answer to `Reshape`: what the model is now, or why its context is what it was.
    Reshaped(Result<ModelFacts, Fault>),
    /// All that one scheduler step brought, in order.
    Step(Vec<(RequestId, Event)>),
    /// Answer to `Ask`.
    Answer {
        /// Which question.
        id: RequestId,
        /// What came of it.
        answer: Result<Answer, Fault>,
    },
    /// A message of the engine, or of the worker.
    Log {
        /// 0 debug, 1 info, 2 warning, 3 error.
        severity: u8,
        /// One line or more.
        message: String,
    },
    /// Nothing is under way any more.
    Drained,
    /// How busy a loaded model is: when it has changed, four times a second at most.
    Busy(Occupancy),
    /// A loaded model's process is alive: once a second.
    Beat {
        /// For how many seconds the engine's call under way has been running; 0: there is none, or it began
        /// just now.
        call_seconds: u32,
    },
}

/// Why an engine cannot be used: one of the typed load errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineRefusal {
    /// `AbiMismatch`, `BinaryNotFound`, `WrongArch`, `LoadFailed`, `MissingSymbol`, `NullInfo`, ...
    pub kind: String,
    /// What was wrong, where, and what to do.
    pub fault: Fault,
}
