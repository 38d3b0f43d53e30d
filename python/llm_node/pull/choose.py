"""Which version of a model is fetched where none is named. Pure: figures come in, a choice goes out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_node.pull.hub import File

GIB = 1 << 30

ROWS: Sequence[tuple[int, float]] = ((16_384, 4.2), (8_192, 4.2), (8_192, 3.3), (4_096, 3.3))
"""Tokens of context, and least bits per weight: the first that some version meets is the one that counts."""
MOST_BITS = 8.6
"""Q8_0. More is not worth its memory where there is something smaller."""
MOST_BITS_CPU = 5.0
"""On the CPU each token reads all weights."""
SMALL = 2 * GIB
"""Unless all of them are so few bytes."""
EQUAL = 0.03
"""Sizes that differ by less are equal."""

NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
"""As in `rust/node/src/models/scan.rs`."""
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})")
_DIGIT = re.compile(r"\d+")


@dataclass(frozen=True)
class Version:
    """One model of a repository: a file, or several that belong together."""

    label: str
    """`Q4_K_M`, or the file's name where that does not tell; `safetensors` of a snapshot, which has one."""
    files: tuple[File, ...]
    """The one by which the model is found comes first."""

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Need:
    """Bytes, on GPUs and on the host. On a machine without GPU all is the host's."""

    gpu: int
    host: int

    @property
    def total(self) -> int:
        """Both."""
        return self.gpu + self.host


@dataclass(frozen=True)
class Figures:
    """What an engine says of one version. It serves all: of others the weights alone differ, by size."""

    size: int
    """Bytes of the version's files."""
    weights: Need
    rest: Need
    """What grows neither with the file nor with the context."""
    per_token: Need

    def need(self, size: int, tokens: int) -> Need:
        """Of a version of so many bytes, with so many tokens of context."""
        share = size / self.size

        def one(weights: int, rest: int, per_token: int) -> int:
            return int(weights * share) + rest + per_token * tokens

        return Need(
            one(self.weights.gpu, self.rest.gpu, self.per_token.gpu),
            one(self.weights.host, self.rest.host, self.per_token.host),
        )


@dataclass(frozen=True)
class Machine:
    """What models may take here."""

    room: Need
    on_cpu: bool
    has_gpu_memory: bool
    """Else what is taken of GPUs, where there are any, is the host's."""

    @property
    def bytes(self) -> int:
        """What there is where weights lie."""
        return self.room.gpu if self.has_gpu_memory else self.room.host

    def fits(self, need: Need) -> bool:
        """Is there so much?"""
        if not self.has_gpu_memory:
            return need.total <= self.room.host
        return need.gpu <= self.room.gpu and need.host <= self.room.host


@dataclass(frozen=True)
class Choice:
    """The version, and what is said of it."""

    version: Version
    tokens: int
    """Of context, that it was chosen for."""
    need: Need
    better: Version | None
    """The next larger one, which does not fit or is not worth it."""
    better_need: Need | None


def versions(files: Sequence[File], label: Callable[[str], str | None]) -> list[Version]:
    """The models among a repository's files, the smallest first. `label`: the quantisation in a name."""
    groups: dict[str, list[File]] = {}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        stem = name[: -len(".gguf")]
        if not name.lower().endswith(".gguf") or name.startswith(NO_MODELS):
            continue
        match = _PART.fullmatch(stem)
        groups.setdefault(f"{folder}/{match['stem'] if match else stem}", []).append(file)
    named = [
        (key.rpartition("/")[2], sorted(group, key=lambda file: file.path)) for key, group in groups.items()
    ]
    labels = [label(stem) or stem for stem, _ in named]
    found = [
        Version(own if labels.count(own) == 1 else stem, tuple(group))
        for own, (stem, group) in zip(labels, named, strict=True)
        if _is_whole(group)
    ]
    return sorted(found, key=lambda version: version.size)


def _is_whole(group: Sequence[File]) -> bool:
    matches = [_PART.fullmatch(file.path[: -len(".gguf")]) for file in group]
    first = matches[0]
    return first is None or len(group) == int(first["parts"])


def bits(version: Version, parameters: int | None) -> float:
    """Bits per weight: of its size, or by its name where nobody knows how many weights there are."""
    if parameters:
        return version.size * 8 / parameters
    if version.label.upper() in ("F16", "BF16", "FP16"):
        return 16
    digits = _DIGIT.search(version.label)
    return 16.0 if digits is None else float(digits[0]) + 0.5


def choose(
    found: Sequence[Version],
    figures: Figures,
    parameters: int | None,
    machine: Machine,
    longest: int | None,
    wanted: int | None = None,
) -> Choice | None:
    """The largest version that fits in the first of `ROWS` that has one; None: none does. `longest`: tokens
    that the model takes. `wanted`: tokens that were asked for, in place of those of the rows."""
    able = _worth_it(found, parameters, machine)
    for tokens, least in ROWS:
        length = min(wanted or tokens, longest or tokens)
        fitting = [
            version
            for version in able
            if (bits(version, parameters) >= least or _is_native(version))
            and machine.fits(figures.need(version.size, length))
        ]
        if fitting:
            best = _best(fitting)
            better = min((it for it in found if it.size > best.size * (1 + EQUAL)), key=_size, default=None)
            return Choice(
                best,
                length,
                figures.need(best.size, length),
                better,
                None if better is None else figures.need(better.size, length),
            )
    return None


def may_fit(parameters: int | None, machine: Machine) -> bool | None:
    """Has some version of a model with so many weights room here, by the size of its weights alone? None:
    nobody can tell."""
    if not parameters or not machine.bytes:
        return None
    least = min(bits for _, bits in ROWS)
    return parameters * least / 8 <= machine.bytes


def _worth_it(found: Sequence[Version], parameters: int | None, machine: Machine) -> list[Version]:
    able = [version for version in found if bits(version, parameters) <= MOST_BITS] or list(found)
    if not machine.on_cpu:
        return able
    quick = [
        version
        for version in able
        if (bits(version, parameters) <= MOST_BITS_CPU or version.size < SMALL)
        and not version.label.upper().removeprefix("UD-").startswith("IQ")
    ]
    return quick or [min(able, key=_size)]


def _is_native(version: Version) -> bool:
    """Of a form in which the model was made."""
    return version.label.upper() in ("MXFP4", "NVFP4")


def _size(version: Version) -> int:
    return version.size


def _best(fitting: Sequence[Version]) -> Version:
    """The largest; of equals `UD-` before plain, and K before `_0`."""
    largest = max(version.size for version in fitting)
    equal = [version for version in fitting if version.size >= largest * (1 - EQUAL)]

    def rank(version: Version) -> tuple[bool, bool, int]:
        label = version.label.upper()
        return label.startswith("UD-"), "_K" in label, version.size

    return max(equal, key=rank)


def gibibytes(size: int) -> str:
    """For people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.1f} MiB"
