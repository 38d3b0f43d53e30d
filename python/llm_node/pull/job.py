"""Pulls under way: each a job of the node, which goes on whoever looks at it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from llm_node.files import FULL
from llm_node.node import Node, NodeError, quantization_in
from llm_node.pull import choose, estimate, here, link, name, snapshot
from llm_node.pull.choose import Choice, Version, gibibytes
from llm_node.pull.hub import File, Hub, Repository
from llm_node.pull.name import HubName, Link
from llm_node.pull.store import TEMPLATE, Partial, Store, blob_id_of, is_link, sha256_of

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Transfers."""
TELL_SECONDS = 0.25
"""Between two reports of how far it is."""
WINDOW_SECONDS = 5.0
"""Over which the speed is measured."""
LOOK_SECONDS = 0.5
"""How often one looks whether another process has ended its pull of the same."""
KEPT = 32
"""Pulls that have ended and are remembered."""
OVER = frozenset({"ready", "error"})
CANCELLED = "cancelled"

Event = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What somebody asks for."""

    model: str
    sha256: str | None = None
    context_length: int | None = None
    update: bool = False
    """What the repository has by now is wanted, also where the model is here."""


@dataclass(frozen=True)
class Removed:
    """What is no model of the list any more."""

    model_id: str
    left_in: str | None = None
    """The folder where its files still are, where links are all that was deleted."""


class Job:
    """One pull."""

    def __init__(self, wish: Wish) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.wish = wish
        self.began = time.time()
        self.task: asyncio.Task[None] | None = None
        self._resolved: Event | None = None
        self._event: Event = {"event": "resolving"}
        self._marks: collections.deque[tuple[float, int]] = collections.deque(maxlen=64)
        self._looks: list[asyncio.Event] = []

    @property
    def event(self) -> str:
        """What happened to it last."""
        return str(self._event["event"])

    @property
    def is_over(self) -> bool:
        """Has it ended, well or not?"""
        return self.event in OVER

    @property
    def was_stopped(self) -> bool:
        """Has somebody ended it?"""
        return self.event == "error" and self._event["error"]["code"] == CANCELLED

    def state(self) -> Event:
        """All that is known of it by now."""
        resolved = {key: value for key, value in (self._resolved or {}).items() if key != "event"}
        return {**self._named(), "began": self.began, **resolved, **self._event}

    async def follow(self) -> AsyncIterator[Event]:
        """What happens to it, from what is known now to its end; how far it is, a few times a second."""
        look = asyncio.Event()
        self._looks.append(look)
        try:
            has_resolved, last = False, None
            while True:
                look.clear()
                if self._resolved is not None and not has_resolved:
                    has_resolved = True
                    yield {**self._named(), **self._resolved}
                event = self._event
                if event is not last:
                    last = event
                    yield {**self._named(), **event}
                if event["event"] in OVER:
                    return
                await look.wait()
                if self._event["event"] == "progress":
                    await asyncio.sleep(TELL_SECONDS)
        finally:
            self._looks.remove(look)

    def _named(self) -> Event:
        return {"pull_id": self.id, "model": self.wish.model}

    def resolved(self, **what: Any) -> None:
        """It is known what is fetched."""
        self._resolved = {"event": "resolved", **what}
        self._wake()

    def tell(self, event: str, **what: Any) -> None:
        """Something happened."""
        self._event = {"event": event, **what}
        self._wake()

    def progress(self, done: int, total: int) -> None:
        """So many bytes are there."""
        now = time.monotonic()
        self._marks.append((now, done))
        first, was = next((mark for mark in self._marks if now - mark[0] <= WINDOW_SECONDS), (now, done))
        speed = (done - was) / (now - first) if now > first else 0.0
        self.tell(
            "progress",
            bytes=done,
            total=total,
            bytes_per_second=round(max(speed, 0.0)),
            eta_seconds=round((total - done) / speed) if speed > 0 else None,
        )

    def _wake(self) -> None:
        for look in self._looks:
            look.set()


class Pulls:
    """All pulls of one node."""

    def __init__(
        self, node: Node, models_dir: Path, *, caches: here.Caches = (), offline: bool = False
    ) -> None:
        """`caches`: folders of other programs, whose files need not be fetched again."""
        self._node = node
        self._store = Store(models_dir.absolute())
        self._caches = caches
        self._offline = offline
        self._jobs: dict[str, Job] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    def all(self) -> list[Event]:
        """Of each name the latest: under way, ended lately, or stopped, by this node or before it began."""
        jobs = {job.wish.model: job for job in self._jobs.values()}
        stopped = {it.model: it for it in self._store.partials()}
        states = {model: job.state() for model, job in jobs.items()}
        for model, partial in stopped.items():
            job = jobs.get(model)
            if job is None or job.event == "ready":
                states[model] = partial.state()
            elif job.was_stopped:
                states[model] = {**partial.state(), "pull_id": job.id}
        return list(states.values())

    def get(self, pull_id: str) -> Job | Partial:
        """Raises `NodeError` (`not_found`)."""
        if pull_id in self._jobs:
            return self._jobs[pull_id]
        for partial in self._store.partials():
            if partial.id == pull_id:
                return partial
        raise NodeError("not_found", f"There is no pull {pull_id!r}", "pull_id")

    def begin(self, wish: Wish) -> Job:
        """Pull it, or join the pull of the same. Raises `NodeError` at once where the wish is none."""
        source = self._source(wish)
        if any(it.update for it in self._store.partials() if it.model == wish.model):
            wish = dataclasses.replace(wish, update=True)  # it goes on with that
        for job in self._jobs.values():
            if not job.is_over and job.wish == wish:
                return job
        job = Job(wish)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, source))
        over = [job.id for job in self._jobs.values() if job.is_over]
        for pull_id in over[: max(0, len(over) - KEPT)]:
            del self._jobs[pull_id]
        return job

    async def cancel(self, pull: Job | Partial, *, discard: bool) -> None:
        """Stop it. What is whole stays for the next time, unless it is to be discarded."""
        if isinstance(pull, Partial):
            if discard:
                self._store.forget(pull)
            return
        if pull.task is not None and not pull.is_over:
            pull.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pull.task
        if discard:
            self.discard(pull.wish.model)
            # Nothing is left that one could go on with.
            of_name = [
                job for job in self._jobs.values() if job.wish.model == pull.wish.model and job.is_over
            ]
            for job in of_name:
                del self._jobs[job.id]

    def discard(self, model: str) -> bool:
        """Forget what is there of a pull that was stopped. Was there any? Raises `NodeError` where another
        process goes on with it just then."""
        found = [partial for partial in self._store.partials() if partial.model == model]
        for partial in found:
            self._store.forget(partial)
        return bool(found)

    async def table(self, wish: Wish) -> Event:
        """What a pull would choose among, and what it would choose."""
        source = self._source(wish)
        if isinstance(source, Link):
            size = await link.size_of(source)
            return {"model": source.name, "versions": [], "chosen": None, "size_bytes": size, "why": []}
        async with Hub() as hub:
            repository = await hub.repository(source.repository, source.revision)
            found = await self._versions(hub, repository)
            if wish.update and (old := await self._old(source)) is not None:
                version = self._same(old, repository, found)
                missing = await self._missing(repository, _files(repository, version))
                return {
                    "model": old["model_id"],
                    "versions": [],
                    "chosen": version.label,
                    "size_bytes": sum(file.size for file in missing),
                    "why": _what_is_newer(repository, version, missing),
                }
            choice, probe, machine = await self._choice(wish, hub, repository, found)
            rows = [
                {
                    "version": version.label,
                    "size_bytes": version.size,
                    "bits": round(choose.bits(version, probe.parameters), 2),
                    "needs_bytes": (need := probe.figures.need(version.size, choice.tokens)).total,
                    "fits": machine.fits(need),
                }
                for version in found
            ]
            return {
                "model": f"{repository.name}:{choice.version.label}",
                "versions": rows,
                "chosen": choice.version.label,
                "context_length": choice.tokens,
                "why": _why(repository.name, choice, machine),
            }

    async def search(self, words: str) -> list[dict[str, Any]]:
        """Repositories of the hub with GGUF files; without words, those that many look at now. `fits`: has
        some version of it room here? None where nobody can tell."""
        self._may_go_out()
        async with Hub() as hub:
            found = await hub.search(words)
        machine = await estimate.machine(self._node)
        return [{**each, "fits": choose.may_fit(each["parameters"], machine)} for each in found]

    async def remove(self, model: str, *, force: bool = False) -> Removed:
        """Delete a model of the models folder, or what is there of a stopped pull. Of what is a link, or lies
        in a folder that is one, the link alone goes. Raises `NodeError`: what other programs have brought is
        theirs."""
        for job in self._jobs.values():
            if job.wish.model == model and not job.is_over:
                await self.cancel(job, discard=True)
                return Removed(model)
        if self.discard(model):
            return Removed(model)
        row = await self._node.model(model)
        model_id, origin = str(row["model_id"]), row.get("origin")
        if self._node.is_alias(model) and model_id != model:
            raise NodeError(
                "invalid_request",
                f"'{model}' is a further name of '{model_id}': delete that, or take the name out of "
                "`aliases` in the settings file",
                "model",
            )
        if origin != "own":
            raise NodeError("unsupported_feature", f"'{model_id}' {_whose(model_id, str(origin))}", "model")
        others = await self._node.models()
        goes = await asyncio.to_thread(
            self._store.what_goes,
            row["files"],
            [file for other in others if other["model_id"] != model_id for file in other["files"]],
        )
        left_in = next((_left_in(path) for path in goes if is_link(path)), None)
        if row["requests"] and not force:
            raise NodeError(
                "invalid_request",
                f"'{model_id}' has {row['requests']} requests under way; with force they are waited for, and "
                "ended after 30 s",
                "force",
            )
        if row["status"] in ("loaded", "loading", "waiting"):
            await self._node.unload(model_id)
        try:
            await asyncio.to_thread(self._store.remove, goes)
        except OSError as error:
            raise _not_written(error, self._store.models_dir) from None
        return Removed(model_id, left_in)

    async def close(self) -> None:
        """Stop all."""
        for job in self._jobs.values():
            await self.cancel(job, discard=False)

    def _source(self, wish: Wish) -> HubName | Link:
        self._may_go_out()
        source = name.read(wish.model, wish.sha256)
        if wish.update and isinstance(source, Link):
            raise NodeError(
                "invalid_request",
                "What a link leads to has no revisions: delete it, and fetch it anew",
                "update",
            )
        return source

    def _may_go_out(self) -> None:
        if self._offline:
            raise NodeError("offline", "This node fetches nothing (--offline yes)")

    async def _run(self, job: Job, source: HubName | Link) -> None:
        try:
            pulled = await self._pulled(job, source)
            log.info("'%s' is here", pulled["model_id"])
            job.tell("ready", row=pulled)
        except asyncio.CancelledError:
            job.tell("error", error={"code": CANCELLED, "message": "The pull was stopped"})
            raise
        except NodeError as fault:
            log.info("the pull of '%s' has ended: %s", job.wish.model, fault.message)
            job.tell("error", error={"code": fault.code, "message": fault.message, **(fault.details or {})})
        except Exception:
            log.exception("defect while pulling '%s'", job.wish.model)
            job.tell(
                "error", error={"code": "internal", "message": "Internal error; the log has the details"}
            )

    async def _pulled(self, job: Job, source: HubName | Link) -> dict[str, Any]:
        try:
            return await (self._link(job, source) if isinstance(source, Link) else self._hub(job, source))
        except OSError as error:
            if error.filename is None and error.errno not in FULL:
                raise  # it is of no file
            raise _not_written(error, self._store.models_dir) from None

    # ---- the hub ---------------------------------------------------------------------------------

    async def _hub(self, job: Job, source: HubName) -> dict[str, Any]:
        will_do = not job.wish.update and source.revision is None
        if will_do and (row := await self._here(source)) is not None:
            return row
        async with self._alone(job, source.repository), Hub() as hub:
            # Another process may have brought it meanwhile.
            if will_do and (row := await self._here(source)) is not None:
                return row
            repository = await hub.repository(source.repository, source.revision)
            found = await self._versions(hub, repository)
            old = await self._old(source) if job.wish.update else None
            if old is None:
                version, why = await self._decide(job.wish, source, hub, repository, found)
                files = _files(repository, version)
                missing = await self._missing(repository, files)
            else:
                version = self._same(old, repository, found)
                files = _files(repository, version)
                missing = await self._missing(repository, files)
                why = _what_is_newer(repository, version, missing)
            total = sum(file.size for file in files)
            home, staging = self._store.home(repository.name), self._store.staging(repository.name)
            copies = await asyncio.to_thread(self._copies, missing)
            if wanted := [file for file in missing if file not in copies]:
                self._store.check_room(
                    sum(file.size for file in wanted if not _is_staged(staging / file.path, file.size))
                )
            self._store.begin(staging, job.wish.model, total, update=job.wish.update)
            used = {
                file: path for file, path in copies.items() if self._store.point(staging / file.path, path)
            }
            wanted = [file for file in missing if file not in used]
            there = total - sum(file.size for file in wanted)
            job.resolved(
                version=version.label,
                files=[{"path": file.path, "size_bytes": file.size} for file in files],
                total=total,
                revision=repository.commit,
                why=[*why, *_what_is_here(used.values())],
            )
            for file in wanted:
                before = there

                def told(done: int, before: int = before) -> None:
                    job.progress(before + done, total)

                told(0)
                await self._fetched(hub, repository, file, staging, told)
                there += file.size
            job.tell("verifying", bytes=total, total=total)
            for file in wanted:
                await _check(staging / file.path, file.sha256, file.blob_id)
            self._store.keep_all(staging, home, [file.path for file in missing])
            self._store.note(
                home,
                {
                    "files": {
                        file.path: {"sha256": file.sha256, "revision": repository.commit} for file in files
                    },
                    "why": {version.label: why} if old is None else {},
                },
            )
            if old is not None:
                now = {home / file.path for file in files}
                self._store.remove(path for path in map(Path, old["files"]) if path not in now)
            self._store.discard(staging)
            return await self._row(home / version.files[0].path)

    async def _missing(self, repository: Repository, files: Sequence[File]) -> list[File]:
        """Those of a repository's files that are not here as it has them."""
        home = self._store.home(repository.name)
        promised = self._store.promised(home)

        async def is_there(file: File) -> bool:
            path = home / file.path
            if not path.is_file() or path.stat().st_size != file.size:
                return False
            if file.sha256 is None:
                return file.blob_id in (None, await asyncio.to_thread(blob_id_of, path))
            return file.sha256 == (promised.get(file.path) or await asyncio.to_thread(sha256_of, path))

        return [file for file in files if not await is_there(file)]

    def _copies(self, files: Sequence[File]) -> dict[File, Path]:
        """Those of these files that are here under other names, and where."""
        found = {}
        for file in files:
            if file.sha256 is None:
                continue
            path = here.find(self._store, self._caches, file.sha256, file.size)
            if path is not None:
                found[file] = path
        return found

    async def _old(self, source: HubName) -> dict[str, Any] | None:
        """The model that is to be updated; None: it is not here. Raises `NodeError` where nobody said which,
        and for one that another program looks after."""
        row = await self._here(source)
        if row is None and source.version is None:
            known = f"{source.repository.lower()}:"
            ids = [str(it["model_id"]) for it in await self._node.models()]
            several = [model_id for model_id in ids if model_id.lower().startswith(known)]
            if several:
                raise NodeError("model_not_found", f"Name one of {', '.join(several)}", "model")
        if row is not None and row["origin"] != "own":
            raise NodeError(
                "unsupported_feature",
                f"'{row['model_id']}' is not in the models folder: the program that brought it updates it",
                "model",
            )
        return row

    def _same(self, old: Mapping[str, Any], repository: Repository, found: Sequence[Version]) -> Version:
        """What the repository has by now of a version that is here."""
        home = self._store.home(repository.name)
        files = {Path(each).relative_to(home).as_posix() for each in old["files"]}
        for version in found:
            if any(file.path in files for file in version.files):
                return version
        return _named(str(old["model_id"]).partition(":")[2], found, repository.name)

    async def _fetched(
        self, hub: Hub, repository: Repository, file: File, staging: Path, told: Callable[[int], None]
    ) -> None:
        try:
            await hub.fetch(repository, file, staging, told)
        except NodeError as fault:
            if fault.code != "disk_full":
                raise
            self._store.check_room(file.size)
            raise

    async def _versions(self, hub: Hub, repository: Repository) -> list[Version]:
        found = choose.versions(repository.files, quantization_in)
        if found:
            return found
        if await self._is_read(snapshot.FORMAT) and (only := await snapshot.version(hub, repository)):
            return [only]
        others = await hub.search("", base=repository.name, limit=5)
        named = ", ".join(each["id"] for each in others)
        also = f" Made from it: {named}" if named else " `llm-node search WORDS` looks for one that has"
        raise NodeError("format_mismatch", f"{repository.name} has no GGUF file.{also}", "model")

    async def _is_read(self, wanted: str) -> bool:
        """Does an engine here read this format?"""
        usable = (engine for engine in await self._node.engines() if engine["status"] == "loaded")
        return any(wanted == it.lower() for engine in usable for it in engine["formats"])

    async def _decide(
        self, wish: Wish, source: HubName, hub: Hub, repository: Repository, found: Sequence[Version]
    ) -> tuple[Version, list[str]]:
        """The version, and what is to be said of it."""
        if source.version is not None:
            version = _named(source.version, found, repository.name)
            return version, await self._what_it_takes(wish, hub, repository, version)
        try:
            choice, _, machine = await self._choice(wish, hub, repository, found)
        except NodeError as fault:
            if fault.code in ("gpu_not_found", "engine_not_found"):
                labels = ", ".join(version.label for version in found)
                raise NodeError(
                    fault.code,
                    f"{fault.message}. Or name the version to fetch, such as "
                    f"{repository.name}:{found[0].label}; there are {labels}",
                    "model",
                ) from None
            raise
        return choice.version, _why(repository.name, choice, machine)

    async def _choice(
        self, wish: Wish, hub: Hub, repository: Repository, found: Sequence[Version]
    ) -> tuple[Choice, estimate.Probe, choose.Machine]:
        """Of these versions the one that fits, by the figures of its own header. Raises `NodeError`."""
        probe = await estimate.probe(self._node, hub, repository, _first(found), wish.context_length)
        machine = await estimate.machine(self._node)
        choice = _chosen(found, probe, machine, wish)
        if choice.version is not probe.version:
            # Its own header may say something else than the first one's.
            probe = await estimate.probe(self._node, hub, repository, choice.version, wish.context_length)
            choice = _chosen(found, probe, machine, wish)
        return choice, probe, machine

    async def _what_it_takes(
        self, wish: Wish, hub: Hub, repository: Repository, version: Version
    ) -> list[str]:
        """Of a version that was named, as far as somebody here can tell."""
        said = [f"{repository.name}: {version.label}, {gibibytes(version.size)}{_in_files(version)}."]
        try:
            probe = await estimate.probe(self._node, hub, repository, version, wish.context_length)
        except NodeError as fault:
            if fault.code not in ("gpu_not_found", "engine_not_found"):
                raise
            return [*said, f"Whether it runs here is not known. {fault.message}"]
        machine = await estimate.machine(self._node)
        wanted = wish.context_length or estimate.USUAL_TOKENS
        tokens = min(wanted, probe.context_length or wanted)
        return [*said, f"{_needs(probe.figures.need(version.size, tokens), tokens, machine)}."]

    @contextlib.asynccontextmanager
    async def _alone(self, job: Job, repository: str) -> AsyncIterator[None]:
        """As the only pull of this repository on this machine, and as one of few on this node. Who waits for
        another process sees how far that one is."""
        async with self._room:
            lock: FileLock | None
            staging = self._store.staging(repository)
            while (lock := self._store.lock(repository)) is None:
                of_other = [it for it in self._store.partials() if it.folder == staging]
                if of_other and job.event != "resolving":
                    job.progress(of_other[0].bytes, of_other[0].total)
                elif job.event != "waiting":
                    job.tell("waiting")
                await asyncio.sleep(LOOK_SECONDS)
            try:
                yield
            finally:
                lock.release()

    async def _here(self, source: HubName) -> dict[str, Any] | None:
        """The model, if it is here already, whoever brought it."""
        asked = source.repository if source.version is None else f"{source.repository}:{source.version}"
        file = (source.version or "").lower()
        if file.endswith(name.GGUF):
            rows = await self._node.models()
            of_file = [
                row for row in rows if any(each.lower().endswith(f"/{file}") for each in row.get("files", ()))
            ]
            row = of_file[0] if len(of_file) == 1 else None
        else:
            try:
                row = await self._node.model(asked)
            except NodeError as fault:
                if fault.code != "model_not_found":
                    raise
                return None
        if row is None or row.get("error"):
            return None
        return row if row["model_id"].partition(":")[0].lower() == source.repository.lower() else None

    async def _row(self, path: Path) -> dict[str, Any]:
        """The model that a file is the first of."""
        wanted = str(path)
        for row in await self._node.models():
            if wanted in row.get("files", ()):
                return row
        raise NodeError("model_corrupt", f"{path} is here, and is no model that is known", "model")

    # ---- a link ----------------------------------------------------------------------------------

    async def _link(self, job: Job, source: Link) -> dict[str, Any]:
        final = self._store.models_dir / f"{source.name}{name.GGUF}"
        if final.is_file():
            await _check(final, source.sha256, delete=False)
            return await self._row(final)
        async with self._alone(job, source.name):
            if source.sha256 is not None:
                path = here.find(self._store, self._caches, source.sha256, None)
                if path is not None and self._store.point(final, path):
                    size = final.stat().st_size
                    job.resolved(
                        version=None,
                        files=[{"path": final.name, "size_bytes": size}],
                        total=size,
                        revision=None,
                        why=_what_is_here([path]),
                    )
                    self._store.discard(self._store.staging(source.name))
                    return await self._row(final)
            total = await link.size_of(source)
            staging = self._store.staging(source.name)
            self._store.check_room(total)
            job.resolved(
                version=None,
                files=[{"path": final.name, "size_bytes": total}],
                total=total,
                revision=None,
                why=[f"{source.name}: {gibibytes(total)}."],
            )
            self._store.begin(staging, job.wish.model, total)
            part = staging / f"{final.name}.part"
            await link.fetch(source, part, lambda done: job.progress(done, total))
            job.tell("verifying", bytes=total, total=total)
            await _check(part, source.sha256)
            self._store.keep(part, final)
            self._store.discard(staging)
            return await self._row(final)


