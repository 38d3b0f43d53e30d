"""A model that says what is written here, so that its calls and thoughts are known to the letter."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.models import CONTROL, USER_DEFINED, talker
from support.node import RunningNode, running_node

INPUT = '{"city": "Köln \\"am\\" Rhein\\n", "days": 3}'


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CALL = call("get_weather", INPUT)
SCRIPTS = {
    "one": CALL,
    "several": "Let me see.\n" + call("get_weather", '{"city": "Ulm"}') + "\n" + call("now", "{}"),
    "nothing": '<tool_call>\n{"name": "now"}\n</tool_call>',
    "escape": call("get_weather", '{"city": "K\\u00f6ln \\ud83e\\udd99"}'),
    "unknown": "Hm.\n" + call("launch", '{"a": 1}'),
    "broken": "The mark is\n<tool_call> and that is that.",
    "thinks": "<think>\nfirst STOP\n</think>\n\nthen STOP more",
    "finds": "It rains.",
    "stops": call("get_weather", '{"city": "a STOP b"}'),
    "wrong": call("pick", '{"n": "six"}'),
    "patches": call("patch", '{"input": "*** Begin \\"a\\"\\n+b"}') + "\n" + call("now", '{"zone": 1}'),
    "reads": call("mcp__files__read", '{"path": "a.txt"}'),
    "runs": call("local_shell", '{"type": "exec", "command": ["ls", "-l"], "timeout_ms": 9}'),
    "plans": "<think>\nI should look.\n</think>\n\n" + call("get_weather", '{"city": "Bonn"}'),
}
"""What the model says, by the word that the last message is."""

TEMPLATE = (
    "{%- if tools %}<|open|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>{% endif %}"
    "{%- for m in messages %}<|open|>{{ m.role }}\n"
    "{%- if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{%- for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{%- if add_generation_prompt %}<|open|>assistant\n{% if enable_thinking %}<think>\n{% else %}"
    "{%- set last = messages[-1].content %}{% if messages[-1].role == 'tool' %}<|go-finds|>{%- else %}"
    + "".join(f"{{% if last == '{name}' %}}<|go-{name}|>{{% endif %}}" for name in SCRIPTS)
    + "{% endif %}{% endif %}{% endif %}"
)


def pieces(scripts: dict[str, str]) -> dict[str, list[str]]:
    """Each script as tokens of some characters, no two of which are equal in all scripts together."""
    used: set[str] = set()
    found: dict[str, list[str]] = {}
    for name, text in scripts.items():
        tokens: list[str] = []
        rest = text
        while rest:
            piece = next((rest[:n] for n in range(3, len(rest)) if rest[:n] not in used), rest)
            rest = rest[len(piece) :]
            while piece in used:
                piece = tokens.pop() + piece
            tokens.append(piece)
            used.add(piece)
        found[name] = tokens
    return found


TOKENS = pieces(SCRIPTS)


@contextmanager
def scripted_node(engines: Path, folder: Path) -> Iterator[RunningNode]:
    """A node with the model `says`, which says the script that its last message names, `plain`, whose chat
    template knows no tools, and `mute`: `says` without tools, by a setting."""
    (folder / "models").mkdir()
    follows: dict[str | int, str | int] = {}
    words = [("<|open|>", CONTROL), ("<|end|>", CONTROL), ("<think>\n", USER_DEFINED)]
    follows["<think>\n"] = TOKENS["finds"][0]
    for name, tokens in TOKENS.items():
        chain = [f"<|go-{name}|>", *tokens]
        follows |= dict(itertools.pairwise(chain))
        words += [(chain[0], CONTROL), *((token, USER_DEFINED) for token in tokens)]
    talker(folder / "models/says.gguf", words, follows, TEMPLATE, context=8192)
    (folder / "models/mute.gguf").hardlink_to(folder / "models/says.gguf")
    talker(folder / "models/plain.gguf", words, follows, "{{ messages[-1].content }}")
    places = ["--engines-dir", str(engines), "--models-dir", str(folder / "models"), "--gpu-backend", "cpu"]
    with running_node(folder / "node", [*places, "--tool-syntax", "mute=off"]) as running:
        yield running
