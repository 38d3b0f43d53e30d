"""`GET /metrics`: what the node says of itself, in Prometheus' words. Nothing is counted here.

What means the same as at vLLM has vLLM's name, so that dashboards and routers that know those read these.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from llm_node.api.context import NODE
from llm_node.version import __version__

if TYPE_CHECKING:
    from prometheus_client.core import Metric

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""The one form, whatever is asked for: in OpenMetrics' the library writes `_` in place of vLLM's colons."""
BLOCK_TOKENS = 16
"""In which routers for vLLM count a cache."""
STATES = ("available", "waiting", "loading", "loaded", "cooling", "failed")
FINISHED = ("stop", "length", "abort", "error")
LOADS = {"loaded": "loaded", "failed": "load_failed"}
EVICTIONS = {"room": "evicted", "unused": "unused"}
"""Why a model went that nobody unloaded, by the kind of what happened."""
EVENTS = ("unloaded", "replaced", "pressure", "cut", "overrun", "kept", "abandoned", "device_lost")
"""Kinds without a series of their own."""
STEPS = ("prompts", "answers", "mixed", "saving")
PARTS = ("weights", "cache", "compute")
OF_A_DEVICE = ("total", "free", "limit", "reserved", "unexplained", "settling", "foreign")
HISTOGRAMS = {
    "vllm:request_queue_time_seconds": ("queue_seconds", "Until a request was let in."),
    "vllm:time_to_first_token_seconds": ("first_token_seconds", "Until the first token of an answer."),
    "vllm:request_time_per_output_token_seconds": (
        "token_seconds",
        "For each further token, on average over a request.",
    ),
    "vllm:inter_token_latency_seconds": ("between_tokens_seconds", "From each token to the next."),
    "vllm:e2e_request_latency_seconds": ("request_seconds", "From a request's beginning to its end."),
    "llm_node_load_seconds": ("load_seconds", "Until a model answered that was loaded."),
    "vllm:request_prompt_tokens": ("request_prompt_tokens", "Tokens of a prompt."),
    "vllm:request_generation_tokens": ("request_completion_tokens", "Tokens of an answer."),
}
COUNTERS = {
    "vllm:prompt_tokens": ("prompt_tokens", "Tokens of prompts."),
    "vllm:generation_tokens": ("completion_tokens", "Tokens of answers."),
    "vllm:prefix_cache_queries": ("prompt_tokens", "Tokens that were looked for in the prefix cache."),
    "vllm:prefix_cache_hits": ("cached_tokens", "Tokens that came from the prefix cache."),
    "vllm:spec_decode_num_draft_tokens": ("drafted_tokens", "Tokens that were guessed ahead."),
    "vllm:spec_decode_num_accepted_tokens": ("accepted_tokens", "Guessed tokens that were right."),
}


async def scrape(request: web.Request) -> web.Response:
    """The route. `?model=NAME`: the series of that model alone, for what reads one model a server."""
    node = request.app[NODE]
    models, system, meters = await node.models(), await node.system(), await node.meters()
    wanted = request.query.get("model")
    if wanted is not None:
        wanted = str((await node.model(wanted))["model_id"])
        models = [model for model in models if model["model_id"] == wanted]
        meters = {name: meter for name, meter in meters.items() if name == wanted}
    exposition: Any = importlib.import_module("prometheus_client.exposition")
    # A folder may hold hundreds of models, of which few are ever asked for.
    models = [model for model in models if model["status"] != "available" or model["model_id"] in meters]
    told = _Collected([*_of_models(models), *_of_requests(meters), *_of_node(system)])
    body: bytes = exposition.generate_latest(told)
    return web.Response(body=body, headers={"Content-Type": TEXT})


