"""How this llm-node was installed, and so the command that adds a package to it or takes one away.

Makes commands; runs none.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NAME = "llm-node"
"""Of the distribution."""
Kind = Literal["pip", "uv", "uv-tool", "pipx", "system"]
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


@dataclass(frozen=True)
class Installation:
    """Where llm-node is, as far as packages are concerned."""

    kind: Kind
    """`system`: a Python of the operating system, whose packages others look after."""
    python: str

    @property
    def may_change(self) -> bool:
        """May llm-node run the command itself?"""
        return self.kind != "system"

    def add(self, requirement: str) -> list[str]:
        """The command that brings a package: `llm-node[cuda]`, another name, or the path of a wheel."""
        own = requirement.startswith(f"{NAME}[")
        match self.kind:
            case "uv-tool":
                return ["uv", "tool", "install", "--force", *([] if own else ["--with", requirement, NAME]),
                        *([requirement] if own else [])]  # fmt: skip
            case "pipx":
                return ["pipx", "inject", NAME, *(packages_of(requirement) if own else [requirement])]
            case "uv":
                return ["uv", "pip", "install", "--python", self.python, requirement]
        return [self.python, "-m", "pip", "install", requirement]

    def update(self, name: str) -> list[str]:
        """The command that brings the newest of a package and of llm-node itself, which go together."""
        match self.kind:
            case "uv-tool":
                return ["uv", "tool", "upgrade", NAME]
            case "pipx":
                return ["pipx", "upgrade", "--include-injected", NAME]
            case "uv":
                return ["uv", "pip", "install", "--python", self.python, "--upgrade", NAME, name]
        return [self.python, "-m", "pip", "install", "--upgrade", NAME, name]

    def remove(self, name: str) -> list[str]:
        """The command that takes a package away."""
        match self.kind:
            case "uv-tool":
                return ["uv", "tool", "install", "--force", NAME]
            case "pipx":
                return ["pipx", "uninject", NAME, name]
            case "uv":
                return ["uv", "pip", "uninstall", "--python", self.python, name]
        return [self.python, "-m", "pip", "uninstall", "--yes", name]


def here() -> Installation:
    """The one that runs."""
    return of(
        Path(sys.prefix),
        Path(sysconfig.get_path("stdlib")),
        is_virtual=sys.prefix != sys.base_prefix,
        has_pip=importlib.util.find_spec("pip") is not None,
        has_uv=shutil.which("uv") is not None,
    )


def of(prefix: Path, stdlib: Path, *, is_virtual: bool, has_pip: bool, has_uv: bool) -> Installation:
    """The one of an environment."""
    python = str(prefix / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
    kind: Kind
    if (prefix / "uv-receipt.toml").is_file():
        kind = "uv-tool"
    elif (prefix / "pipx_metadata.json").is_file():
        kind = "pipx"
    elif not is_virtual and (stdlib / "EXTERNALLY-MANAGED").is_file():
        kind = "system"
    elif has_pip:
        kind = "pip"
    elif has_uv:
        kind = "uv"
    else:
        kind = "system"
    return Installation(kind, python if is_virtual else sys.executable)


def extras() -> dict[str, list[str]]:
    """Of llm-node: each with the packages that it brings."""
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(NAME) or []:
        requirement, _, marker = line.partition(";")
        if named := _EXTRA.search(marker):
            found.setdefault(named[1], []).append(requirement.strip())
    return found


def packages_of(requirement: str) -> list[str]:
    """What `llm-node[cuda]` stands for."""
    return extras().get(requirement.partition("[")[2].rstrip("]"), [])


def wanted(name: str) -> str:
    """What to ask an index for: an extra of llm-node by its name, else the name as it is."""
    return f"{NAME}[{name}]" if name in extras() else name


def names(requirements: Sequence[str]) -> list[str]:
    """Without versions."""
    return [re.split(r"[\s<>=!~\[;(]", requirement, maxsplit=1)[0] for requirement in requirements]
