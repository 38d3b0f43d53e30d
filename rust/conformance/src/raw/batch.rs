//! `engine.batch/1` as no node calls it: wrong arguments, other strides, memory that is gone after the call.

use std::mem::{offset_of, size_of};
use std::ptr;

use llm_node_abi::{
    ENGINE_BF16, ENGINE_F16, ENGINE_F32, ENGINE_PICK_BIAS, ENGINE_PICK_FREQUENCY, ENGINE_PICK_MASK,
    ENGINE_PICK_MIN_P, ENGINE_PICK_PRESENCE, ENGINE_PICK_REPEAT, ENGINE_PICK_TEMPERATURE, ENGINE_PICK_TOP_K,
    ENGINE_PICK_TOP_P, ENGINE_STAGE_LOGITS, EngineBatch, EngineBias, EnginePick, EngineRow, EngineSlice,
    EngineToken, Growing,
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

/// What is wished for of the rows of a slice.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pick {
    pub(crate) stage: u32,
    pub(crate) uses: u32,
    pub(crate) n_candidates: u32,
    pub(crate) shape: Shape,
}

/// The members of a pick that `uses` may name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) repeat_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) top_k: u32,
    pub(crate) bias: Vec<EngineBias>,
    pub(crate) history: Vec<EngineToken>,
    /// One for each row.
    pub(crate) masks: Vec<Option<Vec<u32>>>,
    /// One for each row.
    pub(crate) uniforms: Vec<f32>,
}

impl Pick {
    /// As it crosses the border. Members that `uses` does not name are what nobody can read: they are to be left
    /// unread. It points into `self` and into `masks`.
    fn raw(&self, masks: &[*const u32]) -> EnginePick {
        let used = |bits: u32| self.uses & bits != 0;
        let number = |bit: u32, value: f32| if used(bit) { value } else { f32::NAN };
        let penalises = used(ENGINE_PICK_REPEAT | ENGINE_PICK_FREQUENCY | ENGINE_PICK_PRESENCE);
        let (bias, masked) = (used(ENGINE_PICK_BIAS), used(ENGINE_PICK_MASK));
        let Shape { bias: biases, history, uniforms, .. } = &self.shape;
        EnginePick {
            stage: self.stage,
            uses: self.uses,
            n_candidates: self.n_candidates,
            repeat_penalty: number(ENGINE_PICK_REPEAT, self.shape.repeat_penalty),
            frequency_penalty: number(ENGINE_PICK_FREQUENCY, self.shape.frequency_penalty),
            presence_penalty: number(ENGINE_PICK_PRESENCE, self.shape.presence_penalty),
            temperature: number(ENGINE_PICK_TEMPERATURE, self.shape.temperature),
            top_p: number(ENGINE_PICK_TOP_P, self.shape.top_p),
            min_p: number(ENGINE_PICK_MIN_P, self.shape.min_p),
            top_k: if used(ENGINE_PICK_TOP_K) { self.shape.top_k } else { u32::MAX },
            n_bias: if bias { biases.len() as u32 } else { u32::MAX },
            bias: if bias { biases.as_ptr() } else { ptr::without_provenance(NOWHERE) },
            history: if penalises { history.as_ptr() } else { ptr::without_provenance(NOWHERE) },
            n_history: if penalises { history.len() } else { usize::MAX },
            masks: if masked { masks.as_ptr() } else { ptr::without_provenance(NOWHERE) },
            uniforms: if used(ENGINE_PICK_TEMPERATURE) {
                uniforms.as_ptr()
            } else {
                ptr::without_provenance(NOWHERE)
            },
            ..EnginePick::GREEDY
        }
    }

    /// Makes of it what nobody would wish for.
    fn spoil(&mut self) {
        let Shape { bias, history, masks, uniforms, .. } = &mut self.shape;
        bias.fill(EngineBias { token: EngineToken::MAX, bias: f32::NAN });
        history.fill(EngineToken::MAX);
        masks.iter_mut().flatten().for_each(|mask| mask.fill(0));
        uniforms.fill(f32::NAN);
    }
}

