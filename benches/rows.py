"""The rows of the benchmark: what is loaded how, what is compared, and what has to come out."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches import CACHE, ROOT, machine, models, stats
from benches.client import Client, Load, LoadError, Report, Running
from benches.ratio import FLAVOURS, Arena, Block, Comparison, play_once
from benches.servers import SPLIT, UNIFIED, Flavour, Server, ServerError, Setup, guest

MODELS = CACHE / "models"
RATIO = "\u00d7"


class Unavailable(Exception):
    """This machine, or this tree, cannot measure the row; the reason is the message."""


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float
    unit: str

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Measured:
        return cls(stats.median(values), *stats.bootstrap(values), unit)

    @classmethod
    def exact(cls, value: float, unit: str) -> Measured:
        return cls(value, value, value, unit)


@dataclass(frozen=True)
class Goal:
    """A limit of one of the row's figures."""

    figure: str
    limit: float
    at_least: bool = True

    def met(self, figures: dict[str, Measured]) -> bool:
        value = figures[self.figure].value
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass
class Outcome:
    """What a row found. The first figure is the row's own."""

    figures: dict[str, Measured]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    must: tuple[Goal, ...]
    aim: tuple[Goal, ...]
    measure: Callable[[Arena], Outcome]


def faster(must: float, aim: float) -> dict[str, tuple[Goal, ...]]:
    return {"must": (Goal("ratio", must),), "aim": (Goal("ratio", aim),)}


def at_most(figure: str, must: float, aim: float) -> dict[str, tuple[Goal, ...]]:
    return {"must": (Goal(figure, must, False),), "aim": (Goal(figure, aim, False),)}


## what all comparisons say ##########################################################################


def throughput(block: Block) -> float:
    return block.main.tokens_per_second


def milliseconds(name: str, which: str) -> Callable[[Block], float]:
    return lambda block: block.main.milliseconds(name, which)


def told(comparison: Comparison, metric: Callable[[Block], float], unit: str) -> Outcome:
    """The ratio first, then both servers' own figures."""
    ratios = comparison.ratios(metric)
    figures = {
        "ratio": Measured.of(ratios, RATIO),
        "llm-node": Measured.of(comparison.of_node(metric), unit),
        comparison.other: Measured.of(comparison.of_other(metric), unit),
    }
    if comparison.load.route == "completions":  # else the load generator has words counted meanwhile
        for name, values in (
            ("llm-node CPU", comparison.of_node(lambda block: block.cpu_per_token)),
            ("llm-node front CPU", comparison.of_node(lambda block: block.front_per_token)),
            (f"{comparison.other} CPU", comparison.of_other(lambda block: block.cpu_per_token)),
        ):
            figures[name] = Measured.of(values, "µs/token")
    if comparison.ceiling is not None:
        for name, values in (
            ("of the ceiling", comparison.of_node(throughput)),
            (f"{comparison.other}, of the ceiling", comparison.of_other(throughput)),
        ):
            figures[name] = Measured.of([value / comparison.ceiling for value in values], "")
    return Outcome(figures, standing(comparison), {**facts_of(comparison), "ratios": ratios})


def disturbed(samples: stats.Samples[Any], what: str = "pairs") -> list[str]:
    """What other load did to a row, in words."""
    notes = []
    if samples.thrown_away:
        notes.append(f"{samples.thrown_away} more {what} were thrown away because of other load")
    if samples.spoiled:
        notes.append(f"{samples.spoiled} of {len(samples.kept)} {what} were disturbed by other load")
    return notes


def foreign_load(samples: stats.Samples[Any]) -> dict[str, Any]:
    """The same in figures: the share of the machine, for each sample that counts."""
    return {
        "foreign load": [sample.foreign for sample in samples.kept],
        "thrown away": samples.thrown_away,
    }


def standing(comparison: Comparison) -> list[str]:
    """What has to be said beside the figures."""
    notes = [f"llama-server: {comparison.flavour}"] if comparison.flavour else []
    notes += disturbed(comparison.samples)
    if comparison.setup.model.note:
        notes.append(comparison.setup.model.note)
    return notes


