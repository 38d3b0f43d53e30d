"""Ray Serve with nodes as replicas: started by `serve run`, as people do, and ended with all it began."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.engines import fake_engine
from support.node import PROGRAM, RunningNode, alive, descendants_of, free_port, node_environment

STEP_SECONDS = 0.005
START_SECONDS = 180.0
"""Of all of Ray on a machine that is busy; some 15 s on one that is not."""
END_SECONDS = 90.0
MARK = "RAY_TESTS_MARK"
SERVE = Path(sys.executable).with_name("serve")

Change = Callable[[dict[str, Any]], None]


@dataclass
class Fleet:
    """Ray, Serve, and its nodes."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]
    log: Path
    mark: str
    statistics: int
    taken: int
    """A port that it would give a node, were it not somebody else's."""
    machines: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    """By scope."""

    @property
    def front(self) -> RunningNode:
        """To ask what is before the nodes."""
        return RunningNode(self.process, self.url, self.log)

    def nodes(self) -> dict[int, int]:
        """Pid and port of each node that runs."""
        found: dict[int, int] = {}
        for pid in processes():
            words = command_line(pid)
            if (
                "--listen-fd" in words
                and str(self.folder / "config.toml") in words
                and (port := port_of(pid))
            ):
                found[pid] = port
        return found

    def named(self, word: str) -> list[int]:
        """Those of its processes that have this in their command line."""
        return [pid for pid in self.own() if word in " ".join(command_line(pid))]

    def parent(self, node: int) -> int:
        """The replica's actor."""
        return int(Path(f"/proc/{node}/stat").read_text().rsplit(")", 1)[1].split()[1])

    def in_rotation(self) -> int:
        """How many nodes HAProxy leads requests to."""
        return len(self.rotation())

    def rotation(self) -> set[str]:
        """Their replicas' names."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.statistics}/stats;csv", timeout=10) as reply:
            rows = csv.DictReader(io.StringIO(reply.read().decode().removeprefix("# ")))
            return {
                row["svname"]
                for row in rows
                if "REPLICA" in row["svname"].upper() and row["status"].startswith("UP")
            }

    def address(self) -> str:
        """Of the cluster, for `RAY_ADDRESS`: there may be others on this machine."""
        words = " ".join(command_line(self.named("raylet/raylet")[0]))
        (found,) = set(re.findall(r"--gcs-address=(\S+)", words))
        return str(found)

    def deploy(self, change: Change | None = None) -> None:
        """As `serve deploy` does it, with the same file but for this change."""
        yaml: Any = importlib.import_module("yaml")
        serve = yaml.safe_load((self.folder / "serve.yaml").read_text())
        if change is not None:
            change(serve)
        self._of_serve("PUT", serve)

    def status(self) -> dict[str, Any]:
        """What `serve status` shows, by application."""
        found: dict[str, Any] = json.loads(self._of_serve("GET"))["applications"]
        return found

    def _of_serve(self, method: str, body: Any = None) -> bytes:
        (dashboard,) = re.findall(
            r"dashboard at \S*(http://[\w.]+:\d+)", self.log.read_text(errors="replace")
        )
        token = (self.folder / ".ray/auth_token").read_text()
        request = urllib.request.Request(
            f"{dashboard}/api/serve/applications/",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            answer: bytes = reply.read()
        return answer

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> float:
        """Until it holds. Gives the seconds that it took."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError, ValueError):
                if condition():
                    return time.monotonic() - began
            assert self.process.poll() is None, self.log_text()
            assert time.monotonic() - began < seconds, f"{what} not within {seconds} s\n{self.log_text()}"
            time.sleep(0.2)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")[-20_000:]

    def own(self) -> set[int]:
        """All processes that it has begun and that still run."""
        return {pid for pid in processes() if self._is_own(pid) and alive(pid)}

    def _is_own(self, pid: int) -> bool:
        if str(self.folder) in " ".join(command_line(pid)):
            return True
        with contextlib.suppress(OSError):
            return f"{MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def command_line(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def open_files(pid: int) -> set[str]:
    """What its descriptors are of."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(os.readlink(each))
    return found


def listening(pids: Iterable[int] | None = None) -> set[tuple[int, str]]:
    """Port and inode of each TCP socket that these processes listen on; without any, that anybody does."""
    files = None if pids is None else {each for pid in pids for each in open_files(pid)}
    found: set[tuple[int, str]] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and (files is None or f"socket:[{words[9]}]" in files):
                found.add((int(words[1].rpartition(":")[2], 16), words[9]))
    return found


def port_of(pid: int) -> int | None:
    """Where it listens."""
    return next((port for port, _ in listening([pid])), None)


def in_shared_memory(pids: Iterable[int]) -> set[Path]:
    """Files of /dev/shm that these processes have, and that others could find there."""
    names = {each for pid in pids for each in open_files(pid) if each.startswith("/dev/shm/")}
    for pid in pids:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text()
            names |= set(re.findall(r"/dev/shm/.*$", maps, re.MULTILINE))
    return {path for name in names if (path := Path(name)).exists()}


def write_files(repository: Path, folder: Path, engines: list[Path], port: int, *, alone: bool) -> None:
    """The node's file and that for Serve, which is the one that people get, for this machine."""
    yaml: Any = importlib.import_module("yaml")
    (folder / "config.toml").write_text(
        f"engines_dir = {[str(each) for each in engines]}\n"
        f'models_dir = "{folder / "models"}"\n'
        f'api_key_file = "{folder / "keys"}"\n'
        'gpu_backend = "cpu"\nspeculation = "off"\ndrain_timeout = 30\n'
    )
    serve = yaml.safe_load((repository / "deploy/ray/serve.yaml").read_text())
    serve["http_options"] = {"port": port}
    (application,) = serve["applications"]
    application["args"]["config"] = str(folder / "config.toml")
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 0.1}
    deployment["graceful_shutdown_timeout_s"] = 40
    if not alone:
        serve["proxy_location"] = "HeadOnly"
        deployment["max_replicas_per_node"] = 1
    (folder / "serve.yaml").write_text(yaml.safe_dump(serve))


