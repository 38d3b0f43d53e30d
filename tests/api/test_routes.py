"""The node's own routes, and what holds for every route: ids, errors, limits."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import pytest

from support.node import RunningNode

MODEL = "llm-node-demo"


def entry(node: RunningNode) -> dict[str, Any]:
    (found,) = [each for each in node.get("/api/models").json()["models"] if each["model_id"] == MODEL]
    return dict(found)


def error_of(answer: Any) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) >= {"message", "type", "code", "param"}
    return dict(error)


# ---- engines, models, system -----------------------------------------------------------------------


def test_engines(node: RunningNode) -> None:
    (engine,) = node.get("/api/engines").json()["engines"]
    for field in ("id", "version", "gpu_backend", "architectures", "status", "formats", "path", "extensions"):
        assert field in engine
    assert engine["abi_version"] in ("1", 1)
    assert node.get("/api/engines?refresh=true").json()["engines"] == [engine]
    assert error_of(node.get("/api/engines?refresh=maybe"))["param"] == "refresh"


def test_load_and_unload(node: RunningNode) -> None:
    loaded = node.post("/api/models/load", {"model_id": MODEL, "format": "gguf"})
    assert loaded.status == 200, loaded.body
    assert loaded.json()["status"] == "loaded"
    for field in ("model_id", "engine", "gpu_backend", "devices", "memory", "load_ms"):
        assert field in loaded.json()
    assert entry(node)["status"] == "loaded"
    assert node.post("/api/models/load", {"model_id": MODEL}).json()["status"] == "loaded", "twice is once"
    assert len(node.workers()) >= 1

    unloaded = node.post("/api/models/unload", {"model_id": MODEL})
    assert unloaded.status == 200, unloaded.body
    assert unloaded.json() == {"model_id": MODEL, "status": "unloaded"}
    assert entry(node)["status"] == "available"


def test_a_request_loads_what_is_not_loaded(node: RunningNode) -> None:
    node.post("/api/models/unload", {"model_id": MODEL})
    answer = node.post("/v1/completions", {"model": MODEL, "prompt": "The", "max_tokens": 2})
    assert answer.status == 200, answer.body
    assert entry(node)["status"] == "loaded"


async def test_one_load_for_all_who_ask(node: RunningNode) -> None:
    """Eight ask at once for what is not loaded, and one of them leaves: one worker, seven answers."""
    node.post("/api/models/unload", {"model_id": MODEL})
    body = {"model": MODEL, "prompt": "The", "max_tokens": 2}

    async def ask(client: aiohttp.ClientSession, seconds: float) -> int:
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with client.post(f"{node.url}/v1/completions", json=body, timeout=timeout) as reply:
            return reply.status

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        outcomes = await asyncio.gather(
            ask(client, 0.02), *(ask(client, 60) for _ in range(7)), return_exceptions=True
        )
    assert isinstance(outcomes[0], asyncio.TimeoutError)
    assert outcomes[1:] == [200] * 7
    workers = node.get("/api/system").json()["workers"]
    assert [worker["model_id"] for worker in workers].count(MODEL) == 1


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "invalid_request", "model_id"),
        ({"model_id": ""}, "invalid_request", "model_id"),
        ({"model_id": 5}, "invalid_request", "model_id"),
        ({"model_id": MODEL, "contxt_length": 5}, "unsupported_parameter", "contxt_length"),
        ({"model_id": MODEL, "context_length": 0}, "invalid_request", "context_length"),
        ({"model_id": MODEL, "options": {"a": [1]}}, "invalid_request", "options.a"),
    ],
)
def test_a_bad_load(node: RunningNode, body: Any, code: str, param: str) -> None:
    answer = node.post("/api/models/load", body)
    assert answer.status == 400
    error = error_of(answer)
    assert (error["code"], error["param"]) == (code, param)


def test_unloading_what_there_is_not(node: RunningNode) -> None:
    answer = node.post("/api/models/unload", {"model_id": "no-such-model"})
    assert answer.status == 404
    assert error_of(answer)["code"] == "model_not_found"


def test_system(node: RunningNode) -> None:
    system = node.get("/api/system").json()
    assert system["versions"]["abi"] == 1
    assert system["devices"]
    for device in system["devices"]:
        assert 0 < device["free_bytes"] <= device["total_bytes"]
    # Nothing is lacking, save that a GPU may be there that the tests leave alone.
    assert {it["code"] for it in system["advice"]} <= {"gpu_unused"}


def test_health(node: RunningNode) -> None:
    assert node.get("/healthz").json() == {"status": "ok"}
    ready = node.get("/readyz").json()
    assert (ready.keys(), ready["status"]) == ({"status", "node_id"}, "ready")


# ---- what the model sees ---------------------------------------------------------------------------


def test_tokens_there_and_back(node: RunningNode) -> None:
    text = "An engine is a shared library."
    tokens = node.post("/tokenize", {"model": MODEL, "text": text, "add_special": False}).json()
    assert tokens["count"] == len(tokens["tokens"]) > 1
    back = node.post("/detokenize", {"model": MODEL, "tokens": tokens["tokens"]}).json()["text"]
    assert back.strip() == text


def test_template(node: RunningNode) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "What is an engine?"}]}
    prompt = node.post("/apply-template", body).json()["prompt"]
    assert "What is an engine?" in prompt
    assert prompt != "What is an engine?"


def test_a_token_that_is_none(node: RunningNode) -> None:
    answer = node.post("/detokenize", {"model": MODEL, "tokens": [2**31 - 1]})
    assert answer.status == 400, answer.body
    assert error_of(answer)["code"] == "invalid_request"
    answer = node.post("/v1/completions", {"model": MODEL, "prompt": [2**31 - 1], "max_tokens": 1})
    assert answer.status == 400, answer.body
    assert error_of(answer)["code"] == "invalid_request"


# ---- every route -----------------------------------------------------------------------------------


def test_no_such_route(node: RunningNode) -> None:
    answer = node.get("/v1/nothing")
    assert answer.status == 404
    assert error_of(answer)["code"] == "not_found"


def test_a_method_that_the_route_does_not_know(node: RunningNode) -> None:
    answer = node.request("DELETE", "/v1/chat/completions")
    assert answer.status == 405
    assert error_of(answer)["code"] == "method_not_allowed"
    assert answer.headers["Allow"] == "POST"


def test_a_body_that_is_too_large(node: RunningNode) -> None:
    answer = node.post("/v1/completions", raw=b'{"prompt": "' + b"x" * (17 << 20) + b'"}')
    assert answer.status == 413
    assert error_of(answer)["code"] == "request_too_large"
    assert node.get("/healthz").status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/api/models/load",
        "/api/models/unload",
        "/tokenize",
        "/detokenize",
        "/apply-template",
    ],
)
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b"\xff\x00", "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"{}", "invalid_request"),
    ],
)
def test_bad_bodies(node: RunningNode, path: str, raw: bytes, code: str) -> None:
    answer = node.post(path, raw=raw)
    assert answer.status == 400
    assert error_of(answer)["code"] == code


def test_an_empty_prompt(node: RunningNode) -> None:
    for prompt in ("", [], [""], [[]]):
        answer = node.post("/v1/completions", {"model": MODEL, "prompt": prompt})
        assert answer.status == 400
        assert error_of(answer)["code"] == "invalid_request"


@pytest.mark.parametrize("top_p", [0, 1e-300])
def test_the_least_top_p_leaves_the_best_token_alone(node: RunningNode, top_p: float) -> None:
    asked = {"model": MODEL, "prompt": "The", "max_tokens": 8}
    texts = [
        node.post("/v1/completions", {**asked, **fields}).json()["choices"][0]["text"]
        for fields in ({"temperature": 0}, {"temperature": 2, "top_p": top_p})
    ]
    assert texts[0] == texts[1]


def test_the_least_repeat_penalty(node: RunningNode) -> None:
    """It is above 0, as it has to be, though not among the core's shorter numbers."""
    asked = {"model": MODEL, "prompt": "The", "max_tokens": 2, "repeat_penalty": 1e-300}
    assert node.post("/v1/completions", asked).status == 200


def test_request_ids(node: RunningNode) -> None:
    one, other = (node.get("/healthz").headers["X-Request-Id"] for _ in range(2))
    assert one != other
    for path in ("/healthz", "/v1/nothing"):
        assert node.get(path).headers["X-Request-Id"]
    assert f" {one}\n" in node.log_text()


def test_a_request_id_of_the_client(node: RunningNode) -> None:
    host, port = node.url.removeprefix("http://").split(":")
    for sent, kept in ((b"mine-1", True), (b"in jected", False)):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: "
                + sent
                + b"\r\n\r\n"
            )
            reply = b""
            while data := connection.recv(4096):
                reply += data
        assert reply.startswith(b"HTTP/1.1 200")
        assert (b"X-Request-Id: " + sent + b"\r\n" in reply) is kept


def test_more_answers_than_may_ever_wait_are_refused_at_once(node: RunningNode) -> None:
    body = {"model": "llm-node-demo", "prompt": ["a"] * 5, "n": 128, "max_tokens": 1}
    answer = node.post("/v1/completions", body)
    assert answer.status == 400, answer.body
    assert "--queue-limit" in answer.json()["error"]["message"]
