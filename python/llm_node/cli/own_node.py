"""A node inside this process, made of the settings: to serve, to chat, or to look something up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from llm_node.cli import failure, startup
from llm_node.node import Node, NodeError
from llm_node.settings import Settings, SettingsError

T = TypeVar("T")


def make(settings: Settings, *, needs_device: bool) -> Node:
    """The node of these settings, not started yet. A path that leads nowhere ends the command."""
    startup.check(settings)
    try:
        return Node(settings, needs_device=needs_device)
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def look_up(settings: Settings, question: Callable[[Node], Awaitable[T]]) -> T:
    """What a node of these settings answers. It needs no device, and lives for the question alone."""

    async def ask() -> T:
        async with make(settings, needs_device=False) as started:
            return await question(started)

    try:
        return asyncio.run(ask())
    except NodeError as fault:
        raise failure.of(fault) from None
