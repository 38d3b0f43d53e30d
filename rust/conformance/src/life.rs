//! From `dlopen` to `engine_shutdown`, and what the process looks like afterwards.

use std::fs;

use llm_node_host::raw::Symbols;
use llm_node_host::{LoadErrorKind, Model, ModelParams, OpenedEngine};

use crate::bench::{Bench, context, plain_tokens};
use crate::check::{Check, Finding, Level, Stop, Verdict, ensure};
use crate::raw::calls::{self, ConfigEnd, SHORTER_CONFIGS};
use crate::raw::process::{self, State};
use crate::world::fed;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "life.open",
        level: Level::Must,
        what: "The library is loaded with all its dependencies, and its constructors do no harm.",
        contract: "An engine is one shared library with a manifest.json beside it.",
        mend: "Do nothing in constructors and static initialisers; what must be set up belongs into engine_init.",
        after: &["file.library"],
        ask: open,
    },
    Check {
        name: "life.info",
        level: Level::Must,
        what: "engine_get_info answers with this version of the ABI, and with the manifest's id and version.",
        contract: "Never fails, starts nothing, touches no device.",
        mend: "Return a static EngineInfo whose strings are those of the manifest.",
        after: &["life.open"],
        ask: info,
    },
    Check {
        name: "life.extensions",
        level: Level::Must,
        what: "Every table is whole, the same each time, and of functions that exist; unknown ids bring NULL.",
        contract: "The table of functions called `id`, or NULL. Always the same pointer for the same id",
        mend: "Return a static table with struct_size = sizeof and every required function set, and else NULL.",
        after: &["life.info"],
        ask: extensions,
    },
    Check {
        name: "life.init",
        level: Level::Must,
        what: "engine_init succeeds, and returns.",
        contract: "Called once, before everything that follows, and again after engine_shutdown.",
        mend: "Return ERR_OK from engine_init, or say with host->set_error what the engine lacks on this machine.",
        after: &["life.info", "life.extensions"],
        ask: init,
    },
    Check {
        name: "life.config",
        level: Level::Must,
        what: "engine_init writes nothing behind its config, also where that is a newer host's and longer.",
        contract: "Who is given it reads or writes no member beyond that size",
        mend: "Treat EngineConfig as read-only, and read members of it as far as struct_size says.",
        after: &["life.init"],
        ask: config,
    },
    Check {
        name: "life.older-host",
        level: Level::Should,
        what: "engine_init takes a config that ends sooner than this version's.",
        contract: "Who is given it reads or writes no member beyond that size",
        mend: "Ask ENGINE_HAS(config, member) before each member of EngineConfig that you read.",
        after: &["life.config"],
        ask: older_host,
    },
    Check {
        name: "life.shutdown",
        level: Level::Must,
        what: "engine_shutdown returns, and no thread and no process that the engine started is left.",
        contract: "when engine_shutdown returns, every thread that the engine started has ended.",
        mend: "Join every thread in engine_shutdown, and start no process.",
        after: &["life.init"],
        ask: shutdown,
    },
    Check {
        name: "life.again",
        level: Level::Must,
        what: "engine_init and engine_shutdown work three times in a row, with a model each time.",
        contract: "Ends all threads, frees everything, handles included. engine_init may follow.",
        mend: "Set every static variable back in engine_shutdown, so that the next engine_init finds a fresh engine.",
        after: &["life.shutdown"],
        ask: again,
    },
    Check {
        name: "life.process",
        level: Level::Should,
        what: "Descriptors, signal handlers, environment, directory, locale, rounding and umask stay as they were.",
        contract: "The engine leaves the process as it found it: no signal handlers",
        mend: "Undo in engine_shutdown what was done, and change nothing that belongs to the whole process.",
        after: &["life.shutdown"],
        ask: leaves_the_process,
    },
    Check {
        name: "life.stdout",
        level: Level::Must,
        what: "Nothing is written to stdout, from loading to the end.",
        contract: "nothing on stdout. It logs through the host.",
        mend: "Send what a library prints to host->log: most of them take a callback for it.",
        after: &["life.shutdown"],
        ask: stdout,
    },
    Check {
        name: "life.stderr",
        level: Level::Should,
        what: "Nothing is written to stderr, either.",
        contract: "nothing on stdout. It logs through the host.",
        mend: "Send what a library prints to host->log: most of them take a callback for it.",
        after: &["life.shutdown"],
        ask: stderr,
    },
];

