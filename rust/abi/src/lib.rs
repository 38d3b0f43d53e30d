//! The contract between the node and an engine, mirrored for Rust.
//!
//! `include/engine_api.h` is the specification: what each function means, which thread may call it
//! and how long a pointer lives is said there and not repeated here. This crate owns layouts and
//! values, which `tests/layout.rs` compares with the header member by member. It refuses all logic:
//! calling an engine is the work of `llm-node-host`, being one that of `llm-node-sdk`.
//!
//! Two rules keep the mirror sound whatever the other side writes into memory:
//!
//! * A code, stage, flag or kind is an integer or a newtype over one, never a Rust `enum`: reading an
//!   `enum` that holds a value outside its list is undefined behaviour. There is no `bool` either.
//! * Every member of a table is an `Option` of a function pointer, so that NULL is `None`.
#![warn(missing_docs)]

mod adapters;
mod batch;
mod embed;
mod memory;
mod models;
mod pick;
mod request;
mod tier0;
mod tokenizer;

pub use adapters::*;
pub use batch::*;
pub use embed::*;
pub use memory::*;
pub use models::*;
pub use pick::*;
pub use request::*;
pub use tier0::*;
pub use tokenizer::*;

use core::ffi::CStr;

/// The one version of the ABI that this crate describes.
pub const ENGINE_ABI_VERSION: u32 = 1;

/// The text of `engine_api.h`.
pub const HEADER: &str = include_str!("../include/engine_api.h");

/// The folder of `engine_api.h` in the source tree, for builds and tests that compile against it. It
/// names the machine that built this crate: ship [`HEADER`] instead.
pub const HEADER_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include");

/// A struct that begins with `struct_size` and is only ever added to at its end.
///
/// # Safety
///
/// The type is `#[repr(C)]`, its first member is `struct_size: u32`, and a value whose bytes are all
/// zero is valid.
pub unsafe trait Growing: Copy {
    /// `size_of::<Self>()`, as it is written into `struct_size`.
    const SIZE: u32 = size_of::<Self>() as u32;
}

/// A table of functions that an engine may offer.
///
/// # Safety
///
/// An engine that answers `ID` answers with a table of this type, which may be shorter or longer.
pub unsafe trait Extension: Growing {
    /// What `engine_get_extension` is asked for.
    const ID: &'static CStr;
}

/// Implements [`Growing`], which is true of every struct that it is used on in this crate: they are
/// `#[repr(C)]` and made of integers, floats, raw pointers and `Option`s of function pointers.
macro_rules! growing {
    ($($name:ty),+ $(,)?) => {
        $(
            // SAFETY: see above; `tests/layout.rs` checks that struct_size lies at offset 0.
            unsafe impl crate::Growing for $name {}
        )+
    };
}
/// Implements [`Extension`] beside [`Growing`].
macro_rules! extension {
    ($name:ty, $id:expr) => {
        crate::growing!($name);
        // SAFETY: the header defines this id as the name of this table.
        unsafe impl crate::Extension for $name {
            const ID: &'static core::ffi::CStr = $id;
        }
    };
}
/// Declares a type that only pointers are ever made to.
macro_rules! opaque {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug)]
        pub struct $name {
            _private: [u8; 0],
            _neither_send_nor_sync: core::marker::PhantomData<(*mut u8, core::marker::PhantomPinned)>,
        }
    };
}
pub(crate) use {extension, growing, opaque};
