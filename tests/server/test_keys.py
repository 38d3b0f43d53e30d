"""API keys: who may do what, in which words others are told so, and how keys are made."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anthropic
import openai
import pytest

from llm_node.keys import Keys, KeysError, Scope, add
from support.node import PROGRAM, RunningNode, node_environment, running_node
from support.raw import exchange, parse, request


@dataclass
class Guarded:
    """A node that asks for keys, and two of them."""

    node: RunningNode
    home: Path
    inference: str
    admin: str


@pytest.fixture(scope="module")
def guarded(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    home = tmp_path_factory.mktemp("guarded")
    file = home / "keys"
    inference, admin = add(file, "app", Scope.INFERENCE), add(file, "me", Scope.ADMIN)
    arguments = ["--gpu-backend", "cpu", "--engines-dir", str(engines), "--api-key-file", str(file)]
    with running_node(home, [*arguments, "--host", "0.0.0.0"]) as node:
        yield Guarded(node, home, inference, admin)


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    one, other = add(file, "one", Scope.INFERENCE), add(file, "other", Scope.ADMIN)
    assert one not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("# who\n\n" + file.read_text())
    keys = Keys.read(file)
    found = [keys.find(secret) for secret in (one, other, one[:-1], "", "ключ")]
    assert [key and (key.name, key.scope) for key in found] == [
        ("one", Scope.INFERENCE),
        ("other", Scope.ADMIN),
        None,
        None,
        None,
    ]
    with pytest.raises(KeysError, match="of the name one already"):
        add(file, "one", Scope.ADMIN)
    with pytest.raises(KeysError, match="1 to 64 letters"):
        add(file, "a b", Scope.ADMIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one admin", "line 1: expected NAME SCOPE HASH"),
        ("# \none inference abc", "line 2: expected NAME SCOPE HASH"),
        (f"one owner {'0' * 64}", "one of inference, admin, not 'owner'"),
        (b"\xff", "it is no text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str | bytes | None, words: str) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(KeysError, match=words):
        Keys.read(file)
    ended = subprocess.run(
        [PROGRAM, "--gpu-backend", "cpu", "--api-key-file", file],
        env=node_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1 and words in ended.stderr and "Traceback" not in ended.stderr


ADMIN_ROUTES = {
    "GET /metrics",
    "GET /slots",
    "GET /api/system",
    "GET /api/logs",
    "GET /api/incidents",
    "POST /api/models/alias",
    "GET /api/engines",
    "POST /api/pull",
    "POST /api/models/load",
    "POST /api/models/plan",
    "POST /api/models/unload",
    "POST /api/models/pull",
    "POST /api/models/remove",
    "GET /api/models/pulls",
    "GET /api/models/pulls/{pull_id}",
    "DELETE /api/models/pulls/{pull_id}",
    "GET /api/models/search",
}
OPEN_ROUTES = {
    "GET /",
    "GET /healthz",
    "GET /readyz",
    "GET /health",
    "GET /-/healthz",
    "GET /-/routes",
    "GET /openapi.json",
}


def test_every_route_has_its_scope(guarded: Guarded) -> None:
    described = guarded.node.get("/openapi.json").json()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}
    assert (ADMIN_ROUTES | OPEN_ROUTES) - routes == set()
    for route in sorted(routes):
        method, path = route.split(" ")
        if path.startswith("/web/"):
            continue
        path = path.replace("{", "").replace("}", "")
        without = guarded.node.request(method, path)
        app = guarded.node.request(method, path, key=guarded.inference)
        if route in OPEN_ROUTES:
            assert without.status != 401, route
        else:
            assert without.status == 401, route
            assert (app.status == 403) == (route in ADMIN_ROUTES), route


def test_what_is_said(guarded: Guarded) -> None:
    missing = guarded.node.get("/v1/models")
    assert missing.json()["error"]["code"] == "invalid_api_key"
    assert "needs a key" in missing.json()["error"]["message"]
    wrong = guarded.node.get("/v1/models", key=f"{guarded.inference}x")
    assert "does not know this key" in wrong.json()["error"]["message"]
    any_bytes = request("/v1/models", Authorization="Bearer KEY").replace(b"KEY", b"\xff\xfe")
    assert parse(exchange(guarded.node, any_bytes)).error() == "invalid_api_key"
    scope = guarded.node.get("/api/system", key=guarded.inference)
    assert (scope.status, scope.json()["error"]["code"]) == (403, "insufficient_scope")
    assert "The key app is for inference" in scope.json()["error"]["message"]
    for secret in (guarded.inference, guarded.admin):
        assert secret not in guarded.node.log_text()


def test_official_clients(guarded: Guarded) -> None:
    url = guarded.node.url
    with openai.OpenAI(base_url=f"{url}/v1", api_key=guarded.inference) as client:
        assert client.models.list().data
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with anthropic.Anthropic(base_url=url, api_key=guarded.inference) as other:
        assert other.models.list().data
    with (
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as other,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        other.models.list()
    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]


def run(guarded: Guarded, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments],
        env=node_environment(home),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_commands_of_whom_the_node_belongs_to_need_no_key(guarded: Guarded, tmp_path: Path) -> None:
    own = run(guarded, "logs", home=guarded.home)
    assert own.returncode == 0, own.stderr
    other = run(guarded, "logs", "--node", guarded.node.url, home=tmp_path)
    assert "of --api-key, or of the variable LLM_NODE_API_KEY" in other.stderr
    assert other.returncode == 5 and "needs a key" in other.stderr
    named = run(guarded, "logs", "--node", guarded.node.url, "--api-key", guarded.admin, home=tmp_path)
    assert named.returncode == 0, named.stderr


def test_an_inference_key_unloads_nothing(guarded: Guarded) -> None:
    model = "llm-node-demo"
    loaded = guarded.node.post("/api/generate", {"model": model}, key=guarded.inference)
    assert loaded.status == 200
    for secret, status in ((guarded.inference, 403), (guarded.admin, 200)):
        body = {"model": model, "keep_alive": 0}
        asked = guarded.node.post("/api/generate", body, key=secret)
        assert asked.status == status


def test_an_inference_key_says_in_vain_how_long_a_model_stays(guarded: Guarded) -> None:
    body = {"model": "llm-node-demo", "prompt": "An", "stream": False, "keep_alive": "2h"}
    body["options"] = {"num_predict": 1}
    for secret, ignored in ((guarded.inference, "keep_alive"), (guarded.admin, None)):
        asked = guarded.node.post("/api/generate", body, key=secret)
        assert (asked.status, asked.headers.get("X-LLM-Node-Ignored")) == (200, ignored), asked.body


def test_a_key_is_made_by_a_command(tmp_path: Path) -> None:
    made = subprocess.run(
        [PROGRAM, "key", "new", "laptop", "--scope", "admin"],
        env=node_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    file = tmp_path / ".llm-node/keys"
    key = Keys.read(file).find(made.stdout.strip())
    assert key is not None and (key.name, key.scope) == ("laptop", Scope.ADMIN)
    assert made.stderr.strip() == f"llm-node serve --api-key-file {file}"
