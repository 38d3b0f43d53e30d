//! What llguidance says, in words for clients.

/// The first words of what it says of a schema that nothing meets.
const UNMET: &str = "Unsatisfiable schema: ";
/// What it says where something takes more than it may.
const TOO_MUCH: [&str; 8] = [
    "LexerTooComplex",
    "ParserTooComplex",
    "Current row has ",
    "fuel exhausted",
    "check fuel",
    "schema too large",
    " too big (limit for this grammar",
    "level exceeded",
];
const MUCH: &str = "it takes too much work; make it simpler";
/// What stands before the reason, a line of its own behind a picture, where an expression cannot be read.
const UNREADABLE: &str = "regex parse error:";

/// Of a grammar: its words without the state that follows, or what they mean where they are but a name.
pub(super) fn of_grammar(message: &str) -> String {
    match message.lines().next().unwrap_or_default() {
        "NoExtension" | "NoExtensionBias" => "nothing is admitted to come next".to_owned(),
        line if is_too_much(line) => MUCH.to_owned(),
        line => {
            let (line, reason) = line.strip_suffix(UNREADABLE).map_or((line, ""), |it| (it, unread(message)));
            line.chars().take(300).chain(reason.chars()).collect()
        }
    }
}

/// Of an expression: what cannot be read of it, without the place in a grammar that nobody sees.
pub(super) fn of_expression(message: &str) -> String {
    let reason = unread(message);
    if reason.is_empty() { of_grammar(message) } else { reason.to_owned() }
}

fn unread(message: &str) -> &str {
    message.lines().find_map(|it| it.trim().strip_prefix("error: ")).unwrap_or_default()
}

/// Why a schema cannot be enforced. It never was a client's own: names of parts that it has would say nothing.
pub(super) fn of_schema(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    if let Some(reason) = line.strip_prefix(UNMET) {
        return format!("no value meets the schema{}", unmet(reason));
    }
    let why = if is_too_much(line) {
        MUCH
    } else if line.starts_with("oneOf") {
        "its alternatives may hold at once; write anyOf, or give each a property with a constant of its own"
    } else if line.starts_with("min/maxProperties") {
        "that takes an object whose listed properties are all required"
    } else if line.starts_with("circular references") {
        "a reference leads back to itself, and what stands beside it cannot hold for all of that; leave one out"
    } else if line.contains("digits") {
        "a number has too many digits"
    } else if line.contains("range") {
        "there are no such numbers"
    } else {
        "it cannot be put into a grammar; make it simpler"
    };
    why.to_owned()
}

/// Does no value meet that schema?
pub(super) fn is_unmet(message: &str) -> bool {
    message.starts_with(UNMET)
}

/// Did it take more than it may?
pub(super) fn is_too_much(message: &str) -> bool {
    let line = message.lines().next().unwrap_or_default();
    TOO_MUCH.iter().any(|it| line.contains(it))
}

/// Why no value meets a schema; nothing where only llguidance's inside is told.
fn unmet(reason: &str) -> String {
    let why = match reason {
        "schema is false" => "it is false",
        "incompatible types" | "incompatible boolean values" => {
            "what has to hold together excludes each other"
        }
        _ if reason.starts_with("Regex") || reason.starts_with("Constant") => {
            "no text has the pattern and the length that are asked for"
        }
        // In the words of the schema itself.
        _ if ["Length", "Items (", "Properties"].iter().any(|it| reason.contains(it)) => reason,
        _ if ["inimum", "aximum", "integer"].iter().any(|it| reason.contains(it)) => {
            "no number lies between its limits"
        }
        _ => match reason.strip_suffix(" is unsatisfiable") {
            Some(what) => return format!(": {what} cannot be met"),
            None => return String::new(),
        },
    };
    format!(": {why}")
}
