"""The rules of docs/architecture.md that neither the compiler nor import-linter enforces."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from llm_node import files
from llm_node.pull import child

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python/llm_node"

# crate -> crates of ours that it may depend on
ARROWS = {
    "llm-node-abi": set(),
    "llm-node-core": {"llm-node-cpu"},
    "llm-node-cpu": set(),
    "llm-node-fleet": {"llm-node-core"},
    "llm-node-load": set(),
    "llm-node-sdk": {"llm-node-abi"},
    "llm-node-host": {"llm-node-abi", "llm-node-core"},
    "llm-node-conformance": {"llm-node-host", "llm-node-core", "llm-node-abi"},
    "llm-node-fixtures": {"llm-node-abi"},  # for tests alone
    "llm-node-wire": {"llm-node-core"},
    "llm-node-worker": {"llm-node-host", "llm-node-wire", "llm-node-core", "llm-node-cpu"},
    # of the ABI, the version alone
    "llm-node-node": {"llm-node-fleet", "llm-node-wire", "llm-node-core", "llm-node-cpu", "llm-node-abi"},
    "llm-node-py": {
        "llm-node-node",
        "llm-node-worker",
        "llm-node-load",
        "llm-node-conformance",
        "llm-node-core",
        "llm-node-wire",
        "llm-node-abi",
    },
}
ONLY_HERE = {"pyo3": {"llm-node-py"}, "libloading": {"llm-node-host"}}
MAY_BE_UNSAFE = re.compile(
    r"rust/(abi|sdk|host|cpu)/|rust/conformance/src/raw/|rust/worker/src/sandbox\.rs|rust/node/src/platform/|engines/[^/]+/src/"
)


@cache
def packages() -> dict[str, dict[str, set[str]]]:
    """name -> dependency kind ("normal", "dev", "build") -> names."""
    output = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--no-deps", "--offline"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[str, dict[str, set[str]]] = {}
    for package in json.loads(output)["packages"]:
        kinds: dict[str, set[str]] = {"normal": set(), "dev": set(), "build": set()}
        for dependency in package["dependencies"]:
            kinds[dependency["kind"] or "normal"].add(dependency["name"])
        found[package["name"]] = kinds
    return found


def rust_files() -> list[Path]:
    files = [*ROOT.glob("rust/**/*.rs"), *ROOT.glob("engines/*/src/**/*.rs")]
    return [path for path in files if "/target/" not in str(path)]


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", text)


def without_tests(text: str) -> str:
    return text.split("#[cfg(test)]")[0]


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_grammars_have_one_home() -> None:
    home = ROOT / "rust/core/src/constrain"
    named = re.compile(r"\b(llguidance|toktrie|derivre)::")
    for path in rust_files():
        if home not in path.parents:
            assert not named.search(without_comments(path.read_text())), path


def test_every_crate_is_named() -> None:
    assert set(packages()) == set(ARROWS)


@pytest.mark.parametrize("crate", sorted(ARROWS))
def test_arrows(crate: str) -> None:
    ours = {name for name in packages()[crate]["normal"] if name.startswith("llm-node-")}
    assert ours == ARROWS[crate]


@cache
def arrows_of_the_page() -> dict[str, set[str]]:
    """Who may know whom, as docs/architecture.md has it."""
    page = (ROOT / "docs/architecture.md").read_text().split("## Who may import what")[1]
    block = page.split("```")[1]
    found = {}
    for arrow in re.split(r"\n|\s{2,}", block):
        if " -> " in arrow:
            who, whom = arrow.split(" -> ")
            known = set() if whom == "nothing" else set(whom.split(", "))
            found.update(dict.fromkeys(who.split(", "), known))
    return found


def test_the_page_has_the_arrows_of_all_crates() -> None:
    arrows = {crate: {it.removeprefix("llm-node-") for it in known} for crate, known in ARROWS.items()}
    page = arrows_of_the_page()
    assert {crate: page.get(crate.removeprefix("llm-node-")) for crate in ARROWS} == arrows


@pytest.mark.parametrize("who", ["schema/", "settings", "settings_values", "files", "errors", "ray/"])
def test_arrows_of_the_package(who: str) -> None:
    """Those of the layers are import-linter's."""
    home = PACKAGE / who if who.endswith("/") else PACKAGE / f"{who}.py"
    known = set()
    for path in sorted(home.rglob("*.py")) if home.is_dir() else [home]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "llm_node":
                known |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("llm_node."):
                known.add(str(node.module).split(".")[1])
    inside = who.rstrip("/")
    assert known - {inside} == {it.rstrip("/") for it in arrows_of_the_page()[who]}


