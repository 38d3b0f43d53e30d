//! Schemas and grammars that are sent to do harm.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use llm_node_core::chat::conversation::{Format, Json};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{compile, schema, walk};

/// Far below the deadline of the worker, and this is a build without optimisation on a busy machine.
const LONGEST: Duration = Duration::from_secs(6);

fn nested(depth: usize, open: &str, close: &str) -> String {
    open.repeat(depth) + "{}" + &close.repeat(depth)
}

fn hostile() -> Vec<(&'static str, Format)> {
    let text = |schema: String| Format::Schema { schema: Json::new(schema).unwrap(), strict: false };
    let value = |it: Value| schema(&it, false);
    let many = |n: usize, it: &dyn Fn(usize) -> Value| (0..n).map(it).collect::<Vec<_>>();
    let properties = |n: usize| -> Value {
        json!({ "type": "object", "properties": (0..n).map(|it| (format!("p{it}"), json!({}))).collect::<serde_json::Map<_, _>>() })
    };
    let mut chain = serde_json::Map::new();
    for index in 0..5000 {
        chain.insert(format!("d{index}"), json!({ "items": { "$ref": format!("#/$defs/d{}", index + 1) } }));
    }
    let mut rules = String::from("start: r0\n");
    for index in 0..2000 {
        let _ = writeln!(rules, "r{index}: r{} | \"a\" r{}", (index * 7 + 1) % 2000, (index * 13 + 5) % 2000);
    }
    vec![
        ("deep", text(nested(100, "{\"items\":", "}"))),
        ("as deep as can be read", text(nested(120, "{\"not\":", "}"))),
        ("many optional properties", value(properties(5000))),
        ("as many as may be", value(properties(500))),
        ("many values", value(json!({ "enum": many(12_000, &|it| json!(it)) }))),
        (
            "as many values as may be",
            value(json!({ "enum": many(9000, &|it| json!(format!("value {it}"))) })),
        ),
        (
            "alternatives of alternatives",
            value(json!({ "allOf": [
            { "anyOf": many(100, &|it| json!({ "properties": { format!("a{it}"): {} } })) },
            { "anyOf": many(100, &|it| json!({ "properties": { format!("b{it}"): {} } })) },
        ] })),
        ),
        (
            "a pattern of patterns",
            value(json!({ "type": "string", "pattern": "((a{1,200}b{1,200}){1,200}c){1,200}" })),
        ),
        (
            "a pattern with many ways",
            value(json!({ "type": "string", "pattern": "(.*a.*b.*c.*d.*e.*f.*g.*){5,9}" })),
        ),
        ("an expression with many ways", Format::Regex("(.*a.*b.*c.*d.*e.*f.*g.*){5,9}".into())),
        (
            "long strings",
            value(json!({ "type": "string", "minLength": 900_000_000, "maxLength": 999_999_999 })),
        ),
        (
            "long arrays",
            value(
                json!({ "type": "array", "minItems": 900_000_000, "items": { "type": "string", "minLength": 100_000 } }),
            ),
        ),
        ("a chain of references", value(json!({ "$ref": "#/$defs/d0", "$defs": chain }))),
        (
            "references to each other",
            value(
                json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
            ),
        ),
        (
            "a reference that never ends",
            value(json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] })),
        ),
        ("all of itself", value(json!({ "allOf": [{ "$ref": "#" }, { "type": "object" }] }))),
        ("any of itself", value(json!({ "anyOf": [{ "$ref": "#" }, { "$ref": "#" }] }))),
        (
            "odd references",
            value(json!({ "anyOf": [
            { "$ref": "" }, { "$ref": "#/%" }, { "$ref": "#/%ff" }, { "$ref": "#/~2" }, { "$ref": "#\u{0}" }, { "$ref": "//" },
            { "$ref": "urn:x" }, { "$ref": "#/$ref" }, { "$ref": ":" }, { "$ref": "\u{fffd}#" }, { "$ref": 3 },
        ] })),
        ),
        ("a lenient schema", value(json!({ "x-guidance": { "lenient": true }, "not": {} }))),
        (
            "numbers",
            value(json!({ "type": "number", "minimum": -1e308, "maximum": 1e308, "multipleOf": 1e-300 })),
        ),
        ("limits of no size", value(json!({ "type": "integer", "minimum": -1e25, "maximum": -1e24 }))),
        (
            "limits of no size in a grammar",
            Format::Lark("start: %json {\"type\":\"integer\",\"minimum\":-2e25,\"maximum\":-1e25}".into()),
        ),
        (
            "steps that have nothing in common",
            value(
                json!({ "allOf": [{ "type": "integer", "multipleOf": 65_537 }, { "multipleOf": 65_539 }] }),
            ),
        ),
        (
            "many steps",
            value(json!({ "allOf": [{ "type": "integer", "multipleOf": 97 }, { "multipleOf": 101 }] })),
        ),
        ("steps in decimals", value(json!({ "type": "number", "multipleOf": 9.999 }))),
        ("numbers that exclude", value(json!({ "type": "integer", "minimum": 5, "maximum": 3 }))),
        ("rules that lead anywhere", Format::Lark(rules)),
        ("left recursion", Format::Lark("start: start start | \"a\" | \"\"".into())),
        (
            "nesting in a grammar",
            Format::Lark(format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))),
        ),
        ("a count in a grammar", Format::Lark("start: (\"a\"{1,1000000}){1,1000000}".into())),
        ("brackets", Format::Regex("(".repeat(2000) + &")".repeat(2000))),
    ]
}

