//! JSON-Schema-Test-Suite, as the Python package `jsonschema` carries it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::support::{accepts, compile, schema};

const PACKAGE: &str = "jsonschema-4.26.0";

/// The folder of the suite, downloaded once; or why there is none.
fn suite() -> Result<PathBuf, String> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache");
    let place = cache.join(PACKAGE).join("json/tests/draft2020-12");
    if place.is_dir() {
        return Ok(place);
    }
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
    let requirement = PACKAGE.replacen('-', "==", 1);
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "jsonschema", &requirement];
    run("python3", &pip)?;
    run("tar", &["xzf", &format!("{PACKAGE}.tar.gz"), &format!("{PACKAGE}/json/tests/draft2020-12")])?;
    Ok(place)
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
    let place = match suite() {
        Ok(place) => place,
        Err(reason) => {
            eprintln!("skipped: JSON-Schema-Test-Suite cannot be downloaded: {reason}");
            return;
        }
    };
    let (mut enforced, mut refused, mut instances, mut missed) = (0, 0, 0, Vec::new());
    let mut wrong = Vec::new();
    let mut files: Vec<_> = fs::read_dir(place).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    // Formats are annotations there, and are enforced here. Vocabularies are not looked at.
    files.retain(|it| {
        it.extension().is_some_and(|it| it == "json")
            && !it.ends_with("format.json")
            && !it.ends_with("vocabulary.json")
    });
    for file in files {
        let groups: Vec<Value> = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        for group in groups {
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
