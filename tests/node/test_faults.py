"""What one model, one engine or one client does wrong, and what all others notice of it: nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llm_node._core import Fault
from support.house import CLIENT, House, house_in
from support.node import children_of, wait_for_ends

SOON = 20
"""Far below the deadline of whatever hangs, and far above what a busy machine needs."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with house_in(tmp_path, load_timeout_seconds=600) as house:
        yield house


def tokenize(house: House, model: str, text: str = "hello") -> int:
    return house.ask(model, Tokenize={"text": text, "add_special": False, "parse_special": False})


# ---- nobody waits for another ----------------------------------------------------------------------


def test_questions_that_hang_hold_up_nobody(house: House) -> None:
    hanging, well = house.add("hanging", FAKE_EMBED_US=600_000_000), house.add("well")
    house.load(hanging)
    house.load(well)
    questions = [house.ask(hanging, Embed={"inputs": [{"text": "x"}]}) for _ in range(64)]
    for ticket in (house.core.models(), house.core.system(), house.core.engines(), tokenize(house, well)):
        house.outcome(ticket, SOON)
    house.core.forget(questions[0])
    house.unload(hanging, 0)
    for question in questions[1:]:
        assert house.fault(lambda question=question: house.outcome(question)).code == "shutting_down"  # type: ignore[misc]


def test_loads_that_hang_hold_up_nobody(house: House) -> None:
    hanging = [house.add(f"hanging{n}", FAKE_HANG_IN_LOAD=None) for n in range(2)]
    well = house.add("well")
    loads = [house.begin_load(model) for model in hanging for _ in range(100)]
    for model in hanging:
        house.wait_for_load(model)
    house.outcome(house.begin_load(well), SOON)
    house.outcome(house.core.unload(well, 5), SOON)
    for model in hanging:
        house.outcome(house.core.unload(model, 5), SOON)
    faults = [house.fault(lambda load=load: house.outcome(load, SOON)) for load in loads]  # type: ignore[misc]
    assert {(fault.code, json.dumps(fault.details)) for fault in faults} == {
        ("shutting_down", '{"retry_after": 1}')
    }


def test_six_crashes_in_a_row_and_only_an_order_loads_it_again(house: House) -> None:
    model = house.add("toy", FAKE_CRASH_IN_LOAD=None)
    for crashes in range(1, 7):
        fault = house.fault(lambda: house.load(model, for_request=True))
        assert fault.code == "engine_crashed"
        crash = house.state(model)["last_crash"]
        assert crash["in_a_row"] == crashes
        pause = (fault.details or {})["retry_after"]
        if crashes < 6:
            assert pause == 2 ** (crashes - 1)
            house.wait_for_state(
                model, lambda state: (state["status"], state.get("retry_after")) == ("failed", 0)
            )
    assert pause is None
    told = "Model 'toy' has crashed 6 times in a row, so requests do not load it any more: load or unload it"
    for call in (lambda: house.load(model, for_request=True), lambda: house.submit(model)):
        fault = house.fault(call)
        assert (fault.code, fault.details) == ("engine_crashed", {"retry_after": None})
        assert "signal 11 (SIGSEGV)" in fault.message and told in fault.message
    state = house.state(model)
    assert (state["status"], state["error"]["message"]) == ("failed", fault.message)
    assert "retry_after" not in state
    assert state["last_crash"] == crash, "nothing was begun"
    # Who orders it begins anew, and so does who asks after an unload.
    assert house.fault(lambda: house.load(model)).details == {"retry_after": 1}
    house.unload(model, 1)
    assert house.state(model)["status"] == "available"
    assert house.fault(lambda: house.load(model, for_request=True)).details == {"retry_after": 1}


def test_who_comes_while_a_model_is_unloaded_gets_it_loaded(house: House) -> None:
    model = house.add("toy", FAKE_STEP_US=20_000)
    house.load(model)
    stream = house.submit(model, max_tokens=100)
    unload = house.core.unload(model, 60)
    house.wait_for_state(model, lambda state: state["draining"] is True)
    load = house.begin_load(model)
    house.outcome(unload)
    assert house.events({stream})[stream][-1].finish == "length"
    assert house.outcome(load)["status"] == "loaded"


# ---- a worker's end --------------------------------------------------------------------------------


