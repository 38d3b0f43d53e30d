"""Engines and models inside this process, without a node: for notebooks, scripts and tests.

The same scheduler and sampler as in a worker, on a thread. An engine that crashes takes the process
with it; whoever minds that uses `llm_node.Node`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from llm_node import engine_packages
from llm_node.node import NativeEngine, NativeModel, NodeError, arguments

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


class _OfProcess:
    """Belongs to the process that made it: its threads do not come along when that is forked."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def _is_here(self) -> bool:
        return os.getpid() == self._process

    def _check(self) -> None:
        if not self._is_here():
            raise NodeError(
                "invalid_request",
                f"what process {self._process} opened cannot be used in a process forked from it; open it "
                "there, or start processes by 'spawn'",
            )


class Engine(_OfProcess):
    """An engine, opened from the folder of its manifest. A context manager that closes it."""

    def __init__(self, path: str | os.PathLike[str], *, options: Mapping[str, str] | None = None) -> None:
        """`path`: folder of a manifest.json. `options`: settings for the engine. Libraries that its manifest
        names come of the packages that are installed. Raises `NodeError`."""
        super().__init__()
        packaged = json.dumps([asdict(each) for each in engine_packages.libraries()])
        settings = arguments.as_json(arguments.mapping("options", options))
        self._native = NativeEngine(arguments.path("path", path), settings, packaged)

    @property
    def id(self) -> str:
        """As in the manifest and in the binary."""
        return self._native.id

    @property
    def version(self) -> str:
        """As in the manifest and in the binary."""
        return self._native.version

    @property
    def gpu_backend(self) -> str:
        """ "cpu", "cuda", ..."""
        return self._native.gpu_backend

    @property
    def extensions(self) -> list[str]:
        """What it offers beyond the five functions: "engine.batch/1", ..."""
        return list(self._native.extensions)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        context_length: int | None = None,
        max_sequences: int | None = None,
        cache_tokens: int | None = None,
        gpu_layers: int | None = None,
        threads: int | None = None,
        speculation: str = "lookup",
        draft_model: str | os.PathLike[str] | None = None,
        chat_template: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Model:
        """Load a model file or folder.

        context_length: longest sequence in tokens; None: the model's own. max_sequences: how many are
        computed at once. cache_tokens: KV cache for all of them together; None: the full length for each.
        gpu_layers: layers on the device; None: all. threads: of the CPU; None: the engine's choice.
        speculation: "off" or "lookup", guessing tokens out of the text. draft_model: a smaller model with
        the same vocabulary that guesses instead. chat_template: in place of the model's own, its source or
        the name of one that is built in. options: further settings for the engine. Raises `NodeError`.
        """
        self._check()
        wanted = {
            "context_length": context_length,
            "max_sequences": max_sequences,
            "cache_tokens": cache_tokens,
            "gpu_layers": gpu_layers,
            "threads": threads,
            "speculation": speculation,
            "draft_model": (
                None if draft_model is None else os.path.abspath(arguments.path("draft_model", draft_model))
            ),
            "chat_template": chat_template,
            "options": arguments.mapping("options", options),
        }
        chosen = {key: value for key, value in wanted.items() if value is not None}
        for name, value in chosen.items():
            arguments.option(name, value)
        return Model(self._native.load(arguments.path("path", path), arguments.as_json(chosen)))

    def close(self) -> None:
        """Shut the engine down. Close its models first."""
        if self._is_here():
            self._native.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Model(_OfProcess):
    """A loaded model; made by `Engine.load`. A context manager that unloads it."""

    def __init__(self, native: NativeModel) -> None:
        super().__init__()
        self._native = native

    @property
    def facts(self) -> dict[str, Any]:
        """Architecture, format, context length, memory: `ModelFacts` of `rust/wire/src/message.rs`."""
        facts: dict[str, Any] = json.loads(self._native.facts())
        return facts

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """The answer, piece by piece.

        prompt: text, tokens, or a conversation as messages with "role" and "content". The texts of special
        tokens are these tokens in text, and only letters in a conversation.
        max_tokens: None: what is left of the context. temperature 0 is greedy. Equal seeds give equal
        answers. The answer ends before the first `stop`. Raises `NodeError`. Leaving the iterator
        early cancels the rest.
        """
        self._check()
        arguments.tokens("max_tokens", max_tokens)
        sampling = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": arguments.above_zero(top_p),
            "min_p": min_p,
            "repeat_penalty": arguments.above_zero(repeat_penalty),
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "seed": seed,
        }
        request = {
            "prompt": neutral_prompt(prompt),
            "max_tokens": max_tokens,
            "stop": [stop] if isinstance(stop, str) else arguments.items("stop", stop),
        }
        # Each by its own name, should JSON be unable to say it.
        arguments.as_json({**request, **sampling})
        return self._pieces(json.dumps({**request, "sampling": sampling}))

    def _pieces(self, request: str) -> Iterator[str]:
        self._check()
        stream = self._native.generate(request)
        try:
            for event in stream:
                if event.kind == "piece" and event.part == "text" and event.text:
                    yield event.text
                    self._check()
                elif event.kind == "failed":
                    raise event.fault or NodeError("internal", "the request failed without a reason")
        finally:
            stream.cancel()

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Text to tokens: what the model would see of it."""
        question = {"Tokenize": {"text": text, "add_special": add_special, "parse_special": parse_special}}
        tokens: list[int] = self._ask(question)
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Tokens to text."""
        text: str = self._ask({"Detokenize": {"tokens": arguments.items("tokens", tokens)}})
        return text

    def _ask(self, question: Mapping[str, Any]) -> Any:
        self._check()
        for given in question.values():
            arguments.as_json(given)
        (value,) = json.loads(self._native.ask(json.dumps(question))).values()
        return value

    def close(self) -> None:
        """Unload the model. Iterators that are under way raise `NodeError`."""
        if self._is_here():
            self._native.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def neutral_prompt(prompt: Prompt) -> dict[str, Any]:
    """`Prompt` of `rust/core/src/request.rs`."""
    if isinstance(prompt, str):
        return {"text": arguments.text("prompt", prompt)}
    items = arguments.items("prompt", prompt)
    if not items:
        raise arguments.wrong("prompt", prompt, "a text, tokens or messages are needed")
    if items and all(isinstance(item, int) for item in items):
        return {"tokens": items}
    return {"chat": {"messages": [_message(at, item) for at, item in enumerate(items)]}}


def _message(at: int, item: Any) -> dict[str, Any]:
    """A message with "role" and "content", in neutral words. `at`: its place in the prompt."""
    if isinstance(item, Mapping) and isinstance(text := item.get("content"), str):
        arguments.text(f"prompt[{at}].content", text)
        match item.get("role"):
            case "system":
                return {"system": {"text": text}}
            case "user":
                return {"user": {"parts": [{"text": text}]}}
            case "assistant":
                return {"assistant": {"text": text}}
    needed = "a message has a 'role' (system, user or assistant) and a text as its 'content'"
    raise arguments.wrong(f"prompt[{at}]", item, needed)
