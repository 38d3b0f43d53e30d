//! Proposals out of the text itself: what followed its last tokens when they came before.
//!
//! Answers copy: names, quotations, code that is being changed. Finding the place costs a few look-ups
//! in a hash table per step, so it pays wherever it is right now and then.

use std::collections::HashMap;

use super::{Drafter, Want};
use crate::engine::Token;

/// How many last tokens have to come again, longest first: the longer the match, the likelier does the
/// text go on the same way.
const LENGTHS: [usize; 3] = [4, 3, 2];
const LONGEST: usize = LENGTHS[0];
/// New tokens that one call takes in per request, about half a millisecond's worth: a prompt of
/// hundreds of thousands must not hold up a step. Until all are in, nothing is proposed.
const CATCH_UP: usize = 8192;
/// Slots of a new table, and the most there are: 2 MiB, for the last 131 072 tokens at least.
const FEWEST_SLOTS: usize = 1 << 8;
const MOST_SLOTS: usize = 1 << 19;
/// Slots that are looked at before giving up: what a prompt made of colliding hashes can cost.
const MOST_PROBES: usize = 64;

/// Proposes what followed the last two to four tokens where they stood in prompt and answer before:
/// the longest match, and of these the last.
#[derive(Debug, Default)]
pub struct Lookup {
    texts: HashMap<u64, Text>,
}

impl Drafter for Lookup {
    fn draft_all(&mut self, wants: &mut [Want<'_>]) {
        for want in wants {
            let text = self.texts.entry(want.id).or_default();
            text.catch_up(want.tokens);
            if let Some(place) = text.find(want.tokens) {
                follow(want.tokens, place, want.most as usize, &mut want.draft);
            }
        }
    }

    fn forget(&mut self, id: u64) {
        self.texts.remove(&id);
    }
}

/// Copies what stands from `place` on. A place so near the end that the text runs out is a period:
/// the copy goes on in what it copied.
fn follow(tokens: &[Token], place: usize, most: usize, draft: &mut Vec<Token>) {
    draft.extend(tokens[place..].iter().copied().cycle().take(most));
}

/// Where the n-grams of one text stand.
#[derive(Debug)]
struct Text {
    tables: [Table; LENGTHS.len()],
    /// n-grams that end at or before this are in the tables. The last one of a text never is: it would
    /// only find itself.
    seen: usize,
    /// The tokens before `seen`, to notice that the text has become another.
    last: [Token; LONGEST],
}

impl Default for Text {
    fn default() -> Self {
        Self { tables: LENGTHS.map(Table::new), seen: 0, last: [0; LONGEST] }
    }
}

impl Text {
    fn catch_up(&mut self, tokens: &[Token]) {
        let before = tokens.get(self.seen.saturating_sub(LONGEST)..self.seen);
        if self.seen >= tokens.len() || before != Some(&self.last[LONGEST - self.seen.min(LONGEST)..]) {
            *self = Self::default();
        }
        let end = tokens.len().saturating_sub(1).min(self.seen + CATCH_UP);
        if end <= self.seen {
            return;
        }
        for table in &mut self.tables {
            for end in self.seen.max(table.length - 1) + 1..=end {
                table.insert(tokens, end);
            }
        }
        self.seen = end;
        let last = &tokens[end.saturating_sub(LONGEST)..end];
        self.last[LONGEST - last.len()..].copy_from_slice(last);
    }

    /// Where the text goes on after the last place that its last tokens came before.
    fn find(&self, tokens: &[Token]) -> Option<usize> {
        if self.seen + 1 < tokens.len() {
            return None;
        }
        self.tables.iter().find_map(|table| table.find(tokens))
    }
}

/// The last place of each n-gram of one length. It keeps places alone: what a place says is proved by
/// the text, so that neither a hash nor a change of the text can make it say something false.
#[derive(Debug)]
struct Table {
    /// Tokens of an n-gram.
    length: usize,
    /// Ends of n-grams; 0: free. At most half of them are taken.
    slots: Vec<u32>,
    taken: usize,
}

impl Table {
    fn new(length: usize) -> Self {
        Self { length, slots: Vec::new(), taken: 0 }
    }

    /// The n-gram that ends at `end` stands there last.
    fn insert(&mut self, tokens: &[Token], end: usize) {
        if self.taken * 2 >= self.slots.len() {
            self.make_room(tokens, end);
        }
        let slot = self.probe(tokens, end);
        self.taken += usize::from(self.slots[slot] == 0);
        self.slots[slot] = end as u32;
    }

    fn find(&self, tokens: &[Token]) -> Option<usize> {
        if tokens.len() < self.length || self.slots.is_empty() {
            return None;
        }
        let end = self.slots[self.probe(tokens, tokens.len())] as usize;
        (end > 0 && self.gram(tokens, end) == self.gram(tokens, tokens.len())).then_some(end)
    }

    /// The slot of the n-gram that ends at `end`, or the one it gets: a free one, or, after too many
    /// others, the last of these.
    fn probe(&self, tokens: &[Token], end: usize) -> usize {
        let gram = self.gram(tokens, end);
        let mask = self.slots.len() - 1;
        let mut slot = hash(gram) & mask;
        for _ in 1..MOST_PROBES {
            match self.slots[slot] {
                0 => break,
                taken if self.gram(tokens, taken as usize) == gram => break,
                _ => slot = (slot + 1) & mask,
            }
        }
        slot
    }