fn opened(bench: &Bench<'_>) -> Result<OpenedEngine, Stop> {
    Ok(bench.open()?)
}

fn open(bench: &Bench<'_>) -> Verdict {
    let before = State::now();
    // What it says of itself is asked by the next checks.
    if let Err(
        kind @ (LoadErrorKind::BinaryNotFound
        | LoadErrorKind::BinaryUnreadable { .. }
        | LoadErrorKind::NotALibrary { .. }
        | LoadErrorKind::WrongArch { .. }
        | LoadErrorKind::LoadFailed { .. }
        | LoadErrorKind::MissingSymbol { .. }),
    ) = bench.open().map_err(|error| error.kind)
    {
        return Err(Stop::seen(format!("It is refused: {kind}.")));
    }
    let handlers: Vec<String> =
        before.changes(&State::now()).into_iter().filter(|change| change.starts_with("signal")).collect();
    ensure!(handlers.is_empty(), "When it was loaded, {}.", handlers.join(", "));
    Ok(())
}

fn info(bench: &Bench<'_>) -> Verdict {
    match bench.open().map_err(|error| error.kind) {
        Ok(opened) => {
            let (first, second) = (calls::info(opened.symbols()), calls::info(opened.symbols()));
            ensure!(first.1 == second.1, "Its abi_version was {}, and then {}.", first.1, second.1);
            Ok(())
        }
        Err(LoadErrorKind::ExtensionBroken { .. }) => Ok(()),
        Err(kind @ LoadErrorKind::AbiMismatch { .. }) => Err(Stop::Finding(Finding {
            seen: format!("It is refused: {kind}."),
            mend: Some(
                "Compile it with the header of this node: `llm-node engine header` prints where it is."
                    .into(),
            ),
            ..Finding::default()
        })),
        Err(kind) => Err(Stop::seen(format!("It is refused: {kind}."))),
    }
}

fn extensions(bench: &Bench<'_>) -> Verdict {
    let opened = match bench.open().map_err(|error| error.kind) {
        Ok(opened) => opened,
        Err(kind) => return Err(Stop::seen(format!("It is refused: {kind}."))),
    };
    let symbols = *opened.symbols();
    if symbols.get_extension.is_none() {
        return Ok(()); // it is optional
    }
    for id in [c"", c"engine.", c"engine.models", c"engine.models/9", c"com.example.nothing/1"] {
        let answer = calls::extension(&symbols, id).unwrap_or_default();
        ensure!(answer == 0, "engine_get_extension({id:?}) is not NULL.");
    }
    let asked = |id| calls::extension(&symbols, id);
    let ids = [
        c"engine.models/1",
        c"engine.memory/1",
        c"engine.tokenizer/1",
        c"engine.batch/1",
        c"engine.stream/1",
        c"engine.embed/1",
    ];
    let before = ids.map(asked);
    let engine = opened.init(&bench.config())?;
    for (id, before) in ids.into_iter().zip(before) {
        ensure!(
            asked(id) == before,
            "engine_get_extension({id:?}) has another answer after engine_init than before it."
        );
    }
    let Some(code) = executable() else { return Ok(()) };
    for (name, address) in calls::functions(engine.tables()) {
        ensure!(code.iter().any(|range| range.contains(&address)), "{name} of its table points to no code.");
    }
    Ok(())
}

/// Where code lies in this process.
fn executable() -> Option<Vec<std::ops::Range<usize>>> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let range = |line: &str| {
        let mut fields = line.split_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let bound = |text| usize::from_str_radix(text, 16).ok();
        fields.next()?.contains('x').then_some(bound(begin)?..bound(end)?)
    };
    Some(maps.lines().filter_map(range).collect())
}

fn init(bench: &Bench<'_>) -> Verdict {
    // What comes at the end is the affair of other checks.
    std::mem::forget(bench.init_alone()?);
    Ok(())
}

fn init_with(bench: &Bench<'_>, symbols: &Symbols, end: ConfigEnd) -> Result<bool, Stop> {
    bench.trail.call(&format!("engine_init: with a config that ends {end:?}"));
    Ok(calls::init_with(symbols, &bench.config(), end)?)
}

