//! Long runs of characters, with each way of finding words that this llama.cpp knows: they end in tokens, or in
//! a refusal, and never in the end of the process.
#![allow(clippy::unwrap_used, reason = "a failing call fails the test")]

mod support;

use llm_node_abi as abi;
use support::engine;
use support::gguf::write_pairs;

const PRE_TOKENIZERS: &[&str] = include!(concat!(env!("OUT_DIR"), "/pre_tokenizers.rs"));

/// One character, or some, over and over; and what follows.
const SHAPES: [(&str, &str); 14] = [
    ("A", ""),
    ("a", "1"),
    ("\u{4e2d}", ""),
    ("\u{301}", ""),
    ("-", "\n"),
    ("!", ""),
    (" ", "1"),
    ("\t", ""),
    ("\n", "a"),
    ("1", "a"),
    ("aB3/", ""),
    ("ab ", ""),
    ("\u{1f600}", ""),
    ("<sentinel:1", ""),
];

/// Those that some expression takes for one word.
const DEEP: [(&str, &str); 7] =
    [("A", ""), ("\u{4e2d}", ""), ("-", "\n"), (" ", "1"), ("\n", "a"), ("1", "a"), ("ab ", "")];

/// By a pre-tokenizer of llama.cpp that fails an assertion where two spaces meet.
const REFUSES_SPACES: &str = "whitespace";

/// So many characters of a shape.
fn text((piece, end): (&str, &str), characters: usize) -> String {
    piece.repeat(characters / piece.chars().count()) + end
}

fn check(pre: &str, lengths: &[usize], shapes: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pairs.gguf");
    write_pairs(&path, pre);
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    for &shape in shapes {
        for &length in lengths {
            let text = text(shape, length);
            let tokens = model.try_tokenize(text.as_bytes(), false);
            let about = format!("{pre}: {length} of {shape:?}");
            match tokens {
                // What has its spaces written otherwise comes back otherwise.
                Ok(tokens)
                    if ["gemma4", "granite-embed-multi-311m", "mmbert", "sarvam-moe"].contains(&pre) =>
                {
                    assert!(!tokens.is_empty(), "{about}");
                }
                Ok(tokens) => assert!(model.detokenize(&tokens) == text.as_bytes(), "{about}"),
                Err(code) => {
                    assert_eq!(code, abi::ERR_INVALID_ARGUMENT, "{about}");
                    let said = support::ERRORS.lock().unwrap().last().cloned().unwrap();
                    assert!(said.contains("the text cannot be tokenised: "), "{about}: {said}");
                    let is_square =
                        matches!((pre, shape), ("deepseek-llm", (" " | "\t", _)) | ("superbpe", ("1", _)));
                    let is_due = length > 200_000 || pre == REFUSES_SPACES || (is_square && length > 10_000);
                    assert!(is_due, "{about}: {said}");
                }
            }
        }
    }
}

#[test]
fn every_pre_tokenizer_takes_thousands_in_a_row_and_is_not_ended_by_a_million() {
    for pre in PRE_TOKENIZERS {
        check(pre, &[3_000], &SHAPES);
        check(pre, &[10_000, 1_000_000], &SHAPES[..1]);
    }
}

/// One for each way that is not written out by hand.
#[test]
fn as_many_in_a_row_as_are_allowed_fit_the_stack() {
    for pre in [
        "afmoe",
        "bailingmoe",
        "bloom",
        "chameleon",
        "deepseek-coder",
        "deepseek-llm",
        "deepseek-v3",
        "default",
        "exaone-moe",
        "falcon",
        "gpt-4o",
        "granite-embed-multi-97m",
        "jais-2",
        "minicpm5",
        "seed-coder",
        "spark2_5",
        "superbpe",
        "tekken",
        "tiny_aya",
        "viking",
        "whitespace",
        "youtu",
        "ufakzeka",
    ] {
        check(pre, &[199_990], &DEEP);
    }
}
