"""The error table: a row for every code, and one body for every error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_node import errors
from llm_node.node import ERROR_CODES, NodeError


def test_every_code_has_a_row_and_no_row_is_without_code() -> None:
    assert list(errors.TABLE) == ERROR_CODES


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_json", 400, "invalid_request_error"),
        ("unsupported_parameter", 400, "invalid_request_error"),
        ("context_length_exceeded", 400, "invalid_request_error"),
        ("architecture_mismatch", 400, "unsupported_error"),
        ("unsupported_feature", 400, "unsupported_error"),
        ("invalid_api_key", 401, "authentication_error"),
        ("insufficient_scope", 403, "permission_error"),
        ("model_not_found", 404, "invalid_request_error"),
        ("method_not_allowed", 405, "invalid_request_error"),
        ("request_too_large", 413, "invalid_request_error"),
        ("queue_full", 429, "rate_limit_error"),
        ("abi_mismatch", 500, "plugin_error"),
        ("model_corrupt", 500, "plugin_error"),
        ("internal", 500, "server_error"),
        ("engine_fault", 502, "plugin_error"),
        ("engine_not_found", 503, "plugin_error"),
        ("engine_crashed", 503, "plugin_error"),
        ("gpu_not_found", 503, "resource_error"),
        ("shutting_down", 503, "server_error"),
        ("timeout", 504, "timeout_error"),
        ("oom_vram", 507, "resource_error"),
        ("oom_ram", 507, "resource_error"),
    ],
)
def test_rows(code: str, status: int, kind: str) -> None:
    reply = errors.reply(NodeError(code, "why"))
    assert reply.status == status
    assert reply.body == {"error": {"message": "why", "type": kind, "code": code, "param": None}}


def test_body_of_the_specification_to_the_letter() -> None:
    fault = NodeError("oom_vram", "Insufficient VRAM: required 16GB, available 8GB")
    assert json.dumps(errors.body(fault)) == (
        '{"error": {"message": "Insufficient VRAM: required 16GB, available 8GB", '
        '"type": "resource_error", "code": "oom_vram", "param": null}}'
    )


def test_details_stand_beside_and_replace_nothing() -> None:
    details: dict[str, Any] = {"required_bytes": 16, "message": "no", "type": "no", "param": "no"}
    body = errors.body(NodeError("oom_vram", "why", None, details))["error"]
    assert body == {
        "message": "why",
        "type": "resource_error",
        "code": "oom_vram",
        "param": None,
        "required_bytes": 16,
    }


@pytest.mark.parametrize("code", ["queue_full", "engine_crashed", "shutting_down", "model_loading"])
def test_retry_after(code: str) -> None:
    assert int(errors.reply(NodeError(code, "why")).headers["Retry-After"]) >= 1
    measured = errors.reply(NodeError(code, "why", None, {"retry_after": 7.2}))
    assert measured.headers["Retry-After"] == "8"


def test_no_retry_after_where_it_does_not_help() -> None:
    assert errors.reply(NodeError("invalid_request", "why")).headers == {}


def test_a_code_without_a_row_is_a_defect(caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        code, message, param, details = "never_heard", "why", None, None

    assert errors.reply(Odd()).status == 500
    assert errors.reply(Odd()).body["error"]["code"] == "internal"
    assert "never_heard" in caplog.text


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("invalid_request", 2),
        ("model_not_found", 3),
        ("oom_vram", 4),
        ("oom_ram", 4),
        ("invalid_api_key", 5),
        ("host_not_allowed", 5),
        ("engine_crashed", 1),
    ],
)
def test_what_a_command_ends_with(code: str, exit_code: int) -> None:
    assert errors.TABLE[code].exit == exit_code


def test_every_exit_code_is_explained() -> None:
    assert list(errors.EXITS) == list(errors.Exit)


def test_a_path_has_the_form_of_the_longest_beginning() -> None:
    forms = errors.Forms()
    one, two, three = (errors.Form(names={"a": name}) for name in "xyz")
    forms.add("/v1/messages", one)
    forms.add("/v1/messages/{id:.+}", one)
    forms.add("/v1/models/{model}", two)
    forms.add("/api/chat", three)
    forms.add("/", three)
    for path, form in [
        ("/v1/messages", one),
        ("/v1/messages/count/x", one),
        ("/v1/messagesx", errors.PLAIN),
        ("/v1/models/a/b", two),
        ("/v1", errors.PLAIN),
        ("/api/chat", three),
        ("/api/chats", errors.PLAIN),
        ("/", errors.PLAIN),
        ("", errors.PLAIN),
    ]:
        assert forms.of(path) is form, path


def test_a_form_writes_the_body_and_names_parameters_in_its_own_words() -> None:
    form = errors.Form(
        body=lambda row, failure, request_id: {"t": row.anthropic, "p": failure.param, "id": request_id},
        names={"max_tokens": "max_output_tokens"},
    )
    reply = errors.reply(NodeError("model_not_found", "why", "max_tokens"), form, "7")
    assert reply.status == 404
    assert reply.body == {"t": "not_found_error", "p": "max_output_tokens", "id": "7"}
    for place, name in {
        "prompt.chat.tools": "tools",
        "prompt.chat.variables": "kwargs",
        "format.schema.schema": "response_format",
        "prompt": "prompt",
    }.items():
        form_of_chats = errors.Form(names={"variables": "kwargs", "format": "response_format"})
        fault = NodeError("invalid_request", f"{place} is 5: it is no list", place)
        written = errors.body(fault, form_of_chats)["error"]
        assert (written["param"], written["message"]) == (name, f"{name} is 5: it is no list")
    assert errors.internal("8", form).body == {"t": "api_error", "p": None, "id": "8"}
    assert errors.reply(NodeError("invalid_json", "why", "top_p"), form).body["p"] == "top_p"
