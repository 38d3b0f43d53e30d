//! What keeps a model where another needs the room.

use std::time::Duration;

use serde::Serialize;

use crate::{
    Moment,
    life::{ModelLife, Stage},
};

/// Why a model does not go for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptBy {
    /// It is pinned.
    Pin,
    /// It is being loaded, or loaded anew, or gets another context.
    Loading,
    /// It answers.
    Busy,
    /// It has just had a load or an answer: its client may go on.
    Residency,
}

/// The same, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Why.
    pub by: KeptBy,
    /// Its turn ends then: one that answers takes nothing new, and goes once it has answered. `None`: it has none.
    pub until: Option<Moment>,
}

impl Kept {
    /// As it is then; `None`: it may go.
    pub fn at(self, now: Moment) -> Option<Self> {
        let is_over = self.by == KeptBy::Residency && self.until.is_none_or(|until| until <= now);
        (!is_over).then_some(self)
    }

    /// What is left of its turn.
    pub fn left(self, now: Moment) -> Option<Duration> {
        self.until.map(|until| until.since(now)).filter(|left| !left.is_zero())
    }
}

impl ModelLife {
    /// What keeps it, as things are; `None`: it is not there, waits for room itself, or goes already.
    pub(crate) fn kept(&self, longest_wait: Duration) -> Option<Kept> {
        let lead = self.lead().filter(|lead| !matches!(lead.stage, Stage::Waiting { .. }))?;
        let is_idle = self.idle_since().is_some();
        let kept = |by, until| Some(Kept { by, until });
        if !self.is_there() {
            return if is_idle { None } else { kept(KeptBy::Busy, None) };
        }
        if lead.setup.is_pinned() {
            return kept(KeptBy::Pin, None);
        }
        match self.may_go_from(longest_wait) {
            None => kept(KeptBy::Loading, None),
            from if is_idle => kept(KeptBy::Residency, from),
            from => kept(KeptBy::Busy, from),
        }
    }
}
