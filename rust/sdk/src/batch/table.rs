//! The table of an engine's functions: each takes what the host passes apart, and asks the trait.

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

use llm_node_abi as abi;

use super::{Batch, Batching, ContextInfo, ContextParams, Masks, Rows};
use crate::instance::{Exported, ModelHandle};
use crate::{Failure, guard, read};

/// What stands behind an `EngineContext *`.
struct ContextHandle<E: Batching> {
    info: ContextInfo,
    n_words: usize,
    canceller: Box<dyn Fn() + Send + Sync>,
    state: Mutex<State<E>>,
}

struct State<E: Batching> {
    context: E::Context,
    ticket: u64,
}

impl<E: Exported + Batching> ContextHandle<E> {
    /// # Safety
    ///
    /// NULL, or a handle that `create` of this engine made and that was not destroyed, for `'a`.
    unsafe fn from_raw<'a>(pointer: *const abi::EngineContext) -> Result<&'a Self, Failure> {
        // SAFETY: passed on to the caller.
        unsafe { pointer.cast::<Self>().as_ref() }.ok_or_else(|| Failure::invalid("context is NULL"))
    }

    /// The host calls one function at a time, so the lock is free; it makes that a certainty.
    fn state(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_ticket(&self, last: u64, ticket: u64) -> Result<(), Failure> {
        if ticket == 0 || ticket > last || last - ticket >= u64::from(self.info.max_in_flight.max(1)) {
            return Err(Failure::invalid(format!(
                "there is no step {ticket} to collect; the last is {last}"
            )));
        }
        Ok(())
    }

    fn is_empty(context: &E::Context, sequence: u32) -> Result<bool, Failure> {
        Ok(E::range(context, sequence)?.1 == 0)
    }

    fn check_sequence(&self, sequence: u32) -> Result<(), Failure> {
        if sequence >= self.info.max_sequences {
            return Err(Failure::invalid(format!(
                "there are {} sequences, not {sequence}",
                self.info.max_sequences
            )));
        }
        Ok(())
    }
}

/// The table of an engine's functions.
pub const fn table<E: Exported + Batching>() -> abi::EngineBatching {
    abi::EngineBatching {
        struct_size: size_of::<abi::EngineBatching>() as u32,
        create: Some(create::<E>),
        destroy: Some(destroy::<E>),
        info: Some(info::<E>),
        step: Some(step::<E>),
        collect: Some(collect::<E>),
        fetch: if E::FETCHES { Some(fetch::<E>) } else { None },
        cancel: if E::CANCELS { Some(cancel::<E>) } else { None },
        seq_copy: Some(seq_copy::<E>),
        seq_remove: Some(seq_remove::<E>),
        seq_range: Some(seq_range::<E>),
        cache_free: Some(cache_free::<E>),
        seq_save: if E::SAVES { Some(seq_save::<E>) } else { None },
        seq_restore: if E::SAVES { Some(seq_restore::<E>) } else { None },
    }
}

unsafe extern "C" fn create<E: Exported + Batching>(
    model: *mut abi::EngineModel,
    params: *const abi::EngineContextParams,
    context: *mut *mut abi::EngineContext,
) -> abi::Code {
    guard::code("create", || {
        // SAFETY: the host passes a handle of ours and what the header asks for.
        let (handle, params) = unsafe {
            let handle = ModelHandle::<E>::from_raw(model)?;
            (handle, ContextParams::read(&read::required(params, "params")?)?)
        };
        if context.is_null() {
            return Err(Failure::invalid("context is NULL"));
        }
        let (made, info) = E::slot().engine()?.create(&handle.model, &params)?;
        let handle = ContextHandle::<E> {
            canceller: E::canceller(&made),
            n_words: (handle.info.n_vocab as usize).div_ceil(32),
            info,
            state: Mutex::new(State { context: made, ticket: 0 }),
        };
        let pointer = Box::into_raw(Box::new(handle)).cast::<abi::EngineContext>();
        E::slot().contexts.insert(pointer.cast(), free::<E>);
        // SAFETY: checked above, and written on success only.
        unsafe { context.write(pointer) };
        Ok(())
    })
}

/// # Safety
///
/// A pointer that `create` of the same engine made, and that nobody uses any more.
unsafe fn free<E: Exported + Batching>(pointer: *mut c_void) {
    // SAFETY: passed on to the caller.
    drop(unsafe { Box::from_raw(pointer.cast::<ContextHandle<E>>()) });
}

unsafe extern "C" fn destroy<E: Exported + Batching>(context: *mut abi::EngineContext) {
    guard::value("destroy", (), || {
        E::slot().contexts.remove(context.cast());
        Ok(())
    });
}

unsafe extern "C" fn info<E: Exported + Batching>(
    context: *const abi::EngineContext,
    info: *mut abi::EngineContextInfo,
) -> abi::Code {
    guard::code("info", || {
        // SAFETY: the host passes a handle of ours and a struct of its own.
        unsafe {
            let facts = &ContextHandle::<E>::from_raw(context)?.info;
            let flags = [
                (facts.shares_prefixes, abi::ENGINE_CONTEXT_SHARE),
                (facts.asynchronous, abi::ENGINE_CONTEXT_ASYNC),
                (facts.chains, abi::ENGINE_CONTEXT_CHAIN),
                (facts.late_masks, abi::ENGINE_CONTEXT_LATE_MASK),
            ];
            let value = abi::EngineContextInfo {
                struct_size: 0,
                flags: flags.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum(),
                max_sequences: facts.max_sequences,
                context_length: facts.context_length,
                max_batch_tokens: facts.max_batch_tokens,
                max_rows: facts.max_rows,
                max_in_flight: facts.max_in_flight.max(1),
                max_rollback: facts.max_rollback,
                max_candidates: facts.max_candidates,
                cache_page: facts.cache_page.max(1),
                n_decode_sizes: facts.decode_sizes.len() as u32,
                reserved: 0,
                cache_tokens: facts.cache_tokens,
                decode_sizes: if facts.decode_sizes.is_empty() {
                    std::ptr::null()
                } else {
                    facts.decode_sizes.as_ptr()
                },
            };
            read::fill(info, &value, "info")
        }
    })
}

unsafe extern "C" fn step<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    batch: *const abi::EngineBatch,
    ticket: *mut u64,
) -> abi::Code {
    guard::code("step", || {
        // SAFETY: the host passes a handle of ours and what the header asks for.
        let (handle, batch) = unsafe {
            let handle = ContextHandle::<E>::from_raw(context)?;
            (handle, Batch::read(&read::required(batch, "batch")?, handle.n_words)?)
        };
        if ticket.is_null() {
            return Err(Failure::invalid("ticket is NULL"));
        }
        for slice in batch.iter() {
            handle.check_sequence(slice.sequence)?;
        }
        let mut state = handle.state();
        let next = state.ticket + 1;
        E::step(&mut state.context, &batch, next)?;
        state.ticket = next;
        // SAFETY: checked above.
        unsafe { ticket.write(next) };
        Ok(())
    })
}

