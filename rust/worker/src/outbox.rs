//! The way of messages to the node.
//!
//! The scheduler must never wait for the node. What the socket takes at once is sent at once; what it
//! does not is appended to a queue, for a thread that may wait. What the scheduler tells at once is one
//! frame; while the node is slow, what waits becomes one frame. Log messages are dropped when too many
//! wait. If the node stops reading altogether, the queue is closed rather
//! than grown without end, and the worker ends.

use std::{
    collections::VecDeque,
    io::Write,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use llm_node_core::event::Event;
use llm_node_wire::{
    frame::{self, FrameError, FrameWriter},
    message::{FromWorker, RequestId},
};

use crate::sending::SendNow;

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

struct Queue {
    direct: Box<dyn SendNow + Send>,
    /// Of the last frame that was sent directly, to be used again.
    frame: Vec<u8>,
    messages: VecDeque<Waiting>,
    logs: usize,
    dropped_logs: u64,
    events: usize,
    writing: bool,
    closed: bool,
}

enum Sent {
    Whole,
    /// What is left of it is in the queue.
    InPart,
    Not,
}

enum Waiting {
    Message(FromWorker),
    /// The end of a frame whose beginning is sent.
    Rest(Vec<u8>),
}

impl Outbox {
    /// Starts the thread that writes. It ends when the connection does. `direct`: the same socket.
    pub(crate) fn start<W: Write + Send + 'static>(
        socket: W,
        direct: impl SendNow + Send + 'static,
        overflow: fn() -> !,
    ) -> std::io::Result<Self> {
        let outbox = Self(Arc::new(Shared {
            queue: Mutex::new(Queue {
                direct: Box::new(direct),
                frame: Vec::new(),
                messages: VecDeque::new(),
                logs: 0,
                dropped_logs: 0,
                events: 0,
                writing: false,
                closed: false,
            }),
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
        match queue.send_now(&message) {
            Sent::Whole => return,
            Sent::InPart => {
                drop(queue);
                self.0.filled.notify_one();
                return;
            }
            Sent::Not => {}
        }
        match message {
            FromWorker::Step(events) => queue.push_events(events),
            FromWorker::Log { .. } if queue.logs >= LOG_BACKLOG => {
                queue.dropped_logs += 1;
                return;
            }
            message => {
                queue.logs += usize::from(matches!(message, FromWorker::Log { .. }));
                queue.messages.push_back(Waiting::Message(message));
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
    /// Sends a message where nothing goes before it. An error is for the thread to find out.
    fn send_now(&mut self, message: &FromWorker) -> Sent {
        if self.writing || !self.messages.is_empty() {
            return Sent::Not;
        }
        let Ok(frame) = frame::encode(message, mem::take(&mut self.frame)) else { return Sent::Not };
        self.frame = frame;
        match self.direct.send_now(&self.frame) {
            Ok(sent) if sent == self.frame.len() => Sent::Whole,
            Ok(sent) if sent > 0 => {
                self.messages.push_back(Waiting::Rest(self.frame.split_off(sent)));
                Sent::InPart
            }
            _ => Sent::Not,
        }
    }

    fn push_events(&mut self, mut events: Vec<(RequestId, Event)>) {
        self.events += events.len();
        match self.messages.back_mut() {
            Some(Waiting::Message(FromWorker::Step(waiting)))
                if waiting.len() + events.len() <= MERGE_EVENTS =>
            {
                waiting.append(&mut events);
            }
            _ => self.messages.push_back(Waiting::Message(FromWorker::Step(events))),
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
            let messages = mem::take(&mut queue.messages);
            let dropped = mem::take(&mut queue.dropped_logs);
            queue.logs = 0;
            queue.events = 0;
            queue.writing = true;
            drop(queue);

            let note = (dropped > 0).then(|| FromWorker::Log {
                severity: 2,
                message: format!("{dropped} log messages were dropped: too many at once"),
            });
            for waiting in messages.into_iter().chain(note.map(Waiting::Message)) {
                let written = match waiting {
                    Waiting::Message(message) => write(writer, message),
                    Waiting::Rest(rest) => writer.resume(&rest),
                };
                if written.is_err() {
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
    use std::{io, sync::mpsc, time::Duration};

    use llm_node_core::event::Piece;
    use llm_node_wire::frame::FrameReader;

    use super::*;

    fn no_overflow() -> ! {
        panic!("overflow")
    }

    fn piece(text: &str) -> Event {
        Event::Piece(Piece { text: text.into(), ..Piece::default() })
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

    /// A socket without room.
    struct Full;

    impl SendNow for Full {
        fn send_now(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// One wire, with room for now more, now fewer bytes at once.
    #[derive(Clone, Default)]
    struct Narrow {
        wire: Arc<Mutex<Vec<u8>>>,
        calls: usize,
    }

    impl Narrow {
        fn take(&self, bytes: &[u8]) -> usize {
            self.wire.lock().unwrap().extend_from_slice(bytes);
            bytes.len()
        }
    }

    impl SendNow for Narrow {
        fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            match self.calls % 4 {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                n => Ok(self.take(&bytes[..bytes.len() * n / 3])),
            }
        }
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(self.take(bytes))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_goes_directly_and_what_waits_keep_their_order() {
        let wire = Narrow::default();
        let outbox = Outbox::start(wire.clone(), wire.clone(), no_overflow).unwrap();
        let all = 0..2000;
        for n in all.clone() {
            outbox.send(FromWorker::Step(vec![(n, piece("some text"))]));
            if n % 7 == 0 {
                outbox.flush();
            }
        }
        outbox.flush();
        let bytes = wire.wire.lock().unwrap().clone();
        let mut reader = FrameReader::new(&bytes[..]);
        let mut ids = Vec::new();
        while let Ok(FromWorker::Step(events)) = reader.read() {
            ids.extend(events.into_iter().map(|(id, _)| id));
        }
        assert_eq!(ids, all.collect::<Vec<_>>());
    }

    fn gated() -> (Outbox, mpsc::Sender<()>, impl FnMut() -> FromWorker) {
        let (opener, open) = mpsc::channel();
        let (out, written) = mpsc::channel();
        let outbox = Outbox::start(Gate { open, out }, Full, no_overflow).unwrap();
        let next = move || {
            let frame = written.recv_timeout(Duration::from_mins(1)).expect("the outbox writes on");
            FrameReader::new(&frame[..]).read().unwrap()
        };
        (outbox, opener, next)
    }

    /// Until the thread that writes has taken what waits, and hangs in the gate.
    fn wait_until_taken(outbox: &Outbox) {
        while !outbox.0.lock().messages.is_empty() {
            thread::yield_now();
        }
    }

    #[test]
    fn steps_that_wait_become_one_frame_and_keep_their_order() {
        let (outbox, opener, mut next) = gated();
        outbox.send(FromWorker::Drained);
        wait_until_taken(&outbox);
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
        assert_eq!(frames, 1);
    }

    #[test]
    fn a_flood_of_log_messages_is_cut_and_said() {
        let (outbox, opener, mut next) = gated();
        outbox.send(FromWorker::Drained);
        // Else the thread may take some of them meanwhile, and none need be dropped.
        wait_until_taken(&outbox);
        for n in 0..LOG_BACKLOG + 500 {
            outbox.send(FromWorker::Log { severity: 0, message: n.to_string() });
        }
        for _ in 0..LOG_BACKLOG + 2 {
            opener.send(()).unwrap();
        }
        assert_eq!(next(), FromWorker::Drained);
        for n in 0..LOG_BACKLOG {
            assert_eq!(next(), FromWorker::Log { severity: 0, message: n.to_string() });
        }
        let FromWorker::Log { message, .. } = next() else { panic!("not a log message") };
        assert!(message.starts_with("500 log messages were dropped"), "{message}");
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
        let text = "x".repeat(frame::MAX_FRAME);
        let answer = Ok(llm_node_wire::message::Answer::Text(text));
        write(&mut FrameWriter::new(&mut bytes), FromWorker::Answer { id: 3, answer }).unwrap();
        let message: FromWorker = FrameReader::new(&bytes[..]).read().unwrap();
        assert!(matches!(message, FromWorker::Answer { id: 3, answer: Err(_) }));
    }
}
