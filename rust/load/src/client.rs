//! The loop: one thread, all connections, time stamps as bytes arrive.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::SocketAddr,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use crate::{
    exchange::{Exchange, micros},
    http::Response,
    plan::{Limit, Plan},
    prompt::Requests,
    report::{Collected, Goals, Report},
    schedule::{Clock, Schedule},
    sse,
};

/// How often the caller hears of the run.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
const READ_BUFFER: usize = 64 << 10;
const EVENTS_AT_ONCE: usize = 256;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Since the run began.
    pub seconds: f64,
    /// Requests whose answer came to its end.
    pub completed: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Events with text so far, of all requests.
    pub events: u64,
}

/// Why a run has no report.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The operating system's event queue failed.
    #[error("waiting for the network: {0}")]
    Poll(#[from] io::Error),
}

/// Carry out a plan. `progress` is called a few times a second, whenever a signal has come, and at the end.
/// Where it says stop, the report is of what has ended until then.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<Report, LoadError> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(EVENTS_AT_ONCE);
    let start = Instant::now();
    let mut load = Load::new(plan, start);
    let mut next_progress = start + PROGRESS_INTERVAL;
    let stopped = loop {
        let now = Instant::now();
        load.send_what_is_due(now, &poll);
        if load.under_way == 0 && load.schedule.is_over(now) {
            // Nothing is left to be stopped.
            let _ = progress(load.progress(now));
            break None;
        }
        let mut until = next_progress;
        until = load.schedule.next(now, load.under_way).map_or(until, |due| until.min(due));
        until = load.next_deadline().map_or(until, |deadline| until.min(deadline));
        let interrupted = match poll.poll(&mut events, Some(until.saturating_duration_since(Instant::now())))
        {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) => return Err(error.into()),
        };
        for event in &events {
            load.ready(event.token().0, event.is_read_closed() || event.is_error(), &poll);
        }
        let now = Instant::now();
        load.end_what_is_late(now);
        if interrupted || now >= next_progress {
            next_progress = now + PROGRESS_INTERVAL;
            if progress(load.progress(now)).is_break() {
                break Some(now);
            }
        }
    };
    let wall = load.last_end.saturating_duration_since(start).as_secs_f64();
    let window = match plan.limit {
        Limit::Seconds(seconds) => {
            stopped.map_or(seconds, |now| seconds.min(now.saturating_duration_since(start).as_secs_f64()))
        }
        Limit::Requests(_) => wall,
    };
    Ok(load.collected.report(wall, window, stopped.is_some()))
}

struct Load<'a> {
    plan: &'a Plan,
    address: SocketAddr,
    timeout: Option<Duration>,
    start: Instant,
    window_end: Option<Instant>,
    schedule: Schedule,
    requests: Requests<'a>,
    collected: Collected,
    connections: Vec<Option<Connection>>,
    /// Open connections without a request; the last one used is used next.
    idle: Vec<usize>,
    /// Places in `connections` without a connection.
    vacant: Vec<usize>,
    /// When, and the index of the request; in the order of time.
    deadlines: VecDeque<(Instant, u64)>,
    under_way: usize,
    sent: u64,
    events: u64,
    last_end: Instant,
    buffer: Vec<u8>,
    spare_gaps: Vec<Vec<f32>>,
}

struct Connection {
    socket: TcpStream,
    is_connected: bool,
    /// Has it answered a request before this one?
    was_used: bool,
    output: Vec<u8>,
    written: usize,
    response: Response,
    events: sse::Events,
    exchange: Option<Exchange>,
}

/// What became of a connection after it was looked at.
enum Outcome {
    /// It waits for the network.
    Waits,
    /// Its answer is complete.
    Answered,
    /// It cannot be used any more.
    Broken(String),
}

