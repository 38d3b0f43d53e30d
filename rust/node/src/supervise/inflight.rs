//! Everything under way: which streams and questions belong to which worker and which client.
//!
//! Owns the rule that each stream and each question gets exactly one ending, whatever becomes of its worker.
//! What waits for the node is in `outlets`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    event::{Event, Finish, Piece},
};
use llm_node_wire::message::{Answer, RequestId, ToWorker};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use super::{
    QUESTION_SECONDS, Ticket,
    affinity::{Beginning, Recent, pick},
    meters::{Histogram, Meters},
    outlets::{ClientId, Outlets, Socket, Told, Waiting},
    suspects::{Fingerprint, Suspects},
};
use crate::{blocks::Blocks, frames::Writing};

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
    questions: BTreeMap<RequestId, Unanswered>,
    /// Workers that may have streams. Death takes a worker out before its streams end, so that none
    /// is added behind it.
    workers: HashMap<u64, Open>,
    meters: Meters,
    outlets: Outlets,
    suspects: Suspects,
    /// Called when a worker has got something to answer, or has answered all: at once where somebody waits for
    /// that, else once a second, in which it is told of all that came. It then takes [`Traffic::take_uses`].
    hears_of_use: Option<Box<dyn Fn() + Send>>,
    is_use_awaited: bool,
}

/// A worker that answers.
struct Open {
    model_id: Arc<str>,
    streams: usize,
    questions: usize,
    /// It gets nothing new.
    is_closed: bool,
    /// Since when it has nothing to answer; `None`: it has, or has never had.
    idle_since: Option<Instant>,
    /// It has got something to answer, or has answered all, and that is not told yet.
    is_use_new: bool,
    /// So often it has been asked something that is not told yet.
    new_requests: u32,
    /// Its engine died of the one thing that it had under way.
    is_of_one: bool,
    /// Tokens of answers that came of it since the second began, and how many a second there were in the last one.
    new_tokens: u64,
    tokens_per_second: f64,
    /// Of requests that another worker of its model could have had.
    recent: Recent,
}

struct Stream {
    link: Link,
    model_id: Arc<str>,
    client: ClientId,
    form: Form,
    asked: Fingerprint,
    /// Something of its answer has come.
    is_answered: bool,
    /// When its last tokens came.
    last_tokens: Option<Instant>,
    /// From each token to the next, in seconds.
    between_tokens: Histogram,
}

/// A question that has had no answer.
struct Unanswered {
    worker: u64,
    asked: Fingerprint,
    /// Seconds of the node's clock since it was asked.
    seconds: u32,
}

/// Owed to whoever holds the ticket: sent once, and by being dropped if by nothing else.
#[derive(Debug)]
pub(super) struct Reply {
    traffic: Arc<Traffic>,
    ticket: Option<Ticket>,
}

impl Reply {
    /// Whose it is.
    pub(super) fn ticket(&self) -> Option<Ticket> {
        self.ticket
    }

    /// JSON, or why there is none.
    pub(super) fn send(mut self, outcome: Result<String, Fault>) {
        if let Some(ticket) = self.ticket.take() {
            self.traffic.resolve(ticket, outcome);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let fault = Fault::new(ErrorCode::Internal, "What was asked for has ended without a result");
            self.traffic.resolve(ticket, Err(fault));
        }
    }
}

/// How a stream's answer comes to its client.
#[derive(Debug, Default)]
pub enum Form {
    /// Each piece as an event.
    #[default]
    Events,
    /// As blocks, with the ending.
    Whole(Blocks),
    /// As bytes for its connection.
    Bytes(Writing),
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
    pub(super) fn open(&self, worker: u64, model_id: &str) {
        let open = Open {
            model_id: model_id.into(),
            streams: 0,
            questions: 0,
            is_closed: false,
            idle_since: None,
            is_use_new: false,
            new_requests: 0,
            is_of_one: false,
            new_tokens: 0,
            tokens_per_second: 0.0,
            recent: Recent::default(),
        };
        self.under_way.lock().workers.insert(worker, open);
    }

