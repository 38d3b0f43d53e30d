"""What the pages say is there: links, anchors, commands, flags, routes; and they are built into a site."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from llm_node.cli.command import command
from llm_node.node import Node
from llm_node.server.app import make_app
from llm_node.settings import ALL, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("*/README.md"),
        ROOT / "deploy/haproxy/README.md",
        ROOT / "deploy/prometheus/README.md",
        ROOT / "deploy/ray/README.md",
    ]
)
PRINTED = ("docs/errors.md", "docs/settings.md", "docs/conformance.md")
"""From tables, which have their own tests."""
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)")
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
MOST_WORDS = 30
HISTORY = re.compile(
    r"\b(used to be|previously|formerly|recently|until now|so far|in the past|nowadays|since version)\b"
)
"""What a page says holds for the version that it is of: what was before stands in the changelog."""


PRAISE = re.compile(
    r"\b(blazing\w*|lightning|power(?:ful|fully)|seamless\w*|effortless\w*|elegant\w*|robust\w*|amazing\w*|awesome|"
    r"incredibl\w+|beautiful\w*|cutting-edge|state-of-the-art|best-in-class|world-class|production-ready|"
    r"user-friendly|easy-to-use|simply|easily|revolutionary|magic\w*)\b",
    re.IGNORECASE,
)
"""Words that sell and say nothing."""

MEASURED = re.compile(
    r"\b(?:H[12]00|Xeon|EPYC|Emerald Rapids)\b|\d (?:µs|tokens/s|tokens (?:a|per) second)\b|"
    r"\d times (?:as|faster|slower)\b",
    re.IGNORECASE,
)
"""Marks of a figure that was measured. Others look like limits, and are left to readers."""
KNOWN = frozenset(
    "API CPU GB GCC GPU HTML HTTP HTTPS IP JSON KB LLM LM MB MIT NULL NVIDIA PDF RFC TLS UTF".split()
    + "SIGHUP SIGILL SIGINT SIGTERM GNU PEM".split()  # what whoever meets them knows
    + "GLM H200 K2 LFM2 M3 GB10 RWKV XXH3 FFFD CI".split()  # names
)
"""Words in capitals that need no explanation."""

UNTYPABLE = re.compile(r"…|\.{3}(?!\w)|[“”]|<[a-z]+>")
"""In a command: what stands for something else."""


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them, and those that are written out."""
    text = FENCED.sub("", text_of(page))
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", heading) for heading in headings)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(FENCED.sub("", text_of(page))):
        if "://" in target or target.startswith("mailto:"):
            continue
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), target
        assert not anchor or place.suffix != ".md" or anchor in anchors(place), f"{target}#{anchor}"


def test_the_site_is_built_of_them_without_a_warning(tmp_path: Path) -> None:
    """Sphinx minds links, anchors, and pages that no list leads to."""
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "-n",
        "--keep-going",
        "-c",
        str(ROOT / "docs"),
        "-b",
        "html",
    ]
    done = subprocess.run([*build, str(ROOT), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "docs/index.html").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert (tmp_path / f"docs/{page.stem}.html").is_file(), page
        assert page.stem == "index" or f'href="{page.stem}.html"' in index, page
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(https?:[^\"]+)", index)
    assert loaded == [], "a reader asks nobody else"


def commands(group: click.Group, name: str = "llm-node") -> Iterator[tuple[str, click.Command]]:
    """Every verb with its words before it."""
    context = click.Context(group)
    for word in group.list_commands(context):
        found = group.get_command(context, word)
        assert found is not None
        yield f"{name} {word}", found
        if isinstance(found, click.Group):
            yield from commands(found, f"{name} {word}")


def typed(text: str) -> Iterator[str]:
    """Commands that a page has its reader type."""
    for block in FENCED.finditer(text):
        for line in re.findall(r"^(?:\$ )?(llm-node .*)$", block[0], re.MULTILINE):
            yield line.partition("  #")[0]
    yield from (code for code in CODE.findall(text) if code.startswith("llm-node "))


def test_commands_and_their_flags_are_there() -> None:
    known = dict(commands(command))
    settings = {setting.flag for setting in ALL} | {"--help", "-h", "--version"}
    seen = set()
    for page in PAGES:
        for line in typed(text_of(page)):
            words = re.split(r"[\s=|<>]+", line)
            name = "llm-node"
            while len(words) > 1 and f"{name} {words[1]}" in known:
                name = f"{name} {words.pop(1)}"
            place = f"{page.relative_to(ROOT)}: {line}"
            if name == "llm-node" and re.fullmatch(r"[a-z]{2,}", words[1]):
                assert words[1] == "models", f"{place}: no such verb"  # its former name still works
            options = {} if name == "llm-node" else {o for p in known[name].params for o in p.opts}
            for flag in re.findall(r"(?<=\s)--?[a-z][a-z-]*", line):
                assert flag in options or flag in settings, f"{place}: {flag}"
            seen.add(name)
    assert len(seen) > 15, "it found them"


def test_routes_are_there() -> None:
    app = make_app(Node(Settings()), Settings())
    there = set()
    for route in app.router.routes():
        resource = route.resource
        if resource is not None:
            there.add(re.sub(r"\{[^}]*\}", "*", resource.canonical))
    found = 0
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for code in CODE.findall(text_of(page)):
            match = re.fullmatch(r"(?:GET|POST|DELETE|PUT|HEAD) (/[\w/{}.-]*)(?:\?.*)?", code)
            if match is None:
                continue
            found += 1
            path = re.sub(r"\{[^}]*\}", "*", match[1])
            assert path in there or path.startswith("/web/"), f"{page.name}: {code}"
    assert found > 30, "it found them"


def paragraphs(text: str) -> Iterator[str]:
    """Of prose: no code, no tables, no headings."""
    text = re.sub(r"<!--.*?-->", "", FENCED.sub("", text), flags=re.DOTALL)
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        stripped = line.strip()
        item = re.match(r"(?:[-*]|\d+\.)\s+(.*)", stripped)
        ends = not stripped or stripped.startswith(("|", "#", "!", "<")) or line.startswith("    ")
        if (ends or item) and lines:
            yield " ".join(lines)
            lines = []
        if not ends:
            lines.append(item[1] if item else stripped)


def sentences(paragraph: str) -> list[str]:
    plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "x", paragraph))
    return re.split(r"(?<=[.!?:])[\"')\]*_]*\s+", plain)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.relative_to(ROOT).as_posix() not in (*PRINTED, "CHANGELOG.md")],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_sentences_are_short(page: Path) -> None:
    long = [
        sentence
        for paragraph in paragraphs(text_of(page))
        for sentence in sentences(paragraph)
        if len(sentence.split()) > MOST_WORDS
    ]
    assert long == []


