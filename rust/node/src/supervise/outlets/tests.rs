use llm_node_core::event::{Finish, Part, PickedToken, Piece, TokenLogprobs, Usage};
use proptest::prelude::*;

use super::*;
use crate::{
    frames::{Hole, PartTemplates, Template, Writing},
    pattern::Pattern,
};

const CLIENT: ClientId = 7;

/// Streams whose pieces are `<"text">`.
struct Streams {
    chunked: bool,
    pattern: Option<Pattern>,
    tokens: Vec<PickedToken>,
    writing: HashMap<StreamId, Writing>,
}

fn streams() -> Streams {
    Streams { chunked: false, pattern: None, tokens: Vec::new(), writing: HashMap::new() }
}

impl Streams {
    fn text(&mut self, outlets: &mut Outlets, client: ClientId, stream: StreamId, text: &str) {
        let mut segments = vec![(b"<".to_vec(), Hole::Text)];
        if self.pattern.is_some() {
            segments.push((b" ".to_vec(), Hole::Logprobs));
        }
        let delta = Some(Template::new(segments, b">".to_vec()));
        let frames = || Frames {
            text: PartTemplates { delta, ..PartTemplates::default() },
            pattern: self.pattern.clone(),
            chunked: self.chunked,
            ..Frames::default()
        };
        let writing = self.writing.entry(stream).or_insert_with(|| Writing::new(frames()));
        let piece = Piece { part: Part::Text, text: text.to_owned(), tokens: self.tokens.clone() };
        let tell = |frames: &Arc<Frames>, frame| outlets.frame(client, stream, frames, frame);
        writing.take(Event::Piece(piece), tell).unwrap();
    }
}

fn outlets(streams: usize) -> Outlets {
    let mut outlets = Outlets::default();
    for _ in 0..streams {
        outlets.open(CLIENT);
    }
    outlets
}

/// One line for each delivery.
fn told(outlets: &mut Outlets) -> Vec<String> {
    let line = |mut delivery: Delivery| match &mut delivery.what {
        What::Bytes(bytes) => String::from_utf8_lossy(bytes.frame()).into_owned(),
        What::Event { stream, event, .. } => {
            format!("{stream} {}", matches!(event, Event::Finished { .. }))
        }
        What::Overflow => "overflow".to_owned(),
    };
    outlets.take().deliveries.into_iter().map(line).collect()
}

fn finished() -> Event {
    Event::Finished { reason: Finish::Stop, stop: None, usage: Usage::default() }
}

fn started() -> Event {
    Event::Started { prompt_tokens: 1, cached_tokens: 0, relaxed: Vec::new() }
}

