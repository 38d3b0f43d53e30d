//! `engine.embed/1`: embeddings and ranks, in a context of its own that is made when first asked for.

use std::sync::{Arc, PoisonError};

use llm_node_sdk::{Embedding, Failure, Inputs, Pooling, abi};

use crate::footprint::{Booked, described};
use crate::llama::{self, CacheType, Context, ContextSettings, Decoded, Entry};
use crate::model::LlamaModel;
use crate::{LlamaEngine, internal};

/// Tokens per pass, unless an input is longer.
const BATCH: u32 = 2048;
/// Inputs per pass.
const SEQUENCES: u32 = 64;

/// The context of a model's embeddings. It does not grow with use: one that is too small is replaced.
pub(crate) struct EmbeddingContext {
    context: Context,
    pooling: llama::Pooling,
    _booked: Booked,
}

fn create(
    model: &LlamaModel,
    pooling: llama::Pooling,
    tokens: u32,
    threads: u32,
) -> Result<EmbeddingContext, Failure> {
    let cells = tokens.div_ceil(256) * 256;
    // Flash attention rounds to half precision, by which the same text would get another vector beside
    // other texts. Without it attention takes memory with the square of the length.
    let exact = cells <= BATCH;
    let cache_type = if exact { CacheType::F32 } else { CacheType::default() };
    let settings = ContextSettings {
        n_ctx: cells,
        n_batch: cells,
        // Attention that looks both ways needs all of an input in one physical pass.
        n_ubatch: cells,
        n_seq_max: SEQUENCES,
        n_outputs_max: cells,
        n_rs_seq: 0,
        n_threads: threads,
        kv_unified: true,
        swa_full: false,
        cache_type_k: cache_type,
        cache_type_v: cache_type,
        flash_attention: if exact { Some(false) } else { None },
        pooling: Some(pooling),
    };
    let context = Context::create(&model.raw, &settings).map_err(|fault| match fault.kind {
        llama::FaultKind::Refused => Failure::new(
            if model.source.gpu_layers == 0 { abi::ERR_OOM_RAM } else { abi::ERR_OOM_VRAM },
            fault.message,
        ),
        llama::FaultKind::Assertion | llama::FaultKind::NoMemory => internal(fault),
    })?;
    let mut uses = described(&context, &settings).map_err(internal)?;
    for memory in &mut uses {
        memory.weights = 0;
    }
    Ok(EmbeddingContext { context, pooling, _booked: Booked::open(&model.contexts, uses) })
}

fn pooling_of(model: &LlamaModel, pooling: Pooling) -> Result<llama::Pooling, Failure> {
    let ranks = model.pooling == Some(Pooling::Rank);
    match (pooling, model.pooling) {
        (Pooling::Model, None | Some(Pooling::Model)) => {
            Err(Failure::unsupported("the model's file names no pooling: it is not made for embeddings"))
        }
        (Pooling::Model | Pooling::Mean, Some(Pooling::Mean)) => Ok(llama::Pooling::Mean),
        (Pooling::Model | Pooling::Cls, Some(Pooling::Cls)) => Ok(llama::Pooling::Cls),
        (Pooling::Model | Pooling::Last, Some(Pooling::Last)) => Ok(llama::Pooling::Last),
        (Pooling::Model | Pooling::Rank, Some(Pooling::Rank)) => Ok(llama::Pooling::Rank),
        (Pooling::Rank, _) => Err(Failure::unsupported("the model does not rank")),
        // A vector of another width than the model's would be the answer.
        _ if ranks => Err(Failure::unsupported("the model ranks, and gives no embeddings")),
        (Pooling::Mean, _) => Ok(llama::Pooling::Mean),
        (Pooling::Cls, _) => Ok(llama::Pooling::Cls),
        (Pooling::Last, _) => Ok(llama::Pooling::Last),
    }
}

impl Embedding for LlamaEngine {
    fn embed(
        &self,
        model: &Arc<LlamaModel>,
        pooling: Pooling,
        inputs: &Inputs<'_>,
        vectors: &mut [f32],
    ) -> Result<(), Failure> {
        let pooling = pooling_of(model, pooling)?;
        let (n_vocab, longest) = (model.raw.n_vocab(), model.raw.n_context_train());
        let mut needed = BATCH.min(longest.max(1));
        for (index, tokens) in inputs.iter().enumerate() {
            let wrong = |text: String| Failure::invalid(format!("input {index}: {text}"));
            if let Some(token) =
                tokens.iter().find(|token| usize::try_from(**token).map_or(true, |id| id >= n_vocab))
            {
                return Err(wrong(format!("token {token} is not in the vocabulary of {n_vocab}")));
            }
            let length = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
            if length > longest {
                return Err(wrong(format!("it has {length} tokens, and the model takes {longest}")));
            }
            needed = needed.max(length);
        }

        let mut slot = model.embedding.lock().unwrap_or_else(PoisonError::into_inner);
        let fits =
            slot.as_ref().is_some_and(|made| made.pooling == pooling && made.context.n_batch() >= needed);
        if !fits {
            // The old one first: two at once may not fit.
            *slot = None;
            *slot = Some(create(model, pooling, needed, self.threads)?);
        }
        let Some(made) = slot.as_mut() else { return Err(Failure::internal("there is no context")) };
        let done = run(&mut made.context, inputs, model.embedding_width() as usize, vectors);
        if done.is_err() {
            *slot = None;
        }
        done
    }
}

fn run(context: &mut Context, inputs: &Inputs<'_>, width: usize, vectors: &mut [f32]) -> Result<(), Failure> {
    let most = context.n_batch() as usize;
    let mut begin = 0;
    while begin < inputs.len() {
        let (mut end, mut tokens) = (begin, 0);
        while let Some(input) = inputs.get(end) {
            if end > begin && (tokens + input.len() > most || end - begin >= SEQUENCES as usize) {
                break;
            }
            tokens += input.len();
            end += 1;
        }
        if context.has_memory() {
            context.clear().map_err(internal)?;
        }
        let entries = (begin..end).filter_map(|index| {
            let tokens = inputs.get(index)?;
            Some(Entry { sequence: (index - begin) as u32, position: 0, tokens, rows: tokens.len() as u32 })
        });
        match context.decode(entries).map_err(internal)? {
            Decoded::Done => {}
            other => return Err(Failure::internal(format!("llama_decode failed: {other:?}"))),
        }
        for index in begin..end {
            let vector = context.embedding((index - begin) as u32, width).map_err(internal)?;
            vectors[index * width..(index + 1) * width].copy_from_slice(vector);
        }
        begin = end;
    }
    Ok(())
}
