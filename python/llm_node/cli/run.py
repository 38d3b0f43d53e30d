"""`llm-node run`: ask a model something, or chat with it."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
from typing import TextIO

import click

from llm_node.cli import completion, options

SILENCE_SECONDS = 5.0
"""How long standard input may be silent beside a PROMPT until it is taken to have nothing to say."""
LONGEST = 64 << 20
"""Characters of standard input, far more than any context holds: a stream without an end fills no memory."""
FRACTION = click.FloatRange(min=0)


@click.command()
@click.argument("model", required=False, shell_complete=completion.models)
@click.argument("prompt", nargs=-1)
@click.option("--system", metavar="TEXT", help="What the model is told before all else.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Longest answer. [default: what the context leaves]"
)
@click.option("--temperature", type=FRACTION, help="0: always the likeliest. [default: the model's]")
@click.option("--top-p", type=FRACTION, help="[default: the model's]")
@click.option("--seed", type=click.IntRange(min=0), help="Equal seeds give equal answers.")
@click.option("--think", metavar="on|off|LEVEL", help="How much the model thinks before it answers.")
@click.option("--format", "form", metavar="json|FILE", help="Answer in JSON, or by the JSON schema in FILE.")
@click.option("--hide-thinking", is_flag=True, help="Show only for how long the model thinks.")
@click.option("--no-markdown", is_flag=True, help="Show the text as it is.")
@click.option("--no-history", is_flag=True, help="Keep nothing of what is typed.")
@click.option("--verbose", is_flag=True, help="Show all figures of an answer.")
@click.option("-y", "--yes", is_flag=True, help="Fetch a model that is not here without asking.")
@options.settings_options
@click.pass_context
def run(
    context: click.Context,
    /,
    model: str | None,
    prompt: tuple[str, ...],
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    think: str | None,
    form: str | None,
    hide_thinking: bool,
    no_markdown: bool,
    no_history: bool,
    verbose: bool,
    yes: bool,
    **given: options.Given,
) -> None:
    """Ask MODEL something and print its answer, or chat with it where there is no PROMPT.

    MODEL is one that is here, or one to fetch, as `llm-node pull` names it.

    What comes on standard input is the prompt, or stands below it. A node that runs is asked; otherwise the
    command is a node of its own for as long as it runs.
    """
    import asyncio

    from llm_node.cli import talking

    settings = options.settings(context.obj, given)
    parameters = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    wishes = talking.Wishes(
        model=model,
        prompt=_prompt(" ".join(prompt)),
        system=system,
        parameters={key: value for key, value in parameters.items() if value is not None},
        think=think,
        form=form,
        hide_thinking=hide_thinking,
        no_markdown=no_markdown,
        keeps_history=not no_history,
        verbose=verbose,
        may_pull=yes,
        of_a_node=options.of_a_node(context.obj, given),
    )
    sys.exit(asyncio.run(talking.talk(settings, wishes)))


def _prompt(words: str) -> str | None:
    """Of the command line and of standard input together; None: a chat."""
    words = os.fsencode(words).decode(errors="replace")  # as what comes on standard input
    if sys.stdin.isatty():
        if not words and not sys.stdout.isatty():
            raise click.UsageError("a chat needs a terminal; give a PROMPT, or one on standard input")
        return words or None
    if words and not _brings_text(sys.stdin):
        return words
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no text are shown as such, and asked about
        sys.stdin.reconfigure(errors="replace")
    given = sys.stdin.read(LONGEST + 1)
    if len(given) > LONGEST:
        raise click.UsageError(f"standard input has more than {LONGEST:,} characters: no model takes that")
    text = "\n\n".join(part for part in (words, given.strip("\n")) if part)
    if not text.strip():
        raise click.UsageError("give a PROMPT, or one on standard input")
    return text


def _brings_text(stream: TextIO) -> bool:
    """Beside a PROMPT: is there something on standard input, or will its end come? Of a file it does. A pipe
    that another program holds open and silent may wait for ever: after a while it is left out, and that is
    said."""
    try:
        kind = os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return True  # no file of the system: somebody made it for this
    if stat.S_ISREG(kind):
        return True
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        return False  # a device, such as /dev/null
    if sys.platform == "win32":
        return True  # it cannot be looked at
    if select.select([stream], [], [], SILENCE_SECONDS)[0]:
        return True
    click.echo(
        f"nothing came on standard input for {SILENCE_SECONDS:g} s, so it is left out "
        "(`< /dev/null` waits for nothing)",
        err=True,
    )
    return False
