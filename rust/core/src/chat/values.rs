//! Values as models write them, to JSON: piece by piece where that can be, else when they are complete.
//!
//! It owns the spelling of values: JSON, JSON inside a JSON string, Python's literals, the quotation marks
//! of Gemma. It knows nothing of calls and tools.

use std::fmt::Write;

/// How deep Python's values may be nested.
const DEPTH: usize = 64;

/// Walks along one JSON value, to find its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct JsonScan {
    depth: usize,
    in_string: bool,
    /// Bytes of an escape that is not complete.
    escape: usize,
    /// Inside a number or a word at depth 0, which ends where something else begins.
    in_word: bool,
}

/// What a [`JsonScan`] made of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    /// All of them belong to the value, which goes on.
    More,
    /// The value ends behind so many.
    Ends(usize),
    /// The byte of that number cannot stand there.
    Broken(usize),
}

impl JsonScan {
    /// Goes on inside `depth` objects.
    pub(crate) fn inside(depth: usize) -> Self {
        Self { depth, ..Self::default() }
    }

    /// Takes bytes. What is inside brackets is looked at only as far as that finds their end.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Scanned {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    b'u' if self.escape == 1 => self.escape = 2,
                    _ if self.escape == 1 => self.escape = 0,
                    _ if self.escape > 1 && byte.is_ascii_hexdigit() => self.escape = (self.escape + 1) % 6,
                    b'\\' => self.escape = 1,
                    b'"' => {
                        (self.in_string, self.escape) = (false, 0);
                        if self.depth == 0 {
                            return Scanned::Ends(at + 1);
                        }
                    }
                    _ => self.escape = 0,
                }
                continue;
            }
            if self.in_word && !is_word(byte) {
                return Scanned::Ends(at);
            }
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Scanned::Ends(at + 1);
                    }
                }
                b'"' => self.in_string = true,
                b',' | b':' if self.depth > 0 => {}
                _ if is_word(byte) => self.in_word = self.depth == 0,
                _ => return Scanned::Broken(at),
            }
        }
        Scanned::More
    }

    /// Bytes of an escape that is not complete.
    pub(crate) fn unfinished(&self) -> usize {
        self.escape
    }

    /// Inside a string?
    pub(crate) fn in_string(&self) -> bool {
        self.in_string
    }

    /// Is the value complete if nothing follows?
    pub(crate) fn may_end(&self) -> bool {
        self.in_word
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

/// Decodes the inside of a JSON string that comes in pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unescape {
    /// An escape that is not complete.
    held: String,
}

impl Unescape {
    /// Takes text, and appends what it stands for. `Some`: how many bytes the string took, its quotation
    /// mark included.
    pub(crate) fn push(&mut self, text: &str, out: &mut String) -> Option<usize> {
        for (at, character) in text.char_indices() {
            if !self.goes_on(character) {
                self.give_up(out);
            }
            match character {
                '"' if self.held.is_empty() => return Some(at + 1),
                '\\' if self.held.is_empty() => self.held.push('\\'),
                other if self.held.is_empty() => out.push(other),
                other => {
                    self.held.push(other);
                    self.settle(out);
                }
            }
        }
        None
    }

    /// Does the escape that is held go on with it?
    fn goes_on(&self, character: char) -> bool {
        match self.held.len() {
            0 | 1 | 12.. => true,
            6 => character == '\\',
            7 => character == 'u',
            _ => character.is_ascii_hexdigit(),
        }
    }

    /// What is held is no escape, or half of a character: what can be said of it is said.
    fn give_up(&mut self, out: &mut String) {
        match self.held.len() {
            // Half of a pair, and the backslash of another escape.
            6 | 7 => {
                out.push(char::REPLACEMENT_CHARACTER);
                self.held.drain(..6);
            }
            8.. => {
                out.push(char::REPLACEMENT_CHARACTER);
                out.push_str(&self.held[6..]);
                self.held.clear();
            }
            _ => out.push_str(&std::mem::take(&mut self.held)),
        }
    }

