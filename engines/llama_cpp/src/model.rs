//! `engine.models/1` and `engine.tokenizer/1`: loading a GGUF file, and what is in it.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::SystemTime;

use llm_node_sdk::{
    Failure, MemoryUse, ModelInfo, ModelParams, Models, Pooling, Tokenizer, Vocabulary, abi, attribute,
};

use crate::embedding::EmbeddingContext;
use crate::footprint::Books;
use crate::llama::{self, DeviceKind, FaultKind, Header, LoadMode, ModelSettings};
use crate::plan::Facts;
use crate::words::{Needs, Words};
use crate::{ARCHITECTURES, LlamaEngine, internal, options};

/// Where a model came from and where it went: enough to load it again without memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) gpu_layers: i32,
    pub(crate) devices: Option<Vec<u32>>,
    pub(crate) load_mode: LoadMode,
}

impl Source {
    /// The model without its weights: for estimates, and to find out why something failed.
    pub(crate) fn load_dry(&self) -> Result<llama::Model, llama::Fault> {
        self.load(true, &mut |_| true)
    }

    fn load(
        &self,
        no_alloc: bool,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<llama::Model, llama::Fault> {
        llama::Model::load(
            &ModelSettings {
                path: &self.path,
                gpu_layers: self.gpu_layers,
                devices: self.devices.as_deref(),
                load_mode: self.load_mode,
                no_alloc,
            },
            progress,
        )
    }
}

/// What is known of the file that was asked about last. A host asks for an estimate or two before it loads, and reading
/// a large vocabulary takes most of the time of each.
#[derive(Default)]
pub(crate) struct LastRead {
    /// A file whose header is in order.
    inspected: Option<(PathBuf, Stamp)>,
    dry: Option<(Source, Arc<llama::Model>)>,
}

/// What changes with a file: its size in bytes, and when it was written.
type Stamp = (u64, SystemTime);

fn stamp(path: &Path) -> Option<Stamp> {
    let facts = std::fs::metadata(path).ok()?;
    Some((facts.len(), facts.modified().ok()?))
}

/// A loaded model.
pub(crate) struct LlamaModel {
    pub(crate) raw: Arc<llama::Model>,
    pub(crate) source: Source,
    /// What the file says of embeddings.
    pub(crate) pooling: Option<Pooling>,
    words: Words,
    /// Weights by device, once known.
    pub(crate) weights: OnceLock<Vec<MemoryUse>>,
    pub(crate) contexts: Arc<Mutex<Books>>,
    /// Made with the first embedding.
    pub(crate) embedding: Mutex<Option<EmbeddingContext>>,
}

impl LlamaModel {
    /// What plans depend on.
    pub(crate) fn facts(&self) -> Facts {
        facts(&self.raw)
    }

    /// Width of an embedding, or of a rank result where the model ranks.
    pub(crate) fn embedding_width(&self) -> u32 {
        if self.pooling == Some(Pooling::Rank) { self.raw.n_classes() } else { self.raw.n_embedding() }
    }

