//! The one instance of an engine, what it has handed out, and what frees that.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use llm_node_abi as abi;

use crate::models::ModelInfo;
use crate::tokenizer::Vocabulary;
use crate::{Device, Engine, Failure, Finish, Generation, Models, guard};

/// An engine that was named to the macro.
pub trait Exported: Engine {
    /// Where its one instance lives.
    fn slot() -> &'static Slot<Self>;
}

/// The one instance of an engine, and what it has handed out.
pub struct Slot<E> {
    pub(crate) engine: RwLock<Option<Arc<E>>>,
    pub(crate) contexts: Handles,
    pub(crate) models: Handles,
    pub(crate) results: Mutex<Option<Results>>,
    pub(crate) devices: RwLock<Option<Arc<Vec<Device>>>>,
}

impl<E: Engine> Slot<E> {
    /// An engine that is not running.
    #[expect(clippy::new_without_default, reason = "a static needs a const fn")]
    pub const fn new() -> Self {
        Self {
            engine: RwLock::new(None),
            contexts: Handles::new(),
            models: Handles::new(),
            results: Mutex::new(None),
            devices: RwLock::new(None),
        }
    }

    pub(crate) fn engine(&self) -> Result<Arc<E>, Failure> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        engine.clone().ok_or_else(|| Failure::internal("the engine is not running: engine_init comes first"))
    }

    /// The devices, asked of the engine once and kept until it shuts down: their names are handed out.
    pub(crate) fn devices(&self, ask: impl FnOnce(&E) -> Vec<Device>) -> Option<Arc<Vec<Device>>> {
        let known = self.devices.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return known;
        }
        let asked = Arc::new(ask(self.engine().ok()?.as_ref()));
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(devices.get_or_insert(asked)))
    }
}

/// An address that was handed out, and what frees it.
type Handle = (usize, unsafe fn(*mut c_void));

/// What was handed out and not yet given back.
pub(crate) struct Handles(Mutex<Vec<Handle>>);

impl Handles {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn list(&self) -> MutexGuard<'_, Vec<Handle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, pointer: *mut c_void, free: unsafe fn(*mut c_void)) {
        self.list().push((pointer.expose_provenance(), free));
    }

    /// Frees a handle; one that is not in the list (NULL, or freed before) is left alone.
    pub(crate) fn remove(&self, pointer: *mut c_void) {
        let found = {
            let mut list = self.list();
            list.iter()
                .position(|(address, _)| *address == pointer.addr())
                .map(|index| list.swap_remove(index))
        };
        if let Some((_, free)) = found {
            // SAFETY: it was in the list, so it is alive, and is no longer in it.
            unsafe { free(pointer) };
        }
    }

    pub(crate) fn clear(&self) {
        loop {
            let Some((address, free)) = self.list().pop() else { return };
            guard::value("engine_shutdown", (), || {
                // SAFETY: as in `remove`; the host has ended all calls.
                unsafe { free(std::ptr::with_exposed_provenance_mut(address)) };
                Ok(())
            });
        }
    }
}

/// Chat templates by name; `None` is the name of the default one, and the template of a name that the
/// model does not have.
type Templates = HashMap<Option<String>, Option<Box<[u8]>>>;

/// What stands behind an `EngineModel *`.
pub(crate) struct ModelHandle<E: Models> {
    pub(crate) info: ModelInfo,
    pub(crate) metadata: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) vocabulary: OnceLock<Result<Vocabulary, Failure>>,
    /// Templates that were asked for; never taken out again, since their text is handed out.
    pub(crate) templates: Mutex<Templates>,
    /// Embedding is one at a time per model.
    pub(crate) embedding: Mutex<()>,
    pub(crate) model: Arc<E::Model>,
}

/// The result array of tier 0, and the texts that it points to.
pub(crate) struct Results {
    pub(crate) elements: Vec<abi::TokenResult>,
    _generation: Generation,
}

// SAFETY: the pointers in `elements` point into `_generation`, which nobody changes.
unsafe impl Send for Results {}

impl Results {
    pub(crate) fn new(generation: Generation) -> Self {
        let empty = abi::TokenResult {
            text: std::ptr::null(),
            text_len: 0,
            token_id: abi::ENGINE_TOKEN_NONE,
            flags: 0,
            logprob: 0.0,
            finish: 0,
            top: std::ptr::null(),
            n_top: 0,
        };
        let mut elements: Vec<abi::TokenResult> = generation
            .pieces
            .iter()
            .map(|piece| abi::TokenResult {
                // Empty texts still have a pointer, dangling but not NULL: NULL is the ending.
                text: piece.text.as_ptr().cast(),
                text_len: piece.text.len(),
                token_id: piece.token.unwrap_or(abi::ENGINE_TOKEN_NONE),
                flags: u32::from(piece.token.is_some()) * abi::ENGINE_RESULT_ID
                    + u32::from(piece.logprob.is_some()) * abi::ENGINE_RESULT_LOGPROB,
                logprob: piece.logprob.unwrap_or(0.0),
                ..empty
            })
            .collect();
        elements.push(abi::TokenResult {
            finish: match generation.finish {
                Finish::Stop => abi::ENGINE_FINISH_STOP,
                Finish::Length => abi::ENGINE_FINISH_LENGTH,
                Finish::Cancelled => abi::ENGINE_FINISH_CANCELLED,
            },
            ..empty
        });
        Self { elements, _generation: generation }
    }
}
