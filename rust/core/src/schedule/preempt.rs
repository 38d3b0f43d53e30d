//! Who has to give way when the cache runs short.
//!
//! The newest goes, its tokens are kept, and it starts over when there is room: what it had is
//! computed again. So the oldest always comes to its end, and no request fails because another is
//! large.

use super::batch::Demand;
use crate::engine::SequenceId;

/// The sequence that gives way; `None` where only one runs, which has nobody to wait for.
pub fn victim(running: &[Demand]) -> Option<SequenceId> {
    if running.len() < 2 {
        return None;
    }
    running.iter().max_by_key(|it| it.age).map(|it| it.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_gives_way_but_never_the_last() {
        let demand = |sequence, age| Demand { sequence, age, held: 0, pending: 1 };
        assert_eq!(victim(&[demand(0, 5), demand(1, 9), demand(2, 7)]), Some(1));
        assert_eq!(victim(&[demand(3, 5)]), None);
        assert_eq!(victim(&[]), None);
    }
}
