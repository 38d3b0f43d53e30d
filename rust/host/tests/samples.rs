//! The two engines of engines/sample_c, built as the documentation says.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use llm_node_host::{Finish, InitConfig, OpenedEngine, unobserved};
use support::*;

/// `cc -shared -fPIC -o libmy_engine.so my_engine.c` with the header's folder, and nothing more.
#[test]
fn the_smallest_engine() {
    let library = scratch("my_engine").join("libmy_engine.so");
    compile(&root().join("engines/sample_c/my_engine.c"), &library, &[]);
    let opened = OpenedEngine::open(&library, "my_engine", "1.0.0", unobserved()).unwrap();
    assert!(opened.extensions().is_empty());
    let mut engine = opened.init(&InitConfig::default()).unwrap();
    engine.tier0_load(&library).unwrap();
    let answer = engine.tier0_generate("Hello").unwrap();
    assert_eq!((answer.tokens.len(), answer.finish), (0, Finish::Stop));
}

#[test]
fn the_smallest_engine_that_answers() {
    let folder = scratch("sample_markov");
    let library = folder.join("libsample_markov.so");
    compile(&root().join("engines/sample_c/sample_markov.c"), &library, &["-Wall", "-Wextra", "-Werror"]);
    let opened = OpenedEngine::open(&library, "sample_markov", "1.0.0", unobserved()).unwrap();
    let mut engine = opened.init(&InitConfig { max_tokens: 20, ..InitConfig::default() }).unwrap();

    let text = folder.join("text.txt");
    std::fs::write(&text, "the cat sat on the mat and the dog sat on\n the  log.\tThe end came late")
        .unwrap();
    engine.tier0_load(&text).unwrap();
    let say = |engine: &mut llm_node_host::LoadedEngine, prompt: &str| {
        let answer = engine.tier0_generate(prompt).unwrap();
        let text: Vec<u8> = answer.tokens.iter().flat_map(|token| token.text.clone()).collect();
        (String::from_utf8(text).unwrap(), answer.tokens.len(), answer.finish)
    };
    let (answer, count, _) = say(&mut engine, "where the cat");
    assert!(answer.starts_with(" sat on the "), "{answer}");
    assert!((8..=20).contains(&count));
    assert_eq!(say(&mut engine, "where the cat").0, answer);
    assert!(!say(&mut engine, "").0.is_empty());
    assert!(!say(&mut engine, "no such word").0.is_empty());

    for (name, content) in [("empty.txt", ""), ("one.txt", "word"), ("blank.txt", " \n ")] {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        let error = engine.tier0_load(&path).unwrap_err();
        assert!(error.to_string().contains("ERR_MODEL_CORRUPT: the"), "{name}: {error}");
    }
    assert!(engine.tier0_load(&folder.join("absent.txt")).unwrap_err().to_string().contains("ERR_NOT_FOUND"));
}