unsafe extern "C" fn collect<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    ticket: u64,
    late_masks: *const *const u32,
    rows: *mut abi::EngineRow,
    n_rows: usize,
    row_stride: usize,
) -> abi::Code {
    guard::code("collect", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        let late_masks = if late_masks.is_null() {
            None
        } else {
            // SAFETY: the host passes one pointer per row, each NULL or as long as the vocabulary needs.
            Some(unsafe { Masks::new(read::slice(late_masks, n_rows, "late_masks")?, handle.n_words) })
        };
        if rows.is_null() && n_rows > 0 {
            return Err(Failure::invalid("rows is NULL"));
        }
        let mut state = handle.state();
        handle.check_ticket(state.ticket, ticket)?;
        // SAFETY: the host passes room for so many rows of that stride.
        let mut target = unsafe { Rows::new(rows, row_stride, n_rows) };
        E::collect(&mut state.context, ticket, late_masks, &mut target)?;
        if target.count() != n_rows {
            return Err(Failure::invalid(format!("the step has {} rows, not {n_rows}", target.count())));
        }
        Ok(())
    })
}

unsafe extern "C" fn fetch<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    ticket: u64,
    row: usize,
    out: *mut abi::EngineRow,
) -> abi::Code {
    guard::code("fetch", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        if out.is_null() {
            return Err(Failure::invalid("out is NULL"));
        }
        let mut state = handle.state();
        handle.check_ticket(state.ticket, ticket)?;
        let raw = E::fetch(&mut state.context, ticket, row)?.raw()?;
        // SAFETY: checked above.
        unsafe { out.write(raw) };
        Ok(())
    })
}

