//! Limits and steps of numbers.

use serde_json::{Map, Value};

use super::{Kept, Keyword, ONE, Walk};
use crate::constrain::limits;

/// So many of the last of so many decimals: 0.25 is 25 of 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Steps {
    count: u64,
    decimals: usize,
}

impl Steps {
    /// Of whole numbers.
    pub(super) const ONES: Self = Self { count: 1, decimals: 0 };

    fn of(step: f64) -> Option<Self> {
        let text = step.to_string();
        let decimals = text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        Some(Self { count: text.replace('.', "").parse().ok()?, decimals })
    }

    /// The least that is a whole number of both; `None`: it is beyond counting.
    fn and(self, other: Self) -> Option<Self> {
        let decimals = self.decimals.max(other.decimals);
        let [one, two] = [self, other].map(|it| {
            let scale = u32::try_from(decimals - it.decimals).ok()?;
            it.count.checked_mul(10_u64.checked_pow(scale)?)
        });
        let (one, two) = (one?, two?);
        let (mut common, mut rest) = (one, two);
        while rest > 0 {
            (common, rest) = (rest, common % rest);
        }
        Some(Self { count: (one / common).checked_mul(two)?, decimals })
    }
}

/// The next number beyond an exclusive limit that is whole, as a limit: a number with decimals, which llguidance
/// leaves out where it should. Of whole numbers it means the same. `None`: there is none so near.
fn just_beyond(limit: f64, next: fn(f64) -> f64) -> Option<f64> {
    // The numbers next to zero have hundreds of decimals.
    const NEXT_TO_ZERO: f64 = 1e-15;
    if limit.fract() != 0.0 {
        return None;
    }
    let beyond = if limit == 0.0 { NEXT_TO_ZERO.copysign(next(0.0)) } else { next(limit) };
    (beyond.fract() != 0.0).then_some(beyond)
}

impl Walk<'_> {
    pub(super) fn number(
        &mut self,
        it: Keyword<'_>,
        map: &Map<String, Value>,
        out: &mut Map<String, Value>,
    ) -> Kept {
        let Keyword { key, value, place } = it;
        // Draft 4 had a boolean beside the limit.
        let limit = match (key, value) {
            ("exclusiveMinimum", Value::Bool(is)) => (*is).then(|| map.get("minimum")),
            ("exclusiveMaximum", Value::Bool(is)) => (*is).then(|| map.get("maximum")),
            _ => Some(Some(value)),
        };
        let Some(Some(limit)) = limit else { return Ok(ONE) };
        // Of whole numbers, llguidance counts in 64 bits, whatever a limit is.
        let is_near = |it: f64| it.abs() <= limits::MAX_EXACT as f64 && (key != "multipleOf" || it > 0.0);
        let Some(number) = limit.as_f64().filter(|it| is_near(*it)) else { return self.leave_out(it) };
        if key == "multipleOf" && !self.counts_in(number, place.shared) {
            return self.leave_out(it);
        }
        let limit = match key {
            "exclusiveMinimum" => just_beyond(number, f64::next_up).map_or(limit.clone(), Value::from),
            "exclusiveMaximum" => just_beyond(number, f64::next_down).map_or(limit.clone(), Value::from),
            _ => limit.clone(),
        };
        out.insert(key.to_owned(), limit);
        Ok(ONE)
    }

    /// May numbers be counted in such steps? Whether there is one is found by counting, up to what they have in
    /// common with the steps of other schemas that hold at once.
    fn counts_in(&mut self, step: f64, shared: bool) -> bool {
        let Some(step) = Steps::of(step) else { return false };
        let all = if shared { self.steps.and(step) } else { Some(step) };
        let Some(all) = all.filter(|it| it.count <= limits::MAX_STEPS) else { return false };
        if shared {
            self.steps = all;
        }
        true
    }
}

/// Is every number in it the same in double precision?
pub(super) fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(it) => {
            it.as_i64().map(i64::unsigned_abs).or(it.as_u64()).is_none_or(|it| it <= limits::MAX_EXACT)
        }
        Value::Array(all) => all.iter().all(is_exact),
        Value::Object(all) => all.values().all(is_exact),
        _ => true,
    }
}
