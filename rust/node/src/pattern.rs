//! JSON made of log-probabilities, in whatever shape an API family wants.
//!
//! A family writes its shape down once, as JSON with holes, and both its streams and its whole answers are
//! made of that. Owns what is done for each token: text, numbers and bytes in the holes. Knows no family's
//! words.
//!
//! `<each>`…`</each>` are the items of a list, one for each token. In it stand for the token
//!
//! - `<token>`: its text as a JSON string, with U+FFFD for what is no UTF-8;
//! - `<name>`: its text, or `bytes:\\xe8\\xaa` where that is no UTF-8, as a JSON string;
//! - `<bytes>`: its bytes as a list of numbers;
//! - `<id>`: its number;
//! - `<logprob>`: its log-probability;
//! - `<offset>`: which character of the answer's text it begins in, counted in code points from 0;
//! - `<top>`…`</top>`: the likeliest tokens, best first, each with all of these but `<offset>`;
//! - `<distinct>`…`</distinct>`: the same for names that are the keys of an object: where a likelier one has
//!   the same name, `<name>` is `token_id:` and the token's number.

use std::{borrow::Cow, collections::HashSet, fmt::Write};

use llm_node_core::{event::PickedToken, text::detok::Utf8Decoder};
use serde::Serialize;
use thiserror::Error;

/// Said of what is impossible: JSON has no infinity.
const LEAST: f64 = -9999.0;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    lists: Vec<List>,
    tail: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct List {
    head: Vec<u8>,
    item: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Fixed(Vec<u8>),
    Token,
    Id,
    Name,
    Bytes,
    Logprob,
    Offset,
    Top { item: Vec<Part>, distinct: bool },
}

/// Where a pattern cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("it cannot be read from here on: {0}")]
pub struct BadPattern(String);

/// What a pattern's lists hold: JSON without the brackets, one item for each token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items(Vec<Vec<u8>>);

/// Where the next token of a stream begins in its text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    decoder: Utf8Decoder,
    /// Characters that are complete.
    characters: usize,
}

impl Place {
    /// The character in which these bytes begin; they come next.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let incomplete = self.decoder.incomplete();
        let begin = self.characters + usize::from(!incomplete.is_empty() && !continues(incomplete, bytes));
        let mut text = String::new();
        self.decoder.push(bytes, &mut text);
        self.characters += text.chars().count();
        begin
    }
}

/// Do these bytes belong to the character that is not complete yet?
fn continues(incomplete: &[u8], bytes: &[u8]) -> bool {
    match std::str::from_utf8(&[incomplete, bytes].concat()) {
        Ok(_) => true,
        Err(error) => error.valid_up_to() > 0 || error.error_len().is_none_or(|it| it > incomplete.len()),
    }
}

/// What the holes are filled with.
struct Known<'a> {
    id: i32,
    bytes: &'a [u8],
    /// Another has its name.
    is_second: bool,
    logprob: f32,
    offset: usize,
    top: &'a [(Vec<u8>, i32, f32)],
}

impl Pattern {
    /// Reads a pattern. What stands around the lists is taken as it is.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let mut lists = Vec::new();
        let mut rest = text;
        while let Some((head, inside)) = rest.split_once("<each>") {
            let (item, behind) = inside.split_once("</each>").ok_or_else(|| BadPattern(inside.to_owned()))?;
            lists.push(List { head: head.into(), item: parse_item(item)? });
            rest = behind;
        }
        Ok(Self { lists, tail: rest.into() })
    }

    /// The items for a stream's next tokens; none where they have no log-probabilities. `place` is where
    /// they begin, and then where they end.
    pub fn items(&self, tokens: &[PickedToken], place: &mut Place) -> Items {
        let mut items = Items::default();
        for (id, token) in tokens.iter().filter_map(|it| Some((it.id, it.logprobs.as_ref()?))) {
            let known = Known {
                id,
                bytes: &token.bytes,
                is_second: false,
                logprob: token.logprob,
                offset: place.take(if token.is_text { &token.bytes } else { &[] }),
                top: &token.top,
            };
            let written = self.lists.iter().map(|list| known.written(&list.item)).collect();
            items.append(Items(written));
        }
        items
    }

    /// Appends the whole of it, with these items of its own.
    pub fn write(&self, items: &Items, into: &mut Vec<u8>) {
        for (index, list) in self.lists.iter().enumerate() {
            into.extend_from_slice(&list.head);
            into.extend_from_slice(items.0.get(index).map_or(&[], Vec::as_slice));
        }
        into.extend_from_slice(&self.tail);
    }
}

