//! Random answers to schemas as people write them.

use llm_node_core::{
    chat::conversation::Format,
    constrain::{Constraint, Layout},
    engine::Token,
};
use serde_json::{Value, json, value::RawValue};

use crate::support::{END, VOCABULARY, compile, draw, schema, token, walk, walk_tokens};

/// What real models are asked for as well.
fn schemas() -> Vec<Value> {
    let all: Vec<Value> = serde_json::from_str(include_str!("schemas.json")).unwrap();
    all.into_iter().map(|it| it["schema"].clone()).collect()
}

#[test]
fn every_answer_that_ends_validates() {
    let mut ended = 0;
    for (index, it) in schemas().iter().enumerate() {
        let validator = jsonschema::options().should_validate_formats(true).build(it).unwrap();
        for strict in [true, false] {
            let prototype = compile(schema(it, strict)).unwrap();
            assert!(prototype.relaxed().is_empty(), "{it}");
            for seed in 0..4 {
                let Some(text) = walk(&prototype.constraint(), index as u64 * 100 + seed) else { continue };
                ended += 1;
                // A number may be too large for whoever reads it, and is one.
                let raw = serde_json::from_str::<Box<RawValue>>(&text);
                assert!(raw.is_ok(), "{text}");
                let Ok(answer) = serde_json::from_str(&text) else { continue };
                assert!(validator.is_valid(&answer), "{it}\n{text}");
            }
        }
    }
    assert!(ended > 300, "{ended} of 400 answers came to an end");
}

#[test]
fn copies_and_steps_back_do_not_show() {
    for (index, it) in schemas().iter().enumerate().step_by(5) {
        let prototype = compile(schema(it, true)).unwrap();
        let Some(text) = walk(&prototype.constraint(), index as u64) else { continue };
        let tokens: Vec<Token> = text.bytes().map(Token::from).collect();
        let mut straight = prototype.constraint();
        let mut wandering = prototype.constraint();
        for (position, &token) in tokens.iter().enumerate() {
            let ahead = &tokens[position..(position + position % 7).min(tokens.len())];
            assert_eq!(wandering.admits(ahead).unwrap(), ahead.len());
            for &token in ahead {
                wandering.consume(token).unwrap();
                wandering.mask().unwrap();
            }
            wandering.rollback(ahead.len()).unwrap();
            let mask = straight.mask().unwrap();
            assert_eq!(wandering.mask().unwrap(), mask);
            assert!(mask.admits(token));
            if position % 9 == 0 {
                wandering = wandering.clone();
            }
            straight.consume(token).unwrap();
            wandering.consume(token).unwrap();
        }
        assert!(wandering.is_accepting().unwrap() && wandering.mask().unwrap().admits(END));
    }
}

/// Drafts that turn out wrong: what was admitted behind them does not show where the answer goes on otherwise.
#[test]
fn drafts_that_are_wrong_do_not_show() {
    let mut looked_at = 0;
    for (index, it) in schemas().iter().enumerate() {
        let prototype = compile(schema(it, true)).unwrap();
        let Some(tokens) = walk_tokens(&prototype.constraint(), index as u64) else { continue };
        let (mut straight, mut wandering) = (prototype.constraint(), prototype.constraint());
        let (mut position, mut layout) = (0, Layout::default());
        while position < tokens.len() {
            // As far as the answer goes, what is foreseen; behind it anything that is admitted.
            let right = &tokens[position..(position + position % 5).min(tokens.len())];
            let foreseen = wandering.foreseen(&layout).into_iter().map(Token::from);
            let mut draft: Vec<Token> = if position % 3 == 0 { foreseen.collect() } else { right.to_vec() };
            let mut ahead = wandering.clone();
            draft.truncate(ahead.admits(&draft).unwrap());
            for &token in &draft {
                ahead.consume(token).unwrap();
            }
            for number in 0..8 {
                let token = draw(&ahead.mask().unwrap(), position as u64, number);
                if token == END {
                    break;
                }
                draft.push(token);
                ahead.consume(token).unwrap();
            }
            assert_eq!(wandering.admits(&draft).unwrap(), draft.len());
            let mut masks = vec![wandering.mask().unwrap()];
            for &token in &draft {
                wandering.consume(token).unwrap();
                masks.push(wandering.mask().unwrap());
            }
            wandering.rollback(draft.len()).unwrap();
            for (number, mask) in masks.into_iter().enumerate() {
                assert_eq!(mask, straight.mask().unwrap(), "{it} {position} {number}");
                looked_at += 1;
                let Some(&token) = tokens.get(position) else { break };
                straight.consume(token).unwrap();
                wandering.consume(token).unwrap();
                layout.read(VOCABULARY.token_bytes(token));
                position += 1;
                if draft.get(number) != Some(&token) {
                    break;
                }
            }
        }
        assert_eq!(wandering.mask().unwrap(), straight.mask().unwrap());
    }
    assert!(looked_at > 1000, "{looked_at}");
}

