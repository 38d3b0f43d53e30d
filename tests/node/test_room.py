"""More models than memory: who is not in use makes room, no answer is cut, and only the log tells of it."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.engines import fake_engine
from support.node import RunningNode, command, running_node

MODELS = ["a", "b", "c", "d", "e"]
MIB = 1 << 20
LIMIT = 300 * MIB
SIZE = 85 * MIB


@contextmanager
def node_of(folder: Path, *more: str) -> Iterator[RunningNode]:
    """Three of the five models fit."""
    fake_engine(folder / "engines", "toy")
    (folder / "models").mkdir()
    for model in MODELS:
        (folder / f"models/{model}.toy").write_text(f"TOY1\nestimate_bytes={SIZE}\ntakes_bytes={SIZE}\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    limits = ["--gpu-backend", "cpu", "--vram-limit", "300M", "--cache-tokens", "512", "--max-sequences", "2"]
    with running_node(folder / "node", [*places, *limits, *more]) as node:
        node.extra["home"] = folder / "node"
        yield node


def ask(model: str, tokens: int = 20, **more: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True, **more}


def loaded(node: RunningNode) -> set[str]:
    workers = node.get("/api/system").json()["workers"]
    return {worker["model_id"] for worker in workers if worker["status"] == "loaded"}


def taken(pid: int) -> int | None:
    """What a process takes of memory that is no file, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [re.search(rf"^Rss{part}:\s+(\d+) kB$", status, re.MULTILINE) for part in ("Anon", "Shmem")]
    return sum(int(each[1]) << 10 for each in found if each)  # a process that is ending has none


def watch_the_ledger(node: RunningNode, is_over: threading.Event) -> int:
    """Each second: what the node says that models hold is what their processes take. Gives how often that was
    seen."""
    times = 0
    while not is_over.wait(1):

        def look() -> dict[str, tuple[int, int, bool]]:
            system = node.get("/api/system").json()
            held = {holder["model_id"]: holder["bytes"] for holder in system["devices"][0]["holders"]}
            loaded = [worker for worker in system["workers"] if worker["status"] == "loaded"]
            return {
                each["model_id"]: (each["pid"], held.get(each["model_id"], 0), each["draining"])
                for each in loaded
            }

        before = look()
        seen = {pid: taken(pid) for pid, _, _ in before.values()}
        after = look()
        for model, (pid, held, is_going) in before.items():
            process = seen[pid]
            if after.get(model) != (pid, held, is_going) or not process:
                continue  # it has come or gone meanwhile
            # Whoever goes gives memory back before it is gone.
            off = process - held if is_going else abs(held - process)
            assert off <= max(process // 20, 16 * MIB), (model, held, process, is_going)
            times += 1
    return times


def test_five_models_of_which_three_fit_are_used_in_turn(tmp_path: Path) -> None:
    """SOAK_SECONDS: it goes on for so long."""
    with node_of(tmp_path) as node:
        until = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "5"))

        def client(number: int) -> int:
            for turn in itertools.count():
                if turn >= 6 and time.monotonic() >= until:
                    break
                model = MODELS[(number + turn) % len(MODELS)]
                answer = node.post("/v1/completions", ask(model), timeout=120)
                assert answer.status == 200, answer.body
                assert answer.json()["usage"]["completion_tokens"] == 20
                (host,) = node.get("/api/system").json()["devices"]
                assert host["reserved_bytes"] <= host["limit_bytes"] == LIMIT
            return number

        is_over = threading.Event()
        with ThreadPoolExecutor(5) as clients:
            watching = clients.submit(watch_the_ledger, node, is_over)
            try:
                assert sorted(clients.map(client, range(4))) == [0, 1, 2, 3]
            finally:
                is_over.set()
            assert watching.result() >= 1
        kinds = [incident["kind"] for incident in node.get("/api/incidents").json()["incidents"]]
        assert set(kinds) == {"evicted"} and len(kinds) >= 2
        log = re.findall(
            r" INFO .*'[a-e]' makes room for '[a-e]': (?:unused for|once it has)", node.log_text()
        )
        assert len(log) >= len(kinds), "each has its line"
        for model in loaded(node):
            assert node.post("/api/models/unload", {"model_id": model}).status == 200
        (host,) = node.get("/api/system").json()["devices"]
        assert (host["reserved_bytes"], host["settling_bytes"]) == (0, 0)


