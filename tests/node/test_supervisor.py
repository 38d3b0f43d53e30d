"""The supervisor with real worker processes and a toy engine that misbehaves on demand."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_node._core import Fault
from support.house import House, assert_childless, house_in

GIB = 1 << 30
GPU = {
    "index": 0,
    "name": "GPU",
    "bus_id": "00000000:01:00.0",
    "total_bytes": 24 * GIB,
    "free_bytes": 20 * GIB,
    "kind": "gpu",
}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path) as house:
        yield house


def test_many_loads_are_one(house: House) -> None:
    model = house.add("toy")
    results = [house.outcome(ticket) for ticket in [house.begin_load(model) for _ in range(6)]]
    assert len({json.dumps(result) for result in results}) == 1
    assert len(results) == 6
    assert results[0]["status"] == "loaded"
    assert house.state(model)["status"] == "loaded"


def test_streams_end_once_each(house: House) -> None:
    model = house.add("toy")
    house.load(model)
    streams = {house.submit(model, text=f"Hello {n}") for n in range(12)}
    events = house.events(streams)
    for events_of_one in events.values():
        assert [event.kind for event in events_of_one].count("finished") == 1
        assert events_of_one[0].kind == "started"
        assert events_of_one[-1].completion_tokens == 8
    house.core.cancel(max(streams))  # unknown by now
    assert house.state(model)["streams"] == 0


def test_a_cancelled_stream_ends(house: House) -> None:
    model = house.add("toy", FAKE_STEP_US=2000)
    house.load(model)
    stream = house.submit(model, max_tokens=1000)
    house.core.cancel(stream)
    assert house.events({stream})[stream][-1].finish == "cancelled"


def test_what_is_not_loaded_wants_a_load(house: House) -> None:
    model = house.add("toy")
    assert house.fault(lambda: house.submit(model)).code == "model_loading"
    assert house.fault(lambda: house.load("toys")).code == "model_not_found"
    assert "'toy'" in house.fault(lambda: house.load("toys")).message
    assert house.fault(lambda: house.unload(model, 1)).code == "model_not_found"
    house.load(model)
    other = house.add("other")
    fault = house.fault(lambda: house.load(model, engine=other))
    assert fault.code == "format_mismatch"


def test_a_crash_ends_its_streams_and_costs_patience(house: House) -> None:
    bad, good = house.add("bad", FAKE_CRASH_AFTER_STEPS=3), house.add("good")
    house.load(bad)
    house.load(good)
    streams = {house.submit(bad, max_tokens=100) for _ in range(3)}
    well = house.submit(good)
    events = house.events(streams | {well})
    assert events[well][-1].kind == "finished"
    for stream in streams:
        last = events[stream][-1]
        assert last.fault is not None
        assert last.fault.code == "engine_crashed"
        call = "died in engine.batch/1 step: signal 11 (SIGSEGV)"
        assert last.fault.message == f"Engine 'bad' of model 'bad' {call}"
        assert last.fault.details == {"retry_after": 1}
    state = house.state(bad)
    assert (state["status"], state["error"]["code"]) == ("failed", "engine_crashed")
    # Short pauses are waited out.
    for text, pause in (("another", 2), ("a third", 4)):
        assert house.fault(lambda: house.submit(bad)).code == "model_loading"
        house.load(bad)
        stream = house.submit(bad, max_tokens=100, text=text)
        assert house.fault_of(stream).details == {"retry_after": pause}
    for call in (lambda: house.load(bad), lambda: house.submit(bad)):
        fault = house.fault(call)
        assert fault.code == "engine_crashed"
        assert fault.details in ({"retry_after": 4}, {"retry_after": 3})
    house.unload(bad, 1)
    assert house.state(bad)["status"] == "available"


def test_a_killed_worker_is_noticed(house: House) -> None:
    model = house.add("toy", FAKE_STEP_US=5000)
    house.load(model)
    stream = house.submit(model, max_tokens=1000)
    os.kill(house.state(model)["pid"], signal.SIGKILL)
    fault = house.events({stream})[stream][-1].fault
    assert fault is not None
    assert "signal 9 (SIGKILL)" in fault.message
    assert house.reserved() == 0


def test_a_hang_has_a_deadline_and_a_name(tmp_path: Path) -> None:
    house = House(tmp_path, load_timeout_seconds=2, probe_timeout_seconds=2)
    in_init = house.add("init", FAKE_HANG_IN_INIT=None)
    house.add("constructor", FAKE_HANG_IN_CONSTRUCTOR=None)
    fault = house.fault(lambda: house.load(in_init))
    assert fault.code == "timeout"
    assert "engine_init did not return within 2 s" in fault.message
    verdicts = {engine["id"]: engine for engine in house.engine_rows()}
    assert verdicts["init"]["status"] == "loaded"
    assert verdicts["constructor"]["error"]["kind"] == "TimedOut"
    assert "dlopen did not return within 2 s" in verdicts["constructor"]["error"]["message"]
    house.shutdown()
    assert_childless()


def test_unload_lets_answers_end(house: House) -> None:
    model = house.add("toy", FAKE_STEP_US=5000)
    house.load(model)
    assert house.reserved() > 0
    stream = house.submit(model, max_tokens=40)
    house.unload(model, 30)
    assert house.events({stream})[stream][-1].finish == "length"
    assert house.state(model)["status"] == "available"
    assert house.reserved() == 0
    assert house.load(model)["status"] == "loaded"


def test_unload_waits_no_longer_than_said(house: House) -> None:
    model = house.add("toy", FAKE_HANG_ON_BYTE=ord("!"))
    house.load(model)
    stream = house.submit(model, text="stop here!")
    house.unload(model, 0.5)
    fault = house.events({stream})[stream][-1].fault
    assert fault is not None
    assert fault.code == "shutting_down"
    assert house.state(model)["status"] == "available"


def test_an_unload_gives_a_load_up(house: House) -> None:
    model = house.add("toy", FAKE_HANG_IN_LOAD=None)
    load = house.begin_load(model)
    house.wait_for_load(model)
    house.unload(model, 5)
    fault = house.fault(lambda: house.outcome(load))
    assert (fault.code, fault.details) == ("shutting_down", {"retry_after": 1})
    assert house.state(model)["status"] == "available"


def test_shutdown_ends_what_hangs(tmp_path: Path) -> None:
    house = House(tmp_path)
    hanging, loading = house.add("toy", FAKE_HANG_ON_BYTE=ord("!")), house.add("slow", FAKE_HANG_IN_LOAD=None)
    house.load(hanging)
    stream = house.submit(hanging, text="stop here!")
    load = house.begin_load(loading)
    house.wait_for_load(loading)
    began = time.monotonic()
    house.core.shutdown(2)
    assert time.monotonic() - began < 8
    assert_childless()
    assert house.fault(lambda: house.outcome(load)).code == "shutting_down"
    assert house.events({stream})[stream][-1].kind == "failed"
    assert house.fault(lambda: house.load(hanging)).code == "shutting_down"
    house.shutdown()


def test_memory_that_is_not_there(tmp_path: Path) -> None:
    house = House(tmp_path, vram_limit_bytes=8 * GIB, devices=[GPU], gpu_backend="cpu")
    model = house.add("giant", FAKE_NO_MEMORY=None)
    # 16 GiB without a byte of them on the disk; the engine cannot say, so the file's size counts.
    os.truncate(house.models / "giant.giant", 16 * GIB)
    fault = house.fault(lambda: house.load(model))
    assert (fault.code, fault.message) == ("oom_vram", "Insufficient VRAM: required 16GB, available 8GB")
    assert fault.details is not None
    (device,) = fault.details["devices"]  # type: ignore[misc]
    assert device["required_bytes"] == 16 * GIB
    assert device["limit_bytes"] == 8 * GIB
    assert house.state(model)["status"] == "failed"
    house.shutdown()

    house = House(tmp_path / "plain")
    model = house.add("giant", FAKE_NO_MEMORY=None)
    os.truncate(house.models / "giant.giant", 1 << 43)
    fault = house.fault(lambda: house.load(model))
    assert fault.code == "oom_ram"
    assert fault.message.startswith("Insufficient RAM: required 8192GB, available ")
    house.shutdown()


def test_without_a_gpu_every_load_says_so(tmp_path: Path) -> None:
    house = House(tmp_path, gpu_backend=None)
    model = house.add("toy")
    for wanted in (model, "unknown"):
        assert house.fault(lambda wanted=wanted: house.load(wanted)).code == "gpu_not_found"  # type: ignore[misc]
    house.shutdown()


def test_a_worker_that_cannot_start(tmp_path: Path) -> None:
    for command_line, seconds, words in [
        (["/does/not/exist"], 60, "/does/not/exist"),
        ([sys.executable, "-c", "print('no worker'); raise SystemExit(3)"], 60, "exit code 3"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], 1, "did not start within 1 s"),
    ]:
        house = House(tmp_path, worker_command=command_line, start_timeout_seconds=seconds)
        house.add("toy")
        (engine,) = house.engine_rows()
        assert (engine["status"], engine["error"]["kind"]) == ("rejected", "NotProbed")
        assert words in engine["error"]["message"]
        house.shutdown()
        assert_childless()


def test_a_configuration_with_an_unknown_field(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="unknown field `vram`"):
        House(tmp_path, vram=8)
