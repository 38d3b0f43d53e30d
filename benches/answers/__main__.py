"""Asks a real model on a node that it starts, and tells what came of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benches import ROOT, machine
from benches.answers import __doc__ as usage
from benches.answers.parts import PARTS, Asker
from benches.models import Model
from benches.servers import Setup, start_node


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benches.answers",
        description=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a GGUF file whose chat template has tools")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; all of them")
    parser.add_argument(
        "--sampling",
        type=json.loads,
        default={"temperature": 0, "seed": 1},
        help="fields of each request (greedy)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="pairs of what is compared in turns")
    parser.add_argument("--rows", default="1,16", help="answers at once, where speed is measured")
    parser.add_argument("--speculation", default="lookup", help="of the node: off or lookup, which is usual")
    parser.add_argument("--threads", type=int, default=machine.CPUS)
    parser.add_argument("--engines-dir", type=Path, default=ROOT / "engines")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    setup = Setup(Model(options.model.stem, options.model, 0, 0, 0), options.threads, 16, 4096)
    missed: list[str] = []
    table: list[str] = []
    node = start_node(setup, options.engines_dir, speculation=options.speculation)
    try:
        for name in options.parts.split(","):
            print(f"{name}: {PARTS[name].__doc__ or ''}".rstrip(": "), flush=True)
            rows = tuple(int(it) for it in options.rows.split(","))
            result = PARTS[name](Asker(node, options.sampling, setup, options.rounds, rows))
            table += result.rows
            missed += [f"{result.title}: {bar}" for bar in result.missed]
    finally:
        node.stop()
    if table:
        print("\n".join(["", "| | goal | seen |", "|---|---|---|", *table, ""]))
    for bar in missed:
        print(f"missed: {bar}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
