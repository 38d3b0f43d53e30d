"""Measures llm-node against llama-server on the same libllama; docs/benchmarks.md explains.

python -m benches                        every row
python -m benches --rows decode-8,burst-32 --quick
python -m benches --list
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benches import ROOT, build, client, machine, report
from benches.client import LoadError
from benches.outcome import Outcome, Row, Unavailable
from benches.ratio import Arena, Options
from benches.servers import ServerError, end_with_program
from benches.table import ROWS

RESULTS = ROOT / "benches" / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help="keys, separated by commas; a key's beginning names all of them")
    parser.add_argument("--list", action="store_true", help="print the keys and leave")
    parser.add_argument("--quick", action="store_true", help="2 pairs of short blocks: to find faults only")
    parser.add_argument("--pairs", type=int, help="pairs of blocks of each row (8)")
    parser.add_argument("--block", type=float, help="seconds of a block, about (5)")
    parser.add_argument("--threads", type=int, default=machine.CPUS, help="of both engines (all cores)")
    parser.add_argument("--engines-dir", type=Path, default=ROOT / "engines")
    parser.add_argument(
        "--engine-option", action="append", default=[], metavar="KEY=VALUE", help="for the node's engine"
    )
    parser.add_argument(
        "--vllm-url",
        metavar="URL",
        help="a vLLM on this GPU with a model of 8B's shape, for the row gpu-vllm",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PROGRAM",
        help="an llm-node of other code in llama-server's place, with the same engines: what a change does",
    )
    parser.add_argument("--client", help="the load generator (llm-node bench)")
    parser.add_argument("--output", type=Path, default=RESULTS / "local", help="folder of the results")
    parser.add_argument("--merge", action="store_true", help="keep the rows in OUTPUT that are not measured")
    return parser.parse_args()


def selected(keys: str | None) -> list[Row]:
    if keys is None:
        return ROWS
    wanted = keys.split(",")
    chosen = []
    for key in wanted:
        found = [row for row in ROWS if row.key == key] or [row for row in ROWS if row.key.startswith(key)]
        if not found:
            raise SystemExit(f"no row {key}: {', '.join(row.key for row in ROWS)}")
        chosen += found
    return chosen


def versions() -> dict[str, str]:
    def said(*command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return {
        "llm-node": importlib.metadata.version("llm-node"),
        "commit": said("git", "describe", "--always", "--dirty"),
        "libllama": build.engine_source()[1],
        "llama-server": f"llama.cpp {build.TOOLS_RELEASE}",
        "rustc": said("rustc", "--version"),
        "compiler": (said("cc", "--version").splitlines() or [""])[0],
    }


def measure(row: Row, arena: Arena) -> Outcome | str:
    try:
        return row.measure(arena)
    except Unavailable as reason:
        return str(reason)
    except (LoadError, ServerError) as error:
        return f"error: {error}"


def earlier(folder: Path, here: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that are in a folder, by their keys. Those of two machines make no table."""
    rows = report.read(folder) if (folder / "bench.json").is_file() else []
    for one in rows:
        if report.place(one["machine"]) != report.place(here):
            raise SystemExit(
                f"{folder} has rows of another machine ({report.place(one['machine'])}; "
                f"this one: {report.place(here)}): name another folder (--output, or make bench RESULTS=)"
            )
    return {one["key"]: one for one in rows}


def main() -> int:
    chosen = arguments()
    if chosen.list:
        for row in ROWS:
            print(f"{row.key:20} {row.title}")
        return 0
    rows = selected(chosen.rows)
    end_with_program()
    options = Options(
        pairs=chosen.pairs or (2 if chosen.quick else 8),
        block_seconds=chosen.block or (1.0 if chosen.quick else 5.0),
        threads=chosen.threads,
        engines=chosen.engines_dir,
        client=shlex.split(chosen.client) if chosen.client else client.default_command(),
        node_options=dict(pair.split("=", 1) for pair in chosen.engine_option),
        quick=chosen.quick,
        vllm_url=chosen.vllm_url,
        against=chosen.against,
    )
    arena = Arena(build.build, options)
    provenance = {
        "machine": machine.describe(),
        "versions": versions(),
        "options": {
            "pairs": options.pairs,
            "block_seconds": options.block_seconds,
            "threads": options.threads,
            "engine_options": options.node_options,
        },
    }
    known = earlier(chosen.output, provenance["machine"]) if chosen.merge else {}
    results: list[dict[str, Any]] = []
    failed = False
    for row in rows:
        print(f"{row.key}: {row.title} ", end="", flush=True, file=sys.stderr)
        began = time.monotonic()
        outcome = measure(row, arena)
        failed |= isinstance(outcome, str) and outcome.startswith("error:")
        if options.against is not None:  # limits are about llama-server, so there is no table of this
            said = f"{outcome}\n" if isinstance(outcome, str) else report.listed(outcome)
            print(f" ({time.monotonic() - began:.0f} s)\n{said}", end="", file=sys.stderr)
            continue
        record = report.result(row, outcome, provenance)
        print(f" {record['text']}  ({time.monotonic() - began:.0f} s)", file=sys.stderr)
        print(report.detail(record), end="", file=sys.stderr)
        known[row.key] = record
        results = [known[one.key] for one in ROWS if one.key in known]
        report.write(chosen.output, results)  # after each row: a long run may be interrupted
    if results:
        print(report.table(results))
        print(f"\n{report.conditions(results)}\nresults: {chosen.output}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
