"""How each row of the benchmark is measured: what is loaded how, and what is compared; see `table.py`."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benches import CACHE, ROOT, machine, models, stats
from benches.client import Client, Load, LoadError, Report, Running
from benches.outcome import (
    RATIO,
    Measured,
    Outcome,
    Unavailable,
    disturbed,
    facts_of,
    foreign_load,
    milliseconds,
    standing,
    throughput,
    told,
)
from benches.ratio import FLAVOURS, Arena, Block, Comparison, play_once
from benches.servers import SPLIT, UNIFIED, Flavour, Server, ServerError, Setup, guest

MODELS = CACHE / "models"


## decoding #########################################################################################


def decode(
    concurrency: int, size: str = "135M", quantisation: str = "q8_0", prompt: int = 32, output: int = 128
) -> Callable[[Arena], Outcome]:
    def measure(arena: Arena) -> Outcome:
        model = models.random_model(MODELS, size, quantisation)
        setup = Setup(model, arena.options.threads, concurrency, 256)
        load = Load(concurrency, concurrency, prompt, output)
        return told(arena.compare(setup, load, throughput, ceiling_every=4), throughput, "tokens/s")

    return measure


def sampled(vocabulary: str) -> Callable[[Arena], Outcome]:
    """A model so small that a row of logits is most of what it computes, and answers that are drawn.

    The filters are those that llama-server has on by default; what else its chain names is off in both. (The
    ceiling draws nothing, so there is none.)
    """

    def measure(arena: Arena) -> Outcome:
        setup = Setup(models.random_model(MODELS, "15M", vocab=vocabulary), arena.options.threads, 8, 256)
        filters = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}
        load = Load(8, 8, prompt=32, output=64, temperature=0.8, filters=filters)
        return told(arena.compare(setup, load, throughput), throughput, "tokens/s")

    return measure


def fragmented(cache: str) -> Callable[[Arena], Outcome]:
    """32 streams start, every second one ends after four tokens; the others' time between tokens."""

    def measure(arena: Arena) -> Outcome:
        setup = Setup(models.random_model(MODELS, "135M"), arena.options.threads, 32, 256)
        load = Load(32, 32, prompt=16, output=64, short_output=4, short_every=2, burst=True)
        gap = milliseconds("itl", "p50")
        comparison = arena.compare(
            setup,
            load,
            gap,
            larger_is_better=False,
            repeat=False,
            # Slots are given out in the order of their last use, so only a fresh server alternates.
            fresh_llama_server=True,
            flavours=(Flavour(cache),),
        )
        outcome = told(comparison, gap, "ms")
        speed = [1 / ratio for ratio in comparison.ratios(gap)]
        outcome.figures["ratio"] = Measured.of(speed, RATIO)
        outcome.facts["ratios"] = speed
        return outcome

    return measure


def long_prompt_meanwhile(client: Client, server: Server, load: Load) -> list[Report]:
    """Streams, and a long prompt that arrives while they decode."""
    streams = client.start(server, load)
    time.sleep(1.0)
    long = client.start(server, Load(1, 1, prompt=1536, output=1, seed=load.seed + 7))
    ended = wait_for([streams, long])
    reports = [streams.report(), long.report()]
    sent = ended[1] - reports[1].milliseconds("e2e", "p50") / 1e3
    if ended[0] - sent < 0.25 * reports[0]["wall_s"]:
        raise LoadError("the long prompt came when the streams were about to end: the machine is too fast")
    return reports


def wait_for(runs: Sequence[Running]) -> list[float]:
    """When each has ended."""
    ended: dict[int, float] = {}
    while len(ended) < len(runs):
        for index, run in enumerate(runs):
            if index not in ended and run.process.poll() is not None:
                ended[index] = time.monotonic()
        time.sleep(0.005)
    return [ended[index] for index in range(len(runs))]


