//! The one file that touches llama.cpp: safe types over the raw bindings and the C++ shim.
//!
//! It owns pointers, lifetimes, the log and the conversion of every kind of failure into a [`Fault`].
//! It refuses policy: which context to make, what a code means to the host and how sequences are kept
//! is decided elsewhere. It validates nothing that its callers have validated, except where llama.cpp
//! would read out of bounds.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// An assertion of llama.cpp failed: the object concerned must not be used again.
    Assertion,
    /// The C++ side could not allocate.
    NoMemory,
    /// llama.cpp said no, with or without an exception.
    Refused,
}

/// Why llama.cpp did not do it, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self { kind: FaultKind::Refused, message: message.into() }
    }
}

/// How loud a line of llama.cpp's log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warn,
    Error,
}

// ---------------------------------------------------------------------------------------- the shim

#[repr(C)]
struct RawFault {
    code: i32,
    message: [c_char; 1020],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawUse {
    device: sys::ggml_backend_dev_t,
    model: u64,
    context: u64,
    compute: u64,
}

unsafe extern "C" {
    fn shim_install(report: extern "C" fn(*const c_char));
    fn shim_load_backends(directory: *const c_char, fault: *mut RawFault);
    fn shim_gguf_open(path: *const c_char, fault: *mut RawFault) -> *mut sys::gguf_context;
    fn shim_model_load(
        path: *const c_char,
        params: *const sys::llama_model_params,
        fault: *mut RawFault,
    ) -> *mut sys::llama_model;
    fn shim_model_free(model: *mut sys::llama_model, fault: *mut RawFault);
    fn shim_context_create(
        model: *mut sys::llama_model,
        params: *const sys::llama_context_params,
        fault: *mut RawFault,
    ) -> *mut sys::llama_context;
    fn shim_context_free(context: *mut sys::llama_context, fault: *mut RawFault);
    fn shim_decode(
        context: *mut sys::llama_context,
        batch: *const sys::llama_batch,
        fault: *mut RawFault,
    ) -> i32;
    fn shim_logits(context: *mut sys::llama_context, fault: *mut RawFault) -> *mut f32;
    fn shim_embedding(context: *mut sys::llama_context, sequence: i32, fault: *mut RawFault) -> *mut f32;
    fn shim_tokenize(
        vocab: *const sys::llama_vocab,
        text: *const c_char,
        text_len: i32,
        tokens: *mut sys::llama_token,
        capacity: i32,
        add_special: bool,
        parse_special: bool,
        fault: *mut RawFault,
    ) -> i32;
    fn shim_piece(
        vocab: *const sys::llama_vocab,
        token: sys::llama_token,
        buffer: *mut c_char,
        capacity: i32,
        fault: *mut RawFault,
    ) -> i32;
    fn shim_sequence_remove(
        context: *mut sys::llama_context,
        sequence: i32,
        begin: i32,
        fault: *mut RawFault,
    ) -> bool;
    fn shim_sequence_copy(
        context: *mut sys::llama_context,
        from: i32,
        to: i32,
        end: i32,
        fault: *mut RawFault,
    );
    fn shim_sequence_copy_cells(
        context: *mut sys::llama_context,
        from: i32,
        to: i32,
        fault: *mut RawFault,
    ) -> bool;
    fn shim_is_plain_cache(context: *mut sys::llama_context, fault: *mut RawFault) -> bool;
    fn shim_sequence_take_cells(
        pool: *mut sys::llama_context,
        from: i32,
        context: *mut sys::llama_context,
        to: i32,
        streams: u32,
        fault: *mut RawFault,
    ) -> bool;
    fn shim_memory_clear(context: *mut sys::llama_context, fault: *mut RawFault);
    fn shim_state_size(context: *mut sys::llama_context, sequence: i32, fault: *mut RawFault) -> usize;
    fn shim_state_save(
        context: *mut sys::llama_context,
        sequence: i32,
        data: *mut u8,
        size: usize,
        fault: *mut RawFault,
    ) -> usize;
    fn shim_state_restore(
        context: *mut sys::llama_context,
        sequence: i32,
        data: *const u8,
        size: usize,
        fault: *mut RawFault,
    ) -> usize;
    fn shim_memory(
        context: *const sys::llama_context,
        uses: *mut RawUse,
        capacity: usize,
        fault: *mut RawFault,
    ) -> usize;
}

/// Runs one function of the shim. What llama.cpp logged as errors meanwhile becomes the message where
/// the shim itself has none, and comes before the shim's own where it has.
fn guarded<T>(call: impl FnOnce(*mut RawFault) -> T) -> (T, Option<Fault>, Vec<String>) {
    let mut raw = RawFault { code: 0, message: [0; 1020] };
    let outer = ERRORS.with(|errors| errors.replace(Some(Vec::new())));
    let result = call(&raw mut raw);
    let lines = ERRORS.with(|errors| errors.replace(outer)).unwrap_or_default();
    let kind = match raw.code {
        0 => return (result, None, lines),
        1 => FaultKind::Assertion,
        2 => FaultKind::NoMemory,
        _ => FaultKind::Refused,
    };
    // SAFETY: the shim terminates the message within its array.
    let own = unsafe { CStr::from_ptr(raw.message.as_ptr()) }.to_string_lossy().into_owned();
    let mut parts = lines.clone();
    parts.push(own);
    (result, Some(Fault { kind, message: parts.join("; ") }), lines)
}

fn pointer<T>((result, fault, lines): (*mut T, Option<Fault>, Vec<String>)) -> Result<NonNull<T>, Fault> {
    if let Some(fault) = fault {
        return Err(fault);
    }
    NonNull::new(result).ok_or_else(|| refused(&lines))
}

fn refused(lines: &[String]) -> Fault {
    Fault::refused(if lines.is_empty() { "llama.cpp gave no reason".to_owned() } else { lines.join("; ") })
}

/// A size, of which 0 means that it was refused.
fn some((size, fault, lines): (usize, Option<Fault>, Vec<String>)) -> Result<usize, Fault> {
    match fault {
        Some(fault) => Err(fault),
        None if size == 0 => Err(refused(&lines)),
        None => Ok(size),
    }
}

fn value<T>((result, fault, _): (T, Option<Fault>, Vec<String>)) -> Result<T, Fault> {
    fault.map_or(Ok(result), Err)
}

// ----------------------------------------------------------------------------------------- the log

static LOG: OnceLock<fn(Level, &str)> = OnceLock::new();

thread_local! {
    /// A line that has not ended yet.
    static LINE: RefCell<(Option<Level>, String)> = const { RefCell::new((None, String::new())) };
    /// Error lines of the guarded call under way on this thread.
    static ERRORS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    /// The call under way on this thread only finds something out: nobody can act on its warnings.
    static IS_TRIAL: Cell<bool> = const { Cell::new(false) };
}

extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    // A panic must not reach C; there is nobody to tell.
    let _ = catch_unwind(|| {
        if text.is_null() {
            return;
        }
        // SAFETY: llama.cpp passes a terminated string that lives as long as the call.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        LINE.with_borrow_mut(|(line_level, line)| {
            if level != sys::GGML_LOG_LEVEL_CONT {
                line.clear();
                *line_level = match level {
                    sys::GGML_LOG_LEVEL_INFO => Some(Level::Info),
                    sys::GGML_LOG_LEVEL_WARN if IS_TRIAL.get() => Some(Level::Info),
                    sys::GGML_LOG_LEVEL_WARN => Some(Level::Warn),
                    sys::GGML_LOG_LEVEL_ERROR => Some(Level::Error),
                    _ => None,
                };
            }
            let Some(level) = *line_level else { return };
            line.push_str(&text);
            if line.ends_with('\n') {
                let done = std::mem::take(line);
                let done = done.trim_end();
                if level == Level::Error {
                    ERRORS.with_borrow_mut(|errors| {
                        if let Some(errors) = errors {
                            errors.push(done.to_owned());
                        }
                    });
                }
                if let (Some(log), false) = (LOG.get(), done.is_empty()) {
                    log(level, done);
                }
            }
        });
    });
}

