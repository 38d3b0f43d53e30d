"""A chat at a terminal, from the first question to the last. What it says beside the answers is dim."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import click

from llm_node.cli.chat import attached
from llm_node.cli.chat.answer import Answer, ask, ending, usage_in_words
from llm_node.cli.chat.conversation import Conversation, ConversationError, Message, Saved
from llm_node.cli.chat.interrupt import Interrupted, interruptible
from llm_node.cli.chat.layout import RESET
from llm_node.cli.chat.loading import Loaded, load
from llm_node.cli.chat.look import Look
from llm_node.cli.chat.markdown import DIM
from llm_node.cli.chat.prompt import Key, Prompt, Words
from llm_node.cli.chat.writer import TerminalWriter
from llm_node.cli.failure import Failed
from llm_node.cli.remote import Remote, RemoteError
from llm_node.cli.visible import visible

HOW_TO_LEAVE = "Ctrl-D or /bye leaves."


class Session:
    """One conversation and its terminal."""

    def __init__(
        self,
        node: Remote,
        loaded: Loaded,
        conversation: Conversation,
        look: Look,
        out: TextIO,
        history_file: Path | None,
    ) -> None:
        self._node = node
        self._loaded = loaded
        self._conversation = conversation
        self._look = look
        self._out = out
        self._last: Answer | None = None
        self._files: list[str] = []
        self._models: list[str] = []
        self._is_over = False
        arguments = {"/model": "model", "/file": "path", "/save": "path", "/load": "path"}
        self._prompt = Prompt(history_file, Words(COMMANDS, lambda: self._models, arguments))

    async def run(self) -> None:
        """Until the user leaves."""
        self._say(f"{self._conversation.model}: Enter sends, /help lists the commands. {HOW_TO_LEAVE}")
        with contextlib.suppress(RemoteError, Failed):
            self._models = [row["model_id"] for row in (await self._node.get("/api/models"))["models"]]
        while not self._is_over:
            given = await self._prompt.ask()
            if given is Key.LEAVE:
                return
            if given is Key.NOTHING:
                self._say(HOW_TO_LEAVE)
            elif given:
                await self._take(given)

    async def _take(self, text: str) -> None:
        try:
            if text.startswith("/") and not text.startswith("//"):
                await self._command(text)
            else:
                said = text.removeprefix("/") if text.startswith("//") else text
                await self._ask(said)
        except RemoteError as error:
            self._say(f"Error: {error.code}: {error.message}")
        except (ConversationError, Failed) as error:
            self._say(f"Error: {error}")
        except OSError as error:
            self._say(f"Error: {error.filename or 'this'}: {error.strerror}")

    async def _ask(self, said: str) -> None:
        """A question, with the files that go with it. Where no answer comes, they go with the next one."""
        before, files = list(self._conversation.messages), self._files
        self._conversation.say("\n".join([*files, said]))
        self._files = []
        try:
            await self._answer(before)
        finally:
            if self._conversation.messages is before:
                self._files = files

    async def _answer(self, before: list[Message]) -> None:
        """Ask for the next answer and show it. Where none comes, the conversation is as it was `before`."""
        writer = TerminalWriter(self._out, plain=self._look.plain, hide_thinking=self._look.hide_thinking)
        answer = Answer()
        is_whole = False
        try:
            is_whole = await ask(self._node, self._conversation.body(), answer, writer)
        finally:
            if answer.text or answer.reasoning or answer.tool_calls:
                self._conversation.messages.append(answer.message())
                self._last = answer
            elif not is_whole:
                self._conversation.messages = before
        self._say(ending(answer, self._loaded.context_length, is_whole=is_whole))
        if self._look.verbose:
            self._say(usage_in_words(answer))

    def _say(self, words: str) -> None:
        shown = visible(words)
        self._out.write(f"{shown}\n" if self._look.plain else f"{DIM}{shown}{RESET}\n")
        self._out.flush()

    # ---- commands --------------------------------------------------------------------------------

    async def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise ConversationError(f"no command {name}; /help lists them, and // sends a slash")
        await command.act(self, rest.strip())

    async def _help(self, rest: str) -> None:
        rows = [(f"{name} {command.arguments}".rstrip(), command.help) for name, command in COMMANDS.items()]
        width = max(len(left) for left, _ in rows)
        lines = [f"{left.ljust(width)}  {right}" for left, right in rows]
        keys = 'Alt+Enter or a \\ at the end: a new line. """ begins and ends a block. // sends a slash.'
        self._say("\n".join([*lines, keys]))

    async def _model(self, rest: str) -> None:
        if not rest:
            self._say(self._conversation.model)
            return
        try:
            self._loaded = await interruptible(load(self._node, rest))
        except Interrupted:
            self._say(f"stopped waiting; the chat goes on with {self._conversation.model}")
        else:
            self._conversation.model = self._loaded.model

    async def _system(self, rest: str) -> None:
        self._conversation.system = rest or None
        self._say(
            "what the model is told before all else is changed" if rest else "nothing is told before all else"
        )

    async def _set(self, rest: str) -> None:
        key, _, value = rest.partition(" ")
        if value:
            self._conversation.set(key, value.strip())
        elif key:
            raise ConversationError("/set KEY VALUE; the value none takes it away")
        parameters = self._conversation.parameters.items()
        self._say(", ".join(f"{name} is {value}" for name, value in parameters) or "no parameter is set")

    async def _think(self, rest: str) -> None:
        if not rest or " " in rest:
            raise ConversationError("/think on, /think off, or a level such as low or high")
        self._conversation.think(rest)

    async def _retry(self, rest: str) -> None:
        await self._anew(lambda said: said)

    async def _anew(self, change: Callable[[str], str]) -> None:
        """Ask the last question once more, changed. Where that fails, it and its answer stay as they are."""
        before, last = list(self._conversation.messages), self._last
        said = self._conversation.undo()
        if said is None:
            raise ConversationError("nothing was asked yet")
        try:
            self._conversation.say(change(said))
            await self._answer(before)
        except BaseException:
            self._conversation.messages, self._last = before, last
            raise

    async def _undo(self, rest: str) -> None:
        said = self._conversation.undo()
        self._say("there is nothing to take back" if said is None else f"taken back: {said}")

    async def _edit(self, rest: str) -> None:
        def change(said: str) -> str:
            try:
                return (click.edit(said) or said).rstrip("\n")
            except click.ClickException as error:
                raise ConversationError(error.message) from None

        await self._anew(change)

    async def _file(self, rest: str) -> None:
        path = _path(rest)
        try:
            self._files.append(await interruptible(asyncio.to_thread(attached.read, path)))
        except Interrupted:
            self._say(f"stopped reading; {path.name} does not go with what you say next")
        else:
            self._say(f"{path.name} goes with what you say next")

    async def _save(self, rest: str) -> None:
        path = _path(rest)
        self._conversation.save(path)
        self._say(f"saved in {path}")

    async def _load(self, rest: str) -> None:
        try:
            saved = await interruptible(asyncio.to_thread(Saved.read, _path(rest)))
        except Interrupted:
            self._say("stopped reading; the chat stays as it is")
        else:
            self._conversation.load(saved)
            self._say(f"{len(self._conversation.messages)} messages")

    async def _copy(self, rest: str) -> None:
        if self._last is None:
            raise ConversationError("there is no answer yet")
        # The terminal's own clipboard, also over SSH (OSC 52).
        self._out.write(f"\x1b]52;c;{base64.b64encode(self._last.text.encode()).decode()}\x07")
        self._say("the last answer is in the clipboard, if this terminal allows it")

    async def _tokens(self, rest: str) -> None:
        body = self._conversation.body()
        asked = {"model": body["model"], "messages": body["messages"]}
        prompt = (await self._node.post("/apply-template", asked))["prompt"]
        counted = await self._node.post(
            "/tokenize", {"model": body["model"], "text": prompt, "parse_special": True}
        )
        length = self._loaded.context_length
        self._say(f"{counted['count']} tokens" + (f" of {length}" if length else ""))

    async def _clear(self, rest: str) -> None:
        self._conversation.messages.clear()
        self._say("the chat is empty")

    async def _bye(self, rest: str) -> None:
        self._is_over = True


