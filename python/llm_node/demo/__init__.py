"""The demo model: a small chat model of the project's own, so that everything can be tried at once.

It answers questions about llm-node, in English, and knows nothing else. Its size, its training and how
often it is right are told in `tools/demo_model/README.md`. This package holds the file and says where it
is; it loads nothing.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["NAME", "path"]

NAME = "llm-node-demo"
"""What the node calls the model."""


def path() -> Path:
    """The GGUF file of the demo model (llama architecture, Q5_0), as it lies in the installed package."""
    return Path(str(resources.files(__name__).joinpath(f"{NAME}.gguf")))