def test_pages_tell_no_history() -> None:
    pages = [page for page in PAGES if page.name not in ("CHANGELOG.md", "SECURITY.md", "benchmarks.md")]
    found = [
        f"{page.relative_to(ROOT)}: {paragraph}"
        for page in pages
        for paragraph in paragraphs(text_of(page))
        if HISTORY.search(paragraph)
    ]
    assert found == []
    assert HISTORY.search("It was previously called so"), "it would see some"


def found_in(pages: Iterable[Path], pattern: re.Pattern[str]) -> list[str]:
    """In prose, each with its page."""
    return [
        f"{page.relative_to(ROOT)}: {match[0]}"
        for page in pages
        for paragraph in paragraphs(text_of(page))
        for match in pattern.finditer(re.sub(r"`[^`]*`", "", paragraph))
    ]


def test_pages_praise_nothing() -> None:
    assert found_in(PAGES, PRAISE) == []
    assert PRAISE.search("It is blazingly fast"), "it would see some"


def test_measured_figures_stand_among_the_benchmarks() -> None:
    # The README has two lines on speed, with a link.
    may = {"docs/benchmarks.md", "CHANGELOG.md", "README.md", "benches/README.md", *PRINTED}
    pages = [page for page in PAGES if page.relative_to(ROOT).as_posix() not in may]
    assert found_in(pages, MEASURED) == []
    assert MEASURED.search("It takes 3.5 µs of CPU") and MEASURED.search("on an H200"), "it would see some"


def test_abbreviations_are_in_the_glossary() -> None:
    """For users and operators: pages for builders have words of their own."""
    builders = {"CHANGELOG", "CONTRIBUTING", "SECURITY", "architecture", "benchmarks", "quickstart.ja"}
    explained = set(re.findall(r"\b[A-Z][A-Z0-9]+\b", text_of(ROOT / "docs/glossary.md")))
    unknown = {
        f"{page.relative_to(ROOT)}: {word}"
        for page in PAGES
        if page.stem not in builders and page.relative_to(ROOT).as_posix() not in PRINTED
        for paragraph in paragraphs(text_of(page))
        for word in re.findall(
            r"(?<![\w*_-])[A-Z][A-Z0-9]+(?=s?\b)(?![*_-])",
            re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`|[A-Z_]+\.md", "", paragraph)),
        )
        if word not in explained | KNOWN
    }
    assert unknown == set()


def test_commands_can_be_pasted() -> None:
    """Prompts are for blocks that show what is printed as well. Nothing stands for what is to be typed."""
    found, seen = [], 0
    for page in PAGES:
        for block in FENCED.finditer(text_of(page)):
            opening, *lines = block[0].strip().splitlines()
            is_shown = opening.endswith("console")
            for line in lines if opening[3:] in ("", "sh", "bash", "console") else ():
                begins = re.match(r" *(\$ )?(llm-node|curl|pip|make|cargo|python|docker|systemctl) ", line)
                if begins is None or (is_shown and begins[1] is None):
                    continue
                seen += 1
                if (begins[1] and not is_shown) or UNTYPABLE.search(line.split("  #")[0]):
                    found.append(f"{page.relative_to(ROOT)}: {line}")
    assert found == []
    assert seen > 60, "it found them"
