"""Bodies with something else in one place: each is an answer or a typed refusal, never a defect."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_node.api.anthropic.conversation import conversation
from llm_node.api.body import parse
from llm_node.api.ollama.conversation import of_chat, of_prompt
from llm_node.api.responses.conversation import conversation as responses_conversation
from llm_node.api.responses.conversation import messages
from llm_node.api.responses.shapes import Shape, text_format
from llm_node.api.responses.stream import Writer
from llm_node.api.responses.tools import Offered
from llm_node.errors import TABLE
from llm_node.node import NodeError
from llm_node.schema.anthropic.messages import MessagesRequest
from llm_node.schema.ollama.chat import ChatRequest, GenerateRequest
from llm_node.schema.ollama.embed import EmbedRequest
from llm_node.schema.ollama.library import ShowRequest
from llm_node.schema.responses.request import ResponsesRequest

CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}
IMAGE = {"type": "image", "source": {"type": "base64", "data": ""}}
DOCUMENT = {"type": "document", "title": "t", "source": {"type": "text", "data": "d"}}
RESULT = {
    "type": "tool_result",
    "tool_use_id": "toolu_1",
    "content": [{"type": "text", "text": "r"}, IMAGE, DOCUMENT],
}
ANTHROPIC = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}, DOCUMENT]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "h", "signature": ""}, CALL]},
        {"role": "user", "content": [RESULT]},
    ],
    "tools": [{"name": "f", "input_schema": {"type": "object"}}, {"type": "bash_20250124", "name": "bash"}],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled", "budget_tokens": 2},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "stop_sequences": ["x"],
    "metadata": {"user_id": "u"},
}
CHAT = {
    "model": "m",
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "r", "tool_name": "f", "images": ["AA=="]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "options": {"temperature": 1, "stop": ["x"], "mirostat": 0, "num_ctx": 1},
    "format": {"type": "object"},
    "think": "low",
    "keep_alive": "5m",
}
GENERATE = {
    "model": "m",
    "prompt": "p",
    "system": "s",
    "raw": False,
    "suffix": "",
    "context": [],
    "options": {},
}
EMBED = {"model": "m", "input": ["a", "b"], "dimensions": 2, "truncate": True}

RESPONSES = {
    "model": "m",
    "instructions": "i",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "llmn1.aGk="},
        {"type": "function_call", "call_id": "1", "name": "f", "namespace": "n", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image"}]},
        {"type": "local_shell_call", "id": "2", "action": {"type": "exec"}},
        {"type": "local_shell_call_output", "id": "2", "output": "x"},
    ],
    "tools": [
        {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False},
        {
            "type": "custom",
            "name": "c",
            "format": {"type": "grammar", "syntax": "lark", "definition": "s: /a/"},
        },
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}, {"type": "x"}]},
        {"type": "local_shell"},
        {"type": "web_search"},
    ],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
    "top_logprobs": 1,
}


def of_responses(wanted: ResponsesRequest) -> Any:
    offered = Offered(wanted, set())
    said = messages(wanted.input, (), lambda name: None, set())
    neutral = responses_conversation(wanted, said, offered, set()).neutral()
    text_format(wanted.text)
    stream = Writer(Shape(wanted, offered), lambda response, blocks: None)
    stream.frames[0].native(chunked=True)
    return neutral


BODIES: dict[str, tuple[Any, Any, Callable[[Any], Any]]] = {
    "anthropic": (ANTHROPIC, MessagesRequest, lambda wanted: conversation(wanted, set()).neutral()),
    "ollama chat": (CHAT, ChatRequest, lambda wanted: of_chat(wanted, set()).neutral()),
    "ollama generate": (GENERATE, GenerateRequest, lambda wanted: of_prompt(wanted).neutral()),
    "ollama embed": (EMBED, EmbedRequest, lambda wanted: wanted.input),
    "responses": (RESPONSES, ResponsesRequest, of_responses),
    "ollama show": ({"name": "m", "verbose": True}, ShowRequest, lambda wanted: wanted.model),
}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["text", "image", "tool_use", "tool_result", "document", "content", "user", "f", "m"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["type", "text", "content", "source"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a body."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def put(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(body)
    here = changed
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return changed


@pytest.mark.parametrize("name", BODIES)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_anything_in_one_place(name: str, data: st.DataObject) -> None:
    body, shape, translate = BODIES[name]
    translate(parse(json.dumps(body).encode(), shape))
    path = data.draw(st.sampled_from(sorted(places(body), key=str)))
    try:
        found = translate(parse(json.dumps(put(body, path, data.draw(JSON))).encode(), shape))
    except NodeError as fault:
        assert TABLE[fault.code].status == 400
        assert fault.message
    else:
        json.dumps(found, allow_nan=False)
