//! What an engine says of a row, looked at before it is believed.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::mem::align_of;

use half::{bf16, f16};
use llm_node_abi::{
    ENGINE_BF16, ENGINE_F16, ENGINE_F32, ENGINE_STAGE_LOGITS, ENGINE_STAGE_TOP, ENGINE_TOKEN_NONE,
    EnginePick, EngineRow, EngineToken,
};
use llm_node_core::engine::{Best, Row};

use crate::error::EngineError;

/// Shows what an engine did not write: no engine answers this stage.
pub(super) const UNWRITTEN: EngineRow = EngineRow {
    stage: u32::MAX,
    dtype: u32::MAX,
    n: 0,
    token: ENGINE_TOKEN_NONE,
    logprob: f32::NAN,
    log_sum: f32::NAN,
    log_sum_t: f32::NAN,
    reserved: 0,
    ids: std::ptr::null(),
    logits: std::ptr::null(),
};

/// The wish for so many candidates and nothing else: penalties, bias and masks are the host's own to apply.
pub(super) fn top(candidates: u32) -> EnginePick {
    EnginePick { stage: ENGINE_STAGE_TOP, n_candidates: candidates, ..EnginePick::GREEDY }
}

/// A row as the engine described it.
pub(super) struct Described<'r> {
    pub(super) call: &'static str,
    pub(super) index: usize,
    pub(super) row: &'r EngineRow,
    pub(super) n_vocab: u32,
}

impl Described<'_> {
    /// The row, in place where it is `f32`. `candidates`: so many suffice; 0: it must be whole.
    ///
    /// NaN and infinity are not looked for: that would read every row twice. Who picks a token sees them.
    ///
    /// # Safety
    ///
    /// The engine has described the row, and keeps its memory as it is for `'a`.
    pub(super) unsafe fn read<'a>(&self, candidates: u32) -> Result<Row<'a>, EngineError> {
        let Self { row, n_vocab, .. } = *self;
        match row.stage {
            u32::MAX => Err(self.wrong("it was not written")),
            ENGINE_STAGE_LOGITS => {
                if row.n != n_vocab {
                    let what = format!("{} logits, but the vocabulary has {n_vocab} tokens", row.n);
                    return Err(self.wrong(what));
                }
                if !row.ids.is_null() {
                    return Err(self.wrong("logits of the whole vocabulary, but in an order of their own"));
                }
                // SAFETY: passed on to the caller.
                Ok(Row::Whole(unsafe { self.logits() }?))
            }
            ENGINE_STAGE_TOP if candidates > 0 => {
                if row.n == 0 || row.n > candidates {
                    return Err(self.wrong(format!("{} candidates, where {candidates} were wanted", row.n)));
                }
                // SAFETY: passed on to the caller.
                let (ids, logits) = unsafe { (self.ids()?, self.logits()?) };
                self.check_order(ids, &logits)?;
                Ok(Row::Best(Best {
                    ids: Cow::Borrowed(ids),
                    logits,
                    log_sum: row.log_sum,
                    n_vocab: n_vocab as usize,
                }))
            }
            // An engine never goes further than it is asked to.
            stage => {
                let wanted = if candidates > 0 { "candidates" } else { "logits" };
                Err(self.wrong(format!("stage {stage}, where {wanted} were wanted")))
            }
        }
    }

    /// # Safety
    ///
    /// As for [`Self::read`].
    unsafe fn ids<'a>(&self) -> Result<&'a [EngineToken], EngineError> {
        let Self { row, n_vocab, .. } = *self;
        if row.ids.is_null() {
            return Err(self.wrong("candidates without ids"));
        }
        if !row.ids.is_aligned() {
            return Err(self.wrong("ids are not aligned"));
        }
        // SAFETY: not NULL, aligned, and `n` numbers long by the engine's word; valid for 'a, the caller
        // says.
        let ids = unsafe { std::slice::from_raw_parts(row.ids, row.n as usize) };
        match ids.iter().find(|id| u32::try_from(**id).map_or(true, |id| id >= n_vocab)) {
            Some(id) => Err(self.wrong(format!("candidate {id} of a vocabulary of {n_vocab} tokens"))),
            None => Ok(ids),
        }
    }

    /// Best first, and equal ones by lower id: so none comes twice, either. Where a logit is no number
    /// there is no order, and whoever picks a token refuses the row.
    fn check_order(&self, ids: &[EngineToken], logits: &[f32]) -> Result<(), EngineError> {
        let ordered = logits.windows(2).zip(ids.windows(2)).all(|(logits, ids)| {
            match logits[0].partial_cmp(&logits[1]) {
                Some(Ordering::Less) => false,
                Some(Ordering::Equal) => ids[0] < ids[1],
                Some(Ordering::Greater) | None => true,
            }
        });
        if ordered { Ok(()) } else { Err(self.wrong("candidates are not in order")) }
    }

    /// # Safety
    ///
    /// As for [`Self::read`]; `n` has been checked.
    unsafe fn logits<'a>(&self) -> Result<Cow<'a, [f32]>, EngineError> {
        let row = self.row;
        if row.logits.is_null() {
            return Err(self.wrong("logits are NULL"));
        }
        let alignment = if row.dtype == ENGINE_F32 { align_of::<f32>() } else { align_of::<u16>() };
        if !row.logits.addr().is_multiple_of(alignment) {
            return Err(self.wrong("logits are not aligned"));
        }
        let count = row.n as usize;
        match row.dtype {
            ENGINE_F32 => {
                // SAFETY: not NULL, aligned, and `n` numbers long by the engine's word; valid for 'a, the
                // caller says.
                let numbers = unsafe { std::slice::from_raw_parts(row.logits.cast::<f32>(), count) };
                Ok(Cow::Borrowed(numbers))
            }
            ENGINE_F16 => {
                // SAFETY: as above; f16 is a u16 by layout.
                let numbers = unsafe { std::slice::from_raw_parts(row.logits.cast::<f16>(), count) };
                Ok(Cow::Owned(numbers.iter().map(|number| number.to_f32()).collect()))
            }
            ENGINE_BF16 => {
                // SAFETY: as above; bf16 is a u16 by layout.
                let numbers = unsafe { std::slice::from_raw_parts(row.logits.cast::<bf16>(), count) };
                Ok(Cow::Owned(numbers.iter().map(|number| number.to_f32()).collect()))
            }
            dtype => Err(self.wrong(format!("unknown number format {dtype}"))),
        }
    }

    fn wrong(&self, what: impl fmt::Display) -> EngineError {
        EngineError::misbehaved(self.call, format!("row {}: {what}", self.index))
    }
}
