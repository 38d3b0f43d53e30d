"""`GET /metrics` and `llm-node ps`: what the node says of itself, and that it is true."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.engines import fake_engine
from support.node import PROGRAM, RunningNode, command, node_environment, running_node, wait_for_ends

MODEL = "llm-node-demo"


@pytest.fixture(scope="module")
def node(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "models").mkdir()
    arguments = [
        "--engines-dir",
        str(engines),
        "--models-dir",
        str(folder / "models"),
        "--gpu-backend",
        "cpu",
    ]
    with running_node(folder / "node", arguments) as running:
        running.extra["home"] = folder / "node"
        running.post(
            "/v1/completions", {"model": MODEL, "prompt": "What is", "max_tokens": 5, "ignore_eos": True}
        )
        yield running


Samples = dict[tuple[str, frozenset[str]], float]
"""Values by the sample's name and the values of its labels, as Prometheus reads them."""


def of(name: str, *labels: str) -> tuple[str, frozenset[str]]:
    return name, frozenset(labels)


def scraped(node: RunningNode, query: str = "") -> Samples:
    answer = node.get(f"/metrics{query}")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    families = list(text_string_to_metric_families(answer.body.decode()))
    assert len({family.name for family in families}) == len(families), "each is told once"
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_request_is_counted_once_at_its_end(node: RunningNode) -> None:
    found = scraped(node)
    assert found[of("vllm:request_success_total", MODEL, "length")] == 1
    assert found[of("vllm:generation_tokens_total", MODEL)] == 5
    assert found[of("vllm:prompt_tokens_total", MODEL)] >= 2
    for name in ("vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"):
        assert found[of(f"{name}_count", MODEL)] == 1
        assert found[of(f"{name}_bucket", MODEL, "+Inf")] == 1
        assert 0 < found[of(f"{name}_sum", MODEL)] < 60
    assert found[of("llm_node_loads_total", "loaded")] == 1
    assert found[of("llm_node_loads_total", "failed")] == 0
    assert -0.1 < found[of("llm_node_estimate_error_ratio", MODEL)] < 0.1
    assert found[of("llm_node_device_bytes", "host", "weights")] > 0
    assert found[of("llm_node_model_state", MODEL, "loaded")] == 1
    assert found[of("llm_node_requests")] == 0
    assert found[of("llm_node_capacity")] >= 1


