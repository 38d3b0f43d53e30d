//! `engine.batch/1`: one forward pass over what the host scheduled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llm_node_sdk::{Batch, Batching, ContextInfo, ContextParams, Failure, Masks, Row, Rows, Slice, abi};

use crate::cells::Cells;
use crate::footprint::{Booked, described, only_weights};
use crate::llama::{self, Context, Decoded, Entry};
use crate::memory::unsupported;
use crate::model::{LlamaModel, generates};
use crate::options::{ContextOptions, WaitPolicy};
use crate::plan::{Plan, plan};
use crate::prefill::{self, PrefillPool};
use crate::waiting::Waiting;
use crate::{LlamaEngine, internal, state};

/// A context and what the host may ask of it.
pub(crate) struct LlamaContext {
    context: Context,
    cells: Cells,
    plan: Plan,
    max_batch_tokens: u32,
    n_vocab: usize,
    max_rollback: u32,
    /// Width of the attention window where old positions slide out of the cache; 0: they stay.
    window: u32,
    recurrent: bool,
    /// Per sequence of a recurrent model, the length that it was restored with: llama.cpp's snapshots of
    /// the state before that stayed behind.
    restored: Vec<u32>,
    /// What a saved state must have been made with.
    fingerprint: u64,
    cancel: Arc<AtomicBool>,
    /// Where prompts are read together.
    pool: Option<PrefillPool>,
    /// Slices of the step under way by ascending sequence; kept to spare allocations.
    order: Vec<usize>,
    /// Those that the pool reads.
    pooled: Vec<usize>,
    /// Rows of the last step, in the order of its slices.
    rows: Vec<Place>,
    /// First row of each slice; kept to spare allocations.
    begins: Vec<Place>,
    /// llama.cpp's buffer has been put in order.
    settled: bool,
    /// An assertion failed: llama.cpp's state is not to be trusted any more.
    broken: Option<String>,
    waiting: Waiting,
    _booked: Booked,
}

/// Where a row lies: in which of llama.cpp's buffers, and how many are before it.
#[derive(Clone, Copy, Default)]
struct Place {
    in_pool: bool,
    row: usize,
}

fn cache_full(needed: u64, free: u64) -> Failure {
    Failure::new(abi::ERR_CACHE_FULL, format!("{needed} tokens are needed, and the cache has {free} free"))
}

impl LlamaContext {
    fn usable(&self) -> Result<(), Failure> {
        match &self.broken {
            Some(why) => Err(Failure::internal(format!("this context failed before: {why}"))),
            None => Ok(()),
        }
    }

    /// Everything that llama.cpp would assert or half do, found before anything is touched.
    fn check(&mut self, batch: &Batch<'_>) -> Result<u64, Failure> {
        self.usable()?;
        let (mut tokens, mut rows) = (0_u64, 0_u64);
        for (index, slice) in batch.iter().enumerate() {
            let wrong = |text: String| Failure::invalid(format!("slice {index}: {text}"));
            let end = self.cells.len(slice.sequence);
            if slice.position != end {
                return Err(wrong(format!(
                    "position {} is not where the sequence ends, {end}",
                    slice.position
                )));
            }
            let length = u64::from(slice.position) + slice.tokens.len() as u64;
            if length > u64::from(self.plan.context_length) {
                return Err(wrong(format!(
                    "the sequence would be {length} tokens long, and the context is {}",
                    self.plan.context_length
                )));
            }
            if let Some(token) = slice
                .tokens
                .iter()
                .find(|token| usize::try_from(**token).map_or(true, |id| id >= self.n_vocab))
            {
                return Err(wrong(format!("token {token} is not in the vocabulary of {}", self.n_vocab)));
            }
            tokens += slice.tokens.len() as u64;
            rows += u64::from(slice.rows);
        }
        if tokens > u64::from(self.max_batch_tokens) {
            return Err(Failure::invalid(format!(
                "{tokens} tokens in one step, and at most {} fit",
                self.max_batch_tokens
            )));
        }
        if rows > u64::from(self.plan.max_rows) {
            return Err(Failure::invalid(format!(
                "{rows} rows in one step, and at most {} fit",
                self.plan.max_rows
            )));
        }
        Ok(tokens)
    }

