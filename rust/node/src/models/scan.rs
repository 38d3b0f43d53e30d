//! From a folder to the models in it.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use llm_node_core::error::{ErrorCode, Fault};
use parking_lot::Mutex;

use super::{
    Model,
    gguf::{self, Header},
    quantization, snapshot,
};
/// Beginnings of the names of GGUF files that are no models: projectors, calibration data, draft heads.
const NO_MODELS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// A file as it was when its header was read.
type Stamp = (PathBuf, Option<SystemTime>, u64);

/// Headers read before: a vocabulary of 150 000 texts need not be walked again for each listing.
#[derive(Debug, Default)]
pub(super) struct Headers {
    known: Mutex<HashMap<Stamp, Result<Header, Fault>>>,
}

impl Headers {
    fn read(&self, path: &Path) -> (u64, Result<Header, Fault>) {
        let metadata = fs::metadata(path).ok();
        let length = metadata.as_ref().map_or(0, fs::Metadata::len);
        let key = (path.to_path_buf(), metadata.and_then(|metadata| metadata.modified().ok()), length);
        if let Some(known) = self.known.lock().get(&key) {
            return (length, known.clone());
        }
        let read = gguf::read(path)
            .map_err(|error| Fault::new(ErrorCode::ModelCorrupt, format!("{}: {error}", path.display())));
        let mut known = self.known.lock();
        known.retain(|(path, ..), _| *path != key.0);
        known.insert(key, read.clone());
        (length, read)
    }
}

/// One GGUF model: a file, or the first of several that belong together.
struct Group {
    first: PathBuf,
    /// File name without extension and part number.
    stem: String,
    size_bytes: u64,
    problem: Option<Fault>,
    /// All its files.
    parts: Vec<PathBuf>,
}

/// Something in the models folder.
pub(super) struct Below {
    pub(super) path: PathBuf,
    /// Folders between it and the models folder.
    depth: usize,
    kind: Kind,
}

/// What an entry of a folder is.
enum Kind {
    File,
    Folder,
    /// A pipe, a socket or a device.
    Special,
    /// It cannot be looked at, and this is why.
    Unseen(String),
}

/// The format of snapshots.
const SAFETENSORS: &str = "safetensors";

/// A chat template beside models.
const TEMPLATE: &str = "chat_template.jinja";

/// Files that stand beside models and are none.
const BESIDE: [&str; 8] = ["json", "txt", "md", "jinja", "model", "yaml", "sha256", "etag"];
/// How far below the models folder models lie: in `ORG/REPO/FOLDER`.
const DEEPEST: usize = 3;
/// How far below it one looks for what is misplaced.
const DEEPEST_LOOK: usize = 6;

/// All that lies in and below the models folder. What a link leads to is looked at, and nothing below it: that may be
/// all of the machine's files.
pub(super) fn all_below(models_dir: &Path) -> Vec<Below> {
    let mut found = Vec::new();
    let mut open = vec![(models_dir.to_path_buf(), 0, false)];
    while let Some((folder, depth, is_link)) = open.pop() {
        for (path, kind) in of_any_kind(&folder) {
            let is_folder = matches!(kind, Kind::Folder);
            if is_folder && let Err(error) = fs::read_dir(&path) {
                found.push(Below { path, depth, kind: Kind::Unseen(format!("it cannot be read: {error}")) });
                continue;
            }
            if is_folder && depth < DEEPEST_LOOK && !is_link {
                open.push((path.clone(), depth + 1, path.is_symlink()));
            }
            found.push(Below { path, depth, kind });
        }
    }
    found
}

