//! The templates, a vocabulary for them, and the parts of conversations.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use llm_node_core::{
    chat::conversation::{Call, Conversation, Input, Json, Message, Part, Tool, ToolInput},
    engine::{Vocabulary, attribute},
};

/// Tokens that end the answers of these models. The first is the one that templates are told.
pub(super) const ENDS: [&str; 10] = [
    "<EOS>",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|calls|>",
    "<SPECIAL_12>",
    "<｜hy_eos:opensource｜>",
    "<|end_of_msg|>",
    "<|eot|>",
];

/// The templates by name; none where they cannot be had.
pub(super) static TEMPLATES: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let folder = root().join(".cache/templates");
    if !folder.exists() {
        let fetched = Command::new("python3").arg(root().join("tools/fetch_templates.py")).output().unwrap();
        if !fetched.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&fetched.stderr));
            return Vec::new();
        }
    }
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 70);
    let read = |file: &PathBuf| {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(file).unwrap())
    };
    files.iter().map(read).collect()
});

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A vocabulary with the tokens that end answers, and those.
pub(super) fn vocabulary(control: &[String]) -> Vocabulary {
    let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
    let mut put = |text: &str, attributes| {
        vocabulary.bytes.extend(text.as_bytes());
        vocabulary.offsets.push(vocabulary.bytes.len() as u32);
        vocabulary.attributes.push(attributes);
    };
    for text in ENDS {
        put(text, attribute::CONTROL | attribute::END_OF_GENERATION);
    }
    for text in control.iter().filter(|it| !ENDS.contains(&it.as_str())) {
        put(text, attribute::CONTROL);
    }
    vocabulary.eos = Some(0);
    vocabulary
}

pub(super) fn system(text: &str) -> Message {
    Message::System { text: text.to_owned() }
}

pub(super) fn user(text: &str) -> Message {
    Message::User { parts: vec![Part::Text(text.to_owned())], name: None }
}

pub(super) fn assistant(reasoning: &str, text: &str, calls: Vec<Call>) -> Message {
    Message::Assistant { reasoning: reasoning.to_owned(), text: text.to_owned(), calls }
}

pub(super) fn call(id: &str, name: &str, input: &str) -> Call {
    Call { id: id.to_owned(), name: name.to_owned(), input: Input::Object(Json::new(input).unwrap()) }
}

pub(super) fn result(of: &Call, text: &str) -> Message {
    let parts = vec![Part::Text(text.to_owned())];
    Message::Result { call: of.id.clone(), name: of.name.clone(), parts, failed: false }
}

pub(super) fn tool(name: &str, description: &str, schema: &str) -> Tool {
    Tool {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        input: ToolInput::Object(Json::new(schema).unwrap()),
        strict: false,
    }
}

pub(super) fn of(messages: Vec<Message>, tools: &[Tool]) -> Conversation {
    Conversation { messages, tools: tools.to_vec(), ..Conversation::default() }
}