extern "C" fn on_abort(message: *const c_char) {
    let _ = catch_unwind(|| {
        if let (Some(log), false) = (LOG.get(), message.is_null()) {
            // SAFETY: ggml_abort passes its own terminated buffer.
            let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
            log(Level::Error, &format!("llama.cpp ends the process: {message}"));
        }
    });
}

// ------------------------------------------------------------------------------ start and devices

/// Routes the log, and assertions, before anything else of llama.cpp runs. The first `log` stays.
pub(crate) fn start(log: fn(Level, &str)) {
    let _ = LOG.set(log);
    // SAFETY: both callbacks are valid for the life of the process and need no user data.
    unsafe {
        sys::llama_log_set(Some(on_log), ptr::null_mut());
        shim_install(on_abort);
    }
}

/// Loads the best of each kind of backend library in `directory`, once per process: backends stay
/// registered for good. False: there is none for the processor.
pub(crate) fn load_backends(directory: &Path) -> Result<bool, Fault> {
    static LOADED: OnceLock<Result<(), Fault>> = OnceLock::new();
    let directory = path_text(directory)?;
    LOADED
        .get_or_init(|| {
            // SAFETY: the path is terminated and outlives the call.
            value(guarded(|fault| unsafe { shim_load_backends(directory.as_ptr(), fault) }))
        })
        .clone()?;
    // SAFETY: a query without preconditions.
    let has_cpu = !unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) }.is_null();
    if has_cpu {
        // Only now: without backends it would search the current directory and where it was built.
        // SAFETY: it has no preconditions and may be called again.
        unsafe { sys::llama_backend_init() };
    }
    Ok(has_cpu)
}

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Cpu,
    Gpu,
    Integrated,
    Other,
}

/// One device of ggml; its index is its place in [`devices`].
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) kind: DeviceKind,
    pub(crate) name: CString,
    pub(crate) description: CString,
    pub(crate) bus_id: Option<CString>,
}

fn device_handle(index: usize) -> Option<sys::ggml_backend_dev_t> {
    // SAFETY: the index is checked against the count, and devices are never taken away again.
    unsafe { (index < sys::ggml_backend_dev_count()).then(|| sys::ggml_backend_dev_get(index)) }
}

fn device_index(device: sys::ggml_backend_dev_t) -> Option<u32> {
    (0..u32::MAX)
        .map_while(|index| Some((index, device_handle(index as usize)?)))
        .find_map(|(index, handle)| (handle == device).then_some(index))
}

fn owned_text(text: *const c_char) -> Option<CString> {
    // SAFETY: callers pass NULL or a terminated string of llama.cpp.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_owned())
}

/// All devices, in ggml's order.
pub(crate) fn devices() -> Vec<Device> {
    (0..)
        .map_while(device_handle)
        .map(|handle| {
            // SAFETY: all fields of the struct are valid when zero, and the call fills it.
            let properties = unsafe {
                let mut properties: sys::ggml_backend_dev_props = std::mem::zeroed();
                sys::ggml_backend_dev_get_props(handle, &raw mut properties);
                properties
            };
            Device {
                kind: match properties.type_ {
                    sys::GGML_BACKEND_DEVICE_TYPE_CPU => DeviceKind::Cpu,
                    sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Gpu,
                    sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::Integrated,
                    _ => DeviceKind::Other,
                },
                name: owned_text(properties.name).unwrap_or_default(),
                description: owned_text(properties.description).unwrap_or_default(),
                bus_id: owned_text(properties.device_id),
            }
        })
        .collect()
}