impl Items {
    /// The items of tokens that follow.
    pub fn append(&mut self, more: Self) {
        if self.is_empty() {
            *self = more;
            return;
        }
        for (items, more) in self.0.iter_mut().zip(more.0) {
            items.push(b',');
            items.extend_from_slice(&more);
        }
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Is it of no token at all?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Known<'_> {
    fn written(&self, item: &[Part]) -> Vec<u8> {
        let mut into = Vec::new();
        self.write(item, &mut into);
        into
    }

    fn write(&self, item: &[Part], into: &mut Vec<u8>) {
        for part in item {
            match part {
                Part::Fixed(bytes) => into.extend_from_slice(bytes),
                Part::Token => json(&String::from_utf8_lossy(self.bytes), into),
                Part::Id => json(&self.id, into),
                Part::Name if self.is_second => json(&format!("token_id:{}", self.id), into),
                Part::Name => json(&name(self.bytes), into),
                Part::Bytes => json(self.bytes, into),
                Part::Logprob => number(f64::from(self.logprob).max(LEAST), into),
                Part::Offset => json(&self.offset, into),
                Part::Top { item, distinct } => self.write_top(item, *distinct, into),
            }
        }
    }

    fn write_top(&self, item: &[Part], distinct: bool, into: &mut Vec<u8>) {
        let mut seen = HashSet::new();
        let mut is_first = true;
        for &(ref bytes, id, logprob) in self.top {
            let is_second = distinct && !seen.insert(name(bytes));
            if !is_first {
                into.push(b',');
            }
            is_first = false;
            Known { id, bytes, is_second, logprob, offset: self.offset, top: &[] }.write(item, into);
        }
    }
}

/// A text, or in ASCII what bytes there are.
fn name(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes
            .iter()
            .fold(String::from("bytes:"), |mut name, byte| {
                // Writing to memory does not fail.
                let _ = write!(name, "\\x{byte:02x}");
                name
            })
            .into(),
    }
}

fn parse_item(text: &str) -> Result<Vec<Part>, BadPattern> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some((fixed, hole)) = rest.split_once('<') {
        let bad = || BadPattern(hole.to_owned());
        if !fixed.is_empty() {
            parts.push(Part::Fixed(fixed.into()));
        }
        let (name, behind) = hole.split_once('>').ok_or_else(bad)?;
        rest = behind;
        parts.push(match name {
            "token" => Part::Token,
            "id" => Part::Id,
            "name" => Part::Name,
            "bytes" => Part::Bytes,
            "logprob" => Part::Logprob,
            "offset" => Part::Offset,
            "top" | "distinct" => {
                let (item, behind) = behind.split_once(&format!("</{name}>")).ok_or_else(bad)?;
                rest = behind;
                Part::Top { item: parse_item(item)?, distinct: name == "distinct" }
            }
            _ => return Err(bad()),
        });
    }
    if !rest.is_empty() {
        parts.push(Part::Fixed(rest.into()));
    }
    Ok(parts)
}

/// The shortest digits that are this number, as Python writes them: an answer that is not streamed goes
/// through Python, and a number is to look the same in both.
fn number(value: f64, into: &mut Vec<u8>) {
    if value == 0.0 || value.abs() >= 1e-4 {
        return json(&value, into);
    }
    let text = format!("{value:e}");
    let (digits, power) = text.split_once("e-").unwrap_or((&text, "0"));
    into.extend_from_slice(format!("{digits}e-{power:0>2}").as_bytes());
}

fn json<T: Serialize + ?Sized>(value: &T, into: &mut Vec<u8>) {
    // Writing to memory does not fail, and neither does any of what is written here.
    let _ = serde_json::to_writer(into, value);
}

#[cfg(test)]
mod tests {
    use llm_node_core::event::TokenLogprobs;
    use proptest::prelude::*;

    use super::*;

    const OBJECTS: &str = "{\"a\":[<each>{\"t\":<token>,\"l\":<logprob>,\"b\":<bytes>,\"top\":[<top>{\"t\":<token>}</top>]}</each>]}";
    const COLUMNS: &str = "[[<each><token></each>],[<each><logprob></each>],[<each>{<distinct><name>:<logprob></distinct>}</each>],[<each><offset></each>]]";