@dataclass(frozen=True)
class Command:
    """One row of the help."""

    act: Callable[[Session, str], Awaitable[None]]
    arguments: str
    help: str


COMMANDS: Mapping[str, Command] = {
    "/help": Command(Session._help, "", "this list"),
    "/model": Command(Session._model, "[NAME]", "which model it is, or another one from here on"),
    "/system": Command(Session._system, "[TEXT]", "what the model is told before all else"),
    "/set": Command(Session._set, "KEY VALUE", "a parameter: temperature, top_p, max_tokens, seed, ..."),
    "/think": Command(Session._think, "on|off|LEVEL", "how much the model thinks first"),
    "/retry": Command(Session._retry, "", "another answer to the same"),
    "/undo": Command(Session._undo, "", "take back the last question and its answer"),
    "/edit": Command(Session._edit, "", "change the last question in your editor, and ask it anew"),
    "/file": Command(Session._file, "PATH", "a text file, to go with what you say next"),
    "/save": Command(Session._save, "FILE", "write the chat to a file"),
    "/load": Command(Session._load, "FILE", "go on with a chat from a file"),
    "/copy": Command(Session._copy, "", "the last answer into the clipboard"),
    "/tokens": Command(Session._tokens, "", "how full the context is"),
    "/clear": Command(Session._clear, "", "begin anew"),
    "/bye": Command(Session._bye, "", "leave"),
}


def _path(text: str) -> Path:
    if not text:
        raise ConversationError("name a file")
    return Path(text).expanduser()
