//! What contexts take: read from one, and kept in the books of its model for as long as it lives.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use llm_node_sdk::MemoryUse;

use crate::llama::{Context, ContextSettings, Fault, Use};

/// The weights in what a context tells.
pub(crate) fn only_weights(uses: &[Use]) -> Vec<MemoryUse> {
    uses.iter()
        .map(|memory| MemoryUse { device: memory.device, weights: memory.model, ..MemoryUse::default() })
        .collect()
}

/// What a context and its model take, rows of logits included, which llama.cpp leaves out.
pub(crate) fn described(context: &Context, settings: &ContextSettings) -> Result<Vec<MemoryUse>, Fault> {
    let mut uses: Vec<MemoryUse> = context
        .memory()?
        .iter()
        .map(|memory| MemoryUse {
            device: memory.device,
            weights: memory.model,
            cache: memory.context,
            compute: memory.compute,
            ..MemoryUse::default()
        })
        .collect();
    let rows = u64::from(settings.n_outputs_max) * context.model().n_vocab() as u64 * 4;
    match uses.iter_mut().find(|memory| memory.device.is_none()) {
        Some(host) => host.compute += rows,
        None => uses.push(MemoryUse { compute: rows, ..MemoryUse::default() }),
    }
    Ok(uses)
}

/// What living contexts take, by their number.
pub(crate) type Books = Vec<(u64, Vec<MemoryUse>)>;

/// What something living takes, in its model's books until it is dropped.
pub(crate) struct Booked {
    books: Arc<Mutex<Books>>,
    number: u64,
}

impl Booked {
    pub(crate) fn open(books: &Arc<Mutex<Books>>, uses: Vec<MemoryUse>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let books = Arc::clone(books);
        books.lock().unwrap_or_else(PoisonError::into_inner).push((number, uses));
        Self { books, number }
    }
}

impl Drop for Booked {
    fn drop(&mut self) {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.retain(|(number, _)| *number != self.number);
    }
}
