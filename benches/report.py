"""What the rows found: a table for the screen, one for a page, JSON, and a chart."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benches.outcome import RATIO, Goal, Measured, Outcome, Row

HEADINGS = ("row", "must", "aim", "measured", "CPU per token", "met")


def number(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}".strip()


def measured(figure: Measured) -> str:
    text = with_unit(number(figure.value), figure.unit)
    return text if figure.low == figure.high else f"{text} [{number(figure.low)}, {number(figure.high)}]"


def goals(wanted: Sequence[Goal], figures: dict[str, Measured] | None, own: str | None) -> str:
    """Limits in words; the name of a figure is left out where it is the row's own."""
    words = []
    for goal in wanted:
        unit = figures[goal.figure].unit if figures and goal.figure in figures else ""
        if not figures and goal.figure.startswith("ratio"):
            unit = RATIO
        name = "" if goal.figure in (own, "ratio") else goal.figure
        limit = with_unit(f"{goal.limit:g}", unit)
        words.append(" ".join(filter(None, [name, "≥" if goal.at_least else "≤", limit])))
    return ", ".join(words)


def verdict(row: Row, outcome: Outcome) -> str:
    if not all(goal.met(outcome.figures) for goal in row.must):
        return "no"
    return "aim" if all(goal.met(outcome.figures) for goal in row.aim) else "yes"


