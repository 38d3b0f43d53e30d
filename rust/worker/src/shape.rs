//! How long and how many: the size of a context, where nobody has fixed it.
//!
//! Pure. The rule, in this order:
//! 1. What a load asked for is kept, or refused where the model cannot do it; it is never changed.
//! 2. What the node's configuration names for all models is kept as far as the model goes: a model with a
//!    shorter context gets its own.
//! 3. Otherwise: the model's own length, but at most 8192 tokens, and 64 sequences.
//! 4. While the cache does not fit its budget, what nobody named is halved: sequences down to 8, then the
//!    length down to 2048, then sequences down to 1.
//!
//! The budget is 1 GiB in memory of the host, 4 GiB in memory of devices, and never more than the
//! memory limit leaves beside weights and everything else. Where the engine gives no figures, 512 Ki
//! tokens in all. A cache that was asked for in tokens is what it is: then nothing is halved.

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::MemoryUse,
};
use llm_node_wire::message::ContextSize;

const LENGTH: u32 = 8192;
const SHORT_LENGTH: u32 = 2048;
const SEQUENCES: u32 = 64;
const FEW_SEQUENCES: u32 = 8;
const HOST_BUDGET: u64 = 1 << 30;
const DEVICE_BUDGET: u64 = 4 << 30;
const TOKENS_WITHOUT_FIGURES: u64 = 512 * 1024;
/// Tokens of a cache. An engine may make a table of them for an estimate: llama.cpp takes 150 bytes for each.
const MOST_ESTIMATED: u64 = 1 << 22;

/// What a load leaves open or fixes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// By the load itself.
    pub(crate) size: ContextSize,
    /// By the node, for every model.
    pub(crate) usual: ContextSize,
    /// Bytes; 0: no limit.
    pub(crate) memory_limit: u64,
}

/// The size of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) context_length: u32,
    pub(crate) max_sequences: u32,
    /// KV cache for all sequences together; 0: the full length for each of them.
    pub(crate) cache_tokens: u64,
}

impl Shape {
    /// Chooses. `model_length`: the longest sequence that the model was trained for; 0: not known.
    /// `uses`: what the engine says that model and context take; empty: nothing.
    pub(crate) fn choose(wanted: Wanted, model_length: u32, uses: &[MemoryUse]) -> Result<Self, Fault> {
        let Wanted { size, usual, memory_limit } = wanted;
        if let Some(asked) = size.context_length
            && (asked == 0 || (model_length > 0 && asked > model_length))
        {
            let message =
                format!("a context of {asked} tokens was asked for; the model takes 1 to {model_length}");
            return Err(Fault::new(ErrorCode::InvalidRequest, message).param("context_length"));
        }
        if size.max_sequences == Some(0) {
            let message = "at least one sequence is needed";
            return Err(Fault::new(ErrorCode::InvalidRequest, message).param("max_sequences"));
        }
        if size.cache_tokens == Some(0) {
            let message = "a KV cache of at least one token is needed";
            return Err(Fault::new(ErrorCode::InvalidRequest, message).param("cache_tokens"));
        }
        let cache_tokens = size.cache_tokens.or(usual.cache_tokens);
        let longest_in_cache = cache_tokens.map_or(u32::MAX, |it| u32::try_from(it).unwrap_or(u32::MAX));
        if let (Some(length), Some(cache)) = (size.context_length, size.cache_tokens)
            && length > longest_in_cache
        {
            let message = format!("a KV cache of {cache} tokens has no room for a context of {length}");
            return Err(Fault::new(ErrorCode::InvalidRequest, message).param("cache_tokens"));
        }
        let own = if model_length > 0 { model_length } else { LENGTH };
        let longest = if model_length > 0 { model_length } else { u32::MAX };
        let length = size.context_length.or(usual.context_length.map(|usual| usual.clamp(1, longest)));
        let sequences = size.max_sequences.or(usual.max_sequences.map(|usual| usual.max(1)));
        let mut shape = Self {
            context_length: size.context_length.unwrap_or_else(|| {
                // What nobody named for this load, the cache decides.
                length.unwrap_or(own.min(LENGTH)).min(longest_in_cache)
            }),
            max_sequences: sequences.unwrap_or(SEQUENCES),
            cache_tokens: 0,
        };
        let fits = |shape: Self| cache_tokens.is_some() || cache(shape, uses) <= budget(memory_limit, uses);
        if sequences.is_none() {
            while !fits(shape) && shape.max_sequences > FEW_SEQUENCES {
                shape.max_sequences /= 2;
            }
        }
        if length.is_none() {
            while !fits(shape) && shape.context_length / 2 >= SHORT_LENGTH {
                shape.context_length /= 2;
            }
        }
        if sequences.is_none() {
            while !fits(shape) && shape.max_sequences > 1 {
                shape.max_sequences /= 2;
            }
        }
        // Of what the node names for every model, a small one takes no more than it can use.
        let most = u64::from(shape.context_length) * u64::from(shape.max_sequences);
        shape.cache_tokens =
            size.cache_tokens.or(usual.cache_tokens.map(|usual| usual.min(most))).unwrap_or(0);
        Ok(shape)
    }

