//! An engine whose logits hash the whole prefix, so that any mistake in what a sequence holds changes
//! every token after it. It holds the session to the contract: whatever breaks it panics.

use std::{cell::Cell, collections::BTreeSet, time::Duration};

use llm_node_core::engine::{
    Best, EngineFault, EngineFaultKind, Limits, Row, SequenceId, Slice, StepEngine, Ticket, Token, Tokenizer,
    Vocabulary, attribute,
};

pub(crate) const BOS: Token = 256;
pub(crate) const EOS: Token = 257;
pub(crate) const TURN: Token = 258;
/// Around the name of a tool in a call.
pub(crate) const CALL: Token = 259;
pub(crate) const ARGUMENTS: Token = 260;
/// Tokens 261 to 264 are unused, and 265 and 266 lie beyond the vocabulary.
pub(crate) const UNUSED: Token = 261;
pub(crate) const N_TOKENS: usize = 265;
pub(crate) const N_VOCAB: u32 = 267;

/// In a prompt, makes the engine return NaN at the end of it.
pub(crate) const POISON: Token = 0xff;

pub(crate) fn limits() -> Limits {
    Limits {
        max_sequences: 64,
        context_length: 256,
        max_batch_tokens: 4096,
        max_rows: 64,
        cache_tokens: 1 << 20,
        cache_page: 1,
        max_rollback: u32::MAX,
        shares_prefixes: false,
        saves: false,
        max_candidates: 0,
        fetches: false,
        n_vocab: N_VOCAB,
    }
}

/// How far the toy goes with rows of which candidates suffice.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stages {
    /// Gives no more candidates than this, even if more were asked for; 0: as many as were asked for.
    pub(crate) most: usize,
    /// Computes the sum over the whole row, too.
    pub(crate) sums: bool,
    /// Each so-manieth row comes whole all the same; 0: none.
    pub(crate) whole_every: usize,
    /// Says that it fetches, and does not.
    pub(crate) fails_to_fetch: bool,
}

thread_local!(static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) });

/// A clock that stands still but for what engines of this thread take.
pub(crate) fn simulated() -> Duration {
    NOW.get()
}

/// How long an engine takes, on the [`simulated`] clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costs {
    /// A step, whatever is in it, and each token in it.
    pub(crate) step: Duration,
    pub(crate) token: Duration,
    pub(crate) copy: Duration,
}

#[derive(Debug)]
pub(crate) struct ToyEngine {
    limits: Limits,
    sequences: Vec<Vec<Token>>,
    /// Which cell holds which token of which sequence: a copy may share them.
    cells: Vec<Vec<u64>>,
    next_cell: u64,
    rows: Vec<Vec<f32>>,
    /// Per row, how many candidates suffice.
    candidates: Vec<u32>,
    ticket: u64,
    pub(crate) stages: Stages,
    /// Rows that came as candidates, and those that were fetched then.
    pub(crate) cut_down: usize,
    pub(crate) fetched: usize,
    /// `cache_free` says so much more than there is, in every second step.
    pub(crate) boast: u64,
    /// What the next step or collect answers instead.
    pub(crate) fail_step: Option<EngineFaultKind>,
    pub(crate) fail_collect: Option<EngineFaultKind>,
    pub(crate) fail_truncate: Option<EngineFaultKind>,
    pub(crate) forget_a_row: bool,
    /// Only the whole of a sequence can be copied.
    pub(crate) copies_whole: bool,
    pub(crate) costs: Costs,
    /// Per step, the slices: id, tokens, rows.
    pub(crate) steps: Vec<Vec<(SequenceId, usize, u32)>>,
}

