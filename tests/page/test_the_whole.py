"""As a stranger comes to it: two wheels, a name of the hub, an answer; then the same on the page.

The hub is a stand-in, and no index is asked; all else is what people have.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import gguf
import pytest
from playwright.sync_api import Browser, expect

from support.environment import Environment, node_wheel, packed
from support.hub import Behaviour, StandInHub, stand_in_hub
from support.models import requantized
from support.node import node_environment, running_node

QUESTION = "What is an engine?"
ANSWER = "engine"
"""Is in whatever answer is drawn."""
LINES = (
    r"org/Small: Q4_0, [\d.]+ MiB\.",
    r"It needs [\d.]+ MiB with 1,024 tokens of context; this machine has [\d.]+ MiB\.",
    r"The next larger one, Q8_0, needs [\d.]+ MiB, more than there is\.",
)


Phase = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def phase(record_property: Callable[[str, object], None]) -> Phase:
    """Tells in the summary how long each part took. Nothing is asserted: that is the machine's."""

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        record_property(name, f"{time.monotonic() - began:.1f} s")

    return timed


@pytest.fixture
def three_versions(demo_model: Path, tmp_path: Path) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        for kind in ("Q4_0", "Q8_0", "F16"):
            file = tmp_path / f"small-{kind}.gguf"
            requantized(demo_model, file, gguf.GGMLQuantizationType[kind])
            hub.put("org/Small", file.name, file.read_bytes())
        yield hub


def test_from_nothing_to_a_chat_with_a_model_of_ones_own(
    repository: Path,
    llama_cpp: Path,
    three_versions: StandInHub,
    browser: Browser,
    phase: Phase,
    tmp_path: Path,
) -> None:
    hub = three_versions
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with phase("wheels"):  # which the index has
        shutil.copy(node_wheel(), wheels)
        packed(repository, llama_cpp, wheels)
    with phase("environment"):
        environment = Environment(tmp_path / "venv")
    with phase("pip install"):
        environment.pip(
            *("install", "--no-index", "--no-deps", "--ignore-installed", "--find-links", wheels),
            *("llm-node", "llm-node-engine-llama-cpu"),
        )
    program = environment.root / "bin/llm-node"

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=node_environment(environment.home, **hub.environment()),
        )

    with phase("pull --dry-run"):
        planned = json.loads(
            command("pull", "org/Small", "--dry-run", "--json", "--gpu-backend", "cpu").stdout
        )
    needs = {row["version"]: row["needs_bytes"] for row in planned["versions"]}
    limit = ["--gpu-backend", "cpu", "--vram-limit", str((needs["Q4_0"] + needs["Q8_0"]) // 2)]

    with phase("run, which fetches"):
        first = command("run", "org/Small", QUESTION, "--temperature", "0", *limit)
    assert first.returncode == 0, first.stderr
    assert ANSWER in first.stdout
    said = first.stderr.splitlines()
    assert all(re.fullmatch(line, text) for line, text in zip(LINES, said, strict=False)), said
    hub.behaviour = Behaviour()
    with phase("run again"):
        second = command("run", "org/Small", QUESTION, "--temperature", "0", *limit)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert hub.behaviour.asked == [], "what is here is not fetched again"

    with ExitStack() as node_and_page:
        with phase("start of the node"):
            node = node_and_page.enter_context(
                running_node(tmp_path / "other", limit, environment=hub.environment(), program=[program])
            )
        page = browser.new_page(locale="en-US")
        with phase("page"):
            page.goto(f"{node.url}/#/models")
            page.get_by_label("Repository of the hub").fill("org/Small")
        with phase("page: what would be fetched"):
            page.get_by_role("button", name="What would be fetched?").click()
            for line in LINES:
                expect(page.get_by_text(re.compile(f"^{line}$")).first).to_be_visible()
        with phase("page: fetch"):
            page.get_by_role("button", name="Fetch", exact=True).click()
            expect(page.locator(".cards h3").filter(has_text="org/Small:Q4_0")).to_be_visible()
        with phase("page: chat"):
            page.goto(f"{node.url}/#/chat")
            page.get_by_label("Model", exact=True).select_option("org/Small:Q4_0")
            page.get_by_label("Message", exact=True).last.fill(QUESTION)
            page.keyboard.press("Enter")
            expect(page.locator(".entry.assistant .prose")).to_contain_text(ANSWER)
        page.close()
