"""A worker process: `python -m llm_node.worker ENDPOINT`. Enters Rust at once and stays there.

Started by the node alone, which passes a secret in the environment. Nothing else is imported here: a
worker must not pay for the HTTP side.
"""

from __future__ import annotations

import os
import sys

from llm_node._core import run_worker


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("llm_node.worker is started by the node; run `llm-node` instead\n")
        return 2
    return run_worker(sys.argv[1])


if __name__ == "__main__":
    # Not sys.exit: an engine's static destructors would run, beside threads that it may have left.
    os._exit(main())