impl ToyEngine {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            sequences: vec![Vec::new(); limits.max_sequences as usize],
            cells: vec![Vec::new(); limits.max_sequences as usize],
            next_cell: 0,
            limits,
            rows: Vec::new(),
            candidates: Vec::new(),
            ticket: 0,
            stages: Stages::default(),
            cut_down: 0,
            fetched: 0,
            boast: 0,
            fail_step: None,
            fail_collect: None,
            fail_truncate: None,
            forget_a_row: false,
            copies_whole: false,
            costs: Costs::default(),
            steps: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sequences.iter().all(Vec::is_empty)
    }

    /// Tokens in all sequences; what several share counts for each.
    pub(crate) fn held(&self) -> u64 {
        self.sequences.iter().map(|it| it.len() as u64).sum()
    }

    fn pages(&self, tokens: usize) -> u64 {
        let page = u64::from(self.limits.cache_page);
        (tokens as u64).div_ceil(page) * page
    }

    fn free(&self) -> u64 {
        let used: u64 = if self.limits.shares_prefixes {
            self.cells.iter().flatten().collect::<BTreeSet<_>>().len() as u64
        } else {
            self.sequences.iter().map(|it| self.pages(it.len())).sum()
        };
        let page = u64::from(self.limits.cache_page);
        self.limits.cache_tokens / page * page - used
    }
}

/// The `n` likeliest tokens of a row.
fn best(row: &[f32], n: usize, sums: bool) -> Best<'static> {
    let mut ids: Vec<_> = (0..row.len() as Token).collect();
    let logit = |id: Token| row[id as usize];
    ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
    ids.truncate(n);
    let sum: f64 = row.iter().map(|&it| f64::from(it).exp()).sum();
    Best {
        logits: ids.iter().map(|&id| logit(id)).collect(),
        ids: ids.into(),
        log_sum: if sums { sum.ln() as f32 } else { f32::NAN },
        n_vocab: row.len(),
    }
}

