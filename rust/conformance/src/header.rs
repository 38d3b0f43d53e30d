//! Where a passage stands in `engine_api.h`, and the sentence that it is a part of.

use llm_node_abi::HEADER;

/// A word of the header.
struct Word {
    text: &'static str,
    /// Its line, from 1.
    line: usize,
    /// Does what is said begin anew with it: a comment, a list's item, the words behind the name of one?
    begins: bool,
    /// The code that it is said of, where that stands on the line.
    code: &'static str,
}

/// The words of all comments.
fn words() -> Vec<Word> {
    let mut words = Vec::new();
    // The column of the comment on the line before.
    let mut column = None;
    for (index, line) in HEADER.lines().enumerate() {
        let Some(at) = line.find("//") else {
            column = None;
            continue;
        };
        let (code, said) = (line[..at].trim(), &line[at + 2..]);
        let text = said.trim_start();
        // `// Memory     Nobody frees …`: two spaces stand behind the name of an item.
        let name = text.find("  ").filter(|_| said.starts_with(' '));
        let begins = !code.is_empty() || column != Some(at) || text.is_empty() || name.is_some();
        column = (!text.is_empty()).then_some(at);
        for word in text.split_whitespace() {
            let offset = word.as_ptr().addr() - text.as_ptr().addr();
            let first = offset == 0 && begins;
            let behind_name = name.is_some_and(|end| text[end..].trim_start().as_ptr() == word.as_ptr());
            words.push(Word { text: word, line: index + 1, begins: first || behind_name, code });
        }
    }
    words
}

/// Does a sentence end with that word?
fn ends_sentence(word: &str) -> bool {
    word.trim_end_matches([')', '"', '\'']).ends_with(['.', '?', '!']) && !word.ends_with("...")
}

/// Where the passage stands: from its first word to behind its last. White space does not count, and it may end before
/// a comma.
fn find(words: &[Word], passage: &str) -> Option<(usize, usize)> {
    let wanted: Vec<&str> = passage.split_whitespace().collect();
    let (last, before) = wanted.split_last()?;
    let ends =
        |word: &str| word.strip_prefix(last).is_some_and(|rest| rest.chars().all(|c| ".,:;".contains(c)));
    let at = words.windows(wanted.len()).position(|window| {
        window.iter().zip(before).all(|(word, wanted)| word.text == *wanted)
            && ends(window[before.len()].text)
    })?;
    Some((at, at + wanted.len()))
}

/// With one space wherever there is any white space.
fn spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The whole sentences in which the passage stands, with the code that they are said of where that is on their line, and
/// the line, from 1, on which they begin.
pub(crate) fn quoted(passage: &str) -> Option<(String, usize)> {
    let words = words();
    // A value of a code stands before what is said of it.
    let in_code = || words.iter().position(|it| it.begins && spaced(it.code).contains(passage));
    let (mut begin, mut end) = find(&words, passage).or_else(|| in_code().map(|at| (at, at + 1)))?;
    while begin > 0 && !words[begin].begins && !ends_sentence(words[begin - 1].text) {
        begin -= 1;
    }
    while end < words.len() && !words[end].begins && !ends_sentence(words[end - 1].text) {
        end += 1;
    }
    let said: Vec<&str> = words[begin..end].iter().map(|it| it.text).collect();
    let Word { code, line, .. } = words[begin];
    let code = spaced(code);
    let sign = if code.is_empty() { "" } else { " // " };
    Some((format!("{code}{sign}{}", said.join(" ")), line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CHECKS;

    #[test]
    fn passages_are_found_across_lines() {
        let (said, line) = quoted("Each sequence takes part at most once.").unwrap();
        assert!(HEADER.lines().nth(line - 1).unwrap().contains(said.split(' ').next().unwrap()));
        assert!(quoted("and the host asks seq_range.").is_some(), "it goes over two lines");
        assert_eq!(quoted("what stands nowhere"), None);
    }

    #[test]
    fn a_quotation_is_whole() {
        for (passage, whole) in [
            ("Nobody frees what the other side allocated.", "Nobody frees what the other side allocated."),
            (
                "of tokens[0]; it must be where the sequence ends",
                "uint32_t position; // of tokens[0]; it must be where the sequence ends",
            ),
            (
                "nothing on stdout. It logs through the host.",
                "The engine leaves the process as it found it: no signal handlers, no terminate handler, no exit or \
                 abort for a bad model, no fork, no setenv or chdir, no network, nothing on stdout. It logs through \
                 the host.",
            ),
            (
                "several models, each a handle, and what they are",
                "several models, each a handle, and what they are",
            ),
            ("Any thread, any number at once.", "Any thread, any number at once."),
            (
                "ERR_BUFFER_TOO_SMALL = 12",
                "ERR_BUFFER_TOO_SMALL = 12, // the length out-parameter says how much is needed; the host calls again with \
                 room for so much",
            ),
        ] {
            assert_eq!(quoted(passage).unwrap().0, whole);
        }
    }

    #[test]
    fn every_check_rests_on_a_passage() {
        for check in CHECKS.iter().copied().flatten() {
            assert!(quoted(check.contract).is_some(), "{}: {}", check.name, check.contract);
        }
    }
}
