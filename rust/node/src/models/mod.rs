//! The models there are: local files, each with the format and architecture that stand in it.
//!
//! Owns names: which model a client means. A name is no path. Each file belongs to one model, whichever of
//! its names is used: `NAME`, `NAME.gguf`, the name of one of its parts, any of these with `:latest` behind
//! it, an alias of the configuration; a model of `ORG/REPO` by [`is_short_name`] too. A link is a file of its
//! own, so that one file can be two models. Refuses to look anywhere but in the models folder and in the caches
//! of the configuration, so no name can lead out of these, and refuses to write or to fetch anything.

mod elsewhere;
pub mod gguf;
pub mod quantization;
mod scan;
mod snapshot;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use llm_node_core::{
    engine::Vocabulary,
    error::{ErrorCode, Fault},
    text::template::ChatTemplate,
};
use parking_lot::Mutex;
use serde::Serialize;

use crate::config::{Cache, DEMO_MODEL, Origin};

/// A model on disk.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Model {
    /// What clients call it: `NAME`, or `NAME:QUANT` where a folder holds several.
    pub id: String,
    /// "gguf", "safetensors", or the extension of the file.
    pub format: String,
    /// As the file says; unknown in formats that only an engine can read.
    pub architecture: Option<String>,
    /// What its maker calls it.
    pub name: Option<String>,
    /// "Q4_K_M", ...
    pub quantization: Option<String>,
    /// Of all its files together.
    pub size_bytes: u64,
    /// Longest sequence it was trained for, in tokens.
    pub context_length: Option<u64>,
    /// What it is for, where the file tells: "chat", "completions", "embeddings" or
    /// "rerank".
    pub task: Option<&'static str>,
    /// What an engine is given: a file (the first of several), or a folder.
    pub path: PathBuf,
    /// All its files, with their paths.
    pub parts: Vec<PathBuf>,
    /// Who brought it there.
    pub origin: Origin,
    /// Further places of the same model.
    pub also: Vec<PathBuf>,
    /// What is wrong with it.
    #[serde(skip)]
    pub problem: Option<Fault>,
    /// Folder that it shares, and its name in there.
    #[serde(skip)]
    pub(crate) folder: Option<String>,
    /// See `folder`.
    #[serde(skip)]
    pub(crate) variant: Option<String>,
    /// Names of its files in the models folder; none where it has a folder of its own.
    #[serde(skip)]
    pub(crate) files: Vec<String>,
    /// The file of its chat template, where it holds none itself.
    #[serde(skip)]
    pub(crate) template: Option<PathBuf>,
}

/// Something that may be taken for a model, and that is not listed as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unlisted {
    /// The file, the folder, or the link that leads nowhere.
    pub path: PathBuf,
    /// Who brought it there.
    pub origin: Origin,
    /// Why it is not listed.
    pub why: String,
}

/// The models folder, the demo model, and what other programs keep.
#[derive(Debug)]
pub struct Catalog {
    models_dir: PathBuf,
    demo_model: Option<PathBuf>,
    caches: Vec<Cache>,
    aliases: Mutex<BTreeMap<String, String>>,
    headers: scan::Headers,
}

impl Catalog {
    /// Over this folder. `demo_model` is offered beside it unless a model there has its name, and so are the
    /// models of `caches` that some engine reads. `aliases`: further names, and what each means.
    pub fn new(
        models_dir: PathBuf,
        demo_model: Option<PathBuf>,
        caches: Vec<Cache>,
        aliases: BTreeMap<String, String>,
    ) -> Self {
        let aliases = Mutex::new(aliases);
        Self { models_dir, demo_model, caches, aliases, headers: scan::Headers::default() }
    }

    /// These are the further names from now on.
    pub fn name(&self, aliases: BTreeMap<String, String>) {
        *self.aliases.lock() = aliases;
    }

