"""The typed boundary between Python and Rust. Imported by `node/`, `conformance.py`, `devices.py`, `load.py`
and `version.py` alone; `worker.py` brings it in by its file."""

import os
from collections.abc import Callable, Iterator
from typing import Literal, final

__all__ = [
    "ABI_VERSION",
    "ERROR_CODES",
    "TOOL_SYNTAXES",
    "Block",
    "Engine",
    "Event",
    "Fault",
    "Model",
    "Stream",
    "Supervisor",
    "__version__",
    "check_engine",
    "conformance_checks",
    "conformance_items",
    "end_with_parent",
    "engine_at",
    "engine_claims",
    "engines_folder_meant",
    "gguf_header",
    "host_memory_bytes",
    "keep_memory_private",
    "quantization_in",
    "run_check",
    "run_load",
    "run_worker",
]

__version__: str
ABI_VERSION: int

ERROR_CODES: list[str]
"""Every code of `rust/core/src/error.rs`, in its order."""

TOOL_SYNTAXES: list[str]
"""The families of `rust/core/src/chat/families`, and `off`."""

@final
class Fault(Exception):
    """The one exception that Rust raises for anything a client or an engine did wrong."""

    code: str
    message: str
    param: str | None
    details: dict[str, object] | None
    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        details: dict[str, object] | None = None,
    ) -> None: ...

def check_engine(plan: str, child: list[str], progress: Callable[[str], None]) -> None:
    """Run the conformance suite on an engine. `child` is the command that runs one check: `run_check` of its
    last argument, which is added to it. `progress` is told each outcome, as JSON. Raises `Fault` for an
    engine without a manifest that can be read, and for a check that nobody knows.

    Plan: {"folder", "packaged": libraries that packages bring, of `rust/node/src/registry/surroundings.rs`,
    "model" or null, "checks": names of checks or of groups (none: all), "options": pairs
    that the engine is started with, "quick", "seed": what is made up at random begins from it,
    "deadline_seconds"}. Outcome: as an entry of `conformance_checks`, with {"status": "passed" | "failed" |
    "skipped", "seen": what was seen, or why it was skipped, "script": calls, "seconds"}.
    """

def conformance_checks() -> str:
    """Every check, as JSON: [{"name", "level": "must" | "should", "what", "contract": a passage of
    engine_api.h, "line": where it stands there, "mend": what to change}]."""

def conformance_items() -> str:
    """What the contract was designed to be asked, as JSON: [{"group": a heading, "asks", "checks": the names
    of those that ask it, "other": who does so in their place, or why nobody does; null where there are
    checks}]."""

def end_with_parent() -> None:
    """From now on this process gets SIGTERM when the thread that started it ends. Raises `OSError`, also on
    systems other than Linux, which have no such thing."""

def engine_at(path: str) -> str:
    """The engine whose folder this is, or the one engine below it, as JSON: {"folder", "binary", "id",
    "version", "gpu_backend", "formats"}. Raises `Fault` where there is none, or its manifest is wrong."""

def engine_claims(folder: str | os.PathLike[str], claim: str | None) -> None:
    """Write into the manifest in an engine's folder what it says of the conformance suite, as JSON:
    {"version", "date", "level"}; None: nothing any more. Raises `OSError`."""

def engines_folder_meant(folder: str) -> str | None:
    """The engines folder that is meant by who names this one, which holds none; None: nobody knows."""

def gguf_header(prefix: bytes, length: int) -> str | None:
    """What the header of a GGUF file of `length` bytes says, of which the beginning is known: JSON of
    `Header` in `rust/node/src/models/gguf.rs`. None: more of it must be known. Raises `Fault`
    (`model_corrupt`)."""

def host_memory_bytes() -> tuple[int, int]:
    """The host's memory: all that this process may have, in a container no more than its limit; and what of
    it is free or held by the file cache alone."""

def keep_memory_private() -> None:
    """From now on no process of the same user may read this one's memory or trace it. Raises `OSError`."""

def quantization_in(stem: str) -> str | None:
    """How the weights of a file are stored, by its name without extension: "Q4_K_M"."""

def run_check(job: str) -> None:
    """Be the process of one check of `check_engine`. Does not return: it ends the process."""

def run_worker(endpoint: str) -> int:
    """Be a worker: connect to the node at `endpoint`, serve until it says stop. Gives the exit code.

    The secret comes from the environment variable LLM_NODE_WORKER_SECRET, set by the node.
    """

def run_load(plan: str, progress: Callable[[float, int, int, int], None]) -> str:
    """Put load on a server and measure it. Blocks until the run is over.

    `plan`: JSON of `rust/load/src/plan.rs`; a wrong one raises `Fault`. Gives JSON of
    `rust/load/src/report.rs`. `progress` is called a few times a second, after a signal and at the end,
    with the seconds since the beginning and the requests completed, requests failed and events with text
    so far. What it raises ends the run, and is raised here; after a KeyboardInterrupt, its own or the user's,
    the report is of what has ended until then.
    """

