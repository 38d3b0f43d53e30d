"""Say plainly what a package index cannot bring, and the command that brings it.

Run by `make setup` with whatever Python there is; needs nothing but the standard library.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys

RUST = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
COMPILER = {
    "Linux": "sudo apt-get install build-essential      (or: dnf install gcc-c++ make)",
    "Darwin": "xcode-select --install",
    "Windows": "winget install Microsoft.VisualStudio.2022.BuildTools",
}
OLDEST_RUST = (1, 88)


def rust_version() -> tuple[int, ...]:
    text = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in text.split()[1].split("-")[0].split(".")[:2])


def missing() -> list[str]:
    found: list[str] = []
    if sys.version_info < (3, 10):  # noqa: UP036 (run by whatever Python there is)
        found.append(
            f"Python 3.10 or newer (this is {platform.python_version()}): make PYTHON=python3.11 ..."
        )
    if not (shutil.which("cargo") and shutil.which("rustc")):
        found.append(f"a Rust toolchain:\n      {RUST}")
    elif rust_version() < OLDEST_RUST:
        found.append(f"Rust {'.'.join(map(str, OLDEST_RUST))} or newer:\n      rustup update stable")
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