impl<'a> Load<'a> {
    fn new(plan: &'a Plan, start: Instant) -> Self {
        let goals = (plan.ttft_goal_ms.is_some() || plan.itl_goal_ms.is_some()).then(|| Goals {
            ttft: plan.ttft_goal_ms.map_or(f64::INFINITY, |ms| ms * 1e3),
            itl: plan.itl_goal_ms.map_or(f64::INFINITY, |ms| ms * 1e3),
        });
        Self {
            plan,
            address: plan.address,
            timeout: plan.timeout(),
            start,
            window_end: match plan.limit {
                Limit::Seconds(seconds) => Some(start + Duration::from_secs_f64(seconds)),
                Limit::Requests(_) => None,
            },
            schedule: Schedule::new(plan, start),
            requests: Requests::new(plan),
            collected: Collected::new(goals, plan.per_request),
            connections: Vec::new(),
            idle: Vec::new(),
            vacant: Vec::new(),
            deadlines: VecDeque::new(),
            under_way: 0,
            sent: 0,
            events: 0,
            last_end: start,
            buffer: vec![0; READ_BUFFER],
            spare_gaps: Vec::new(),
        }
    }

    fn progress(&self, now: Instant) -> Progress {
        Progress {
            seconds: now.saturating_duration_since(self.start).as_secs_f64(),
            completed: self.collected.completed,
            failed: self.collected.failed,
            events: self.events,
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    fn send_what_is_due(&mut self, now: Instant, poll: &Poll) {
        while let Some(clock) = self.schedule.take(now, self.under_way) {
            let index = self.sent;
            self.sent += 1;
            self.under_way += 1;
            let (place, mut connection) = match self.idle.pop() {
                Some(place) => (place, self.connections[place].take()),
                None => (self.vacancy(), None),
            };
            let mut output =
                connection.as_mut().map(|used| std::mem::take(&mut used.output)).unwrap_or_default();
            output.clear();
            self.requests.write(index, &mut output);
            let sending = Instant::now();
            let start = match clock {
                Clock::Sending => sending,
                Clock::Due(due) => due,
            };
            if let Some(timeout) = self.timeout {
                self.deadlines.push_back((sending + timeout, index));
            }
            let exchange = Exchange::new(index, start, self.spare_gaps.pop().unwrap_or_default());
            match connection {
                Some(mut connection) => {
                    connection.output = output;
                    connection.written = 0;
                    connection.exchange = Some(exchange);
                    self.advance(place, connection, false, poll);
                }
                None => self.open(place, output, exchange, poll),
            }
        }
    }

    /// A new connection for a request.
    fn open(&mut self, place: usize, output: Vec<u8>, exchange: Exchange, poll: &Poll) {
        let opened = TcpStream::connect(self.address).and_then(|mut socket| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut socket, Token(place), interest)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => {
                self.connections[place] = Some(Connection {
                    socket,
                    is_connected: false,
                    was_used: false,
                    output,
                    written: 0,
                    response: Response::new(),
                    events: sse::Events::default(),
                    exchange: Some(exchange),
                });
            }
            Err(error) => {
                self.vacant.push(place);
                self.end(exchange, Some(cannot_connect(&error)));
            }
        }
    }

    fn vacancy(&mut self) -> usize {
        self.vacant.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        })
    }

    /// The network has something to say about a connection. Events may be late: then there is nothing to do.
    fn ready(&mut self, place: usize, closed: bool, poll: &Poll) {
        if let Some(connection) = self.connections[place].take() {
            self.advance(place, connection, closed, poll);
        }
    }

    fn advance(&mut self, place: usize, mut connection: Connection, closed: bool, poll: &Poll) {
        let outcome = connection.advance(&mut self.buffer, closed, self.window_end, &mut self.events);
        match outcome {
            Outcome::Waits => self.connections[place] = Some(connection),
            Outcome::Answered => {
                let status = connection.response.status();
                if let Some(mut exchange) = connection.exchange.take() {
                    let error = exchange.verdict(status);
                    self.end(exchange, error);
                }
                if connection.response.keeps_alive() && connection.written == connection.output.len() {
                    connection.response.reset();
                    connection.events.reset();
                    connection.was_used = true;
                    self.connections[place] = Some(connection);
                    self.idle.push(place);
                } else {
                    self.vacant.push(place);
                }
            }
            Outcome::Broken(reason) => match connection.exchange.take() {
                None => {
                    self.idle.retain(|idle| *idle != place);
                    self.vacant.push(place);
                }
                // The server closed an idle connection at the moment when it was used: not the request's fault.
                Some(exchange) if connection.was_used && !connection.response.has_begun() => {
                    drop(connection.socket);
                    self.open(place, connection.output, exchange, poll);
                }
                Some(exchange) => {
                    self.vacant.push(place);
                    self.end(exchange, Some(reason));
                }
            },
        }
    }

    fn end_what_is_late(&mut self, now: Instant) {
        while let Some((deadline, index)) = self.deadlines.front().copied()
            && deadline <= now
        {
            self.deadlines.pop_front();
            let late = self.connections.iter().position(|connection| {
                let exchange = connection.as_ref().and_then(|connection| connection.exchange.as_ref());
                exchange.is_some_and(|exchange| exchange.index == index)
            });
            if let Some(place) = late
                && let Some(connection) = self.connections[place].take()
                && let Some(exchange) = connection.exchange
            {
                self.vacant.push(place);
                let seconds = self.timeout.unwrap_or_default().as_secs_f64();
                self.end(exchange, Some(format!("no complete answer within {seconds} s")));
            }
        }
    }

    fn end(&mut self, mut exchange: Exchange, error: Option<String>) {
        let now = Instant::now();
        let failed = error.is_some();
        let start = micros(self.start, exchange.start) / 1e6;
        let e2e = micros(exchange.start, now);
        let asked = u64::from(self.plan.output_tokens_of(exchange.index));
        self.collected.add(&mut exchange, asked, start, e2e, error);
        self.spare_gaps.push(exchange.gaps);
        self.under_way -= 1;
        self.last_end = now;
        self.schedule.ended(now, failed, self.under_way);
    }
}

