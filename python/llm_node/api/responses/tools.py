"""Tools: as the client offers them, and as the model knows them.

A tool of a namespace is known to the model as `namespace__name`, and a shell that the client runs as a
function. What the model calls is told in the client's words again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from llm_node.api.conversation import Among, Choice, Grammar, Json, Named, TextInput, Tool
from llm_node.node import NodeError
from llm_node.schema.responses import tools as wire
from llm_node.schema.responses.request import InputTokensRequest

Kind = Literal["function_call", "custom_tool_call", "local_shell_call"]
"""What a call is told as."""

LONGEST_NAME = 64
"""Of a tool in a namespace, together with it. Models were taught names that are no longer."""

LOCAL_SHELL = "local_shell"
SHELL = Tool(
    name=LOCAL_SHELL,
    description="Runs a command on the user's machine, and gives its output.",
    input=Json.of(
        {
            "type": "object",
            "properties": {
                "type": {"type": "string", "enum": ["exec"]},
                "command": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "The program and its arguments.",
                },
                "working_directory": {"type": "string"},
                "timeout_ms": {"type": "integer"},
                "env": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["type", "command"],
        }
    ),
)
"""Its input is the `action` of a `local_shell_call`."""


@dataclass(frozen=True, slots=True)
class Told:
    """How the calls of a tool are told."""

    kind: Kind
    name: str
    namespace: str | None = None


class Offered:
    """The tools of a request."""

    def __init__(self, wanted: InputTokensRequest, ignored: set[str]) -> None:
        """Adds to `ignored` what is offered in vain. Raises `NodeError` where nothing is left."""
        self.tools: list[Tool] = []
        self.told: dict[str, Told] = {}
        """By the name that the model knows."""
        self.shown: list[dict[str, Any]] = []
        """Those that count, for the client."""
        for tool in wanted.tools:
            self._add(tool, ignored)
        if wanted.tools and not self.tools:
            kinds = ", ".join(repr(tool.type) for tool in wanted.tools)
            raise NodeError(
                "unsupported_feature",
                f"tools: only tools that the client runs are known here, not {kinds}",
                "tools",
            )

    def of(self, name: str) -> Told:
        """How calls of the tool are told that the model knows by this name."""
        return self.told.get(name) or Told("function_call", name)

    def choice(self, wanted: InputTokensRequest) -> Choice:
        """Which of them may or must be called. Raises `NodeError`."""
        choice = wanted.tool_choice
        if isinstance(choice, str):
            if choice == "required" and not self.tools:
                raise NodeError("invalid_request", "a tool must be called, but there is none", "tool_choice")
            return choice if self.tools else "auto"
        if isinstance(choice, wire.ChosenTool):
            return Named(self._chosen(choice))
        is_hosted = [self._is_hosted(each) for each in choice.tools]
        if all(is_hosted):
            self._chosen(choice.tools[0])
        names = [
            self._chosen(each) for each, hosted in zip(choice.tools, is_hosted, strict=True) if not hosted
        ]
        return Among(tuple(names), required=choice.mode == "required")

    def _add(self, tool: wire.AnyTool, ignored: set[str]) -> None:
        if isinstance(tool, wire.HostedTool):
            ignored.add(f"tools.{tool.type}")
        elif isinstance(tool, wire.LocalShellTool):
            self.tools.append(SHELL)
            self.told[LOCAL_SHELL] = Told("local_shell_call", LOCAL_SHELL)
            self.shown.append({"type": "local_shell"})
        elif isinstance(tool, wire.NamespaceTool):
            inner = [self._client(each, tool.name, ignored) for each in tool.tools]
            shown = [each for each in inner if each is not None]
            self.shown.append({"type": "namespace", "name": tool.name, "description": "", "tools": shown})
        else:
            shown_tool = self._client(tool, None, ignored)
            if shown_tool is not None:
                self.shown.append(shown_tool)

    def _client(
        self,
        tool: wire.FunctionTool | wire.CustomTool | wire.HostedTool,
        namespace: str | None,
        ignored: set[str],
    ) -> dict[str, Any] | None:
        """Adds a tool that the client runs; gives it as the client is shown it."""
        if isinstance(tool, wire.HostedTool):
            ignored.add(f"tools.tools.{tool.type}")
            return None
        name = known_as(namespace, tool.name)
        shown = {"type": tool.type, "name": tool.name, "description": tool.description}
        if isinstance(tool, wire.FunctionTool):
            self.tools.append(Tool(name, Json.of(tool.parameters), tool.description, tool.strict))
            self.told[name] = Told("function_call", tool.name, namespace)
            return {**shown, "parameters": tool.parameters, "strict": tool.strict}
        description, grammar = tool.description, None
        if isinstance(tool.format, wire.GrammarFormat):
            # Templates have no place for it, and the model is not always held to it.
            grammar = Grammar(tool.format.syntax, tool.format.definition)
            said = f"The input must match this grammar ({grammar.syntax}):\n{grammar.definition}"
            description = f"{description}\n\n{said}" if description else said
        self.tools.append(Tool(name, TextInput(grammar), description))
        self.told[name] = Told("custom_tool_call", tool.name, namespace)
        return {**shown, "format": tool.format.model_dump()}

    def _is_hosted(self, choice: wire.ChosenTool) -> bool:
        return choice.type not in ("function", "custom", LOCAL_SHELL)

    def _chosen(self, choice: wire.ChosenTool) -> str:
        """The name that the model knows it by. The client may name its namespace, or not, or have it before
        the name."""
        if self._is_hosted(choice):
            raise NodeError(
                "unsupported_feature",
                f"tool_choice: only tools that the client runs can be called here, not {choice.type!r}",
                "tool_choice",
            )
        name = LOCAL_SHELL if choice.type == LOCAL_SHELL else str(choice.name)
        known = known_as(choice.namespace, name)
        if known in self.told:
            return known
        if choice.namespace is None:
            in_some = [each for each, told in self.told.items() if told.name == name]
            if len(in_some) == 1:
                return in_some[0]
        return known  # the model's worker says that there is none


def known_as(namespace: str | None, name: str) -> str:
    """The name that the model knows a tool by."""
    if namespace is None:
        return name
    whole = f"{namespace}__{name}"
    if len(whole) <= LONGEST_NAME:
        return whole
    mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{whole[: LONGEST_NAME - len(mark) - 1]}_{mark}"
