//! The way of messages to the node, on a thread of its own.
//!
//! The scheduler must never wait for the node, so sending only appends to a queue. What one step
//! brought is one frame; while the node is slow, the steps that wait become one frame. Log messages
//! are dropped when too many wait. If the node stops reading altogether, the queue is closed rather
//! than grown without end, and the worker ends.

use std::{
    collections::VecDeque,
    io::Write,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use llm_node_core::event::Event;
use llm_node_wire::{
    frame::{FrameError, FrameWriter},
    message::{FromWorker, RequestId},
};

/// Most events in a frame that was put together from several steps; keeps it far below the cap.
const MERGE_EVENTS: usize = 4096;

/// Log messages that may wait.
const LOG_BACKLOG: usize = 1000;

/// Events that may wait: a minute of all that a large GPU can generate.
const EVENT_BACKLOG: usize = 1_000_000;

/// Cloned freely; all clones feed the same queue.
#[derive(Clone)]
pub(crate) struct Outbox(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Something waits, or the queue is closed.
    filled: Condvar,
    /// Everything is written, or the queue is closed.
    emptied: Condvar,
    /// What to do when the node stops reading.
    overflow: fn() -> !,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<FromWorker>,
    logs: usize,
    dropped_logs: u64,
    events: usize,
    writing: bool,
    closed: bool,
}

impl Outbox {
    /// Starts the thread that writes. It ends when the connection does.
    pub(crate) fn start<W: Write + Send + 'static>(socket: W, overflow: fn() -> !) -> std::io::Result<Self> {
        let outbox = Self(Arc::new(Shared {
            queue: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            overflow,
        }));
        let shared = Arc::clone(&outbox.0);
        thread::Builder::new()
            .name("outbox".into())
            .spawn(move || shared.write_all(&mut FrameWriter::new(socket)))?;
        Ok(outbox)
    }

    /// Never waits.
    pub(crate) fn send(&self, message: FromWorker) {
        let mut queue = self.0.lock();
        if queue.closed {
            return;
        }
        match message {
            FromWorker::Step(events) => queue.push_events(events),
            FromWorker::Log { .. } if queue.logs >= LOG_BACKLOG => {
                queue.dropped_logs += 1;
                return;
            }
            message => {
                queue.logs += usize::from(matches!(message, FromWorker::Log { .. }));
                queue.messages.push_back(message);
            }
        }
        let overflow = queue.events > EVENT_BACKLOG;
        drop(queue);
        if overflow {
            (self.0.overflow)();
        }
        self.0.filled.notify_one();
    }

    /// Waits until everything sent so far is with the node, or the node is gone.
    pub(crate) fn flush(&self) {
        let mut queue = self.0.lock();
        while !queue.closed && (queue.writing || !queue.messages.is_empty()) {
            queue = self.0.emptied.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    fn push_events(&mut self, mut events: Vec<(RequestId, Event)>) {
        self.events += events.len();
        match self.messages.back_mut() {
            Some(FromWorker::Step(waiting)) if waiting.len() + events.len() <= MERGE_EVENTS => {
                waiting.append(&mut events);
            }
            _ => self.messages.push_back(FromWorker::Step(events)),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock; if something did, the queue is still whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all<W: Write>(&self, writer: &mut FrameWriter<W>) {
        loop {
            let mut queue = self.lock();
            queue.writing = false;
            if queue.messages.is_empty() {
                self.emptied.notify_all();
                while queue.messages.is_empty() {
                    queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            }
            // All that waits at once, so that what comes meanwhile can be merged with its like.
            let messages = std::mem::take(&mut queue.messages);
            let dropped = std::mem::take(&mut queue.dropped_logs);
            queue.logs = 0;
            queue.events = 0;
            queue.writing = true;
            drop(queue);

            let note = (dropped > 0).then(|| FromWorker::Log {
                severity: 2,
                message: format!("{dropped} log messages were dropped: too many at once"),
            });
            for message in messages.into_iter().chain(note) {
                if write(writer, message).is_err() {
                    let mut queue = self.lock();
                    queue.closed = true;
                    queue.messages.clear();
                    self.emptied.notify_all();
                    return;
                }
            }
        }
    }
}

/// An answer that no frame can hold becomes an error; nothing else can grow so large.
fn write<W: Write>(writer: &mut FrameWriter<W>, message: FromWorker) -> Result<(), FrameError> {
    match (writer.write(&message), message) {
        (Err(FrameError::TooLarge { length }), FromWorker::Answer { id, .. }) => {
            let fault = llm_node_core::error::Fault::new(
                llm_node_core::error::ErrorCode::RequestTooLarge,
                format!("the answer has {length} bytes, more than fits one message: ask for less at once"),
            );
            writer.write(&FromWorker::Answer { id, answer: Err(fault) })
        }
        (result, _) => result,
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::mpsc};

    use llm_node_core::event::Piece;
    use llm_node_wire::frame::FrameReader;

    use super::*;

    fn no_overflow() -> ! {
        panic!("overflow")
    }

    fn piece(text: &str) -> Event {
        Event::Piece(Piece { text: text.into(), tokens: Vec::new() })
    }

    /// A node that reads only when it is told to.
    struct Gate {
        open: mpsc::Receiver<()>,
        out: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.open.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.out.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gated() -> (Outbox, mpsc::Sender<()>, impl FnMut() -> FromWorker) {
        let (opener, open) = mpsc::channel();
        let (out, written) = mpsc::channel();
        let outbox = Outbox::start(Gate { open, out }, no_overflow).unwrap();
        (outbox, opener, move || FrameReader::new(&written.recv().unwrap()[..]).read().unwrap())
    }

    #[test]
    fn steps_that_wait_become_one_frame_and_keep_their_order() {
        let (outbox, opener, mut next) = gated();
        // The writer takes this one and hangs in the gate, or takes it together with what follows.
        outbox.send(FromWorker::Drained);
        outbox.send(FromWorker::Stage("between".into()));
        for n in 0..5 {
            outbox.send(FromWorker::Step(vec![(n, piece("a"))]));
        }
        outbox.send(FromWorker::Stage("after".into()));
        let mut events = Vec::new();
        let mut frames = 0;
        for _ in 0..8 {
            opener.send(()).unwrap();
        }
        loop {
            match next() {
                FromWorker::Step(step) => {
                    frames += 1;
                    events.extend(step.into_iter().map(|(id, _)| id));
                }
                FromWorker::Stage(stage) if stage == "after" => break,
                _ => {}
            }
        }
        assert_eq!(events, [0, 1, 2, 3, 4]);
        assert!(frames < 5, "{frames} frames");
    }

    #[test]
    fn a_flood_of_log_messages_is_cut_and_said() {
        let (outbox, opener, mut next) = gated();
        for n in 0..LOG_BACKLOG + 500 {
            outbox.send(FromWorker::Log { severity: 0, message: n.to_string() });
        }
        for _ in 0..=LOG_BACKLOG + 500 {
            opener.send(()).unwrap();
        }
        let said = std::iter::repeat_with(&mut next).find_map(|message| match message {
            FromWorker::Log { message, .. } if message.contains("dropped") => Some(message),
            _ => None,
        });
        assert!(said.is_some());
    }

    #[test]
    fn flush_returns_when_all_is_written_and_when_the_node_is_gone() {
        let (outbox, opener, mut next) = gated();
        outbox.send(FromWorker::Drained);
        opener.send(()).unwrap();
        outbox.flush();
        assert_eq!(next(), FromWorker::Drained);
        drop(opener);
        outbox.send(FromWorker::Drained);
        outbox.flush();
    }

    #[test]
    fn an_answer_that_no_frame_can_hold_becomes_an_error() {
        let mut bytes = Vec::new();
        let text = "x".repeat(llm_node_wire::frame::MAX_FRAME);
        let answer = Ok(llm_node_wire::message::Answer::Text(text));
        write(&mut FrameWriter::new(&mut bytes), FromWorker::Answer { id: 3, answer }).unwrap();
        let message: FromWorker = FrameReader::new(&bytes[..]).read().unwrap();
        assert!(matches!(message, FromWorker::Answer { id: 3, answer: Err(_) }));
    }
}
