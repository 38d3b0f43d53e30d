//! Everything under way: which streams and questions belong to which worker, and the one queue of
//! events that the node drains.
//!
//! Owns the rule that each stream gets exactly one ending, whatever becomes of its worker.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    event::Event,
};
use llm_node_wire::message::{Answer, RequestId, ToWorker};
use parking_lot::Mutex;

/// Called, from any thread, when events wait. It must not block.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What goes to a worker's writing thread.
#[derive(Debug)]
pub(super) enum Outgoing {
    Message(Box<ToWorker>),
    /// The worker is gone; so may the thread.
    Close,
}

/// The way to one worker.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) worker: u64,
    pub(super) outbox: mpsc::Sender<Outgoing>,
}

impl Link {
    /// Never blocks. A worker that is gone is seen by the thread that reads from it, not here.
    pub(super) fn send(&self, message: ToWorker) {
        let _ = self.outbox.send(Outgoing::Message(Box::new(message)));
    }
}

/// All streams, questions and events of a node.
#[derive(Default)]
pub(super) struct Traffic {
    next: AtomicU64,
    under_way: Mutex<UnderWay>,
    events: Mutex<Events>,
    waker: Mutex<Option<Waker>>,
}

#[derive(Default)]
struct UnderWay {
    streams: HashMap<RequestId, Link>,
    questions: HashMap<RequestId, (u64, mpsc::Sender<Result<Answer, Fault>>)>,
    /// Workers that may have streams. Death takes a worker out before its streams end, so that none
    /// is added behind it.
    workers: HashMap<u64, usize>,
}

#[derive(Default)]
struct Events {
    waiting: Vec<(RequestId, Event)>,
    /// The waker was called, and nobody has drained since.
    woken: bool,
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic")
            .field("streams", &self.under_way.lock().streams.len())
            .finish_non_exhaustive()
    }
}

impl Traffic {
    /// From now on the worker may have streams.
    pub(super) fn open(&self, worker: u64) {
        self.under_way.lock().workers.insert(worker, 0);
    }

    /// A new stream; `None` where the worker has died.
    pub(super) fn submit(
        &self,
        link: &Link,
        message: impl FnOnce(RequestId) -> ToWorker,
    ) -> Option<RequestId> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut under_way = self.under_way.lock();
        *under_way.workers.get_mut(&link.worker)? += 1;
        under_way.streams.insert(id, link.clone());
        // Under the lock: what is sent first arrives first, and a cancel never overtakes its stream.
        link.send(message(id));
        Some(id)
    }

    /// A question, and where its answer will come.
    pub(super) fn ask(
        &self,
        link: &Link,
        message: impl FnOnce(RequestId) -> ToWorker,
    ) -> Option<(RequestId, mpsc::Receiver<Result<Answer, Fault>>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        let mut under_way = self.under_way.lock();
        under_way.workers.get(&link.worker)?;
        under_way.questions.insert(id, (link.worker, sender));
        link.send(message(id));
        Some((id, receiver))
    }

    /// Nobody waits for that answer any more.
    pub(super) fn forget_question(&self, id: RequestId) {
        self.under_way.lock().questions.remove(&id);
    }

    /// The client has left; the stream's ending still comes.
    pub(super) fn cancel(&self, id: RequestId) {
        if let Some(link) = self.under_way.lock().streams.get(&id) {
            link.send(ToWorker::Cancel { id });
        }
    }

    /// Streams of a worker that have had no ending yet.
    pub(super) fn streams_of(&self, worker: u64) -> usize {
        self.under_way.lock().workers.get(&worker).copied().unwrap_or(0)
    }

    /// All that one step of a worker brought.
    pub(super) fn step(&self, worker: u64, mut events: Vec<(RequestId, Event)>) {
        {
            let mut under_way = self.under_way.lock();
            // A worker speaks for its own streams alone, and not after their ending.
            events.retain(|(id, event)| {
                let own = under_way.streams.get(id).is_some_and(|link| link.worker == worker);
                if own && matches!(event, Event::Finished { .. } | Event::Failed(_)) {
                    under_way.streams.remove(id);
                    if let Some(count) = under_way.workers.get_mut(&worker) {
                        *count = count.saturating_sub(1);
                    }
                }
                own
            });
        }
        self.push(events);
    }

    /// A worker's answer.
    pub(super) fn answer(&self, worker: u64, id: RequestId, answer: Result<Answer, Fault>) {
        let mut under_way = self.under_way.lock();
        if under_way.questions.get(&id).is_some_and(|(own, _)| *own == worker)
            && let Some((_, sender)) = under_way.questions.remove(&id)
        {
            let _ = sender.send(answer);
        }
    }

    /// One request could not be sent.
    pub(super) fn fail(&self, worker: u64, id: RequestId, fault: &Fault) {
        self.answer(worker, id, Err(fault.clone()));
        self.step(worker, vec![(id, Event::Failed(fault.clone()))]);
    }

    /// The worker is gone: all that it owed ends with this fault.
    pub(super) fn end_of_worker(&self, worker: u64, fault: &Fault) {
        let mut ended: Vec<RequestId> = Vec::new();
        {
            let mut under_way = self.under_way.lock();
            under_way.workers.remove(&worker);
            under_way.streams.retain(|id, link| {
                let dead = link.worker == worker;
                if dead {
                    ended.push(*id);
                }
                !dead
            });
            under_way.questions.retain(|_, (own, sender)| {
                let dead = *own == worker;
                if dead {
                    let _ = sender.send(Err(fault.clone()));
                }
                !dead
            });
        }
        ended.sort_unstable();
        self.push(ended.into_iter().map(|id| (id, Event::Failed(fault.clone()))).collect());
    }

    fn push(&self, events: Vec<(RequestId, Event)>) {
        if events.is_empty() {
            return;
        }
        let wake = {
            let mut queue = self.events.lock();
            queue.waiting.extend(events);
            !std::mem::replace(&mut queue.woken, true)
        };
        if wake {
            self.wake();
        }
    }

    fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker();
        }
    }

    /// Whom to call when events wait. Called at once where some wait already.
    pub(super) fn set_waker(&self, waker: Option<Waker>) {
        *self.waker.lock() = waker;
        let waiting = {
            let mut events = self.events.lock();
            events.woken = !events.waiting.is_empty();
            events.woken
        };
        if waiting {
            self.wake();
        }
    }

    /// All events since the last call, in order.
    pub(super) fn drain(&self) -> Vec<(RequestId, Event)> {
        let mut events = self.events.lock();
        events.woken = false;
        std::mem::take(&mut events.waiting)
    }
}