def _chosen(found: Sequence[Version], probe: estimate.Probe, machine: choose.Machine, wish: Wish) -> Choice:
    choice = choose.choose(
        found, probe.figures, probe.parameters, machine, probe.context_length, wish.context_length
    )
    if choice is not None:
        return choice
    smallest = found[0]
    wanted = wish.context_length or choose.ROWS[-1][0]
    tokens = min(wanted, probe.context_length or wanted)
    need = probe.figures.need(smallest.size, tokens)
    raise NodeError(
        "oom_ram" if machine.on_cpu else "oom_vram",
        f"No version of it fits well. The smallest, {smallest.label}, needs {gibibytes(need.total)} with "
        f"{tokens:,} tokens of context; {_room(machine)}. Name it to fetch it all the same: "
        f"{wish.model.partition(':')[0]}:{smallest.label}",
        "model",
        {"required_bytes": need.total, "room_bytes": machine.room.total},
    )


def _files(repository: Repository, version: Version) -> list[File]:
    """What is fetched of a version, the model first: with it the chat template that lies beside it."""
    return [*version.files, *(file for file in repository.files if file.path == TEMPLATE)]


def _first(found: Sequence[Version]) -> Version:
    """The one whose header is read first: one that is likely to be chosen, in as few files as may be."""
    return min(
        found, key=lambda version: (len(version.files), version.label.upper() != "Q4_K_M", version.size)
    )


