//! What waits for the node to take it: events, and bytes that are ready for a client's connection.
//!
//! Owns the patience with a client. While it keeps up, each piece of its text is an event of its own.
//! While it lags, its text is only collected, and becomes one event when it reads again; and a client
//! that lets more than [`MAX_UNSENT`] wait gets nothing any more. None of that costs another client
//! anything.

use std::{
    collections::{HashMap, hash_map::Entry},
    mem,
    sync::Arc,
};

use llm_node_core::event::Event;

use super::StreamId;
use crate::sse::{Bytes, Template};

/// Names a client of the node: one connection's request, with all of its streams.
pub type ClientId = u64;

/// Most bytes that may wait for a client that does not read.
pub const MAX_UNSENT: usize = 256 * 1024;

/// Most bytes of separate events that wait while the node does not ask for them: what comes then is
/// merged, so that a node that is short of time writes larger events instead of piling up small ones.
const BURST: usize = 64 * 1024;

/// Something for a client.
#[derive(Debug)]
pub struct Delivery {
    /// For whom.
    pub client: ClientId,
    /// What.
    pub what: What,
}

/// See [`Delivery`].
#[derive(Debug)]
pub enum What {
    /// Pieces of text, made into bytes by their streams' templates.
    Bytes(Bytes),
    /// Anything else that happened to a stream.
    Event(StreamId, Event),
    /// More than [`MAX_UNSENT`] bytes wait for it, and its text is dropped from here on.
    Overflow,
}

#[derive(Debug, Default)]
pub(super) struct Outlets {
    waiting: Vec<Delivery>,
    /// Counts the times that everything was taken.
    round: u64,
    clients: HashMap<ClientId, Client>,
    /// Clients whose text is merged for no fault of theirs.
    merged: Vec<ClientId>,
    /// The node was woken, and has not taken anything since.
    woken: bool,
}

#[derive(Debug, Default)]
struct Client {
    streams: usize,
    /// Where in `waiting` more bytes for it may be appended: round and index.
    place: Option<(u64, usize)>,
    held: Vec<Held>,
    held_bytes: usize,
    /// Bytes in its connection's buffer; `None`: it keeps up.
    lags_by: Option<usize>,
    overflowed: bool,
}

/// Text of one stream that waits to become one event.
#[derive(Debug)]
struct Held {
    stream: StreamId,
    template: Arc<Template>,
    text: String,
}

impl Outlets {
    /// One stream more for this client.
    pub(super) fn open(&mut self, client: ClientId) {
        self.clients.entry(client).or_default().streams += 1;
    }

    /// One stream of this client has had its ending.
    pub(super) fn close(&mut self, client: ClientId) {
        if let Entry::Occupied(mut entry) = self.clients.entry(client) {
            let left = &mut entry.get_mut().streams;
            *left = left.saturating_sub(1);
            if *left == 0 {
                entry.remove();
            }
        }
    }

