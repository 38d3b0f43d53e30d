//! The best tokens of a row, from what the device chose step by step. Pure.

/// Sorting more numbers than that takes a GPU several passes over memory, fewer a single one without it.
const FEW: u32 = 1024;

/// How rows are narrowed, see `shim.h`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Numbers that stay of each row.
    pub(crate) best: u32,
    n_vocab: u32,
    steps: Vec<Step>,
}

/// What one step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// Length of a block.
    block: u32,
    /// How many there are; what is too short for one follows them.
    count: u32,
}

impl Layout {
    /// For so many candidates: one number more stays, which tells whether another is as large.
    pub(crate) fn new(n_vocab: u32, candidates: u32) -> Self {
        let best = candidates.saturating_add(1).min(n_vocab);
        let mut steps = Vec::new();
        let mut width = n_vocab;
        while width > FEW {
            let mut block = 2;
            while width / block > FEW {
                block *= 2;
            }
            let count = width / block;
            // Where it does not get much shorter it is sorted at once.
            let next = u64::from(best) * u64::from(block) + u64::from(width % block);
            if next > u64::from(width) / 4 * 3 {
                break;
            }
            steps.push(Step { block, count });
            width = next as u32;
        }
        Self { best, n_vocab, steps }
    }

    /// Most candidates that can be told of a row.
    pub(crate) fn candidates(&self) -> u32 {
        if self.best == self.n_vocab { self.best } else { self.best - 1 }
    }

    /// Length of a block in each step.
    pub(crate) fn blocks(&self) -> Vec<u32> {
        self.steps.iter().map(|step| step.block).collect()
    }

    /// Choices of a row: of each step, and of what the last one left.
    pub(crate) fn choices(&self) -> usize {
        (self.steps.len() + 1) * self.best as usize
    }

    /// The token at a place in what the last step left.
    fn token(&self, chosen: &[i32], place: i32) -> Option<u32> {
        let mut place = u32::try_from(place).ok()?;
        let best = self.best as usize;
        for (step, chosen) in self.steps.iter().zip(chosen.chunks(best)).rev() {
            let gathered = self.best * step.block;
            place = if place < gathered {
                let block = u32::try_from(*chosen.get((place / step.block) as usize)?).ok()?;
                if block >= step.count {
                    return None;
                }
                block * step.block + place % step.block
            } else {
                step.count * step.block + (place - gathered)
            };
        }
        (place < self.n_vocab).then_some(place)
    }

    /// Puts the best tokens of a row in order: larger logits first, equal ones by lower token. Gives the
    /// log of the sum of `exp(logit)` over the whole row; `None`: only the row itself can tell.
    pub(crate) fn order(&self, chosen: &[i32], values: &[f32], room: &mut Vec<(u64, f32)>) -> Option<f32> {
        let best = self.best as usize;
        let (logits, parts) = (values.get(..best)?, values.get(best..2 * best)?);
        let places = chosen.get(self.choices() - best..self.choices())?;
        let least = logits.iter().copied().fold(f32::INFINITY, f32::min);
        // Others may be as large as the smallest that stayed, and have lower numbers. Blocks of which all
        // is smaller than any number count as the smallest one.
        let bound = if self.best == self.n_vocab { f32::NEG_INFINITY } else { least.max(f32::MIN) };
        room.clear();
        let mut part = 0.0_f32;
        let mut top = f32::NEG_INFINITY;
        for ((&place, &logit), &share) in places.iter().zip(logits).zip(parts) {
            if logit.is_nan() {
                return None;
            }
            if logit > top {
                (top, part) = (logit, share);
            }
            if logit > bound {
                room.push((key(logit, self.token(chosen, place)?), logit));
            }
        }
        let log_sum = (f64::from(top) - f64::from(part).ln()) as f32;
        if room.is_empty() || !log_sum.is_finite() {
            return None;
        }
        room.sort_unstable_by_key(|(key, _)| *key);
        Some(log_sum)
    }
}

/// Ascending keys are descending logits; zeros are equal, whatever their sign.
fn key(logit: f32, token: u32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!ascending) << 32 | u64::from(token)
}

