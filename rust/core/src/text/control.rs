//! Which parts of a rendered prompt may be control tokens: those that the template wrote.
//!
//! What people say is text. `<|im_end|>` in a message must not end the message, however the template
//! trims, splits, joins or replaces what it is given. Templates are programs, so their output does not say
//! where it came from. Hence a conversation is rendered again in disguise, and where the disguise shows in
//! the output, the conversation spoke. The output without the disguise must be the plain one, or the
//! template has looked at what was changed; then the next disguise changes less:
//!
//! 1. Every character that a control token could need is another one, of a private plane. Only words that
//!    the template itself compares with are left alone.
//! 2. Only whole control tokens in the conversation are marked, each with one character before it. So
//!    `'</think>' in content` and `content.split('</think>')` go on to work where that is a control token.
//! 3. Only these, with all their characters replaced. That is always right to use: what it changes in the
//!    output are texts of control tokens that a message held.
//!
//! Owns the disguises and the cutting of a prompt. Knows neither templates nor tokenizers.

use std::{collections::HashSet, iter, ops::Range};

use aho_corasick::{AhoCorasick, MatchKind};
use minijinja::{Value, value::ValueKind};

use crate::engine::{Token, Vocabulary, attribute};

/// What the second disguise puts before control tokens: this and as many more as there are such tokens.
const MARKS: Range<u32> = 0xF_0000..0xF_FFFE;
/// Where the other disguises take their characters from.
const ALIASES: Range<u32> = 0x10_0000..0x10_FFFE;
/// What may be a role without being a word of the template: `'<|' + message.role + '|>'` is a token.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// The texts of a vocabulary's control tokens.
#[derive(Clone, Debug, Default)]
pub struct ControlTokens {
    texts: Vec<String>,
    /// The characters of all texts that a disguise may change. White space and what JSON escapes stay:
    /// templates trim the one, `tojson` looks for the other.
    alphabet: Vec<char>,
    /// Every place where one stands.
    all: Option<AhoCorasick>,
    /// The first and longest ones.
    longest: Option<AhoCorasick>,
}

impl ControlTokens {
    /// Those of a vocabulary.
    pub fn of(vocabulary: &Vocabulary) -> Self {
        let mut texts: Vec<String> = (0..vocabulary.len() as Token)
            .filter(|&token| vocabulary.has(token, attribute::CONTROL))
            .filter_map(|token| std::str::from_utf8(vocabulary.token_bytes(token)).ok())
            .filter(|text| !text.trim().is_empty())
            .map(str::to_owned)
            .collect();
        texts.sort_unstable();
        texts.dedup();
        let mut alphabet: Vec<char> = texts.iter().flat_map(|text| text.chars()).collect();
        alphabet.sort_unstable();
        alphabet.dedup();
        alphabet.retain(|it| !it.is_whitespace() && !it.is_control() && !matches!(it, '"' | '\\'));
        Self {
            all: finder(&texts, MatchKind::Standard),
            longest: finder(&texts, MatchKind::LeftmostLongest),
            texts,
            alphabet,
        }
    }

    /// Where they are spelled in a text: the first and longest ones.
    pub(crate) fn find(&self, text: &str) -> impl Iterator<Item = Range<usize>> {
        self.longest.iter().flat_map(move |it| it.find_iter(text)).map(|it| it.range())
    }

    /// Is one of them spelled in it?
    pub(super) fn occur_in(&self, text: &str) -> bool {
        self.all.as_ref().is_some_and(|it| it.is_match(text))
    }

    /// Is it a piece of one of them?
    fn has_fragment(&self, text: &str) -> bool {
        self.texts.iter().any(|it| it.contains(text))
    }

    /// Cuts a text at its control tokens into what may hold some and what may not. `said` tells of each
    /// byte whether it came from the conversation.
    pub(super) fn cut(&self, text: String, said: &[bool]) -> Rendered {
        let Some(all) = &self.all else { return Rendered::plain(text) };
        let (mut genuine, mut spelled) = (Vec::new(), Vec::new());
        for found in all.find_overlapping_iter(&text) {
            let range = found.range();
            if said[range.clone()].contains(&true) { spelled.push(range) } else { genuine.push(range) }
        }
        if spelled.is_empty() {
            return Rendered::plain(text);
        }
        spelled.sort_unstable_by_key(|it| it.start);
        genuine.sort_unstable_by_key(|it| (it.start, text.len() - it.end));
        let mut literal = Vec::new();
        let (mut begin, mut next) = (0, 0);
        let end = text.len();
        for token in genuine.into_iter().chain(iter::once(end..end)) {
            if token.start < begin {
                continue;
            }
            while spelled.get(next).is_some_and(|it| it.end <= begin) {
                next += 1;
            }
            // Those that overlap the gap before this token. One may reach over it into the next gap.
            if begin < token.start
                && spelled[next..].iter().take_while(|it| it.start < token.start).any(|it| it.end > begin)
            {
                literal.push(begin..token.start);
            }
            begin = token.end;
        }
        Rendered { text, literal }
    }
}

