"""`llm-node show` and `cp`: what is known of a model, and a further name for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.hub import sha256
from support.node import RunningNode, node_environment, running_node

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def pulled(tmp_path: Path, demo_model: Path) -> Path:
    """The models folder, with a model as a pull leaves it."""
    folder = tmp_path / ".llm-node/models/org/Tiny-GGUF"
    folder.mkdir(parents=True)
    shutil.copy(demo_model, folder / "tiny-Q4_0.gguf")
    digest = sha256(demo_model.read_bytes())
    record = {
        "files": {"tiny-Q4_0.gguf": {"sha256": digest, "revision": "c0ffee"}},
        "why": {"Q4_0": ["org/Tiny-GGUF: Q4_0, 3.9 MiB.", "It needs little.", "There is no larger version."]},
    }
    (folder / ".pull.json").write_text(json.dumps(record))
    return folder.parents[1]


@pytest.fixture
def command(tmp_path: Path, engines: Path) -> Command:
    return lambda *arguments: subprocess.run(
        [
            Path(sys.executable).with_name("llm-node"),
            *arguments,
            "--engines-dir",
            engines,
            "--gpu-backend",
            "cpu",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=node_environment(tmp_path),
    )


def test_all_that_is_known_of_a_model(command: Command, pulled: Path) -> None:
    shown = command("show", "tiny")
    assert shown.returncode == 0, shown.stderr
    name, *lines = shown.stdout.splitlines()
    assert name == "org/Tiny-GGUF:Q4_0"
    told: dict[str, list[str]] = {}
    word = ""
    for line in lines:
        word = line[2:15].strip() or word
        told.setdefault(word, []).append(line[16:])
    assert told["architecture"] == ["llama"] and told["context"] == ["1,024 tokens"]
    assert "parameters, Q4_0, 2.6 MiB" in told["weights"][0]
    assert told["template"] == ["yes"] and told["can"] == ["known once it is loaded"]
    (need,) = told["needs"]  # its own longest context; the other lengths are beyond that
    assert need.endswith(" MiB with 1,024 tokens")
    assert told["file"] == [str(pulled / "org/Tiny-GGUF/tiny-Q4_0.gguf")]
    assert told["why"][0] == "org/Tiny-GGUF: Q4_0, 3.9 MiB."
    known = json.loads(command("show", "tiny", "--json").stdout)
    assert list(known["sha256"].values()) == told["sha256"]
    assert known["needs"][0]["context_length"] == 1024 and known["facts"] is None


def test_the_files_are_compared_with_what_was_promised(command: Command, pulled: Path) -> None:
    right = command("show", "tiny", "--verify")
    assert right.returncode == 0 and "tiny-Q4_0.gguf: right" in right.stdout
    with (pulled / "org/Tiny-GGUF/tiny-Q4_0.gguf").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    wrong = command("show", "tiny", "--verify")
    assert wrong.returncode == 1 and "tiny-Q4_0.gguf: differs" in wrong.stdout
    assert "checksum_mismatch" in wrong.stderr
    assert "nothing was promised" in command("show", "llm-node-demo", "--verify").stdout


def test_what_a_loaded_model_can(node: RunningNode, command: Command) -> None:
    node.post("/api/models/load", {"model_id": "llm-node-demo"})
    shown = command("show", "llm-node-demo", "--node", node.url)
    assert shown.returncode == 0, shown.stderr
    (able,) = [line for line in shown.stdout.splitlines() if line.startswith("  can ")]
    assert able.split()[1] == "chat"
    refused = node.post("/v1/embeddings", {"model": "llm-node-demo", "input": "hi"})
    assert refused.status == 400 and "vectors" not in able


def test_the_node_that_runs_knows_its_models_and_engines(
    engines: Path, demo_model: Path, tmp_path: Path
) -> None:
    """With its own folders, which nobody has to name again; under all names that it takes."""
    folder = tmp_path / "elsewhere/org/Tiny-GGUF"
    folder.mkdir(parents=True)
    shutil.copy(demo_model, folder / "tiny-Q4_0.gguf")
    arguments = ["--engines-dir", str(engines), "--models-dir", str(folder.parents[1])]

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("llm-node")
        environment = node_environment(tmp_path)
        return subprocess.run(
            [program, *words], capture_output=True, text=True, check=False, timeout=60, env=environment
        )

    with running_node(tmp_path, [*arguments, "--gpu-backend", "cpu"]) as node:
        assert node.post("/api/models/alias", {"model": "tiny", "alias": "gpt-4o"}).status == 200
        for name in ("org/Tiny-GGUF:Q4_0", "tiny", "gpt-4o"):
            shown = typed("show", name)
            assert shown.returncode == 0, shown.stderr
            own, *lines = shown.stdout.splitlines()
            assert own == "org/Tiny-GGUF:Q4_0"
            (need,) = [line.split() for line in lines if line.startswith("  needs ")]
            assert need[2:] == ["MiB", "with", "1,024", "tokens"]
        missing = typed("show", "no-such")
        assert missing.returncode == 3 and "model_not_found" in missing.stderr
        assert "llama_cpp" in typed("engines").stdout


def test_a_further_name(command: Command, pulled: Path, tmp_path: Path) -> None:
    file = tmp_path / ".llm-node/config.toml"
    file.write_text("# mine\nqueue_limit = 9  # small\n")
    copied = command("cp", "tiny", "gpt-4o", "--alias", "for-now=llm-node-demo")
    assert copied.returncode == 0, copied.stderr
    assert copied.stderr == "gpt-4o is org/Tiny-GGUF:Q4_0\n"
    assert command("cp", "llm-node-demo", "other").returncode == 0
    assert file.read_text() == (
        '# mine\nqueue_limit = 9  # small\n\n[models."org/Tiny-GGUF:Q4_0"]\naliases = ["gpt-4o"]\n\n'
        '[models.llm-node-demo]\naliases = ["other"]\n'
    ), "what was said for this once is not written"
    assert command("show", "gpt-4o").stdout.startswith("org/Tiny-GGUF:Q4_0\n")
    assert command("cp", "llm-node-demo", "gpt-4o").returncode == 0, "it moves"
    assert command("show", "gpt-4o").stdout.startswith("llm-node-demo\n")
    assert command("cp", "tiny", "gpt-5").returncode == 0
    refused = command("rm", "-y", "gpt-5")
    assert refused.returncode == 2, "no model goes with one of its names"
    assert "'gpt-5' is a further name of 'org/Tiny-GGUF:Q4_0': delete that" in refused.stderr
    bytes_alone = command("cp", "tiny", "\udcff")
    assert bytes_alone.returncode == 2 and "is not in UTF-8: nothing was sent" in bytes_alone.stderr
    taken = command("cp", "tiny", "llm-node-demo")
    assert taken.returncode == 2 and "'llm-node-demo' is a name of 'llm-node-demo' already" in taken.stderr
    assert sorted(path.name for path in pulled.rglob("*.gguf")) == ["tiny-Q4_0.gguf"], "no bytes are copied"


def test_a_file_is_one_row_whatever_its_name(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / ".llm-node/models"
    folder.mkdir(parents=True)
    (folder / "odd\nNOT LISTED\tat all.bin").write_bytes(b"weights")
    *_, row = command("list", "--all").stdout.splitlines()
    assert row.startswith(f"{folder}/odd␊NOT LISTED␉at all.bin "), row


@pytest.mark.parametrize("arguments", [("show", "no-such"), ("cp", "no-such", "name")])
def test_a_model_that_is_not_there(command: Command, arguments: tuple[str, ...]) -> None:
    ended = command(*arguments)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "model_not_found" in ended.stderr


def test_what_a_load_would_come_to_is_said_without_a_node(command: Command, pulled: Path) -> None:
    shown = command("plan", "tiny")
    assert shown.returncode == 0, shown.stderr
    head, takes, left, context, longest = shown.stdout.splitlines()
    assert head.startswith("tiny with llama_cpp: there is room")
    assert takes.startswith("  takes ") and "by its engine" in takes and left.startswith("  host has ")
    assert context == "  context: 1024 tokens, 64 sequences, a cache of 65536 tokens"
    assert longest == "  longest context 1024"
    refused = command("plan", "tiny", "--vram-limit", "1M")
    assert refused.returncode == 1 and "refused: Insufficient VRAM: required " in refused.stdout
    lengths = [
        json.loads(
            command("plan", "tiny", "--json", "--max-sequences", "1", "--context-length", length).stdout
        )
        for length in ("64", "1024")
    ]
    short, long = (planned["memory"][0]["cache_bytes"] for planned in lengths)
    assert 0 < short < long
    assert command("plan", "nobody").returncode == 3
