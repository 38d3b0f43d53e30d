"""The process that speaks to the Hugging Face hub, with the hub's own client and nothing of ours.

That client blocks and cannot be cancelled; a process can. Requests come as lines of JSON on standard input,
answers go as lines of JSON to standard output, and the process ends when its input does. Names, tokens,
endpoints, proxies and Xet are the client's business, and are read by it from the environment.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from queue import Queue
from typing import Any

Answer = dict[str, Any]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""As in `files.py`: nothing of the package is imported here."""

CHUNK_BYTES = 1 << 20
"""After so many bytes a transfer says how far it is."""


class _Refused(Exception):
    """What the hub or the disk said no to, as an error of the node's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def info(repository: str, revision: str | None = None) -> Answer:
    """The commit, and its files with sizes and hashes: of large ones sha256, of all git's own."""
    from huggingface_hub import HfApi

    found = HfApi().model_info(repository, revision=revision, files_metadata=True)
    files = [
        {
            "path": each.rfilename,
            "size": each.size,
            "sha256": each.lfs.sha256 if each.lfs else None,
            "blob_id": each.blob_id,
        }
        for each in found.siblings or ()
    ]
    return {"repository": found.id, "commit": found.sha, "files": files}


def head(repository: str, commit: str, path: str, size: int) -> Answer:
    """So many bytes of a file's beginning."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status

    url = hf_hub_url(repository, path, revision=commit)
    headers = {**build_hf_headers(), "Range": f"bytes=0-{size - 1}"}
    data = bytearray()
    with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes():  # a server that knows no ranges would send all of it
            data += chunk
            if len(data) >= size:
                break
    return {"data": base64.b64encode(bytes(data[:size])).decode()}


def fetch(repository: str, commit: str, path: str, folder: str) -> Answer:
    """One file, into the folder. What is there and whole is not fetched again."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(repository, path, revision=commit, local_dir=folder, tqdm_class=_Progress)
    return {}


def search(words: str, base: str | None, limit: int) -> Answer:
    """Repositories with GGUF files, by downloads; with `base`, those made from that model."""
    from huggingface_hub import HfApi

    wanted = ["gguf", *([f"base_model:quantized:{base}"] if base else [])]
    sort = "trending_score" if not words and not base else "downloads"
    found = HfApi().list_models(
        filter=wanted,
        search=words or None,
        sort=sort,  # type: ignore[arg-type]
        limit=limit,
        expand=["downloads", "gguf", "likes"],
    )
    return {
        "models": [
            {
                "id": each.id,
                "downloads": each.downloads,
                "likes": each.likes,
                "parameters": (each.gguf or {}).get("total"),
            }
            for each in found
        ],
    }


def account() -> Answer:
    """Where the hub is, once it has answered, and what it says of this user's token. Tried once."""
    from huggingface_hub import HfApi, constants, errors, get_session, get_token
    from huggingface_hub.utils._http import hf_raise_for_status

    token = get_token()
    try:
        if token is not None:
            HfApi().whoami(token)
        else:
            hf_raise_for_status(get_session().get(f"{constants.ENDPOINT}/api/models", params={"limit": 1}))
    except errors.HfHubHTTPError as error:
        if token is None or error.response.status_code not in (401, 403):
            raise
        return {"hub": constants.ENDPOINT, "token": "refused"}
    return {"hub": constants.ENDPOINT, "token": "none" if token is None else "valid"}


OPERATIONS: Mapping[str, Callable[..., Answer]] = {
    "info": info,
    "head": head,
    "fetch": fetch,
    "search": search,
    "account": account,
}


class _Progress:
    """Stands where the client would show a bar. Tells how many bytes have come."""

    def __init__(self, *_: Any, total: float | None = None, initial: float = 0, **__: Any) -> None:
        self.total = total
        self.n = initial
        self.format_dict: dict[str, Any] = {}
        # Xet has a second bar for what goes over the wire, which has no total at first.
        self._counts = bool(total)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        """So many bytes more."""
        self.n += n or 0
        if self._counts:
            _tell({"bytes": int(self.n)})

    def __getattr__(self, name: str) -> Callable[..., None]:
        """What else a bar can is nobody's business here."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


_writing = threading.Lock()


def _tell(answer: Answer) -> None:
    with _writing:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _refusal(error: BaseException) -> _Refused:
    """By the client's exception classes, also where one stands behind another."""
    from httpx2 import HTTPError, InvalidURL, TransportError
    from huggingface_hub import errors

    chain = list(_causes(error))
    for each in chain:
        text = _plain(each)
        match each:
            case errors.GatedRepoError():
                return _Refused("gated_model", text)
            case errors.RepositoryNotFoundError() | errors.RevisionNotFoundError():
                return _Refused("model_not_found", text)
            case errors.RemoteEntryNotFoundError():
                return _Refused("model_not_found", text)
            case errors.OfflineModeIsEnabled():
                return _Refused("offline", text)
            case errors.HFValidationError():
                return _Refused("invalid_request", text)
            case errors.HfHubHTTPError() if each.response.status_code == 429:
                return _Refused("source_busy", text)
            case TransportError():
                return _Refused("source_unreachable", _unreachable(text))
            case errors.HfHubHTTPError() | HTTPError() | InvalidURL():
                return _Refused("source_unreachable", text)
            case OSError() if each.errno in FULL:
                return _Refused("disk_full", text)
            case OSError() if "Consistency check failed" in str(each):
                return _Refused("source_unreachable", text)
    return _Refused("source_unreachable", f"{type(error).__name__}: {_plain(error)}")


def _unreachable(reason: str) -> str:
    from huggingface_hub import constants

    words = re.sub(r"^\[Errno -?\d+\] ", "", reason)
    return (
        f"{constants.ENDPOINT} cannot be reached: {words}. Look at the network and its proxy (HTTPS_PROXY), "
        "or name another hub by HF_ENDPOINT"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _plain(error: BaseException) -> str:
    """Its first words; the client adds advice for its own users."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:500] or type(error).__name__


def _listen(requests: Queue[Answer]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)  # whoever asked is gone, whatever is under way


def main() -> None:
    """Answer requests until there are no more."""
    requests: Queue[Answer] = Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
    while True:
        request = requests.get()
        try:
            _tell({"done": OPERATIONS[request.pop("operation")](**request)})
        except Exception as error:
            refused = _refusal(error)
            _tell({"error": refused.code, "message": str(refused)})


if __name__ == "__main__":
    del sys.path[0]  # this folder: `name.py` in it is no module for others
    main()
