//! The scheduler's thread: takes what has come, runs one step, tells what it brought. It sleeps when
//! there is nothing to do.
//!
//! Tokens that follow each other more closely than anybody could see are told together. Each telling wakes
//! two threads that sleep, the node's and the client's, which takes 25 to 40 us of processor time, whatever
//! there is to tell: as much as a tenth of what a very small model takes for a token.

use std::{
    collections::HashSet,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    event::Event,
    request::ValidRequest,
    session::{Occupancy, Session},
};
use llm_node_host::Context;
use llm_node_wire::message::RequestId;

use super::{lost, stopped};
use crate::report::{self, Report, Reporter};

/// For how long a piece of an answer may wait for the next ones. A step that takes more than half of it is
/// always told by itself.
const TOGETHER: Duration = Duration::from_millis(4);
/// While there is work, what is known of how busy the model is may be so old.
const LOOK: Duration = Duration::from_millis(100);
/// Most pieces that wait.
const MOST_TOGETHER: usize = 256;

pub(crate) struct BatchSource {
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    occupancy: Arc<Mutex<Occupancy>>,
    ended: Ended,
}

/// Why there are no more steps, from when the thread ends. Whoever sends a request holds it meanwhile: what was
/// sent before is still read, and nothing is sent afterwards.
#[derive(Clone, Default)]
struct Ended(Arc<Mutex<Option<Fault>>>);

impl Ended {
    fn lock(&self) -> MutexGuard<'_, Option<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has a session's context made anew, and tells what came of it.
pub(crate) type Reshape = Box<dyn FnOnce(&mut Session<Context>, &mut Vec<(RequestId, Event)>) + Send>;

enum Command {
    Submit(RequestId, Box<ValidRequest>),
    Cancel(RequestId),
    /// For engine calls that must not run during a step.
    Between(Box<dyn FnOnce() + Send>),
    Reshape(Reshape),
    Drain,
    Stop,
}

impl BatchSource {
    pub(crate) fn start(session: Session<Context>, report: Reporter) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let occupancy = Arc::new(Mutex::new(session.occupancy()));
        let shown = Arc::clone(&occupancy);
        let ended = Ended::default();
        let why = ended.clone();
        let thread = thread::Builder::new().name("scheduler".into()).spawn(move || {
            // Tokens do not wait behind a load on the same core.
            llm_node_cpu::ask_for_short_slices();
            let mut scheduler = Scheduler {
                session,
                live: HashSet::new(),
                draining: false,
                drained: false,
                told: Instant::now(),
                occupancy: shown,
                looked: Instant::now(),
                report,
            };
            let fault = scheduler.run(&inbox);
            *why.lock() = Some(fault.clone());
            scheduler.stop_listening(&inbox, &fault);
        })?;
        Ok(Self { commands, thread: Mutex::new(Some(thread)), occupancy, ended })
    }

    /// How busy it was a moment ago.
    pub(crate) fn occupancy(&self) -> Occupancy {
        *self.occupancy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn submit(&self, id: RequestId, request: Box<ValidRequest>, report: &Reporter) {
        let ended = self.ended.lock();
        let refusal = match &*ended {
            Some(fault) => Some(fault.clone()),
            None => self.commands.send(Command::Submit(id, request)).is_err().then(stopped),
        };
        drop(ended);
        if let Some(fault) = refusal {
            report.event(id, Event::Failed(fault));
        }
    }

    pub(crate) fn cancel(&self, id: RequestId) {
        // A thread that has ended has ended the request as well.
        let _ = self.commands.send(Command::Cancel(id));
    }

    /// Runs `work` on the scheduler's thread between two steps; drops it if there are no more steps.
    pub(crate) fn between(&self, work: Box<dyn FnOnce() + Send>) {
        let _ = self.commands.send(Command::Between(work));
    }

    /// Between two steps; drops it if there are no more.
    pub(crate) fn reshape(&self, reshape: Reshape) {
        let _ = self.commands.send(Command::Reshape(reshape));
    }

    pub(crate) fn drain(&self) {
        let _ = self.commands.send(Command::Drain);
    }

    /// Ends all requests after the step under way, and waits for that.
    pub(crate) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread catches its panics; there is nothing else to learn from it.
            let _ = thread.join();
        }
    }
}