/// A mask is that of the place where it is asked for, though a draft has been at one that looks the same: within a
/// string, with as many parts before it.
#[test]
fn a_mask_behind_a_step_back_is_no_other_s() {
    let property = json!({ "type": "string" });
    let it = json!({ "type": "object", "properties": { "a": property, "b": property }, "additionalProperties": false });
    let mut constraint = compile(schema(&it, false)).unwrap().constraint();
    let begin = |text: &str| text.bytes().map(Token::from).collect::<Vec<_>>();
    let mask_behind = |constraint: &mut Constraint, text: &str| {
        let tokens = begin(text);
        for &token in &tokens {
            constraint.consume(token).unwrap();
        }
        let mask = constraint.mask().unwrap();
        constraint.rollback(tokens.len()).unwrap();
        mask
    };
    let goes_on = token("\", \"");
    assert!(mask_behind(&mut constraint, "{\"a\":\"").admits(goes_on));
    assert!(!mask_behind(&mut constraint, "{\"b\":\"").admits(goes_on), "b is the last one");
}

/// Answers of JSON in one layout: what is foreseen of them is what comes, and next to all that is no value.
#[test]
fn what_a_layout_and_a_schema_tell_is_foreseen() {
    let it = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "place": {
                "type": "object",
                "properties": { "zip": { "type": "integer" }, "open": { "type": "boolean" } },
                "required": ["zip", "open"],
                "additionalProperties": false,
            },
            "kind": { "enum": ["private", "professional"] },
            "tags": { "type": "array", "items": { "type": "string" }, "minItems": 1, "maxItems": 1 },
        },
        "required": ["name", "place", "kind", "tags"],
        "additionalProperties": false,
    });
    let prototype = compile(schema(&it, true)).unwrap();
    let foreseen = |begun: &str| {
        let (mut constraint, mut layout) = (prototype.constraint(), Layout::default());
        for byte in begun.bytes() {
            constraint.consume(Token::from(byte)).unwrap();
            layout.read(&[byte]);
        }
        String::from_utf8(constraint.foreseen(&layout)).unwrap()
    };
    let lines = "{\n  \"name\": \"Ada\",\n  \"place\": {\n    \"zip\": 5,\n    \"open\": true\n  },\n  \"kind\": \"private\",\n  \"tags\": [\"x\"]\n}";
    let line = "{\"name\": \"Ada\", \"place\": {\"zip\": 5, \"open\": true}, \"kind\": \"private\", \"tags\": [\"x\"]}";
    for (whole, told) in [
        (
            lines,
            [
                "ame\": \"",
                ",\n  \"place\": {\n    \"zip\": ",
                "  \"open\":",
                "\n  },\n  \"kind\": \"pr",
                "vate\",\n  \"tags\": [",
                "]\n}",
            ],
        ),
        (
            line,
            [
                "ame\": \"",
                ", \"place\": {\"zip\": ",
                " \"open\":",
                "}, \"kind\": \"pr",
                "vate\", \"tags\": [",
                "]}",
            ],
        ),
    ] {
        for told in told {
            let at = whole.find(told).expect(told);
            assert_eq!(foreseen(&whole[..at]), told, "behind {}", &whole[..at]);
        }
    }
}

#[test]
fn white_space_has_an_end() {
    let prototype = compile(Format::Object).unwrap();
    let follow = |begun: &str, byte: u8| {
        let mut constraint = prototype.constraint();
        begun.bytes().for_each(|it| constraint.consume(Token::from(it)).unwrap());
        (0..99)
            .take_while(|_| {
                let admits = constraint.mask().unwrap().admits(Token::from(byte));
                admits && constraint.consume(Token::from(byte)).is_ok()
            })
            .count()
    };
    assert_eq!([follow("{", b' '), follow("{", b'\t'), follow("{", b'\n')], [1, 0, 2]);
    assert_eq!([follow("{\n", b' '), follow("{\n", b'\t'), follow("{ ", b'\n')], [20, 20, 0]);
}

#[test]
fn control_and_unused_tokens_are_never_text() {
    let mut constraint = compile(Format::Regex("(?s:.*)".into())).unwrap().constraint();
    let mask = constraint.mask().unwrap();
    assert!(mask.admits(Token::from(b'<')) && mask.admits(END));
    assert!((END + 1..VOCABULARY.len() as Token).all(|it| !mask.admits(it)));
    let named = Format::Lark("start: <|tool|> /[ab]/".into());
    let mut constraint = compile(named).unwrap().constraint();
    let mask = constraint.mask().unwrap();
    assert!(mask.count() == 1 && mask.admits(END + 1));
}
