"""Every item of the list that the contract was designed with has its checks, or a reason why not."""

from __future__ import annotations

from pathlib import Path

from llm_node import conformance

LIST: dict[str, tuple[str, ...] | str] = {
    # Before loading.
    "manifest valid, binary inside its folder, not writable by others": "the reader of manifests",
    "a library of this machine that exports the five symbols": ("file.library",),
    "exports nothing else, no STB_GNU_UNIQUE": ("file.exports", "file.unique-symbols"),
    "DT_NEEDED, rpath, executable stack, TEXTREL": ("file.dependencies", "file.stack"),
    "imports nothing that is forbidden": ("file.imports",),
    # Loading and life.
    "dlopen succeeds, in time, without a changed signal handler": ("life.open",),
    "engine_get_info can be read, and equals the manifest": ("life.info",),
    "engine_init returns a known code, and neither crashes, hangs nor exits": ("life.init",),
    "nothing is written beyond struct_size, older and newer hosts": ("life.config", "life.older-host"),
    "engine_shutdown returns, no thread left, three times in a row": ("life.shutdown", "life.again"),
    "descriptors, handlers, environment, directory, locale, rounding, umask": ("life.process",),
    "nothing on stdout, nor on stderr": ("life.stdout", "life.stderr"),
    "no socket but AF_UNIX, no file outside": "a worker has given up both; see file.imports",
    "extensions: same pointer, size, required functions, in code; unknown ids": ("life.extensions",),
    # Tier 0.
    "wrong files bring a code": ("tier0.load", "tier0.bad-files", "models.bad-files"),
    "results readable, and ended": ("tier0.generate",),
    "results unchanged until the next call, the prompt's memory gone": ("tier0.results",),
    "deadline kept, memory flat": ("tier0.memory",),
    "prompts: empty, long, no UTF-8, a mark": ("tier0.prompts",),
    # Models, memory, tokenizer, embeddings, adapters.
    "load and unload over and over; two at once; progress cancels": (
        "models.again",
        "models.two",
        "models.progress",
    ),
    "a failed load leaves *model, and says why": ("models.bad-files", "models.says-why"),
    "usage within devices, estimate near usage": (
        "memory.devices",
        "memory.usage",
        "memory.promise",
        "memory.truth",
    ),
    "vocabulary: offsets, number, specials, an end": ("tokenizer.vocabulary", "tokenizer.end"),
    "tokenize with capacity 0, exact, exact - 1": ("tokenizer.capacity",),
    "detokenize is the way back, and the vocabulary's bytes": ("tokenizer.round-trip", "tokenizer.pieces"),
    "16 threads tokenise at once": ("tokenizer.threads", "models.threads"),
    "embeddings: a batch is its single calls, finite, as wide as it is said": (
        "embed.vectors",
        "embed.capacity",
    ),
    "adapters": "engine.adapters/1 is a draft that no host asks for",
    # Batch.
    "equivalence: alone, batched, cut, shuffled": (
        "batch.repeat",
        "batch.cut",
        "batch.together",
        "batch.mixed",
        "batch.scripts",
    ),
    "stages give the same tokens": ("batch.stages",),
    "TOP is sorted, distinct, in range, with log_sum": ("batch.top",),
    "a mask with one bit": "no host asks for masks yet; see batch.stages",
    "n_rows = n": ("batch.several-rows", "batch.limits"),
    "prefix copies": ("batch.copy",),
    "rollback": ("batch.rollback", "batch.remove"),
    "ERR_CACHE_FULL changes nothing": ("batch.full", "batch.account"),
    "invalid arguments": ("batch.invalid", "batch.invalid-sequences", "batch.length"),
    "rows of a ticket stay; old tickets are errors": ("batch.rows-stay", "batch.tickets"),
    "CHAIN": "no host chains steps yet",
    "memory of a step is gone after it": ("batch.memory-of-a-step",),
    "strides": ("batch.strides",),
    "two contexts on two threads, cancel from a third, destroy with a step under way": (
        "batch.contexts",
        "batch.threads",
        "batch.cancel",
        "batch.destroy",
    ),
    "many steps: no growth, ticket +1 each": ("batch.steady", "batch.tickets"),
    "decode_sizes are a hint": "a measurement, for which llm-node bench is the tool",
    "save and restore": ("batch.save", "batch.save-sizes"),
    # Serve, stream.
    "stream: same tokens on repeat, max_tokens, one ending": (
        "stream.tokens",
        "stream.repeat",
        "stream.as-batch",
    ),
    "on_token cancels, on the calling thread": ("stream.cancel", "stream.tokens"),
    "serve": "engine.serve/1 is a draft that no host asks for",
}


def test_every_item_has_its_checks_and_every_check_its_place() -> None:
    there = {check["name"] for check in conformance.checks()}
    named = {name for entry in LIST.values() if isinstance(entry, tuple) for name in entry}
    assert named <= there
    further = {
        "models.load",
        "models.metadata",
        "memory.estimate",
        "memory.weights",
        "memory.capacity",
        "stream.uses",
    }
    further |= {"tokenizer.tokens", "tokenizer.special", "tokenizer.outside", "tokenizer.template"}
    further |= {"batch.create", "batch.rows"} | {name for name in there if name.endswith(".struct-size")}
    assert there == named | further


def test_the_page_has_every_check_with_its_anchor(repository: Path) -> None:
    page = (repository / "docs/conformance.md").read_text()
    for check in conformance.checks():
        assert f'<a id="{check["name"].replace(".", "-")}"></a>' in page
        assert check["line"] > 0, check["name"]
