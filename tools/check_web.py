"""Lint the page's own code, and check its types: what its comments say, against the types of the libraries.

    python tools/check_web.py

Biome lints: `biome.jsonc` says what. TypeScript would take the types of a bundle from the bundle. So the code
is checked in a copy, in which `web/types/vendor/` says what each bundle offers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web"
PAGE = ROOT / "python/llm_node/web"
COPY = WEB / ".check"
"""Within `web`, since the libraries are looked for from there upwards."""
COMPILER = WEB / "node_modules/.bin/tsc"
LINTER = WEB / "node_modules/.bin/biome"
LINTED = (PAGE, WEB / "entries", ROOT / "tests/js")
"""Named, so that Biome looks nowhere else: a link that leads nowhere, in a build under way, is a warning."""


def main() -> int:
    if not (COMPILER.exists() and LINTER.exists()):
        sys.stderr.write("the page's code is not checked: tools/vendor_web.py brings Biome and TypeScript\n")
        return 0
    lint = [LINTER, "lint", "--error-on-warnings", *LINTED]
    linted = subprocess.run(lint, cwd=ROOT, check=False).returncode
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(WEB / "types/vendor", COPY / "vendor")
    for path in PAGE.glob("*.js"):
        shutil.copy(path, COPY)
    try:
        return subprocess.run([COMPILER, "-p", WEB / "tsconfig.json"], check=False).returncode or linted
    finally:
        shutil.rmtree(COPY)


if __name__ == "__main__":
    sys.exit(main())