/// Free and total bytes of a device, now. Zero and zero where the device does not say.
pub(crate) fn device_memory(index: u32) -> (u64, u64) {
    let (mut free, mut total) = (0, 0);
    if let Some(handle) = device_handle(index as usize) {
        // SAFETY: the handle is one of ggml's, the out-parameters are locals.
        unsafe { sys::ggml_backend_dev_memory(handle, &raw mut free, &raw mut total) };
    }
    (free as u64, total as u64)
}

fn path_text(path: &Path) -> Result<CString, Fault> {
    #[cfg(unix)]
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
    // llama.cpp takes UTF-8 on Windows.
    #[cfg(not(unix))]
    let bytes = path.to_string_lossy().into_owned().into_bytes();
    CString::new(bytes).map_err(|_| Fault::refused("the path holds a zero byte"))
}

// --------------------------------------------------------------------------------------- the header

/// A GGUF file's key-value section, read without its tensors.
pub(crate) struct Header(NonNull<sys::gguf_context>);

impl Header {
    /// Reads it; fails where the file is no GGUF or its header is damaged.
    pub(crate) fn open(path: &Path) -> Result<Self, Fault> {
        let path = path_text(path)?;
        // SAFETY: the path is terminated and outlives the call.
        pointer(guarded(|fault| unsafe { shim_gguf_open(path.as_ptr(), fault) })).map(Self)
    }

    fn find(&self, key: &str) -> Option<i64> {
        let key = CString::new(key).ok()?;
        // SAFETY: the context is alive, the key terminated.
        let index = unsafe { sys::gguf_find_key(self.0.as_ptr(), key.as_ptr()) };
        (index >= 0).then_some(index)
    }

    /// The value of a key that holds text.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        let index = self.find(key)?;
        // SAFETY: the index was just found, and the type is asked before the value: gguf asserts it.
        unsafe {
            if sys::gguf_get_kv_type(self.0.as_ptr(), index) != sys::GGUF_TYPE_STRING {
                return None;
            }
            owned_text(sys::gguf_get_val_str(self.0.as_ptr(), index))
        }
        .map(|text| text.to_string_lossy().into_owned())
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: owned by this value, freed once.
        unsafe { sys::gguf_free(self.0.as_ptr()) };
    }
}

// ---------------------------------------------------------------------------------------- the model

/// How the file is brought into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum LoadMode {
    #[default]
    Auto,
    Mmap,
    Read,
    Lock,
}

/// What to load, and where to put it.
pub(crate) struct ModelSettings<'a> {
    pub(crate) path: &'a Path,
    /// Layers on the devices; negative: all.
    pub(crate) gpu_layers: i32,
    /// Indices into [`devices`]; `None`: llama.cpp's choice.
    pub(crate) devices: Option<&'a [u32]>,
    pub(crate) load_mode: LoadMode,
    /// Reads headers only and pretends to allocate.
    pub(crate) no_alloc: bool,
}

/// A token's attributes, as llama.cpp has them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokenFlags {
    pub(crate) control: bool,
    pub(crate) end_of_generation: bool,
    pub(crate) byte: bool,
    pub(crate) unused: bool,
}

/// Tokens with a meaning of their own; negative: there is none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Specials {
    pub(crate) bos: i32,
    pub(crate) eos: i32,
    pub(crate) eot: i32,
    pub(crate) pad: i32,
    pub(crate) sep: i32,
    pub(crate) mask: i32,
    pub(crate) adds_bos: bool,
    pub(crate) adds_eos: bool,
}

/// A loaded model.
pub(crate) struct Model {
    raw: NonNull<sys::llama_model>,
    no_alloc: bool,
    metadata: Vec<(Vec<u8>, Vec<u8>)>,
}

// SAFETY: a llama_model is not written to after loading, with one exception: creating a context with
// a YaRN scale of its own adjusts the trained length, and this file never sets such a scale. llama.cpp's
// server shares models between threads in the same way.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

struct Progress<'a> {
    callback: &'a mut dyn FnMut(f32) -> bool,
}

