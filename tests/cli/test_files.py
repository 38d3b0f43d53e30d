"""What is read of files that somebody names: pipes and devices, too, and never for ever."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from llm_node import files


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = os.urandom(200_000)
    writing = threading.Thread(target=pipe.write_bytes, args=(content,))
    writing.start()
    assert files.read_bytes(pipe) == content
    writing.join()
    assert files.read_bytes(Path(os.devnull)) == b""


@pytest.mark.parametrize("writes", [b"", b"begun"])
def test_a_silent_pipe_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bytes
) -> None:
    monkeypatch.setattr(files, "SILENCE_SECONDS", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Held open, it has no end.
    holder = os.open(pipe, os.O_RDWR)
    os.write(holder, writes)
    with pytest.raises(OSError, match=r"nothing came for 0\.1 s"):
        files.read_bytes(pipe)
    os.close(holder)


def test_what_has_no_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there are more than 4 MiB in it"):
        files.read_bytes(Path("/dev/zero"))
    (tmp_path / "large").write_bytes(b"x" * 11)
    assert len(files.read_bytes(tmp_path / "large", 11)) == 11
    with pytest.raises(OSError, match="more than"):
        files.read_bytes(tmp_path / "large", 10)
    with pytest.raises(IsADirectoryError):
        files.read_bytes(tmp_path)