def facts_of(comparison: Comparison) -> dict[str, Any]:
    facts = {
        "model": comparison.setup.model.name,
        "threads": comparison.setup.threads,
        "slots": comparison.setup.slots,
        "context": comparison.setup.context,
        "load": vars(comparison.load),
        "ceiling, tokens/s": comparison.ceiling,
        **foreign_load(comparison.samples),
    }
    if comparison.flavour:
        facts["llama-server"] = str(comparison.flavour)
        facts["trials of llama-server"] = comparison.trials
    return facts


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
        assert comparison.flavour is not None
        # Beside: what somebody gets who knows the variable.
        passive = Flavour(comparison.flavour.cache, environment=(("OMP_WAIT_POLICY", "passive"),))
        with arena.llama_server(setup, passive) as server:
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
            link.sendall(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")
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


## all ##############################################################################################

STORIES_RATIOS = {1: 1.12, 8: 1.07, 32: 1.07, 64: 1.15}

ROWS: list[Row] = [
    *(
        Row(f"decode-{c}", f"135M, decode tokens/s, c = {c}", measure=decode(c), **faster(must, aim))
        for c, must, aim in ((1, 1.00, 1.03), (8, 1.05, 1.15), (32, 1.10, 1.15))
    ),
    # Larger models answer shorter, so that a pair takes seconds on two cores.
    Row(
        "decode-360m",
        "360M q4_0, decode tokens/s, c = 8",
        measure=decode(8, "360M", "q4_0", output=32),
        **faster(1.0, 1.1),
    ),
    Row(
        "decode-1b",
        "1B q4_0, decode tokens/s, c = 4",
        measure=decode(4, "1B", "q4_0", prompt=16, output=24),
        **faster(1.0, 1.1),
    ),
    *(
        Row(
            f"sampled-{name}",
            f"15M, {name} vocabulary, sampled, tokens/s, c = 8",
            measure=sampled(name),
            **faster(1.0, 1.2),
        )
        for name in ("128k", "152k")
    ),
    # Holes among the sequences cost llama.cpp's split cache, llama-server's default with -np, a pass each.
    Row(
        "fragmented",
        "135M, fragmented (16 live of 32), decode speed",
        measure=fragmented(SPLIT),
        **faster(2.8, 3.2),
    ),
    Row(
        "fragmented-unified",
        "the same, llama-server with --kv-unified",
        measure=fragmented(UNIFIED),
        **faster(1.0, 1.15),
    ),
    Row(
        "prefill-stall",
        "135M, ITL p99 while a long prompt is prefilled, c = 8",
        measure=prefill_stall,
        **at_most("ratio", 0.35, 0.2),
    ),
    Row("busy-core", "135M, one core busy with something else, c = 8", measure=contended, **faster(1.7, 2.1)),
    *(
        Row(
            f"stories-{c}" + ("-chat" if route == "chat" else ""),
            f"stories260K, {route}, tokens/s, c = {c}",
            must=(Goal("ratio", must),),
            aim=(Goal("of the ceiling", 0.96),),
            measure=overhead(c, route),
        )
        for route in ("completions", "chat")
        for c, must in STORIES_RATIOS.items()
    ),
    *(
        Row(
            f"burst-{c}",
            f"135M, burst of {c} prompts, TTFT p50",
            must=(Goal("ratio", 0.65, False), Goal("ratio of the latest", 1.1, False)),
            aim=(Goal("ratio", 0.55, False),),
            measure=burst(c),
        )
        for c in (32, 64)
    ),
    Row(
        "shared-prefix",
        "15M, shared prefix 2k + 64, c = 32, TTFT p50",
        measure=shared_prefix,
        **at_most("ratio", 0.15, 0.08),
    ),
    Row(
        "host-cpu",
        "host CPU per token above the engine, worst of c = 1, 8, 32, 64",
        measure=host_cpu,
        **at_most("above the engine", 25, 15),
    ),
    Row(
        "request-cost",
        "request cost outside the engine, chat, idle",
        measure=request_cost,
        **at_most("outside the engine", 0.8, 0.4),
    ),
    Row(
        "cache-exhaustion",
        "135M, twice the load that the KV cache holds",
        must=(Goal("failed", 0, False),),
        aim=(Goal("of capacity", 0.9),),
        measure=cache_exhaustion,
    ),
    Row(
        "node-memory",
        "node's RSS with 1,000 idle connections",
        measure=node_memory,
        **at_most("RSS", 150, 100),
    ),
    Row(
        "worker-memory",
        "135M, worker's RSS above model and KV cache",
        measure=worker_memory,
        **at_most("above model and cache", 60, 40),
    ),
    *(
        Row(
            f"sampler-{name}",
            f"sampler, {name} vocabulary, temperature + top-k + top-p + min-p, one thread",
            measure=sampler(name),
            **at_most("a row", must, aim),
        )
        for name, must, aim in (("128k", 25, 20), ("152k", 30, 24))
    ),
    Row(
        "token-path",
        "streamed tokens per second of one core, an engine that costs nothing, 64 clients",
        must=(Goal("per core", 150),),
        aim=(Goal("per core", 180),),
        measure=token_path,
    ),
    *(
        Row(f"gpu-{c}", f"H200, 8B, decode tokens/s, c = {c}", measure=on_gpu(c), **faster(must, aim))
        for c, must, aim in ((1, 1.02, 1.05), (8, 1.10, 1.2), (32, 1.5, 1.8), (128, 2.0, 3.0))
    ),
    Row("gpu-vllm", "H200, c = 128, against vLLM", measure=against_vllm, **faster(0.7, 0.85)),
]
