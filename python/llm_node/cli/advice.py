"""What to type where there is no GPU."""

from __future__ import annotations

from llm_node.errors import Failure


def on(fault: Failure, command: str) -> list[str]:
    """Lines for who typed `command`; none where there is nothing to type."""
    if fault.code != "gpu_not_found":
        return []
    return [
        f"  use this CPU:  {command} --gpu-backend cpu",
        "  for good:      llm-node config set gpu_backend cpu",
    ]