@final
class Event:
    """One thing that happened to one stream; see `rust/core/src/event.rs`."""

    stream: int
    kind: Literal["started", "piece", "call_began", "call_ended", "finished", "failed"]
    part: Literal["text", "reasoning", "input"]
    """Of a piece."""
    text: str
    """Of a piece: whole UTF-8 characters."""
    id: str
    """Of a call that began: 24 letters and digits; so is the next one."""
    name: str
    """The called tool's."""
    relaxed: list[str]
    """Of the beginning: what was asked for and is not enforced."""
    prompt_tokens: int
    """Of the beginning and of the end; so is `cached_tokens`, and what else is counted comes with the end."""
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    """Of these, thought with."""
    drafted_tokens: int
    """Of the answer, guessed ahead."""
    accepted_tokens: int
    """Of these, right."""
    waited_ns: int
    """Nanoseconds until it was let in, then until its first token, then until its end."""
    read_ns: int
    wrote_ns: int
    finish: Literal["stop", "stop_string", "length", "context", "calls", "cancelled"] | None
    stop: str | None
    """The stop string that ended it."""
    fault: Fault | None
    number: int
    """Of the end, where frames were written: the number behind theirs."""
    blocks: list[Block]
    """Of the end: the answer, where it was asked for as a whole or kept."""
    def fill(self, pattern: str) -> bytes:
        """JSON made of the log-probabilities of all text in the blocks of an answer that was asked for as a
        whole. `pattern`: as `rust/node/src/pattern.rs` has it; raises `Fault` where it is none."""

@final
class Block:
    """A run of text, of reasoning, or of the input of one call."""

    part: Literal["text", "reasoning", "input"]
    text: str
    id: str
    """Of a call; so is the next one."""
    name: str
    complete: bool
    """Did it end by itself? Else a limit cut it off."""
    tokens: list[int]
    """Numbers of the tokens behind it, where the answer was asked for as a whole; -1 where the engine gives
    text alone."""
    def fill(self, pattern: str) -> bytes:
        """As that of `Event`, of this block alone, and for frames with a pattern and kept blocks as well."""

_Template = tuple[list[tuple[bytes, str]], bytes]
_Part = tuple[_Template | None, _Template | None, _Template | None, _Template | None]
_Frames = tuple[
    _Part | None,
    _Part | None,
    _Part | None,
    list[_Part],
    dict[str, tuple[int, str]],
    str | None,
    bool,
    bool,
    int,
]

