//! What waits for the node to take it: events, and bytes that are ready for a client's connection.
//!
//! Owns how long a client is waited for. While it keeps up, each piece of its text is a frame of its own.
//! While it lags, its frames are only collected, and those that go on with one block become one; and a client
//! that lets more than [`MAX_UNSENT`] wait gets nothing any more. None of that costs another client anything.
//!
//! Frames go to a client's socket from here, past the node, as long as all that was to come before it is
//! with the kernel: so says whoever calls [`Outlets::release`], and it holds until something is handed
//! to the node for that client. So the two never write at the same time, and nothing overtakes.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    io::Write,
    mem,
    sync::Arc,
};

use llm_node_core::{error::Fault, event::Event};

use super::{StreamId, Ticket};
use crate::{
    blocks::Block,
    frames::{Bytes, Frame, Frames},
};

/// Names a client of the node: one connection's request, with all of its streams.
pub type ClientId = u64;

/// Most bytes that may wait for a client that does not read.
pub const MAX_UNSENT: usize = 256 * 1024;

/// Most bytes of separate events that wait while the node does not ask for them: what comes then is
/// merged, so that a node that is short of time writes larger events instead of piling up small ones.
const BURST: usize = 64 * 1024;

/// What a frame that waits counts beside its text, so that many small blocks are not for nothing.
const HELD: usize = 64;

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
    /// Frames of its streams.
    Bytes(Bytes),
    /// Anything else that happened to a stream.
    Event {
        /// Which.
        stream: StreamId,
        /// What.
        event: Event,
        /// What is told again with the ending.
        told: Told,
    },
    /// More than [`MAX_UNSENT`] bytes wait for it, and its text is dropped from here on.
    Overflow,
}

/// What a stream's ending brings beside it.
#[derive(Debug, Default)]
pub struct Told {
    /// The number behind those of all frames.
    pub number: u64,
    /// The answer, where it was kept.
    pub blocks: Vec<Block>,
}

/// What came of something that was asked for: JSON, or why there is none.
pub type Outcome = (Ticket, Result<String, Fault>);

/// All that waits for the node.
#[derive(Debug, Default)]
pub struct Waiting {
    /// For its clients, in order.
    pub deliveries: Vec<Delivery>,
    /// For whoever asked.
    pub outcomes: Vec<Outcome>,
}

/// The sending side of a client's connection. A write takes what the kernel takes at once.
pub(super) type Socket = Box<dyn Write + Send>;

#[derive(Debug, Default)]
pub(super) struct Outlets {
    waiting: Vec<Delivery>,
    outcomes: Vec<Outcome>,
    /// Counts the times that everything was taken.
    round: u64,
    clients: HashMap<ClientId, Client>,
    /// Clients whose frames are merged for no fault of theirs.
    merged: Vec<ClientId>,
    /// Clients with text for their sockets.
    unwritten: Vec<ClientId>,
    /// The node was woken, and has not taken anything since.
    woken: bool,
}

#[derive(Default)]
struct Client {
    streams: usize,
    /// Where in `waiting` more bytes for it may be appended: round and index.
    place: Option<(u64, usize)>,
    /// The round in which something was last put into `waiting` for it.
    waits: Option<u64>,
    held: Vec<Held>,
    held_bytes: usize,
    /// Bytes in its connection's buffer; `None`: it keeps up.
    lags_by: Option<usize>,
    overflowed: bool,
    socket: Option<Socket>,
    /// All that came before is sent, so that its text may go to the socket.
    is_clear: bool,
    /// For its socket, at the next [`Outlets::write`].
    unwritten: Option<Bytes>,
    /// Writes to its socket.
    writes: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("streams", &self.streams).finish_non_exhaustive()
    }
}

/// A frame of one stream that waits.
#[derive(Debug)]
struct Held {
    stream: StreamId,
    frames: Arc<Frames>,
    frame: Frame,
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

    /// A frame of a stream. What goes to a socket is there after the next [`Self::write`].
    pub(super) fn frame(&mut self, id: ClientId, stream: StreamId, frames: &Arc<Frames>, frame: Frame) {
        let Some(client) = self.clients.get_mut(&id).filter(|client| !client.overflowed) else { return };
        if frame.is_empty() {
            return;
        }
        if client.is_clear {
            if client.unwritten.is_none() {
                self.unwritten.push(id);
            }
            let bytes = client.unwritten.get_or_insert_with(|| frames.bytes());
            frames.fill(&frame, bytes);
            if bytes.len() >= BURST {
                self.write_to(id);
            }
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
            client.hold(stream, frames, frame);
            if client.lags_by.is_some_and(|unsent| unsent + client.held_bytes > MAX_UNSENT) {
                client.overflowed = true;
                client.held = Vec::new();
                self.hand_over(id, What::Overflow);
            }
            return;
        }
        if let Some(bytes) = bytes {
            frames.fill(&frame, bytes);
        } else {
            let mut bytes = frames.bytes();
            frames.fill(&frame, &mut bytes);
            client.place = Some((self.round, self.waiting.len()));
            self.hand_over(id, What::Bytes(bytes));
        }
    }

