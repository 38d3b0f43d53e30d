"""Errors inside a report, in the one form that errors have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_node import errors


def with_error(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row; its `error`, where it has one, made whole from the table."""
    error = row.get("error")
    if error is None:
        return dict(row)
    return {**row, "error": errors.fields(error["code"], error["message"], details=error)}