def new_key(folder: Path, scope: str) -> str:
    made = subprocess.run(
        [PROGRAM, "key", "new", scope, "--scope", scope, "--api-key-file", folder / "keys"],
        env=node_environment(folder),
        check=True,
        capture_output=True,
        text=True,
    )
    return made.stdout.split()[0]


@contextlib.contextmanager
def fleet(
    repository: Path,
    engines: list[Path],
    models: Sequence[Path] = (),
    *,
    machines: int = 1,
    **environment: str,
) -> Iterator[Fleet]:
    """Ray Serve with these engines and models, ready; and afterwards nothing of it is left.

    `machines`: raylets that stand for so many, each with one node at most; HAProxy is on the first alone.
    """
    # Paths of sockets are short.
    folder = Path(tempfile.mkdtemp(prefix="fleet", dir="/tmp"))
    port, statistics, mark = free_port(), free_port(), uuid.uuid4().hex
    taken = socket.create_server(("0.0.0.0", 0))
    try:
        (folder / "models").mkdir()
        (folder / "models/slow.toy").write_bytes(b"TOY1")
        for model in models:
            shutil.copy(model, folder / "models")
        fake = folder / "engines"
        fake_engine(fake, defines={"FAKE_STEP_US": int(STEP_SECONDS * 1e6)})
        keys = {scope: new_key(folder, scope) for scope in ("inference", "admin")}
        write_files(repository, folder, [fake, *engines], port, alone=machines == 1)
        log = folder / "serve.log"
        scratch = {
            MARK: mark,
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "h/haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "h/admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "h"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "h/server-state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "h/metrics.sock"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(taken.getsockname()[1]),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(taken.getsockname()[1] + 100),
        }
        everywhere = node_environment(folder, **{**settings_of(repository), **scratch, **environment})
        with log.open("wb") as sink:
            if machines > 1:
                everywhere["RAY_ADDRESS"] = start_raylets(folder, everywhere, machines)
            process = subprocess.Popen(
                [SERVE, "run", folder / "serve.yaml"],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=folder,
                env=everywhere,
                start_new_session=True,
            )
        running = Fleet(
            url=f"http://127.0.0.1:{port}",
            folder=folder,
            process=process,
            log=log,
            mark=mark,
            statistics=statistics,
            taken=taken.getsockname()[1],
            machines=machines,
            environment=everywhere,
            keys=keys,
        )
        try:
            running.wait(
                lambda: running.front.get("/-/healthz", timeout=5).status == 200, "Serve", START_SECONDS
            )
            yield running
        finally:
            end(running)
    finally:
        taken.close()
        shutil.rmtree(folder, ignore_errors=True)


def start_raylets(folder: Path, environment: dict[str, str], count: int) -> str:
    """As `ray start` on each machine. Gives the address of the first."""
    address = f"127.0.0.1:{free_port()}"
    head = ["--head", f"--port={address.partition(':')[2]}", f"--dashboard-port={free_port()}"]
    for words in (head, *[[f"--address={address}"]] * (count - 1)):
        command = [
            str(SERVE.with_name("ray")),
            "start",
            "--num-cpus=1",
            "--object-store-memory=80000000",
            *words,
        ]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return address


def settings_of(repository: Path) -> dict[str, str]:
    """The environment that people get."""
    lines = (repository / "deploy/ray/env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def end(running: Fleet) -> None:
    """All of it, processes first; and neither a port nor shared memory stays."""
    began = set(running.own()) | set(descendants_of(running.process.pid))
    ports, shared = listening(began), in_shared_memory(began)
    running.process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.process.wait(END_SECONDS)
    if running.machines > 1:  # `ray stop` would end those of others, too
        for pid in running.named("/site-packages/ray/"):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    while (left := {pid for pid in began | running.own() if alive(pid)}) and time.monotonic() < deadline:
        running.process.poll()
        time.sleep(0.2)
    told = {pid: " ".join(command_line(pid))[:200] for pid in left}
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    running.process.wait(30)
    assert not left, f"left behind: {told}\n{running.log_text()}"
    assert not ports & listening(), "a port that somebody inherited"
    assert not [path for path in shared if path.exists()], "shared memory"