    /// The worker gets nothing new.
    pub(super) fn close(&self, worker: u64) {
        if let Some(open) = self.under_way.lock().workers.get_mut(&worker) {
            open.is_closed = true;
        }
    }

    /// Who is to hear whether workers are busy. It must not block.
    pub(super) fn set_hears_of_use(&self, hears: impl Fn() + Send + 'static) {
        self.under_way.lock().hears_of_use = Some(Box::new(hears));
    }

    /// Does somebody wait for a worker that has nothing to answer?
    pub(super) fn await_use(&self, is_awaited: bool) {
        let mut under_way = self.under_way.lock();
        under_way.is_use_awaited = is_awaited;
        if is_awaited {
            under_way.tell_of_new_use();
        }
    }

    /// Workers that have been asked something since the last call, or have answered all, each with how often and
    /// since when all of that is answered; `None`: it is not.
    pub(super) fn take_uses(&self) -> Vec<(u64, u32, Option<Instant>)> {
        let mut under_way = self.under_way.lock();
        let of_worker = |(worker, open): (&u64, &mut Open)| {
            let requests = mem::take(&mut open.new_requests);
            let is_new = mem::take(&mut open.is_use_new) || requests > 0;
            is_new.then_some((*worker, requests, open.idle_since))
        };
        under_way.workers.iter_mut().filter_map(of_worker).collect()
    }