    /// What a cache takes that is too large to ask the engine for it, by what the engine says of a smaller one: at
    /// least so much. `None`: ask. `one`: of a context with one sequence.
    pub(crate) fn by_sums(self, one: &[MemoryUse]) -> Option<Vec<MemoryUse>> {
        let sequences = u64::from(self.max_sequences);
        let tokens = match self.cache_tokens {
            0 => sequences.saturating_mul(u64::from(self.context_length)),
            tokens => tokens,
        };
        if tokens <= MOST_ESTIMATED || sum(one, |it| it.cache_per_token) == 0 {
            return None;
        }
        let grown = |it: &MemoryUse| {
            let of_sequences = sequences.saturating_mul(it.cache_per_sequence);
            let cache = tokens.saturating_mul(it.cache_per_token).saturating_add(of_sequences);
            MemoryUse { cache, ..it.clone() }
        };
        Some(one.iter().map(grown).collect())
    }

    /// The context of a draft model: as long as this one as far as the model goes, and for as many
    /// sequences, unless its cache does not fit its budget. `uses`: what the draft model takes.
    pub(crate) fn of_draft(self, model_length: u32, uses: &[MemoryUse]) -> Result<Self, Fault> {
        let length =
            if model_length > 0 { self.context_length.min(model_length) } else { self.context_length };
        let size = ContextSize { context_length: Some(length), ..ContextSize::default() };
        let shape = Self::choose(Wanted { size, ..Wanted::default() }, model_length, uses)?;
        Ok(Self { max_sequences: shape.max_sequences.min(self.max_sequences), ..shape })
    }
}

/// Bytes, or tokens where the engine gives no figures.
fn cache(shape: Shape, uses: &[MemoryUse]) -> u64 {
    let per_token = sum(uses, |u| u.cache_per_token);
    let per_sequence = sum(uses, |u| u.cache_per_sequence);
    let length = u64::from(shape.context_length);
    let one = if per_token == 0 && per_sequence == 0 {
        length
    } else {
        length.saturating_mul(per_token).saturating_add(per_sequence)
    };
    one.saturating_mul(u64::from(shape.max_sequences))
}

fn budget(memory_limit: u64, uses: &[MemoryUse]) -> u64 {
    if uses.iter().all(|u| u.cache_per_token == 0 && u.cache_per_sequence == 0) {
        return TOKENS_WITHOUT_FIGURES;
    }
    let on_device = uses.iter().any(|u| !u.is_host && u.cache_per_token > 0);
    let usual = if on_device { DEVICE_BUDGET } else { HOST_BUDGET };
    if memory_limit == 0 {
        return usual;
    }
    let beside = sum(uses, |u| u.weights.saturating_add(u.compute));
    usual.min(memory_limit.saturating_sub(beside))
}

