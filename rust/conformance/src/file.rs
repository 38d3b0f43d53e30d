//! The library as a file: nothing of it runs.

use std::fs;
use std::path::Path;

use llm_node_host::raw::check_file;
use object::elf;
use object::read::NameOrOrdinal;
use object::read::elf::{Dyn, ElfFile64, FileHeader, ProgramHeader, Sym};
use object::{Endianness, Object};

use crate::bench::Bench;
use crate::check::{Check, Level, Stop, Verdict, ensure};

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "file.library",
        level: Level::Must,
        what: "The file is a shared library for this machine, whole, and exports the five functions.",
        contract: "Five functions make an engine",
        mend: "Export the five functions with ENGINE_API and C linkage, and link with -shared for this machine.",
        after: &[],
        ask: library,
    },
    Check {
        name: "file.exports",
        level: Level::Should,
        what: "Nothing is exported beside the functions of the header.",
        contract: "Build the rest with hidden visibility, so that two engines which both carry the same library \
                   never meet",
        mend: "Compile with -fvisibility=hidden, link with -Wl,--exclude-libs,ALL, and in C++ with a version script: \
               templates of the standard library are visible whatever the flags say.",
        after: &["file.library"],
        ask: exports,
    },
    Check {
        name: "file.unique-symbols",
        level: Level::Should,
        what: "No symbol is of the kind STB_GNU_UNIQUE, of which there is one in the whole process.",
        contract: "Build the rest with hidden visibility, so that two engines which both carry the same library \
                   never meet",
        mend: "Compile with -fno-gnu-unique or with hidden visibility: statics of C++ templates are such symbols.",
        after: &["file.library"],
        ask: unique_symbols,
    },
    Check {
        name: "file.dependencies",
        level: Level::Should,
        what: "What it needs is the system's, or lies beside it under a name of its own; no search path is absolute.",
        contract: "Build the rest with hidden visibility, so that two engines which both carry the same library \
                   never meet",
        mend: "Link what you bundle statically, or give it a SONAME with the engine's id and the rpath $ORIGIN.",
        after: &["file.library"],
        ask: dependencies,
    },
    Check {
        name: "file.stack",
        level: Level::Should,
        what: "It wants no executable stack, and no relocations in its code.",
        contract: "The engine leaves the process as it found it",
        mend: "Compile everything with -fPIC, and link with -Wl,-z,noexecstack: assembly files are often the reason.",
        after: &["file.library"],
        ask: stack,
    },
    Check {
        name: "file.imports",
        level: Level::Should,
        what: "It does not import functions that the header forbids to call.",
        contract: "no exit or abort for a bad model, no fork, no setenv or chdir, no network",
        mend: "Do without these functions; what the engine must know comes with EngineConfig and its options.",
        after: &["file.library"],
        ask: imports,
    },
];

const FUNCTIONS: [&str; 5] =
    ["engine_get_info", "engine_init", "engine_load_model", "engine_generate", "engine_shutdown"];

/// What no engine has a use for. `exit`, `getenv` and the like are missing: libraries that are linked into an
/// engine have them, and never get there.
const FORBIDDEN: [&str; 14] = [
    "fork",
    "vfork",
    "system",
    "popen",
    "chdir",
    "setenv",
    "putenv",
    "unsetenv",
    "socket",
    "connect",
    "bind",
    "signal",
    "dlclose",
    "cudaDeviceReset",
];

fn read(bench: &Bench<'_>) -> Result<Vec<u8>, Stop> {
    fs::read(&bench.subject.library).map_err(|error| Stop::seen(format!("It cannot be read: {error}.")))
}

fn elf(data: &[u8]) -> Result<ElfFile64<'_, Endianness>, Stop> {
    ElfFile64::parse(data).map_err(|_| Stop::skip("it is said of ELF files alone"))
}

fn library(bench: &Bench<'_>) -> Verdict {
    check_file(&bench.subject.library).map_err(|kind| Stop::seen(format!("It is refused: {kind}.")))?;
    let data = read(bench)?;
    let object =
        object::File::parse(&*data).map_err(|error| Stop::seen(format!("It is no library: {error}.")))?;
    let exports = object.exports().map_err(|error| Stop::seen(format!("Its exports: {error}.")))?;
    let names: Vec<String> =
        exports.filter_map(Result::ok).filter_map(|export| text(export.name())).collect();
    // Mach-O puts a line before each.
    let has = |name: &str| names.iter().any(|one| one == name || one.strip_prefix('_') == Some(name));
    let missing: Vec<&str> = FUNCTIONS.into_iter().filter(|name| !has(name)).collect();
    ensure!(missing.is_empty(), "It does not export {}.", missing.join(", "));
    Ok(())
}