fn finder(texts: &[String], kind: MatchKind) -> Option<AhoCorasick> {
    if texts.is_empty() {
        return None;
    }
    AhoCorasick::builder().match_kind(kind).build(texts).ok()
}

/// A prompt, and where no control token may be read in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    text: String,
    literal: Vec<Range<usize>>,
}

impl Rendered {
    pub(super) fn plain(text: String) -> Self {
        Self { text, literal: Vec::new() }
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first `length` bytes of it, which end with a character.
    #[must_use]
    pub(crate) fn cut(mut self, length: usize) -> Self {
        self.text.truncate(length);
        self.literal.retain(|it| it.start < length);
        if let Some(last) = self.literal.last_mut() {
            last.end = last.end.min(length);
        }
        self
    }

    /// All of it.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Its parts in order, and of each whether control tokens are read in it. They border on control
    /// tokens, where tokenizers part a text anyway. A prompt in which the conversation spells no control
    /// token is one part.
    pub fn parts(&self) -> impl Iterator<Item = (&str, bool)> {
        let mut begin = 0;
        let end = self.text.len();
        let mut parts = Vec::with_capacity(self.literal.len() * 2 + 1);
        for range in self.literal.iter().cloned().chain(iter::once(end..end)) {
            parts.push((&self.text[begin..range.start], true));
            parts.push((&self.text[range.clone()], false));
            begin = range.end;
        }
        parts.into_iter().filter(|(text, _)| !text.is_empty())
    }
}

/// What a template compares a conversation with.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    /// Its identifiers and string literals.
    all: HashSet<String>,
    /// String literals that no disguise may change, as they have nothing of a control token.
    compared: Option<AhoCorasick>,
}

impl Words {
    /// Those of a template.
    pub(super) fn of(source: &str, control: &ControlTokens) -> Self {
        let (identifiers, literals) = words(source);
        let compared: Vec<String> = literals
            .iter()
            .filter(|it| it.chars().any(|it| control.alphabet.contains(&it)))
            .filter(|it| !control.occur_in(it) && !control.has_fragment(it))
            .cloned()
            .collect();
        Self {
            all: identifiers.into_iter().chain(literals).collect(),
            compared: finder(&compared, MatchKind::Standard),
        }
    }
}

/// The identifiers and the string literals in a template's tags.
fn words(source: &str) -> (HashSet<String>, HashSet<String>) {
    let (mut identifiers, mut literals) = (HashSet::new(), HashSet::new());
    let mut rest = source;
    while let Some(begin) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let end = if rest[begin..].starts_with("{{") { "}}" } else { "%}" };
        rest = &rest[begin + 2..];
        while !rest.is_empty() && !rest.starts_with(end) {
            let Some(first) = rest.chars().next() else { break };
            let length = match first {
                '\'' | '"' => {
                    let (literal, length) = literal(&rest[1..], first);
                    literals.insert(literal);
                    length + 1
                }
                it if it == '_' || it.is_alphanumeric() => {
                    let length =
                        rest.find(|it: char| it != '_' && !it.is_alphanumeric()).unwrap_or(rest.len());
                    identifiers.insert(rest[..length].to_owned());
                    length
                }
                other => other.len_utf8(),
            };
            rest = &rest[length..];
        }
    }
    literals.remove("");
    (identifiers, literals)
}

/// A string literal behind its first quotation mark, and how long it is with the last one.
fn literal(text: &str, quote: char) -> (String, usize) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => match characters.next().map(|it| it.1) {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some(other) => value.push(other),
                None => break,
            },
            it if it == quote => return (value, at + quote.len_utf8()),
            it => value.push(it),
        }
    }
    (value, text.len())
}

/// How a conversation is changed before it is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disguise {
    /// See the module: its steps 1 to 3.
    Characters,
    /// Step 2.
    Marks,
    /// Step 3.
    Tokens,
}

/// Changes conversations and finds the changes in what a template made of them.
pub(super) struct Disguiser<'a> {
    control: &'a ControlTokens,
    words: &'a Words,
    disguise: Disguise,
    /// The first character of those that stand for the alphabet's.
    base: u32,
}

impl<'a> Disguiser<'a> {
    /// None where `used`, the private characters in conversation and template, are those that it needs.
    pub(super) fn new(
        control: &'a ControlTokens,
        words: &'a Words,
        disguise: Disguise,
        used: &HashSet<u32>,
    ) -> Option<Self> {
        if control.texts.is_empty() {
            return None;
        }
        let length = control.alphabet.len() as u32;
        let base = if disguise == Disguise::Marks {
            let free = control.texts.len() < MARKS.len() && !used.iter().any(|it| MARKS.contains(it));
            free.then_some(MARKS.start)
        } else {
            let free = |&base: &u32| !(base..base + length).any(|it| used.contains(&it));
            ALIASES.step_by(length.max(1) as usize).filter(|it| it + length <= ALIASES.end).find(free)
        };
        base.map(|base| Self { control, words, disguise, base })
    }

