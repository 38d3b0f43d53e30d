//! The parts of one answer: bytes of tokens in, whole characters that are safe to send out.

use std::{collections::VecDeque, sync::Arc};

use super::{control::ControlTokens, detok::Utf8Decoder, stop::StopStrings};
use crate::{
    chat::parse::{Calling, Found, Parsed, Parser, Watch, weight},
    event::Part,
};

/// Decodes across token borders, tells reasoning and calls from text, and cuts text at stop strings. For
/// engines that give text only, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerText {
    decoder: Utf8Decoder,
    /// None: all of it is text.
    parser: Option<Parser>,
    stop: StopStrings,
    /// Bytes that came, as the parser counts them.
    place: u64,
    /// Text that the stop strings hold back: how long it is, and where it came from.
    waiting: VecDeque<(usize, u64)>,
    /// Empty, and there for its memory.
    parsed: Vec<Parsed>,
}

/// A part of an answer that is safe to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// More of a part. It came from the answer's bytes from `begin` up to `end`.
    Piece {
        /// Of which part.
        part: Part,
        /// What it adds.
        text: String,
        /// See above, and [`AnswerText::place`].
        begin: u64,
        /// See above.
        end: u64,
    },
    /// A call of the tool of that name; its input follows.
    CallBegan(String),
    /// The input is complete.
    CallEnded,
}

impl AnswerText {
    /// An answer whose text ends before the first of `stop`, which may name some of the model's control
    /// tokens. `watch`: what beside text is looked for. `begun`: what the answer begins with already.
    pub fn new(stop: &[String], control: &ControlTokens, watch: Watch, begun: &str) -> Self {
        let is_watched = watch.looks();
        let mut parser = is_watched.then(|| Parser::new(Arc::new(watch)));
        if let Some(parser) = &mut parser {
            // It was sent before.
            parser.push(begun, &mut Vec::new());
        }
        let place = if is_watched { begun.len() as u64 } else { 0 };
        Self { parser, stop: StopStrings::new(stop, control), place, ..Self::default() }
    }

    /// The number of the next byte, for telling what came of which token.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// Takes the bytes of a token, and tells what is safe to send: whole characters, none of which may still
    /// turn out to belong to a stop string or to a mark. Invalid bytes become U+FFFD.
    pub fn push(&mut self, bytes: &[u8], told: &mut Vec<Told>) {
        if self.pass(bytes, told) {
            return;
        }
        let mut text = String::new();
        self.decoder.push(bytes, &mut text);
        self.text(text, told);
    }

    /// Takes the bytes of a token if they are text or thought, all of them and whatever follows: no call begins with
    /// them. As most do, where more than text is looked for. False: they are to be [read](Self::push).
    pub fn pass(&mut self, bytes: &[u8], told: &mut Vec<Told>) -> bool {
        let Some(parser) = self.parser.as_mut().filter(|_| self.decoder.incomplete().is_empty()) else {
            return false;
        };
        let Some(parsed) = std::str::from_utf8(bytes).ok().and_then(|text| parser.pass(text)) else {
            return false;
        };
        self.place += bytes.len() as u64;
        self.one(parsed, told);
        true
    }

    /// Takes a control token, which is not shown, but may be a mark or complete a stop string.
    pub fn push_control(&mut self, name: &[u8], told: &mut Vec<Told>) {
        let begin = self.place;
        self.place += weight(name) as u64;
        if self.parser.is_some() {
            self.parse(|parser, parsed| parser.push_control(name, parsed), told);
        } else {
            self.one(Parsed { found: Found::Control(name.to_owned()), begin, end: self.place }, told);
        }
    }

