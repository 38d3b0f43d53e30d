//! Copies out of memory that an engine points to, with bounds, and on Linux without trusting that the
//! memory is there: the kernel copies on our behalf and says so when an address is not readable.
//!
//! Elsewhere a bad pointer is a crash, which the worker process around the engine takes.

use std::ffi::c_char;
use std::fmt;
use std::mem::{MaybeUninit, size_of};

use llm_node_abi::{EngineStr, TokenLogprob, TokenResult};

/// Longest text that names something: ids, versions, keys.
pub(crate) const NAME_LIMIT: usize = 4096;
/// Longest text of any other kind.
pub(crate) const TEXT_LIMIT: usize = 64 << 20;

/// Why something an engine points to cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// There is no address.
    Null,
    /// Nothing lies there.
    Unreadable,
    /// It goes on beyond so many bytes.
    TooLong(usize),
    /// Other bytes.
    NotUtf8,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("is NULL"),
            Self::Unreadable => f.write_str("points to unreadable memory"),
            Self::TooLong(limit) => write!(f, "is longer than {limit} bytes"),
            Self::NotUtf8 => f.write_str("is not UTF-8"),
        }
    }
}

/// Types that any bytes are a valid value of.
///
/// # Safety
///
/// No bit pattern is invalid: integers, floats, raw pointers, and structs of them.
pub unsafe trait AnyBits: Copy {}
// SAFETY: integers and floats.
unsafe impl AnyBits for u8 {}
// SAFETY: as above.
unsafe impl AnyBits for u32 {}
// SAFETY: as above.
unsafe impl AnyBits for i32 {}
// SAFETY: raw pointers and integers.
unsafe impl AnyBits for TokenResult {}
// SAFETY: as above.
unsafe impl AnyBits for TokenLogprob {}
// SAFETY: as above.
unsafe impl AnyBits for f32 {}
// SAFETY: as above.
unsafe impl AnyBits for u16 {}

/// Copies `count` values from `address`, which need not be aligned.
///
/// # Safety
///
/// Where the kernel cannot be asked (not Linux), `address` is NULL or readable for that many values. In
/// any case no other thread writes there meanwhile.
pub unsafe fn values<T: AnyBits>(address: *const T, count: usize) -> Result<Vec<T>, Problem> {
    if address.is_null() {
        return Err(Problem::Null);
    }
    let bytes = count
        .checked_mul(size_of::<T>())
        .filter(|bytes| isize::try_from(*bytes).is_ok())
        .ok_or(Problem::Unreadable)?;
    let mut copy = Vec::<T>::new();
    copy.try_reserve_exact(count).map_err(|_| Problem::Unreadable)?;
    // SAFETY: `copy` has room for `bytes` bytes; the rest is the caller's promise.
    if !unsafe { copy_bytes(address.cast(), copy.as_mut_ptr().cast(), bytes) } {
        return Err(Problem::Unreadable);
    }
    // SAFETY: all `count` values were written, and any bits are a value.
    unsafe { copy.set_len(count) };
    Ok(copy)
}

/// Copies one value.
///
/// # Safety
///
/// As [`values`].
pub unsafe fn value<T: AnyBits>(address: *const T) -> Result<T, Problem> {
    if address.is_null() {
        return Err(Problem::Null);
    }
    let mut copy = MaybeUninit::<T>::uninit();
    // SAFETY: `copy` has room for one T; the rest is the caller's promise.
    if !unsafe { copy_bytes(address.cast(), copy.as_mut_ptr().cast(), size_of::<T>()) } {
        return Err(Problem::Unreadable);
    }
    // SAFETY: all of it was written, and any bits are a value.
    Ok(unsafe { copy.assume_init() })
}

/// Copies a zero-terminated text of at most `limit` bytes.
///
/// # Safety
///
/// As [`values`], up to and including the zero.
pub(crate) unsafe fn text(address: *const c_char, limit: usize) -> Result<String, Problem> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { terminated(address, limit) }?;
    String::from_utf8(bytes).map_err(|_| Problem::NotUtf8)
}

