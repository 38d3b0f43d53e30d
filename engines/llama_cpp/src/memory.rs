//! `engine.memory/1`: what a model would take, and takes.

use std::sync::{Arc, PoisonError};

use llm_node_sdk::{ContextParams, Device, DeviceKind, Failure, Memory, MemoryUse, ModelParams, abi};

use crate::footprint::{described, only_weights};
use crate::llama::{self, Context, ContextSettings};
use crate::model::{LlamaModel, check_kind, facts};
use crate::options::ContextOptions;
use crate::plan::plan;
use crate::prefill;
use crate::{LlamaEngine, internal};

/// By how many tokens per sequence a cache is made larger to see what a token costs.
const PROBE: u32 = 1024;

/// What CUDA takes of a GPU for a process, beside what llama.cpp knows of: the context, the kernels that are
/// loaded, the libraries' own room. NVML counts it. 604 MiB on an H200 (driver 580.159, CUDA 13.0), whatever
/// the model; smaller GPUs have smaller contexts.
const CUDA_CONTEXT: u64 = 608 << 20;

impl Memory for LlamaEngine {
    fn devices(&self) -> Vec<Device> {
        llama::devices()
            .into_iter()
            .map(|device| Device {
                kind: match device.kind {
                    llama::DeviceKind::Cpu => DeviceKind::Cpu,
                    llama::DeviceKind::Gpu => DeviceKind::Gpu,
                    llama::DeviceKind::Integrated => DeviceKind::Integrated,
                    llama::DeviceKind::Other => DeviceKind::Other,
                },
                name: device.name,
                description: device.description,
                bus_id: device.bus_id,
            })
            .collect()
    }

    fn device_memory(&self, index: u32) -> (u64, u64) {
        llama::device_memory(index)
    }

    fn estimate(
        &self,
        model: &ModelParams,
        context: Option<&ContextParams>,
    ) -> Result<Vec<MemoryUse>, Failure> {
        let source = self.source(model)?;
        let model = self.dry(&source).map_err(|fault| {
            Failure::new(abi::ERR_MODEL_CORRUPT, format!("{}: {}", source.path.display(), fault.message))
        })?;
        check_kind(&model)?;
        let Some(params) = context else {
            let mut uses = weights(&model)?;
            uses.retain(|memory| memory.weights > 0);
            return Ok(uses);
        };
        let options = ContextOptions::parse(&self.options, &params.options)?;
        let plan = plan(facts(&model), params, &options, self.threads)?;
        let context = Context::create(&model, &plan.settings).map_err(unsupported)?;
        let mut uses = described(&context, &plan.settings).map_err(internal)?;
        if context.has_memory() {
            prefill::beside(&context, &plan, &mut uses).map_err(unsupported)?;
            marginal(&model, &plan.settings, &context, &mut uses)?;
        }
        add_cuda(&mut uses);
        Ok(uses)
    }

    fn usage(model: &LlamaModel) -> Result<Vec<MemoryUse>, Failure> {
        let mut total = model.known_weights()?.to_vec();
        let contexts = model.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, uses) in contexts.iter() {
            for memory in uses {
                let index = total.iter().position(|known| known.device == memory.device);
                let index = index.unwrap_or_else(|| {
                    total.push(MemoryUse { device: memory.device, ..MemoryUse::default() });
                    total.len() - 1
                });
                let sum = &mut total[index];
                sum.cache += memory.cache;
                sum.compute += memory.compute;
                sum.cache_per_token += memory.cache_per_token;
                sum.cache_per_sequence += memory.cache_per_sequence;
            }
        }
        add_cuda(&mut total);
        Ok(total)
    }
}

/// Counts CUDA itself on each of its devices, once for a model.
fn add_cuda(uses: &mut [MemoryUse]) {
    if uses.iter().all(|memory| memory.device.is_none()) {
        return;
    }
    let devices = llama::devices();
    for memory in uses {
        let device = memory.device.and_then(|index| devices.get(index as usize));
        if device.is_some_and(|device| device.name.as_bytes().starts_with(b"CUDA")) {
            memory.compute += CUDA_CONTEXT;
        }
    }
}

impl LlamaModel {
    /// Weights by device; the rest of each element is zero.
    pub(crate) fn known_weights(&self) -> Result<&[MemoryUse], Failure> {
        if let Some(known) = self.weights.get() {
            return Ok(known);
        }
        // No context has lived yet, and llama.cpp tells only through one.
        let found = weights(&Arc::new(self.source.load_dry().map_err(internal)?))?;
        Ok(self.weights.get_or_init(|| found))
    }
}

/// A failure to make a context without memory being allocated: the model cannot do it.
pub(crate) fn unsupported(fault: llama::Fault) -> Failure {
    match fault.kind {
        llama::FaultKind::Refused => Failure::unsupported(fault.message),
        llama::FaultKind::Assertion | llama::FaultKind::NoMemory => internal(fault),
    }
}

/// The smallest context that llama.cpp makes.
fn smallest() -> ContextSettings {
    ContextSettings {
        n_ctx: 256,
        n_batch: 32,
        n_ubatch: 32,
        n_seq_max: 1,
        n_outputs_max: 1,
        n_rs_seq: 0,
        n_threads: 1,
        kv_unified: true,
        swa_full: false,
        cache_type_k: llama::CacheType::default(),
        cache_type_v: llama::CacheType::default(),
        flash_attention: None,
        pooling: None,
    }
}

fn weights(model: &Arc<llama::Model>) -> Result<Vec<MemoryUse>, Failure> {
    let context = Context::create(model, &smallest()).map_err(unsupported)?;
    Ok(only_weights(&context.memory().map_err(internal)?))
}

/// What the cache grows by, found by making two larger contexts without memory.
fn marginal(
    model: &Arc<llama::Model>,
    settings: &ContextSettings,
    context: &Context,
    uses: &mut [MemoryUse],
) -> Result<(), Failure> {
    let cache = |context: &Context, device: Option<u32>| -> Result<u64, Failure> {
        let uses = context.memory().map_err(internal)?;
        Ok(uses.iter().filter(|memory| memory.device == device).map(|memory| memory.context).sum())
    };
    let streams = if settings.kv_unified { 1 } else { settings.n_seq_max };
    let longer =
        ContextSettings { n_ctx: settings.n_ctx.saturating_add(PROBE * streams), ..settings.clone() };
    let longer = Context::create(model, &longer).map_err(unsupported)?;
    let grown = u64::from(longer.n_ctx().saturating_sub(context.n_ctx())).max(1);
    for memory in uses.iter_mut() {
        memory.cache_per_token = cache(&longer, memory.device)?.saturating_sub(memory.cache) / grown;
    }
    if settings.n_seq_max < 256 {
        let sequences = settings.n_seq_max + 1;
        let n_ctx = if settings.kv_unified {
            settings.n_ctx
        } else {
            settings.n_ctx / settings.n_seq_max.max(1) * sequences
        };
        let wider = ContextSettings {
            n_ctx,
            n_seq_max: sequences,
            n_batch: settings.n_batch.max(sequences),
            n_ubatch: settings.n_ubatch.max(sequences),
            n_outputs_max: settings.n_outputs_max.max(sequences),
            ..settings.clone()
        };
        let wider = Context::create(model, &wider).map_err(unsupported)?;
        let tokens = u64::from(wider.n_ctx().saturating_sub(context.n_ctx()));
        for memory in uses.iter_mut() {
            memory.cache_per_sequence = cache(&wider, memory.device)?
                .saturating_sub(memory.cache)
                .saturating_sub(tokens * memory.cache_per_token);
        }
    }
    Ok(())
}
