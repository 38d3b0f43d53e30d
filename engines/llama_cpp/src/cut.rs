//! How a step is cut into calls of llama.cpp, where its rows stay on the device. Pure.
//!
//! llama.cpp cuts a call into physical passes, each of which overwrites the rows of the one before. So a
//! call with rows is made such that it is one physical pass, and the rows of all but the last are read in
//! between. There are no more passes than llama.cpp would make, and the last has as many rows as can be.
//! To this end a step is cut from its end: rows are for the last tokens of a slice.

/// One slice of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Which, in the host's order.
    pub(crate) slice: usize,
    pub(crate) sequence: u32,
    pub(crate) tokens: usize,
    /// For the last so many tokens.
    pub(crate) rows: usize,
}

/// Tokens `begin..end` of a slice, in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) slice: usize,
    pub(crate) begin: usize,
    pub(crate) end: usize,
    /// For the last so many tokens.
    pub(crate) rows: usize,
}

/// What llama.cpp takes for one physical pass of so many tokens at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Any tokens.
    Any(usize),
    /// As many tokens of each sequence, and no hole between the sequences.
    Even(usize),
}

/// The calls of a step, and the parts of each by ascending sequence. Kept to spare allocations.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    parts: Vec<Part>,
    /// Where the parts of each call end.
    ends: Vec<usize>,
}

impl Calls {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[Part]> {
        let begins = std::iter::once(&0).chain(&self.ends);
        begins.zip(&self.ends).map(|(begin, end)| &self.parts[*begin..*end])
    }

    fn add(&mut self, parts: impl IntoIterator<Item = Part>) {
        self.parts.extend(parts);
        self.ends.push(self.parts.len());
    }

    /// Everything in one call, however many passes that becomes.
    pub(crate) fn whole(&mut self, work: &[Work]) {
        self.parts.clear();
        self.ends.clear();
        self.add(work.iter().map(|work| part(work, 0, work.tokens)));
    }

    /// Cuts slices that come by ascending sequence.
    pub(crate) fn cut(&mut self, work: &[Work], pass: Pass) {
        self.whole(work);
        if is_one(work, pass) || work.iter().all(|work| work.rows == 0) {
            return;
        }
        let calls = match pass {
            Pass::Any(most) => any(work, most),
            Pass::Even(most) => even(work, most),
        };
        self.parts.clear();
        self.ends.clear();
        for call in calls {
            self.add(call);
        }
    }
}

/// Is it one pass as it is?
fn is_one(work: &[Work], pass: Pass) -> bool {
    let tokens: usize = work.iter().map(|work| work.tokens).sum();
    match pass {
        Pass::Any(most) => tokens <= most,
        Pass::Even(most) => {
            let even =
                |pair: &[Work]| pair[0].sequence + 1 == pair[1].sequence && pair[0].tokens == pair[1].tokens;
            tokens <= most && work.windows(2).all(even)
        }
    }
}

fn part(work: &Work, begin: usize, end: usize) -> Part {
    let silent = work.tokens - work.rows;
    Part { slice: work.slice, begin, end, rows: end.saturating_sub(silent.max(begin)) }
}

/// The last pass has all rows, which fit into it, and is filled up with other tokens.
fn any(work: &[Work], most: usize) -> Vec<Vec<Part>> {
    let rows: usize = work.iter().map(|work| work.rows).sum();
    let mut room = most.saturating_sub(rows);
    let (mut silent, mut last) = (Vec::new(), Vec::new());
    for work in work {
        let take = room.min(work.tokens - work.rows);
        room -= take;
        let begin = work.tokens - work.rows - take;
        if begin > 0 {
            silent.push(part(work, 0, begin));
        }
        if begin < work.tokens {
            last.push(part(work, begin, work.tokens));
        }
    }
    if silent.is_empty() { vec![last] } else { vec![silent, last] }
}

/// From the end: as many tokens of each of a run of sequences as the one with the fewest has.
fn even(work: &[Work], most: usize) -> Vec<Vec<Part>> {
    let left: Vec<(Work, usize)> = work.iter().map(|work| (*work, work.tokens)).collect();
    let mut runs: Vec<&[(Work, usize)]> = runs(&left).collect();
    // The rows of the last call are read last, and need no copy to stay.
    let fullest = |run: &&[(Work, usize)]| run.iter().filter(|(work, _)| work.rows > 0).count();
    if let Some(place) = (0..runs.len()).max_by_key(|&place| fullest(&runs[place])) {
        runs.swap(0, place);
    }
    let mut calls = Vec::new();
    for run in runs {
        from_end(run, most, &mut calls);
    }
    calls.reverse();
    calls
}

/// Parts without a hole between their sequences.
fn runs(left: &[(Work, usize)]) -> impl Iterator<Item = &[(Work, usize)]> {
    left.chunk_by(|(before, _), (after, _)| before.sequence + 1 == after.sequence)
}

