"""The page at `/`: for browsers. Who asks for no HTML there gets what Ollama's clients expect.

Everything that it needs is served here, under a folder whose name changes with any of the files; so a browser
keeps them for good, and never has some of one version and some of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aiohttp import web

FOLDER = Path(__file__).resolve().parents[1] / "web"
INDEX = "index.html"
NEEDED = "vendor/preact.js"
"""Made by `tools/vendor_web.py`; without it there is no page."""
ASSETS = "/web"

TYPES: Mapping[str, str] = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
"""What the page may do: ask this node. Nothing from elsewhere is loaded, and no text becomes a script."""

NO_PAGE = "This node was built without its web page. The API is under /v1; see the docs of llm-node.\n"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class _Page:
    index: bytes
    version: str
    files: Mapping[str, tuple[bytes, str]]
    """Of each name, content and type."""


def is_built() -> bool:
    """Are the libraries there that it needs?"""
    return (FOLDER / NEEDED).is_file()


def routes(otherwise: Handler, *, has_page: bool) -> list[web.RouteDef]:
    """All routes of the page. `otherwise` answers who asks for no HTML; without a page, everybody."""
    if not has_page:
        return [web.get("/", otherwise)]

    async def root(request: web.Request) -> web.StreamResponse:
        if "text/html" not in request.headers.get("Accept", ""):
            return await otherwise(request)
        return _index()

    return [web.get("/", root), web.get(ASSETS + "/{version}/{name:.+}", asset)]


def _index() -> web.Response:
    page = _page()
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "Vary": "Accept"}
    if page is None:
        return web.Response(text=NO_PAGE, headers=headers)
    return web.Response(body=page.index, content_type="text/html", charset="utf-8", headers=headers)


async def asset(request: web.Request) -> web.Response:
    """One file of the page, of the version that is served."""
    page = _page()
    name, version = request.match_info["name"], request.match_info["version"]
    if page is None or version != page.version or name not in page.files:
        raise web.HTTPNotFound
    content, kind = page.files[name]
    response = web.Response(
        body=content,
        content_type=kind,
        charset="utf-8",
        headers={"Cache-Control": "public, max-age=31536000, immutable", "Content-Security-Policy": POLICY},
    )
    response.enable_compression()
    return response


@cache
def _page() -> _Page | None:
    """All of it, from the package; None: it was built without."""
    if not is_built():
        return None
    files = {
        path.relative_to(FOLDER).as_posix(): (path.read_bytes(), TYPES[path.suffix])
        for path in sorted(FOLDER.rglob("*"))
        if path.suffix in TYPES
    }
    index = (FOLDER / INDEX).read_text(encoding="utf-8")
    digest = hashlib.sha256(index.encode())
    for name, (content, _) in files.items():
        digest.update(name.encode() + content)
    version = digest.hexdigest()[:16]
    # Relative, for proxies that serve the node below a path of theirs.
    index = index.replace("{assets}", f"{ASSETS.removeprefix('/')}/{version}")
    return _Page(index.encode(), version, files)
