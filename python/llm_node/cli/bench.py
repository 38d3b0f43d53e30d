"""`llm-node bench`: put load on a server and say how fast it answered."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import failure, table

if TYPE_CHECKING:
    from llm_node import load

DEFAULT_DURATION = 10.0
DEFAULT_CONCURRENCY = 8

_COUNT = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)


def _fields(context: click.Context, parameter: click.Parameter, given: str | None) -> dict[str, Any]:
    """A JSON object with fields that a run does not set itself."""
    from llm_node import load

    if given is None:
        return {}
    try:
        body = json.loads(given)
    except ValueError as error:
        raise click.BadParameter(f"{given} is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise click.BadParameter(f"{given} is no JSON object")
    if taken := load.OWN_FIELDS & body.keys():
        raise click.BadParameter(f"{', '.join(sorted(taken))}: each request has that anyway")
    return body


@click.command()
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--model", help="What to ask for. [default: the first of GET /v1/models]")
@click.option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Sent as a bearer token.")
@click.option("--route", type=click.Choice(["completions", "chat"]), default="completions", show_default=True)
@click.option(
    "--concurrency",
    type=_COUNT,
    help=f"Requests under way at any time. [default: {DEFAULT_CONCURRENCY}; with --rate: no limit]",
)
@click.option("--requests", type=_COUNT, help="End after so many requests.")
@click.option(
    "--duration",
    type=_SECONDS,
    metavar="SECONDS",
    help=f"Send no request after that, wait for those under way. [default: {DEFAULT_DURATION:.0f}]",
)
@click.option("--prompt-tokens", type=_COUNT, default=128, show_default=True, help="Length of each prompt.")
@click.option("--output-tokens", type=_COUNT, default=128, show_default=True, help="Length of each answer.")
@click.option(
    "--prefix-tokens",
    type=click.IntRange(min=0),
    default=0,
    help="So much of each prompt, at its beginning, is the same in all.",
)
@click.option(
    "--shared-prefix-seed",
    "prefix_seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    help="What that beginning is drawn from. [default: as --seed]",
)
@click.option("--short-output-tokens", type=_COUNT, help="Length of the answers that end early.")
@click.option("--short-every", type=_COUNT, help="Every K-th answer ends early.", metavar="K")
@click.option("--rate", type=_SECONDS, help="Requests per second, at random times (Poisson).")
@click.option("--burst", is_flag=True, help="Send --concurrency requests at once; when all ended, the next.")
@click.option("--ignore-eos", is_flag=True, help="Answers do not end before their length.")
@click.option("--temperature", type=click.FloatRange(min=0), help="[default: the server's]")
@click.option("--body", callback=_fields, metavar="JSON", help="Further fields of each request.")
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    help="What prompts, arrivals and the requests' seeds are drawn from. [default: another each time]",
)
@click.option("--prompt-ids", is_flag=True, help="Prompts are random token numbers instead of words.")
@click.option("--vocab-size", type=_COUNT, help="Token numbers stay below. [default: as GET /v1/models says]")
@click.option("--timeout", type=_SECONDS, metavar="SECONDS", help="A request that takes longer has failed.")
@click.option("--per-request", is_flag=True, help="With --json: report each request too.")
@click.option("--ttft-goal", "ttft_goal_ms", type=_SECONDS, metavar="MS", help="For the goodput.")
@click.option("--itl-goal", "itl_goal_ms", type=_SECONDS, metavar="MS", help="For the goodput.")
def bench(
    url: str, as_json: bool, api_key: str | None, rate: float | None, burst: bool, **given: Any
) -> None:
    """Put load on the OpenAI-compatible server at URL, such as http://127.0.0.1:3000, and measure how fast it
    answers.

    Every answer is streamed. Each prompt is new, unless --prefix-tokens or --seed says otherwise, so no
    cache makes it fast by accident. One request is sent before the run: it loads the model. Ctrl-C ends a run
    and shows what it came to.
    """
    from llm_node import load
    from llm_node.node import NodeError

    options = _options(rate, burst, given)
    try:
        server = load.Server(url, api_key)
        with _progress(options) as progress:
            report = load.run(server, options, progress)
    except load.LoadError as error:
        raise click.ClickException(str(error)) from None
    except NodeError as fault:
        raise failure.of(fault) from None
    if as_json:
        table.show_json(report)
    else:
        _show(report)
    if report["stopped"]:
        sys.exit(130)  # as what Ctrl-C ended
    if not report["completed"]:
        sys.exit(1)


def _options(rate: float | None, burst: bool, given: dict[str, Any]) -> load.Options:
    from llm_node import load

    def refuse(condition: object, message: str) -> None:
        if condition:
            raise click.UsageError(message)

    refuse(rate is not None and burst, "--rate and --burst exclude each other")
    refuse(given["requests"] and given["duration"], "--requests and --duration exclude each other")
    refuse(given["prompt_ids"] and given["route"] == "chat", "--prompt-ids: a chat has no prompt of tokens")
    refuse(given["prefix_tokens"] > given["prompt_tokens"], "--prefix-tokens is more than --prompt-tokens")
    refuse(
        (given["short_output_tokens"] is None) != (given["short_every"] is None),
        "--short-output-tokens and --short-every need each other",
    )
    if given["requests"] is None and given["duration"] is None:
        if burst:
            given["requests"] = given["concurrency"] or DEFAULT_CONCURRENCY
        else:
            given["duration"] = DEFAULT_DURATION
    if given["concurrency"] is None and rate is None:
        given["concurrency"] = DEFAULT_CONCURRENCY
    given["short_output_tokens"] = given["short_output_tokens"] or 0
    given["short_every"] = given["short_every"] or 0
    arrivals: load.Arrivals = "poisson" if rate is not None else "burst" if burst else "closed"
    return load.Options(arrivals=arrivals, rate=rate or 0.0, **given)


@contextlib.contextmanager
def _progress(options: load.Options) -> Iterator[load.Progress]:
    """A bar on stderr, where somebody can see it."""
    if not sys.stderr.isatty():
        yield lambda seconds, completed, failed, events: None
        return
    length = options.requests or int((options.duration or 0) * 1000)
    with click.progressbar(length=length, file=sys.stderr, item_show_func=lambda shown: shown) as bar:

        def progress(seconds: float, completed: int, failed: int, events: int) -> None:
            at = completed + failed if options.requests else min(length, int(seconds * 1000))
            shown = f"{completed} answers, {events / max(seconds, 1e-9):.0f} events/s"
            bar.update(at - bar.pos, f"{shown}, {failed} failed" if failed else shown)
            bar.render_progress()  # a full bar does not draw itself again, and answers come after the time

        yield progress


def _show(report: dict[str, Any]) -> None:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    rows = [
        ["model", report["model"]],
        ["requests", f"{report['completed']} completed, {report['failed']} failed"],
        ["time", f"{report['wall_s']:.2f} s"],
        ["prompts", f"{report['prompt_tokens']} tokens, {report['cached_tokens']} of them cached"],
        [
            "output",
            f"{report['output_tokens']} tokens, {number(report['output_tokens_per_s'], 1)} per second, "
            f"{number(report['tokens_per_event'], 2)} per event",
        ],
    ]
    if report["goodput"] is not None:
        rows.append(["goodput", f"{report['goodput']:.1%} of requests met the goals"])
    events = report["events"]
    per_event = f" ({report['client_cpu_s'] / events * 1e6:.1f} µs per event)" if events else ""
    rows.append(["client", f"{report['client_cpu_s']:.2f} s of CPU{per_event}"])
    table.show(rows)
    click.echo()
    columns = ["p50", "p90", "p99", "mean", "max"]
    names = {
        "ttft_ms": "first token",
        "itl_ms": "between events",
        "tpot_ms": "per token",
        "e2e_ms": "whole answer",
    }
    times = [[name, *(number(report[key][column], 2) for column in columns)] for key, name in names.items()]
    table.show([["MILLISECONDS", *(column.upper() for column in columns)], *times])
    if report["stopped"]:
        click.echo("Stopped: these figures are of the answers that had ended by then.", err=True)
    if report["shorter"]:
        click.echo(
            f"{report['shorter']} of {report['completed']} answers ended before the length that was asked "
            "for, as the model saw fit; --ignore-eos keeps them going where the server knows it.",
            err=True,
        )
    for error in report["errors"]:
        click.echo(f"{error['count']} x {error['message']}", err=True)
