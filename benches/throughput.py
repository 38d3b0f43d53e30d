"""Tokens per second, time to first token and inter-token latency of a node, at several concurrencies.

Starts a node on the CPU with the demo model, runs closed-loop streaming completions of fixed length
against it, and prints one row for each concurrency; `--json FILE` writes them as well. Absolute
figures: compare two of them only from the same machine, and back to back.

    python benches/throughput.py [--model NAME] [--models-dir DIR] [--concurrency 1,8,32] [--tokens 200]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.node import running_node  # noqa: E402

PROMPT = "Once upon a time"


async def one_stream(
    client: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[float, list[float], int]:
    """Time to first token, gaps between tokens (seconds), completion tokens by the node's own count."""
    sent = time.perf_counter()
    times: list[float] = []
    tokens = 0
    async with client.post(f"{url}/v1/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.content:
            if line.startswith(b"data: {"):
                times.append(time.perf_counter())
                chunk = json.loads(line[6:])
                if chunk.get("usage"):
                    tokens = int(chunk["usage"]["completion_tokens"])
    return times[0] - sent, [b - a for a, b in itertools.pairwise(times[:-1])], tokens


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def measure(url: str, model: str, concurrency: int, tokens: int, rounds: int) -> dict[str, Any]:
    body = {
        "model": model,
        "prompt": PROMPT,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        await one_stream(client, url, {**body, "max_tokens": 8})
        began = time.perf_counter()
        results = []
        for _ in range(rounds):
            results += await asyncio.gather(*(one_stream(client, url, body) for _ in range(concurrency)))
        seconds = time.perf_counter() - began
    gaps = [gap for _, each, _ in results for gap in each]
    return {
        "concurrency": concurrency,
        "tokens_per_second": sum(count for _, _, count in results) / seconds,
        "ttft_p50_ms": 1e3 * percentile([first for first, _, _ in results], 0.5),
        "itl_p50_ms": 1e3 * percentile(gaps, 0.5),
        "itl_p99_ms": 1e3 * percentile(gaps, 0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="llm-node-demo")
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--engines-dir", type=Path, default=ROOT / "engines")
    parser.add_argument("--gpu-backend", default="cpu")
    parser.add_argument("--concurrency", default="1,8,32,64")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--engines-dir", str(options.engines_dir), "--gpu-backend", options.gpu_backend]
        if options.models_dir:
            arguments += ["--models-dir", str(options.models_dir)]
        rows = []
        with running_node(Path(folder), arguments) as node:
            print(f"{'streams':>8} {'tokens/s':>10} {'TTFT p50':>10} {'ITL p50':>10} {'ITL p99':>10}   (ms)")
            for concurrency in map(int, options.concurrency.split(",")):
                row = asyncio.run(
                    measure(node.url, options.model, concurrency, options.tokens, options.rounds)
                )
                rows.append(row)
                print(
                    f"{row['concurrency']:>8} {row['tokens_per_second']:>10.0f} {row['ttft_p50_ms']:>10.1f} "
                    f"{row['itl_p50_ms']:>10.2f} {row['itl_p99_ms']:>10.2f}"
                )
    if options.json:
        record = {
            "machine": platform.platform(),
            "model": options.model,
            "tokens": options.tokens,
            "rows": rows,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
