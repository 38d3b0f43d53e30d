"""The same over HTTP, with a real model: what a client sees of what others do, and what the log has of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.engines import fake_engine
from support.node import Answer, RunningNode, descendants_of, running_node, wait_for_ends

QUESTION = {"model": "llm-node-demo", "prompt": "Once upon a time", "max_tokens": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/toy.toy").write_text("TOY1\n")
    return tmp_path


def arguments(engines: Path, folder: Path, *more: str) -> list[str]:
    named = ["--engines-dir", str(engines), "--models-dir", str(folder / "models"), "--gpu-backend", "cpu"]
    return [*named, *more]


def toys(folder: Path, **defines: Any) -> Path:
    fake_engine(folder / "engines", "crashy", defines=defines)
    return folder / "engines"


def wait_for_log(node: RunningNode, pattern: str) -> None:
    deadline = time.monotonic() + 30
    while not re.search(pattern, node.log_text()):
        assert time.monotonic() < deadline, node.log_text()
        time.sleep(0.05)


def test_a_request_outlives_what_another_client_unloads(engines: Path, folder: Path) -> None:
    with running_node(folder / "node", arguments(engines, folder)) as node:
        node.post("/v1/completions", QUESTION)
        for delay in range(12):
            node.post("/api/models/unload", {"model_id": "llm-node-demo"})
            with ThreadPoolExecutor(1) as asking:
                answer = asking.submit(node.post, "/v1/completions", QUESTION)
                time.sleep(0.02 * delay)
                node.post("/api/models/unload", {"model_id": "llm-node-demo", "timeout_seconds": 5})
            assert answer.result().status in (200, 503)
            assert answer.result().status == 200 or "Retry-After" in answer.result().headers


def test_name_and_file_name_are_one_model(engines: Path, folder: Path, demo_model: Path) -> None:
    shutil.copy(demo_model, folder / "models/a.gguf")
    (folder / "models/bad.gguf").write_bytes(demo_model.read_bytes()[:300_000])
    with running_node(folder / "node", arguments(engines, folder)) as node:
        for name in ("a", "a.gguf"):
            assert node.post("/v1/completions", {**QUESTION, "model": name}).status == 200
        assert len(node.workers()) == 1
        messages = {
            node.post("/api/models/load", {"model_id": name}).json()["error"]["message"]
            for name in ("bad", "bad.gguf")
        }
        assert len(messages) == 1, "the node's own reader refuses it by each of its names"
        assert node.post("/api/models/load", {"model_id": "./a"}).status == 404


def test_a_request_alone_of_which_an_engine_dies_costs_one_crash(folder: Path) -> None:
    engines = toys(folder, FAKE_CRASH_ON_BYTE=ord("!"), FAKE_STEP_US=5000)
    asked = {"model": "toy", "prompt": "bang!", "max_tokens": 5}

    def crashes(node: RunningNode) -> int:
        count: int = node.get("/api/system").json()["events"]["crashed"]
        return count

    with running_node(folder / "node", arguments(engines, folder)) as node:
        refused = node.post("/v1/completions", asked)
        assert (refused.status, refused.json()["error"]["code"]) == (503, "engine_crashed"), refused.body
        assert (refused.json()["error"]["crashes"], crashes(node)) == (1, 1), "it is not run again"
        assert node.post("/v1/completions", {**asked, "prompt": "well"}).status == 200
        again = node.post("/v1/completions", asked)
        assert (again.status, crashes(node)) == (503, 2), "its client may have it run again"
        assert node.post("/v1/completions", asked).json()["error"]["crashes"] == 2
        assert crashes(node) == 2, "and then it is not"
        # What somebody ends is not the request's fault: it is run again.
        assert node.post("/v1/completions", {**asked, "prompt": "well"}).status == 200
        with ThreadPoolExecutor(1) as asking:
            pid = node.get("/api/system").json()["workers"][0]["pid"]
            os.kill(pid, signal.SIGSTOP)  # so that nothing of the answer has come
            answer = asking.submit(node.post, "/v1/completions", {**asked, "prompt": "Well " * 200})
            deadline = time.monotonic() + 30
            while not node.get("/api/system").json()["workers"][0].get("streams"):
                assert time.monotonic() < deadline
            os.kill(pid, signal.SIGKILL)
            assert answer.result().status == 200


def test_a_crash_names_engine_model_call_and_signal_and_is_known_later(folder: Path) -> None:
    engines = toys(folder, FAKE_CRASH_AFTER_STEPS=20)
    with running_node(folder / "node", arguments(engines, folder, "--log-level", "debug")) as node:
        body = {"model": "toy", "prompt": "ab", "max_tokens": 60, "ignore_eos": True, "stream": True}
        answer = node.post("/v1/completions", body)
        words = "Engine 'crashy' of model 'toy' died in engine.batch/1 step: signal 11 (SIGSEGV)"
        assert words in answer.body.decode()
        wait_for_log(node, r'"POST /v1/completions" 200 \S+ \S+ engine_crashed')
        wait_for_log(
            node, r"ERROR .*died in engine\.batch/1 step: signal 11 \(SIGSEGV\); it may be loaded again"
        )
        (incident,) = node.get("/api/incidents").json()["incidents"]
        assert (incident["kind"], incident["model_id"], incident["engine"]) == ("crashed", "toy", "crashy")
        assert (incident["call"], incident["signal"]) == ("engine.batch/1 step", signal.SIGSEGV)
        errors = [line for line in node.log_text().splitlines() if " ERROR " in line]
        assert len(errors) == 1, errors
        time.sleep(1.1)
        assert node.post("/api/models/load", {"model_id": "toy"}).status == 200
        (worker,) = node.get("/api/system").json()["workers"]
        (model,) = [row for row in node.get("/api/models").json()["models"] if row["model_id"] == "toy"]
        for row in (worker, model):
            crash = row["last_crash"]
            assert (crash["engine"], crash["call"], crash["signal"]) == ("crashy", "engine.batch/1 step", 11)
            assert abs(crash["at"] - time.time()) < 600
        wait_for_log(
            node,
            r"'toy' is loaded with crashy 1\.0\.0, in \d+ ms: context 2048 tokens, 64 sequences, \d+ MiB",
        )


def test_whoever_comes_after_a_kill_waits_for_the_next_worker(folder: Path) -> None:
    """Also in the moment before the node has noticed, and though no client repeats anything."""
    engines = toys(folder)
    with running_node(folder / "node", arguments(engines, folder)) as node:

        def ask(number: int) -> Answer:
            if number % 4 == 0:
                return node.post("/v1/embeddings", {"model": "toy", "input": f"Number {number}"})
            body = {"model": "toy", "prompt": f"Number {number}", "max_tokens": 3, "stream": number % 2 == 0}
            return node.post("/v1/completions", body)

        for _ in range(2):
            assert node.post("/api/models/load", {"model_id": "toy"}).status == 200
            (worker,) = node.workers()
            os.kill(worker, signal.SIGKILL)
            with ThreadPoolExecutor(20) as asking:
                answers = list(asking.map(ask, range(20)))
            assert [answer.status for answer in answers] == [200] * 20
            assert not any(b"error" in answer.body for answer in answers)
        crashed = [it for it in node.get("/api/incidents").json()["incidents"] if it["kind"] == "crashed"]
        assert len(crashed) == 2


@pytest.mark.parametrize(
    ("define", "kind"), [("CRASH_AFTER_STEPS=2", "crashed"), ("LOAD_CODE=9", "load_failed")]
)
def test_what_a_worker_said_last_is_told_with_its_end(folder: Path, define: str, kind: str) -> None:
    name, _, value = define.partition("=")
    engines = toys(folder, FAKE_TELL_OPENINGS=None, **{f"FAKE_{name}": value})
    with running_node(folder / "node", arguments(engines, folder)) as node:
        body = {"model": "toy", "prompt": "ab", "max_tokens": 60, "ignore_eos": True, "stream": True}
        assert b"error" in node.post("/v1/completions", body).body
        incident = node.get("/api/incidents").json()["incidents"][-1]
        assert (incident["kind"], incident["model_id"]) == (kind, "toy")
        assert "the toy opens a model" in incident["log"]
        assert len(incident["log"]) <= 20


@pytest.mark.parametrize(
    "define", ["HANG_IN_LOAD", "EXIT_IN_INIT", "NAN_LOGITS", "LOAD_CODE=9", "ABI_VERSION=2"]
)
def test_what_an_engine_did_wrong_is_in_the_log(folder: Path, define: str) -> None:
    name, _, value = define.partition("=")
    engines = toys(folder, **{f"FAKE_{name}": value or None})
    with running_node(folder / "node", arguments(engines, folder, "--load-timeout", "3")) as node:
        answer = node.post("/v1/completions", {"model": "toy", "prompt": "ab", "max_tokens": 3})
        assert answer.status >= 500
        error = answer.json()["error"]
        wait_for_log(node, r"(WARNING|ERROR) .*" + re.escape(error["message"][-25:]))
        wait_for_log(node, rf'"POST /v1/completions" {answer.status} \S+ \S+ {error["code"]}')


def test_a_worker_that_stands_still_makes_the_node_not_ready(folder: Path) -> None:
    engines = toys(folder)
    with running_node(folder / "node", arguments(engines, folder, "--step-timeout", "3")) as node:
        assert node.post("/api/models/load", {"model_id": "toy"}).status == 200
        (worker,) = node.workers()
        os.kill(worker, signal.SIGSTOP)
        deadline = time.monotonic() + 30
        while (ready := node.get("/readyz")).status == 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert ready.status == 503
        assert "stands still" in ready.json()["error"]["message"]
        assert node.get("/healthz").status == 200
        # It is ended then, and nothing had come of the request: the next worker answers it.
        answer = node.post("/v1/completions", {"model": "toy", "prompt": "ab", "max_tokens": 3})
        assert (answer.status, node.workers() == [worker]) == (200, False)
        assert node.get("/api/incidents").json()["incidents"][0]["code"] == "engine_crashed"
        assert node.get("/readyz").status == 200


def test_what_a_worker_has_started_ends_with_the_node(folder: Path) -> None:
    engines = toys(folder, FAKE_FORK_IN_INIT=None)
    with running_node(folder / "node", arguments(engines, folder)) as node:
        assert node.post("/api/models/load", {"model_id": "toy"}).status == 200
        family = descendants_of(node.process.pid)
        assert len(family) >= 2
        node.stop(signal.SIGKILL)
        wait_for_ends(family)
