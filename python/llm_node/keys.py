"""API keys: a file of them, and who may do what.

A line of the file is `NAME SCOPE HASH`. Keys are 256 random bits, so one round of SHA-256 hides them: there
is nothing to guess that a slow hash would protect. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llm_node import files

PREFIX = "llm-node-"
"""Of each key, so that one which lies around is known for what it is."""
RANDOM_BYTES = 32

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


class Scope(enum.Enum):
    """What a key is good for."""

    INFERENCE = "inference"
    """To ask models, and to see which there are."""
    ADMIN = "admin"
    """Everything."""


class KeysError(ValueError):
    """The file is of no use. The message names it, and the line."""


@dataclass(frozen=True)
class Key:
    """One of them, without itself."""

    name: str
    scope: Scope
    hash: str


class Keys:
    """Those that a node takes."""

    def __init__(self, keys: Iterable[Key]) -> None:
        """`keys`: two of them may have one name."""
        self._keys = tuple(keys)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Those of a file. Raises `KeysError`."""
        try:
            lines = files.read_text(path).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise KeysError(f"the file of keys {path} cannot be read: {reason}") from None
        return cls(
            _key(line, f"{path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.lstrip().startswith("#")
        )

    def with_own(self, secret: str) -> Keys:
        """And one for the commands of whom the node belongs to."""
        return Keys((*self._keys, Key("own", Scope.ADMIN, _hashed(secret))))

    def become(self, others: Keys) -> list[str]:
        """Be those from now on. Gives what has changed, in words."""
        before, self._keys = set(self._keys), others._keys
        added = [f"key {key.name} ({key.scope.value}): added" for key in self._keys if key not in before]
        return [*added, *(f"key {key.name}: removed" for key in before - set(self._keys))]

    def has(self, name: str) -> bool:
        """Is there one of that name?"""
        return any(key.name == name for key in self._keys)

    def find(self, secret: str) -> Key | None:
        """Whose it is. Takes as long for each that is wrong."""
        hashed = _hashed(secret)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.hash, hashed):
                found = key
        return found


def fresh() -> str:
    """A key that nobody has."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def add(path: Path, name: str, scope: Scope) -> str:
    """Write a new key into a file, which is made where there is none; gives the key, which nothing else has.

    Raises `KeysError`, also where the name is taken.
    """
    if not _NAME.fullmatch(name):
        raise KeysError("a key's name has 1 to 64 letters, digits and the characters . _ @ -")
    if path.exists() and Keys.read(path).has(name):
        raise KeysError(f"{path} has a key of the name {name} already")
    secret = fresh()
    is_new = not path.exists()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{name} {scope.value} {_hashed(secret)}\n")
    except OSError as error:
        if is_new:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise KeysError(f"{path} cannot be written: {error.strerror}") from None
    return secret


def _key(line: str, where: str) -> Key:
    parts = line.split()
    if len(parts) != 3 or not _NAME.fullmatch(parts[0]) or not _HASH.fullmatch(parts[2]):
        raise KeysError(f"{where}: expected NAME SCOPE HASH, as `llm-node key new` writes it")
    scopes = {scope.value: scope for scope in Scope}
    if parts[1] not in scopes:
        raise KeysError(f"{where}: the scope is one of {', '.join(scopes)}, not {parts[1]!r}")
    return Key(parts[0], scopes[parts[1]], parts[2])


def _hashed(secret: str) -> str:
    # A client may send any bytes as its key.
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()
