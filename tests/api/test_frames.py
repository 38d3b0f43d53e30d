"""Templates: what Rust makes of them is what the slow way makes."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llm_node.api import frames, sse
from llm_node.api.conversation import dump
from llm_node.api.frames import Frames, Part, Template

unhurried = hypothesis_settings(deadline=None)

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


def filled(template: Template, values: dict[str, str]) -> bytes:
    """As `rust/node/src/frames.rs` does it."""
    segments, tail = template.native()
    return b"".join(before + values[name].encode() for before, name in segments) + tail


def content(
    text: Any, name: Any, id: Any, call: Any, block: Any, number: Any, logprobs: Any, base64: Any
) -> dict[str, Any]:
    return {
        "text": text,
        "carried": f"v1.{base64}",
        "call": [{"id": f"call_{id}", "bare": id, "name": name, "index": call}],
        "item": f"msg_{block}_{call}",
        "block": block,
        "number": number,
        "logprobs": logprobs,
    }


@unhurried
@given(TEXT, TEXT, st.text("abcXYZ019", min_size=1), st.integers(0, 99), st.sampled_from([None, [1.5]]))
def test_a_template_makes_what_the_slow_way_makes(
    text: str, name: str, id: str, number: int, logprobs: Any
) -> None:
    holes = content(
        frames.TEXT,
        frames.NAME,
        frames.ID,
        frames.CALL,
        frames.BLOCK,
        frames.NUMBER,
        frames.LOGPROBS,
        frames.BASE64,
    )
    values = {
        "text": dump(text),
        "name": dump(name),
        "id": id,
        "call": str(number),
        "block": str(number + 1),
        "number": str(number + 2),
        "logprobs": dump(logprobs),
        "base64": b64encode(text.encode()).decode(),
    }
    wanted = content(text, name, id, number, number + 1, number + 2, logprobs, values["base64"])
    for framing in (sse.EVENTS, sse.LINES):
        template = Template(framing.frame(holes) + framing.frame({"second": frames.TEXT}))
        assert filled(template, values) == framing.frame(wanted) + framing.frame({"second": text})


def test_json_stands_without_quotes() -> None:
    template = Template(sse.LINES.frame({"arguments": frames.JSON}))
    assert json.loads(filled(template, {"json": '{"a": 1}'})) == {"arguments": {"a": 1}}


@pytest.mark.parametrize(
    "hole", [frames.TEXT, frames.NAME, frames.JSON, frames.LOGPROBS], ids=["text", "name", "json", "logprobs"]
)
def test_a_hole_for_a_value_does_not_stand_inside_of_a_string(hole: str) -> None:
    with pytest.raises(ValueError, match="inside of a string"):
        Template(sse.LINES.frame({"a": f"x{hole}"}))


def test_nothing_is_a_template_too() -> None:
    cut = Template()
    parts = Frames(text=Part(cut=cut), logprobs="[]", number=2, keeps=True).native(chunked=True)
    assert parts[0] == (None, None, None, ([], b""))
    assert parts[3:] == ([], {}, "[]", True, True, 2)


def test_tools_share_the_templates_of_their_calls() -> None:
    one, other = Part(delta=Template(b"1")), Part(delta=Template(b"2"))
    frames_ = Frames(tools={"a": (one, "a"), "b": (other, "c"), "d": (one, "d")})
    further, tools = frames_.native(chunked=True)[3:5]
    assert further == [one.native(), other.native()]
    assert tools == {"a": (0, "a"), "b": (1, "c"), "d": (0, "d")}
