//! Sequence ids, kept dense.
//!
//! The lowest free id is always the next one. Engines run a batch whose ids have no holes fastest:
//! some split it at each hole, and pay for one more pass over the weights.

use crate::engine::SequenceId;

/// What sits at each sequence id.
#[derive(Clone, Debug)]
pub struct Slots<T> {
    seats: Vec<Option<T>>,
    taken: usize,
}

impl<T> Slots<T> {
    /// Ids `0..capacity`, all free.
    pub fn new(capacity: usize) -> Self {
        Self { seats: std::iter::repeat_with(|| None).take(capacity).collect(), taken: 0 }
    }

    /// Ids there are.
    pub fn capacity(&self) -> usize {
        self.seats.len()
    }

    /// Ids that are taken.
    pub fn len(&self) -> usize {
        self.taken
    }

    /// Is none taken?
    pub fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Is every one taken?
    pub fn is_full(&self) -> bool {
        self.taken == self.seats.len()
    }

    /// Puts `value` at the lowest free id; gives it back if there is none.
    pub fn insert(&mut self, value: T) -> Result<SequenceId, T> {
        let Some(index) = self.seats.iter().position(Option::is_none) else { return Err(value) };
        self.seats[index] = Some(value);
        self.taken += 1;
        Ok(index as SequenceId)
    }

    /// Frees an id.
    pub fn remove(&mut self, id: SequenceId) -> Option<T> {
        let value = self.seats.get_mut(id as usize)?.take()?;
        self.taken -= 1;
        Some(value)
    }

    /// What sits at an id.
    pub fn get(&self, id: SequenceId) -> Option<&T> {
        self.seats.get(id as usize)?.as_ref()
    }

    /// What sits at an id.
    pub fn get_mut(&mut self, id: SequenceId) -> Option<&mut T> {
        self.seats.get_mut(id as usize)?.as_mut()
    }

    /// All that is taken, in ascending order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (SequenceId, &T)> {
        self.seats.iter().enumerate().filter_map(|(id, it)| Some((id as SequenceId, it.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_lowest_free_id_is_next(
            capacity in 0usize..9, actions in prop::collection::vec((any::<bool>(), 0u32..9), 0..60),
        ) {
            let mut slots = Slots::new(capacity);
            let mut model = BTreeMap::new();
            for (index, (insert, id)) in actions.into_iter().enumerate() {
                if insert {
                    let lowest = (0..capacity as u32).find(|it| !model.contains_key(it));
                    match slots.insert(index) {
                        Ok(id) => { prop_assert_eq!(Some(id), lowest); model.insert(id, index); }
                        Err(value) => { prop_assert_eq!(value, index); prop_assert_eq!(lowest, None); }
                    }
                } else {
                    prop_assert_eq!(slots.remove(id), model.remove(&id));
                }
                prop_assert_eq!(slots.len(), model.len());
                prop_assert_eq!(slots.is_full(), model.len() == capacity);
                let all: Vec<_> = slots.iter().map(|(id, &it)| (id, it)).collect();
                prop_assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
            }
        }
    }
}