def prefill_stall(arena: Arena) -> Outcome:
    setup = Setup(models.random_model(MODELS, "135M"), arena.options.threads, 9, 2048)
    # 64 tokens each: a single stall is then more than one gap in a hundred.
    load = Load(8, 8, prompt=32, output=64)
    tail = milliseconds("itl", "p99")
    comparison = arena.compare(
        setup, load, tail, larger_is_better=False, play=long_prompt_meanwhile, repeat=False
    )
    outcome = told(comparison, tail, "ms")
    for name, blocks in (("llm-node", "a"), ("llama-server", "b")):
        values = [getattr(pair, blocks).reports[1].milliseconds("ttft", "p50") for pair in comparison.pairs]
        outcome.figures[f"{name}, long prompt's TTFT"] = Measured.of(values, "ms")
    return outcome


@contextlib.contextmanager
def busy_core() -> Iterator[int]:
    """A process that computes without end, pinned nowhere."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def contended(arena: Arena) -> Outcome:
    setup = Setup(models.random_model(MODELS, "135M"), arena.options.threads, 8, 256)
    load = Load(8, 8, prompt=32, output=128)
    with busy_core() as pid:
        comparison = arena.compare(setup, load, throughput, helpers=[pid])
        outcome = told(comparison, throughput, "tokens/s")
        if comparison.flavour is None:
            return outcome
        # Beside: what somebody gets who knows the variable.
        passive = Flavour(comparison.flavour.cache, environment=(("OMP_WAIT_POLICY", "passive"),))
        with arena.other(setup, passive) as server:
            samples = arena.collect(
                max(2, arena.options.pairs // 2),
                lambda turn: arena.block(
                    server, [], comparison.load.with_seed(700_000 + turn), play_once, [pid]
                ),
            )
    name = f"llama-server with {passive.environment[0][0]}=passive"
    outcome.figures[name] = Measured.of([throughput(block) for block in samples.values], "tokens/s")
    outcome.facts[name] = foreign_load(samples)
    outcome.notes += disturbed(samples, f"blocks of {name}")
    return outcome


## a model that costs nothing ########################################################################

STORIES_PROMPT, STORIES_OUTPUT = 50, 200


# Heads of 8 are faster without flash attention, which the engine knows and llama-server has to be told. (In a
# pool it would compute all cells of all sequences.)
NARROW_FLAVOURS = (*FLAVOURS, Flavour(SPLIT, ("-fa", "off")))


def stories(arena: Arena, concurrency: int, route: str) -> Comparison:
    def measure() -> Comparison:
        setup = Setup(models.small_model(MODELS), 1, concurrency, 512)
        load = Load(concurrency, concurrency, STORIES_PROMPT, STORIES_OUTPUT, route=route)
        return arena.compare(setup, load, throughput, ceiling_every=1, flavours=NARROW_FLAVOURS)

    return arena.once(f"stories-{concurrency}-{route}", measure)


def overhead(concurrency: int, route: str) -> Callable[[Arena], Outcome]:
    return lambda arena: told(stories(arena, concurrency, route), throughput, "tokens/s")


def host_cpu(arena: Arena) -> Outcome:
    """Processor time of the node and its worker per token beside the engine's own, which computes for half a
    millisecond per token and counts it.

    (The difference between a whole server and llama-batched-bench is smaller than what a shared machine's
    processor varies by.)
    """
    figures: dict[str, Measured] = {}
    notes: list[str] = []
    facts: dict[str, Any] = {}
    for concurrency in (1, 8, 32, 64):
        tokens = max(STORIES_OUTPUT, 4000 // concurrency)
        more = ["--row-us", "500", "--tokens", str(tokens), "--requests", "10"]
        samples = of_nothing(arena, concurrency, more)
        notes += disturbed(samples, f"runs with c={concurrency}")
        facts[f"c={concurrency}"] = foreign_load(samples)
        rows = [record["rows"][0] for record in samples.values]
        node, worker = ([row[f"{part}_us_per_token"] for row in rows] for part in ("node", "worker"))
        both = [a + b for a, b in zip(node, worker, strict=True)]
        for name, values in (("", both), ("node, ", node), ("worker, ", worker)):
            figures[f"{name}c={concurrency}"] = Measured.of(values, "µs")
    ours = [figure for name, figure in figures.items() if name.startswith("c=")]
    worst = max(ours, key=lambda figure: figure.value)
    return Outcome({"above the engine": worst, **figures}, notes, facts)


def request_cost(arena: Arena) -> Outcome:
    """One short answer at a time, by an idle client: how long it takes beyond what the engine computes.

    The node's is what it takes where the engine costs nothing. llama-server has no such engine: there it is
    the whole less what llama-bench takes for the prompt, two figures of which each is ten times as large.
    """
    samples = of_nothing(arena, STREAMS_OF_NOTHING)
    ours = [record["request"]["wall_ms"] for record in samples.values]
    setup = Setup(models.small_model(MODELS), 1, 1, 512)
    load = Load(1, 100, STORIES_PROMPT, 1, route="chat")
    latency = milliseconds("e2e", "p50")
    comparison = arena.compare(
        setup,
        load,
        latency,
        larger_is_better=False,
        beside=lambda: arena.prefill_ms(setup, STORIES_PROMPT),
    )
    engine = stats.median(comparison.beside)
    theirs = [value - engine for value in comparison.of_other(latency)]
    outcome = told(comparison, latency, "ms")
    outcome.figures = {
        "outside the engine": Measured.of(ours, "ms"),
        "llama-server, outside the engine": Measured.of(theirs, "ms"),
        "engine": Measured.of(comparison.beside, "ms"),
        "llm-node": outcome.figures["llm-node"],
        "llama-server": outcome.figures["llama-server"],
    }
    outcome.facts["outside the engine"] = foreign_load(samples)
    outcome.notes += disturbed(samples, "runs with an engine that costs nothing")
    return outcome


## prompts ##########################################################################################


def burst(concurrency: int) -> Callable[[Arena], Outcome]:
    def measure(arena: Arena) -> Outcome:
        setup = Setup(models.random_model(MODELS, "135M"), arena.options.threads, concurrency, 256)
        load = Load(concurrency, concurrency, prompt=50, output=8, burst=True)
        first = milliseconds("ttft", "p50")
        comparison = arena.compare(setup, load, first, larger_is_better=False, repeat=False)
        outcome = told(comparison, first, "ms")
        outcome.figures["ratio of the latest"] = Measured.of(
            comparison.ratios(milliseconds("ttft", "max")), RATIO
        )
        return outcome

    return measure


def shared_prefix(arena: Arena) -> Outcome:
    """32 requests at once with 2,048 tokens in common, which nobody has seen before."""
    setup = Setup(models.random_model(MODELS, "15M"), arena.options.threads, 32, 2304)
    load = Load(32, 32, prompt=64, output=8, prefix=2048, burst=True)
    first = milliseconds("ttft", "p50")
    # In one pool of 73,728 cells llama-server takes minutes, too long for a trial of both.
    comparison = arena.compare(
        setup, load, first, larger_is_better=False, repeat=False, flavours=(Flavour(SPLIT),)
    )
    return told(comparison, first, "ms")


def overloaded_then_fitting(client: Client, server: Server, load: Load) -> list[Report]:
    fitting = Load(
        load.concurrency // 2, load.requests, load.prompt, load.output, seed=load.seed + 7, may_fail=True
    )
    return [client.run(server, load), client.run(server, fitting)]


def cache_exhaustion(arena: Arena) -> Outcome:
    """16 streams where the cache holds 8: does any request fail, and what becomes of the throughput?"""
    setup = Setup(models.random_model(MODELS, "135M"), arena.options.threads, 16, 256, cache_tokens=8 * 256)
    load = Load(16, 16, prompt=64, output=176, may_fail=True)
    try:
        comparison = arena.compare(
            setup, load, throughput, play=overloaded_then_fitting, repeat=False, flavours=(Flavour(UNIFIED),)
        )
    except ServerError as error:
        if "cache_tokens" in str(error):
            raise Unavailable("the node cannot be given a cache of that size") from error
        raise

    def goodput(block: Block) -> float:
        overloaded, fitting = (report.tokens_per_second for report in block.reports)
        return overloaded / fitting

    def failed(block: Block) -> float:
        return float(block.main["failed"])

    asked = load.requests * len(comparison.pairs)
    return Outcome(
        {
            "failed": Measured.exact(sum(comparison.of_node(failed)), f"of {asked}"),
            "of capacity": Measured.of(comparison.of_node(goodput), ""),
            "llama-server, failed": Measured.exact(sum(comparison.of_other(failed)), f"of {asked}"),
            "llm-node": Measured.of(comparison.of_node(throughput), "tokens/s"),
            "llama-server": Measured.of(comparison.of_other(throughput), "tokens/s"),
        },
        standing(comparison),
        facts_of(comparison),
    )


ONCE_A_SECOND = Load(64, 20, prompt=32, output=16, rate=1.0, user="one")


def fairness(arena: Arena) -> Outcome:
    """A client that asks once a second, beside another one: how long nine in ten of its first tokens take.

    The other one has 8 requests at any time, as many as are computed at once; or it has 500, and most of its
    own wait.
    """
    setup = Setup(models.random_model(MODELS, "135M"), arena.options.threads, 8, 256)

    def beside(others: int) -> float:
        with arena.node(setup) as node:
            crowd = arena.client.start(node, Load(others, 100_000, prompt=32, output=64, user="many"))
            try:
                wait_for_requests(node, others)
                return arena.client.run(node, ONCE_A_SECOND).milliseconds("ttft", "p90")
            finally:
                crowd.process.kill()
                crowd.process.wait()

    samples = arena.alone(lambda: (beside(8), beside(500)), arena.options.repeats)
    few, many = zip(*samples.values, strict=True)
    return Outcome(
        {
            "ratio": Measured.of([a / b for a, b in zip(many, few, strict=True)], RATIO),
            "beside 8": Measured.of(few, "ms"),
            "beside 500": Measured.of(many, "ms"),
        },
        disturbed(samples, "runs"),
        foreign_load(samples),
    )


def wait_for_requests(node: Server, wanted: int) -> None:
    """Until so many are under way."""
    deadline = time.monotonic() + 60
    while True:
        if node.request("/api/system", timeout=60)["load"]["requests"] >= wanted:
            return
        if time.monotonic() > deadline:
            raise LoadError(f"{wanted} requests were never under way at once")
        time.sleep(0.05)


## memory ###########################################################################################

IDLE_CONNECTIONS = 1000


def node_memory(arena: Arena) -> Outcome:
    """The process that talks HTTP, with a thousand clients that asked once and stayed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE_CONNECTIONS + 200
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    setup = Setup(models.small_model(MODELS), 1, 1, 512)
    with arena.node(setup, load=False) as node, contextlib.ExitStack() as stack:
        alone = machine.memory_bytes(node.pid)
        host, port = node.url.removeprefix("http://").split(":")
        for _ in range(IDLE_CONNECTIONS):
            link = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            link.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if not link.recv(4096).startswith(b"HTTP/1.1 200"):
                raise ServerError("the node refused an idle connection")
        time.sleep(1.0)
        full = machine.memory_bytes(node.pid)
    return Outcome(
        {"RSS": Measured.exact(full / 1e6, "MB"), "without connections": Measured.exact(alone / 1e6, "MB")}
    )


