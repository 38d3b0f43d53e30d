//! Formats of strings, as patterns that admit no string which is not of the format.
//!
//! llguidance has expressions of its own. Where these admit more (29 February in every year, a 60th second in
//! every minute, labels of hosts of any length) the patterns here take their place.

use serde_json::{Value, json};

const YEAR: &str = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)";
const LEAP_YEAR: &str = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)";
const DAY: &str = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))";
const TIME: &str =
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
/// A part of a host's name. Two hyphens after each other mean an encoding of other letters.
const LABEL: &str = "(?:[a-zA-Z0-9]{1,61}|[a-zA-Z0-9]{1,20}(?:-[a-zA-Z0-9]{1,20}){1,2})";
const MAILBOX: &str = "[a-zA-Z0-9_%+]{1,20}(?:[.-][a-zA-Z0-9_%+]{1,20}){0,2}";

/// The schema that stands for a format; `None`: it is not known.
pub(super) fn schema(name: &str) -> Option<Value> {
    let date = || format!("(?:{YEAR}-{DAY}|{LEAP_YEAR}-02-29)");
    Some(match name {
        "date" => json!({ "pattern": format!("^{}$", date()) }),
        "time" => json!({ "pattern": format!("^{TIME}$") }),
        "date-time" => json!({ "pattern": format!("^{}T{TIME}$", date()) }),
        // No length that these can have is too long.
        "hostname" => json!({ "pattern": format!("^{LABEL}(?:\\.{LABEL}){{0,3}}$") }),
        "email" => json!({ "pattern": format!("^{MAILBOX}@{LABEL}(?:\\.{LABEL}){{0,2}}$") }),
        "duration" | "ipv4" | "ipv6" | "uuid" | "uri" => json!({ "format": name }),
        _ => return None,
    })
}
