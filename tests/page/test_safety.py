"""What a model writes is shown, and does nothing; and what the page may not be to its readers: unreadable."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from support.hub import StandInHub
from support.node import RunningNode

Open = Callable[..., Page]
AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
LONG_TASK_MS = 200
TRIES = 3

TAGS = (
    "<script>{0}</script>",
    "<img src=x onerror={0}>",
    "<svg onload={0}>",
    "<svg><script>{0}</script></svg>",
    "<iframe src='javascript:{0}'></iframe>",
    "<iframe srcdoc='<script>{0}</script>'></iframe>",
    "<body onload={0}>",
    "<a href='javascript:{0}'>click</a>",
    "[click](javascript:{0})",
    "[click](JaVaScRiPt:{0})",
    "[click](data:text/html,<script>{0}</script>)",
    "![picture](https://evil.example/{0}.png)",
    "![picture](javascript:{0})",
    "<math><mtext><table><mglyph><style><img src=x onerror={0}>",
    "<form action=https://evil.example><button>{0}</button></form>",
    "<input autofocus onfocus={0}>",
    "<details open ontoggle={0}>",
    "<video><source onerror={0}></video>",
    "<object data='javascript:{0}'></object>",
    "<embed src='javascript:{0}'>",
    "<link rel=stylesheet href=https://evil.example/{0}.css>",
    "<style>@import 'https://evil.example/{0}.css';</style>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/{0}'>",
    "<base href=https://evil.example/>",
    "<template><script>{0}</script></template>",
    "<noscript><p title='</noscript><img src=x onerror={0}>'>",
    "<xmp><img src=x onerror={0}></xmp>",
    "<p style='background:url(https://evil.example/{0})'>text</p>",
    "<div id=app name=app>{0}</div>",
    "```html\n<script>{0}</script>\n```",
    "`<img src=x onerror={0}>`",
    "$$\\href{{javascript:{0}}}{{x}}$$",
    "\\(\\url{{javascript:{0}}}\\)",
    "$$\\includegraphics{{https://evil.example/{0}.png}}$$",
    "| a |\n|---|\n| <img src=x onerror={0}> |",
    "- <script>{0}</script>\n- two",
    "> <svg onload={0}>",
    "# <img src=x onerror={0}>",
    "<https://evil.example/{0}>",
    "[a]: javascript:{0}\n[a]",
)
DEEDS = ("alert(1)", "fetch('https://evil.example')", "document.title='owned'", "location='https://evil.example'",
         "new Image().src='https://evil.example'")  # fmt: skip


ACTIVE = "script, iframe, img, svg, form, input, style, object, embed, link, base, meta"
ATTRIBUTES = "[onerror], [onload], [onclick], [style], [srcdoc]"
GROWING = """
async ([texts, forbidden]) => {
  const load = (name) => import(new URL(name, document.querySelector("script[type=module]").src).href);
  const [{ Flow }, { later }] = [await load("markdown.js"), await load("pieces.js")];
  const wrong = [];
  const look = (box, said) => {
    const links = [...box.querySelectorAll("a[href]")].map((link) => link.getAttribute("href"));
    const isText = box.querySelector(forbidden) === null && links.every((link) => /^https?:/.test(link));
    if (!isText) wrong.push(said);
  };
  let cuts = 0;
  const boxes = texts.map((text) => {
    const box = document.createElement("div");
    document.querySelector(".messages").append(box);
    const flow = new Flow(box);
    for (let end = 1; end <= text.length; end += 1) {
      flow.show(text.slice(0, end), end === text.length);
      look(box, text.slice(0, end));
      cuts += 1;
    }
    return box;
  });
  // Formulas are drawn once their library is there, each in its turn.
  await load("vendor/math.js");
  await new Promise(later);
  boxes.forEach((box, number) => look(box, texts[number]));
  return { cuts, wrong, seen: boxes.map((box) => box.textContent).join("\\n") };
}
"""
"""Shows each text as it grows by a letter, and looks at what is drawn of it each time."""


def payloads() -> list[str]:
    return [tag.format(deed) for tag in TAGS for deed in DEEDS]


def stream(text: str, cut: random.Random) -> str:
    """As the node streams it, cut at any place."""
    events, at = [], 0
    while at < len(text):
        step = cut.randrange(1, 12)
        events.append(
            {"choices": [{"index": 0, "delta": {"content": text[at : at + step]}, "finish_reason": None}]}
        )
        at += step
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def send(page: Page, text: str) -> None:
    """To the model that is chosen already, once the page knows one."""
    expect(page.get_by_label("Model", exact=True)).not_to_have_value("")
    area = page.get_by_label("Message", exact=True).last
    area.fill(text)
    area.press("Enter")


def answering(page: Page, texts: Sequence[str]) -> None:
    """The model says these, one after the other."""
    waiting, cut = iter(texts), random.Random(7)

    def fulfill(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body=stream(next(waiting), cut))

    page.route("**/v1/chat/completions", fulfill)


def test_two_hundred_hostile_answers_are_text(open_page: Open, node: RunningNode) -> None:
    """Watched by `open_page`: no violation of the policy, no foreign request, no dialog, no window."""
    page = open_page()
    texts = payloads()
    assert len(texts) == 200
    batches = ["\n\n".join(texts[begin : begin + 10]) for begin in range(0, 200, 10)]
    answering(page, [*texts[::8], *batches])
    for number in range(len(texts[::8]) + len(batches)):
        send(page, "?")
        expect(page.locator(".entry.assistant .tools")).to_have_count(number + 1)
    shown = page.locator(".messages")
    assert shown.locator(ACTIVE).count() == 0
    assert shown.locator(ATTRIBUTES).count() == 0
    hrefs = {link.get_attribute("href") for link in shown.locator("a[href]").all()}
    assert all(href is not None and href.startswith(("https://evil.example/", "http")) for href in hrefs)
    expect(page).to_have_title("llm-node")
    # What a model wrote as HTML is seen, not swallowed.
    expect(shown.get_by_text("<script>alert(1)</script>").first).to_be_attached()


def test_hostile_answers_cut_at_each_place_are_text(open_page: Open) -> None:
    """Watched by `open_page`, as above."""
    page = open_page()
    expect(page.locator(".messages")).to_be_attached()
    texts = payloads()
    found = page.evaluate(GROWING, [texts, f"{ACTIVE}, {ATTRIBUTES}"])
    assert found["cuts"] == sum(map(len, texts))
    assert found["wrong"] == []
    assert "<script>alert(1)</script>" in found["seen"]
    expect(page).to_have_title("llm-node")


def test_markdown_math_and_code_are_drawn(open_page: Open) -> None:
    page = open_page()
    table = "| a | b |\n|---|---|\n| 1 | 2 |"
    answering(page, [f"**bold** and `code`\n\n{table}\n\n```python\ndef f(): pass\n```\n\n$$x^2$$\n"])
    send(page, "?")
    prose = page.locator(".entry.assistant .prose")
    expect(prose.locator("strong")).to_have_text("bold")
    expect(prose.locator("td")).to_have_text(["1", "2"])
    expect(prose.locator("figure.code .hljs-keyword").first).to_have_text("def")
    expect(prose.locator("math msup")).to_have_count(1)
    assert "x^2" not in prose.inner_text(), "the formula stands there once"


def test_a_chat_of_200000_characters_stays_smooth(open_page: Open, tmp_path: Path) -> None:
    paragraph = "A line of **text** with `code`, [a link](https://example.com) and numbers 1, 2, 3. " * 6
    code = "```python\n" + "x = 1  # a line of code\n" * 20 + "```"
    whole = f"{paragraph}\n\n{code}\n\n- one\n- two\n\n"
    text = whole * (200_000 // len(whole) + 1)
    messages = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": text}]
    file = tmp_path / "long.json"
    chat = {"format": "llm-node-chat/1", "model": "llm-node-demo", "system": None, "parameters": {}}
    file.write_text(json.dumps({**chat, "messages": messages}))
    longest: list[float] = []
    # The clock also counts while other programs have the processor. What the page takes, it takes each time.
    while len(longest) < TRIES and min(longest, default=LONG_TASK_MS + 1) > LONG_TASK_MS:
        longest.append(longest_task(open_page(), file, text))
    assert min(longest) <= LONG_TASK_MS, longest


def longest_task(page: Page, file: Path, text: str) -> float:
    """Milliseconds, while a chat is brought in, looked through, and gone on with."""
    page.evaluate(
        "() => { window.long = []; new PerformanceObserver((list) => "
        "window.long.push(...list.getEntries().map((each) => each.duration))).observe({type: 'longtask'}); }"
    )
    page.get_by_text("Export, Import").click()
    page.get_by_label("Import").set_input_files(file)
    expect(page.locator(".prose > *").last).to_contain_text("two")
    for block in ("figure.code", "ul"):  # it is read in pieces, whose edges fall anywhere
        expect(page.locator(f".prose {block}")).to_have_count(text.count("```python"))
    page.locator(".messages").evaluate("element => element.scrollTo(0, element.scrollHeight)")
    answering(page, [text[:20_000]])
    send(page, "And more?")
    expect(page.locator(".entry.assistant .tools")).to_have_count(2)
    return float(max(page.evaluate("() => window.long"), default=0))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_no_barrier_in_any_view(open_page: Open, crashed: RunningNode, theme: str, width: int) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not there: `python tools/vendor_web.py` brings it")
    page = open_page(theme=theme, width=width)
    table = "| a |\n|---|\n| 1 |"
    answering(
        page, [f"# Title\n\n**b** `c`\n\n{table}\n\n```python\ndef f(): pass\n```\n\n[link](https://a.b)"]
    )
    send(page, "?")
    expect(page.locator(".entry.assistant .tools")).to_be_visible()
    for view in ("chat", "models", "engines", "live", "incidents", "log", "settings"):
        page.evaluate("view => { location.hash = `#/${view}`; }", view)
        expect(page.locator(f"main.{view}")).to_be_visible()
        if view == "live":
            expect(page.locator(".chart canvas")).to_have_count(6)
        if view in ("models", "engines", "incidents"):
            expect(page.locator(".cards li").first).to_be_visible()
        found = barriers(page)
        assert found == [], f"{view}, {theme}, {width} px"
        overflow = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{view} is {overflow} px wider than {width}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_barrier_while_a_model_is_looked_for_and_fetched(
    open_page: Open, hub: StandInHub, theme: str
) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core is not there: `python tools/vendor_web.py` brings it")
    hub.behaviour.pause = threading.Event()
    page = open_page("/#/models", theme=theme, width=320)
    page.get_by_label("Repository of the hub").fill("org/Tiny-GGUF")
    page.get_by_role("button", name="Search the hub").click()
    expect(page.get_by_role("heading", name="org/Tiny-GGUF", exact=True)).to_be_visible()
    page.get_by_role("button", name="What would be fetched?", exact=True).click()
    page.get_by_role("button", name="Fetch Q4_0").click()
    pull = page.locator(".cards > li").filter(has_text="fetching")
    expect(pull.get_by_role("progressbar")).to_be_visible()
    assert barriers(page) == []
    assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0
    page.get_by_role("button", name="Keys").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert barriers(page) == []
    page.keyboard.press("Escape")
    pull.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Delete what is there").click()
    expect(page.get_by_role("button", name="Delete what is there")).to_have_count(0)
    hub.behaviour.pause.set()


def barriers(page: Page) -> list[str]:
    page.evaluate(AXE.read_text())
    result = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    assert len(result["passes"]) > 10, "it looked"
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]} {each['nodes'][0]['failureSummary'][:300]}"
        for each in result["violations"]
    ]


def test_the_page_needs_no_cdn(open_page: Open, node: RunningNode) -> None:
    """With a network that leads nowhere but to the node: what is drawn late comes from there, too."""
    page = open_page()
    page.context.route(lambda url: not url.startswith(node.url), lambda route: route.abort())
    answering(page, ["```python\ndef f(): pass\n```\n\n$$x^2$$\n\n![picture](https://evil.example/a.png)"])
    send(page, "?")
    prose = page.locator(".entry.assistant .prose")
    expect(prose.locator("figure.code .hljs-keyword").first).to_have_text("def")
    expect(prose.locator("math msup")).to_have_count(1)
    expect(prose.locator("a[href='https://evil.example/a.png']")).to_have_count(1)
    assert prose.locator("img").count() == 0, "a picture is a link"
    loaded = page.evaluate("() => performance.getEntriesByType('resource').map((each) => each.name)")
    assert loaded and all(name.startswith(node.url) for name in loaded)
