"""What the node reports, as JSON schemas: models, memory, plans, incidents.

`/openapi.json` shows them, and what commands print for programs is held to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def fields(**known: Schema) -> Schema:
    """An object with these fields and no other. One whose name ends in `_` may be missing."""
    return {
        "type": "object",
        "properties": {name.removesuffix("_"): schema for name, schema in known.items()},
        "required": [name for name in known if not name.endswith("_")],
        "additionalProperties": False,
    }


def some(schema: Schema) -> Schema:
    """A list of these."""
    return {"type": "array", "items": schema}


def maybe(schema: Schema) -> Schema:
    """It, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Schema = {"type": "string", "minLength": 1}
WORDS: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number", "minimum": 0}
COUNTS: Schema = {"type": "object", "additionalProperties": COUNT}
LIMIT = maybe({"anyOf": [COUNT, COUNTS]})
FLAG: Schema = {"type": "boolean"}

ERROR = {
    "type": "object",
    "properties": {"code": TEXT, "message": TEXT, "type": TEXT, "param": maybe(TEXT), "kind": TEXT},
    "required": ["code", "message"],
}
CHAT = fields(tools=FLAG, thinking=FLAG, syntax=maybe(TEXT))
FACTS = fields(
    architecture=TEXT, format=TEXT, quantization=maybe(TEXT), n_parameters=COUNT, context_length=COUNT,
    max_sequences=COUNT, n_embedding=COUNT, ranks=FLAG, fills_gaps=FLAG, generates=FLAG,
    has_chat_template=FLAG, chat=maybe(CHAT), source=TEXT,
    memory=some(fields(
        device=TEXT, id=maybe(TEXT), bus_id=maybe(TEXT), is_host=FLAG, weights=COUNT, cache=COUNT,
        compute=COUNT, cache_per_token=COUNT, cache_per_sequence=COUNT,
    )),
)  # fmt: skip
USE = fields(
    device=TEXT, id=maybe(TEXT), bus_id=maybe(TEXT), is_host=FLAG, weights_bytes=COUNT, cache_bytes=COUNT,
    compute_bytes=COUNT, total_bytes=COUNT,
)  # fmt: skip
BUSY = fields(
    queued=COUNT, queued_tokens=COUNT, prompt_rate=COUNT, running=COUNT, max_running=COUNT, cache_used=COUNT,
    cache_tokens=COUNT, kept=COUNT, kept_tokens=COUNT, preemptions=COUNT, drafted=COUNT, accepted=COUNT,
    step_micros=fields(prompts=COUNT, answers=COUNT, mixed=COUNT, saving=COUNT),
)  # fmt: skip
KEPT_BY: Schema = {"enum": ["pin", "loading", "busy", "residency"]}
LIFE: Mapping[str, Schema] = {
    "status": {"enum": ["available", "waiting", "loading", "loaded", "failed"]},
    "error_": ERROR, "retry_after_": COUNT, "progress_": NUMBER, "stage_": maybe(TEXT), "pid_": maybe(COUNT),
    "engine_": TEXT, "engine_version_": TEXT, "gpu_backend_": TEXT, "devices_": some(TEXT),
    "memory_": some(USE), "held_bytes_": COUNT, "load_ms_": COUNT, "facts_": FACTS,
    "estimated_bytes_": maybe(COUNT),
    "draining_": FLAG, "pinned_": FLAG, "idle_seconds_": maybe(COUNT), "ready_seconds_": COUNT,
    "silent_seconds_": COUNT, "call_seconds_": COUNT, "tokens_per_second_": NUMBER,
    "occupancy_": maybe(BUSY), "options_": {"type": "object"}, "waiting_": COUNT,
    "requests_per_minute": NUMBER, "parked": COUNT,
    "goes_in_seconds_": maybe(COUNT), "kept_by_": KEPT_BY, "turn_seconds_": maybe(COUNT),
    "last_crash_": {"type": "object"},
    "workers_": some(fields(
        status={"enum": ["waiting", "loading", "loaded"]}, draining=FLAG, progress=NUMBER, pid=maybe(COUNT),
        requests=COUNT, devices=some(TEXT), memory=some(USE), held_bytes=COUNT,
        silent_seconds=COUNT, tokens_per_second=NUMBER, occupancy=maybe(BUSY),
    )),
}  # fmt: skip
"""Of a model, as far as it is alive."""
FILE: Mapping[str, Schema] = {
    "model_id": TEXT, "format": TEXT, "architecture": maybe(TEXT), "quantization": maybe(TEXT),
    "task": maybe({"enum": ["chat", "completions", "embeddings", "rerank"]}), "size_bytes": COUNT,
    "context_length": maybe(COUNT), "path": TEXT, "files": some(TEXT), "also": some(TEXT),
    "origin": {"enum": ["own", "demo", "hub", "llama-cpp", "lm-studio", "ollama"]},
}  # fmt: skip
MODEL = fields(**FILE, name=maybe(TEXT), modified=COUNT, changed=FLAG, requests=COUNT, **LIFE)
UNLISTED = fields(path=TEXT, origin=FILE["origin"], why=TEXT)
ENGINE = fields(
    id=TEXT, version=TEXT, gpu_backend=TEXT, architectures=some(TEXT), formats=some(TEXT),
    status={"enum": ["loaded", "rejected"]}, abi_version=maybe(TEXT), path=TEXT, extensions=some(TEXT),
    modalities=some(TEXT), conformance_={"type": "object"}, error_=ERROR,
)  # fmt: skip
HOLDERS = some(fields(model_id=TEXT, device=TEXT, bytes=COUNT, kept_by=maybe(KEPT_BY)))
PLACE = fields(model_id=TEXT, position=COUNT, needs_bytes=COUNT, waits_for=some(TEXT), expected_seconds=COUNT)
DEVICE = fields(
    id=TEXT, account=TEXT, index=COUNT, name=TEXT, bus_id=maybe(TEXT),
    kind={"enum": ["gpu", "mig", "unified", "host"]},
    state={"enum": ["ok", "lost", "unreadable"]}, look=maybe({"type": "object"}), total_bytes=COUNT,
    free_bytes=COUNT, limit_bytes=COUNT, foreign_bytes=COUNT, reserved_bytes=COUNT,
    unexplained_bytes=COUNT, settling_bytes=COUNT, holders=HOLDERS,
)  # fmt: skip
GONE = fields(model_id=TEXT, requests=COUNT, **LIFE)
"""A model that is loaded, and whose file is not there any more."""
MODELS = fields(models=some({"anyOf": [MODEL, GONE]}), unlisted_=some(UNLISTED))
ENGINES = fields(engines=some(ENGINE))
LOADED = fields(
    model_id=TEXT, status={"const": "loaded"}, engine=TEXT, engine_version=TEXT, gpu_backend=TEXT,
    devices=some(TEXT), memory=some(USE), load_ms=COUNT, facts=FACTS,
    estimated_bytes=maybe(COUNT),
)  # fmt: skip
"""What a load came to."""
SYSTEM = fields(
    uptime_seconds=COUNT, reading_age_seconds=NUMBER,
    gpu_backend=maybe(TEXT), vram_limit_bytes=LIMIT, devices=some(DEVICE),
    workers=some(fields(model_id=TEXT, streams_=COUNT, **LIFE)), line=some(PLACE),
    load=fields(requests=COUNT, capacity=COUNT, queued_tokens=COUNT, value=NUMBER),
    events=COUNTS, refusals=COUNTS, crashes=COUNTS,
    versions=fields(llm_node=TEXT, abi=COUNT, protocol=COUNT),
    advice=some(fields(code=TEXT, text=TEXT, command=TEXT)),
)  # fmt: skip
PLAN = fields(
    model_id=TEXT, verdict={
        "enum": ["loaded", "fits", "after_shrinking", "after_unloading", "after_waiting", "refused"]
    },
    engine=maybe(TEXT), basis=maybe({"enum": ["measured", "engine", "file_size"]}),
    measured_at=maybe(COUNT), memory=some(USE),
    devices=some(fields(
        id=TEXT, device=TEXT, required_bytes=COUNT, available_bytes=COUNT, limit_bytes=COUNT,
        foreign_bytes=COUNT,
    )),
    shape=maybe(fields(context_length=COUNT, max_sequences=COUNT, cache_tokens=COUNT)),
    shrink=some(fields(model_id=TEXT, bytes=COUNT)),
    unload=some(fields(model_id=TEXT, idle_seconds=maybe(COUNT), reload_seconds=NUMBER)),
    wait_seconds=maybe(COUNT), ready_seconds=maybe(NUMBER), largest_context=maybe(COUNT),
    would_fit=maybe(some(fields(context_length=COUNT, cache_tokens_=COUNT, options_={"type": "object"}))),
    holders=HOLDERS, error_=maybe(ERROR),
)  # fmt: skip
INCIDENT = fields(
    at=COUNT, severity={"enum": ["info", "warning", "error"]}, kind=TEXT, model_id=WORDS, engine=maybe(TEXT),
    code=maybe(TEXT), call=maybe(TEXT), signal=maybe(COUNT), message=TEXT, log=some(WORDS),
)  # fmt: skip
INCIDENTS = fields(incidents=some(INCIDENT))


def opened(schema: Any) -> Any:
    """The same, to which later versions may add fields."""
    if isinstance(schema, Mapping):
        return {key: opened(value) for key, value in schema.items() if value is not False}
    return [opened(each) for each in schema] if isinstance(schema, list) else schema