#[test]
fn each_is_answered_in_time() {
    for (name, form) in hostile() {
        // As the worker has it: deep schemas take deep stacks.
        let compiled = std::thread::Builder::new().stack_size(64 << 20).spawn(move || {
            let began = Instant::now();
            let compiled = compile(form.clone());
            let took = began.elapsed();
            if let Ok(prototype) = compiled {
                // What compiles can be used, or says in words that it takes too much.
                let mut constraint = prototype.constraint();
                for _ in 0..20 {
                    let Ok(mask) = constraint.mask() else { break };
                    let Some(token) = (0..256).rev().find(|&it| mask.admits(it)) else { break };
                    if constraint.consume(token).is_err() {
                        break;
                    }
                }
            }
            (took, began.elapsed())
        });
        let (took, with_answer) = compiled.unwrap().join().unwrap();
        assert!(took < LONGEST && with_answer < 2 * LONGEST, "{name}: {took:?}, {with_answer:?}");
    }
}

fn noise() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(true)),
        Just(json!(false)),
        Just(json!(null)),
        Just(json!(-1)),
        Just(json!(1e300)),
        Just(json!("#")),
        Just(json!("a")),
        Just(json!("string")),
        Just(json!("object")),
        Just(json!([])),
        Just(json!({})),
        Just(json!({ "type": "string" })),
        Just(json!({ "$ref": "#" })),
        Just(json!({ "$ref": "#/properties/a" })),
        Just(json!("^[a-")),
        Just(json!("date")),
        (0u64..1 << 60).prop_map(|it| json!(it)),
        (-30..30, any::<bool>())
            .prop_map(|(size, is_below)| { json!(10_f64.powi(size) * if is_below { -1.0 } else { 1.0 }) }),
    ];
    let keys = prop::sample::select(vec![
        "type",
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "enum",
        "const",
        "anyOf",
        "allOf",
        "oneOf",
        "$ref",
        "$anchor",
        "$id",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minProperties",
        "maxProperties",
        "not",
        "if",
        "then",
        "a",
        "$defs",
        "$schema",
        "x-guidance",
        "uniqueItems",
        "unevaluatedProperties",
    ]);
    leaf.prop_recursive(5, 60, 5, move |inner| {
        prop_oneof![
            4 => prop::collection::vec((keys.clone(), inner.clone()), 0..5)
                .prop_map(|all| all.into_iter().map(|(key, it)| (key.to_owned(), it)).collect::<serde_json::Map<_, _>>().into()),
            1 => prop::collection::vec(inner, 0..4).prop_map(Value::Array),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever comes is refused or kept to.
    #[test]
    fn noise_is_answered(it in noise(), strict in any::<bool>(), seed in any::<u64>()) {
        let began = Instant::now();
        if let Ok(prototype) = compile(schema(&it, strict)) {
            let text = walk(&prototype.constraint(), seed);
            if let (Some(text), true) = (text, strict)
                && let Ok(validator) = jsonschema::options().should_validate_formats(true).build(&it)
            {
                // Numbers may have more digits than fit.
                let Ok(answer) = serde_json::from_str::<Value>(&text) else {
                    prop_assert!(serde_json::from_str::<Box<serde_json::value::RawValue>>(&text).is_ok(), "{}", text);
                    return Ok(());
                };
                prop_assert!(validator.is_valid(&answer), "{} {}", it, text);
            }
        }
        prop_assert!(began.elapsed() < LONGEST);
    }
}
