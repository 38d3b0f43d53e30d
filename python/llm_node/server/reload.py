"""What a node reads again on SIGHUP: settings, keys, certificate, engines. All of it, or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from llm_node.api.context import NODE
from llm_node.keys import Keys, KeysError
from llm_node.node import Node, NodeError
from llm_node.server.middleware import KEYS
from llm_node.server.tls import Tls, TlsError
from llm_node.settings import Settings, SettingsError

log = logging.getLogger(__name__)


async def name_strangers(node: Node, settings: Settings) -> None:
    """Warn of what is said of models that are not there, or by another name than their own: it counts for
    nobody. Raises `NodeError` where the node goes down."""
    for name in settings.models:
        try:
            own = str((await node.model(name))["model_id"])
        except NodeError as fault:
            if fault.code != "model_not_found":
                raise
            log.warning('[models."%s"] in the settings counts for nobody: %s', name, fault.message)
            continue
        if own != name:
            log.warning('[models."%s"] in the settings counts for nobody: the name is "%s"', name, own)
    named = [(f"alias {alias}", model) for alias, model in settings.alias]
    if settings.default_model is not None:
        named.append(("default_model", settings.default_model))
    for said, name in named:
        try:
            await node.model(name)
        except NodeError as fault:
            if fault.code != "model_not_found":
                raise
            log.warning("%s in the settings: %s", said, fault.message)


class Reload:
    """Does so for one application."""

    def __init__(
        self,
        app: web.Application,
        settings: Settings,
        own_key: str,
        read: Callable[[], Settings],
        tls: Tls | None,
    ) -> None:
        """`settings`: those of the application. `read`: where they came from. `tls`: of the listener."""
        self._app = app
        self._settings = settings
        self._own_key = own_key
        self._read = read
        self._tls = tls

    async def again(self) -> None:
        """Read all, take it over, and say in the log what is another. Never raises for what is wrong."""
        node = self._app[NODE]
        try:
            found = await asyncio.to_thread(self._read)
            keys = await asyncio.to_thread(self._keys)
            tls = None if self._tls is None else await asyncio.to_thread(self._tls.read)
            settings = self._settings.reloaded(found)
            await node.reconfigure(settings)
        except (SettingsError, KeysError, TlsError, NodeError) as error:
            log.error("what was read again is of no use, and nothing is changed: %s", error)
            return
        changes = self._settings.changes(found)
        if keys is not None:
            changes += self._app[KEYS].become(keys)
        if self._tls is not None and tls is not None:
            changes += self._tls.become(tls)
        self._settings = settings
        log.info("read again: %s", "; ".join(changes) or "nothing is another")
        try:
            await node.engines(refresh=True)
            await name_strangers(node, settings)
        except NodeError as fault:
            log.warning("engines and models are not looked for again: %s", fault.message)

    def _keys(self) -> Keys | None:
        file = self._settings.api_key_file
        return None if file is None else Keys.read(file).with_own(self._own_key)