def test_engines_know_the_kit_alone() -> None:
    for manifest in sorted(ROOT.glob("engines/*/Cargo.toml")):
        dependencies = manifest.read_text().split("[dependencies]")[1].split("\n[")[0]
        ours = re.findall(r"^(llm-node-[\w-]+)", dependencies, re.MULTILINE)
        assert set(ours) <= {"llm-node-sdk"}, manifest


def test_what_is_for_tests_is_in_tests_alone() -> None:
    assert not [crate for crate, kinds in packages().items() if "llm-node-fixtures" in kinds["normal"]]


@pytest.mark.parametrize("library", sorted(ONLY_HERE))
def test_only_home(library: str) -> None:
    users = {crate for crate, kinds in packages().items() if library in kinds["normal"]}
    assert users == ONLY_HERE[library]


def test_core_is_pure() -> None:
    banned = re.compile(r"std::(fs|net|thread|process|env|os)\b|std::time::(Instant|SystemTime)|Instant::now")
    for path in sorted((ROOT / "rust/core/src").rglob("*.rs")):
        found = banned.search(without_comments(path.read_text()))
        assert not found, f"{path}: {found.group() if found else ''} in the pure core"


def test_the_fleet_is_pure() -> None:
    """It shares nothing with other threads either, and writes no log: it gives out what is to be done."""
    banned = re.compile(
        r"\b(fs|net|thread|process|env|os|io)::|\b(Instant|SystemTime|Mutex|RwLock|Condvar|mpsc|log::)\b"
    )
    for path in sorted((ROOT / "rust/fleet/src").rglob("*.rs")):
        found = banned.search(without_comments(path.read_text()))
        assert not found, f"{path}: {found.group() if found else ''} in the pure fleet"


def test_unsafe_stays_at_home() -> None:
    for path in rust_files():
        name = path.relative_to(ROOT).as_posix()
        if MAY_BE_UNSAFE.match(name) or "/tests/" in name:
            continue
        assert not re.search(
            r"\bunsafe\b",
            without_comments(path.read_text())
            .replace("forbid(unsafe_code)", "")
            .replace("deny(unsafe_code)", ""),
        ), name


def test_an_engine_has_one_unsafe_module() -> None:
    """A file, or the folder of the same name: `llama.rs` or `llama/`."""
    for engine in sorted(ROOT.glob("engines/*/Cargo.toml")):
        source = engine.parent / "src"
        homes = {
            path.relative_to(source).parts[0].removesuffix(".rs")
            for path in sorted(source.rglob("*.rs"))
            if re.search(r"\bunsafe\b", without_comments(path.read_text()))
        }
        assert len(homes) <= 1, f"{source}: {homes}"


def test_no_word_of_an_api_family_in_rust() -> None:
    for path in rust_files():
        if path.is_relative_to(ROOT / "rust/load"):  # a client of such APIs, and no part of the node
            continue
        text = without_comments(without_tests(path.read_text()))
        words = (
            r'"choices"|chat\.completion|content_block|input_json_delta|done_reason|output_item|'
            r"stop_reason|response\.completed"
        )
        assert not re.search(words, text), path


def test_words_of_templates_and_marks_of_models_have_their_homes() -> None:
    chat = ROOT / "rust/core/src/chat"
    for path in rust_files():
        if "/tests/" in path.as_posix() or path.name == "tests.rs" or path.is_relative_to(ROOT / "rust/load"):
            continue
        text = without_comments(without_tests(path.read_text()))
        if path not in (chat / "habits.rs", chat / "render.rs"):
            assert not re.search(r"tool_calls|tool_call_id|reasoning_content", text), path
        homes = path.is_relative_to(chat / "families") or path == chat / "builtin.rs"
        if path.is_relative_to(chat) and not homes:
            assert not re.search(r"<\||\|>|TOOL_CALLS|<tool_call|<think", text), path