class _Collected:
    """What an encoder takes for a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _of_models(models: list[dict[str, Any]]) -> Iterator[Metric]:
    state = _gauge("llm_node_model_state", "1 for what a model is doing.", "model_name", "state")
    running = _gauge("vllm:num_requests_running", "Requests that are computed.", "model_name")
    waiting = _gauge("vllm:num_requests_waiting", "Requests that wait to be let in.", "model_name")
    usage = _gauge(
        "vllm:kv_cache_usage_perc",
        "Used part of the KV cache, 0 to 1, without what is kept.",
        "model_name",
    )
    cells = _gauge("llm_node_kv_cache_tokens", "Cells of the KV cache.", "model_name", "what")
    preempted = _counter("vllm:num_preemptions", "Requests that had to give way.", "model_name")
    queued = _gauge("llm_node_queued_tokens", "Prompt tokens of requests that wait.", "model_name")
    rate = _gauge("llm_node_prompt_tokens_per_second", "As it was measured; 0: not yet.", "model_name")
    cache = _gauge(
        "vllm:cache_config_info", "Size of the KV cache.", "model_name", "block_size", "num_gpu_blocks"
    )
    steps = _counter("llm_node_step_seconds", "What an engine computed for.", "model_name", "kind")
    error = _gauge(
        "llm_node_estimate_error_ratio",
        "By how much what a model holds differs from its engine's estimate; 0.1: a tenth more.",
        "model_name",
    )
    for model in models:
        name, busy = model["model_id"], model.get("occupancy")
        waiting.add_metric([name], model["parked"] + (busy["queued"] if busy else 0))
        if model.get("estimated_bytes"):
            error.add_metric([name], model["held_bytes"] / model["estimated_bytes"] - 1)
        for word in STATES:
            state.add_metric([name, word], float(_state(model) == word))
        if busy is None:
            continue
        used = max(0, busy["cache_used"] - busy["kept_tokens"])
        running.add_metric([name], busy["running"])
        usage.add_metric([name], used / busy["cache_tokens"] if busy["cache_tokens"] else 0.0)
        for what, count in (
            ("used", used),
            ("kept", busy["cache_used"] - used),
            ("capacity", busy["cache_tokens"]),
        ):
            cells.add_metric([name, what], count)
        preempted.add_metric([name], busy["preemptions"])
        for kind in STEPS:
            steps.add_metric([name, kind], busy["step_micros"][kind] / 1e6)
        queued.add_metric([name], busy["queued_tokens"])
        rate.add_metric([name], busy["prompt_rate"])
        cache.add_metric([name, str(BLOCK_TOKENS), str(busy["cache_tokens"] // BLOCK_TOKENS)], 1)
    # Adapters there are none of; routers that ask for them want to read it.
    adapters = _gauge(
        "vllm:lora_requests_info", "Adapters.", "max_lora", "running_lora_adapters", "waiting_lora_adapters"
    )
    adapters.add_metric(["0", "", ""], 1)
    yield from (state, running, waiting, usage, cells, preempted, queued, rate, cache, steps, error, adapters)


def _state(model: Mapping[str, Any]) -> str:
    """A model that cools after a crash, or has, is loaded for whoever asks next: nobody has to look at it."""
    return "cooling" if "retry_after" in model else str(model["status"])


def _of_requests(meters: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    core: Any = importlib.import_module("prometheus_client.core")
    endings = _counter("vllm:request_success", "Requests that have ended.", "model_name", "finished_reason")
    for name, meter in meters.items():
        # Each from the beginning: whoever watches one sees the first time that it happens.
        for reason in FINISHED:
            endings.add_metric([name, reason], meter["requests"].get(reason, 0))
    yield endings
    for metric, (field, text) in COUNTERS.items():
        counter = _counter(metric, text, "model_name")
        for name, meter in meters.items():
            counter.add_metric([name], meter[field])
        yield counter
    for metric, (field, text) in HISTOGRAMS.items():
        histogram = core.HistogramMetricFamily(metric, text, labels=["model_name"])
        for name, meter in meters.items():
            histogram.add_metric([name], _buckets(meter[field]), meter[field]["sum"])
        yield histogram


def _buckets(histogram: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Each bucket with those below it, as Prometheus wants them."""
    bounds = [*(f"{bound:g}" for bound in histogram["bounds"]), "+Inf"]
    below = 0
    buckets = []
    for bound, count in zip(bounds, histogram["counts"], strict=True):
        below += count
        buckets.append((bound, below))
    return buckets


def _of_node(system: Mapping[str, Any]) -> Iterator[Metric]:
    memory = _gauge("llm_node_device_bytes", "Memory of a device.", "device", "what")
    accounts = {device["id"]: device["account"] for device in system["devices"]}
    parts = Counter[tuple[str, str]]()
    for use in (use for worker in system["workers"] for use in worker.get("memory", ())):
        account = accounts.get(use["id"])
        if account is not None:
            parts.update({(account, part): use[f"{part}_bytes"] for part in PARTS})
    for device in system["devices"]:
        name = device["id"]
        if accounts[name] != name:
            continue  # it has none of its own
        for what in OF_A_DEVICE:
            memory.add_metric([name, what], device[f"{what}_bytes"])
        for part in PARTS:
            memory.add_metric([name, part], parts[name, part])
    requests = _gauge("llm_node_requests", "Requests under way, those that wait included.")
    requests.add_metric([], system["load"]["requests"])
    capacity = _gauge(
        "llm_node_capacity", "Requests that can be computed at once by the models that are loaded."
    )
    capacity.add_metric([], system["load"]["capacity"])
    load = _gauge("llm_node_load", "How full the fullest model is; 1: full.")
    load.add_metric([], system["load"]["value"])
    happened = system["events"]
    loads = _counter("llm_node_loads", "Loads of models, by how they ended.", "result")
    for result, kind in LOADS.items():
        loads.add_metric([result], happened[kind])
    evictions = _counter("llm_node_evictions", "Models that went although nobody unloaded them.", "why")
    for why, kind in EVICTIONS.items():
        evictions.add_metric([why], happened[kind])
    reshapes = _counter("llm_node_reshapes", "Contexts made anew in a loaded model.")
    reshapes.add_metric([], happened["reshaped"])
    refusals = _counter("llm_node_refusals", "Loads refused for want of memory.", "code")
    for code, count in system["refusals"].items():
        refusals.add_metric([code], count)
    crashes = _counter("llm_node_crashes", "Workers that ended by themselves.", "engine")
    # Each from the beginning: whoever watches one sees the first time that it happens.
    engines = {worker["engine"]: 0 for worker in system["workers"] if "engine" in worker}
    for engine, count in {**engines, **system["crashes"]}.items():
        crashes.add_metric([engine], count)
    events = _counter("llm_node_model_events", "What else has happened to models.", "kind")
    for kind in EVENTS:
        events.add_metric([kind], happened[kind])
    line = _gauge("llm_node_line_length", "Models that wait until others have made room.")
    line.add_metric([], len(system["line"]))
    info = _gauge("llm_node_info", "Which node it is.", "version", "abi", "gpu_backend")
    info.add_metric([__version__, str(system["versions"]["abi"]), system["gpu_backend"] or "none"], 1)
    yield from (memory, requests, capacity, load, line, info)
    yield from (loads, evictions, reshapes, refusals, crashes, events)


def _gauge(name: str, text: str, *labels: str) -> Any:
    core: Any = importlib.import_module("prometheus_client.core")
    return core.GaugeMetricFamily(name, text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> Any:
    core: Any = importlib.import_module("prometheus_client.core")
    return core.CounterMetricFamily(name, text, labels=labels)