    /// Looks whether what is held is complete.
    fn settle(&mut self, out: &mut String) {
        let held = self.held.as_bytes();
        let plain = match (held.get(1), held.len()) {
            (Some(b'u'), 6) => match hex(&self.held[2..]) {
                Some(0xd800..0xdc00) => return,
                code => code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER),
            },
            (Some(b'u'), 12) => {
                let (high, low) = (hex(&self.held[2..6]), hex(&self.held[8..]));
                let (Some(high @ 0xd800..0xdc00), Some(low @ 0xdc00..0xe000)) = (high, low) else {
                    out.push(char::REPLACEMENT_CHARACTER);
                    self.held.drain(..6);
                    return self.settle(out);
                };
                let both = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                char::from_u32(both).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            (Some(b'u'), _) => return,
            (Some(b'n'), _) => '\n',
            (Some(b't'), _) => '\t',
            (Some(b'r'), _) => '\r',
            (Some(b'b'), _) => '\u{8}',
            (Some(b'f'), _) => '\u{c}',
            _ => match self.held.chars().nth(1) {
                Some(other) => other,
                None => return,
            },
        };
        out.push(plain);
        self.held.clear();
    }
}

fn hex(digits: &str) -> Option<u32> {
    u32::from_str_radix(digits, 16).ok()
}

/// Appends text as the inside of a JSON string.
pub(crate) fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            it if u32::from(it) < 0x20 => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(it));
            }
            it => out.push(it),
        }
    }
}

/// A text as a JSON string.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    escape(text, &mut out);
    out.push('"');
    out
}

/// Is it one JSON value?
pub(crate) fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// The value of an argument whose kind its tag does not tell: JSON, else Python's spelling of it, else text.
pub(crate) fn loose(text: &str) -> String {
    let inner = text.trim();
    if is_json(inner) {
        return inner.to_owned();
    }
    match Python::new(inner, "").whole() {
        Some(json) => json,
        None => quoted(text),
    }
}

/// Reads Python's literals, and JSON's, and gives JSON. With a quotation mark of its own, Gemma's values.
pub(crate) struct Python<'a> {
    text: &'a str,
    at: usize,
    /// A further quotation mark, around texts without escapes; empty: there is none.
    mark: &'a str,
}

/// Why a value could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoValue {
    /// The text ends too early.
    Short,
    /// It is something else.
    Other,
}

impl<'a> Python<'a> {
    pub(crate) fn new(text: &'a str, mark: &'a str) -> Self {
        Self { text, at: 0, mark }
    }

    /// The only value in the text.
    pub(crate) fn whole(mut self) -> Option<String> {
        let mut out = String::new();
        self.value(&mut out, 0).ok()?;
        self.blank();
        (self.at == self.text.len()).then_some(out)
    }