extern "C" fn on_progress(fraction: f32, user: *mut c_void) -> bool {
    // SAFETY: `user` is the Progress that Model::load keeps alive during the load, and llama.cpp calls
    // on the loading thread only, so that nobody else borrows it.
    let progress = unsafe { &mut *user.cast::<Progress<'_>>() };
    // A panic ends the load.
    catch_unwind(AssertUnwindSafe(|| (progress.callback)(fraction))).unwrap_or(false)
}

impl Model {
    /// Loads a model. `progress` may end the load by returning false.
    pub(crate) fn load(
        settings: &ModelSettings<'_>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Self, Fault> {
        let path = path_text(settings.path)?;
        let mut devices: Vec<sys::ggml_backend_dev_t> = Vec::new();
        for &index in settings.devices.unwrap_or_default() {
            devices.push(
                device_handle(index as usize)
                    .ok_or_else(|| Fault::refused(format!("there is no device {index}")))?,
            );
        }
        devices.push(ptr::null_mut());
        let mut progress = Progress { callback: progress };

        // SAFETY: a query without preconditions.
        let mut params = unsafe { sys::llama_model_default_params() };
        params.n_gpu_layers = settings.gpu_layers;
        // An empty list keeps llama.cpp from waking up a GPU that gets no layers.
        if settings.devices.is_some() || settings.gpu_layers == 0 {
            params.devices = devices.as_mut_ptr();
        }
        params.load_mode = if settings.no_alloc {
            sys::LLAMA_LOAD_MODE_NONE
        } else {
            match settings.load_mode {
                LoadMode::Auto => sys::LLAMA_LOAD_MODE_AUTO,
                LoadMode::Mmap => sys::LLAMA_LOAD_MODE_MMAP,
                LoadMode::Read => sys::LLAMA_LOAD_MODE_NONE,
                LoadMode::Lock => sys::LLAMA_LOAD_MODE_MMAP_MLOCK,
            }
        };
        params.no_alloc = settings.no_alloc;
        params.progress_callback = Some(on_progress);
        params.progress_callback_user_data = (&raw mut progress).cast();

        // SAFETY: path, devices (ended by NULL) and progress outlive the call, which keeps none of them.
        let raw =
            pointer(guarded(|fault| unsafe { shim_model_load(path.as_ptr(), &raw const params, fault) }))?;
        let mut model = Self { raw, no_alloc: settings.no_alloc, metadata: Vec::new() };
        model.metadata = model.read_metadata();
        Ok(model)
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is alive; its vocabulary lives as long.
        unsafe { sys::llama_model_get_vocab(self.raw.as_ptr()) }
    }

    /// Is the vocabulary one of byte-pair encoding?
    pub(crate) fn has_byte_pairs(&self) -> bool {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_type(self.vocab()) == sys::LLAMA_VOCAB_TYPE_BPE }
    }

    /// Is there a vocabulary of text at all?
    pub(crate) fn has_vocabulary(&self) -> bool {
        // SAFETY: the vocabulary is alive.
        unsafe { sys::llama_vocab_type(self.vocab()) != sys::LLAMA_VOCAB_TYPE_NONE }
    }

    /// Number of tokens, which is the width of a row of logits.
    pub(crate) fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary is alive.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(self.vocab()) }).unwrap_or(0)
    }

    /// The longest sequence it was trained for.
    pub(crate) fn n_context_train(&self) -> u32 {
        // SAFETY: the model is alive.
        u32::try_from(unsafe { sys::llama_model_n_ctx_train(self.raw.as_ptr()) }).unwrap_or(0)
    }

    /// Numbers of a key in each head; `None` where the first layer has no attention and the file does not say.
    pub(crate) fn head_width(&self) -> Option<u32> {
        let stated = self.architecture_value("attention.key_length").and_then(|width| width.parse().ok());
        // SAFETY: the model is alive.
        let (width, heads) = unsafe {
            (sys::llama_model_n_embd(self.raw.as_ptr()), sys::llama_model_n_head(self.raw.as_ptr()))
        };
        stated.or_else(|| u32::try_from(width.checked_div(heads)?).ok())
    }

    /// Width of an embedding.
    pub(crate) fn n_embedding(&self) -> u32 {
        // SAFETY: the model is alive.
        u32::try_from(unsafe { sys::llama_model_n_embd_out(self.raw.as_ptr()) }).unwrap_or(0)
    }

    /// Width of a ranking result.
    pub(crate) fn n_classes(&self) -> u32 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_cls_out(self.raw.as_ptr()) }
    }

    /// Width of the attention window; 0: none.
    pub(crate) fn attention_window(&self) -> u32 {
        // SAFETY: the model is alive.
        u32::try_from(unsafe { sys::llama_model_n_swa(self.raw.as_ptr()) }).unwrap_or(0)
    }

    /// Number of weights.
    pub(crate) fn n_parameters(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_n_params(self.raw.as_ptr()) }
    }

    /// Bytes of its tensors.
    pub(crate) fn size_bytes(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_size(self.raw.as_ptr()) }
    }

    /// llama.cpp's name for the mix of tensor types, such as "Q4_K - Medium".
    pub(crate) fn file_type(&self) -> Option<String> {
        // SAFETY: the model is alive; the name is a constant of llama.cpp.
        let text = unsafe { owned_text(sys::llama_ftype_name(sys::llama_model_ftype(self.raw.as_ptr()))) };
        text.map(|text| text.to_string_lossy().into_owned())
    }

    /// Is there a part that only reads the prompt?
    pub(crate) fn has_encoder(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_has_encoder(self.raw.as_ptr()) }
    }

    /// Is there a part that generates?
    pub(crate) fn has_decoder(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_has_decoder(self.raw.as_ptr()) }
    }

    /// Does it generate by diffusion, all tokens at once?
    pub(crate) fn is_diffusion(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_is_diffusion(self.raw.as_ptr()) }
    }

    /// Has it state that cannot be cut back (wholly or in some layers)?
    pub(crate) fn is_recurrent(&self) -> bool {
        // SAFETY: the model is alive.
        unsafe {
            sys::llama_model_is_recurrent(self.raw.as_ptr()) || sys::llama_model_is_hybrid(self.raw.as_ptr())
        }
    }

    /// The file's metadata that is not an array, in llama.cpp's order.
    pub(crate) fn metadata(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.metadata
    }

    /// `general.architecture`; empty where the file does not say.
    pub(crate) fn architecture(&self) -> String {
        self.value("general.architecture").unwrap_or_default()
    }

    /// What the file says of its own architecture under this name: `pooling_type`, `attention.causal`.
    pub(crate) fn architecture_value(&self, name: &str) -> Option<String> {
        self.value(&format!("{}.{name}", self.architecture()))
    }

    /// What the file says under this key, where that is not an array.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let (_, value) = self.metadata.iter().find(|(name, _)| name == key.as_bytes())?;
        Some(String::from_utf8_lossy(value).into_owned())
    }

    fn read_metadata(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let model = self.raw.as_ptr();
        // SAFETY: the model is alive; indices stay below the count; `sized` passes real buffers.
        unsafe {
            (0..sys::llama_model_meta_count(model))
                .map(|index| {
                    (
                        sized(|buffer, size| sys::llama_model_meta_key_by_index(model, index, buffer, size)),
                        sized(|buffer, size| {
                            sys::llama_model_meta_val_str_by_index(model, index, buffer, size)
                        }),
                    )
                })
                .collect()
        }
    }

    /// What the token adds to the text in the middle of an answer; of a control token, its name.
    pub(crate) fn piece(&self, token: i32, buffer: &mut Vec<u8>) -> Result<(), Fault> {
        buffer.resize(buffer.capacity().max(64), 0);
        loop {
            let capacity = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
            // SAFETY: the vocabulary is alive and the buffer as long as stated. llama.cpp checks the
            // token's range itself, and the shim catches what it throws.
            let length = value(guarded(|fault| unsafe {
                shim_piece(self.vocab(), token, buffer.as_mut_ptr().cast(), capacity, fault)
            }))?;
            if let Ok(length) = usize::try_from(length) {
                buffer.truncate(length);
                return Ok(());
            }
            let needed = usize::try_from(length.unsigned_abs()).unwrap_or(usize::MAX);
            if needed <= buffer.len() || needed > 1 << 24 {
                return Err(Fault::refused(format!("token {token} has no text")));
            }
            buffer.resize(needed, 0);
        }
    }

    /// Attributes of a token in range.
    pub(crate) fn flags(&self, token: i32) -> TokenFlags {
        // SAFETY: callers pass tokens below n_vocab, which is what llama.cpp indexes by.
        unsafe {
            let vocab = self.vocab();
            let bits = sys::llama_vocab_get_attr(vocab, token);
            TokenFlags {
                // The unknown token is no text either: llama.cpp leaves it out of an answer as well.
                control: sys::llama_vocab_is_control(vocab, token)
                    || bits & sys::LLAMA_TOKEN_ATTR_UNKNOWN != 0,
                end_of_generation: sys::llama_vocab_is_eog(vocab, token),
                byte: bits & sys::LLAMA_TOKEN_ATTR_BYTE != 0,
                unused: bits & sys::LLAMA_TOKEN_ATTR_UNUSED != 0,
            }
        }
    }

    /// The tokens with a meaning of their own.
    pub(crate) fn specials(&self) -> Specials {
        // SAFETY: the vocabulary is alive.
        unsafe {
            let vocab = self.vocab();
            Specials {
                bos: sys::llama_vocab_bos(vocab),
                eos: sys::llama_vocab_eos(vocab),
                eot: sys::llama_vocab_eot(vocab),
                pad: sys::llama_vocab_pad(vocab),
                sep: sys::llama_vocab_sep(vocab),
                mask: sys::llama_vocab_mask(vocab),
                adds_bos: sys::llama_vocab_get_add_bos(vocab),
                adds_eos: sys::llama_vocab_get_add_eos(vocab),
            }
        }
    }

    /// Text to tokens.
    pub(crate) fn tokenize(
        &self,
        text: &[u8],
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<i32>, Fault> {
        let text_len = i32::try_from(text.len()).map_err(|_| Fault::refused("the text is too long"))?;
        // Rarely are there more tokens than bytes and specials.
        let mut tokens = vec![0_i32; text.len() + 8];
        loop {
            let capacity = i32::try_from(tokens.len()).unwrap_or(i32::MAX);
            // SAFETY: text and tokens are as long as stated, the vocabulary is alive.
            let (count, fault, lines) = guarded(|fault| unsafe {
                shim_tokenize(
                    self.vocab(),
                    text.as_ptr().cast(),
                    text_len,
                    tokens.as_mut_ptr(),
                    capacity,
                    add_special,
                    parse_special,
                    fault,
                )
            });
            if let Some(fault) = fault {
                return Err(fault);
            }
            if let Ok(count) = usize::try_from(count) {
                tokens.truncate(count);
                return Ok(tokens);
            }
            let needed = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
            if count == i32::MIN || needed <= tokens.len() {
                return Err(refused(&lines));
            }
            tokens.resize(needed, 0);
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: owned by this value, freed once; contexts hold an Arc of it and are gone.
        let _ = guarded(|fault| unsafe { shim_model_free(self.raw.as_ptr(), fault) });
    }
}

/// Calls one of llama.cpp's functions that copy text as `snprintf` does, and gives all of it.
fn sized(copy: impl Fn(*mut c_char, usize) -> i32) -> Vec<u8> {
    let mut buffer = vec![0_u8; 256];
    loop {
        let Ok(length) = usize::try_from(copy(buffer.as_mut_ptr().cast(), buffer.len())) else {
            return Vec::new();
        };
        if length < buffer.len() {
            buffer.truncate(length);
            return buffer;
        }
        buffer.resize(length + 1, 0);
    }
}

// -------------------------------------------------------------------------------------- the context

/// How embeddings of a sequence become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    Cls,
    Last,
    Rank,
}

