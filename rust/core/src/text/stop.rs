//! Stop strings: an answer ends before the first of them.

/// Looks for stop strings in text that comes in pieces, and holds back what may become one.
///
/// The answer ends at the first character that completes a stop string, before the longest one that
/// this character completes. So the cut does not depend on how the text came.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stop: Vec<String>,
    held: String,
    stopped: bool,
    cut: usize,
}

impl StopStrings {
    /// Empty strings are ignored.
    pub fn new(stop: &[String]) -> Self {
        let stop = stop.iter().filter(|it| !it.is_empty()).cloned().collect();
        Self { stop, held: String::new(), stopped: false, cut: 0 }
    }

    /// Was one found? Then nothing more comes out.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Bytes of text that were cut away: the stop string, and what came after it with the same push.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Bytes of text that are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes text, and gives the text that is safe to send.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        if self.stop.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        let found = self
            .stop
            .iter()
            .filter_map(|it| self.held.find(it.as_str()).map(|begin| (begin + it.len(), begin)))
            .min();
        if let Some((_, begin)) = found {
            self.stopped = true;
            let mut safe = std::mem::take(&mut self.held);
            self.cut = safe.len() - begin;
            safe.truncate(begin);
            return safe;
        }
        let hold = self.stop.iter().map(|it| overlap(&self.held, it)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - hold);
        std::mem::replace(&mut self.held, rest)
    }

    /// The end of the text: what was held back became no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length in bytes of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(length, _)| length)
        .rev()
        .find(|&length| text.as_bytes().ends_with(&stop.as_bytes()[..length]))
        .unwrap_or(0)
}