/// Can it be the name of a model, which is shown to people and sent in a path? Without line breaks and other control
/// characters, and without those that change the direction of what stands beside them.
pub(super) fn is_name(name: &str) -> bool {
    let turns = |it| matches!(it, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !name.chars().any(|it| it.is_control() || turns(it))
}

/// Why something is not listed whose name is none.
pub(super) const NO_NAME: &str = "its name holds control characters, which a model's name cannot";

/// Why something that belongs to no model does not. `None`: nobody would take it for one.
pub(super) fn why_unlisted(it: &Below, formats: &[String]) -> Option<String> {
    if let Kind::Unseen(why) = &it.kind {
        return Some(why.clone()); // whatever it is called: a link may have led to many models
    }
    let (file, format) = (it, extension(&it.path)?);
    let is_of_models = is_known(&file.path) || formats.contains(&format);
    match it.kind {
        Kind::Folder => {
            return is_of_models.then(|| "it is a folder, and no model is found in it".to_owned());
        }
        Kind::Special => {
            return is_of_models.then(|| "it is a pipe, a socket or a device, and no file".to_owned());
        }
        _ if BESIDE.contains(&format.as_str()) => return None,
        _ => {}
    }
    // The models folder's own name is nobody's.
    let named = file.path.iter().rev().take(file.depth + 1);
    Some(if !named.into_iter().all(|part| is_name(&part.to_string_lossy())) {
        NO_NAME.to_owned()
    } else if !is_of_models {
        format!("no engine here reads .{format} files")
    } else if NO_MODELS.iter().any(|start| file_name(&file.path).starts_with(start)) {
        "by its name it is a part of another model".to_owned()
    } else if file.depth > DEEPEST {
        "it lies too deep: NAME.gguf, NAME/FILE.gguf and ORG/REPO/FILE.gguf are looked for".to_owned()
    } else if format == SAFETENSORS {
        "there is no config.json beside it".to_owned()
    } else {
        "another file has this name, or it lies where no model is looked for".to_owned()
    })
}

/// All models of a folder, sorted by name. `formats`: what engines read beside the formats known here;
/// a file with such an extension is a model, any other (a README, a half download) is not.
pub(super) fn scan(models_dir: &Path, formats: &[String], headers: &Headers) -> Vec<Model> {
    let mut models = BTreeMap::new();
    let (files, folders) = entries(models_dir);
    for group in groups(&files) {
        let model = gguf_model(group.stem.clone(), group, headers);
        models.entry(model.id.clone()).or_insert(model);
    }
    for folder in folders {
        let Some(name) = folder.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let (files, _) = entries(&folder);
        let groups = groups(&files);
        if groups.is_empty() {
            if snapshot::is_snapshot(&folder, &files) {
                let model = snapshot_model(name, &folder, &files);
                models.entry(model.id.clone()).or_insert(model);
            } else {
                // Without weights of its own it is the folder of an organisation.
                for model in organisation(&name, &folder, headers) {
                    models.entry(model.id.clone()).or_insert(model);
                }
            }
            continue;
        }
        let alone = groups.len() == 1;
        for mut model in with_template(variants(&name, groups, headers), &files) {
            if alone {
                model.id.clone_from(&name);
            }
            models.entry(model.id.clone()).or_insert(model);
        }
    }
    for file in files {
        let Some(format) = extension(&file) else { continue };
        if is_known(&file) || !formats.contains(&format) {
            continue;
        }
        let stem = file_stem(&file);
        // GGUF keeps the bare name; another format of the same name goes by its whole file name.
        let id = if models.contains_key(&stem) { format!("{stem}.{format}") } else { stem };
        models.entry(id.clone()).or_insert_with(|| other_model(id, file, format));
    }
    models.into_values().collect()
}

/// The models of `ORG/REPO/...`, each `ORG/REPO:QUANT`.
pub(super) fn organisation(name: &str, folder: &Path, headers: &Headers) -> Vec<Model> {
    let (_, repositories) = entries(folder);
    repositories
        .into_iter()
        .flat_map(|folder| {
            let repository = format!("{name}/{}", file_name(&folder));
            repository_models(&repository, &files_of_repository(&folder), headers)
        })
        .collect()
}

/// The GGUF models among a repository's files, each `ORG/REPO:QUANT`; where there are none, what its snapshot holds.
pub(super) fn repository_models(name: &str, files: &[PathBuf], headers: &Headers) -> Vec<Model> {
    let groups = groups(files);
    if groups.is_empty() {
        return repository_snapshot(name, files).into_iter().collect();
    }
    with_template(variants(name, groups, headers), files)
}

/// `ORG/REPO:safetensors`. What lies in folders of a repository is another form of the same weights.
fn repository_snapshot(name: &str, files: &[PathBuf]) -> Option<Model> {
    let folder = files.iter().find(|file| file_name(file) == snapshot::CONFIG)?.parent()?;
    let own: Vec<PathBuf> = files.iter().filter(|file| file.parent() == Some(folder)).cloned().collect();
    if !snapshot::is_snapshot(folder, &own) {
        return None;
    }
    let model = snapshot_model(format!("{name}:{SAFETENSORS}"), folder, &own);
    Some(Model { folder: Some(name.to_owned()), variant: Some(SAFETENSORS.to_owned()), ..model })
}

/// With the chat template among these files, for those of the models that hold none: so a repository has it that
/// was made before its models' headers had.
fn with_template(mut models: Vec<Model>, files: &[PathBuf]) -> Vec<Model> {
    if let Some(template) = files.iter().find(|file| file_name(file) == TEMPLATE) {
        for model in models.iter_mut().filter(|model| model.task == Some("completions")) {
            model.task = Some("chat");
            model.template = Some(template.clone());
        }
    }
    models
}

/// A repository's files: those in its folder, and in the folders there, one of which may hold the parts of one
/// version.
pub(super) fn files_of_repository(folder: &Path) -> Vec<PathBuf> {
    let (mut files, folders) = entries(folder);
    files.extend(folders.iter().flat_map(|folder| entries(folder).0));
    files
}

/// Models that share a name, as `NAME:QUANT`.
fn variants(name: &str, groups: Vec<Group>, headers: &Headers) -> Vec<Model> {
    let mut models: Vec<Model> = groups
        .into_iter()
        .map(|group| {
            let stem = group.stem.clone();
            let mut model = gguf_model(name.to_owned(), group, headers);
            model.files.clear();
            model.variant = Some(model.quantization.clone().unwrap_or(stem));
            model
        })
        .collect();
    tell_apart(&mut models);
    for model in &mut models {
        model.folder = Some(name.to_owned());
        model.id = format!("{name}:{}", model.variant.as_deref().unwrap_or_default());
    }
    models
}

/// One file given by its path.
pub(super) fn one(id: &str, path: &Path, headers: &Headers) -> Model {
    if path.is_dir() {
        let (files, _) = entries(path);
        return snapshot_model(id.to_owned(), path, &files);
    }
    match extension(path) {
        Some(format) if format != "gguf" => other_model(id.to_owned(), path.to_path_buf(), format),
        _ => named_gguf(id.to_owned(), path, headers),
    }
}

/// A GGUF file that has this name alone, whatever its file is called.
pub(super) fn named_gguf(id: String, path: &Path, headers: &Headers) -> Model {
    let group = Group {
        first: path.to_path_buf(),
        stem: file_stem(path),
        size_bytes: fs::metadata(path).map_or(0, |metadata| metadata.len()),
        problem: None,
        parts: vec![path.to_path_buf()],
    };
    Model { files: Vec::new(), ..gguf_model(id, group, headers) }
}

/// A file of this name whose format no engine's manifest mentions: better named than called missing. A file
/// of a format that is known here is a model already, or none.
pub(super) fn unclaimed(models_dir: &Path, name: &str) -> Option<Model> {
    let (files, _) = entries(models_dir);
    let file = files
        .into_iter()
        .find(|file| !is_known(file) && (file_stem(file) == name || file_name(file) == name))?;
    let format = extension(&file)?;
    Some(other_model(name.to_owned(), file, format))
}

fn gguf_model(id: String, group: Group, headers: &Headers) -> Model {
    let (_, header) = headers.read(&group.first);
    let named = quantization::from_file_name(&group.stem);
    let mut model = Model {
        id,
        format: "gguf".to_owned(),
        path: group.first,
        size_bytes: group.size_bytes,
        problem: group.problem,
        files: group.parts.iter().map(|part| file_name(part)).collect(),
        parts: group.parts,
        quantization: named,
        ..Model::default()
    };
    match header {
        Ok(header) => {
            let told = header.file_type.and_then(quantization::from_file_type).map(str::to_owned);
            model.quantization = model.quantization.take().or(told);
            model.task = Some(match (header.pools, header.has_chat_template) {
                (true, _) if header.ranks => "rerank",
                (true, _) => "embeddings",
                (false, true) => "chat",
                (false, false) => "completions",
            });
            model.architecture = Some(header.architecture);
            model.name = header.name;
            model.context_length = header.context_length;
        }
        Err(fault) => model.problem = Some(fault),
    }
    model
}

fn snapshot_model(id: String, folder: &Path, files: &[PathBuf]) -> Model {
    let (format, path, parts) = (SAFETENSORS.to_owned(), folder.to_path_buf(), files.to_vec());
    let template = files.iter().find(|file| file_name(file) == TEMPLATE).cloned();
    let mut model = Model { id, format, path, parts, template, ..Model::default() };
    match snapshot::read(&model.path, files) {
        Ok(snapshot) => {
            model.architecture = snapshot.architecture;
            model.context_length = snapshot.context_length;
            model.size_bytes = snapshot.size_bytes;
        }
        Err(message) => model.problem = Some(Fault::new(ErrorCode::ModelCorrupt, message)),
    }
    model
}

fn other_model(id: String, path: PathBuf, format: String) -> Model {
    let size_bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
    let (files, parts) = (vec![file_name(&path)], vec![path.clone()]);
    Model { id, format, size_bytes, path, parts, files, ..Model::default() }
}

/// Variants of one folder with equal names go by their file names instead.
fn tell_apart(models: &mut [Model]) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for model in models.iter() {
        *seen.entry(model.variant.clone().unwrap_or_default()).or_default() += 1;
    }
    for model in models {
        if seen.get(model.variant.as_deref().unwrap_or_default()).is_some_and(|count| *count > 1) {
            model.variant = Some(file_stem(&model.path));
        }
    }
}

