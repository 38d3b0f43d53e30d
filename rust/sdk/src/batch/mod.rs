//! `engine.batch/1`: one forward pass over a batch that the host schedules.

mod table;
mod types;

use std::sync::Arc;

use crate::{Failure, Models};

pub use table::table;
pub use types::{Batch, ContextInfo, ContextParams, Logits, Masks, Pick, Row, Rows, Slice};

/// `engine.batch/1`. A context is used by one call at a time, from any thread.
pub trait Batching: Models {
    /// A KV cache and what is needed to run a model on it.
    type Context: Send + 'static;

    /// Set to true where [`Batching::canceller`] does something.
    const CANCELS: bool = false;
    /// Set to true where [`Batching::fetch`] is offered.
    const FETCHES: bool = false;
    /// Set to true where [`Batching::saved_size`], [`Batching::save`] and [`Batching::restore`] are.
    const SAVES: bool = false;

    /// Makes a context and says what it can take.
    fn create(
        &self,
        model: &Arc<Self::Model>,
        params: &ContextParams,
    ) -> Result<(Self::Context, ContextInfo), Failure>;

    /// What ends the step under way with `ERR_CANCELLED`, from any thread; asked once.
    fn canceller(context: &Self::Context) -> Box<dyn Fn() + Send + Sync> {
        let _ = context;
        Box::new(|| {})
    }

    /// Submits one forward pass; `ticket` names it.
    fn step(context: &mut Self::Context, batch: &Batch<'_>, ticket: u64) -> Result<(), Failure>;

    /// Waits for that step and describes its rows. The ticket is one whose rows are still valid.
    fn collect<'a>(
        context: &'a mut Self::Context,
        ticket: u64,
        late_masks: Option<Masks<'_>>,
        rows: &mut Rows<'a>,
    ) -> Result<(), Failure>;

    /// The whole row at LOGITS, for a row that was collected at a later stage.
    fn fetch(context: &mut Self::Context, ticket: u64, row: usize) -> Result<Row<'_>, Failure> {
        let _ = (context, ticket, row);
        Err(Failure::unsupported("this engine does not fetch rows"))
    }

    /// Makes positions `0..end` of `from` the beginning of the empty sequence `to`.
    fn copy(context: &mut Self::Context, from: u32, to: u32, end: u32) -> Result<(), Failure>;

    /// Removes positions from `begin` on; 0 always succeeds.
    fn remove(context: &mut Self::Context, sequence: u32, begin: u32) -> Result<(), Failure>;

    /// Positions `begin..end` that the sequence holds.
    fn range(context: &Self::Context, sequence: u32) -> Result<(u32, u32), Failure>;

    /// Tokens that the cache can still take.
    fn cache_free(context: &Self::Context) -> u64;

    /// Bytes that [`Batching::save`] needs for a sequence as it is now; cheap, and not 0. A
    /// sequence that is not empty.
    fn saved_size(context: &mut Self::Context, sequence: u32) -> Result<usize, Failure> {
        let _ = (context, sequence);
        Err(Failure::unsupported("this engine does not save sequences"))
    }

    /// Writes all that the cache holds of a sequence, and says how many bytes that was. There is room
    /// for [`Batching::saved_size`]; what is in it before has no meaning.
    fn save(context: &mut Self::Context, sequence: u32, data: &mut [u8]) -> Result<usize, Failure> {
        let _ = (context, sequence, data);
        Err(Failure::unsupported("this engine does not save sequences"))
    }

    /// Makes the empty sequence what was saved. The bytes come from outside: they must be recognised
    /// as what [`Batching::save`] wrote on a context like this one before they are relied upon.
    fn restore(context: &mut Self::Context, sequence: u32, data: &[u8]) -> Result<(), Failure> {
        let _ = (context, sequence, data);
        Err(Failure::unsupported("this engine does not save sequences"))
    }
}
