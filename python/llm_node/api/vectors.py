"""Vectors out of texts or tokens, for the routes that give them in their dialects' words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_node.node import Node, NodeError


async def of(
    node: Node,
    model: str,
    inputs: Sequence[str | list[int]],
    dimensions: int | None = None,
    *,
    raw: bool = False,
) -> tuple[list[list[float]], int]:
    """One vector of length 1 for each input, and the tokens of all inputs together.

    `dimensions`: so many numbers of each vector, from its beginning; models that were trained for it put the
    most into these. `raw`: as the model gives them, of any length. Raises `NodeError`.
    """
    if not inputs:
        return [], 0
    named = [{"text": one} if isinstance(one, str) else {"tokens": one} for one in inputs]
    answer = await node.ask(model, {"Embed": {"inputs": named}})
    vectors: list[list[float]] = answer["vectors"]
    width = len(vectors[0])
    if dimensions is not None and dimensions > width:
        message = f"dimensions: the model's vectors have {width}, not {dimensions}"
        raise NodeError("invalid_request", message, "dimensions")
    cut = [vector[:dimensions] for vector in vectors]
    return cut if raw else [unit(vector) for vector in cut], sum(answer["tokens"])


def unit(vector: Sequence[float]) -> list[float]:
    """The vector at length 1; one of nothing stays as it is."""
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector] if length > 0 else list(vector)
