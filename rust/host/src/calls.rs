//! Which calls are under way in engines, on any thread, for whoever watches over how long they take.
//!
//! A call costs two writes to a place of its thread's own. Nobody looks at a clock for it: whoever watches
//! looks every now and then, and sees whether a call is still the one that it was.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

/// What one thread is doing.
struct Place {
    /// The call that it is in.
    call: Option<&'static str>,
    /// How many calls it has begun; a sign of life within a call counts as another one.
    turn: u64,
}

static PLACES: LazyLock<Mutex<Vec<Weak<Mutex<Place>>>>> = LazyLock::new(Mutex::default);

thread_local! {
    static OWN: Arc<Mutex<Place>> = {
        // Another thread's place may come to lie where an old one's was: its turns are none of the old ones.
        static THREADS: AtomicU64 = AtomicU64::new(0);
        let turn = THREADS.fetch_add(1, Ordering::Relaxed) << 40;
        let place = Arc::new(Mutex::new(Place { call: None, turn }));
        lock(&PLACES).push(Arc::downgrade(&place));
        place
    };
}

/// Runs a call of an engine, where a [`Watch`] sees it.
pub(crate) fn under_way<R>(call: &'static str, function: impl FnOnce() -> R) -> R {
    mark(Some(call));
    let result = function();
    mark(None);
    result
}

/// A sign of life within a call: its time begins anew.
pub(crate) fn alive() {
    OWN.with(|own| lock(own).turn += 1);
}

fn mark(call: Option<&'static str>) {
    OWN.with(|own| {
        let mut place = lock(own);
        place.call = call;
        place.turn += 1;
    });
}

/// Sees how long calls into engines take, in looks. Whoever looks once a second has seconds in which the
/// process ran: where it stood still, stopped or in a frozen container, no call has become older.
#[derive(Debug, Default)]
pub struct Watch {
    /// By thread: the turn that was seen last, and how often before.
    seen: HashMap<usize, (u64, u32)>,
}

impl Watch {
    /// A look: the call that has been under way for longest, and at how many looks before.
    pub fn longest(&mut self) -> Option<(&'static str, u32)> {
        let places: Vec<Arc<Mutex<Place>>> = {
            let mut places = lock(&PLACES);
            places.retain(|place| place.strong_count() > 0);
            places.iter().filter_map(Weak::upgrade).collect()
        };
        let mut still = HashMap::new();
        let mut longest: Option<(&'static str, u32)> = None;
        for place in &places {
            let (call, turn) = {
                let place = lock(place);
                (place.call, place.turn)
            };
            let Some(call) = call else { continue };
            let key = Arc::as_ptr(place).addr();
            let age = match self.seen.get(&key) {
                Some(&(seen, age)) if seen == turn => age.saturating_add(1),
                _ => 0,
            };
            still.insert(key, (turn, age));
            if longest.is_none_or(|(_, other)| age > other) {
                longest = Some((call, age));
            }
        }
        self.seen = still;
        longest
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Tests run side by side, so that each has a name of its own.
    fn age_of(watch: &mut Watch, name: &str) -> Option<u32> {
        watch.longest().filter(|(call, _)| *call == name).map(|(_, age)| age)
    }

    #[test]
    fn a_call_ages_until_it_gives_a_sign_of_life_or_returns() {
        let (go, steps) = mpsc::channel::<()>();
        let (done, at) = mpsc::channel::<()>();
        let caller = thread::spawn(move || {
            under_way("test.call", || {
                done.send(()).unwrap();
                steps.recv().unwrap();
                alive();
                done.send(()).unwrap();
                steps.recv().unwrap();
            });
            done.send(()).unwrap();
            steps.recv().unwrap();
        });
        let mut watch = Watch::default();
        at.recv().unwrap();
        assert_eq!(age_of(&mut watch, "test.call"), Some(0));
        assert_eq!(age_of(&mut watch, "test.call"), Some(1));
        assert_eq!(age_of(&mut watch, "test.call"), Some(2));
        go.send(()).unwrap();
        at.recv().unwrap();
        assert_eq!(age_of(&mut watch, "test.call"), Some(0));
        go.send(()).unwrap();
        at.recv().unwrap();
        assert_eq!(age_of(&mut watch, "test.call"), None);
        go.send(()).unwrap();
        caller.join().unwrap();
    }
}
