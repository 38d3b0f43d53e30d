//! An engine from opening to shutting down: [`OpenedEngine`], on which nothing runs yet, and
//! [`LoadedEngine`], which is initialised.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fmt;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use llm_node_abi::{
    ENGINE_ABI_VERSION, EngineBatching, EngineConfig, EngineEmbedding, EngineInfo, EngineMemory,
    EngineModels, EngineStreaming, EngineTokenizer, Growing,
};

use crate::callbacks::{HostServices, checked};
use crate::error::{AbiSource, EngineError, LoadError, LoadErrorKind};
use crate::library::{self, Symbols};
use crate::parameters::{self, Options};
use crate::readable::{self, NAME_LIMIT};
use crate::table::{self, Table};

/// Told the name of a call just before it is made, so that whoever watches the process can say in
/// which one it died. Only calls that may take long are announced: opening, `engine_init`,
/// `engine_shutdown`, loading, creating, estimating, and generation as a whole. Steps are not.
pub type Observer = Arc<dyn Fn(&'static str) + Send + Sync>;

/// An [`Observer`] that does nothing.
pub fn unobserved() -> Observer {
    Arc::new(|_| ())
}

/// Private copies of what the engine offers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extensions {
    /// `engine.models/1`
    pub models: Option<EngineModels>,
    /// `engine.memory/1`
    pub memory: Option<EngineMemory>,
    /// `engine.tokenizer/1`
    pub tokenizer: Option<EngineTokenizer>,
    /// `engine.batch/1`
    pub batch: Option<EngineBatching>,
    /// `engine.stream/1`
    pub stream: Option<EngineStreaming>,
    /// `engine.embed/1`
    pub embed: Option<EngineEmbedding>,
}

/// An engine whose library is mapped, whose identity is checked and whose extensions are known.
/// `engine_init` has not been called, or `engine_shutdown` has.
pub struct OpenedEngine {
    path: PathBuf,
    id: String,
    version: String,
    symbols: Symbols,
    extensions: Extensions,
    names: Vec<&'static str>,
    observer: Observer,
}

impl fmt::Debug for OpenedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedEngine")
            .field("path", &self.path)
            .field("id", &self.id)
            .field("version", &self.version)
            .field("extensions", &self.names)
            .finish_non_exhaustive()
    }
}

impl OpenedEngine {
    /// Opens the library at `path`. Its headers are read before it is mapped, its ABI version before
    /// anything else is called, and `engine_init` is not called at all.
    ///
    /// `expected_id` and `expected_version` are the manifest's.
    pub fn open(
        path: &Path,
        expected_id: &str,
        expected_version: &str,
        observer: Observer,
    ) -> Result<Self, LoadError> {
        Self::open_unnamed(path, expected_id, expected_version, observer)
            .map_err(|kind| LoadError { path: path.to_owned(), kind })
    }

    fn open_unnamed(
        path: &Path,
        expected_id: &str,
        expected_version: &str,
        observer: Observer,
    ) -> Result<Self, LoadErrorKind> {
        library::check_file(path)?;
        observer("dlopen");
        let symbols = library::open(path)?;

        observer("engine_get_info");
        // SAFETY: the first function called, on an engine on which nothing else runs.
        let info = unsafe { (symbols.get_info)() };
        if info.is_null() {
            return Err(LoadErrorKind::NullInfo);
        }
        let (id, version) = identity(info)?;
        if id != expected_id {
            return Err(LoadErrorKind::IdMismatch { expected: expected_id.to_owned(), got: id });
        }
        if version != expected_version {
            return Err(LoadErrorKind::VersionMismatch {
                expected: expected_version.to_owned(),
                got: version,
            });
        }

        observer("engine_get_extension");
        let mut names = Vec::new();
        let extensions = Extensions {
            models: extension(&symbols, &mut names)?,
            memory: extension(&symbols, &mut names)?,
            tokenizer: extension(&symbols, &mut names)?,
            batch: extension(&symbols, &mut names)?,
            stream: extension(&symbols, &mut names)?,
            embed: extension(&symbols, &mut names)?,
        };
        Ok(Self { path: path.to_owned(), id, version, symbols, extensions, names, observer })
    }

