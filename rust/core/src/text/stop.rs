//! Stop strings: an answer ends before the first of them.

use super::control::ControlTokens;

/// What stands around the name of a control token among the bytes that are looked through. No text in
/// UTF-8 has these bytes, so that letters and tokens are told apart.
const OPEN: u8 = 0xfe;
const CLOSE: u8 = 0xff;

/// Looks for stop strings in text that comes in pieces, and holds back what may become one.
///
/// The answer ends at the first character that completes a stop string, before the longest one that
/// this character completes. So the cut does not depend on how the text came. A stop string that names
/// control tokens is found where the model generates these, too, although they are not shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings {
    stop: Vec<String>,
    /// Those that name control tokens, with these marked; and their places in `stop`.
    marked: Vec<(usize, Vec<u8>)>,
    /// Text, and marked control tokens where one matters.
    held: Vec<u8>,
    /// Which one was found.
    found: Option<usize>,
    cut: usize,
}

impl StopStrings {
    /// Empty strings are ignored. Those that name some of the control tokens are found as such, too.
    pub fn new(stop: &[String], control: &ControlTokens) -> Self {
        let stop: Vec<_> = stop.iter().filter(|it| !it.is_empty()).cloned().collect();
        let named = stop.iter().enumerate();
        let marked = named.filter_map(|(index, it)| Some((index, marked(it, control)?))).collect();
        Self { stop, marked, ..Self::default() }
    }

    /// The one that was found. Then nothing more comes out.
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|it| self.stop.get(it)).map(String::as_str)
    }

    /// What was cut away: the stop string, and what came after it with the same push. Counts bytes of
    /// text, and of control tokens what [`Self::weight`] says.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// What is held back, counted in the same way.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// What a control token of that name counts.
    pub fn weight(&self, name: &[u8]) -> usize {
        if self.marked.is_empty() { 0 } else { name.len() + 2 }
    }

    /// Takes text, and gives the text that is safe to send.
    pub fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        if self.stop.is_empty() {
            return text.to_owned();
        }
        self.held.extend_from_slice(text.as_bytes());
        self.look()
    }

    /// Takes a control token, and gives the text that is safe to send.
    pub fn push_control(&mut self, name: &[u8]) -> String {
        if self.found.is_some() || self.marked.is_empty() {
            return String::new();
        }
        self.held.push(OPEN);
        self.held.extend_from_slice(name);
        self.held.push(CLOSE);
        self.look()
    }

    /// The end of the text: what was held back became no stop string.
    pub fn finish(&mut self) -> String {
        shown(std::mem::take(&mut self.held))
    }

    fn look(&mut self) -> String {
        let has_control = self.held.contains(&OPEN);
        // Where tokens stand in between, what is shown is looked through by itself.
        let text = if has_control { shown(self.held.clone()) } else { String::new() };
        let text = if has_control { text.as_bytes() } else { &self.held[..] };
        let found_in_text = self
            .stop
            .iter()
            .enumerate()
            .filter_map(|(index, it)| find(text, it.as_bytes()).map(|begin| (begin + it.len(), begin, index)))
            .min()
            .map(|(end, begin, index)| (self.place(end, has_control), self.place(begin, has_control), index));
        let found = self
            .marked
            .iter()
            .filter(|_| has_control)
            .filter_map(|(index, it)| find(&self.held, it).map(|begin| (begin + it.len(), begin, *index)))
            .chain(found_in_text)
            .min();
        if let Some((_, begin, index)) = found {
            self.found = Some(index);
            let mut safe = std::mem::take(&mut self.held);
            self.cut = safe.len() - begin;
            safe.truncate(begin);
            return shown(safe);
        }
        let in_text = self.stop.iter().map(|it| overlap(text, it.as_bytes())).max().unwrap_or(0);
        let begin = self.place(text.len() - in_text, has_control);
        let marked = self.marked.iter().map(|it| overlap(&self.held, &it.1)).max().unwrap_or(0);
        let rest = self.held.split_off(begin.min(self.held.len() - marked));
        shown(std::mem::replace(&mut self.held, rest))
    }

    /// Where the byte of that number among those that are shown stands; behind the last one the end.
    fn place(&self, number: usize, has_control: bool) -> usize {
        if !has_control {
            return number;
        }
        let mut is_shown = true;
        let mut left = number;
        for (place, &byte) in self.held.iter().enumerate() {
            match byte {
                OPEN => is_shown = false,
                CLOSE => is_shown = true,
                _ if !is_shown => {}
                _ if left == 0 => return place,
                _ => left -= 1,
            }
        }
        self.held.len()
    }
}

/// The bytes without control tokens, as text.
fn shown(mut bytes: Vec<u8>) -> String {
    if bytes.contains(&OPEN) {
        let mut is_shown = true;
        bytes.retain(|&it| {
            match it {
                OPEN => is_shown = false,
                CLOSE => {
                    is_shown = true;
                    return false;
                }
                _ => {}
            }
            is_shown
        });
    }
    // It was put together from whole texts, and is only cut where one of its characters begins.
    String::from_utf8(bytes).unwrap_or_default()
}

/// The stop string with its control tokens marked, if it names any.
fn marked(stop: &str, control: &ControlTokens) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(stop.len() + 2);
    let mut begin = 0;
    for found in control.find(stop) {
        bytes.extend_from_slice(&stop.as_bytes()[begin..found.start]);
        bytes.push(OPEN);
        bytes.extend_from_slice(&stop.as_bytes()[found.clone()]);
        bytes.push(CLOSE);
        begin = found.end;
    }
    bytes.extend_from_slice(&stop.as_bytes()[begin..]);
    (begin > 0).then_some(bytes)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

/// Length in bytes of the longest end of `text` that is a beginning of `stop`, but not all of it. Both
/// consist of whole characters, so that it begins with one.
fn overlap(text: &[u8], stop: &[u8]) -> usize {
    (1..stop.len().min(text.len() + 1)).rev().find(|&it| text.ends_with(&stop[..it])).unwrap_or(0)
}
