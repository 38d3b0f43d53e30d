//! How much models are used, so that those go for others that are missed least.

use std::{collections::BTreeMap, time::Duration};

use crate::Moment;

/// What was asked so long ago counts half.
const HALF_LIFE_SECONDS: f64 = 900.0;
/// Whoever is not wanted within so long is not missed.
const HORIZON_SECONDS: f64 = 600.0;
/// Less is nothing: who was used once is forgotten after some two hours.
const LEAST: f64 = 0.004;

/// Of each model that was used lately. Outlives its workers.
#[derive(Clone, Debug, Default)]
pub struct UseRates {
    models: BTreeMap<String, Uses>,
}

#[derive(Clone, Copy, Debug)]
struct Uses {
    /// When it was used first.
    since: Moment,
    /// How often it was used, each time less by half after a half-life.
    count: f64,
    /// As of then.
    at: Moment,
    /// Since when it has nothing to answer; `None`: it has, or somebody waits for it.
    idle_since: Option<Moment>,
    /// How long it has nothing to answer until it is wanted again, of late; `None`: it was not.
    pause: Option<Duration>,
}

impl Uses {
    fn until(self, now: Moment) -> f64 {
        self.count * (-now.since(self.at).as_secs_f64() / HALF_LIFE_SECONDS).exp2()
    }
}

impl UseRates {
    /// It has been asked something, so often.
    pub(crate) fn used(&mut self, now: Moment, model_id: &str, requests: u32) {
        let requests = f64::from(requests);
        if let Some(uses) = self.models.get_mut(model_id) {
            *uses = Uses { count: uses.until(now) + requests, at: now, ..*uses };
            return;
        }
        self.models.retain(|_, uses| uses.until(now) > LEAST);
        let uses = Uses { since: now, count: requests, at: now, idle_since: None, pause: None };
        self.models.insert(model_id.to_owned(), uses);
    }

    /// Somebody wants it, who may have to wait.
    pub(crate) fn wanted(&mut self, now: Moment, model_id: &str) {
        self.asked(now, model_id, None);
    }

    /// It is asked something, and has nothing to answer since then; `None`: it has. Gives its usual pause.
    pub(crate) fn asked(
        &mut self,
        now: Moment,
        model_id: &str,
        idle_since: Option<Moment>,
    ) -> Option<Duration> {
        let uses = self.models.get_mut(model_id)?;
        if let Some(since) = std::mem::replace(&mut uses.idle_since, idle_since) {
            let pause = idle_since.unwrap_or(now).since(since);
            uses.pause = Some(uses.pause.map_or(pause, |before| (before + pause) / 2));
        }
        uses.pause
    }

    /// How long it has nothing to answer, of late, until it is wanted again.
    pub(crate) fn pause(&self, model_id: &str) -> Option<Duration> {
        self.models.get(model_id)?.pause
    }

    /// How likely it is that it is wanted again soon: 0 to 1.
    pub(crate) fn chance(&self, now: Moment, model_id: &str) -> f64 {
        1.0 - (-self.a_second(now, model_id) * HORIZON_SECONDS).exp()
    }

    /// How often a minute it is asked something, of late.
    pub fn a_minute(&self, now: Moment, model_id: &str) -> f64 {
        let Some(uses) = self.models.get(model_id) else { return 0.0 };
        // Nothing can have been asked before the first time: of a young model, only its own time counts.
        let age = now.since(uses.since).as_secs_f64().max(60.0);
        60.0 * self.a_second(now, model_id) / (1.0 - (-age / HALF_LIFE_SECONDS).exp2())
    }

    /// How often a second, as if it had been there for ever.
    fn a_second(&self, now: Moment, model_id: &str) -> f64 {
        let count = self.models.get(model_id).map_or(0.0, |uses| uses.until(now));
        count * std::f64::consts::LN_2 / HALF_LIFE_SECONDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_used_often_and_lately_is_likely_to_be_wanted() {
        let mut rates = UseRates::default();
        let at = |seconds: u64| Moment(Duration::from_secs(seconds));
        for second in 0..20 {
            rates.used(at(60 * second), "often", 1);
        }
        rates.used(at(1200), "once", 1);
        let percent = |now, model: &str| (100.0 * rates.chance(at(now), model)).round() as u32;
        assert_eq!([percent(1200, "often"), percent(1200, "once"), percent(1200, "never")], [100, 37, 0]);
        // Half as many after a quarter of an hour.
        assert_eq!([percent(2100, "often"), percent(2100, "once")], [95, 21]);
        rates.used(at(40_000), "other", 1);
        assert_eq!(rates.models.len(), 1, "who is not used is forgotten");
    }

    #[test]
    fn a_minute_has_as_many_as_came_in_it_however_young_the_model_is() {
        let mut rates = UseRates::default();
        let at = |seconds: u64| Moment(Duration::from_secs(seconds));
        let mut found = Vec::new();
        for minute in 0..120 {
            rates.used(at(100 + 60 * minute), "m", 10);
            if [0, 5, 119].contains(&minute) {
                found.push(rates.a_minute(at(160 + 60 * minute), "m").round() as u32);
            }
        }
        assert_eq!(found, [10, 10, 10]);
        let after = |seconds: u64| rates.a_minute(at(100 + 60 * 120 + seconds), "m").round() as u32;
        assert_eq!([after(900), after(9000)], [5, 0], "half after a quarter of an hour");
        assert!(rates.a_minute(at(1), "other").abs() < f64::EPSILON);
    }

    #[test]
    fn pauses_are_those_until_it_is_wanted_again_loaded_or_not() {
        let mut rates = UseRates::default();
        let at = |seconds: u64| Moment(Duration::from_secs(seconds));
        rates.used(at(1), "m", 1);
        assert_eq!(rates.asked(at(1), "m", Some(at(1))), None);
        assert_eq!(rates.asked(at(5), "m", None), Some(Duration::from_secs(4)));
        assert_eq!(rates.asked(at(6), "m", Some(at(6))), Some(Duration::from_secs(4)), "it answered");
        rates.wanted(at(14), "m");
        rates.wanted(at(20), "m");
        assert_eq!(rates.pause("m"), Some(Duration::from_secs(6)), "half of 4 and 8");
        assert_eq!(rates.pause("other"), None);
    }
}