    /// All frames of a client that came are filled from here on, and will not be merged any more.
    pub(super) fn settle(&mut self, id: ClientId) {
        self.write_to(id);
        self.flush(id);
    }

    /// Anything else, behind all frames that came before it.
    pub(super) fn event(&mut self, id: ClientId, stream: StreamId, event: Event, told: Told) {
        self.settle(id);
        if let Some(client) = self.clients.get_mut(&id) {
            client.place = None;
        }
        self.hand_over(id, What::Event { stream, event, told });
    }

    /// Writes to the sockets what came since the last time.
    pub(super) fn write(&mut self) {
        let mut ids = mem::take(&mut self.unwritten);
        for id in ids.drain(..) {
            self.write_to(id);
        }
        self.unwritten = ids;
    }

    /// So many bytes are in the buffer of the client's connection, or the node wants to write itself: its
    /// text is collected from now on. Gives how often was written to its socket.
    pub(super) fn hold(&mut self, id: ClientId, unsent: usize) -> u64 {
        self.write_to(id);
        let Some(client) = self.clients.get_mut(&id) else { return 0 };
        client.lags_by = Some(unsent);
        client.is_clear = false;
        client.writes
    }

    /// All that the node has taken for the client is with the kernel. `socket` is asked for where none is
    /// known.
    pub(super) fn release(&mut self, id: ClientId, socket: impl FnOnce() -> Option<Socket>) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.lags_by = None;
        client.socket = client.socket.take().or_else(socket);
        client.is_clear = client.socket.is_some() && client.waits != Some(self.round) && !client.overflowed;
        if !client.is_clear {
            return self.flush(id);
        }
        if let Some(bytes) = client.collected() {
            client.unwritten = Some(bytes);
            self.write_to(id);
        }
    }

    /// Nothing more is to be written to the client's socket.
    pub(super) fn disconnect(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.socket = None;
            client.is_clear = false;
            client.unwritten = None;
        }
    }

    /// Is something there that the node has not been told of? It counts as told from now on.
    pub(super) fn wants_waking(&mut self) -> bool {
        let is_empty = self.waiting.is_empty() && self.outcomes.is_empty();
        !is_empty && !mem::replace(&mut self.woken, true)
    }

    /// There is somebody new to be told.
    pub(super) fn forget_waking(&mut self) {
        self.woken = false;
    }

    /// For whoever asked.
    pub(super) fn outcome(&mut self, outcome: Outcome) {
        self.outcomes.push(outcome);
    }

    /// Everything.
    pub(super) fn take(&mut self) -> Waiting {
        self.woken = false;
        for id in mem::take(&mut self.merged) {
            if self.clients.get(&id).is_some_and(|client| client.lags_by.is_none()) {
                self.flush(id);
            }
        }
        self.round += 1;
        let room = self.waiting.len();
        Waiting {
            deliveries: mem::replace(&mut self.waiting, Vec::with_capacity(room)),
            outcomes: mem::take(&mut self.outcomes),
        }
    }

    /// What was collected becomes one event for each stream.
    fn flush(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let Some(bytes) = client.collected() else { return };
        client.place = Some((self.round, self.waiting.len()));
        self.hand_over(id, What::Bytes(bytes));
    }

    /// What the kernel does not take is the node's to send, and all that follows.
    fn write_to(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let (Some(socket), Some(mut bytes)) = (&mut client.socket, client.unwritten.take()) else { return };
        client.writes += 1;
        let frame = bytes.frame();
        // An error will meet the node too, which knows what to do about it.
        let sent = socket.write(frame).unwrap_or(0);
        if let Some(rest) = frame.get(sent..).filter(|rest| !rest.is_empty()) {
            let rest = Bytes::raw(rest);
            client.place = None;
            self.hand_over(id, What::Bytes(rest));
        }
    }

    /// From here on the node writes for the client, until it says that all is sent.
    fn hand_over(&mut self, id: ClientId, what: What) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.waits = Some(self.round);
            client.is_clear = false;
        }
        self.waiting.push(Delivery { client: id, what });
    }
}

impl Client {
    fn hold(&mut self, stream: StreamId, frames: &Arc<Frames>, frame: Frame) {
        self.held_bytes += frame.len();
        let last = self.held.iter_mut().rev().find(|held| held.stream == stream);
        let left = match last {
            Some(held) => held.frame.append(frame),
            None => Some(frame),
        };
        if let Some(frame) = left {
            self.held_bytes += HELD;
            self.held.push(Held { stream, frames: Arc::clone(frames), frame });
        }
    }

    /// What was held, as bytes.
    fn collected(&mut self) -> Option<Bytes> {
        let mut bytes = self.held.first()?.frames.bytes();
        for held in self.held.drain(..) {
            held.frames.fill(&held.frame, &mut bytes);
        }
        self.held_bytes = 0;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests;
