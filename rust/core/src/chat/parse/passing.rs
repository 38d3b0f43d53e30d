//! Text that passes as it is, since nothing that is looked for can begin in it. Most tokens are such.

use super::{Watch, head::openers, source::is_blank};
use crate::chat::syntax::OPEN;

/// What begins a mark, in text and in what the model thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passing {
    pub(super) text: Beginnings,
    pub(super) thought: Beginnings,
}

impl Passing {
    pub(super) fn of(watch: &Watch) -> Self {
        let calls = watch.tools.iter().flat_map(|it| openers(it)).map(|it| it.0);
        let said = watch.said.iter().flat_map(|it| [it.open.core(), it.close.core(), it.end.core()]);
        let said = said.filter(|it| !it.is_empty());
        let thought =
            watch.reasoning.as_ref().map_or(Beginnings::ALL, |it| Beginnings::of([it.close.core()]));
        Self { text: Beginnings::of(calls.chain(said)), thought }
    }
}

/// First bytes of marks that are text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beginnings {
    /// A bit for each.
    ascii: u128,
    /// Is there one beyond ASCII?
    others: bool,
}

impl Beginnings {
    /// Any byte may be one.
    const ALL: Self = Self { ascii: u128::MAX, others: true };

    fn of<'a>(marks: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut all = Self { ascii: 0, others: false };
        for mark in marks {
            match mark.iter().find(|it| !is_blank(**it)) {
                // Text has no control tokens.
                Some(&OPEN) => {}
                Some(byte) if byte.is_ascii() => all.ascii |= 1 << byte,
                Some(_) => all.others = true,
                None => return Self::ALL,
            }
        }
        all
    }

    /// Can nothing begin in it? White space at the end may belong to a mark behind it.
    pub(super) fn pass(self, text: &[u8]) -> bool {
        let begins = |&it: &u8| if it.is_ascii() { (self.ascii >> it) & 1 == 1 } else { self.others };
        text.last().is_some_and(|&it| !is_blank(it)) && !text.iter().any(begins)
    }
}
