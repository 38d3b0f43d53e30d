"""Compile the contract, the samples and the fakes with every warning an error.

The header must be clean under C99, C11 and C++17, since engine authors choose their own language.
The specification's own minimal engine has unused parameters; only that warning is spared there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "rust/abi/include"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{INCLUDE}", "-fsyntax-only"]
FOLDERS = ("engines/sample_c", "tests/fakes", "benches/null_engine")
SPARED = {"my_engine.c": ["-Wno-unused-parameter"]}


def compile_file(command: list[str], source: Path) -> bool:
    result = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    if result.returncode:
        print(" ".join([*command, str(source)]), result.stderr, sep="\n", file=sys.stderr)
    return result.returncode == 0


def main() -> int:
    cc, cxx = os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")
    ok = True
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.c"
        probe.write_text('#include "engine_api.h"\n', encoding="ascii")
        for standard in ("c99", "c11"):
            ok &= compile_file([cc, f"-std={standard}", *STRICT], probe)
        ok &= compile_file([cxx, "-std=c++17", "-x", "c++", *STRICT], probe)
    for source in sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.c")):
        ok &= compile_file([cc, "-std=gnu11", *STRICT, *SPARED.get(source.name, [])], source)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
