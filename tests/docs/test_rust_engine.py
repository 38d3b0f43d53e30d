"""The page on engines in Rust: its commands and its code, as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from support.node import running_node

PAGE = "docs/writing-an-engine-in-rust.md"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def test_the_engine_of_the_page_answers(repository: Path, tmp_path: Path) -> None:
    page = (repository / PAGE).read_text()
    new, build, serve = blocks(page, "console")
    (code,) = blocks(page, "rust")
    listing, _ = serve.splitlines()
    programs = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "CARGO_NET_OFFLINE": "true",
        "CARGO_TARGET_DIR": str(tmp_path / "echo/target"),
    }
    (tmp_path / "lib.rs").write_text(code)
    script = f"set -e\n{new}\ncp ../lib.rs src/lib.rs\n{build}\n{listing}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^echo +1\.0\.0 +cpu +loaded", done.stdout, re.M), done.stdout

    arguments = ["--engines-dir", str(tmp_path / "engines"), "--models-dir", str(tmp_path / "models")]
    with running_node(tmp_path / "node", [*arguments, "--gpu-backend", "cpu"]) as node:
        answer = node.post("/v1/completions", {"model": "hello", "prompt": "Hello"})
        assert answer.status == 200, answer.body
        assert answer.json()["choices"][0]["text"] == "Hello, and good day to you"
