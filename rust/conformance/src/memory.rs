//! `engine.memory/1`: what is said of memory, and what is taken.

use llm_node_abi::ERR_BUFFER_TOO_SMALL;
use llm_node_core::engine::StepEngine;
use llm_node_host::{Context, ContextParams, EngineError, MemoryUse, ModelParams};

use crate::bench::{Bench, context, plain_tokens};
use crate::check::{Check, Level, Stop, Verdict, ensure};
use crate::raw::{calls, process};
use crate::world::fed;

pub(crate) const CHECKS: &[Check] = &[
    Check {
        name: "memory.devices",
        level: Level::Must,
        what: "Every device has a name, no more free memory than memory, and there is none beyond their number.",
        contract: "Where weights and caches can lie.",
        mend: "Fill every member of EngineDevice, and return ERR_NOT_FOUND for an index beyond device_count.",
        after: &["life.init"],
        ask: devices,
    },
    Check {
        name: "memory.estimate",
        level: Level::Must,
        what: "An estimate is made of the same files twice alike, on devices that exist, and a larger cache costs more.",
        contract: "What load(model) and create(context) would take together, without doing either",
        mend: "Count weights, cache and the rest from the file's headers, with device an index below device_count or \
               ENGINE_DEVICE_HOST.",
        after: &["models.load", "memory.devices"],
        ask: estimate,
    },
    Check {
        name: "memory.weights",
        level: Level::Should,
        what: "An estimate and the use of a loaded model hold its weights.",
        contract: "What one model takes on one device.",
        mend: "Count the weights: without them the node counts the model's files instead.",
        after: &["memory.estimate"],
        ask: weights,
    },
    Check {
        name: "memory.usage",
        level: Level::Must,
        what: "The use of a loaded model fits its devices, grows with a context and falls when that is destroyed.",
        contract: "What a loaded model takes now, its contexts included.",
        mend: "Count what each context of the model holds, add it in create and take it off in destroy.",
        after: &["models.load", "memory.devices"],
        ask: usage,
    },
    Check {
        name: "memory.capacity",
        level: Level::Must,
        what: "Room for no element is not written beyond, and the count says how many there are.",
        contract: "Writes at most `capacity` elements, one per device concerned; *count is how many there are.",
        mend: "Write only the first `capacity` elements, and set *count to how many there are all the same.",
        after: &["memory.usage"],
        ask: capacity,
    },
    Check {
        name: "memory.promise",
        level: Level::Should,
        what: "An estimate is no less than what is used afterwards, and at most a quarter and 64 MiB more.",
        contract: "What load(model) and create(context) would take together, without doing either",
        mend: "Make estimate and usage from the same figures.",
        after: &["memory.estimate", "memory.usage"],
        ask: promise,
    },
    Check {
        name: "memory.truth",
        level: Level::Should,
        what: "What the process takes of the host's memory is what the model says it takes.",
        contract: "What a loaded model takes now, its contexts included.",
        mend: "Count buffers of the engine as `compute`: the node gives other models what you do not count.",
        after: &["memory.usage"],
        ask: truth,
    },
    Check {
        name: "memory.struct-size",
        level: Level::Must,
        what: "memory.device_get writes nothing behind the end of a struct of an older or a newer host.",
        contract: "Who is given it reads or writes no member beyond that size",
        mend: "Copy min(device->struct_size, sizeof mine) bytes of a struct of your own.",
        after: &["memory.devices"],
        ask: struct_size,
    },
];

const MIB: u64 = 1 << 20;

fn total(uses: &[MemoryUse]) -> u64 {
    uses.iter().map(MemoryUse::total).sum()
}

fn devices(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.memory/1")?;
    let devices = engine.devices()?;
    for device in &devices {
        ensure!(!device.name.is_empty(), "Device {} has an empty name.", device.index);
        ensure!(
            device.free_bytes <= device.total_bytes,
            "Device {} has {} bytes free of {}.",
            device.index,
            device.free_bytes,
            device.total_bytes
        );
    }
    for beyond in [devices.len() as u32, u32::MAX] {
        ensure!(
            !calls::device_exists(&engine, beyond),
            "There are {} devices, and memory.device_get({beyond}) succeeded.",
            devices.len()
        );
    }
    Ok(())
}

fn params(tokens: u64) -> ContextParams {
    ContextParams { max_sequences: 2, context_length: 64, cache_tokens: tokens, ..ContextParams::default() }
}

fn estimate(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.memory/1")?;
    let model = ModelParams::new(bench.model_path()?);
    let ask = |context: Option<&ContextParams>| match engine.estimate(&model, context) {
        Err(EngineError::Failed { code, .. }) if code == llm_node_abi::ERR_UNSUPPORTED => {
            Err(Stop::skip("the engine does not estimate"))
        }
        other => other.map_err(Stop::from),
    };
    let alone = ask(None)?;
    ensure!(ask(None)? == alone, "Two estimates of the same file differ.");
    if !engine.offers("engine.batch/1") {
        return Ok(());
    }
    let (small, large) = (ask(Some(&params(128)))?, ask(Some(&params(1 << 16)))?);
    ensure!(
        total(&small) >= total(&alone),
        "With a context a model is estimated at {} bytes, and without one at {}.",
        total(&small),
        total(&alone)
    );
    ensure!(
        total(&large) >= total(&small),
        "With a cache of 65536 tokens a model is estimated at {} bytes, and with one of 128 at {}.",
        total(&large),
        total(&small)
    );
    Ok(())
}

