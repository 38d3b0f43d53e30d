"""Say plainly what a package index cannot bring, and the command that brings it.

Run by `make setup` with whatever Python there is; needs nothing but the standard library.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

RUST = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
COMPILER = {
    "Linux": "sudo apt-get install build-essential      (or: dnf install gcc-c++ make)",
    "Darwin": "xcode-select --install",
    "Windows": "winget install Microsoft.VisualStudio.2022.BuildTools",
}
WORKSPACE = Path(__file__).resolve().parents[1] / "Cargo.toml"


def version(text: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", text)[:2]
    return int(major), int(minor)


def oldest_rust() -> str:
    """`rust-version` of Cargo.toml. By pattern, since Python 3.10 reads no TOML."""
    found = re.search(r'^rust-version = "([\d.]+)"', WORKSPACE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"no rust-version in {WORKSPACE}"
    return found.group(1)


def installed_rust() -> str:
    # In the folder of the checkout, where `rustup override` and RUSTUP_TOOLCHAIN count.
    command = ["rustc", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=WORKSPACE.parent).stdout


def missing() -> list[str]:
    found: list[str] = []
    if sys.version_info < (3, 10):  # noqa: UP036 (run by whatever Python there is)
        found.append(
            f"Python 3.10 or newer (this is {platform.python_version()}): make PYTHON=python3.11 ..."
        )
    if not (shutil.which("cargo") and shutil.which("rustc")):
        found.append(f"a Rust toolchain:\n      {RUST}")
    elif version(installed_rust()) < version(oldest_rust()):
        found.append(f"Rust {oldest_rust()} or newer:\n      rustup update stable")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        hint = COMPILER.get(platform.system(), "your system's C++ compiler package")
        found.append(f"a C and C++ compiler:\n      {hint}")
    return found


def main() -> int:
    problems = missing()
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
