"""Two models that exclude each other, and one that is loaded beside another's stream.

`python -m benches.two_models MODEL.gguf` has two parts. The file is there twice, as two models.

    alternate  four clients ask one model and the other in turn, where one of them fits: answers a minute,
               of a node with nothing set but `--vram-limit`, and of llama-server, which is ended and started
               for each change, first come, first served; by turns
    beside     the time between tokens of a stream, while the other model is loaded and unloaded without a
               pause, and alone; by turns
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf

from benches import ROOT, machine
from benches.build import build
from benches.client import Client, Load, default_command
from benches.defaults import Figures, ended, show
from benches.models import Model
from benches.servers import Server, Setup, Started, free_port, start, start_node
from benches.stats import abba

NAMES = ("one", "other")
CLIENTS = 4
TOKENS = 32
STREAM = Load(1, 3, prompt=16, output=96)


def ask(server: Server, model_id: str) -> None:
    body = {"model": model_id, "prompt": "What is an engine?", "max_tokens": TOKENS, "temperature": 0}
    answer = server.request("/v1/completions", body, timeout=600)
    assert answer["usage"]["completion_tokens"] > 0, answer


class ByHand:
    """llama-server with the model that is wanted: whoever wants another one waits until all before
    them have their answers, and ends it."""

    def __init__(self, program: Path, models: dict[str, Model]) -> None:
        self._program, self._models = program, models
        self._changed = threading.Condition()
        self._waiting: list[int] = []
        self._tickets = itertools.count()
        self._answering = 0
        self._server: Started | None = None

    def ask(self, name: str) -> None:
        with self._changed:
            ticket = next(self._tickets)
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] == ticket and self._may_go_on(name))
            if self._server is None or self._server.model_id != name:
                self._start(name)
            assert self._server is not None
            server = self._server
            self._answering += 1
            self._waiting.pop(0)
            self._changed.notify_all()
        try:
            ask(server, name)
        finally:
            with self._changed:
                self._answering -= 1
                self._changed.notify_all()

    def _may_go_on(self, name: str) -> bool:
        return self._answering == 0 or (self._server is not None and self._server.model_id == name)

    def _start(self, name: str) -> None:
        self.stop()
        port = free_port()
        command = [str(self._program), "--host", "127.0.0.1", "--port", str(port), "-m"]
        model = self._models[name]
        self._server = start("llama-server", [*command, str(model.path)], port, "/health", model)

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None


def answers_a_minute(ask_one: Callable[[str], None], seconds: float) -> float:
    """Of clients that ask both models in turn, until the time is over."""
    until = time.monotonic() + seconds

    def client(number: int) -> int:
        for turn in itertools.count():
            ask_one(NAMES[(number + turn) % 2])
            if time.monotonic() >= until:
                return turn + 1
        raise AssertionError

    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        answered = sum(clients.map(client, range(CLIENTS)))
    return 60 * answered / (time.monotonic() - began)


def alternate(setup: Setup, models: dict[str, Model], options: argparse.Namespace) -> Figures:
    figures: Figures = defaultdict(list)
    program = build(setup.backend).server

    def at_node() -> float:
        more = ["--vram-limit", options.vram_limit]
        with ended(start_node(setup, options.engines_dir, load=False, more=more)) as node:
            return answers_a_minute(lambda name: ask(node, name), options.seconds)

    def by_hand() -> float:
        servers = ByHand(program, models)
        try:
            return answers_a_minute(servers.ask, options.seconds)
        finally:
            servers.stop()

    for _, order in zip(range(options.turns), abba(), strict=False):
        found = {side: at_node() if side == "A" else by_hand() for side in order}
        figures["llm-node, answers a minute"].append(found["A"])
        figures["llama-server by hand, answers a minute"].append(found["B"])
        figures["llm-node / by hand"].append(found["A"] / found["B"])
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return figures


@contextlib.contextmanager
def loads_without_end(node: Server, name: str, counts: list[float]) -> Iterator[None]:
    """And unloads. `counts` gets how many there were."""
    is_over = threading.Event()

    def go_on() -> int:
        for done in itertools.count():
            if is_over.is_set():
                return done
            node.request("/api/models/load", {"model_id": name})
            node.request("/api/models/unload", {"model_id": name})
        raise AssertionError

    with ThreadPoolExecutor(1) as loader:
        loads = loader.submit(go_on)
        try:
            yield
        finally:
            is_over.set()
        counts.append(loads.result())


def beside(setup: Setup, options: argparse.Namespace) -> Figures:
    figures: Figures = defaultdict(list)
    client = Client(default_command())
    with ended(start_node(setup, options.engines_dir, load=False)) as node:
        one, other = NAMES
        node.request("/api/models/load", {"model_id": one, "speculation": "off", "threads": setup.threads})
        server = replace(node, model_id=one)
        client.run(server, STREAM)  # wakes what sleeps
        for turn, order in zip(range(options.turns), abba(), strict=False):
            found: dict[str, dict[str, float]] = {}
            for side in order:
                with contextlib.ExitStack() as stack:
                    if side == "B":
                        loads = figures["loads beside it"]
                        stack.enter_context(loads_without_end(node, other, loads))
                    report = client.run(server, STREAM.with_seed(1000 * (turn + 1)))
                found[side] = {which: report.milliseconds("itl", which) for which in ("p50", "p99")}
            for which in ("p50", "p99"):
                alone, with_loads = found["A"][which], found["B"][which]
                figures[f"alone, {which}, ms"].append(alone)
                figures[f"beside loads, {which}, ms"].append(with_loads)
                figures[f"beside loads / alone, {which}"].append(with_loads / alone)
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benches.two_models",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--parts", default="alternate,beside")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60, help="of each side of a turn (default: 60)")
    parser.add_argument("--vram-limit", default="1200M", help="one fits, and two do not (default: 1200M)")
    parser.add_argument("--threads", type=int, default=machine.CPUS)
    parser.add_argument("--engines-dir", type=Path, default=ROOT / "engines")
    options = parser.parse_args()
    vocab = len(gguf.GGUFReader(str(options.model)).fields["tokenizer.ggml.tokens"].data)
    print(json.dumps(machine.describe()))
    with tempfile.TemporaryDirectory(prefix="llm-node-bench-") as folder:
        models = {name: Model(name, Path(folder) / f"{name}.gguf", vocab, 0, 0) for name in NAMES}
        for model in models.values():
            shutil.copy(options.model, model.path)  # the page cache is warm
        setup = Setup(models[NAMES[0]], options.threads, 0, 0)
        for part in options.parts.split(","):
            print(part)
            if part == "alternate":
                show(alternate(setup, models, options))
            elif part == "beside":
                show(beside(setup, options))
            else:
                parser.error(f"no part {part}: alternate, beside")


if __name__ == "__main__":
    main()