def result(row: Row, outcome: Outcome | str, provenance: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON. Where it was not measured, `outcome` is the reason. `provenance` is what it was measured
    with: "machine", "versions" and "options", of which null is what nobody wrote down.
    """
    record: dict[str, Any] = {
        "key": row.key,
        "row": row.title,
        "measured_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **provenance,
    }
    if isinstance(outcome, str):
        return {
            **record,
            "must": goals(row.must, None, row.must[0].figure),
            "aim": goals(row.aim, None, row.must[0].figure),
            "text": outcome.splitlines()[0],
            "reason": outcome,
            "met": "-",
        }
    own = next(iter(outcome.figures))
    named = dict.fromkeys([own, *(goal.figure for goal in (*row.must, *row.aim))])
    text = ", ".join(
        measured(outcome.figures[name]) if name == own else f"{name} {measured(outcome.figures[name])}"
        for name in named
    )
    return {
        **record,
        "must": goals(row.must, outcome.figures, own),
        "aim": goals(row.aim, outcome.figures, own),
        "text": text,
        "met": verdict(row, outcome),
        "figures": {name: vars(figure) for name, figure in outcome.figures.items()},
        "goals": {
            "must": [vars(goal) for goal in row.must],
            "aim": [vars(goal) for goal in row.aim],
        },
        "notes": outcome.notes,
        "facts": outcome.facts,
    }


def cpu_per_token(record: dict[str, Any]) -> str:
    """Processor time of all of the node's processes, divided by llama-server's; empty if not measured."""
    figures = record.get("figures", {})
    if "llm-node CPU" not in figures or "llama-server CPU" not in figures:
        return ""
    ratio = figures["llm-node CPU"]["value"] / figures["llama-server CPU"]["value"]
    return with_unit(number(ratio), RATIO)


def lines(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (one["row"], one["must"], one["aim"], one["text"], cpu_per_token(one), one["met"]) for one in results
    ]


def table(results: Sequence[dict[str, Any]]) -> str:
    """For a terminal."""
    rows = [HEADINGS, *lines(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """For a page, with what the rows were measured with."""
    return f"{markdown_table(results)}\n{conditions(results)}\n"


def markdown_table(results: Sequence[dict[str, Any]]) -> str:

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [line(HEADINGS), "|" + "---|" * len(HEADINGS), *map(line, lines(results))]
    return "".join(f"{row}\n" for row in rows)


def place(machine: dict[str, Any]) -> str:
    """A machine, as far as results of another one cannot stand beside its own."""
    return f"{machine['processor']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}"


def conditions(results: Sequence[dict[str, Any]]) -> str:
    """What the rows were measured with, and where that differs, all of it."""
    found = [one for one in results if "figures" in one] or results

    def options(name: str) -> str:
        low, high = (f"{edge(one['options'][name] for one in found):g}" for edge in (min, max))
        return low if low == high else f"{low} to {high}"

    def versions(name: str) -> str:
        return ", ".join(dict.fromkeys(one["versions"][name] or "unknown" for one in found))

    days = sorted({one["measured_at"][:10] for one in found})
    return (
        f"{', '.join(days)}, {place(found[0]['machine'])}; llm-node {versions('llm-node')}, "
        f"commit {versions('commit')}; both servers on the libllama of {versions('libllama')}, "
        f"llama-server of {versions('llama-server')}; medians over {options('pairs')} pairs of blocks of "
        f"about {options('block_seconds')} s, 95 % intervals in brackets."
    )


def detail(record: dict[str, Any]) -> str:
    """Everything that one row found."""
    figures = {name: Measured(**figure) for name, figure in record.get("figures", {}).items()}
    notes = [*record.get("reason", "").splitlines()[1:], *record.get("notes", [])]
    return listed(Outcome(figures, notes))


def listed(outcome: Outcome) -> str:
    """Its figures and notes, a line each."""
    figures = [f"{name}: {measured(figure)}" for name, figure in outcome.figures.items()]
    return "".join(f"    {line}\n" for line in [*figures, *outcome.notes])


## the chart ########################################################################################

WIDTH, LEFT, RIGHT, ROW, TOP = 960, 430, 70, 26, 64


def chart(results: Sequence[dict[str, Any]]) -> str:
    """How many times better than llama-server, on a logarithmic axis: a bar for each row that is a ratio."""
    bars = []
    for record in results:
        figure = record.get("figures", {}).get("ratio")
        if figure is None or figure["low"] <= 0:  # a difference lost in noise has no place on this axis
            continue
        limits = {
            kind: next((g for g in record["goals"][kind] if g["figure"] == "ratio"), None)
            for kind in ("must", "aim")
        }
        larger = all(limit["at_least"] for limit in limits.values() if limit)
        power = 1 if larger else -1
        low, high = sorted((figure["low"] ** power, figure["high"] ** power))
        marks = {kind: limit["limit"] ** power for kind, limit in limits.items() if limit}
        bars.append((record["row"], figure["value"] ** power, low, high, marks, record["met"]))
    values = [value for bar in bars for value in (bar[1], bar[2], bar[3], *bar[4].values())] + [1.0]
    first, last = math.log(min(0.8, *values)), math.log(max(1.25, *values))

    def x(value: float) -> float:
        return LEFT + (math.log(value) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    height = TOP + ROW * len(bars) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="12" y="24" font-size="16" font-weight="600">llm-node against llama-server, '
        "on the same libllama: times better</text>",
        f'<text x="12" y="44" fill="#555" font-size="11">{escape(conditions(results))}</text>',
    ]
    for tick in (0.5, 1, 2, 3, 5, 8, 12, 20):
        if first <= math.log(tick) <= last:
            parts.append(
                f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 8}" y2="{height - 34}" '
                f'stroke="{"#666" if tick == 1 else "#ddd"}"/>'
                f'<text x="{x(tick):.1f}" y="{height - 18}" text-anchor="middle" fill="#555">'
                f"{tick:g}{RATIO}</text>"
            )
    for index, (title, value, low, high, marks, met) in enumerate(bars):
        middle = TOP + ROW * index + ROW / 2
        start, end = sorted((x(1), x(value)))
        colour = {"aim": "#1b7f4b", "yes": "#4fae7b"}.get(met, "#c9832b")
        parts.append(f'<text x="{LEFT - 12}" y="{middle + 4:.1f}" text-anchor="end">{escape(title)}</text>')
        parts.append(
            f'<rect x="{start:.1f}" y="{middle - 7:.1f}" width="{end - start:.1f}" height="14" '
            f'fill="{colour}"/>'
        )
        parts.append(
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke="#000"/>'
        )
        for kind, mark in marks.items():
            dashes = ' stroke-dasharray="2 2"' if kind == "aim" else ""
            parts.append(
                f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{middle - 11:.1f}" y2="{middle + 11:.1f}" '
                f'stroke="#a00" stroke-width="1.5"{dashes}/>'
            )
        parts.append(f'<text x="{max(x(high), x(1)) + 8:.1f}" y="{middle + 4:.1f}">{value:.2f}</text>')
    parts.append(
        f'<text x="{WIDTH - 12}" y="{height - 4}" text-anchor="end" fill="#a00" font-size="11">'
        "red: must; dashed: aim; black: 95 % interval</text></svg>"
    )
    return "\n".join(parts) + "\n"


## files ############################################################################################


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows that `write` left there."""
    rows: list[dict[str, Any]] = json.loads((folder / "bench.json").read_text(encoding="utf-8"))["rows"]
    return rows


def write(folder: Path, results: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps({"rows": results}, indent=1, ensure_ascii=False) + "\n")
    (folder / "bench.md").write_text(markdown(results))
    (folder / "bench.svg").write_text(chart(results))
