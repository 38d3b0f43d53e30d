"""A node that wants a key has its page ask for one."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Dialog, expect

from llm_node.keys import Scope, add
from support.node import RunningNode, running_node


def test_the_page_asks_until_it_has_a_key(
    browser: Browser, node: RunningNode, engines: Path, tmp_path: Path
) -> None:
    """`node` is not asked: it has the test skipped where the page's libraries are missing."""
    file = tmp_path / "keys"
    typed = ["wrong", add(file, "me", Scope.ADMIN)]
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept(typed[len(asked) - 1])

    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu", "--api-key-file", str(file)]
    with running_node(tmp_path, arguments) as guarded:
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.on("dialog", answer)
        page.goto(guarded.url)
        expect(page.get_by_label("Model", exact=True)).not_to_have_value("")  # both keys have been asked for
        page.get_by_role("textbox").first.fill("What is an engine?")
        page.keyboard.press("Enter")
        # Whatever it is: it is drawn.
        expect(page.get_by_role("status").last).to_have_text("Answer complete.", timeout=60_000)
        context.close()
    assert asked == ["This node asks for an API key."] * 2
