"""Who may ask: names that lead here from nowhere else, and pages of the node's own origin."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from llm_node.node import Node
from llm_node.server.app import make_app
from llm_node.settings import Settings
from support.node import RunningNode, running_node
from support.raw import Reply, ask, exchange, parse, request

ALLOWED_HOST, ALLOWED_PAGE = "llm.example.com", "https://chat.example.com"


@pytest.fixture(scope="module")
def open_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with a name of its own, and a page that may use it."""
    folder = tmp_path_factory.mktemp("open")
    arguments = ["--gpu-backend", "cpu", "--allow-host", ALLOWED_HOST, "--cors-origin", ALLOWED_PAGE]
    with running_node(folder, arguments) as node:
        yield node


HOSTS = [
    ("localhost", True),
    ("LocalHost.:3000", True),
    ("127.0.0.1", True),
    ("127.0.0.1:3000", True),
    ("192.168.1.5:8080", True),
    ("[::1]", True),
    ("[::1]:3000", True),
    ("[fe80::1%25eth0]:3000", True),
    ("node.localhost", True),
    ("my-box.local:3000", True),
    ("", True),  # no browser sends an empty one
    ("evil.example", False),
    ("EVIL.example:80", False),
    ("localhost.evil.example", False),
    ("127.0.0.1.evil.example", False),
    ("notlocalhost", False),
    ("evil-local", False),
    ("node", False),
    ("[::1", False),
    ("[localhost]", False),
    ("::1", False),
    ("user@localhost", False),
    ("localhost:3000:1", False),
    ("a, localhost", False),
]


@pytest.mark.parametrize(("host", "right"), HOSTS)
def test_hosts(node: RunningNode, host: str, right: bool) -> None:
    reply = ask(node, "/api/engines", Host=host)
    if right:
        assert reply.status == 200
    else:
        assert (reply.status, reply.error()) == (403, "host_not_allowed")
        assert repr(host) in reply.json()["error"]["message"]
        assert "--allow-host" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/v1/models", "/api/system", "/no/such/route", "/v1/chat/completions"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
def test_no_route_answers_to_a_foreign_name(node: RunningNode, path: str, method: str) -> None:
    """DNS rebinding: a page whose own name was pointed at this machine."""
    reply = ask(node, path, method=method, Host="evil.example", Origin="http://evil.example")
    assert (reply.status, reply.error()) == (403, "host_not_allowed")


def routes() -> list[tuple[str, str]]:
    """Every route of a node, with something in its holes."""
    app = make_app(Node(Settings()), Settings())
    found = [(route.method, route.resource) for route in app.router.routes()]
    return [
        (method, re.sub(r"\{[^}]*\}", "x", resource.canonical))
        for method, resource in found
        if resource is not None and method != "*"
    ]


def states(node: RunningNode) -> dict[str, str]:
    return {row["model_id"]: row["status"] for row in node.get("/api/models").json()["models"]}


@pytest.mark.parametrize(
    ("code", "headers"),
    [
        ("host_not_allowed", {"Host": "evil.example"}),
        ("host_not_allowed", {"Host": "evil.example:3000", "Origin": "http://evil.example:3000"}),
        ("origin_not_allowed", {"Origin": "https://evil.example", "Content_Type": "text/plain"}),
        ("origin_not_allowed", {"Origin": "null", "Content_Type": "application/x-www-form-urlencoded"}),
        ("origin_not_allowed", {"Sec_Fetch_Site": "cross-site", "Content_Type": "text/plain"}),
    ],
)
def test_web_sites_do_not_drive_the_local_server(
    node: RunningNode, code: str, headers: dict[str, str]
) -> None:
    """On every route: another origin, a rebound name, a form that no browser asks about first."""
    found = routes()
    assert len(found) > 60, "it looked at all of them"
    before = states(node)
    for method, path in found:
        if code == "origin_not_allowed" and path in ("/", "/healthz"):
            continue  # they tell nothing, and do nothing
        body = b'{"model_id": "llm-node-demo", "model": "llm-node-demo"}' if method == "POST" else None
        reply = ask(node, path, method=method, body=body, **{"Host": own(node), **headers})
        assert reply.status == 403, f"{method} {path}"
        # Each dialect has a form of its own for errors; what to do stands in all of them.
        advice = b"--allow-host" if code == "host_not_allowed" else b"--cors-origin"
        assert method == "HEAD" or advice in reply.body, f"{method} {path}"
    assert states(node) == before, "nothing was loaded, unloaded or fetched"


