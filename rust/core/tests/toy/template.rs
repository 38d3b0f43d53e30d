//! Templates as models bring them. The expected texts were made by Python's Jinja, set up as
//! `transformers` does.

use llm_node_core::{
    engine::Tokenizer,
    text::{conversation::Chat, template::ChatTemplate},
};

use crate::toy_engine::ToyTokenizer;

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
    let source = include_str!("templates/chatml_tools.jinja");
    let template = ChatTemplate::compile(source, ToyTokenizer::new().vocabulary()).unwrap();
    assert_eq!(template.render(&chat, 0).unwrap().text(), include_str!("templates/chatml_tools.txt"));
}