    /// Takes over what llama.cpp holds after a step that failed on its way.
    fn resynchronise(&mut self, batch: &Batch<'_>) {
        for slice in batch.iter() {
            let end = self.context.positions(slice.sequence).map_or(0, |(_, last)| last + 1);
            self.cells.resize(slice.sequence, end);
        }
    }

    /// Notes where the rows of each slice lie: llama.cpp has them by ascending sequence, the host wants them
    /// in the order of its slices.
    fn locate(&mut self, batch: &Batch<'_>) {
        self.begins.clear();
        self.begins.resize(batch.len(), Place::default());
        for (in_pool, indices) in [(false, &self.order), (true, &self.pooled)] {
            let mut row = 0;
            for &index in indices {
                self.begins[index] = Place { in_pool, row };
                row += batch.get(index).map_or(0, |slice| slice.rows as usize);
            }
        }
        self.rows.clear();
        for (slice, &Place { in_pool, row }) in batch.iter().zip(&self.begins) {
            self.rows.extend((row..row + slice.rows as usize).map(|row| Place { in_pool, row }));
        }
    }

    /// A failure after which this context refuses to go on.
    fn fault(&mut self, fault: llama::Fault) -> Failure {
        if fault.kind == llama::FaultKind::Assertion {
            self.broken = Some(fault.message.clone());
        }
        internal(fault)
    }

    /// May the sequence be cut to `end` without what follows missing positions that slid away?
    fn window_holds(&self, sequence: u32, end: u32) -> bool {
        self.window == 0
            || self
                .context
                .positions(sequence)
                .is_some_and(|(first, _)| first <= end.saturating_sub(self.window))
    }
}

impl Batching for LlamaEngine {
    type Context = LlamaContext;
    const CANCELS: bool = true;
    const SAVES: bool = true;

    fn create(
        &self,
        model: &Arc<LlamaModel>,
        params: &ContextParams,
    ) -> Result<(LlamaContext, ContextInfo), Failure> {
        if !generates(&model.raw) {
            return Err(Failure::unsupported("the model does not generate text token by token"));
        }
        let options = ContextOptions::parse(&self.options, &params.options)?;
        let plan = plan(model.facts(), params, &options, self.threads)?;
        let context = Context::create(&model.raw, &plan.settings)
            .map_err(|fault| create_failure(model, &plan, fault))?;
        if !context.has_memory() {
            return Err(Failure::unsupported("the model has no memory of a sequence"));
        }

        let mut uses = described(&context, &plan.settings).map_err(internal)?;
        let pool = prefill::beside(&context, &plan, &mut uses).map_err(internal)?;
        let _ = model.weights.set(only_weights(&context.memory().map_err(internal)?));
        let facts = model.facts();
        let cells = u64::from(context.n_ctx().max(1));
        for memory in &mut uses {
            memory.weights = 0;
            if facts.recurrent {
                memory.cache_per_sequence = memory.cache / u64::from(plan.settings.n_seq_max);
            } else {
                memory.cache_per_token = memory.cache / cells;
            }
        }
        let asynchronous = uses.iter().any(|memory| memory.device.is_some());
        // A device's passes say nothing about the processors.
        let wait_policy = match options.wait_policy {
            WaitPolicy::Auto if asynchronous => WaitPolicy::Active,
            policy => policy,
        };

        let window = if plan.settings.swa_full { 0 } else { facts.attention_window };
        let max_rollback = if facts.recurrent {
            context.n_rs_seq()
        } else if window > 0 {
            0
        } else {
            u32::MAX
        };
        let info = ContextInfo {
            shares_prefixes: plan.settings.kv_unified && window == 0,
            asynchronous,
            max_sequences: plan.settings.n_seq_max,
            context_length: plan.context_length.min(context.n_ctx_seq()),
            max_batch_tokens: context.n_batch(),
            max_rows: plan.max_rows.min(context.n_batch()),
            max_in_flight: 1,
            max_rollback,
            cache_page: 1,
            cache_tokens: u64::from(context.n_ctx()),
            ..ContextInfo::default()
        };
        let made = LlamaContext {
            cells: Cells::new(plan.settings.n_seq_max, context.n_ctx(), plan.settings.kv_unified),
            max_batch_tokens: info.max_batch_tokens,
            n_vocab: model.raw.n_vocab(),
            max_rollback,
            window,
            recurrent: facts.recurrent,
            restored: vec![0; plan.settings.n_seq_max as usize],
            fingerprint: fingerprint(model, &plan),
            cancel: context.abort_flag(),
            pool: pool.map(|pool| PrefillPool::new(pool, plan.settings.n_seq_max, context.abort_flag())),
            order: Vec::new(),
            pooled: Vec::new(),
            rows: Vec::new(),
            begins: Vec::new(),
            settled: true,
            broken: None,
            waiting: Waiting::new(wait_policy, plan.settings.n_threads),
            _booked: Booked::open(&model.contexts, uses),
            plan: Plan { context_length: info.context_length, max_rows: info.max_rows, ..plan },
            context,
        };
        Ok((made, info))
    }

