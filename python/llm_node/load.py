"""Load on a server that speaks OpenAI's API, and what it measured: what `llm-node bench` does.

Asks the server what has to be known first (its model, how long words are in tokens, what a chat template
adds), makes the plan of the run, and hands it to Rust, which sends the requests and takes the time. Works
against any such server; nothing here is about this node. A lookup that fails is a `LoadError`; a request
that fails during the run is part of the result.
"""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_node._core import run_load

Progress = Callable[[float, int, int, int], None]
"""Seconds, completed, failed, events with text: called a few times a second."""

Arrivals = Literal["closed", "burst", "poisson"]

FIRST_TOKEN = 3
"""Token numbers below are special in most vocabularies (unknown, begin, end)."""

START = "a"
"""How every text prompt begins: so that each word after it has the space that it was counted with."""

WORDS = (
    "a able about above act add after again age air all also and animal answer any are area ask at back "
    "bad bank base be because bed before best big bird black blood blue board boat body book both box boy "
    "bring build but buy by call can car care case cat cause cell change child city class clear close cold "
    "color come cook cost could count cover cut dark day deal deep do dog door down draw drive dry each "
    "ear early earth east eat end even every eye face fact fall family far farm fast feel few field fill "
    "find fine fire first fish five floor fly food foot for form four free friend from front full game "
    "garden gas get girl give glass go gold good great green ground group grow half hand happy hard have "
    "he head hear heart heat help her here high hill him his hold home horse hot hour house how hundred "
    "I ice idea if in inside is island it job just keep key kind king know land language last late law "
    "lay lead learn left leg less let letter level lie life light like line list little live long look "
    "lost love low machine made main make man many map mark may me mean measure milk mind minute miss "
    "money moon more morning most mother move much music must my name near need never new next night no "
    "north note now number of off old on once one only open or order other our out over own page paper "
    "part pass past people place plan plant play point power press question quick rain reach read ready "
    "real red rest rich ring rise river road rock room round rule run same sand say school sea second see "
    "seem sell send set she ship short show side sing sit six size skin sky sleep slow small snow so some "
    "song soon south space stand star start stay step stone stop story street strong study such sugar sun "
    "table take talk tall teach tell ten test than that the their them then there they thing think this "
    "three through time to together tool top town trade train travel tree true try turn two under until "
    "up us use very voice walk wall want war warm was watch water way we week well west what wheel when "
    "where which white who why wide wife wild will wind window winter with woman wood word work world "
    "write year yellow yes you young"
).split()


OWN_FIELDS = frozenset({"max_tokens", "messages", "model", "prompt", "seed", "stream", "stream_options"})
"""What a run itself says in the body of each request."""


class LoadError(Exception):
    """The server cannot be asked, or its answer is of no use. The message is for people."""


@dataclass(frozen=True)
class Options:
    """What a run is to do. Lengths are tokens."""

    model: str | None = None
    """None: the first that the server lists."""
    route: Literal["completions", "chat"] = "completions"
    arrivals: Arrivals = "closed"
    concurrency: int | None = 1
    """None, with Poisson arrivals alone: no limit."""
    rate: float = 0.0
    """Requests per second, of Poisson arrivals."""
    requests: int | None = None
    duration: float | None = None
    """Seconds. Either this or `requests`."""
    prompt_tokens: int = 128
    output_tokens: int = 128
    prefix_tokens: int = 0
    prefix_seed: int | None = None
    short_output_tokens: int = 0
    short_every: int = 0
    ignore_eos: bool = False
    temperature: float | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    """More for the body of each request; none of `OWN_FIELDS`."""
    seed: int | None = None
    prompt_ids: bool = False
    vocab_size: int | None = None
    timeout: float | None = None
    per_request: bool = False
    ttft_goal_ms: float | None = None
    itl_goal_ms: float | None = None


