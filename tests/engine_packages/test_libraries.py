"""Libraries that packages bring for an engine: opened by their paths, whatever else has their names."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from support.engines import HEADER_FOLDER, compile_library
from support.environment import Environment, packed, wheel
from support.node import running_node

ENGINE = "sample_markov"
CUBLAS, CUBLAS_LT = "libcublas.so.13", "libcublasLt.so.13"
WHICH = "int which(void) { return %d; }\n"
CHECKED = """
int which_blas(void);
#include <stdlib.h>
/* Runs as the library is opened. */
__attribute__((constructor)) static void check(void) { if (which_blas() != 13) abort(); }
"""


def library(folder: Path, name: str, source: str, *linked: Path) -> Path:
    """A shared library with its name in it, linked to others."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / f"{name}.c"
    text.write_text(source)
    command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(text)]
    subprocess.run([*command, *map(str, linked)], check=True)
    text.unlink()
    return folder / name


@pytest.fixture(scope="module")
def wheels(repository: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An engine that is linked to libraries, and a package that brings them, as NVIDIA lays them out."""
    root = tmp_path_factory.mktemp("libraries")
    light = library(root / "right", CUBLAS_LT, WHICH % 13)
    heavy = library(
        root / "right", CUBLAS, "int which(void); int which_blas(void) { return which(); }\n", light
    )
    library(root / "wrong", CUBLAS_LT, WHICH % 7)
    shutil.copy(heavy, root / "wrong")
    engine = root / f"engines/{ENGINE}/cpu"
    engine.mkdir(parents=True)
    source = root / "engine.c"
    sample = repository / "engines/sample_c" / f"{ENGINE}.c"
    source.write_text(sample.read_text() + CHECKED)
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-std=gnu11",
        f"-I{HEADER_FOLDER}",
        "-o",
        str(engine / f"lib{ENGINE}.so"),
    ]
    subprocess.run([*command, str(source), str(heavy), "-lm", f"-Wl,-rpath-link,{light.parent}"], check=True)
    manifest = json.loads((samples / ENGINE / "cpu/manifest.json").read_text())
    manifest |= {"libraries": [[CUBLAS_LT, "nvidia-cublas"], [CUBLAS, "nvidia-cublas"]]}
    (engine / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(light, engine)  # as in a checkout, where they lie beside the engine; no part of its wheel
    place = "nvidia/cu13/lib"
    return {
        "engine": packed(repository, engine, root),
        "cublas": wheel(
            root, "nvidia-cublas", "13.1.0", {f"{place}/{CUBLAS}": heavy, f"{place}/{CUBLAS_LT}": light}
        ),
        "wrong": root / "wrong",
    }


def test_a_wheel_leaves_them_out_and_names_their_packages(wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(wheels["engine"])
    (site,) = environment.root.glob("lib/python*/site-packages")
    assert not list(site.rglob("libcublas*"))
    (metadata,) = site.glob(f"llm_node_engine_{ENGINE}*.dist-info/METADATA")
    assert "Requires-Dist: nvidia-cublas<14,>=13" in metadata.read_text()


def test_where_they_are_missing_it_is_said_what_brings_them(wheels: dict[str, Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(wheels["engine"])
    shown = environment.run("engines").stdout
    assert "rejected" in shown
    assert f"{CUBLAS} comes with: pip install 'nvidia-cublas<14,>=13'" in shown


def test_those_of_the_package_come_before_those_of_the_search_path(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(wheels["engine"], wheels["cublas"])
    program = [environment.python, "-c", "from llm_node.cli import main; main()"]
    models = tmp_path / "models"
    models.mkdir()
    (models / "words.txt").write_text("once upon a time there was a cat")
    arguments = ["--gpu-backend", "cpu", "--models-dir", str(models)]
    path = {"LD_LIBRARY_PATH": str(wheels["wrong"])}
    with running_node(tmp_path / "node", arguments, environment=path, program=program) as node:
        (engine,) = node.get("/api/engines").json()["engines"]
        assert engine["status"] == "loaded", "it ends itself with the wrong library"
        assert node.post("/api/models/load", {"model_id": "words"}).status == 200
    (site,) = environment.root.glob("lib/python*/site-packages")
    place = site / f"llm_node_engine_{ENGINE}_cpu/engines/{ENGINE}/cpu"
    checked = environment.run("engine", "check", str(place), "--quick", "--only", "life", **path)
    assert checked.returncode == 0, checked.stdout
    opened = environment.python_says(f"import llm_node; print(llm_node.Engine({str(place)!r}).id)", **path)
    assert opened.stdout == f"{ENGINE}\n", opened.stderr
    environment.pip("uninstall", "--yes", "nvidia-cublas")
    assert environment.run("engine", "check", str(place), "--quick", "--only", "life", **path).returncode == 1
    with running_node(tmp_path / "other", arguments, environment=path, program=program) as node:
        (engine,) = node.get("/api/engines").json()["engines"]
        assert engine["error"]["kind"] == "Crashed", "what the search path names is the wrong one"


def test_an_old_driver_leaves_the_id_to_another_engine(samples: Path, tmp_path: Path) -> None:
    """Of a GPU and its driver that are not there."""
    fakes = Path(__file__).parents[1] / "fakes"
    nvml = compile_library(fakes / "fake_nvml.c", tmp_path / "lib/libnvidia-ml.so.1")
    for number, requires in enumerate([{"requires": {"cuda_driver": ">=580.65.06"}}, {}]):
        place = tmp_path / f"{number}/{ENGINE}/cuda"
        shutil.copytree(samples / ENGINE / "cpu", place)
        manifest = json.loads((place / "manifest.json").read_text())
        (place / "manifest.json").write_text(json.dumps({**manifest, "gpu_backend": "cuda", **requires}))
    arguments = ["--engines-dir", str(tmp_path / "0"), "--engines-dir", str(tmp_path / "1")]
    for driver, verdicts in [("550.1", ["DriverTooOld", None]), ("580.95.05", [None, "DuplicateEngine"])]:
        fake = {"LD_LIBRARY_PATH": str(nvml.parent), "FAKE_NVML_DEVICES": "1", "FAKE_NVML_DRIVER": driver}
        with running_node(tmp_path / driver, arguments, environment=fake) as node:
            rows = node.get("/api/engines").json()["engines"]
        errors = [row.get("error") for row in rows]
        assert [error and error["kind"] for error in errors] == verdicts
        if errors[0] is not None:
            assert "needs NVIDIA's driver 580.65.06 or a newer one" in errors[0]["message"]