fn sum(uses: &[MemoryUse], of: impl Fn(&MemoryUse) -> u64) -> u64 {
    uses.iter().fold(0, |total, one| total.saturating_add(of(one)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uses(is_host: bool, weights: u64, cache_per_token: u64) -> Vec<MemoryUse> {
        vec![MemoryUse { is_host, weights, cache_per_token, ..MemoryUse::default() }]
    }

    fn asked(size: ContextSize) -> Wanted {
        Wanted { size, ..Wanted::default() }
    }

    #[test]
    fn a_tiny_model_serves_64_at_its_own_length() {
        // 5 layers, 8 heads, 4 of them for keys and values, width 64, half precision.
        let shape = Shape::choose(Wanted::default(), 512, &uses(true, 1 << 20, 640)).unwrap();
        assert_eq!(shape, Shape { context_length: 512, max_sequences: 64, cache_tokens: 0 });
    }

    #[test]
    fn a_large_model_on_a_device_gets_few_long_sequences() {
        // Llama 3 8B: 128 KiB per token.
        let shape = Shape::choose(Wanted::default(), 131_072, &uses(false, 8 << 30, 128 << 10)).unwrap();
        assert_eq!(shape, Shape { context_length: 4096, max_sequences: 8, cache_tokens: 0 });
    }

    #[test]
    fn what_is_asked_for_is_kept() {
        let size =
            ContextSize { context_length: Some(32_768), max_sequences: Some(4), ..ContextSize::default() };
        let wanted = Wanted { size, memory_limit: 1 << 30, ..Wanted::default() };
        let shape = Shape::choose(wanted, 131_072, &uses(false, 8 << 30, 128 << 10)).unwrap();
        assert_eq!(shape, Shape { context_length: 32_768, max_sequences: 4, cache_tokens: 0 });
        let wanted = asked(ContextSize { cache_tokens: Some(100_000), ..ContextSize::default() });
        let shape = Shape::choose(wanted, 131_072, &uses(false, 8 << 30, 128 << 10)).unwrap();
        assert_eq!(shape, Shape { context_length: 8192, max_sequences: 64, cache_tokens: 100_000 });
    }

    #[test]
    fn of_a_cache_beyond_all_measure_the_sum_is_told() {
        let shape = Shape { context_length: 8192, max_sequences: 64, cache_tokens: 1 << 30 };
        let one = uses(true, 1 << 20, 12 << 10);
        let sum = shape.by_sums(&one).unwrap();
        assert_eq!((sum[0].weights, sum[0].cache), (1 << 20, 12 << 40));
        let wide = Shape { context_length: 32_768, max_sequences: 4096, cache_tokens: 0 };
        assert_eq!(wide.by_sums(&one).unwrap()[0].cache, (12 << 10) * 32_768 * 4096);
        assert_eq!(Shape { cache_tokens: 1 << 22, ..shape }.by_sums(&one), None);
        assert_eq!(shape.by_sums(&[]), None, "the engine says nothing");
    }

    #[test]
    fn what_the_node_names_for_every_model_is_kept_as_far_as_the_model_goes() {
        let usual =
            ContextSize { context_length: Some(8192), max_sequences: Some(4), cache_tokens: Some(10_000) };
        let chosen = |size, model_length| {
            let wanted = Wanted { size, usual, memory_limit: 1 };
            Shape::choose(wanted, model_length, &uses(true, 1 << 20, 640))
        };
        let plain = |model_length| chosen(ContextSize::default(), model_length).unwrap();
        assert_eq!(plain(512), Shape { context_length: 512, max_sequences: 4, cache_tokens: 2048 });
        assert_eq!(plain(32_768), Shape { context_length: 8192, max_sequences: 4, cache_tokens: 10_000 });
        assert_eq!(plain(0), Shape { context_length: 8192, max_sequences: 4, cache_tokens: 10_000 });
        let size =
            ContextSize { context_length: Some(100), cache_tokens: Some(5000), ..ContextSize::default() };
        let shape = Shape { context_length: 100, max_sequences: 4, cache_tokens: 5000 };
        assert_eq!(chosen(size, 512).unwrap(), shape, "a load's own figures come first");
        let size = ContextSize { context_length: Some(8192), ..ContextSize::default() };
        assert_eq!(chosen(size, 512).unwrap_err().param.as_deref(), Some("context_length"));
    }

    #[test]
    fn more_than_the_model_was_trained_for_is_refused() {
        let wanted = asked(ContextSize { context_length: Some(513), ..ContextSize::default() });
        let fault = Shape::choose(wanted, 512, &[]).unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("context_length"));
        assert!(fault.message.contains("513") && fault.message.contains("512"));
    }

    #[test]
    fn a_draft_context_is_no_longer_than_its_model_and_has_a_budget_of_its_own() {
        let shape = Shape { context_length: 8192, max_sequences: 16, cache_tokens: 0 };
        let drafts = |model_length, per_token| shape.of_draft(model_length, &uses(false, 1 << 30, per_token));
        assert_eq!(drafts(131_072, 16 << 10).unwrap(), shape);
        assert_eq!(drafts(2048, 16 << 10).unwrap(), Shape { context_length: 2048, ..shape });
        assert_eq!(drafts(0, 128 << 10).unwrap(), Shape { max_sequences: 4, ..shape });
    }

    proptest! {
        #[test]
        fn a_shape_is_never_empty_and_never_beyond_the_model(
            model_length in 0u32..1_000_000, weights: u64, per_token in 0u64..1 << 40, memory_limit: u64, is_host: bool,
        ) {
            let wanted = Wanted { memory_limit, ..Wanted::default() };
            let shape = Shape::choose(wanted, model_length, &uses(is_host, weights, per_token)).unwrap();
            prop_assert!(shape.context_length >= 1 && shape.max_sequences >= 1);
            prop_assert!(model_length == 0 || shape.context_length <= model_length);
            prop_assert!(shape.context_length <= LENGTH && shape.max_sequences <= SEQUENCES);
        }
    }
}