def worker_memory(arena: Arena) -> Outcome:
    """Workers after a load each, above the weights and the cache.

    The weights are as the engine has them: repacked for the processor they are larger than in the file.
    """
    setup = Setup(models.random_model(MODELS, "135M"), arena.options.threads, 8, 512)
    cache = setup.cells * setup.model.cache_bytes_per_token
    found = []
    for _ in range(arena.options.repeats):
        with arena.node(setup) as node:
            arena.client.run(node, Load(8, 8, prompt=64, output=64))
            resident = max(machine.memory_bytes(pid) for pid in machine.children_of(node.pid))
            weights = sum(one["weights_bytes"] for one in node.facts["load"]["memory"] if one["is_host"])
        found.append((resident, weights))
    return Outcome(
        {
            "above model and cache": Measured.of(
                [(rss - weights - cache) / 1e6 for rss, weights in found], "MB"
            ),
            "RSS": Measured.of([rss / 1e6 for rss, _ in found], "MB"),
            "weights": Measured.exact(found[0][1] / 1e6, "MB"),
            "file": Measured.exact(setup.model.size / 1e6, "MB"),
            "cache": Measured.exact(cache / 1e6, "MB"),
        }
    )


## parts of the host ################################################################################

STREAMS_OF_NOTHING = 64
SAMPLER_CASE = "top_k_40_top_p_min_p_temp"