/// Type of one side of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum CacheType {
    F32,
    #[default]
    F16,
    Bf16,
    Q8_0,
    Q5_1,
    Q5_0,
    Q4_1,
    Q4_0,
    Iq4Nl,
}

impl CacheType {
    /// Its name in the configuration.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "f32" => Self::F32,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "q8_0" => Self::Q8_0,
            "q5_1" => Self::Q5_1,
            "q5_0" => Self::Q5_0,
            "q4_1" => Self::Q4_1,
            "q4_0" => Self::Q4_0,
            "iq4_nl" => Self::Iq4Nl,
            _ => return None,
        })
    }

    fn raw(self) -> sys::ggml_type {
        match self {
            Self::F32 => sys::GGML_TYPE_F32,
            Self::F16 => sys::GGML_TYPE_F16,
            Self::Bf16 => sys::GGML_TYPE_BF16,
            Self::Q8_0 => sys::GGML_TYPE_Q8_0,
            Self::Q5_1 => sys::GGML_TYPE_Q5_1,
            Self::Q5_0 => sys::GGML_TYPE_Q5_0,
            Self::Q4_1 => sys::GGML_TYPE_Q4_1,
            Self::Q4_0 => sys::GGML_TYPE_Q4_0,
            Self::Iq4Nl => sys::GGML_TYPE_IQ4_NL,
        }
    }
}

