"""The parts: what is asked of a model, and what its answers are held to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import gguf
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jsonschema import Draft202012Validator

from benches import ROOT
from benches.build import build
from benches.machine import children_of, memory_bytes
from benches.ratio import FLAVOURS
from benches.servers import Server, ServerError, Setup, start_llama_server
from benches.stats import abba, bootstrap, median

TASKS = json.loads(Path(__file__).with_name("tasks.json").read_text())
SCHEMAS = json.loads((ROOT / "rust/core/tests/constrain/schemas.json").read_text())
MOST_TURNS = 5
MOST_TOKENS = 160
"""Of an answer whose pace is measured: what is longer repeats itself."""


@dataclass
class Result:
    """What came of a part. `lines` are for people; `missed` says which bars were missed."""

    title: str
    lines: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    """For the table in docs/benchmarks.md: what, goal, seen."""

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(f"  {line}", flush=True)

    def bar(self, name: str, value: float, least: float) -> None:
        self.say(f"{name}: {value:g}, at least {least:g}")
        if value < least:
            self.missed.append(name)

    def ratio(self, name: str, value: float, interval: tuple[float, float], least: float, seen: str) -> None:
        """A bar for how many times as fast something is, with the 95 % interval, and its row of the table."""
        self.bar(f"{name}, ratio", round(value, 3), least)
        low, high = interval
        missed = "missed: " if value < least else ""
        times = "\u00d7"
        self.rows.append(
            f"| {name} | at least {least:g} {times} "
            f"| {missed}{value:.2f} {times} [{low:.2f}, {high:.2f}], {seen} |"
        )


@dataclass(frozen=True)
class Asker:
    """A server, and what goes with every question to it."""

    server: Server
    sampling: dict[str, Any]
    setup: Setup
    """How the server was started; another is started likewise to be compared with it."""
    rounds: int = 5
    """Pairs of what is compared in turns."""
    rows: tuple[int, ...] = (1, 16)
    """Answers at once, where speed is measured."""

    def beside(self, server: Server) -> Asker:
        """The same questions to another server."""
        return replace(self, server=server)

    def ask(self, messages: Sequence[Any], **more: Any) -> Any:
        body = {"model": self.server.model_id, "messages": messages, **self.sampling, **more}
        return self.server.request("/v1/chat/completions", body, timeout=1800)


def offered(names: Sequence[str]) -> list[Any]:
    return [{"type": "function", "function": {"name": name, **TASKS["tools"][name]}} for name in names]


def opening(question: Any) -> list[Any]:
    return [{"role": "system", "content": TASKS["system"]}, {"role": "user", "content": question["ask"]}]


def exact(text: str) -> Any:
    """JSON whose fractions are decimal, so that 19.99 is a multiple of 0.01."""
    return json.loads(text, parse_float=Decimal)


def valid(text: str, schema: Any) -> bool:
    """By Python's `jsonschema`, formats included: a `time` has an offset, as RFC 3339 asks for."""
    checker = Draft202012Validator(
        exact(json.dumps(schema)), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    try:
        return bool(checker.is_valid(exact(text)))
    except ValueError:
        return False


def well_formed(choice: Any, names: Sequence[str]) -> bool:
    """Text, or calls of known tools with arguments that these take; a cut answer as far as it came."""
    calls = choice["message"].get("tool_calls") or []
    if choice["finish_reason"] == "length":
        calls = calls[:-1]
    text = choice["message"]["content"] or ""
    return "<tool_call>" not in text and all(
        call["function"]["name"] in names
        and valid(call["function"]["arguments"], TASKS["tools"][call["function"]["name"]]["parameters"])
        for call in calls
    )


def tools(asker: Asker) -> Result:
    result = Result("20 questions with two to five tools")
    for choice, calls_wanted in (("auto", 0), ("required", len(TASKS["questions"]))):
        good = called = 0
        for question in TASKS["questions"]:
            (answer,) = asker.ask(
                opening(question), tools=offered(question["tools"]), tool_choice=choice, max_tokens=160
            )["choices"]
            fine = well_formed(answer, question["tools"])
            good += fine
            called += bool(answer["message"].get("tool_calls"))
            if not fine:
                result.say(f"{choice}: {question['ask']} -> {answer}")
        result.bar(f"{choice}, well-formed of {len(TASKS['questions'])}", good, len(TASKS["questions"]))
        result.bar(f"{choice}, called", called, calls_wanted)
    return result


def loop(asker: Asker, question: Any) -> tuple[str, int, list[Any]]:
    """Calls and results until the model says something: how that ended, and after how many calls."""
    messages = opening(question)
    for turn in range(MOST_TURNS):
        (choice,) = asker.ask(messages, tools=offered(question["tools"]), max_tokens=160)["choices"]
        message = choice["message"]
        messages.append(message)
        if choice["finish_reason"] == "length":
            return "length", turn, messages
        if not message.get("tool_calls"):
            return ("text" if message["content"].strip() else "nothing"), turn, messages
        messages += [
            {
                "role": "tool",
                "tool_call_id": call["id"],
                "content": TASKS["results"][call["function"]["name"]],
            }
            for call in message["tool_calls"]
        ]
    return "calls", MOST_TURNS, messages


def rendering(asker: Asker) -> Result:
    """What the model reads of a call and its result: by the node, and by jinja2 with the same template."""
    result = Result("20 loops as the model reads them")
    fields = gguf.GGUFReader(str(asker.server.model.path)).fields
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(fields["tokenizer.chat_template"].contents())
    equal = 0
    for question in TASKS["questions"]:
        name = question["tools"][0]
        # Names of no tool's arguments, so that nothing is left out on the way.
        given = {"city": "Köln <b>", "list": [1, 2.5, None, True], "object": {"text": '"quoted"\n'}}

        def turns(arguments: Any, name: str = name, question: Any = question) -> list[Any]:
            call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
            return [
                *opening(question),
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": TASKS["results"][name]},
            ]

        tools = offered(question["tools"])
        asked = {"model": asker.server.model_id, "messages": turns(json.dumps(given)), "tools": tools}
        ours = asker.server.request("/apply-template", asked)["prompt"]
        theirs = template.render(messages=turns(given), tools=tools, add_generation_prompt=True)
        equal += ours == theirs
    result.bar(f"equal of {len(TASKS['questions'])}", equal, len(TASKS["questions"]))
    return result


def loops(asker: Asker) -> Result:
    result = Result("20 loops of calls and results")
    ends: dict[str, int] = {}
    for question in TASKS["questions"]:
        end, turns, messages = loop(asker, question)
        ends[end] = ends.get(end, 0) + 1
        last = messages[-1].get("content") or ""
        result.say(f"{end:7} after {turns} turns with calls: {question['ask'][:40]} | {last[:80]!r}")
    result.say(f"ends: {ends}")
    result.bar("loops that end in text", ends.get("text", 0), 15)
    return result


def by_schema(number: int, tokens: int = 400) -> dict[str, Any]:
    """One of the schemas as a question."""
    task = SCHEMAS[number]
    form = {"name": "answer", "schema": task["schema"], "strict": True}
    return {
        "messages": [{"role": "user", "content": f"{task['ask']} Answer in JSON."}],
        "response_format": {"type": "json_schema", "json_schema": form},
        "max_tokens": tokens,
    }


def schemas(asker: Asker) -> Result:
    result = Result(f"{len(SCHEMAS)} schemas as people write them")
    good = ended = 0
    for number, task in enumerate(SCHEMAS):
        (choice,) = asker.ask(**by_schema(number))["choices"]
        if choice["finish_reason"] != "stop":
            continue
        ended += 1
        fine = valid(choice["message"]["content"], task["schema"])
        good += fine
        if not fine:
            result.say(f"{task['ask']} -> {choice['message']['content']}")
    result.bar("ended by themselves", ended, 0.8 * len(SCHEMAS))
    result.bar(f"valid of these {ended}", good, ended)
    return result


def questions() -> Iterator[dict[str, Any]]:
    """Whose answers drafts must not change: with a format, with tools, and free."""
    for task in SCHEMAS[::3]:
        form = {"name": "answer", "schema": task["schema"], "strict": True}
        kept = {"type": "json_schema", "json_schema": form}
        asked = [{"role": "user", "content": task["ask"]}]
        yield {"messages": asked, "response_format": kept, "max_tokens": 120}
    for question in TASKS["questions"][::2]:
        for choice in ("auto", "required"):
            tools = {"tools": offered(question["tools"]), "tool_choice": choice}
            yield {"messages": opening(question), **tools, "max_tokens": 96}
    counting = [{"role": "user", "content": "Count from one to twenty, twice."}]
    yield {"messages": counting, "max_tokens": 120}


def said(answer: Any) -> Any:
    (choice,) = answer["choices"]
    return {**choice, "logprobs": None, "usage": answer["usage"]["completion_tokens"]}


def gap(asker: Asker, question: dict[str, Any], one: Any, other: Any) -> float:
    """How much likelier the first token was that the other has not, as a difference of log-probabilities."""
    tokens = [(it["choices"][0].get("logprobs") or {}).get("content") or [] for it in (one, other)]
    for mine, its in zip(*tokens, strict=False):
        if mine["token"] != its["token"]:
            best = {it["token"]: it["logprob"] for it in mine["top_logprobs"]}
            return float(mine["logprob"] - best.get(its["token"], -inf))
    return gap_of_calls(asker, question, [it["choices"][0]["message"] for it in (one, other)])


LETTERS = 12
"""Most that a token may have before the letter at which two texts part."""


def gap_of_calls(asker: Asker, question: dict[str, Any], messages: Sequence[Any]) -> float:
    """The same of answers that part in a call, whose log-probabilities are not told: of what the model would
    write next behind what both have in common, may it or not. Infinite where one of them is not likely."""
    server = asker.server

    def written(message: Any) -> str:
        calls = message.get("tool_calls") or []
        results = [{"role": "tool", "tool_call_id": it["id"], "content": "-"} for it in calls]
        asked = [*question["messages"], message, *results]
        body = {"model": server.model_id, "messages": asked, "tools": question.get("tools")}
        return str(server.request("/apply-template", body)["prompt"])

    one, other = map(written, messages)
    alike = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    # Nobody knows where the token begins that is another.
    for begin in range(alike, max(0, alike - LETTERS), -1):
        body = {"prompt": one[:begin], "max_tokens": 1, "temperature": 0, "logprobs": 20}
        (choice,) = server.request("/v1/completions", {"model": server.model_id, **body})["choices"]
        (top,) = choice["logprobs"]["top_logprobs"]
        reach = {token: it for token, it in top.items() if len(token) > alike - begin}
        best = [
            max((it for token, it in reach.items() if text.startswith(token, begin)), default=-inf)
            for text in (one, other)
        ]
        if -inf not in best:
            return float(abs(best[0] - best[1]))
    return inf


NEAR = 0.5
"""Candidates so near to each other change places with the size of a step: an engine adds otherwise then."""


def drafts(asker: Asker) -> Result:
    result = Result("speculation on and off, greedy, one request at a time")
    seen: list[list[Any]] = []
    greedy = replace(asker, sampling={"temperature": 0, "seed": 1, "logprobs": True, "top_logprobs": 5})
    for speculation in ("off", "lookup"):
        asker.server.request("/api/models/unload", {"model_id": asker.server.model_id})
        load = {"model_id": asker.server.model_id, "speculation": speculation}
        asker.server.request("/api/models/load", load)
        seen.append([greedy.ask(**question) for question in questions()])
    plain, drafted = seen
    guessed = sum(one["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] for one in drafted)
    equal = near = 0
    for question, one, other in zip(questions(), plain, drafted, strict=True):
        if said(one) == said(other):
            equal += 1
            continue
        apart = gap(greedy, question, one, other)
        near += apart < NEAR
        result.say(f"{apart:.3f}: {said(one)}\n  {said(other)}")
    result.bar("tokens that were guessed", guessed, 1)
    result.say(f"equal answers of {len(plain)}: {equal}; others part at a near tie: {near}")
    result.bar(f"of {len(plain)} equal, or parted at a near tie", equal + near, 0.95 * len(plain))
    return result


@dataclass(frozen=True)
class Pace:
    """What answers came to, prompts included."""

    tokens: int
    seconds: float
    cpu: float
    """Seconds of all processes of the server: less of a guess than time on a machine that others use."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def cpu_per_token(self) -> float:
        """Milliseconds."""
        return 1e3 * self.cpu / self.tokens


def total(paces: Sequence[Pace]) -> Pace:
    return Pace(sum(it.tokens for it in paces), sum(it.seconds for it in paces), sum(it.cpu for it in paces))


def pace(asker: Asker, rows: int, more: Callable[[int], dict[str, Any]], answers: Sequence[int] = ()) -> Pace:
    """So many answers at once; of these `answers`, or of as many as are at once."""
    before, began = sum(asker.server.cpu()), time.monotonic()
    with ThreadPoolExecutor(rows) as pool:
        done = list(pool.map(lambda row: asker.ask(**more(row)), answers or range(rows)))
    took, cpu = time.monotonic() - began, sum(asker.server.cpu()) - before
    return Pace(sum(answer["usage"]["completion_tokens"] for answer in done), took, cpu)


def in_pairs(rounds: int, a: Callable[[], Pace], b: Callable[[], Pace]) -> list[tuple[Pace, Pace]]:
    """Both measured so often, one after the other, in ABBA order."""
    pairs = []
    for _, order in zip(range(rounds), abba(), strict=False):
        found = {side: {"A": a, "B": b}[side]() for side in order}
        pairs.append((found["A"], found["B"]))
    return pairs


def compared(result: Result, what: str, pairs: list[tuple[Pace, Pace]], least: float) -> None:
    """The median of the ratios within pairs, held to a bar."""
    ratios = [a.tokens_per_second / b.tokens_per_second for a, b in pairs]
    interval = bootstrap(ratios)
    speeds = [median([pair[side].tokens_per_second for pair in pairs]) for side in (0, 1)]
    cpu = [median([pair[side].cpu_per_token for pair in pairs]) for side in (0, 1)]
    seen = f"{speeds[0]:.1f} against {speeds[1]:.1f} tokens/s"
    result.say(
        f"{what}: {seen}, 95 % of the ratio in {interval[0]:.3f} to {interval[1]:.3f}; "
        f"{cpu[0]:.1f} against {cpu[1]:.1f} ms of processor time per token"
    )
    result.ratio(what, median(ratios), interval, least, seen)


LIST_SCHEMA: Any = {
    "type": "object",
    "properties": {
        "cities": {
            "type": "array",
            "minItems": 12,
            "maxItems": 40,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "country": {"type": "string"},
                    "population": {"type": "integer", "minimum": 1},
                    "coastal": {"type": "boolean"},
                },
                "required": ["name", "country", "population", "coastal"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["cities"],
    "additionalProperties": False,
}
"""So long that `max_tokens` ends every answer, with it and without it."""


def listed(row: int, *, kept: bool, tokens: int = 96) -> dict[str, Any]:
    asked = (
        f"List 30 large cities as JSON with name, country, population and coastal. Begin with number {row}."
    )
    more: dict[str, Any] = {"messages": [{"role": "user", "content": asked}], "max_tokens": tokens}
    if kept:
        form = {"name": "cities", "schema": LIST_SCHEMA, "strict": True}
        more["response_format"] = {"type": "json_schema", "json_schema": form}
    return more


def costs(asker: Asker) -> Result:
    result = Result("what formats cost")
    for rows in asker.rows:
        for kept in (True, False):
            pace(asker, rows, lambda row, kept=kept: listed(row, kept=kept, tokens=8))  # type: ignore[misc]
        pairs = in_pairs(
            asker.rounds,
            lambda rows=rows: pace(asker, rows, lambda row: listed(row, kept=True)),  # type: ignore[misc]
            lambda rows=rows: pace(asker, rows, lambda row: listed(row, kept=False)),  # type: ignore[misc]
        )
        compared(result, f"{rows} rows, kept to a schema against free", pairs, 0.9)
    return result


def mixed(asker: Asker) -> Result:
    """Each schema once at the node and at llama-server, some by turns, and the total of all of them."""
    result = Result(f"{len(SCHEMAS)} schemas, against llama-server")
    tools = build(asker.setup.backend)
    for rows in asker.rows:
        other = start_llama_server(tools, asker.setup, FLAVOURS[0])
        try:
            guest = asker.beside(other)
            taken = [number for number in range(len(SCHEMAS)) if takes(guest, number)]
            # No more than there are slots, so that the prompts are still known.
            size = max(5, rows)
            parts = [taken[begin : begin + size] for begin in range(0, len(taken), size)]
            pairs = []
            for part, order in zip(parts, abba(), strict=False):
                found = {}
                for side in order:
                    one = {"A": asker, "B": guest}[side]
                    pace(one, rows, partial(by_schema, tokens=1), part)
                    found[side] = pace(one, rows, partial(by_schema, tokens=MOST_TOKENS), part)
                pairs.append((found["A"], found["B"]))
        finally:
            other.stop()
        ours, theirs = (total([pair[side] for pair in pairs]) for side in (0, 1))
        for name, it in (("llm-node", ours), ("llama-server", theirs)):
            result.say(
                f"{rows} rows, {len(taken)} schemas that both take, {name}: {it.tokens} tokens in "
                f"{it.seconds:.1f} s, {it.tokens_per_second:.1f} tokens/s, "
                f"{it.seconds / len(taken):.2f} s for an answer, {it.cpu_per_token:.1f} ms of processor time "
                "per token"
            )
        result.ratio(
            f"{len(taken)} schemas, {rows} rows",
            ours.tokens_per_second / theirs.tokens_per_second,
            bootstrap([a.tokens_per_second / b.tokens_per_second for a, b in pairs]),
            1.2,
            f"{ours.tokens_per_second:.1f} against {theirs.tokens_per_second:.1f} tokens/s, "
            f"{ours.cpu_per_token:.1f} against {theirs.cpu_per_token:.1f} ms of processor time per token, "
            f"{ours.seconds / len(taken):.2f} against {theirs.seconds / len(taken):.2f} s for an answer",
        )
    return result


def takes(asker: Asker, number: int) -> bool:
    """Does the server enforce that schema?"""
    try:
        asker.ask(**by_schema(number, tokens=1))
    except ServerError:
        return False
    return True


def against_llama_server(asker: Asker) -> Result:
    """The same model and schema, on the same libllama; llama-server with the cache that suits it better."""
    result = Result("answers kept to a schema, against llama-server")
    tools = build(asker.setup.backend)

    def kept(row: int) -> dict[str, Any]:
        return listed(row, kept=True)

    for rows in asker.rows:
        trials: dict[Any, float] = {}
        for flavour in FLAVOURS if rows > 1 else FLAVOURS[:1]:
            other = start_llama_server(tools, asker.setup, flavour)
            try:
                pace(asker.beside(other), rows, lambda row: listed(row, kept=True, tokens=8))
                trials[flavour] = pace(asker.beside(other), rows, kept).tokens_per_second
            finally:
                other.stop()
        best = max(trials, key=lambda it: trials[it])
        other = start_llama_server(tools, asker.setup, best)
        try:
            guest = asker.beside(other)
            for one in (asker, guest):
                pace(one, rows, lambda row: listed(row, kept=True, tokens=8))
            pairs = in_pairs(
                asker.rounds,
                lambda rows=rows: pace(asker, rows, kept),  # type: ignore[misc]
                lambda rows=rows, guest=guest: pace(guest, rows, kept),  # type: ignore[misc]
            )
        finally:
            other.stop()
        compared(result, f"{rows} rows, llama-server with {best}", pairs, 1.2)
    return result


def memory(asker: Asker) -> Result:
    """What the tables of a vocabulary take: the worker before and after its first answer by a schema."""
    result = Result("memory of the worker")
    server = asker.server
    server.request("/api/models/unload", {"model_id": server.model_id})
    server.request(
        "/api/models/load",
        {
            "model_id": server.model_id,
            "max_sequences": asker.setup.slots,
            "context_length": asker.setup.context,
        },
    )
    (worker,) = children_of(server.pid)
    seen = []
    for kept in (False, False, True, True):
        began = time.monotonic()
        asker.ask(**listed(0, kept=kept, tokens=8))
        seen.append((memory_bytes(worker, "RssAnon") / 1e6, time.monotonic() - began))
    (_, _), (before, free), (after, first), (_, second) = seen
    result.say(
        f"without tables {before:.0f} MB beside the weights, with them {after:.0f}: {after - before:.0f} more"
    )
    result.say(f"eight tokens free in {free:.2f} s, by a schema {first:.2f} s at first, {second:.2f} s then")
    return result


def many_tools(asker: Asker, rounds: int = 31) -> Result:
    """The second turn of a chat with 30 tools, beside a plain chat with as much text; one token each."""
    result = Result("30 tools, second turn")
    names = [(base, part) for part in range(3) for base in list(TASKS["tools"])[:10]]
    thirty = [
        {"type": "function", "function": {"name": f"{base}_{part}", **TASKS["tools"][base]}}
        for base, part in names
    ]
    first = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "How can I help you?"}]
    text = "\n".join(map(json.dumps, thirty))

    def tokens_of(turn: int, before: str | None = None, **more: Any) -> int:
        system = [] if before is None else [{"role": "system", "content": before}]
        messages = [*system, *first, {"role": "user", "content": f"Who are you, {turn}?"}]
        return int(asker.ask(messages, max_tokens=1, **more)["usage"]["prompt_tokens"])

    # What the template says around tools, in as many words.
    text += " a" * (tokens_of(0, tools=thirty) - tokens_of(0, text))
    ways: dict[str, Callable[[int], int]] = {
        "tools": lambda turn: tokens_of(turn, tools=thirty),
        "plain": lambda turn: tokens_of(turn, text),
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in list(ways) if turn % 2 else reversed(list(ways)):
            used, began = sum(asker.server.cpu()), time.monotonic()
            tokens = ways[way](turn)
            took[way].append(1e3 * (time.monotonic() - began))
            cpu[way].append(1e3 * (sum(asker.server.cpu()) - used))
            if turn == rounds - 1:
                result.say(f"{way}: {tokens} tokens")
    # The first ones read the text, and compile.
    tools, plain = (median(took[way][3:]) for way in ("tools", "plain"))
    result.say(
        f"with tools {tools:.2f} ms ({fmean(cpu['tools'][3:]):.2f} of processors), "
        f"plain {plain:.2f} ms ({fmean(cpu['plain'][3:]):.2f})"
    )
    result.bar("ms less than 1 over a plain one", round(1 - (tools - plain), 2), 0)
    return result


PARTS: dict[str, Callable[[Asker], Result]] = {
    "tools": tools,
    "rendering": rendering,
    "loops": loops,
    "schemas": schemas,
    "costs": costs,
    "many-tools": many_tools,
    "llama-server": against_llama_server,
    "mixed": mixed,
    "memory": memory,
    "drafts": drafts,
}
