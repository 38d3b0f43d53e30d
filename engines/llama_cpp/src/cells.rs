//! Which tokens of which sequences lie in the KV cache: what llama.cpp knows and does not tell. Pure.
//!
//! In a unified cache sequences share the cells of a copied prefix, so that room cannot be counted by
//! adding up lengths. Each token of a sequence is therefore a numbered cell with a count of owners.

/// The cells of a context.
#[derive(Debug)]
pub(crate) struct Cells {
    /// Cells of each sequence, in the order of positions.
    sequences: Vec<Vec<u32>>,
    /// Owners of each cell; 0: free.
    owners: Vec<u32>,
    free: Vec<u32>,
    /// Split: cells per sequence. Unified: `None`.
    per_sequence: Option<u32>,
}

impl Cells {
    /// An empty cache. In a split one, `cells` are shared out equally.
    pub(crate) fn new(sequences: u32, cells: u32, unified: bool) -> Self {
        Self {
            sequences: vec![Vec::new(); sequences as usize],
            owners: vec![0; cells as usize],
            free: (0..cells).rev().collect(),
            per_sequence: (!unified).then(|| cells / sequences.max(1)),
        }
    }

    /// Number of tokens of a sequence.
    pub(crate) fn len(&self, sequence: u32) -> u32 {
        self.sequences.get(sequence as usize).map_or(0, |cells| cells.len() as u32)
    }

    /// Tokens that still fit, whichever sequence they belong to.
    pub(crate) fn free(&self) -> u64 {
        self.free.len() as u64
    }

    /// Is there a token of any sequence?
    pub(crate) fn in_use(&self) -> bool {
        self.free.len() < self.owners.len()
    }

    /// Do so many more tokens per sequence fit, all together?
    pub(crate) fn fits(&self, growth: impl Iterator<Item = (u32, u32)>) -> bool {
        let mut total = 0_u64;
        for (sequence, tokens) in growth {
            total += u64::from(tokens);
            if self.per_sequence.is_some_and(|most| self.len(sequence) + tokens > most) {
                return false;
            }
        }
        total <= self.free()
    }

    /// Makes a sequence so long: at its end tokens come, or go.
    pub(crate) fn resize(&mut self, sequence: u32, len: u32) {
        let Some(cells) = self.sequences.get_mut(sequence as usize) else { return };
        while cells.len() < len as usize {
            let Some(cell) = self.free.pop() else { return };
            self.owners[cell as usize] = 1;
            cells.push(cell);
        }
        for cell in cells.drain(len as usize..) {
            let owners = &mut self.owners[cell as usize];
            *owners -= 1;
            if *owners == 0 {
                self.free.push(cell);
            }
        }
    }

    /// Makes the first `end` tokens of `from` the beginning of the empty sequence `to`.
    pub(crate) fn copy(&mut self, from: u32, to: u32, end: u32) {
        if self.per_sequence.is_some() {
            self.resize(to, end);
            return;
        }
        let shared: Vec<u32> = self.sequences[from as usize].iter().take(end as usize).copied().collect();
        for &cell in &shared {
            self.owners[cell as usize] += 1;
        }
        self.sequences[to as usize] = shared;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_prefix_counts_once() {
        let mut cells = Cells::new(3, 10, true);
        cells.resize(0, 4);
        cells.copy(0, 1, 3);
        assert_eq!((cells.len(1), cells.free()), (3, 6));
        cells.resize(1, 5);
        assert_eq!(cells.free(), 4);
        // The source goes; what the copy shares with it stays.
        cells.resize(0, 0);
        assert_eq!(cells.free(), 5);
        cells.copy(1, 2, 5);
        cells.resize(1, 0);
        assert_eq!(cells.free(), 5);
        cells.resize(2, 0);
        assert_eq!(cells.free(), 10);
    }

    #[test]
    fn a_split_cache_has_walls() {
        let mut cells = Cells::new(2, 8, false);
        assert!(cells.fits([(0, 4), (1, 4)].into_iter()));
        assert!(!cells.fits([(0, 5)].into_iter()));
        cells.resize(0, 3);
        cells.copy(0, 1, 2);
        assert_eq!((cells.len(1), cells.free()), (2, 3));
        assert!(!cells.fits([(0, 2)].into_iter()));
    }

    #[test]
    fn a_unified_cache_is_full_when_the_sum_is() {
        let mut cells = Cells::new(4, 8, true);
        cells.resize(0, 6);
        assert!(cells.fits([(1, 1), (2, 1)].into_iter()));
        assert!(!cells.fits([(1, 2), (2, 1)].into_iter()));
    }
}
