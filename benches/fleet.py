"""What it costs to have HAProxy, or Ray Serve with its own, before a node.

One node with an engine that costs nothing and steps that take `--step-us`, as a replica of Ray Serve. It is
asked at its own address, through HAProxy with the file of `deploy/haproxy`, and through Ray's, by turns. So
what is compared is one and the same node, and what is told are differences and ratios within a turn:

    processor time per token of node, worker and the HAProxy on the way, above the direct way;
    time between tokens, p50 and p99, divided by the direct way's;
    a request of one token, p50 and p99, above the direct way's.

What Ray takes whether anybody asks or not is told apart: it is on the way of no token.

    python benches/fleet.py [--concurrency 1,8,32] [--turns 8] [--tokens 400] [--step-us 5000] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benches.machine import Reading, client_pin, describe  # noqa: E402
from benches.servers import end_with_program  # noqa: E402
from benches.stats import bootstrap, median  # noqa: E402
from benches.token_path import cpu  # noqa: E402
from support.fleet import Fleet, command_line, fleet  # noqa: E402
from support.haproxy import configuration, haproxy  # noqa: E402
from support.node import PROGRAM, RunningNode, descendants_of, free_port  # noqa: E402

MODEL = "null"
DIRECT, HAPROXY, RAY = "direct", "HAProxy", "Ray Serve"
REQUESTS = 400
"""Of one token, one after the other."""
HAPROXY_THREADS = "4"
"""Ray's own default; tests have one."""


@dataclass(frozen=True)
class Way:
    """To the node."""

    url: str
    pids: list[int]
    """Of what is on it: node, worker, and HAProxy."""


@dataclass(frozen=True)
class Block:
    """One run of the load generator."""

    report: dict[str, Any]
    cpu_us: float
    """Of all that is on the way, for each token."""
    foreign: float
    """The share of the machine that others took."""

    def milliseconds(self, name: str, which: str) -> float:
        return float(self.report[f"{name}_ms"][which])


def measure(way: Way, key: str, concurrency: int, requests: int, tokens: int, seed: int) -> Block:
    command = [*client_pin(), str(PROGRAM), "bench", way.url, "--json", "--model", MODEL, "--api-key", key]
    command += ["--route", "completions", "--prompt-ids", "--vocab-size", "200", "--prompt-tokens", "16"]
    command += ["--concurrency", str(concurrency), "--requests", str(requests)]
    command += ["--output-tokens", str(tokens), "--ignore-eos", "--temperature", "0", "--seed", str(seed)]
    before, began = sum(map(cpu, way.pids)), Reading.now()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    took = sum(map(cpu, way.pids)) - before
    if report["failed"] or report["output_tokens"] != requests * tokens:
        raise SystemExit(f"{way.url}: {report['failed']} failed, {report['output_tokens']} tokens")
    foreign = Reading.now().foreign_since(began, took + report["client_cpu_s"])
    return Block(report, 1e6 * took / report["output_tokens"], foreign)


def by_turns(ways: Mapping[str, Way], turns: int, run: Callable[[Way, int], Block]) -> list[dict[str, Block]]:
    """All ways in each turn, in one order and then in the other, so that a drift favours none."""
    found = []
    for turn in range(turns):
        names = list(ways)[:: -1 if turn % 2 else 1]
        found.append({name: run(ways[name], turn + 1) for name in names})
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def figure(values: Sequence[float]) -> dict[str, float]:
    low, high = bootstrap(values)
    return {"median": median(values), "low": low, "high": high}


def compared(
    turns: Sequence[Mapping[str, Block]], way: str, metric: Callable[[Block, Block], float]
) -> dict[str, float]:
    """What it gives for this way and the direct one of each turn."""
    return figure([metric(turn[way], turn[DIRECT]) for turn in turns])


def streams(turns: Sequence[Mapping[str, Block]]) -> dict[str, Any]:
    def ratio(which: str) -> Callable[[Block, Block], float]:
        return lambda one, direct: one.milliseconds("itl", which) / direct.milliseconds("itl", which)

    found: dict[str, Any] = {"direct, µs/token": figure([turn[DIRECT].cpu_us for turn in turns])}
    for way in (HAPROXY, RAY):
        found[f"{way}, µs/token added"] = compared(turns, way, lambda one, direct: one.cpu_us - direct.cpu_us)
        for which in ("p50", "p99"):
            found[f"{way}, between tokens {which}, ratio"] = compared(turns, way, ratio(which))
    found["Ray Serve over HAProxy, all of the way, ratio"] = figure(
        [turn[RAY].cpu_us / turn[HAPROXY].cpu_us for turn in turns]
    )
    found["Ray Serve over HAProxy, what is added, ratio"] = figure(
        [
            (turn[RAY].cpu_us - turn[DIRECT].cpu_us) / (turn[HAPROXY].cpu_us - turn[DIRECT].cpu_us)
            for turn in turns
        ]
    )
    return found