    /// From now on `alias` means the model that is meant by `name`, which is given. It must be no model's own
    /// name, which would come first.
    pub fn alias(&self, alias: &str, name: &str, readable: &Readable) -> Result<Model, Fault> {
        let model = self.find(name, readable)?;
        let models = self.models(readable);
        let bare = alias.strip_suffix(LATEST).unwrap_or(alias);
        let is_own = |it: &&Model| [alias, bare].iter().any(|name| it.id == *name || is_own_name(it, name));
        if let Some(other) = models.iter().find(is_own) {
            let words = format!("'{alias}' is a name of '{}' already", other.id);
            return Err(Fault::new(ErrorCode::InvalidRequest, words).param("alias"));
        }
        self.aliases.lock().insert(alias.to_owned(), model.id.clone());
        Ok(model)
    }

    /// All models, sorted by name, the demo model first, those of other programs last. `readable`: what engines
    /// read.
    pub fn models(&self, readable: &Readable) -> Vec<Model> {
        self.listed_and_not(readable).0
    }

    /// The files that are not among [`Catalog::models`], each with the reason.
    pub fn unlisted(&self, readable: &Readable) -> Vec<Unlisted> {
        let (models, mut unlisted) = self.listed_and_not(readable);
        let own = models.iter().filter(|model| model.origin == Origin::Own);
        // And the folders that they lie in.
        let known: HashSet<&Path> =
            own.flat_map(|model| &model.parts).flat_map(|part| part.ancestors()).collect();
        let others =
            scan::all_below(&self.models_dir).into_iter().filter(|it| !known.contains(it.path.as_path()));
        unlisted.extend(others.filter_map(|it| {
            let why = scan::why_unlisted(&it, &readable.formats())?;
            Some(Unlisted { path: it.path, origin: Origin::Own, why })
        }));
        unlisted.sort_by(|a, b| a.path.cmp(&b.path));
        unlisted
    }

    fn listed_and_not(&self, readable: &Readable) -> (Vec<Model>, Vec<Unlisted>) {
        let (mut models, mut unlisted) = (Vec::new(), Vec::new());
        let found = scan::scan(&self.models_dir, &readable.formats(), &self.headers);
        let is_own = found.iter().any(|model| model.id == DEMO_MODEL);
        if let Some(path) = self.demo_model.as_deref().filter(|path| !is_own && path.exists()) {
            models.push(Model { origin: Origin::Demo, ..scan::one(DEMO_MODEL, path, &self.headers) });
        }
        models.extend(found.into_iter().filter(|model| scan::is_name(&model.id)));
        for cache in &self.caches {
            let mut found = elsewhere::models(cache, &self.headers);
            found.sort_by(|a, b| a.id.cmp(&b.id));
            for model in found {
                let why = if !scan::is_name(&model.id) {
                    scan::NO_NAME.to_owned()
                } else if readable.reads(&model) {
                    match models.iter_mut().find(|known| known.id == model.id) {
                        None => {
                            models.push(Model { origin: cache.origin, ..model });
                            continue;
                        }
                        // The first of a name is the one that is meant; is this one the same?
                        Some(known) if known.size_bytes == model.size_bytes => {
                            known.also.push(model.path);
                            continue;
                        }
                        Some(known) => format!("'{}' is the name of {}", known.id, known.path.display()),
                    }
                } else {
                    match (&model.problem, &model.architecture) {
                        (Some(fault), _) => fault.message.clone(),
                        (None, Some(architecture)) => runs_nowhere(architecture, &model.format),
                        (None, None) => format!("no engine here reads the format '{}'", model.format),
                    }
                };
                unlisted.push(Unlisted { path: model.path, origin: cache.origin, why });
            }
        }
        (models, unlisted)
    }

    /// The model in a file or a folder, wherever it lies.
    pub fn at(&self, path: &Path) -> Model {
        let name = scan::file_name(path);
        let id = if path.is_dir() { name } else { scan::stem(&name) };
        scan::one(&id, path, &self.headers)
    }

