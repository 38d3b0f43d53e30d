"""A program on a pseudo-terminal, and who sits before it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SECONDS = 30.0
"""Longest that anything may take that is waited for."""
WHERE = b"\x1b[6n"
"""What a program asks a terminal for: where is the cursor?"""
SEQUENCES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][0-9A-B]|[=>78])")
UNFINISHED = re.compile(r"\x1b[^a-zA-Z]*$")


class Terminal:
    """The other end of a program's terminal."""

    def __init__(self, process: subprocess.Popen[bytes], end: int) -> None:
        self.process = process
        self._end = end
        self._all = bytearray()
        self._seen = 0

    @property
    def raw(self) -> str:
        """All that was written so far, escape sequences included."""
        return self._all.decode(errors="replace")

    @property
    def text(self) -> str:
        """The same without escape sequences, a last one that is not whole among them."""
        return UNFINISHED.sub("", SEQUENCES.sub("", self.raw))

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def expect(self, words: str) -> str:
        """Wait until these words come, behind what was expected before. Gives what stood before them, without
        escape sequences."""
        deadline = time.monotonic() + SECONDS
        while True:
            text = self.text
            at = text.find(words, self._seen)
            if at >= 0:
                before = text[self._seen : at]
                self._seen = at + len(words)
                return before
            assert time.monotonic() < deadline, f"{words!r} does not come: {self._all.decode()!r}"
            assert self._read(0.2) or self.process.poll() is None, f"it ended: {self._all.decode()!r}"

    def wait(self) -> int:
        """Until the program ends. Gives its exit code."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self._all.decode()!r}"
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        if not select.select([self._end], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._end, 65536)
        except OSError:  # the program has closed it
            time.sleep(min(seconds, 0.05))
            return False
        self._all += data
        for _ in range(data.count(WHERE)):
            os.write(self._end, b"\x1b[24;1R")
        return bool(data)


@contextlib.contextmanager
def on_a_terminal(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    *,
    columns: int = 80,
    cwd: Path | None = None,
) -> Iterator[Terminal]:
    """Run a command on a new terminal of its own; end it whatever happens."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm-256color"},
        cwd=cwd,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)
