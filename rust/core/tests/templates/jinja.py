"""Render chat templates with Jinja2, set up as Hugging Face's `transformers` does: JSON in, JSON out.

Read from standard input: a list of `{"template": str, "chats": [variables, ...]}`. Written to standard
output: for each template a list with the text that it makes of each chat, or null where it raises.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment

NOW = datetime.fromtimestamp(1_700_000_000, UTC)


class Generation(Extension):
    """`{% generation %}` marks the model's own words for training; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def to_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


# Lists that change, since the templates of Kimi K2 ask for them.
environment = SandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
)
environment.filters["tojson"] = to_json
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = NOW.strftime


def render(template: jinja2.Template, chat: dict[str, Any]) -> str | None:
    try:
        return template.render(chat)
    except Exception:  # whatever a template runs into
        return None


def main() -> None:
    answers = []
    for asked in json.load(sys.stdin):
        template = environment.from_string(asked["template"])
        answers.append([render(template, chat) for chat in asked["chats"]])
    json.dump(answers, sys.stdout)


main()
