"""Every setting of the node, each written once: name, flag, variable, default, help.

Command line over environment over file over default; what nobody knows is an error that names its
neighbours. This is the only reader of the environment, and it knows nothing of the rest of the
package. `docs/settings.md` and the options of the command line are made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_node import files
from llm_node import settings_values as values

NOT_SETTINGS = frozenset({"LLM_NODE_WORKER_SECRET"})
"""Variables of ours that the node passes to its own children."""

CONFIG_FILE = "config.toml"
"""In the home."""

SPECULATION = ("off", "lookup")
UNKNOWN_FIELDS = ("refuse", "ignore")
BACKENDS = ("auto", "cuda", "metal", "vulkan", "rocm", "cpu")
CACHES = ("hub", "llama-cpp", "lm-studio", "ollama")
"""Programs whose models are offered where they lie, in the order in which they are looked through."""
NO_CACHES = "none"
LOG_LEVELS = ("debug", "info", "warning", "error")


class SettingsError(ValueError):
    """A setting is unknown, or its value is of no use. The message names where it came from."""


class SettingsFileError(SettingsError):
    """The same of the settings file. Without it, what was said elsewhere is right."""


Scope = Literal["server", "node", "model"]
"""Whom a setting is for: HTTP and the command line, the node, or how each model is loaded."""


@dataclass(frozen=True)
class Setting:
    """One row: how a setting is called, read and explained."""

    name: str
    """In the file, and in Python."""
    flag: str
    environment: str
    metavar: str
    help: str
    shown_default: str
    parse: Callable[[str], Any]
    """From the text of one value; raises ValueError saying what was expected."""
    many: bool
    """Several values: a repeated flag, a list in the file, separated as in PATH in the environment."""
    commas: bool
    """Several values that are separated by commas wherever they stand, since they may contain colons."""
    in_file: bool
    scope: Scope
    key: str
    """In the configuration of the node, or of a model, that the core reads."""
    reloads: bool
    """Is it taken over when a node that runs reads its settings again?"""


# ---- the settings --------------------------------------------------------------------------------


def _home() -> Path:
    try:
        return Path.home() / ".llm-node"
    except RuntimeError:
        raise SettingsError("this user has no home folder: set HOME, or name a folder with --home") from None


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be looked for: {error.strerror}. Set HOME to a folder that this user may read, "
            "or name one with --home"
        ) from None
    return True


def _engines(home: Path) -> tuple[Path, ...]:
    return (home / "engines",)


def _models(home: Path) -> Path:
    return home / "models"


def _setting(
    default: Any,
    parse: Callable[[str], Any],
    text: str,
    *,
    metavar: str,
    flag: str | None = None,
    environment: str | None = None,
    shown: str | None = None,
    many: bool = False,
    commas: bool = False,
    in_file: bool = True,
    below_home: Callable[[Path], Any] | None = None,
    scope: Scope = "server",
    key: str | None = None,
    reloads: bool = False,
) -> Any:
    """`below_home`: makes the default from `home`, in place of `default`. `key`: in the core's configuration,
    where it is not the name. `reloads`: as all that is said of models."""
    metadata = {
        "scope": scope,
        "key": key,
        "reloads": reloads or scope == "model",
        "parse": parse,
        "help": text,
        "metavar": metavar,
        "flag": flag,
        "environment": environment,
        "shown": shown,
        "many": many,
        "commas": commas,
        "in_file": in_file,
        "below_home": below_home,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What is said of one model: `[models."NAME"]` in the file."""

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How it is loaded where a load says nothing else; `ModelOptions` of `rust/core/src/options.rs`."""
    aliases: tuple[str, ...] = ()
    warm: bool = False
    """Is it loaded when the node starts?"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one node. `Settings()` has the defaults; `Settings.load()` asks everybody."""

    home: Path = _setting(  # noqa: RUF009
        _home,
        values.path,
        "Folder of everything that is this node's: settings file, engines, models, logs, chat history, and "
        "what loads came to.",
        metavar="DIR",
        shown="~/.llm-node",
        in_file=False,
        scope="node",
    )
    engines_dir: tuple[Path, ...] = _setting(
        None,
        values.path,
        "Folder that holds engines, each in <id>/<gpu_backend>/. May be given several times; the first of an "
        "id wins.",
        metavar="DIR",
        shown="`engines` in --home",
        many=True,
        below_home=_engines,
        scope="node",
        key="engines_dirs",
    )
    engine_packages: bool = _setting(
        True,
        values.yes_or_no,
        "Use the engines that are installed as Python packages too, behind those of --engines-dir.",
        metavar="YES|NO",
    )
    models_dir: Path = _setting(  # noqa: RUF009
        None,
        values.path,
        "Folder that holds models: each NAME.gguf in it, or folder NAME, is one.",
        metavar="DIR",
        shown="`models` in --home",
        below_home=_models,
        scope="node",
    )
    caches: tuple[str, ...] = _setting(
        CACHES,
        values.one_of((*CACHES, NO_CACHES)),
        "Other programs whose models are offered too, from where they lie, and never written to: none, or "
        "some of hub (vLLM, transformers, llama.cpp), llama-cpp, lm-studio, ollama, separated by commas.",
        metavar="NAME",
        shown="all",
        many=True,
        commas=True,
    )
    offline: bool = _setting(
        False,
        values.yes_or_no,
        "Fetch no model and search for none. The node opens no connection outwards for anything else.",
        metavar="YES|NO",
    )
    demo_model: bool = _setting(
        True, values.yes_or_no, "Offer the small chat model that comes with the package.", metavar="YES|NO"
    )
    default_model: str | None = _setting(
        None,
        values.model_name,
        "Model that answers requests which name none, while no model is loaded, or several are.",
        metavar="NAME",
        shown="none",
        reloads=True,
    )
    alias: tuple[tuple[str, str], ...] = _setting(
        (),
        values.alias,
        "A further name of a model, for clients that insist on one of theirs: claude-sonnet=qwen3-8b. "
        "Separated by commas, or given several times.",
        metavar="NAME=MODEL",
        shown="none",
        many=True,
        commas=True,
        scope="node",
        key="aliases",
        reloads=True,
    )
    chat_template: tuple[tuple[str, str], ...] = _setting(
        (),
        values.chat_template,
        "A model's chat template in place of its own, or where it has none: MODEL=FILE, or MODEL=chatml for "
        "the one that is built in. Separated by commas, or given several times.",
        metavar="MODEL=FILE",
        shown="each model's own",
        many=True,
        commas=True,
        reloads=True,
    )
    gpu_backend: str = _setting(
        "auto",
        values.one_of(BACKENDS),
        "Which engines to use. With auto the node needs a GPU; the CPU is only taken where it is chosen.",
        metavar="|".join(BACKENDS),
    )
    vram_limit: int | Mapping[str, int] | None = _setting(
        None,
        values.limits,
        "Most memory that models may take on each device: bytes, or with K, M, G, T (powers of 1024). Or of "
        "some devices, by number or id: `GPU-7f3a=8G,1=512M`.",
        metavar="SIZE|DEVICE=SIZE,...",
        shown="what the device has",
        scope="node",
        key="vram_limit_bytes",
    )
    vram_reserve: int | None = _setting(
        None,
        values.size_or_none,
        "Memory of each device that is left to others: bytes, or with K, M, G, T (powers of 1024).",
        metavar="SIZE",
        shown="of a GPU 256M or 2 %, of the host 1G or 10 %, whichever is more",
        scope="node",
        key="vram_reserve_bytes",
    )
    host: str = _setting(
        "127.0.0.1",
        values.address,
        "Address to listen on. One that other machines reach needs --api-key-file or --allow-open as well.",
        metavar="ADDRESS",
    )
    port: int = _setting(
        3000, values.integer(0, 65535), "Port to listen on; 0 takes a free one.", metavar="PORT"
    )
    listen_fd: int | None = _setting(
        None,
        values.integer(0, 1 << 20),
        "Descriptor of a socket that who starts the node listens on already, in place of --host and --port.",
        metavar="NUMBER",
        shown="none",
        in_file=False,
    )
    exit_with_parent: bool = _setting(
        False,
        values.yes_or_no,
        "Go down, as with SIGTERM, when the process that started the node is gone. Linux only.",
        metavar="YES|NO",
        in_file=False,
    )
    behind_balancer: bool = _setting(
        False,
        values.yes_or_no,
        "The node is one of several behind a load balancer: what tells of one node or changes it is answered "
        "only where `Host` names the node's own port.",
        metavar="YES|NO",
    )
    api_key_file: Path | None = _setting(  # noqa: RUF009
        None,
        values.path,
        "File of the API keys that requests need, each with its scope; `llm-node key new` writes it. With "
        "keys the node may listen where other machines reach it.",
        metavar="FILE",
        shown="none: whoever reaches the node may use it",
    )
    tls_cert: Path | None = _setting(  # noqa: RUF009
        None,
        values.path,
        "File of the certificate for HTTPS, in PEM, with those between it and its authority. With --tls-key.",
        metavar="FILE",
        shown="none: HTTP",
    )
    tls_key: Path | None = _setting(  # noqa: RUF009
        None,
        values.path,
        "File of the certificate's key, in PEM, without a password.",
        metavar="FILE",
        shown="none",
    )
    api_key: str | None = _setting(
        None,
        values.secret,
        "Key that `run`, `list` and other commands send to a node that is named by --node.",
        metavar="KEY",
        shown="none; a node that runs here takes its user's commands",
        in_file=False,
    )
    allow_open: bool = _setting(
        False,
        values.yes_or_no,
        "Listen where other machines reach the node, though it asks nobody for a key: whoever reaches it may "
        "use it, and load and unload models.",
        metavar="YES|NO",
    )
    allow_host: tuple[str, ...] = _setting(
        (),
        values.host_name,
        "Names that requests may have in their Host header, beside addresses, localhost, *.localhost, "
        "*.local and the name of --host. Separated by commas, or given several times.",
        metavar="NAME",
        shown="none",
        many=True,
        commas=True,
    )
    node: str | None = _setting(
        None,
        values.node_url,
        "Node that `run`, `list`, `pull`, `rm`, `stop` and others talk to, such as http://127.0.0.1:3000.",
        metavar="URL",
        shown="the node that runs here, if one does",
    )
    cors_origin: tuple[str, ...] = _setting(
        (),
        values.origin,
        "Origins of web pages that may use the node, such as https://chat.example.com. "
        "Separated by commas, or given several times.",
        metavar="ORIGIN",
        shown="none",
        many=True,
        commas=True,
    )
    web: bool = _setting(True, values.yes_or_no, "Serve the web page at / to browsers.", metavar="YES|NO")
    max_connections: int | None = _setting(
        None,
        values.integer(1, 1_000_000),
        "Connections that may be open at once; further ones get 503.",
        metavar="COUNT",
        shown="what the limit of open files allows, 8192 at most",
    )
    header_timeout: float = _setting(
        10.0,
        values.seconds(0.05, 3600),
        "How long the headers of a request may take, from a connection's beginning or their first byte.",
        metavar="SECONDS",
    )
    transfer_timeout: float = _setting(
        60.0,
        values.seconds(0.05, 3600),
        "How long a body or an answer may stand still on its way.",
        metavar="SECONDS",
    )
    unknown_fields: str | None = _setting(
        None,
        values.one_of(UNKNOWN_FIELDS),
        "What becomes of fields in requests that nobody knows: an error, or ignored and named in the header "
        "`X-LLM-Node-Ignored` and the log.",
        metavar="|".join(UNKNOWN_FIELDS),
        shown="as each API's clients expect it: OpenAI's are refused",
    )
    idle_timeout: float = _setting(
        75.0,
        values.seconds(0.05, 86_400),
        "How long a connection may wait for its next request.",
        metavar="SECONDS",
    )
    context_length: int | None = _setting(
        None,
        values.integer(1, values.MOST_TOKENS),
        "Longest sequence in tokens, where a load names none. A model that takes fewer has its own.",
        metavar="TOKENS",
        shown="the model's own, as far as free memory goes",
        scope="model",
    )
    max_sequences: int | None = _setting(
        None,
        values.integer(1, 4096),
        "Sequences that a model computes at once, where a load names none; as far as its engine goes.",
        metavar="COUNT",
        shown="8 on the CPU, 32 on a device, 64 where the cache is small; fewer where memory is short",
        scope="model",
    )
    cache_tokens: int | None = _setting(
        None,
        values.integer(1, values.MOST_TOKENS),
        "KV cache for all sequences of a model together, where a load names none. A smaller one is shared.",
        metavar="TOKENS",
        shown="what model and free memory give",
        scope="model",
    )
    threads: int = _setting(
        0,
        values.integer(0, 4096),
        "CPU threads of an engine; 0 leaves it to the engine.",
        metavar="COUNT",
        scope="model",
    )
    queue_limit: int = _setting(
        512,
        values.integer(1, 1_000_000),
        "Requests that may wait for one model before new ones get 429.",
        metavar="COUNT",
        scope="node",
    )
    target_step_ms: int = _setting(
        150,
        values.integer(1, 60_000),
        "While answers are under way, prompts may stretch a step of the engine to about this, "
        "and to four times that rather than be read in pieces of fewer than 64 tokens.",
        metavar="MILLISECONDS",
        scope="node",
    )
    prefix_cache: bool = _setting(
        True,
        values.yes_or_no,
        "Keep what the KV cache holds of answers that ended, for prompts that begin alike.",
        metavar="YES|NO",
        scope="node",
        key="keep_prefixes",
    )
    step_timeout: int = _setting(
        600,
        values.integer(0, 86_400),
        "One call of an engine may take so long before its worker is ended: a step, an embedding, a text "
        "to tokenise; with `engine.stream/1` until the next token, at tier 0 a whole answer. 0: for ever.",
        metavar="SECONDS",
        scope="node",
        key="step_timeout_seconds",
    )
    speculation: str = _setting(
        "lookup",
        values.one_of(SPECULATION),
        "Guess tokens ahead where that pays, and verify them in one step. Answers stay what they are. "
        "lookup guesses out of prompt and answer; off never guesses, not with a draft model either.",
        metavar="|".join(SPECULATION),
        scope="model",
    )
    draft_model: Path | None = _setting(  # noqa: RUF009
        None,
        values.path,
        "A smaller model that guesses instead, for all models that are loaded without another wish. "
        "Its vocabulary must be theirs.",
        metavar="FILE",
        shown="none",
        scope="model",
    )
    tool_syntax: tuple[tuple[str, str], ...] = _setting(
        (),
        values.tool_syntax,
        "How models write calls of tools, where a load says nothing: for all of them, or for one as in "
        f"qwen3-8b=hermes. One of {', '.join(values.TOOL_SYNTAXES)}; off means that they have no tools. "
        "Separated by commas, or given several times.",
        metavar="[MODEL=]NAME",
        shown="what each model's chat template tells",
        many=True,
        commas=True,
        reloads=True,
    )
    engine_option: tuple[tuple[str, str], ...] = _setting(
        (),
        values.key_and_value,
        "A setting for the engines. May be given several times. Each engine's page lists what it knows.",
        metavar="KEY=VALUE",
        shown="none",
        many=True,
        scope="model",
        key="options",
    )
    engine_env: tuple[str, ...] = _setting(
        (),
        values.variable,
        "A variable of the environment that engines may see, beside those of devices, libraries, threads. "
        "May be given several times.",
        metavar="NAME",
        shown="none",
        many=True,
        scope="node",
    )
    load_timeout: float = _setting(
        600.0,
        values.seconds(0.1, 86_400),
        "Deadline of a load.",
        metavar="SECONDS",
        scope="node",
        key="load_timeout_seconds",
    )
    max_wait: float = _setting(
        120.0,
        values.seconds(0, 3600),
        "How long a load may wait until models that are not in use have made room for it. One that would "
        "wait longer is refused at once. With 0 no model makes room for another, and what does not fit is "
        "refused at once.",
        metavar="SECONDS",
        scope="node",
        key="max_wait_seconds",
    )
    model_keep_alive: float | None = _setting(
        None,
        values.keep_alive,
        "How long a model stays loaded without being asked anything, where neither a load nor its own "
        "settings say: 30m, 1h30m or seconds; -1 for ever.",
        metavar="TIME",
        shown="until another model needs the room",
        scope="model",
        key="keep_alive",
    )
    drain_timeout: float = _setting(
        8.0,
        values.seconds(0, 3600),
        "How long answers under way may go on after SIGTERM or SIGINT.",
        metavar="SECONDS",
        reloads=True,
    )
    ping_interval: float = _setting(
        15.0,
        values.seconds(0.05, 3600),
        "A silent stream gets an SSE comment this often.",
        metavar="SECONDS",
    )
    monitor_interval: int = _setting(
        1000,
        values.integer(50, 3_600_000),
        "How often the memory of the devices is read.",
        metavar="MILLISECONDS",
        environment="LLM_NODE_MONITOR_INTERVAL_MS",
    )
    max_body: int = _setting(
        16 << 20, values.parse_size, "Largest body of a request, unpacked.", metavar="SIZE", shown="16M"
    )
    log_level: str = _setting(
        "info",
        values.one_of(LOG_LEVELS),
        "Least severity that is logged to stderr.",
        metavar="|".join(LOG_LEVELS),
        scope="node",
    )
    config: Path | None = _setting(  # noqa: RUF009
        None,
        values.path,
        "Settings file (TOML): one key for each setting, named like the flag with underscores.",
        metavar="FILE",
        shown="`config.toml` in --home, where there is one",
        in_file=False,
    )

    models: Mapping[str, ModelSettings] = dataclasses.field(default_factory=dict)
    """What is said of one model, by its own name: `[models."NAME"]` in the file."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            below_home = field.metadata.get("below_home")
            if below_home is not None and getattr(self, field.name) is None:
                object.__setattr__(self, field.name, below_home(self.home))

    def cache_folders(self, environment: Mapping[str, str] | None = None) -> list[tuple[str, Path]]:
        """The folders of the programs in `caches`, each with the program's name: where these look by default,
        or where their own variables say."""
        variables = os.environ if environment is None else environment
        found: list[tuple[str, Path]] = []
        for cache in self.caches:
            for text in _cache_paths(cache, variables):
                try:
                    path = Path(text).expanduser().absolute()
                except RuntimeError:
                    continue  # of a user without a home
                if (cache, path) not in found:
                    found.append((cache, path))
        return found

    @staticmethod
    def file(command_line: Mapping[str, Sequence[str]], environment: Mapping[str, str] | None = None) -> Path:
        """The path of the settings file, which need not be there nor be right. Raises `SettingsError`."""
        variables = os.environ if environment is None else environment
        found = {**_from_environment(variables), **_from_command_line(command_line)}
        return _file(found.get("home"), found.get("config"))

    @classmethod
    def load(
        cls,
        command_line: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        reads_file: bool = True,
    ) -> Settings:
        """Ask the command line, then the environment, the file and the defaults.

        `command_line`: setting name -> the texts given for it. `environment`: that of the process
        where it is None. `reads_file`: False leaves the file out. Raises `SettingsError`; for what is wrong
        in the file, `SettingsFileError`.
        """
        variables = os.environ if environment is None else environment
        found = {**_from_environment(variables), **_from_command_line(command_line or {})}
        path = _file(found.get("home"), found.get("config"))
        if reads_file and ("config" in found or _is_there(path)):
            try:
                in_file = _from_file(path)
            except SettingsError as error:
                raise SettingsFileError(str(error)) from None
            for name, value in in_file.items():
                found.setdefault(name, value)
        return cls(**found)

    def all_aliases(self) -> dict[str, str]:
        """Further names, and the model that each means. `alias` comes over what models' tables say, since the
        command line may have it."""
        first = {alias.removesuffix(values.LATEST) for alias, _ in self.alias}
        own = ((alias, name) for name, model in self.models.items() for alias in model.aliases)
        return {
            **{it: name for it, name in own if it.removesuffix(values.LATEST) not in first},
            **dict(self.alias),
        }

    def node_config(self) -> dict[str, Any]:
        """The part of `NodeConfig` (`rust/node/src/config.rs`) that is settings. Raises `SettingsError` for a
        chat template whose file cannot be read."""

        def of(scope: Scope) -> dict[str, Any]:
            rows = (setting for setting in ALL if setting.scope == scope)
            return {row.key: _as_json(row, getattr(self, row.name)) for row in rows}

        config = of("node")
        config["defaults"] = of("model")
        config["caches"] = [{"origin": origin, "path": str(path)} for origin, path in self.cache_folders()]
        models = {name: dict(model.options) for name, model in self.models.items()}
        for name, syntax in self.tool_syntax:
            said = config["defaults"] if name == values.ALL_MODELS else models.setdefault(name, {})
            said[TOOL_SYNTAX] = syntax
        templates = {
            name: (f'{CHAT_TEMPLATE} in [{MODELS}."{name}"]', model[CHAT_TEMPLATE])
            for name, model in models.items()
            if CHAT_TEMPLATE in model
        }
        templates.update((name, ("--chat-template", template)) for name, template in self.chat_template)
        for name, (source, template) in templates.items():
            models.setdefault(name, {})[CHAT_TEMPLATE] = _template(template, source)
        config["models"] = models
        config["aliases"] = self.all_aliases()
        return config

    def own_file(self) -> Path:
        """The settings file of a node with these settings, which need not be there."""
        return self.config or self.home / CONFIG_FILE

    def reloaded(self, found: Settings) -> Settings:
        """With what a node that runs takes over of settings that were read again."""
        taken = {row.name: getattr(found, row.name) for row in ALL if row.reloads}
        return dataclasses.replace(self, **taken, models=found.models)

    def changes(self, found: Settings) -> list[str]:
        """What differs in settings that were read again, in words."""
        words = []
        for row in ALL:
            before, after = getattr(self, row.name), getattr(found, row.name)
            if before != after:
                rest = "" if row.reloads else ", from the next start on"
                words.append(f"{row.name}: {_shown(before)} -> {_shown(after)}{rest}")
        for name in dict.fromkeys([*self.models, *found.models]):
            own, other = (said(settings.models.get(name)) for settings in (self, found))
            for key in dict.fromkeys([*own, *other]):
                if own.get(key) != other.get(key):
                    rest = ", from the next start on" if key == WARM else ""
                    before, after = _shown(own.get(key)), _shown(other.get(key))
                    words.append(f'{MODELS}."{name}".{key}: {before} -> {after}{rest}')
        return words

    def has_default(self, name: str) -> bool:
        """Is the setting what it is where nobody says anything?"""
        (field,) = (field for field in dataclasses.fields(self) if field.name == name)
        below_home = field.metadata["below_home"]
        if below_home is not None:
            default = below_home(self.home)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        return bool(getattr(self, name) == default)


def said(model: ModelSettings | None) -> dict[str, Any]:
    """All that is said of one model."""
    if model is None:
        return {}
    named = {"aliases": list(model.aliases), WARM: model.warm}
    return {**model.options, **{key: value for key, value in named.items() if value}}


def _shown(value: Any) -> str:
    """A value for a line of the log."""
    if value is None or value in ((), [], {}):
        return "none"
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_plain(each)}" for name, each in value.items())
    if isinstance(value, tuple | list):
        return ", ".join("=".join(each) if isinstance(each, tuple) else str(each) for each in value)
    return str(value).lower() if isinstance(value, bool) else _plain(value)


def _cache_paths(cache: str, variables: Mapping[str, str]) -> list[str]:
    """As each program itself finds its folders."""
    user_cache = variables.get("XDG_CACHE_HOME") or "~/.cache"
    match cache:
        case "hub":
            home = variables.get("HF_HOME") or f"{user_cache}/huggingface"
            return [variables.get("HF_HUB_CACHE") or f"{home}/hub"]
        case "llama-cpp":
            own = variables.get("LLAMA_CACHE")
            return [own] if own else [f"{user_cache}/llama.cpp", "~/Library/Caches/llama.cpp"]
        case "lm-studio":
            return ["~/.lmstudio/models", f"{user_cache}/lm-studio/models"]
        case "ollama":
            own = variables.get("OLLAMA_MODELS")
            return [own] if own else ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]
        case _:
            return []


def _describe(field: dataclasses.Field[Any]) -> Setting:
    metadata = field.metadata
    dashed = field.name.replace("_", "-")
    default = field.default
    shown = metadata["shown"]
    if shown is None:
        shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else _plain(default)
    return Setting(
        name=field.name,
        flag=metadata["flag"] or f"--{dashed}",
        environment=metadata["environment"] or values.PREFIX + field.name.upper(),
        metavar=metadata["metavar"],
        help=metadata["help"],
        shown_default=shown,
        parse=metadata["parse"],
        many=metadata["many"],
        commas=metadata["commas"],
        in_file=metadata["in_file"],
        scope=metadata["scope"],
        key=metadata["key"] or field.name,
        reloads=metadata["reloads"],
    )


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- where values come from ----------------------------------------------------------------------


def _value(setting: Setting, texts: Sequence[str], source: str) -> Any:
    try:
        if setting.commas:
            texts = [part for text in texts for part in text.split(",") if part.strip()]
        if setting.many:
            parsed = tuple(setting.parse(text) for text in texts)
            if setting.parse is values.alias:
                values.check_aliases(parsed)
            return parsed
        return setting.parse(texts[-1])
    except ValueError as error:
        raise SettingsError(f"{source}: {error}, got {', '.join(map(repr, texts))}") from None


def _from_command_line(texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    named = {BY_NAME[name]: given for name, given in texts.items() if given}
    return {setting.name: _value(setting, given, setting.flag) for setting, given in named.items()}


_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


def service_variables(variables: Mapping[str, str] | None = None) -> list[str]:
    """Variables of the environment that look like ours and are not: Kubernetes tells each container where a
    Service is by variables that begin with its name, and it may be called llm-node."""
    found = os.environ if variables is None else variables
    return [
        key for key in sorted(found) if key.startswith(values.PREFIX) and _tells_of_a_service(key, found[key])
    ]


def _tells_of_a_service(key: str, value: str) -> bool:
    return bool(_SERVICE.search(key) or (key.endswith("_PORT") and _LINK.fullmatch(value)))


def cuda_visible_devices(variables: Mapping[str, str] | None = None) -> list[str] | None:
    """The numbers or names of GPUs in the variable that CUDA reads; None: it is not set, and all are seen."""
    given = (os.environ if variables is None else variables).get("CUDA_VISIBLE_DEVICES")
    return None if given is None else [name for part in given.split(",") if (name := part.strip())]


def _from_environment(variables: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    # Windows knows no case in names.
    for key in sorted(variables):
        if not key.upper().startswith(values.PREFIX) or key.upper() in NOT_SETTINGS:
            continue
        if _tells_of_a_service(key, variables[key]):
            continue
        name = key.upper() if sys.platform == "win32" else key
        setting = BY_ENVIRONMENT.get(name)
        if setting is None:
            if (former := name.removeprefix(values.PREFIX).lower()) in RENAMED:
                raise SettingsError(renamed(former, key, _variable_of))
            raise SettingsError(f"unknown variable {key}{near(key, BY_ENVIRONMENT)}")
        text = variables[key]
        paths = setting.many and not setting.commas
        texts = [part for part in text.split(os.pathsep) if part] if paths else [text]
        if text:  # an empty variable is how many tools write "not set"
            found[setting.name] = _value(setting, texts, key)
    return found


def _file(home: Path | None, named: Path | None) -> Path:
    return named or (home or _home()) / CONFIG_FILE


def _from_file(path: Path) -> dict[str, Any]:
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        content: dict[str, Any] = toml.loads(files.read_text(path))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    in_file = {name: setting for name, setting in BY_NAME.items() if setting.in_file}
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key == MODELS:
            found[key] = _models_in(value, path)
            continue
        setting = in_file.get(key)
        if setting is None:
            if key in RENAMED:
                raise SettingsError(f"{path}: {renamed(key, key, lambda name: name)}")
            raise SettingsError(f"unknown setting {key!r} in {path}{near(key, in_file)}")
        items = value if isinstance(value, list) and setting.many else [value]
        if not items or any(not isinstance(item, str | int | float) for item in items):
            raise SettingsError(f"{key} in {path}: expected {setting.metavar}")
        texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
        found[key] = _value(setting, texts, f"{key} in {path}")
    _check_names(found.get("alias", ()), found.get(MODELS, {}), path)
    return found


def _check_names(aliases: Iterable[tuple[str, str]], models: Mapping[str, ModelSettings], path: Path) -> None:
    """No name may mean one model by `alias`, and another by a table."""
    meant = {
        alias.removesuffix(values.LATEST): name for name, model in models.items() for alias in model.aliases
    }
    meant.update((name.removesuffix(values.LATEST), name) for name in models)
    for alias, name in aliases:
        other = meant.get(alias.removesuffix(values.LATEST), name)
        if other != name:
            raise SettingsError(
                f"the alias {alias!r} of '{name}' in {path} is a name of '{other}' already, by a table there"
            )


def _models_in(tables: object, path: Path) -> dict[str, ModelSettings]:
    """The tables `[models."NAME"]`."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise SettingsError(f'{MODELS} in {path}: expected tables [{MODELS}."NAME"], one for each model')
    models = {name: _model_in(table, f'[{MODELS}."{name}"] in {path}') for name, table in tables.items()}
    own = {name.removesuffix(values.LATEST) for name in models}
    names: dict[str, str] = {}
    for name, model in models.items():
        for alias in model.aliases:
            bare = alias.removesuffix(values.LATEST)  # some clients write it behind any name
            if bare in own or names.setdefault(bare, name) != name:
                other = f"'{names[bare]}'" if bare in names else "a model"
                raise SettingsError(f"the alias {alias!r} of '{name}' in {path} is a name of {other} already")
    return models