/// The GGUF files, parts of one model put together, without [`NO_MODELS`].
fn groups(files: &[PathBuf]) -> Vec<Group> {
    let mut groups: BTreeMap<String, (u32, BTreeMap<u32, PathBuf>)> = BTreeMap::new();
    for file in files.iter().filter(|file| extension(file).as_deref() == Some("gguf")) {
        let stem = file_stem(file);
        if NO_MODELS.iter().any(|beginning| stem.starts_with(beginning)) {
            continue;
        }
        let (stem, part, parts) = split_name(&stem).unwrap_or((stem.as_str(), 1, 1));
        let group = groups.entry(stem.to_owned()).or_insert((parts, BTreeMap::new()));
        group.0 = group.0.max(parts);
        group.1.insert(part, file.clone());
    }
    groups
        .into_iter()
        .filter_map(|(stem, (parts, files))| {
            let first = files.values().next()?.clone();
            let size_bytes = files
                .values()
                .map(|file| fs::metadata(file).map_or(0, |metadata| metadata.len()))
                .fold(0, u64::saturating_add);
            let missing = (1..=parts).find(|part| !files.contains_key(part));
            let problem = missing.map(|part| {
                Fault::new(
                    ErrorCode::ModelCorrupt,
                    format!("{}: part {part} of {parts} is missing", first.display()),
                )
            });
            let parts = files.into_values().collect();
            Some(Group { first, stem, size_bytes, problem, parts })
        })
        .collect()
}

