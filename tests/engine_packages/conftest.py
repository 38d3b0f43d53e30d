"""An engine's wheel, and environments to install it in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.environment import Environment, packed


@pytest.fixture(scope="module")
def sample(repository: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of an engine in C."""
    return packed(repository, samples / "sample_markov/cpu", tmp_path_factory.mktemp("sample"))


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    yield Environment(tmp_path / "venv")