    /// All of the file's metadata that is not an array, as bytes.
    pub(crate) fn metadata(&self) -> impl Iterator<Item = &[u8]> {
        self.raw.metadata().iter().flat_map(|(key, value)| [key.as_slice(), value.as_slice()])
    }
}

/// What the file says of embeddings.
fn pooling(model: &llama::Model) -> Option<Pooling> {
    match model.architecture_value("pooling_type").as_deref() {
        Some("1") => Some(Pooling::Mean),
        Some("2") => Some(Pooling::Cls),
        Some("3") => Some(Pooling::Last),
        Some("4") => Some(Pooling::Rank),
        _ => None,
    }
}

/// Does it generate token by token?
pub(crate) fn generates(model: &llama::Model) -> bool {
    // llama.cpp counts encoders as decoders, but for those that have both. Their attention looks both ways,
    // and the file says so.
    let both_ways = model.architecture_value("attention.causal");
    model.has_decoder()
        && both_ways.as_deref() != Some("false")
        && !model.has_encoder()
        && !model.is_diffusion()
        && pooling(model) != Some(Pooling::Rank)
}

/// Refuses models of a kind that llama.cpp loads, and that nothing here can be done with.
pub(crate) fn check_kind(model: &llama::Model) -> Result<(), Failure> {
    let architecture = model.architecture();
    let kind = match architecture.as_str() {
        "eagle3" | "dflash" => "the drafting part of another model, and no model of its own",
        _ if !model.has_vocabulary() => "a model without a vocabulary of text",
        _ if model.has_encoder() && model.has_decoder() => {
            "an encoder-decoder model, which reads with one half and writes with the other"
        }
        _ if model.is_diffusion() => "a diffusion model, which does not write token by token",
        _ if !generates(model) && pooling(model).is_none() => {
            "an encoder whose file names no pooling, so that it neither writes nor makes embeddings"
        }
        _ => return Ok(()),
    };
    Err(Failure::unsupported(format!(
        "the model ({architecture}) is {kind}; this engine runs models that write token by token, and those \
         that make embeddings or rank"
    )))
}

/// What plans depend on.
pub(crate) fn facts(model: &llama::Model) -> Facts {
    Facts {
        n_context_train: model.n_context_train(),
        attention_window: model.attention_window(),
        recurrent: model.is_recurrent(),
        head_width: model.head_width(),
    }
}

impl LlamaEngine {
    /// Checks the file and decides where the model goes.
    pub(crate) fn source(&self, params: &ModelParams) -> Result<Source, Failure> {
        let path = file(&params.path)?;
        let load_mode = options::load_mode(&self.options, &params.options)?;
        let gpu_layers = if self.cpu_only { 0 } else { params.gpu_layers };
        let devices = if self.cpu_only { None } else { params.devices.clone() };
        if gpu_layers != 0
            && !llama::devices()
                .iter()
                .any(|device| matches!(device.kind, DeviceKind::Gpu | DeviceKind::Integrated))
        {
            return Err(Failure::new(
                abi::ERR_LOAD_FAILED,
                "layers are to go to a GPU, and llama.cpp finds none: is its driver installed?",
            ));
        }
        let found = stamp(&path).map(|stamp| (path.clone(), stamp));
        if found.is_none() || self.last_read().inspected != found {
            inspect(&path)?;
            *self.last_read() = LastRead { inspected: found, dry: None };
        }
        Ok(Source { path, gpu_layers, devices, load_mode })
    }

    /// The model without its weights, as it was read for the last estimate where that was of the same source.
    pub(crate) fn dry(&self, source: &Source) -> Result<Arc<llama::Model>, llama::Fault> {
        let known = self.last_read().dry.clone().filter(|(of, _)| of == source);
        if let Some((_, model)) = known {
            return Ok(model);
        }
        let model = Arc::new(source.load_dry()?);
        self.last_read().dry = Some((source.clone(), Arc::clone(&model)));
        Ok(model)
    }

    fn last_read(&self) -> MutexGuard<'_, LastRead> {
        self.last_read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file that a path means: itself, or the one model in a directory.
fn file(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |error: std::io::Error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound {
            abi::ERR_NOT_FOUND
        } else {
            abi::ERR_LOAD_FAILED
        };
        Failure::new(code, format!("{}: {error}", path.display()))
    };
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(path.to_owned());
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let found = entry.map_err(failed)?.path();
        if found.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            files.push(found);
        }
    }
    files.sort();
    // A model in several files is named by its first; llama.cpp finds the others.
    let later = |path: &Path| {
        path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| {
            stem.rsplit_once("-of-").and_then(|(front, _)| front.rsplit_once('-')).is_some_and(
                |(_, number)| number.len() == 5 && number != "00001" && number.parse::<u32>().is_ok(),
            )
        })
    };
    files.retain(|path| !later(path));
    match files.len() {
        1 => Ok(files.swap_remove(0)),
        0 => Err(Failure::not_found(format!("{}: there is no GGUF file in it", path.display()))),
        count => {
            Err(Failure::invalid(format!("{}: there are {count} models in it, name one", path.display())))
        }
    }
}

/// How a file says that its model ranks.
const RANKS: u32 = 4;
/// The weights of the layer that makes a score of what the others made.
const LAST_OF_HEAD: &CStr = c"cls.output.weight";

/// Reads the header, so that a damaged file, a strange architecture and a reranker that scores nothing have codes of
/// their own.
fn inspect(path: &Path) -> Result<(), Failure> {
    let corrupt =
        |message: &str| Failure::new(abi::ERR_MODEL_CORRUPT, format!("{}: {message}", path.display()));
    let header = Header::open(path).map_err(|fault| match fault.kind {
        FaultKind::NoMemory => internal(fault),
        FaultKind::Assertion | FaultKind::Refused => corrupt(&fault.message),
    })?;
    let architecture = header
        .text("general.architecture")
        .ok_or_else(|| corrupt("the header does not say which architecture it is"))?;
    if !ARCHITECTURES.contains(&architecture.as_str()) {
        return Err(Failure::unsupported(format!(
            "{}: llama.cpp does not know the architecture {architecture}",
            path.display()
        )));
    }
    let ranks = header.number(&format!("{architecture}.pooling_type")) == Some(RANKS);
    if ranks && !has_tensor(&header, path, LAST_OF_HEAD) {
        // llama.cpp would hand out numbers of the layer before it as scores.
        return Err(Failure::unsupported(format!(
            "{}: by its file the model ranks, and it lacks the layer that gives a score ({})",
            path.display(),
            LAST_OF_HEAD.to_string_lossy()
        )));
    }
    Ok(())
}

