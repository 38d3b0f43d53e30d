"""Writes the trained weights as GGUF: `python export.py --build build --to MODEL.gguf`.

`--again MODEL.gguf` takes the weights of a file that was written before, in whatever type they are there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf_file
import numpy as np
import tokenizer
from model import Shape


def trained(build: Path, name: str) -> tuple[dict[str, np.ndarray], Shape]:
    """The weights in a build folder, and their shape."""
    shape = Shape(**json.loads((build / "shape.json").read_text()))
    stored = np.load(build / name)
    weights = {
        name.removeprefix("weights."): stored[name]
        for name in stored
        if name.count(".") == 0 or "weights." in name
    }
    return weights, shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--weights", default="weights.npz", help="in the build folder; a checkpoint will do")
    parser.add_argument("--again", type=Path, help="a file to take the weights of")
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--version", default="1.1")
    options = parser.parse_args()
    if options.again is not None:
        weights, shape, _ = gguf_file.read(options.again)
    else:
        weights, shape = trained(options.build, options.weights)
    tokens = tokenizer.Tokenizer()
    gguf_file.write(options.to, weights, shape, tokens, options.version)
    print(f"{options.to}: {options.to.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