/// An address that nothing is mapped at.
const NOWHERE: usize = 0x10;

fn addresses(masks: &[Option<Vec<u32>>]) -> Vec<*const u32> {
    masks.iter().map(|mask| mask.as_ref().map_or(ptr::null(), Vec::as_ptr)).collect()
}

/// A row, copied.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) stage: u32,
    pub(crate) n: u32,
    pub(crate) token: EngineToken,
    /// Of candidates; none at LOGITS.
    pub(crate) ids: Vec<EngineToken>,
    pub(crate) logits: Vec<f32>,
}

/// Submits a step whose slices lie `stride` bytes apart. After the call all that was given is overwritten.
pub(crate) fn step(context: &mut Context, slices: &[Slice], stride: usize) -> Result<u64, EngineError> {
    let mut tokens: Vec<Vec<EngineToken>> = slices.iter().map(|slice| slice.tokens.clone()).collect();
    let mut given: Vec<Pick> = slices.iter().map(|slice| slice.pick.clone().unwrap_or_default()).collect();
    let masks: Vec<Vec<*const u32>> = given.iter().map(|pick| addresses(&pick.shape.masks)).collect();
    let mut picks: Vec<EnginePick> = given.iter().zip(&masks).map(|(pick, masks)| pick.raw(masks)).collect();
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
    given.iter_mut().for_each(Pick::spoil);
    words.fill(u64::from_ne_bytes([CANARY; 8]));
    batch.n_slices = 0;
    std::hint::black_box((&tokens, &picks, &given, &masks, &words, &batch));
    result.map(|()| ticket)
}

/// Collects rows that lie `stride` bytes apart, and looks whether anything beyond them was written.
pub(crate) fn collect(
    context: &mut Context,
    ticket: u64,
    n_rows: usize,
    stride: usize,
) -> Result<Vec<Row>, Stop> {
    collect_masked(context, ticket, n_rows, stride, &[])
}

/// As [`collect`], with masks that come only now: one for each row, or none at all.
pub(crate) fn collect_masked(
    context: &mut Context,
    ticket: u64,
    n_rows: usize,
    stride: usize,
    late: &[Option<Vec<u32>>],
) -> Result<Vec<Row>, Stop> {
    let late = addresses(late);
    let late = if late.is_empty() { ptr::null() } else { late.as_ptr() };
    let length = n_rows * stride;
    let mut words = vec![u64::from_ne_bytes([CANARY; 8]); length.div_ceil(8) + MARGIN];
    let (base, room) = (words.as_mut_ptr().cast::<u8>(), words.as_mut_ptr().cast::<EngineRow>());
    let Some(collect) = context.model().engine().tables().batch.and_then(|table| table.collect) else {
        return Err(Stop::skip("there is no collect"));
    };
    let handle = context.as_ptr();
    checked("batch.collect", || {
        // SAFETY: [step]: `&mut Context`. There is room for `n_rows` strides.
        unsafe { collect(handle, ticket, late, room, n_rows, stride) }
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
            ids: if is_whole { ids(&row)? } else { Vec::new() },
            logits: if is_whole { logits(&row)? } else { Vec::new() },
        });
    }
    Ok(rows)
}

fn ids(row: &EngineRow) -> Result<Vec<EngineToken>, Stop> {
    if row.stage == ENGINE_STAGE_LOGITS || row.n == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: valid until further steps, the header says; where the kernel is asked, it may be anything.
    unsafe { values(row.ids, row.n as usize) }
        .map_err(|problem| Stop::seen(format!("The ids of a row: their address {problem}.")))
}

fn logits(row: &EngineRow) -> Result<Vec<f32>, Stop> {
    let count = row.n as usize;
    if count == 0 {
        return Ok(Vec::new());
    }
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
