"""The settings as options of a command: made from `settings.py`, so that none is written twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from llm_node import demo
from llm_node.cli import startup
from llm_node.node import Node, NodeError
from llm_node.settings import ALL, Settings, SettingsError

Given = str | tuple[str, ...] | None
"""What click hands over for one setting."""

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")


def settings_options(function: Command) -> Command:
    """Add an option for each setting."""
    for setting in reversed(ALL):
        function = click.option(
            setting.flag,
            setting.name,
            metavar=setting.metavar,
            multiple=setting.many,
            help=f"{setting.help} [{setting.environment}; default: {setting.shown_default}]",
        )(function)
    return function


def settings(*given: dict[str, Given]) -> Settings:
    """The settings, of which the last `given` wins. A wrong one ends the command with its reason."""
    texts: dict[str, tuple[str, ...]] = {}
    for each in given:
        for name, value in each.items():
            if value:
                texts[name] = (value,) if isinstance(value, str) else value
    try:
        found = Settings.load(texts)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    startup.check(found)
    return found


def node(settings: Settings, *, needs_device: bool) -> Node:
    """The node of these settings, not started yet."""
    return Node(
        engines_dirs=settings.engines_dir,
        models_dir=settings.models_dir,
        demo_model=_demo_model() if settings.demo_model else None,
        default_model=settings.default_model,
        aliases=dict(settings.alias),
        gpu_backend=settings.gpu_backend,
        vram_limit=settings.vram_limit,
        context_length=settings.context_length,
        max_sequences=settings.max_sequences,
        cache_tokens=settings.cache_tokens,
        threads=settings.threads,
        queue_limit=settings.queue_limit,
        target_step_ms=settings.target_step_ms,
        prefix_cache=settings.prefix_cache,
        step_timeout=settings.step_timeout,
        speculation=settings.speculation,
        draft_model=settings.draft_model,
        engine_options=dict(settings.engine_option),
        engine_env=settings.engine_env,
        load_timeout=settings.load_timeout,
        drain_timeout=settings.drain_timeout,
        monitor_interval=settings.monitor_interval / 1000,
        log_level=settings.log_level,
        needs_device=needs_device,
    )


def look_up(settings: Settings, question: Callable[[Node], Awaitable[T]]) -> T:
    """What a node of these settings answers. It needs no device, and lives for the question alone."""

    async def ask() -> T:
        async with node(settings, needs_device=False) as started:
            return await question(started)

    try:
        return asyncio.run(ask())
    except NodeError as fault:
        raise click.ClickException(fault.message) from None


def _demo_model() -> Path | None:
    path = demo.path()
    return path if path.is_file() else None