/// `name-00002-of-00005` → (`name`, 2, 5)
fn split_name(stem: &str) -> Option<(&str, u32, u32)> {
    let (rest, parts) = stem.rsplit_once("-of-")?;
    let (name, part) = rest.rsplit_once('-')?;
    if part.len() != 5 || parts.len() != 5 {
        return None;
    }
    let (part, parts) = (part.parse().ok()?, parts.parse().ok()?);
    (part >= 1 && part <= parts).then_some((name, part, parts))
}

/// Files and folders, sorted by name; hidden ones and what cannot be read left out. Links are followed:
/// download caches consist of them.
pub(super) fn entries(directory: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for (path, kind) in of_any_kind(directory) {
        match kind {
            Kind::File => files.push(path),
            Kind::Folder => folders.push(path),
            Kind::Special | Kind::Unseen(_) => {}
        }
    }
    (files, folders)
}

/// All that is in a folder and not hidden, sorted by name.
fn of_any_kind(directory: &Path) -> Vec<(PathBuf, Kind)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        let path = std::path::absolute(&path).unwrap_or(path);
        let kind = match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Kind::Folder,
            Ok(metadata) if metadata.is_file() => Kind::File,
            Ok(_) => Kind::Special,
            Err(error) => Kind::Unseen(match fs::read_link(&path) {
                Ok(target) if error.kind() == io::ErrorKind::NotFound => {
                    format!("it is a link to {}, and nothing is there", target.display())
                }
                _ => format!("it cannot be looked at: {error}"),
            }),
        };
        found.push((path, kind));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Is it of a format that is read here, whatever engines there are?
pub(super) fn is_known(file: impl AsRef<Path>) -> bool {
    matches!(extension(file.as_ref()).as_deref(), Some("gguf" | SAFETENSORS))
}

/// A file's name without its extension.
pub(super) fn stem(file: &str) -> String {
    file_stem(Path::new(file))
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn extension(path: &Path) -> Option<String> {
    path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase())
}

fn file_stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_from_names() {
        assert_eq!(split_name("big-Q4_0-00002-of-00005"), Some(("big-Q4_0", 2, 5)));
        assert_eq!(split_name("big-00006-of-00005"), None);
        assert_eq!(split_name("one-of-a-kind"), None);
    }
}
