"""A node that wants a key has its page ask for one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect

from llm_node.keys import Scope, add
from support.node import RunningNode, running_node

QUESTION = "What is an engine?"


@dataclass
class Guarded:
    """A node that asks for keys, and two of them."""

    url: str
    inference: str
    admin: str


@pytest.fixture(scope="module")
def guarded(node: RunningNode, engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """`node` is not asked: it has the tests skipped where the page's libraries are missing."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys"
    keys = add(file, "app", Scope.INFERENCE), add(file, "me", Scope.ADMIN)
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu", "--api-key-file", str(file)]
    with running_node(folder, arguments) as running:
        yield Guarded(running.url, *keys)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(locale="en-US")
    yield made
    made.close()


def ask(page: Page) -> None:
    """Whatever is answered: it is drawn."""
    expect(page.get_by_label("Model", exact=True)).not_to_have_value("")
    page.get_by_label("Message", exact=True).last.fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").last).to_have_text("Answer complete.", timeout=60_000)


def test_the_page_asks_until_it_has_a_key(context: BrowserContext, guarded: Guarded) -> None:
    typed = ["wrong", guarded.admin]
    asked: list[str] = []

    def answer(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.accept(typed[len(asked) - 1])

    page = context.new_page()
    page.on("dialog", answer)
    page.goto(guarded.url)
    ask(page)  # both keys have been asked for
    assert asked == ["This node asks for an API key."] * 2


def test_a_link_brings_a_key_that_leaves_the_address(context: BrowserContext, guarded: Guarded) -> None:
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{guarded.url}/#key={guarded.admin}")
    ask(page)
    assert page.evaluate("() => location.href") == f"{guarded.url}/"
    page.go_back()
    assert guarded.admin not in page.url, "not in the history either"
    assert not [url for url in asked if guarded.admin in url.partition("#")[0]], "no log has it"


def test_a_key_is_kept_on_wish_and_forgotten(context: BrowserContext, guarded: Guarded) -> None:
    """Playwright closes a dialog that nobody answers: without a key there is no model to ask."""
    page = context.new_page()
    page.goto(f"{guarded.url}/#/settings")
    page.get_by_label("API key").fill(guarded.admin)
    page.get_by_label("Keep it in this browser").check()
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_role("main").get_by_role("status")).to_have_text("The key is used from now on.")
    other = context.new_page()  # which has no key of its own
    other.goto(guarded.url)
    ask(other)
    other.goto(f"{guarded.url}/#/settings")
    other.get_by_role("button", name="Forget the key").click()
    expect(other.get_by_role("main").get_by_role("status")).to_have_text("The key is forgotten.")
    third = context.new_page()
    third.goto(guarded.url)
    expect(third.get_by_role("alert")).to_contain_text("This node needs a key")


def test_a_key_for_inference_sees_the_chat_and_is_told_what_the_rest_needs(
    context: BrowserContext, guarded: Guarded
) -> None:
    page = context.new_page()
    page.goto(f"{guarded.url}/#key={guarded.inference}")
    ask(page)
    expect(page.get_by_role("alert")).to_have_text("")
    page.goto(f"{guarded.url}/#/models")
    expect(page.get_by_role("alert")).to_contain_text("The key app is for inference")
    expect(page.get_by_role("alert")).to_contain_text("needs an admin's")
    expect(page.get_by_role("heading", name="llm-node-demo")).to_be_visible()
