"""Errors in Anthropic's words."""

from __future__ import annotations

from typing import Any

from llm_node import errors

NAMES = {
    "format": "output_config.format",
    "stop": "stop_sequences",
    "reasoning": "thinking",
}
"""Parameters that a fault names in neutral words."""


def _body(row: errors.Row, failure: errors.Failure, request_id: str) -> dict[str, Any]:
    error = {"type": row.anthropic, "message": _message(failure), "details": {"error_code": failure.code}}
    return {"type": "error", "error": error, "request_id": request_id}


def _message(failure: errors.Failure) -> str:
    """What it says; of a prompt that is too long in the words by which clients know to shorten it."""
    details = failure.details or {}
    if failure.code == "context_length_exceeded" and "prompt_tokens" in details:
        tokens, most = details["prompt_tokens"], details["context_length"]
        return f"prompt is too long: {tokens} tokens > {most} maximum"
    return failure.message


_SCHEMA: dict[str, Any] = {
    "title": "AnthropicError",
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}

FORM = errors.Form(_body, _SCHEMA, NAMES, "request-id")