    fn gram<'a>(&self, tokens: &'a [Token], end: usize) -> &'a [Token] {
        &tokens[end - self.length..end]
    }

    /// Twice the slots, or, when that is too many, the older half of the text forgotten.
    fn make_room(&mut self, tokens: &[Token], end: usize) {
        let slots = (self.slots.len() * 2).clamp(FEWEST_SLOTS, MOST_SLOTS);
        let oldest = if slots > self.slots.len() { 1 } else { end.saturating_sub(slots / 4) };
        let mut old = std::mem::replace(&mut self.slots, vec![0; slots]);
        old.retain(|&it| it as usize >= oldest.max(1));
        self.taken = old.len();
        for end in old {
            let slot = self.probe(tokens, end as usize);
            self.slots[slot] = end;
        }
    }
}

/// Multiply and rotate, after the hash of the Rust compiler; the high bits are the good ones.
fn hash(gram: &[Token]) -> usize {
    let mix = |hash: u64, &token: &Token| {
        (hash.rotate_left(5) ^ u64::from(token.cast_unsigned())).wrapping_mul(0x517c_c1b7_2722_0a95)
    };
    (gram.iter().fold(0, mix) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draft(lookup: &mut Lookup, id: u64, tokens: &[Token], most: u32) -> Vec<Token> {
        let mut wants = [Want { id, tokens, most, draft: Vec::new() }];
        lookup.draft_all(&mut wants);
        let [want] = wants;
        want.draft
    }

    /// The same without any index.
    fn reference(tokens: &[Token], most: u32) -> Vec<Token> {
        let place = LENGTHS.iter().find_map(|&length| {
            let last = tokens.len().checked_sub(length).map(|begin| &tokens[begin..])?;
            (length..tokens.len()).rev().find(|&end| &tokens[end - length..end] == last)
        });
        let Some(place) = place else { return Vec::new() };
        let mut text = tokens.to_vec();
        for index in 0..most as usize {
            text.push(text[place + index]);
        }
        text.split_off(tokens.len())
    }

    #[test]
    fn the_longest_match_wins_then_the_last() {
        let mut lookup = Lookup::default();
        assert_eq!(draft(&mut lookup, 0, &[1, 2, 3, 9, 8, 2, 3, 7, 1, 2, 3], 2), [9, 8]);
        assert_eq!(draft(&mut lookup, 1, &[2, 3, 9, 8, 2, 3, 7, 1, 2, 3], 2), [7, 1]);
        assert!(draft(&mut lookup, 2, &[1, 2, 3, 4, 5, 6], 9).is_empty());
    }

    #[test]
    fn a_period_goes_on() {
        assert_eq!(draft(&mut Lookup::default(), 0, &[5, 1, 2, 3, 1, 2, 3], 7), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(draft(&mut Lookup::default(), 0, &[7, 7, 7], 4), [7; 4]);
    }

    #[test]
    fn requests_do_not_see_each_other() {
        let mut lookup = Lookup::default();
        assert_eq!(draft(&mut lookup, 0, &[1, 2, 3, 1, 2], 1), [3]);
        assert!(draft(&mut lookup, 1, &[1, 2], 1).is_empty());
        lookup.forget(0);
        lookup.forget(7);
        assert_eq!(lookup.texts.len(), 1);
    }

    #[test]
    fn a_long_prompt_is_taken_in_over_several_calls() {
        let mut tokens: Vec<Token> = (0..30_000).collect();
        tokens.extend([17, 18]);
        let mut lookup = Lookup::default();
        let mut calls = 1;
        while draft(&mut lookup, 0, &tokens, 2).is_empty() {
            calls += 1;
        }
        assert_eq!(calls, tokens.len().div_ceil(CATCH_UP));
        assert_eq!(draft(&mut lookup, 0, &tokens, 2), [19, 20]);
    }

    #[test]
    fn memory_is_bounded_and_the_end_of_a_text_is_kept() {
        let tokens: Vec<Token> = (0..1_000_000).collect();
        let mut text = Text::default();
        while text.seen + 1 < tokens.len() {
            text.catch_up(&tokens);
        }
        for (table, length) in text.tables.iter().zip(LENGTHS) {
            assert_eq!(table.slots.len(), MOST_SLOTS);
            assert!(table.taken <= MOST_SLOTS / 2);
            for begin in [1_000_000 - 130_000, 1_000_000 - 100] {
                let gram: Vec<Token> = (begin..).take(length).collect();
                assert_eq!(table.find(&[&tokens[..], &gram].concat()), Some(begin as usize + length));
            }
        }
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_search_finds(
            texts in prop::collection::vec((prop::collection::vec(0..6, 0..120), 0u32..12), 1..4),
        ) {
            // The text of one request grows by pieces, and so does the index.
            let (mut lookup, mut tokens) = (Lookup::default(), Vec::new());
            for (piece, most) in texts {
                tokens.extend(piece);
                prop_assert_eq!(draft(&mut lookup, 0, &tokens, most), reference(&tokens, most));
            }
        }

        #[test]
        fn any_text_under_one_id_gives_only_what_it_holds(
            texts in prop::collection::vec(prop::collection::vec(0..4, 0..600), 1..6), most in 1u32..9,
        ) {
            let mut lookup = Lookup::default();
            for tokens in texts {
                let draft = draft(&mut lookup, 0, &tokens, most);
                prop_assert!(draft.len() <= most as usize);
                if !draft.is_empty() {
                    // A copy from a fixed distance, where at least two tokens before it agree too.
                    let text = [&tokens[..], &draft].concat();
                    let copied = |distance: &usize| {
                        (tokens.len() - 2..text.len()).all(|it| it >= *distance && text[it] == text[it - distance])
                    };
                    prop_assert!((1..tokens.len()).any(|distance| copied(&distance)));
                }
            }
        }
    }
}
