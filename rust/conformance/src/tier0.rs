//! The functions of tier 0, where the engine answers through them.

use std::ffi::CString;
use std::fs;
use std::path::PathBuf;

use llm_node_host::{EngineError, LoadedEngine};

use crate::bench::Bench;
use crate::check::{Check, Finding, Level, Stop, Verdict, ensure};
use crate::raw::{calls, process};

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "tier0.load",
        level: Level::Must,
        what: "A model is loaded, and loaded again in the place of the one before it.",
        contract: "Makes the model at `model_path` (a file, or a directory) the one model of tier 0, in the place of \
                   the one before it.",
        mend: "Free the model before, load the new one, and return ERR_OK.",
        after: &["life.init"],
        ask: load,
    },
    Check {
        name: "tier0.bad-files",
        level: Level::Must,
        what: "What is no model brings an error, and neither a crash nor an end of the process.",
        contract: "no exit or abort for a bad model",
        mend: "Check what you read from a file before you use it as a length or an index.",
        after: &["tier0.load"],
        ask: bad_files,
    },
    Check {
        name: "tier0.generate",
        level: Level::Must,
        what: "The results can be read, end with an element without text, and are no more than max_tokens.",
        contract: "An array of them ENDS WITH an element whose `text` is NULL",
        mend: "Put one more element, all zeros, behind the last token.",
        after: &["tier0.load"],
        ask: generate,
    },
    Check {
        name: "tier0.results",
        level: Level::Must,
        what: "Results stay as they are until the next call, and the prompt's memory is not used after its call.",
        contract: "The array and all it points to belong to the engine, and are valid until the next call",
        mend: "Copy what you need of the prompt: its memory is the host's, and gone when engine_generate returns.",
        after: &["tier0.generate"],
        ask: results,
    },
    Check {
        name: "tier0.prompts",
        level: Level::Must,
        what: "An empty prompt, a very long one, and one that is no UTF-8 bring tokens or an error.",
        contract: "Generates, and blocks until it is done.",
        mend: "Cut or refuse with ERR_INVALID_ARGUMENT what the model cannot take.",
        after: &["tier0.generate"],
        ask: prompts,
    },
    Check {
        name: "tier0.memory",
        level: Level::Should,
        what: "Memory does not grow from call to call.",
        contract: "Nobody frees what the other side allocated.",
        mend: "Free the results of the call before at the begin of the next one, and what else a call allocates.",
        after: &["tier0.generate"],
        ask: memory,
    },
];