fn fault(kind: EngineFaultKind, call: &'static str) -> EngineFault {
    EngineFault { kind, message: format!("{kind:?}"), call }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn logits(prefix: &[Token]) -> Vec<f32> {
    if prefix.last() == Some(&POISON) {
        return vec![f32::NAN; N_VOCAB as usize];
    }
    let hash = prefix.iter().fold(1, |hash: u64, &token| mix(hash.wrapping_add(token as u64 + 1)));
    // In a chat it likes to call something.
    let calls = hash.is_multiple_of(5) && prefix.contains(&TURN);
    let names = prefix.len() > 1 && prefix[prefix.len() - 2] == CALL;
    (0..u64::from(N_VOCAB))
        .map(|id| {
            let noise = (mix(hash ^ (id << 32)) >> 40) as f32 / 16_777_216.0;
            match id as Token {
                CALL if calls => 30.0,
                ARGUMENTS if names => 40.0,
                // Letters are likelier than other bytes, so that stop strings do occur.
                0x61..=0x66 => noise * 10.0,
                EOS => noise * 8.5,
                // What must never be picked would always be.
                UNUSED.. => 50.0,
                POISON => -30.0,
                _ => noise * 8.0,
            }
        })
        .collect()
}

impl StepEngine for ToyEngine {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn step(&mut self, slices: &[Slice<'_>]) -> Result<Ticket, EngineFault> {
        assert!(!slices.is_empty());
        assert!(slices.windows(2).all(|it| it[0].sequence < it[1].sequence), "ids ascend");
        let tokens: usize = slices.iter().map(|it| it.tokens.len()).sum();
        assert!(tokens <= self.limits.max_batch_tokens as usize);
        assert!(slices.iter().map(|it| it.rows).sum::<u32>() <= self.limits.max_rows);
        let mut growth = 0;
        for it in slices {
            let held = &self.sequences[it.sequence as usize];
            assert!(!it.tokens.is_empty() && it.rows as usize <= it.tokens.len());
            assert_eq!(it.position as usize, held.len());
            assert!(held.len() + it.tokens.len() <= self.limits.context_length as usize);
            assert!(it.candidates <= self.limits.max_candidates && (it.candidates == 0 || it.rows > 0));
            assert!(it.tokens.iter().all(|token| (0..N_TOKENS as Token).contains(token)));
            growth += self.pages(held.len() + it.tokens.len()) - self.pages(held.len());
        }
        if growth > self.free() {
            return Err(fault(EngineFaultKind::CacheFull, "step"));
        }
        if let Some(kind) = self.fail_step.take() {
            return Err(fault(kind, "step"));
        }
        NOW.set(NOW.get() + self.costs.step + self.costs.token * tokens as u32);
        self.rows.clear();
        self.candidates.clear();
        for it in slices {
            let sequence = &mut self.sequences[it.sequence as usize];
            for (index, &token) in it.tokens.iter().enumerate() {
                sequence.push(token);
                self.cells[it.sequence as usize].push(self.next_cell);
                self.next_cell += 1;
                if index + it.rows as usize >= it.tokens.len() {
                    self.rows.push(logits(sequence));
                    self.candidates.push(it.candidates);
                }
            }
        }
        self.steps.push(slices.iter().map(|it| (it.sequence, it.tokens.len(), it.rows)).collect());
        self.ticket += 1;
        Ok(Ticket(self.ticket))
    }

    fn collect(&mut self, ticket: Ticket, rows: usize) -> Result<Vec<Row<'_>>, EngineFault> {
        assert_eq!(ticket, Ticket(self.ticket));
        assert_eq!(rows, self.rows.len());
        if let Some(kind) = self.fail_collect.take() {
            return Err(fault(kind, "collect"));
        }
        if self.forget_a_row {
            self.rows.pop();
        }
        let Stages { most, sums, whole_every, .. } = self.stages;
        let mut rows = Vec::new();
        for (row, wanted) in self.rows.iter().zip(&mut self.candidates) {
            self.cut_down += usize::from(*wanted > 0);
            if whole_every > 0 && self.cut_down.is_multiple_of(whole_every) {
                *wanted = 0;
            }
            rows.push(match *wanted as usize {
                0 => Row::Whole(row.into()),
                wanted => Row::Best(best(row, if most > 0 { most.min(wanted) } else { wanted }, sums)),
            });
        }
        Ok(rows)
    }

    fn fetch(&mut self, ticket: Ticket, row: usize) -> Result<Row<'_>, EngineFault> {
        assert_eq!(ticket, Ticket(self.ticket));
        assert!(self.candidates[row] > 0, "this row came whole");
        if !self.limits.fetches || self.stages.fails_to_fetch {
            return Err(fault(EngineFaultKind::Unsupported, "fetch"));
        }
        self.fetched += 1;
        Ok(Row::Whole(self.rows[row].as_slice().into()))
    }

    fn copy_prefix(&mut self, from: SequenceId, to: SequenceId, end: u32) -> Result<(), EngineFault> {
        let (from, to, end) = (from as usize, to as usize, end as usize);
        assert!(self.sequences[to].is_empty() && end <= self.sequences[from].len());
        if self.copies_whole && end < self.sequences[from].len() {
            return Err(fault(EngineFaultKind::Unsupported, "seq_copy"));
        }
        NOW.set(NOW.get() + self.costs.copy);
        if self.limits.shares_prefixes {
            self.cells[to] = self.cells[from][..end].to_vec();
        } else {
            if self.pages(end) > self.free() {
                return Err(fault(EngineFaultKind::CacheFull, "seq_copy"));
            }
            self.cells[to] = (self.next_cell..).take(end).collect();
            self.next_cell += end as u64;
        }
        self.sequences[to] = self.sequences[from][..end].to_vec();
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, begin: u32) -> Result<(), EngineFault> {
        if let Some(kind) = self.fail_truncate.take() {
            return Err(fault(kind, "seq_remove"));
        }
        let held = self.sequences[sequence as usize].len();
        if begin > 0 && held.saturating_sub(begin as usize) > self.limits.max_rollback as usize {
            return Err(fault(EngineFaultKind::Unsupported, "seq_remove"));
        }
        self.sequences[sequence as usize].truncate(begin as usize);
        self.cells[sequence as usize].truncate(begin as usize);
        Ok(())
    }

    fn save(&mut self, sequence: SequenceId) -> Result<Vec<u8>, EngineFault> {
        if !self.limits.saves {
            return Err(fault(EngineFaultKind::Unsupported, "seq_save"));
        }
        Ok(self.sequences[sequence as usize].iter().flat_map(|it| it.to_le_bytes()).collect())
    }

    fn restore(&mut self, sequence: SequenceId, state: &[u8]) -> Result<(), EngineFault> {
        assert!(self.limits.saves && self.sequences[sequence as usize].is_empty());
        let tokens: Vec<_> =
            state.chunks_exact(4).map(|it| Token::from_le_bytes(it.try_into().unwrap())).collect();
        if self.pages(tokens.len()) > self.free() {
            return Err(fault(EngineFaultKind::CacheFull, "seq_restore"));
        }
        self.cells[sequence as usize] = (self.next_cell..).take(tokens.len()).collect();
        self.next_cell += tokens.len() as u64;
        self.sequences[sequence as usize] = tokens;
        Ok(())
    }

    fn range(&self, sequence: SequenceId) -> Result<(u32, u32), EngineFault> {
        Ok((0, self.sequences[sequence as usize].len() as u32))
    }

    fn cache_free(&self) -> u64 {
        self.free() + if self.steps.len().is_multiple_of(2) { self.boast } else { 0 }
    }
}