def test_a_helper_of_the_engine_neither_hides_the_death_of_its_worker_nor_outlives_it(house: House) -> None:
    model = house.add("toy", FAKE_FORK_IN_INIT=None, FAKE_STEP_US=5000)
    for end in ("kill", "unload"):
        house.load(model)
        worker = house.state(model)["pid"]
        helpers = children_of(worker)
        assert helpers
        if end == "kill":
            stream = house.submit(model, max_tokens=1000)
            house.wait_for_token(stream)
            os.kill(worker, signal.SIGKILL)
            assert "signal 9 (SIGKILL)" in house.fault_of(stream).message
            assert house.state(model)["status"] == "failed"
        house.unload(model, 1)
        wait_for_ends(helpers)


@pytest.mark.parametrize("source", ["batch", "stream", "tier0"])
def test_a_worker_that_stands_still_is_ended_and_its_requests_are_told(tmp_path: Path, source: str) -> None:
    fewer: dict[str, Any] = {
        "batch": {},
        "stream": {"FAKE_NO_BATCH": None},
        "tier0": {"FAKE_NO_EXTENSIONS": None},
    }
    with house_in(tmp_path, step_timeout_seconds=3) as house:
        model = house.add("toy", FAKE_STEP_US=20_000, **fewer[source])
        assert house.load(model)["facts"]["source"] == source
        os.kill(house.state(model)["pid"], signal.SIGSTOP)
        stream = house.submit(model, max_tokens=1000) if source == "batch" else None
        request = {"prompt": {"text": "Hello"}, "max_tokens": 1000}
        stream = stream or house.core.submit(model, json.dumps(request), 7)
        fault = house.fault_of(stream)
        assert fault.code == "engine_crashed"
        assert fault.message.startswith("Engine 'toy' of model 'toy' stood still in engine")
        assert "nothing was heard of its worker for" in fault.message
        assert house.state(model)["last_crash"]["signal"] == signal.SIGKILL


def test_a_long_prompt_that_is_being_read_is_no_standstill(tmp_path: Path) -> None:
    """All of it takes longer than one call may."""
    with house_in(tmp_path, step_timeout_seconds=2) as house:
        model = house.add("toy", FAKE_TOKEN_US=2500)
        house.load(model)
        worker, began = house.state(model)["pid"], time.monotonic()
        stream = house.submit(model, text="a" * 1900)
        assert house.events({stream})[stream][-1].kind == "finished"
        assert time.monotonic() - began > 4
        assert house.state(model)["pid"] == worker


def test_a_model_that_stands_still_is_named_and_may_go_on(tmp_path: Path) -> None:
    with house_in(tmp_path, step_timeout_seconds=3) as house:
        model = house.add("toy")
        house.load(model)
        worker = house.state(model)["pid"]
        assert house.core.standstill() is None
        os.kill(worker, signal.SIGSTOP)
        house.wait_for_state(model, lambda state: state["silent_seconds"] > 3)
        standstill = house.core.standstill()
        assert standstill is not None
        assert standstill.startswith("Model 'toy' stands still in engine.batch/1 step: ")
        os.kill(worker, signal.SIGCONT)
        house.wait_for_state(model, lambda state: state["silent_seconds"] == 0)
        assert house.core.standstill() is None
        stream = house.submit(model)
        assert house.events({stream})[stream][-1].kind == "finished"
        assert house.state(model)["pid"] == worker, "who owes nothing may be silent"


# ---- wishes ----------------------------------------------------------------------------------------


def test_what_is_loaded_is_joined_by_who_wants_the_same_or_less(house: House) -> None:
    model = house.add("toy")
    loaded = house.load(model, context_length=128, max_sequences=2, options={"step_us": 0})
    assert loaded["facts"]["context_length"] == 128
    for joins in (
        {},
        {"context_length": 128},
        {"context_length": 64, "max_sequences": 1, "cache_tokens": 256},
        {"options": {"step_us": "0"}, "max_sequences": 2, "engine": "toy"},
    ):
        assert house.load(model, **joins) == loaded


