"""The page in a real browser: chat, models, keyboard, and what stays after a reload."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

import llm_node
from llm_node.api import page as page_routes
from llm_node.cli.chat.conversation import Conversation, Saved
from support.hub import StandInHub
from support.node import RunningNode, running_node

WEB = Path(llm_node.__file__).parent / "web"
QUESTION = "What is an engine?"
ANSWER = "engine"
"""Is in whatever answer is drawn."""
Open = Callable[..., Page]
WRITTEN = """() => new Promise((done) => {
  const opened = indexedDB.open("llm-node", 1);
  opened.onsuccess = () => {
    const after = opened.result.transaction("chats", "readwrite");
    after.oncomplete = () => { opened.result.close(); done(null); };
    after.objectStore("chats").count();
  };
})"""
"""Comes back when all that the page has kept by now is on the disk: transactions have their turns."""


def ask(page: Page, text: str, model: str = "llm-node-demo") -> None:
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("Message", exact=True).last.fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> list[str]:
    return page.locator(".entry.assistant .prose").all_inner_texts()


def test_a_question_and_its_answer(open_page: Open) -> None:
    page = open_page()
    ask(page, QUESTION)
    expect(page.locator(".entry.assistant")).to_contain_text("tokens/s")
    expect(page.locator(".entry.assistant .prose")).to_contain_text(ANSWER)
    expect(page.locator(".entry.assistant .tools")).to_contain_text(re.compile(r"context \d+ of 1,024$"))
    expect(page.get_by_role("status").last).to_have_text("Answer complete.")
    expect(page.locator("option[value=llm-node-demo]")).to_have_text("llm-node-demo · loaded")
    expect(page.locator(".chats li")).to_have_count(1)


def test_no_list_is_waited_for(open_page: Open, node: RunningNode) -> None:
    """Whoever knows what to ask need not know the models: the one that is loaded answers."""
    page, held = open_page("/#/settings"), []
    node.post("/api/models/unload", {"model_id": "endless"})
    assert node.post("/api/models/load", {"model_id": "llm-node-demo"}).status == 200
    page.route("**/api/models", lambda route: held.append(route))
    page.get_by_role("link", name="Chat").click()
    page.get_by_label("Message", exact=True).last.fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".entry.assistant .prose")).to_contain_text(ANSWER)
    expect(page.locator(".entry.assistant h3")).to_have_text("llm-node-demo")
    expect(page.locator(".entry.assistant .tools")).to_contain_text("of 1,024")
    assert held, "the list was asked for, and has not come"
    for route in held:
        route.continue_()
    expect(page.get_by_label("Model", exact=True)).to_have_value("llm-node-demo")
    expect(page.locator("option[value=llm-node-demo]")).to_have_text("llm-node-demo · loaded")


def test_nothing_is_asked_of_a_model_unasked_and_nothing_is_kept_in_cookies(open_page: Open) -> None:
    """No titles, no suggestions: one question is one request."""
    page, sent = open_page(), []
    page.on("request", lambda request: sent.append(request) if request.method != "GET" else None)
    ask(page, QUESTION)
    expect(page.locator(".entry.assistant .tools")).to_contain_text("of 1,024")
    page.reload()
    expect(page.locator(".chats .title")).to_have_text(QUESTION)
    assert [request.url.partition("/v1")[2] for request in sent] == ["/chat/completions"]
    assert page.context.cookies() == [] and page.evaluate("document.cookie") == ""


def test_who_reads_above_is_left_there(open_page: Open) -> None:
    """While the answer grows below."""
    page = open_page(height=400)
    ask(page, "Go on", "endless")
    messages = page.locator(".messages")
    grown = "height => document.querySelector('.messages').scrollHeight > height"
    page.wait_for_function(grown, arg=messages.evaluate("element => element.clientHeight + 400"))
    messages.evaluate("element => element.scrollTo(0, 0)")
    page.wait_for_function(grown, arg=messages.evaluate("element => element.scrollHeight + 100"))
    assert messages.evaluate("element => element.scrollTop") == 0
    page.keyboard.press("Escape")
    page.locator(".to-end").click()
    page.wait_for_function("() => document.querySelector('.messages').scrollTop > 0")


def test_below_a_path_of_a_proxy(open_page: Open, node: RunningNode) -> None:
    """`/llm/` is no path of the node: whatever the page asks for must come through there."""
    page, outside = open_page(), []

    def pass_on(route: Route) -> None:
        if "/llm/" not in route.request.url:
            outside.append(route.request.url)
        route.fulfill(response=route.fetch(url=route.request.url.replace("/llm/", "/", 1)))

    page.route("**/*", pass_on)
    page.goto(f"{node.url}/llm/")
    ask(page, QUESTION)
    expect(page.get_by_role("status").last).to_have_text("Answer complete.")
    page.get_by_role("link", name="Models").click()
    expect(page.get_by_text("llm-node-demo").first).to_be_visible()
    page.unroute_all(behavior="ignoreErrors")
    assert outside == []


def test_an_answer_is_stopped_and_gone_on_with(open_page: Open) -> None:
    page = open_page()
    ask(page, "Go on", "endless")
    expect(page.locator(".entry.assistant .prose")).to_contain_text("tick tick")
    expect(page.locator(".entry.assistant > .quiet")).to_have_text(re.compile(r"… \d+\.\d tokens/s"))
    page.keyboard.press("Escape")
    expect(page.locator(".entry.assistant .tools")).to_contain_text("stopped")
    (stopped,) = answers(page)
    page.locator(".tools").get_by_role("button", name="Go on").click()
    page.wait_for_function(
        "before => document.querySelector('.entry.assistant .prose').innerText.length > before",
        arg=len(stopped),
    )
    # Not the button: it is gone where the context is full by then.
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    (gone_on,) = answers(page)
    assert gone_on.startswith(stopped.strip()), "what was there stays"


def test_an_edit_and_another_answer_are_branches_and_nothing_is_lost(open_page: Open) -> None:
    page = open_page()
    ask(page, QUESTION)
    expect(page.locator(".entry.assistant")).to_contain_text("tokens/s")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".entry.assistant .tools")).to_contain_text("2/2")
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit").fill("What is a plugin?")
    page.get_by_role("button", name="Save and send").click()
    expect(page.locator(".entry.user")).to_contain_text("2/2")
    expect(page.locator(".entry.assistant")).to_contain_text("tokens/s")
    page.locator(".entry.user").get_by_role("button", name="Previous version").click()
    expect(page.locator(".entry.user .pre")).to_have_text(QUESTION)
    expect(page.locator(".entry.assistant .tools")).to_contain_text("2/2")
    page.evaluate(WRITTEN)
    page.reload()
    page.locator(".chats .title").click()
    expect(page.locator(".entry.user .pre")).to_have_text(QUESTION)
    expect(page.locator(".entry.user")).to_contain_text("1/2")


def test_a_reload_in_the_midst_of_an_answer_keeps_what_is_there(open_page: Open) -> None:
    page = open_page()
    ask(page, "Go on", "endless")
    expect(page.locator(".entry.assistant .prose")).to_contain_text("tick tick")
    page.wait_for_timeout(1200)  # it is kept twice a second
    page.reload()
    page.locator(".chats .title").click()
    expect(page.locator(".entry.assistant .prose")).to_contain_text("tick")
    page.keyboard.press("Escape")


def test_enter_does_not_send_while_an_input_method_composes(open_page: Open) -> None:
    page = open_page()
    area = page.get_by_label("Message", exact=True).last
    area.fill("にほんご")
    for event in ({"isComposing": True}, {"keyCode": 229}):
        area.dispatch_event("keydown", {"key": "Enter", "bubbles": True, **event})
    # Some send it once more when the word is confirmed.
    area.dispatch_event("compositionend", {"data": "にほんご", "bubbles": True})
    area.dispatch_event("keydown", {"key": "Enter", "keyCode": 229, "bubbles": True})
    expect(area).to_have_value("にほんご")
    expect(page.locator(".entry")).to_have_count(0)
    area.press("Shift+Enter")
    expect(area).to_have_value("にほんご\n")


def test_a_chat_that_was_deleted_comes_back(open_page: Open) -> None:
    page = open_page()
    ask(page, QUESTION)
    expect(page.locator(".entry.assistant")).to_contain_text("tokens/s")
    page.get_by_role("button", name=f"Delete chat: {QUESTION}").click()
    expect(page.locator(".chats li")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".entry.assistant .prose")).to_contain_text(ANSWER)


def test_a_chat_leaves_as_a_file_with_all_branches_and_comes_back(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    ask(page, QUESTION)
    expect(page.locator(".entry.assistant")).to_contain_text("tokens/s")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".entry.assistant .tools")).to_contain_text("2/2")
    page.get_by_text("Export, Import").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export", exact=True).click()
    file = tmp_path / "chat.json"
    download.value.save_as(file)
    assert len(json.loads(file.read_text())["branches"]["messages"]) == 3
    loaded = Conversation("x")
    loaded.load(Saved.read(file))  # as `/load` of `llm-node run` does
    assert [message["role"] for message in loaded.messages] == ["user", "assistant"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as Markdown").click()
    assert f"## You\n\n{QUESTION}\n" in Path(download.value.path()).read_text()

    fresh = open_page()
    fresh.get_by_text("Export, Import").click()
    fresh.get_by_label("Import").set_input_files(file)
    expect(fresh.locator(".entry.assistant .tools")).to_contain_text("2/2")
    fresh.get_by_label("Import").set_input_files({"name": "x.json", "mimeType": "", "buffer": b"{}"})
    expect(fresh.get_by_role("alert")).to_have_text("This file holds no chat of llm-node.")


def test_a_text_file_goes_along(open_page: Open) -> None:
    page = open_page()
    chooser = page.get_by_label("Add text file").last
    chooser.set_input_files({"name": "a.md", "mimeType": "text/plain", "buffer": b"one\n```\ntwo"})
    expect(page.get_by_label("Message", exact=True).last).to_have_value("a.md:\n````\none\n```\ntwo\n````\n")
    chooser.set_input_files({"name": "b.bin", "mimeType": "", "buffer": b"\0"})
    expect(page.get_by_role("alert")).to_contain_text("b.bin is too large or no text")


def test_models_are_loaded_kept_and_unloaded(open_page: Open, node: RunningNode) -> None:
    node.post("/api/models/unload", {"model_id": "llm-node-demo"})
    page = open_page("/#/models")
    row = page.locator(".cards > li").filter(has_text="llm-node-demo").first
    row.get_by_role("button", name="Load").focus()
    expect(row.get_by_role("status")).to_have_text(re.compile(r"Fits: [\d.]+ MiB \(host\)"))
    row.get_by_role("button", name="Load").click()
    expect(row).to_contain_text("loaded")
    expect(page.locator("table").last).to_contain_text("llm-node-demo")
    row.get_by_role("button", name="Keep loaded").click()
    expect(row).to_contain_text("loaded, kept loaded")
    (worker,) = [it for it in node.get("/api/system").json()["workers"] if it["model_id"] == "llm-node-demo"]
    assert worker["pinned"]
    row.get_by_role("button", name="Let it go when others need room").click()
    expect(row.get_by_role("button", name="Keep loaded")).to_be_visible()
    row.get_by_role("button", name="Unload").click()
    expect(row).to_contain_text("available")


def test_each_of_several_workers_is_shown(open_page: Open, node: RunningNode) -> None:
    node.post("/api/models/load", {"model_id": "llm-node-demo"})
    page = open_page("/")

    def with_workers(route: Route) -> None:
        """As of a model on two GPUs, one of which is still loading."""
        answer = route.fetch()
        rows = answer.json()
        (row,) = (each for each in rows["models"] if each["model_id"] == "llm-node-demo")
        one = {
            "pid": 1,
            "requests": 2,
            "devices": ["CUDA0"],
            "memory": [],
            "draining": False,
            "progress": 1.0,
        }
        other = {**one, "pid": None, "requests": 0, "devices": [], "progress": 0.25}
        row["workers"] = [{"status": "loaded", **one}, {"status": "loading", **other}]
        row["workers"].append({"status": "loaded", **one, "pid": 2, "draining": True})
        route.fulfill(response=answer, json=rows)

    page.route("**/api/models", with_workers)
    page.get_by_role("link", name="Models").click()
    row = page.locator(".cards > li").filter(has_text="llm-node-demo").first
    workers = row.locator("ol > li")
    expect(workers).to_have_text(
        [
            "loaded · CUDA0 · Requests: 2",
            "loading 25 % · Requests: 0",
            "ends what it has · CUDA0 · Requests: 2",
        ]
    )
    page.unroute("**/api/models")


def test_what_the_node_is_doing_is_drawn_and_said(open_page: Open, node: RunningNode) -> None:
    page = open_page("/#/live")
    speed = page.get_by_role("region", name="Tokens per second")
    chat = {"model": "llm-node-demo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}
    assert node.post("/v1/chat/completions", chat).status == 200
    expect(speed.locator("dd").first).to_have_text(re.compile(r"[\d.]+/s"))
    first = page.get_by_role("region", name="Time to the first token")
    # Of requests that end between two looks; so they go on until one did.
    deadline = time.monotonic() + 60
    while first.locator("dd").first.inner_text() == "-":
        assert time.monotonic() < deadline
        assert node.post("/v1/chat/completions", chat).status == 200
    expect(first.locator("dd").first).to_have_text(re.compile(r"[\d.]+ m?s"))
    held = page.get_by_role("region", name="Memory").locator("dd").first
    expect(held).to_have_text(re.compile(r"[\d.]+ [MG]iB"))
    expect(page.locator(".chart canvas")).to_have_count(6)
    page.keyboard.press("1")
    page.keyboard.press("4")
    expect(speed.locator("dd").first).to_have_text(re.compile(r"[\d.]+/s"))  # it went on


def test_figures_have_the_names_that_the_node_gives_them(node: RunningNode) -> None:
    chat = {"model": "llm-node-demo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2}
    node.post("/v1/chat/completions", chat)
    names = re.findall(r'^  \w+: "([\w:]+)",$', (WEB / "metrics.js").read_text(), re.MULTILINE)
    assert len(names) == 8
    missing = set(names)
    deadline = time.monotonic() + 30
    while missing:  # how busy it is a model says a moment after it was loaded
        assert time.monotonic() < deadline, missing
        lines = node.get("/metrics").body.decode().splitlines()
        missing -= {line.partition("{")[0] for line in lines}


def test_what_went_wrong_is_told(open_page: Open, crashed: RunningNode) -> None:
    page = open_page("/#/incidents")
    first = page.locator(".cards > li").first
    expect(first.locator("h3")).to_have_text("Crashed · endless")
    expect(first).to_contain_text("Signal9")
    (told, *_) = crashed.get("/api/incidents").json()["incidents"]
    expect(first).to_contain_text(told["message"])
    first.get_by_text("Last lines of its log").click()
    lines = first.get_by_role("region", name="Last lines of its log")
    expect(lines).to_be_visible()
    assert told["log"] and lines.inner_text().splitlines()[-1] == told["log"][-1]


def test_the_page_has_words_for_all_that_goes_wrong(repository: Path) -> None:
    known = re.findall(r"^  (\w+): \"\w+\",$", (WEB / "incidents.js").read_text(), re.MULTILINE)
    (listed,) = re.findall(r"`kind` is (.*?); `at`", (repository / "docs/http.md").read_text())
    assert set(known) == set(re.findall(r"`(\w+)`", listed))


def test_a_pull_is_seen_through_a_reload(open_page: Open, hub: StandInHub) -> None:
    hub.behaviour.pause = threading.Event()
    page = open_page("/#/models")
    page.get_by_label("Repository of the hub").fill("org/Tiny-GGUF")
    page.get_by_role("button", name="What would be fetched?").click()
    expect(page.get_by_text("org/Tiny-GGUF: Q4_0, 2.6 MiB.")).to_be_visible()
    page.get_by_role("button", name="Fetch Q4_0").click()
    pull = page.locator(".cards > li").filter(has_text="org/Tiny-GGUF: Q4_0, 2.6 MiB.")
    expect(pull).to_contain_text("fetching")
    page.reload()
    expect(pull).to_contain_text("fetching")
    shown = pull.get_by_role("progressbar").get_attribute("value")
    assert shown is not None and int(shown) > 0
    hub.behaviour.pause.set()
    expect(pull).to_contain_text("ready")
    row = page.locator(".cards > li").filter(has_text="org/Tiny-GGUF:Q4_0").first
    row.get_by_role("button", name="Delete org/Tiny-GGUF:Q4_0").click()
    row.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".cards h3").filter(has_text="Tiny")).to_have_count(0)


def test_a_pull_is_stopped_gone_on_with_and_discarded_in_the_page(
    open_page: Open, hub: StandInHub, node: RunningNode
) -> None:
    hub.behaviour.pause = threading.Event()
    page = open_page("/#/models")
    page.get_by_label("Repository of the hub").fill("org/Tiny-GGUF:Q4_0")
    page.get_by_role("button", name="Fetch", exact=True).click()
    pull = page.locator(".cards > li").filter(has=page.get_by_role("heading", name="org/Tiny-GGUF:Q4_0")).last
    expect(pull).to_contain_text("fetching")
    pull.get_by_role("button", name="Stop").click()
    expect(pull).to_contain_text("stopped")
    stopped = page.locator(".cards > li").filter(has_text="org/Tiny-GGUF:Q4_0").filter(has_text="stopped")
    expect(stopped).to_have_count(1)
    staged = node.log.parent / ".llm-node/models/.pulling/org/Tiny-GGUF"
    assert staged.is_dir()
    hub.behaviour.pause.set()
    hub.behaviour.pause = threading.Event()
    pull.get_by_role("button", name="Go on").click()
    expect(pull).to_contain_text("fetching")
    pull.get_by_role("button", name="Stop").click()
    expect(pull.get_by_role("button", name="Go on")).to_be_visible()
    with page.expect_response("**/api/models/pulls/*"):
        pull.get_by_role("button", name="Delete what is there").click()
    hub.behaviour.pause.set()
    assert not staged.exists()


def test_what_holds_the_memory_is_a_bar_and_a_table(open_page: Open, node: RunningNode) -> None:
    node.post("/api/models/load", {"model_id": "llm-node-demo"})
    page = open_page("/#/models")
    rows = page.locator("section, main").locator("table").last.locator("tbody tr")
    for part in ("weights", "cache"):
        expect(rows.filter(has_text=f"llm-node-demo · {part}")).to_have_count(1)
    shown = dict(row.inner_text().split("\t") for row in rows.all())
    assert {"other programs", "free"} < set(shown)
    device = node.get("/api/system").json()["devices"][0]
    total = sum(_mebibytes(size) for size in shown.values())
    assert total == pytest.approx(device["total_bytes"] / 2**20, rel=0.02)
    expect(page.locator("svg.memory rect")).to_have_count(len(shown))


def _mebibytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"MiB": 1, "GiB": 1024}[unit]


def test_what_cannot_be_pulled_is_said(open_page: Open) -> None:
    page = open_page("/#/models")
    page.get_by_label("Repository of the hub").fill("qwen3")
    page.get_by_label("Repository of the hub").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("neither a repository of the hub")
    page.get_by_label("Repository of the hub").fill("tiny")
    page.get_by_role("button", name="Search the hub").click()
    found = page.locator(".cards > li").filter(
        has=page.get_by_role("heading", name="org/Tiny-GGUF", exact=True)
    )
    expect(found).to_contain_text("7 downloads · ~ fits, by its size")


def test_by_keyboard_alone(open_page: Open, node: RunningNode) -> None:
    node.post("/api/models/unload", {"model_id": "endless"})  # a chat begins with the model that is loaded
    page = open_page()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("2")
    expect(page.get_by_role("heading", name="Models", level=2)).to_be_visible()
    page.keyboard.press("n")
    expect(page.get_by_role("heading", name="Chat", level=2, exact=True)).to_be_visible()
    area = page.get_by_label("Message", exact=True).last
    tab_to(page, area)
    page.keyboard.type(QUESTION + " 12n?")
    page.keyboard.press("Enter")
    expect(page.locator(".entry.user .pre")).to_have_text(QUESTION + " 12n?")
    expect(page.locator(".entry.assistant")).to_contain_text("tokens/s")


def test_models_by_keyboard_alone(open_page: Open, node: RunningNode) -> None:
    """Loaded, unloaded, and one fetched by its name."""
    node.post("/api/models/unload", {"model_id": "llm-node-demo"})
    page = open_page()
    page.keyboard.press("2")

    def press(name: str) -> None:
        button = page.get_by_role("button", name=name, exact=True)
        expect(button).to_be_visible()
        tab_to(page, button)
        page.keyboard.press("Enter")

    press("Load llm-node-demo")
    press("Unload llm-node-demo")
    expect(page.get_by_role("button", name="Load llm-node-demo", exact=True)).to_be_visible()
    tab_to(page, page.get_by_label("Repository of the hub"))
    page.keyboard.type("org/Tiny-GGUF:Q4_0")
    page.keyboard.press("Enter")
    press("Delete org/Tiny-GGUF:Q4_0")
    press("Delete")
    expect(page.get_by_role("button", name="Delete org/Tiny-GGUF:Q4_0", exact=True)).to_have_count(0)


def tab_to(page: Page, element: Locator) -> None:
    """By as many presses as it takes to come around once."""
    for _ in range(60):
        if element.evaluate("it => it === document.activeElement"):
            return
        page.keyboard.press("Tab")
    expect(element).to_be_focused()


def test_without_an_engine_the_page_says_what_to_type(
    browser: Browser, node: RunningNode, tmp_path: Path
) -> None:
    """`node` is not asked: it has the test skipped where the page's libraries are missing."""
    (tmp_path / "engines").mkdir()
    arguments = [
        "--engines-dir",
        str(tmp_path / "engines"),
        "--engine-packages",
        "no",
        "--gpu-backend",
        "cpu",
    ]
    with running_node(tmp_path, arguments) as bare:
        context = browser.new_context(locale="en-US", permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.goto(f"{bare.url}/#/engines")
        expect(page.locator("main code")).to_have_text("llm-node engine install")
        page.get_by_role("button", name="Copy").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("() => navigator.clipboard.readText()") == "llm-node engine install"
        context.close()


def test_theme_and_language_are_kept(open_page: Open) -> None:
    page = open_page("/#/settings")
    page.get_by_label("Theme").select_option("dark")
    page.get_by_label("Language").select_option("ja")
    page.reload()
    expect(page.get_by_role("heading", name="設定")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.locator("html")).to_have_attribute("lang", "ja")


def test_a_node_that_is_gone_is_said(open_page: Open, node: RunningNode) -> None:
    page = open_page()
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, QUESTION)
    expect(page.get_by_role("alert")).to_have_text("The node cannot be reached.")
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".entry.assistant .prose")).to_contain_text(ANSWER)


