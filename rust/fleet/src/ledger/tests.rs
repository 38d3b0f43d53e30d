use llm_node_core::error::{ErrorCode, Fault};
use proptest::prelude::*;
use serde_json::json;

use super::{commitment::UNSAID, *};
use crate::{DeviceKind, DeviceState, ProcessUse, Reading};

const GIB: u64 = 1 << 30;

fn gpu(index: u32, free: u64) -> Device {
    Device {
        index,
        name: "GPU".into(),
        bus_id: Some(format!("00000000:0{index}:00.0")),
        uuid: None,
        total_bytes: 24 * GIB,
        free_bytes: free,
        kind: DeviceKind::Gpu,
        processes: Vec::new(),
        state: DeviceState::Ok,
        look: None,
    }
}

fn host(total: u64, free: u64) -> Device {
    let (total_bytes, free_bytes) = (total, free);
    let (kind, processes) = (DeviceKind::Host, Vec::new());
    let (state, look) = (DeviceState::Ok, None);
    Device {
        index: 0,
        name: HOST.into(),
        bus_id: None,
        uuid: None,
        total_bytes,
        free_bytes,
        kind,
        processes,
        state,
        look,
    }
}

fn reading(device: Device) -> Reading {
    Reading { began: Moment::default(), devices: vec![device], is_whole: false }
}

/// It takes what its engine estimated.
fn done(ledger: &mut Ledger, worker: WorkerId, uses: &[MemoryUse]) {
    let Commitment { excess, shortage, .. } = ledger.commit(worker, uses);
    assert_eq!((excess, shortage), (None, None));
}

fn ledger(devices: impl IntoIterator<Item = Device>, on_cpu: bool, limit: impl Into<MemoryLimit>) -> Ledger {
    // Nothing is left to others.
    let mut ledger = Ledger::new(on_cpu, limit.into()).reserving(Some(0));
    devices.into_iter().for_each(|device| drop(ledger.read(reading(device))));
    ledger
}

/// A refusal names every device concerned.
fn reserve(
    ledger: &mut Ledger,
    worker: WorkerId,
    uses: &[MemoryUse],
    model_id: &str,
    is_pinned: bool,
) -> Result<(), Fault> {
    let has_room = ledger.room(uses, |other| other != worker);
    assert_eq!(ledger.reserve(worker, uses, model_id, is_pinned), has_room.is_ok());
    has_room
}

fn use_on(bus_id: Option<&str>, bytes: u64) -> MemoryUse {
    MemoryUse {
        device: "CUDA0".into(),
        bus_id: bus_id.map(str::to_owned),
        is_host: bus_id.is_none(),
        weights: bytes,
        ..MemoryUse::default()
    }
}

#[test]
fn the_limit_is_kept_and_worded_as_specified() {
    for (on_cpu, bus_id) in [(false, Some("0000:00:00.0")), (true, None)] {
        let devices = [gpu(0, 20 * GIB), host(64 * GIB, 60 * GIB)];
        let mut ledger = ledger(devices, on_cpu, Some(8 * GIB));
        let fault = reserve(&mut ledger, 1, &[use_on(bus_id, 16 * GIB)], "big", false).unwrap_err();
        assert_eq!(fault.message, "Insufficient VRAM: required 16GB, available 8GB");
        assert_eq!(fault.code, ErrorCode::OomVram);
        let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
        assert_eq!(details["devices"][0]["required_bytes"], 16 * GIB);
        assert_eq!(details["devices"][0]["limit_bytes"], 8 * GIB);
        reserve(&mut ledger, 1, &[use_on(bus_id, 2 * GIB)], "small", false).unwrap();
        let fault = reserve(&mut ledger, 2, &[use_on(bus_id, 16 * GIB)], "big", false).unwrap_err();
        assert_eq!(fault.message, "Insufficient VRAM: required 16GB, available 6GB");
        let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
        assert_eq!(details["holders"][0]["model_id"], "small");
    }
}

