"""What models take of memory, whatever their engines say; and what is remembered of it."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from support.engines import fake_engine
from support.gpu import Gpu
from support.node import Answer, RunningNode, command, running_node

MIB = 1 << 20
GIB = 1 << 30


@contextmanager
def node_of(
    folder: Path,
    models: Mapping[str, str],
    *more: str,
    backend: str = "cpu",
    environment: Mapping[str, str] | None = None,
    sizes: Sequence[str] = ("--cache-tokens", "512", "--max-sequences", "2"),
    **defines: str | None,
) -> Iterator[RunningNode]:
    """`models`: what stands in their files."""
    if not (folder / "models").exists():
        fake_engine(folder / "engines", "toy", backend=backend, defines=defines)
        (folder / "models").mkdir()
        for model, text in models.items():
            (folder / f"models/{model}.toy").write_text(f"TOY1\n{text}\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    limits = ["--gpu-backend", backend, *sizes]
    with running_node(folder / "node", [*places, *limits, *more], environment=environment) as node:
        node.extra["home"] = folder / "node"
        yield node


def load(node: RunningNode, model: str, **options: Any) -> Answer:
    return node.post("/api/models/load", {"model_id": model, **options})


def unload(node: RunningNode, model: str) -> None:
    assert node.post("/api/models/unload", {"model_id": model}).status == 200


def plan(node: RunningNode, model: str) -> dict[str, Any]:
    answer = node.post("/api/models/plan", {"model_id": model})
    assert answer.status == 200, answer.body
    planned: dict[str, Any] = answer.json()
    return planned


def device(node: RunningNode, kind: str = "host") -> dict[str, Any]:
    devices = node.get("/api/system").json()["devices"]
    found: dict[str, Any] = next(each for each in devices if each["kind"] == kind)
    return found


def incidents(node: RunningNode) -> list[tuple[str, str]]:
    return [(it["kind"], it["message"]) for it in node.get("/api/incidents").json()["incidents"]]


def test_a_load_like_an_earlier_one_opens_its_file_once_and_its_time_is_known(tmp_path: Path) -> None:
    models = {"m": "load_us=300000"}
    history = tmp_path / "node/.llm-node/history.json"
    with node_of(tmp_path, models, FAKE_TELL_OPENINGS=None) as node:

        def openings() -> int:
            return node.log_text().count("the toy opens a model")

        def loaded() -> int:
            before = openings()
            first = load(node, "m").json()
            unload(node, "m")
            assert first["facts"]["max_sequences"] == 2
            return openings() - before

        said = plan(node, "m")
        assert (said["basis"], said["largest_context"]) == ("engine", 2048)
        assert loaded() > 1
        assert [loaded(), loaded()] == [1, 1]
        before = openings()
        said = plan(node, "m")
        assert openings() == before, "nobody is asked"
        assert (said["basis"], said["verdict"], said["largest_context"]) == ("measured", "fits", 2048)
        assert 0.3 <= said["ready_seconds"] < 30
        assert 0 <= time.time() - said["measured_at"] < 60
        words = command(node, "plan", "m").stdout
        assert "Ready in about" in words
        assert f"as it was measured on {date.fromtimestamp(said['measured_at'])}" in words
        deadline = time.monotonic() + 30
        while not history.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert history.stat().st_mode & 0o777 == 0o600
        # Another context is another load.
        before = openings()
        assert load(node, "m", context_length=64).status == 200
        assert openings() - before > 1
        unload(node, "m")
    with node_of(tmp_path, models) as node:
        assert plan(node, "m")["basis"] == "measured", "the next node knows"
    history.write_text("{")
    with node_of(tmp_path, models) as node:
        assert plan(node, "m")["basis"] == "engine"
        assert "history.json cannot be read and is set aside" in node.log_text()


def test_a_word_about_memory_counts_also_without_handles(tmp_path: Path) -> None:
    """An engine of tier 0 that offers engine.memory/1."""
    models = {"big": f"estimate_bytes={16 * GIB}", "small": "estimate_bytes=10"}
    with node_of(tmp_path, models, "--vram-limit", "8G", FAKE_MEMORY_ALONE=None) as node:
        assert plan(node, "big")["basis"] == "engine"
        refused = load(node, "big")
        error = refused.json()["error"]
        assert (refused.status, error["code"], error["basis"]) == (507, "oom_vram", "engine")
        assert error["message"] == "Insufficient VRAM: required 16.1GB, available 8GB"
        assert load(node, "small").status == 200
        asked = {"model": "small", "prompt": "x", "max_tokens": 1}
        assert node.post("/v1/completions", asked).status == 200


@pytest.mark.parametrize("tier0", [False, True])
def test_what_is_taken_beyond_all_words_is_noticed_and_learned(tmp_path: Path, tier0: bool) -> None:
    models = {"liar": f"estimate_bytes=10\ntakes_bytes={600 * MIB}", "other": "estimate_bytes=10"}
    defines = {"FAKE_MEMORY_ALONE": None} if tier0 else {}
    with node_of(tmp_path, models, **defines) as node:
        assert load(node, "liar").status == 200
        assert device(node)["reserved_bytes"] >= 600 * MIB
        kinds = incidents(node)
        assert [kind for kind, _ in kinds] == ["overrun"]
        words = r"model 'liar' takes more than its engine estimated: 0\.[67]GB of host, and 1MB were .*"
        assert re.fullmatch(words, kinds[0][1])
        (worker,) = node.get("/api/system").json()["workers"]
        assert worker["held_bytes"] == device(node)["reserved_bytes"], "whatever its engine says"
        assert re.search(
            r"liar +loaded +host +(0\.[67]GB) .*\n.*models hold \1 of", command(node, "ps").stdout
        )
        assert plan(node, "other")["devices"][0]["required_bytes"] >= 600 * MIB, "its engine is known"
        unload(node, "liar")
        said = plan(node, "liar")
        assert said["basis"] == "measured" and said["devices"][0]["required_bytes"] >= 600 * MIB
        assert device(node)["reserved_bytes"] == 0


def test_an_engine_that_says_half_or_double_of_what_is_taken(tmp_path: Path) -> None:
    takes, double = 300 * MIB, 600 * MIB
    models = {
        "double": f"estimate_bytes={double}\ntakes_bytes={takes}",
        "half": f"estimate_bytes={takes // 2}\ntakes_bytes={takes}",
        "other": "estimate_bytes=10",
    }
    with node_of(tmp_path, models) as node:

        def required(model: str, basis: str) -> int:
            said = plan(node, model)
            assert (said["basis"], said["verdict"]) == (basis, "fits")
            bytes_: int = said["devices"][0]["required_bytes"]
            return bytes_

        # What an engine says counts, also where less is taken: it may take that yet.
        assert load(node, "double").status == 200
        assert double <= device(node)["reserved_bytes"] < double + 2 * MIB
        assert device(node)["unexplained_bytes"] == 0
        unload(node, "double")
        assert double <= required("double", "measured") <= (double + 2 * MIB) * 1.01
        assert incidents(node) == []
        assert takes // 2 <= required("half", "engine") < takes * 0.6
        assert load(node, "half").status == 200
        held = device(node)["reserved_bytes"]
        assert takes <= held < takes * 1.3
        assert held * 0.4 < device(node)["unexplained_bytes"] < held * 0.6
        ((kind, message),) = incidents(node)
        words = r"model 'half' takes more than its engine estimated: 0\.[34]GB of host, and 0\.2GB were .*"
        assert kind == "overrun" and re.fullmatch(words, message), message
        unload(node, "half")
        assert takes <= required("half", "measured") <= held * 1.02
        assert load(node, "half").status == 200
        assert takes <= device(node)["reserved_bytes"] < takes * 1.3
        assert len(incidents(node)) == 1, "it takes what was planned for it"
        assert required("other", "engine") >= takes // 2, "its engine is known"


def test_what_takes_more_than_there_is_is_killed_and_refused_the_next_time(tmp_path: Path) -> None:
    models = {"liar": f"estimate_bytes=10\ntakes_bytes={600 * MIB}", "good": "estimate_bytes=10"}
    with node_of(tmp_path, models, "--vram-limit", "512M", FAKE_TELL_OPENINGS=None) as node:
        assert load(node, "good").status == 200
        refused = load(node, "liar")
        error = refused.json()["error"]
        assert (refused.status, error["code"]) == (507, "oom_vram")
        assert re.fullmatch(r"Insufficient VRAM: required 0\.[67]GB, available 0\.\dGB", error["message"])
        assert [kind for kind, _ in incidents(node)] == ["overrun", "refused"]
        log = [line for line in node.log_text().splitlines() if "could not be loaded" in line]
        assert len(log) == 1 and error["message"] in log[0], log
        assert [holder["model_id"] for holder in device(node)["holders"]] == ["good"]
        before = node.log_text().count("the toy opens a model")
        again = load(node, "liar").json()["error"]
        assert (again["code"], again["basis"]) == ("oom_vram", "measured")
        assert node.log_text().count("the toy opens a model") == before, "it is not tried again"
        asked = {"model": "good", "prompt": "x", "max_tokens": 1}
        assert node.post("/v1/completions", asked).status == 200


def test_the_limit_counts_also_where_no_gpu_s_memory_can_be_seen(tmp_path: Path) -> None:
    models = {"big": f"estimate_bytes={600 * MIB}", "small": "estimate_bytes=10"}
    with node_of(
        tmp_path, models, "--vram-limit", "512M", backend="vulkan", FAKE_DEVICE_BYTES="0ULL"
    ) as node:
        if any(each["kind"] != "host" for each in node.get("/api/system").json()["devices"]):
            pytest.skip("this machine has a GPU whose memory can be seen")
        refused = load(node, "big")
        error = refused.json()["error"]
        assert (refused.status, error["code"]) == (507, "oom_vram")
        assert error["message"] == "Insufficient VRAM: required 0.6GB, available 0.5GB"
        assert load(node, "small").status == 200


@contextmanager
def loaded_on_a_gpu(folder: Path) -> Iterator[tuple[RunningNode, Gpu]]:
    """A node with "a" loaded, which the GPU shows, and "b", for which there is no room beside it."""
    gpu = Gpu(folder)
    size = f"estimate_bytes={6 * GIB}"
    with node_of(folder, {"a": size, "b": size}, backend="cuda", environment=gpu.environment) as node:
        assert load(node, "a").status == 200
        gpu.shows(6 * GIB)
        deadline = time.monotonic() + 60
        while device(node, "gpu")["free_bytes"] != 2 * GIB:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield node, gpu


@pytest.mark.parametrize("ending", ["unload", "crash"])
def test_a_gpu_that_gives_back_late_lets_the_next_load_wait(tmp_path: Path, ending: str) -> None:
    with loaded_on_a_gpu(tmp_path) as (node, gpu):
        deadline = time.monotonic() + 30
        if ending == "unload":
            unload(node, "a")
        else:
            (worker,) = (
                each for each in node.get("/api/system").json()["workers"] if each["status"] == "loaded"
            )
            os.kill(worker["pid"], signal.SIGKILL)
            while device(node, "gpu")["reserved_bytes"]:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert device(node, "gpu")["settling_bytes"] >= 6 * GIB
        freed = threading.Timer(1.5, gpu.shows, [0])
        freed.start()
        began = time.monotonic()
        answer = load(node, "b")
        freed.join()
        assert answer.status == 200, answer.body
        assert time.monotonic() - began >= 1.4, "it waited for the memory, not for luck"
        assert device(node, "gpu")["settling_bytes"] == 0
        assert "do not show as free" not in node.log_text()


def test_what_a_gpu_does_not_give_back_is_said_and_counts_no_longer(tmp_path: Path) -> None:
    with loaded_on_a_gpu(tmp_path) as (node, _):
        unload(node, "a")
        refused = load(node, "b")
        assert refused.status == 507, refused.body
        ((_, message),) = [it for it in incidents(node) if it[0] == "kept"]
        assert message == "'a' ended 5 s ago, and 6.1GB of NVIDIA Fake do not show as free"


def test_what_never_showed_as_taken_is_not_waited_for(tmp_path: Path) -> None:
    """A driver that says nothing of what others than itself see of a GPU."""
    gpu = Gpu(tmp_path)
    models = dict.fromkeys("ab", f"estimate_bytes={6 * GIB}")
    with node_of(tmp_path, models, backend="cuda", environment=gpu.environment) as node:
        assert load(node, "a").status == 200
        unload(node, "a")
        assert device(node, "gpu")["settling_bytes"] == 0
        assert load(node, "b").status == 200
        assert "do not show as free" not in node.log_text()


def test_what_was_given_up_comes_back_by_itself(tmp_path: Path) -> None:
    """SOAK_SECONDS: it takes more than a minute, in which nothing happens."""
    if "SOAK_SECONDS" not in os.environ:
        pytest.skip("a model has its context back after a minute: make soak")
    gpu = Gpu(tmp_path)
    models = dict.fromkeys("ab", f"estimate_bytes={MIB}")
    limit = ("--vram-limit", "4M")
    with node_of(tmp_path, models, *limit, backend="cuda", environment=gpu.environment, sizes=()) as node:

        def sequences() -> int:
            rows = {row["model_id"]: row for row in node.get("/api/models").json()["models"]}
            found: int = rows["a"]["facts"]["max_sequences"]
            return found

        assert load(node, "a").status == 200
        before, (worker,) = sequences(), node.workers()
        deadline = time.monotonic() + 60
        while plan(node, "b")["verdict"] == "after_waiting":
            assert time.monotonic() < deadline, "it is as if it had been asked for half a second"
        assert load(node, "b").status == 200
        assert sequences() == 1 < before
        unload(node, "b")
        deadline = time.monotonic() + 180
        while sequences() != before:
            assert time.monotonic() < deadline, incidents(node)
            time.sleep(1)
        assert node.workers() == [worker], "no weights were read"
        asked = {"model": "a", "prompt": "x", "max_tokens": 3}
        assert node.post("/v1/completions", asked).status == 200
        assert device(node, "gpu")["reserved_bytes"] <= 4 * MIB


def test_what_a_gpu_sees_of_a_worker_counts(tmp_path: Path) -> None:
    gpu = Gpu(tmp_path)
    models = {"liar": f"estimate_bytes={GIB}\nload_us=3000000"}
    limit = ("--vram-limit", "3G")
    environment = gpu.environment
    with node_of(tmp_path, models, *limit, backend="cuda", environment=environment) as node:
        answers: list[Answer] = []
        loading = threading.Thread(target=lambda: answers.append(load(node, "liar")))
        loading.start()
        deadline = time.monotonic() + 60
        while not (pid := _pid_that_loads(node)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gpu.shows(4 * GIB, f"1:7,{pid}:{4 * GIB}")
        loading.join()
        error = answers[0].json()["error"]
        assert error["message"] == "Insufficient VRAM: required 4GB, available 3GB"
        assert [kind for kind, _ in incidents(node)] == ["overrun", "refused"]
        gpu.shows(0)
        said = plan(node, "liar")
        assert (said["basis"], said["verdict"]) == ("measured", "refused")
        # What it took beyond its engine's word counts, whatever its context.
        assert 4 * GIB - (64 << 20) < said["devices"][0]["required_bytes"] <= 4 * GIB + 4 * GIB // 100


def test_in_a_container_what_a_gpu_has_less_after_a_load_counts(tmp_path: Path) -> None:
    gpu = Gpu(tmp_path)
    models = {"liar": f"estimate_bytes={GIB}\nload_us=3000000"}
    with node_of(tmp_path, models, backend="cuda", environment=gpu.environment) as node:
        answers: list[Answer] = []
        loading = threading.Thread(target=lambda: answers.append(load(node, "liar")))
        loading.start()
        deadline = time.monotonic() + 60
        while not _pid_that_loads(node):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gpu.shows(2 * GIB, f"4711:{2 * GIB}")  # the host's number for it
        loading.join()
        assert answers[0].status == 200, answers[0].body
        while (seen := device(node, "gpu"))["foreign_bytes"]:
            assert time.monotonic() < deadline, seen
        assert seen["reserved_bytes"] == 2 * GIB
        assert GIB - MIB < seen["unexplained_bytes"] <= GIB
        assert [kind for kind, _ in incidents(node)] == ["overrun"]


def test_what_somebody_else_takes_during_a_load_is_not_the_model_s(tmp_path: Path) -> None:
    """Where NVML tells of no process."""
    gpu = Gpu(tmp_path)
    models = {"m": f"estimate_bytes={GIB}\nload_us=3000000", "other": f"estimate_bytes={2 * GIB}"}
    with node_of(tmp_path, models, backend="cuda", environment=gpu.environment) as node:
        answers: list[Answer] = []
        loading = threading.Thread(target=lambda: answers.append(load(node, "m")))
        loading.start()
        deadline = time.monotonic() + 60
        while not _pid_that_loads(node):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        gpu.shows(7 * GIB)
        loading.join()
        assert answers[0].status == 200, answers[0].body
        # What was read while it was being loaded does not show it.
        while (seen := device(node, "gpu"))["foreign_bytes"] != 7 * GIB - seen["reserved_bytes"]:
            assert time.monotonic() < deadline, seen
        assert GIB <= seen["reserved_bytes"] < GIB + 64 * MIB
        assert (seen["free_bytes"], seen["unexplained_bytes"]) == (GIB, 0)
        refused = load(node, "other")
        error = refused.json()["error"]
        assert (refused.status, error["code"]) == (507, "oom_vram")
        assert error["devices"][0]["foreign_bytes"] == seen["foreign_bytes"]
        assert [kind for kind, _ in incidents(node)] == ["refused"]
        unload(node, "m")
        gpu.shows(6 * GIB)
        assert plan(node, "m")["devices"][0]["required_bytes"] < GIB + 64 * MIB, "nothing was learned of it"


@pytest.mark.parametrize(
    ("said", "defines"),
    [(0, {}), (300 * MIB, {}), (1200 * MIB, {}), (None, {"FAKE_NO_MEMORY": None})],
    ids=["nothing taken", "half", "double", "no word"],
)
def test_whatever_an_engine_says_what_counts_is_that_or_what_is_seen(
    tmp_path: Path, said: int | None, defines: dict[str, str | None]
) -> None:
    takes = 600 * MIB
    models = {"m": f"estimate_bytes={said or 0}\ntakes_bytes={takes}"}
    with node_of(tmp_path, models, **defines) as node:
        planned = plan(node, "m")
        assert planned["basis"] == ("file_size" if said is None else "engine")
        if said is None:
            (needed,) = planned["devices"]
            size = (tmp_path / "models/m.toy").stat().st_size
            assert needed["required_bytes"] == size + size // 100 * 15 + 256 * MIB
        assert load(node, "m").status == 200
        most = max(said or 0, takes)
        assert most <= device(node)["reserved_bytes"] <= most + 64 * MIB
        kinds = [kind for kind, _ in incidents(node)]
        assert kinds == ([] if said and said > takes else ["overrun"])
        unload(node, "m")
        again = plan(node, "m")
        assert again["basis"] == "measured"
        assert most <= again["devices"][0]["required_bytes"] <= (most + 64 * MIB) * 1.01 + 1
        assert device(node)["reserved_bytes"] == 0


def test_a_context_with_more_than_enough_shrinks_before_a_model_goes(tmp_path: Path) -> None:
    gpu = Gpu(tmp_path)
    models = dict.fromkeys("ab", f"estimate_bytes={MIB}")
    with node_of(
        tmp_path, models, "--vram-limit", "4M", backend="cuda", environment=gpu.environment, sizes=()
    ) as node:
        first = load(node, "a").json()["facts"]
        assert (first["context_length"], first["max_sequences"] > 16) == (2048, True), "all that is free"
        deadline = time.monotonic() + 60
        while (said := plan(node, "b"))["verdict"] == "after_waiting":
            assert time.monotonic() < deadline, "it is as if it had been asked for half a second"
        assert said["verdict"] == "after_shrinking"
        assert [spare["model_id"] for spare in said["shrink"]] == ["a"]
        assert load(node, "b").status == 200
        models_now = {row["model_id"]: row for row in node.get("/api/models").json()["models"]}
        assert [models_now[model]["status"] for model in "ab"] == ["loaded", "loaded"]
        assert models_now["a"]["facts"]["max_sequences"] == 1
        assert node.get("/api/system").json()["events"]["reshaped"] == 1
        for model in "ab":
            asked = {"model": model, "prompt": "x", "max_tokens": 3}
            assert node.post("/v1/completions", asked).status == 200


def test_a_request_too_long_for_what_is_left_has_back_what_its_model_gave_up(tmp_path: Path) -> None:
    gpu = Gpu(tmp_path)
    models = dict.fromkeys("ab", f"n_context=131072\nestimate_bytes={MIB}")
    limit = ("--vram-limit", "9M")
    with node_of(tmp_path, models, *limit, backend="cuda", environment=gpu.environment, sizes=()) as node:

        def length(model: str) -> int:
            rows = {row["model_id"]: row for row in node.get("/api/models").json()["models"]}
            found: int = rows[model]["facts"]["context_length"]
            return found

        assert load(node, "a").status == 200
        (worker,), before = node.workers(), length("a")
        asked = {"model": "a", "prompt": "x" * 40_000, "max_tokens": 3, "ignore_eos": True}
        assert before > 40_010 and node.post("/v1/completions", asked).status == 200
        deadline = time.monotonic() + 60
        while plan(node, "b")["verdict"] == "after_waiting":
            assert time.monotonic() < deadline, "it is as if it had been asked for half a second"
        assert load(node, "b").status == 200
        assert length("a") == 32_768
        refused = node.post("/v1/completions", asked)
        error = refused.json()["error"]
        assert (refused.status, error["code"], error["context_length"]) == (
            400,
            "context_length_exceeded",
            32768,
        )
        unload(node, "b")
        while device(node, "gpu")["settling_bytes"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert node.post("/v1/completions", asked).status == 200
        assert (length("a"), node.workers()) == (before, [worker])


def _pid_that_loads(node: RunningNode) -> int:
    """Of a worker that has been told to load."""
    rows = node.get("/api/system").json()
    reserved = next(each for each in rows["devices"] if each["kind"] == "gpu")["reserved_bytes"]
    (worker,) = rows["workers"] or [{}]
    return int(worker.get("pid") or 0) if reserved and worker.get("status") == "loading" else 0


def test_a_file_that_is_written_anew_is_told_apart_from_what_is_loaded(tmp_path: Path) -> None:
    """And what was wrong with it is not said of another one."""
    with node_of(tmp_path, {"m": "", "broken": ""}) as node:

        def row(model: str) -> dict[str, Any]:
            rows = {row["model_id"]: row for row in node.get("/api/models").json()["models"]}
            found: dict[str, Any] = rows[model]
            return found

        file = tmp_path / "models/broken.toy"
        file.write_text("nothing that the engine knows")
        assert load(node, "broken").json()["error"]["code"] == "model_corrupt"
        assert row("broken")["status"] == "failed"
        assert "failed" in command(node, "ps").stdout
        file.write_text("TOY1\nmended")
        assert (row("broken")["status"], row("broken").get("error")) == ("available", None)
        assert "broken" not in command(node, "ps").stdout
        assert load(node, "broken").status == 200
        assert load(node, "m").status == 200
        assert row("m")["changed"] is False
        (tmp_path / "models/m.toy").write_text("TOY1\nanother")
        assert (row("m")["status"], row("m")["changed"]) == ("loaded", True)
        assert row("broken")["changed"] is False
        unload(node, "m")
        assert row("m")["changed"] is False
        assert load(node, "m").status == 200
        assert row("m")["changed"] is False


def test_loads_leave_nothing_behind_in_the_node(tmp_path: Path) -> None:
    """SOAK_SECONDS: a thousand of them."""
    rounds = 250 if "SOAK_SECONDS" in os.environ else 12
    with node_of(tmp_path, dict.fromkeys("ab", "estimate_bytes=10")) as node:
        pid = node.process.pid

        def taken() -> tuple[int, int, int]:
            """Private memory in bytes, descriptors, threads."""
            status = Path(f"/proc/{pid}/status").read_text()
            found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
            assert found
            of = Path(f"/proc/{pid}")
            return int(found[1]) << 10, len(list((of / "fd").iterdir())), len(list((of / "task").iterdir()))

        def turn() -> None:
            """Four loads, each in another way."""
            for model in "ab":
                assert load(node, model).status == 200
                assert load(node, model, speculation="off").status == 200
                unload(node, model)

        for _ in range(4):  # what is kept for good has its place by then
            turn()
        memory, descriptors, threads = taken()
        for _ in range(rounds):
            turn()
        deadline = time.monotonic() + 60
        while (now := taken())[1] > descriptors or now[2] > threads:
            assert time.monotonic() < deadline, (descriptors, threads, now)
            time.sleep(0.1)
        # The lines of the log that are kept, and what the allocator does not give back.
        assert now[0] - memory <= 16 * MIB, (memory, now)
        assert not node.workers() and device(node)["reserved_bytes"] == 0
