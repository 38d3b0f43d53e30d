//! What has happened lately, as people are told.

use std::collections::{BTreeMap, VecDeque};

use llm_node_core::error::ErrorCode;
use llm_node_fleet::{Incident, IncidentKind, Severity};
use serde::Serialize;

/// Why a load finds no room.
const REFUSALS: [ErrorCode; 3] = [ErrorCode::OomVram, ErrorCode::OomRam, ErrorCode::ModelLoading];
/// How many incidents are kept.
const MOST_INCIDENTS: usize = 100;

/// What has happened to models: how often of each kind, and the last that people may want to know the reasons of.
#[derive(Clone, Debug)]
pub(super) struct Incidents {
    /// How often each kind has happened.
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// How often loads were refused for want of memory, by the error's code.
    pub(super) refusals: BTreeMap<&'static str, u64>,
    /// How often workers crashed, by their engine's id.
    pub(super) crashes: BTreeMap<String, u64>,
    last: VecDeque<IncidentRow>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct IncidentRow {
    /// Seconds since 1970.
    at: u64,
    severity: &'static str,
    kind: &'static str,
    model_id: String,
    engine: Option<String>,
    code: Option<ErrorCode>,
    call: Option<String>,
    signal: Option<i64>,
    message: String,
    /// The last lines that the worker logged, the newest last, where it ended or its load failed.
    log: Vec<String>,
}

impl Default for Incidents {
    /// With a count of each kind: whoever watches one sees the first time that it happens.
    fn default() -> Self {
        let counts = IncidentKind::ALL.map(|kind| (kind.as_str(), 0)).into();
        let refusals = REFUSALS.map(|code| (code.as_str(), 0)).into();
        Self { counts, refusals, crashes: BTreeMap::new(), last: VecDeque::new() }
    }
}

impl Incidents {
    pub(super) fn add(&mut self, at: u64, incident: Incident, log: Vec<String>) {
        let Incident { severity, kind, model_id, engine, code, death, message } = incident;
        *self.counts.entry(kind.as_str()).or_default() += 1;
        match (kind, code, &engine) {
            (IncidentKind::Refused, Some(code), _) => *self.refusals.entry(code.as_str()).or_default() += 1,
            (IncidentKind::Crashed, _, Some(engine)) => {
                *self.crashes.entry(engine.clone()).or_default() += 1;
            }
            _ => {}
        }
        if severity == Severity::Info && kind != IncidentKind::Evicted {
            return;
        }
        let (call, signal) = death.map(|death| (death.call, death.signal)).unzip();
        if self.last.len() == MOST_INCIDENTS {
            self.last.pop_front();
        }
        self.last.push_back(IncidentRow {
            at,
            severity: severity.as_str(),
            kind: kind.as_str(),
            model_id,
            engine,
            code,
            call,
            signal: signal.flatten(),
            message,
            log,
        });
    }

    /// The last that went wrong, and what made room, oldest first.
    pub(super) fn last(&self) -> &VecDeque<IncidentRow> {
        &self.last
    }
}
