//! Private copies of the tables that an engine offers.
//!
//! An engine may have been compiled against an older or a newer header, so its table may be shorter or
//! longer than ours. What lies beyond its end is `None` in the copy, and so unsupported; a function
//! that the header requires and that is NULL inside of it is an error.

use std::ffi::c_void;
use std::mem::{MaybeUninit, offset_of, size_of};

use llm_node_abi::{
    EngineBatching, EngineEmbedding, EngineMemory, EngineModels, EngineStreaming, EngineTokenizer, Extension,
};

use crate::readable;

/// `struct_size`, the padding after it, and one function.
const SMALLEST: usize = 2 * size_of::<usize>();
/// No table will ever have five hundred functions; a number above that is not a size.
const LARGEST: usize = 4096;

/// Tables that know which of their functions may not be NULL.
pub(crate) trait Table: Extension {
    /// The first required function that is NULL although the table is long enough to have it.
    fn missing(&self) -> Option<&'static str>;
}

macro_rules! required {
    ($($table:ty: $($function:ident),+;)+) => {
        $(impl Table for $table {
            fn missing(&self) -> Option<&'static str> {
                $(
                    let end = offset_of!($table, $function) + size_of::<usize>();
                    if self.$function.is_none() && self.struct_size as usize >= end {
                        return Some(stringify!($function));
                    }
                )+
                None
            }
        })+
    };
}

required! {
    EngineModels: load, unload, info, meta_count, meta_get;
    EngineMemory: device_count, device_get, usage;
    EngineTokenizer: vocab, tokenize, detokenize, chat_template;
    EngineBatching: create, destroy, info, step, collect, seq_copy, seq_remove, seq_range, cache_free;
    EngineStreaming: generate;
    EngineEmbedding: embed;
}

/// Copies the table at `address`, which must not be NULL.
///
/// # Safety
///
/// An engine answered `address` when it was asked for `T::ID`.
pub(crate) unsafe fn copy<T: Table>(address: *const c_void) -> Result<T, String> {
    // SAFETY: every table begins with struct_size; if this one is not readable at all, that is found
    // out where the kernel can be asked.
    let size = unsafe { readable::value(address.cast::<u32>()) }
        .map_err(|problem| format!("the table {problem}"))? as usize;
    if !(SMALLEST..=LARGEST).contains(&size) {
        return Err(format!("its struct_size is {size}, which cannot be"));
    }
    // SAFETY: the engine says that its table is `size` bytes long.
    let bytes = unsafe { readable::values(address.cast::<u8>(), size.min(size_of::<T>())) }
        .map_err(|problem| format!("the table {problem}"))?;
    let mut table = MaybeUninit::<T>::zeroed();
    // SAFETY: `bytes` is not longer than T.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), table.as_mut_ptr().cast(), bytes.len()) };
    // SAFETY: a `Growing` is valid when all its bytes are zero. The bytes copied over are integers and
    // function pointers, of which any value can be held; whether one can be called is the engine's word.
    let table = unsafe { table.assume_init() };
    match table.missing() {
        Some(function) => Err(format!("{function} is NULL")),
        None => Ok(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_node_abi::{Code, EngineModel, Growing};

    unsafe extern "C" fn unload(_: *mut EngineModel) {}
    unsafe extern "C" fn meta_count(_: *const EngineModel) -> usize {
        0
    }

    fn models() -> EngineModels {
        unsafe extern "C" fn load(
            _: *const llm_node_abi::EngineModelParams,
            _: *mut *mut EngineModel,
        ) -> Code {
            Code(0)
        }
        unsafe extern "C" fn info(_: *const EngineModel, _: *mut llm_node_abi::EngineModelInfo) -> Code {
            Code(0)
        }
        unsafe extern "C" fn meta_get(
            _: *const EngineModel,
            _: usize,
            _: *mut llm_node_abi::EngineStr,
            _: *mut llm_node_abi::EngineStr,
        ) -> Code {
            Code(0)
        }
        EngineModels {
            struct_size: EngineModels::SIZE,
            load: Some(load),
            unload: Some(unload),
            info: Some(info),
            meta_count: Some(meta_count),
            meta_get: Some(meta_get),
        }
    }

    fn copied(table: &EngineModels) -> Result<EngineModels, String> {
        // SAFETY: it is a table.
        unsafe { copy((&raw const *table).cast()) }
    }

    #[test]
    fn a_short_table_lacks_its_end() {
        let mut table = models();
        table.struct_size = offset_of!(EngineModels, meta_count) as u32;
        let copy = copied(&table).unwrap();
        assert!(copy.info.is_some() && copy.meta_count.is_none() && copy.meta_get.is_none());
    }

    #[test]
    fn a_long_table_is_cut() {
        #[repr(C)]
        struct Longer(EngineModels, usize);
        let mut longer = Longer(models(), usize::MAX);
        longer.0.struct_size = size_of::<Longer>() as u32;
        assert!(copied(&longer.0).unwrap().meta_get.is_some());
    }

    #[test]
    fn a_required_function_may_not_be_null() {
        let mut table = models();
        table.unload = None;
        assert_eq!(copied(&table).unwrap_err(), "unload is NULL");
    }

    #[test]
    fn a_size_that_cannot_be_is_refused() {
        for size in [0, 4, 15, 4097, u32::MAX] {
            let mut table = models();
            table.struct_size = size;
            assert!(copied(&table).unwrap_err().contains("struct_size"), "{size}");
        }
    }
}