def test_names_are_the_same_whatever_form_is_asked_for(node: RunningNode) -> None:
    """Prometheus asks for OpenMetrics first."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=1.0.0;q=0.5,*/*;q=0.1"
    request = urllib.request.Request(f"{node.url}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        names = set(re.findall(r"(?m)^(\w[\w:]*)", answer.read().decode()))
    assert {"vllm:request_success_total", "vllm:time_to_first_token_seconds_bucket"} <= names
    assert not [name for name in names if name.startswith("vllm_")]


def test_the_line_of_an_answer_says_what_it_took(node: RunningNode) -> None:
    line = r'"POST /v1/completions" 200 \S+ \S+ \'llm-node-demo\' \d+\+5 tokens, first \d+\.\d{3}s \d+\.\d/s'
    assert re.search(line, node.log_text())


def test_what_the_scheduler_knows_comes_up(node: RunningNode) -> None:
    deadline = time.monotonic() + 20
    computed = of("llm_node_step_seconds_total", MODEL, "answers")
    while not (found := scraped(node)).get(computed) or found[of("vllm:num_requests_running", MODEL)] != 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found[of("vllm:num_requests_waiting", MODEL)] == 0
    assert 0 <= found[of("vllm:kv_cache_usage_perc", MODEL)] <= 1
    assert found[of("llm_node_step_seconds_total", MODEL, "prompts")] > 0
    assert found[of("llm_node_step_seconds_total", MODEL, "saving")] == 0
    assert found[of("llm_node_kv_cache_tokens", MODEL, "capacity")] > 0
    system = node.get("/api/system").json()
    (worker,) = system["workers"]
    assert worker["occupancy"]["max_running"] == worker["facts"]["max_sequences"]
    assert found[of("llm_node_queued_tokens", MODEL)] == 0
    assert found[of("llm_node_load")] == system["load"]["value"] == 0
    blocks = str(worker["occupancy"]["cache_tokens"] // 16)
    assert found[of("vllm:cache_config_info", MODEL, "16", blocks)] == 1


def test_a_node_that_is_busy_says_how_full_it_is(node: RunningNode) -> None:
    """A long prompt teaches it its speed; the only sequence there is makes it full."""
    node.reload(MODEL, max_sequences=1)
    body = {"model": MODEL, "prompt": "word " * 200, "max_tokens": 1}
    assert node.post("/v1/completions", body).status == 200
    wait_for(node, lambda found: found.get(of("llm_node_prompt_tokens_per_second", MODEL), 0) > 0)
    wait_for(node, lambda found: found[of("llm_node_load")] == 0)
    with socket.create_connection(node.address) as client:
        sent = json.dumps({**body, "max_tokens": 100, "n": 100, "ignore_eos": True, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sent)}\r\n"
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + sent)
        wait_for(node, lambda found: found[of("llm_node_load")] >= 1)
    wait_for(node, lambda found: found[of("llm_node_load")] == 0)


def wait_for(node: RunningNode, condition: Callable[[Samples], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition(scraped(node)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_model_can_be_asked_for(node: RunningNode) -> None:
    found = scraped(node, f"?model={MODEL}")
    of_models = [labels for name, labels in found if name.startswith("vllm:") and "lora" not in name]
    assert of_models and all(MODEL in labels for labels in of_models)
    assert found[of("vllm:lora_requests_info", "0", "")] == 1
    assert node.get("/metrics?model=nobody").status == 404


def test_ps_shows_what_is_loaded(node: RunningNode) -> None:
    shown = command(node, "ps")
    heading, row, *devices = shown.stdout.splitlines()
    assert re.split(" {2,}", heading) == [
        "MODEL",
        "STATE",
        "DEVICE",
        "MEMORY",
        "CACHE",
        "CONTEXT",
        "RUN",
        "WAIT",
        "TOK/S",
        "KEPT BY",
    ]
    assert row.split()[:2] == [MODEL, "loaded"]
    assert re.fullmatch(r"Host: models hold \S+ of \S+, others \S+; \S+ free", devices[-1])


def tokens_per_second(node: RunningNode) -> int:
    """As `ps` shows them of its first model."""
    heading, row = (re.split(" {2,}", line) for line in command(node, "ps").stdout.splitlines()[:2])
    return int(row[heading.index("TOK/S")])


def test_ps_shows_how_many_tokens_come_in_a_second(node: RunningNode) -> None:
    answers: list[int] = []
    body = {"model": MODEL, "prompt": "What is", "max_tokens": 200, "n": 40, "ignore_eos": True}
    asking = threading.Thread(target=lambda: answers.append(node.post("/v1/completions", body).status))
    asking.start()
    seen = 0
    while asking.is_alive() and seen == 0:
        seen = tokens_per_second(node)
    asking.join()
    assert (answers, seen > 0) == ([200], True)
    deadline = time.monotonic() + 30
    while tokens_per_second(node) != 0:
        assert time.monotonic() < deadline, "nothing comes any more"


def test_ps_says_of_what_a_model_died(engines: Path, tmp_path: Path) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        node.extra["home"] = tmp_path / "node"
        # The pause is longer each time. Until the node knows of its end, the model counts as loaded.
        ended: set[int] = set()
        while len(ended) < 3:
            is_loaded = node.post("/api/models/load", {"model_id": MODEL}).status == 200
            workers = set(node.workers()) - ended
            if not is_loaded or not workers:
                time.sleep(0.1)
                continue
            (worker,) = workers
            os.kill(worker, signal.SIGKILL)
            wait_for_ends([worker])
            ended.add(worker)
        deadline = time.monotonic() + 30
        for state in (r"cooling \d s", "crashed"):
            told = rf"{MODEL} +{state}: signal 9 \(SIGKILL\), 3rd time +-"
            while not re.search(told, shown := command(node, "ps").stdout):
                assert time.monotonic() < deadline, shown
        # It waits for nobody but whoever asks next: no alert says that it cannot be loaded.
        found = scraped(node)
        states = {word: found[of("llm_node_model_state", MODEL, word)] for word in ("cooling", "failed")}
        assert states == {"cooling": 1, "failed": 0}


def test_what_passes_between_tokens_is_measured(node: RunningNode) -> None:
    def said(name: str) -> float:
        return scraped(node)[of(f"vllm:{name}", MODEL)]

    tokens, between = said("generation_tokens_total"), said("inter_token_latency_seconds_count")
    body = {"model": MODEL, "prompt": "What is", "max_tokens": 200, "ignore_eos": True}
    assert node.post("/v1/completions", body).status == 200
    new = said("inter_token_latency_seconds_count") - between
    assert 100 < new < said("generation_tokens_total") - tokens
    assert said("inter_token_latency_seconds_sum") > 0


def test_how_long_loads_take_and_what_others_hold_is_told(node: RunningNode) -> None:
    found = scraped(node)
    loads = found[of("llm_node_load_seconds_count", MODEL)]
    assert loads >= 1 and found[of("llm_node_load_seconds_sum", MODEL)] > 0
    assert found[of("llm_node_line_length")] == 0
    (device,) = node.get("/api/system").json()["devices"]
    for what in ("foreign", "unexplained", "settling"):
        assert of("llm_node_device_bytes", "host", what) in found
    assert found[of("llm_node_device_bytes", "host", "limit")] == device["limit_bytes"]
    node.reload(MODEL, max_sequences=2)
    assert scraped(node)[of("llm_node_load_seconds_count", MODEL)] == loads + 1


def test_ps_can_be_watched(node: RunningNode) -> None:
    watching = subprocess.Popen(
        [PROGRAM, "ps", "--watch"],
        env=node_environment(node.extra["home"], PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ender = threading.Timer(60, watching.kill)
    ender.start()
    try:
        assert watching.stdout is not None
        seen = 0
        for line in watching.stdout:
            seen += line.startswith("MODEL ")
            if seen == 2:
                break
        assert seen == 2, "it is shown again"
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate()
        assert (watching.returncode, errors) == (0, "")
    finally:
        ender.cancel()
        watching.kill()
        watching.wait()


def test_what_happens_to_models_is_counted_by_what_it_was(
    engines: Path, demo_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/bad.gguf").write_bytes(demo_model.read_bytes()[:300_000])
    (tmp_path / "models/other.gguf").write_bytes(demo_model.read_bytes())
    arguments = [
        "--engines-dir",
        str(engines),
        "--models-dir",
        str(tmp_path / "models"),
        "--gpu-backend",
        "cpu",
    ]
    with running_node(tmp_path / "node", arguments) as node:
        counters = {
            "loaded": of("llm_node_loads_total", "loaded"),
            "failed": of("llm_node_loads_total", "failed"),
            "reshaped": of("llm_node_reshapes_total"),
            "refused": of("llm_node_refusals_total", "oom_ram"),
            "unused": of("llm_node_evictions_total", "unused"),
        }

        def counted(**more: int) -> None:
            wanted = dict.fromkeys(counters, 0) | more
            wait_for(node, lambda found: {name: found[key] for name, key in counters.items()} == wanted)

        counted()
        assert not [labels for _, labels in scraped(node) if "other" in labels], "nobody has asked for it"
        assert node.post("/api/models/load", {"model_id": "bad"}).status == 500
        counted(failed=1)
        refused = node.post("/api/models/load", {"model_id": MODEL, "cache_tokens": 2_000_000_000})
        assert (refused.status, refused.json()["error"]["code"]) == (507, "oom_ram")
        counted(failed=1, refused=1)
        assert node.post("/api/models/load", {"model_id": MODEL, "max_sequences": 1}).status == 200
        counted(failed=1, refused=1, loaded=1)
        assert scraped(node)[of("llm_node_crashes_total", "llama_cpp")] == 0
        assert node.post("/api/models/load", {"model_id": MODEL, "max_sequences": 2}).status == 200
        counted(failed=1, refused=1, loaded=1, reshaped=1)
        assert of("llm_node_estimate_error_ratio", MODEL) not in scraped(node), "that was of another context"
        os.kill(node.workers()[0], signal.SIGKILL)
        wait_for(node, lambda found: found[of("llm_node_crashes_total", "llama_cpp")] == 1)
        time.sleep(1.1)
        assert node.post("/api/models/load", {"model_id": MODEL, "keep_alive": 1}).status == 200
        counted(failed=1, refused=1, loaded=2, reshaped=1, unused=1)


def test_requests_that_wait_for_a_load_are_counted_and_those_that_came(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name, defines in (("stuck", {"FAKE_HANG_IN_LOAD": None}), ("well", {})):
        fake_engine(tmp_path / "engines", name, defines=defines, manifest={"formats": [name]})
        (tmp_path / f"models/{name}.{name}").write_bytes(b"TOY1")
    arguments = ["--engines-dir", str(tmp_path / "engines"), "--models-dir", str(tmp_path / "models")]
    with running_node(
        tmp_path / "node", [*arguments, "--gpu-backend", "cpu", "--alias", "nick=stuck"]
    ) as node:
        node.extra["home"] = tmp_path / "node"

        def row(model: str) -> dict[str, Any]:
            (found,) = (it for it in node.get("/api/models").json()["models"] if it["model_id"] == model)
            return dict(found)

        def ask(model: str, *prompts: str) -> None:
            node.post("/v1/completions", {"model": model, "prompt": prompts, "max_tokens": 1})

        assert (row("well")["requests_per_minute"], row("well")["parked"]) == (0, 0)
        for number in range(4):
            ask("well", f"The {number}", "and another")
        for model, *prompts in (("stuck", "one"), ("nick", "two"), ("stuck", "three", "four")):
            threading.Thread(target=ask, args=(model, *prompts), daemon=True).start()
        deadline = time.monotonic() + 30
        # Eight within a minute; a little less once some of them are older.
        while row("stuck")["parked"] != 4 or not 7 < row("well")["requests_per_minute"] < 9:
            assert time.monotonic() < deadline, (row("stuck"), row("well"))
            time.sleep(0.1)
        assert scraped(node)[of("vllm:num_requests_waiting", "stuck")] == 4
        assert re.search(r"stuck +loading 0% .* - +4 ", command(node, "ps").stdout)
        assert (row("stuck")["requests_per_minute"], row("well")["parked"]) == (0, 0)
