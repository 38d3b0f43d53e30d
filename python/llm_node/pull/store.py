"""Where pulled models lie: `ORG/REPO/…` in the models folder, and below `.pulling` what is under way.

A hidden folder is never listed as a model, and a file gets to its place by a rename when it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_node.node import NodeError
from llm_node.pull.choose import gibibytes

UNDER_WAY = ".pulling"
WISH = ".wish.json"
"""In the folder of a pull that is under way or was stopped: what was asked for."""
RECORD = ".pull.json"
"""Beside pulled files: where each is from, and why it was chosen."""
TEMPLATE = "chat_template.jinja"
"""Beside models: the chat template of those that hold none. As in `rust/node/src/models/scan.rs`."""
SPARE = 2 << 30
"""Bytes that a pull leaves free."""


@dataclass(frozen=True)
class Partial:
    """A pull that was stopped, and what is there of it."""

    model: str
    """As it was typed."""
    update: bool
    """Was it for what is newer than the files that are here?"""
    bytes: int
    total: int
    folder: Path

    @property
    def id(self) -> str:
        """Tells it from others, whichever node looks."""
        return hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]

    def state(self) -> dict[str, Any]:
        """As a pull under way tells its own."""
        return {
            "pull_id": self.id,
            "model": self.model,
            "event": "stopped",
            "bytes": self.bytes,
            "total": self.total,
        }

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """What happens to it: nothing more."""
        yield self.state()


class Store:
    """The models folder, as pulls see it."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        self._under_way = models_dir / UNDER_WAY

    def home(self, repository: str) -> Path:
        """Where a repository's files end up."""
        return self.models_dir / repository

    def staging(self, repository: str) -> Path:
        """Where they are until then."""
        return self._under_way / repository

    def lock(self, repository: str) -> FileLock | None:
        """Holds the repository for this process; None: another one pulls it."""
        path = self._under_way / f"{repository}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return lock

    def begin(self, folder: Path, model: str, total: int, *, update: bool = False) -> None:
        """Note what is under way in a staging folder, and clear what a killed transfer left of it."""
        folder.mkdir(parents=True, exist_ok=True)
        wish = {"model": model, "total": total, "update": update}
        (folder / WISH).write_text(json.dumps(wish), encoding="utf-8")
        for left in (folder / ".cache").rglob("*.incomplete"):
            left.unlink(missing_ok=True)

    def check_room(self, missing: int) -> None:
        """Raise `NodeError` (`disk_full`) where there is no room for so many bytes."""
        self.models_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.models_dir).free
        if missing + SPARE > free:
            raise NodeError(
                "disk_full",
                f"{gibibytes(missing)} are to be fetched and {gibibytes(SPARE)} left free, but "
                f"{self.models_dir} has {gibibytes(free)}; remove models with `llm-node rm`, or name another "
                "--models-dir",
                "model",
                {"required_bytes": missing, "free_bytes": free},
            )

    def keep(self, staged: Path, final: Path) -> None:
        """A whole file gets to its place."""
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staged, final)

    def keep_all(self, staging: Path, home: Path, names: Sequence[str]) -> None:
        """The files of one model get to their places. The first, by which it is found, comes last, and one
        that stood there goes before: so no model is ever made of files of two revisions."""
        if len(names) > 1:
            (home / names[0]).unlink(missing_ok=True)
        for name in reversed(names):
            self.keep(staging / name, home / name)

    def with_hash(self, sha256: str) -> Iterator[Path]:
        """Pulled files that were promised to have this hash, and may have gone since."""
        for record in sorted(self.models_dir.glob(f"*/*/{RECORD}")):
            for name, promised in self.promised(record.parent).items():
                if promised == sha256:
                    yield record.parent / name

    def point(self, name: Path, there: Path) -> bool:
        """Let a name lead to a file that is here already. One of the models folder has a further name from
        then on, so that each of them can be deleted. One of another program is linked to, and never changed.
        False: this file system has no such links."""
        name.parent.mkdir(parents=True, exist_ok=True)
        real = there.resolve()
        try:
            name.unlink(missing_ok=True)
            if real.is_relative_to(self.models_dir.resolve()):
                os.link(real, name)
            else:
                name.symlink_to(real)
        except OSError:
            return False
        return True

    def promised(self, folder: Path) -> dict[str, str]:
        """The hashes of pulled files of a folder, by their names in it."""
        noted = _recorded(folder).get("files", {})
        return {name: of_file["sha256"] for name, of_file in noted.items() if of_file["sha256"]}

    def note(self, folder: Path, source: Mapping[str, Any]) -> None:
        """Add to the record of a folder. `source`: `files`, of each its `sha256` and `revision`; `why`, by
        version."""
        path = folder / RECORD
        known = _recorded(folder)
        for key in ("files", "why"):
            known[key] = {**known.get(key, {}), **source[key]}
        fresh = path.with_suffix(".fresh")
        fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
        os.replace(fresh, path)

    def forget(self, partial: Partial) -> None:
        """Delete what is there of a pull that was stopped. Raises `NodeError` where another process goes on
        with it just then."""
        lock = self.lock(partial.folder.relative_to(self._under_way).as_posix())
        if lock is None:
            raise NodeError(
                "invalid_request",
                f"another process pulls '{partial.model}' just now: stop that one before, with Ctrl-C",
                "model",
            )
        try:
            self.discard(partial.folder)
        finally:
            lock.release()

    def discard(self, folder: Path) -> None:
        """Clear a staging folder, of which this process holds the lock."""
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
            folder.parent.rmdir()

    def partials(self) -> list[Partial]:
        """Pulls that are under way or were stopped."""
        found = []
        for wish in sorted(self._under_way.glob(f"**/{WISH}")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                content = json.loads(wish.read_text(encoding="utf-8"))
                size = sum(each.stat().st_size for each in _weights(wish.parent))
                found.append(
                    Partial(
                        content["model"], content.get("update", False), size, content["total"], wish.parent
                    )
                )
        return found

    def what_goes(self, files: Iterable[str], others: Iterable[str] = ()) -> list[Path]:
        """What is deleted of a model with these files: they, or the link to the folder that they lie in, for
        what it leads to may be somebody else's. Raises `NodeError` where it is not in the models folder, and
        where files of other models (`others`) lie behind the same link."""
        paths = [Path(file) for file in files]
        for path in paths:
            if not path.is_relative_to(self.models_dir):
                raise NodeError("unsupported_feature", f"{path} does not lie in {self.models_dir}", "model")
        links = {self._link_before(path) for path in paths}
        if links <= {None}:
            return paths
        (first, *more) = (link for link in links if link is not None)
        if more or None in links or any(Path(other).is_relative_to(first) for other in others):
            raise NodeError(
                "unsupported_feature",
                f"{paths[0]} lies behind {first}, a link to {first.resolve()}, as other models do: delete "
                "that link yourself, which takes all of them off the list, or the file where it lies",
                "model",
            )
        return [first]

    def remove(self, paths: Iterable[Path]) -> None:
        """Delete these files or links, and the folders that are empty without them."""
        for path in paths:
            path.unlink(missing_ok=True)
            self._clear(path.parent)

    def _link_before(self, path: Path) -> Path | None:
        """The first folder on the way there from the models folder that is a link."""
        folder = self.models_dir
        for part in path.relative_to(self.models_dir).parts[:-1]:
            folder /= part
            if is_link(folder):
                return folder
        return None

    def _clear(self, folder: Path) -> None:
        root = self.models_dir
        while folder != root and folder.is_relative_to(root):
            left = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
            pulled = _recorded(folder).get("files", {})
            if any(name != RECORD and not (name == TEMPLATE and name in pulled) for name in left):
                return
            with contextlib.suppress(OSError):
                for name in left:
                    (folder / name).unlink(missing_ok=True)
                folder.rmdir()
            folder = folder.parent


def is_link(path: Path) -> bool:
    """Does it only lead to a file or a folder?"""
    try:
        os.readlink(path)  # which reads junctions of Windows too
    except OSError:
        return False
    return True


def _recorded(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return known
    return {}


def _weights(folder: Path) -> Iterable[Path]:
    return (
        each
        for each in folder.rglob("*")
        if each.is_file() and each.suffix in (".gguf", ".safetensors", ".incomplete", ".part")
    )


def blob_id_of(path: Path) -> str:
    """What git calls a file. It is read whole, so let it be small."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def sha256_of(path: Path) -> str:
    """Of a whole file. Slow."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(8 << 20):
            digest.update(block)
    return digest.hexdigest()
