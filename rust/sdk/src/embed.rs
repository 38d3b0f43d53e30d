//! `engine.embed/1`: embeddings and reranking.

use std::sync::{Arc, PoisonError};

use llm_node_abi as abi;

use crate::instance::{Exported, ModelHandle};
use crate::{Failure, Models, Token, guard, read};

/// How the embeddings of an input's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// As the model says.
    Model,
    /// The mean over all tokens.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
    /// A rank result.
    Rank,
}

/// The inputs of one call.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pointers: &'a [*const Token],
    lengths: &'a [usize],
}

impl<'a> Inputs<'a> {
    /// Number of inputs.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The tokens of one input.
    pub fn get(&self, index: usize) -> Option<&'a [Token]> {
        let (pointer, length) = (*self.pointers.get(index)?, *self.lengths.get(index)?);
        // SAFETY: the host passes that many tokens, valid during the call.
        unsafe { read::slice(pointer, length, "inputs") }.ok()
    }

    /// All inputs, in order.
    pub fn iter(&self) -> impl Iterator<Item = &'a [Token]> + use<'a> {
        let inputs = *self;
        (0..inputs.len()).filter_map(move |index| inputs.get(index))
    }
}

/// `engine.embed/1`. One call at a time per model.
pub trait Embedding: Models {
    /// Writes one vector of [`ModelInfo::n_embedding`](crate::ModelInfo::n_embedding) floats per
    /// input, one after the other, not normalised. `vectors` has exactly that size.
    fn embed(
        &self,
        model: &Arc<Self::Model>,
        pooling: Pooling,
        inputs: &Inputs<'_>,
        vectors: &mut [f32],
    ) -> Result<(), Failure>;
}

/// The table of an engine's functions.
pub const fn table<E: Exported + Embedding>() -> abi::EngineEmbedding {
    abi::EngineEmbedding { struct_size: size_of::<abi::EngineEmbedding>() as u32, embed: Some(embed::<E>) }
}

unsafe extern "C" fn embed<E: Exported + Embedding>(
    model: *mut abi::EngineModel,
    params: *const abi::EngineEmbedParams,
    vectors: *mut f32,
    capacity: usize,
) -> abi::Code {
    guard::code("embed", || {
        // SAFETY: the host passes a handle of ours and what the header asks for.
        let (handle, raw, inputs) = unsafe {
            let handle = ModelHandle::<E>::from_raw(model)?;
            let raw = read::required(params, "params")?;
            let inputs = Inputs {
                pointers: read::slice(raw.inputs, raw.n_inputs, "inputs")?,
                lengths: read::slice(raw.lengths, raw.n_inputs, "lengths")?,
            };
            (handle, raw, inputs)
        };
        for (index, (pointer, length)) in inputs.pointers.iter().zip(inputs.lengths).enumerate() {
            if *length == 0 || pointer.is_null() {
                return Err(Failure::invalid(format!("input {index} has no tokens")));
            }
            // SAFETY: as above.
            unsafe { read::slice(*pointer, *length, "inputs") }?;
        }
        let pooling = match raw.pooling {
            abi::ENGINE_POOL_MODEL => Pooling::Model,
            abi::ENGINE_POOL_MEAN => Pooling::Mean,
            abi::ENGINE_POOL_CLS => Pooling::Cls,
            abi::ENGINE_POOL_LAST => Pooling::Last,
            abi::ENGINE_POOL_RANK => Pooling::Rank,
            other => return Err(Failure::unsupported(format!("pooling {other} is not known"))),
        };
        let needed = inputs
            .len()
            .checked_mul(handle.info.n_embedding as usize)
            .ok_or_else(|| Failure::invalid("too many inputs"))?;
        if needed > capacity {
            return Err(Failure::new(
                abi::ERR_BUFFER_TOO_SMALL,
                format!("{needed} floats are needed, and there is room for {capacity}"),
            ));
        }
        if needed == 0 {
            return Ok(());
        }
        if vectors.is_null() || !vectors.is_aligned() {
            return Err(Failure::invalid("vectors is NULL or not aligned"));
        }
        // SAFETY: the host passes room for `capacity` floats, at least `needed`. Written first, so that
        // what is read through the slice is initialised.
        let vectors = unsafe {
            std::ptr::write_bytes(vectors, 0, needed);
            std::slice::from_raw_parts_mut(vectors, needed)
        };
        let _one_at_a_time = handle.embedding.lock().unwrap_or_else(PoisonError::into_inner);
        E::slot().engine()?.embed(&handle.model, pooling, &inputs, vectors)
    })
}