@final
class Supervisor:
    """Registry, models, memory ledger and workers of one node. Every call is thread-safe."""

    def __new__(cls, config: str) -> Supervisor:
        """`config`: JSON of the node's configuration (see `rust/node/src/config.rs`)."""

    def reconfigure(self, config: str) -> None:
        """`config`: as at the beginning. How models are loaded and their further names are taken over, and
        nothing else. Raises `Fault` where it is wrong, and changes nothing."""

    def search_in(self, surroundings: str) -> None:
        """Look for engines there from now on. JSON of `rust/node/src/registry/surroundings.rs`."""

    def engines(self, refresh: bool = False) -> int:
        """A ticket for a JSON array: every candidate with its verdict. Comes once all are probed.

        Here and below: what comes of a ticket is in the second list of `drain`.
        """

    def models(self) -> int:
        """A ticket for a JSON array: every model found, with its state."""

    def model(self, name: str) -> int:
        """A ticket for a JSON object: the model that is meant by a name, as `models` has it."""

    def alias(self, alias: str, name: str) -> int:
        """A ticket for a JSON object: from now on `alias` is a further name of the model that is meant by
        `name`, which comes as `models` has it."""

    def unlisted(self) -> int:
        """A ticket for a JSON array: files that are not listed as models. Each: `path`, `origin`, `why`."""

    def obstacles(self) -> int:
        """A ticket for a JSON object: (code, message) for each model that cannot be loaded, since it has a
        defect or no engine is for it. Comes once all engines are probed."""

    def plan(self, path: str, context_length: int | None = None) -> int:
        """A ticket for a JSON object: what the model in a file would take, by its engine's own estimate:
        {"engine", "memory": `MemoryUse` of each device}. It needs the header alone: behind it the file may be
        a hole."""

    def plan_load(self, request: str) -> int:
        """A ticket for a JSON object: what a load would come to. `request`: as that of `load`."""

    def load(self, request: str) -> int:
        """A ticket: load a model, or join a load under way.

        `request`: JSON {"model_id", "format"?, "engine"?, "context_length"?, "max_sequences"?,
        "cache_tokens"?, "gpu_layers"?, "threads"?, "speculation"?, "draft_model"?, "tool_syntax"?,
        "chat_template"?, "pin"?, "keep_alive"?, "replicas"?, "devices"?, "options"?, "for_request"?,
        "tokens"?}. What comes is JSON: what the load came to. `for_request`: a request comes as soon as it is
        loaded; nobody takes its place before. `tokens`: it needs so many, and the context was too short.
        Raises `Fault` at once where the request is no such JSON.
        """

    def unload(self, model_id: str, timeout_seconds: float) -> int:
        """A ticket: drain, stop and wait. What comes is null."""

    def system(self, is_fresh: bool = False) -> int:
        """A ticket for a JSON object: devices, ledger, versions. `is_fresh`: waits for figures of GPUs that
        nobody reads as long as nothing is loaded."""

    def incidents(self) -> int:
        """A ticket for a JSON array: what has gone wrong lately, oldest first."""

    def meters(self) -> int:
        """A ticket for a JSON object: what all requests took so far, by model."""

    def standstill(self) -> str | None:
        """Why a model answers nothing although it is loaded, if there is one. Never blocks."""

    def await_defect(self) -> int:
        """A ticket for an error: a defect has ended the node by itself. Nothing comes where none does."""

    def blind_seconds(self) -> int | None:
        """For how many seconds the devices have not answered, where they should have. Never blocks."""
    def next_reading(self, interval_seconds: float) -> bool:
        """Wait until figures of the devices are wanted: after so long, or sooner where something waits for
        them. False: no more are. One thread alone may ask, and brings them by `update_devices`."""

    def update_devices(self, devices: str) -> None:
        """`devices`: JSON array as in the configuration, measured anew. Host memory needs none of this."""

    def submit(
        self,
        model_id: str,
        request: str,
        client: int,
        frames: _Frames | None = None,
        whole: bool = False,
    ) -> int:
        """A new stream on a model that is ready. `request`: JSON of `rust/core/src/request.rs`.

        `client`: the caller's name for the one who gets it, who may have several streams. `frames`: how
        what stands between `started` and the ending is written, as `Frames` of `node/client.py` has it; it
        then comes as bytes, and not as events. `whole`: all of it comes as blocks, with the ending.

        Never blocks. Raises `Fault` at once where no worker is ready (`model_loading` where a `load` would
        help), or a template or the pattern is none; all that follows comes from `drain`.
        """

    def cancel(self, stream: int) -> None:
        """The client of a stream has left. Its last event still comes. Unknown streams are ignored."""

    def ask(self, model_id: str, question: str) -> int:
        """A ticket. `question`: JSON of `Question` in `rust/wire/src/message.rs`; what comes, of `Answer`.

        Never blocks. Raises `Fault` at once where no worker is ready, as `submit` does.
        """

    def park(self, model_id: str, requests: int) -> None:
        """So many requests more wait until the model is loaded: `parked` of its row."""

    def unpark(self, model_id: str, requests: int) -> None:
        """So many of these do not any more."""

    def forget(self, ticket: int) -> None:
        """Nobody waits for the answer to a question any more."""

    def wake_socket(self) -> int:
        """A new socket, the caller's to close: it gets a byte, once, when something waits for `drain`."""

    def drain(self) -> tuple[list[tuple[int, bytes | Event | None]], list[tuple[int, str | Fault]]]:
        """All that came since the last call. Arms the socket again.

        First what is for clients, in order, each item with its client. bytes: for the client's connection, as
        they are. None: the client was held, and more waits for it than it may let wait; its text is dropped
        from here on. Then what came of tickets: JSON, or why there is none.
        """

    def hold(self, client: int, unsent: int) -> int:
        """The client's connection has so many bytes that it cannot send now, or is about to be written to:
        its text is collected. Gives how often its socket was written to."""

    def release(self, client: int, socket: int | None = None) -> None:
        """All that `drain` gave for the client is sent: what was collected comes, one piece for each stream.

        socket: the number of the connection's socket, which does not block. Its text is then written there at
        once, until `drain` gives something else for it, or `hold`.
        """

    def disconnect(self, client: int) -> None:
        """Whatever still comes for the client, its socket is no longer written to."""

    def shutdown(self, drain_seconds: float) -> None:
        """Refuse new streams, drain every worker for at most so long, end all workers. Blocks."""

@final
class Engine:
    """An engine opened in this process."""

    def __new__(cls, path: str, options: str = "{}", packaged: str = "[]") -> Engine:
        """`path`: folder of a manifest.json. `packaged`: libraries that packages bring, of
        `rust/node/src/registry/surroundings.rs`. Raises `Fault`."""

    id: str
    version: str
    gpu_backend: str
    extensions: list[str]
    def load(self, path: str, options: str = "{}") -> Model: ...
    def close(self) -> None: ...

@final
class Model:
    """A model loaded in this process, with its scheduler on a thread of its own."""

    def facts(self) -> str:
        """JSON of `ModelFacts`."""

    def generate(self, request: str) -> Stream: ...
    def ask(self, question: str) -> str: ...
    def close(self) -> None: ...

@final
class Stream(Iterator[Event]):
    """The events of one request. Blocks in `next` with the GIL released."""

    def __next__(self) -> Event: ...
    def cancel(self) -> None: ...
