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
    """Warn of what counts for nobody: what is said of models that are not there, or by another name than
    their own, and aliases that a model has as its own name. Raises `NodeError` where the node goes down."""
    for name in settings.models:
        own = await _meant(node, name)
        if isinstance(own, NodeError):
            log.warning('[models."%s"] in the settings counts for nobody: %s', name, own.message)
        elif own != name:
            log.warning('[models."%s"] in the settings counts for nobody: the name is "%s"', name, own)
    for alias, name in settings.all_aliases().items():
        meant = await _meant(node, name)
        own = await _meant(node, alias)
        if not isinstance(meant, NodeError):
            if own != meant:
                words = "alias %s of '%s' in the settings counts for nobody: it is a name of '%s' itself"
                log.warning(words, alias, meant, own)
        elif name not in settings.models:
            log.warning("alias %s in the settings: %s", alias, meant.message)
    default = settings.default_model
    if default is not None and isinstance(meant := await _meant(node, default), NodeError):
        log.warning("default_model in the settings: %s", meant.message)


async def _meant(node: Node, name: str) -> str | NodeError:
    """The model that is meant by a name, or that there is none."""
    try:
        return str((await node.model(name))["model_id"])
    except NodeError as fault:
        if fault.code != "model_not_found":
            raise
        return fault


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
