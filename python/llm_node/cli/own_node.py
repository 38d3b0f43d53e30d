"""A node inside this process, made of the settings: to serve, to chat, or to look something up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from llm_node import demo
from llm_node.cli import failure, startup
from llm_node.node import Node, NodeError
from llm_node.settings import Settings

T = TypeVar("T")


def make(settings: Settings, *, needs_device: bool) -> Node:
    """The node of these settings, not started yet. A path that leads nowhere ends the command."""
    startup.check(settings)
    return Node(
        engines_dirs=settings.engines_dir,
        engine_packages=settings.engine_packages,
        models_dir=settings.models_dir,
        caches=settings.cache_folders(),
        demo_model=_demo_model() if settings.demo_model else None,
        default_model=settings.default_model,
        aliases=dict(settings.alias),
        chat_templates={model: _template(given) for model, given in settings.chat_template},
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
        tool_syntax=dict(settings.tool_syntax),
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
        async with make(settings, needs_device=False) as started:
            return await question(started)

    try:
        return asyncio.run(ask())
    except NodeError as fault:
        raise failure.of(fault) from None


def _template(given: str) -> str:
    """What stands in the file; or the name of a template that is built in."""
    path = Path(given).expanduser()
    if "." not in path.name and len(path.parts) == 1 and not path.is_file():
        return given
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"--chat-template: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.ClickException(f"--chat-template: {path}: it is no text in UTF-8") from None


def _demo_model() -> Path | None:
    path = demo.path()
    return path if path.is_file() else None