    /// The model that a client means: one's own name, also without the `:latest` that some clients add, else what it
    /// is an alias of, which may have that behind it, too.
    pub fn find(&self, id: &str, readable: &Readable) -> Result<Model, Fault> {
        let mut models = self.models(readable);
        let bare = id.strip_suffix(LATEST).unwrap_or(id);
        let aliases = self.aliases.lock().clone();
        let meant = |name: &str| aliases.get(name).map(String::as_str);
        let wanted = [Some(id), Some(bare), meant(id), meant(bare)];
        for name in wanted.into_iter().flatten() {
            let is_named = |names: fn(&Model, &str) -> bool| models.iter().position(|it| names(it, name));
            if let Some(position) = is_named(|model, id| model.id == id).or_else(|| is_named(is_own_name)) {
                return Ok(models.swap_remove(position));
            }
        }
        let id = meant(id).or_else(|| meant(bare)).unwrap_or(bare);
        let short: Vec<usize> =
            (0..models.len()).filter(|&index| is_short_name(&models[index], id)).collect();
        match short[..] {
            [] => {}
            [only] if models[only].is_of_repository() => return Ok(models.swap_remove(only)),
            _ => {
                let ids: Vec<String> =
                    short.into_iter().map(|index| format!("'{}'", models[index].id)).collect();
                return Err(not_found(format!(
                    "Model '{id}' has several files; name one of them: {}",
                    ids.join(", ")
                )));
            }
        }
        if is_plain(id)
            && let Some(model) = scan::unclaimed(&self.models_dir, id)
        {
            return Ok(model);
        }
        Err(not_found(format!("Model '{id}' not found{}", hint(id, &models, &self.models_dir))))
    }
}

impl Model {
    /// The chat template that lies beside it, where it holds none itself. One that cannot be read, or is none, costs
    /// the model its chat.
    pub fn template_beside(&self) -> Option<String> {
        let path = self.template.as_deref()?;
        let mut text = String::new();
        let read =
            fs::File::open(path).and_then(|file| file.take(LARGEST_TEMPLATE).read_to_string(&mut text));
        let wrong = match read {
            Err(error) => error.to_string(),
            Ok(_) => match ChatTemplate::compile(&text, &Vocabulary::default()) {
                Ok(_) => return Some(text),
                Err(fault) => fault.message,
            },
        };
        log::warn!("{} is left out: {wrong}", path.display());
        None
    }

    /// Is it one of `ORG/REPO`, as pulled models and those of other programs are?
    fn is_of_repository(&self) -> bool {
        self.folder.as_deref().is_some_and(|folder| folder.contains('/'))
    }
}

/// What the engines that were found read, by their manifests: pairs of a format and the architectures.
#[derive(Clone, Debug, Default)]
pub struct Readable(pub Vec<(String, Vec<String>)>);

impl Readable {
    /// Without the architectures.
    pub fn formats(&self) -> Vec<String> {
        self.0.iter().map(|(format, _)| format.clone()).collect()
    }

    /// That no engine runs its architecture, though some read its format. `None`: nothing is in the way, or only
    /// an engine can tell.
    pub fn obstacle(&self, model: &Model) -> Option<Fault> {
        let architecture = model.architecture.as_ref()?;
        let is_read = self.0.iter().any(|(format, _)| format.eq_ignore_ascii_case(&model.format));
        (is_read && !self.reads(model))
            .then(|| Fault::new(ErrorCode::ArchitectureMismatch, runs_nowhere(architecture, &model.format)))
    }

    /// Is there an engine for its format and its architecture?
    fn reads(&self, model: &Model) -> bool {
        self.0.iter().any(|(format, architectures)| {
            format.eq_ignore_ascii_case(&model.format)
                && model
                    .architecture
                    .as_ref()
                    .is_some_and(|own| architectures.iter().any(|one| one == ANY_ARCHITECTURE || one == own))
        })
    }
}

fn runs_nowhere(architecture: &str, format: &str) -> String {
    format!("no engine here runs the architecture '{architecture}' ({format})")
}

/// Stands in a manifest's `architectures` for any.
pub const ANY_ARCHITECTURE: &str = "*";

/// Longest chat template beside a model that is read, in bytes.
const LARGEST_TEMPLATE: u64 = 1 << 20;