/// The engine with its model, if it answers through tier 0.
fn loaded(bench: &Bench<'_>) -> Result<LoadedEngine, Stop> {
    let path = bench.model_path()?;
    let mut engine = bench.init_alone()?;
    match engine.tier0_load(path) {
        Err(EngineError::Failed { code, .. })
            if code == llm_node_abi::ERR_UNSUPPORTED && engine.offers("engine.models/1") =>
        {
            Err(Stop::skip("the engine answers through engine.models/1 alone"))
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(engine),
    }
}

fn load(bench: &Bench<'_>) -> Verdict {
    let mut engine = loaded(bench)?;
    engine.tier0_load(bench.model_path()?)?;
    Ok(())
}

/// Files that are no models, or only the beginning of one.
pub(crate) fn no_models(bench: &Bench<'_>, folder: &std::path::Path) -> Result<Vec<(String, PathBuf)>, Stop> {
    let own = |error: std::io::Error| Stop::skip(format!("no file can be written: {error}"));
    let ending = bench.model_path()?.extension().unwrap_or_default().to_owned();
    let mut files = vec![
        ("a file that does not exist".to_owned(), folder.join("nowhere").with_extension(&ending)),
        ("a directory".to_owned(), folder.to_owned()),
    ];
    let mut write = |name: &str, bytes: &[u8]| -> Result<(), Stop> {
        let path = folder.join(files.len().to_string()).with_extension(&ending);
        fs::write(&path, bytes).map_err(own)?;
        files.push((name.to_owned(), path));
        Ok(())
    };
    write("an empty file", &[])?;
    let mut rng = bench.rng(0);
    let random: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(4096).collect();
    write("random bytes", &random)?;
    write("zeros", &[0; 4096])?;
    if let Ok(model) = fs::read(bench.model_path()?) {
        let lengths = bench.times(6, 40);
        let most = model.len().min(64 << 20);
        for part in 1..=lengths {
            let end = most * part / (lengths + 1);
            write(&format!("the first {end} bytes of the model"), &model[..end])?;
        }
        // Lengths and counts stand in the beginning.
        for _ in 0..lengths {
            let mut damaged = model[..most].to_vec();
            let at = rng.usize(..most.clamp(1, 256));
            if let Some(byte) = damaged.get_mut(at) {
                *byte = byte.wrapping_add(rng.u8(1..));
            }
            write(&format!("the model with another byte {at}"), &damaged)?;
        }
    }
    Ok(files)
}

fn bad_files(bench: &Bench<'_>) -> Verdict {
    let mut engine = loaded(bench)?;
    let folder = tempfile::tempdir().map_err(|error| Stop::skip(error.to_string()))?;
    for (name, path) in no_models(bench, folder.path())? {
        bench.trail.begin();
        bench.trail.call(&format!("engine_load_model: {name}"));
        let taken = engine.tier0_load(&path);
        known(&taken)?;
    }
    // What was loaded before may be gone; the engine is not.
    engine.tier0_load(bench.model_path()?)?;
    engine.tier0_generate("Hello")?;
    Ok(())
}

/// Is a code that failed one of the header's?
pub(crate) fn known(result: &Result<(), EngineError>) -> Verdict {
    if let Err(EngineError::Failed { code, call, .. }) = result {
        ensure!(code.name().is_some(), "{call} returned {}, which is no code of the header.", code.0);
    }
    Ok(())
}

fn generate(bench: &Bench<'_>) -> Verdict {
    let mut engine = loaded(bench)?;
    let most = bench.config().max_tokens as usize;
    let generated = engine.tier0_generate("Hello, world")?;
    ensure!(
        generated.tokens.len() <= most,
        "engine_generate made {} tokens, where EngineConfig.max_tokens is {most}.",
        generated.tokens.len()
    );
    Ok(())
}

/// Where results must lie.
const KEEP: &str = "Keep the array of results, and the texts that it points to, in memory that is the engine's until the \
                    next call: not on the stack, and not freed before.";

fn results(bench: &Bench<'_>) -> Verdict {
    let mut engine = loaded(bench)?;
    let gone = |seen: String, mend: &str| {
        Stop::Finding(Finding { seen, mend: Some(mend.to_owned()), script: Vec::new() })
    };
    // While the prompt is there, what cannot be read lies where nothing stays.
    let unreadable = |stop: Stop| match stop {
        Stop::Finding(Finding { seen, .. }) => gone(seen, KEEP),
        other @ Stop::Skip(_) => other,
    };
    bench.trail.call("engine_generate: with a prompt that stays");
    let mut prompt = calls::Prompt::new(b"Hello, world");
    let first = prompt.generate(&mut engine)?;
    let before = first.read().map_err(unreadable)?;
    // The allocator hands out again what was freed, and the stack is written to.
    let noise: Vec<Vec<u8>> = (0..64).map(|index| vec![0x5a; 16 << (index % 10)]).collect();
    std::hint::black_box(&noise);
    let kept = first.read().map_err(unreadable)?;
    if kept != before {
        return Err(gone(
            format!(
                "The results of engine_generate changed before the next call, while the prompt was still there: {}",
                differing(&before, &kept)
            ),
            KEEP,
        ));
    }
    prompt.overwrite();
    let kept = first.read()?;
    if kept != before {
        return Err(gone(
            format!(
                "The results of engine_generate changed when the prompt's memory was overwritten after the call: {}",
                differing(&before, &kept)
            ),
            "Copy what you need of the prompt into memory of the engine's own: the texts of the results must not point into \
             the prompt.",
        ));
    }
    drop(prompt);
    bench.trail.call(
        "engine_generate: again. The memory of the prompt before is gone: who has kept its address dies of reading it",
    );
    calls::tier0_generate(&mut engine, b"Hello, world")?.read()?;
    Ok(())
}

/// In which token two readings of the same results differ first.
fn differing(before: &[Vec<u8>], now: &[Vec<u8>]) -> String {
    let same = before.iter().zip(now).take_while(|(a, b)| a == b).count();
    let text = |all: &[Vec<u8>]| {
        all.get(same).map_or("nothing".to_owned(), |it| format!("{:?}", String::from_utf8_lossy(it)))
    };
    format!("the text of element {same} was {}, and is {} now.", text(before), text(now))
}

fn prompts(bench: &Bench<'_>) -> Verdict {
    let mut engine = loaded(bench)?;
    let long = "word ".repeat(bench.times(20_000, 200_000));
    let prompts: [(&str, &[u8]); 6] = [
        ("nothing", b""),
        ("a space", b" "),
        ("a long text", long.as_bytes()),
        ("no UTF-8", b"\xff\xfe half \xc3"),
        ("a byte order mark", b"\xef\xbb\xbfHello"),
        ("other scripts", "Привет, мир! 你好 🌍".as_bytes()),
    ];
    for (name, prompt) in prompts {
        bench.trail.begin();
        bench.trail.call(&format!("engine_generate: of {name}"));
        let result = calls::tier0_generate(&mut engine, prompt);
        match result {
            Ok(results) => drop(results.read()?),
            Err(error) => known(&Err(error))?,
        }
    }
    Ok(())
}

fn memory(bench: &Bench<'_>) -> Verdict {
    let mut engine = loaded(bench)?;
    let times = bench.times(40, 200);
    let prompt = CString::new("Hello").unwrap_or_default();
    let mut run = |times: usize| -> Verdict {
        for _ in 0..times {
            calls::tier0_generate(&mut engine, prompt.as_bytes())?;
        }
        process::give_back();
        Ok(())
    };
    run(8)?;
    let limit = 2 << 10;
    let each = process::growth(times, limit, run)?.ok_or_else(|| Stop::skip("the system does not say"))?;
    ensure!(each < limit, "The process grew by {each} bytes with each call of engine_generate.");
    Ok(())
}
