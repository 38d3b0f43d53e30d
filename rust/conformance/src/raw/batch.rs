//! `engine.batch/1` as no node calls it: wrong arguments, other strides, memory that is gone after the call.

use std::mem::{offset_of, size_of};
use std::ptr;

use llm_node_abi::{
    ENGINE_BF16, ENGINE_F16, ENGINE_F32, EngineBatch, EnginePick, EngineRow, EngineSlice, EngineToken,
    Growing,
};
use llm_node_host::raw::{checked, values};
use llm_node_host::{Context, EngineError};

use super::{CANARY, MARGIN};
use crate::check::{Stop, ensure};

/// A slice as it may stand in a batch, right or wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slice {
    pub(crate) sequence: u32,
    pub(crate) position: u32,
    pub(crate) tokens: Vec<EngineToken>,
    pub(crate) n_rows: u32,
    pub(crate) pick: Option<Pick>,
}

/// What is wished for of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pick {
    pub(crate) stage: u32,
    pub(crate) uses: u32,
    pub(crate) n_candidates: u32,
}

/// A row, copied.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) stage: u32,
    pub(crate) n: u32,
    pub(crate) token: EngineToken,
    pub(crate) logits: Vec<f32>,
}

/// Submits a step whose slices lie `stride` bytes apart. After the call all that was given is overwritten.
pub(crate) fn step(context: &mut Context, slices: &[Slice], stride: usize) -> Result<u64, EngineError> {
    let mut tokens: Vec<Vec<EngineToken>> = slices.iter().map(|slice| slice.tokens.clone()).collect();
    let mut picks: Vec<EnginePick> = slices
        .iter()
        .map(|slice| {
            let Pick { stage, uses, n_candidates } = slice.pick.unwrap_or_default();
            EnginePick { stage, uses, n_candidates, ..EnginePick::GREEDY }
        })
        .collect();
    // Of whole words, so that every slice is aligned.
    let mut words = vec![u64::from_ne_bytes([CANARY; 8]); (slices.len() * stride).div_ceil(8) + 8];
    let base = words.as_mut_ptr().cast::<u8>();
    for (index, slice) in slices.iter().enumerate() {
        let one = EngineSlice {
            sequence: slice.sequence,
            position: slice.position,
            n_tokens: slice.tokens.len() as u32,
            n_rows: slice.n_rows,
            tokens: tokens[index].as_ptr(),
            pick: if slice.pick.is_some() { &raw const picks[index] } else { ptr::null() },
            adapter: ptr::null_mut(),
            adapter_scale: 0.0,
            reserved: 0,
        };
        // SAFETY: there is room for `slices.len()` strides and eight words more, and no stride is shorter than
        // a slice.
        unsafe { base.add(index * stride).cast::<EngineSlice>().write_unaligned(one) };
    }
    let mut batch = EngineBatch {
        struct_size: EngineBatch::SIZE,
        n_slices: slices.len() as u32,
        slice_stride: stride,
        slices: base.cast(),
    };
    let mut ticket = 0;
    let Some(step) = context.model().engine().tables().batch.and_then(|table| table.step) else {
        return Ok(0); // a context could not have been made
    };
    let handle = context.as_ptr();
    // SAFETY: [step]: `&mut Context`. All that is pointed to outlives the call.
    let result = checked("batch.step", || unsafe { step(handle, &raw const batch, &raw mut ticket) });
    // "it has copied all it needs from `batch`"
    for tokens in &mut tokens {
        tokens.fill(EngineToken::MAX);
    }
    picks.fill(EnginePick { stage: u32::MAX, n_candidates: u32::MAX, ..EnginePick::GREEDY });
    words.fill(u64::from_ne_bytes([CANARY; 8]));
    batch.n_slices = 0;
    std::hint::black_box((&tokens, &picks, &words, &batch));
    result.map(|()| ticket)
}

/// Collects rows that lie `stride` bytes apart, and looks whether anything beyond them was written.
pub(crate) fn collect(
    context: &mut Context,
    ticket: u64,
    n_rows: usize,
    stride: usize,
) -> Result<Vec<Row>, Stop> {
    let length = n_rows * stride;
    let mut words = vec![u64::from_ne_bytes([CANARY; 8]); length.div_ceil(8) + MARGIN];
    let (base, room) = (words.as_mut_ptr().cast::<u8>(), words.as_mut_ptr().cast::<EngineRow>());
    let Some(collect) = context.model().engine().tables().batch.and_then(|table| table.collect) else {
        return Err(Stop::skip("there is no collect"));
    };
    let handle = context.as_ptr();
    checked("batch.collect", || {
        // SAFETY: [step]: `&mut Context`. There is room for `n_rows` strides.
        unsafe { collect(handle, ticket, ptr::null(), room, n_rows, stride) }
    })?;
    // SAFETY: the whole of `words`, seen as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(base.cast_const(), words.len() * 8) };
    ensure!(
        bytes[length..].iter().all(|byte| *byte == CANARY),
        "batch.collect wrote beyond the {n_rows} rows that it was given room for."
    );
    let known = stride.min(size_of::<EngineRow>());
    let mut rows = Vec::with_capacity(n_rows);
    for index in 0..n_rows {
        let one = &bytes[index * stride..(index + 1) * stride];
        ensure!(
            one[known..].iter().all(|byte| *byte == CANARY),
            "batch.collect wrote beyond a row, into the {} bytes up to the next one.",
            stride - known
        );
        ensure!(one.iter().any(|byte| *byte != CANARY), "batch.collect did not write row {index}.");
        let mut row = [0_u8; size_of::<EngineRow>()];
        row[..known].copy_from_slice(&one[..known]);
        // SAFETY: as long as a row, which any bytes are a value of.
        let row = unsafe { row.as_ptr().cast::<EngineRow>().read_unaligned() };
        let is_whole = known > offset_of!(EngineRow, logits);
        rows.push(Row {
            stage: row.stage,
            n: row.n,
            token: row.token,
            logits: if is_whole { logits(&row)? } else { Vec::new() },
        });
    }
    Ok(rows)
}