#[test]
fn where_no_gpu_s_memory_can_be_seen_the_limit_counts_on_the_host() {
    let ledger = ledger([host(64 * GIB, 60 * GIB)], false, Some(8 * GIB));
    let of_gpu = [MemoryUse { is_host: false, ..use_on(None, 16 * GIB) }];
    let fault = ledger.room(&of_gpu, |_| true).unwrap_err();
    assert_eq!(fault.message, "Insufficient VRAM: required 16GB, available 8GB");
}

#[test]
fn each_device_has_a_limit_of_its_own() {
    let limits = [("1".to_owned(), 8 * GIB), (":02:00.0".to_owned(), 4 * GIB)];
    let gpus = [0, 1, 2].map(|index| gpu(index, 20 * GIB));
    let devices = gpus.into_iter().chain([host(64 * GIB, 60 * GIB)]);
    let ledger = ledger(devices, false, MemoryLimit::Of(limits.into()));
    let limit_of = |account: &Account| account.limit_bytes;
    let found: Vec<u64> = ledger.accounts().iter().map(limit_of).collect();
    assert_eq!(found[..3], [24 * GIB, 8 * GIB, 4 * GIB]);
    assert!(found[3] > 50 * GIB, "the host's memory is nobody's GPU");
    for (bus_id, fits, limit) in [("0000:00:00.0", 20, 20), ("0000:01:00.0", 8, 8), ("0000:02:00.0", 4, 4)] {
        assert!(ledger.room(&[use_on(Some(bus_id), fits * GIB)], |_| true).is_ok());
        let fault = ledger.room(&[use_on(Some(bus_id), (fits + 1) * GIB)], |_| true).unwrap_err();
        let expected = format!("Insufficient VRAM: required {}GB, available {limit}GB", fits + 1);
        assert_eq!(fault.message, expected);
    }
}

#[test]
fn what_is_promised_is_not_promised_twice() {
    let mut ledger = ledger([gpu(0, 10 * GIB), gpu(1, 10 * GIB)], false, None);
    let (first, second) = (Some("0000:00:00.0"), Some("0000:01:00.0"));
    reserve(&mut ledger, 1, &[use_on(first, 6 * GIB)], "one", false).unwrap();
    let refused = reserve(&mut ledger, 2, &[use_on(first, 6 * GIB)], "two", false).unwrap_err();
    assert_eq!(refused.message, "Insufficient VRAM: required 6GB, available 4GB");
    reserve(&mut ledger, 2, &[use_on(second, 6 * GIB)], "two", false).unwrap();
    // Once loaded, a fresh figure shows the model; it must not be counted a second time.
    done(&mut ledger, 1, &[use_on(first, 5 * GIB)]);
    ledger.read(reading(gpu(0, 5 * GIB)));
    reserve(&mut ledger, 3, &[use_on(first, 5 * GIB)], "three", false).unwrap();
    for worker in 1..=3 {
        ledger.release(Moment::default(), worker, SETTLE);
    }
    assert!(ledger.accounts().iter().all(|account| account.reserved_bytes == 0));
}

#[test]
fn plain_memory_is_not_video_memory() {
    let mut ledger = ledger([host(64 * GIB, 60 * GIB)], true, None);
    let fault = reserve(&mut ledger, 1, &[use_on(None, 1 << 50)], "huge", false).unwrap_err();
    assert_eq!(fault.code, ErrorCode::OomRam);
    assert_eq!(fault.message, "Insufficient RAM: required 1048576GB, available 64GB");
    let fault = reserve(&mut ledger, 1, &[use_on(None, 62 * GIB)], "large", false).unwrap_err();
    assert_eq!(fault.message, "Insufficient RAM: required 62GB, available 60GB");
}

