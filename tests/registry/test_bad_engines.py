"""Engines that lie, crash and hang: each gets its verdict, and the node goes on serving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import compile_library, fake_engine, write_manifest
from support.node import RunningNode, running_node

MANIFEST = {
    "version": "1.0.0",
    "abi_version": "1",
    "gpu_backend": "cpu",
    "architectures": ["toy"],
    "formats": ["toy"],
    "binary": "libfake_engine.so",
}


def foreign_machine(good: Path, target: Path) -> None:
    """The same ELF file, said to be for another machine type (e_machine at offset 18: 0xF3 is RISC-V)."""
    data = bytearray(good.read_bytes())
    data[18:20] = b"\xf3\x00"
    target.write_bytes(data)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, dict[str, Any]]]:
    root = tmp_path_factory.mktemp("bad-engines")
    engines, models = root / "engines", root / "models"
    models.mkdir()
    (models / "toy.toy").write_bytes(b"TOY1")

    good = fake_engine(engines, "good") / "libfake_engine.so"

    (engines / "no_manifest/cpu").mkdir(parents=True)
    shutil.copy(good, engines / "no_manifest/cpu")
    (engines / "not_json/cpu").mkdir(parents=True)
    (engines / "not_json/cpu/manifest.json").write_text('{"id": "not_json",')
    (engines / "not_an_object/cpu").mkdir(parents=True)
    (engines / "not_an_object/cpu/manifest.json").write_text("[1, 2]")
    write_manifest(
        engines / "missing_field/cpu",
        id="missing_field",
        **{k: v for k, v in MANIFEST.items() if k != "architectures"},
    )
    write_manifest(engines / "wrong_type/cpu", id="wrong_type", **{**MANIFEST, "formats": "toy"})
    write_manifest(engines / "path_in_binary/cpu", id="path_in_binary", **{**MANIFEST, "binary": "../x.so"})
    write_manifest(engines / "bad_id/cpu", id="Bad Id!", **MANIFEST)
    write_manifest(engines / "no_binary/cpu", id="no_binary", **MANIFEST)
    write_manifest(engines / "not_a_library/cpu", id="not_a_library", **MANIFEST)
    (engines / "not_a_library/cpu/libfake_engine.so").write_text("#!/bin/sh\necho I am a script\n")
    write_manifest(engines / "foreign/cpu", id="foreign", **MANIFEST)
    foreign_machine(good, engines / "foreign/cpu/libfake_engine.so")

    fake_engine(engines, "missing_symbol", defines={"FAKE_MISSING_SYMBOL": None})
    fake_engine(engines, "null_info", defines={"FAKE_NULL_INFO": None})
    fake_engine(engines, "other_id", defines={"FAKE_ENGINE_ID": '"somebody_else"'})
    fake_engine(engines, "abi_in_binary", defines={"FAKE_ABI_VERSION": 2})
    fake_engine(engines, "abi_in_manifest", manifest={"abi_version": "2"})
    fake_engine(engines, "constructor_crash", defines={"FAKE_CRASH_IN_CONSTRUCTOR": None})
    fake_engine(engines, "garbage_id", defines={"FAKE_GARBAGE_ID": None})
    # Two folders, one id: the first in order wins.
    shutil.copytree(engines / "good", engines / "later")

    arguments = [
        *("--engines-dir", str(engines), "--models-dir", str(models)),
        *("--gpu-backend", "cpu", "--load-timeout", "4"),
    ]
    with running_node(root / "node", arguments) as node:
        entries = node.get("/api/engines").json()["engines"]
        yield (
            node,
            {
                Path(entry["path"]).parent.name if entry["path"].endswith("cpu") else entry["path"]: entry
                for entry in entries
            },
        )


REFUSED = {
    "not_json": ("ManifestInvalid", "JSON"),
    "not_an_object": ("ManifestInvalid", "object"),
    "missing_field": ("ManifestInvalid", "architectures"),
    "wrong_type": ("ManifestInvalid", "formats"),
    "path_in_binary": ("ManifestInvalid", "binary"),
    "bad_id": ("ManifestInvalid", "id"),
    "no_binary": ("BinaryNotFound", "libfake_engine.so"),
    "not_a_library": ("WrongArch", "librar"),
    "foreign": ("WrongArch", ""),
    "missing_symbol": ("MissingSymbol", "engine_generate"),
    "null_info": ("NullInfo", "engine_get_info"),
    "other_id": ("IdMismatch", "somebody_else"),
    "abi_in_binary": ("AbiMismatch", "ABI version mismatch: expected 1, got 2"),
    "abi_in_manifest": ("AbiMismatch", "ABI version mismatch: expected 1, got 2"),
    "constructor_crash": ("Crashed", "dlopen"),
    "garbage_id": ("InfoUnreadable", "engine_id"),
    "later": ("DuplicateEngine", "good"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_verdict(listed: tuple[RunningNode, dict[str, Any]], name: str) -> None:
    _, entries = listed
    kind, words = REFUSED[name]
    entry = entries[name]
    assert entry["status"] == "rejected", entry
    assert entry["error"]["kind"] == kind, entry
    assert words in entry["error"]["message"], entry


def test_a_folder_without_manifest_is_said(listed: tuple[RunningNode, dict[str, Any]]) -> None:
    _, entries = listed
    assert entries["no_manifest"]["error"]["kind"] == "ManifestUnreadable"


def test_the_good_one_beside_them_serves(listed: tuple[RunningNode, dict[str, Any]]) -> None:
    node, entries = listed
    assert entries["good"]["status"] == "loaded"
    answer = node.post(
        "/v1/completions", {"model": "toy", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    )
    assert answer.status == 200, answer.body
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_no_engine_fits_lists_every_reason(listed: tuple[RunningNode, dict[str, Any]]) -> None:
    node, _ = listed
    answer = node.post("/api/models/load", {"model_id": "toy", "engine": "missing_symbol"})
    assert answer.status in (500, 503)
    assert "engine_generate" in answer.json()["error"]["message"]


AT_LOAD = {
    "FAKE_HANG_IN_INIT": ("timeout", "engine_init"),
    "FAKE_CRASH_IN_INIT": ("engine_crashed", "engine_init"),
    "FAKE_EXIT_IN_INIT": ("engine_crashed", "engine_init"),
    "FAKE_UNKNOWN_CODE": ("load_failed", "4711"),
    "FAKE_NULL_MODEL": ("engine_fault", "models.load"),
    "FAKE_NO_SUCH_DEVICE": ("engine_fault", "device 7"),
    "FAKE_FEWER_SEQUENCES": ("engine_fault", "max_sequences"),
}


@pytest.mark.parametrize("misbehaviour", sorted(AT_LOAD))
def test_misbehaviour_at_load(tmp_path: Path, misbehaviour: str) -> None:
    code, words = AT_LOAD[misbehaviour]
    engines, models = tmp_path / "engines", tmp_path / "models"
    models.mkdir()
    (models / "bad.toy").write_bytes(b"TOY1")
    (models / "fine.fine").write_bytes(b"TOY1")
    fake_engine(engines, "bad", defines={misbehaviour: None})
    fake_engine(engines, "fine", manifest={"formats": ["fine"]})
    arguments = [
        *("--engines-dir", str(engines), "--models-dir", str(models)),
        *("--gpu-backend", "cpu", "--load-timeout", "3"),
    ]
    with running_node(tmp_path / "node", arguments) as node:
        answer = node.post("/api/models/load", {"model_id": "bad"})
        error = answer.json()["error"]
        assert error["code"] == code, error
        assert words in error["message"], error
        fine = node.post("/v1/completions", {"model": "fine", "prompt": "Hello", "max_tokens": 4})
        assert fine.status == 200, fine.body


def test_a_step_that_hangs_costs_its_model_alone(tmp_path: Path) -> None:
    engines, models = tmp_path / "engines", tmp_path / "models"
    models.mkdir()
    (models / "bad.toy").write_bytes(b"TOY1")
    (models / "fine.fine").write_bytes(b"TOY1")
    fake_engine(engines, "bad", defines={"FAKE_HANG_ON_BYTE": ord("!")})
    fake_engine(engines, "fine", manifest={"formats": ["fine"]})
    arguments = [
        *("--engines-dir", str(engines), "--models-dir", str(models)),
        *("--gpu-backend", "cpu", "--step-timeout", "1"),
    ]
    with running_node(tmp_path / "node", arguments) as node:
        hung = node.post("/v1/completions", {"model": "bad", "prompt": "Hello!", "max_tokens": 4})
        assert hung.status == 503, hung.body
        error = hung.json()["error"]
        assert error["code"] == "engine_crashed"
        assert "step did not return within 1 s" in error["message"], error
        fine = node.post("/v1/completions", {"model": "fine", "prompt": "Hello!", "max_tokens": 4})
        assert fine.status == 200, fine.body


@pytest.mark.parametrize(
    ("defines", "call"),
    [
        ({"FAKE_HANG_IN_GENERATE": None, "FAKE_NO_EXTENSIONS": None}, "engine_generate"),
        ({"FAKE_HANG_ON_BYTE": ord("!"), "FAKE_NO_BATCH": None}, "stream.generate"),
        ({"FAKE_HANG_IN_CALL": "TOKENIZE"}, "tokenizer.tokenize"),
    ],
)
def test_every_call_that_hangs_is_named(tmp_path: Path, defines: dict[str, Any], call: str) -> None:
    engines, models = tmp_path / "engines", tmp_path / "models"
    models.mkdir()
    (models / "bad.toy").write_bytes(b"TOY1")
    fake_engine(engines, "bad", defines=defines)
    arguments = [
        *("--engines-dir", str(engines), "--models-dir", str(models)),
        *("--gpu-backend", "cpu", "--step-timeout", "1"),
    ]
    with running_node(tmp_path / "node", arguments) as node:
        body = {"model": "bad", "prompt": "!", "max_tokens": 4, "temperature": 0}
        hung = node.post("/v1/completions", body)
        assert hung.status == 503, hung.body
        error = hung.json()["error"]
        assert error["code"] == "engine_crashed"
        assert f"{call} did not return within 1 s" in error["message"], error


AT_WORK = {
    "FAKE_CRASH_IN_STEP": "engine_crashed",
    "FAKE_NAN_LOGITS": "engine_fault",
    "FAKE_ROW_TOO_NARROW": "engine_fault",
    "FAKE_TOKENS_OUT_OF_RANGE": "engine_fault",
    "FAKE_NO_END_ELEMENT": "engine_fault",
    "FAKE_NO_END_MARKER": "engine_fault",
}
WITH: dict[str, dict[str, Any]] = {
    "FAKE_NO_END_ELEMENT": {"FAKE_NO_BATCH": None, "FAKE_EOG_EVERY": 1},
    "FAKE_NO_END_MARKER": {"FAKE_NO_EXTENSIONS": None},
}


@pytest.mark.parametrize("misbehaviour", sorted(AT_WORK))
def test_misbehaviour_at_work(tmp_path: Path, misbehaviour: str) -> None:
    engines, models = tmp_path / "engines", tmp_path / "models"
    models.mkdir()
    (models / "bad.toy").write_bytes(b"TOY1")
    (models / "fine.fine").write_bytes(b"TOY1")
    fake_engine(engines, "bad", defines={misbehaviour: None, **WITH.get(misbehaviour, {})})
    fake_engine(engines, "fine", manifest={"formats": ["fine"]})
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        assert node.post("/api/models/load", {"model_id": "fine"}).status == 200
        body = {"model": "bad", "prompt": "Hello", "max_tokens": 4, "temperature": 0}
        bad = node.post("/v1/completions", body)
        assert bad.json()["error"]["code"] == AT_WORK[misbehaviour], bad.body
        # A lie may end the engine, and the next request may come while its worker goes.
        expected = (AT_WORK[misbehaviour], "engine_crashed")
        streamed = node.post("/v1/completions", {**body, "stream": True})
        if streamed.status == 200:
            lines = [line for line in streamed.body.decode().splitlines() if line.startswith("data: ")]
            assert json.loads(lines[-2][6:])["error"]["code"] in expected
            assert lines[-1] == "data: [DONE]"
        else:
            assert streamed.json()["error"]["code"] in expected
        fine = node.post("/v1/completions", {"model": "fine", "prompt": "Hello", "max_tokens": 4})
        assert fine.status == 200, fine.body
    if AT_WORK[misbehaviour] == "engine_fault":
        assert "the engine is at fault" in node.log_text()


def test_an_engine_that_prints_harms_nobody(tmp_path: Path) -> None:
    engines, models = tmp_path / "engines", tmp_path / "models"
    models.mkdir()
    (models / "loud.toy").write_bytes(b"TOY1")
    fake_engine(engines, "loud", defines={"FAKE_PRINTF": None})
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        answer = node.post("/v1/completions", {"model": "loud", "prompt": "Hello", "max_tokens": 4})
        assert answer.status == 200, answer.body
    assert "loud" in node.log_text()


def test_a_setting_that_an_engine_says_it_does_not_know_is_refused(tmp_path: Path) -> None:
    """One that says nothing is asked, and may ignore it."""
    engines, models = tmp_path / "engines", tmp_path / "models"
    models.mkdir()
    (models / "told.told").write_bytes(b"TOY1")
    (models / "mute.mute").write_bytes(b"TOY1")
    fake_engine(engines, "tells", manifest={"formats": ["told"], "options": ["step_us", "row_us"]})
    fake_engine(engines, "silent", manifest={"formats": ["mute"]})
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    # What stands in the settings is for all engines.
    with running_node(tmp_path / "node", [*arguments, "--engine-option", "of_another=1"]) as node:

        def load(model: str, **options: str) -> Any:
            return node.post("/api/models/load", {"model_id": model, "options": options})

        refused = load("told", stp_us="1")
        assert refused.status == 400, refused.body
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_request", "options.stp_us")
        assert error["message"] == "the engine 'tells' knows no option 'stp_us'; it knows step_us, row_us"
        assert load("told", step_us="1").status == 200
        assert load("mute", stp_us="1").status == 200


def test_compile_is_what_the_specification_says(tmp_path: Path, repository: Path) -> None:
    """cc -shared -fPIC -o libmy_engine.so my_engine.c, with only the header's folder on the path."""
    compile_library(repository / "engines/sample_c/my_engine.c", tmp_path / "libmy_engine.so")
