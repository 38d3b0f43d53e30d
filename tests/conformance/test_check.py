"""`llm-node engine new`, `build` and `check`: from nothing to an engine that answers, and what is found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_node import conformance
from support import models
from support.engines import fake_engine
from support.node import node_environment, running_node

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("llm-node")), "engine", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            # Compilers find themselves by more than a node needs.
            env={**os.environ, "CARGO_NET_OFFLINE": "true"},
        )

    return run


@pytest.mark.parametrize(
    ("lang", "level", "asked"),
    [
        ("c", "tier0", "tier0.memory"),
        ("c", "batch", "batch.scripts"),
        ("cpp", "tier0", "tier0.memory"),
        ("cpp", "batch", "batch.scripts"),
        ("rust", "tier0", "tier0.memory"),
        ("rust", "batch", "batch.scripts"),
    ],
)
def test_what_is_made_is_built_and_passes(run: Run, lang: str, level: str, asked: str) -> None:
    made = run("new", "tiny", "--lang", lang, "--level", level)
    assert made.returncode == 0, made.stderr
    built = run("build", "tiny")
    assert built.returncode == 0, built.stderr
    groups = ("tier0", "life") if level == "tier0" else ("models", "memory", "tokenizer", "batch")
    checked = run(
        "check", "tiny", "--quick", "--json", *(word for name in groups for word in ("--only", name))
    )
    checks = {check["name"]: check for check in json.loads(checked.stdout)["checks"]}
    failed = [check for check in checks.values() if check["status"] == "failed"]
    assert (failed, checked.returncode) == ([], 0)
    assert checks[asked]["status"] == "passed"


def test_the_commands_of_the_page_make_an_engine_that_answers(
    run: Run, tmp_path: Path, repository: Path
) -> None:
    page = (repository / "docs/writing-an-engine.md").read_text()
    first, *_ = re.findall(r"^```console\n(.*?)^```$", page, re.M | re.S)
    for line in first.splitlines():
        _, _, *arguments = line.split()
        done = run(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
    arguments = [
        "--engines-dir",
        str(tmp_path / "tiny/engines"),
        "--models-dir",
        str(tmp_path / "tiny/models"),
    ]
    with running_node(tmp_path / "node", [*arguments, "--gpu-backend", "cpu"]) as node:
        body = {"model": "hello", "prompt": "Hello, who", "temperature": 0, "max_tokens": 128}
        answer = node.post("/v1/completions", body)
        said = " are you? I am a very small language model, made of this text and nothing else."
        assert answer.json()["choices"][0]["text"] == said, answer.body
        chat = {"model": "hello", "messages": [{"role": "user", "content": "How are you?"}], "temperature": 0}
        answer = node.post("/v1/chat/completions", chat)
        assert "I am well" in answer.json()["choices"][0]["message"]["content"], answer.body


@pytest.mark.timeout(600)
def test_a_running_node_takes_what_is_built_anew(run: Run, tmp_path: Path) -> None:
    """`build --watch`: each change that compiles and breaks no must reaches the models that are loaded."""
    home = tmp_path / "node"
    assert run("new", "tiny").returncode == 0
    assert run("build", "tiny").returncode == 0
    source, log = tmp_path / "tiny/engine.c", tmp_path / "watch.log"
    right = source.read_text()
    least = "weights[token] = 1e-4;"
    assert right.count(least) == 1

    def saying(letter: str) -> str:
        return right.replace(least, f"weights[token] = token == '{letter}' ? 1e60 : 1e-4;")

    folders = [f"--{name}-dir={tmp_path / 'tiny' / name}" for name in ("engines", "models")]
    with running_node(home, ["serve", *folders, "--gpu-backend", "cpu"]) as node, log.open("wb") as sink:

        def answer() -> str:
            body = {"model": "hello", "prompt": "Hello, who", "temperature": 0, "max_tokens": 4}
            told = node.post("/v1/completions", body)
            assert told.status == 200, told.body
            return str(told.json()["choices"][0]["text"])

        def words() -> str:
            return log.read_text(errors="replace")

        assert answer() == " are"
        command = [str(Path(sys.executable).with_name("llm-node")), "engine", "build", "tiny", "--watch"]
        watching = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=tmp_path,
            env=node_environment(home),
        )
        try:
            _wait_for(lambda: words().count("loaded anew") == 1, words)
            assert answer() == " are"
            source.write_text(saying("Z"))
            _wait_for(lambda: words().count("loaded anew") == 2, words)
            assert answer() == "ZZZZ"
            # What does not compile, and what breaks a must, reaches nobody.
            source.write_text(saying("Y") + "\nint nothing\n")
            _wait_for(lambda: "error" in words(), words)
            source.write_text(saying("Y").replace("name != NULL", "0"))
            _wait_for(lambda: "tokenizer.template (must)" in words(), words)
            assert answer() == "ZZZZ"
            source.write_text(saying("X"))
            _wait_for(lambda: words().count("loaded anew") == 3, words)
            assert answer() == "XXXX"
            assert watching.poll() is None
        finally:
            watching.terminate()
            watching.wait()


def _wait_for(happens: Callable[[], bool], words: Callable[[], str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, words()
        time.sleep(0.1)


def test_three_sentences_and_the_calls_say_what_is_wrong(run: Run, tmp_path: Path) -> None:
    fake_engine(tmp_path / "engines", "liar", defines={"FAKE_COPY_SHORT": None})
    (tmp_path / "models").mkdir()
    (tmp_path / "models/toy.toy").write_bytes(b"TOY1\neog_every=0\n")
    checked = run("check", "engines/liar", "--quick", "--only", "batch.copy")
    assert checked.returncode == 1, checked.stderr
    words = " ".join(checked.stdout.split())
    assert re.search(r'contract engine_api\.h, line \d+: "Makes positions \[0, end\) of `from`', words)
    assert "seen batch.seq_copy: the engine misbehaved: sequence" in words
    assert "change Let seq_copy end `to` at `end`" in words
    assert re.search(
        r"calls batch\.step: sequence \d from 0, tokens \[\d+\], 0 rows batch\.seq_copy: from", words
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "does not exist"),
        (("empty",), "no manifest.json"),
        (("engines/fine", "--only", "batch.nothing"), "no check is called"),
        (("engines/fine", "--engine-option", "threads"), "'threads' is not KEY=VALUE"),
    ],
)
def test_what_cannot_be_checked_is_said(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    fake_engine(tmp_path / "engines", "fine")
    checked = run("check", *arguments)
    assert (checked.returncode, words in checked.stderr) == (2, True), checked.stderr


def test_without_a_model_what_needs_one_is_skipped(run: Run, tmp_path: Path) -> None:
    fake_engine(tmp_path / "engines", "fine")
    checked = run("check", "engines", "--quick", "--json", "--only", "life", "--only", "models")
    found = {check["name"]: check for check in json.loads(checked.stdout)["checks"]}
    assert found["life.shutdown"]["status"] == "passed"
    assert found["models.load"]["status"] == "skipped"
    assert "--model" in found["models.load"]["seen"]
    assert checked.returncode == 0


SHOULD_MISSED = {"life.process"}
"""By the llama.cpp engine: docs/engines-llama-cpp.md says why."""


def checked_llama_cpp(folder: Path, model: Path, *names: str, **options: str) -> set[str]:
    """What passed of these checks."""
    found: list[conformance.Outcome] = []
    engine = conformance.engine_at(folder)
    conformance.run(engine, model, found.append, names=names, options=tuple(options.items()), quick=True)
    failed = {one.name: one.seen for one in found if one.status == "failed"}
    assert failed.keys() <= SHOULD_MISSED, failed
    return {one.name for one in found if one.status == "passed"}


def test_llama_cpp_passes_every_must(llama_cpp: Path, demo_model: Path, repository: Path) -> None:
    assert "batch.scripts" in checked_llama_cpp(llama_cpp, demo_model)
    page = (repository / "docs/engines-llama-cpp.md").read_text()
    assert all(f"`{name}`" in page for name in SHOULD_MISSED)


def test_llama_cpp_passes_with_a_cache_that_is_split(llama_cpp: Path, demo_model: Path) -> None:
    """With as few sequences as a check has, it is in one piece unless one asks otherwise."""
    those = ("batch.cut", "batch.together", "batch.copy", "batch.rollback", "batch.save", "batch.scripts")
    assert checked_llama_cpp(llama_cpp, demo_model, *those, cache_mode="split") == set(those)


def test_llama_cpp_passes_with_a_model_that_embeds(llama_cpp: Path, tmp_path: Path) -> None:
    encoder = models.encoder(tmp_path / "encoder.gguf", ranks=False)
    passed = checked_llama_cpp(llama_cpp, encoder)
    assert {"embed.vectors", "embed.capacity", "tokenizer.pieces", "models.again"} <= passed


def test_an_exception_that_escapes_is_found(run: Run, tmp_path: Path, repository: Path) -> None:
    """C++: nothing unwinds through the ABI, and what does ends the process."""
    assert run("new", "tiny", "--lang", "cpp", "--level", "tier0").returncode == 0
    source = tmp_path / "tiny/engine.cpp"
    right, place = source.read_text(), "   return guarded([&] {\n      if (text"
    assert right.count(place) == 1
    source.write_text(right.replace(place, "   if (prompt[0] == 0) { throw 1; }\n" + place))
    assert run("build", "tiny").returncode == 0
    checked = run("check", "tiny", "--quick", "--only", "tier0.prompts")
    # It ends the process on its way through the host, which by then has let go of the engine.
    assert "The process died of signal 6" in checked.stdout, checked.stdout
    assert re.search(r"^  calls +engine_generate: of nothing$", checked.stdout, re.M), checked.stdout


def test_an_engine_says_which_level_it_keeps_until_it_is_another(run: Run, tmp_path: Path) -> None:
    assert run("new", "tiny", "--level", "tier0").returncode == 0
    assert run("build", "tiny").returncode == 0
    manifest = tmp_path / "tiny/engines/tiny/cpu/manifest.json"
    before = manifest.read_text()
    checked = run("check", "tiny", "--quick", "--write")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    claim = json.loads(manifest.read_text())["conformance"]
    assert claim["level"] == "should"
    assert f"{manifest.parent} says" in checked.stdout
    arguments = ["--engines-dir", "tiny/engines", "--gpu-backend", "cpu"]
    listed = subprocess.run(
        [str(Path(sys.executable).with_name("llm-node")), "engines", *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert f"should, {claim['date']}" in listed.stdout
    assert run("build", "tiny").returncode == 0
    assert json.loads(manifest.read_text()) == json.loads(before)
    # What breaks a must says nothing.
    manifest.write_text(json.dumps({**json.loads(before), "version": "9", "conformance": claim}))
    assert run("check", "tiny", "--quick", "--write").returncode == 1
    assert "conformance" not in json.loads(manifest.read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "life"), "--only asks a few"),
        ((), "--write needs a model"),
    ],
)
def test_a_level_is_said_after_all_checks_alone(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    fake_engine(tmp_path / "engines", "fine")
    checked = run("check", "engines", "--write", *arguments)
    assert (checked.returncode, words in checked.stderr) == (2, True), checked.stderr


def test_a_soak_asks_for_other_calls_each_time_until_something_fails(run: Run, tmp_path: Path) -> None:
    fake_engine(tmp_path / "engines", "liar", defines={"FAKE_COPY_SHORT": None})
    fake_engine(tmp_path / "engines/../fine", "fine")
    for folder in ("models", "fine/../models"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "models/toy.toy").write_bytes(b"TOY1\neog_every=0\n")
    model = ("--model", "models/toy.toy", "--quick", "--only", "batch.scripts")
    fine = run("check", "fine", "--soak", "0.05", *model)
    assert fine.returncode == 0, fine.stdout
    assert int(re.findall(r"round (\d+) was the last", fine.stderr)[0]) > 1
    liar = run("check", "engines", "--soak", "5", *model)
    assert liar.returncode == 1, liar.stdout