fn config(bench: &Bench<'_>) -> Verdict {
    let symbols = *opened(bench)?.symbols();
    ensure!(
        !init_with(bench, &symbols, ConfigEnd::Known)?,
        "engine_init wrote behind the end of its EngineConfig."
    );
    ensure!(
        !init_with(bench, &symbols, ConfigEnd::Longer)?,
        "engine_init wrote into members of EngineConfig that it cannot know."
    );
    Ok(())
}

fn older_host(bench: &Bench<'_>) -> Verdict {
    let symbols = *opened(bench)?.symbols();
    for size in SHORTER_CONFIGS {
        let result = init_with(bench, &symbols, ConfigEnd::After(size));
        // It may need what such a host does not say; then it says so.
        let overrun = matches!(result, Ok(true));
        ensure!(!overrun, "engine_init wrote behind the end of a config of {size} bytes.");
    }
    Ok(())
}

/// A whole life: a model is loaded and asked for something, where there is one.
fn live(bench: &Bench<'_>) -> Verdict {
    let engine = bench.init()?;
    if let Some(path) = bench.subject.model.as_deref() {
        if engine.offers("engine.models/1") {
            let model = Model::load(&engine, &ModelParams::new(path), None)?;
            if engine.offers("engine.batch/1") && model.info().generates {
                let token = plain_tokens(&model)?[0];
                fed(&mut context(&model, 1)?, 0, &[token])?;
            }
        } else {
            drop(engine);
            let mut alone = bench.init_alone()?;
            alone.tier0_load(path)?;
            alone.tier0_generate("Hello")?;
        }
    }
    Ok(())
}

fn shutdown(bench: &Bench<'_>) -> Verdict {
    let Some(before) = process::threads() else {
        live_or_end(bench)?;
        return Ok(());
    };
    live_or_end(bench)?;
    let after = process::threads_fall_to(before).unwrap_or(before);
    ensure!(after <= before, "{} threads of it still run after engine_shutdown.", after - before);
    let children = process::children();
    ensure!(
        children.is_empty(),
        "{} processes that it started still run after engine_shutdown.",
        children.len()
    );
    Ok(())
}

/// A whole life; what is wrong in the midst of it is the affair of other checks, its end is not.
fn live_or_end(bench: &Bench<'_>) -> Verdict {
    match live(bench) {
        Err(Stop::Skip(_)) | Ok(()) => Ok(()),
        Err(Stop::Finding(_)) => drop_an_engine(bench),
    }
}

fn drop_an_engine(bench: &Bench<'_>) -> Verdict {
    drop(bench.init()?);
    Ok(())
}

fn again(bench: &Bench<'_>) -> Verdict {
    live_or_end(bench)?;
    let (threads, descriptors) = (process::threads(), process::open_descriptors());
    for turn in 2..=bench.times(3, 10) {
        bench.trail.begin();
        live_or_end(bench).map_err(|stop| match stop {
            Stop::Finding(finding) => Stop::seen(format!("At the {turn}. time: {}", finding.seen)),
            skip @ Stop::Skip(_) => skip,
        })?;
    }
    if let Some(threads) = threads {
        let now = process::threads_fall_to(threads).unwrap_or(threads);
        ensure!(now <= threads, "{} more threads each time.", now - threads);
    }
    let now = process::open_descriptors();
    ensure!(now <= descriptors, "{} more file descriptors are open after each time.", now - descriptors);
    Ok(())
}

fn leaves_the_process(bench: &Bench<'_>) -> Verdict {
    let before = State::now();
    live_or_end(bench)?;
    let changes = before.changes(&State::now());
    ensure!(changes.is_empty(), "After engine_shutdown {}.", changes.join("; "));
    Ok(())
}

fn silent(bench: &Bench<'_>, output: &std::path::Path, name: &str) -> Verdict {
    live_or_end(bench)?;
    process::flush();
    let words = fs::read(output).unwrap_or_default();
    let words = String::from_utf8_lossy(&words);
    let first = words.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    ensure!(words.is_empty(), "It wrote to {name}: {first:?}.");
    Ok(())
}

fn stdout(bench: &Bench<'_>) -> Verdict {
    silent(bench, &bench.stdout, "stdout")
}

fn stderr(bench: &Bench<'_>) -> Verdict {
    silent(bench, &bench.stderr, "stderr")
}
