"""The node as Python has it. `_core` is imported in this folder, by `devices.py` for the host's memory, by
`load.py` for the load generator and by `version.py`, and nowhere else: what others need comes from here.
"""

from llm_node._core import (
    ERROR_CODES,
    Block,
    Event,
    end_with_parent,
    engines_folder_meant,
    gguf_header,
    keep_memory_private,
    quantization_in,
)
from llm_node._core import Engine as NativeEngine
from llm_node._core import Model as NativeModel
from llm_node.node import arguments
from llm_node.node.client import (
    Client,
    Connection,
    Frames,
    Generation,
    NodeError,
    PartTemplates,
    Receiver,
    Template,
)
from llm_node.node.node import Node, Request

__all__ = [
    "ERROR_CODES",
    "Block",
    "Client",
    "Connection",
    "Event",
    "Frames",
    "Generation",
    "NativeEngine",
    "NativeModel",
    "Node",
    "NodeError",
    "PartTemplates",
    "Receiver",
    "Request",
    "Template",
    "arguments",
    "end_with_parent",
    "engines_folder_meant",
    "gguf_header",
    "keep_memory_private",
    "quantization_in",
]
