//! Every engine that misbehaves is found by the check that it violates, and good ones pass all.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use llm_node_conformance::Status;
use support::{checked, each, fake, root, told};

const PATIENCE: Duration = Duration::from_secs(30);
/// Of an engine that hangs.
const SHORT: Duration = Duration::from_secs(1);

/// Switches of the fake, and the check that finds what they do.
const LIES: &[(&[&str], &str)] = &[
    (&["MISSING_SYMBOL"], "file.library"),
    (&["SOCKET_IN_INIT"], "file.imports"),
    (&["FORK_IN_INIT"], "file.imports"),
    (&["CRASH_IN_CONSTRUCTOR"], "life.open"),
    (&["HANG_IN_CONSTRUCTOR"], "life.open"),
    (&["NULL_INFO"], "life.info"),
    (&["GARBAGE_INFO"], "life.info"),
    (&["GARBAGE_ID"], "life.info"),
    (&["NULL_ID"], "life.info"),
    (&["UNTERMINATED_ID"], "life.info"),
    (&["VERSION_NOT_UTF8"], "life.info"),
    (&["ABI_VERSION=2"], "life.info"),
    (&["ENGINE_ID=\"other\""], "life.info"),
    (&["ENGINE_VERSION=\"2\""], "life.info"),
    (&["GARBAGE_TABLE"], "life.extensions"),
    (&["NULL_SLOT"], "life.extensions"),
    (&["TABLE_SIZE=0"], "life.extensions"),
    (&["TABLE_SIZE=0xFFFFFFFF"], "life.extensions"),
    (&["CRASH_IN_INIT"], "life.init"),
    (&["ABORT_IN_INIT"], "life.init"),
    (&["HANG_IN_INIT"], "life.init"),
    (&["EXIT_IN_INIT"], "life.init"),
    (&["UNKNOWN_CODE"], "life.init"),
    (&["INIT_CODE=7"], "life.init"),
    (&["WRITE_PAST_CONFIG"], "life.config"),
    (&["FORK_IN_INIT"], "life.shutdown"),
    (&["THREAD_LEFT"], "life.shutdown"),
    (&["CRASH_IN_SHUTDOWN"], "life.shutdown"),
    (&["HANG_IN_SHUTDOWN"], "life.shutdown"),
    (&["LEAK_DESCRIPTORS"], "life.again"),
    (&["LEAK_DESCRIPTORS"], "life.process"),
    (&["SIGNAL_IN_INIT"], "life.process"),
    (&["SETENV_IN_INIT"], "life.process"),
    (&["PRINTF"], "life.stdout"),
    (&["CRASH_IN_LOAD", "NO_EXTENSIONS"], "tier0.load"),
    (&["CRASH_IN_GENERATE"], "tier0.generate"),
    (&["HANG_IN_GENERATE"], "tier0.generate"),
    (&["NO_END_MARKER"], "tier0.generate"),
    (&["GARBAGE_RESULTS"], "tier0.generate"),
    (&["GARBAGE_TEXT"], "tier0.generate"),
    (&["LEAK_MEMORY"], "tier0.memory"),
    (&["CRASH_IN_LOAD"], "models.load"),
    (&["HANG_IN_LOAD"], "models.load"),
    (&["LOAD_CODE=9"], "models.load"),
    (&["NULL_MODEL"], "models.load"),
    (&["NULL_ARCHITECTURE"], "models.load"),
    (&["HUGE_VOCAB"], "models.load"),
    (&["NO_SUCH_DEVICE"], "memory.estimate"),
    (&["NO_SUCH_DEVICE"], "memory.usage"),
    (&["ESTIMATE_NOTHING"], "memory.weights"),
    (&["OFFSETS_FALL"], "tokenizer.vocabulary"),
    (&["VOCAB_TOO_SHORT"], "tokenizer.vocabulary"),
    (&["SPECIAL_OUT_OF_RANGE"], "tokenizer.vocabulary"),
    (&["EOS_IS_NO_END"], "tokenizer.end"),
    (&["TOKENS_OUT_OF_RANGE"], "tokenizer.tokens"),
    (&["COUNT_TOO_LARGE"], "tokenizer.tokens"),
    (&["HANG_IN_CALL=TOKENIZE"], "tokenizer.tokens"),
    (&["NULL_CONTEXT"], "batch.create"),
    (&["ZERO_LIMITS"], "batch.create"),
    (&["FEWER_SEQUENCES"], "batch.create"),
    (&["SHORTER_CONTEXT"], "batch.create"),
    (&["SMALLER_CACHE"], "batch.account"),
    (&["ENDLESS_SEQUENCES"], "batch.create"),
    (&["FEWER_ROWS"], "batch.create"),
    (&["NO_TOKENIZER"], "batch.create"),
    (&["CRASH_IN_STEP"], "batch.rows"),
    (&["HANG_IN_STEP"], "batch.rows"),
    (&["CRASH_AFTER_STEPS=3"], "batch.cut"),
    (&["NAN_LOGITS"], "batch.rows"),
    (&["NULL_LOGITS"], "batch.rows"),
    (&["CROOKED_LOGITS"], "batch.rows"),
    (&["ROW_TOO_NARROW"], "batch.rows"),
    (&["ROWS_UNWRITTEN"], "batch.rows"),
    (&["STAGE_TOO_FAR"], "batch.rows"),
    (&["UNKNOWN_DTYPE"], "batch.rows"),
    (&["RANGE_BACKWARDS"], "batch.repeat"),
    (&["TICKETS_JUMP"], "batch.tickets"),
    (&["TICKET_ZERO"], "batch.tickets"),
    (&["REMOVE_NOTHING"], "batch.remove"),
    (&["REMOVE_LEAKS"], "batch.account"),
    (&["COPY_SHORT"], "batch.copy"),
    (&["COPY_SPOILS"], "batch.copy"),
    (&["HANG_IN_CALL=SEQ_REMOVE"], "batch.remove"),
    (&["HANG_IN_CALL=SEQ_COPY"], "batch.copy"),
    (&["HANG_IN_CALL=CACHE_FREE"], "batch.cut"),
    (&["HANG_IN_CALL=SEQ_SAVE"], "batch.save"),
    (&["HANG_IN_CALL=SEQ_RESTORE"], "batch.save"),
    (&["SAVE_NEEDS_NOTHING"], "batch.save-sizes"),
    (&["SAVE_NEEDS_ALL"], "batch.save-sizes"),
    (&["SAVE_NEEDS_MORE"], "batch.save-sizes"),
    (&["SAVE_WROTE_MORE"], "batch.save-sizes"),
    (&["RESTORE_NOTHING"], "batch.save"),
    (&["RESTORE_SHORT"], "batch.save"),
    (&["TOP=16", "TOP_NOTHING"], "batch.top"),
    (&["TOP=16", "TOP_TOO_MANY"], "batch.top"),
    (&["TOP=16", "TOP_OUTSIDE"], "batch.top"),
    (&["TOP=16", "TOP_NEGATIVE"], "batch.top"),
    (&["TOP=16", "TOP_TWICE"], "batch.top"),
    (&["TOP=16", "TOP_UNSORTED"], "batch.top"),
    (&["TOP=16", "TOP_NULL_IDS"], "batch.top"),
    (&["TOP=16", "TOP_CROOKED_IDS"], "batch.top"),
    (&["TOP=16", "TOP_NULL_LOGITS"], "batch.top"),
    (&["TOP=16", "TOP_UNASKED"], "batch.rows"),
    (&["PICKS", "PICK_NO_BIAS"], "batch.picks"),
    (&["PICKS", "PICK_NO_MASK"], "batch.picks"),
    (&["PICKS", "PICK_NO_LATE_MASK"], "batch.picks"),
    (&["PICKS", "PICK_PRESENCE_COUNTS"], "batch.picks"),
    (&["PICKS", "PICK_FORGETS_ROWS"], "batch.picks"),
    (&["PICKS", "PICK_TOP_K_MORE"], "batch.picks"),
    (&["PICKS", "PICK_ONE_UNIFORM"], "batch.picks"),
    (&["PICKS", "PICK_READS_ALL"], "batch.picks"),
    (&["PICKS", "PICK_SHAPES_LOGITS"], "batch.picks"),
    (&["PICKS", "CHAIN_FORGETS"], "batch.chain"),
    (&["TOKEN_AFTER_END"], "stream.tokens"),
    (&["NO_END_ELEMENT"], "stream.tokens"),
    (&["SHORT_VECTORS"], "embed.vectors"),
    (&["HANG_IN_CALL=EMBED"], "embed.vectors"),
];