    /// What two that change alike have in common.
    pub(super) fn kind(&self) -> (Disguise, u32) {
        (self.disguise, self.base)
    }

    /// The same value in disguise.
    pub(super) fn put_on(&self, value: &Value) -> Value {
        match value.kind() {
            ValueKind::String => {
                value.as_str().map_or_else(|| value.clone(), |it| Value::from(self.text(it)))
            }
            ValueKind::Seq => each(value).map(|it| self.put_on(&it)).collect(),
            ValueKind::Map => Value::from_pairs(each(value).map(|key| {
                let inner = value.get_item(&key).unwrap_or_default();
                let is_role = key.as_str() == Some("role")
                    && inner.as_str().is_some_and(|it| ROLES.contains(&it) || self.is_word(it));
                (self.key(&key), if is_role { inner } else { self.put_on(&inner) })
            })),
            _ => value.clone(),
        }
    }

    /// A template finds keys by their names.
    fn key(&self, key: &Value) -> Value {
        match key.as_str() {
            Some(name) if !self.is_word(name) => Value::from(self.text(name)),
            _ => key.clone(),
        }
    }

    fn is_word(&self, text: &str) -> bool {
        self.words.all.contains(text) && !self.control.occur_in(text)
    }

    fn text(&self, text: &str) -> String {
        let tokens = || self.control.longest.iter().flat_map(|it| it.find_iter(text));
        let mut changed = vec![false; text.len()];
        match self.disguise {
            Disguise::Marks => {
                let mut out = String::with_capacity(text.len());
                let mut begin = 0;
                for found in tokens() {
                    out.push_str(&text[begin..found.start()]);
                    out.extend(char::from_u32(self.base + found.pattern().as_u32()));
                    begin = found.start();
                }
                out.push_str(&text[begin..]);
                return out;
            }
            Disguise::Characters => {
                changed.fill(true);
                for found in self.words.compared.iter().flat_map(|it| it.find_overlapping_iter(text)) {
                    changed[found.range()].fill(false);
                }
            }
            Disguise::Tokens => {}
        }
        for found in self.control.all.iter().flat_map(|it| it.find_overlapping_iter(text)) {
            changed[found.range()].fill(true);
        }
        let alias = |(at, character): (usize, char)| {
            let place = self.control.alphabet.binary_search(&character).ok().filter(|_| changed[at]);
            place.and_then(|it| char::from_u32(self.base + it as u32)).unwrap_or(character)
        };
        text.char_indices().map(alias).collect()
    }

    /// What was rendered, without the disguise; and of each byte whether the conversation said it.
    pub(super) fn take_off(&self, text: &str) -> (String, Vec<bool>) {
        let mut plain = String::with_capacity(text.len());
        let mut said = Vec::with_capacity(text.len());
        // Bytes that a mark speaks of.
        let mut marked = 0;
        for (at, character) in text.char_indices() {
            let place = (character as u32).checked_sub(self.base).map(|it| it as usize);
            let mut original = None;
            if self.disguise == Disguise::Marks {
                if let Some(token) = place.and_then(|it| self.control.texts.get(it)) {
                    if text[at + character.len_utf8()..].starts_with(token.as_str()) {
                        marked = token.len();
                    }
                    continue;
                }
            } else {
                original = place.and_then(|it| self.control.alphabet.get(it));
            }
            plain.push(*original.unwrap_or(&character));
            said.resize(plain.len(), original.is_some() || marked > 0);
            marked = marked.saturating_sub(character.len_utf8());
        }
        (plain, said)
    }

    /// What was rendered, without the disguise, cut into what may hold control tokens and what may not.
    pub(super) fn cut(&self, (plain, said): (String, Vec<bool>)) -> Rendered {
        self.control.cut(plain, &said)
    }
}

/// The items of a sequence, or the keys of a map.
fn each(value: &Value) -> impl Iterator<Item = Value> {
    value.try_iter().into_iter().flatten()
}

/// Is it one of the second disguise's marks?
/// May it be of a disguise?
pub(super) fn is_private(character: char) -> bool {
    character as u32 >= MARKS.start
}

/// Is it what the second disguise puts before control tokens?
pub(super) fn is_mark(character: char) -> bool {
    MARKS.contains(&(character as u32))
}

/// Collects the private characters that a disguise must not use.
pub(super) fn private(value: &Value, used: &mut HashSet<u32>) {
    match value.kind() {
        ValueKind::String => private_in(value.as_str().unwrap_or_default(), used),
        ValueKind::Seq => each(value).for_each(|it| private(&it, used)),
        ValueKind::Map => {
            for key in each(value) {
                private(&key, used);
                private(&value.get_item(&key).unwrap_or_default(), used);
            }
        }
        _ => {}
    }
}

/// See [`private`].
pub(super) fn private_in(text: &str, used: &mut HashSet<u32>) {
    used.extend(text.chars().map(|it| it as u32).filter(|&it| it >= MARKS.start));
}
