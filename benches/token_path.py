"""What the host itself costs: streams of an engine that costs nothing, and connections that do nothing.

Builds `benches/null_engine`, starts a node with it, and prints for each concurrency the tokens per second
that reach a client which only reads, and the CPU time per token of the node and of the worker, which is all
there is above an engine. `--step-us` makes each step wait, as it does for a real device: then the wake-ups
show that a saturated pipeline hides. `--row-us` lets the engine compute for each token, as it does on a CPU;
its own time is not counted.

    python benches/token_path.py [--concurrency 1,8,64] [--tokens 20000] [--step-us 0] [--idle 1000]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.node import RunningNode, running_node  # noqa: E402

MODEL = "null"


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


def rss(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("a process without memory")


def measure(
    node: RunningNode, worker: int, reader: Path, streams: int, tokens: int, row_us: int, cores: str | None
) -> dict[str, Any]:
    body = {
        "model": MODEL,
        "prompt": "a",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    _, port = node.address
    command = [str(reader), str(port), str(streams), json.dumps(body)]
    if cores is not None:
        command = ["taskset", "-c", cores, *command]
    before = cpu_by_thread(node.process.pid), cpu_by_thread(worker)
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout)
    assert result["broken"] == 0, (result, node.log_text()[-500:])
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


@contextlib.contextmanager
def idle_connections(node: RunningNode, count: int) -> Iterator[None]:
    """So many connections, each of which has had one answer and stays open."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(node.address))
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        yield


def request_cost(node: RunningNode, worker: int, count: int) -> dict[str, float]:
    """CPU milliseconds of one chat request of one token, not streamed, by one idle client."""
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "Say one letter. " * 12},
            ],
            "max_tokens": 1,
            "temperature": 0,
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(node.address) as connection:

        def ask() -> None:
            connection.sendall(head.encode() + body)
            answer = b""
            while b'"usage"' not in answer or not answer.endswith(b"}"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200"), answer

        for _ in range(100):
            ask()
        before, began = (cpu(node.process.pid), cpu(worker)), time.perf_counter()
        for _ in range(count):
            ask()
        seconds = time.perf_counter() - began
        after = (cpu(node.process.pid), cpu(worker))
    return {
        "node_ms": 1e3 * (after[0] - before[0]) / count,
        "worker_ms": 1e3 * (after[1] - before[1]) / count,
        "wall_ms": 1e3 * seconds / count,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--concurrency", default="1,8,64")
    parser.add_argument("--tokens", type=int, default=20_000, help="of each stream")
    parser.add_argument("--step-us", type=int, default=0)
    parser.add_argument("--row-us", type=int, default=0)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--reader-core", help="pin the reading client: 1")
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
            load = {
                "model_id": MODEL,
                "max_sequences": 256,
                "context_length": options.tokens + 1024,
                "speculation": "off",  # the answer is a loop, which drafts would see through
                "options": engine_options,
            }
            answer = node.post("/api/models/load", load)
            assert answer.status == 200, answer.body
            (worker,) = node.workers()
            if options.node_core is not None:
                for task in Path(f"/proc/{node.process.pid}/task").iterdir():
                    os.sched_setaffinity(int(task.name), {int(options.node_core)})
            record["request"] = request_cost(node, worker, options.requests)
            print("one chat request: " + ", ".join(f"{k} {v:.2f}" for k, v in record["request"].items()))
            print(f"{'streams':>8} {'tokens/s':>10} {'tokens/event':>13} {'node us':>8} {'worker us':>10}")
            for streams in map(int, options.concurrency.split(",")):
                row = measure(
                    node,
                    worker,
                    folder / "engines/reader",
                    streams,
                    options.tokens,
                    options.row_us,
                    options.reader_core,
                )
                record["rows"].append(row)
                print(
                    f"{row['streams']:>8} {row['tokens_per_second']:>10.0f} {row['tokens_per_event']:>13.2f} "
                    f"{row['node_us_per_token']:>8.2f} {row['worker_us_per_token']:>10.2f}"
                )
                if options.threads:
                    print(f"{'':>8} {row['threads_us_per_token']}")
            record["rss_mib"] = rss(node.process.pid)
            with idle_connections(node, options.idle):
                record["rss_idle_connections_mib"] = rss(node.process.pid)
            print(
                f"memory of the node: {record['rss_mib']:.0f} MiB, "
                f"with {options.idle} idle connections {record['rss_idle_connections_mib']:.0f} MiB; "
                f"of the worker {rss(worker):.0f} MiB"
            )
    if options.json:
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
