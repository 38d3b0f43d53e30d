"""What is no request, or half of one: one typed answer, one line in the log, and a node that goes on."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp.compression_utils import HAS_BROTLI, HAS_ZSTD
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from support.node import RunningNode, running_node
from support.raw import HOST, ask, connect, exchange, parse, read, request

MODEL = "llm-node-demo"
BODY = json.dumps({"model": MODEL, "prompt": "The", "max_tokens": 2}).encode()
GET = b"GET /healthz HTTP/1.1\r\n" + HOST
POST = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST


@pytest.fixture(scope="module")
def door(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node whose log tells whether anything was taken for a defect. The demo model answers."""
    arguments = ["--gpu-backend", "cpu", "--max-body", "1M", "--engines-dir", str(engines)]
    with running_node(tmp_path_factory.mktemp("door"), arguments) as node:
        yield node
        assert "Traceback" not in node.log_text()
        assert "ERROR" not in node.log_text()


def chunked(*chunks: bytes) -> bytes:
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


MALFORMED = {
    "two hosts": GET + b"Host: localhost\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "no method": b"nonsense\r\n\r\n",
    "a method that is none": b"FETCH /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a version that is none": b"GET /healthz HTTP/9.9\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
    "line feeds alone": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "NUL in a header": GET + b"X: a\0b\r\n\r\n",
    "NUL in the path": b"GET /heal\0thz HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes above 127 in the path": b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "a header without a colon": GET + b"no colon\r\n\r\n",
    "a header without a name": GET + b": value\r\n\r\n",
    "a space before the colon": GET + b"X : a\r\n\r\n",
    "a folded header": GET + b"X: a\r\n b\r\n\r\n",
    "a target that is none": b"GET http://[::1/healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "too many headers": GET + b"".join(b"X%d: a\r\n" % number for number in range(200)) + b"\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two equal lengths in one": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a negative length": POST + b"Content-Length: -5\r\n\r\nhello",
    "a length with a sign": POST + b"Content-Length: +5\r\n\r\nhello",
    "a length that is none": POST + b"Content-Length: five\r\n\r\nhello",
    "an endless length": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nhello",
    "a length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "an encoding behind chunks": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "an encoding that is none": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a chunk's size that is none": chunked(b"zz\r\nabc\r\n"),
    "a negative size": chunked(b"-3\r\nabc\r\n"),
    "a chunk that is longer": chunked(b"3\r\nabcdef\r\n0\r\n\r\n"),
    "an endless chunk": chunked(b"f" * 20 + b"\r\nabc"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(door: RunningNode, name: str) -> None:
    reply = parse(exchange(door, MALFORMED[name]))
    assert (reply.status, reply.error()) == (400, "malformed_request")
    line = f"({reply.headers['x-request-id']})"
    assert [found for found in door.log_text().splitlines() if line in found]


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_behind_a_request(door: RunningNode, name: str) -> None:
    """On a connection that is kept alive: the first one has its answer."""
    first, _, rest = exchange(door, GET + b"\r\n", MALFORMED[name], pause=0.05).partition(b'"ok"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    assert parse(rest).error() == "malformed_request"


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_in_one_piece_with_a_request(door: RunningNode, name: str) -> None:
    """The one before it has its answer all the same."""
    first, _, rest = exchange(door, GET + b"\r\n" + MALFORMED[name]).partition(b'"ok"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    assert parse(rest).error() == "malformed_request"


SECRET = b"what xyzzy is for"
SECRETIVE = json.dumps({"model": MODEL, "prompt": SECRET.decode(), "max_tokens": 1}).encode()
LENGTH = b"Content-Length: %d\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        POST + LENGTH % len(SECRETIVE) + SECRETIVE + b"nonsense",
        POST + LENGTH % 5 + SECRETIVE,
        POST + LENGTH % 5 + SECRETIVE.replace(b" ", b"\r\n"),
        POST + LENGTH % 5 + b"12345GET " + SECRET + b"\r\n",
        POST + LENGTH % 5 + b"12345" + GET + SECRET + b": \0\r\n\r\n",
        POST + LENGTH % 5 + b"12345" + GET + b"X: " + SECRET + b"\0\r\n\r\n",
        POST + LENGTH % 5 + b"12345GET /%" + SECRET.replace(b" ", b"\xff") + b" HTTP/1.1\r\n",
        chunked(b"3\r\n" + SECRETIVE + b"\r\n"),
        chunked(SECRETIVE + b"\r\n"),
        chunked(b"%x\r\n" % len(SECRETIVE) + SECRETIVE + b"\r\n" + SECRET + b"\r\n"),
    ],
)
@pytest.mark.parametrize("in_two", [False, True])
def test_no_body_is_in_an_error_or_the_log(door: RunningNode, sent: bytes, in_two: bool) -> None:
    """Where a length is wrong, what belonged to a prompt is read as a request."""
    middle = len(sent) // 2
    parts = [sent[:middle], sent[middle:]] if in_two else [sent]
    found = exchange(door, *parts, pause=0.05)
    assert b'"malformed_request"' in found
    assert b"xyzzy" not in found
    assert "xyzzy" not in door.log_text()


@pytest.mark.parametrize(("name", "in_one"), [("websocket", False), ("websocket", True), ("h2c", False)])
def test_requests_behind_an_upgrade_that_is_not_made(door: RunningNode, name: str, in_one: bool) -> None:
    """Java's client asks for HTTP/2 so. What comes in one piece with h2c, llhttp drops."""
    upgrade = GET + f"Connection: Upgrade\r\nUpgrade: {name}\r\n\r\n".encode()
    parts = [upgrade, *[GET + b"\r\n"] * 3, b"nonsense\r\n\r\n"]
    found = exchange(door, *([b"".join(parts)] if in_one else parts), pause=0.05)
    assert found.count(b'"ok"}') == 4
    assert found.count(b'"malformed_request"') == 1


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip,chunked", "identity, chunked", "chunked, chunked"])
def test_a_body_in_a_coding_that_is_not_undone(door: RunningNode, coding: str) -> None:
    """Where it is framed by chunks, aiohttp would hand on what is in them as if it were plain."""
    head = POST + f"Transfer-Encoding: {coding}\r\nConnection: close\r\n\r\n".encode()
    reply = parse(exchange(door, head + b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"))
    assert (reply.status, reply.error()) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("head", "rest"),
    [
        (chunked(b"3\r\nabc\r\n"), b"zz\r\n"),
        (chunked(b"3\r\nabc"), b"def\r\n"),
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n\x1f\x8b", b"x" * 98),
        (
            POST + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\x1f\x8b\r\n",
            b"3\r\nxyz\r\n",
        ),
        (POST + b"Content-Encoding: deflate\r\nContent-Length: 9\r\n\r\n", b"not that."),
    ],
)
def test_malformed_within_a_body(door: RunningNode, head: bytes, rest: bytes) -> None:
    """Who reads the body waits for it by then, and must not wait for a deadline."""
    began = time.monotonic()
    reply = parse(exchange(door, head, rest))
    assert (reply.status, reply.error()) == (400, "malformed_request")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "sent",
    [
        POST + b"Content-Length: 500\r\n\r\n" + BODY,
        chunked(b"5\r\nabc"),
        chunked(b"5\r\nabcde\r\n"),
    ],
)
def test_a_body_that_is_cut(door: RunningNode, sent: bytes) -> None:
    reply = parse(exchange(door, sent, half_close=True))
    assert (reply.status, reply.error()) == (400, "malformed_request")
    assert "ends before its last byte" in reply.json()["error"]["message"]


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET /healthz HTTP/1.1\r\nHost: loc", GET])
def test_half_a_request_has_no_answer(door: RunningNode, sent: bytes) -> None:
    assert exchange(door, sent, half_close=True) == b""


def test_headers_may_be_long(door: RunningNode) -> None:
    """Cookies of single sign-on, tokens with groups, client certificates."""
    assert ask(door, "/healthz", Cookie="s=" + "x" * 60_000).status == 200
    assert ask(door, "/healthz?" + "x" * 60_000).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        GET + b"Cookie: " + b"x" * 70_000 + b"\r\n\r\n",
        GET + b"X" * 70_000 + b": x\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
def test_headers_that_are_too_long(door: RunningNode, sent: bytes) -> None:
    reply = parse(exchange(door, sent))
    assert (reply.status, reply.error()) == (431, "headers_too_large")


def test_all_headers_together_are_bounded(door: RunningNode) -> None:
    lines = [b"X%d: " % number + b"x" * 60_000 + b"\r\n" for number in range(8)]
    reply = parse(exchange(door, GET, *lines, pause=0.05))
    assert (reply.status, reply.error()) == (431, "headers_too_large")


@pytest.mark.parametrize("path", ["/healthz", "/no/such/route", "/v1/completions"])
def test_expectations(door: RunningNode, path: str) -> None:
    reply = ask(door, path, Expect="miracles")
    assert (reply.status, reply.error()) == (417, "expectation_failed")


def test_a_client_that_asks_before_it_sends(door: RunningNode) -> None:
    head = f"Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n".encode()
    with connect(door) as connection:
        connection.sendall(POST + head)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert parse(read(connection)).status == 200


# ---- packed bodies ---------------------------------------------------------------------------------


def packed(encoding: str, body: bytes) -> bytes:
    return request("/tokenize", method="POST", body=body, Content_Encoding=encoding)


TOKENIZE = json.dumps({"model": "no-such-model", "text": "x"}).encode()
PACKED = gzip.compress(TOKENIZE, mtime=0)
"""The same at each run, since tests are named by it."""


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", PACKED),
        ("GZIP", PACKED),
        ("deflate", zlib.compress(TOKENIZE)),
        ("identity", TOKENIZE),
    ],
)
def test_packed_bodies_are_read(door: RunningNode, encoding: str, body: bytes) -> None:
    assert parse(exchange(door, packed(encoding, body))).error() == "model_not_found"


