//! The tokens that are never picked, whatever their logits.

use crate::engine::{Token, Vocabulary, attribute};

/// The tokens that a model must never generate, as bits of blocks of 64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forbidden {
    blocks: Vec<(u32, u64)>,
}

impl Forbidden {
    /// The unused tokens of a vocabulary, and what a row of `n_vocab` logits has beyond it.
    pub fn of(vocabulary: &Vocabulary, n_vocab: usize) -> Self {
        let mut blocks: Vec<(u32, u64)> = Vec::new();
        for id in 0..n_vocab {
            let beyond = !vocabulary.is_empty() && id >= vocabulary.len();
            if beyond || vocabulary.has(id as Token, attribute::UNUSED) {
                let (block, bit) = ((id / 64) as u32, 1 << (id % 64));
                match blocks.last_mut() {
                    Some((last, bits)) if *last == block => *bits |= bit,
                    _ => blocks.push((block, bit)),
                }
            }
        }
        Self { blocks }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.blocks.iter().map(|(_, bits)| bits.count_ones()).sum()
    }

    /// Blocks of 64 tokens with at least one of them, and which they are.
    pub(super) fn blocks(&self) -> &[(u32, u64)] {
        &self.blocks
    }

    /// Is this one of them?
    pub(super) fn has(&self, id: u32) -> bool {
        let block = self.blocks.binary_search_by_key(&(id / 64), |it| it.0);
        block.is_ok_and(|index| self.blocks[index].1 >> (id % 64) & 1 != 0)
    }
}
