//! Everything under way: which streams and questions belong to which worker and which client.
//!
//! Owns the rule that each stream gets exactly one ending, whatever becomes of its worker. What waits
//! for the node is in `outlets`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    event::{Event, Piece},
};
use llm_node_wire::message::{Answer, RequestId, ToWorker};
use parking_lot::Mutex;

use super::outlets::{ClientId, Delivery, Outlets, Socket};
use crate::{pattern::Place, sse::Template};

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
    waker: Mutex<Option<Waker>>,
}

#[derive(Default)]
struct UnderWay {
    /// By age, in which their endings are told where a worker dies.
    streams: BTreeMap<RequestId, Stream>,
    questions: HashMap<RequestId, (u64, mpsc::Sender<Result<Answer, Fault>>)>,
    /// Workers that may have streams. Death takes a worker out before its streams end, so that none
    /// is added behind it.
    workers: HashMap<u64, usize>,
    outlets: Outlets,
}

struct Stream {
    link: Link,
    client: ClientId,
    form: Form,
}

/// How a stream's pieces come to its client.
#[derive(Debug, Default)]
pub enum Form {
    /// Each as an event.
    #[default]
    Events,
    /// As one event, before the ending.
    Whole(Piece),
    /// As bytes for its connection.
    Bytes {
        /// What makes them.
        template: Arc<Template>,
        /// Where the tokens so far end in its text.
        place: Place,
    },
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
        client: ClientId,
        form: Form,
        message: impl FnOnce(RequestId) -> ToWorker,
    ) -> Option<RequestId> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut under_way = self.under_way.lock();
        *under_way.workers.get_mut(&link.worker)? += 1;
        under_way.outlets.open(client);
        under_way.streams.insert(id, Stream { link: link.clone(), client, form });
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
        if let Some(stream) = self.under_way.lock().streams.get(&id) {
            stream.link.send(ToWorker::Cancel { id });
        }
    }

    /// Streams of a worker that have had no ending yet.
    pub(super) fn streams_of(&self, worker: u64) -> usize {
        self.under_way.lock().workers.get(&worker).copied().unwrap_or(0)
    }

    /// All that one step of a worker brought. [`Self::write`] has to follow.
    pub(super) fn step(&self, worker: u64, events: Vec<(RequestId, Event)>) {
        self.change(|under_way| {
            for (id, event) in events {
                under_way.event(worker, id, event);
            }
        });
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
        self.change(|under_way| {
            under_way.workers.remove(&worker);
            let of_worker =
                |(id, stream): (&RequestId, &Stream)| (stream.link.worker == worker).then_some(*id);
            let ended: Vec<RequestId> = under_way.streams.iter().filter_map(of_worker).collect();
            for id in ended {
                under_way.event(worker, id, Event::Failed(fault.clone()));
            }
            under_way.questions.retain(|_, (own, sender)| {
                let dead = *own == worker;
                if dead {
                    let _ = sender.send(Err(fault.clone()));
                }
                !dead
            });
        });
    }

    /// What the last steps brought goes to the clients' sockets.
    pub(super) fn write(&self) {
        self.change(|under_way| under_way.outlets.write());
    }

    /// The client's connection has so many bytes that it cannot send now: its text is collected. Gives how
    /// often was written to its socket.
    pub(super) fn hold(&self, client: ClientId, unsent: usize) -> u64 {
        self.change(|under_way| under_way.outlets.hold(client, unsent))
    }

    /// The client's connection has sent everything.
    pub(super) fn release(&self, client: ClientId, socket: impl FnOnce() -> Option<Socket>) {
        self.change(|under_way| under_way.outlets.release(client, socket));
    }

    /// Nothing more is to be written to the client's socket.
    pub(super) fn disconnect(&self, client: ClientId) {
        self.under_way.lock().outlets.disconnect(client);
    }

    /// Whatever is done, the node hears of what it brought.
    fn change<T>(&self, change: impl FnOnce(&mut UnderWay) -> T) -> T {
        let (changed, wants_waking) = {
            let mut under_way = self.under_way.lock();
            (change(&mut under_way), under_way.outlets.wants_waking())
        };
        if wants_waking {
            self.wake();
        }
        changed
    }

    fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker();
        }
    }

    /// Whom to call when something waits. Called at once where it does already.
    pub(super) fn set_waker(&self, waker: Option<Waker>) {
        *self.waker.lock() = waker;
        self.change(|under_way| under_way.outlets.forget_waking());
    }

    /// Everything since the last call, in order.
    pub(super) fn drain(&self) -> Vec<Delivery> {
        self.under_way.lock().outlets.take()
    }
}

