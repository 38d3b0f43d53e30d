//! A loaded model and its vocabulary.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr::{self, NonNull};

use llama_cpp_sys_2 as sys;

use super::device::device_handle;
use super::fault::{Fault, guarded, pointer, refused, value};
use super::shim::{shim_model_free, shim_model_load, shim_piece, shim_tokenize};
use super::text::{owned_text, path_text, sized};

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
    /// Indices into [`super::devices`]; `None`: llama.cpp's choice.
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
    pub(super) raw: NonNull<sys::llama_model>,
    pub(super) no_alloc: bool,
    metadata: Vec<(Vec<u8>, Vec<u8>)>,
}

// SAFETY: a llama_model is not written to after loading, with one exception: creating a context with
// a YaRN scale of its own adjusts the trained length, and `Context` never sets such a scale. llama.cpp's
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