#[test]
fn what_is_taken_counts_whatever_was_reserved() {
    let bus_id = Some("0000:00:00.0");
    let taken = |granted: u64, said: u64, seen: Option<u64>| {
        let mut ledger = ledger([gpu(0, 20 * GIB)], false, Some(8 * GIB));
        reserve(&mut ledger, 1, &[use_on(bus_id, granted)], "one", false).unwrap();
        ledger.runs_as(1, 77);
        if let Some(bytes) = seen {
            let processes = vec![ProcessUse { pid: 78, bytes: 1 }, ProcessUse { pid: 77, bytes }];
            ledger.read(reading(Device { processes, ..gpu(0, 20 * GIB - bytes) }));
        }
        let Commitment { measured, excess, shortage, is_disturbed } =
            ledger.commit(1, &[use_on(bus_id, said)]);
        let held = ledger.accounts()[0].reserved_bytes;
        assert_eq!((measured.iter().map(MemoryUse::total).sum::<u64>(), is_disturbed), (held, false));
        (held, excess.is_some(), shortage.map(|fault| fault.message))
    };
    assert_eq!(taken(4 * GIB, 3 * GIB, None), (3 * GIB, false, None));
    assert_eq!(taken(4 * GIB, 3 * GIB, Some(4 * GIB)), (4 * GIB, false, None));
    let little = 4 * GIB + UNSAID.max(4 * GIB / 50);
    assert_eq!(taken(4 * GIB, little, None), (little, false, None));
    assert_eq!(taken(4 * GIB, 4 * GIB, Some(little + 1)), (little + 1, true, None));
    let short = "Insufficient VRAM: required 9GB, available 8GB";
    assert_eq!(taken(4 * GIB, GIB, Some(9 * GIB)), (9 * GIB, true, Some(short.into())));
    assert_eq!(taken(8, 8, Some(9 * GIB)), (9 * GIB, true, Some(short.into())), "the device lost as much");
}

#[test]
fn the_number_of_another_s_process_is_not_believed() {
    let bus_id = Some("0000:00:00.0");
    let mut ledger = ledger([gpu(0, 20 * GIB)], false, None);
    reserve(&mut ledger, 1, &[use_on(bus_id, GIB)], "one", false).unwrap();
    ledger.runs_as(1, 77);
    let processes = vec![ProcessUse { pid: 77, bytes: 9 * GIB }];
    ledger.read(reading(Device { processes, ..gpu(0, 19 * GIB) }));
    done(&mut ledger, 1, &[use_on(bus_id, GIB)]);
    assert_eq!(ledger.accounts()[0].reserved_bytes, GIB);
}

#[test]
fn where_no_process_is_believed_what_a_gpu_has_less_counts_and_else_the_engine_s_word() {
    let bus_id = Some("0000:00:00.0");
    let said = [use_on(bus_id, 2 * GIB)];
    let process = |pid, gib| vec![ProcessUse { pid, bytes: gib * GIB }];
    for (fell, processes, is_disturbed, holds) in [
        (3, vec![], false, 3),
        // A container: the host's number for it, and ours for another.
        (3, process(4711, 3), false, 3),
        (3, process(77, 9), false, 3),
        (4, process(77, 3), false, 3),
        (1, vec![], false, 2),
        // So much is somebody else's.
        (6, vec![], false, 2),
        (3, vec![], true, 2),
    ] {
        let mut ledger = ledger([gpu(0, 20 * GIB)], false, None);
        reserve(&mut ledger, 1, &said, "one", false).unwrap();
        ledger.runs_as(1, 77);
        if is_disturbed {
            reserve(&mut ledger, 2, &said, "two", false).unwrap();
            ledger.withdraw(2);
        }
        ledger.read(reading(Device { processes, ..gpu(0, (20 - fell) * GIB) }));
        let commitment = ledger.commit(1, &said);
        let account = &ledger.accounts()[0];
        let held = (account.reserved_bytes, account.unexplained_bytes);
        assert_eq!(held, (holds * GIB, (holds - 2) * GIB), "{fell}");
        assert_eq!(commitment.excess.is_some(), holds > 2);
    }
    // What was found once stays, whatever is loaded beside it and whichever context it gets.
    let mut ledger = ledger([gpu(0, 20 * GIB)], false, None);
    reserve(&mut ledger, 1, &said, "one", false).unwrap();
    ledger.read(reading(gpu(0, 17 * GIB)));
    ledger.commit(1, &said);
    ledger.read(reading(gpu(0, 5 * GIB)));
    reserve(&mut ledger, 1, &[use_on(bus_id, 4 * GIB)], "one", false).unwrap();
    ledger.commit(1, &[use_on(bus_id, 3 * GIB)]);
    assert_eq!(ledger.accounts()[0].reserved_bytes, 4 * GIB);
    // A context made smaller is not reserved for first, and what others took since is not the model's.
    let mut ledger = self::ledger([gpu(0, 20 * GIB)], false, None);
    reserve(&mut ledger, 1, &[use_on(bus_id, 4 * GIB)], "one", false).unwrap();
    ledger.read(reading(gpu(0, 16 * GIB)));
    ledger.commit(1, &[use_on(bus_id, 4 * GIB)]);
    ledger.read(reading(gpu(0, 17 * GIB)));
    ledger.commit(1, &said);
    assert_eq!(ledger.accounts()[0].reserved_bytes, 2 * GIB);
}