def _model_in(table: Mapping[str, Any], source: str) -> ModelSettings:
    options: dict[str, Any] = {}
    aliases: tuple[str, ...] = ()
    warm = False
    for key, value in table.items():
        where = f"{key} in {source}"
        if key == "aliases":
            if not isinstance(value, list) or not all(isinstance(alias, str) and alias for alias in value):
                raise SettingsError(f"{where}: expected a list of names")
            try:
                aliases = tuple(values.printable(alias) for alias in value)
            except ValueError as error:
                raise SettingsError(f"{where}: {error}") from None
        elif key == WARM:
            if not isinstance(value, bool):
                raise SettingsError(f"{where}: expected true or false")
            warm = value
        elif key == ENGINE_OPTIONS:
            if not isinstance(value, dict) or not all(_is_plain(it) for it in value.values()):
                raise SettingsError(f"{where}: expected a table of texts, numbers and truth values")
            options[key] = dict(value)
        elif (parse := OF_MODELS.get(key)) is not None:
            try:
                options[key] = _plain_json(parse(value if key == DEVICES else str(value)))
            except ValueError as error:
                raise SettingsError(f"{where}: {error}, got {value!r}") from None
        else:
            raise SettingsError(f"unknown setting {key!r} of {source}{near(key, OF_ONE_MODEL)}")
    return ModelSettings(options=options, aliases=aliases, warm=warm)