fn logits(row: &EngineRow) -> Result<Vec<f32>, Stop> {
    let count = row.n as usize;
    let unreadable = |problem| Stop::seen(format!("The logits of a row: their address {problem}."));
    // SAFETY: valid until further steps, the header says; where the kernel is asked, it may be anything.
    unsafe {
        match row.dtype {
            ENGINE_F32 => values(row.logits.cast::<f32>(), count).map_err(unreadable),
            ENGINE_F16 => values(row.logits.cast::<u16>(), count)
                .map_err(unreadable)
                .map(|numbers| numbers.into_iter().map(from_f16).collect()),
            ENGINE_BF16 => values(row.logits.cast::<u16>(), count).map_err(unreadable).map(|numbers| {
                numbers.into_iter().map(|half| f32::from_bits(u32::from(half) << 16)).collect()
            }),
            dtype => Err(Stop::seen(format!("A row of the unknown dtype {dtype}."))),
        }
    }
}

fn from_f16(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    sign * match exponent {
        0 => fraction * 2_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (fraction + 1024.0) * 2_f32.powi(exponent - 25),
    }
}

/// `seq_copy`, with any numbers.
pub(crate) fn seq_copy(context: &mut Context, from: u32, to: u32, end: u32) -> Result<(), EngineError> {
    let handle = context.as_ptr();
    let function = context.model().engine().tables().batch.and_then(|table| table.seq_copy);
    // SAFETY: [step]: `&mut Context`.
    function.map_or(Ok(()), |copy| checked("batch.seq_copy", || unsafe { copy(handle, from, to, end) }))
}

/// `seq_remove`, with any numbers.
pub(crate) fn seq_remove(context: &mut Context, sequence: u32, begin: u32) -> Result<(), EngineError> {
    let handle = context.as_ptr();
    let function = context.model().engine().tables().batch.and_then(|table| table.seq_remove);
    // SAFETY: [step]: `&mut Context`.
    function
        .map_or(Ok(()), |remove| checked("batch.seq_remove", || unsafe { remove(handle, sequence, begin) }))
}

/// `seq_range`, with any number.
pub(crate) fn seq_range(context: &mut Context, sequence: u32) -> Result<(u32, u32), EngineError> {
    let handle = context.as_ptr();
    let function = context.model().engine().tables().batch.and_then(|table| table.seq_range);
    let (mut begin, mut end) = (0, 0);
    let result = function.map_or(Ok(()), |range| {
        // SAFETY: [step]: `&mut Context`. Both are locals.
        checked("batch.seq_range", || unsafe { range(handle, sequence, &raw mut begin, &raw mut end) })
    });
    result.map(|()| (begin, end))
}

/// `cache_free`, as the engine says it.
pub(crate) fn cache_free(context: &mut Context) -> u64 {
    let function = context.model().engine().tables().batch.and_then(|table| table.cache_free);
    // SAFETY: [step]: `&mut Context`.
    function.map_or(0, |free| unsafe { free(context.as_ptr()) })
}

/// `seq_restore` of bytes that may be no state.
pub(crate) fn seq_restore(context: &mut Context, sequence: u32, bytes: &[u8]) -> Result<(), EngineError> {
    let handle = context.as_ptr();
    let function = context.model().engine().tables().batch.and_then(|table| table.seq_restore);
    function.map_or(Ok(()), |restore| {
        // SAFETY: [step]: `&mut Context`. The bytes outlive the call.
        checked("batch.seq_restore", || unsafe {
            restore(handle, sequence, bytes.as_ptr().cast(), bytes.len())
        })
    })
}

/// `seq_save` with room for so many bytes: its code, and what it says it needs or wrote.
pub(crate) fn seq_save(
    context: &mut Context,
    sequence: u32,
    capacity: usize,
) -> Result<(Result<(), EngineError>, usize), Stop> {
    let handle = context.as_ptr();
    let Some(save) = context.model().engine().tables().batch.and_then(|table| table.seq_save) else {
        return Err(Stop::skip("the engine does not save sequences"));
    };
    let mut data = vec![CANARY; capacity + MARGIN];
    let mut size = 0;
    let result = checked("batch.seq_save", || {
        // SAFETY: [step]: `&mut Context`. There is room for more than `capacity` bytes.
        unsafe { save(handle, sequence, data.as_mut_ptr().cast(), capacity, &raw mut size) }
    });
    ensure!(
        data[capacity..].iter().all(|byte| *byte == CANARY),
        "batch.seq_save wrote beyond the {capacity} bytes that it was given."
    );
    if result.is_err() {
        ensure!(
            data.iter().all(|byte| *byte == CANARY),
            "batch.seq_save failed, and wrote into the {capacity} bytes that it found too few."
        );
    }
    Ok((result, size))
}
