"""Write what is printed from tables: three pages of docs/, and the table in docs/benchmarks.md.

`python tools/generate_docs.py` writes them, `--check` only says whether they are current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_node import conformance, errors, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benches.table import ROWS  # noqa: E402

from benches import report  # noqa: E402

BENCHMARKS = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benches" / "results"


EXIT_CODES = """\
## Exit codes

What `llm-node` ends with. The column "exit" above says what an error comes to where it ends a command.

"""


def errors_page() -> str:
    head = """\
# Errors

<!-- Printed from python/llm_node/errors.py by `make gen`; changes made here are lost. -->

Every error has one body, but on the routes of [Anthropic's](anthropic.md#errors), [Ollama's](ollama.md) and
[llama-server's](llama-server.md) API, where it is what their clients know:

```json
{"error": {"message": "...", "type": "...", "code": "...", "param": null}}
```

`param` names the field of the request that was wrong, where there is one. Some errors have further fields
beside these four. Once a stream has begun its status is spent: the same body comes as one SSE event, then
`data: [DONE]`, then the stream ends.

"""
    rows = [("`code`", "HTTP", "`type`", "Anthropic's", "`Retry-After`", "exit", "when"), ("---",) * 7]
    for code, row in errors.TABLE.items():
        retry = "" if row.retry_after is None else f"{row.retry_after:g}, or as measured"
        types = (f"`{row.type}`", f"`{row.anthropic}`")
        rows.append((f"`{code}`", str(row.status), *types, retry, str(int(row.exit)), row.when))
    exits = [("code", "meaning"), ("---",) * 2]
    exits += [(str(int(code)), meaning) for code, meaning in errors.EXITS.items()]
    return f"{head}{table(rows)}\n{EXIT_CODES}{table(exits)}"


def settings_page() -> str:
    head = """\
# Settings

<!-- Printed from python/llm_node/settings.py by `make gen`; changes made here are lost. -->

Each setting can be given on the command line, in the environment, or in the settings file. The command
line wins over the environment, that over the file, and the file over the default. A setting that nobody
knows, in the file or as a variable `LLM_NODE_...`, is an error that names its neighbours.

The file is TOML, `~/.llm-node/config.toml` unless `--config` names another:

```toml
engines_dir = ["/opt/engines"]
vram_limit = "8G"
port = 8080
```

How models are loaded can be said of one model alone, by the name that `llm-node list` shows. It comes over
what is said of all, and what a load asks for comes over both:

```toml
context_length = 8192

[models."llama-8b:Q4_K_M"]
aliases = ["gpt-4o-mini"]
context_length = 65536
options = { cache_type_k = "q8_0" }
```

{OF_ONE_MODEL}

A node that runs reads the file again after [SIGHUP](http.md#reading-settings-again).

Several folders: repeat the flag, write a list in the file, or separate them as in `PATH` in the
environment. Several hosts or origins: the same, but with commas between them. Sizes take `K`, `M`, `G`,
`T` as powers of 1024.

"""
    known = ", ".join(f"`{name}`" for name in settings.OF_ONE_MODEL)
    head = head.replace(
        "{OF_ONE_MODEL}", f"A model's table knows {known}; `options` is what `engine_option` is above it."
    )
    rows = [("flag", "variable", "key in the file", "value", "default", ""), ("---",) * 6]
    for setting in settings.ALL:
        rows.append(
            (
                f"`{setting.flag}`",
                f"`{setting.environment}`",
                f"`{setting.name}`" if setting.in_file else "",
                setting.metavar,
                setting.shown_default,
                setting.help.replace("<", "&lt;"),
            )
        )
    return head + table(rows)


def conformance_page() -> str:
    head = """\
# What engines are asked

<!-- Printed from rust/conformance by `make gen`; changes made here are lost. -->

`llm-node engine check ENGINE --model FILE` asks an engine all of this, each in a process of its own: a crash
or a hang is an answer like any other. An engine that breaks a *must* is not to be used; one that breaks a
*should* works, and surprises somebody. `--quick` repeats less, `--only NAME` asks one thing or one group,
`--engine-option KEY=VALUE` starts the engine with a setting, `--json` is for programs. The exit code is 0, 1
where a must is broken, and 2 where nothing could be said. It takes seconds
([how many](benchmarks.md#checks-of-an-engine)).

`--soak MINUTES` asks all of it again and again, each time with other calls, until something fails. `--write`
has the engine say in its manifest which level it keeps, when, and by which suite:
`"conformance": {"version": "0.1.0", "date": "2026-11-30", "level": "should"}`. `llm-node engines` shows that,
and a node does not believe it. `llm-node engine build` takes it out again: the library is another one then.

What a check needs that is missing (a model, an extension, a second sequence) makes it skip, with the reason;
so does another check, without which it says nothing, that failed.

"""
    checks = conformance.checks()
    groups = dict.fromkeys(check["name"].split(".")[0] for check in checks)
    parts = [head]
    for group in groups:
        parts.append(f"## {group}\n\n")
        for check in checks:
            if check["name"].split(".")[0] == group:
                name, level = check["name"], check["level"]
                anchor = name.replace(".", "-")
                parts.append(f'<a id="{anchor}"></a>\n**`{name}`** ({level}). {check["what"]}\n')
                parts.append(f'The header: "{check["contract"]}" To mend it: {check["mend"]}\n\n')
    return "".join(parts) + items_section()


def items_section() -> str:
    """The list that the contract came with, and who asks each item."""
    head = """\
## What is covered

The list of what engines should be asked was made with the contract, before there was a check. Each item has
its checks, and each check is there for an item; where another asks, or nobody, it is said why.

"""
    rows = [("", "item", "asked by"), ("---",) * 3]
    group = ""
    for item in conformance.items():
        asked = ", ".join(f"[`{name}`](#{name.replace('.', '-')})" for name in item["checks"])
        rows.append(("" if item["group"] == group else item["group"], item["asks"], asked or item["other"]))
        group = item["group"]
    return head + table(rows)


def benchmarks_page() -> str:
    """docs/benchmarks.md with every row of the benchmark: those of a GPU, then the others."""
    begin = "<!-- Printed from benches/results by `make gen`; changes made here are lost. -->\n"
    end = "<!-- End of what is printed. -->\n"
    kept = [*report.read(RESULTS), *report.read(RESULTS / "h200")]
    found = {one["key"]: one for one in kept if "figures" in one}
    rows = sorted(ROWS, key=lambda row: not row.key.startswith("gpu-"))
    results = [found.get(row.key) or report.result(row, "not measured", {}) for row in rows]
    before, rest = BENCHMARKS.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{report.markdown_table(results)}\n{end}{after}"


def table(rows: Iterable[Sequence[str]]) -> str:
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)


PAGES = {
    ROOT / "docs" / "conformance.md": conformance_page,
    ROOT / "docs" / "errors.md": errors_page,
    ROOT / "docs" / "settings.md": settings_page,
    BENCHMARKS: benchmarks_page,
}


def main() -> int:
    stale = []
    for path, page in PAGES.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != page():
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(page(), encoding="utf-8")
    if "--check" in sys.argv[1:] and stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run `make gen`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