impl UnderWay {
    /// A worker speaks for its own streams alone, and not after their ending.
    fn event(&mut self, worker: u64, id: RequestId, event: Event) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.link.worker == worker) else {
            return;
        };
        let client = stream.client;
        match (event, &mut stream.form) {
            (Event::Piece(piece), Form::Bytes { template, place }) => {
                let content = template.content(piece, place);
                self.outlets.text(client, id, template, content);
            }
            (Event::Piece(piece), Form::Whole(all)) => {
                all.text += &piece.text;
                all.tokens.extend(piece.tokens);
            }
            (event @ (Event::Finished { .. } | Event::Failed(_)), form) => {
                if let Form::Whole(all) = mem::take(form) {
                    self.outlets.event(client, id, Event::Piece(all));
                }
                self.streams.remove(&id);
                if let Some(count) = self.workers.get_mut(&worker) {
                    *count = count.saturating_sub(1);
                }
                self.outlets.event(client, id, event);
                self.outlets.close(client);
            }
            (event, _) => self.outlets.event(client, id, event),
        }
    }
}

/// Too large for a frame.
pub(super) fn too_large() -> Fault {
    Fault::new(ErrorCode::RequestTooLarge, "The request is too large to be handed to the model's worker")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use llm_node_core::event::{Finish, PickedToken, Usage};

    use super::*;
    use crate::supervise::What;

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
        assert!(
            traffic.submit(&link, 0, Form::Events, |_| ToWorker::Drain).is_none(),
            "a worker that is not open"
        );
        traffic.open(1);
        let ids: Vec<_> =
            (0..3).map(|_| traffic.submit(&link, 0, Form::Events, |_| ToWorker::Drain).unwrap()).collect();
        traffic.step(2, vec![(ids[0], finished())]); // not its stream
        traffic.step(1, vec![(ids[0], finished())]);
        traffic.step(1, vec![(ids[0], finished())]);
        assert_eq!(traffic.streams_of(1), 2);
        traffic.end_of_worker(1, &Fault::new(ErrorCode::EngineCrashed, "gone"));
        traffic.step(1, vec![(ids[1], finished())]);
        assert!(traffic.submit(&link, 0, Form::Events, |_| ToWorker::Drain).is_none());
        let ended: Vec<_> = traffic
            .drain()
            .into_iter()
            .filter_map(|delivery| match delivery.what {
                What::Event(id, _) => Some(id),
                _ => None,
            })
            .collect();
        assert_eq!(ended, ids);
    }

    #[test]
    fn a_whole_answer_wakes_nobody_before_its_ending() {
        let traffic = Traffic::default();
        let (link, _receiver) = link(1);
        traffic.open(1);
        let id = traffic.submit(&link, 0, Form::Whole(Piece::default()), |_| ToWorker::Drain).unwrap();
        let token = |id| PickedToken { id, logprobs: None };
        for (text, tokens) in [("a", vec![token(1)]), ("", vec![]), ("bc", vec![token(2), token(3)])] {
            traffic.step(1, vec![(id, Event::Piece(Piece { text: text.to_owned(), tokens }))]);
        }
        assert!(traffic.drain().is_empty());
        traffic.step(1, vec![(id, finished())]);
        let told: Vec<_> = traffic.drain().into_iter().map(|delivery| delivery.what).collect();
        let [What::Event(_, Event::Piece(piece)), What::Event(_, Event::Finished { .. })] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!(piece, &Piece { text: "abc".to_owned(), tokens: vec![token(1), token(2), token(3)] });
    }

    #[test]
    fn the_waker_is_called_once_per_drain() {
        let traffic = Traffic::default();
        let (link, _receiver) = link(1);
        traffic.open(1);
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let id = traffic.submit(&link, 0, Form::Events, |_| ToWorker::Drain).unwrap();
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
