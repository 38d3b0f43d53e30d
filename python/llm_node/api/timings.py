"""How fast an answer came, in the words of llama-server. Its clients read them in the answers of OpenAI's
routes as well.
"""

from __future__ import annotations

from typing import Any

from llm_node.api.answers import Usage


def of(took: Usage) -> dict[str, Any]:
    """Tokens and milliseconds, of the prompt as far as it was read and of the answer."""
    read = took.prompt - took.cached
    drafts = {"draft_n": took.drafted, "draft_n_accepted": took.accepted} if took.drafted else {}
    return {
        "cache_n": took.cached,
        **_speed("prompt", read, took.read_ns),
        **_speed("predicted", took.completion, took.wrote_ns),
        **drafts,
    }


def _speed(name: str, tokens: int, ns: int) -> dict[str, Any]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": ns / 1e6,
        f"{name}_per_token_ms": ns / 1e6 / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / (ns / 1e9) if ns else 0.0,
    }