    /// A piece of a stream's text, to be written by its template.
    pub(super) fn text(&mut self, id: ClientId, stream: StreamId, template: &Arc<Template>, text: &str) {
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.overflowed) else { return };
        if text.is_empty() {
            return;
        }
        let place = client.place.filter(|(round, _)| *round == self.round);
        let bytes = match place.and_then(|(_, index)| self.waiting.get_mut(index)) {
            Some(Delivery { what: What::Bytes(bytes), .. }) => Some(bytes),
            _ => None,
        };
        let is_full = bytes.as_ref().is_some_and(|bytes| bytes.len() >= BURST);
        if client.lags_by.is_some() || is_full || !client.held.is_empty() {
            if client.held.is_empty() && client.lags_by.is_none() {
                self.merged.push(id);
            }
            client.hold(stream, template, text);
            if client.lags_by.is_some_and(|unsent| unsent + client.held_bytes > MAX_UNSENT) {
                client.overflowed = true;
                client.held = Vec::new();
                self.waiting.push(Delivery { client: id, what: What::Overflow });
            }
            return;
        }
        if let Some(bytes) = bytes {
            template.fill(text, bytes);
        } else {
            let mut bytes = template.bytes();
            template.fill(text, &mut bytes);
            client.place = Some((self.round, self.waiting.len()));
            self.waiting.push(Delivery { client: id, what: What::Bytes(bytes) });
        }
    }

    /// Anything else, behind all text that came before it.
    pub(super) fn event(&mut self, id: ClientId, stream: StreamId, event: Event) {
        self.flush(id);
        if let Some(client) = self.clients.get_mut(&id) {
            client.place = None;
        }
        self.waiting.push(Delivery { client: id, what: What::Event(stream, event) });
    }

    /// So many bytes are in the buffer of the client's connection: its text is collected from now on.
    pub(super) fn hold(&mut self, id: ClientId, unsent: usize) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.lags_by = Some(unsent);
        }
    }

    /// The client has read everything.
    pub(super) fn release(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.lags_by = None;
        }
        self.flush(id);
    }

    /// Is something there that the node has not been told of? It counts as told from now on.
    pub(super) fn wants_waking(&mut self) -> bool {
        !self.waiting.is_empty() && !mem::replace(&mut self.woken, true)
    }

    /// There is somebody new to be told.
    pub(super) fn forget_waking(&mut self) {
        self.woken = false;
    }

    /// Everything, in order.
    pub(super) fn take(&mut self) -> Vec<Delivery> {
        self.woken = false;
        for id in mem::take(&mut self.merged) {
            if self.clients.get(&id).is_some_and(|client| client.lags_by.is_none()) {
                self.flush(id);
            }
        }
        self.round += 1;
        let room = self.waiting.len();
        mem::replace(&mut self.waiting, Vec::with_capacity(room))
    }

    /// What was collected becomes one event for each stream.
    fn flush(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(first) = client.held.first() else { return };
        let mut bytes = first.template.bytes();
        for held in client.held.drain(..) {
            held.template.fill(&held.text, &mut bytes);
        }
        client.held_bytes = 0;
        client.place = Some((self.round, self.waiting.len()));
        self.waiting.push(Delivery { client: id, what: What::Bytes(bytes) });
    }
}