def requests(turns: Sequence[Mapping[str, Block]]) -> dict[str, Any]:
    def added(which: str) -> Callable[[Block, Block], float]:
        return lambda one, direct: one.milliseconds("e2e", which) - direct.milliseconds("e2e", which)

    found: dict[str, Any] = {
        "direct p50, ms": figure([turn[DIRECT].milliseconds("e2e", "p50") for turn in turns])
    }
    for way in (HAPROXY, RAY):
        for which in ("p50", "p99"):
            found[f"{way}, {which}, ms added"] = compared(turns, way, added(which))
    return found


def show(title: str, figures: Mapping[str, Any], turns: Sequence[Mapping[str, Block]]) -> None:
    print(title)
    for name, one in figures.items():
        print(f"    {name}: {one['median']:.3g} [{one['low']:.3g}, {one['high']:.3g}]")
    shares = [block.foreign for turn in turns for block in turn.values()]
    print(f"    (others took {100 * median(shares):.0f} % of the machine, {100 * max(shares):.0f} % at most)")


@contextlib.contextmanager
def three_ways(folder: Path, options: argparse.Namespace) -> Iterator[tuple[Fleet, dict[str, Way]]]:
    engines = folder / "engines"
    subprocess.run(["make", "--quiet", "-C", ROOT / "benches/null_engine", f"OUT={engines}"], check=True)
    model = folder / f"{MODEL}.null"
    model.write_text("any file at all\n")

    def one(serve: dict[str, Any]) -> None:
        serve["applications"][0]["deployments"][0]["num_replicas"] = 1

    with (
        fleet(ROOT, [engines], [model], RAY_SERVE_HAPROXY_NBTHREAD=HAPROXY_THREADS) as found,
        contextlib.ExitStack() as stack,
    ):
        found.deploy(one)
        found.wait(lambda: len(found.nodes()) == 1 == found.in_rotation(), "one node")
        ((node, node_port),) = found.nodes().items()
        direct = RunningNode(found.process, f"http://127.0.0.1:{node_port}", found.log)
        load = {
            "model_id": MODEL,
            "max_sequences": 64,
            "context_length": options.tokens + 1024,
            "speculation": "off",  # the answer is a loop, which drafts would see through
            "options": {"step_us": str(options.step_us)},
        }
        answer = direct.post("/api/models/load", load, key=found.keys["admin"])
        assert answer.status == 200, answer.body
        own = [node, *descendants_of(node)]
        port = free_port()
        text = configuration(ROOT, [node_port], port, admins="192.0.2.0/24")
        alone = stack.enter_context(haproxy(folder, text, port))
        rays = [pid for pid in found.named("haproxy") if "-f" in command_line(pid)]
        yield (
            found,
            {
                DIRECT: Way(direct.url, own),
                HAPROXY: Way(f"http://127.0.0.1:{port}", [*own, alone.pid]),
                RAY: Way(found.url, [*own, *rays]),
            },
        )


def idle(found: Fleet, ways: Mapping[str, Way], seconds: float = 10.0) -> float:
    """Processor seconds a second of all that Ray has begun and that is on no way."""
    others = found.own() - {pid for way in ways.values() for pid in way.pids}

    def spent() -> float:
        return sum(cpu(pid) for pid in others if Path(f"/proc/{pid}/task").exists())

    before = spent()
    time.sleep(seconds)
    return (spent() - before) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--step-us", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.pop("OPENAI_API_KEY", None)
    end_with_program()
    with (
        tempfile.TemporaryDirectory() as name,
        three_ways(Path(name), options) as (found, ways),
    ):
        key = found.keys["inference"]
        record: dict[str, Any] = {"machine": describe(), "step_us": options.step_us, "turns": options.turns}

        def alone(way: Way, seed: int) -> Block:
            return measure(way, key, 1, REQUESTS, 1, seed)

        by_turns(ways, 1, alone)  # wakes what sleeps
        turns = by_turns(ways, options.turns, alone)
        record["requests"] = requests(turns)
        show("a request of one token", record["requests"], turns)
        for count in map(int, options.concurrency.split(",")):

            def many(way: Way, seed: int, count: int = count) -> Block:
                return measure(way, key, count, count, options.tokens, seed)

            turns = by_turns(ways, options.turns, many)
            record[f"streams {count}"] = streams(turns)
            show(f"{count} streams", record[f"streams {count}"], turns)
        record["idle"] = idle(found, ways)
        print(f"Ray itself, when nobody asks: {record['idle']:.2f} s of processor time a second")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
