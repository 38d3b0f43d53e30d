"""One comparison: both servers up, blocks in ABBA order, and what was measured of each."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benches import stats
from benches.build import Tools
from benches.client import Client, Load, LoadError, Report
from benches.machine import Reading, cpu_seconds
from benches.servers import (
    SPLIT,
    UNIFIED,
    Flavour,
    Server,
    Setup,
    Started,
    start_llama_server,
    start_node,
)

T = TypeVar("T")

NODE = "A"
FLAVOURS = (Flavour(SPLIT), Flavour(UNIFIED))


@dataclass(frozen=True)
class Options:
    """What the person at the terminal chose."""

    pairs: int
    block_seconds: float
    threads: int
    engines: Path
    client: list[str]
    node_options: dict[str, str]
    quick: bool = False
    vllm_url: str | None = None
    against: Path | None = None
    """The program of an llm-node of other code, to be measured in llama-server's place."""

    @property
    def repeats(self) -> int:
        """How often something is measured that is compared with nothing."""
        return 2 if self.quick else 7


@dataclass(frozen=True)
class Block:
    """What one server did in one block."""

    reports: list[Report]
    front_cpu: float
    worker_cpu: float

    @property
    def main(self) -> Report:
        return self.reports[0]

    @property
    def cpu_per_token(self) -> float:
        """Microseconds of the server's processes per token that came."""
        tokens = sum(report.tokens for report in self.reports)
        return 1e6 * (self.front_cpu + self.worker_cpu) / tokens if tokens else float("nan")

    @property
    def front_per_token(self) -> float:
        tokens = sum(report.tokens for report in self.reports)
        return 1e6 * self.front_cpu / tokens if tokens else float("nan")


Play = Callable[[Client, Server, Load], list[Report]]
"""Loads a server; the first report is the one that is compared."""


def play_once(client: Client, server: Server, load: Load) -> list[Report]:
    return [client.run(server, load)]


@dataclass
class Comparison:
    """The pairs of one row and what else was measured in the same run."""

    samples: stats.Samples[stats.Pair[Block]]
    load: Load
    setup: Setup
    other: str
    """The name of the server that the node is compared with."""
    flavour: Flavour | None = None
    """How it was run, if it is llama-server."""
    trials: dict[str, float] = field(default_factory=dict)
    ceilings: list[float] = field(default_factory=list)
    """Tokens per second of llama-batched-bench: the same work with no server around it."""
    beside: list[float] = field(default_factory=list)

    @property
    def pairs(self) -> list[stats.Pair[Block]]:
        return self.samples.values

    def ratios(self, metric: Callable[[Block], float]) -> list[float]:
        return [metric(pair.a) / metric(pair.b) for pair in self.pairs]

    def of_node(self, metric: Callable[[Block], float]) -> list[float]:
        return [metric(pair.a) for pair in self.pairs]

    def of_other(self, metric: Callable[[Block], float]) -> list[float]:
        return [metric(pair.b) for pair in self.pairs]

    @property
    def ceiling(self) -> float | None:
        return stats.median(self.ceilings) if self.ceilings else None