def _named(wanted: str, found: Sequence[Version], repository: str) -> Version:
    low = wanted.lower()
    for version in found:
        paths = [file.path.lower() for file in version.files]
        names = [path.rpartition("/")[2] for path in paths]
        if low == version.label.lower() or low in (*paths, *names) or f"{low}.gguf" in names:
            return version
    labels = ", ".join(version.label for version in found)
    raise NodeError("model_not_found", f"{repository} has no version {wanted!r}; there are {labels}", "model")


def _why(repository: str, choice: Choice, machine: choose.Machine) -> list[str]:
    """The three lines that say what was chosen, what it needs, and what the next one would need."""
    version, better = choice.version, choice.better
    if better is None or choice.better_need is None:
        beyond = "There is no larger version."
    else:
        reason = "which is slower here" if machine.fits(choice.better_need) else "more than there is"
        beyond = (
            f"The next larger one, {better.label}, needs {gibibytes(choice.better_need.total)}, {reason}."
        )
    return [
        f"{repository}: {version.label}, {gibibytes(version.size)}{_in_files(version)}.",
        f"{_needs(choice.need, choice.tokens, machine)}.",
        beyond,
    ]


def _what_is_here(paths: Iterable[Path]) -> list[str]:
    """Why these files are not fetched."""
    return [f"It is here already, and is not fetched: {path}" for path in paths]