impl Connection {
    /// Send and receive what can be sent and received now. `closed`: the peer has sent its last byte.
    fn advance(
        &mut self,
        buffer: &mut [u8],
        closed: bool,
        window_end: Option<Instant>,
        texts: &mut u64,
    ) -> Outcome {
        if !self.is_connected {
            match self.connect() {
                Ok(true) => {}
                Ok(false) => return Outcome::Waits,
                Err(error) => return Outcome::Broken(cannot_connect(&error)),
            }
        }
        // A server may answer, and close, before it has read everything: what cannot be written is no
        // reason not to read.
        let written = self.write();
        loop {
            let length = match self.socket.read(buffer) {
                Ok(0) => return self.closed(),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return match written {
                        Ok(()) => Outcome::Waits,
                        Err(error) => Outcome::Broken(error.to_string()),
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Outcome::Broken(error.to_string()),
            };
            let Some(exchange) = &mut self.exchange else {
                return Outcome::Broken("the server spoke without being asked".to_owned());
            };
            let now = Instant::now();
            let in_window = window_end.is_none_or(|end| now <= end);
            let events = &mut self.events;
            let fed = self.response.feed(&buffer[..length], |status, bytes| {
                if (200..300).contains(&status) {
                    events.feed(bytes, |data| *texts += u64::from(exchange.event(data, now, in_window)));
                } else {
                    exchange.error_body(bytes);
                }
            });
            if let Err(error) = fed {
                return Outcome::Broken(error.to_string());
            }
            if self.response.is_complete() {
                return Outcome::Answered;
            }
            // A short read has emptied the socket: what comes later is a new event.
            if length < buffer.len() && !closed && written.is_ok() {
                return Outcome::Waits;
            }
        }
    }

    fn connect(&mut self) -> io::Result<bool> {
        if let Some(error) = self.socket.take_error()? {
            return Err(error);
        }
        match self.socket.peer_addr() {
            Ok(_) => {
                self.is_connected = true;
                self.socket.set_nodelay(true)?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        while self.written < self.output.len() {
            match self.socket.write(&self.output[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn closed(&mut self) -> Outcome {
        let answered = self.response.close() || self.exchange.as_ref().is_some_and(Exchange::is_done);
        if answered {
            Outcome::Answered
        } else {
            Outcome::Broken("the server closed the connection".to_owned())
        }
    }
}

fn cannot_connect(error: &io::Error) -> String {
    format!("cannot connect: {error}")
}
