//! Each form, and what is said of one that cannot be used.

use llm_node_core::{
    chat::conversation::Format,
    constrain::{MAX_BYTES, Prototypes, Tables, Wanted},
    error::ErrorCode,
};
use serde_json::json;
use std::sync::Arc;

use crate::support::{VOCABULARY, accepts, compile, schema};

fn refusal(format: &Format) -> (ErrorCode, String) {
    let fault = compile(format.clone()).unwrap_err();
    (fault.code, fault.message)
}

#[test]
fn an_object_is_any_object_and_nothing_else() {
    let object = compile(Format::Object).unwrap().constraint();
    for text in ["{}", "{\"a\":1}", "{ \"a\": [true, null, {}], \"b\": \"x\" }"] {
        assert!(accepts(&object, text), "{text}");
    }
    for text in ["[]", "1", "{", "{\"a\":}", "{} {}", ""] {
        assert!(!accepts(&object, text), "{text}");
    }
}

#[test]
fn keys_come_in_the_order_of_the_schema() {
    let wanted = json!({ "type": "object", "properties": { "z": {}, "a": {} }, "required": ["a", "z"] });
    let constraint = compile(schema(&wanted, true)).unwrap().constraint();
    assert!(accepts(&constraint, r#"{"z":1,"a":2}"#));
    assert!(!accepts(&constraint, r#"{"a":1,"z":2}"#));
}

/// A vocabulary of large models has tokens in every script.
#[test]
fn classes_of_unicode_can_be_used() {
    let mut vocabulary = VOCABULARY.clone();
    for character in ('\u{a0}'..'\u{3200}').chain('\u{ac00}'..'\u{ad00}').chain('\u{10000}'..'\u{11000}') {
        let mut bytes = [0; 4];
        vocabulary.bytes.extend(character.encode_utf8(&mut bytes).bytes());
        vocabulary.offsets.push(vocabulary.bytes.len() as u32);
        vocabulary.attributes.push(0);
    }
    let tables = Tables::new(Arc::new(vocabulary)).unwrap();
    for pattern in [r"^\p{L}+$", r"^[\p{L} '-]+$", r"^\p{Lu}\p{Ll}+( \p{Lu}\p{Ll}+)*$"] {
        let wanted = schema(&json!({ "type": "string", "pattern": pattern }), true).into();
        let mut name = tables.compile(&wanted).unwrap().constraint();
        for byte in "\"Ωμέγα\"".bytes() {
            let mask = name.mask().unwrap_or_else(|fault| panic!("{pattern}: {fault}"));
            assert!(mask.admits(byte.into()) && !mask.admits(b'2'.into()), "{pattern}");
            name.consume(byte.into()).unwrap();
        }
        assert!(name.is_accepting().unwrap(), "{pattern}");
    }
}

#[test]
fn as_many_properties_may_be_left_out_as_is_said() {
    let object = |count: usize, strict| {
        let properties = (0..count).map(|it| (format!("p{it}"), json!({ "type": "integer" })));
        let properties: serde_json::Map<_, _> = properties.collect();
        schema(&json!({ "type": "object", "properties": properties, "additionalProperties": false }), strict)
    };
    let many = compile(object(500, true)).unwrap().constraint();
    assert!(accepts(&many, "{\"p3\":1,\"p499\":2}") && accepts(&many, "{}"));
    assert!(!accepts(&many, "{\"p500\":1}") && !accepts(&many, "{\"p499\":2,\"p3\":1}"));
    assert!(refusal(&object(501, true)).1.contains("500"));
    assert_eq!(compile(object(501, false)).unwrap().relaxed(), ["#"]);
}

#[test]
fn expressions_match_from_end_to_end() {
    let regex = compile(Format::Regex("[a-c]{2,3}/x".into())).unwrap().constraint();
    assert!(accepts(&regex, "ab/x") && accepts(&regex, "abc/x"));
    assert!(accepts(&compile(Format::Regex("a\\\\".into())).unwrap().constraint(), "a\\"));
    assert!(!accepts(&regex, "a/x") && !accepts(&regex, "ab/xx") && !accepts(&regex, " ab/x"));
}

#[test]
fn grammars_are_taken_as_they_are() {
    let lark = "start: greeting \" \" NAME\ngreeting: \"hello\" | \"bye\"\nNAME: /[a-z]+/";
    let constraint = compile(Format::Lark(lark.into())).unwrap().constraint();
    assert!(accepts(&constraint, "hello you") && accepts(&constraint, "bye me"));
    assert!(!accepts(&constraint, "hello"));
    // What does not match: here, whatever has a z.
    let constraint = compile(Format::Lark("start: Z\nZ: ~/[^z]*/".into())).unwrap().constraint();
    assert!(accepts(&constraint, "az") && !accepts(&constraint, "ab"));
}

#[test]
fn what_cannot_be_read_is_refused_in_words() {
    for (form, code, part) in [
        (Format::Regex("(".into()), ErrorCode::InvalidRequest, "expression cannot be used: unclosed group"),
        (Format::Regex("(?=a)b".into()), ErrorCode::InvalidRequest, "expression cannot be used: look-around"),
        (Format::Lark("start: A\nA: /(/".into()), ErrorCode::InvalidRequest, "unclosed group"),
        (Format::Lark("start: fuel".into()), ErrorCode::InvalidRequest, "unknown name: \"fuel\""),
        (Format::Regex("ab\\".into()), ErrorCode::InvalidRequest, "ends in a backslash"),
        (Format::Regex("[^\\s\\S]".into()), ErrorCode::InvalidRequest, "nothing is admitted"),
        (Format::Lark("start: missing".into()), ErrorCode::InvalidRequest, "missing"),
        (Format::Lark(String::new()), ErrorCode::InvalidRequest, "grammar"),
        (Format::Lark("root ::= \"a\"".into()), ErrorCode::InvalidRequest, "grammar"),
        (schema(&json!(3), true), ErrorCode::InvalidRequest, "object or a boolean"),
        (schema(&json!(false), true), ErrorCode::UnsupportedParameter, "schema"),
        (schema(&json!({ "title": "a".repeat(MAX_BYTES) }), false), ErrorCode::InvalidRequest, "262144"),
    ] {
        let (is, message) = refusal(&form);
        assert_eq!(is, code, "{message}");
        assert!(message.contains(part), "{message}");
        assert!(message.len() < 600 && !message.contains('\n'), "{message}");
    }
    let fault = Tables::new(Arc::default()).unwrap_err();
    assert_eq!(fault.code, ErrorCode::UnsupportedFeature);
}

#[test]
fn prototypes_go_when_they_were_not_asked_for_longest() {
    let mut kept = Prototypes::default();
    let wanted = |index: usize| Wanted::from(Format::Regex(format!("a{index}")));
    let large = |letter: &str| Wanted::from(Format::Regex(letter.repeat(250 << 10)));
    let prototype = Arc::new(compile(wanted(0)).unwrap());
    for index in 0..64 {
        kept.put(wanted(index), Arc::clone(&prototype));
    }
    assert!(kept.get(&wanted(0)).is_some());
    kept.put(wanted(64), Arc::clone(&prototype));
    assert!(
        kept.get(&wanted(0)).is_some() && kept.get(&wanted(1)).is_none() && kept.get(&wanted(64)).is_some()
    );
    // A large one takes the place of many, and is kept itself.
    for letter in ["b", "c", "d"] {
        kept.put(large(letter), Arc::clone(&prototype));
    }
    assert!(kept.get(&large("d")).is_some() && kept.get(&wanted(2)).is_none());
}