def test_who_wants_another_option_has_the_model_loaded_anew(house: House) -> None:
    model = house.add("toy")
    house.load(model, context_length=128, options={"step_us": 3000})
    worker = house.state(model)["pid"]
    stream = house.submit(model, max_tokens=100)
    house.wait_for_token(stream)
    other = house.begin_load(model, options={"step_us": 2000}, threads=2)
    joins = house.begin_load(model)
    result = house.outcome(other)
    assert house.outcome(joins)["facts"] == result["facts"]
    assert house.events({stream})[stream][-1].completion_tokens == 100, "no answer is cut"
    state = house.state(model)
    assert state["pid"] != worker and result["facts"]["context_length"] == 128
    system = house.outcome(house.core.system())
    (row,) = system["workers"]
    assert (row["options"]["options"], row["options"]["threads"]) == ({"step_us": 2000}, 2)
    assert system["events"]["replaced"] == 1
    (house.models / "bad.toy").write_bytes(b"NOT1")
    for impossible, code in (
        ({"draft_model": "nosuch"}, "model_not_found"),
        ({"engine": "nosuch"}, "engine_not_found"),
        ({"draft_model": "bad"}, "model_corrupt"),
    ):
        fault = house.fault(lambda impossible=impossible: house.load(model, **impossible))  # type: ignore[misc]
        assert fault.code == code, fault.message
    assert house.state(model)["pid"] == state["pid"], "nothing goes for what cannot be"


def test_a_model_that_was_loaded_for_a_request_is_there_when_the_request_comes(tmp_path: Path) -> None:
    """However long its way is, up to ten seconds, and whoever waits for the room."""
    with house_in(tmp_path, vram_limit_bytes=64 << 20, max_wait_seconds=60) as house:
        small = {"max_sequences": 1, "context_length": 100}
        first, other = (house.add(name, FAKE_ESTIMATE_BYTES=40 << 20) for name in ("first", "other"))
        house.load(first, for_request=True, **small)
        waiting = house.begin_load(other, **small)
        house.wait_for_state(other, lambda state: state["status"] == "waiting")
        time.sleep(1.5)  # three times as long as a model stays that is only loaded
        stream = house.submit(first)
        assert house.events({stream})[stream][-1].kind == "finished"
        assert house.outcome(waiting)["status"] == "loaded"


def test_what_cannot_be_loaded_anew_stays_as_it_was(house: House) -> None:
    model = house.add("toy", FAKE_LAYERS_TOO_MANY=7)
    house.load(model, context_length=100, threads=3)
    worker = house.state(model)["pid"]
    fault = house.fault(lambda: house.load(model, chat_template="{% if %}"))
    assert (fault.code, fault.param) == ("invalid_request", "chat_template")
    assert house.state(model)["pid"] == worker, "for what is wrong in itself it does not go"
    fault = house.fault(lambda: house.load(model, gpu_layers=7))
    assert fault.code == "load_failed" and "so many layers" in fault.message
    assert house.state(model)["pid"] == worker, "it has answered meanwhile"
    (row,) = house.outcome(house.core.system())["workers"]
    assert (row["options"]["threads"], row["options"]["context_length"]) == (3, 100)


def test_another_wish_is_refused_while_the_model_is_being_loaded(house: House) -> None:
    model = house.add("toy", FAKE_HANG_IN_LOAD=None)
    load = house.begin_load(model, context_length=128)
    house.wait_for_load(model)
    same = house.begin_load(model, context_length=128)
    longer = house.begin_load(model, context_length=256)
    fault = house.fault(lambda: house.load(model, speculation="off"))
    assert fault.code == "model_loaded_differently"
    assert "is being loaded with speculation lookup; off was asked for" in fault.message
    # Each order comes by a thread of its own.
    house.wait_for_state(model, lambda state: state["waiting"] == 3)
    house.unload(model, 1)
    for waiting in (load, same, longer):
        assert house.fault(lambda waiting=waiting: house.outcome(waiting)).code == "shutting_down"  # type: ignore[misc]