def test_an_answer_is_not_cut_for_another_model(tmp_path: Path) -> None:
    with node_of(tmp_path, "--engine-option", "step_us=20000") as node:
        for model in "abc":
            assert node.post("/api/models/load", {"model_id": model, "pin": model != "a"}).status == 200
        with ThreadPoolExecutor(2) as clients:
            long = clients.submit(node.post, "/v1/completions", ask("a", 300, stream=True), timeout=120)
            deadline = time.monotonic() + 30
            while node.get("/api/system").json()["load"]["requests"] == 0:
                assert time.monotonic() < deadline
            other = clients.submit(node.post, "/v1/completions", ask("d"), timeout=120)
            while not node.get("/api/system").json()["line"]:
                assert time.monotonic() < deadline
            place = node.get("/api/system").json()["line"][0]
            assert (place["model_id"], place["position"], place["waits_for"]) == ("d", 1, ["a"])
            assert place["needs_bytes"] >= SIZE and 0 < place["expected_seconds"] <= 30, place
            shown = command(node, "ps").stdout
            assert re.search(r"^d +waiting 1st, ~\d+ s +- +\d+MB needed .* -$", shown, re.MULTILINE), shown
            assert re.search(r"^a +loaded .* its turn, \d+ s more$", shown, re.MULTILINE), shown
            assert re.search(r"^b +loaded .* pin$", shown, re.MULTILINE), shown
            states = {row["model_id"]: row["status"] for row in node.get("/api/models").json()["models"]}
            assert (states["d"], states["a"], long.done()) == ("waiting", "loaded", False)
            events = [line for line in long.result().body.decode().splitlines() if line.startswith("data: {")]
            assert other.result().status == 200, other.result().body
        assert json.loads(events[-1][6:])["choices"][0]["finish_reason"] == "length"
        assert loaded(node) == {"b", "c", "d"}


def test_who_would_wait_too_long_is_told_at_once_when_to_come_again(tmp_path: Path) -> None:
    """One of three models fits. The turn of "a" is half of the wait, and a load of "b" takes 8 s."""
    more = ("--max-wait", "10", "--engine-option", "step_us=20000")
    with node_of(tmp_path, *more) as node, ThreadPoolExecutor(2) as clients:
        for model, load in (("a", 0), ("b", 8_000_000), ("c", 0)):
            text = f"TOY1\nestimate_bytes={200 * MIB}\nload_us={load}\n"
            (tmp_path / f"models/{model}.toy").write_text(text)
        assert node.post("/api/models/load", {"model_id": "b"}).status == 200, "it is known from then on"
        assert node.post("/api/models/unload", {"model_id": "b"}).status == 200
        assert node.post("/api/models/load", {"model_id": "a"}).status == 200
        long = clients.submit(node.post, "/v1/completions", ask("a", 250, stream=True), timeout=120)
        deadline = time.monotonic() + 60
        while node.get("/api/system").json()["load"]["requests"] == 0:
            assert time.monotonic() < deadline
        first = clients.submit(node.post, "/api/models/load", {"model_id": "b"}, timeout=120)
        while not node.get("/api/system").json()["line"]:
            assert time.monotonic() < deadline
        began = time.monotonic()
        told = node.post("/v1/completions", ask("c"))
        assert time.monotonic() - began < 5 and not first.done()
        error = told.json()["error"]
        assert (told.status, error["code"], error["place"]) == (503, "model_loading", 2)
        assert 10 < int(told.headers["Retry-After"]) <= 14
        assert [(it["model_id"], it["kept_by"]) for it in error["holders"]] == [("a", "busy")]
        words = f"Model 'c' would wait for about {told.headers['Retry-After']} s until 'b' has made room"
        assert error["message"].startswith(words), error["message"]
        assert long.result().body.endswith(b"[DONE]\n\n") and first.result().status == 200