fn weights(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.memory/1")?;
    let of = |uses: &[MemoryUse]| uses.iter().map(|one| one.weights).sum::<u64>();
    ensure!(of(&model.memory_use()?) > 0, "memory.usage of a loaded model has no weights.");
    match model.engine().estimate(&ModelParams::new(bench.model_path()?), None) {
        Ok(uses) => ensure!(of(&uses) > 0, "memory.estimate of a model has no weights."),
        Err(EngineError::Failed { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn usage(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.memory/1")?;
    let alone = model.memory_use()?;
    let devices = model.engine().devices()?;
    for one in &alone {
        if let Some(device) = one.device.and_then(|index| devices.get(index as usize)) {
            ensure!(
                one.total() <= device.total_bytes,
                "The model takes {} bytes of device {}, which has {}.",
                one.total(),
                device.index,
                device.total_bytes
            );
        }
    }
    if !model.engine().offers("engine.batch/1") || !model.info().generates {
        return Ok(());
    }
    let cache = |uses: &[MemoryUse]| uses.iter().map(|one| one.cache).sum::<u64>();
    let made = Context::create(&model, &params(0))?;
    let with = model.memory_use()?;
    let per_token: u64 = with.iter().map(|one| one.cache_per_token).sum();
    let due = per_token * made.limits().cache_tokens;
    ensure!(
        cache(&with) >= due,
        "With a cache of {} tokens, of {per_token} bytes each, memory.usage says that caches take {} bytes.",
        made.limits().cache_tokens,
        cache(&with)
    );
    let second = Context::create(&model, &params(0))?;
    let both = cache(&model.memory_use()?);
    ensure!(
        per_token == 0 || both > cache(&with),
        "A second context changed nothing in what memory.usage says of caches."
    );
    drop((made, second));
    let after = cache(&model.memory_use()?);
    ensure!(
        after <= cache(&alone),
        "When its contexts were destroyed, caches of the model took {after} bytes, and {} before.",
        cache(&alone)
    );
    Ok(())
}

fn capacity(bench: &Bench<'_>) -> Verdict {
    let model = bench.model_with("engine.memory/1")?;
    let number = model.memory_use()?.len();
    for room in [0, number] {
        let Some(filled) = calls::usage(&model, room) else { return Ok(()) };
        ensure!(!filled.overrun, "memory.usage wrote beyond the {room} elements that it was given.");
        ensure!(
            filled.count == number,
            "With room for {room} elements memory.usage says that there are {}, and else {number}.",
            filled.count as isize
        );
        if let Err(EngineError::Failed { code, .. }) = filled.result {
            ensure!(
                room < number && code == ERR_BUFFER_TOO_SMALL,
                "With room for {room} elements of {number} memory.usage returned {code}."
            );
        }
    }
    Ok(())
}

fn promise(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.memory/1")?;
    let path = ModelParams::new(bench.model_path()?);
    let context = params(0);
    let with = engine.offers("engine.batch/1").then_some(&context);
    let estimated = match engine.estimate(&path, with) {
        Err(EngineError::Failed { .. }) => return Err(Stop::skip("the engine does not estimate")),
        other => total(&other?),
    };
    let model = bench.load(&engine)?;
    let made = match with {
        Some(params) if model.info().generates => Some(Context::create(&model, params)?),
        _ => None,
    };
    let used = total(&model.memory_use()?);
    drop(made);
    let what = match with {
        Some(params) => format!(
            "For a context of {} sequences of {} tokens each",
            params.max_sequences, params.context_length
        ),
        None => "For the model alone".to_owned(),
    };
    ensure!(estimated >= used, "{what} {estimated} bytes were estimated, and {used} are used.");
    ensure!(
        estimated <= used + used / 4 + 64 * MIB,
        "{what} {estimated} bytes were estimated, and only {used} are used."
    );
    Ok(())
}

fn truth(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.memory/1")?;
    bench.model_path()?;
    process::give_back();
    let Some(before) = process::resident() else { return Err(Stop::skip("the system does not say")) };
    let model = bench.load(&engine)?;
    let mut made = None;
    if engine.offers("engine.batch/1") && model.info().generates {
        let vocabulary = plain_tokens(&model)?;
        let context = made.insert(context(&model, 2)?);
        for token in vocabulary.iter().cycle().take(context.limits().context_length.min(64) as usize) {
            fed(context, 0, &[*token])?;
        }
    }
    let taken = process::resident().unwrap_or(before).saturating_sub(before);
    let uses = model.memory_use()?;
    let said: u64 = uses.iter().filter(|one| one.device.is_none()).map(MemoryUse::total).sum();
    // Code that ran for the first time, and what an allocator keeps.
    let allowed = said + said / 4 + 64 * MIB;
    ensure!(
        taken <= allowed,
        "The process grew by {} MiB, and memory.usage says that the model takes {} MiB of the host.",
        taken / MIB,
        said / MIB
    );
    Ok(())
}

fn struct_size(bench: &Bench<'_>) -> Verdict {
    let engine = bench.engine_with("engine.memory/1")?;
    if engine.devices()?.is_empty() {
        return Err(Stop::skip("there is no device"));
    }
    if let Some(size) = calls::device_overrun(&engine)? {
        return Err(Stop::seen(format!(
            "memory.device_get wrote behind the end of a struct of {size} bytes."
        )));
    }
    Ok(())
}
