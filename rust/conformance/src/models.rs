//! `engine.models/1`.

use std::ffi::CString;
use std::ops::ControlFlow;

use llm_node_abi::{ERR_CANCELLED, ERR_OK};
use llm_node_host::{EngineError, Model, ModelParams};

use crate::bench::Bench;
use crate::check::{Check, Level, Stop, Verdict, ensure};
use crate::raw::{calls, process};
use crate::tier0::{known, no_models};

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "models.load",
        level: Level::Must,
        what: "The model is loaded, and says what it is.",
        contract: "Loads all of it or nothing. [load]",
        mend: "Set *model to a handle, return ERR_OK, and fill every member of EngineModelInfo.",
        after: &["life.init"],
        ask: load,
    },
    Check {
        name: "models.bad-files",
        level: Level::Must,
        what: "What is no model brings an error that leaves *model as it was, and no crash.",
        contract: "On failure out-parameters are untouched unless stated.",
        mend: "Check what you read from a file before you use it, and write *model last of all.",
        after: &["models.load"],
        ask: bad_files,
    },
    Check {
        name: "models.says-why",
        level: Level::Should,
        what: "A load that fails says why, in words.",
        contract: "Say why with host->set_error() on the same thread before returning.",
        mend: "Call host->set_error with what is wrong with the file, just before you return the code.",
        after: &["models.load"],
        ask: says_why,
    },
    Check {
        name: "models.progress",
        level: Level::Must,
        what: "progress rises from 0 to 1, and a result of it other than 0 ends the load with nothing left.",
        contract: "A result other than 0 ends the load, with ERR_CANCELLED.",
        mend: "Free what was loaded, and return ERR_CANCELLED without touching *model.",
        after: &["models.load"],
        ask: progress,
    },
    Check {
        name: "models.metadata",
        level: Level::Must,
        what: "All metadata can be read, again and again, and there is none beyond their number.",
        contract: "The model file's own metadata: keys as in GGUF where there is one",
        mend: "Return views of memory that lives as long as the model, and ERR_NOT_FOUND beyond meta_count.",
        after: &["models.load"],
        ask: metadata,
    },
    Check {
        name: "models.struct-size",
        level: Level::Must,
        what: "models.info writes nothing behind the end of a struct of an older or a newer host.",
        contract: "Who is given it reads or writes no member beyond that size",
        mend: "Copy min(info->struct_size, sizeof mine) bytes of a struct of your own.",
        after: &["models.load"],
        ask: struct_size,
    },
    Check {
        name: "models.two",
        level: Level::Must,
        what: "Two models are loaded at once, and can be unloaded in either order.",
        contract: "several models, each a handle, and what they are",
        mend: "Keep everything that belongs to a model in its handle, and nothing of it in static variables.",
        after: &["models.load"],
        ask: two,
    },
    Check {
        name: "models.again",
        level: Level::Must,
        what: "Loading and unloading over and over leaves no memory, no descriptor and no thread behind.",
        contract: "Handles are destroyed by the function that belongs to them",
        mend: "Free in unload all that load has allocated, opened or started.",
        after: &["models.load"],
        ask: again,
    },
    Check {
        name: "models.threads",
        level: Level::Must,
        what: "Sixteen threads ask for info and metadata at once.",
        contract: "[any] Any thread, any number at once.",
        mend: "Keep what these functions answer with in the handle, written once by load.",
        after: &["models.metadata"],
        ask: threads,
    },
];

/// Bytes that are lost each time.
const LEAK: u64 = 2 << 10;

fn load(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.models/1")?;
    let info = model.info();
    ensure!(
        info.generates || info.embeds || info.ranks,
        "EngineModelInfo.flags says of the model that it neither generates, embeds nor ranks."
    );
    ensure!(
        !(info.embeds || info.ranks) || info.n_embedding > 0,
        "The model embeds, and EngineModelInfo.n_embedding is 0."
    );
    Ok(())
}

fn bad_files(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.models/1")?;
    let folder = tempfile::tempdir().map_err(|error| Stop::skip(error.to_string()))?;
    for (name, path) in no_models(bench, folder.path())? {
        let Ok(c_path) = CString::new(path.to_string_lossy().as_bytes()) else { continue };
        bench.trail.begin();
        bench.trail.call(&format!("models.load: {name}"));
        let (result, touched) = calls::load(&engine, &c_path);
        known(&result)?;
        match result {
            Ok(()) => ensure!(name != "a file that does not exist", "models.load took {name}."),
            Err(error) => ensure!(!touched, "models.load of {name} failed, and wrote to *model: {error}."),
        }
    }
    bench.trail.begin();
    bench.load(&engine)?;
    Ok(())
}

