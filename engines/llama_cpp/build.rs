//! Compiles the C++ shim against the llama.cpp that `llama-cpp-sys-2` has built, and generates the
//! lists of architectures and pre-tokenizers from that llama.cpp's own tables, so that they never drift.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/shim.cpp");
    println!("cargo:rerun-if-changed=src/shim.h");

    let installed = installed();
    let source = source_of_llama_cpp(&installed);

    let mut shim = cc::Build::new();
    if variable("CARGO_CFG_TARGET_OS") == "linux" {
        shim.define("SHIM_OPENMP", None);
    }
    shim.cpp(true)
        .std("c++17")
        .warnings(true)
        .extra_warnings(true)
        .include(installed.join("include"))
        .flag_if_supported("-fvisibility=hidden")
        // llama-ext.h is a staging header and is not installed.
        .include(source.join("src"))
        // Nor is ggml-backend-impl.h, by which a backend from elsewhere fits in.
        .include(source.join("ggml").join("src"))
        .include("src")
        .file("src/shim.cpp")
        .compile("llama_engine_shim");

    let names = architectures(&source.join("src").join("llama-arch.cpp"));
    let out = PathBuf::from(variable("OUT_DIR")).join("architectures.rs");
    // The engine includes this file, and the manifest is made from it.
    write(&out, &format!("&{names:#?}\n"));

    // For the tests, which try each of them.
    let names = pre_tokenizers(&source.join("src").join("llama-vocab.cpp"));
    let out = PathBuf::from(variable("OUT_DIR")).join("pre_tokenizers.rs");
    write(&out, &format!("&{names:#?}\n"));

    // For the tests: the processor's libraries before they are installed beside the engine.
    println!("cargo:rustc-env=LLAMA_ENGINE_BACKENDS={}", installed.join("backends").display());

    // The libraries of llama.cpp lie beside the engine.
    match variable("CARGO_CFG_TARGET_OS").as_str() {
        "macos" => println!("cargo:rustc-link-arg-cdylib=-Wl,-rpath,@loader_path"),
        "windows" => {}
        _ => println!("cargo:rustc-link-arg-cdylib=-Wl,-rpath,$ORIGIN"),
    }
}

/// Where CMake installed llama.cpp: the parent of the folder of backends, which the sys crate tells.
fn installed() -> PathBuf {
    let backends = PathBuf::from(variable("DEP_LLAMA_BACKENDS_DIR"));
    backends.parent().map_or_else(|| stop("DEP_LLAMA_BACKENDS_DIR has no parent"), Path::to_path_buf)
}

/// The sources that CMake built from, as its cache records them.
fn source_of_llama_cpp(installed: &Path) -> PathBuf {
    let cache = read(&installed.join("build").join("CMakeCache.txt"));
    cache
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))
        .map_or_else(|| stop("CMakeCache.txt names no source directory"), PathBuf::from)
}

/// The names in `LLM_ARCH_NAMES`, sorted, without those that are no models of text.
fn architectures(table: &Path) -> Vec<String> {
    println!("cargo:rerun-if-changed={}", table.display());
    let text = read(table);
    let mut names: Vec<String> = text
        .lines()
        .skip_while(|line| !line.contains("LLM_ARCH_NAMES"))
        .skip(1)
        .take_while(|line| !line.starts_with("};"))
        .filter_map(|line| line.split('"').nth(1))
        .filter(|name| *name != "clip" && !name.starts_with('('))
        .map(str::to_owned)
        .collect();
    names.sort();
    if names.len() < 50 || !names.iter().any(|name| name == "llama") {
        stop("LLM_ARCH_NAMES was not understood: has its form changed?");
    }
    names
}

/// The names that `tokenizer.ggml.pre` may have, sorted.
fn pre_tokenizers(vocabulary: &Path) -> Vec<String> {
    println!("cargo:rerun-if-changed={}", vocabulary.display());
    let text = read(vocabulary);
    let mut names: Vec<String> = text
        .split("tokenizer_pre == \"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    if names.len() < 50 || !names.iter().any(|name| name == "llama-bpe") {
        stop("the names of pre-tokenizers were not understood: has their form changed?");
    }
    names
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| stop(&format!("{name} is not set")))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| stop(&format!("{}: {error}", path.display())))
}

fn write(path: &Path, text: &str) {
    if let Err(error) = fs::write(path, text) {
        stop(&format!("{}: {error}", path.display()));
    }
}

fn stop(message: &str) -> ! {
    println!("cargo:warning={message}");
    std::process::exit(1)
}