    /// The stop string that has ended the answer.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stop.found()
    }

    /// Has the answer said all that was asked for, since one call was to be made and is there?
    pub fn is_done(&self) -> bool {
        self.parser.as_ref().is_some_and(Parser::is_done)
    }

    /// Is what comes next thought?
    pub fn thinks(&self) -> bool {
        self.parser.as_ref().is_some_and(Parser::thinks)
    }

    /// The call under way.
    pub fn calling(&self) -> Option<Calling> {
        self.parser.as_ref().and_then(Parser::calling)
    }

    /// Bytes of the character that is not complete yet.
    pub fn incomplete(&self) -> &[u8] {
        self.decoder.incomplete()
    }

    /// What may become a mark is none.
    pub fn deny(&mut self, told: &mut Vec<Told>) {
        self.parse(Parser::deny, told);
    }

    /// Does it consist of more than text?
    pub fn has_parts(&self) -> bool {
        self.parser.is_some()
    }

    /// The rest, at the end of the answer; an incomplete character becomes U+FFFD. That may complete
    /// a stop string, so look at [`Self::stopped_by`] afterwards if it matters. `by_itself`: the model ended it.
    pub fn finish(&mut self, by_itself: bool, told: &mut Vec<Told>) {
        let mut text = String::new();
        self.decoder.finish(&mut text);
        self.text(text, told);
        self.parse(|parser, parsed| parser.finish(by_itself, parsed), told);
        self.release(told);
    }

    fn text(&mut self, text: String, told: &mut Vec<Told>) {
        if text.is_empty() {
            return;
        }
        let begin = self.place;
        self.place += text.len() as u64;
        if self.parser.is_some() {
            self.parse(|parser, parsed| parser.push(&text, parsed), told);
        } else {
            self.one(Parsed { found: Found::Text(text), begin, end: self.place }, told);
        }
    }

    /// Tells what the parser makes of something, if there is a parser.
    fn parse(&mut self, act: impl FnOnce(&mut Parser, &mut Vec<Parsed>), told: &mut Vec<Told>) {
        let Some(parser) = &mut self.parser else { return };
        let mut parsed = std::mem::take(&mut self.parsed);
        act(parser, &mut parsed);
        for one in parsed.drain(..) {
            self.one(one, told);
        }
        self.parsed = parsed;
    }

    fn one(&mut self, Parsed { found, begin, end }: Parsed, told: &mut Vec<Told>) {
        if self.stop.found().is_some() {
            return;
        }
        let (part, text) = match found {
            Found::Text(text) => {
                self.waiting.push_back((text.len(), begin));
                let safe = self.stop.push(&text);
                return self.say(safe, told);
            }
            Found::Control(name) => {
                let safe = self.stop.push_control(&name);
                return self.say(safe, told);
            }
            Found::Reasoning(text) => (Part::Reasoning, text),
            Found::Input(text) => (Part::Input, text),
            Found::CallBegan(name) => {
                self.release(told);
                return told.push(Told::CallBegan(name));
            }
            Found::CallEnded => return told.push(Told::CallEnded),
        };
        // A stop string does not reach over another part.
        self.release(told);
        told.push(Told::Piece { part, text, begin, end });
    }

    /// What the stop strings hold back has become none.
    fn release(&mut self, told: &mut Vec<Told>) {
        if self.stop.found().is_none() {
            let safe = self.stop.finish();
            self.say(safe, told);
        }
    }

    /// Text that the stop strings have let pass.
    fn say(&mut self, text: String, told: &mut Vec<Told>) {
        let Some(&(_, begin)) = self.waiting.front().filter(|_| !text.is_empty()) else { return };
        let (mut left, mut end) = (text.len(), begin);
        while left > 0 {
            let Some((length, from)) = self.waiting.front_mut() else { break };
            let taken = left.min(*length);
            end = *from + taken as u64;
            (*length, *from) = (*length - taken, end);
            left -= taken;
            if *length == 0 {
                self.waiting.pop_front();
            }
        }
        told.push(Told::Piece { part: Part::Text, text, begin, end });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::{Vocabulary, attribute};

    fn plain(stop: &[String], control: &ControlTokens) -> AnswerText {
        AnswerText::new(stop, control, Watch::default(), "")
    }

    /// The text of what an answer tells.
    fn text(act: impl FnOnce(&mut Vec<Told>)) -> String {
        let mut told = Vec::new();
        act(&mut told);
        let piece = |it| if let Told::Piece { text, .. } = it { text } else { String::new() };
        told.into_iter().map(piece).collect()
    }

    fn push(answer: &mut AnswerText, bytes: &[u8]) -> String {
        text(|told| answer.push(bytes, told))
    }

    fn push_control(answer: &mut AnswerText, name: &[u8]) -> String {
        text(|told| answer.push_control(name, told))
    }

    fn finish(answer: &mut AnswerText) -> String {
        text(|told| answer.finish(true, told))
    }

    /// Character by character: the first that completes a stop string ends the answer.
    fn naive(bytes: &[u8], stop: &[String]) -> (String, bool) {
        let mut text = String::new();
        for character in String::from_utf8_lossy(bytes).chars() {
            text.push(character);
            let longest =
                stop.iter().filter(|it| !it.is_empty() && text.ends_with(it.as_str())).map(String::len).max();
            if let Some(length) = longest {
                text.truncate(text.len() - length);
                return (text, true);
            }
        }
        (text, false)
    }

    fn byte_soup() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => "[ab\n ]{1,3}".prop_map(String::into_bytes),
            2 => prop::sample::select(vec!["é", "語", "🦙", "\u{fffd}"]).prop_map(|it| it.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..3),
            1 => prop::sample::select(vec![vec![0xf0], vec![0xe8, 0xaa], vec![0xf0, 0x9f, 0xa6], vec![0xed, 0xa0]]),
        ];
        prop::collection::vec(piece, 0..20).prop_map(|it| it.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn however_cut_it_is_the_lossy_text_up_to_the_first_stop_string(
            bytes in byte_soup(),
            cuts in prop::collection::vec(1usize..6, 1..40),
            stop in prop::collection::vec("[ab\n ]{0,4}|é|語a|\u{fffd}", 0..4),
        ) {
            let (expected, expected_stop) = naive(&bytes, &stop);
            let mut answer = plain(&stop, &ControlTokens::default());
            let mut text = String::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                let before = answer.stopped_by().is_some();
                let piece = push(&mut answer, now);
                prop_assert!(!before || piece.is_empty());
                text.push_str(&piece);
                prop_assert!(expected.starts_with(&text));
                rest = later;
            }
            text.push_str(&finish(&mut answer));
            prop_assert_eq!(text, expected);
            prop_assert_eq!(answer.stopped_by().is_some(), expected_stop);
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut answer = plain(&["</s>".to_owned()], &ControlTokens::default());
        assert_eq!(push(&mut answer, b"a <"), "a ");
        assert_eq!(push(&mut answer, b"/"), "");
        assert_eq!(push(&mut answer, b"b"), "</b");
        assert_eq!(push(&mut answer, "語".as_bytes()), "語");
        assert_eq!(push(&mut answer, b"end</s>more"), "end");
        assert!(answer.stopped_by().is_some());
        assert_eq!(push(&mut answer, b"more"), "");
        assert_eq!(finish(&mut answer), "");
    }

    /// What a model generates: text, or a control token.
    #[derive(Clone, Debug)]
    enum Piece {
        Text(String),
        Control(&'static str),
    }

    fn control() -> ControlTokens {
        let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
        for name in ["<a>", "<b>", "a"] {
            vocabulary.bytes.extend(name.as_bytes());
            vocabulary.offsets.push(vocabulary.bytes.len() as u32);
            vocabulary.attributes.push(attribute::CONTROL);
        }
        ControlTokens::of(&vocabulary)
    }

    /// Piece by piece and character by character, where a control token is one character of its own.
    fn naive_with_control(pieces: &[Piece], stop: &[String], control: &ControlTokens) -> (String, bool) {
        let (mut text, mut all) = (String::new(), String::new());
        let coded = |name: &str| char::from_u32(0xF_0000 + name.bytes().map(u32::from).sum::<u32>()).unwrap();
        let codes: Vec<String> = stop
            .iter()
            .map(|stop| {
                let mut code = String::new();
                let mut begin = 0;
                for found in control.find(stop) {
                    code.push_str(&stop[begin..found.start]);
                    code.push(coded(&stop[found.clone()]));
                    begin = found.end;
                }
                code + &stop[begin..]
            })
            .collect();
        let is_code = |it: char| it as u32 >= 0xF_0000;
        let characters = pieces.iter().flat_map(|it| match it {
            Piece::Text(text) => text.chars().collect::<Vec<_>>(),
            Piece::Control(name) => vec![coded(name)],
        });
        for character in characters {
            all.push(character);
            if !is_code(character) {
                text.push(character);
            }
            let in_text = stop
                .iter()
                .filter(|it| !is_code(character) && text.ends_with(it.as_str()))
                .map(String::len)
                .max();
            let in_all = codes.iter().filter(|it| it.contains(is_code) && all.ends_with(it.as_str()));
            let in_all =
                in_all.map(|it| it.chars().filter(|it| !is_code(*it)).map(char::len_utf8).sum()).max();
            if let Some(length) = in_text.max(in_all) {
                text.truncate(text.len() - length);
                return (text, true);
            }
        }
        (text, false)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn control_tokens_complete_stop_strings_and_are_not_shown(
            pieces in prop::collection::vec(
                prop_oneof![
                    2 => "[bx<>\u{e9}]{1,3}".prop_map(Piece::Text),
                    1 => prop::sample::select(vec!["<a>", "<b>"]).prop_map(Piece::Control),
                ],
                0..12,
            ),
            stop in prop::collection::vec("[bx]{0,2}(<a>|<b>|\u{e9}|<)[bx]{0,1}(<b>)?", 0..4),
        ) {
            let control = control();
            let (expected, expected_stop) = naive_with_control(&pieces, &stop, &control);
            let mut answer = plain(&stop, &control);
            let mut text = String::new();
            for piece in &pieces {
                let safe = match piece {
                    Piece::Text(text) => push(&mut answer, text.as_bytes()),
                    Piece::Control(name) => push_control(&mut answer, name.as_bytes()),
                };
                text.push_str(&safe);
                prop_assert!(expected.starts_with(&text), "{} {}", text, expected);
            }
            text.push_str(&finish(&mut answer));
            prop_assert_eq!((text, answer.stopped_by().is_some()), (expected, expected_stop));
        }
    }

    #[test]
    fn a_control_token_is_found_whole_or_not_at_all() {
        let control = control();
        for (stop, said, stopped) in [
            ("<a>", vec![Piece::Control("<a>")], true),
            // Its letters are a stop string as well.
            ("<a>", vec![Piece::Text("<a>".into())], true),
            ("b<a>", vec![Piece::Text("b".into()), Piece::Control("<a>")], true),
            ("<a>b", vec![Piece::Control("<a>"), Piece::Text("b".into())], true),
            ("<a><b>", vec![Piece::Control("<a>"), Piece::Control("<b>")], true),
            // What is not shown in between does not hide a stop string.
            ("bb", vec![Piece::Text("b".into()), Piece::Control("<a>"), Piece::Text("b".into())], true),
            (">", vec![Piece::Control("<a>")], false),
            ("x", vec![Piece::Control("<a>")], false),
            ("<b>", vec![Piece::Control("<a>")], false),
            ("<a>", vec![Piece::Text("<".into()), Piece::Control("a"), Piece::Text(">".into())], false),
        ] {
            let mut answer = plain(&[stop.to_owned()], &control);
            for piece in &said {
                match piece {
                    Piece::Text(text) => push(&mut answer, text.as_bytes()),
                    Piece::Control(name) => push_control(&mut answer, name.as_bytes()),
                };
            }
            finish(&mut answer);
            assert_eq!(answer.stopped_by().is_some(), stopped, "{stop} {said:?}");
        }
    }
}
