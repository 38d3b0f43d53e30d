//! Hands to maturin what authors of engines need, which puts it into the wheel beside the Python package:
//! the contract in C, and the crates for engines written in Rust.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

fn main() -> io::Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    fs::copy("../abi/include/engine_api.h", out.join("engine_api.h"))?;
    let crates = out.join("rust");
    if crates.exists() {
        fs::remove_dir_all(&crates)?;
    }
    for name in ["abi", "sdk"] {
        println!("cargo::rerun-if-changed=../{name}");
        let (from, to) = (Path::new("..").join(name), crates.join(name));
        for part in ["src", "include"] {
            copy(&from.join(part), &to.join(part))?;
        }
        fs::copy(from.join("Cargo.toml"), to.join("Cargo.toml"))?;
    }
    println!("cargo::rerun-if-changed=../../Cargo.toml");
    fs::write(crates.join("Cargo.toml"), workspace(&fs::read_to_string("../../Cargo.toml")?))
}

/// Copies a folder, if there is one.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(&from, to)?;
        }
    }
    Ok(())
}

/// What the two crates inherit from the project's workspace, as a workspace of their own.
fn workspace(ours: &str) -> String {
    let mut section = "";
    let inherited = ours.lines().filter(|line| {
        if line.starts_with('[') {
            section = line;
        }
        section == "[workspace.package]" || section.starts_with("[workspace.lints")
    });
    let inherited: Vec<&str> = inherited.collect();
    format!(
        "[workspace]\nresolver = \"3\"\nmembers = [\"abi\", \"sdk\"]\n\n\
         [workspace.dependencies]\nllm-node-abi = {{ path = \"abi\" }}\n\n{}\n",
        inherited.join("\n")
    )
}
