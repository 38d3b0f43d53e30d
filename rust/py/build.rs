//! Hands the contract to maturin, which puts it into the wheel beside the Python package.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let header = "../abi/include/engine_api.h";
    println!("cargo::rerun-if-changed={header}");
    let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    fs::copy(header, PathBuf::from(out).join("engine_api.h"))?;
    Ok(())
}
