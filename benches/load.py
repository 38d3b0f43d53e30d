"""`llm-node bench` with `--body JSON`: what stands in the body of each request besides what it puts there.

Every other argument is its own. So both servers can be told to sample, which it has no options for.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from llm_node import load
from llm_node.cli.bench import bench


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--body", type=json.loads, default={})
    ours, others = parser.parse_known_args()
    plan_of = load.plan_of

    def with_body(server: load.Server, options: load.Options) -> dict[str, Any]:
        plan = plan_of(server, options)
        # The template begins with the fields that all requests have.
        plan["body"][:0] = [{"text": json.dumps(ours.body)[:-1] + ", "}]
        plan["body"][1]["text"] = plan["body"][1]["text"].removeprefix("{")
        return plan

    if ours.body:
        load.plan_of = with_body
    bench(others)


if __name__ == "__main__":
    main()
