"""GGUF files small enough to write by hand: a header and metadata, no tensors."""

from __future__ import annotations

import struct
from pathlib import Path

STRING, UINT32 = 8, 4


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def write_gguf(path: Path, architecture: str, **numbers: int) -> Path:
    """A valid GGUF v3 header of that architecture; `numbers` become uint32 keys ARCHITECTURE.NAME."""
    pairs = [text("general.architecture") + struct.pack("<I", STRING) + text(architecture)]
    pairs += [
        text(f"{architecture}.{name}") + struct.pack("<II", UINT32, value) for name, value in numbers.items()
    ]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs))
    return path
