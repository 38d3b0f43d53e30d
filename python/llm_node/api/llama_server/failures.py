"""Errors in llama-server's words."""

from __future__ import annotations

from typing import Any

from llm_node import errors

NAMES = {
    "max_tokens": "n_predict",
    "format": "json_schema",
    "logprobs": "n_probs",
    "suffix": "input_suffix",
    "extra": "input_extra",
}
"""Parameters that a fault names in neutral words."""

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""By status."""


def _body(row: errors.Row, failure: errors.Failure, request_id: str) -> dict[str, Any]:
    kind = TYPES.get(row.status, "server_error" if row.status >= 500 else "invalid_request_error")
    error = {"code": row.status, "message": failure.message, "type": kind, "error_code": failure.code}
    details = failure.details or {}
    if failure.code == "context_length_exceeded" and "prompt_tokens" in details:
        error |= {
            "type": "exceed_context_size_error",
            "n_prompt_tokens": details["prompt_tokens"],
            "n_ctx": details["context_length"],
        }
    return {"error": error}


_SCHEMA: dict[str, Any] = {
    "title": "LlamaServerError",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "type", "error_code"],
            "properties": {
                "code": {"type": "integer"},
                "message": {"type": "string"},
                "type": {"type": "string"},
                "error_code": {"type": "string"},
            },
        }
    },
}

FORM = errors.Form(_body, _SCHEMA, NAMES)
