//! Schemas of others: JSON-Schema-Test-Suite, as the Python package `jsonschema` carries it, and those of well-known
//! tools' settings, as `check-jsonschema` does.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use llm_node_core::error::ErrorCode;
use serde_json::{Value, value::RawValue};

use crate::support::{accepts, compile, schema, walk};

const SUITE: (&str, &str) = ("jsonschema", "4.26.0");
const SETTINGS: (&str, &str) = ("check-jsonschema", "0.39.0");
const VENDORED: &str = "src/check_jsonschema/builtin_schemas/vendor";

/// The JSON files in some folders of a Python package's archive, which is downloaded once; or why they are not there.
fn files((package, version): (&str, &str), folders: &[&str]) -> Result<Vec<PathBuf>, String> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache");
    let name = format!("{}-{version}", package.replace('-', "_"));
    let whole = format!("{name}.tar.gz");
    fs::create_dir_all(&cache).map_err(|it| it.to_string())?;
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(&cache).output();
        let output = output.map_err(|it| format!("{program}: {it}"))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)))
        }
    };
    if !cache.join(&whole).is_file() {
        let requirement = format!("{package}=={version}");
        run(
            "python3",
            &["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package, &requirement],
        )?;
    }
    let mut found = Vec::new();
    for folder in folders {
        let place = cache.join(&name).join(folder);
        if !place.is_dir() {
            run("tar", &["xzf", &whole, &format!("{name}/{folder}")])?;
        }
        let all = fs::read_dir(place).map_err(|it| it.to_string())?;
        found.extend(all.filter_map(|it| Some(it.ok()?.path())));
    }
    found.retain(|it| it.extension().is_some_and(|it| it == "json"));
    found.sort();
    Ok(found)
}

fn read(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// What is said where a test cannot be run.
fn skipped(reason: &str) {
    eprintln!("skipped: the schemas cannot be downloaded: {reason}");
}

/// All orders of the keys of all objects in a value, as JSON; the first 200.
fn orders(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let mut all = vec![(Vec::<String>::new(), map.iter().collect::<Vec<_>>())];
            while all.first().is_some_and(|it| !it.1.is_empty()) {
                all = all
                    .into_iter()
                    .flat_map(|(begun, left)| {
                        (0..left.len()).flat_map({
                            let (begun, left) = (begun.clone(), left.clone());
                            move |index| {
                                let mut left = left.clone();
                                let (key, value) = left.remove(index);
                                let begun = begun.clone();
                                orders(value).into_iter().map(move |value| {
                                    let mut begun = begun.clone();
                                    begun.push(format!("{}:{value}", Value::String(key.clone())));
                                    (begun, left.clone())
                                })
                            }
                        })
                    })
                    .take(200)
                    .collect();
            }
            all.into_iter().map(|it| format!("{{{}}}", it.0.join(","))).collect()
        }
        Value::Array(items) => {
            let mut all = vec![Vec::new()];
            for item in items {
                all = all
                    .into_iter()
                    .flat_map(|begun: Vec<String>| {
                        orders(item).into_iter().map(move |it| {
                            let mut begun = begun.clone();
                            begun.push(it);
                            begun
                        })
                    })
                    .take(200)
                    .collect();
            }
            all.into_iter().map(|it| format!("[{}]", it.join(","))).collect()
        }
        other => vec![other.to_string()],
    }
}

/// A whole number may be written `1.0`, which no grammar of whole numbers has.
fn has_whole_floats(value: &Value) -> bool {
    match value {
        Value::Number(it) => it.is_f64(),
        Value::Array(all) => all.iter().any(has_whole_floats),
        Value::Object(all) => all.values().any(has_whole_floats),
        _ => false,
    }
}

