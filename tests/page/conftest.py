"""A real browser before a real node. Every page that a test opens is watched: nothing may break its policy,
nothing may be asked of another host, no error may stay uncaught."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from support.hub import Behaviour, StandInHub, stand_in_hub
from support.models import NORMAL, talker
from support.node import RunningNode, running_node

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")
HOW = "no Chromium: `sudo apt-get install chromium` brings one, and these tests run"
UNCALLED_FOR = 30_000
"""Milliseconds that anything may take; nothing is expected to."""

expect.set_options(timeout=UNCALLED_FOR)

Open = Callable[..., Page]


# Playwright runs an event loop of its own in this thread meanwhile; other files' tests have theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(HOW)
    with sync_playwright() as playwright:
        # The tests may run as root, where Chromium's own sandbox cannot.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def hub(demo_model: Path) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        hub.put("org/Tiny-GGUF", "tiny-Q4_0.gguf", demo_model.read_bytes())
        hub.parameters["org/Tiny-GGUF"] = 3_800_000
        yield hub


@pytest.fixture(autouse=True)
def behaves(request: pytest.FixtureRequest) -> None:
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").behaviour = Behaviour()


@pytest.fixture(scope="module")
def node(engines: Path, hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """With the demo model, and with one that never ends."""
    folder = tmp_path_factory.mktemp("node")
    models = folder / ".llm-node/models"
    models.mkdir(parents=True)
    talker(
        models / "endless.gguf",
        [(" tick", NORMAL)],
        # What it said is read as bytes where it goes on.
        {ord(":") + 3: " tick", ord("k") + 3: " tick", " tick": " tick"},
        "{% for message in messages %}{{ message.content }}{% endfor %}:",
        context=8192,
    )
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(folder, arguments, environment=hub.environment()) as running:
        if b"built without" in _index(running):
            pytest.skip("the page's libraries are not there: `python tools/vendor_web.py` brings them")
        yield running


@pytest.fixture(scope="module")
def crashed(node: RunningNode) -> RunningNode:
    """The node, on which something has gone wrong."""
    if not node.get("/api/incidents").json()["incidents"]:
        loaded = node.post("/api/models/load", {"model_id": "endless"})
        assert loaded.status == 200, loaded.body
        os.kill(_worker(node, "endless")["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while not node.get("/api/incidents").json()["incidents"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    return node


def _worker(node: RunningNode, model: str) -> dict[str, Any]:
    workers = node.get("/api/system").json()["workers"]
    found: dict[str, Any] = next(it for it in workers if it["model_id"] == model)
    return found


def _index(node: RunningNode) -> bytes:
    import urllib.request

    request = urllib.request.Request(node.url, headers={"Accept": "text/html"})
    with urllib.request.urlopen(request) as reply:
        return bytes(reply.read())


class Watch:
    """What a page did that none may do."""

    def __init__(self, page: Page, own: str) -> None:
        self.wrong: list[str] = []
        self._own = own
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        page.on("request", lambda request: self._request(request.url))
        page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("popup", lambda popup: self.wrong.append(f"window: {popup.url}"))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.wrong.append(f"{message.type}: {message.text}")

    def _request(self, url: str) -> None:
        if not url.startswith((self._own, "blob:", "data:")):
            self.wrong.append(f"asked {url}")


@pytest.fixture
def open_page(browser: Browser, node: RunningNode) -> Iterator[Open]:
    """Opens the page in a browser of its own, with nothing kept. `path`: behind the node's address."""
    contexts, watches = [], []

    def opened(
        path: str = "/", *, width: int = 1280, height: int = 800, theme: str = "light", **more: Any
    ) -> Page:
        context = browser.new_context(
            locale="en-US",
            viewport={"width": width, "height": height},
            color_scheme=theme,  # type: ignore[arg-type]
            **more,
        )
        context.set_default_timeout(UNCALLED_FOR)
        contexts.append(context)
        page = context.new_page()
        watches.append(Watch(page, node.url))
        page.goto(node.url + path)
        page.locator("main").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [watch.wrong for watch in watches] == [[] for _ in watches]
