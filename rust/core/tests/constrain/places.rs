//! What is not enforced is named, with its place.

use llm_node_core::{chat::conversation::Format, error::ErrorCode};
use serde_json::{Value, json};

use crate::support::{accepts, compile, schema};

fn refused(it: &Value) -> String {
    let fault = compile(schema(it, true)).unwrap_err();
    assert_eq!(fault.code, ErrorCode::UnsupportedParameter, "{fault}");
    fault.message
}

fn relaxed(it: &Value) -> Vec<String> {
    compile(schema(it, false)).unwrap().relaxed().to_vec()
}

#[test]
fn strict_schemas_name_keyword_and_place() {
    for (keyword, place, it) in [
        ("not", "#/properties/a/items", json!({"properties": {"a": {"items": {"not": {"type": "null"}}}}})),
        ("if", "#", json!({"if": {"type": "string"}, "then": {"minLength": 2}})),
        ("uniqueItems", "#/anyOf/1", json!({"anyOf": [{"type": "null"}, {"uniqueItems": true}]})),
        ("contains", "#/$defs/x~1y", json!({"$ref": "#/$defs/x~1y", "$defs": {"x/y": {"contains": {}}}})),
        ("propertyNames", "#", json!({"propertyNames": {"maxLength": 2}})),
        ("dependentRequired", "#", json!({"dependentRequired": {"a": ["b"]}})),
        (
            "unevaluatedProperties",
            "#",
            json!({"anyOf": [{"properties": {"a": {}}}], "unevaluatedProperties": false}),
        ),
        ("$ref", "#/items", json!({"items": {"$ref": "https://example.com/schema.json"}})),
        ("$ref", "#", json!({"$ref": "#/nowhere"})),
        ("$dynamicRef", "#", json!({"$dynamicRef": "#a"})),
        ("format", "#", json!({"type": "string", "format": "iri"})),
        ("pattern", "#", json!({"type": "string", "pattern": "(?=a)b"})),
        ("pattern", "#", json!({"pattern": "a".repeat(5000)})),
        ("pattern", "#", json!({"pattern": "a\\"})),
        (
            "oneOf",
            "#/properties/b",
            json!({"properties": {
                "a": {"oneOf": [{"type": "string"}, {"type": "null"}]},
                "b": {"oneOf": [{"minimum": 2, "type": "integer"}, {"maximum": 5, "type": "integer"}]},
            }}),
        ),
        (
            "minProperties",
            "#",
            json!({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2}),
        ),
        ("enum", "#", json!({"enum": [9_007_199_254_740_993_u64]})),
        ("type", "#", json!({"type": "float"})),
        ("properties", "#", json!({"properties": []})),
        ("required", "#", json!({"required": "a"})),
    ] {
        let message = refused(&it);
        let expected = format!("\"{keyword}\" at {place} cannot be enforced");
        assert!(message.starts_with(&expected), "{message}");
    }
}