    /// The value that the text begins with, and where it ends. A number or a word ends where something else
    /// begins: at the end of the text it is too short.
    pub(crate) fn first(mut self) -> Result<(String, usize), NoValue> {
        let mut out = String::new();
        self.blank();
        let is_word = self.rest().starts_with(|it: char| it.is_ascii_alphanumeric() || it == '-');
        self.value(&mut out, 0)?;
        if is_word && self.at == self.text.len() {
            return Err(NoValue::Short);
        }
        Ok((out, self.at))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn blank(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn eat(&mut self, what: char) -> bool {
        self.blank();
        let there = self.rest().starts_with(what);
        if there {
            self.at += what.len_utf8();
        }
        there
    }

    /// What is missing: more text, or another one.
    fn missing(&self) -> NoValue {
        if self.rest().is_empty() { NoValue::Short } else { NoValue::Other }
    }

    fn value(&mut self, out: &mut String, depth: usize) -> Result<(), NoValue> {
        if depth > DEPTH {
            return Err(NoValue::Other);
        }
        self.blank();
        let rest = self.rest();
        if !self.mark.is_empty() && self.mark.starts_with(rest) && rest.len() < self.mark.len() {
            return Err(NoValue::Short);
        }
        if !self.mark.is_empty() && rest.starts_with(self.mark) {
            return self.marked(out);
        }
        match rest.chars().next().ok_or(NoValue::Short)? {
            quote @ ('"' | '\'') => self.string(quote, out),
            '[' => self.items('[', ']', out, depth),
            '(' => self.items('(', ')', out, depth),
            '{' => self.object(out, depth),
            _ => self.word(out),
        }
    }

    fn marked(&mut self, out: &mut String) -> Result<(), NoValue> {
        let inner = &self.rest()[self.mark.len()..];
        let end = inner.find(self.mark).ok_or(NoValue::Short)?;
        out.push_str(&quoted(&inner[..end]));
        self.at += end + 2 * self.mark.len();
        Ok(())
    }

    fn string(&mut self, quote: char, out: &mut String) -> Result<(), NoValue> {
        let rest = self.rest();
        // Three quotation marks: up to the next three.
        let three = quote.to_string().repeat(3);
        let (open, end) = if rest.starts_with(&three) { (3, three.as_str()) } else { (1, &three[..1]) };
        let mut text = String::new();
        let mut characters = rest[open..].char_indices();
        while let Some((at, character)) = characters.next() {
            if rest[open + at..].starts_with(end) {
                out.push_str(&quoted(&text));
                self.at += open + at + end.len();
                return Ok(());
            }
            if character != '\\' {
                text.push(character);
                continue;
            }
            let Some((_, escaped)) = characters.next() else { break };
            let digits = match escaped {
                'x' => 2,
                'u' => 4,
                'U' => 8,
                _ => 0,
            };
            if digits > 0 {
                let all = &rest[open + at + 2..];
                let code = all.get(..digits).filter(|it| it.bytes().all(|it| it.is_ascii_hexdigit()));
                let Some(code) = code else {
                    if all.len() < digits {
                        break;
                    }
                    return Err(NoValue::Other);
                };
                let mut code = u32::from_str_radix(code, 16).map_err(|_| NoValue::Other)?;
                let mut taken = digits;
                if (0xd800..0xdc00).contains(&code) {
                    // JSON writes one character as two halves.
                    let low = all.get(digits..digits + 6).filter(|it| it.starts_with("\\u"));
                    if let Some(low) = low.and_then(|it| u32::from_str_radix(&it[2..], 16).ok())
                        && (0xdc00..0xe000).contains(&low)
                    {
                        code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                        taken += 6;
                    }
                }
                text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                for _ in 0..taken {
                    characters.next();
                }
                continue;
            }
            match escaped {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                'b' => text.push('\u{8}'),
                'f' => text.push('\u{c}'),
                '0' => text.push('\0'),
                '\n' => {}
                '\\' | '\'' | '"' | '/' => text.push(escaped),
                other => {
                    text.push('\\');
                    text.push(other);
                }
            }
        }
        Err(NoValue::Short)
    }

    fn items(&mut self, open: char, close: char, out: &mut String, depth: usize) -> Result<(), NoValue> {
        self.eat(open);
        out.push('[');
        let mut first = true;
        while !self.eat(close) {
            if !first && !out.ends_with(", ") {
                return Err(self.missing());
            }
            self.value(out, depth + 1)?;
            first = false;
            if self.eat(',') {
                out.push_str(", ");
            }
        }
        // A comma may stand behind the last one.
        out.truncate(out.trim_end_matches(", ").len());
        out.push(']');
        Ok(())
    }

    fn object(&mut self, out: &mut String, depth: usize) -> Result<(), NoValue> {
        self.eat('{');
        out.push('{');
        let mut first = true;
        while !self.eat('}') {
            if !first && !out.ends_with(", ") {
                return Err(self.missing());
            }
            self.key(out)?;
            if !self.eat(':') {
                return Err(self.missing());
            }
            out.push_str(": ");
            self.value(out, depth + 1)?;
            first = false;
            if self.eat(',') {
                out.push_str(", ");
            }
        }
        out.truncate(out.trim_end_matches(", ").len());
        out.push('}');
        Ok(())
    }

    /// A quoted key, or Gemma's that is not.
    fn key(&mut self, out: &mut String) -> Result<(), NoValue> {
        self.blank();
        if self.mark.is_empty() || self.rest().starts_with(['"', '\'']) || self.rest().starts_with(self.mark)
        {
            let begin = out.len();
            self.value(out, DEPTH)?;
            return if out[begin..].starts_with('"') { Ok(()) } else { Err(NoValue::Other) };
        }
        let end = self.rest().find([':', '}', ',']).ok_or(NoValue::Short)?;
        out.push_str(&quoted(self.rest()[..end].trim()));
        self.at += end;
        Ok(())
    }

    fn word(&mut self, out: &mut String) -> Result<(), NoValue> {
        let rest = self.rest();
        let end = rest
            .find(|it: char| !it.is_ascii_alphanumeric() && !matches!(it, '+' | '-' | '.' | '_'))
            .unwrap_or(rest.len());
        let json = match &rest[..end] {
            "True" | "true" => "true",
            "False" | "false" => "false",
            "None" | "null" => "null",
            number if !number.is_empty() && is_json(number) => number,
            _ => return Err(if end == rest.len() { NoValue::Short } else { NoValue::Other }),
        };
        out.push_str(json);
        self.at += end;
        Ok(())
    }
}

/// What the elements of a list are called where elements stand inside elements.
pub(crate) const ITEM: &str = "item";

/// The path of an element inside that of another path; empty: outside of all. No name in a tag has what stands
/// between.
pub(crate) fn inside(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}>{name}") }
}

/// Elements inside elements, each tag behind a mark, as an object. Those that are all called [`ITEM`] are a
/// list. `is_text`: is the element of that path text whatever it looks like?
pub(crate) fn nested(text: &str, mark: &str, is_text: &dyn Fn(&str) -> bool) -> String {
    let mut out = String::new();
    let mut rest = text;
    elements(&mut rest, mark, is_text, ("", 0), &mut out);
    // An input is an object, with arguments or without.
    if out.starts_with('{') { out } else { "{}".to_owned() }
}

fn elements(
    rest: &mut &str,
    mark: &str,
    is_text: &dyn Fn(&str) -> bool,
    (path, depth): (&str, usize),
    out: &mut String,
) {
    let mut fields: Vec<(String, String)> = Vec::new();
    while let Some((key, inner)) = open_tag(rest, mark) {
        *rest = inner;
        let mut value = String::new();
        let path = inside(path, &key);
        if depth < DEPTH && open_tag(rest, mark).is_some() {
            elements(rest, mark, is_text, (&path, depth + 1), &mut value);
        } else {
            let end = rest.find(mark).unwrap_or(rest.len());
            let text = &rest[..end];
            value = if is_text(&path) { quoted(text) } else { loose(text) };
            *rest = &rest[end..];
        }
        // What closes it.
        let closes = rest.trim_start().strip_prefix(mark).filter(|it| it.starts_with("</"));
        *rest = closes.and_then(|it| it.split_once('>')).map_or("", |it| it.1);
        fields.push((key, value));
    }
    let is_list = depth > 0 && !fields.is_empty() && fields.iter().all(|it| it.0 == ITEM);
    let items: Vec<String> = fields
        .into_iter()
        .map(|(key, value)| if is_list { value } else { format!("{}: {value}", quoted(&key)) })
        .collect();
    let (open, close) = if is_list { ('[', ']') } else { ('{', '}') };
    out.push(open);
    out.push_str(&items.join(", "));
    out.push(close);
}

/// The key of the element that the text begins with, and what follows its tag.
fn open_tag<'a>(text: &'a str, mark: &str) -> Option<(String, &'a str)> {
    let (key, rest) = text.trim_start().strip_prefix(mark)?.strip_prefix('<')?.split_once('>')?;
    (!key.is_empty() && !key.starts_with('/')).then(|| (key.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|it| Value::from(f64::from(it) / 4.0)),
            ".{0,6}|[\\\\\"'{}\\[\\],:\n]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((".{0,4}", inner), 0..4)
                    .prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_json_value_ends_where_it_ends(value in any_json(), cuts in prop::collection::vec(1usize..5, 1..9)) {
            let text = value.to_string();
            let with_more = format!(" {text}\n, rest");
            let mut scan = JsonScan::default();
            let (mut at, mut end) = (0, None);
            for cut in cuts.iter().cycle() {
                if at == with_more.len() { break; }
                let now = &with_more.as_bytes()[at..(at + cut).min(with_more.len())];
                match scan.push(now) {
                    Scanned::More => at += now.len(),
                    Scanned::Ends(behind) => { end = Some(at + behind); break; }
                    Scanned::Broken(_) => prop_assert!(false, "{}", text),
                }
            }
            prop_assert_eq!(end, Some(text.len() + 1));
        }

        #[test]
        fn strings_are_decoded_however_they_are_cut(text in "(.|\\\\|\"|\n|🦙|\u{7f}){0,12}", cuts in prop::collection::vec(1usize..5, 1..9), ascii: bool) {
            let mut escaped = String::new();
            if ascii {
                for unit in text.encode_utf16() { write!(escaped, "\\u{unit:04X}").unwrap(); }
            } else {
                escape(&text, &mut escaped);
            }
            prop_assert_eq!(serde_json::from_str::<String>(&format!("\"{escaped}\"")).unwrap(), text.clone());
            escaped.push('"');
            let length = escaped.len();
            escaped.push_str("rest");
            let characters: Vec<char> = escaped.chars().collect();
            let (mut unescape, mut out, mut at, mut end, mut taken) = (Unescape::default(), String::new(), 0, None, 0);
            for cut in cuts.iter().cycle() {
                if at == characters.len() { break; }
                let now: String = characters[at..(at + cut).min(characters.len())].iter().collect();
                at += now.chars().count();
                if let Some(behind) = unescape.push(&now, &mut out) { end = Some(taken + behind); break; }
                taken += now.len();
            }
            prop_assert_eq!((out, end), (text, Some(length)));
        }

        #[test]
        fn json_is_read_as_python_s_too(value in any_json()) {
            let json = Python::new(&value.to_string(), "").whole().unwrap();
            prop_assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), value);
        }

        #[test]
        fn noise_is_no_panic(text in "[\\[\\](){}'\",:\\\\ux0-9aTrueNon \n<|\">]{0,30}") {
            let _ = Python::new(&text, "").whole();
            let _ = Python::new(&text, "<|\"|>").first();
            let mut out = String::new();
            Unescape::default().push(&text, &mut out);
            prop_assert!(is_json(&loose(&text)));
        }
    }

    #[test]
    fn python_s_spelling() {
        for (python, json) in [
            ("[1, {'a': None, \"b\": (True, False,)}]", r#"[1, {"a": null, "b": [true, false]}]"#),
            (r"'it\'s \x41 \u00e9 \U0001F999 \d'", "\"it's A é 🦙 \\\\d\""),
            ("'''two\n'lines' '''", "\"two\\n'lines' \""),
            ("-1.5e3", "-1.5e3"),
            ("{}", "{}"),
            ("''", "\"\""),
        ] {
            assert_eq!(Python::new(python, "").whole().as_deref(), Some(json), "{python}");
        }
        for python in ["", "abc", "[1 2]", "{1: 2}", "'a", "{'a' 1}", "1 2", "nan"] {
            assert_eq!(Python::new(python, "").whole(), None, "{python}");
        }
    }

    #[test]
    fn gemma_s_spelling() {
        let text = "{a:<|\"|>x \"y\" 'z'<|\"|>,list:[1,<|\"|>t<|\"|>],b:{c:true}} rest";
        let (json, end) = Python::new(text, "<|\"|>").first().unwrap();
        assert_eq!(json, r#"{"a": "x \"y\" 'z'", "list": [1, "t"], "b": {"c": true}}"#);
        assert_eq!(&text[end..], " rest");
        assert_eq!(Python::new("{a:<|\"", "<|\"|>").first(), Err(NoValue::Short));
        assert_eq!(Python::new("12", "").first(), Err(NoValue::Short));
        assert_eq!(Python::new("12,", "").first(), Ok(("12".to_owned(), 2)));
    }

    #[test]
    fn elements_inside_elements() {
        let text = "]<]m[>[<a>x <b>]<]m[>[</a>\n]<]m[>[<list>]<]m[>[<item>1]<]m[>[</item>]<]m[>[<item>]<]m[>[<k>true]<]m[>[</k>]<]m[>[</item>]<]m[>[</list>]<]m[>[<n>7]<]m[>[</n>";
        let json = nested(text, "]<]m[>[", &|it| it == "n");
        assert_eq!(json, r#"{"a": "x <b>", "list": [1, {"k": true}], "n": "7"}"#);
        assert_eq!(nested("", "m", &|_| false), "{}");
        assert_eq!(nested("m<a>", "m", &|_| false), "{\"a\": \"\"}");
    }

    #[test]
    fn what_is_no_value_is_text() {
        assert_eq!(loose(" 7 "), "7");
        assert_eq!(loose(" seven \n"), "\" seven \\n\"");
        assert_eq!(loose("{'a': True}"), "{\"a\": true}");
        assert_eq!(loose("NaN"), "\"NaN\"");
    }
}
