"""How the text of a setting becomes its value. Pure: each function takes the text of one value, and raises
`ValueError` saying what was expected.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

PREFIX = "LLM_NODE_"
LATEST = ":latest"
"""What some clients write behind a name; it means the same model."""
TOOL_SYNTAXES = (
    "harmony",
    "atem",
    "kimi_k3",
    "llama3",
    "functionary",
    "lfm2",
    "granite3",
    "functools",
    "hermes",
    "pythonic",
    "off",
)
"""How models write calls, beside what their chat templates tell: `rust/core/src/chat/families`."""

ALL_MODELS = "*"
"""In a setting for each model: those that are not named."""


def path(text: str) -> Path:
    if not text.strip():
        raise ValueError("expected a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("expected a path in a home folder that exists") from None


def address(text: str) -> str:
    """An address or a name to listen on; one of IPv6 also as it stands in a URL."""
    word = text.strip()
    if word.startswith("[") and word.endswith("]"):
        word = word[1:-1]
    if any(character.isspace() or character in "[]/" for character in word) or not _is_name(word):
        raise ValueError("expected a name or an address")
    return word


def _is_name(word: str) -> bool:
    """Can it be asked for? A label of a name may be neither empty nor longer than 63 letters."""
    try:
        return bool(word.encode("idna"))
    except UnicodeError:
        return False


_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.ASCII)
_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?", re.ASCII)


def host_name(text: str) -> str:
    """A name as it stands in a request's `Host`, without its port."""
    name = text.strip().lower().removesuffix(".")
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise ValueError("expected the name of a host, without scheme and port")
    return name


def origin(text: str) -> str:
    """A web page's origin, as browsers write it."""
    match = _ORIGIN.fullmatch(text.strip().lower())
    if not match:
        raise ValueError("expected an origin such as https://chat.example.com or http://localhost:5173")
    scheme, host, port = match.groups()
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ValueError("expected an origin with an IPv6 address that is one") from None
    usual = {"http": "80", "https": "443"}[scheme]
    return f"{scheme}://{host}" if port in (None, usual) else f"{scheme}://{host}:{port}"


def node_url(text: str) -> str:
    """Where a node is: its origin, without a path."""
    try:
        found = origin(text.strip().rstrip("/"))
    except ValueError:
        found = ""
    if not _is_name(urlsplit(found).hostname or ""):
        raise ValueError("expected the URL of a node, such as http://127.0.0.1:3000")
    return found


def key_and_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ValueError("expected KEY=VALUE")
    return key.strip(), value.strip()


def secret(text: str) -> str:
    if not text.strip() or not text.isascii() or not text.isprintable():
        raise ValueError("expected an API key")
    return text.strip()


def model_name(text: str) -> str:
    name = text.strip()
    if not name:
        raise ValueError("expected the name of a model")
    return name


def layers(text: str) -> int:
    if not re.fullmatch(r"-1|[0-9]{1,9}", text.strip()):
        raise ValueError("expected a number of layers, or -1 for all")
    return int(text)


def replicas(text: str) -> int:
    if not text.strip().isdecimal() or not 1 <= int(text) <= MOST_REPLICAS:
        raise ValueError(f"expected a number from 1 to {MOST_REPLICAS}")
    return int(text)


def devices(value: object) -> int | list[int | str]:
    """How many GPUs, or which: by number, or by what NVML calls them."""

    def is_number(it: object) -> bool:
        return isinstance(it, int) and not isinstance(it, bool) and 0 <= it <= MOST_DEVICES

    def is_name(it: object) -> bool:
        return is_number(it) or (isinstance(it, str) and bool(it.strip()))

    if isinstance(value, int) and is_number(value) and value > 0:
        return value
    if isinstance(value, list) and value and all(map(is_name, value)):
        return value
    raise ValueError('expected how many GPUs, or a list of which, such as ["GPU-7f3a"] or [0]')


def printable(name: str) -> str:
    """The name of a model; refuses one that cannot be shown as it is."""
    if not name.isprintable():
        raise ValueError("expected a name without control characters")
    return name


def alias(text: str) -> tuple[str, str]:
    name, sign, model = (part.strip() for part in text.partition("="))
    if not (name and sign and model):
        raise ValueError("expected NAME=MODEL")
    return printable(name), model


def check_aliases(aliases: Iterable[tuple[str, str]]) -> None:
    models: dict[str, str] = {}
    for name, model in aliases:
        if models.setdefault(name.removesuffix(LATEST), model) != model:
            raise ValueError(f"expected one model for {name!r}")


def chat_template(text: str) -> tuple[str, str]:
    model, sign, template = (part.strip() for part in text.partition("="))
    if not (model and sign and template):
        raise ValueError("expected MODEL=FILE")
    return model, template


def tool_syntax(text: str) -> tuple[str, str]:
    """A model, or `ALL_MODELS`, and how it writes calls."""
    model, sign, name = (part.strip() for part in text.rpartition("="))
    if name not in TOOL_SYNTAXES or (sign and not model):
        raise ValueError(f"expected NAME or MODEL=NAME with one of {', '.join(TOOL_SYNTAXES)}")
    return model or ALL_MODELS, name


def variable(text: str) -> str:
    name = text.strip()
    if not name or "=" in name or "\0" in name:
        raise ValueError("expected the name of a variable, without a value")
    if name.upper().startswith(PREFIX):
        raise ValueError("expected a variable that is no setting of the node")
    return name


def one_of(words: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return text.lower()

    return parse


def yes_or_no(text: str) -> bool:
    words = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    if text.lower() not in words:
        raise ValueError("expected true or false")
    return words[text.lower()]


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        digits = text.strip()
        if not re.fullmatch(r"[0-9]{1,12}", digits) or not low <= int(digits) <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return int(digits)

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"expected seconds from {low:g} to {high:g}")
        return value

    return parse


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)", re.ASCII)
LONGEST_KEEP_ALIVE = 1e9
"""Seconds: some thirty years."""
MOST_TOKENS = 2**31 - 1
"""Of a context, and of an answer."""
MOST_REPLICAS = 64
MOST_DEVICES = 1024


def keep_alive(text: str) -> float:
    """Seconds from "30m", "1h30m" or "90"; -1: for ever."""
    found = text.strip().lower()
    if re.fullmatch(r"-1(\.0)?", found):
        return -1.0
    parts = _TIME.findall(found)
    seconds = sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)
    if not parts or "".join(map("".join, parts)) != found or seconds > LONGEST_KEEP_ALIVE:
        raise ValueError("expected a time such as 30m, 1h30m or a number of seconds, or -1 for ever")
    return seconds


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes from "8G", "512M", "1.5 GiB" or "8589934592". Units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    value = 0
    if match and len(match[1]) <= 20:
        value = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if not 0 < value < 2**63:
        raise ValueError("expected a size above 0 such as 8G, 512M or a number of bytes")
    return value


def limits(text: str) -> int | dict[str, int]:
    """Bytes of each device, or of some as in "GPU-7f3a=8G,1=512M": by number, by id, or by its beginning."""
    if "=" not in text:
        return parse_size(text)
    limits: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if not name or name in limits:
            raise ValueError("expected each device once, as in GPU-7f3a=8G,1=512M")
        limits[name] = parse_size(size)
    return limits


def size_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else parse_size(text)
