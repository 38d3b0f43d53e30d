"""`llm-node bench` against a real node: counts, both routes, and how it fails."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.node import RunningNode, free_port, node_environment

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MODEL = "llm-node-demo"
COMMAND = Path(sys.executable).with_name("llm-node")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(COMMAND), "bench", *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            cwd=tmp_path,
            env=node_environment(tmp_path),
        )

    return run


def report(result: subprocess.CompletedProcess[str]) -> Any:
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "no bar where nobody sees it"
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "kind", [["--route", "completions"], ["--route", "chat"], ["--prompt-ids", "--vocab-size", "500"]]
)
def test_lengths_are_kept_on_every_route(run: Run, node: RunningNode, kind: list[str]) -> None:
    lengths = ["--prompt-tokens", "60", "--output-tokens", "12", "--ignore-eos", "--temperature", "0"]
    load = ["--requests", "6", "--concurrency", "3", "--per-request", "--ttft-goal", "60000"]
    found = report(run(node.url, "--json", "--model", MODEL, *kind, *lengths, *load))
    assert (found["requests"], found["completed"], found["failed"], found["errors"]) == (6, 6, 0, [])
    assert found["prompt_tokens"] == 6 * 60
    assert found["output_tokens"] == 6 * 12
    assert 0 < found["events"] <= found["output_tokens"]
    assert found["tokens_per_event"] == found["output_tokens"] / found["events"]
    assert found["goodput"] == 1.0
    assert found["client_cpu_s"] > 0
    assert [request["tokens"] for request in found["per_request"]] == [12] * 6
    for times in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
        assert 0 <= found[times]["p50"] <= found[times]["p90"] <= found[times]["p99"] <= found[times]["max"]
    assert found["ttft_ms"]["max"] <= found["e2e_ms"]["max"]


def test_a_shared_beginning_and_answers_that_end_early(run: Run, node: RunningNode) -> None:
    lengths = ["--prompt-tokens", "60", "--prefix-tokens", "40", "--shared-prefix-seed", "5"]
    early = ["--output-tokens", "9", "--short-output-tokens", "3", "--short-every", "2", "--ignore-eos"]
    load = ["--burst", "--requests", "4", "--concurrency", "2", "--seed", "1", "--per-request"]
    found = report(run(node.url, "--json", "--model", MODEL, *lengths, *early, *load))
    assert found["prompt_tokens"] == 4 * 60
    assert [request["tokens"] for request in found["per_request"]] == [9, 3, 9, 3]
    assert found["cached_tokens"] >= 40, "the server has seen no beginning twice"


def test_a_table_for_people_and_the_first_model(run: Run, node: RunningNode) -> None:
    result = run(
        node.url + "/v1", "--rate", "50", "--duration", "0.2", "--output-tokens", "4", "--ignore-eos"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "0 failed" in result.stdout
    assert [line.split()[0] for line in result.stdout.splitlines() if line][-4:] == [
        "first",
        "between",
        "per",
        "whole",
    ]


@pytest.mark.parametrize("limit", [["--requests", "4"], ["--duration", "0.3"]])
def test_a_bar_on_a_terminal(node: RunningNode, tmp_path: Path, limit: list[str]) -> None:
    """It is on stderr, so that it is not in the way of who reads the report from stdout."""
    terminal, programs = pty.openpty()
    length = ["--prompt-tokens", "8", "--output-tokens", "4", "--ignore-eos"]
    with subprocess.Popen(
        [str(COMMAND), "bench", node.url, "--json", "--model", MODEL, *limit, *length],
        stdout=subprocess.PIPE,
        stderr=programs,
        cwd=tmp_path,
        env=node_environment(tmp_path),
    ) as process:
        os.close(programs)
        shown = b""
        with contextlib.suppress(OSError):  # what Linux says when the program has closed its end
            while more := os.read(terminal, 4096):
                shown += more
        os.close(terminal)
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
    assert process.returncode == 0, shown
    assert found["completed"] >= 1
    last = shown.decode().strip().splitlines()[-1].split("\r")[-1]
    assert "100%" in last
    assert f"{found['completed']} answers, " in last
    assert "failed" not in last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--requests", "1", "--duration", "1"], "--requests and --duration exclude each other"),
        (["--rate", "1", "--burst"], "--rate and --burst exclude each other"),
        (["--prompt-ids", "--route", "chat"], "--prompt-ids"),
        (["--prefix-tokens", "129"], "--prefix-tokens is more than --prompt-tokens"),
        (["--short-every", "2"], "need each other"),
        (["--concurrency", "0"], "--concurrency"),
        (["--body", "top_k=40"], "top_k=40 is no JSON"),
        (["--body", "[40]"], "[40] is no JSON object"),
        (
            ["--body", '{"stream": false, "top_k": 4, "model": "m"}'],
            "model, stream: each request has that anyway",
        ),
    ],
)
def test_options_that_make_no_sense(run: Run, arguments: list[str], words: str) -> None:
    result = run("http://127.0.0.1:1", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_nobody_listens(run: Run) -> None:
    result = run(f"http://127.0.0.1:{free_port()}")
    assert (result.returncode, result.stdout) == (1, "")
    assert "Connection refused" in result.stderr


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "ftp://127.0.0.1"])
def test_other_schemes_are_refused(run: Run, url: str) -> None:
    result = run(url)
    assert result.returncode == 1
    assert "only http://" in result.stderr


def test_a_refusal_before_the_run_has_the_servers_words(run: Run, node: RunningNode) -> None:
    result = run(node.url, "--model", "no-such-model")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no-such-model" in result.stderr
    assert "HTTP 404" in result.stderr


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_further_fields_are_in_each_request(run: Run, node: RunningNode, route: str) -> None:
    load = ["--json", "--model", MODEL, "--route", route, "--requests", "3", "--output-tokens", "5"]
    found = report(run(node.url, *load, "--body", '{"top_k": 40, "stop": ["never\\n"]}'))
    assert (found["completed"], found["failed"]) == (3, 0)
    result = run(node.url, *load, "--body", '{"top_k": -7}')
    assert result.returncode == 1
    (error,) = json.loads(result.stdout)["errors"]
    assert error["count"] == 3
    assert "top_k" in error["message"]


def test_when_every_request_fails_the_report_says_why(run: Run, node: RunningNode) -> None:
    load = ["--json", "--model", MODEL, "--requests", "2"]
    result = run(node.url, *load, "--body", '{"no_such_field": 1}')
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert (found["completed"], found["failed"]) == (0, 2)
    assert found["errors"][0]["message"].startswith("HTTP 400: ")
    assert found["ttft_ms"] == dict.fromkeys(("p50", "p90", "p99", "mean", "max"))


def test_answers_that_end_early_are_told(run: Run, node: RunningNode) -> None:
    load = ["--model", MODEL, "--route", "chat", "--requests", "2", "--temperature", "0"]
    result = run(node.url, *load, "--output-tokens", "900", "--prompt-tokens", "20")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].split() == ["model", MODEL]
    assert "of 2 answers ended before the length that was asked for" in result.stderr
    assert "--ignore-eos" in result.stderr
    found = report(run(node.url, "--json", *load, "--output-tokens", "4", "--ignore-eos"))
    assert (found["model"], found["shorter"], found["stopped"]) == (MODEL, 0, False)


def test_ctrl_c_keeps_the_figures(node: RunningNode, tmp_path: Path) -> None:
    load = ["--model", MODEL, "--duration", "600", "--output-tokens", "2", "--ignore-eos"]
    terminal, programs = pty.openpty()
    with subprocess.Popen(
        [str(COMMAND), "bench", node.url, *load],
        stdout=subprocess.PIPE,
        stderr=programs,
        cwd=tmp_path,
        env=node_environment(tmp_path),
    ) as process:
        os.close(programs)
        shown = b""
        while not re.search(rb"[1-9]\d* answers", shown):
            shown += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):
            while more := os.read(terminal, 4096):
                shown += more
        os.close(terminal)
        assert process.stdout is not None
        table = process.stdout.read().decode()
    assert process.returncode == 130, shown
    assert re.search(r"requests +[1-9]\d* completed, 0 failed", table), table
    assert b"Stopped: these figures are of the answers that had ended by then." in shown
