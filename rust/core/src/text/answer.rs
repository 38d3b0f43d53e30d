//! The text of one answer: bytes of tokens in, whole characters that are safe to send out.

use super::{control::ControlTokens, detok::Utf8Decoder, stop::StopStrings};

/// Decodes across token borders and cuts at stop strings. For engines that give text only, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerText {
    decoder: Utf8Decoder,
    stop: StopStrings,
}

impl AnswerText {
    /// An answer that ends before the first of `stop`, which may name some of the model's control tokens.
    pub fn new(stop: &[String], control: &ControlTokens) -> Self {
        Self { decoder: Utf8Decoder::default(), stop: StopStrings::new(stop, control) }
    }

    /// Takes the bytes of a token, and gives the text that is safe to send: whole characters, none of
    /// which may still turn out to belong to a stop string. Invalid bytes become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut text = String::new();
        self.decoder.push(bytes, &mut text);
        self.stop.push(&text)
    }

    /// Takes a control token, which is not shown, but may complete a stop string; gives the text that is
    /// safe to send then.
    pub fn push_control(&mut self, name: &[u8]) -> String {
        self.stop.push_control(name)
    }

    /// What a control token of that name counts among the bytes of [`Self::cut`] and [`Self::held`].
    pub fn weight(&self, name: &[u8]) -> usize {
        self.stop.weight(name)
    }

    /// The stop string that has ended the answer.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stop.found()
    }

    /// Bytes that the stop string took away, itself included.
    pub fn cut(&self) -> usize {
        self.stop.cut()
    }

    /// Bytes that wait: of an incomplete character, or of what may become a stop string.
    pub fn held(&self) -> usize {
        self.decoder.incomplete().len() + self.stop.held()
    }

    /// The rest, at the end of the answer; an incomplete character becomes U+FFFD. That may complete
    /// a stop string, so look at [`Self::stopped_by`] afterwards if it matters.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.decoder.finish(&mut text);
        let mut safe = self.stop.push(&text);
        if self.stop.found().is_none() {
            safe.push_str(&self.stop.finish());
        }
        safe
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::{Vocabulary, attribute};

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
            let mut answer = AnswerText::new(&stop, &ControlTokens::default());
            let mut text = String::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                let before = answer.stopped_by().is_some();
                let piece = answer.push(now);
                prop_assert!(!before || piece.is_empty());
                text.push_str(&piece);
                prop_assert!(expected.starts_with(&text));
                rest = later;
            }
            text.push_str(&answer.finish());
            prop_assert_eq!(text, expected);
            prop_assert_eq!(answer.stopped_by().is_some(), expected_stop);
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut answer = AnswerText::new(&["</s>".to_owned()], &ControlTokens::default());
        assert_eq!(answer.push(b"a <"), "a ");
        assert_eq!(answer.push(b"/"), "");
        assert_eq!(answer.push(b"b"), "</b");
        assert_eq!(answer.push("語".as_bytes()), "語");
        assert_eq!(answer.push(b"end</s>more"), "end");
        assert!(answer.stopped_by().is_some());
        assert_eq!(answer.push(b"more"), "");
        assert_eq!(answer.finish(), "");
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
            let mut answer = AnswerText::new(&stop, &control);
            let mut text = String::new();
            for piece in &pieces {
                let safe = match piece {
                    Piece::Text(text) => answer.push(text.as_bytes()),
                    Piece::Control(name) => answer.push_control(name.as_bytes()),
                };
                text.push_str(&safe);
                prop_assert!(expected.starts_with(&text), "{} {}", text, expected);
            }
            text.push_str(&answer.finish());
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
            let mut answer = AnswerText::new(&[stop.to_owned()], &control);
            for piece in &said {
                match piece {
                    Piece::Text(text) => answer.push(text.as_bytes()),
                    Piece::Control(name) => answer.push_control(name.as_bytes()),
                };
            }
            answer.finish();
            assert_eq!(answer.stopped_by().is_some(), stopped, "{stop} {said:?}");
        }
    }
}