@pytest.mark.parametrize("encoding", ["compress", "x-nothing", "gzip, gzip", "zstd", "br", "\xe9"])
def test_encodings_that_nobody_reads(door: RunningNode, encoding: str) -> None:
    if (encoding == "zstd" and HAS_ZSTD) or (encoding == "br" and HAS_BROTLI):
        pytest.skip("its library is here")
    reply = parse(exchange(door, packed(encoding, TOKENIZE)))
    assert (reply.status, reply.error()) == (415, "unsupported_encoding")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("body", [b"not packed at all", PACKED[:20], b"\x1f\x8b" * 50])
def test_corrupt_packing(door: RunningNode, encoding: str, body: bytes) -> None:
    reply = parse(exchange(door, packed(encoding, body)))
    assert reply.status == 400
    assert reply.error() in ("malformed_request", "invalid_json")


def test_a_small_body_that_unpacks_to_a_large_one(door: RunningNode) -> None:
    bomb = gzip.compress(b"[" + b" " * (200 << 20))
    assert len(bomb) < 1 << 20
    reply = parse(exchange(door, packed("gzip", bomb)))
    assert (reply.status, reply.error()) == (413, "request_too_large")
    assert "--max-body" in reply.json()["error"]["message"]


# ---- any bytes at all ------------------------------------------------------------------------------

