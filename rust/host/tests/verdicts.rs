//! Engines that do not get as far as running: each gives its own typed error, in this very process.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;

use llm_node_abi::Code;
use llm_node_core::error::{ErrorCode, Fault};
use llm_node_host::{AbiSource, LoadErrorKind, OpenedEngine};
use support::*;

fn verdict(path: &Path) -> LoadErrorKind {
    let error = open(path).unwrap_err();
    assert_eq!(error.path, path);
    error.kind
}

fn fake_verdict(name: &str, switches: &[&str]) -> LoadErrorKind {
    verdict(&fake(name, switches))
}

#[test]
fn a_file_that_is_no_library() {
    let folder = scratch("no_library");
    assert_eq!(verdict(&folder.join("absent.so")), LoadErrorKind::BinaryNotFound);
    assert_eq!(verdict(&folder.join("absent/absent.so")), LoadErrorKind::BinaryNotFound);
    assert!(matches!(verdict(&folder), LoadErrorKind::NotALibrary { .. }));
    for (name, content) in [
        ("empty", &b""[..]),
        ("script", b"#!/bin/sh\nexit 0\n"),
        ("magic", b"\x7fELF"),
        ("noise", &[0x5a; 5000]),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        assert!(matches!(verdict(&path), LoadErrorKind::NotALibrary { .. }), "{name}");
    }
}

/// A part of a library is never mapped: touching what is cut off would be a bus error.
#[test]
fn a_library_that_is_cut_off() {
    let whole = std::fs::read(fake("cut_off", &[])).unwrap();
    let path = scratch("cut_off").join("part.so");
    for length in (1..whole.len()).step_by(whole.len() / 40) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let kind = verdict(&path);
        assert!(matches!(kind, LoadErrorKind::NotALibrary { .. }), "{length} of {}: {kind:?}", whole.len());
    }
}

#[cfg(all(target_os = "linux", target_endian = "little"))]
#[test]
fn a_library_for_another_machine() {
    let mut bytes = std::fs::read(fake("machine", &[])).unwrap();
    let other: u16 = if cfg!(target_arch = "aarch64") { 62 } else { 183 };
    bytes[18..20].copy_from_slice(&other.to_le_bytes());
    let path = scratch("machine").join("foreign.so");
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(verdict(&path), LoadErrorKind::WrongArch { .. }));
}

