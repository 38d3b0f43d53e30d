//! What loads came to before: how much they took, and how long.
//!
//! A load like an earlier one needs no estimate, and an engine that estimates too little for one model is not
//! believed for the next. Nothing that was learned makes an estimate smaller. Loads beside which something else
//! moved are not told of here.

use std::collections::BTreeMap;

use llm_node_core::{
    memory::{Figures, MemoryUse},
    shape::Shape,
};
use serde::{Deserialize, Serialize};

use crate::{event::HOST, ledger::goes_unsaid};

/// Most loads that are remembered: whichever was not loaded for longest is forgotten.
const MOST_RECORDS: usize = 512;
/// Of each of them, the last few times.
const MOST_TIMES: usize = 3;
/// What is learned of an engine counts for its other models up to here.
const MOST_CORRECTED: u64 = 1 << 30;

/// What tells loads apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LoadKey {
    /// Engine and device.
    pub build: String,
    /// Files of the model, options, and whatever else decides what is taken.
    pub model: String,
}

/// All loads that are remembered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    records: BTreeMap<LoadKey, Record>,
}

/// How it stands in a file.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    records: Vec<(LoadKey, Record)>,
}

const VERSION: u32 = 1;

/// A load, and what it came to the last few times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    figures: Figures,
    /// The latest is the last.
    times: Vec<Time>,
}

/// What a load came to once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// When, in seconds since 1970.
    pub date: u64,
    /// How long it took, without what it waited for room.
    pub seconds: f64,
    /// The size of its context, where that was chosen.
    pub shape: Option<Shape>,
    /// What its engine said that it would take, whenever it was asked last, or what stood for that.
    pub estimated: Vec<MemoryUse>,
    /// What it took.
    pub measured: Vec<MemoryUse>,
}

/// What is known of a load before it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// When it was measured last, in seconds since 1970.
    pub date: u64,
    /// The size of its context the last time, where that was chosen.
    pub shape: Option<Shape>,
    /// What it will take with that.
    pub uses: Vec<MemoryUse>,
    /// What its engine said that it would.
    pub estimated: Vec<MemoryUse>,
    /// What this comes of.
    pub figures: Figures,
    /// How long it will take.
    pub seconds: f64,
}

impl History {
    /// What such a load came to before; `None`: there was none.
    pub fn known(&self, key: &LoadKey) -> Option<Known> {
        let record = self.records.get(key)?;
        let mut seconds: Vec<f64> = record.times.iter().map(|time| time.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let shape = record.times.last()?.shape;
        let alike = record.times.iter().filter(|time| time.shape == shape);
        Some(Known {
            date: record.times.last()?.date,
            shape,
            uses: most(alike.map(needed))?,
            estimated: record.times.last()?.estimated.clone(),
            figures: record.figures.clone(),
            seconds: *seconds.get(seconds.len() / 2)?,
        })
    }

    /// An estimate, with what the same load took beyond its own with another context, or loads of the same engine on the
    /// same device beyond theirs.
    pub fn corrected(&self, key: &LoadKey, mut uses: Vec<MemoryUse>) -> Vec<MemoryUse> {
        let of_build = || self.records.iter().filter(|(other, _)| other.build == key.build);
        let anywhere = anywhere(uses.clone());
        for (use_, anywhere) in uses.iter_mut().zip(&anywhere) {
            let beyond = |time: &Time| {
                let total = |uses: &[MemoryUse]| {
                    uses.iter().find(|it| is_same_device(it, anywhere)).map(MemoryUse::total)
                };
                Some((
                    total(&time.estimated)?,
                    total(&time.measured)?.saturating_sub(total(&time.estimated)?),
                ))
            };
            let own_beyond = |time: &Time| {
                let (estimated, more) = beyond(time)?;
                Some(if goes_unsaid(estimated, estimated + more) { 0 } else { more })
            };
            let own = self.records.get(key).and_then(|it| it.times.iter().filter_map(own_beyond).max());
            let more = own.unwrap_or_else(|| {
                let mut all: Vec<u64> =
                    of_build().filter_map(|(_, record)| Some(beyond(record.times.last()?)?.1)).collect();
                all.sort_unstable();
                all.get(all.len() / 2).copied().unwrap_or(0).min(MOST_CORRECTED)
            });
            use_.compute = use_.compute.saturating_add(more);
        }
        uses
    }

    /// Remembers one more load.
    pub fn learn(&mut self, key: LoadKey, figures: Figures, time: Time) {
        let record = self.records.entry(key).or_default();
        record.figures = Figures { one: anywhere(figures.one), draft: anywhere(figures.draft) };
        let (estimated, measured) = (anywhere(time.estimated), anywhere(time.measured));
        record.add(Time { estimated, measured, ..time });
        self.forget();
    }

    /// Takes over what somebody else has remembered meanwhile.
    pub fn merge(&mut self, other: Self) {
        for (key, theirs) in other.records {
            let ours = self.records.entry(key).or_default();
            if theirs.date() > ours.date() {
                ours.figures = theirs.figures;
            }
            for time in theirs.times {
                if !ours.times.contains(&time) {
                    ours.add(time);
                }
            }
        }
        self.forget();
    }

    /// As a file has it.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let records = self.records.iter().map(|(key, record)| (key.clone(), record.clone())).collect();
        serde_json::to_string(&Written { version: VERSION, records })
    }