    fn canceller(context: &LlamaContext) -> Box<dyn Fn() + Send + Sync> {
        let cancel = Arc::clone(&context.cancel);
        Box::new(move || cancel.store(true, Ordering::Relaxed))
    }

    fn step(context: &mut LlamaContext, batch: &Batch<'_>, _ticket: u64) -> Result<(), Failure> {
        let tokens = context.check(batch)?;

        // Holes and reverse order cost llama.cpp a pass each, so the order is its own, not the host's.
        context.order.clear();
        context.order.extend(0..batch.len());
        let sequence = |index: &usize| batch.get(*index).map_or(u32::MAX, |slice| slice.sequence);
        context.order.sort_by_key(sequence);
        if context.order.windows(2).any(|pair| sequence(&pair[0]) == sequence(&pair[1])) {
            return Err(Failure::invalid("a sequence takes part twice"));
        }
        let growth = batch.iter().map(|slice| (slice.sequence, slice.tokens.len() as u32));
        if !context.cells.fits(growth) {
            return Err(cache_full(tokens, context.cells.free()));
        }
        if !context.settled {
            // A step that finds no room leaves the rows before it alone, but not their order.
            context.context.logits().map_err(internal)?;
            context.settled = true;
        }

        context.cancel.store(false, Ordering::Relaxed);
        context.pooled.clear();
        if let Some(pool) = &mut context.pool {
            pool.choose(context.context.model(), batch, &mut context.order, &mut context.pooled);
        }
        let mut decoded = Ok(Decoded::Done);
        if !context.order.is_empty() {
            let tokens = slices(batch, &context.order).map(|slice| slice.tokens.len()).sum();
            decoded = context.waiting.pass(&mut context.context, tokens, |llama| {
                llama.decode(slices(batch, &context.order).map(entry))
            });
        }
        if let (Ok(Decoded::Done), Some(pool), [_, ..]) = (&decoded, &mut context.pool, &*context.pooled) {
            decoded = pool.read(&mut context.context, &mut context.waiting, &slices(batch, &context.pooled));
        }
        let failure = match decoded {
            Ok(Decoded::Done) => {
                for slice in batch.iter() {
                    context.cells.resize(slice.sequence, slice.position + slice.tokens.len() as u32);
                }
                context.locate(batch);
                context.settled = context.rows.is_empty();
                return Ok(());
            }
            Ok(Decoded::NoSlot) => return Err(cache_full(tokens, context.cells.free())),
            Ok(Decoded::Invalid) => return Err(Failure::invalid("llama.cpp finds the batch inconsistent")),
            Ok(Decoded::Aborted) => Failure::new(abi::ERR_CANCELLED, "the step was cancelled"),
            Ok(Decoded::Failed(code)) => Failure::internal(format!("llama_decode failed with {code}")),
            Err(fault) => context.fault(fault),
        };
        context.rows.clear();
        context.settled = true;
        if context.broken.is_none() {
            // What was to come out of the pool may be there in part, or cells without their contents.
            for slice in slices(batch, &std::mem::take(&mut context.pooled)) {
                context.context.remove(slice.sequence, 0).map_err(|fault| context.fault(fault))?;
            }
            context.resynchronise(batch);
        }
        Err(failure)
    }

