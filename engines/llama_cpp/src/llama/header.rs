//! The header of a GGUF file.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2 as sys;

use super::fault::{Fault, guarded, pointer};
use super::shim::shim_gguf_open;
use super::text::{owned_text, path_text};

/// A GGUF file's key-value section and the names of its tensors, read without these.
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

    /// The value of a key that holds a whole number of 32 bits.
    pub(crate) fn number(&self, key: &str) -> Option<u32> {
        let index = self.find(key)?;
        // SAFETY: as above.
        unsafe {
            (sys::gguf_get_kv_type(self.0.as_ptr(), index) == sys::GGUF_TYPE_UINT32)
                .then(|| sys::gguf_get_val_u32(self.0.as_ptr(), index))
        }
    }

    /// Is there a tensor of this name in the file?
    pub(crate) fn has_tensor(&self, name: &CStr) -> bool {
        // SAFETY: the context is alive, the name terminated.
        unsafe { sys::gguf_find_tensor(self.0.as_ptr(), name.as_ptr()) >= 0 }
    }

    /// Does the model lie in several files?
    pub(crate) fn is_split(&self) -> bool {
        self.find("split.count").is_some()
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        // SAFETY: owned by this value, freed once.
        unsafe { sys::gguf_free(self.0.as_ptr()) };
    }
}