fn exports(bench: &Bench<'_>) -> Verdict {
    let data = read(bench)?;
    let object = elf(&data)?;
    let exports = object.exports().map_err(|error| Stop::seen(format!("Its exports: {error}.")))?;
    let more: Vec<String> = exports
        .filter_map(Result::ok)
        .filter_map(|export| text(export.name()))
        .filter(|name| !FUNCTIONS.contains(&name.as_str()) && name != "engine_get_extension")
        // Of the linker itself.
        .filter(|name| !matches!(name.as_str(), "_init" | "_fini" | "_edata" | "_end" | "__bss_start"))
        .collect();
    ensure!(more.is_empty(), "It exports {} more: {}.", more.len(), some(&more));
    Ok(())
}

fn unique_symbols(bench: &Bench<'_>) -> Verdict {
    let data = read(bench)?;
    let object = elf(&data)?;
    let endian = object.endian();
    let unique: Vec<String> = object
        .elf_dynamic_symbol_table()
        .enumerate()
        .filter(|(_, symbol)| symbol.st_bind() == elf::STB_GNU_UNIQUE)
        .map(|(_, symbol)| {
            let name = symbol.name(endian, object.elf_dynamic_symbol_table().strings());
            String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
        })
        .collect();
    ensure!(unique.is_empty(), "{} symbols are unique in the process: {}.", unique.len(), some(&unique));
    Ok(())
}

fn dependencies(bench: &Bench<'_>) -> Verdict {
    let data = read(bench)?;
    let object = elf(&data)?;
    let folder = bench.subject.library.parent().unwrap_or(Path::new("."));
    for (tag, text) in dynamic(&object, &data)? {
        match tag {
            elf::DT_NEEDED => {
                ensure!(!text.contains('/'), "It needs {text}, by a path.");
                ensure!(
                    !folder.join(&text).exists() || text.contains(&bench.subject.id),
                    "It needs {text}, which lies beside it under a name that another engine may use as well."
                );
            }
            elf::DT_RPATH | elf::DT_RUNPATH => {
                let absolute = text.split(':').find(|path| !path.is_empty() && !path.starts_with("$ORIGIN"));
                ensure!(absolute.is_none(), "Its search path has {}.", absolute.unwrap_or_default());
            }
            _ => {}
        }
    }
    Ok(())
}

/// The entries of the dynamic section that name something.
fn dynamic(object: &ElfFile64<'_, Endianness>, data: &[u8]) -> Result<Vec<(elf::DynamicTag, String)>, Stop> {
    let unreadable = |error: object::Error| Stop::seen(format!("Its dynamic section: {error}."));
    let endian = object.endian();
    let sections = object.elf_section_table();
    let Some((entries, link)) = sections.dynamic(endian, data).map_err(unreadable)? else {
        return Ok(Vec::new());
    };
    let strings = sections.strings(endian, data, link).map_err(unreadable)?;
    let mut found = Vec::new();
    for entry in entries {
        let tag = entry.d_tag(endian);
        if matches!(tag, elf::DT_NEEDED | elf::DT_RPATH | elf::DT_RUNPATH) {
            let text = entry.string(endian, strings).map_err(unreadable)?;
            found.push((tag, String::from_utf8_lossy(text).into_owned()));
        }
    }
    Ok(found)
}

fn stack(bench: &Bench<'_>) -> Verdict {
    let data = read(bench)?;
    let object = elf(&data)?;
    let endian = object.endian();
    let headers = object.elf_header().program_headers(endian, &*data);
    for header in headers.map_err(|error| Stop::seen(format!("Its segments: {error}.")))? {
        let executable =
            header.p_type(endian) == elf::PT_GNU_STACK && header.p_flags(endian).0 & elf::PF_X.0 != 0;
        ensure!(!executable, "It wants an executable stack.");
    }
    let sections = object.elf_section_table();
    if let Ok(Some((entries, _))) = sections.dynamic(endian, &*data) {
        let relocates = entries.iter().any(|entry| entry.d_tag(endian) == elf::DT_TEXTREL);
        ensure!(!relocates, "It has relocations in its code.");
    }
    Ok(())
}

fn imports(bench: &Bench<'_>) -> Verdict {
    let data = read(bench)?;
    let object = elf(&data)?;
    let imports = object.imports().map_err(|error| Stop::seen(format!("Its imports: {error}.")))?;
    let found: Vec<String> = imports
        .filter_map(Result::ok)
        .filter_map(|import| text(import.name()))
        .filter(|name| FORBIDDEN.contains(&name.as_str()))
        .collect();
    ensure!(found.is_empty(), "It imports {}.", found.join(", "));
    Ok(())
}

/// Windows has numbers for some.
fn text(name: NameOrOrdinal<&[u8]>) -> Option<String> {
    name.into_name().map(|name| String::from_utf8_lossy(name).into_owned())
}

fn some(names: &[String]) -> String {
    let shown = names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 4 { format!("{shown}, ...") } else { shown }
}