LINES = """
GET |POST |HEAD |CONNECT |OPTIONS |/healthz|/v1/completions|*|?a=b|#|http://localhost/healthz| |
 HTTP/1.1~| HTTP/1.0~|~|~~|Host: localhost~|Host: evil.example~|Origin: null~|Cookie: a~|X-Request-Id: a b~|
Content-Length: 4~|Content-Length: 0~|Content-Length: -1~|Transfer-Encoding: chunked~|Expect: x~|
Content-Encoding: gzip~|Content-Encoding: deflate~|Connection: close~|Connection: keep-alive~|
Connection: Upgrade~Upgrade: websocket~|Upgrade: h2c~|Expect: 100-continue~|4~abcd~|0~~|ffffffff~|{}
"""
PIECES = st.sampled_from(
    [piece.replace("~", "\r\n").encode() for piece in LINES.replace("\n", "").split("|")]
    + [b"\n", b"\r", b"\0", b"\t", BODY, gzip.compress(BODY)]
)
ANYTHING = st.lists(st.one_of(PIECES, PIECES, st.binary(max_size=40)), max_size=25).map(b"".join)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(ANYTHING, min_size=1, max_size=3))
@example([GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"\x16\x03\x01" * 100])
@example([b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n", b"anything"])
@example([GET + b"\r\n" + GET + b"\r\n" + b"nonsense"])
@example([POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz"])
def test_any_bytes_are_answered_or_closed(door: RunningNode, parts: list[bytes]) -> None:
    """Whatever comes, each answer is HTTP, each refusal has the one body, and the connection ends."""
    with connect(door) as connection:
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
        found = read(connection)
        assert not found or found.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/0.9 ")), found
        if found.startswith(b"HTTP/1.") and b" 4" in found[:13]:
            parse(found).error()
    assert ask(door, "/healthz").status == 200
    assert "Traceback" not in door.log_text()
