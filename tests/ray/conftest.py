"""Ray is not everywhere, and where it is, a fleet is started once for a file of tests."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        reason = "Ray is not installed: `pip install 'llm-node[ray]'`"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason))