def _template(given: str, source: str) -> str:
    """What stands in the file; or the name of a template that is built in. `source`: where it was named."""
    path = Path(given).expanduser()
    if "." not in path.name and len(path.parts) == 1 and not path.is_file():
        return given
    try:
        return files.read_text(path)
    except OSError as error:
        raise SettingsError(f"{source}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{source}: {path}: it is no text in UTF-8") from None


def _as_json(setting: Setting, value: Any) -> Any:
    """As the core reads it: pairs are an object, a path is whole."""
    if setting.many and isinstance(value, tuple) and setting.parse in (values.alias, values.key_and_value):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain_json(item) for item in value]
    return _plain_json(value)


def _is_plain(value: object) -> bool:
    """TOML has numbers that JSON has not."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _plain_json(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else value


def renamed(name: str, shown: str, spelt: Callable[[str], str]) -> str:
    """What is said of a setting's former name. `shown`: as it was given; `spelt`: others in that way."""
    now, other = RENAMED[name]
    return f"{shown} is called {spelt(now)} now; how long a model stays loaded says {spelt(other)}"


def _variable_of(name: str) -> str:
    return BY_NAME[name].environment


def flag_of(name: str) -> str:
    """The flag of a setting, or of one that had that name."""
    return BY_NAME[name].flag if name in BY_NAME else f"--{name.replace('_', '-')}"


