//! Prompts read together, on a CPU, beside a split cache.
//!
//! In a split cache each sequence is computed by itself. llama.cpp's kernels compute attention in tiles of 64
//! tokens, and token by token where a sequence brings fewer; and sequences that bring different numbers of
//! tokens take a pass over the weights for each length. In a unified cache tokens lie side by side, whosever
//! they are. So the beginnings of prompts that come in one step are read in a small unified cache, and what it
//! holds of each is copied to its own place: a hundredth of what reading it takes.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use llm_node_sdk::{Batch, MemoryUse, Severity, Slice, log};

use crate::footprint::described;
use crate::llama::{Context, ContextSettings, Decoded, Entry, Fault, Model};
use crate::plan::Plan;
use crate::waiting::Waiting;

/// llama.cpp's GGML_FA_TILE_Q.
const TILE: usize = 64;

/// What a pool is to be.
pub(crate) struct PoolPlan {
    settings: ContextSettings,
    /// What it takes at most.
    bytes: u64,
}

/// A small unified cache that holds nothing from one step to the next.
pub(crate) struct PrefillPool {
    plan: PoolPlan,
    /// Parts of the cache beside it.
    streams: u32,
    /// Tokens that fit; 0: the pool could not be made.
    room: usize,
    abort: Arc<AtomicBool>,
    /// Made when it is first of use.
    context: Option<Context>,
}

/// The pool that this context is to have, added to what it takes: none where its memory is more than a KV
/// cache, or on a device.
pub(crate) fn beside(
    context: &Context,
    plan: &Plan,
    uses: &mut [MemoryUse],
) -> Result<Option<PoolPlan>, Fault> {
    let Some(settings) = &plan.prefill_pool else { return Ok(None) };
    let [MemoryUse { device: None, cache, compute, .. }] = uses else { return Ok(None) };
    if !context.is_plain_cache()? {
        return Ok(None);
    }
    let cells = *cache / u64::from(context.n_ctx().max(1)) * u64::from(settings.n_ctx);
    // Passes are as large as the context's, but a token's mask is over all cells, and in two types.
    let masks = u64::from(settings.n_ctx) * u64::from(settings.n_ubatch) * 6;
    let bytes = cells + *compute + masks;
    *compute += bytes;
    Ok(Some(PoolPlan { settings: settings.clone(), bytes }))
}

/// What a pool takes.
fn taken(context: &Context, settings: &ContextSettings) -> Result<u64, Fault> {
    Ok(described(context, settings)?.iter().map(|memory| memory.cache + memory.compute).sum())
}

impl PrefillPool {
    /// For a context whose passes this flag ends, and whose cache has so many parts.
    pub(crate) fn new(plan: PoolPlan, streams: u32, abort: Arc<AtomicBool>) -> Self {
        Self { room: plan.settings.n_batch as usize, plan, streams, abort, context: None }
    }

    /// Moves the slices that are to be read here from `order` to `chosen`, which is empty.
    pub(crate) fn choose(
        &mut self,
        model: &Arc<Model>,
        batch: &Batch<'_>,
        order: &mut Vec<usize>,
        chosen: &mut Vec<usize>,
    ) {
        let mut room = self.room;
        let (mut shortest, mut longest) = (usize::MAX, 0);
        for &index in order.iter() {
            let Some(slice) = batch.get(index) else { continue };
            let length = slice.tokens.len();
            if slice.position == 0 && length <= room {
                room -= length;
                (shortest, longest) = (shortest.min(length), longest.max(length));
                chosen.push(index);
            }
        }
        // Of one length, they share a pass as they are, and their tiles if they are so long.
        let is_even = shortest == longest && (shortest >= TILE || self.room - room < TILE);
        if chosen.len() < 2 || is_even || !self.is_ready(model) {
            chosen.clear();
        } else {
            order.retain(|index| !chosen.contains(index));
        }
    }

    fn is_ready(&mut self, model: &Arc<Model>) -> bool {
        if self.context.is_none() && self.room > 0 {
            let PoolPlan { settings, bytes } = &self.plan;
            let made = Context::with_abort_flag(model, settings, Arc::clone(&self.abort));
            match made.and_then(|context| Ok((taken(&context, settings)?, context))) {
                Ok((taken, context)) => {
                    let room = self.room;
                    log(Severity::Info, &format!("prefill pool: {room} tokens, {taken} of {bytes} bytes"));
                    self.context = Some(context);
                }
                Err(fault) => {
                    log(Severity::Warn, &format!("no pool to read prompts together: {}", fault.message));
                    self.room = 0;
                }
            }
        }
        self.context.is_some()
    }

    /// Reads the beginnings of sequences that are empty in `target`, and copies them there. Unless it is
    /// [`Decoded::Done`], some of these may hold anything.
    pub(crate) fn read<'a>(
        &mut self,
        target: &mut Context,
        waiting: &mut Waiting,
        slices: &(impl Iterator<Item = Slice<'a>> + Clone),
    ) -> Result<Decoded, Fault> {
        let Some(pool) = &mut self.context else { return Err(Fault::refused("there is no prefill pool")) };
        pool.clear()?;
        let numbered = || (0..).zip(slices.clone());
        let tokens = slices.clone().map(|slice| slice.tokens.len()).sum();
        let decoded = waiting.pass(pool, tokens, |pool| {
            pool.decode(numbered().map(|(id, slice)| Entry {
                sequence: id,
                position: 0,
                tokens: slice.tokens,
                rows: slice.rows,
            }))
        })?;
        match decoded {
            Decoded::Done => {}
            Decoded::Aborted | Decoded::Failed(_) => return Ok(decoded),
            Decoded::NoSlot | Decoded::Invalid => {
                return Err(Fault::refused("llama.cpp does not take a batch into an empty cache"));
            }
        }
        for (id, slice) in numbered() {
            if !target.take_cells(pool, id, slice.sequence, self.streams)? {
                return Err(Fault::refused("the cache lies on a device"));
            }
        }
        Ok(Decoded::Done)
    }

    /// The rows of the last step, as [`Context::logits`] has them.
    pub(crate) fn logits(&mut self) -> Result<&[f32], Fault> {
        self.context.as_mut().map_or(Ok(&[]), Context::logits)
    }
}
