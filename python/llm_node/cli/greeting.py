"""What a node says once it listens: what it has, and a command to type next that works with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_node import advice, demo, installation
from llm_node.advice import Row
from llm_node.settings import BY_NAME

QUESTION = "What is an engine?"
KEY_VARIABLE = BY_NAME["api_key"].environment
BEGINNING = "Once upon a time"
TASKS = ("chat", "completions", "embeddings", "rerank")
"""In the order in which examples are worth showing."""


def wrong_backend(engines: Sequence[Row], gpu_backend: str | None) -> str | None:
    """Why a node with these engines would serve nothing, whatever models come: they are for other devices."""
    working = [engine for engine in engines if engine["status"] == "loaded"]
    if not working or advice.usable(engines, gpu_backend):
        return None
    others = "; ".join(f"'{engine['id']}' is for {engine['gpu_backend']}" for engine in working)
    refused = [f"; {_refusal(engine)}" for engine in engines if engine["gpu_backend"] == gpu_backend]
    choices = " or ".join(sorted({str(engine["gpu_backend"]) for engine in working}))
    return (
        f"no engine for the GPU backend {gpu_backend}: {others}{''.join(refused)}. "
        f"Choose --gpu-backend {choices}, or add an engine for {gpu_backend}"
    )


@dataclass(frozen=True)
class Way:
    """How who types a command reaches the node."""

    url: str
    home: Path | None = None
    """Where it is not the usual one."""
    has_keys: bool = False
    has_page: bool = True
    certificate: Path | None = None

    def typed(self, words: str) -> str:
        """A command of ours: what stands behind `llm-node`."""
        home = [] if self.home is None else ["--home", shlex.quote(str(self.home))]
        return " ".join([installation.NAME, *home, words])

    def of_curl(self) -> str:
        """The call of a path of the API, but for its body."""
        trust = "" if self.certificate is None else f" --cacert {shlex.quote(str(self.certificate))}"
        key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if self.has_keys else ""
        return f"curl -N{trust}{key} -H 'Content-Type: application/json' {self.url}"

    def of_python(self) -> list[str]:
        """Lines that make a client."""
        names, arguments, before = ["OpenAI"], [f'base_url="{self.url}/v1"'], []
        if self.has_keys:
            before.append("import os")
            arguments.append(f'api_key=os.environ["{KEY_VARIABLE}"]')
        else:
            arguments.append('api_key="none"')
        if self.certificate is not None:
            before.append("import ssl")
            names.insert(0, "DefaultHttpxClient")
            trust = f"ssl.create_default_context(cafile={json.dumps(str(self.certificate))})"
            arguments.append(f"http_client=DefaultHttpxClient(verify={trust})")
        return [
            *before,
            f"from openai import {', '.join(names)}",
            f"client = OpenAI({', '.join(arguments)})",
        ]


def lines(
    way: Way,
    gpu_backend: str | None,
    engines: Sequence[Row],
    models: Sequence[Row],
    obstacles: dict[str, tuple[str, str]],
    engines_dirs: Sequence[Path],
    models_dir: Path,
) -> list[str]:
    """What to print. `obstacles`: of models that cannot be loaded, code and message."""
    working = advice.usable(engines, gpu_backend)
    rejected = len(engines) - len(working)
    beside = f" ({rejected} cannot be used: see `{way.typed('engines')}`)" if rejected else ""
    said = [f"engines: {_names(working, 'id')}{beside}", f"models:  {_names(models, 'model_id')}"]
    if not working:
        folder = engines_dirs[0] / f"<id>/{gpu_backend}"
        said += ["", *_no_engine(folder, way)]
    elif not models:
        said += [
            "",
            f"No model yet: `{way.typed(_words(advice.NO_MODEL))}` fetches one from the Hugging Face hub.",
            f"Or put NAME.gguf into {models_dir}, or name a folder with --models-dir.",
        ]
    elif (model := _best(models, obstacles)) is not None:
        said += ["", *_example(way, str(model["model_id"]), model.get("task"))]
    else:
        code, message = next(iter(obstacles.values()))
        said += ["", f"None of these models can be loaded ({code}): {message}"]
    return [*said, ""]


NO_ENGINE = (
    "no engine, so no model can be loaded; `llm-node engine install` brings what this machine needs, or name "
    "a folder that holds <id>/<gpu_backend>/ with --engines-dir, and see `llm-node engines`"
)


def _words(it: advice.Advice) -> str:
    return it.command.removeprefix(f"{installation.NAME} ")


def _no_engine(folder: Path, way: Way) -> list[str]:
    return [
        f"{advice.NO_ENGINE.text} `{way.typed(_words(advice.NO_ENGINE))}` brings what this machine needs.",
        "An engine is a folder with a library and a manifest. One that you have:",
        f"  put it into {folder}/,",
        "  or name a folder that holds <id>/<gpu_backend>/ with --engines-dir.",
        "The llama.cpp engine, for GGUF models, is a package that llm-node's source builds (`make wheel`).",
    ]


def _best(models: Sequence[Row], obstacles: dict[str, tuple[str, str]]) -> Row | None:
    """The model for the example: the demo model, else the first of the task that is first."""

    def rank(model: Row) -> tuple[bool, int]:
        task = model.get("task")
        return model["model_id"] != demo.NAME, TASKS.index(task if task in TASKS else "completions")

    can_be_loaded = [model for model in models if model["model_id"] not in obstacles]
    return min(can_be_loaded, key=rank, default=None)


def _example(way: Way, model: str, task: str | None) -> list[str]:
    call = f'model="{model}"'
    if task == "chat":
        path, what = "chat/completions", "Ask it something:"
        messages = [{"role": "user", "content": QUESTION}]
        body: Row = {"model": model, "stream": True, "temperature": 0, "messages": messages}
        python = [
            f"messages = {json.dumps(messages)}",
            f"answer = client.chat.completions.create({call}, messages=messages)",
            "print(answer.choices[0].message.content)",
        ]
    elif task == "embeddings":
        path, what = "embeddings", "Have it turn a text into a vector:"
        body = {"model": model, "input": BEGINNING}
        python = [
            f'answer = client.embeddings.create({call}, input="{BEGINNING}")',
            "print(answer.data[0].embedding)",
        ]
    elif task == "rerank":
        path, what = "rerank", "Have it tell which text answers a question best:"
        body = {"model": model, "query": QUESTION, "documents": [BEGINNING, QUESTION]}
        python = []
    else:
        path, what = "completions", "Have it go on with a text:"
        body = {"model": model, "stream": True, "temperature": 0, "max_tokens": 64, "prompt": BEGINNING}
        python = [
            f'answer = client.completions.create({call}, prompt="{BEGINNING}")',
            "print(answer.choices[0].text)",
        ]
    chat = ["or in the terminal:", f"  {way.typed(f'run {shlex.quote(model)}')}"] if task == "chat" else []
    page = ["or in a browser:", f"  {way.url}/"] if way.has_page else []
    return [
        what,
        f"  {way.of_curl()}/v1/{path} \\",
        f"    -d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
        *(_in_python(way, python) if python else []),
        *chat,
        *page,
    ]


def _in_python(way: Way, lines: Sequence[str]) -> list[str]:
    return [
        "or from Python, with `pip install openai`:",
        *(f"  {line}" for line in [*way.of_python(), *lines]),
    ]


def _refusal(engine: Row) -> str:
    return f"'{engine['id']}' cannot be used: {(engine.get('error') or {}).get('message')}"


def _names(entries: Sequence[Row], key: str) -> str:
    return ", ".join(str(entry[key]) for entry in entries) or "none"