class Arena:
    """Keeps the servers of a comparison, and measures."""

    def __init__(self, build: Callable[[str], Tools], options: Options) -> None:
        """`build` gives the tools on the libraries of the engine for a backend."""
        self.tools = functools.cache(build)
        self.options = options
        self.client = Client(options.client)
        self._done: dict[str, Any] = {}
        self._unified: dict[tuple[Setup, int, int, int, tuple[str, ...]], bool] = {}

    def once(self, key: str, measure: Callable[[], T]) -> T:
        """For rows that look at the same measurement from several sides."""
        if key not in self._done:
            self._done[key] = measure()
        found: T = self._done[key]
        return found

    @contextlib.contextmanager
    def node(self, setup: Setup, **keywords: Any) -> Iterator[Started]:
        server = start_node(setup, self.options.engines, self.options.node_options, **keywords)
        try:
            yield server
        finally:
            server.stop()

    @contextlib.contextmanager
    def other(self, setup: Setup, flavour: Flavour | None) -> Iterator[Started]:
        """llama-server, run in this way; without one the llm-node that takes its place."""
        if flavour is None:
            server = start_node(
                setup, self.options.engines, self.options.node_options, program=self.options.against
            )
        else:
            server = start_llama_server(self.tools(setup.backend), setup, flavour)
        try:
            yield server
        finally:
            server.stop()

    ## blocks #######################################################################################

    def block(
        self, server: Server, others: Sequence[Server], load: Load, play: Play, helpers: Sequence[int] = ()
    ) -> stats.Sample[Block]:
        """Measure one block."""
        server.wake(load.seed)
        pids = [pid for other in (*others, server) for pid in other.pids]
        began = Reading.now()
        watched, own, (front, worker) = cpu_seconds([*pids, *helpers]), sum(os.times()[:4]), server.cpu()
        reports = play(self.client, server, load)
        front_after, worker_after = server.cpu()
        ended = Reading.now()
        # The clients are among the children of this process that have ended.
        ours = cpu_seconds([*pids, *helpers]) - watched + sum(os.times()[:4]) - own
        block = Block(reports, front_after - front, worker_after - worker)
        return stats.Sample(block, ended.foreign_since(began, ours))

    def collect(self, wanted: int, measure: Callable[[int], stats.Sample[T]]) -> stats.Samples[T]:
        """So many samples during which others took little of the machine; of a quick run, any."""
        return stats.collect(wanted, measure, wanted if self.options.quick else None)

    def rounds(self, server: Server, load: Load, play: Play) -> int:
        """How often the load is to be repeated to fill a block."""
        seconds = float(play(self.client, server, load)[0]["wall_s"])
        return max(1, round(self.options.block_seconds / max(seconds, 1e-3)))

    def alone(self, measure: Callable[[], T], wanted: int = 1) -> stats.Samples[T]:
        """Figures of programs that run while no server is used, and that have ended when `measure` does."""

        def once(_: int) -> stats.Sample[T]:
            began, ours = Reading.now(), sum(os.times()[:4])
            value = measure()
            return stats.Sample(value, Reading.now().foreign_since(began, sum(os.times()[:4]) - ours))

        return self.collect(wanted, once)

    def ceiling(self, setup: Setup, load: Load, more: tuple[str, ...]) -> float:
        """Tokens per second of llama-batched-bench, with the cache that the first call finds faster and what
        else llama-server was told.
        """
        sequences = min(load.concurrency, setup.slots)

        def bench(unified: bool) -> float:
            samples = self.alone(lambda: self._batched_bench(setup, load, sequences, unified, more))
            return samples.values[0]

        key = (setup, load.prompt, load.output, sequences, more)
        if sequences == 1:
            return bench(False)
        if key not in self._unified:
            both = {unified: bench(unified) for unified in (False, True)}
            self._unified[key] = both[True] > both[False]
            return both[self._unified[key]]
        return bench(self._unified[key])

    def prefill_ms(self, setup: Setup, tokens: int) -> float:
        """What the engine takes for a prompt of that length, by llama-bench: the median of many."""

        def bench() -> float:
            command = [str(self.tools(setup.backend).bench), "-m", str(setup.model.path)]
            command += ["-t", str(setup.threads), "-p", str(tokens), "-n", "0", "-r", "100", "-o", "json"]
            command += ["-fa", "1"]  # as servers do where nobody says otherwise
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise LoadError(f"llama-bench: {done.stderr[-1000:]}")
            return stats.median(json.loads(done.stdout)[0]["samples_ns"]) / 1e6

        return self.alone(bench).values[0]

    def _batched_bench(
        self, setup: Setup, load: Load, sequences: int, unified: bool, more: Sequence[str]
    ) -> float:
        cells = sequences * max(256, -(-(load.prompt + load.output) // 256) * 256)
        command = [str(self.tools(setup.backend).batched_bench), "-m", str(setup.model.path)]
        command += [
            "-c",
            str(cells),
            "-t",
            str(setup.threads),
            "-tb",
            str(setup.threads),
            "-b",
            "2048",
            "-ub",
            "512",
        ]
        command += ["-npp", str(load.prompt), "-ntg", str(load.output), "-npl", f"{sequences},1"]
        command += ["--output-format", "jsonl", *(["--kv-unified"] if unified else ["--no-kv-unified"])]
        # One more line for a single sequence: the program may end before its last line is written.
        if setup.backend != "cpu":
            command += ["-ngl", "999"]
        command += more
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                result = json.loads(line)
                seconds = float(result["t_pp"]) + float(result["t_tg"])
                return sequences * load.output / seconds
        raise LoadError(f"llama-batched-bench: {done.stderr[-1000:]}")

    ## comparisons ##################################################################################

    def choose_flavour(
        self,
        setup: Setup,
        load: Load,
        play: Play,
        metric: Callable[[Block], float],
        larger_is_better: bool,
        flavours: Sequence[Flavour],
        helpers: Sequence[int],
    ) -> tuple[Flavour | None, dict[str, float]]:
        """The way to run llama-server that does best at this load, by a short trial of each."""
        if self.options.against is not None:
            return None, {}
        if len(flavours) == 1:
            return flavours[0], {}
        found: dict[str, float] = {}
        for number, flavour in enumerate(flavours):
            with self.other(setup, flavour) as server:

                def trial(turn: int, number: int = number, server: Server = server) -> stats.Sample[Block]:
                    seeded = load.with_seed(900_000 + 10 * number + turn)
                    return self.block(server, [], seeded, play, helpers)

                trial(-1)  # finds an empty cache, as none after it does
                samples = self.collect(1 if self.options.quick else 3, trial)
                found[str(flavour)] = stats.median([metric(block) for block in samples.values])
        best = max if larger_is_better else min
        chosen = best(flavours, key=lambda flavour: found[str(flavour)])
        return chosen, found

    def compare(
        self,
        setup: Setup,
        load: Load,
        metric: Callable[[Block], float],
        *,
        larger_is_better: bool = True,
        play: Play = play_once,
        flavours: Sequence[Flavour] = FLAVOURS,
        repeat: bool = True,
        ceiling_every: int = 0,
        beside: Callable[[], float] | None = None,
        helpers: Sequence[int] = (),
        fresh_llama_server: bool = False,
    ) -> Comparison:
        """Measure pairs of blocks. `repeat` fills a block with rounds of the load; `ceiling_every` says
        after how many pairs the ceiling is measured; `beside` is measured after each pair;
        `fresh_llama_server` starts it anew for each block.
        """
        if setup.slots == 1:  # one sequence has nothing to share
            flavours = [flavour for flavour in flavours if flavour.cache != UNIFIED]
        flavour, trials = self.choose_flavour(setup, load, play, metric, larger_is_better, flavours, helpers)
        ceilings: list[float] = []
        besides: list[float] = []

        def after(index: int) -> None:
            if flavour is not None and ceiling_every and index % ceiling_every == 0:
                ceilings.append(self.ceiling(setup, load, flavour.more))
            if beside is not None:
                besides.append(beside())

        def start() -> contextlib.AbstractContextManager[Server]:
            return self.other(setup, flavour)

        with self.node(setup) as node, start() as other:
            again = start if fresh_llama_server else None
            samples, whole = self._by_turns(node, other, load, play, repeat, helpers, after, again)
        return Comparison(samples, whole, setup, other.name, flavour, trials, ceilings, besides)

    def compare_with_guest(self, setup: Setup, load: Load, other: Server) -> Comparison:
        """The same with a server that somebody else started, and that stays up."""
        with self.node(setup) as node:
            samples, whole = self._by_turns(node, other, load)
        return Comparison(samples, whole, setup, other.name)

    def _by_turns(
        self,
        node: Server,
        other: Server,
        load: Load,
        play: Play = play_once,
        repeat: bool = True,
        helpers: Sequence[int] = (),
        after: Callable[[int], None] = lambda index: None,
        again: Callable[[], contextlib.AbstractContextManager[Server]] | None = None,
    ) -> tuple[stats.Samples[stats.Pair[Block]], Load]:
        """Pairs of blocks of the node and another server, and the load of a block. `again` starts another
        of the other server's kind, for each block.
        """
        whole = load.times(self.rounds(other, load.with_seed(800_000), play)) if repeat else load

        def measure(side: str, index: int) -> stats.Sample[Block]:
            # The same prompts for both, new ones for each pair: no cache has seen them.
            seeded = whole.with_seed(1_000 * (index + 1))
            if side == NODE:
                return self.block(node, [other], seeded, play, helpers)
            if again is None:
                return self.block(other, [node], seeded, play, helpers)
            with again() as fresh:
                return self.block(fresh, [node, other], seeded, play, helpers)

        in_turns = stats.in_turns(measure)

        def pair(index: int) -> stats.Sample[stats.Pair[Block]]:
            sample = in_turns(index)
            print(".", end="", flush=True, file=sys.stderr)
            check_equal_prompts(sample.value.a, sample.value.b, other.name)
            after(index)
            return sample

        return self.collect(self.options.pairs, pair), whole


def check_equal_prompts(a: Block, b: Block, other: str) -> None:
    """Servers that were given prompts of different lengths cannot be compared."""
    for ours, theirs in zip(a.reports, b.reports, strict=True):
        if ours.load.may_fail:
            continue
        if ours["prompt_tokens"] != theirs["prompt_tokens"]:
            raise LoadError(
                f"unequal prompts: {ours['prompt_tokens']} tokens for llm-node, "
                f"{theirs['prompt_tokens']} for {other}"
            )
