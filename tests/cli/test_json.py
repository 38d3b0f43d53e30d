"""What commands print for programs: each `--json` by its schema, which forbids what it does not name."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator

from llm_node.cli.command import command as llm_node
from llm_node.schema.reports import (
    COUNT,
    ENGINES,
    ERROR,
    FACTS,
    FILE,
    FLAG,
    MODEL,
    NUMBER,
    PLAN,
    SYSTEM,
    TEXT,
    UNLISTED,
    WORDS,
    Schema,
    fields,
    maybe,
    some,
)
from llm_node.settings import ALL
from support.hub import StandInHub, stand_in_hub
from support.node import RunningNode, node_environment, running_node

Command = Callable[..., str]
Start = Callable[..., "subprocess.Popen[str]"]


HASH: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
ANY: Schema = {}
HEADER = fields(
    architecture=TEXT, name=maybe(TEXT), license=maybe(TEXT), file_type=maybe(COUNT),
    context_length=maybe(COUNT), has_chat_template=FLAG, pools=FLAG, ranks=FLAG, split_count=maybe(COUNT),
    tensor_count=COUNT, parameters=COUNT, metadata_end=COUNT,
)  # fmt: skip
TIMES = fields(p50=NUMBER, p90=NUMBER, p99=NUMBER, mean=NUMBER, max=NUMBER)
CHECK = fields(
    name=TEXT, level={"enum": ["must", "should"]}, status={"enum": ["passed", "failed", "skipped"]},
    seconds=NUMBER, contract=TEXT, line=COUNT, seen=WORDS, mend=TEXT, script=some(TEXT),
)  # fmt: skip
PULL = {"pull_id": TEXT, "model": TEXT}
EVENT: Schema = {
    "oneOf": [
        fields(**PULL, event={"enum": ["resolving", "waiting"]}),
        fields(
            **PULL, event={"const": "resolved"}, version=maybe(TEXT), revision=maybe(TEXT), total=COUNT,
            files=some(fields(path=TEXT, size_bytes=COUNT)), why=some(TEXT),
        ),
        fields(
            **PULL, event={"const": "progress"}, bytes=COUNT, total=COUNT, bytes_per_second=COUNT,
            eta_seconds=maybe(COUNT),
        ),
        fields(**PULL, event={"const": "verifying"}, bytes=COUNT, total=COUNT),
        fields(**PULL, event={"const": "ready"}, row=MODEL),
        fields(**PULL, event={"const": "error"}, error=ERROR),
    ]
}  # fmt: skip
VERSION = fields(version=TEXT, size_bytes=COUNT, bits=NUMBER, needs_bytes=COUNT, fits=FLAG)
LINE = fields(time=NUMBER, level={"enum": ["debug", "info", "warning", "error"]}, logger=TEXT, message=WORDS)

SCHEMAS: Mapping[str, Schema] = {
    "list": fields(models=some(MODEL), unlisted_=some(UNLISTED)),
    "show": fields(
        **FILE, error=maybe(ERROR), header=maybe(HEADER), facts=maybe(FACTS), why=some(TEXT),
        needs=some(fields(context_length=COUNT, bytes=COUNT)),
        sha256={"type": "object", "additionalProperties": HASH},
        verified_={
            "type": "object",
            "additionalProperties": {"enum": ["right", "differs", "nothing was promised"]},
        },
    ),
    "search": fields(
        models=some(fields(
            id=TEXT, downloads=maybe(COUNT), likes=maybe(COUNT), parameters=maybe(COUNT), fits=maybe(FLAG)
        ))
    ),
    "pull": EVENT,
    "pull --dry-run": fields(
        model=TEXT, versions=some(VERSION), chosen=maybe(TEXT), context_length_=COUNT, size_bytes_=COUNT,
        why=some(TEXT),
    ),
    "engines": ENGINES,
    "engine list": fields(packages=some(fields(name=TEXT, version=TEXT, engines=some(TEXT)))),
    "engine check": fields(engine=TEXT, version=TEXT, checks=some(CHECK)),
    "ps": SYSTEM,
    "plan": PLAN,
    "logs": LINE,
    "doctor": fields(findings=some(fields(level={"enum": ["ok", "warn", "fail"]}, message=TEXT))),
    "config get": fields(**{setting.name: ANY for setting in ALL}, models={"type": "object"}),
    "bench": fields(
        model=TEXT, requests=COUNT, completed=COUNT, failed=COUNT, errors=some(ANY), shorter=COUNT,
        stopped=FLAG, wall_s=NUMBER, window_s=NUMBER, prompt_tokens=COUNT, cached_tokens=COUNT,
        output_tokens=COUNT, output_tokens_per_s=NUMBER, events=COUNT, tokens_per_event=NUMBER,
        ttft_ms=TIMES, itl_ms=TIMES, tpot_ms=TIMES, e2e_ms=TIMES, goodput=maybe(NUMBER), client_cpu_s=NUMBER,
    ),
}  # fmt: skip
IN_LINES = ("pull", "logs")


@pytest.fixture(scope="module")
def hub(demo_model: Path) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        hub.put("org/Tiny-GGUF", "tiny-Q4_0.gguf", demo_model.read_bytes())
        hub.put("org/Other-GGUF", "other-Q4_0.gguf", demo_model.read_bytes())
        hub.parameters["org/Tiny-GGUF"] = 3_800_000
        yield hub


@pytest.fixture(scope="module")
def loaded(engines: Path, hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with a model that is loaded, one that cannot be, and a file that is none."""
    folder = tmp_path_factory.mktemp("node")
    models = folder / ".llm-node/models"
    models.mkdir(parents=True)
    (models / "damaged.gguf").write_bytes(b"GGUF")
    (models / "weights.bin").write_bytes(b"weights")
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(folder, arguments, environment=hub.environment()) as node:
        assert node.post("/api/models/load", {"model_id": "llm-node-demo"}).status == 200
        node.extra["home"] = folder
        yield node


