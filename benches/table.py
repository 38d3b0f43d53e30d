"""The rows of the benchmark, and what has to come out of each."""

from __future__ import annotations

from benches.outcome import Goal, Row, at_most, faster
from benches.rows import (
    against_vllm,
    burst,
    cache_exhaustion,
    contended,
    decode,
    fairness,
    fragmented,
    host_cpu,
    node_memory,
    on_gpu,
    overhead,
    prefill_stall,
    request_cost,
    sampled,
    sampler,
    shared_prefix,
    token_path,
    worker_memory,
)
from benches.servers import SPLIT, UNIFIED

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
        "fairness",
        "135M, time to first token of one request a second, beside 500 requests against beside 8",
        measure=fairness,
        **at_most("ratio", 2.0, 1.2),
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