    /// What the engine calls itself.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The engine's own version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The library's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ids of the extensions that the engine offers and the host knows.
    pub fn extensions(&self) -> &[&'static str] {
        &self.names
    }

    /// The exported functions, for calls that no method makes.
    pub const fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Calls `engine_init`. One library runs at most once in a process.
    pub fn init(self, config: &InitConfig) -> Result<LoadedEngine, LoadError> {
        let path = self.path.clone();
        self.init_unnamed(config).map_err(|kind| LoadError { path, kind })
    }

    fn init_unnamed(self, config: &InitConfig) -> Result<LoadedEngine, LoadErrorKind> {
        let zero = |what| LoadErrorKind::UnusableSetting { what };
        let engine_dir = parameters::path(&config.engine_dir).ok_or_else(|| zero("engine_dir"))?;
        let gpu_backend = CString::new(config.gpu_backend.as_str()).map_err(|_| zero("gpu_backend"))?;
        let options = Options::new(&config.options).ok_or_else(|| zero("an option"))?;
        let host = HostServices::new(&self.id);
        let mut c_config = EngineConfig {
            struct_size: EngineConfig::SIZE,
            n_threads: config.n_threads,
            host: host.table(),
            engine_dir: engine_dir.as_ptr(),
            gpu_backend: gpu_backend.as_ptr(),
            vram_limit_bytes: config.vram_limit_bytes,
            ram_limit_bytes: config.ram_limit_bytes,
            context_length: config.context_length,
            max_tokens: config.max_tokens,
            options: options.as_ptr(),
            n_options: options.len(),
        };

        let key = self.symbols.init as usize;
        if !running().insert(key) {
            return Err(LoadErrorKind::AlreadyRunning);
        }
        (self.observer)("engine_init");
        let result = checked("engine_init", || {
            // SAFETY: nothing else runs on this engine, the set of running ones just said; the config
            // and what it points to live until the call returns.
            unsafe { (self.symbols.init)(&raw mut c_config) }
        });
        match result {
            Ok(()) => Ok(LoadedEngine { opened: Some(self), load_lock: Mutex::new(()) }),
            Err(error) => {
                running().remove(&key);
                Err(match error {
                    EngineError::Failed { code, message, .. } => LoadErrorKind::InitFailed { code, message },
                    EngineError::Misbehaved { what, .. } => {
                        LoadErrorKind::InitFailed { code: llm_node_abi::ERR_INTERNAL, message: Some(what) }
                    }
                })
            }
        }
    }
}

/// The engines that are initialised in this process, by the address of their `engine_init`: opening a
/// library twice gives the same globals twice.
fn running() -> MutexGuard<'static, HashSet<usize>> {
    static RUNNING: LazyLock<Mutex<HashSet<usize>>> = LazyLock::new(Mutex::default);
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads an `EngineInfo`, the ABI version first.
fn identity(info: *const EngineInfo) -> Result<(String, String), LoadErrorKind> {
    let unreadable = |field, problem: readable::Problem| LoadErrorKind::InfoUnreadable {
        field,
        problem: problem.to_string(),
    };
    // SAFETY: abi_version is the first member in every version of the ABI, so there are 4 bytes.
    let got = unsafe { readable::value(info.cast::<u32>()) }
        .map_err(|problem| unreadable("the result", problem))?;
    if got != ENGINE_ABI_VERSION {
        return Err(LoadErrorKind::AbiMismatch {
            expected: ENGINE_ABI_VERSION,
            got,
            found_in: AbiSource::Binary,
        });
    }
    // SAFETY: of this version, so it is as long as our EngineInfo.
    let pointers = unsafe {
        readable::values(
            info.cast::<u8>().wrapping_add(offset_of!(EngineInfo, engine_id)),
            size_of::<EngineInfo>() - offset_of!(EngineInfo, engine_id),
        )
    };
    pointers.map_err(|problem| unreadable("the result", problem))?;
    // SAFETY: all of it can be read, as was just seen or, where it cannot be seen, is promised.
    let EngineInfo { engine_id, version, .. } = unsafe { info.read_unaligned() };
    // SAFETY: zero-terminated text that is valid for the life of the process, the header says.
    let id = unsafe { readable::text(engine_id, NAME_LIMIT) }
        .map_err(|problem| unreadable("engine_id", problem))?;
    // SAFETY: as above.
    let version =
        unsafe { readable::text(version, NAME_LIMIT) }.map_err(|problem| unreadable("version", problem))?;
    Ok((id, version))
}