/// What context to make. Numbers are llama.cpp's own, see `llama_context_params`.
#[derive(Clone, Debug)]
pub(crate) struct ContextSettings {
    pub(crate) n_ctx: u32,
    pub(crate) n_batch: u32,
    pub(crate) n_ubatch: u32,
    pub(crate) n_seq_max: u32,
    pub(crate) n_outputs_max: u32,
    pub(crate) n_rs_seq: u32,
    pub(crate) n_threads: u32,
    pub(crate) kv_unified: bool,
    pub(crate) swa_full: bool,
    pub(crate) cache_type_k: CacheType,
    pub(crate) cache_type_v: CacheType,
    /// `None`: where the model and the device allow it.
    pub(crate) flash_attention: Option<bool>,
    /// Set: the context gives embeddings instead of logits.
    pub(crate) pooling: Option<Pooling>,
}

/// Tokens of one sequence for one pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) sequence: u32,
    pub(crate) position: u32,
    pub(crate) tokens: &'a [i32],
    /// Outputs wanted, for the last so many tokens.
    pub(crate) rows: u32,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    Done,
    /// No room in the KV cache: nothing was changed.
    NoSlot,
    /// Cancelled: finished parts of the batch stay.
    Aborted,
    /// llama.cpp found the batch inconsistent: nothing was changed.
    Invalid,
    /// The device or the graph failed.
    Failed(i32),
}

/// What one device holds for a context and its model, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Use {
    /// Index into [`devices`]; `None`: the host's memory.
    pub(crate) device: Option<u32>,
    pub(crate) model: u64,
    pub(crate) context: u64,
    pub(crate) compute: u64,
}

/// A context: KV cache, buffers, and the graph of the last pass.
pub(crate) struct Context {
    raw: NonNull<sys::llama_context>,
    model: Arc<Model>,
    n_vocab: usize,
    /// Set by anybody to end the pass under way; llama.cpp polls it on the CPU.
    abort: Arc<AtomicBool>,
    // The arrays of a llama_batch, kept between passes.
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    sequences: Vec<sys::llama_seq_id>,
    counts: Vec<i32>,
    outputs: Vec<i8>,
    /// Into `sequences`, from one pass only.
    pointers: Vec<*mut sys::llama_seq_id>,
    n_outputs: usize,
    n_threads: u32,
}

// SAFETY: a llama_context keeps nothing in thread-local storage; it may be used from any thread as long
// as one at a time does, which `&mut self` ensures for all that writes. On CUDA, ggml sets the device at
// each entry.
unsafe impl Send for Context {}