/// Copies a zero-terminated text that may be anything, as `log` and `set_error` get it.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn lossy_text(address: *const c_char, limit: usize) -> Option<String> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { terminated(address, limit) }.ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// As [`text`], or `None` for NULL.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn optional_text(address: *const c_char, limit: usize) -> Result<Option<String>, Problem> {
    // SAFETY: the caller's promise.
    match unsafe { text(address, limit) } {
        Ok(text) => Ok(Some(text)),
        Err(Problem::Null) => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// Copies a (pointer, length) text. An empty one may point anywhere.
///
/// # Safety
///
/// As [`values`].
pub unsafe fn bytes(text: EngineStr, limit: usize) -> Result<Vec<u8>, Problem> {
    if text.len == 0 {
        return Ok(Vec::new());
    }
    if text.len > limit {
        return Err(Problem::TooLong(limit));
    }
    // SAFETY: the caller's promise.
    unsafe { values(text.data.cast::<u8>(), text.len) }
}

/// Reads in pieces that do not cross a page, since the page after the zero may not be there.
unsafe fn terminated(address: *const c_char, limit: usize) -> Result<Vec<u8>, Problem> {
    const PAGE: usize = 4096;
    if address.is_null() {
        return Err(Problem::Null);
    }
    let mut text = Vec::new();
    while text.len() <= limit {
        let from = address.cast::<u8>().wrapping_add(text.len());
        let until_page_end = PAGE - from.addr() % PAGE;
        let begin = text.len();
        // The first pieces are short: most names end within them.
        let wanted = until_page_end.min(if begin == 0 { 64 } else { PAGE });
        // SAFETY: the piece lies in one page, whose first byte belongs to the text; where the kernel is
        // not asked, reading on within the page cannot fault.
        text.extend(unsafe { values(from, wanted) }?);
        if let Some(end) = text[begin..].iter().position(|byte| *byte == 0) {
            text.truncate(begin + end);
            return if text.len() <= limit { Ok(text) } else { Err(Problem::TooLong(limit)) };
        }
    }
    Err(Problem::TooLong(limit))
}

/// Is what was asked for all copied?
///
/// # Safety
///
/// `to` has room for `count` bytes. As [`values`] for `from`.
unsafe fn copy_bytes(from: *const u8, to: *mut u8, count: usize) -> bool {
    #[cfg(target_os = "linux")]
    if kernel::answers() {
        // SAFETY: `to` has room, the caller says.
        return unsafe { kernel::copy(from, to, count) };
    }
    // SAFETY: `from` is readable, the caller says.
    unsafe { std::ptr::copy_nonoverlapping(from, to, count) };
    true
}

/// Asks the kernel to copy from our own memory, which it does without a signal when there is none.
#[cfg(target_os = "linux")]
mod kernel {
    use std::sync::OnceLock;

    /// A sandbox may forbid the call; then pointers are trusted.
    pub(super) fn answers() -> bool {
        static ANSWERS: OnceLock<bool> = OnceLock::new();
        *ANSWERS.get_or_init(|| {
            let (from, mut to) = (0x5a_u8, 0_u8);
            // SAFETY: both are locals of one byte.
            unsafe { copy(&raw const from, &raw mut to, 1) && to == from }
        })
    }

    /// # Safety
    ///
    /// `to` has room for `count` bytes. `from` may be anything.
    pub(super) unsafe fn copy(from: *const u8, to: *mut u8, count: usize) -> bool {
        let mut done = 0;
        while done < count {
            let local = libc::iovec { iov_base: to.wrapping_add(done).cast(), iov_len: count - done };
            let remote =
                libc::iovec { iov_base: from.wrapping_add(done).cast_mut().cast(), iov_len: count - done };
            // SAFETY: the kernel writes at most `count - done` bytes to `local`, which has room, and
            // answers EFAULT for a `remote` that is not readable.
            let copied = unsafe {
                libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
            };
            if copied <= 0 {
                return false;
            }
            done += copied as usize;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_bounded_and_checked() {
        let (name, bad) = (c"toy", c"\xff");
        let long = std::ffi::CString::new(vec![b'x'; 10_000]).unwrap();
        // SAFETY: all are zero-terminated.
        unsafe {
            assert_eq!(text(name.as_ptr(), 10), Ok("toy".to_owned()));
            assert_eq!(text(name.as_ptr(), 2), Err(Problem::TooLong(2)));
            assert_eq!(text(bad.as_ptr(), 10), Err(Problem::NotUtf8));
            assert_eq!(text(std::ptr::null(), 10), Err(Problem::Null));
            assert_eq!(optional_text(std::ptr::null(), 10), Ok(None));
            assert_eq!(text(long.as_ptr(), 9_999), Err(Problem::TooLong(9_999)));
            assert_eq!(text(long.as_ptr(), 10_000).map(|text| text.len()), Ok(10_000));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn unreadable_memory_is_reported() {
        if !kernel::answers() {
            return;
        }
        let nowhere = std::ptr::without_provenance::<u32>(0x10);
        // SAFETY: the kernel is asked.
        unsafe {
            assert_eq!(text(nowhere.cast(), 10), Err(Problem::Unreadable));
            assert_eq!(values(nowhere, 4), Err(Problem::Unreadable));
            assert_eq!(values(nowhere, usize::MAX), Err(Problem::Unreadable));
        }
    }
}
