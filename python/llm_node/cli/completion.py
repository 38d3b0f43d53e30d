"""`llm-node completion`: what a shell needs to complete words, and the names of models for it."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print a script that completes the words of this command.

    \b
    bash:  llm-node completion bash >> ~/.bashrc
    zsh:   llm-node completion zsh >> ~/.zshrc
    fish:  llm-node completion fish > ~/.config/fish/completions/llm-node.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"this version of click completes nothing in {shell}")
    click.echo(made(context.find_root().command, {}, "llm-node", "_LLM_NODE_COMPLETE").source())


def models(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names in the models folder that begin so. Only the folder is looked at: no file, and no node."""
    from llm_node import demo
    from llm_node.settings import Settings, SettingsError

    try:
        settings = Settings.load()
        entries = sorted(settings.models_dir.iterdir())
    except (OSError, SettingsError):
        entries = []
    names = [name for entry in entries if not entry.name.startswith(".") for name in _names(entry)]
    return [name for name in [*names, demo.NAME] if name.startswith(incomplete)]


def _names(entry: Path) -> list[str]:
    """What an entry of the models folder is called; of an organisation, each of its repositories."""
    try:
        below = sorted(entry.iterdir()) if entry.is_dir() else []
    except OSError:
        below = []
    folders = [each for each in below if each.is_dir() and not each.name.startswith(".")]
    if len(folders) == len(below) > 0:
        return [f"{entry.name}/{folder.name}" for folder in folders]
    return [entry.name.removesuffix(".gguf")]
