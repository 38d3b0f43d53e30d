use llm_node_core::event::{PickedToken, TokenLogprobs, Usage};
use proptest::prelude::*;

use super::*;

/// A template: `{text}` and so on are its holes.
pub(crate) fn template(text: &str) -> Template {
    let (mut segments, mut rest) = (Vec::new(), text);
    while let Some((before, (hole, behind))) =
        rest.split_once('{').and_then(|(before, it)| Some((before, it.split_once('}')?)))
    {
        segments.push((before.into(), Hole::of(hole).unwrap()));
        rest = behind;
    }
    Template::new(segments, rest.into())
}

fn part(begin: &str, delta: &str, end: &str, cut: Option<&str>) -> PartTemplates {
    let some = |text: &str| (!text.is_empty()).then(|| template(text));
    PartTemplates { begin: some(begin), delta: some(delta), end: some(end), cut: cut.map(template) }
}

fn piece(part: Part, text: &str) -> Event {
    Event::Piece(Piece { part, text: text.to_owned(), tokens: Vec::new() })
}

fn call(index: u32, name: &str) -> Event {
    Event::CallBegan { index, id: format!("id{index}"), name: name.to_owned() }
}

/// Everything that is written, each frame behind the last one; and what is kept.
fn written(frames: Frames, events: Vec<Event>, reason: Finish) -> (String, Vec<Block>) {
    let mut writing = Writing::new(frames);
    let frames = writing.frames();
    let mut bytes = frames.bytes();
    for event in events {
        writing.take(event, |frames, frame| frames.fill(&frame, &mut bytes)).unwrap();
    }
    let blocks = writing.finish(reason, |frames, frame| frames.fill(&frame, &mut bytes));
    (String::from_utf8(bytes.frame().to_vec()).unwrap(), blocks)
}

fn deltas(delta: &str, chunked: bool) -> Frames {
    Frames { text: part("", delta, "", None), chunked, ..Frames::default() }
}

fn filled(frames: Frames, texts: &[&str]) -> Vec<u8> {
    let mut writing = Writing::new(frames);
    let mut bytes = writing.frames().bytes();
    for text in texts {
        writing.take(piece(Part::Text, text), |frames, frame| frames.fill(&frame, &mut bytes)).unwrap();
    }
    bytes.frame().to_vec()
}

#[test]
fn a_chunk_has_its_size_before_it() {
    let bytes = filled(deltas("data: <{text}>\n\n", true), &["a"]);
    assert_eq!(bytes, b"d\r\ndata: <\"a\">\n\n\r\n");
}

#[test]
fn nothing_is_no_chunk() {
    assert_eq!(filled(deltas("{text}", true), &[]), b"");
    assert_eq!(filled(deltas("{text}", false), &[]), b"");
}

#[test]
fn only_what_json_forbids_is_escaped() {
    let bytes = filled(deltas("{text}", false), &["\"\\/\u{8}\u{c}\n\r\t\0\u{1f}\u{7f}\u{2028}é語🦙"]);
    let wanted = "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}\u{2028}é語🦙\"";
    assert_eq!(bytes, wanted.as_bytes());
}

