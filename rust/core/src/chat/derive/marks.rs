//! What two texts have in common, without cutting a mark such as `<tool_call>` in two.

pub(super) fn common_prefix(one: &str, other: &str) -> usize {
    let pairs = one.char_indices().zip(other.chars());
    pairs.take_while(|((_, a), b)| a == b).last().map_or(0, |((at, a), _)| at + a.len_utf8())
}

pub(super) fn common_suffix(one: &str, other: &str) -> usize {
    one.chars().rev().zip(other.chars().rev()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// Where the mark begins in which the byte of that number lies: `<…>`, or the byte itself.
pub(super) fn mark_begin(text: &str, at: usize) -> usize {
    match text[..at].rfind(['<', '>']) {
        Some(begin)
            if text[begin..].starts_with('<') && !text[begin..at].contains('\n') && at - begin < 64 =>
        {
            begin
        }
        _ => at,
    }
}

/// Where the mark ends in which the byte of that number lies.
pub(super) fn mark_end(text: &str, at: usize) -> usize {
    if mark_begin(text, at) == at {
        return at;
    }
    text[at..].find('>').map_or(at, |it| at + it + 1)
}

/// The longest common end of two texts that cuts no mark in two.
pub(super) fn shared_end<'a>(one: &'a str, other: &str) -> &'a str {
    let begin = one.len() - common_suffix(one, other);
    let begin = mark_end(one, begin);
    let other_begin = other.len() - (one.len() - begin);
    // In the other text a mark may begin elsewhere.
    let shift = mark_end(other, other_begin) - other_begin;
    one.get(begin + shift..).unwrap_or("")
}

/// The longest common beginning of two texts that cuts no mark in two.
pub(super) fn shared_begin<'a>(one: &'a str, other: &str) -> &'a str {
    let end = common_prefix(one, other);
    let end = mark_begin(one, end).min(mark_begin(other, end));
    &one[..end]
}
