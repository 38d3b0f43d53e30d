//! The 70 chat templates that llama.cpp tests with: what is found out about each is a snapshot, and every
//! syntax that is used has read back the calls that its template renders.
//!
//! They are fetched, not kept here; without a package index the test says so and looks at nothing.
//! `UPDATE_SNAPSHOT=1` writes the snapshot anew.

use std::{fmt::Write, path::Path, process::Command};

use llm_node_core::{
    chat::model::{ModelChat, SyntaxChoice},
    engine::{Vocabulary, attribute},
    text::template::ChatTemplate,
};

/// Templates whose calls must be found, at least.
const LEAST: usize = 59;

/// Tokens that end the answers of these models.
const ENDS: [&str; 8] = [
    "<EOS>",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|calls|>",
    "<SPECIAL_12>",
    "<｜hy_eos:opensource｜>",
];

/// A vocabulary with those texts as tokens.
fn vocabulary() -> Vocabulary {
    let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
    for text in ENDS {
        vocabulary.bytes.extend(text.as_bytes());
        vocabulary.offsets.push(vocabulary.bytes.len() as u32);
        vocabulary.attributes.push(attribute::CONTROL | attribute::END_OF_GENERATION);
    }
    vocabulary.eos = Some(0);
    vocabulary
}

#[test]
fn what_is_derived_from_real_templates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join(".cache/templates");
    if !folder.exists() {
        let fetched = Command::new("python3").arg(root.join("tools/fetch_templates.py")).output().unwrap();
        if !fetched.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&fetched.stderr));
            return;
        }
    }
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    let vocabulary = vocabulary();
    let (mut snapshot, mut found) = (String::new(), 0);
    for file in &files {
        let source = std::fs::read_to_string(file).unwrap();
        let name = file.file_stem().unwrap().to_string_lossy();
        let template = ChatTemplate::compile(&source, &vocabulary).unwrap();
        let chat = ModelChat::of(template, &vocabulary, &SyntaxChoice::Found);
        found += usize::from(chat.calls().is_ok());
        writeln!(snapshot, "{name}\n{chat}").unwrap();
    }
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates.txt");
    if std::env::var_os("UPDATE_SNAPSHOT").is_some() {
        std::fs::write(&place, &snapshot).unwrap();
    }
    let kept = std::fs::read_to_string(&place).unwrap_or_default();
    for (now, before) in snapshot.lines().zip(kept.lines()) {
        assert_eq!(now, before);
    }
    assert_eq!(snapshot.lines().count(), kept.lines().count());
    assert_eq!(files.len(), 70);
    assert!(found >= LEAST, "{found} of {} templates", files.len());
}
