"""The page of the checks: each has its anchor, and every item of the contract's list says who asks it."""

from __future__ import annotations

from pathlib import Path

from llm_node import conformance


def test_every_item_stands_on_the_page_with_checks_that_there_are(repository: Path) -> None:
    """That each item has checks, and each check an item, is a test of the crate."""
    page = (repository / "docs/conformance.md").read_text()
    there = {check["name"] for check in conformance.checks()}
    items = conformance.items()
    assert {name for item in items for name in item["checks"]} == there
    for item in items:
        assert bool(item["checks"]) != bool(item["other"]), item
        (row,) = [line for line in page.splitlines() if f"| {item['asks']} |" in line]
        assert item["other"] is None or item["other"] in row


def test_the_page_has_every_check_with_its_anchor(repository: Path) -> None:
    page = (repository / "docs/conformance.md").read_text()
    for check in conformance.checks():
        assert f'<a id="{check["name"].replace(".", "-")}"></a>' in page
        assert check["line"] > 0, check["name"]


def test_the_example_on_the_page_for_authors_is_what_is_printed(repository: Path) -> None:
    page = (repository / "docs/writing-an-engine.md").read_text()
    (check,) = (check for check in conformance.checks() if check["name"] == "batch.together")
    assert f'engine_api.h, line {check["line"]}: "{check["contract"]}"' in page