impl Drop for BatchSource {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Scheduler {
    session: Session<Context>,
    /// Requests that have not had their ending.
    live: HashSet<RequestId>,
    draining: bool,
    drained: bool,
    /// When something was last told.
    told: Instant,
    occupancy: Arc<Mutex<Occupancy>>,
    /// When it was looked at last.
    looked: Instant,
    report: Reporter,
}

impl Scheduler {
    /// Until it is told to stop, or the engine is of no more use. Gives what later requests are told.
    fn run(&mut self, inbox: &Receiver<Command>) -> Fault {
        let looped = catch_unwind(AssertUnwindSafe(|| self.step_until_stopped(inbox)));
        let lost = match looped {
            Ok(lost) => lost,
            Err(_) => {
                Some(Fault::new(ErrorCode::Internal, "the scheduler panicked; this is a defect of llm-node"))
            }
        };
        let fault = lost.clone().unwrap_or_else(stopped);
        self.end_all(&fault);
        if let Some(lost) = lost {
            self.report.tell(Report::Lost(lost));
        }
        fault
    }

    /// Gives the fault after which the engine is of no more use; `None`: it was told to stop.
    fn step_until_stopped(&mut self, inbox: &Receiver<Command>) -> Option<Fault> {
        let mut events = Vec::new();
        // How long the last step took, if there were answers in it and nothing else.
        let mut took = None;
        loop {
            if self.session.is_idle() {
                self.tell(&mut events);
                if self.draining && !self.drained {
                    self.drained = true;
                    self.report.tell(Report::Drained);
                }
                self.look(Instant::now());
                match inbox.recv() {
                    Ok(Command::Stop) | Err(_) => return None,
                    Ok(command) => self.take(command, &mut events),
                }
            }
            loop {
                match inbox.try_recv() {
                    Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                        self.tell(&mut events);
                        return None;
                    }
                    Ok(command) => self.take(command, &mut events),
                    Err(TryRecvError::Empty) => break,
                }
            }
            let only_answers = self.session.has_only_answers();
            if !only_answers || !took.is_some_and(|took| self.may_wait(&events, took)) {
                self.tell(&mut events);
            }
            // Also when nothing is left to do: freeing a cancelled sequence may have ended the engine,
            // and it is the step that says so.
            let began = Instant::now();
            if began.duration_since(self.looked) >= LOOK {
                self.look(began);
            }
            let stepped = self.session.step(&mut events);
            took = only_answers.then(|| began.elapsed());
            if let Err(fault) = stepped {
                self.tell(&mut events);
                return Some(lost(fault));
            }
        }
    }

    fn look(&mut self, now: Instant) {
        self.looked = now;
        *self.occupancy.lock().unwrap_or_else(PoisonError::into_inner) = self.session.occupancy();
    }

    /// May these events wait for a step with answers alone, which takes about so long?
    fn may_wait(&self, events: &[(RequestId, Event)], step: Duration) -> bool {
        self.told.elapsed() + step <= TOGETHER
            && events.len() <= MOST_TOGETHER
            && events.iter().all(|(_, event)| matches!(event, Event::Piece(_)))
    }

    fn take(&mut self, command: Command, events: &mut Vec<(RequestId, Event)>) {
        match command {
            Command::Submit(id, _) if self.draining => events.push((id, Event::Failed(stopped()))),
            Command::Submit(id, request) => match self.session.submit(id, *request) {
                Ok(()) => {
                    self.live.insert(id);
                }
                Err(fault) => events.push((id, Event::Failed(fault))),
            },
            Command::Cancel(id) => self.session.cancel(id, events),
            Command::Between(work) => {
                self.tell(events);
                work();
            }
            Command::Reshape(reshape) => {
                self.tell(events);
                reshape(&mut self.session, events);
            }
            Command::Drain => self.draining = true,
            // The callers have looked for it.
            Command::Stop => {}
        }
    }

    fn tell(&mut self, events: &mut Vec<(RequestId, Event)>) {
        if events.is_empty() {
            return;
        }
        for (id, event) in &*events {
            if matches!(event, Event::Finished { .. } | Event::Failed(_)) {
                self.live.remove(id);
            }
            if let Event::Failed(fault) = event {
                report::note(fault);
            }
        }
        self.report.events(std::mem::take(events));
        self.told = Instant::now();
    }

    fn end_all(&mut self, fault: &Fault) {
        let failed = |id| (id, Event::Failed(fault.clone()));
        let mut events: Vec<_> = self.live.drain().map(failed).collect();
        events.sort_by_key(|(id, _)| *id);
        self.report.events(events);
    }

    /// What was sent before it [`Ended`] gets its ending too.
    fn stop_listening(&self, inbox: &Receiver<Command>, fault: &Fault) {
        let late = inbox.try_iter().filter_map(|command| match command {
            Command::Submit(id, _) => Some((id, Event::Failed(fault.clone()))),
            _ => None,
        });
        self.report.events(late.collect());
    }
}
