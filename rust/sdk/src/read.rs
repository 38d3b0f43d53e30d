//! Reading and writing what the host passes by pointer: no byte beyond what it says is there.

use std::ffi::{CStr, OsString, c_char};
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::ptr;

use llm_node_abi as abi;

use crate::Failure;

/// A private copy of a struct that the host may have compiled shorter or longer. Members that it does
/// not have are zero. `None` for NULL.
///
/// # Safety
///
/// NULL, or valid for reads of the `struct_size` that it states.
pub(crate) unsafe fn growing<T: abi::Growing>(source: *const T) -> Option<T> {
    if source.is_null() {
        return None;
    }
    // SAFETY: a Growing struct begins with its size.
    let size = unsafe { source.cast::<u32>().read_unaligned() } as usize;
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: the smaller of both sizes is readable and fits; a zeroed Growing struct is valid.
    unsafe {
        ptr::copy_nonoverlapping(
            source.cast::<u8>(),
            copy.as_mut_ptr().cast::<u8>(),
            size.min(size_of::<T>()),
        );
        Some(copy.assume_init())
    }
}

/// As [`growing`], for a pointer that must not be NULL.
///
/// # Safety
///
/// As for [`growing`].
pub(crate) unsafe fn required<T: abi::Growing>(source: *const T, name: &str) -> Result<T, Failure> {
    // SAFETY: passed on to the caller.
    unsafe { growing(source) }.ok_or_else(|| Failure::invalid(format!("{name} is NULL")))
}

/// Fills a struct of the host's, as far as the host has it. Its `struct_size` stays.
///
/// # Safety
///
/// NULL, or valid for reads and writes of the `struct_size` that it states.
pub(crate) unsafe fn fill<T: abi::Growing>(target: *mut T, value: &T, name: &str) -> Result<(), Failure> {
    const HEAD: usize = size_of::<u32>();
    if target.is_null() {
        return Err(Failure::invalid(format!("{name} is NULL")));
    }
    // SAFETY: a Growing struct begins with its size.
    let size = unsafe { target.cast::<u32>().read_unaligned() } as usize;
    let bytes = size.min(size_of::<T>());
    if bytes < HEAD {
        return Err(Failure::invalid(format!("{name}->struct_size is not set")));
    }
    // SAFETY: both sides have `bytes` bytes, and they are different objects.
    unsafe {
        ptr::copy_nonoverlapping(
            ptr::from_ref(value).cast::<u8>().add(HEAD),
            target.cast::<u8>().add(HEAD),
            bytes - HEAD,
        );
    }
    Ok(())
}

/// One element of an array with a stride; members beyond the stride are zero.
///
/// # Safety
///
/// The array has more than `index` elements, each valid for reads of `stride` bytes, and a `T` made of
/// zeros is valid.
pub(crate) unsafe fn strided<T: Copy>(base: *const T, stride: usize, index: usize) -> T {
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: passed on to the caller.
    unsafe {
        ptr::copy_nonoverlapping(
            base.cast::<u8>().add(stride * index),
            copy.as_mut_ptr().cast::<u8>(),
            stride.min(size_of::<T>()),
        );
        copy.assume_init()
    }
}

/// A slice that the host passes as pointer and length. NULL is fine for length 0.
///
/// # Safety
///
/// `length` elements are readable and stay unchanged for `'a`.
pub(crate) unsafe fn slice<'a, T>(data: *const T, length: usize, name: &str) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Failure::invalid(format!("{name} is NULL, and {length} elements are stated")));
    }
    if !data.is_aligned() || length > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::invalid(format!("{name} is no array of {length} elements")));
    }
    // SAFETY: not NULL, aligned and in bounds; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(data, length) })
}

/// A terminated text; what is not UTF-8 is replaced. `None` for NULL.
///
/// # Safety
///
/// NULL or terminated.
pub(crate) unsafe fn text(data: *const c_char) -> Option<String> {
    // SAFETY: passed on to the caller.
    (!data.is_null()).then(|| unsafe { CStr::from_ptr(data) }.to_string_lossy().into_owned())
}

/// A terminated path in the file system's own encoding.
///
/// # Safety
///
/// NULL or terminated.
pub(crate) unsafe fn path(data: *const c_char, name: &str) -> Result<PathBuf, Failure> {
    if data.is_null() {
        return Err(Failure::invalid(format!("{name} is NULL")));
    }
    // SAFETY: passed on to the caller.
    let bytes = unsafe { CStr::from_ptr(data) }.to_bytes();
    #[cfg(unix)]
    let path: OsString = std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec());
    #[cfg(not(unix))]
    let path: OsString = String::from_utf8_lossy(bytes).into_owned().into();
    Ok(path.into())
}