def of_nothing(arena: Arena, concurrency: int, more: Sequence[str] = ()) -> stats.Samples[dict[str, Any]]:
    """What token_path.py finds, several times: the node with an engine that costs nothing."""

    def run() -> dict[str, Any]:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            command = [sys.executable, str(ROOT / "benches" / "token_path.py"), "--json", file.name]
            command += ["--concurrency", str(concurrency), *more]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise LoadError(f"token_path.py: {done.stderr[-1000:]}")
            record: dict[str, Any] = json.load(file)
            return record

    return arena.once(
        f"an engine that costs nothing: {concurrency} {more}",
        lambda: arena.alone(run, arena.options.repeats),
    )


def token_path(arena: Arena) -> Outcome:
    """Tokens that reach 64 clients for each second of processor time, with an engine that costs nothing."""
    samples = of_nothing(arena, STREAMS_OF_NOTHING)
    rows = [record["rows"][0] for record in samples.values]
    node, worker = ([row[f"{part}_us_per_token"] for row in rows] for part in ("node", "worker"))
    rates = [1e3 / (a + b) for a, b in zip(node, worker, strict=True)]
    return Outcome(
        {
            "per core": Measured.of(rates, "k tokens/s"),
            "node": Measured.of(node, "µs/token"),
            "worker": Measured.of(worker, "µs/token"),
            "on this machine": Measured.of([row["tokens_per_second"] / 1e3 for row in rows], "k tokens/s"),
        },
        disturbed(samples, "runs"),
        foreign_load(samples),
    )