    /// What a file has; an error: it is not of this version, or no such file at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        let written: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if written.version != VERSION {
            return Err(format!("it is of version {}, not {VERSION}", written.version));
        }
        let mut history = Self { records: written.records.into_iter().collect() };
        history.forget();
        Ok(history)
    }

    fn forget(&mut self) {
        while self.records.len() > MOST_RECORDS {
            let oldest = self.records.iter().min_by_key(|(_, record)| record.date());
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.records.remove(&key);
        }
    }
}

impl Record {
    fn date(&self) -> u64 {
        self.times.last().map_or(0, |time| time.date)
    }

    fn add(&mut self, time: Time) {
        self.times.push(time);
        self.times.sort_by_key(|time| time.date);
        let too_many = self.times.len().saturating_sub(MOST_TIMES);
        self.times.drain(..too_many);
    }
}

/// A little more than it took, but no more than what its engine said where that was enough, or nearly: what had room
/// once has it again.
fn needed(time: &Time) -> Vec<MemoryUse> {
    let needed = |use_: &MemoryUse| {
        let total = use_.total();
        let said = time.estimated.iter().find(|it| is_same_device(it, use_));
        let estimated = said.map_or(0, MemoryUse::total);
        if let Some(said) = said
            && total > estimated
            && goes_unsaid(estimated, total)
        {
            return said.clone();
        }
        let more = estimated.checked_sub(total).map_or(total / 100, |spare| spare.min(total / 100));
        MemoryUse { compute: use_.compute.saturating_add(more), ..use_.clone() }
    };
    time.measured.iter().map(needed).collect()
}

/// Of each device the largest.
fn most(all: impl Iterator<Item = Vec<MemoryUse>>) -> Option<Vec<MemoryUse>> {
    all.reduce(|mut most, uses| {
        for use_ in uses {
            match most.iter_mut().find(|it| is_same_device(it, &use_)) {
                Some(largest) if largest.total() < use_.total() => *largest = use_,
                Some(_) => {}
                None => most.push(use_),
            }
        }
        most
    })
}

pub(crate) fn is_same_device(one: &MemoryUse, other: &MemoryUse) -> bool {
    let is_same = match (&one.id, &other.id) {
        (Some(one), Some(other)) => one == other,
        _ => (&one.device, &one.bus_id) == (&other.device, &other.bus_id),
    };
    one.is_host == other.is_host && is_same
}

