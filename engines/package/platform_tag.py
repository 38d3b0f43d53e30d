"""Names the machine in the wheel's tag: its libraries run on no other kind, but with every Python."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class PlatformTag(BuildHookInterface):  # type: ignore[type-arg]
    """Called by hatchling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """The tag of the machine that builds."""
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(platform_tags())}"
