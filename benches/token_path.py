"""What the host itself costs: streams and chats of an engine that costs nothing.

Builds `benches/null_engine`, starts a node with it, and prints for each concurrency the tokens per second
that reach a client which only reads, and the CPU time per token of the node and of the worker, which is all
there is above an engine. `--step-us` makes each step wait, as it does for a real device: then the wake-ups
show that a saturated pipeline hides. `--row-us` lets the engine compute for each token, as it does on a CPU;
its own time is not counted. `--turns` compares plain streams with those of chats that offer a tool, whose
text passes the parser of calls: so many pairs, by turns.

The client is `benches/null_engine/reader.c`, pinned as that of all rows is.

    python benches/token_path.py [--concurrency 1,8,64] [--tokens 20000] [--step-us 0] [--turns 0]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benches.machine import client_pin  # noqa: E402
from benches.stats import abba, bootstrap, median  # noqa: E402
from support.node import RunningNode, running_node  # noqa: E402

MODEL = "null"
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}{{ message.content }}\n{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "now", "description": "Tells the time."}}


def cpu_by_thread(pid: int) -> dict[str, float]:
    """CPU seconds of each thread that lives, by its name."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            seconds[(task / "comm").read_text().strip()] += nanoseconds / 1e9
    return seconds


def cpu(pid: int) -> float:
    """CPU seconds of all threads that live. (What /proc counts for the process is rounded to 10 ms.)"""
    return sum(cpu_by_thread(pid).values())


def read(node: RunningNode, reader: Path, what: str, count: int, body: dict[str, Any]) -> dict[str, Any]:
    """What `reader` says of so many streams, or chats."""
    _, port = node.address
    command = [*client_pin(), str(reader), str(port), what, str(count), json.dumps(body)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["broken"] == 0, (result, node.log_text()[-500:])
    return result


def measure(
    node: RunningNode,
    worker: int,
    reader: Path,
    streams: int,
    tokens: int,
    row_us: int,
    *,
    chats: bool = False,
) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": "a"}
    if chats:
        asked = {"messages": [{"role": "user", "content": "a"}], "tools": [TOOL]}
    body = {
        "model": MODEL,
        **asked,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    before = cpu_by_thread(node.process.pid), cpu_by_thread(worker)
    result = read(node, reader, "chat-streams" if chats else "streams", streams, body)
    after = cpu_by_thread(node.process.pid), cpu_by_thread(worker)
    total = streams * tokens
    of_node, of_worker = (
        {name: 1e6 * (now[name] - then.get(name, 0.0)) / total for name in now}
        for now, then in zip(after, before, strict=True)
    )
    threads = {
        f"{kind}:{name}": round(us, 2)
        for kind, of_process in (("node", of_node), ("worker", of_worker))
        for name, us in of_process.items()
        if us > 0.05
    }
    return {
        "streams": streams,
        "tokens_per_second": total / result["seconds"],
        "tokens_per_event": total / result["events"],
        "node_us_per_token": sum(of_node.values()),
        "worker_us_per_token": sum(of_worker.values()) - row_us,
        "threads_us_per_token": threads,
    }


def turns(rounds: int, pace: Callable[[bool], dict[str, Any]]) -> dict[str, Any]:
    """What a token of a chat costs node and worker, over one of a plain stream, both measured by turns."""
    us: dict[str, list[float]] = {"A": [], "B": []}
    for _, order in zip(range(rounds), abba(), strict=False):
        for side in order:
            row = pace(side == "A")
            us[side].append(row["node_us_per_token"] + row["worker_us_per_token"])
    ratios = [a / b for a, b in zip(us["A"], us["B"], strict=True)]
    low, high = bootstrap(ratios)
    return {
        "chat_us": median(us["A"]),
        "plain_us": median(us["B"]),
        "ratio": median(ratios),
        "low": low,
        "high": high,
    }


def request_cost(node: RunningNode, worker: int, reader: Path, count: int) -> dict[str, float]:
    """Milliseconds of one chat of one token, not streamed, one after the other."""
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Say one letter. " * 12},
        ],
        "max_tokens": 1,
        "temperature": 0,
    }
    read(node, reader, "chats", 100, body)
    before = cpu(node.process.pid), cpu(worker)
    result = read(node, reader, "chats", count, body)
    after = cpu(node.process.pid), cpu(worker)
    return {
        "node_ms": 1e3 * (after[0] - before[0]) / count,
        "worker_ms": 1e3 * (after[1] - before[1]) / count,
        "wall_ms": 1e3 * result["seconds"] / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concurrency", default="1,8,64")
    parser.add_argument("--tokens", type=int, default=20_000, help="of each stream")
    parser.add_argument("--step-us", type=int, default=0)
    parser.add_argument("--row-us", type=int, default=0)
    parser.add_argument("--turns", type=int, default=0, help="pairs of plain streams and chats with a tool")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--node-core", help="pin the node, not its worker: 0")
    parser.add_argument("--threads", action="store_true", help="show each thread")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            ["make", "--quiet", "-C", str(ROOT / "benches/null_engine"), f"OUT={folder / 'engines'}"],
            check=True,
        )
        (folder / "models").mkdir()
        (folder / "models" / f"{MODEL}.null").write_text("any file at all\n")
        arguments = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
        arguments += ["--gpu-backend", "cpu", "--demo-model", "no"]
        record: dict[str, Any] = {"machine": platform.platform(), "step_us": options.step_us, "rows": []}
        with running_node(folder, arguments) as node:
            engine_options = {"step_us": str(options.step_us), "row_us": str(options.row_us)}
            load: dict[str, Any] = {
                "model_id": MODEL,
                "max_sequences": 256,
                "context_length": options.tokens + 1024,
                "speculation": "off",  # the answer is a loop, which drafts would see through
                "options": engine_options,
            }
            if options.turns:
                load |= {"chat_template": TEMPLATE, "tool_syntax": "hermes"}
            answer = node.post("/api/models/load", load)
            assert answer.status == 200, answer.body
            (worker,) = node.workers()
            if options.node_core is not None:
                for task in Path(f"/proc/{node.process.pid}/task").iterdir():
                    os.sched_setaffinity(int(task.name), {int(options.node_core)})
            reader = folder / "engines/reader"
            record["request"] = request_cost(node, worker, reader, options.requests)
            print("one chat request: " + ", ".join(f"{k} {v:.2f}" for k, v in record["request"].items()))
            print(f"{'streams':>8} {'tokens/s':>10} {'tokens/event':>13} {'node us':>8} {'worker us':>10}")
            for streams in map(int, options.concurrency.split(",")):

                def pace(chats: bool, streams: int = streams) -> dict[str, Any]:
                    return measure(node, worker, reader, streams, options.tokens, options.row_us, chats=chats)

                if options.turns:
                    compared = {"streams": streams, **turns(options.turns, pace)}
                    record["rows"].append(compared)
                    print(", ".join(f"{key} {value:.3g}" for key, value in compared.items()), flush=True)
                    continue
                row = pace(False)
                record["rows"].append(row)
                print(
                    f"{row['streams']:>8} {row['tokens_per_second']:>10.0f} {row['tokens_per_event']:>13.2f} "
                    f"{row['node_us_per_token']:>8.2f} {row['worker_us_per_token']:>10.2f}"
                )
                if options.threads:
                    print(f"{'':>8} {row['threads_us_per_token']}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
