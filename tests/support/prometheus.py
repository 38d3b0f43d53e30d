"""A real Prometheus that watches nodes, with the rules that people get."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.node import free_port

CONFIGURATION = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: llm-node
    static_configs: [{{targets: ["{target}"]}}]
"""


@dataclass
class Prometheus:
    """One that runs."""

    url: str

    def ask(self, path: str, **query: str) -> Any:
        """What its own API answers. Raises `URLError` while it starts."""
        asked = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(asked, timeout=30) as reply:
            answer = json.loads(reply.read())
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[Any]:
        """The series that a query gives now."""
        found: list[Any] = self.ask("query", query=query)["result"]
        return found


@contextlib.contextmanager
def prometheus(folder: Path, rules: Path, target: str) -> Iterator[Prometheus]:
    """Asks the node at HOST:PORT once a second. Skips where there is no such program."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("needs prometheus, which Debian has as a package")
    file, data, log = folder / "prometheus.yml", folder / "data", folder / "prometheus.log"
    file.write_text(CONFIGURATION.format(rules=rules, target=target))
    address = f"127.0.0.1:{free_port()}"
    places = [f"--config.file={file}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"]
    with log.open("wb") as output:
        process = subprocess.Popen([program, *places], stdout=output, stderr=output)
        try:
            running = Prometheus(f"http://{address}")
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    if any(found["value"][1] == "1" for found in running.values("up")):
                        break
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield running
        finally:
            process.kill()
            process.wait()