    fn collect<'a>(
        context: &'a mut LlamaContext,
        _ticket: u64,
        _late_masks: Option<Masks<'_>>,
        rows: &mut Rows<'a>,
    ) -> Result<(), Failure> {
        if context.rows.is_empty() {
            return Ok(());
        }
        context.settled = true;
        let n_vocab = context.n_vocab;
        let own = context.context.logits().map_err(internal)?;
        let pool = context.pool.as_mut().map_or(Ok(&[][..]), PrefillPool::logits).map_err(internal)?;
        for &Place { in_pool, row } in &context.rows {
            let row = if in_pool { pool } else { own }
                .get(row * n_vocab..(row + 1) * n_vocab)
                .ok_or_else(|| Failure::internal("llama.cpp gave fewer rows than it was asked for"))?;
            rows.push(Row::logits(row))?;
        }
        Ok(())
    }

    fn copy(context: &mut LlamaContext, from: u32, to: u32, end: u32) -> Result<(), Failure> {
        let length = context.cells.len(from);
        if context.cells.len(to) > 0 {
            return Err(Failure::invalid(format!("sequence {to} is not empty")));
        }
        if end > length {
            return Err(Failure::invalid(format!("sequence {from} has {length} tokens, not {end}")));
        }
        if end == 0 {
            return Ok(());
        }
        let unified = context.plan.settings.kv_unified;
        if unified && context.window > 0 {
            // llama.cpp does not reuse what slid out of the window while two sequences share it: soon
            // neither would find room.
            return Err(Failure::unsupported(
                "a pool with a sliding window does not share: set swa_full, or split the cache",
            ));
        }
        if end < length && (context.recurrent || !context.window_holds(from, end)) {
            return Err(Failure::unsupported("only the whole of this sequence can be copied"));
        }
        // What is outside of the window is not among the cells that are copied one by one, but what comes
        // before an earlier end may look at it.
        let by_cells = !unified && !context.recurrent && (context.window == 0 || end == length);
        let copied = if by_cells { context.context.copy_cells(from, to) } else { Ok(false) };
        if !copied.map_err(|fault| context.fault(fault))? {
            let part = (unified && end < length).then_some(end);
            let copied = context.context.copy(from, to, part);
            copied.map_err(|fault| context.fault(fault))?;
        }
        // A split cache copies the whole of a sequence's part, so the rest is cut off.
        if !unified && end < length {
            let removed = context.context.remove(to, end);
            if !removed.map_err(|fault| context.fault(fault))? {
                let _ = context.context.remove(to, 0);
                return Err(Failure::unsupported("only the whole of this sequence can be copied"));
            }
        }
        context.cells.copy(from, to, end);
        context.restored[to as usize] = context.restored[from as usize];
        Ok(())
    }

    fn remove(context: &mut LlamaContext, sequence: u32, begin: u32) -> Result<(), Failure> {
        let length = context.cells.len(sequence);
        if begin >= length {
            return Ok(());
        }
        if begin > 0 {
            if context.recurrent && begin < context.restored[sequence as usize] {
                return Err(Failure::unsupported("a restored state cannot be taken back"));
            }
            if context.recurrent && length - begin > context.max_rollback {
                return Err(Failure::unsupported(format!(
                    "the state can be taken back by {} tokens, not {}",
                    context.max_rollback,
                    length - begin
                )));
            }
            if !context.window_holds(sequence, begin) {
                return Err(Failure::unsupported("positions before that slid out of the attention window"));
            }
        }
        let removed = context.context.remove(sequence, begin);
        if !removed.map_err(|fault| context.fault(fault))? {
            return Err(Failure::unsupported("the model's state cannot be taken back to that position"));
        }
        context.cells.resize(sequence, begin);
        if begin == 0 {
            context.restored[sequence as usize] = 0;
        }
        Ok(())
    }

    fn range(context: &LlamaContext, sequence: u32) -> Result<(u32, u32), Failure> {
        let end = context.cells.len(sequence);
        let begin = if context.window > 0 {
            context.context.positions(sequence).map_or(0, |(first, _)| first.min(end))
        } else {
            0
        };
        Ok((begin, end))
    }

    fn cache_free(context: &LlamaContext) -> u64 {
        context.cells.free()
    }

    fn saved_size(context: &mut LlamaContext, sequence: u32) -> Result<usize, Failure> {
        context.usable()?;
        let size = context.context.state_size(sequence);
        Ok(size.map_err(|fault| context.fault(fault))? + state::HEAD)
    }

    fn save(context: &mut LlamaContext, sequence: u32, data: &mut [u8]) -> Result<usize, Failure> {
        let size = context.context.save(sequence, &mut data[state::HEAD..]);
        let size = size.map_err(|fault| context.fault(fault))? + state::HEAD;
        state::seal(&mut data[..size], context.fingerprint, context.cells.len(sequence));
        Ok(size)
    }

    fn restore(context: &mut LlamaContext, sequence: u32, data: &[u8]) -> Result<(), Failure> {
        context.usable()?;
        let (tokens, state) = state::open(data, context.fingerprint).map_err(Failure::invalid)?;
        if !context.cells.fits(std::iter::once((sequence, tokens))) {
            return Err(cache_full(u64::from(tokens), context.cells.free()));
        }
        let restored = context.context.restore(sequence, state).and_then(|()| {
            match context.context.positions(sequence) {
                Some((_, last)) if last + 1 == tokens => Ok(()),
                found => Err(llama::Fault::refused(format!("positions {found:?} of {tokens} tokens"))),
            }
        });
        if let Err(fault) = restored {
            let is_refused = fault.kind == llama::FaultKind::Refused;
            let failure = context.fault(fault);
            if context.broken.is_none() {
                // Of several caches one may have taken its part.
                let removed = context.context.remove(sequence, 0);
                removed.map_err(|fault| context.fault(fault))?;
            }
            // The bytes are good, so what they lack is room: in the cells of a window, which llama.cpp
            // counts by itself. With the whole cache to itself that cannot be.
            if is_refused && context.cells.in_use() {
                return Err(cache_full(u64::from(tokens), context.cells.free()));
            }
            return Err(failure);
        }
        context.cells.resize(sequence, tokens);
        if context.recurrent {
            context.restored[sequence as usize] = tokens;
        }
        Ok(())
    }
}