/// What some clients put behind the name of a model that has no other tag.
const LATEST: &str = ":latest";

/// Does it lead to the model, beside its id?
fn is_own_name(model: &Model, id: &str) -> bool {
    if model.files.iter().any(|file| file == id || scan::stem(file) == id && scan::is_known(file)) {
        return true;
    }
    let Some((name, variant)) = id.split_once(':') else { return false };
    let is_variant = |own: Option<&str>| own.is_some_and(|own| own.eq_ignore_ascii_case(variant));
    if model.folder.as_deref() == Some(name) {
        return is_variant(model.variant.as_deref());
    }
    // A file beside others: `NAME:Q4_K_M` means NAME-Q4_K_M.gguf, or NAME.gguf that is of this kind.
    let bare = [Some(name.to_owned()), Some(format!("{name}-{variant}")), Some(format!("{name}.{variant}"))];
    is_variant(model.quantization.as_deref())
        && bare.iter().flatten().any(|bare| bare.eq_ignore_ascii_case(&model.id))
}

/// Does it lead to the model where no other is meant? `NAME` to each `NAME:QUANT`; and, in any case of letters,
/// to a model of `ORG/REPO`: `ORG/REPO`, `hf.co/ORG/REPO`, `REPO`, `REPO` without `-GGUF`, each with `:QUANT` or
/// without.
fn is_short_name(model: &Model, id: &str) -> bool {
    let Some(folder) = model.folder.as_deref() else { return false };
    if folder == id {
        return true;
    }
    let id = HUBS.iter().find_map(|hub| id.strip_prefix(hub)?.strip_prefix('/')).unwrap_or(id);
    let (name, variant) = id.split_once(':').map_or((id, None), |(name, variant)| (name, Some(variant)));
    let is_variant =
        |asked: &str| model.variant.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(asked));
    let Some((_, repository)) = folder.rsplit_once('/') else { return false };
    let bare = repository.get(..repository.len().saturating_sub(GGUF_SUFFIX.len()));
    let bare = bare.filter(|bare| repository[bare.len()..].eq_ignore_ascii_case(GGUF_SUFFIX));
    let names = [Some(folder), Some(repository), bare];
    names.into_iter().flatten().any(|own| own.eq_ignore_ascii_case(name)) && variant.is_none_or(is_variant)
}

/// The hub, as it stands before the name of a repository.
const HUBS: [&str; 2] = ["hf.co", "huggingface.co"];
/// How most repositories of GGUF files end.
const GGUF_SUFFIX: &str = "-gguf";

/// May the hub have it, as `ORG/REPO` or `ORG/REPO:VERSION`?
fn is_of_hub(id: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|it: char| it.is_ascii_alphanumeric())
            && word.chars().all(|it| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.'))
    };
    let (repository, version) = id.split_once(':').unwrap_or((id, "any"));
    let is_repository = repository.split_once('/').is_some_and(|(organisation, name)| {
        organisation != elsewhere::OF_OLLAMA && is_word(organisation) && is_word(name)
    });
    is_repository && version.split('/').all(is_word)
}

fn is_plain(id: &str) -> bool {
    !id.is_empty() && !id.starts_with('.') && !id.contains(['/', '\\', '\0'])
}

fn not_found(message: String) -> Fault {
    Fault::new(ErrorCode::ModelNotFound, message).param("model")
}