def sampler(vocabulary: str) -> Callable[[Arena], Outcome]:
    def measure(arena: Arena) -> Outcome:
        size = models.VOCABULARIES[vocabulary]
        if not (ROOT / "rust" / "core" / "benches" / "sample.rs").is_file():
            raise Unavailable("rust/core has no benchmark of the sampler")
        command = ["cargo", "bench", "--quiet", "--locked", "-p", "llm-node-core", "--bench", "sample", "--"]
        command += [f"{SAMPLER_CASE}/{size}"]
        target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")

        def run() -> float:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise LoadError(f"cargo bench: {done.stderr[-1000:]}")
            files = (target / "criterion").glob(f"**/{size}/new/estimates.json")
            file = next(path for path in files if any(part.endswith(SAMPLER_CASE) for part in path.parts))
            return float(json.loads(file.read_text())["median"]["point_estimate"]) / 1e3

        # Shared machines change their speed within seconds: what criterion says of one run is narrower.
        samples = arena.alone(run, arena.options.repeats)
        figures = {"a row": Measured.of(samples.values, "µs")}
        return Outcome(figures, disturbed(samples, "runs"), foreign_load(samples))

    return measure


## with a GPU #######################################################################################


def need_gpu() -> None:
    if machine.gpu() is None:
        raise Unavailable("no GPU")


def gpu_load(arena: Arena, concurrency: int) -> tuple[Setup, Load]:
    model = models.random_model(MODELS, "8B")
    setup = Setup(model, arena.options.threads, concurrency, 512, backend="cuda")
    return setup, Load(concurrency, concurrency, prompt=128, output=128)


def on_gpu(concurrency: int) -> Callable[[Arena], Outcome]:
    def measure(arena: Arena) -> Outcome:
        need_gpu()
        setup, load = gpu_load(arena, concurrency)
        return told(arena.compare(setup, load, throughput, ceiling_every=4), throughput, "tokens/s")

    return measure


def against_guest(arena: Arena, setup: Setup, load: Load, name: str, url: str) -> Outcome:
    """Against a server that the person at the terminal started on the same machine."""
    other = guest(name, url, setup.model)
    outcome = told(arena.compare_with_guest(setup, load, other), throughput, "tokens/s")
    outcome.facts[name] = f"{other.model_id} at {url}"
    outcome.notes.append(f"{name}: {outcome.facts[name]}")
    return outcome


def against_vllm(arena: Arena) -> Outcome:
    need_gpu()
    if arena.options.vllm_url is None:
        raise Unavailable("no vLLM: start one on this GPU and name it with --vllm-url (docs/benchmarks.md)")
    setup, load = gpu_load(arena, 128)
    return against_guest(arena, setup, load, "vLLM", arena.options.vllm_url)