@pytest.fixture
def start(loaded: RunningNode, hub: StandInHub, engines: Path) -> Start:
    """Begins a command in the home of the node that runs."""
    settings = {"LLM_NODE_ENGINES_DIR": str(engines), "LLM_NODE_GPU_BACKEND": "cpu"}
    return lambda *arguments: subprocess.Popen(
        [Path(sys.executable).with_name("llm-node"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=node_environment(loaded.extra["home"], **settings, **hub.environment()),
    )


@pytest.fixture
def command(start: Start) -> Command:
    """What a command prints."""

    def run(*arguments: str) -> str:
        with start(*arguments) as process:
            printed, said = process.communicate(timeout=100)
            assert process.returncode == 0, said
            return printed

    return run


def check(name: str, printed: str) -> list[Any]:
    """What was printed, once it is as its schema says."""
    texts = printed.splitlines() if name in IN_LINES else [printed]
    assert texts, "something was printed"
    validator = Draft202012Validator(SCHEMAS[name])
    found = [json.loads(text) for text in texts]
    for each in found:
        errors = [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(each)]
        assert errors == []
    return found


@pytest.mark.parametrize(
    "typed",
    [
        ("list",),
        ("list", "--all"),
        ("show", "llm-node-demo"),
        ("show", "llm-node-demo", "--verify"),
        ("plan", "llm-node-demo"),
        ("search",),
        ("engines",),
        ("engine", "list"),
        ("ps",),
        ("logs",),
        ("doctor",),
        ("config", "get"),
    ],
    ids=" ".join,
)
def test_it_is_as_the_schema_says(command: Command, typed: tuple[str, ...]) -> None:
    name = " ".join(word for word in typed if not word.startswith("--") and word != "llm-node-demo")
    (found, *_) = check(name, command(*typed, "--json"))
    if name == "list":
        states = {row["model_id"]: row["status"] for row in found["models"]}
        assert states["llm-node-demo"] == "loaded" and "damaged" in states
        assert ("unlisted" in found) == ("--all" in typed)
    if name == "search":
        fits = {each["id"]: each["fits"] for each in found["models"]}
        assert fits == {"org/Tiny-GGUF": True, "org/Other-GGUF": None}
    if name == "ps":
        assert [worker["model_id"] for worker in found["workers"]] == ["llm-node-demo"]


def test_a_plan_of_what_cannot_be_loaded_is_a_plan_too(start: Start) -> None:
    with start("plan", "damaged", "--json") as process:
        printed, said = process.communicate(timeout=100)
    (planned,) = check("plan", printed)
    assert (process.returncode, said) == (1, "")
    assert (planned["verdict"], planned["error"]["code"]) == ("refused", "model_corrupt")
    with start("plan", "damaged") as process:
        assert process.communicate(timeout=100)[0] == f"damaged: refused: {planned['error']['message']}\n"


def test_a_pull_tells_each_event_by_the_schema(command: Command, start: Start, hub: StandInHub) -> None:
    (planned,) = check("pull --dry-run", command("pull", "org/Tiny-GGUF", "--dry-run", "--json"))
    assert planned["chosen"] == "Q4_0"
    hub.behaviour.pause = threading.Event()
    with start("pull", "org/Tiny-GGUF", "--json") as process:
        assert process.stdout is not None
        printed = ""
        while '"progress"' not in printed:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        hub.behaviour.pause.set()
        printed += process.communicate(timeout=100)[0]
    events = [event["event"] for event in check("pull", printed)]
    assert {"resolved", "progress"} <= set(events) and events[-1] == "ready"
    (newer,) = check("pull --dry-run", command("pull", "org/Tiny-GGUF", "--update", "--dry-run", "--json"))
    assert (newer["size_bytes"], newer["versions"]) == (0, [])
    (shown,) = check("show", command("show", "tiny", "--json"))
    assert len(shown["sha256"]) == 1


def test_checks_and_measurements_have_schemas_too(
    command: Command, loaded: RunningNode, llama_cpp: Path
) -> None:
    (checked,) = check(
        "engine check", command("engine", "check", str(llama_cpp), "--quick", "--only", "file", "--json")
    )
    assert checked["engine"] == "llama_cpp" and checked["checks"]
    short = ["--requests", "2", "--prompt-tokens", "4", "--output-tokens", "4"]
    (measured,) = check("bench", command("bench", loaded.url, "--json", "--model", "llm-node-demo", *short))
    assert measured["completed"] == 2


def test_every_command_that_prints_json_has_a_schema() -> None:
    def found(group: click.Group, before: str = "") -> Iterator[str]:
        context = click.Context(group)
        for word in group.list_commands(context):
            each = group.get_command(context, word)
            assert each is not None
            if any("--json" in parameter.opts for parameter in each.params):
                yield f"{before}{word}"
            if isinstance(each, click.Group):
                yield from found(each, f"{before}{word} ")

    assert set(found(llm_node)) == {name for name in SCHEMAS if name != "pull --dry-run"}
