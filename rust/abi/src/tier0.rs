//! Tier 0: codes, what the host offers, and the five functions that make an engine.

use core::ffi::{c_char, c_int, c_void};
use core::fmt;

/// An `ERR_` code as it crosses the ABI. Values outside the list are legal to hold, and mean
/// [`ERR_INTERNAL`].
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub c_int);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal),+ $(,)?) => {
        $($(#[$doc])* pub const $name: Code = Code($value);)+

        impl Code {
            /// Every code of this version of the ABI.
            pub const ALL: &'static [Code] = &[$($name),+];

            /// The name in the header, or `None` for a value that this version does not know.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }
    };
}

codes! {
    /// Success.
    ERR_OK = 0,
    /// Device memory ran out.
    ERR_OOM_VRAM = 1,
    /// Host memory ran out.
    ERR_OOM_RAM = 2,
    /// The model file is damaged.
    ERR_MODEL_CORRUPT = 3,
    /// A deadline passed.
    ERR_TIMEOUT = 4,
    /// The call was cancelled.
    ERR_CANCELLED = 5,
    /// The engine or the model cannot do this.
    ERR_UNSUPPORTED = 6,
    /// Anything else; also what an unknown code means.
    ERR_INTERNAL = 7,
    /// Built for another version of the ABI.
    ERR_ABI_MISMATCH = 8,
    /// The model could not be loaded.
    ERR_LOAD_FAILED = 9,
    /// An argument was wrong.
    ERR_INVALID_ARGUMENT = 10,
    /// There is no such thing.
    ERR_NOT_FOUND = 11,
    /// The length out-parameter says how much is needed.
    ERR_BUFFER_TOO_SMALL = 12,
    /// The step does not fit the KV cache now; nothing was changed.
    ERR_CACHE_FULL = 13,
    /// The device is gone for this process; only a restart helps.
    ERR_DEVICE_LOST = 14,
}

impl Code {
    /// Is this success?
    pub const fn is_ok(self) -> bool {
        self.0 == ERR_OK.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "unknown code {}", self.0),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The number of a token in the vocabulary.
pub type EngineToken = i32;
/// No token.
pub const ENGINE_TOKEN_NONE: EngineToken = -1;
/// See [`EngineSlice::tokens`](crate::EngineSlice::tokens).
pub const ENGINE_TOKEN_PREVIOUS: EngineToken = -2;

/// Bytes, not zero-terminated. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineStr {
    /// The first byte.
    pub data: *const c_char,
    /// How many there are.
    pub len: usize,
}

/// One engine-specific setting. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineOption {
    /// Its name.
    pub key: *const c_char,
    /// Its value, as text.
    pub value: *const c_char,
}

/// Who the engine is. Frozen for all ABI versions.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineInfo {
    /// Compared before anything else.
    pub abi_version: u32,
    /// The manifest's "id".
    pub engine_id: *const c_char,
    /// The manifest's "version".
    pub version: *const c_char,
}

/// For people who debug the engine.
pub const ENGINE_LOG_DEBUG: i32 = 0;
/// For the record.
pub const ENGINE_LOG_INFO: i32 = 1;
/// Something an administrator may want to change.
pub const ENGINE_LOG_WARN: i32 = 2;
/// Something failed.
pub const ENGINE_LOG_ERROR: i32 = 3;

/// What the host offers the engine.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineHost {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// The host's version of the ABI.
    pub abi_version: u32,
    /// "llm-node".
    pub name: *const c_char,
    /// The host's own version.
    pub version: *const c_char,
    /// The host's own.
    pub private_data: *mut c_void,
    /// One message for the node's log.
    pub log: Option<unsafe extern "C" fn(host: *const EngineHost, severity: i32, message: *const c_char)>,
    /// Why the call that is running on this thread is about to fail.
    pub set_error: Option<unsafe extern "C" fn(host: *const EngineHost, message: *const c_char)>,
    /// Extensions of the host.
    pub get_extension:
        Option<unsafe extern "C" fn(host: *const EngineHost, id: *const c_char) -> *const c_void>,
}

/// What `engine_init` is given.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// CPU threads; 0: the engine's choice.
    pub n_threads: u32,
    /// The host's services.
    pub host: *const EngineHost,
    /// Where manifest.json is.
    pub engine_dir: *const c_char,
    /// The manifest's.
    pub gpu_backend: *const c_char,
    /// Bytes, for the engine as a whole; 0: no limit.
    pub vram_limit_bytes: u64,
    /// Bytes; 0: no limit.
    pub ram_limit_bytes: u64,
    /// Tier 0 only; 0: the model's own.
    pub context_length: u32,
    /// Tier 0 only: most per engine_generate; 0: no limit.
    pub max_tokens: u32,
    /// Engine-specific settings.
    pub options: *const EngineOption,
    /// How many there are.
    pub n_options: usize,
}

/// `token_id` is set.
pub const ENGINE_RESULT_ID: u32 = 1 << 0;
/// `logprob` is set.
pub const ENGINE_RESULT_LOGPROB: u32 = 1 << 1;

/// An end-of-generation token, or a stop string.
pub const ENGINE_FINISH_STOP: u32 = 0;
/// The limit was reached.
pub const ENGINE_FINISH_LENGTH: u32 = 1;
/// The request was cancelled.
pub const ENGINE_FINISH_CANCELLED: u32 = 2;

/// An alternative to a token. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TokenLogprob {
    /// Its number.
    pub token_id: EngineToken,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub text: *const c_char,
    /// How many there are.
    pub text_len: usize,
}

/// One generated token; an array of them ends with an element whose `text` is NULL. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct TokenResult {
    /// The token's bytes; NULL in the ending element.
    pub text: *const c_char,
    /// How many there are.
    pub text_len: usize,
    /// Its number, with [`ENGINE_RESULT_ID`].
    pub token_id: EngineToken,
    /// `ENGINE_RESULT_` bits.
    pub flags: u32,
    /// Natural logarithm, with [`ENGINE_RESULT_LOGPROB`].
    pub logprob: f32,
    /// `ENGINE_FINISH_`, in the ending element.
    pub finish: u32,
    /// The likeliest alternatives, best first.
    pub top: *const TokenLogprob,
    /// How many there are.
    pub n_top: usize,
}

crate::growing!(EngineHost, EngineConfig);

/// The signature of the exported function `engine_get_info`.
pub type EngineGetInfoFn = unsafe extern "C" fn() -> *mut EngineInfo;
/// The signature of the exported function `engine_init`.
pub type EngineInitFn = unsafe extern "C" fn(config: *mut EngineConfig) -> Code;
/// The signature of the exported function `engine_load_model`.
pub type EngineLoadModelFn = unsafe extern "C" fn(model_path: *const c_char) -> Code;
/// The signature of the exported function `engine_generate`.
pub type EngineGenerateFn =
    unsafe extern "C" fn(prompt: *const c_char, results: *mut *mut TokenResult) -> Code;
/// The signature of the exported function `engine_shutdown`.
pub type EngineShutdownFn = unsafe extern "C" fn();
/// The signature of the optional exported function `engine_get_extension`.
pub type EngineGetExtensionFn = unsafe extern "C" fn(id: *const c_char) -> *const c_void;