/// Is a tensor of this name in the model, or in a part of it that cannot be read? llama.cpp says what is wrong with that.
fn has_tensor(header: &Header, path: &Path, name: &CStr) -> bool {
    let lacks = |part: &PathBuf| Header::open(part).is_ok_and(|it| !it.has_tensor(name));
    header.has_tensor(name)
        || header.is_split() && !other_parts(path).is_some_and(|parts| parts.iter().all(lacks))
}

/// The other files of a model that lies in several, by the name of the first: `NAME-00001-of-00003.gguf`.
fn other_parts(path: &Path) -> Option<Vec<PathBuf>> {
    let (front, count) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let name = front.strip_suffix("-00001")?;
    let parts: u32 = count.parse().ok().filter(|_| count.len() == 5)?;
    let part = |number| path.with_file_name(format!("{name}-{number:05}-of-{count}.gguf"));
    Some((2..=parts).map(part).collect())
}

impl Models for LlamaEngine {
    type Model = LlamaModel;

    fn load(
        &self,
        params: &ModelParams,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<LlamaModel, Failure> {
        let source = self.source(params)?;
        // No estimate follows for now, and its vocabulary takes memory.
        self.last_read().dry = None;
        let mut cancelled = false;
        let loaded = source.load(false, &mut |fraction| {
            cancelled = !progress(fraction);
            !cancelled
        });
        let raw = match loaded {
            Ok(raw) => raw,
            Err(_) if cancelled => {
                return Err(Failure::new(abi::ERR_CANCELLED, "loading was cancelled"));
            }
            Err(fault) => return Err(load_failure(&source, &fault)),
        };
        check_kind(&raw)?;
        let words = if raw.has_byte_pairs() {
            Words::of(&raw.value("tokenizer.ggml.pre").unwrap_or_default())
        } else {
            Words::ByHand
        };
        Ok(LlamaModel {
            pooling: pooling(&raw),
            words,
            raw: Arc::new(raw),
            source,
            weights: OnceLock::new(),
            contexts: Arc::default(),
            embedding: Mutex::default(),
        })
    }

    fn info(model: &LlamaModel) -> ModelInfo {
        let text = |text: String| CString::new(text.replace('\0', "")).unwrap_or_default();
        ModelInfo {
            generates: generates(&model.raw),
            embeds: model.pooling.is_some_and(|pooling| pooling != Pooling::Rank),
            ranks: model.pooling == Some(Pooling::Rank),
            recurrent: model.raw.is_recurrent(),
            architecture: text(model.raw.architecture()),
            format: c"gguf".to_owned(),
            quantization: model.raw.file_type().map(|name| text(quantization(&name))),
            n_parameters: model.raw.n_parameters(),
            size_bytes: model.raw.size_bytes(),
            n_vocab: model.raw.n_vocab() as u32,
            n_context: model.raw.n_context_train(),
            n_embedding: model.embedding_width(),
        }
    }

    fn metadata(model: &LlamaModel) -> Vec<(Vec<u8>, Vec<u8>)> {
        model.raw.metadata().to_vec()
    }
}

/// Why loading failed. Where the same file loads without memory being allocated, its contents are in
/// order and memory is what was missing.
fn load_failure(source: &Source, fault: &llama::Fault) -> Failure {
    let message = format!("{}: {}", source.path.display(), fault.message);
    let code = match fault.kind {
        FaultKind::Assertion => abi::ERR_MODEL_CORRUPT,
        FaultKind::Refused if source.load_dry().is_err() => abi::ERR_MODEL_CORRUPT,
        FaultKind::Refused if source.gpu_layers != 0 => abi::ERR_OOM_VRAM,
        FaultKind::NoMemory | FaultKind::Refused => abi::ERR_OOM_RAM,
    };
    Failure::new(code, message)
}

/// llama.cpp's "Q4_K - Medium" as file names have it: "Q4_K_M".
fn quantization(name: &str) -> String {
    let name = name.strip_prefix("(guessed) ").unwrap_or(name);
    let (kind, rest) = name.split_once(" - ").unwrap_or((name, ""));
    match (kind, rest) {
        ("all F32", _) => "F32".to_owned(),
        (_, "Small") => format!("{kind}_S"),
        (_, "Medium") => format!("{kind}_M"),
        (_, "Large") => format!("{kind}_L"),
        ("IQ3_S mix", _) => "IQ3_M".to_owned(),
        ("MXFP4 MoE", _) => "MXFP4_MOE".to_owned(),
        _ => kind.to_owned(),
    }
}

impl Tokenizer for LlamaEngine {
    fn vocabulary(model: &LlamaModel) -> Result<Vocabulary, Failure> {
        let mut vocabulary = Vocabulary::default();
        let mut piece = Vec::new();
        for token in 0..model.raw.n_vocab() as i32 {
            model.raw.piece(token, &mut piece).map_err(internal)?;
            let flags = model.raw.flags(token);
            let bits = [
                (flags.control, attribute::CONTROL),
                (flags.end_of_generation, attribute::END_OF_GENERATION),
                (flags.byte, attribute::BYTE),
                (flags.unused, attribute::UNUSED),
            ];
            vocabulary.push(&piece, bits.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum());
        }
        let specials = model.raw.specials();
        let some = |token: i32| (token >= 0).then_some(token);
        vocabulary.bos = some(specials.bos);
        vocabulary.eos = some(specials.eos);
        vocabulary.eot = some(specials.eot);
        vocabulary.pad = some(specials.pad);
        vocabulary.sep = some(specials.sep);
        vocabulary.mask = some(specials.mask);
        vocabulary.adds_bos = specials.adds_bos;
        vocabulary.adds_eos = specials.adds_eos;
        Ok(vocabulary)
    }

