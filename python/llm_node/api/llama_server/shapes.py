"""From what a model does to llama-server's words: whole answers, or the events of a stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llm_node.api import answers, frames, sse, timings
from llm_node.api.answers import Answer, Finish, Usage
from llm_node.api.frames import Frames, Part, Template
from llm_node.node import Event
from llm_node.schema.llama_server.completion import Generation

FRAMING = replace(sse.EVENTS, last=b"")
"""How streams are written: nothing stands behind the last event."""

LOGPROBS = (
    '[<each>{"id":<id>,"token":<token>,"bytes":<bytes>,"logprob":<logprob>,"top_logprobs":['
    '<top>{"id":<id>,"token":<token>,"bytes":<bytes>,"logprob":<logprob>}</top>]}</each>]'
)
"""The shape of log-probabilities, as a pattern of `rust/node/src/pattern.rs`."""

STOP_TYPES: dict[Finish, str] = {
    "stop": "eos",
    "stop_string": "word",
    "length": "limit",
    "context": "limit",
    "calls": "eos",
}
"""`stop_type`, by why an answer ended."""


def pattern(wanted: Generation) -> str | None:
    """How log-probabilities are written, for those who want them."""
    return LOGPROBS if wanted.n_probs else None


def settings(wanted: Generation) -> dict[str, Any]:
    """What a generation was made with, as far as it counts here."""
    return {
        "n_predict": wanted.n_predict,
        "seed": wanted.seed % (1 << 32),
        "temperature": wanted.temperature,
        "top_k": wanted.top_k,
        "top_p": wanted.top_p,
        "min_p": wanted.min_p,
        "repeat_penalty": wanted.repeat_penalty,
        "presence_penalty": wanted.presence_penalty,
        "frequency_penalty": wanted.frequency_penalty,
        "samplers": sorted(wanted.samplers),
        "stop": wanted.stop,
        "max_tokens": wanted.n_predict,
        "ignore_eos": wanted.ignore_eos,
        "stream": wanted.stream,
        "n_probs": wanted.n_probs,
    }


def whole(wanted: Generation, index: int, prompt: str, answer: Answer) -> dict[str, Any]:
    """One whole answer."""
    tokens = [token for block in answer.blocks for token in block.tokens] if wanted.return_tokens else []
    found = {
        "index": index,
        "content": answer.text,
        "tokens": tokens,
        **_ending(wanted, prompt, answer.finish, answer.stop, answer.took),
        "has_new_line": "\n" in answer.text,
        **({} if answer.logprobs is None else {"completion_probabilities": answer.logprobs}),
    }
    return _chosen(wanted, found)


def _ending(wanted: Generation, prompt: str, finish: Finish, stop: str | None, took: Usage) -> dict[str, Any]:
    return {
        "id_slot": 0,
        "stop": True,
        "model": wanted.model,
        "tokens_predicted": took.completion,
        "tokens_evaluated": took.prompt,
        "generation_settings": settings(wanted),
        "prompt": prompt,
        "truncated": finish == "context",
        "stop_type": STOP_TYPES[finish],
        "stopping_word": stop or "",
        "tokens_cached": took.cached,
        "timings": timings.of(took),
    }


def _chosen(wanted: Generation, found: dict[str, Any]) -> dict[str, Any]:
    """The fields that the client wants to see; all where it does not say. What is not there is left out."""
    if not wanted.response_fields:
        return found
    chosen: dict[str, Any] = {}
    for path in wanted.response_fields:
        here: Any = found
        for name in path.split("/"):
            if not isinstance(here, dict) or name not in here:
                break
            here = here[name]
        else:
            chosen[path] = here
    return chosen


class Writer:
    """Writes the events of one client's answers: `Writer` of `answers.py`."""

    def __init__(self, wanted: Generation, prompts: list[str]) -> None:
        """`prompts`: the text of each answer's prompt."""
        self._wanted = wanted
        self._prompts = prompts
        self.frames = [self._frames(index) for index in range(len(prompts))]

    def begin(self, index: int, event: Event) -> bytes:
        """Nothing: the first event is the first text."""
        return b""

    def end(self, index: int, event: Event) -> bytes:
        """Why it ended, and what it took."""
        ending = _ending(
            self._wanted, self._prompts[index], answers.finish(event), event.stop, Usage.of(event)
        )
        found = {"index": index, "content": "", "tokens": [], **ending}
        return FRAMING.frame(_chosen(self._wanted, found))

    def last(self) -> bytes:
        """Nothing: each answer has its own ending."""
        return b""

    def _frames(self, index: int) -> Frames:
        probabilities = {"completion_probabilities": frames.LOGPROBS} if self._wanted.n_probs else {}
        delta = {
            "index": index,
            "content": frames.TEXT,
            "tokens": frames.TOKENS,
            "stop": False,
            "id_slot": 0,
            **probabilities,
        }
        text = Part(delta=Template(FRAMING.frame(delta)))
        return Frames(text=text, logprobs=pattern(self._wanted))