/// Too large for a frame.
pub(super) fn too_large() -> Fault {
    Fault::new(ErrorCode::RequestTooLarge, "The request is too large to be handed to the model's worker")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use llm_node_core::event::{Finish, Usage};

    use super::*;

    fn link(worker: u64) -> (Link, mpsc::Receiver<Outgoing>) {
        let (outbox, receiver) = mpsc::channel();
        (Link { worker, outbox }, receiver)
    }

    fn finished() -> Event {
        Event::Finished { reason: Finish::Stop, usage: Usage::default() }
    }

    #[test]
    fn each_stream_ends_once() {
        let traffic = Traffic::default();
        let (link, _receiver) = link(1);
        assert!(traffic.submit(&link, |_| ToWorker::Drain).is_none(), "a worker that is not open");
        traffic.open(1);
        let ids: Vec<_> = (0..3).map(|_| traffic.submit(&link, |_| ToWorker::Drain).unwrap()).collect();
        traffic.step(2, vec![(ids[0], finished())]); // not its stream
        traffic.step(1, vec![(ids[0], finished())]);
        traffic.step(1, vec![(ids[0], finished())]);
        assert_eq!(traffic.streams_of(1), 2);
        traffic.end_of_worker(1, &Fault::new(ErrorCode::EngineCrashed, "gone"));
        traffic.step(1, vec![(ids[1], finished())]);
        assert!(traffic.submit(&link, |_| ToWorker::Drain).is_none());
        let ended: Vec<_> = traffic.drain().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ended, ids);
    }

    #[test]
    fn the_waker_is_called_once_per_drain() {
        let traffic = Traffic::default();
        let (link, _receiver) = link(1);
        traffic.open(1);
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let id = traffic.submit(&link, |_| ToWorker::Drain).unwrap();
        let started = || vec![(id, Event::Started { prompt_tokens: 1 })];
        traffic.step(1, started());
        traffic.set_waker(Some(Arc::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
        })));
        traffic.step(1, started());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert_eq!(traffic.drain().len(), 2);
        traffic.step(1, started());
        traffic.step(1, started());
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }
}