def near(word: str, known: Iterable[str]) -> str:
    """Words for an error: which of the known ones may be meant."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(sorted(known))}"


ALL: tuple[Setting, ...] = tuple(_describe(field) for field in dataclasses.fields(Settings) if field.metadata)
BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in ALL}
BY_ENVIRONMENT: Mapping[str, Setting] = {setting.environment: setting for setting in ALL}

RENAMED: Mapping[str, tuple[str, str]] = {"keep_alive": ("ping_interval", "model_keep_alive")}
"""Former names, which are refused: the name now, and what the former one could be taken for."""

MODELS = "models"
"""Of the tables in the file."""
ENGINE_OPTIONS = "options"
WARM = "warm"
CHAT_TEMPLATE = "chat_template"
TOOL_SYNTAX = "tool_syntax"
DEVICES = "devices"
OF_MODELS: Mapping[str, Callable[[Any], Any]] = {
    **{row.key: row.parse for row in ALL if row.scope == "model" and row.key != ENGINE_OPTIONS},
    "engine": values.model_name,
    "gpu_layers": values.layers,
    TOOL_SYNTAX: values.one_of(values.TOOL_SYNTAXES),
    CHAT_TEMPLATE: values.model_name,
    "pin": values.yes_or_no,
    "replicas": values.replicas,
    DEVICES: values.devices,
}
"""What can be said of one model, and how it is read."""
OF_ONE_MODEL = (*OF_MODELS, ENGINE_OPTIONS, "aliases", WARM)

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""Of a line of the log."""


def wants_no_color() -> bool:
    """Did somebody say so for all programs? See no-color.org."""
    return bool(os.environ.get("NO_COLOR"))
