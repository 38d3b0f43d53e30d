//! Templates as models bring them. The expected texts were made by Python's Jinja, set up as
//! `transformers` does.

use llm_node_core::{request::Chat, text::template::ChatTemplate};

#[test]
fn chatml_with_tools_is_what_python_renders() {
    // The keys keep the order in which they stand in the file.
    let raw: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
        serde_json::from_str(include_str!("templates/chatml_tools.json")).unwrap();
    let chat = Chat {
        messages: raw["messages"].get().to_owned(),
        tools: Some(raw["tools"].get().to_owned()),
        variables: Some(raw["variables"].get().to_owned()),
    };
    let template =
        ChatTemplate::compile(include_str!("templates/chatml_tools.jinja"), "<s>", "</s>").unwrap();
    assert_eq!(template.render(&chat, 0).unwrap(), include_str!("templates/chatml_tools.txt"));
}