#[test]
fn loads_beside_each_other_are_known_as_such() {
    let (first, second) = (Some("0000:00:00.0"), Some("0000:01:00.0"));
    let mut ledger = ledger([gpu(0, 10 * GIB), gpu(1, 10 * GIB)], false, None);
    for (worker, bus_id) in [(1, first), (2, second), (3, first)] {
        reserve(&mut ledger, worker, &[use_on(bus_id, GIB)], "m", false).unwrap();
    }
    let disturbed = [1, 2, 3].map(|worker| ledger.commit(worker, &[]).is_disturbed);
    assert_eq!(disturbed, [true, false, true]);
}

#[test]
fn what_has_gone_counts_until_the_gpu_shows_most_of_it_free() {
    let bus_id = Some("0000:00:00.0");
    let settle = Duration::from_secs(5);
    let at = |seconds| Moment(Duration::from_secs(seconds));
    let gone = |is_loaded: bool| {
        let mut ledger = ledger([gpu(0, 20 * GIB)], false, Some(20 * GIB));
        reserve(&mut ledger, 1, &[use_on(bus_id, 10 * GIB)], "one", false).unwrap();
        if is_loaded {
            ledger.commit(1, &[use_on(bus_id, 10 * GIB)]);
        }
        ledger.read(reading(gpu(0, 10 * GIB)));
        ledger.release(at(10), 1, settle);
        ledger
    };
    for is_loaded in [true, false] {
        let mut ledger = gone(is_loaded);
        ledger.read(reading(gpu(0, 10 * GIB)));
        let needs = [use_on(bus_id, 11 * GIB)];
        assert!(ledger.room(&needs, |_| true).is_err() && ledger.hope(at(12), 0, &needs).is_ok());
        assert!(ledger.room(&[use_on(bus_id, 9 * GIB)], |_| true).is_ok());
        let account = &ledger.accounts()[0];
        assert_eq!((account.reserved_bytes, account.settling_bytes), (0, 10 * GIB));
        ledger.read(reading(gpu(0, 18 * GIB)));
        assert!(!ledger.is_calm(at(13)) && ledger.settles_by() == Some(at(15)));
        assert!(ledger.given_up(at(14)).is_empty());
        ledger.read(reading(gpu(0, 19 * GIB)));
        assert!(ledger.is_calm(at(13)) && ledger.room(&needs, |_| true).is_ok());
    }
    let mut ledger = gone(true);
    let words = ledger.given_up(at(15));
    assert_eq!(words, [("one".to_owned(), "10GB of GPU".to_owned())]);
    assert!(ledger.hope(at(15), 0, &[use_on(bus_id, 11 * GIB)]).is_err(), "it is somebody else's now");
}