class Server:
    """A server at an `http://` address, with or without `/v1` behind it. Asks on one kept connection."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http":
            raise LoadError(
                f"{url}: only http:// is measured; for https, point it at the server behind the proxy"
            )
        try:
            port = parts.port or 80
        except ValueError as error:
            raise LoadError(f"{url}: {error}") from None
        if not parts.hostname:
            raise LoadError(f"{url}: no host in it")
        self.host = parts.netloc.rpartition("@")[2]
        self.base = parts.path.rstrip("/").removesuffix("/v1")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._connection = http.client.HTTPConnection(parts.hostname, port)

    def address(self) -> str:
        """The numeric address that answered last, with the port."""
        host, port = self._connection.sock.getpeername()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer; None where it is no JSON."""
        data = None if body is None else json.dumps(body)
        headers = {**self.headers, **({} if body is None else {"Content-Type": "application/json"})}
        for attempt in (1, 2):
            kept = self._connection.sock is not None
            try:
                self._connection.request(method, self.base + path, data, headers)
                reply = self._connection.getresponse()
                text = reply.read()
                break
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                # A connection that was kept may have been closed by the server meanwhile.
                if attempt == 2 or not kept:
                    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise LoadError(f"http://{self.host}: {reason}") from None
        if self._connection.sock is None:  # the server closes after each answer
            self._connect()
        try:
            return reply.status, json.loads(text)
        except ValueError:
            return reply.status, None

    def must(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer that must be a good one."""
        status, answer = self.ask(method, path, body)
        if status != 200 or not isinstance(answer, dict):
            raise LoadError(f"{method} {path}: HTTP {status}: {_message(answer)}")
        return answer

    def _connect(self) -> None:
        try:
            self._connection.connect()
        except OSError as error:
            raise LoadError(f"http://{self.host}: {error.strerror or error}") from None


def run(server: Server, options: Options, progress: Progress) -> dict[str, Any]:
    """Prepare, run, and give the result as `rust/load/src/report.rs` has it, with the model's name and the
    client's CPU time. Ctrl-C during the run ends it, and the result is of what had ended until then."""
    model, vocab_size = _model(server, options)
    plan = json.dumps(plan_of(server, options, model, vocab_size))
    cpu = time.process_time()
    report: dict[str, Any] = json.loads(run_load(plan, progress))
    return {"model": model, **report, "client_cpu_s": time.process_time() - cpu}


def plan_of(server: Server, options: Options, model: str, vocab_size: int | None) -> dict[str, Any]:
    """The plan as `rust/load/src/plan.rs` reads it. Sends one request, so that the model is loaded."""
    if options.prompt_ids:
        high = options.vocab_size or vocab_size
        if high is None:
            raise LoadError("the server does not tell its vocabulary's size; give it with --vocab-size")
        prompts: dict[str, Any] = {"ids": {"low": min(FIRST_TOKEN, high - 1), "high": high}}
        _prompt_tokens(server, options, model, [high - 1])
        own_tokens = options.prompt_tokens
    else:
        around = _prompt_tokens(server, options, model, START)
        prompts = {"words": {"start": START, "words": _words(server, model)}}
        own_tokens = max(0, options.prompt_tokens - around)
    # Not the same in two runs: the second would find the first's prompts in the server's cache.
    seed = random.SystemRandom().getrandbits(63) if options.seed is None else options.seed
    prefix_seed = seed if options.prefix_seed is None else options.prefix_seed
    if options.arrivals == "poisson":
        arrivals: dict[str, Any] = {
            "poisson": {"per_second": options.rate, "concurrency": options.concurrency}
        }
    else:
        arrivals = {options.arrivals: {"concurrency": options.concurrency}}
    return {
        "address": server.address(),
        "host": server.host,
        "path": server.base + _PATHS[options.route],
        "headers": list(server.headers.items()),
        "body": _body(options, model),
        "prompts": prompts,
        "prompt_tokens": own_tokens,
        "prefix_tokens": min(options.prefix_tokens, own_tokens),
        "prefix_seed": prefix_seed,
        "seed": seed,
        "output_tokens": options.output_tokens,
        "short_output_tokens": options.short_output_tokens,
        "short_every": options.short_every,
        "arrivals": arrivals,
        "limit": {"seconds": options.duration}
        if options.requests is None
        else {"requests": options.requests},
        "timeout_seconds": options.timeout,
        "ttft_goal_ms": options.ttft_goal_ms,
        "itl_goal_ms": options.itl_goal_ms,
        "per_request": options.per_request,
    }


_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def _model(server: Server, options: Options) -> tuple[str, int | None]:
    """Its name, and its vocabulary's size where the server tells."""
    if options.model is not None and (options.vocab_size is not None or not options.prompt_ids):
        return options.model, None
    listed = server.must("GET", "/v1/models").get("data") or []
    for model in listed:
        if options.model in (None, model.get("id")):
            return str(model["id"]), (model.get("meta") or {}).get("n_vocab")
    if options.model is None:
        raise LoadError("the server lists no model; name one with --model")
    return options.model, None


def _prompt_tokens(server: Server, options: Options, model: str, prompt: str | list[int]) -> int:
    """What the server counts for this prompt, with all that it puts around it."""
    body: dict[str, Any] = {"model": model, "max_tokens": 1}
    if options.route == "chat":
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    answer = server.must("POST", _PATHS[options.route], body)
    count = (answer.get("usage") or {}).get("prompt_tokens")
    return count if isinstance(count, int) else 1


def _words(server: Server, model: str) -> list[dict[str, Any]]:
    """Words with the space before them and their length in tokens: 1 where the server cannot tell."""
    count = _tokenizer(server, model)
    if count is None:
        return [{"text": f" {word}", "tokens": 1} for word in WORDS]
    start = count(START)
    return [{"text": f" {word}", "tokens": max(1, count(f"{START} {word}") - start)} for word in WORDS]


def _tokenizer(server: Server, model: str) -> Callable[[str], int] | None:
    """How to count tokens: `POST /tokenize` calls the text differently in each kind of server."""
    for name in ("text", "content", "prompt"):

        def count(text: str, name: str = name) -> int:
            status, answer = server.ask("POST", "/tokenize", {"model": model, name: text})
            tokens = answer.get("tokens") if status == 200 and isinstance(answer, dict) else None
            return len(tokens) if isinstance(tokens, list) else 0

        if count(START) > 0:
            return count
    return None


def _body(options: Options, model: str) -> list[Any]:
    """A request's body as a template: texts, and the names of what differs from request to request."""
    fixed = {**options.body, "model": model, "stream": True, "stream_options": {"include_usage": True}}
    if options.ignore_eos:
        fixed["ignore_eos"] = True
    if options.temperature is not None:
        fixed["temperature"] = options.temperature
    parts: list[Any] = [{"text": json.dumps(fixed)[:-1] + ', "max_tokens": '}, "output_tokens"]
    if options.seed is not None:
        parts += [{"text": ', "seed": '}, "seed"]
    if options.route == "chat":
        around = ', "messages": [{"role": "user", "content": "', '"}]}'
    elif options.prompt_ids:
        around = ', "prompt": ', "}"
    else:
        around = ', "prompt": "', '"}'
    return [*parts, {"text": around[0]}, "prompt", {"text": around[1]}]


def _message(answer: Any) -> str:
    if isinstance(answer, dict):
        error = answer.get("error", answer)
        if isinstance(error, dict):
            error = error.get("message", error)
        return str(error)
    return "the answer is no JSON object"