#[test]
fn log_probabilities_stand_where_there_are_any() {
    let frames = || Frames {
        pattern: Some(Pattern::parse("[<each><token></each>]").unwrap()),
        ..deltas("<{text},{logprobs}>", false)
    };
    let piece = |text: &str, tokens: &[&str]| {
        let logprobs = |token: &&str| TokenLogprobs {
            bytes: token.as_bytes().to_vec(),
            is_text: true,
            logprob: -1.0,
            top: Vec::new(),
        };
        let token = |token| PickedToken { id: 0, logprobs: Some(logprobs(token)) };
        let tokens = tokens.iter().map(token).collect();
        Event::Piece(Piece { part: Part::Text, text: text.to_owned(), tokens })
    };
    let events = || vec![piece("", &["a"]), piece("a", &[]), piece("bc", &["b", "c"])];
    let (text, _) = written(frames(), events(), Finish::Stop);
    assert_eq!(text, r#"<"",["a"]><"a",null><"bc",["b","c"]>"#);
    let mut writing = Writing::new(frames());
    let mut bytes = writing.frames().bytes();
    let mut merged: Option<Frame> = None;
    for event in events() {
        let tell = |_: &Arc<Frames>, frame: Frame| {
            assert!(!frame.is_empty());
            let before = merged.take();
            merged = Some(before.map_or(frame.clone(), |mut it| {
                assert_eq!(it.append(frame), None);
                it
            }));
        };
        writing.take(event, tell).unwrap();
    }
    writing.frames().fill(&merged.unwrap(), &mut bytes);
    assert_eq!(bytes.frame(), br#"<"abc",["a","b","c"]>"#);
}

#[test]
fn the_end_of_a_block_tells_all_its_log_probabilities() {
    let frames = Frames {
        text: part("[", "{logprobs}", "{logprobs}]", None),
        pattern: Some(Pattern::parse("<each><token>@<offset></each>").unwrap()),
        keeps: true,
        ..Frames::default()
    };
    let piece = |token: &str| {
        let (bytes, top) = (token.as_bytes().to_vec(), Vec::new());
        let logprobs = Some(TokenLogprobs { bytes, is_text: true, logprob: -1.0, top });
        let tokens = vec![PickedToken { id: 0, logprobs }];
        Event::Piece(Piece { part: Part::Text, text: token.to_owned(), tokens })
    };
    let (text, blocks) =
        written(frames, vec![piece("a"), piece("b"), call(0, "f"), piece("c")], Finish::Stop);
    assert_eq!(text, "[\"a\"@0\"b\"@1\"a\"@0,\"b\"@1][\"c\"@2\"c\"@2]");
    assert_eq!(blocks.iter().map(|it| it.tokens.len()).collect::<Vec<_>>(), [2, 0, 1]);
}

fn all_parts() -> Frames {
    Frames {
        text: part("[{block} {number} text", " {text}", " end {text} {number}]", Some(" cut {text}]")),
        reasoning: part("", "(thinks {block} {text})", "", None),
        input: part("[{block} {call} {id} {name}", " {text}", " json {json}]", Some("")),
        ..Frames::default()
    }
}

fn one_of_each() -> Vec<Event> {
    vec![
        piece(Part::Reasoning, "h\"m"),
        piece(Part::Text, "a"),
        piece(Part::Text, "\u{e9}"),
        call(0, "f\"\u{8a9e}"),
        piece(Part::Input, "{\"a\":\n"),
        piece(Part::Input, "1}"),
        Event::CallEnded,
        call(1, "g"),
        piece(Part::Input, "{}"),
        Event::CallEnded,
        piece(Part::Text, "z"),
    ]
}

#[test]
fn blocks_begin_go_on_and_end() {
    let (text, kept) = written(all_parts(), one_of_each(), Finish::Stop);
    assert_eq!(
        text,
        "(thinks 0 \"h\\\"m\")[1 0 text \"a\" \"\u{e9}\" end \"a\u{e9}\" 1]\
         [2 0 id0 \"f\\\"\u{8a9e}\" \"{\\\"a\\\":\\n\" \"1}\" json {\"a\": 1}]\
         [3 1 id1 \"g\" \"{}\" json {}][4 2 text \"z\" end \"z\" 3]"
    );
    assert!(kept.is_empty());
}

#[test]
fn what_a_limit_ends_is_cut() {
    let cut = |events: Vec<Event>, reason| written(all_parts(), events, reason).0;
    let text = || vec![piece(Part::Text, "a")];
    let called = || vec![call(0, "f"), piece(Part::Input, "{")];
    for reason in [Finish::Length, Finish::Context, Finish::Cancelled] {
        assert_eq!(cut(text(), reason), "[0 0 text \"a\" cut \"a\"]");
        // An empty template writes nothing.
        assert_eq!(cut(called(), reason), "[0 0 id0 \"f\" \"{\"");
    }
    assert_eq!(cut(called(), Finish::Stop), "[0 0 id0 \"f\" \"{\"", "nobody said that it is complete");
    assert_eq!(cut(text(), Finish::StopString), "[0 0 text \"a\" end \"a\" 1]");
}

#[test]
fn a_part_without_templates_is_not_written_and_takes_no_number() {
    let frames = Frames { reasoning: PartTemplates::default(), ..all_parts() };
    let (text, _) = written(frames, one_of_each(), Finish::Stop);
    assert!(text.starts_with("[0 0 text"), "{text}");
}

#[test]
fn blocks_are_kept_for_who_wants_them_once_more() {
    let frames = Frames { keeps: true, ..deltas("", false) };
    let events = [one_of_each(), vec![call(2, "h"), piece(Part::Input, "{")]].concat();
    let (text, blocks) = written(frames, events, Finish::Length);
    assert_eq!(text, "");
    let shown: Vec<_> =
        blocks.iter().map(|it| (it.part, it.text.as_str(), it.id.as_str(), it.complete)).collect();
    assert_eq!(
        shown,
        [
            (Part::Reasoning, "h\"m", "", true),
            (Part::Text, "a\u{e9}", "", true),
            (Part::Input, "{\"a\":\n1}", "id0", true),
            (Part::Input, "{}", "id1", true),
            (Part::Text, "z", "", true),
            (Part::Input, "{", "id2", false),
        ]
    );
}

#[test]
fn calls_of_some_tools_are_written_otherwise() {
    let templates = Arc::new(part("<{block} {call} {name}", " {text}", " end {json}>", None));
    let told = |name: &str| Told { templates: Arc::clone(&templates), name: name.to_owned() };
    let tools = HashMap::from([("ns__g".to_owned(), told("g"))]);
    let events = vec![
        call(0, "f"),
        piece(Part::Input, "{}"),
        Event::CallEnded,
        call(1, "ns__g"),
        piece(Part::Input, "{}"),
        Event::CallEnded,
    ];
    let frames = Frames { keeps: true, tools, ..all_parts() };
    let (text, blocks) = written(frames, events, Finish::Calls);
    assert_eq!(text, "[0 0 id0 \"f\" \"{}\" json {}]<1 1 \"g\" \"{}\" end {}>");
    assert_eq!(blocks[1].name, "ns__g", "who reads the blocks knows it by its own name");
}

#[test]
fn the_end_of_a_block_may_tell_its_text_as_base64() {
    let frames = Frames { text: part("", "", "v1.{base64}", None), ..Frames::default() };
    let (text, _) =
        written(frames, vec![piece(Part::Text, "caf\u{e9}"), piece(Part::Text, "?")], Finish::Stop);
    assert_eq!(text, "v1.Y2Fmw6k/");
}

#[test]
fn only_what_is_told_again_is_kept_and_that_has_a_bound() {
    let mut writing = Writing::new(deltas("{text}", false));
    let mut keeping = Writing::new(all_parts());
    let large = "a".repeat(1 << 20);
    let mut outcomes = Vec::new();
    for _ in 0..9 {
        assert!(writing.take(piece(Part::Text, &large), |_, _| ()).is_ok());
        outcomes.push(keeping.take(piece(Part::Text, &large), |_, _| ()).is_ok());
    }
    assert_eq!(writing.open.unwrap().text, "");
    assert_eq!(outcomes.iter().filter(|it| **it).count(), 8);
}

#[test]
fn only_deltas_of_one_block_are_merged() {
    use Part::{Input, Reasoning, Text};
    use Stage::{Begin, Delta, End};
    let mut writing = Writing::new(all_parts());
    let mut frames: Vec<Frame> = Vec::new();
    let mut all = one_of_each();
    all.push(Event::Finished { reason: Finish::Stop, stop: None, usage: Usage::default() });
    for event in all {
        let merge = |_: &Arc<Frames>, frame: Frame| {
            let left = match frames.last_mut() {
                Some(last) => last.append(frame),
                None => Some(frame),
            };
            frames.extend(left);
        };
        writing.take(event, merge).unwrap();
    }
    let shown: Vec<_> = frames.iter().map(|it| (it.part, it.stage, it.text.as_str())).collect();
    assert_eq!(
        shown,
        [
            (Reasoning, Delta, "h\"m"),
            (Text, Begin, ""),
            (Text, Delta, "a\u{e9}"),
            (Text, End, "a\u{e9}"),
            (Input, Begin, ""),
            (Input, Delta, "{\"a\":\n1}"),
            (Input, End, "{\"a\":\n1}"),
            (Input, Begin, ""),
            (Input, Delta, "{}"),
            (Input, End, "{}"),
            (Text, Begin, ""),
            (Text, Delta, "z"),
        ]
    );
}

proptest! {
    #[test]
    fn any_texts_come_back(texts in prop::collection::vec(any::<String>(), 1..8), chunked: bool) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let bytes = filled(deltas("data: <{text}>\n\n", chunked), &texts);
        let mut framed = std::str::from_utf8(&bytes).unwrap();
        if chunked {
            let (size, rest) = framed.split_once("\r\n").unwrap();
            framed = rest.strip_suffix("\r\n").unwrap();
            prop_assert_eq!(usize::from_str_radix(size, 16).unwrap(), framed.len());
        }
        // No line feed inside: one line is one event.
        let events: Vec<&str> = framed.split_terminator("\n\n").collect();
        prop_assert_eq!(events.len(), texts.len());
        for (event, text) in events.iter().zip(&texts) {
            prop_assert!(!event.contains('\n'));
            let string = event.strip_prefix("data: <").and_then(|it| it.strip_suffix('>')).unwrap();
            prop_assert_eq!(&serde_json::from_str::<String>(string).unwrap(), text);
        }
    }

    /// Whatever comes, a line holds the input of one call, and it is the JSON that the model wrote.
    #[test]
    fn json_never_breaks_a_line(value in "[a-z\u{e9}]{0,4}", space in "[ \n\r\t]{0,4}") {
        let input = format!("{{{space}\"a\"{space}:{space}\"{value}\"{space}}}");
        let frames = Frames { input: part("", "", "{json}\n", None), ..Frames::default() };
        let events = vec![call(0, "f"), piece(Part::Input, &input), Event::CallEnded];
        let (text, _) = written(frames, events, Finish::Calls);
        prop_assert_eq!(text.matches(['\n', '\r']).count(), 1);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(read, serde_json::from_str::<serde_json::Value>(&input).unwrap());
    }
}