def test_a_longer_context_comes_to_a_model_that_answers_and_the_answer_stays(house: House) -> None:
    model = house.add("toy", FAKE_STEP_US=3000, FAKE_MOST_SEQUENCES=100)
    before = house.load(model, context_length=200, max_sequences=2)
    worker, held = house.state(model)["pid"], house.reserved()

    def greedy() -> int:
        prompt, sampling = {"text": "Hello"}, {"temperature": 0.0}
        request = {"prompt": prompt, "max_tokens": 150, "ignore_eos": True, "sampling": sampling}
        return house.core.submit(model, json.dumps(request), CLIENT)

    def text(stream: int) -> str:
        events = house.events({stream})[stream]
        assert events[-1].kind == "finished" and events[-1].completion_tokens == 150
        return "".join(event.text or "" for event in events if event.kind == "piece")

    quiet = text(greedy())
    stream = greedy()
    house.wait_for_token(stream)
    lengths = (400, 300, 500)  # in whichever order they come to it
    tickets = [house.begin_load(model, context_length=length) for length in lengths]
    results = [house.outcome(ticket) for ticket in tickets]
    found = [result["facts"]["context_length"] for result in results]
    assert all(has >= wanted for has, wanted in zip(found, lengths, strict=True)) and found[2] == 500
    assert text(stream) == quiet
    state = house.state(model)
    assert (state["pid"], state["status"]) == (worker, "loaded")
    memory = [use["total_bytes"] for use in results[2]["memory"]]
    assert house.reserved() >= sum(memory) > 0 and held > 0
    long = house.submit(model, text="a" * 400, max_tokens=8)
    assert house.events({long})[long][-1].kind == "finished"
    fault = house.fault(lambda: house.load(model, context_length=1 << 20))
    assert (fault.code, fault.param) == ("invalid_request", "context_length")
    fault = house.fault(lambda: house.load(model, max_sequences=101))
    assert "sequences" in fault.message, "its engine takes no more"
    assert house.load(model)["facts"]["context_length"] == 500, "and it is what it was"
    assert house.reserved() >= sum(memory)
    assert (before["engine"], house.state(model)["pid"]) == (results[2]["engine"], worker)


def test_a_longer_context_that_does_not_fit_is_refused_and_the_model_stays(tmp_path: Path) -> None:
    with house_in(tmp_path, vram_limit_bytes=64 << 20) as house:
        model = house.add("toy", FAKE_ESTIMATE_BYTES=1 << 20)
        (house.models / "toy.toy").write_text("TOY1\nn_context=4000000\n")
        house.load(model, context_length=100, max_sequences=1)
        worker = house.state(model)["pid"]
        fault = house.fault(lambda: house.load(model, context_length=4_000_000))
        assert fault.code == "oom_vram" and fault.message.startswith("Insufficient VRAM: required ")
        assert (house.state(model)["pid"], house.state(model)["status"]) == (worker, "loaded")
        stream = house.submit(model)
        assert house.events({stream})[stream][-1].kind == "finished"


def test_an_engine_that_does_not_run_in_steps_is_loaded_anew_for_another_context(house: House) -> None:
    model = house.add("toy", FAKE_NO_EXTENSIONS=None)
    assert house.load(model, context_length=100)["facts"]["context_length"] == 100
    worker = house.state(model)["pid"]
    assert house.load(model, context_length=50)["facts"]["context_length"] == 100
    assert house.state(model)["pid"] == worker
    assert house.load(model, context_length=200)["facts"]["context_length"] == 200
    assert house.state(model)["pid"] != worker
    stream = house.core.submit(model, json.dumps({"prompt": {"text": "Hello"}, "max_tokens": 8}), CLIENT)
    assert house.events({stream})[stream][-1].kind == "finished"


def test_a_worker_that_dies_while_it_makes_its_context_is_a_crash(tmp_path: Path) -> None:
    with house_in(tmp_path) as house:
        model = house.add("toy", FAKE_CRASH_IN_CREATE=2, FAKE_STEP_US=20_000)
        house.load(model, context_length=1000)
        stream = house.submit(model, max_tokens=900)
        fault = house.fault(lambda: house.load(model, context_length=2000))
        assert fault.code == house.fault_of(stream).code == "engine_crashed"
        assert "died in batch.create: signal 11" in fault.message
        assert house.reserved() == 0
    with house_in(tmp_path / "again", load_timeout_seconds=2) as house:
        model = house.add("toy", FAKE_HANG_IN_CREATE=2)
        house.load(model, context_length=1000)
        fault = house.fault(lambda: house.load(model, context_length=2000))
        assert (fault.code, "did not change its context within 2 s" in fault.message) == ("timeout", True)
        assert house.reserved() == 0
    with house_in(tmp_path / "neither", load_timeout_seconds=60) as house:
        model = house.add("toy", FAKE_CONTEXTS=1, FAKE_STEP_US=20_000)
        house.load(model, context_length=1000)
        stream = house.submit(model, max_tokens=900)
        fault = house.fault(lambda: house.load(model, context_length=2000))
        assert "no memory for another of the toy's contexts" in fault.message
        assert house.fault_of(stream).code == "engine_crashed"
        crash = house.wait_for_state(model, lambda state: state["status"] != "loaded")["last_crash"]
        assert crash["ending"] == "exit code 14", crash