fn extension<T: Table>(symbols: &Symbols, names: &mut Vec<&'static str>) -> Result<Option<T>, LoadErrorKind> {
    let Some(get_extension) = symbols.get_extension else { return Ok(None) };
    let id: &'static CStr = T::ID;
    let name = id.to_str().unwrap_or_default();
    // SAFETY: may be asked before engine_init; the id lives for ever.
    let address = unsafe { get_extension(id.as_ptr()) };
    if address.is_null() {
        return Ok(None);
    }
    // SAFETY: it is the answer to T::ID.
    let table = unsafe { table::copy::<T>(address) }
        .map_err(|problem| LoadErrorKind::ExtensionBroken { id: name, problem })?;
    names.push(name);
    Ok(Some(table))
}

/// What `engine_init` is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitConfig {
    /// CPU threads the engine may use; 0: its own choice.
    pub n_threads: u32,
    /// Where manifest.json is.
    pub engine_dir: PathBuf,
    /// The manifest's: "cuda", "metal", "cpu", ...
    pub gpu_backend: String,
    /// Device memory for the engine as a whole, in bytes; 0: no limit.
    pub vram_limit_bytes: u64,
    /// Host memory, likewise.
    pub ram_limit_bytes: u64,
    /// Tier 0 only: longest sequence in tokens; 0: the model's own.
    pub context_length: u32,
    /// Tier 0 only: most tokens per answer; 0: no limit.
    pub max_tokens: u32,
    /// Settings for the engine: key and value.
    pub options: Vec<(String, String)>,
}

/// An initialised engine. Dropping the last owner calls `engine_shutdown`, on the thread it happens.
pub struct LoadedEngine {
    /// Taken only by `shutdown`.
    opened: Option<OpenedEngine>,
    /// Held during every `[load]` call.
    load_lock: Mutex<()>,
}

impl fmt::Debug for LoadedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LoadedEngine").field(&self.opened).finish()
    }
}

impl LoadedEngine {
    #[expect(clippy::expect_used, reason = "`opened` is there until `shutdown`, which consumes self")]
    fn opened(&self) -> &OpenedEngine {
        self.opened.as_ref().expect("taken only by shutdown")
    }

    /// What the engine calls itself.
    pub fn id(&self) -> &str {
        self.opened().id()
    }

    /// The engine's own version.
    pub fn version(&self) -> &str {
        self.opened().version()
    }

    /// Ids of the extensions that the engine offers and the host knows.
    pub fn extensions(&self) -> &[&'static str] {
        self.opened().extensions()
    }

    /// Does the engine offer what this id names?
    pub fn offers(&self, id: &str) -> bool {
        self.extensions().contains(&id)
    }

    /// Calls `engine_shutdown`. The engine can be initialised again.
    pub fn shutdown(mut self) -> OpenedEngine {
        self.call_shutdown();
        #[expect(clippy::expect_used, reason = "taken nowhere else")]
        self.opened.take().expect("taken only here")
    }

    fn call_shutdown(&self) {
        let opened = self.opened();
        (opened.observer)("engine_shutdown");
        // SAFETY: whoever calls this owns the engine alone: every model holds an Arc to it, and no call
        // of tier 0 can be running, since that borrows it mutably.
        unsafe { (opened.symbols.shutdown)() };
        running().remove(&(opened.symbols.init as usize));
    }

    /// The exported functions, for calls that no method makes.
    pub fn symbols(&self) -> &Symbols {
        &self.opened().symbols
    }

    /// The engine's tables, likewise.
    pub fn tables(&self) -> &Extensions {
        &self.opened().extensions
    }

    pub(crate) fn announce(&self, call: &'static str) {
        (self.opened().observer)(call);
    }

    /// To be held during a `[load]` call.
    pub(crate) fn load_lock(&self) -> MutexGuard<'_, ()> {
        self.load_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LoadedEngine {
    fn drop(&mut self) {
        if self.opened.is_some() {
            self.call_shutdown();
        }
    }
}
