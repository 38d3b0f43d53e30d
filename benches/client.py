"""The load generator, `llm-node bench URL --json`, as the rows use it: started, pinned, read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benches.machine import client_pin
from benches.servers import Server


class LoadError(RuntimeError):
    """The load generator did not do what the row asked, so there is nothing to compare."""


@dataclass(frozen=True)
class Load:
    """One run of the load generator. Lengths are in tokens."""

    concurrency: int
    requests: int
    prompt: int
    output: int
    route: str = "completions"
    seed: int = 1
    prefix: int = 0
    """Comes before `prompt`, the same in all requests."""
    short_output: int = 0
    short_every: int = 0
    burst: bool = False
    may_fail: bool = False
    """Failed requests are what the row measures; else one is an error of the benchmark."""
    temperature: float = 0.0
    filters: dict[str, float] = field(default_factory=dict)
    """Which tokens may be drawn, in the words that both servers have for it."""
    rate: float = 0.0
    """Requests a second, at random times; 0: as fast as `concurrency` allows."""
    user: str = ""
    """Whose turn it is, where requests wait; empty: nobody is named."""

    def times(self, rounds: int) -> Load:
        return replace(self, requests=self.requests * rounds)

    def with_seed(self, seed: int) -> Load:
        return replace(self, seed=seed)

    @property
    def tokens(self) -> int:
        """How many tokens are asked for."""
        short = self.requests // self.short_every if self.short_every else 0
        return (self.requests - short) * self.output + short * self.short_output

    def arguments(self, vocab: int) -> list[str]:
        words = ["--route", self.route, "--concurrency", str(self.concurrency)]
        words += ["--requests", str(self.requests)]
        words += ["--prompt-tokens", str(self.prefix + self.prompt), "--output-tokens", str(self.output)]
        words += ["--ignore-eos", "--seed", str(self.seed), "--timeout", "600", "--per-request"]
        words += ["--temperature", str(self.temperature)]
        fields = {**self.filters, **({"user": self.user} if self.user else {})}
        if fields:
            words += ["--body", json.dumps(fields)]
        if self.rate:
            words += ["--rate", str(self.rate)]
        if self.route == "completions":
            words += ["--prompt-ids", "--vocab-size", str(vocab)]
        if self.prefix:
            words += ["--prefix-tokens", str(self.prefix), "--shared-prefix-seed", str(self.seed)]
        if self.short_every:
            words += ["--short-output-tokens", str(self.short_output)]
            words += ["--short-every", str(self.short_every)]
        if self.burst:
            words += ["--burst"]
        return words


@dataclass(frozen=True)
class Report:
    """What the load generator saw."""

    load: Load
    document: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.document[key]

    @property
    def tokens(self) -> int:
        return int(self.document["output_tokens"])

    @property
    def tokens_per_second(self) -> float:
        return float(self.document["output_tokens_per_s"])

    def milliseconds(self, name: str, which: str) -> float:
        """`ttft`, `itl`, `tpot` or `e2e`; `p50`, `p90`, `p99`, `max`."""
        return float(self.document[f"{name}_ms"][which])


class Client:
    """Runs the load generator, on the last core."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def start(self, server: Server, load: Load) -> Running:
        command = [*client_pin(), *self.command, server.url, "--json", "--model", server.model_id]
        command += load.arguments(server.model.vocab)
        return Running(command, load)

    def run(self, server: Server, load: Load) -> Report:
        return self.start(server, load).report()


class Running:
    """A run under way."""

    def __init__(self, command: list[str], load: Load) -> None:
        self.command = command
        self.load = load
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LLM_NODE_")}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )

    def report(self) -> Report:
        """Wait for the end, and check that all was served as asked."""
        try:
            out, errors = self.process.communicate()
        finally:
            self.process.kill()  # where the benchmark is told to end meanwhile
        if self.process.returncode != 0 and not out:
            raise LoadError(f"{' '.join(self.command)}: {errors.decode(errors='replace')[-2000:]}")
        report = Report(self.load, json.loads(out))
        if not self.load.may_fail:
            if report["failed"] or report["completed"] != self.load.requests:
                raise LoadError(f"{report['failed']} requests failed: {report['errors'][:3]}")
            if report.tokens != self.load.tokens:
                raise LoadError(f"{report.tokens} tokens came, {self.load.tokens} were asked for")
        return report


def default_command() -> list[str]:
    return [str(Path(sys.executable).with_name("llm-node")), "bench"]
