"""Draw docs/page.png, page-models.png and page-live.png: a real chat, the models and the figures on the web
page, in Chromium.

`python tools/page_picture.py [ENGINES [OUT]]`, with the Python of .venv: a folder of engines, and one for the
pictures in place of docs/.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.node import running_node  # noqa: E402

QUESTION = "What happens when an engine crashes?"
MOST_BYTES = 150_000
CHARTS = 6
LOOKS = 7
"""At the figures, so that lines are drawn."""


def main() -> int:
    engines = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "engines")
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs"
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser, "no Chromium"
    with (
        tempfile.TemporaryDirectory() as folder,
        running_node(Path(folder), ["--engines-dir", engines, "--gpu-backend", "cpu"]) as node,
        sync_playwright() as playwright,
    ):
        page = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            locale="en-US", viewport={"width": 1000, "height": 640}
        )
        page.goto(node.url)
        area = page.get_by_label("Message", exact=True).last
        area.fill(QUESTION)
        area.press("Enter")
        expect(page.locator(".entry.assistant")).to_contain_text("tokens/s", timeout=60_000)
        page.screenshot(path=out / "page.png")
        page.goto(f"{node.url}/#/models")
        expect(page.locator("table").last).to_contain_text("llm-node-demo", timeout=60_000)
        page.screenshot(path=out / "page-models.png")
        looks: list[str] = []
        page.on(
            "response", lambda response: looks.append(response.url) if "/metrics" in response.url else None
        )
        page.goto(f"{node.url}/#/live")
        chat = {"model": "llm-node-demo", "messages": [{"role": "user", "content": QUESTION}]}
        deadline = time.monotonic() + 120
        while len(page.locator("canvas").all()) < CHARTS or len(looks) < LOOKS:
            assert time.monotonic() < deadline
            assert node.post("/v1/chat/completions", chat).status == 200
        page.screenshot(path=out / "page-live.png")
    for name in ("page.png", "page-models.png", "page-live.png"):
        size = (out / name).stat().st_size
        assert size <= MOST_BYTES, f"{name} has {size} bytes"
    return 0


if __name__ == "__main__":
    sys.exit(main())