#[test]
fn the_longest_context_is_that_for_which_there_would_be_room() {
    let bus_id = Some("0000:00:00.0");
    let mut ledger = ledger([gpu(0, 20 * GIB)], false, Some(10 * GIB));
    let uses = [MemoryUse {
        cache: GIB,
        compute: GIB,
        cache_per_token: 1 << 20,
        cache_per_sequence: 1 << 20,
        ..use_on(bus_id, 6 * GIB)
    }];
    let longest = |ledger: &Ledger, length| ledger.largest_context(&uses, |it| ledger.is_pinned(it), length);
    let whole = 3 * 1024 - 256;
    assert_eq!(longest(&ledger, None), Some(whole), "a token less than 3072, and engines round it up");
    assert_eq!([longest(&ledger, Some(100)), longest(&ledger, Some(3071))], [Some(100), Some(3071)]);
    assert_eq!(longest(&ledger, Some(3072)), Some(whole));
    assert_eq!(ledger.largest_context(&[use_on(bus_id, GIB)], |_| true, None), None);
    reserve(&mut ledger, 1, &[use_on(bus_id, 3 * GIB)], "one", false).unwrap();
    assert_eq!(longest(&ledger, None), Some(whole), "one would go");
    assert_eq!(ledger.largest_context(&uses, |_| true, None), Some(0), "where it would not");
    ledger.pin(1, true);
    assert_eq!(longest(&ledger, None), Some(0));
}

#[test]
fn what_is_pinned_is_no_hope() {
    let mut ledger = ledger([gpu(0, 10 * GIB)], false, None);
    let bus_id = Some("0000:00:00.0");
    let now = Moment::default();
    reserve(&mut ledger, 1, &[use_on(bus_id, 4 * GIB)], "one", false).unwrap();
    reserve(&mut ledger, 2, &[use_on(bus_id, 4 * GIB)], "two", true).unwrap();
    for worker in [1, 2] {
        done(&mut ledger, worker, &[use_on(bus_id, 4 * GIB)]);
    }
    ledger.read(reading(gpu(0, 2 * GIB)));
    assert!(ledger.room(&[use_on(bus_id, 6 * GIB)], |worker| worker == 2).is_ok());
    assert!(ledger.hope(now, 0, &[use_on(bus_id, 6 * GIB)]).is_ok());
    let fault = ledger.hope(now, 0, &[use_on(bus_id, 7 * GIB)]).unwrap_err();
    assert_eq!(fault.message, "Insufficient VRAM: required 7GB, available 6GB");
    let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
    assert_eq!(
        (&details["holders"][0]["kept_by"], &details["holders"][1]["kept_by"]),
        (&json!(null), &json!("pin"))
    );
    // While a load is under way, and just after somebody has gone, what is free is not known so well.
    reserve(&mut ledger, 3, &[use_on(bus_id, GIB)], "three", false).unwrap();
    ledger.read(reading(gpu(0, GIB)));
    assert!(!ledger.is_calm(now) && ledger.hope(now, 0, &[use_on(bus_id, 19 * GIB)]).is_ok());
    ledger.release(now, 3, SETTLE);
    ledger.read(reading(gpu(0, 2 * GIB)));
    assert!(!ledger.is_calm(now) && ledger.is_calm(now + SETTLE));
    ledger.pin(2, false);
    assert!(ledger.hope(now + SETTLE, 0, &[use_on(bus_id, 10 * GIB)]).is_ok());
}

fn unified(index: u32, total: u64) -> Device {
    Device { kind: DeviceKind::Unified, total_bytes: total, ..gpu(index, total) }
}