/// Nobody is told of what a schema became on its way, nor of options that a client cannot set.
#[test]
fn what_does_not_compile_is_named_with_its_place_and_in_plain_words() {
    let number = || json!({ "type": "integer", "minimum": 5, "maximum": 3 });
    let object = |inner: Value| json!({ "type": "object", "properties": { "a": inner }, "required": ["a"] });
    let overlap = || json!({ "oneOf": [{ "type": "integer" }, { "type": "integer", "minimum": 3 }] });
    for (place, words, it) in [
        ("at #: ", "no number lies between its limits", number()),
        ("at #/properties/a: ", "no number lies between its limits", object(number())),
        (
            "at #/$defs/n/items: ",
            "no number lies between its limits",
            json!({
                "allOf": [{ "type": "object", "properties": { "b": { "type": "string" } } }, object(json!({ "$ref": "#/$defs/n" }))],
                "$defs": { "n": { "type": "array", "minItems": 1, "items": number() } },
            }),
        ),
        (
            "at #/properties/a: ",
            "minLength (4) is greater than maxLength (2)",
            object(json!({ "type": "string", "minLength": 4, "maxLength": 2 })),
        ),
        (
            "at #/properties/a: ",
            "no text has the pattern and the length",
            object(json!({ "type": "string", "pattern": "^a$", "minLength": 4 })),
        ),
        (
            "at #/properties/a: ",
            "required property 'a' cannot be met",
            object(json!({ "anyOf": [object(number()), object(number())] })),
        ),
        (
            "at #/properties/a/allOf/1: ",
            "it is false",
            object(json!({ "allOf": [{ "type": "integer" }, false] })),
        ),
        (
            "at #/properties/a: ",
            "excludes each other",
            object(json!({ "allOf": [{ "type": "integer" }, { "type": "string" }] })),
        ),
        (
            "\"oneOf\" at #/properties/a/items cannot be enforced: ",
            "may hold at once; write anyOf",
            object(json!({ "type": "array", "items": overlap() })),
        ),
        ("\"oneOf\" at # cannot be enforced: ", "may hold at once", overlap()),
        (
            "\"pattern\" at #/properties/a cannot be enforced: ",
            "unclosed group",
            object(json!({ "type": "string", "pattern": "(" })),
        ),
        (
            "\"patternProperties\" at # cannot be enforced: ",
            "look-around",
            json!({ "patternProperties": { "a": {}, "(?=b)": {} } }),
        ),
        ("\"pattern\" at # cannot be enforced: ", "5000 bytes", json!({ "pattern": "a".repeat(5000) })),
    ] {
        let message = refused(&it);
        assert!(message.starts_with(place) && message.contains(words), "{it}: {message}");
        for raw in ["nsatisfiable", "coerce", "$defs/0", "Regex", "regex"] {
            assert!(!message.contains(raw), "{message}");
        }
    }
}

#[test]
fn what_is_nested_too_deeply_is_told_with_place_and_limit() {
    let within = |depth: usize, key: &str, more: Value| {
        let mut it = more;
        for _ in 0..depth {
            it = if key == "items" { json!({ "items": it }) } else { json!({ "properties": { "a": it } }) };
        }
        it
    };
    let inner = json!({ "type": "integer" });
    for depth in 1..=64 {
        let it = within(depth, "items", inner.clone());
        assert!(compile(schema(&it, true)).is_ok(), "{depth}");
    }
    for depth in 1..=56 {
        let it = within(depth, "properties", json!({ "type": "string", "format": "date" }));
        assert!(compile(schema(&it, true)).is_ok(), "{depth}");
    }
    let message = refused(&within(65, "items", inner.clone()));
    assert!(
        message.starts_with("at #/items/items/") && message.contains("more than 64 schemas"),
        "{message}"
    );
    let message = refused(&within(57, "properties", inner));
    assert!(
        message.starts_with("at #/properties/a/") && message.contains("more than 112 objects"),
        "{message}"
    );
}