fn says_why(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.models/1")?;
    bench.model_path()?;
    let folder = tempfile::tempdir().map_err(|error| Stop::skip(error.to_string()))?;
    for (name, path) in no_models(bench, folder.path())?.into_iter().take(4) {
        let loaded = Model::load(&engine, &ModelParams::new(&path), None);
        if let Err(EngineError::Failed { message: None, code, .. }) = loaded {
            return Err(Stop::seen(format!("models.load of {name} returned {code}, and no word.")));
        }
    }
    Ok(())
}

fn progress(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.models/1")?;
    let params = ModelParams::new(bench.model_path()?);
    let mut seen: Vec<f32> = Vec::new();
    Model::load(
        &engine,
        &params,
        Some(&mut |fraction| {
            seen.push(fraction);
            ControlFlow::Continue(())
        }),
    )?;
    if seen.is_empty() {
        return Err(Stop::skip("progress is not called"));
    }
    ensure!(
        seen.iter().all(|fraction| (0.0..=1.0).contains(fraction)) && seen.is_sorted(),
        "progress was called with {:?}.",
        &seen[..seen.len().min(12)]
    );
    let cancelled = Model::load(&engine, &params, Some(&mut |_| ControlFlow::Break(())));
    match cancelled {
        Err(EngineError::Failed { code, .. }) if code == ERR_CANCELLED => {}
        Err(EngineError::Failed { code, .. }) => {
            return Err(Stop::seen(format!("A load that progress ended returned {code}.")));
        }
        Ok(_) => return Err(Stop::seen(format!("A load that progress ended returned {ERR_OK}."))),
        Err(error) => return Err(error.into()),
    }
    bench.load(&engine)?;
    Ok(())
}

fn metadata(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.models/1")?;
    let first = model.metadata()?;
    ensure!(model.metadata()? == first, "The metadata are others when they are asked for again.");
    for beyond in [first.len(), first.len() + 1, usize::MAX] {
        ensure!(
            !calls::metadata_exists(&model, beyond),
            "There are {} metadata, and models.meta_get({beyond}) succeeded.",
            first.len()
        );
    }
    Ok(())
}

fn struct_size(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.models/1")?;
    if let Some(size) = calls::model_info_overrun(&model)? {
        return Err(Stop::seen(format!("models.info wrote behind the end of a struct of {size} bytes.")));
    }
    Ok(())
}

fn two(bench: &Bench<'_>) -> Verdict {
    let first = bench.model_with("engine.models/1")?;
    let second = bench.load(first.engine())?;
    ensure!(first.as_ptr() != second.as_ptr(), "Two loads brought the same handle.");
    ensure!(first.info() == second.info(), "The same file is another model when it is loaded twice.");
    let metadata = first.metadata()?;
    drop(first);
    ensure!(second.metadata()? == metadata, "The metadata of a model changed when another one was unloaded.");
    let third = bench.load(second.engine())?;
    drop(third);
    ensure!(second.metadata()? == metadata, "The metadata of a model changed when another one was unloaded.");
    Ok(())
}

fn again(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.models/1")?;
    bench.model_path()?;
    let turn = |times: usize| -> Result<(), Stop> {
        for _ in 0..times {
            bench.trail.begin();
            bench.load(&engine)?;
        }
        process::give_back();
        Ok(())
    };
    turn(3)?;
    let before = (process::open_descriptors(), process::threads());
    let times = bench.times(20, 100);
    let grown = process::growth(times, LEAK, turn)?;
    let descriptors = process::open_descriptors();
    ensure!(
        descriptors <= before.0,
        "{} descriptors are left open after {times} loads.",
        descriptors - before.0
    );
    if let Some(threads) = before.1 {
        let now = process::threads_fall_to(threads).unwrap_or(threads);
        ensure!(now <= threads, "{} threads are left after {times} loads.", now - threads);
    }
    let each = grown.unwrap_or_default();
    ensure!(each < LEAK, "The process grew by {each} bytes with each load and unload.");
    Ok(())
}

fn threads(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.models/1")?;
    let expected = model.metadata()?;
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| -> Verdict {
                    for _ in 0..20 {
                        ensure!(
                            model.metadata()? == expected,
                            "The metadata are others when several threads ask for them at once."
                        );
                    }
                    Ok(())
                })
            })
            .collect();
        asking.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })
}