#[test]
fn every_lie_is_found_by_the_check_that_it_violates() {
    let numbered: Vec<_> = LIES.iter().enumerate().collect();
    let complaints = each(&numbered, |(index, (switches, check))| {
        let subject = fake(&format!("lie-{index}"), switches);
        let hangs = switches.iter().any(|switch| switch.starts_with("HANG"));
        let outcomes = checked(&subject, &[check], if hangs { SHORT } else { PATIENCE });
        let [outcome] = outcomes.as_slice() else {
            return Some(format!("{switches:?}: {check} was not run"));
        };
        match &outcome.status {
            Status::Failed(finding) if finding.seen.ends_with('.') || finding.seen.len() > 20 => None,
            other => Some(format!("{switches:?}: {check} says {other:?}")),
        }
    });
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Switches of the fake that change what it offers, and a check that then is not skipped.
const GOOD: &[(&[&str], &str)] = &[
    (&[], "batch.scripts"),
    (&["TOP=16"], "batch.top"),
    (&["PICKS"], "batch.chain"),
    (&["ROWS_F16"], "batch.scripts"),
    (&["ROWS_BF16"], "batch.scripts"),
    (&["NO_SHARE", "NO_SAVE", "NO_CANCEL"], "batch.copy"),
    (&["NO_MEMORY"], "batch.scripts"),
    (&["NO_BATCH"], "stream.repeat"),
    (&["NO_ESTIMATE", "NO_CHAT_TEMPLATE", "REFUSE_TEXT"], "memory.usage"),
    (&["NO_EXTENSIONS"], "tier0.memory"),
    (&["NO_GET_EXTENSION", "NO_EXTENSIONS"], "tier0.memory"),
];

#[test]
fn good_engines_pass() {
    let numbered: Vec<_> = GOOD.iter().enumerate().collect();
    let complaints = each(&numbered, |(index, (switches, asked))| {
        let outcomes = checked(&fake(&format!("good-{index}"), switches), &[], PATIENCE);
        let passed =
            |name: &str| outcomes.iter().any(|one| one.check.name == name && one.status == Status::Passed);
        let bad = !passed(asked) || outcomes.iter().any(llm_node_conformance::Outcome::failed);
        bad.then(|| format!("{switches:?}, {asked}: {}\n{}", passed(asked), told(&outcomes)))
    });
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Switches that are numbers, accidents that only some texts meet, and others that the tests of a node alone set.
const OTHERS: &[&str] = &[
    "CONTEXTS",
    "CRASH_IN_CREATE",
    "CRASH_ON_BYTE",
    "DESTROY_US",
    "DEVICES",
    "DEVICE_BYTES",
    "DEVICE_KIND",
    "EMBED_US",
    "EOG_EVERY",
    "ESTIMATE_BYTES",
    "HANG_IN_CREATE",
    "HANG_ON_BYTE",
    "LAYERS_TOO_MANY",
    "MEMORY_ALONE",
    "MOST_SEQUENCES",
    "NAN_AFTER",
    "STEP_US",
    "TELL_DEVICES",
    "TELL_OPENINGS",
    "TOKENIZE_NS",
    "TOKEN_US",
];

#[test]
fn no_switch_of_the_fake_is_forgotten() {
    let fakes = root().join("tests/fakes");
    let parts = std::fs::read_dir(fakes.join("fake_engine")).unwrap().map(|entry| entry.unwrap().path());
    let mut there = BTreeSet::new();
    for source in parts.chain([fakes.join("fake_engine.c")]) {
        let text = std::fs::read_to_string(source).unwrap();
        for line in text.lines().filter(|line| line.trim_start().starts_with('#')) {
            for rest in line.split("FAKE_").skip(1) {
                let end = rest.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
                there.insert(rest[..end.unwrap_or(rest.len())].to_owned());
            }
        }
    }
    let switches = LIES.iter().chain(GOOD).flat_map(|(switches, _)| *switches).chain(OTHERS);
    let known: BTreeSet<String> =
        switches.map(|switch| switch.split('=').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(there, known);
}
