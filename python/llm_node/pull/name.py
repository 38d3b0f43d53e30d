"""What was typed to get a model: a repository of the hub, or a link to one file. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from llm_node.node import NodeError

HUB_HOSTS = ("huggingface.co", "hf.co", "www.huggingface.co")
GGUF = ".gguf"

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_REPOSITORY = re.compile(rf"(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[\w./-]{{1,200}}))?", re.ASCII)
_VERSION = re.compile(r"[\w./+-]{1,400}")
_STEM = re.compile(r"[A-Za-z0-9_][\w.+-]{0,200}")
_FILE = re.compile(r"(?:/|\.\.?[/\\]|~|[A-Za-z]:[/\\])|[^/:]*\.gguf$", re.IGNORECASE)
"""A path of this machine, and no name."""
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class HubName:
    """A repository of the hub."""

    repository: str
    """`ORG/REPO`."""
    version: str | None = None
    """A quantisation such as `Q4_K_M`, or the path of a file; None: the one that fits."""
    revision: str | None = None
    """A branch, a tag or a commit; None: the main branch."""


@dataclass(frozen=True)
class Link:
    """One GGUF file, by its URL."""

    url: str
    name: str
    """What the model is called: the file's name without its extension."""
    sha256: str | None = None


def read(text: str, sha256: str | None = None) -> HubName | Link:
    """The source that is meant. Raises `NodeError` (`invalid_request`)."""
    typed = text.strip()
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise _wrong("sha256: expected 64 hexadecimal digits", "sha256")
    scheme, _, rest = typed.partition("://")
    if not rest and _FILE.match(typed):
        raise _wrong(
            f"{typed[:200]!r} looks like a file of this machine, and models are called by their names: put "
            "it or a link to it into the models folder (`~/.llm-node/models`), or name its folder with "
            "--models-dir; `llm-node list` then shows what it is called",
            "model",
        )
    if not rest:
        host, _, path = typed.partition("/")
        return _hub_name(path if host.lower() in HUB_HOSTS else typed, text)
    if scheme.lower() == "hf":
        return _hub_name(rest, text)
    if scheme.lower() not in ("http", "https"):
        raise _no_source(text)
    try:
        parts = urlsplit(typed)
    except ValueError:
        raise _no_source(text) from None
    if (parts.hostname or "") in HUB_HOSTS:
        return _hub_name(unquote(parts.path.strip("/")), text)
    return _link(typed, sha256, text)


def _hub_name(path: str, typed: str) -> HubName:
    """`ORG/REPO[@REVISION][:VERSION]`, in either order, or the path of a page of the hub."""
    pieces = path.strip("/").split("/")
    if len(pieces) > 3 and pieces[2] in ("blob", "resolve", "tree", "raw"):
        file = "/".join(pieces[4:])
        return HubName("/".join(pieces[:2]), file or None, pieces[3])
    head, _, version = path.partition(":")
    if "@" in version:
        version, _, revision = version.partition("@")
        head = f"{head}@{revision}"
    match = _REPOSITORY.fullmatch(head)
    if match is None or (version and not _VERSION.fullmatch(version)) or ".." in version:
        raise _no_source(typed)
    return HubName(match["repository"], version or None, match["revision"])


def _link(url: str, sha256: str | None, typed: str) -> Link:
    url, _, fragment = url.partition("#")
    if fragment.startswith("sha256="):
        sha256 = fragment.removeprefix("sha256=")
        if not _SHA256.fullmatch(sha256):
            raise _wrong("#sha256=: expected 64 hexadecimal digits", "model")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        raise _no_source(typed) from None
    file = unquote(parts.path).rpartition("/")[2]
    stem = file[: -len(GGUF)]
    if not host or not file.lower().endswith(GGUF) or not _STEM.fullmatch(stem):
        raise _no_source(typed)
    if parts.scheme == "http" and sha256 is None and not _is_loopback(host):
        raise _wrong(
            "over plain http anybody on the way can change the file: use https, or name what it must be with "
            "--sha256",
            "model",
        )
    return Link(url, stem, None if sha256 is None else sha256.lower())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _wrong(message: str, param: str) -> NodeError:
    return NodeError("invalid_request", message, param)


def _no_source(typed: str) -> NodeError:
    return _wrong(
        f"{typed[:200]!r} is neither a repository of the hub (ORG/REPO, ORG/REPO:Q4_K_M, ORG/REPO:FILE.gguf, "
        "each with @REVISION) nor a link that ends in .gguf; `llm-node search WORDS` looks for repositories",
        "model",
    )