#[test]
fn a_gpu_that_shares_the_host_s_memory_has_one_account_with_it() {
    let bus_id = Some("0000:00:00.0");
    let mut ledger = ledger([unified(0, 64 * GIB), host(64 * GIB, 60 * GIB)], false, None);
    let both = [use_on(bus_id, 20 * GIB), use_on(None, 10 * GIB)];
    reserve(&mut ledger, 1, &both, "one", false).unwrap();
    for uses in [[use_on(bus_id, 31 * GIB)], [use_on(None, 31 * GIB)]] {
        let fault = reserve(&mut ledger, 2, &uses, "two", false).unwrap_err();
        assert_eq!(fault.message, "Insufficient RAM: required 31GB, available 30GB");
        let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
        assert_eq!(details["devices"].as_array().unwrap().len(), 1);
        assert_eq!(
            (&details["devices"][0]["id"], &details["holders"][0]["bytes"]),
            (&json!(HOST), &json!(30 * GIB))
        );
    }
    // What is told of it is told once.
    let accounts = ledger.accounts();
    let told =
        |account: &Account| (account.account.clone(), account.device.total_bytes, account.reserved_bytes);
    assert_eq!(told(&accounts[0]), (HOST.to_owned(), 0, 0));
    assert_eq!(told(&accounts[1]), (HOST.to_owned(), 64 * GIB, 30 * GIB));
    assert_eq!((accounts[0].device.kind_word(), accounts[0].holders.len()), ("unified", 0));
    // Of the host's part so much shows as taken as was touched; of the GPU's all.
    ledger.runs_as(1, 77);
    done(&mut ledger, 1, &both);
    let processes = vec![ProcessUse { pid: 77, bytes: GIB }];
    ledger.read(reading(Device { processes, ..host(64 * GIB, 39 * GIB) }));
    assert_eq!(ledger.accounts()[1].foreign_bytes, 4 * GIB);
    assert!(ledger.room(&[use_on(bus_id, 30 * GIB)], |_| true).is_ok());
    assert!(ledger.room(&[use_on(bus_id, 31 * GIB)], |_| true).is_err());
    // It is back as soon as its process is gone.
    ledger.release(Moment::default(), 1, SETTLE);
    assert_eq!(ledger.settling().count(), 0);
}

#[test]
fn what_a_gpu_is_seen_to_take_of_shared_memory_counts_beside_the_host_s_part() {
    let bus_id = Some("0000:00:00.0");
    let uses = [use_on(bus_id, 4 * GIB), use_on(None, GIB)];
    for (seen, counts) in [(5, 7), (9, 6)] {
        let mut ledger = ledger([unified(0, 64 * GIB), host(64 * GIB, 60 * GIB)], false, None);
        reserve(&mut ledger, 1, &uses, "one", false).unwrap();
        ledger.runs_as(1, 77);
        let process = |gib: u64| vec![ProcessUse { pid: 77, bytes: gib * GIB }];
        ledger.read(reading(Device { processes: process(seen), ..unified(0, 64 * GIB) }));
        ledger.read(reading(Device { processes: process(2), ..host(64 * GIB, 50 * GIB) }));
        ledger.commit(1, &uses);
        assert_eq!(ledger.accounts()[1].reserved_bytes, counts * GIB, "{seen}");
    }
}

#[test]
fn the_limits_of_shared_memory_are_those_of_one_account() {
    let limits = |limit: MemoryLimit, devices: &[Device]| {
        let ledger = ledger(devices.to_vec(), false, limit);
        ledger.accounts().iter().map(|account| account.limit_bytes / GIB).collect::<Vec<_>>()
    };
    let (shared, host) = (unified(0, 48 * GIB), host(64 * GIB, 60 * GIB));
    assert_eq!(limits(MemoryLimit::Each(8 * GIB), &[shared.clone(), host.clone()]), [0, 8]);
    let of = |name: &str| MemoryLimit::Of([(name.to_owned(), 8 * GIB)].into());
    assert_eq!(limits(of("0"), &[shared.clone(), host.clone()]), [0, 8]);
    // So much of it the GPU can use.
    assert_eq!(limits(of("1"), &[shared.clone(), host.clone()]), [0, 48]);
    assert_eq!(limits(MemoryLimit::None, &[unified(0, 64 * GIB), host.clone()]), [0, 64]);
    // Beside a GPU with memory of its own nothing is placed there.
    let (both, ledger) =
        ([gpu(0, 20 * GIB), Device { index: 1, ..unified(1, 48 * GIB) }, host], MemoryLimit::Each(8 * GIB));
    assert_eq!(limits(ledger, &both), [8, 0, 57]);
    let ledger = self::ledger(both, false, None);
    assert_eq!(ledger.gpus_for_models().iter().map(|gpu| gpu.index).collect::<Vec<_>>(), [0]);
    let fault = self::ledger([shared, self::host(64 * GIB, 60 * GIB)], false, Some(8 * GIB))
        .room(&[use_on(Some("0000:00:00.0"), 16 * GIB)], |_| true)
        .unwrap_err();
    assert_eq!(
        (fault.code, &*fault.message),
        (ErrorCode::OomVram, "Insufficient VRAM: required 16GB, available 8GB")
    );
}