#[test]
fn others_are_relaxed_and_say_where() {
    let it = json!({
        "type": "object",
        "properties": {
            "a": { "type": "string", "format": "color", "maxLength": 2 },
            "b": { "oneOf": [{ "type": "integer" }, { "type": "number" }] },
            "c": { "type": "array", "uniqueItems": true },
        },
        "required": ["a", "b", "c"],
        "additionalProperties": false,
        "not": { "required": ["d"] },
    });
    assert_eq!(
        relaxed(&it),
        ["#/properties/a/format", "#/properties/b/oneOf", "#/properties/c/uniqueItems", "#/not"]
    );
    let constraint = compile(schema(&it, false)).unwrap().constraint();
    assert!(accepts(&constraint, r#"{"a":"xy","b":1.5,"c":[1,1]}"#));
    // The rest holds.
    assert!(!accepts(&constraint, r#"{"a":"xyz","b":1.5,"c":[]}"#));
    assert!(!accepts(&constraint, r#"{"a":"xy","b":"1","c":[]}"#));
    assert!(!accepts(&constraint, r#"{"a":"xy","b":1,"c":[],"d":1}"#));
}

#[test]
fn what_cannot_be_compiled_at_all_becomes_any_object() {
    assert_eq!(relaxed(&json!(false)), ["#"]);
    assert_eq!(relaxed(&json!({ "$ref": "#" })), ["#"]);
    let constraint = compile(schema(&json!({ "$ref": "#" }), false)).unwrap().constraint();
    assert!(accepts(&constraint, r#"{"a":[]}"#));
}

/// What is left out must not make what stays forbid more.
#[test]
fn leaving_out_admits_more_and_never_less() {
    let it = json!({
        "type": "object",
        "patternProperties": { "(?=a)": { "type": "integer" } },
        "additionalProperties": false,
    });
    assert_eq!(relaxed(&it), ["#/patternProperties"]);
    let constraint = compile(schema(&it, false)).unwrap().constraint();
    assert!(accepts(&constraint, r#"{"a":1}"#));
}

#[test]
fn annotations_and_what_nobody_knows_say_nothing() {
    let it = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/a",
        "title": "A", "description": "b", "default": 1, "examples": [1], "deprecated": true, "x-order": 1,
        "x-guidance": { "lenient": true, "whitespace_pattern": "(" },
        "type": "integer", "format": "int32", "uniqueItems": false, "nullable": true,
        "then": false, "minContains": 3, "not": false, "items": null, "enum": null, "required": null,
    });
    let prototype = compile(schema(&it, true)).unwrap();
    assert!(prototype.relaxed().is_empty());
    assert!(accepts(&prototype.constraint(), "3") && !accepts(&prototype.constraint(), "\"3\""));
}

#[test]
fn strict_objects_are_closed_unless_others_add_to_them() {
    let closed = json!({ "type": "object", "properties": { "a": { "properties": { "b": {} } } } });
    let constraint = compile(schema(&closed, true)).unwrap().constraint();
    assert!(accepts(&constraint, r#"{"a":{"b":1}}"#));
    assert!(!accepts(&constraint, r#"{"a":1,"c":1}"#) && !accepts(&constraint, r#"{"a":{"c":1}}"#));
    let open = compile(schema(&closed, false)).unwrap().constraint();
    assert!(accepts(&open, r#"{"a":1,"c":1}"#));
    let both = json!({
        "allOf": [{ "$ref": "#/$defs/base" }, { "properties": { "b": { "type": "integer" } } }],
        "$defs": { "base": { "properties": { "a": { "type": "integer" } }, "required": ["a"] } },
    });
    let constraint = compile(schema(&both, true)).unwrap().constraint();
    assert!(accepts(&constraint, r#"{"a":1,"b":2}"#) && !accepts(&constraint, r#"{"b":2}"#));
}

#[test]
fn references_are_found_by_place_anchor_and_name() {
    for reference in
        ["#/$defs/a%20b/items/0", "#here", "https://example.com/root#here", "inner#/properties/x", "inner"]
    {
        let it = json!({
            "$id": "https://example.com/root",
            "type": "object",
            "properties": { "v": { "$ref": reference } },
            "required": ["v"],
            "$defs": {
                "a b": { "items": [{ "type": "integer" }] },
                "c": { "$anchor": "here", "type": "integer" },
                "d": { "$id": "inner", "type": "integer", "properties": { "x": { "type": "integer" } } },
            },
        });
        let constraint = compile(schema(&it, true)).unwrap().constraint();
        assert!(accepts(&constraint, r#"{"v":1}"#) && !accepts(&constraint, r#"{"v":"1"}"#), "{reference}");
    }
}

#[test]
fn before_2019_nothing_counts_beside_a_reference() {
    let of = |draft: &str| {
        json!({
            "$schema": draft,
            "type": "object",
            "properties": { "v": { "$ref": "#/definitions/n", "maximum": 3 } },
            "required": ["v"],
            "definitions": { "n": { "type": "integer", "minimum": 0, "exclusiveMinimum": true } },
        })
    };
    let accepts = |draft, text| accepts(&compile(schema(&of(draft), true)).unwrap().constraint(), text);
    let (old, new) =
        ("http://json-schema.org/draft-04/schema#", "https://json-schema.org/draft/2020-12/schema");
    assert!(accepts(old, r#"{"v":9}"#) && !accepts(new, r#"{"v":9}"#));
    assert!(!accepts(old, r#"{"v":0}"#) && accepts(new, r#"{"v":2}"#));
}

#[test]
fn an_exclusive_limit_that_is_whole_is_excluded() {
    for (key, limit, other, bound, inside) in [
        ("exclusiveMinimum", 0.0, "maximum", 0.5, "0.25"),
        ("exclusiveMinimum", 3.0, "exclusiveMaximum", 3.5, "3.25"),
        ("exclusiveMinimum", 100.0, "maximum", 100.01, "100.005"),
        ("exclusiveMaximum", 0.0, "minimum", -0.5, "-0.25"),
        ("exclusiveMaximum", -10.0, "minimum", -10.5, "-10.25"),
        ("exclusiveMinimum", 1024.0, "maximum", 4096.0, "1024.5"),
    ] {
        // Together and apart.
        for it in [
            json!({ "type": "number", key: limit, other: bound }),
            json!({ "allOf": [{ "type": "number", key: limit }, { "type": "number", other: bound }] }),
        ] {
            let prototype = compile(schema(&it, true)).unwrap();
            for spelled in [format!("{limit}"), format!("{limit}.0"), format!("{limit}.000"), "-0".to_owned()]
            {
                assert!(!accepts(&prototype.constraint(), &spelled), "{it}: {spelled}");
            }
            assert!(accepts(&prototype.constraint(), inside), "{it}: {inside}");
        }
        let it = json!({ "type": "integer", key: limit });
        let next = limit + if key == "exclusiveMinimum" { 1.0 } else { -1.0 };
        let prototype = compile(schema(&it, true)).unwrap();
        assert!(!accepts(&prototype.constraint(), &limit.to_string()), "{it}");
        assert!(accepts(&prototype.constraint(), &next.to_string()), "{it}");
    }
}

#[test]
fn steps_are_counted_where_they_are_few() {
    let apart = json!({ "type": "object", "required": ["a", "b"], "properties": {
        "a": { "type": "integer", "multipleOf": 7919 }, "b": { "type": "number", "multipleOf": 0.25 } } });
    let prototype = compile(schema(&apart, true)).unwrap();
    assert!(accepts(&prototype.constraint(), r#"{"a":15838,"b":0.75}"#));
    assert!(!accepts(&prototype.constraint(), r#"{"a":15838,"b":0.7}"#));
    let both = |one: f64, two: f64| json!({ "allOf": [{ "type": "number", "multipleOf": one }, { "multipleOf": two }] });
    assert!(accepts(&compile(schema(&both(0.5, 0.75), true)).unwrap().constraint(), "4.5"));
    for it in [json!({ "type": "integer", "multipleOf": 65_537 }), both(9973.0, 9967.0), both(0.001, 100.0)] {
        let fault = compile(schema(&it, true)).unwrap_err();
        assert!(fault.message.contains("\"multipleOf\" at #"), "{fault}");
        assert_eq!(compile(schema(&it, false)).unwrap().relaxed().len(), 1, "{it}");
    }
}

#[test]
fn a_limit_that_no_double_holds_exactly_is_none() {
    for limit in [1e19, -1e19, 1e300, 9_007_199_254_740_994.0] {
        for key in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
            let it = json!({ "type": "integer", key: limit });
            let fault = compile(schema(&it, true)).unwrap_err();
            assert!(fault.message.contains(&format!("\"{key}\" at #")), "{fault}");
            assert_eq!(compile(schema(&it, false)).unwrap().relaxed(), [format!("#/{key}")]);
            let fault = compile(Format::Lark(format!("start: %json {it}"))).unwrap_err();
            assert!(fault.message.contains(&format!("\"{key}\" at #")), "{fault}");
        }
    }
    assert!(compile(Format::Lark("start: \"%json {} \" %json {\"type\":\"null\"}".into())).is_ok());
}
