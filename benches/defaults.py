"""A model with nothing set: its loads beside llama-server, and its bursts beside those of set sizes.

`python -m benches.defaults MODEL.gguf` has two parts, each by turns:

    load      from a request to its first token, where the model is not loaded: the first time in a home, and
              again; and llama-server from its start to its first token. By the clock, and in processor time.
              Then what is resident, when the one token has been told
    bursts    32 prompts of 50 tokens at once, 32 with 2,048 tokens in common, and 8 streams, against the same
              node with `--sizes` set, which were the defaults once; time to the first token, tokens a second,
              and processor time
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gguf

from benches import ROOT, machine
from benches.build import build
from benches.client import Client, Load, default_command
from benches.machine import cpu_seconds, memory_bytes
from benches.models import Model
from benches.servers import Server, Setup, Started, end_with_program, free_port, start, start_node
from benches.stats import abba, bootstrap, median

PROMPT = "What is an engine?"
BURSTS = {
    "burst-32": Load(32, 32, prompt=50, output=8, burst=True),
    "shared-prefix": Load(32, 32, prompt=64, output=8, prefix=2048, burst=True),
    "streams-8": Load(8, 16, prompt=32, output=48),
}
Figures = defaultdict[str, list[float]]


def first_token(server: Server) -> None:
    """Ask for one token, and read until it is there."""
    body = {"model": server.model_id, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, "stream": True}
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        while not reply.readline().startswith(b"data:"):
            pass
        reply.read()


def resident(server: Server) -> float:
    """Of all its processes but the one that talks HTTP, where there are others; in MB."""
    below = server.pids[1:] or server.pids
    return sum(map(memory_bytes, below)) / 1e6


@contextlib.contextmanager
def ended(server: Started) -> Iterator[Started]:
    try:
        yield server
    finally:
        server.stop()


def load_at_llama_server(model: Model, program: Path, figures: Figures) -> None:
    port = free_port()
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "-m", str(model.path)]
    began = time.monotonic()
    with ended(start("llama-server", command, port, "/health", model)) as server:
        first_token(server)
        figures["llama-server, s"].append(time.monotonic() - began)
        figures["llama-server, processor s"].append(sum(server.cpu()))
        figures["llama-server, MB"].append(resident(server))


def load_at_node(setup: Setup, engines: Path, figures: Figures) -> None:
    with ended(start_node(setup, engines, load=False)) as node:
        for which in ("first", "again"):
            before, began = cpu_seconds(node.pids), time.monotonic()
            first_token(node)
            figures[f"llm-node, {which}, s"].append(time.monotonic() - began)
            figures[f"llm-node, {which}, processor s"].append(cpu_seconds(node.pids) - before)
            figures[f"llm-node, {which}, MB"].append(resident(node))
            node.request("/api/models/unload", {"model_id": node.model_id})


def loads(setup: Setup, engines: Path, turns: int) -> Figures:
    figures: Figures = defaultdict(list)
    program = build(setup.backend).server
    setup.model.path.read_bytes()  # the page cache is warm
    for _, order in zip(range(turns), abba(), strict=False):
        for side in order:
            if side == "A":
                load_at_node(setup, engines, figures)
            else:
                load_at_llama_server(setup.model, program, figures)
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return figures


def bursts(setup: Setup, engines: Path, turns: int, sizes: Mapping[str, int]) -> Figures:
    """The node as it is by default, and one with these sizes."""
    figures: Figures = defaultdict(list)
    client = Client(default_command())
    with (
        ended(start_node(setup, engines, load=False)) as unset,
        ended(start_node(setup, engines, load=False)) as told,
    ):
        for node, wish in ((unset, {}), (told, sizes)):
            body = {"model_id": node.model_id, "threads": setup.threads, "speculation": "off", **wish}
            facts = node.request("/api/models/load", body)["facts"]
            print(f"{facts['context_length']} tokens for {facts['max_sequences']} sequences", file=sys.stderr)
        for name, load in BURSTS.items():
            for turn, order in zip(range(turns + 1), abba(), strict=False):
                for side in order:
                    node, kind = (unset, "unset") if side == "A" else (told, "told")
                    before = sum(node.cpu())
                    report = client.run(node, load.with_seed(1000 * (turn + 1)))
                    if turn == 0:  # memory that was never used is new to the process
                        continue
                    figures[f"{name}, {kind}, first token p50, ms"].append(report.milliseconds("ttft", "p50"))
                    figures[f"{name}, {kind}, the latest, ms"].append(report.milliseconds("ttft", "max"))
                    figures[f"{name}, {kind}, processor s"].append(sum(node.cpu()) - before)
                    figures[f"{name}, {kind}, tokens/s"].append(report.tokens_per_second)
                print(".", end="", flush=True, file=sys.stderr)
            for what in ("first token p50, ms", "the latest, ms", "tokens/s", "processor s"):
                ours, theirs = (figures[f"{name}, {kind}, {what}"] for kind in ("unset", "told"))
                figures[f"{name}, unset / told, {what}"] = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(file=sys.stderr)
    return figures


def show(figures: Mapping[str, Sequence[float]]) -> None:
    for name, values in figures.items():
        low, high = bootstrap(values)
        print(f"    {name}: {median(values):.3g} [{low:.3g}, {high:.3g}], least {min(values):.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benches.defaults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--parts", default="load,bursts")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--threads", type=int, default=machine.CPUS)
    parser.add_argument(
        "--sizes", type=json.loads, default={"context_length": 8192, "max_sequences": 8}, metavar="JSON"
    )
    parser.add_argument("--engines-dir", type=Path, default=ROOT / "engines")
    options = parser.parse_args()
    vocab = len(gguf.GGUFReader(str(options.model)).fields["tokenizer.ggml.tokens"].data)
    model = Model(options.model.stem, options.model, vocab, 0, 0)
    setup = Setup(model, options.threads, 0, 0)
    end_with_program()
    print(json.dumps(machine.describe()))
    for part in options.parts.split(","):
        print(part)
        if part == "load":
            show(loads(setup, options.engines_dir, options.turns))
        elif part == "bursts":
            show(bursts(setup, options.engines_dir, options.turns, options.sizes))
        else:
            parser.error(f"no part {part}: load, bursts")


if __name__ == "__main__":
    main()