proptest! {
    #[test]
    fn shared_memory_is_never_promised_twice(
        limit in 0u64..1000,
        actions in prop::collection::vec((0u64..3, 0u64..600, 0u64..600, 0u64..600, 0u64..8), 0..60),
    ) {
        let gpus = [0, 1].map(|index| Device { bus_id: None, ..unified(index, limit) });
        let mut ledger = ledger(gpus.into_iter().chain([host(limit, limit)]), false, None);
        let mut taken: BTreeMap<WorkerId, u64> = BTreeMap::new();
        for (kind, first, second, plain, worker) in actions {
            let on = |number: usize, bytes| MemoryUse { device: format!("CUDA{number}"), ..use_on(Some("none"), bytes) };
            let uses = [on(0, first), on(1, second), use_on(None, plain)];
            if kind == 0 {
                ledger.release(Moment::default(), worker, SETTLE);
                taken.remove(&worker);
            } else if !ledger.holds(worker) && reserve(&mut ledger, worker, &uses, "m", false).is_ok() {
                taken.insert(worker, first + second + plain);
                done(&mut ledger, worker, &uses);
            }
            let sum: u64 = taken.values().sum();
            prop_assert!(sum <= limit);
            let told: u64 = ledger.accounts().iter().map(|account| account.reserved_bytes).sum();
            let holders = ledger.accounts().into_iter().flat_map(|account| account.holders);
            prop_assert_eq!((told, holders.map(|holder| holder.bytes).sum::<u64>()), (sum, sum));
        }
    }

    #[test]
    fn never_oversubscribed(
        limits in prop::collection::vec(0u64..1000, 1..4),
        actions in prop::collection::vec(
            (0u64..3, prop::collection::vec((0usize..4, prop_oneof![0u64..600, Just(u64::MAX)]), 1..4), 0u64..8),
            0..60,
        ),
    ) {
        let device = |(index, limit): (usize, &u64)| Device {
            total_bytes: *limit,
            bus_id: None,
            ..gpu(index as u32, *limit)
        };
        let mut ledger = ledger(limits.iter().enumerate().map(device), false, None);
        // What is taken may be more than there is.
        let mut is_measured = false;
        for (kind, needs, worker) in actions {
            let uses: Vec<MemoryUse> = needs
                .iter()
                .map(|(index, bytes)| MemoryUse { device: format!("CUDA{index}"), ..use_on(Some("none"), *bytes) })
                .collect();
            match kind {
                0 if !ledger.holds(worker) => drop(reserve(&mut ledger, worker, &uses, "m", false)),
                1 => is_measured |= ledger.commit(worker, &uses).measured.iter().any(|it| it.total() > 0),
                _ => ledger.release(Moment::default(), worker, SETTLE),
            }
            for account in ledger.accounts() {
                prop_assert!(account.reserved_bytes <= account.limit_bytes || is_measured);
                let held = account.holders.iter().fold(0, |sum: u64, holder| sum.saturating_add(holder.bytes));
                prop_assert_eq!(held, account.reserved_bytes);
            }
        }
    }
}

/// Where an engine cannot say, a guess reserves more than the files, and never refuses what they leave room for.
#[test]
fn a_guess_takes_no_more_than_there_is() {
    let ledger = ledger([host(24 * GIB, 20 * GIB)], true, Some(8 * GIB));
    let total = |bytes| ledger.guess(bytes, &[]).iter().map(MemoryUse::total).sum::<u64>();
    assert_eq!(total(100 << 20), 371 << 20);
    for files in [7 * GIB + GIB / 2, 8 * GIB] {
        assert_eq!(total(files), 8 * GIB);
        assert!(ledger.has_room(&ledger.guess(files, &[]), |_| true));
    }
    assert_eq!(total(16 * GIB), 16 * GIB, "a refusal says the size of the files");
}