/// Calls for what is left of one run, the last one first.
fn from_end(run: &[(Work, usize)], most: usize, calls: &mut Vec<Vec<Part>>) {
    let fewest = run.iter().map(|(_, left)| *left).min().unwrap_or(0);
    let take = fewest.min((most / run.len()).max(1));
    calls.push(run.iter().map(|(work, left)| part(work, left - take, *left)).collect());
    let left: Vec<(Work, usize)> =
        run.iter().map(|(work, left)| (*work, left - take)).filter(|(_, left)| *left > 0).collect();
    for run in runs(&left) {
        from_end(run, most, calls);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slices as (sequence, tokens, rows).
    fn work(slices: &[(u32, usize, usize)]) -> Vec<Work> {
        slices
            .iter()
            .enumerate()
            .map(|(slice, &(sequence, tokens, rows))| Work { slice, sequence, tokens, rows })
            .collect()
    }

    /// Calls as (tokens, rows), after a look at whether they are what a pass may be.
    fn cut_well(slices: &[(u32, usize, usize)], pass: Pass) -> Vec<(usize, usize)> {
        let work = work(slices);
        let mut calls = Calls::default();
        calls.cut(&work, pass);
        let mut done = vec![0; work.len()];
        for call in calls.iter() {
            for part in call {
                assert_eq!(part.begin, done[part.slice], "in order, without gaps");
                assert!(part.end > part.begin && part.rows <= part.end - part.begin);
                done[part.slice] = part.end;
            }
            let rows: usize = call.iter().map(|part| part.rows).sum();
            let tokens: usize = call.iter().map(|part| part.end - part.begin).sum();
            match pass {
                Pass::Any(most) => assert!(rows == 0 || tokens <= most),
                Pass::Even(most) => {
                    assert!(rows == 0 || tokens <= most);
                    let sequence = |part: &Part| work[part.slice].sequence;
                    let even = |pair: &[Part]| {
                        sequence(&pair[0]) + 1 == sequence(&pair[1])
                            && pair[0].end - pair[0].begin == pair[1].end - pair[1].begin
                    };
                    assert!(rows == 0 || call.windows(2).all(even), "{call:?}");
                }
            }
        }
        assert!(work.iter().all(|work| done[work.slice] == work.tokens));
        let total: usize = calls.iter().flatten().map(|part: &Part| part.rows).sum();
        assert_eq!(total, work.iter().map(|work| work.rows).sum::<usize>());
        calls
            .iter()
            .map(|call| {
                call.iter().fold((0, 0), |sum, part| (sum.0 + part.end - part.begin, sum.1 + part.rows))
            })
            .collect()
    }

    #[test]
    fn decoding_is_one_call() {
        let slices: Vec<(u32, usize, usize)> = (0..32).map(|sequence| (sequence, 1, 1)).collect();
        assert_eq!(cut_well(&slices, Pass::Any(512)), [(32, 32)]);
        assert_eq!(cut_well(&slices, Pass::Even(512)), [(32, 32)]);
        assert_eq!(cut_well(&slices, Pass::Even(32)), [(32, 32)]);
    }

    #[test]
    fn all_rows_of_a_pool_are_in_its_last_pass() {
        let slices = [(0, 1, 1), (3, 1000, 1), (4, 4, 4), (7, 20, 0)];
        assert_eq!(cut_well(&slices, Pass::Any(512)), [(513, 0), (512, 6)]);
        assert_eq!(cut_well(&[(2, 512, 1)], Pass::Any(512)), [(512, 1)]);
        assert_eq!(cut_well(&[(2, 513, 1)], Pass::Any(512)), [(1, 0), (512, 1)]);
        // Tokens of a slice without rows need not be in the last pass at all.
        assert_eq!(cut_well(&[(0, 8, 8), (1, 4, 0)], Pass::Any(8)), [(4, 0), (8, 8)]);
    }

    #[test]
    fn even_passes_are_no_more_than_llama_cpp_makes() {
        // A prompt beside others that decode: two passes, and all rows in the second.
        assert_eq!(cut_well(&[(0, 1, 1), (1, 300, 1), (2, 1, 1)], Pass::Even(512)), [(299, 0), (3, 3)]);
        assert_eq!(cut_well(&[(0, 300, 1), (1, 200, 1)], Pass::Even(512)), [(100, 0), (400, 2)]);
        assert_eq!(cut_well(&[(0, 1000, 1)], Pass::Even(512)), [(488, 0), (512, 1)]);
        // Drafts of different length.
        assert_eq!(cut_well(&[(0, 1, 1), (1, 4, 4), (2, 4, 4), (3, 1, 1)], Pass::Even(64)), [(6, 6), (4, 4)]);
    }

    #[test]
    fn the_fullest_run_comes_last() {
        let slices: Vec<(u32, usize, usize)> =
            [0, 1, 3, 4, 5, 6, 8].iter().map(|&sequence| (sequence, 1, 1)).collect();
        let calls = cut_well(&slices, Pass::Even(64));
        assert_eq!((calls.len(), calls.last()), (3, Some(&(4, 4))));
    }

    #[test]
    fn without_rows_it_is_llama_cpps_to_cut() {
        assert_eq!(cut_well(&[(0, 700, 0), (5, 3, 0)], Pass::Any(512)), [(703, 0)]);
        assert_eq!(cut_well(&[(0, 700, 0), (5, 3, 0)], Pass::Even(512)), [(703, 0)]);
    }
}
