//! `engine.embed/1`: embeddings and reranking.

use llm_node_abi::{
    ENGINE_POOL_CLS, ENGINE_POOL_LAST, ENGINE_POOL_MEAN, ENGINE_POOL_MODEL, ENGINE_POOL_RANK,
    EngineEmbedParams, EngineToken, Growing,
};
use llm_node_core::engine::Token;

use crate::callbacks::checked;
use crate::error::EngineError;
use crate::model::Model;

/// How the vectors of an input's tokens become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// As the model says.
    #[default]
    Model,
    /// Their mean.
    Mean,
    /// The first one.
    Cls,
    /// The last one.
    Last,
    /// A rank result.
    Rank,
}

impl Model {
    /// One vector for each input, `n_embedding` wide and not normalised. The engine batches by itself.
    pub fn embed(&self, inputs: &[Vec<Token>], pooling: Pooling) -> Result<Vec<Vec<f32>>, EngineError> {
        const CALL: &str = "embed.embed";
        let function = self
            .engine()
            .tables()
            .embed
            .and_then(|table| table.embed)
            .ok_or_else(|| EngineError::unsupported(CALL))?;
        let width = self.info().n_embedding as usize;
        if width == 0 {
            return Err(EngineError::unsupported(CALL));
        }
        let pointers: Vec<*const EngineToken> = inputs.iter().map(Vec::as_ptr).collect();
        let lengths: Vec<usize> = inputs.iter().map(Vec::len).collect();
        let params = EngineEmbedParams {
            struct_size: EngineEmbedParams::SIZE,
            pooling: match pooling {
                Pooling::Model => ENGINE_POOL_MODEL,
                Pooling::Mean => ENGINE_POOL_MEAN,
                Pooling::Cls => ENGINE_POOL_CLS,
                Pooling::Last => ENGINE_POOL_LAST,
                Pooling::Rank => ENGINE_POOL_RANK,
            },
            inputs: pointers.as_ptr(),
            lengths: lengths.as_ptr(),
            n_inputs: inputs.len(),
        };
        // NaN shows what the engine did not write.
        let mut vectors = vec![f32::NAN; inputs.len() * width];
        {
            let _one_at_a_time = self.step_lock();
            checked(CALL, || {
                // SAFETY: [step]: the model's lock is held. The engine writes at most as many floats as
                // it is told there is room for.
                unsafe { function(self.as_ptr(), &raw const params, vectors.as_mut_ptr(), vectors.len()) }
            })?;
        }
        if vectors.iter().any(|number| !number.is_finite()) {
            return Err(EngineError::misbehaved(CALL, "a number in a vector is not finite, or not there"));
        }
        Ok(vectors.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }
}