/// One token per byte, and a few special ones.
#[derive(Debug)]
pub(crate) struct ToyTokenizer {
    vocabulary: Vocabulary,
}

impl ToyTokenizer {
    pub(crate) fn new() -> Self {
        let mut texts: Vec<(Vec<u8>, u32)> = (0..=255).map(|byte| (vec![byte], attribute::BYTE)).collect();
        texts.push((b"<s>".to_vec(), attribute::CONTROL));
        texts.push((b"</s>".to_vec(), attribute::CONTROL | attribute::END_OF_GENERATION));
        texts.extend(
            ["<|turn|>", "<|call|>", "<|args|>"].map(|it| (it.as_bytes().to_vec(), attribute::CONTROL)),
        );
        texts.resize(N_TOKENS, (b"unused".to_vec(), attribute::UNUSED));
        let mut vocabulary =
            Vocabulary { bos: Some(BOS), eos: Some(EOS), adds_bos: true, ..Vocabulary::default() };
        vocabulary.offsets.push(0);
        for (bytes, attributes) in texts {
            vocabulary.bytes.extend(bytes);
            vocabulary.offsets.push(vocabulary.bytes.len() as u32);
            vocabulary.attributes.push(attributes);
        }
        Self { vocabulary }
    }
}

impl Tokenizer for ToyTokenizer {
    fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, EngineFault> {
        let mut tokens = Vec::new();
        if add_special {
            tokens.push(BOS);
        }
        let mut rest = text.as_bytes();
        while let Some(&byte) = rest.first() {
            let special = [BOS, EOS, TURN, CALL, ARGUMENTS]
                .into_iter()
                .find(|&it| parse_special && rest.starts_with(self.vocabulary.token_bytes(it)));
            tokens.push(special.unwrap_or(Token::from(byte)));
            rest = &rest[special.map_or(1, |it| self.vocabulary.token_bytes(it).len())..];
        }
        Ok(tokens)
    }

    fn detokenize(&self, tokens: &[Token]) -> Result<Vec<u8>, EngineFault> {
        Ok(tokens.iter().flat_map(|&it| self.vocabulary.token_bytes(it)).copied().collect())
    }

    fn chat_template(&self) -> Option<&str> {
        None
    }
}
