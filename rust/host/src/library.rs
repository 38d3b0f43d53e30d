//! From a path to the five functions: is it a shared library for this machine, does the loader take
//! it, are the symbols there. A library that was mapped is never unmapped.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use llm_node_abi::{
    EngineGenerateFn, EngineGetExtensionFn, EngineGetInfoFn, EngineInitFn, EngineLoadModelFn,
    EngineShutdownFn,
};
use object::read::{ReadCache, ReadRef};
use object::{Architecture, BinaryFormat, FileKind, Object, ObjectKind, ObjectSegment};

use crate::error::LoadErrorKind;

/// The exported functions. They stay valid for the life of the process, because their library does.
#[derive(Clone, Copy, Debug)]
pub struct Symbols {
    /// `engine_get_info`
    pub get_info: EngineGetInfoFn,
    /// `engine_init`
    pub init: EngineInitFn,
    /// `engine_load_model`
    pub load_model: EngineLoadModelFn,
    /// `engine_generate`
    pub generate: EngineGenerateFn,
    /// `engine_shutdown`
    pub shutdown: EngineShutdownFn,
    /// `engine_get_extension`, which is optional.
    pub get_extension: Option<EngineGetExtensionFn>,
}

/// Reads the file's headers, and runs nothing of it.
pub fn check_file(path: &Path) -> Result<(), LoadErrorKind> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => LoadErrorKind::BinaryNotFound,
        _ => LoadErrorKind::BinaryUnreadable { reason: error.to_string() },
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(LoadErrorKind::NotALibrary { reason: "it is not a file".to_owned() });
    }
    check_headers(&ReadCache::new(file), metadata.len())
}

fn check_headers<'data>(data: impl ReadRef<'data>, length: u64) -> Result<(), LoadErrorKind> {
    let not_a_library = |reason: String| LoadErrorKind::NotALibrary { reason };
    if length == 0 {
        return Err(not_a_library("it is empty".to_owned()));
    }
    let kind = FileKind::parse(data).map_err(|_| not_a_library("its format is unknown".to_owned()))?;
    if matches!(kind, FileKind::MachOFat32 | FileKind::MachOFat64) {
        // Several architectures in one file: the loader picks its own, or says that there is none.
        return Ok(());
    }
    let object = object::File::parse(data).map_err(|error| not_a_library(error.to_string()))?;
    if object.format() != LIBRARY_FORMAT {
        return Err(not_a_library(format!(
            "its format is {:?}, this platform's is {LIBRARY_FORMAT:?}",
            object.format()
        )));
    }
    if let Some(expected) = this_machine()
        && object.architecture() != expected
    {
        return Err(LoadErrorKind::WrongArch {
            expected: format!("{expected:?}"),
            got: format!("{:?}", object.architecture()),
        });
    }
    // Not "anything but Dynamic": a Mach-O bundle is loaded like a library and has no kind here.
    if matches!(object.kind(), ObjectKind::Relocatable | ObjectKind::Executable | ObjectKind::Core) {
        return Err(not_a_library(format!("it is an object of kind {:?}", object.kind())));
    }
    // Mapping a segment that reaches beyond the file works; touching it is a bus error.
    for segment in object.segments() {
        let (offset, size) = segment.file_range();
        if offset.checked_add(size).is_none_or(|end| end > length) {
            return Err(not_a_library("it is cut off".to_owned()));
        }
    }
    Ok(())
}

/// What shared libraries are on this platform.
const LIBRARY_FORMAT: BinaryFormat = if cfg!(windows) {
    BinaryFormat::Pe
} else if cfg!(target_vendor = "apple") {
    BinaryFormat::MachO
} else {
    BinaryFormat::Elf
};

/// `None` where the name of the processor says too little to refuse a library by.
fn this_machine() -> Option<Architecture> {
    Some(match std::env::consts::ARCH {
        "x86_64" => Architecture::X86_64,
        "aarch64" => Architecture::Aarch64,
        "riscv64" => Architecture::Riscv64,
        "powerpc64" => Architecture::PowerPc64,
        "s390x" => Architecture::S390x,
        "loongarch64" => Architecture::LoongArch64,
        _ => return None,
    })
}

/// Opens libraries that an engine needs, in this order, and never closes them. The dynamic linker then takes
/// these, whatever its own search would find: a library's name counts for it as found once one of that name is
/// there. What cannot be opened is left to its search, and to its words.
pub fn preload(paths: &[PathBuf]) {
    for path in paths {
        match map(path) {
            Ok(library) => std::mem::forget(library),
            Err(error) => log::warn!("{}: {}", path.display(), describe(&error)),
        }
    }
}

/// Maps the library, which runs its constructors, and looks up the functions.
pub(crate) fn open(path: &Path) -> Result<Symbols, LoadErrorKind> {
    // The loader and a first CUDA call on another thread can deadlock; at least no two loads do.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    // A bare file name would be looked for in the system's folders.
    let path = std::path::absolute(path)
        .map_err(|error| LoadErrorKind::BinaryUnreadable { reason: error.to_string() })?;
    let library = map(&path).map_err(|error| LoadErrorKind::LoadFailed { dlerror: describe(&error) })?;

    macro_rules! symbol {
        ($name:literal as $signature:ty) => {
            // SAFETY: the header gives this name this signature, and the symbol is found in a library
            // that claims to follow it: there is nothing more to check in a C symbol.
            unsafe { library.get::<$signature>(concat!($name, "\0").as_bytes()) }
                .map(|symbol| *symbol)
                .map_err(|_| LoadErrorKind::MissingSymbol { name: $name })
        };
    }
    let symbols = (|| {
        Ok(Symbols {
            get_info: symbol!("engine_get_info" as EngineGetInfoFn)?,
            init: symbol!("engine_init" as EngineInitFn)?,
            load_model: symbol!("engine_load_model" as EngineLoadModelFn)?,
            generate: symbol!("engine_generate" as EngineGenerateFn)?,
            shutdown: symbol!("engine_shutdown" as EngineShutdownFn)?,
            get_extension: symbol!("engine_get_extension" as EngineGetExtensionFn).ok(),
        })
    })();
    // Never unmapped, not even after an error: thread-local destructors, threads, CUDA's registered
    // code and a changed terminate handler would all point into nothing.
    std::mem::forget(library);
    symbols
}

#[cfg(unix)]
fn map(path: &Path) -> Result<libloading::os::unix::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // NOW: a missing symbol of a dependency is an error with a name, not a crash in mid-request.
    // SAFETY: runs the library's constructors, which are foreign code. That they harm nothing cannot be
    // shown; a stranger's engine is opened in a process that may be lost.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
}

#[cfg(windows)]
fn map(path: &Path) -> Result<libloading::os::windows::Library, libloading::Error> {
    use libloading::os::windows::{
        LOAD_LIBRARY_SEARCH_DEFAULT_DIRS, LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR, Library,
    };
    // The engine's own folder and the system's; not the current directory, not PATH.
    // SAFETY: as on Unix.
    unsafe {
        Library::load_with_flags(path, LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | LOAD_LIBRARY_SEARCH_DEFAULT_DIRS)
    }
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let deeper = error.to_string();
        if !text.contains(&deeper) {
            text = format!("{text}: {deeper}");
        }
        source = error.source();
    }
    text
}