extern "C" fn should_abort(flag: *mut c_void) -> bool {
    // SAFETY: the flag belongs to the context's Arc, which outlives the llama_context.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}

impl Context {
    /// Makes a context.
    pub(crate) fn create(model: &Arc<Model>, settings: &ContextSettings) -> Result<Self, Fault> {
        Self::with_abort_flag(model, settings, Arc::default())
    }

    /// Makes a context whose passes this flag ends.
    pub(crate) fn with_abort_flag(
        model: &Arc<Model>,
        settings: &ContextSettings,
        abort: Arc<AtomicBool>,
    ) -> Result<Self, Fault> {
        // SAFETY: a query without preconditions.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = settings.n_ctx;
        params.n_batch = settings.n_batch;
        params.n_ubatch = settings.n_ubatch;
        params.n_seq_max = settings.n_seq_max;
        params.n_outputs_max = settings.n_outputs_max;
        params.n_rs_seq = settings.n_rs_seq;
        // Both: any pass of more than one token uses n_threads_batch, decoding of several sequences too.
        params.n_threads = settings.n_threads as i32;
        params.n_threads_batch = settings.n_threads as i32;
        params.kv_unified = settings.kv_unified;
        params.swa_full = settings.swa_full;
        params.type_k = settings.cache_type_k.raw();
        params.type_v = settings.cache_type_v.raw();
        params.flash_attn_type = match settings.flash_attention {
            None => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            Some(false) => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            Some(true) => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        };
        params.pooling_type = match settings.pooling {
            None if model.architecture_value("pooling_type").is_some() => sys::LLAMA_POOLING_TYPE_NONE,
            // The same, without a warning that it is not what the model wants.
            None => sys::LLAMA_POOLING_TYPE_UNSPECIFIED,
            Some(Pooling::Mean) => sys::LLAMA_POOLING_TYPE_MEAN,
            Some(Pooling::Cls) => sys::LLAMA_POOLING_TYPE_CLS,
            Some(Pooling::Last) => sys::LLAMA_POOLING_TYPE_LAST,
            Some(Pooling::Rank) => sys::LLAMA_POOLING_TYPE_RANK,
        };
        params.embeddings = settings.pooling.is_some();
        params.no_perf = true;
        params.abort_callback = Some(should_abort);
        params.abort_callback_data = Arc::as_ptr(&abort).cast_mut().cast();

        IS_TRIAL.set(model.no_alloc);
        // SAFETY: the model is alive and kept alive by the context; the flag is kept beside it.
        let made =
            guarded(|fault| unsafe { shim_context_create(model.raw.as_ptr(), &raw const params, fault) });
        IS_TRIAL.set(false);
        let raw = pointer(made)?;
        Ok(Self {
            raw,
            n_vocab: model.n_vocab(),
            model: Arc::clone(model),
            abort,
            tokens: Vec::new(),
            positions: Vec::new(),
            sequences: Vec::new(),
            counts: Vec::new(),
            outputs: Vec::new(),
            pointers: Vec::new(),
            n_outputs: 0,
            n_threads: settings.n_threads,
        })
    }

    /// The flag that ends the pass under way.
    pub(crate) fn abort_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.abort)
    }

    /// Cells for all sequences together, as llama.cpp rounded them.
    pub(crate) fn n_ctx(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ctx(self.raw.as_ptr()) }
    }

    /// Cells for one sequence.
    pub(crate) fn n_ctx_seq(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ctx_seq(self.raw.as_ptr()) }
    }

    /// Most tokens per pass.
    pub(crate) fn n_batch(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_batch(self.raw.as_ptr()) }
    }

    /// Snapshots of recurrent state per sequence.
    pub(crate) fn n_rs_seq(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_rs_seq(self.raw.as_ptr()) }
    }

    /// Is there a KV cache or recurrent state? Pure encoders have none.
    pub(crate) fn has_memory(&self) -> bool {
        // SAFETY: the context is alive.
        !unsafe { sys::llama_get_memory(self.raw.as_ptr()) }.is_null()
    }

    /// Runs one pass. The caller has checked what llama.cpp asserts: between 1 and [`Self::n_batch`]
    /// tokens, all in the vocabulary, sequences in range.
    pub(crate) fn decode<'a>(&mut self, entries: impl Iterator<Item = Entry<'a>>) -> Result<Decoded, Fault> {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.counts.clear();
        self.outputs.clear();
        for entry in entries {
            let silent = entry.tokens.len() - (entry.rows as usize).min(entry.tokens.len());
            for (index, &token) in entry.tokens.iter().enumerate() {
                self.tokens.push(token);
                self.positions.push(entry.position as i32 + index as i32);
                self.sequences.push(entry.sequence as i32);
                self.counts.push(1);
                self.outputs.push(i8::from(index >= silent));
            }
        }
        self.n_outputs = 0;
        let n_outputs = self.outputs.iter().filter(|&&output| output != 0).count();
        // One pointer per token, to its one sequence id.
        self.pointers.clear();
        self.pointers.extend(self.sequences.iter_mut().map(ptr::from_mut));
        let batch = sys::llama_batch {
            n_tokens: self.tokens.len() as i32,
            token: self.tokens.as_mut_ptr(),
            embd: ptr::null_mut(),
            pos: self.positions.as_mut_ptr(),
            n_seq_id: self.counts.as_mut_ptr(),
            seq_id: self.pointers.as_mut_ptr(),
            logits: self.outputs.as_mut_ptr(),
        };
        // SAFETY: all arrays have n_tokens elements and outlive the call, which copies what it keeps.
        let code =
            value(guarded(|fault| unsafe { shim_decode(self.raw.as_ptr(), &raw const batch, fault) }))?;
        Ok(match code {
            0 => {
                self.n_outputs = n_outputs;
                Decoded::Done
            }
            1 => Decoded::NoSlot,
            2 => Decoded::Aborted,
            -1 => Decoded::Invalid,
            other => Decoded::Failed(other),
        })
    }

    /// Waits for the pass, and gives its rows one after the other in the order of the batch: n_vocab
    /// floats each. The memory is llama.cpp's and stays as it is until the next pass.
    pub(crate) fn logits(&mut self) -> Result<&[f32], Fault> {
        if self.n_outputs == 0 {
            return Ok(&[]);
        }
        // SAFETY: the context is alive.
        let rows = pointer(guarded(|fault| unsafe { shim_logits(self.raw.as_ptr(), fault) }))?;
        // SAFETY: after a pass llama.cpp holds n_outputs rows of n_vocab floats, which the borrow of
        // self keeps from being overwritten.
        Ok(unsafe { slice::from_raw_parts(rows.as_ptr(), self.n_outputs * self.n_vocab) })
    }

    /// Waits for the pass, and gives the pooled embedding of a sequence, `width` floats.
    pub(crate) fn embedding(&mut self, sequence: u32, width: usize) -> Result<&[f32], Fault> {
        // SAFETY: the context is alive.
        let row =
            pointer(guarded(|fault| unsafe { shim_embedding(self.raw.as_ptr(), sequence as i32, fault) }))?;
        // SAFETY: llama.cpp holds n_embd_out floats, or n_cls_out for ranks, which is what the caller
        // passes; the borrow of self keeps them.
        Ok(unsafe { slice::from_raw_parts(row.as_ptr(), width) })
    }

    /// CPU threads for the passes to come.
    pub(crate) fn set_threads(&mut self, threads: u32) {
        if threads == self.n_threads {
            return;
        }
        self.n_threads = threads;
        // SAFETY: the context is alive. Both: see `with_abort_flag`.
        unsafe { sys::llama_set_n_threads(self.raw.as_ptr(), threads as i32, threads as i32) };
    }

    /// Removes positions from `begin` on. False: the memory cannot do that, and nothing was changed.
    pub(crate) fn remove(&mut self, sequence: u32, begin: u32) -> Result<bool, Fault> {
        // SAFETY: the context is alive and has memory; the caller has checked the sequence.
        value(guarded(|fault| unsafe {
            shim_sequence_remove(self.raw.as_ptr(), sequence as i32, begin as i32, fault)
        }))
    }

    /// Copies positions `0..end`, or the whole sequence.
    pub(crate) fn copy(&mut self, from: u32, to: u32, end: Option<u32>) -> Result<(), Fault> {
        let end = end.map_or(-1, |end| end as i32);
        // SAFETY: as above.
        value(guarded(|fault| unsafe {
            shim_sequence_copy(self.raw.as_ptr(), from as i32, to as i32, end, fault);
        }))
    }

    /// Copies the whole of a sequence into an empty one of a split cache, held cells only. False: it lies
    /// on a device, and nothing was done.
    pub(crate) fn copy_cells(&mut self, from: u32, to: u32) -> Result<bool, Fault> {
        // SAFETY: as above.
        value(guarded(|fault| unsafe {
            shim_sequence_copy_cells(self.raw.as_ptr(), from as i32, to as i32, fault)
        }))
    }

    /// Is the memory one KV cache, without windows or recurrent state? Sequence 0 must be empty.
    pub(crate) fn is_plain_cache(&self) -> Result<bool, Fault> {
        // SAFETY: the context is alive and has memory, which is only read.
        value(guarded(|fault| unsafe { shim_is_plain_cache(self.raw.as_ptr(), fault) }))
    }

    /// Copies the whole of a sequence out of a unified cache of the same model into an empty one here, where
    /// the cache has `streams` parts. Both are plain ([`Self::is_plain_cache`]). False: one lies on a device,
    /// and nothing was done.
    pub(crate) fn take_cells(
        &mut self,
        pool: &mut Self,
        from: u32,
        to: u32,
        streams: u32,
    ) -> Result<bool, Fault> {
        // SAFETY: both contexts are alive; the caller has checked the sequences.
        value(guarded(|fault| unsafe {
            shim_sequence_take_cells(
                pool.raw.as_ptr(),
                from as i32,
                self.raw.as_ptr(),
                to as i32,
                streams,
                fault,
            )
        }))
    }

    /// Bytes of a sequence's state.
    pub(crate) fn state_size(&mut self, sequence: u32) -> Result<usize, Fault> {
        // SAFETY: as above.
        some(guarded(|fault| unsafe { shim_state_size(self.raw.as_ptr(), sequence as i32, fault) }))
    }

    /// Writes a sequence's state, and says how long it is.
    pub(crate) fn save(&mut self, sequence: u32, data: &mut [u8]) -> Result<usize, Fault> {
        // SAFETY: as above; the buffer is as long as stated.
        some(guarded(|fault| unsafe {
            shim_state_save(self.raw.as_ptr(), sequence as i32, data.as_mut_ptr(), data.len(), fault)
        }))
    }

    /// Puts a state into a sequence; after a failure it may hold part of it. What is not as
    /// [`Self::save`] wrote it must not come here: llama.cpp believes the positions in it.
    pub(crate) fn restore(&mut self, sequence: u32, data: &[u8]) -> Result<(), Fault> {
        // SAFETY: as above; llama.cpp reads no byte beyond the length.
        let read = some(guarded(|fault| unsafe {
            shim_state_restore(self.raw.as_ptr(), sequence as i32, data.as_ptr(), data.len(), fault)
        }))?;
        if read != data.len() {
            return Err(Fault::refused(format!("llama.cpp read {read} of {} bytes", data.len())));
        }
        Ok(())
    }

    /// Forgets all sequences.
    pub(crate) fn clear(&mut self) -> Result<(), Fault> {
        // SAFETY: the context is alive.
        value(guarded(|fault| unsafe { shim_memory_clear(self.raw.as_ptr(), fault) }))
    }

    /// First and last position that the memory holds of a sequence; `None`: nothing.
    pub(crate) fn positions(&self, sequence: u32) -> Option<(u32, u32)> {
        // SAFETY: the context is alive and has memory; the caller has checked the sequence.
        let (first, last) = unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            (
                sys::llama_memory_seq_pos_min(memory, sequence as i32),
                sys::llama_memory_seq_pos_max(memory, sequence as i32),
            )
        };
        Some((u32::try_from(first).ok()?, u32::try_from(last).ok()?))
    }

    /// What the context and its model hold, device by device.
    pub(crate) fn memory(&self) -> Result<Vec<Use>, Fault> {
        let none = RawUse { device: ptr::null_mut(), model: 0, context: 0, compute: 0 };
        let mut uses = [none; 64];
        // SAFETY: the context is alive, the array as long as stated.
        let count = value(guarded(|fault| unsafe {
            shim_memory(self.raw.as_ptr(), uses.as_mut_ptr(), uses.len(), fault)
        }))?;
        Ok(uses
            .iter()
            .take(count)
            .map(|raw| Use {
                device: if raw.device.is_null() { None } else { device_index(raw.device) },
                model: raw.model,
                context: raw.context,
                compute: raw.compute,
            })
            .collect())
    }

    /// The model it was made of.
    pub(crate) fn model(&self) -> &Arc<Model> {
        &self.model
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: owned by this value, freed once, before the model and the flag.
        let _ = guarded(|fault| unsafe { shim_context_free(self.raw.as_ptr(), fault) });
    }
}

// --------------------------------------------------------------------------------------- OpenMP's teams

#[cfg(target_os = "linux")]
unsafe extern "C" {
    fn shim_processors() -> u32;
    fn shim_team(threads: u32, ids: *mut i32);
}

/// Processors that the OpenMP runtime counts for this process.
#[cfg(target_os = "linux")]
pub(crate) fn processors() -> u32 {
    // SAFETY: a query without preconditions.
    unsafe { shim_processors() }
}

/// Runs an empty parallel region of `threads` threads, and gives the kernel's number of each. It is the
/// team that the next pass on the calling thread uses, if it has as many threads; the team lasts until
/// the calling thread ends, asks for another size, or drops a context.
#[cfg(target_os = "linux")]
pub(crate) fn team(threads: u32) -> Vec<i32> {
    let mut ids = vec![0; threads as usize];
    // SAFETY: each thread of the region writes one element, and there are at most `threads`.
    unsafe { shim_team(threads, ids.as_mut_ptr()) };
    // The runtime may give fewer threads than it was asked for.
    ids.retain(|id| *id > 0);
    ids
}