def test_environment_is_read_in_settings_alone() -> None:
    for path in python_files():
        if path != PACKAGE / "settings.py":
            nodes = ast.walk(ast.parse(path.read_text()))
            names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            assert not names & {"environ", "environb", "getenv", "getenvb"}, path


def test_what_a_full_disk_is_has_one_home() -> None:
    """And the process that imports nothing of the package knows the same."""
    homes = {path for path in python_files() if "ENOSPC" in path.read_text()}
    assert homes == {PACKAGE / "files.py", PACKAGE / "pull/child.py"}
    assert child.FULL == files.FULL


def test_core_is_imported_at_five_places() -> None:
    for path in python_files():
        imports = re.search(r"^\s*(from|import)\s[^\n]*\b_core\b", path.read_text(), re.MULTILINE)
        if imports:
            home = path.relative_to(PACKAGE).parts[0]
            allowed = {"node", "conformance.py", "devices.py", "load.py", "version.py"}
            assert home in allowed, f"{path}: {imports.group()}"


def test_private_names_of_ray_have_one_home() -> None:
    """And the adapter stays thin."""
    adapter = PACKAGE / "ray"
    for path in python_files():
        if path != adapter / "private.py":
            assert not re.search(r"\bserve\._private\b|\b_with_ingress", path.read_text()), path
        if adapter not in path.parents:
            assert not re.search(r"^\s*(from|import) ray\b", path.read_text(), re.MULTILINE), path
    assert sum(len(path.read_text().splitlines()) for path in adapter.glob("*.py")) <= 500


def test_one_writer_of_data_lines() -> None:
    for path in python_files():
        if path != PACKAGE / "api/sse.py":
            assert not re.search(r"""["']data: ?""", path.read_text()), path


def test_one_place_turns_an_error_into_a_status() -> None:
    table = re.compile(r"\b(abi_mismatch|oom_vram|queue_full|gpu_not_found)\b.*\b(5\d\d|4\d\d)\b")
    for path in python_files():
        if path != PACKAGE / "errors.py":
            assert not table.search(path.read_text()), path


def test_one_parser_of_manifests() -> None:
    homes = [p.relative_to(ROOT).as_posix() for p in rust_files() if "struct EngineManifest" in p.read_text()]
    assert homes == ["rust/node/src/registry/manifest.rs"]
    for path in python_files():
        # As the name of a file; sentences for people may speak of it.
        assert not re.search(r"""["'/]manifest\.json["']""", path.read_text()), path


def test_importing_the_package_stays_light() -> None:
    """Who only loads a model in a program of their own does not pay for the HTTP side."""
    import sys

    code = "import sys, llm_node; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("aiohttp", "pydantic", "click", "pynvml", "asyncio"):
        assert f"'{heavy}'" not in loaded, heavy


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["completion", "bash"]])
def test_a_command_brings_in_what_it_needs(arguments: list[str]) -> None:
    """Who asks for the version, for help or for a word's completion does not wait for the rest."""
    import sys

    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr))\n"
        f"sys.argv = ['llm-node', *{arguments!r}]\n"
        "from llm_node.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout
    for heavy in ("aiohttp", "pydantic", "pynvml", "rich", "prompt_toolkit", "asyncio"):
        assert f"'{heavy}'" not in done.stderr, heavy


def test_folders_and_files_have_telling_names() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    for path in [*rust_files(), *python_files()]:
        assert not vague & {part.removesuffix(path.suffix) for part in path.relative_to(ROOT).parts}, path


def test_one_oldest_rust() -> None:
    """The engines' workspaces cannot inherit it; clippy's `incompatible_msrv` holds the code to it."""
    pattern = re.compile(r'^rust-version = "([\d.]+)"', re.MULTILINE)
    (oldest,) = pattern.findall((ROOT / "Cargo.toml").read_text())
    for manifest in ROOT.glob("engines/*/Cargo.toml"):
        assert pattern.findall(manifest.read_text()) == [oldest], manifest
    for manifest in ROOT.glob("rust/*/Cargo.toml"):
        assert "\nrust-version.workspace = true\n" in manifest.read_text(), manifest


def test_actions_are_pinned_by_commit() -> None:
    uses = re.compile(r"\buses: (\S+)(.*)")
    found = [
        match for path in ROOT.glob(".github/workflows/*.yml") for match in uses.findall(path.read_text())
    ]
    assert found
    for action, comment in found:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), f"{action}: which version is it?"
