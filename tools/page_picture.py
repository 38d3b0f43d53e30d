"""Draw docs/page.png, page-models.png and page-live.png: a real chat, the models and the figures on the web
page, in Chromium.

`python tools/page_picture.py [ENGINES [OUT]]`, with the Python of .venv: a folder of engines, and one for the
pictures in place of docs/.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from llm_node import demo  # noqa: E402
from support.hub import StandInHub, stand_in_hub  # noqa: E402
from support.models import requantized  # noqa: E402
from support.node import RunningNode, running_node  # noqa: E402

QUESTION = "What happens when an engine crashes?"
MOST_BYTES = 150_000
WIDTH = 1000
CHARTS = 6
LOOKS = 7
"""At the figures, so that lines are drawn."""
STREAMS = 3
"""That go on meanwhile, so that there is something to see at each look."""
REPOSITORY = "org/Small-GGUF"


@contextlib.contextmanager
def hub_with_versions(folder: Path) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        for kind in ("Q4_0", "Q8_0", "F16"):
            file = folder / f"small-{kind}.gguf"
            requantized(demo.path(), file, gguf.GGMLQuantizationType[kind])
            hub.put(REPOSITORY, file.name, file.read_bytes())
        yield hub


@contextlib.contextmanager
def streams(node: RunningNode) -> Iterator[None]:
    """Requests that are asked again and again."""
    is_over = threading.Event()
    chat = {"model": demo.NAME, "messages": [{"role": "user", "content": QUESTION}]}
    body = {**chat, "max_tokens": 400, "ignore_eos": True}

    def ask() -> None:
        while not is_over.is_set():
            assert node.post("/v1/chat/completions", body).status == 200

    threads = [threading.Thread(target=ask) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def shot(page: Page, path: Path, height: int) -> None:
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.locator("main").evaluate("element => { element.scrollTop = 0; scrollTo(0, 0); }")
    page.screenshot(path=path)


def main() -> int:
    engines = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "engines")
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs"
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "no Chromium"
    with (
        tempfile.TemporaryDirectory() as name,
        hub_with_versions(folder := Path(name)) as hub,
        running_node(
            folder, ["--engines-dir", engines, "--gpu-backend", "cpu"], environment=hub.environment()
        ) as node,
        sync_playwright() as playwright,
    ):
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            locale="en-US", viewport={"width": WIDTH, "height": 640}
        )
        page.goto(node.url)
        area = page.get_by_label("Message", exact=True).last
        area.fill(QUESTION)
        area.press("Enter")
        expect(page.locator(".entry.assistant")).to_contain_text("tokens/s", timeout=60_000)
        shot(page, out / "page.png", 640)
        hub.behaviour.pause = threading.Event()
        page.goto(f"{node.url}/#/models")
        page.get_by_label("Repository of the hub").fill(REPOSITORY)
        page.get_by_role("button", name="What would be fetched?").click()
        page.get_by_role("button", name="Fetch Q8_0").click(timeout=60_000)
        bar = page.locator(".cards > li").filter(has_text="fetching").get_by_role("progressbar")
        expect(bar).not_to_have_attribute("value", "0", timeout=60_000)
        expect(page.locator("table").last).to_contain_text(demo.NAME, timeout=60_000)
        page.mouse.move(0, 0)
        shot(page, out / "page-models.png", 1490)
        hub.behaviour.pause.set()
        looks: list[str] = []
        page.on(
            "response", lambda response: looks.append(response.url) if "/metrics" in response.url else None
        )
        page.goto(f"{node.url}/#/live")
        deadline = time.monotonic() + 120
        with streams(node):
            while len(page.locator("canvas").all()) < CHARTS or len(looks) < LOOKS:
                assert time.monotonic() < deadline
                page.wait_for_timeout(100)
            shot(page, out / "page-live.png", 860)
    for name in ("page.png", "page-models.png", "page-live.png"):
        size = (out / name).stat().st_size
        assert size <= MOST_BYTES, f"{name} has {size} bytes"
    return 0


if __name__ == "__main__":
    sys.exit(main())
