"""llm-node: one machine, any number of inference engines, one API.

The public names, and nothing else. They are looked up on first use: who only loads a model does not pay for
the HTTP side.

In this process, without a server::

    import llm_node

    with llm_node.Engine("engines/llama_cpp/cpu") as engine, engine.load("model.gguf") as model:
        for piece in model.generate("Once upon a time"):
            print(piece, end="", flush=True)

With a worker process for each model, as the server does it: `llm_node.Node(llm_node.Settings(...))`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_node.local import Engine, Model
    from llm_node.node import Node, NodeError
    from llm_node.settings import Settings
    from llm_node.version import ABI_VERSION, __version__

__all__ = ["ABI_VERSION", "Engine", "Model", "Node", "NodeError", "Settings", "__version__"]

_HOMES = {
    "ABI_VERSION": "llm_node.version",
    "Engine": "llm_node.local",
    "Model": "llm_node.local",
    "Node": "llm_node.node",
    "NodeError": "llm_node.node",
    "Settings": "llm_node.settings",
    "__version__": "llm_node.version",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