unsafe extern "C" fn cancel<E: Exported + Batching>(context: *mut abi::EngineContext) {
    guard::value("cancel", (), || {
        // SAFETY: the host passes a handle of ours. The lock is not taken: a step may hold it.
        (unsafe { ContextHandle::<E>::from_raw(context) }?.canceller)();
        Ok(())
    });
}

unsafe extern "C" fn seq_copy<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    from: u32,
    to: u32,
    end: u32,
) -> abi::Code {
    guard::code("seq_copy", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        handle.check_sequence(from)?;
        handle.check_sequence(to)?;
        if from == to {
            return Err(Failure::invalid("a sequence cannot be copied onto itself"));
        }
        E::copy(&mut handle.state().context, from, to, end)
    })
}

unsafe extern "C" fn seq_remove<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    sequence: u32,
    begin: u32,
) -> abi::Code {
    guard::code("seq_remove", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        handle.check_sequence(sequence)?;
        E::remove(&mut handle.state().context, sequence, begin)
    })
}

unsafe extern "C" fn seq_range<E: Exported + Batching>(
    context: *const abi::EngineContext,
    sequence: u32,
    begin: *mut u32,
    end: *mut u32,
) -> abi::Code {
    guard::code("seq_range", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        handle.check_sequence(sequence)?;
        if begin.is_null() || end.is_null() {
            return Err(Failure::invalid("begin or end is NULL"));
        }
        let range = E::range(&handle.state().context, sequence)?;
        // SAFETY: checked above.
        unsafe {
            begin.write(range.0);
            end.write(range.1);
        }
        Ok(())
    })
}

unsafe extern "C" fn cache_free<E: Exported + Batching>(context: *const abi::EngineContext) -> u64 {
    guard::value("cache_free", 0, || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        Ok(E::cache_free(&handle.state().context))
    })
}

unsafe extern "C" fn seq_save<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    sequence: u32,
    data: *mut c_void,
    capacity: usize,
    size: *mut usize,
) -> abi::Code {
    guard::code("seq_save", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        handle.check_sequence(sequence)?;
        if size.is_null() || (data.is_null() && capacity > 0) {
            return Err(Failure::invalid("data or size is NULL"));
        }
        let mut state = handle.state();
        if ContextHandle::<E>::is_empty(&state.context, sequence)? {
            return Err(Failure::invalid(format!("sequence {sequence} is empty")));
        }
        let needed = E::saved_size(&mut state.context, sequence)?;
        if needed == 0 {
            return Err(Failure::internal("a state of 0 bytes"));
        }
        if capacity < needed {
            // SAFETY: checked above.
            unsafe { size.write(needed) };
            return Err(Failure::new(
                abi::ERR_BUFFER_TOO_SMALL,
                format!("the state has {needed} bytes, and there is room for {capacity}"),
            ));
        }
        // SAFETY: the host passes room for more than 0 bytes, which any value may be in.
        let data = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), needed) };
        let written = E::save(&mut state.context, sequence, data)?;
        if written == 0 || written > needed {
            return Err(Failure::internal(format!("{written} bytes saved, and {needed} announced")));
        }
        // SAFETY: checked above.
        unsafe { size.write(written) };
        Ok(())
    })
}

unsafe extern "C" fn seq_restore<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    sequence: u32,
    data: *const c_void,
    size: usize,
) -> abi::Code {
    guard::code("seq_restore", || {
        // SAFETY: the host passes a handle of ours and that many bytes.
        let (handle, data) = unsafe {
            let handle = ContextHandle::<E>::from_raw(context)?;
            (handle, read::slice(data.cast::<u8>(), size, "data")?)
        };
        handle.check_sequence(sequence)?;
        let mut state = handle.state();
        if !ContextHandle::<E>::is_empty(&state.context, sequence)? {
            return Err(Failure::invalid(format!("sequence {sequence} is not empty")));
        }
        E::restore(&mut state.context, sequence, data)
    })
}