    /// A new stream of one of these workers; `None` where each has died or is closed.
    pub(super) fn submit(
        &self,
        links: &[Link],
        beginning: &Beginning,
        client: ClientId,
        form: Form,
        asked: Fingerprint,
        message: impl FnOnce(RequestId) -> ToWorker,
    ) -> Option<RequestId> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut under_way = self.under_way.lock();
        let (link, open) = under_way.pick(links, beginning)?;
        open.recent.add(beginning);
        let model_id = Arc::clone(&open.model_id);
        under_way.count(link.worker, |open| {
            open.streams += 1;
            open.new_requests += 1;
        });
        under_way.outlets.open(client);
        let stream = Stream {
            link: link.clone(),
            model_id,
            client,
            form,
            asked,
            is_answered: false,
            last_tokens: None,
            between_tokens: Histogram::between_tokens(),
        };
        under_way.streams.insert(id, stream);
        // Under the lock: what is sent first arrives first, and a cancel never overtakes its stream.
        link.send(message(id));
        Some(id)
    }

    /// A new question to one of these workers; `None` where each has died or is closed.
    pub(super) fn ask(
        &self,
        links: &[Link],
        asked: Fingerprint,
        message: impl FnOnce(RequestId) -> ToWorker,
    ) -> Option<Ticket> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut under_way = self.under_way.lock();
        let (link, _) = under_way.pick(links, &Beginning::default())?;
        under_way.count(link.worker, |open| {
            open.questions += 1;
            open.new_requests += 1;
        });
        under_way.questions.insert(id, Unanswered { worker: link.worker, asked, seconds: 0 });
        link.send(message(id));
        Some(id)
    }

    /// A number that nobody else has.
    pub(super) fn number(&self) -> Ticket {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A ticket for anything else, and what has to be sent to its holder.
    pub(super) fn ticket(self: &Arc<Self>) -> (Ticket, Reply) {
        let ticket = self.number();
        (ticket, Reply { traffic: Arc::clone(self), ticket: Some(ticket) })
    }

    fn resolve(&self, ticket: Ticket, outcome: Result<String, Fault>) {
        self.change(|under_way| under_way.outlets.outcome((ticket, outcome)));
    }

    /// Nobody waits for that answer any more.
    pub(super) fn forget_question(&self, id: Ticket) {
        self.under_way.lock().take_question(id);
    }

    /// Is this request one that has killed its engine again and again? Then it is not run.
    pub(super) fn acquit(&self, asked: Fingerprint, model_id: &str) -> Result<(), Fault> {
        let Some((crashes, left)) = self.under_way.lock().suspects.refuses(Instant::now(), asked) else {
            return Ok(());
        };
        let seconds = left.as_secs().max(1);
        let message = format!(
            "This request was under way when the engine of model '{model_id}' died, {crashes} times in a row, \
             and is not run again for {seconds} s"
        );
        Err(Fault::new(ErrorCode::EngineCrashed, message)
            .details(json!({ "retry_after": seconds, "crashes": crashes }).to_string()))
    }

    /// A worker has died: what it had under way is suspected, of that what had sent nothing, if there is
    /// such. True: none of it is new to that. `by_fault`: its engine did something wrong. Where one request alone was
    /// under way then, and had sent nothing, it would do the same again, and is not run again by the node.
    pub(super) fn suspect(&self, worker: u64, model_id: &str, by_fault: bool) -> bool {
        let mut under_way = self.under_way.lock();
        let questions = under_way.questions.values().filter(|question| question.worker == worker);
        let streams = under_way.streams.values().filter(|stream| stream.link.worker == worker);
        let (answered, mut silent): (Vec<_>, Vec<_>) =
            streams.map(|stream| (stream.asked, stream.is_answered)).partition(|(_, answered)| *answered);
        silent.extend(questions.map(|question| (question.asked, false)));
        let one =
            silent.first().filter(|(asked, _)| answered.is_empty() && silent.iter().all(|it| it.0 == *asked));
        let is_of_one = by_fault && one.is_some();
        let suspected: Vec<Fingerprint> =
            if silent.is_empty() { answered } else { silent }.into_iter().map(|(asked, _)| asked).collect();
        if let Some(open) = under_way.workers.get_mut(&worker) {
            open.is_of_one = is_of_one;
        }
        under_way.suspects.died(Instant::now(), model_id, &suspected)
    }

    /// Nothing is held against requests to this model any more.
    pub(super) fn forget_suspects(&self, model_id: &str) {
        self.under_way.lock().suspects.forget(model_id);
    }

    /// The client has left; the stream's ending still comes.
    pub(super) fn cancel(&self, id: RequestId) {
        if let Some(stream) = self.under_way.lock().streams.get(&id) {
            stream.link.send(ToWorker::Cancel { id });
        }
    }

    /// Streams of a worker that have had no ending yet.
    pub(super) fn streams_of(&self, worker: u64) -> usize {
        self.under_way.lock().workers.get(&worker).map_or(0, |open| open.streams)
    }

    /// Tokens of answers that a worker made in the last second.
    pub(super) fn tokens_per_second(&self, worker: u64) -> f64 {
        self.under_way.lock().workers.get(&worker).map_or(0.0, |open| open.tokens_per_second)
    }

    /// All that one step of a worker brought. [`Self::write`] has to follow.
    pub(super) fn step(&self, worker: u64, events: Vec<(RequestId, Event)>) {
        let now = Instant::now();
        self.change(|under_way| {
            for (id, event) in events {
                under_way.event(worker, id, event, now);
            }
        });
    }

    /// What a worker owes: streams and questions; `None`: it is not one that answers.
    pub(super) fn owed_by(&self, worker: u64) -> Option<usize> {
        self.under_way.lock().workers.get(&worker).map(Open::owes)
    }

    /// A worker's answer.
    pub(super) fn answer(&self, worker: u64, id: RequestId, answer: Result<Answer, Fault>) {
        // Made here, on the thread of that worker: nobody else waits for it.
        let answer = answer.and_then(|answer| {
            serde_json::to_string(&answer).map_err(|error| {
                Fault::new(ErrorCode::Internal, format!("an answer cannot be written: {error}"))
            })
        });
        self.change(|under_way| {
            if under_way.questions.get(&id).is_some_and(|question| question.worker == worker)
                && let Some(question) = under_way.take_question(id)
            {
                if answer.is_ok() {
                    under_way.suspects.served(question.asked);
                }
                under_way.outlets.outcome((id, answer));
            }
        });
    }

    /// A second of the node's clock has passed, which took so long.
    pub(super) fn tick(&self, took: Duration) {
        self.change(|under_way| {
            for open in under_way.workers.values_mut() {
                open.tokens_per_second = mem::take(&mut open.new_tokens) as f64 / took.as_secs_f64();
            }
            let mut late = Vec::new();
            for (id, question) in &mut under_way.questions {
                question.seconds += 1;
                if question.seconds > QUESTION_SECONDS {
                    late.push(*id);
                }
            }
            for id in late {
                under_way.take_question(id);
                let message = format!("The model did not answer within {QUESTION_SECONDS} s");
                under_way.outlets.outcome((id, Err(Fault::new(ErrorCode::Timeout, message))));
            }
            under_way.tell_of_new_use();
        });
    }

    /// One request could not be sent.
    pub(super) fn fail(&self, worker: u64, id: RequestId, fault: &Fault) {
        self.answer(worker, id, Err(fault.clone()));
        self.step(worker, vec![(id, Event::Failed(fault.clone()))]);
    }

    /// The worker is gone: all that it owed ends with this fault.
    pub(super) fn end_of_worker(&self, worker: u64, fault: &Fault) {
        self.change(|under_way| {
            let is_of_one = under_way.workers.remove(&worker).is_some_and(|open| open.is_of_one);
            let of_one = Some(blaming(fault)).filter(|_| is_of_one && fault.code == ErrorCode::EngineCrashed);
            let fault = of_one.as_ref().unwrap_or(fault);
            let of_worker =
                |(id, stream): (&RequestId, &Stream)| (stream.link.worker == worker).then_some(*id);
            let ended: Vec<RequestId> = under_way.streams.iter().filter_map(of_worker).collect();
            for id in ended {
                under_way.end(worker, id, Event::Failed(fault.clone()));
            }
            let UnderWay { questions, outlets, .. } = under_way;
            questions.retain(|id, question| {
                let dead = question.worker == worker;
                if dead {
                    outlets.outcome((*id, Err(fault.clone())));
                }
                !dead
            });
        });
    }

    /// Whatever is under way ends with this fault.
    pub(super) fn end_all(&self, fault: &Fault) {
        let workers: Vec<u64> = self.under_way.lock().workers.keys().copied().collect();
        for worker in workers {
            self.end_of_worker(worker, fault);
        }
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

    /// A model has been loaded, which took so long.
    pub(super) fn loaded(&self, model_id: &str, took: Duration) {
        self.under_way.lock().meters.loaded(model_id, took);
    }

    /// What all requests, and all loads, took so far. `is_there`: is such a model loaded?
    pub(super) fn meters(&self, is_there: impl Fn(&str) -> bool) -> Meters {
        self.under_way.lock().meters.told(Instant::now(), is_there)
    }

    /// Everything since the last call.
    pub(super) fn drain(&self) -> Waiting {
        self.under_way.lock().outlets.take()
    }
}

impl Open {
    fn owes(&self) -> usize {
        self.streams + self.questions
    }
}

impl UnderWay {
    /// The worker that gets what begins so.
    fn pick<'a>(&mut self, links: &'a [Link], beginning: &Beginning) -> Option<(&'a Link, &mut Open)> {
        let takes = |link: &&Link| self.workers.get(&link.worker).is_some_and(|open| !open.is_closed);
        let links: Vec<&Link> = links.iter().filter(takes).collect();
        let known = |link: &&Link| {
            self.workers.get(&link.worker).map_or((0, 0), |open| (open.owes(), open.recent.shares(beginning)))
        };
        let link = links[pick(&links.iter().map(known).collect::<Vec<_>>())?];
        Some((link, self.workers.get_mut(&link.worker)?))
    }

    /// Changes how much a worker owes.
    fn count(&mut self, worker: u64, change: impl FnOnce(&mut Open)) {
        let Some(open) = self.workers.get_mut(&worker) else { return };
        let was_busy = open.owes() > 0;
        change(open);
        let is_busy = open.owes() > 0;
        if was_busy != is_busy {
            open.idle_since = (!is_busy).then(Instant::now);
            open.is_use_new = true;
            if self.is_use_awaited {
                self.tell_of_new_use();
            }
        }
    }

    fn tell_of_new_use(&self) {
        if let Some(hears) = &self.hears_of_use
            && self.workers.values().any(|open| open.is_use_new || open.new_requests > 0)
        {
            hears();
        }
    }

    fn take_question(&mut self, id: RequestId) -> Option<Unanswered> {
        let question = self.questions.remove(&id)?;
        self.count(question.worker, |open| open.questions = open.questions.saturating_sub(1));
        Some(question)
    }

    /// A worker speaks for its own streams alone, and not after their ending.
    fn event(&mut self, worker: u64, id: RequestId, event: Event, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.link.worker == worker) else {
            return;
        };
        let client = stream.client;
        stream.is_answered |= matches!(event, Event::Piece(_) | Event::CallBegan { .. });
        if let Event::Piece(Piece { tokens, .. }) = &event
            && let Ok(count @ 1..) = u32::try_from(tokens.len())
        {
            if let Some(last) = stream.last_tokens.replace(now) {
                stream.between_tokens.took_each(now.saturating_duration_since(last) / count, count);
            }
            if let Some(open) = self.workers.get_mut(&worker) {
                open.new_tokens += u64::from(count);
            }
        }
        let taken = match (event, &mut stream.form) {
            (event @ (Event::Finished { .. } | Event::Failed(_)), _) => return self.end(worker, id, event),
            (event @ Event::Started { .. }, _) | (event, Form::Events) => {
                self.outlets.event(client, id, event, Told::default());
                Ok(())
            }
            (event, Form::Whole(blocks)) => blocks.take(event),
            (event, Form::Bytes(writing)) => {
                writing.take(event, |frames, frame| self.outlets.frame(client, id, frames, frame))
            }
        };
        if let Err(fault) = taken {
            stream.link.send(ToWorker::Cancel { id });
            self.end(worker, id, Event::Failed(fault));
        }
    }

    /// A stream's ending, with all that is told again.
    fn end(&mut self, worker: u64, id: RequestId, event: Event) {
        let Some(Stream { model_id, client, form, asked, between_tokens, .. }) = self.streams.remove(&id)
        else {
            return;
        };
        self.meters.came(&model_id, &between_tokens);
        match &event {
            Event::Finished { reason, usage, .. } => self.meters.finished(&model_id, *reason, usage),
            _ => self.meters.failed(&model_id),
        }
        let reason = match &event {
            Event::Finished { reason, .. } => *reason,
            _ => Finish::Cancelled,
        };
        if matches!(event, Event::Finished { .. }) && reason != Finish::Cancelled {
            self.suspects.served(asked);
        }
        self.count(worker, |open| open.streams = open.streams.saturating_sub(1));
        let mut told = Told::default();
        match form {
            Form::Events => {}
            Form::Whole(mut blocks) => {
                blocks.end(reason);
                told.blocks = blocks.into_blocks();
            }
            Form::Bytes(mut writing) => {
                // A failure is told by whoever writes it, in place of what is open.
                if matches!(event, Event::Finished { .. }) {
                    told.blocks =
                        writing.finish(reason, |frames, frame| self.outlets.frame(client, id, frames, frame));
                }
                self.outlets.settle(client);
                told.number = writing.number();
            }
        }
        self.outlets.event(client, id, event, told);
        self.outlets.close(client);
    }
}

/// What the one request is told of which an engine has died.
fn blaming(fault: &Fault) -> Fault {
    let details: Option<Map<String, Value>> =
        fault.details.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let mut details = details.unwrap_or_default();
    details.insert("crashes".to_owned(), 1.into());
    fault.clone().details(Value::Object(details).to_string())
}

/// Too large for a frame.
pub(super) fn too_large() -> Fault {
    Fault::new(ErrorCode::RequestTooLarge, "The request is too large to be handed to the model's worker")
}

#[cfg(test)]
mod tests;