def test_without_a_host_no_browser_asks(node: RunningNode) -> None:
    assert parse(exchange(node, b"GET /api/engines HTTP/1.0\r\n\r\n")).status == 200
    assert parse(exchange(node, b"GET /api/engines HTTP/1.1\r\n\r\n")).error() == "malformed_request"
    two = b"GET /api/engines HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert parse(exchange(node, two)).error() == "malformed_request"


def test_a_name_that_is_allowed(open_node: RunningNode) -> None:
    for host in (ALLOWED_HOST, ALLOWED_HOST.upper() + ".:443"):
        assert ask(open_node, "/api/engines", Host=host).status == 200
    assert ask(open_node, "/api/engines", Host="other.example.com").error() == "host_not_allowed"


def own(node: RunningNode) -> str:
    return f"127.0.0.1:{node.address[1]}"


def ask_from(node: RunningNode, path: str = "/api/models/unload", **headers: str) -> Reply:
    """What a page may send without asking first: a "simple" request."""
    body = b'{"model_id": "no-such-model"}'
    return ask(node, path, method="POST", body=body, Host=own(node), Content_Type="text/plain", **headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "file://"},
        {"Origin": ""},
        {"Origin": "chrome-extension://abcdef"},
        {"Origin": "http://OWN.evil.example"},
        {"Origin": "http://evil@OWN"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "Cross-Site"},
        {"Origin": "http://OWN", "Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("path", ["/api/models/unload", "/v1/completions", "/readyz", "/no/such/route"])
def test_pages_of_other_origins(node: RunningNode, path: str, headers: dict[str, str]) -> None:
    reply = ask_from(node, path, **{name: value.replace("OWN", own(node)) for name, value in headers.items()})
    assert (reply.status, reply.error()) == (403, "origin_not_allowed")
    assert "--cors-origin" in reply.json()["error"]["message"]
    assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://OWN"},
        {"Origin": "HTTP://OWN", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://OWN"},  # behind a proxy that does TLS
        {"Sec-Fetch-Site": "none"},  # typed into the address bar
    ],
)
def test_programs_and_pages_of_its_own(node: RunningNode, headers: dict[str, str]) -> None:
    reply = ask_from(node, **{name: value.replace("OWN", own(node)) for name, value in headers.items()})
    assert (reply.status, reply.error()) == (404, "model_not_found")


def test_health_may_be_asked_by_anybody(node: RunningNode) -> None:
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert ask(node, "/healthz", **foreign).status == 200


def test_a_page_that_is_allowed(open_node: RunningNode) -> None:
    reply = ask_from(open_node, Origin=ALLOWED_PAGE, **{"Sec-Fetch-Site": "cross-site"})
    assert (reply.status, reply.error()) == (404, "model_not_found")
    assert reply.headers["access-control-allow-origin"] == ALLOWED_PAGE
    assert reply.headers["vary"] == "Origin"
    assert "X-Request-Id" in reply.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in reply.headers
    for other in ("https://evil.example", ALLOWED_PAGE + ".evil.example", "http://chat.example.com"):
        assert ask_from(open_node, Origin=other).error() == "origin_not_allowed"
    nobody = ask_from(open_node)
    assert "access-control-allow-origin" not in nobody.headers
    assert nobody.headers["vary"] == "Origin"


def test_a_browser_asks_first(open_node: RunningNode) -> None:
    question = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    reply = ask(open_node, "/v1/chat/completions", method="OPTIONS", Origin=ALLOWED_PAGE, **question)
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == ALLOWED_PAGE
    assert reply.headers["access-control-allow-methods"] == "POST"
    assert reply.headers["access-control-allow-headers"] == question["Access-Control-Request-Headers"]
    refused = ask(
        open_node, "/v1/chat/completions", method="OPTIONS", Origin="https://evil.example", **question
    )
    assert refused.error() == "origin_not_allowed"
    assert ask(open_node, "/v1/chat/completions", method="OPTIONS").error() == "method_not_allowed"
    for name in question:  # both are sent back, and these bytes are no text
        asked = request("/v1/models", method="OPTIONS", Origin=ALLOWED_PAGE, **{**question, name: "WHAT"})
        assert parse(exchange(open_node, asked.replace(b"WHAT", b"\xff"))).error() == "method_not_allowed"


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /no/such/route HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nConnection: close\r\nHost: evil.example\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\nExpect: miracles\r\n\r\n",
        b"no request at all\r\n\r\n",
    ],
)
def test_headers_for_browsers_are_on_every_answer(node: RunningNode, sent: bytes) -> None:
    headers = parse(exchange(node, sent)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-request-id"]


def test_headers_for_browsers_are_on_streams(node: RunningNode) -> None:
    body = {"model": "llm-node-demo", "prompt": "The", "max_tokens": 2, "stream": True}
    answer = node.post("/v1/completions", body)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
