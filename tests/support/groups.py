"""Control groups that a test wrote, for processes in a mount namespace of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def unprivileged() -> bool:
    """Can no mount namespace of one's own be had?"""
    return sys.platform != "linux" or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0


def within(groups: Path) -> list[str]:
    """Runs the rest of a command line where these are the control groups."""
    return ["unshare", "-m", "sh", "-c", f'mount --bind {groups} /sys/fs/cgroup && exec "$@"', "sh"]
