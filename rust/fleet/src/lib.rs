//! The life of models: which are loaded, who waits for them, what they hold, and what happens when a worker
//! ends.
//!
//! Pure. An [`Event`] and the time come in, [`Effect`]s go out; whoever drives a [`Fleet`] carries them out and
//! tells it what came of them. It has no clock, threads, files or sockets, so its rules are tested by the
//! hundred thousand. Requests and their tokens do not pass through it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod back;
mod deadlines;
mod death;
mod decide;
mod effect;
mod ends;
mod enough;
mod event;
mod evict;
mod history;
mod kept;
mod ledger;
mod life;
mod line;
mod loading;
mod moment;
mod orders;
mod overdue;
mod placement;
mod placing;
mod plan;
mod pressure;
mod reading;
mod replace;
mod replicas;
mod reshape;
mod room;
mod shape;
mod size;
mod use_rate;
mod view;
mod wishes;

pub use self::{
    deadlines::Deadlines,
    decide::Fleet,
    effect::{Effect, Incident, IncidentKind, Loaded, Severity, Won},
    event::{
        ChosenEngine, Death, Device, DeviceKind, DeviceState, Event, Files, FoundModel, Look, ProcessUse,
        Reading,
    },
    history::{History, Known, LoadKey, Time},
    kept::{Kept, KeptBy},
    ledger::{Account, Holder, guessed},
    life::{Crash, not_loaded},
    line::Place,
    moment::Moment,
    plan::{Basis, Foreseen, Leaver, Need, Planned, Verdict},
    use_rate::UseRates,
    view::{Changed, FleetView, ModelView, Status, WorkerView},
    wishes::{Setup, Usual},
};

/// Names a worker within the fleet. Never used twice.
pub type WorkerId = u64;

/// Names somebody who waits for what they asked for.
pub type Ticket = u64;