def _left_in(link: Path) -> str:
    """The folder of what a link leads to, or leads to itself."""
    real = link.resolve()
    return str(real if real.is_dir() else real.parent)


def _what_is_newer(repository: Repository, version: Version, missing: Sequence[File]) -> list[str]:
    """In place of the reasons for a choice."""
    size = sum(file.size for file in missing)
    return [
        f"{repository.name}: {version.label}, {gibibytes(version.size)}{_in_files(version)}.",
        f"Revision {repository.commit[:12]} has {gibibytes(size)} that are newer than what is here."
        if missing
        else f"What is here is that of revision {repository.commit[:12]}, the newest.",
    ]


def _needs(need: choose.Need, tokens: int, machine: choose.Machine) -> str:
    return f"It needs {gibibytes(need.total)} with {tokens:,} tokens of context; {_room(machine)}"


def _room(machine: choose.Machine) -> str:
    who = "the GPU" if machine.has_gpu_memory else "this machine"
    return f"{who} has {gibibytes(machine.bytes)}"


def _in_files(version: Version) -> str:
    return "" if len(version.files) == 1 else f" in {len(version.files)} files"


def _not_written(error: OSError, folder: Path) -> NodeError:
    """Of a file in the models folder."""
    what_to_do = (
        "give the user who runs the node room and the right to write there, or name another --models-dir"
    )
    return NodeError(
        "disk_full" if error.errno in FULL else "invalid_request",
        f"{error.filename or folder} cannot be written: {error.strerror or error}; {what_to_do}",
        "model",
    )