#[test]
fn an_object_file() {
    let folder = scratch("object");
    let (source, object) = (folder.join("object.c"), folder.join("object.o"));
    std::fs::write(&source, "int nothing;\n").unwrap();
    let status =
        std::process::Command::new("cc").arg("-c").arg("-o").args([&object, &source]).status().unwrap();
    assert!(status.success());
    assert!(matches!(verdict(&object), LoadErrorKind::NotALibrary { .. }));
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_needs_what_is_not_there() {
    let folder = scratch("unresolved");
    let (source, library) = (folder.join("unresolved.c"), folder.join("unresolved.so"));
    std::fs::write(
        &source,
        "int nowhere_to_be_found(void);\nint call(void) { return nowhere_to_be_found(); }\n",
    )
    .unwrap();
    compile(&source, &library, &[]);
    match verdict(&library) {
        LoadErrorKind::LoadFailed { dlerror } => {
            assert!(dlerror.contains("nowhere_to_be_found"), "{dlerror}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_symbol() {
    assert_eq!(
        fake_verdict("symbol", &["MISSING_SYMBOL"]),
        LoadErrorKind::MissingSymbol { name: "engine_generate" }
    );
}

/// The message is one that clients know, and nothing but `engine_get_info` is called.
#[test]
fn another_abi_version() {
    let (observer, heard) = recorder();
    let path = fake("abi", &["ABI_VERSION=2", "ENGINE_ID=\"other\"", "GARBAGE_ID"]);
    let error = OpenedEngine::open(&path, "fake", "1.0.0", observer).unwrap_err();
    assert_eq!(error.kind, LoadErrorKind::AbiMismatch { expected: 1, got: 2, found_in: AbiSource::Binary });
    assert_eq!(error.kind.to_string(), "ABI version mismatch: expected 1, got 2");
    assert_eq!(*heard.lock().unwrap(), ["dlopen", "engine_get_info"]);
    assert_eq!(Fault::from(error).code, ErrorCode::AbiMismatch);
}

#[test]
fn an_identity_that_differs() {
    assert_eq!(
        fake_verdict("id", &["ENGINE_ID=\"other\""]),
        LoadErrorKind::IdMismatch { expected: "fake".to_owned(), got: "other".to_owned() }
    );
    assert_eq!(
        fake_verdict("version", &["ENGINE_VERSION=\"1.0.1\""]),
        LoadErrorKind::VersionMismatch { expected: "1.0.0".to_owned(), got: "1.0.1".to_owned() }
    );
}

#[test]
fn an_info_that_is_not_there() {
    assert_eq!(fake_verdict("null_info", &["NULL_INFO"]), LoadErrorKind::NullInfo);
    for (switch, field, problem) in [
        ("NULL_ID", "engine_id", "is NULL"),
        ("UNTERMINATED_ID", "engine_id", "is longer than 4096 bytes"),
        ("VERSION_NOT_UTF8", "version", "is not UTF-8"),
    ] {
        assert_eq!(
            fake_verdict(switch, &[switch]),
            LoadErrorKind::InfoUnreadable { field, problem: problem.to_owned() }
        );
    }
}

/// On Linux a pointer into nothing is a report. Elsewhere it would end this process.
#[cfg(target_os = "linux")]
#[test]
fn pointers_into_nothing() {
    let problem = || "points to unreadable memory".to_owned();
    for (switch, field) in [("GARBAGE_INFO", "the result"), ("GARBAGE_ID", "engine_id")] {
        assert_eq!(
            fake_verdict(switch, &[switch]),
            LoadErrorKind::InfoUnreadable { field, problem: problem() }
        );
    }
    assert_eq!(
        fake_verdict("garbage_table", &["GARBAGE_TABLE"]),
        LoadErrorKind::ExtensionBroken { id: "engine.models/1", problem: format!("the table {}", problem()) }
    );
}

#[test]
fn tables_that_cannot_be() {
    for size in ["0", "0xFFFFFFFF", "4097"] {
        match fake_verdict(&format!("table_{size}"), &[&format!("TABLE_SIZE={size}")]) {
            LoadErrorKind::ExtensionBroken { id: "engine.models/1", problem } => {
                assert!(problem.contains("struct_size"), "{problem}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        fake_verdict("null_slot", &["NULL_SLOT"]),
        LoadErrorKind::ExtensionBroken { id: "engine.batch/1", problem: "step is NULL".to_owned() }
    );
}

#[test]
fn an_engine_that_does_not_start() {
    let refused = |name: &str, code: i32| {
        let engine = open(&fake(name, &[&format!("INIT_CODE={code}")])).unwrap();
        engine.init(&config()).unwrap_err()
    };
    let error = refused("unknown_code", 4711);
    assert_eq!(
        error.kind,
        LoadErrorKind::InitFailed { code: Code(4711), message: Some("the toy would not start".to_owned()) }
    );
    assert_eq!(error.kind.to_string(), "engine_init failed with unknown code 4711: the toy would not start");
    assert_eq!(Fault::from(error).code, ErrorCode::LoadFailed);
    assert_eq!(Fault::from(refused("init_oom", 1)).code, ErrorCode::OomVram);
}

/// An engine that failed to start is not running: the next attempt asks it again.
#[test]
fn a_failed_start_can_be_tried_again() {
    let path = fake("again", &["INIT_CODE=4711"]);
    for _ in 0..2 {
        let error = open(&path).unwrap().init(&config()).unwrap_err();
        assert!(matches!(error.kind, LoadErrorKind::InitFailed { .. }), "{error:?}");
    }
}

#[test]
fn a_library_runs_once_at_a_time() {
    let path = fake("once", &[]);
    let first = open(&path).unwrap().init(&config()).unwrap();
    let second = open(&path).unwrap();
    assert_eq!(second.init(&config()).unwrap_err().kind, LoadErrorKind::AlreadyRunning);
    drop(first);
    open(&path).unwrap().init(&config()).unwrap();
}

#[test]
fn settings_with_a_zero_byte() {
    let engine = open(&fake("zero", &[])).unwrap();
    let mut config = config();
    config.options = vec![("key".to_owned(), "a\0b".to_owned())];
    assert_eq!(engine.init(&config).unwrap_err().kind, LoadErrorKind::UnusableSetting { what: "an option" });
}
