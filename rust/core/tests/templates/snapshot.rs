//! What is found out about each template is a snapshot. `UPDATE_SNAPSHOT=1` writes it anew.

use std::{fmt::Write, path::Path};

use llm_node_core::{
    chat::model::{ModelChat, SyntaxChoice},
    text::template::ChatTemplate,
};

use super::support::{TEMPLATES, vocabulary};

#[test]
fn what_is_found_out_about_real_templates() {
    let vocabulary = vocabulary(&[]);
    let mut snapshot = String::new();
    for (name, source) in &*TEMPLATES {
        let template = ChatTemplate::compile(source, &vocabulary).unwrap();
        let chat = ModelChat::of(template, &vocabulary, &SyntaxChoice::Found);
        writeln!(snapshot, "{name}\n{chat}").unwrap();
    }
    if TEMPLATES.is_empty() {
        return;
    }
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates/snapshot.txt");
    if std::env::var_os("UPDATE_SNAPSHOT").is_some() {
        std::fs::write(&place, &snapshot).unwrap();
    }
    let kept = std::fs::read_to_string(&place).unwrap_or_default();
    for (now, before) in snapshot.lines().zip(kept.lines()) {
        assert_eq!(now, before);
    }
    assert_eq!(snapshot.lines().count(), kept.lines().count());
}
