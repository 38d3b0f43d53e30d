//! What may take long is done in a thread of its own, and its outcome comes by its ticket: whatever one load,
//! one unload or one look at the disk waits for, nobody else waits for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use llm_node_core::error::{ErrorCode, Fault};

use super::{Inner, Ticket, inflight::Reply};

/// Most threads of one kind. Who only waits for another's load needs none.
const MOST_AT_ONCE: usize = 256;

/// One kind of errand: those of one kind are no reason to refuse another.
#[derive(Debug, Default)]
pub(super) struct Errands(Arc<AtomicUsize>);

struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Errands {
    /// Does the work in a thread of its own.
    pub(super) fn run(
        &self,
        inner: &Arc<Inner>,
        name: &'static str,
        work: impl FnOnce(&Arc<Inner>, Reply) + Send + 'static,
    ) -> Ticket {
        let (ticket, reply) = inner.traffic.ticket();
        if let Err(fault) = inner.processes.refuse_if_closed() {
            reply.send(Err(fault));
            return ticket;
        }
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let under_way = UnderWay(Arc::clone(&self.0));
        if before >= MOST_AT_ONCE {
            let message = format!("{MOST_AT_ONCE} calls of this kind are under way already; try again later");
            reply.send(Err(Fault::new(ErrorCode::QueueFull, message)));
            return ticket;
        }
        let inner = Arc::clone(inner);
        // Where no thread can be had, the reply is dropped, which its holder hears of.
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _under_way = under_way;
            work(&inner, reply);
        });
        if let Err(error) = spawned {
            log::error!("no thread for {name}: {error}");
        }
        ticket
    }
}