/// What is accepted is valid, without exception. What is valid is accepted in some order of its keys.
#[test]
fn what_is_accepted_is_valid_and_the_other_way_round() {
    let mut files = match files(SUITE, &["json/tests/draft2020-12"]) {
        Ok(files) => files,
        Err(reason) => return skipped(&reason),
    };
    let (mut enforced, mut refused, mut instances, mut missed) = (0, 0, 0, Vec::new());
    let mut wrong = Vec::new();
    // Formats are annotations there, and are enforced here. Vocabularies are not looked at.
    files.retain(|it| !it.ends_with("format.json") && !it.ends_with("vocabulary.json"));
    for file in files {
        for group in read(&file).as_array().unwrap() {
            // Not strict, and nothing left out: so objects stay open.
            let prototype = match compile(schema(&group["schema"], false)) {
                Ok(prototype) if prototype.relaxed().is_empty() => prototype,
                _ => {
                    refused += 1;
                    continue;
                }
            };
            enforced += 1;
            for test in group["tests"].as_array().unwrap() {
                instances += 1;
                let data = &test["data"];
                let accepted = orders(data).iter().any(|it| accepts(&prototype.constraint(), it));
                let name = format!(
                    "{}: {}: {}",
                    file.file_name().unwrap().display(),
                    group["description"],
                    test["description"]
                );
                match (accepted, test["valid"].as_bool().unwrap()) {
                    (true, false) => wrong.push(name),
                    (false, true) if !has_whole_floats(data) => missed.push(name),
                    _ => {}
                }
            }
        }
    }
    assert!(wrong.is_empty(), "accepted, and invalid: {wrong:#?}");
    assert!(missed.is_empty(), "valid, and not accepted: {missed:#?}");
    assert!(
        enforced > 150 && instances > 500,
        "{enforced} enforced, {refused} refused, {instances} instances"
    );
}

/// Does it name a keyword and a place in the schema? What is said of all that stands at a place comes behind that.
fn names_a_place(message: &str, schema: &Value) -> bool {
    let keyword = message.starts_with("at #") || message.split('"').nth(1).is_some();
    let pointer = message.split("at #").nth(1).map(|it| it.split([' ', ':']).next().unwrap_or_default());
    // A pointer ends where a word of the message does; names with spaces do not occur here.
    keyword && pointer.is_some_and(|it| schema.pointer(it).is_some())
}

/// Random answers to 500 schemas: those that end are valid, and what is refused is refused by keyword and place.
#[test]
fn random_answers_to_many_schemas_are_valid() {
    let suite = files(SUITE, &["json/tests/draft2020-12", "json/tests/draft2019-09", "json/tests/draft7"]);
    let (suite, settings) = match (suite, files(SETTINGS, &[VENDORED])) {
        (Ok(suite), Ok(settings)) => (suite, settings),
        (Err(reason), _) | (_, Err(reason)) => return skipped(&reason),
    };
    let groups = suite.iter().flat_map(|file| {
        let groups = read(file);
        let draft = file.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let name = format!("{draft} {}", file.file_name().unwrap().display());
        let all = groups.as_array().unwrap().clone().into_iter();
        all.map(move |it| (format!("{name}: {}", it["description"]), it["schema"].clone()))
    });
    let all: Vec<(String, Value)> =
        groups.chain(settings.iter().map(|it| (it.display().to_string(), read(it)))).collect();
    let (mut ended, mut refused, mut nameless) = (0, 0, Vec::new());
    for (index, (name, it)) in all.iter().enumerate() {
        let strict = index % 2 == 0;
        let prototype = match compile(schema(it, strict)) {
            Ok(prototype) => prototype,
            Err(fault) => {
                refused += 1;
                let counts = matches!(fault.code, ErrorCode::UnsupportedParameter);
                if counts && !names_a_place(&fault.message, it) {
                    nameless.push(format!("{name}: {fault}"));
                }
                continue;
            }
        };
        // What is left out is not looked at; a reference into the web is not followed.
        let Ok(validator) = jsonschema::options().should_validate_formats(true).build(it) else { continue };
        if !prototype.relaxed().is_empty() {
            continue;
        }
        let Some(text) = walk(&prototype.constraint(), index as u64) else { continue };
        ended += 1;
        assert!(serde_json::from_str::<Box<RawValue>>(&text).is_ok(), "{name}: {text}");
        // Whoever reads a number with so many digits reads another one.
        let longest = text.split(|it: char| !it.is_ascii_digit()).map(str::len).max();
        let Some(answer) = serde_json::from_str(&text).ok().filter(|_| longest < Some(16)) else { continue };
        assert!(validator.is_valid(&answer), "{name}: {it}\n{text}");
    }
    assert!(nameless.is_empty(), "{nameless:#?}");
    assert!(all.len() >= 500 && ended > 200, "{} schemas, {ended} answers, {refused} refused", all.len());
}