/// What a state depends on: the engine, the model as its file describes it, and the context's settings.
fn fingerprint(model: &LlamaModel, plan: &Plan) -> u64 {
    let settings = format!("{} {:?}", env!("CARGO_PKG_VERSION"), plan.settings);
    state::fingerprint(model.metadata().chain([settings.as_bytes()]))
}

/// Those slices of a batch.
fn slices<'a>(batch: &'a Batch<'_>, indices: &'a [usize]) -> impl Iterator<Item = Slice<'a>> + Clone {
    indices.iter().filter_map(|&index| batch.get(index))
}

fn entry(slice: Slice<'_>) -> Entry<'_> {
    Entry { sequence: slice.sequence, position: slice.position, tokens: slice.tokens, rows: slice.rows }
}

/// Why a context could not be made. Where it can be made without memory being allocated, memory is
/// what was missing.
fn create_failure(model: &LlamaModel, plan: &Plan, fault: llama::Fault) -> Failure {
    if fault.kind != llama::FaultKind::Refused {
        return internal(fault);
    }
    let dry = model.source.load_dry().and_then(|dry| Context::create(&Arc::new(dry), &plan.settings));
    match dry {
        Err(_) => unsupported(fault),
        Ok(_) if model.source.gpu_layers != 0 => Failure::new(abi::ERR_OOM_VRAM, fault.message),
        Ok(_) => Failure::new(abi::ERR_OOM_RAM, fault.message),
    }
}