fn hint(id: &str, models: &[Model], models_dir: &Path) -> String {
    let mut near: Vec<(f64, &str)> = models
        .iter()
        .map(|model| {
            let likeness = strsim::jaro_winkler(&id.to_lowercase(), &model.id.to_lowercase());
            (likeness, model.id.as_str())
        })
        .filter(|(likeness, _)| *likeness > 0.7)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<String> = near.into_iter().take(3).map(|(_, id)| format!("'{id}'")).collect();
    if is_of_hub(id) {
        let meant =
            if near.is_empty() { String::new() } else { format!("; or did you mean {}?", near.join(" or ")) };
        format!("; `llm-node pull {id}` fetches it, if the hub has it{meant}")
    } else if !near.is_empty() {
        format!("; did you mean {}?", near.join(" or "))
    } else if models.is_empty() {
        format!("; there are no models in {}", models_dir.display())
    } else {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn gguf(architecture: &str) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\x00\x00\x00".to_vec();
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(20_u64.to_le_bytes());
        bytes.extend(b"general.architecture");
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend((architecture.len() as u64).to_le_bytes());
        bytes.extend(architecture.as_bytes());
        bytes
    }

    fn reads(formats: &[&str]) -> Readable {
        Readable(formats.iter().map(|format| ((*format).to_owned(), vec!["llama".to_owned()])).collect())
    }

    fn catalog() -> (tempfile::TempDir, Catalog) {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        put("stories.gguf", &gguf("llama"));
        put("single-Q8_0.gguf", &gguf("llama"));
        put("llama-7b/llama-7b-Q4_K_M.gguf", &gguf("llama"));
        put("llama-7b/llama-7b-Q8_0.gguf", &gguf("llama"));
        put("one/one-Q4_0.gguf", &gguf("qwen3"));
        put("big/big-00001-of-00002.gguf", &gguf("llama"));
        put("two-00001-of-00002.gguf", &gguf("llama"));
        put("two-00002-of-00002.gguf", &gguf("llama"));
        put("hf/config.json", br#"{"model_type": "qwen3", "max_position_embeddings": 4096}"#);
        put("hf/model.safetensors", &[0; 16]);
        put("markov.toy", b"toy");
        put("stories.toy", b"toy");
        put("README.md", b"read me");
        put("bad.gguf", b"");
        put("mmproj-stories.gguf", &gguf("clip"));
        let aliases = [
            ("claude-sonnet", "one"),
            ("gpt", "llama-7b:q8_0"),
            ("one", "hf"),
            ("two:latest", "hf"),
            ("gone", "nothing"),
        ];
        let aliases = aliases.map(|(name, model)| (name.to_owned(), model.to_owned())).into();
        let catalog = Catalog::new(root.path().to_path_buf(), None, Vec::new(), aliases);
        (root, catalog)
    }

    #[test]
    fn a_template_beside_models_is_theirs() {
        let root = tempfile::tempdir().unwrap();
        let template = "{{ messages[0].content }}";
        for (name, bytes) in [
            ("org/repo/a-Q4_0.gguf", gguf("llama")),
            ("org/repo/chat_template.jinja", template.as_bytes().to_vec()),
            ("org/bare/b-Q4_0.gguf", gguf("llama")),
            ("one/c.gguf", gguf("llama")),
            ("one/chat_template.jinja", b"{% if".to_vec()),
            ("two/d.gguf", gguf("llama")),
            ("two/chat_template.jinja", vec![0xff; 8]),
        ] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let catalog = Catalog::new(root.path().to_path_buf(), None, Vec::new(), BTreeMap::new());
        let found = |id: &str| {
            let model = catalog.find(id, &reads(&["gguf"])).unwrap();
            (model.task, model.template_beside())
        };
        assert_eq!(found("repo"), (Some("chat"), Some(template.to_owned())));
        assert_eq!(found("bare"), (Some("completions"), None));
        for broken in ["one", "two"] {
            assert_eq!(found(broken).1, None);
        }
    }

    #[test]
    fn a_snapshot_is_whole_or_says_what_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        let index = br#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
        put("org/Qwen3-0.6B/config.json", br#"{"model_type": "qwen3"}"#);
        put("org/Qwen3-0.6B/model.safetensors.index.json", index);
        put("org/Qwen3-0.6B/model-1-of-2.safetensors", &[0; 16]);
        put("org/Qwen3-0.6B/consolidated.safetensors", &[0; 64]);
        put("org/Qwen3-0.6B/original/model-2-of-2.safetensors", &[0; 16]);
        put("org/Both/config.json", br#"{"model_type": "qwen3"}"#);
        put("org/Both/model.safetensors", &[0; 16]);
        put("org/Both/both-Q4_0.gguf", &gguf("qwen3"));
        let catalog = Catalog::new(root.path().to_path_buf(), None, Vec::new(), BTreeMap::new());
        let readable = Readable(vec![("safetensors".to_owned(), vec!["qwen3".to_owned()])]);
        let find = |id: &str| catalog.find(id, &readable).unwrap();
        assert_eq!(find("org/Both").id, "org/Both:Q4_0", "GGUF is what most engines read");
        let said = find("qwen3-0.6b").problem.unwrap().message;
        assert!(said.contains("Qwen3-0.6B: model-2-of-2.safetensors is missing"), "{said}");
        put("org/Qwen3-0.6B/model-2-of-2.safetensors", &[0; 16]);
        for name in ["org/Qwen3-0.6B", "qwen3-0.6b", "org/Qwen3-0.6B:safetensors"] {
            let model = find(name);
            assert_eq!((model.id.as_str(), &model.problem), ("org/Qwen3-0.6B:safetensors", &None), "{name}");
            assert_eq!(model.size_bytes, 32, "of the files that the index names");
            assert_eq!(model.architecture.as_deref(), Some("qwen3"));
        }
        assert_eq!(catalog.at(&root.path().join("org/Qwen3-0.6B")).id, "Qwen3-0.6B");
        put("org/Qwen3-0.6B/model.safetensors.index.json", b"{}");
        assert!(find("qwen3-0.6b").problem.unwrap().message.ends_with("it names no file of weights"));
    }

    #[test]
    fn what_the_hub_may_have_is_said_to_be_fetched() {
        let (_root, catalog) = catalog();
        let said = |id: &str| catalog.find(id, &reads(&["gguf"])).unwrap_err().message;
        let pull = "; `llm-node pull org/Repo:Q4_0` fetches it, if the hub has it";
        assert!(said("org/Repo:Q4_0").ends_with(pull), "{}", said("org/Repo:Q4_0"));
        for id in ["ollama/qwen3:4b", "one", "a/b/c", "../etc", "org/repo; rm", "org/repo:`x`", "/"] {
            assert!(!said(&format!("{id}x")).contains("llm-node pull"), "{id}");
        }
    }

    #[test]
    fn every_kind_of_model_is_found() {
        let (_root, catalog) = catalog();
        let models = catalog.models(&reads(&["gguf", "toy"]));
        let seen: Vec<_> = models.iter().map(|model| (model.id.as_str(), model.format.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("bad", "gguf"),
                ("big", "gguf"),
                ("hf", "safetensors"),
                ("llama-7b:Q4_K_M", "gguf"),
                ("llama-7b:Q8_0", "gguf"),
                ("markov", "toy"),
                ("one", "gguf"),
                ("single-Q8_0", "gguf"),
                ("stories", "gguf"),
                ("stories.toy", "toy"),
                ("two", "gguf"),
            ]
        );
        let problem = |id: &str| models.iter().find(|model| model.id == id).unwrap().problem.clone();
        assert!(problem("bad").unwrap().message.ends_with("bad.gguf: damaged at byte 0: the file is empty"));
        assert!(problem("big").unwrap().message.ends_with("part 2 of 2 is missing"));
        assert!(problem("stories").is_none());
    }

    #[test]
    fn names_lead_to_models() {
        let (_root, catalog) = catalog();
        let find = |id: &str| catalog.find(id, &reads(&["toy"])).map(|model| model.id).map_err(|f| f.message);
        assert_eq!(find("one").unwrap(), "one");
        assert_eq!(find("one:q4_0").unwrap(), "one");
        assert_eq!(find("llama-7b:Q8_0").unwrap(), "llama-7b:Q8_0");
        assert_eq!(find("single:Q8_0").unwrap(), "single-Q8_0");
        assert_eq!(
            find("llama-7b").unwrap_err(),
            "Model 'llama-7b' has several files; name one of them: 'llama-7b:Q4_K_M', 'llama-7b:Q8_0'"
        );
        assert_eq!(
            find("storys").unwrap_err(),
            "Model 'storys' not found; did you mean 'stories' or 'stories.toy'?"
        );
        assert_eq!(find("hf").unwrap(), "hf");
        for (name, id) in [
            ("stories.gguf", "stories"),
            ("stories.toy", "stories.toy"),
            ("markov.toy", "markov"),
            ("bad.gguf", "bad"),
            ("single-Q8_0.gguf", "single-Q8_0"),
            ("two-00001-of-00002", "two"),
            ("two-00002-of-00002.gguf", "two"),
            ("hf:latest", "hf"),
            ("stories.gguf:latest", "stories"),
            ("claude-sonnet", "one"),
            ("claude-sonnet:latest", "one"),
            ("gpt", "llama-7b:Q8_0"),
            ("one", "one"),
            ("two:latest", "two"),
        ] {
            assert_eq!(find(name).as_deref(), Ok(id), "a file is one model, by whichever name");
        }
        assert_eq!(find("gone").unwrap_err(), find("nothing:latest").unwrap_err());
        let alias = |alias: &str, name: &str| catalog.alias(alias, name, &reads(&["toy"])).map(|it| it.id);
        assert_eq!(
            alias("gpt", "claude-sonnet").as_deref(),
            Ok("one"),
            "an alias may move, and be of another"
        );
        assert_eq!(find("gpt:latest").as_deref(), Ok("one"));
        assert_eq!(alias("new", "nothing").unwrap_err().code, ErrorCode::ModelNotFound);
        for taken in ["stories", "stories.gguf", "single:Q8_0", "two-00001-of-00002", "stories:latest"] {
            assert_eq!(alias(taken, "one").unwrap_err().code, ErrorCode::InvalidRequest, "{taken}");
        }
        assert_eq!(find("llama-7b:latest"), find("llama-7b"), "which of them it is, nobody said");
        // No model: then neither by its whole name, past the reader of its header.
        assert!(find("mmproj-stories.gguf").is_err() && find("mmproj-stories").is_err());
        // A format that no engine reads is a model all the same, so that the error can say so.
        assert_eq!(catalog.find("README", &reads(&[])).unwrap().format, "md");
    }

    #[test]
    fn what_has_no_name_is_not_offered() {
        let (root, catalog) = catalog();
        for name in ["two\nlines", "x\u{202e}fugg"] {
            fs::write(root.path().join(format!("{name}.gguf")), gguf("llama")).unwrap();
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("inside.gguf"), gguf("llama")).unwrap();
            assert_eq!(catalog.find(name, &reads(&[])).unwrap_err().code, ErrorCode::ModelNotFound);
        }
        assert!(catalog.models(&reads(&[])).iter().all(|model| !model.id.contains(['\n', '\u{202e}'])));
        let unlisted = catalog.unlisted(&reads(&[]));
        assert_eq!(unlisted.iter().filter(|it| it.why == scan::NO_NAME).count(), 4);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed_through_the_machine() {
        let (root, catalog) = catalog();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::create_dir_all(elsewhere.path().join("a/b")).unwrap();
        for name in ["near.weights", "a/far.weights", "a/b/farther.weights"] {
            fs::write(elsewhere.path().join(name), "w").unwrap();
        }
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join("linked")).unwrap();
        let unlisted = catalog.unlisted(&reads(&[]));
        let seen: Vec<_> =
            unlisted.iter().filter(|it| it.why.contains(".weights")).map(|it| &it.path).collect();
        assert_eq!(seen, [&root.path().join("linked/near.weights")]);
    }

    /// A link is what it leads to, at each level where models are looked for, and counts as that level.
    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_at_each_level_as_a_folder_is() {
        use std::os::unix::fs::symlink;
        let (root, catalog) = catalog();
        let elsewhere = tempfile::tempdir().unwrap();
        let there = |name: &str| elsewhere.path().join(name);
        for name in [
            "file.gguf",
            "folder/file.gguf",
            "repo/parts/file.gguf",
            "org/repo/file.gguf",
            "a/b/c/d/file.gguf",
        ] {
            fs::create_dir_all(there(name).parent().unwrap()).unwrap();
            fs::write(there(name), gguf("llama")).unwrap();
        }
        fs::create_dir_all(root.path().join("mine")).unwrap();
        for (from, to) in [
            ("file.gguf", "one.gguf"),
            ("folder", "two"),
            ("org", "three"),
            ("repo", "mine/four"),
            ("a", "deep"),
        ] {
            symlink(there(from), root.path().join(to)).unwrap();
        }
        // A link that leads to itself is none.
        symlink(root.path().join("round"), root.path().join("round")).unwrap();
        let models = catalog.models(&reads(&[]));
        let found: Vec<_> = models.iter().map(|it| it.id.split(':').next().unwrap()).collect();
        for id in ["one", "two", "three/repo", "mine/four"] {
            assert!(found.contains(&id), "{id}: {found:?}");
        }
        assert!(!found.iter().any(|it| it.starts_with("deep") || it.starts_with("round")), "{found:?}");
    }

    #[test]
    fn no_name_leads_out_of_the_folder() {
        let (root, catalog) = catalog();
        fs::write(root.path().parent().unwrap().join("outside-of-it.gguf"), gguf("llama")).unwrap();
        let absolute = root.path().join("stories.gguf").display().to_string();
        assert_eq!(catalog.find(&absolute, &reads(&[])).unwrap_err().code, ErrorCode::ModelNotFound);
        for id in [
            "../outside-of-it",
            "./stories",
            "stories.gguf/",
            "/etc/passwd",
            "..",
            ".",
            "",
            "hf/../stories",
            "a\\b",
            "one/one-Q4_0",
        ] {
            assert_eq!(catalog.find(id, &reads(&[])).unwrap_err().code, ErrorCode::ModelNotFound, "{id}");
        }
        fs::remove_file(root.path().parent().unwrap().join("outside-of-it.gguf")).unwrap();
    }

    #[test]
    fn a_repository_is_called_as_it_was_typed() {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, gguf("llama")).unwrap();
        };
        put("org/Qwen3-4B-GGUF/Qwen3-4B-Q4_K_M.gguf");
        put("org/Big-GGUF/UD-Q4_K_XL/Big-UD-Q4_K_XL-00001-of-00001.gguf");
        put("org/Two/two-Q4_0.gguf");
        put("org/Two/two-Q8_0.gguf");
        put("org/Two/imatrix.gguf");
        put(".pulling/org/Half/half-Q4_0.gguf");
        let catalog = Catalog::new(root.path().to_path_buf(), None, Vec::new(), BTreeMap::new());
        let readable = reads(&["gguf"]);
        let ids: Vec<String> = catalog.models(&readable).into_iter().map(|model| model.id).collect();
        assert_eq!(
            ids,
            ["org/Big-GGUF:UD-Q4_K_XL", "org/Qwen3-4B-GGUF:Q4_K_M", "org/Two:Q4_0", "org/Two:Q8_0"]
        );
        let find = |id: &str| catalog.find(id, &readable).map(|model| model.id).map_err(|f| f.message);
        for name in [
            "org/Qwen3-4B-GGUF:Q4_K_M",
            "org/Qwen3-4B-GGUF",
            "ORG/qwen3-4b-gguf:q4_k_m",
            "qwen3-4b",
            "Qwen3-4B:Q4_K_M",
            "qwen3-4b-gguf:latest",
            "hf.co/org/Qwen3-4B-GGUF:Q4_K_M",
        ] {
            assert_eq!(find(name).as_deref(), Ok("org/Qwen3-4B-GGUF:Q4_K_M"), "{name}");
        }
        assert_eq!(find("two:q8_0").as_deref(), Ok("org/Two:Q8_0"));
        assert_eq!(
            find("two").unwrap_err(),
            "Model 'two' has several files; name one of them: 'org/Two:Q4_0', 'org/Two:Q8_0'"
        );
        for name in ["qwen3-4b:q8_0", "org", "other/Two", "org/Half"] {
            assert!(find(name).is_err(), "{name}");
        }
    }
}
