"""What every request passes: an id, a line in the log, and errors in the one form that they have."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable

from aiohttp import web

from llm_node import errors
from llm_node.api.context import ERROR_CODE, REQUEST_ID
from llm_node.node import NodeError

log = logging.getLogger(__name__)
access = logging.getLogger("llm_node.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADER = "X-Request-Id"
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

OF_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
"""aiohttp's own refusals, as codes of ours."""


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id (the client's own, where it sent a plain one), and log how it ended."""
    sent = request.headers.get(HEADER, "")
    request_id = sent if _ID.fullmatch(sent) else uuid.uuid4().hex
    REQUEST_ID.set(request_id)
    ERROR_CODE.set("")
    began = time.monotonic()
    status = 499  # the client left
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        access.info(
            '"%s %s" %d %.3fs %s%s',
            request.method,
            request.rel_url.raw_path,
            status,
            time.monotonic() - began,
            request_id,
            f" {ERROR_CODE.get()}" if ERROR_CODE.get() else "",
        )


@web.middleware
async def explain(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into the table's answer."""
    try:
        return await handler(request)
    except NodeError as fault:
        ERROR_CODE.set(fault.code)
        return _answer(errors.reply(fault))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _refusal(request, error)
    except (asyncio.CancelledError, ConnectionError):
        raise
    except Exception:
        ERROR_CODE.set("internal")
        log.exception("defect while answering request %s", REQUEST_ID.get())
        return _answer(errors.internal(REQUEST_ID.get()))


def _refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    code = OF_STATUS.get(error.status, "invalid_request")
    message = {
        "not_found": f"No such route: {request.method} {request.path}",
        "method_not_allowed": f"{request.path} does not know {request.method}",
    }.get(code, error.text or error.reason)
    response = _answer(errors.reply(NodeError(code, message)))
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    return response


def _answer(reply: errors.Reply) -> web.Response:
    return web.json_response(reply.body, status=reply.status, headers=reply.headers)


async def name_the_request(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer carries the id of its request, streams too."""
    response.headers[HEADER] = REQUEST_ID.get()


ALL = (identify, explain)