impl Client {
    fn hold(&mut self, stream: StreamId, template: &Arc<Template>, text: &str) {
        self.held_bytes += text.len();
        match self.held.iter_mut().find(|held| held.stream == stream) {
            Some(held) => held.text.push_str(text),
            None => self.held.push(Held { stream, template: Arc::clone(template), text: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use llm_node_core::event::{Finish, Usage};

    use super::*;

    const CLIENT: ClientId = 7;

    fn template() -> Arc<Template> {
        Arc::new(Template::new(b"<".to_vec(), b">".to_vec(), false))
    }

    fn outlets(streams: usize) -> Outlets {
        let mut outlets = Outlets::default();
        for _ in 0..streams {
            outlets.open(CLIENT);
        }
        outlets
    }

    /// One line for each delivery.
    fn told(outlets: &mut Outlets) -> Vec<String> {
        let line = |mut delivery: Delivery| match &mut delivery.what {
            What::Bytes(bytes) => String::from_utf8_lossy(bytes.frame()).into_owned(),
            What::Event(stream, event) => {
                format!("{stream} {}", matches!(event, Event::Finished { .. }))
            }
            What::Overflow => "overflow".to_owned(),
        };
        outlets.take().into_iter().map(line).collect()
    }

    fn finished() -> Event {
        Event::Finished { reason: Finish::Stop, usage: Usage::default() }
    }

    #[test]
    fn who_keeps_up_gets_an_event_for_each_piece_and_one_write() {
        let mut outlets = outlets(2);
        outlets.text(CLIENT, 0, &template(), "a");
        outlets.text(CLIENT, 1, &template(), "b");
        outlets.text(CLIENT, 0, &template(), "");
        outlets.text(CLIENT, 0, &template(), "c");
        assert_eq!(told(&mut outlets), [r#"<"a"><"b"><"c">"#]);
        outlets.text(CLIENT, 0, &template(), "d");
        assert_eq!(told(&mut outlets), [r#"<"d">"#]);
        assert!(told(&mut outlets).is_empty());
    }

    #[test]
    fn text_stays_between_the_events_around_it() {
        let mut outlets = outlets(1);
        outlets.event(CLIENT, 0, Event::Started { prompt_tokens: 1 });
        outlets.text(CLIENT, 0, &template(), "a");
        outlets.event(CLIENT, 0, Event::Started { prompt_tokens: 1 });
        outlets.text(CLIENT, 0, &template(), "b");
        outlets.event(CLIENT, 0, finished());
        assert_eq!(told(&mut outlets), ["0 false", r#"<"a">"#, "0 false", r#"<"b">"#, "0 true"]);
    }

    #[test]
    fn who_lags_gets_one_event_for_each_stream_once_it_reads() {
        let mut outlets = outlets(2);
        outlets.hold(CLIENT, 10);
        for text in ["a", "b", "c"] {
            outlets.text(CLIENT, 0, &template(), text);
            outlets.text(CLIENT, 1, &template(), text);
        }
        assert!(told(&mut outlets).is_empty());
        outlets.release(CLIENT);
        outlets.text(CLIENT, 0, &template(), "d");
        assert_eq!(told(&mut outlets), [r#"<"abc"><"abc"><"d">"#]);
    }

    #[test]
    fn an_ending_brings_what_was_held_before_it() {
        let mut outlets = outlets(1);
        outlets.hold(CLIENT, 10);
        outlets.text(CLIENT, 0, &template(), "a");
        outlets.event(CLIENT, 0, finished());
        assert_eq!(told(&mut outlets), [r#"<"a">"#, "0 true"]);
    }

    #[test]
    fn over_the_cap_it_is_said_once_and_nothing_is_kept() {
        let mut outlets = outlets(1);
        outlets.open(8);
        outlets.hold(CLIENT, MAX_UNSENT - 10);
        for _ in 0..20 {
            outlets.text(CLIENT, 0, &template(), "a");
            outlets.text(8, 1, &template(), "b");
        }
        assert_eq!(told(&mut outlets), [r#"<"b">"#.repeat(20), "overflow".to_owned()]);
        assert!(outlets.clients[&CLIENT].held.is_empty());
        outlets.release(CLIENT);
        outlets.event(CLIENT, 0, finished());
        assert_eq!(told(&mut outlets), ["0 true"]);
    }

    #[test]
    fn a_node_without_time_gets_larger_events_and_no_overflow() {
        let mut outlets = outlets(1);
        let pieces = 1_000_000;
        for _ in 0..pieces {
            outlets.text(CLIENT, 0, &template(), "a");
        }
        let written = told(&mut outlets).concat();
        assert_eq!(written.matches('a').count(), pieces);
        assert!(written.len() < pieces + 2 * BURST);
        outlets.text(CLIENT, 0, &template(), "b");
        assert_eq!(told(&mut outlets), [r#"<"b">"#]);
    }

    #[test]
    fn a_client_is_forgotten_with_its_last_stream() {
        let mut outlets = outlets(2);
        outlets.close(CLIENT);
        outlets.text(CLIENT, 1, &template(), "a");
        outlets.close(CLIENT);
        outlets.close(CLIENT);
        assert!(outlets.clients.is_empty());
        outlets.hold(CLIENT, 1);
        outlets.release(CLIENT);
        assert_eq!(told(&mut outlets), [r#"<"a">"#]);
    }

    #[test]
    fn one_waking_for_all_that_comes_before_it_is_taken() {
        let mut outlets = outlets(1);
        assert!(!outlets.wants_waking());
        outlets.text(CLIENT, 0, &template(), "a");
        assert!(outlets.wants_waking());
        outlets.text(CLIENT, 0, &template(), "a");
        assert!(!outlets.wants_waking());
        outlets.take();
        outlets.text(CLIENT, 0, &template(), "a");
        assert!(outlets.wants_waking());
    }
}
