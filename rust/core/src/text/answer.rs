//! The text of one answer: bytes of tokens in, whole characters that are safe to send out.

use super::{detok::Utf8Decoder, stop::StopStrings};

/// Decodes across token borders and cuts at stop strings. For engines that give text only, too.
#[derive(Clone, Debug, Default)]
pub struct AnswerText {
    decoder: Utf8Decoder,
    stop: StopStrings,
}

impl AnswerText {
    /// An answer that ends before the first of `stop`.
    pub fn new(stop: &[String]) -> Self {
        Self { decoder: Utf8Decoder::default(), stop: StopStrings::new(stop) }
    }

    /// Takes the bytes of a token, and gives the text that is safe to send: whole characters, none of
    /// which may still turn out to belong to a stop string. Invalid bytes become U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut text = String::new();
        self.decoder.push(bytes, &mut text);
        self.stop.push(&text)
    }

    /// Has a stop string ended the answer?
    pub fn stopped(&self) -> bool {
        self.stop.stopped()
    }

    /// Bytes of text that the stop string took away, itself included.
    pub fn cut(&self) -> usize {
        self.stop.cut()
    }

    /// Bytes that wait: of an incomplete character, or of what may become a stop string.
    pub fn held(&self) -> usize {
        self.decoder.incomplete().len() + self.stop.held()
    }

    /// The rest, at the end of the answer; an incomplete character becomes U+FFFD. That may complete
    /// a stop string, so look at [`Self::stopped`] afterwards if it matters.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.decoder.finish(&mut text);
        let mut safe = self.stop.push(&text);
        if !self.stop.stopped() {
            safe.push_str(&self.stop.finish());
        }
        safe
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            let mut answer = AnswerText::new(&stop);
            let mut text = String::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                let before = answer.stopped();
                let piece = answer.push(now);
                prop_assert!(!before || piece.is_empty());
                text.push_str(&piece);
                prop_assert!(expected.starts_with(&text));
                rest = later;
            }
            text.push_str(&answer.finish());
            prop_assert_eq!(text, expected);
            prop_assert_eq!(answer.stopped(), expected_stop);
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut answer = AnswerText::new(&["</s>".to_owned()]);
        assert_eq!(answer.push(b"a <"), "a ");
        assert_eq!(answer.push(b"/"), "");
        assert_eq!(answer.push(b"b"), "</b");
        assert_eq!(answer.push("語".as_bytes()), "語");
        assert_eq!(answer.push(b"end</s>more"), "end");
        assert!(answer.stopped());
        assert_eq!(answer.push(b"more"), "");
        assert_eq!(answer.finish(), "");
    }
}
