"""Fixtures that more than one folder needs. Everything here is real: the wheel, processes, models."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.engines import HEADER_FOLDER  # noqa: E402
from support.node import RunningNode, running_node  # noqa: E402
from support.streams import Alone  # noqa: E402

# A shell starts what it puts into the background so that it ignores the first, and `nohup` the second.
# Programs that tests start are to heed them: they inherit that a signal is ignored, not that it is handled.
for name in ("SIGINT", "SIGHUP"):
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda number, frame: None)

LLAMA_CPP = ROOT / "engines/llama_cpp/cpu"
STORIES = ROOT.parent / "shared/models/stories260K.gguf"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests record of themselves is shown: the parts of a long one, and how long each took."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        if report.when == "call" and report.user_properties:
            parts = "; ".join(f"{name} {value}" for name, value in report.user_properties)
            terminalreporter.line(f"{report.nodeid}: {parts}")


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def header_folder() -> Path:
    return HEADER_FOLDER


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real trained model of 260 K parameters, beside the checkout where the project is developed."""
    if not STORIES.is_file():
        pytest.skip(f"needs {STORIES}, which a public clone has not; the demo model carries the same checks")
    return STORIES


@pytest.fixture(scope="session")
def demo_model() -> Path:
    import llm_node.demo

    return llm_node.demo.path()


@pytest.fixture(scope="session")
def llama_cpp() -> Path:
    """The folder of the built llama.cpp engine."""
    assert (LLAMA_CPP / "manifest.json").is_file(), "no llama.cpp engine: run `make setup`"
    return LLAMA_CPP


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engines folder with the two C samples, freshly compiled."""
    folder = tmp_path_factory.mktemp("samples")
    subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT / "engines/sample_c"), f"OUT={folder}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder: stories260K.gguf where there is one."""
    folder = tmp_path_factory.mktemp("models")
    if STORIES.is_file():
        shutil.copy(STORIES, folder / "stories260K.gguf")
    return folder


@pytest.fixture(scope="session")
def engines(llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engines folder with the llama.cpp engine alone."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "llama_cpp").mkdir()
    (folder / "llama_cpp/cpu").symlink_to(llama_cpp)
    return folder


@pytest.fixture(scope="session")
def node(engines: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node on the CPU with the llama.cpp engine, the demo model, and stories260K where there is one."""
    folder = tmp_path_factory.mktemp("node")
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(folder, arguments) as running:
        yield running


@pytest.fixture(scope="session")
def plain(engines: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node as `node`, that keeps nothing and guesses nothing."""
    folder = tmp_path_factory.mktemp("plain")
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(folder, [*arguments, "--prefix-cache", "no", "--speculation", "off"]) as running:
        yield running


@pytest.fixture(params=["llm-node-demo", "stories260K"])
def model(request: pytest.FixtureRequest, models: Path) -> str:
    """The demo model, and stories260K where there is one."""
    if request.param != "llm-node-demo":
        request.getfixturevalue("stories")
    return str(request.param)


@pytest.fixture
def alone(plain: RunningNode, model: str, models: Path, demo_model: Path) -> Alone:
    """What `model` says to one request alone."""
    if model not in plain.extra:
        file = models / f"{model}.gguf"
        plain.extra[model] = Alone(plain, model, file if file.is_file() else demo_model)
    known: Alone = plain.extra[model]
    return known