#[test]
fn who_keeps_up_gets_an_event_for_each_piece_and_one_write() {
    let mut outlets = outlets(2);
    let mut streams = streams();
    streams.text(&mut outlets, CLIENT, 0, "a");
    streams.text(&mut outlets, CLIENT, 1, "b");
    streams.text(&mut outlets, CLIENT, 0, "");
    streams.text(&mut outlets, CLIENT, 0, "c");
    assert_eq!(told(&mut outlets), [r#"<"a"><"b"><"c">"#]);
    streams.text(&mut outlets, CLIENT, 0, "d");
    assert_eq!(told(&mut outlets), [r#"<"d">"#]);
    assert!(told(&mut outlets).is_empty());
}

#[test]
fn text_stays_between_the_events_around_it() {
    let mut outlets = outlets(1);
    let mut streams = streams();
    outlets.event(CLIENT, 0, started(), Told::default());
    streams.text(&mut outlets, CLIENT, 0, "a");
    outlets.event(CLIENT, 0, started(), Told::default());
    streams.text(&mut outlets, CLIENT, 0, "b");
    outlets.event(CLIENT, 0, finished(), Told::default());
    assert_eq!(told(&mut outlets), ["0 false", r#"<"a">"#, "0 false", r#"<"b">"#, "0 true"]);
}

#[test]
fn who_lags_gets_one_event_for_each_stream_once_it_reads() {
    let mut outlets = outlets(2);
    let mut streams = streams();
    outlets.hold(CLIENT, 10);
    for text in ["a", "b", "c"] {
        streams.text(&mut outlets, CLIENT, 0, text);
        streams.text(&mut outlets, CLIENT, 1, text);
    }
    assert!(told(&mut outlets).is_empty());
    outlets.release(CLIENT, || None);
    streams.text(&mut outlets, CLIENT, 0, "d");
    assert_eq!(told(&mut outlets), [r#"<"abc"><"abc"><"d">"#]);
}

#[test]
fn an_ending_brings_what_was_held_before_it() {
    let mut outlets = outlets(1);
    let mut streams = streams();
    outlets.hold(CLIENT, 10);
    streams.text(&mut outlets, CLIENT, 0, "a");
    outlets.event(CLIENT, 0, finished(), Told::default());
    assert_eq!(told(&mut outlets), [r#"<"a">"#, "0 true"]);
}

#[test]
fn over_the_cap_it_is_said_once_and_nothing_is_kept() {
    let mut outlets = outlets(1);
    let mut streams = streams();
    outlets.open(8);
    outlets.hold(CLIENT, MAX_UNSENT - HELD - 10);
    for _ in 0..20 {
        streams.text(&mut outlets, CLIENT, 0, "a");
        streams.text(&mut outlets, 8, 1, "b");
    }
    assert_eq!(told(&mut outlets), [r#"<"b">"#.repeat(20), "overflow".to_owned()]);
    assert!(outlets.clients[&CLIENT].held.is_empty());
    outlets.release(CLIENT, || None);
    outlets.event(CLIENT, 0, finished(), Told::default());
    assert_eq!(told(&mut outlets), ["0 true"]);
}

#[test]
fn what_was_collected_before_an_event_counts_once_the_node_has_it() {
    let mut outlets = outlets(2);
    let mut streams = streams();
    outlets.hold(CLIENT, 10);
    streams.text(&mut outlets, CLIENT, 0, "a");
    outlets.event(CLIENT, 0, finished(), Told::default());
    outlets.hold(CLIENT, MAX_UNSENT);
    streams.text(&mut outlets, CLIENT, 1, "b");
    assert_eq!(told(&mut outlets), [r#"<"a">"#, "0 true", "overflow"]);
}

#[test]
fn log_probabilities_are_merged_and_count_against_the_cap() {
    let pattern = Pattern::parse("<each><logprob></each>").unwrap();
    let logprobs = Some(TokenLogprobs { bytes: Vec::new(), is_text: true, logprob: -0.5, top: Vec::new() });
    let tokens = vec![PickedToken { id: 0, logprobs }];
    let mut streams = Streams { pattern: Some(pattern), tokens, ..streams() };
    let mut outlets = outlets(1);
    outlets.hold(CLIENT, MAX_UNSENT - HELD - 15);
    streams.text(&mut outlets, CLIENT, 0, "a");
    streams.text(&mut outlets, CLIENT, 0, "");
    streams.text(&mut outlets, CLIENT, 0, "b");
    outlets.release(CLIENT, || None);
    assert_eq!(told(&mut outlets), [r#"<"ab" -0.5,-0.5,-0.5>"#]);
    outlets.hold(CLIENT, MAX_UNSENT - HELD - 15);
    for _ in 0..4 {
        streams.text(&mut outlets, CLIENT, 0, "");
    }
    assert_eq!(told(&mut outlets), ["overflow"]);
}

#[test]
fn a_node_without_time_gets_larger_events_and_no_overflow() {
    let mut outlets = outlets(1);
    let mut streams = streams();
    let pieces = 1_000_000;
    for _ in 0..pieces {
        streams.text(&mut outlets, CLIENT, 0, "a");
    }
    let written = told(&mut outlets).concat();
    assert_eq!(written.matches('a').count(), pieces);
    assert!(written.len() < pieces + 2 * BURST);
    streams.text(&mut outlets, CLIENT, 0, "b");
    assert_eq!(told(&mut outlets), [r#"<"b">"#]);
}

#[test]
fn a_client_is_forgotten_with_its_last_stream() {
    let mut outlets = outlets(2);
    let mut streams = streams();
    outlets.close(CLIENT);
    streams.text(&mut outlets, CLIENT, 1, "a");
    outlets.close(CLIENT);
    outlets.close(CLIENT);
    assert!(outlets.clients.is_empty());
    outlets.hold(CLIENT, 1);
    outlets.release(CLIENT, || None);
    assert_eq!(told(&mut outlets), [r#"<"a">"#]);
}

/// A socket's memory, and how much it takes at each write; an error where that is nothing.
#[derive(Clone, Default)]
struct Kernel(Arc<parking_lot::Mutex<(Vec<u8>, Vec<usize>)>>);

impl Kernel {
    fn connect(&self, outlets: &mut Outlets) {
        let socket = self.clone();
        outlets.release(CLIENT, || Some(Box::new(socket)));
    }

    fn takes(&self, room: usize) {
        self.0.lock().1.push(room);
    }

    fn text(&self) -> String {
        String::from_utf8(mem::take(&mut self.0.lock().0)).unwrap()
    }
}

impl Write for Kernel {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut kernel = self.0.lock();
        let room = kernel.1.pop().unwrap_or(bytes.len()).min(bytes.len());
        if room == 0 {
            return Err(std::io::ErrorKind::WouldBlock.into());
        }
        kernel.0.extend_from_slice(&bytes[..room]);
        Ok(room)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn who_keeps_up_is_written_to_past_the_node() {
    let (mut outlets, kernel) = (outlets(2), Kernel::default());
    let mut streams = streams();
    streams.text(&mut outlets, CLIENT, 0, "a");
    kernel.connect(&mut outlets);
    streams.text(&mut outlets, CLIENT, 0, "b");
    outlets.write();
    assert_eq!(kernel.text(), "", "something waits for the node, and must come first");
    assert_eq!(told(&mut outlets), [r#"<"a"><"b">"#]);
    outlets.release(CLIENT, || unreachable!("its socket is known"));
    streams.text(&mut outlets, CLIENT, 0, "c");
    streams.text(&mut outlets, CLIENT, 1, "d");
    assert!(!outlets.wants_waking());
    outlets.write();
    assert_eq!(kernel.text(), r#"<"c"><"d">"#);
    assert!(told(&mut outlets).is_empty());
    outlets.disconnect(CLIENT);
    streams.text(&mut outlets, CLIENT, 0, "e");
    outlets.write();
    assert_eq!((kernel.text().as_str(), told(&mut outlets).len()), ("", 1));
}

#[test]
fn what_the_kernel_does_not_take_goes_through_the_node() {
    for room in [0, 1, 4, 9] {
        let (mut outlets, kernel) = (outlets(1), Kernel::default());
        let mut streams = Streams { chunked: true, ..streams() };
        kernel.connect(&mut outlets);
        kernel.takes(room);
        streams.text(&mut outlets, CLIENT, 0, "a");
        outlets.write();
        streams.text(&mut outlets, CLIENT, 0, "b");
        outlets.write();
        outlets.event(CLIENT, 0, started(), Told::default());
        assert!(outlets.wants_waking());
        let all = [vec![kernel.text()], told(&mut outlets)].concat();
        assert_eq!(all[..3].concat(), "5\r\n<\"a\">\r\n5\r\n<\"b\">\r\n", "{room}");
        kernel.connect(&mut outlets);
        streams.text(&mut outlets, CLIENT, 0, "c");
        outlets.write();
        assert_eq!(kernel.text(), "5\r\n<\"c\">\r\n");
    }
}

#[test]
fn while_the_node_writes_nobody_else_does() {
    let (mut outlets, kernel) = (outlets(1), Kernel::default());
    let mut streams = streams();
    kernel.connect(&mut outlets);
    streams.text(&mut outlets, CLIENT, 0, "a");
    assert_eq!(outlets.hold(CLIENT, 0), 1);
    assert_eq!(kernel.text(), r#"<"a">"#, "what came before is written before");
    streams.text(&mut outlets, CLIENT, 0, "b");
    streams.text(&mut outlets, CLIENT, 0, "c");
    outlets.write();
    assert_eq!(kernel.text(), "");
    outlets.release(CLIENT, || None);
    assert_eq!(kernel.text(), r#"<"bc">"#);
    streams.text(&mut outlets, CLIENT, 0, "d");
    outlets.event(CLIENT, 0, finished(), Told::default());
    assert_eq!(kernel.text(), r#"<"d">"#);
    assert_eq!(told(&mut outlets), ["0 true"]);
}

proptest! {
    /// Whatever the kernel takes and whenever the node writes, what arrives is what was sent, in order.
    #[test]
    fn nothing_is_lost_and_nothing_overtakes(steps in prop::collection::vec((0u8..8, 0usize..12), 1..80)) {
        let (mut outlets, kernel) = (outlets(1), Kernel::default());
        let mut streams = streams();
        let (mut arrived, mut sent) = (String::new(), String::new());
        let mut letters = ('a'..='z').cycle();
        for (step, room) in steps {
            match step {
                0..4 => {
                    let letter = letters.next().unwrap();
                    sent.push(letter);
                    streams.text(&mut outlets, CLIENT, 0, &letter.to_string());
                }
                4 => {
                    kernel.takes(room);
                    outlets.write();
                }
                5 => outlets.event(CLIENT, 0, started(), Told::default()),
                6 => { outlets.hold(CLIENT, room); }
                _ => {
                    // The node's turn: it passes on all that it is given, and then says so.
                    arrived += &kernel.text();
                    arrived += &told(&mut outlets).concat();
                    kernel.connect(&mut outlets);
                }
            }
        }
        outlets.write();
        arrived += &kernel.text();
        arrived += &told(&mut outlets).concat();
        kernel.connect(&mut outlets);
        arrived += &kernel.text();
        arrived += &told(&mut outlets).concat();
        let letters: String = arrived.chars().filter(char::is_ascii_lowercase).collect();
        // Events are told as "0 false".
        prop_assert_eq!(letters.replace("false", ""), sent);
    }
}

#[test]
fn one_waking_for_all_that_comes_before_it_is_taken() {
    let mut outlets = outlets(1);
    let mut streams = streams();
    assert!(!outlets.wants_waking());
    streams.text(&mut outlets, CLIENT, 0, "a");
    assert!(outlets.wants_waking());
    streams.text(&mut outlets, CLIENT, 0, "a");
    assert!(!outlets.wants_waking());
    outlets.take();
    streams.text(&mut outlets, CLIENT, 0, "a");
    assert!(outlets.wants_waking());
}
