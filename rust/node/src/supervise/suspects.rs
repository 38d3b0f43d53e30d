//! Requests that were under way when their engine died, so that one that kills it is not run again and again.
//!
//! Pure: time comes in. A request is known by what it asks for, its seed apart. One that was suspected twice
//! within [`PARDON`] is refused; one that was served well meanwhile is no suspect any more.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher},
    io,
    time::{Duration, Instant},
};

use serde::Serialize;

/// A request is refused that was suspected so often.
pub(super) const REFUSED_AFTER: u32 = 2;
/// For so long after the last time.
const PARDON: Duration = Duration::from_mins(5);
/// Most that are kept; the oldest go first.
const MOST_SUSPECTS: usize = 4096;

/// What a request or a question asks of which model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    pub(super) fn of(model_id: &str, asked: &impl Serialize) -> Self {
        let mut hash = Hash(DefaultHasher::new());
        hash.0.write(model_id.as_bytes());
        // A hash takes everything, and what does not serialize cannot reach a worker either.
        let _ = serde_json::to_writer(&mut hash, asked);
        Self(hash.0.finish())
    }
}

struct Hash(DefaultHasher);

impl io::Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    known: HashMap<Fingerprint, Suspect>,
}

#[derive(Debug)]
struct Suspect {
    model_id: String,
    crashes: u32,
    last: Instant,
}

impl Suspects {
    /// A worker died while these were under way. True: none is among them that had not been refused from now
    /// on, so that this crash says nothing of the engine's health beside them.
    pub(super) fn died(&mut self, now: Instant, model_id: &str, under_way: &[Fingerprint]) -> bool {
        self.known.retain(|_, suspect| now.saturating_duration_since(suspect.last) < PARDON);
        // Who comes beside one that is suspected already is not to blame.
        let again: Vec<Fingerprint> =
            under_way.iter().copied().filter(|asked| self.known.contains_key(asked)).collect();
        let blamed = if again.is_empty() { under_way } else { &again };
        for asked in blamed {
            let suspect = self.known.entry(*asked).or_insert_with(|| Suspect {
                model_id: model_id.to_owned(),
                crashes: 0,
                last: now,
            });
            suspect.crashes = suspect.crashes.saturating_add(1);
            suspect.last = now;
        }
        while self.known.len() > MOST_SUSPECTS {
            let oldest = self.known.iter().min_by_key(|(_, suspect)| suspect.last).map(|(asked, _)| *asked);
            oldest.and_then(|asked| self.known.remove(&asked));
        }
        !again.is_empty()
    }

    /// How often it was under way when its engine died, and how long it is refused for it; `None`: run it.
    pub(super) fn refuses(&self, now: Instant, asked: Fingerprint) -> Option<(u32, Duration)> {
        let suspect = self.known.get(&asked).filter(|suspect| suspect.crashes >= REFUSED_AFTER)?;
        let left = PARDON.saturating_sub(now.saturating_duration_since(suspect.last));
        (!left.is_zero()).then_some((suspect.crashes, left))
    }

    /// It has had its answer.
    pub(super) fn served(&mut self, asked: Fingerprint) {
        if !self.known.is_empty() {
            self.known.remove(&asked);
        }
    }

    /// The model was unloaded: whoever loads it again may have mended it.
    pub(super) fn forget(&mut self, model_id: &str) {
        self.known.retain(|_, suspect| suspect.model_id != model_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Fingerprint {
        Fingerprint::of("m", &text)
    }

    #[test]
    fn what_was_there_twice_is_refused_for_some_minutes() {
        let (mut suspects, begun) = (Suspects::default(), Instant::now());
        let poison = asked("poison");
        assert!(!suspects.died(begun, "m", &[poison]), "nobody can know it the first time");
        assert_eq!(suspects.refuses(begun, poison), None);
        assert!(suspects.died(begun, "m", &[poison]));
        assert_eq!(suspects.refuses(begun, poison), Some((2, PARDON)));
        assert_eq!(suspects.refuses(begun, Fingerprint::of("other", &"poison")), None);
        let later = begun + PARDON;
        assert_eq!(suspects.refuses(later, poison), None);
        assert!(!suspects.died(later, "m", &[poison]), "it is forgotten by then");
    }

    #[test]
    fn who_is_served_afterwards_or_comes_beside_a_suspect_is_none() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        let (poison, beside, new) = (asked("poison"), asked("beside"), asked("new"));
        suspects.died(now, "m", &[poison, beside]);
        suspects.served(beside);
        suspects.died(now, "m", &[poison, beside, new]);
        assert!(suspects.refuses(now, poison).is_some());
        suspects.died(now, "m", &[beside, new]);
        assert_eq!((suspects.refuses(now, beside), suspects.refuses(now, new)), (None, None));
    }

    #[test]
    fn an_unload_forgets_those_of_its_model() {
        let (mut suspects, now) = (Suspects::default(), Instant::now());
        for model_id in ["m", "n"] {
            suspects.died(now, model_id, &[asked(model_id)]);
            suspects.died(now, model_id, &[asked(model_id)]);
        }
        suspects.forget("m");
        assert!(suspects.refuses(now, asked("m")).is_none() && suspects.refuses(now, asked("n")).is_some());
    }

    #[test]
    fn what_is_kept_has_a_bound() {
        let (mut suspects, begun) = (Suspects::default(), Instant::now());
        for n in 0..MOST_SUSPECTS + 10 {
            suspects.died(begun + Duration::from_nanos(n as u64), "m", &[asked(&n.to_string())]);
        }
        assert_eq!(suspects.known.len(), MOST_SUSPECTS);
        assert!(!suspects.known.contains_key(&asked("0")));
    }
}