/// The same on whichever GPUs: the first is `gpu0`, the second `gpu1`.
fn anywhere(mut uses: Vec<MemoryUse>) -> Vec<MemoryUse> {
    let mut gpus: Vec<MemoryUse> = Vec::new();
    for use_ in &mut uses {
        let device = if use_.is_host {
            HOST.to_owned()
        } else {
            let known = gpus.iter().position(|gpu| is_same_device(gpu, use_));
            let number = known.unwrap_or(gpus.len());
            if known.is_none() {
                gpus.push(use_.clone());
            }
            format!("gpu{number}")
        };
        (use_.device, use_.id, use_.bus_id) = (device, None, None);
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn key(build: &str, model: &str) -> LoadKey {
        LoadKey { build: build.to_owned(), model: model.to_owned() }
    }

    fn use_of(mib: u64) -> Vec<MemoryUse> {
        vec![MemoryUse { device: "CUDA0".into(), weights: mib * MIB, ..MemoryUse::default() }]
    }

    fn time(date: u64, estimated: u64, measured: u64) -> Time {
        let seconds = date as f64 / 10.0;
        Time { date, seconds, shape: None, estimated: use_of(estimated), measured: use_of(measured) }
    }

    fn known(history: &History, model: &str) -> Option<(u64, f64)> {
        let known = history.known(&key("e", model))?;
        Some((known.uses.iter().map(MemoryUse::total).sum(), known.seconds))
    }

    fn history(times: &[(&str, Time)]) -> History {
        let mut history = History::default();
        for (model, time) in times {
            history.learn(key("e", model), Figures::default(), time.clone());
        }
        history
    }

    #[test]
    fn the_same_again_needs_the_most_that_it_took_lately() {
        let mut history = history(&[("a", time(1, 100, 400)), ("a", time(2, 100, 200))]);
        assert_eq!(known(&history, "a"), Some((404 * MIB, 0.2)));
        assert_eq!(known(&history, "b"), None);
        for date in [3, 5, 4] {
            history.learn(key("e", "a"), Figures::default(), time(date, 100, 200 + date));
        }
        let most = 205 * MIB + 205 * MIB / 100;
        assert_eq!(known(&history, "a"), Some((most, 0.4)), "the last three count");
    }

    #[test]
    fn what_was_enough_is_enough_again() {
        assert_eq!(known(&history(&[("a", time(1, 300, 300))]), "a"), Some((300 * MIB, 0.1)));
        assert_eq!(known(&history(&[("a", time(1, 301, 300))]), "a"), Some((301 * MIB, 0.1)));
        assert_eq!(known(&history(&[("a", time(1, 400, 300))]), "a"), Some((303 * MIB, 0.1)));
        assert_eq!(
            known(&history(&[("a", time(1, 300, 364))]), "a"),
            Some((300 * MIB, 0.1)),
            "without a word"
        );
        assert_eq!(known(&history(&[("a", time(1, 300, 400))]), "a"), Some((404 * MIB, 0.1)));
    }

    #[test]
    fn other_models_of_an_engine_get_what_it_left_out_and_never_less() {
        let corrected = |history: &History, build| {
            history.corrected(&key(build, "new"), use_of(1000)).iter().map(MemoryUse::total).sum::<u64>()
                / MIB
        };
        let beyond = history(&[("a", time(1, 100, 150)), ("b", time(1, 100, 120)), ("c", time(1, 100, 500))]);
        assert_eq!((corrected(&beyond, "e"), corrected(&beyond, "other")), (1050, 1000));
        assert_eq!(corrected(&history(&[("a", time(1, 900, 100))]), "e"), 1000);
        assert_eq!(corrected(&history(&[("a", time(1, 100, 9000))]), "e"), 2024);
        let again = beyond.corrected(&key("e", "c"), use_of(1000));
        assert_eq!(again[0].total(), 1400 * MIB, "the same with another context");
        assert_eq!(beyond.corrected(&key("e", "b"), use_of(1000))[0].total(), 1000 * MIB, "without a word");
        let mut elsewhere = use_of(10);
        elsewhere[0].is_host = true;
        assert_eq!(beyond.corrected(&key("e", "new"), elsewhere.clone()), elsewhere);
        let mut other = use_of(10);
        other[0].device = "CUDA1".into();
        assert_eq!(beyond.corrected(&key("e", "new"), other)[0].total(), 60 * MIB, "whichever GPU it is");
    }

    #[test]
    fn two_nodes_remember_what_both_have_seen() {
        let mut ours = history(&[("a", time(1, 100, 100)), ("a", time(3, 100, 230))]);
        let theirs = history(&[("a", time(2, 100, 220)), ("a", time(4, 100, 210)), ("b", time(1, 10, 10))]);
        ours.merge(theirs.clone());
        let merged = ours.clone();
        assert_eq!(known(&ours, "a").map(|(bytes, _)| bytes), Some(230 * MIB + 230 * MIB / 100));
        assert_eq!(known(&ours, "b"), Some((10 * MIB, 0.1)));
        ours.merge(theirs);
        assert_eq!(ours, merged, "nothing is remembered twice");
        assert_eq!(History::parse(&merged.to_json().unwrap()).unwrap(), merged);
        for broken in ["", "{", "[]", r#"{"version": 2, "records": []}"#] {
            assert!(History::parse(broken).is_err());
        }
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut history = History::default();
        for date in 0..600 {
            history.learn(key("e", &date.to_string()), Figures::default(), time(date, 1, 1));
        }
        assert_eq!(history.records.len(), MOST_RECORDS);
        assert_eq!((known(&history, "87").is_none(), known(&history, "88").is_some()), (true, true));
        assert!(history.to_json().unwrap().len() < 1 << 20);
    }
}
