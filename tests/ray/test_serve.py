"""Three nodes on Ray Serve behind its HAProxy: what `deploy/ray/README.md` says, of each end too.

One fleet for all of it, in the order of the file. `RAY_TEST_STREAMS=5000` asks for more than every day.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from support.dialects import ollama_and_embeddings
from support.fleet import Fleet, command_line, fleet
from support.load import body, for_openai, many
from support.node import PROGRAM, RunningNode, alive, descendants_of

MODEL = "llm-node-demo"
STREAMS = int(os.environ.get("RAY_TEST_STREAMS", "150"))
SECONDS = 60.0 + STREAMS
"""For all of them."""
SILENCE_SECONDS = 40
"""After which HAProxy gives an answer up; people have 600."""

THROUGH_PYTHON = "requests pass through Python"
CHANGED = """
from ray import serve
from llm_node.ray import private
from llm_node.ray.replica import Replica


class Later(Replica):
    def __init__(self, config: str) -> None:
        private.SIGNATURE = "(app, options)"
        super().__init__(config)


def app(args):
    deployment = serve.deployment(name="node", max_ongoing_requests=100)(serve.ingress()(Later))
    return deployment.bind(args["config"])
"""
"""For a version of Ray whose private function is another."""

pytestmark = pytest.mark.timeout(240 + 2 * STREAMS)


@pytest.fixture(scope="module")
def three(
    repository: Path, engines: Path, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("changed")
    (folder / "changed_ray.py").write_text(CHANGED)
    surroundings = {
        "PYTHONPATH": str(folder),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(SILENCE_SECONDS),
    }
    with fleet(repository, [engines], list(models.iterdir()), **surroundings) as found:
        found.wait(lambda: found.in_rotation() == 3, "three of three")
        yield found


@pytest.fixture
def whole(three: Fleet) -> Fleet:
    """All three again, whatever the test before has ended."""
    three.wait(lambda: len(three.nodes()) == 3 and three.in_rotation() == 3, "three of three")
    return three


def lead_through_python(found: Fleet) -> None:
    """One replica in place of these three, and the way that serves where HAProxy cannot lead to nodes."""

    def change(serve: dict[str, Any]) -> None:
        (application,) = serve["applications"]
        application["import_path"] = "changed_ray:app"
        application["deployments"][0]["num_replicas"] = 1

    before = set(found.nodes())
    found.deploy(change)
    found.wait(
        lambda: not before & set(found.nodes()) and len(found.nodes()) == 1 == found.in_rotation(),
        "the relay",
    )


@pytest.fixture(scope="module")
def relayed(three: Fleet) -> Fleet:
    if THROUGH_PYTHON not in three.log.read_text(errors="replace"):
        lead_through_python(three)
    return three


def authorized(found: Fleet, scope: str = "inference") -> dict[str, str]:
    return {"Authorization": f"Bearer {found.keys[scope]}"}


def one_of(found: Fleet) -> RunningNode:
    """One of its nodes, at its own address."""
    port = min(found.nodes().values())
    return RunningNode(found.process, f"http://127.0.0.1:{port}", found.log)


async def streams(found: Fleet, count: int = STREAMS, at_once: int = 24, **when: Any) -> list[str | None]:
    return await many(found.url, count, at_once, headers=authorized(found), seconds=SECONDS, **when)


def ray_targets(found: Fleet) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [PROGRAM, "ray", "targets"],
        env={**found.environment, "RAY_ADDRESS": found.address(), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        check=False,
        timeout=120,
    )


def kill(found: Fleet, pid: int) -> float:
    """Seconds until there are three of three again, one of them another."""
    before = found.rotation()
    os.kill(pid, signal.SIGKILL)
    return found.wait(
        lambda: len(found.nodes()) == 3 and len(now := found.rotation()) == 3 and now != before,
        "three of three",
    )


async def by_official_clients(
    found: Fleet, act: Callable[[], object]
) -> tuple[dict[int, str], dict[int, str | None]]:
    """What they get, who repeat what has not begun: texts, and the codes of those that broke off. `act` is
    done while answers are under way."""
    left = iter(range(STREAMS))
    texts: dict[int, str] = {}
    broken: dict[int, str | None] = {}
    to_do = [act]

    async def work() -> None:
        for number in left:
            text = ""
            try:
                async for chunk in await client.completions.create(**for_openai(number, stream=True)):
                    text += chunk.choices[0].text
                    if number == 60 and len(text) > 9 and to_do:  # as far are those beside it
                        to_do.pop()()
                texts[number] = text
            except openai.APIError as error:
                broken[number] = error.code

    key = found.keys["inference"]
    async with openai.AsyncOpenAI(base_url=f"{found.url}/v1", api_key=key, max_retries=8) as client:
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(24))), SECONDS)
    return texts, broken


async def said_by_one(found: Fleet, count: int = STREAMS) -> list[str | None]:
    """What a node says to the same requests, asked directly."""
    texts = await many(one_of(found).url, count, 32, headers=authorized(found), seconds=SECONDS)
    assert None not in texts
    return texts


# ---- HAProxy leads to the nodes ------------------------------------------------------------------


def test_no_token_passes_python(three: Fleet) -> None:
    assert THROUGH_PYTHON not in three.log.read_text(errors="replace")
    ports = set(three.nodes().values())
    assert len(ports) == 3, "each listens on a port of its own"
    assert three.taken not in ports, "which another program had not taken"


def test_the_official_clients_are_answered(three: Fleet) -> None:
    messages = [{"role": "user", "content": "Say a word."}]
    asked: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": 12}
    key = three.keys["inference"]
    with openai.OpenAI(base_url=f"{three.url}/v1", api_key=key) as client:
        text = client.chat.completions.create(**asked, temperature=0).choices[0].message.content
        chunks = client.chat.completions.create(**asked, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text != ""
        with pytest.raises(openai.BadRequestError, match="tempreature"):
            client.chat.completions.create(**asked, extra_body={"tempreature": 1})
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(model=MODEL, prompt="a " * (1 << 19))
    with anthropic.Anthropic(base_url=three.url, api_key=key) as client:
        answer = client.messages.create(**asked, extra_body={"temperature": 0})
        assert answer.content[0].text == text
    with openai.OpenAI(base_url=f"{three.url}/v1", api_key="none") as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_the_dialect_of_ollama_and_embeddings_pass(three: Fleet) -> None:
    with (
        ollama.Client(three.url, headers=authorized(three)) as dialect,
        openai.OpenAI(base_url=f"{three.url}/v1", api_key=three.keys["inference"]) as client,
    ):
        ollama_and_embeddings(dialect, client, MODEL)


def test_a_real_model_says_what_it_says_directly(three: Fleet, stories: Path) -> None:
    prompts = ["Once upon a time", "Lily and Tom went to", "The dog was"]
    asked: dict[str, Any] = {"model": stories.stem, "max_tokens": 80, "temperature": 0}
    texts = []
    for url in (three.url, one_of(three).url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key=three.keys["inference"]) as client:
            for prompt in prompts:
                chunks = client.completions.create(**asked, prompt=prompt, stream=True)
                texts.append("".join(chunk.choices[0].text for chunk in chunks))
    assert texts[:3] == texts[3:]
    assert min(map(len, texts)) > 100 and len(set(texts)) == 3


def test_what_is_about_one_node_does_not_pass_the_front_door(three: Fleet) -> None:
    for path in ("/metrics", "/api/system"):
        for scope, own in (("admin", 200), ("inference", 403)):
            assert three.front.get(path, headers=authorized(three, scope)).status == 403, path
            assert one_of(three).get(path, headers=authorized(three, scope)).status == own, path


async def test_a_killed_node_costs_its_own_answers_alone(whole: Fleet) -> None:
    took: list[float] = []
    victim = max(whole.nodes())
    outcomes = await streams(whole, after=60, act=lambda: took.append(kill(whole, victim)))
    lost = [number for number, text in enumerate(outcomes) if text is None]
    print(f"a node killed: {len(lost)} of {STREAMS} lost, three of three after {took[0]:.1f} s")
    assert len(lost) <= 12, "what it had, which is a third by `leastconn`, more or less"
    wanted = await said_by_one(whole)
    assert [text for text in outcomes if text] == [wanted[n] for n in range(STREAMS) if n not in lost]


async def test_a_killed_worker_costs_its_own_answers_alone(whole: Fleet) -> None:
    """At most: one of which nothing had come is run again by the next worker. Others end with an error."""
    nodes = whole.nodes()
    victim = max(nodes)
    wanted = await said_by_one(whole)
    assert await streams(whole) == wanted, "each node has the model"
    workers = descendants_of(victim)

    def kill_workers() -> None:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)

    texts, broken = await by_official_clients(whole, kill_workers)
    print(f"a worker killed: {len(broken)} of {STREAMS} lost")
    assert len(broken) <= 12, "what it had, which is a third by `leastconn`, more or less"
    assert set(broken.values()) <= {"engine_crashed"}
    assert texts == {number: wanted[number] for number in range(STREAMS) if number not in broken}
    assert whole.nodes() == nodes, "neither node nor replica was replaced"
    mended = RunningNode(whole.process, f"http://127.0.0.1:{nodes[victim]}", whole.log)
    again = mended.post("/v1/completions", body(0), key=whole.keys["inference"])
    assert again.json()["choices"][0]["text"] == wanted[0]


async def test_a_killed_replica_costs_nothing(whole: Fleet) -> None:
    """Its node ends what it has."""
    took: list[float] = []
    node = max(whole.nodes())
    actor = whole.parent(node)
    outcomes = await streams(whole, after=60, act=lambda: took.append(kill(whole, actor)))
    print(f"a replica killed: three of three after {took[0]:.1f} s")
    assert outcomes == await said_by_one(whole)
    whole.wait(lambda: not alive(node), "the end of its node")


def test_prometheus_is_told_each_node(whole: Fleet) -> None:
    """Those that others have replaced, too."""
    listed = ray_targets(whole)
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    addresses = [address for each in found for address in each["targets"]]
    assert sorted(int(each.rpartition(":")[2]) for each in addresses) == sorted(whole.nodes().values())
    assert {each["labels"]["application"] for each in found} == {"llm"}
    assert len({each["labels"]["replica"] for each in found}) == 3
    for address in addresses:
        target = RunningNode(whole.process, f"http://{address}", whole.log)
        assert b"llm_node_load" in target.get("/metrics", key=whole.keys["admin"]).body, address


def test_a_node_that_does_not_start_says_why(whole: Fleet) -> None:
    """Where people look: in what `serve status` shows."""
    wrong = whole.folder / "wrong.toml"
    wrong.write_text("drain_timeout = 30\n")

    def another(serve: dict[str, Any]) -> None:
        (application,) = serve["applications"]
        own = {"name": "wrong", "route_prefix": "/wrong", "args": {"config": str(wrong)}}
        serve["applications"].append(copy.deepcopy(application) | own)

    def is_said() -> bool:
        (deployment,) = whole.status()["wrong"]["deployments"].values()
        return f"llm-node with {wrong} does not start: 0.0.0.0 is reached by" in deployment["message"]

    whole.deploy(another)
    try:
        whole.wait(is_said, "the node's own sentence")
    finally:
        whole.deploy()
    whole.wait(lambda: list(whole.status()) == ["llm"], "the end of the other application")


# ---- minutes of it: `pytest -m fleet tests/ray` ---------------------------------------------------


@pytest.mark.fleet
async def test_nobody_waits_for_a_node_that_stands_still(whole: Fleet) -> None:
    frozen = max(whole.nodes())
    began = time.monotonic()
    try:
        outcomes = await streams(whole, after=60, act=lambda: os.kill(frozen, signal.SIGSTOP))
        took = time.monotonic() - began
        whole.wait(lambda: whole.in_rotation() == 2, "two of three")
        assert None not in await streams(whole, 100)
    finally:
        os.kill(frozen, signal.SIGCONT)
    print(f"a node stands still: {outcomes.count(None)} of {STREAMS} lost, the last after {took:.1f} s")
    assert outcomes.count(None) <= 24
    assert SILENCE_SECONDS <= took < SILENCE_SECONDS + 30, "as the page says"
    whole.wait(lambda: whole.in_rotation() == 3, "three of three")


@pytest.mark.fleet
async def test_a_killed_controller_costs_nothing(whole: Fleet) -> None:
    (controller,) = whole.named("ServeController")
    outcomes = await streams(whole, after=60, act=lambda: os.kill(controller, signal.SIGKILL))
    assert outcomes == await said_by_one(whole)
    whole.wait(lambda: whole.named("ServeController") not in ([], [controller]), "another controller")


@pytest.mark.fleet
async def test_a_killed_haproxy_comes_back(whole: Fleet) -> None:
    (process,) = (pid for pid in whole.named("haproxy") if "-f" in command_line(pid))
    texts, broken = await by_official_clients(whole, lambda: os.kill(process, signal.SIGKILL))
    print(f"HAProxy killed: {len(broken)} of {STREAMS} lost")
    assert len(broken) <= 24, "what was under way"
    wanted = await said_by_one(whole)
    assert texts == {number: wanted[number] for number in range(STREAMS) if number not in broken}


@pytest.mark.fleet
async def test_more_and_fewer_replicas_cost_nothing(whole: Fleet) -> None:
    def replicas(count: int) -> None:
        def change(serve: dict[str, Any]) -> None:
            serve["applications"][0]["deployments"][0]["num_replicas"] = count

        whole.deploy(change)
        whole.wait(lambda: len(whole.nodes()) == count == whole.in_rotation(), f"{count} replicas")

    def there_and_back() -> None:
        for count in (1, 3, 1, 3):
            replicas(count)

    wanted = await said_by_one(whole)
    changing = asyncio.create_task(asyncio.to_thread(there_and_back))
    rounds = 0
    while not changing.done():
        assert await streams(whole) == wanted
        rounds += 1
    await changing
    print(f"3 -> 1 -> 3 -> 1 -> 3: {rounds * STREAMS} streams, none lost")


@pytest.mark.fleet
async def test_a_killed_raylet_costs_nothing(repository: Path) -> None:
    """Of a machine whose node goes on."""
    with fleet(repository, [], machines=3) as found:
        found.wait(lambda: found.in_rotation() == 3, "three of three")
        wanted = await said_by_one(found)
        raylets = [pid for pid in found.named("raylet/raylet") if "--head" not in command_line(pid)]
        outcomes = await streams(found, after=60, act=lambda: os.kill(max(raylets), signal.SIGKILL))
        assert outcomes == wanted
        found.wait(lambda: len(found.nodes()) == 2, "the end of its node")
        assert None not in await streams(found, 100)


@pytest.mark.fleet
async def test_without_haproxy_requests_pass_through_python(repository: Path) -> None:
    with fleet(repository, [], RAY_SERVE_ENABLE_HA_PROXY="0") as found:
        found.wait(lambda: len(found.nodes()) == 3, "three nodes")
        reason = f"{THROUGH_PYTHON}, which is slower: RAY_SERVE_ENABLE_HA_PROXY is not set"
        found.wait(lambda: reason in found.log.read_text(errors="replace"), "the reason")
        assert await streams(found) == await said_by_one(found)
        assert found.front.get("/metrics", headers=authorized(found, "admin")).status == 403
        listed = ray_targets(found)
        assert listed.returncode == 1
        assert b"no node listens for other machines" in listed.stderr


# ---- requests pass through the replica -----------------------------------------------------------


async def test_a_rollout_costs_nothing(whole: Fleet) -> None:
    wanted = await said_by_one(whole)
    assert await streams(whole, after=30, act=lambda: lead_through_python(whole)) == wanted


def test_the_reason_is_told(relayed: Fleet) -> None:
    told = relayed.log.read_text(errors="replace")
    assert f"{THROUGH_PYTHON}, which is slower: ray.serve._private.replica" in told


async def test_answers_are_those_of_the_node(relayed: Fleet) -> None:
    assert await streams(relayed, 40, 10) == await said_by_one(relayed, 40)


def test_requests_pass_unchanged(relayed: Fleet) -> None:
    key = relayed.keys["inference"]
    with openai.OpenAI(base_url=f"{relayed.url}/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="tempreature"):
            client.completions.create(model="slow", prompt="x", extra_body={"tempreature": 1})
        with pytest.raises(openai.BadRequestError, match="context"):
            client.completions.create(model="slow", prompt="a" * (1 << 20))
    for path, status in (("/v1/models?limit=1", 200), ("/v1/models/none%2Fsuch", 404), ("/none", 404)):
        there = relayed.front.get(path, headers=authorized(relayed))
        assert there.status == status, path
        assert there.body == one_of(relayed).get(path, headers=authorized(relayed)).body
    assert relayed.front.get("/v1/models").status == 401
    assert relayed.front.get("/metrics", headers=authorized(relayed, "admin")).status == 403
    named = relayed.front.get("/v1/models", headers={**authorized(relayed), "X-Request-Id": "mine"})
    assert [value for name, value in named.headers.items() if name.lower() == "x-request-id"] == ["mine"]


async def test_an_answer_whose_node_is_gone_breaks_off(relayed: Fleet) -> None:
    """And is not taken for a whole one."""
    (victim,) = relayed.nodes()
    outcomes = await streams(relayed, 8, 4, after=4, act=lambda: os.kill(victim, signal.SIGKILL))
    assert outcomes.count(None) in range(1, 5)
    relayed.wait(
        lambda: victim not in relayed.nodes() and len(relayed.nodes()) == 1 == relayed.in_rotation(),
        "another node",
    )
    assert None not in await streams(relayed, 4, 4)


def test_ray_is_as_it_is_known() -> None:
    """In a process of its own: Ray begins threads when it is imported."""
    code = (
        "import importlib; from llm_node.ray import private as known\n"
        "found = known._shape(getattr(importlib.import_module(known.HOME), known.NAME))\n"
        "assert found == known.SIGNATURE, found\n"
        "from ray.serve._private import constants\n"
        "own = known.CONTROLLER, known.NAMESPACE\n"
        "assert own == (constants.SERVE_CONTROLLER_NAME, constants.SERVE_NAMESPACE)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
