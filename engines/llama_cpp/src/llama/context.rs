//! A context: what to make, its passes, and the sequences in its memory.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use super::device::device_index;
use super::fault::{Fault, guarded, pointer, some, value};
use super::log::IS_TRIAL;
use super::model::Model;
use super::shim::{
    RawUse, shim_context_create, shim_context_free, shim_decode, shim_embedding, shim_is_plain_cache,
    shim_logits, shim_memory, shim_memory_clear, shim_sequence_copy, shim_sequence_copy_cells,
    shim_sequence_remove, shim_sequence_take_cells, shim_state_restore, shim_state_save, shim_state_size,
};

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
    /// Index into [`super::devices`]; `None`: the host's memory.
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
