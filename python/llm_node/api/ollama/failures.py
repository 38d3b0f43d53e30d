"""Errors in Ollama's words: a message, and nothing else."""

from __future__ import annotations

from typing import Any

from llm_node import errors


def _body(row: errors.Row, failure: errors.Failure, request_id: str) -> dict[str, Any]:
    message = failure.message
    if failure.code == "model_not_found":
        message = message[0].lower() + message[1:]  # clients look for "model '...' not found"
    return {"error": message}


_SCHEMA = {
    "title": "OllamaError",
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}

FORM = errors.Form(_body, _SCHEMA)
