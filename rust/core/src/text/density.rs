//! How few tokens a text can have, told without tokenising it.

use crate::engine::{Token, Vocabulary};

/// The most text that one token of a vocabulary holds, if a text's length says anything about its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Density {
    /// 0: not known.
    most: u64,
}

impl Density {
    /// That of a vocabulary.
    pub fn of(vocabulary: &Vocabulary) -> Self {
        // A token for every byte means that no text is outside the vocabulary. Without these, a whole word
        // can be one "unknown", or nothing at all.
        let mut single = [false; 256];
        let mut most = 0;
        for token in 0..vocabulary.len() as Token {
            let bytes = vocabulary.token_bytes(token);
            if let [byte] = bytes {
                single[usize::from(*byte)] = true;
            }
            most = most.max(bytes.iter().filter(|it| begins(**it)).count() as u64);
        }
        Self { most: if single.contains(&false) { 0 } else { most } }
    }

    /// A number of tokens that `text` has in any case; 0 where that is not known.
    ///
    /// Tokenizers may drop or join white space, compose a letter and its accents, and write one form of
    /// a character for another. So only what survives all of that counts, once for each character: those of
    /// ASCII but white space and control characters, and all other letters and digits. In a token,
    /// everything counts that may be the first byte of one of these.
    pub fn least_tokens(self, text: &str) -> u64 {
        if self.most == 0 {
            return 0;
        }
        let counts = |it: &char| it.is_ascii_graphic() || (!it.is_ascii() && it.is_alphanumeric());
        (text.chars().filter(counts).count() as u64).div_ceil(self.most)
    }
}

/// Can a character that counts begin with this byte? Inside of one there are only 0x80 to 0xBF.
fn begins(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte >= 0xc0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(more: &[&str], without: Option<u8>) -> Vocabulary {
        let bytes = (0..=255).filter(|it| Some(*it) != without).map(|it| vec![it]);
        let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
        for token in bytes.chain(more.iter().map(|it| it.as_bytes().to_vec())) {
            vocabulary.bytes.extend(token);
            vocabulary.offsets.push(vocabulary.bytes.len() as u32);
            vocabulary.attributes.push(0);
        }
        vocabulary
    }

    #[test]
    fn a_token_holds_so_much() {
        let known = vocabulary(&["four", "        ", "\u{8a9e}\u{8a9e}"], None);
        for (text, least) in [
            ("", 0),
            ("abcd", 1),
            ("abcde", 2),
            ("a b\tc\nd", 1),
            ("\u{8a9e}\u{8a9e}\u{8a9e}\u{8a9e}\u{8a9e}", 2),
            // Two code points or one, and no letters.
            ("e\u{301}e\u{301}", 1),
            ("\u{200b}\u{200b}\u{200b}\u{200b}\u{200b}\u{200b}", 0),
        ] {
            assert_eq!(known.least_tokens(text), least, "{text:?}");
        }
    }

    #[test]
    fn a_vocabulary_that_lacks_a_byte_says_nothing() {
        assert_eq!(vocabulary(&["four"], Some(b'x')).least_tokens(&"a".repeat(1000)), 0);
        assert_eq!(Vocabulary::default().least_tokens("a"), 0);
    }
}
