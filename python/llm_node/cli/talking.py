"""What `llm-node run` does: find a node or be one, have the model loaded, and ask.

A node of its own and the terminal are brought in when they are needed: a question to a node that runs waits
for neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from llm_node import advice
from llm_node.cli import asking, config, failure, remote
from llm_node.cli.chat.answer import Answer, ask, ending, usage_in_words
from llm_node.cli.chat.conversation import Conversation, ConversationError, response_format
from llm_node.cli.chat.data import DataWriter
from llm_node.cli.chat.interrupt import Interrupted, interruptible
from llm_node.cli.chat.loading import Loaded, choose, load
from llm_node.cli.chat.look import Look
from llm_node.cli.remote import Remote, RemoteError
from llm_node.errors import Exit, Failure
from llm_node.settings import Settings, wants_no_color

HISTORY = "history"
"""In the home."""


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    model: str | None
    prompt: str | None
    """None: a chat."""
    system: str | None
    parameters: Mapping[str, Any]
    think: str | None
    form: str | None
    hide_thinking: bool
    no_markdown: bool
    keeps_history: bool
    verbose: bool
    may_pull: bool
    """Without being asked."""
    of_a_node: Sequence[str]
    """Flags that are for a node of one's own."""


async def talk(settings: Settings, wishes: Wishes) -> Exit:
    """Do it. Ends the command where it cannot."""
    for stream in (sys.stdout, sys.stderr):  # a model writes letters that a terminal may lack
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        async with _node(settings, wishes) as url, remote.at(url, settings) as node:
            return await _talk(node, settings, wishes)
    except RemoteError as error:
        raise failure.of(error) from None


async def _talk(node: Remote, settings: Settings, wishes: Wishes) -> Exit:
    name, remark = (wishes.model, None) if wishes.model else await choose(node)
    if remark:
        click.echo(remark, err=True)
    conversation = _conversation(name, wishes)
    look = Look(
        plain=wishes.no_markdown or wants_no_color(),
        hide_thinking=wishes.hide_thinking,
        verbose=wishes.verbose,
    )
    try:
        loaded = await interruptible(_load(node, name, wishes))
    except Interrupted:
        return Exit.INTERRUPTED
    conversation.model = loaded.model
    if wishes.prompt is not None:
        return await _ask_once(node, conversation, look, loaded.context_length)
    from llm_node.cli.chat.session import Session

    history = settings.home / HISTORY if wishes.keeps_history else None
    await Session(node, loaded, conversation, look, sys.stdout, history).run()
    return Exit.DONE


async def _load(node: Remote, name: str, wishes: Wishes) -> Loaded:
    """Load it. Where it is not here and its name says from where, it is pulled before."""
    try:
        return await load(node, name)
    except RemoteError as error:
        if error.code != "model_not_found" or "/" not in name:
            raise
    from llm_node.cli import fetching

    asks = not wishes.may_pull and asking.someone_is_there()
    if asks and not click.confirm(f"{name} is not here. Fetch it?", default=True, err=True):
        raise failure.Failed(f"{name} is not here", Exit.NOT_FOUND)
    row = await fetching.pull(node, {"model": name})
    return await load(node, row["model_id"])


def _conversation(model: str, wishes: Wishes) -> Conversation:
    made = Conversation(model, wishes.system, parameters=dict(wishes.parameters))
    try:
        if wishes.think is not None:
            made.think(wishes.think)
        if wishes.form is not None:
            made.parameters["response_format"] = response_format(wishes.form)
    except ConversationError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"--format {wishes.form}: {error.strerror}") from None
    if wishes.prompt is not None:
        made.say(wishes.prompt)
    return made


async def _ask_once(node: Remote, conversation: Conversation, look: Look, context_length: int | None) -> Exit:
    is_terminal = sys.stdout.isatty()
    writer: TerminalWriter | DataWriter = DataWriter(sys.stdout, sys.stderr)
    if is_terminal:
        from llm_node.cli.chat.writer import TerminalWriter

        writer = TerminalWriter(sys.stdout, plain=look.plain, hide_thinking=look.hide_thinking)
    answer = Answer()
    is_whole = await ask(node, conversation.body(), answer, writer)
    said = [usage_in_words(answer)] if look.verbose else []
    if is_terminal or look.verbose or answer.finish_reason == "length":
        said.append(ending(answer, context_length, is_whole=is_whole))
    for line in said:
        click.echo(line if look.plain else click.style(line, dim=True), err=True)
    return Exit.DONE if is_whole else Exit.INTERRUPTED


@contextlib.asynccontextmanager
async def _node(settings: Settings, wishes: Wishes) -> AsyncIterator[str]:
    """The URL of the node that runs, or of one of our own that ends with the command."""
    async with contextlib.AsyncExitStack() as stack:
        url = await remote.running(settings, wishes.of_a_node)
        if url is None:
            from llm_node.cli import embedded
            from llm_node.node import NodeError

            try:
                try:
                    url = await stack.enter_async_context(embedded.serving(settings))
                except NodeError as fault:
                    on_cpu = _with_consent(settings, fault, wishes)
                    url = await stack.enter_async_context(embedded.serving(on_cpu))
            except NodeError as fault:
                raise failure.of(fault) from None
            if wishes.prompt is None:
                click.echo("The model is loaded for this chat alone; `llm-node serve` keeps it.", err=True)
        yield url


def _with_consent(settings: Settings, fault: Failure, wishes: Wishes) -> Settings:
    """The settings for this machine's CPU, where there is no GPU and somebody is there to say so."""
    asked = fault.code == "gpu_not_found" and asking.someone_is_there()
    if not asked:
        raise failure.of(fault, advice.on(fault, sys.argv[1:])) from None
    click.echo(fault.message, err=True)
    answer = click.prompt(
        "Use this CPU? yes, no, or always",
        type=click.Choice(["yes", "no", "always", "y", "n", "a"], case_sensitive=False),
        show_choices=False,
        err=True,
    )
    if answer in ("no", "n"):
        raise failure.of(fault)
    if answer in ("always", "a"):
        file = settings.own_file()
        config.write(file, "gpu_backend", ("cpu",))
        click.echo(f"{file}: gpu_backend is cpu", err=True)
    return dataclasses.replace(settings, gpu_backend="cpu")
