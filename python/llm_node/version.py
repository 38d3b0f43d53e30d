"""The version of the node, and of the engine ABI that it speaks. Brings in nothing else."""

from llm_node._core import ABI_VERSION, __version__

__all__ = ["ABI_VERSION", "__version__"]
