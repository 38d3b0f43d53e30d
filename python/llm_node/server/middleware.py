"""What every request passes: an id, a line in the log, the rules of hosts and origins, and errors in the form
of its path's dialect.

What comes to no route because it is no request at all is answered by `connection.py`, in the plain form.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from llm_node import errors
from llm_node.api.context import ERROR_CODE, ERROR_FORMS, IGNORED, KEY, NODE, REQUEST_ID, TOOK, Took
from llm_node.keys import Keys
from llm_node.node import NodeError
from llm_node.server.access import check, check_is_meant
from llm_node.server.origin import OriginRules

log = logging.getLogger(__name__)
access = logging.getLogger("llm_node.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

KEYS = web.AppKey("KEYS", Keys)
"""Those that requests need; without it none does."""
ORIGIN_RULES = web.AppKey("ORIGIN_RULES", OriginRules)
BEHIND_BALANCER = web.AppKey("BEHIND_BALANCER", bool)

HEADER = "X-Request-Id"
IGNORED_HEADER = "X-LLM-Node-Ignored"
MOST_IGNORED = 1024
"""Characters of that header."""
_ODD = re.compile(r"[^A-Za-z0-9_.#/$~-]")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""For browsers, on every answer."""

OF_STATUS = {
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    417: "expectation_failed",
}
"""aiohttp's own refusals, as codes of ours."""


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id (the client's own, where it sent a plain one), and log how it ended."""
    name_request(request)
    began = time.monotonic()
    status = 499  # the client left
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        log_access(request, status, time.monotonic() - began)


@web.middleware
async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into the table's answer."""
    try:
        return await handler(request)
    except NodeError as fault:
        ERROR_CODE.set(fault.code)
        return answer(errors.reply(fault, _form(request), REQUEST_ID.get()))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return refusal(request, error, _form(request))
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        ERROR_CODE.set("internal")
        log.exception("defect while answering request %s", REQUEST_ID.get())
        return answer(errors.internal(REQUEST_ID.get(), _form(request)))


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let through what is for this node, and from where it may come."""
    rules = request.app.get(ORIGIN_RULES)
    if rules is not None:
        rules.check(request.path, request.headers)
        preflight = rules.preflight(request.method, request.headers)
        if preflight is not None:
            return web.Response(status=204, headers=preflight)
    if request.app.get(BEHIND_BALANCER) and request.transport is not None:
        own_port = request.transport.get_extra_info("sockname")[1]
        check_is_meant(request.method, request.path, request.headers, own_port)
    keys = request.app.get(KEYS)
    if keys is not None:
        key = check(keys, request.method, request.path, request.headers)
        if key is not None:
            request[KEY] = key
    return await handler(request)


def name_request(request: web.BaseRequest) -> str:
    """The request's id, which `REQUEST_ID` has from here on."""
    sent = request.headers.get(HEADER, "")
    request_id = sent if _ID.fullmatch(sent) else secrets.token_hex(16)
    REQUEST_ID.set(request_id)
    TOOK.set(Took())
    ERROR_CODE.set("")
    return request_id


def ignored(request: web.BaseRequest) -> str:
    """The names of what was asked for in vain. A client may have made them up, so only what is plain in a
    header and in a log stays of them."""
    names = ", ".join(_ODD.sub("?", name) for name in request.get(IGNORED, ()))
    return names if len(names) <= MOST_IGNORED else f"{names[: MOST_IGNORED - 3]}..."


def log_access(request: web.BaseRequest, status: int, seconds: float) -> None:
    """The request's line in the log."""
    names = ignored(request)
    access.info(
        '"%s %s" %d %.3fs %s%s%s%s',
        request.method,
        request.rel_url.raw_path,
        status,
        seconds,
        REQUEST_ID.get(),
        f" {ERROR_CODE.get()}" if ERROR_CODE.get() else "",
        TOOK.get(),
        f" ignored: {names}" if names else "",
    )


def _form(request: web.Request) -> errors.Form:
    return request.app[ERROR_FORMS].of(request.path)


def refusal(
    request: web.BaseRequest, error: web.HTTPException, form: errors.Form = errors.PLAIN
) -> web.Response:
    """aiohttp's own refusal, as the table has it."""
    code = OF_STATUS.get(error.status, "invalid_request")
    message = {
        "not_found": f"No such route: {request.method} {request.path}",
        "method_not_allowed": f"{request.path} does not know {request.method}",
        "request_too_large": f"The body is larger than {request.client_max_size} bytes (--max-body)",
        "expectation_failed": "Of what a client may expect, only 100-continue is understood",
    }.get(code, error.text or error.reason)
    response = answer(errors.reply(NodeError(code, message), form, REQUEST_ID.get()))
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return response


def answer(reply: errors.Reply) -> web.Response:
    """An error as a response."""
    return web.json_response(reply.body, status=reply.status, headers=reply.headers)


async def complete_headers(request: web.Request, response: web.StreamResponse) -> None:
    """What the headers of every answer have, streams too."""
    response.headers[HEADER] = REQUEST_ID.get()
    own_header = _form(request).id_header
    if own_header is not None:
        response.headers[own_header] = REQUEST_ID.get()
    response.headers.update(SAFE_HEADERS)
    names = ignored(request)
    if names:
        response.headers[IGNORED_HEADER] = names
    rules = request.app.get(ORIGIN_RULES)
    if rules is not None:
        response.headers.update(rules.cors(request.headers))
    node = request.app.get(NODE)
    if node is not None and not node.is_ready:  # going down: what comes next is for another node
        response.force_close()
        response.headers["Connection"] = "close"


ALL = (identify, explain, guard)
