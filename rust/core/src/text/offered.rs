//! The tools of the last conversations, as a template is given them: a conversation shows the same ones at each turn,
//! and to make values of them takes longer than to render them.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use minijinja::Value;

use super::control::{Disguise, Disguiser, private};

/// Most lists that are kept.
const MOST: usize = 8;
/// Bytes of a list that is not kept. As values they take some ten times as much.
const LARGE: usize = 256 << 10;

/// Lists of tools that came lately.
#[derive(Debug, Default)]
pub(super) struct Offered {
    /// By their JSON. The one that came last is the last.
    kept: Mutex<VecDeque<(String, Arc<Tools>)>>,
}

impl Offered {
    /// Tools by their JSON; `read` makes a value of it.
    pub(super) fn tools<E>(
        &self,
        json: &str,
        read: impl FnOnce(&str) -> Result<Value, E>,
    ) -> Result<Arc<Tools>, E> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.iter().position(|it| it.0 == json).and_then(|at| kept.remove(at));
        let found = match known {
            Some(found) => found,
            None => (json.to_owned(), Arc::new(Tools::of(read(json)?))),
        };
        let tools = Arc::clone(&found.1);
        if json.len() < LARGE {
            kept.push_back(found);
            let surplus = kept.len().saturating_sub(MOST);
            kept.drain(..surplus);
        }
        Ok(tools)
    }
}

/// A list of tools.
#[derive(Debug)]
pub(super) struct Tools {
    value: Value,
    private: HashSet<u32>,
    /// In the disguise that was asked for last.
    disguised: Mutex<Option<(Disguise, u32, Value)>>,
}

impl Tools {
    pub(super) fn of(value: Value) -> Self {
        let mut characters = HashSet::new();
        private(&value, &mut characters);
        Self { value, private: characters, disguised: Mutex::default() }
    }

    /// What a template is given.
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// The private characters in it.
    pub(super) fn private(&self) -> &HashSet<u32> {
        &self.private
    }

    /// The same in disguise.
    pub(super) fn in_disguise(&self, disguiser: &Disguiser<'_>) -> Value {
        let (kind, base) = disguiser.kind();
        let mut disguised = self.disguised.lock().unwrap_or_else(PoisonError::into_inner);
        match &*disguised {
            Some((known, place, value)) if (*known, *place) == (kind, base) => value.clone(),
            _ => disguised.insert((kind, base, disguiser.put_on(&self.value))).2.clone(),
        }
    }
}