def test_a_request_for_a_model_that_is_being_unloaded_waits_and_has_it_loaded_again(tmp_path: Path) -> None:
    with node_of(tmp_path, "--engine-option", "step_us=20000") as node, ThreadPoolExecutor(3) as clients:
        long = clients.submit(node.post, "/v1/completions", ask("a", 200, stream=True), timeout=120)
        deadline = time.monotonic() + 60
        while node.get("/api/system").json()["load"]["requests"] == 0:
            assert time.monotonic() < deadline
        (before,) = node.get("/api/system").json()["workers"]
        gone = clients.submit(node.post, "/api/models/unload", {"model_id": "a"}, timeout=120)
        while not [row for row in node.get("/api/system").json()["workers"] if row["draining"]]:
            assert time.monotonic() < deadline and not gone.done()
        late = clients.submit(node.post, "/v1/completions", ask("a"), timeout=120)
        time.sleep(0.5)
        assert not (late.done() or long.done()), "nothing new for one that goes"
        assert b'"finish_reason":"length"' in long.result().body, "no answer is cut"
        assert gone.result().status == 200
        assert late.result().status == 200, late.result().body
        (after,) = node.get("/api/system").json()["workers"]
        assert after["pid"] != before["pid"]


def test_a_request_that_waits_for_an_unload_hears_when_the_node_goes_down(tmp_path: Path) -> None:
    more = ("--engine-option", "step_us=20000", "--drain-timeout", "20")
    with node_of(tmp_path, *more) as node, ThreadPoolExecutor(3) as clients:
        long = clients.submit(node.post, "/v1/completions", ask("a", 200, stream=True), timeout=120)
        deadline = time.monotonic() + 60
        while node.get("/api/system").json()["load"]["requests"] == 0:
            assert time.monotonic() < deadline
        clients.submit(node.post, "/api/models/unload", {"model_id": "a"}, timeout=120)
        while not [row for row in node.get("/api/system").json()["workers"] if row["draining"]]:
            assert time.monotonic() < deadline
        late = clients.submit(node.post, "/v1/completions", ask("a"), timeout=120)
        time.sleep(0.5)
        assert not late.done()
        node.process.send_signal(signal.SIGTERM)
        told = late.result()
        assert (told.status, told.json()["error"]["code"]) == (503, "shutting_down"), told.body
        assert b'"finish_reason":"length"' in long.result().body


def test_a_model_on_its_way_out_is_planned_as_one_that_is_loaded_anew(tmp_path: Path) -> None:
    with node_of(tmp_path, "--engine-option", "step_us=20000") as node, ThreadPoolExecutor(2) as clients:
        long = clients.submit(node.post, "/v1/completions", ask("a", 300, stream=True), timeout=120)
        deadline = time.monotonic() + 60
        while node.get("/api/system").json()["load"]["requests"] == 0:
            assert time.monotonic() < deadline
        gone = clients.submit(node.post, "/api/models/unload", {"model_id": "a"}, timeout=120)
        said = set()
        while not gone.done():  # it ends what is under way
            planned = node.post("/api/models/plan", {"model_id": "a"})
            assert planned.status == 200, planned.body
            said.add(planned.json()["verdict"])
        assert "fits" in said and said <= {"loaded", "fits"}, said
        assert long.result().status == gone.result().status == 200


