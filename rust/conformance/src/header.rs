//! Where a passage stands in `engine_api.h`.

use llm_node_abi::HEADER;

/// The line, from 1, on which the passage begins. Line breaks and comment signs do not count, and it may end
/// before a comma.
pub(crate) fn line_of(passage: &str) -> Option<usize> {
    let words: Vec<(&str, usize)> = HEADER
        .lines()
        .enumerate()
        .flat_map(|(index, line)| line.split_whitespace().map(move |word| (word, index + 1)))
        .filter(|(word, _)| *word != "//")
        .collect();
    let wanted: Vec<&str> = passage.split_whitespace().collect();
    let (last, before) = wanted.split_last()?;
    let ends =
        |word: &str| word.strip_prefix(last).is_some_and(|rest| rest.chars().all(|c| ".,:;".contains(c)));
    words
        .windows(wanted.len())
        .find(|window| {
            window.iter().zip(before).all(|((word, _), wanted)| word == wanted)
                && ends(window[before.len()].0)
        })
        .map(|window| window[0].1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CHECKS;

    #[test]
    fn passages_are_found_across_lines() {
        let line = line_of("Each sequence takes part at most once.").unwrap();
        assert!(HEADER.lines().nth(line - 1).unwrap().contains("Each sequence takes part"));
        assert!(line_of("and the host asks seq_range.").is_some(), "it goes over two lines");
        assert_eq!(line_of("what stands nowhere"), None);
    }

    #[test]
    fn every_check_rests_on_a_passage() {
        for check in CHECKS.iter().copied().flatten() {
            assert!(line_of(check.contract).is_some(), "{}: {}", check.name, check.contract);
        }
    }
}
