//! Strings and settings on their way into an engine, kept alive for the call.

use std::ffi::{CString, c_char};
use std::path::Path;

use llm_node_abi::EngineOption;

/// A path as the file system writes it; UTF-8 on Windows. `None` if it contains a zero byte.
pub(crate) fn path(path: &Path) -> Option<CString> {
    #[cfg(unix)]
    let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec();
    #[cfg(not(unix))]
    let bytes = path.to_str()?.as_bytes().to_vec();
    CString::new(bytes).ok()
}

/// Settings, as an array that C can read.
pub(crate) struct Options {
    /// What the pointers of `array` point to.
    _texts: Vec<(CString, CString)>,
    array: Vec<EngineOption>,
}

impl Options {
    /// `None` if one contains a zero byte.
    pub(crate) fn new(options: &[(String, String)]) -> Option<Self> {
        let texts = options
            .iter()
            .map(|(key, value)| Some((CString::new(key.as_str()).ok()?, CString::new(value.as_str()).ok()?)))
            .collect::<Option<Vec<_>>>()?;
        let array = texts
            .iter()
            .map(|(key, value)| EngineOption { key: key.as_ptr(), value: value.as_ptr() })
            .collect();
        Some(Self { _texts: texts, array })
    }

    /// NULL when there are none.
    pub(crate) fn as_ptr(&self) -> *const EngineOption {
        if self.array.is_empty() { std::ptr::null() } else { self.array.as_ptr() }
    }

    pub(crate) fn len(&self) -> usize {
        self.array.len()
    }
}

pub(crate) fn optional(text: Option<&CString>) -> *const c_char {
    text.map_or(std::ptr::null(), |text| text.as_ptr())
}