def test_what_is_pinned_stays(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("".join(f'[models."{model}"]\npin = true\n' for model in "abc"))
    with node_of(tmp_path, "--config", str(file)) as node:
        for model in "abc":
            assert node.post("/v1/completions", ask(model)).status == 200
        refused = node.post("/v1/completions", ask("d"))
        assert refused.status == 507
        error = refused.json()["error"]
        assert error["message"].startswith("Insufficient VRAM: required ")
        assert [holder["kept_by"] for holder in error["holders"]] == ["pin", "pin", "pin"]
        assert {holder["device"] for holder in error["holders"]} == {"host"}
        assert re.search(r"^a +loaded .* pin$", command(node, "ps").stdout, re.MULTILINE)
        planned = node.post("/api/models/plan", {"model_id": "d"})
        assert planned.status == 200, "also of what would be refused"
        said = planned.json()
        assert (said["verdict"], said["engine"], said["basis"]) == ("refused", "toy", "engine")
        assert (said["error"]["message"], said["error"]["code"]) == (error["message"], "oom_vram")
        assert said["devices"][0]["required_bytes"] == sum(use["total_bytes"] for use in said["memory"])
        shown = command(node, "plan", "d")
        assert shown.returncode == 1 and "d with toy: refused: Insufficient VRAM" in shown.stdout, shown
        assert node.post("/api/models/plan", {"model_id": "a"}).json()["verdict"] == "loaded"
        differs = node.post("/api/models/plan", {"model_id": "a", "speculation": "off"}).json()
        leavers = [leaver["model_id"] for leaver in differs["unload"]]
        assert (differs["verdict"], leavers) == ("after_unloading", ["a"]), "to come back otherwise"
        shorter = node.post("/api/models/plan", {"model_id": "a", "context_length": 77}).json()
        assert shorter["verdict"] == "loaded"
        larger = {"model_id": "a", "cache_tokens": 1024}
        planned = node.post("/api/models/plan", larger).json()
        (before,), (after,) = shorter["memory"], planned["memory"]
        assert (planned["verdict"], after["cache_bytes"]) == ("fits", 2 * before["cache_bytes"])
        assert node.post("/api/models/plan", {"model_id": "nobody"}).status == 404
        for wrong in ({"tool_syntax": "nope"}, {"chat_template": "{{ nope("}):
            for way in ("plan", "load"):
                answer = node.post(f"/api/models/{way}", {"model_id": "d", **wrong})
                assert (answer.status, answer.json()["error"]["param"]) == (400, *wrong), way
        # Whoever says that one need not stay.
        assert node.post("/api/models/load", {"model_id": "b", "pin": False}).status == 200
        deadline = time.monotonic() + 60
        while (said := node.post("/api/models/plan", {"model_id": "d"}).json())["verdict"] == "after_waiting":
            assert time.monotonic() < deadline, "it is as if it had been asked for half a second"
        leavers = [leaver["model_id"] for leaver in said["unload"]]
        assert (said["verdict"], leavers) == ("after_unloading", ["b"])
        shown = command(node, "plan", "d", "--context-length", "64")
        words = r"after unloading b \(unused for \d+ s, back in \d+\.\d s\)\. Ready in about \d+\.\d s"
        assert re.search(words, shown.stdout), shown
        assert loaded(node) == {"a", "b", "c"}, "a plan changes nothing"
        assert node.post("/v1/completions", ask("d")).status == 200
        assert loaded(node) == {"a", "c", "d"}


def test_what_is_warm_is_loaded_at_the_start_and_what_nobody_asks_goes(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    tables = {"b": "warm = true\nkeep_alive = -1", "a": 'warm = true\nkeep_alive = "1s"', "no": "warm = true"}
    file.write_text("".join(f'[models."{model}"]\n{text}\n' for model, text in tables.items()))
    with node_of(tmp_path, "--config", str(file)) as node:
        assert node.get("/api/system").json()["events"]["loaded"] == 2, "before it takes requests"
        log = node.log_text()
        assert log.index("'b' is loaded") < log.index("'a' is loaded"), "in their order"
        assert "'no' is to be warm, and cannot be loaded: Model 'no'" in log
        for model, seconds, status in (("c", 3600, 200), ("d", -2, 400)):
            load = {"model_id": model, "keep_alive": seconds}
            assert node.post("/api/models/load", load).status == status
        assert node.post("/v1/completions", ask("a")).status == 200
        deadline = time.monotonic() + 60
        while "a" in loaded(node):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert loaded(node) == {"b", "c"}
        assert re.search(r"'a' goes: unused for [1-9]", node.log_text())
        assert re.search(r"c +loaded, 3[56]\d\d s more", command(node, "ps").stdout)
        assert node.get("/api/system").json()["events"]["unused"] >= 1


def test_without_a_wait_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with node_of(tmp_path, "--max-wait", "0") as node:
        for model in "abc":
            assert node.post("/v1/completions", ask(model)).status == 200
        assert node.post("/v1/completions", ask("d")).status == 507
        assert loaded(node) == {"a", "b", "c"}