def _is_staged(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


async def _check(path: Path, sha256: str | None, blob_id: str | None = None, *, delete: bool = True) -> None:
    """Raise `NodeError` (`checksum_mismatch`) where the file is not what was promised; it is then deleted.
    `blob_id` counts where no sha256 is known."""
    kind, expected, hashed = ("sha256", sha256, sha256_of) if sha256 else ("git id", blob_id, blob_id_of)
    if expected is None:
        return
    found = await asyncio.to_thread(hashed, path)
    if found != expected:
        if delete:
            await asyncio.to_thread(path.unlink)
        raise NodeError(
            "checksum_mismatch",
            f"{path.name} has the {kind} {found}, and should have {expected}"
            f"{'; it was deleted, and is fetched anew next time' if delete else ''}",
            "model",
            {"expected": expected, "found": found},
        )


_WHOSE: Mapping[str, str] = {
    "demo": "comes with llm-node; `--demo-model no` hides it",
    "hub": "lies in the hub's cache; to delete it: hf cache rm model/{repository}",
    "llama-cpp": "lies in llama.cpp's cache; delete its files there",
    "lm-studio": "is LM Studio's; delete it there",
    "ollama": "is Ollama's; to delete it: ollama rm {name}",
}


def _whose(model_id: str, origin: str) -> str:
    repository = model_id.partition(":")[0]
    of_ollama = model_id.removeprefix("ollama/") if model_id.startswith("ollama/") else f"hf.co/{model_id}"
    return _WHOSE.get(origin, "is not in the models folder").format(repository=repository, name=of_ollama)