    fn tokenize(
        model: &LlamaModel,
        text: &[u8],
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<i32>, Failure> {
        let tokenize = || model.raw.tokenize(text, add_special, parse_special);
        let tokenized = match model.words.needs(text).map_err(Failure::invalid)? {
            Needs::Nothing => tokenize(),
            // The system gives a stack's memory as it is used, and has it back when the thread ends.
            Needs::Stack(size) => thread::scope(|scope| {
                let thread = thread::Builder::new().stack_size(size).spawn_scoped(scope, tokenize);
                let thread = thread.map_err(|error| {
                    Failure::new(
                        abi::ERR_OOM_RAM,
                        format!("no stack of {size} bytes for the tokenizer: {error}"),
                    )
                })?;
                thread.join().map_err(|_| Failure::internal("the tokenizer's thread panicked"))
            })?,
        };
        tokenized.map_err(|fault| match fault.kind {
            // What fails is a text: the vocabulary is only read, and others go on with it.
            FaultKind::Refused | FaultKind::Assertion => {
                Failure::invalid(format!("the text cannot be tokenised: {}", fault.message))
            }
            FaultKind::NoMemory => internal(fault),
        })
    }

    fn chat_template(model: &LlamaModel, name: Option<&str>) -> Option<String> {
        let key = match name {
            None => "tokenizer.chat_template".to_owned(),
            Some(name) => format!("tokenizer.chat_template.{name}"),
        };
        model.raw.value(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_parts_are_told_by_the_name_of_the_first() {
        let of = |name: &str| other_parts(Path::new(name));
        let parts = ["/m/a-b-00002-of-00003.gguf", "/m/a-b-00003-of-00003.gguf"].map(PathBuf::from);
        assert_eq!(of("/m/a-b-00001-of-00003.gguf"), Some(parts.to_vec()));
        assert_eq!(of("/m/a-00001-of-00001.gguf"), Some(Vec::new()));
        for name in ["/m/a.gguf", "/m/a-00002-of-00003.gguf", "/m/a-00001-of-3.gguf", "/m/-of-.gguf"] {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn quantizations_are_named_as_files_are() {
        for (from, to) in [
            ("Q4_K - Medium", "Q4_K_M"),
            ("Q3_K - Large", "Q3_K_L"),
            ("all F32", "F32"),
            ("BF16", "BF16"),
            ("(guessed) Q8_0", "Q8_0"),
            ("IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
            ("IQ3_S mix - 3.66 bpw", "IQ3_M"),
        ] {
            assert_eq!(quantization(from), to);
        }
    }

    #[test]
    fn a_directory_means_the_one_model_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let touch = |name: &str| std::fs::write(directory.path().join(name), b"").unwrap();
        assert_eq!(file(directory.path()).unwrap_err().code, abi::ERR_NOT_FOUND);
        touch("big-00001-of-00002.gguf");
        touch("big-00002-of-00002.gguf");
        assert!(file(directory.path()).unwrap().ends_with("big-00001-of-00002.gguf"));
        touch("other.gguf");
        assert_eq!(file(directory.path()).unwrap_err().code, abi::ERR_INVALID_ARGUMENT);
        let missing = directory.path().join("nothing.gguf");
        assert_eq!(file(&missing).unwrap_err().code, abi::ERR_NOT_FOUND);
    }
}