    fn token(bytes: &[u8], logprob: f32, top: &[(&[u8], f32)]) -> PickedToken {
        let top = (7..).zip(top).map(|(id, (bytes, logprob))| (bytes.to_vec(), id, *logprob)).collect();
        let bytes = bytes.to_vec();
        PickedToken { id: 0, logprobs: Some(TokenLogprobs { bytes, is_text: true, logprob, top }) }
    }

    fn written(pattern: &str, tokens: &[PickedToken]) -> String {
        let pattern = Pattern::parse(pattern).unwrap();
        let mut into = Vec::new();
        pattern.write(&pattern.items(tokens, &mut Place::default()), &mut into);
        String::from_utf8(into).unwrap()
    }

    fn logprob(value: f32) -> String {
        written("<each><logprob></each>", &[token(b"", value, &[])])
    }

    #[test]
    fn a_list_has_an_item_for_each_token() {
        let tokens = [token(b"a", -0.5, &[(b"a", -0.5), (b"b", -2.0)]), token(b"\"\n", -1.0, &[])];
        assert_eq!(
            written(OBJECTS, &tokens),
            r#"{"a":[{"t":"a","l":-0.5,"b":[97],"top":[{"t":"a"},{"t":"b"}]},{"t":"\"\n","l":-1.0,"b":[34,10],"top":[]}]}"#
        );
        assert_eq!(written(COLUMNS, &tokens), r#"[["a","\"\n"],[-0.5,-1.0],[{"a":-0.5,"b":-2.0},{}],[0,1]]"#);
    }

    #[test]
    fn without_tokens_the_lists_are_empty() {
        assert_eq!(written(OBJECTS, &[]), r#"{"a":[]}"#);
        assert_eq!(written(COLUMNS, &[PickedToken { id: 1, logprobs: None }]), "[[],[],[],[]]");
        assert_eq!(written("null", &[token(b"a", 0.0, &[])]), "null");
        let numbers = "[<each>[<id>,[<top><id></top>]]</each>]";
        assert_eq!(written(numbers, &[token(b"a", 0.0, &[(b"b", -1.0)])]), "[[0,[7]]]");
    }

    #[test]
    fn what_is_no_text_is_replaced_in_text_alone() {
        // Cut short, overlong, half of a pair, and whole.
        for (bytes, text) in [
            (&b"\xe8\xaa"[..], "\u{fffd}"),
            (b"\xaa\xe8", "\u{fffd}\u{fffd}"),
            (b"\xc0\x80", "\u{fffd}\u{fffd}"),
            (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\xf0\x9f\xa6", "\u{fffd}"),
            ("é語🦙".as_bytes(), "é語🦙"),
        ] {
            let wanted = format!("\"{text}\"{bytes:?}").replace(", ", ",");
            assert_eq!(written("<each><token><bytes></each>", &[token(bytes, 0.0, &[])]), wanted);
        }
    }

    #[test]
    fn no_key_stands_twice_and_no_token_is_lost() {
        let top: [(&[u8], f32); 5] =
            [(b"\xff", -1.0), (b"a", -2.0), (b"\xe8\xaa", -3.0), (b"a", -4.0), (b"\xff", -5.0)];
        let tokens = [token(b"\xff", -1.0, &top)];
        assert_eq!(
            written("<each><name>{<distinct><name>:<logprob></distinct>}</each>", &tokens),
            r#""bytes:\\xff"{"bytes:\\xff":-1.0,"a":-2.0,"bytes:\\xe8\\xaa":-3.0,"token_id:10":-4.0,"token_id:11":-5.0}"#
        );
        assert_eq!(written("<each>[<top><logprob></top>]</each>", &tokens), "[-1.0,-2.0,-3.0,-4.0,-5.0]");
    }

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        // Each as `repr(struct.unpack("f", struct.pack("f", value))[0])` has it.
        for (value, wanted) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (-1.0, "-1.0"),
            (-0.1, "-0.10000000149011612"),
            (-17.25, "-17.25"),
            (-1e-4, "-9.999999747378752e-05"),
            (-0.000_100_1, "-0.00010009999823523685"),
            (-1e-5, "-9.999999747378752e-06"),
            (-1.192_092_9e-7, "-1.1920928955078125e-07"),
            (-1e-10, "-1.000000013351432e-10"),
            (-f32::from_bits(1), "-1.401298464324817e-45"),
            (2.0_f32.powi(-20), "9.5367431640625e-07"),
            (-12_345.0, "-9999.0"),
            (f32::NEG_INFINITY, "-9999.0"),
            (f32::NAN, "-9999.0"),
        ] {
            assert_eq!(logprob(value), wanted);
        }
    }

    #[test]
    fn offsets_count_the_text_s_characters() {
        for (tokens, wanted) in [
            (&["\u{e9}\u{8a9e}".as_bytes(), b"", b"a", b"b"][..], &[0, 2, 2, 3][..]),
            // A character out of three tokens, and what follows it.
            (&[b"x", b"\xe8", b"\xaa", b"\x9ey", b"z"], &[0, 1, 1, 1, 3]),
            // What is no character is U+FFFD in the text, once for each piece of one that was begun.
            (&[b"\xff\xff", b"a", b"\xe8", b"b", b"\xe8\xaa", b"\xe8"], &[0, 2, 3, 4, 5, 6]),
        ] {
            let pattern = Pattern::parse("[<each><offset></each>]").unwrap();
            let mut place = Place::default();
            let mut all = Items::default();
            for bytes in tokens {
                all.append(pattern.items(&[token(bytes, 0.0, &[])], &mut place));
            }
            let mut into = Vec::new();
            pattern.write(&all, &mut into);
            assert_eq!(into, format!("{wanted:?}").replace(' ', "").into_bytes());
        }
    }

    #[test]
    fn what_is_not_shown_moves_no_offset() {
        let mut hidden = token(b"<|x|>", 0.0, &[]);
        hidden.logprobs.as_mut().unwrap().is_text = false;
        let tokens = [token(b"a", 0.0, &[]), hidden, token(b"b", 0.0, &[])];
        assert_eq!(written("[<each><name><offset></each>]", &tokens), r#"["a"0,"<|x|>"1,"b"1]"#);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in ["<each>", "<each><what></each>", "<each><token</each>", "<each><top><token></each>"] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }

    fn any_token() -> impl Strategy<Value = PickedToken> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..6);
        let top = prop::collection::vec((bytes(), any::<i32>(), any::<f32>()), 0..4);
        (bytes(), any::<f32>(), top).prop_map(|(bytes, logprob, top)| PickedToken {
            id: 0,
            logprobs: Some(TokenLogprobs { bytes, is_text: true, logprob, top }),
        })
    }

    proptest! {
        #[test]
        fn any_tokens_are_json_and_the_same_in_one_call_or_two(
            tokens in prop::collection::vec(any_token(), 0..8), cut in 0usize..8
        ) {
            for text in [OBJECTS, COLUMNS] {
                let whole = written(text, &tokens);
                prop_assert!(serde_json::from_str::<serde_json::Value>(&whole).is_ok(), "{whole}");
                let pattern = Pattern::parse(text).unwrap();
                let (first, rest) = tokens.split_at(cut.min(tokens.len()));
                let mut place = Place::default();
                let mut items = pattern.items(first, &mut place);
                items.append(pattern.items(rest, &mut place));
                let mut into = Vec::new();
                pattern.write(&items, &mut into);
                prop_assert_eq!(whole, String::from_utf8(into).unwrap());
            }
        }

        #[test]
        fn a_token_begins_in_the_character_at_its_offset(tokens in prop::collection::vec(
            prop::collection::vec(prop::sample::select(vec![0x61u8, 0xe8, 0xaa, 0x9e, 0xf0, 0x9f, 0xc3, 0xff]), 0..4), 0..8
        )) {
            let mut place = Place::default();
            let all = tokens.concat();
            let mut before = 0;
            for bytes in tokens.iter().filter(|it| !it.is_empty()) {
                // What comes next shows whether the first byte goes on with a character.
                let (without, with) = (&all[..before], &all[..=before]);
                let (without, with) = (String::from_utf8_lossy(without), String::from_utf8_lossy(with));
                let expected = with.chars().count() - 1;
                prop_assert!(expected == without.chars().count() || expected + 1 == without.chars().count());
                prop_assert_eq!(place.take(bytes), expected);
                before += bytes.len();
            }
        }

        #[test]
        fn any_number_comes_back(value: f32) {
            let wanted = f64::from(value).max(LEAST);
            prop_assert_eq!(logprob(value).parse::<f64>().unwrap().to_bits(), wanted.to_bits());
        }
    }
}