def test_whatever_is_ordered_at_once_each_order_ends_and_nothing_is_left(tmp_path: Path) -> None:
    """Loads in several ways, longer contexts, unloads, kills, requests, of three models of which two fit."""
    rng = random.Random(7)
    others = set(children_of(os.getpid()))
    with house_in(tmp_path, vram_limit_bytes=100 << 20, max_wait_seconds=30) as house:
        defines: dict[str, Any] = {"FAKE_STEP_US": 1000, "FAKE_ESTIMATE_BYTES": 40 << 20}
        models = [house.add(name, **defines) for name in ("first", "second", "third")]
        tickets: list[int] = []
        streams: set[int] = set()
        for _ in range(200):
            model = rng.choice(models)
            match rng.choice(("load", "longer", "otherwise", "unload", "kill", "ask", "ask", "ask")):
                case "load":
                    tickets.append(house.begin_load(model, for_request=rng.random() < 0.5))
                case "longer":
                    tickets.append(house.begin_load(model, context_length=rng.randrange(100, 2000)))
                case "otherwise":
                    tickets.append(house.begin_load(model, threads=rng.randrange(1, 3)))
                case "unload":
                    tickets.append(house.core.unload(model, 5))
                case "kill":
                    if (pid := house.state(model).get("pid")) is not None:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                case "ask":
                    try:
                        streams.add(house.submit(model, max_tokens=rng.randrange(1, 60)))
                    except Fault as fault:
                        assert fault.code in ("model_loading", "engine_crashed", "shutting_down"), fault
            time.sleep(rng.random() / 20)
        loaded = 0
        for ticket in tickets:
            try:
                loaded += house.outcome(ticket, 120) is not None
            except Fault as fault:
                expected = ("engine_crashed", "shutting_down", "model_loaded_differently", "model_not_found")
                assert fault.code in (*expected, "model_loading"), fault
        for events in house.events(streams, 120).values():
            assert [event.kind in ("finished", "failed") for event in events].count(True) == 1
        assert loaded and streams
        for model in models:
            with suppress(Fault):
                house.unload(model, 10)
        assert house.reserved() == 0
        assert house.outcome(house.core.system())["workers"] == []
        wait_for_ends(set(children_of(os.getpid())) - others)


def test_a_file_is_one_model_by_whichever_name(house: House) -> None:
    model = house.add("toy")
    assert house.load("toy.toy") == house.load(model)
    assert len(house.outcome(house.core.system())["workers"]) == 1
    stream = house.submit("toy.toy")
    assert house.events({stream})[stream][-1].kind == "finished"
    house.unload("toy.toy", 5)
    assert house.state(model)["status"] == "available"
    house.load(model)
    house.unload("toy.toy", 5)


# ---- a request that kills its engine -----------------------------------------------------------------


def test_a_request_that_kills_its_engine_again_is_not_run_a_third_time(house: House) -> None:
    model = house.add("toy", FAKE_CRASH_ON_BYTE=ord("!"), FAKE_STEP_US=20_000)
    for pause in (1, 1):
        house.load(model)
        beside = house.submit(model, max_tokens=1000, text="I was here before")
        house.wait_for_token(beside)
        poison = house.submit(model, text="bang!")
        fault = house.fault_of(poison)
        assert fault.details == {"retry_after": pause}, "the second time says nothing of the engine"
        assert house.fault_of(beside).message == fault.message
        time.sleep(pause + 0.1)
    house.load(model)
    refusals = [house.fault(lambda: house.submit(model, text="bang!"))]
    assert "2 times in a row" in refusals[0].message
    assert refusals[0].details is not None
    assert refusals[0].details["crashes"] == 2
    well = house.submit(model, max_tokens=10, text="I was here before")
    assert house.events({well})[well][-1].finish == "length"
    house.unload(model, 1)
    house.load(model)
    assert house.fault_of(house.submit(model, text="bang!")).code == "engine_crashed"
