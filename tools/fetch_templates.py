"""Fetch the chat templates that llama.cpp tests with into .cache/templates/, for tests of ours.

They come out of the source archive of the Python package `llama-cpp-python` (76 MB), are checked by its
SHA-256, and are never copied into the repository. Nothing is fetched twice. The index is pip's:
PIP_INDEX_URL, or PyPI.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / ".cache" / "templates"
PACKAGE = "llama-cpp-python"
ARCHIVE = "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
FOLDER = "/vendor/llama.cpp/models/templates/"
COUNT = 70


def get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "llm-node tests"})
    with urllib.request.urlopen(request, timeout=60) as response:
        body: bytes = response.read()
    return body


def fetch() -> None:
    """Download, check and unpack the templates.

    Raises:
        OSError: The index cannot be reached, or the archive is another one.
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    page_url = f"{index}/{PACKAGE}/"
    page = get(page_url).decode()
    link = re.search(rf'href="([^"#]*{re.escape(ARCHIVE)})[^"]*"', page)
    if link is None:
        raise OSError(f"{page_url} does not list {ARCHIVE}")
    archive = get(urllib.parse.urljoin(page_url, link.group(1)))
    found = hashlib.sha256(archive).hexdigest()
    if found != SHA256:
        raise OSError(f"the SHA-256 of {ARCHIVE} is {found}, expected {SHA256}")
    part = TARGET.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            if (
                FOLDER in member.name
                and member.name.endswith(".jinja")
                and (source := files.extractfile(member))
            ):
                (part / Path(member.name).name).write_bytes(source.read())
    if (count := len(list(part.iterdir()))) != COUNT:
        raise OSError(f"{ARCHIVE} has {count} templates, expected {COUNT}")
    part.rename(TARGET)


if __name__ == "__main__":
    if not TARGET.exists():
        try:
            fetch()
        except OSError as error:
            sys.exit(f"chat templates: {error}")
