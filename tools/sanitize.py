"""What is unsafe, under the tools that see what tests do not: `make sanitize`.

Three rounds, each with a reason when it cannot run here:

- C: the host's tests with the fake engines, and `engine check` of the sample ones, under AddressSanitizer and
  UndefinedBehaviorSanitizer.
- Rust: the crates with `unsafe` under AddressSanitizer, which needs a nightly toolchain.
- Miri: the Rust that needs no C. Interpreted, some hundred times slower, and so only the smaller tests.

A round that cannot run is said so, and fails with `--all`, which is what continuous integration says.
Leaks are not looked for: the threads of Rust's test harness have not ended when a test program does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = "-fsanitize=address,undefined"
ENGINE_CFLAGS = f"-g {SANITIZERS} -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}

# Crates with `unsafe` whose tests need neither Python nor sandboxed children.
UNSAFE_CRATES = ("llm-node-cpu", "llm-node-sdk", "llm-node-host")
# Package and what of it: not what loads libraries, and nothing that takes minutes when interpreted.
MIRI = (
    ("llm-node-cpu", "--lib", "part_belongs_to_thread", "a_panic_comes_out", "threads_end_with"),
    ("llm-node-sdk", "--tests"),
)
# An access that a sanitizer has to see: without it, nothing found would mean nothing.
OVERRUN = """\
#include <stdlib.h>

int main(int one, char **arguments) {
  char *byte = malloc(1);
  return arguments[0][0] + byte[one];
}
"""
# Tests sleep; the SDK keeps handles as exposed addresses, and leaks what a panic carried (guard.rs says why).
MIRIFLAGS = "-Zmiri-disable-isolation -Zmiri-permissive-provenance -Zmiri-ignore-leaks"


class CannotRun(Exception):
    """Why a round does not run on this machine."""


def run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, cwd=ROOT, env={**os.environ, **OPTIONS, **environment}, check=True)


def output(*command: str) -> str | None:
    """What a command prints; None if it fails, or there is none."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def host_target() -> str:
    told = output("rustc", "--print", "host-tuple")
    assert told, "no rustc: run make setup"
    return told


def c_round() -> None:
    compiler = os.environ.get("CC", "cc")
    runtime = output(compiler, "-print-file-name=libasan.so")
    if sys.platform != "linux" or runtime is None or not Path(runtime).is_absolute():
        raise CannotRun("needs gcc with its AddressSanitizer (libasan) on Linux")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "overrun.c", Path(folder) / "overrun"
        source.write_text(OVERRUN, encoding="ascii")
        subprocess.run([compiler, SANITIZERS, "-o", program, source], check=True)
        seen = subprocess.run([program], capture_output=True, text=True, check=False).stderr
        assert "heap-buffer-overflow" in seen, f"the sanitizer does not see an overrun:\n{seen}"
    # The runtime comes before all others, so that Rust's memory is watched where C reads and writes it.
    runner = f"target.{host_target()}.runner = ['env', 'LD_PRELOAD={runtime}']"
    for tests in (["llm-node-host", "--tests"], ["llm-node-conformance", "--test", "samples"]):
        run(
            ["cargo", "--config", runner, "test", "-p", *tests, "--locked", "--quiet"],
            {"ENGINE_CFLAGS": ENGINE_CFLAGS},
        )


def rust_round() -> None:
    if output("cargo", "+nightly", "--version") is None:
        raise CannotRun("needs a nightly toolchain: rustup toolchain install nightly --profile minimal")
    packages = [word for crate in UNSAFE_CRATES for word in ("-p", crate)]
    run(
        ["cargo", "+nightly", "test", "--target", host_target(), *packages, "--tests", "--locked", "--quiet"],
        {"RUSTFLAGS": "-Zsanitizer=address", "CARGO_TARGET_DIR": "target/sanitize"},
    )


def miri_round() -> None:
    if output("cargo", "+nightly", "miri", "--version") is None:
        raise CannotRun("needs Miri: rustup component add --toolchain nightly miri rust-src")
    for package, part, *tests in MIRI:
        run(
            ["cargo", "+nightly", "miri", "test", "-p", package, part, "--locked", "--", *tests],
            {
                "MIRIFLAGS": MIRIFLAGS,
                "CARGO_TARGET_DIR": "target/miri",
            },
        )


ROUNDS: dict[str, Callable[[], None]] = {"C": c_round, "Rust": rust_round, "Miri": miri_round}


def main() -> int:
    skipped = False
    for name, round_ in ROUNDS.items():
        try:
            round_()
            print(f"sanitize: {name}: nothing found", flush=True)
        except CannotRun as reason:
            skipped = True
            print(f"sanitize: {name} NOT RUN: {reason}", file=sys.stderr, flush=True)
        except subprocess.CalledProcessError as failed:
            print(f"sanitize: {name}: failed, see above ({failed.returncode})", file=sys.stderr)
            return 1
    return 1 if skipped and "--all" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
