"""What a node says once it listens: what it has, and a command to type next that works with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from llm_node import advice, demo
from llm_node.advice import Row

QUESTION = "What is an engine?"
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


def lines(
    url: str,
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
    beside = f" ({rejected} cannot be used: see `llm-node engines`)" if rejected else ""
    said = [f"engines: {_names(working, 'id')}{beside}", f"models:  {_names(models, 'model_id')}"]
    if not working:
        folder = engines_dirs[0] / f"<id>/{gpu_backend}"
        said += ["", *_no_engine(folder)]
    elif not models:
        said += [
            "",
            f"No model yet: `{advice.NO_MODEL.command}` fetches one from the Hugging Face hub.",
            f"Or put NAME.gguf into {models_dir}, or name a folder with --models-dir.",
        ]
    elif (model := _best(models, obstacles)) is not None:
        said += ["", *_example(url, str(model["model_id"]), model.get("task"))]
    else:
        code, message = next(iter(obstacles.values()))
        said += ["", f"None of these models can be loaded ({code}): {message}"]
    return [*said, ""]


NO_ENGINE = (
    "no engine, so no model can be loaded; `llm-node engine install` brings what this machine needs, or name "
    "a folder that holds <id>/<gpu_backend>/ with --engines-dir, and see `llm-node engines`"
)


def _no_engine(folder: Path) -> list[str]:
    return [
        f"{advice.NO_ENGINE.text} `{advice.NO_ENGINE.command}` brings what this machine needs.",
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


def _example(url: str, model: str, task: str | None) -> list[str]:
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
    chat = ["or in the terminal:", f"  llm-node run {shlex.quote(model)}"] if task == "chat" else []
    return [
        what,
        f"  curl -N {url}/v1/{path} -H 'Content-Type: application/json' \\",
        f"    -d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
        *(_in_python(url, python) if python else []),
        *chat,
    ]


def _in_python(url: str, lines: Sequence[str]) -> list[str]:
    return [
        "or from Python, with `pip install openai`:",
        "  from openai import OpenAI",
        f'  client = OpenAI(base_url="{url}/v1", api_key="none")',
        *(f"  {line}" for line in lines),
    ]


def _refusal(engine: Row) -> str:
    return f"'{engine['id']}' cannot be used: {(engine.get('error') or {}).get('message')}"


def _names(entries: Sequence[Row], key: str) -> str:
    return ", ".join(str(entry[key]) for entry in entries) or "none"