# ---- what is served --------------------------------------------------------------------------------


def get(url: str, accept: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request) as reply:
        return reply.status, dict(reply.headers), reply.read()


def test_browsers_get_the_page_and_others_what_ollama_says(node: RunningNode) -> None:
    _, headers, body = get(node.url, "text/html,*/*;q=0.8")
    assert b"<!doctype html>" in body and headers["Vary"] == "Accept"
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "trusted-types dompurify" in policy
    for accept in ("*/*", "application/json"):
        assert get(node.url, accept)[2] == b"Ollama is running"


def test_where_there_is_no_page_it_is_said(
    engines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody wants it, or the node was built without."""
    arguments = ["--web", "no", "--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        assert get(node.url, "text/html")[2] == b"Ollama is running"
    monkeypatch.setattr(page_routes, "FOLDER", tmp_path)
    page_routes._page.cache_clear()
    try:
        without = page_routes._index()
    finally:
        page_routes._page.cache_clear()
    assert without.text is not None and without.text.startswith("This node was built without its web page.")


def test_the_first_view_is_small(node: RunningNode) -> None:
    page = get(node.url, "text/html")[2].decode()
    (folder,) = set(re.findall(r"web/[0-9a-f]+", page))
    lazy = {"vendor/highlight.js", "vendor/math.js", "vendor/chart.js", "vendor/chart.css"}
    names = [
        path.relative_to(WEB).as_posix() for path in WEB.rglob("*") if path.suffix in (".js", ".css", ".svg")
    ]
    first = [name for name in names if name not in lazy]
    sizes = {name: len(gzip.compress(get(f"{node.url}/{folder}/{name}", "*/*")[2])) for name in names}
    assert len(first) <= 25
    assert sum(sizes[name] for name in first) <= 90_000
    assert sum(sizes.values()) <= 250_000
    own = sum((WEB / name).stat().st_size for name in names if not name.startswith("vendor/"))
    assert own <= 150_000
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{node.url}/{folder}/../../settings.py", "*/*")
    with caught.value as error:
        assert error.code == 404


def test_all_languages_say_the_same() -> None:
    words = (WEB / "words.js").read_text()
    tables = re.findall(r"const (\w+) = \{\n(.*?)\n\};", words, re.DOTALL)
    keys = {name: re.findall(r"^  (\w+):", table, re.MULTILINE) for name, table in tables}
    assert keys["en"] == keys["ja"] and len(keys) == 2
    used = {key for path in WEB.glob("*.js") for key in re.findall(r"say\(\"(\w+)\"\)", path.read_text())}
    assert used <= set(keys["en"])


def test_the_page_uses_routes_that_there_are(node: RunningNode) -> None:
    documented = (WEB.parents[4] / "docs/http.md").read_text() if (WEB.parents[4] / "docs").is_dir() else None
    text = "".join(path.read_text() for path in WEB.glob("*.js"))
    used = set(re.findall(r"[\"`](/(?:api|v1)/[a-z/]+)", text))
    assert used >= {"/v1/chat/completions", "/api/models", "/api/models/pull"}
    for path in used:
        assert node.request("OPTIONS", path.rstrip("/")).status == 405, f"{path}: no such route"
        assert documented is None or path.rstrip("/") in documented