/// The token in a key.
pub(crate) fn token_of(key: u64) -> i32 {
    key as u32 as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device does, in any order that it likes.
    fn device(layout: &Layout, row: &[f32]) -> (Vec<i32>, Vec<f32>) {
        let best = layout.best as usize;
        let choose = |numbers: &[f32]| {
            let mut places: Vec<usize> = (0..numbers.len()).collect();
            // Of equal ones the later: the worst that it may do.
            places.sort_by(|a, b| numbers[*b].total_cmp(&numbers[*a]).then(b.cmp(a)));
            places.truncate(best);
            places.rotate_left(best / 3);
            places
        };
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let mut numbers: Vec<(f32, f32)> =
            row.iter().map(|logit| (*logit, (logit - max).exp() / sum as f32)).collect();
        let mut chosen = Vec::new();
        for step in &layout.steps {
            let block = step.block as usize;
            assert_eq!(step.count as usize, numbers.len() / block);
            let maxima: Vec<f32> = numbers
                .chunks_exact(block)
                .map(|block| block.iter().fold(f32::MIN, |max, number| max.max(number.0)))
                .collect();
            let found = choose(&maxima);
            let mut next: Vec<(f32, f32)> =
                found.iter().flat_map(|&index| numbers[index * block..][..block].to_vec()).collect();
            next.extend_from_slice(numbers.chunks_exact(block).remainder());
            chosen.extend(found.iter().map(|&index| index as i32));
            numbers = next;
        }
        let found = choose(&numbers.iter().map(|number| number.0).collect::<Vec<f32>>());
        chosen.extend(found.iter().map(|&index| index as i32));
        let mut values: Vec<f32> = found.iter().map(|&index| numbers[index].0).collect();
        values.extend(found.iter().map(|&index| numbers[index].1));
        (chosen, values)
    }

    fn expected(row: &[f32]) -> Vec<(i32, f32)> {
        let mut all: Vec<(i32, f32)> =
            row.iter().copied().enumerate().map(|(id, l)| (id as i32, l)).collect();
        all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        all
    }

    fn noise(length: u32, of: u32) -> Vec<f32> {
        let mut state = 0x9e37_79b9_u32;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state % of) as f32 / of as f32 * 20.0 - 10.0
            })
            .collect()
    }

    #[test]
    fn the_best_come_first_with_many_equals_and_with_few() {
        for n_vocab in [3, 100, 512, 1024, 1025, 32_000, 50_257, 128_256, 151_936, 262_144] {
            for candidates in [1, 40, 128, 255] {
                let layout = Layout::new(n_vocab, candidates);
                for of in [7, 300, 1 << 24] {
                    let row = noise(n_vocab, of);
                    let (chosen, values) = device(&layout, &row);
                    let mut room = Vec::new();
                    let ordered = layout.order(&chosen, &values, &mut room);
                    let expected = expected(&row);
                    let got: Vec<(i32, f32)> = room.iter().map(|(key, l)| (token_of(*key), *l)).collect();
                    assert_eq!(got, expected[..got.len()], "{n_vocab} {candidates} {of}");
                    if of == 1 << 24 {
                        assert!(got.len() + 2 > candidates.min(n_vocab) as usize, "{}", got.len());
                        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
                        assert!((f64::from(ordered.unwrap()) - sum.ln()).abs() < 1e-4);
                    }
                }
            }
        }
    }

    #[test]
    fn a_large_vocabulary_is_never_sorted_whole() {
        for n_vocab in [32_000, 49_152, 100_352, 128_256, 151_936, 201_088, 262_144] {
            let layout = Layout::new(n_vocab, 128);
            assert!(!layout.steps.is_empty() && layout.steps.len() <= 4, "{layout:?}");
            assert!(layout.steps.iter().all(|step| step.count <= FEW));
        }
        assert!(Layout::new(512, 128).steps.is_empty());
    }

    #[test]
    fn what_only_the_row_can_tell_is_left_to_it() {
        let layout = Layout::new(4096, 8);
        let mut room = Vec::new();
        let mut told = |row: &[f32]| {
            let (chosen, values) = device(&layout, row);
            layout.order(&chosen, &values, &mut room)
        };
        assert_eq!(told(&vec![1.5; 4096]), None, "all are equal");
        let mut row = vec![f32::NEG_INFINITY; 4096];
        row[7] = f32::NAN;
        assert_eq!(told(&row), None);
        row[7] = 2.0;
        assert_eq!(told(&row), Some(2.0));
        let (mut chosen, values) = device(&layout, &noise(4096, 1 << 24));
        chosen[0] = 1 << 20;
        assert_eq!(layout.order(&chosen, &values, &mut Vec::new()), None, "no such block");
    }
}
