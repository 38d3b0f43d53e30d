//! Text on its way to llama.cpp and back.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use super::fault::Fault;

pub(super) fn owned_text(text: *const c_char) -> Option<CString> {
    // SAFETY: callers pass NULL or a terminated string of llama.cpp.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_owned())
}

pub(super) fn path_text(path: &Path) -> Result<CString, Fault> {
    #[cfg(unix)]
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
    // llama.cpp takes UTF-8 on Windows.
    #[cfg(not(unix))]
    let bytes = path.to_string_lossy().into_owned().into_bytes();
    CString::new(bytes).map_err(|_| Fault::refused("the path holds a zero byte"))
}

/// Calls one of llama.cpp's functions that copy text as `snprintf` does, and gives all of it.
pub(super) fn sized(copy: impl Fn(*mut c_char, usize) -> i32) -> Vec<u8> {
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
