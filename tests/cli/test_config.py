"""`llm-node config` and `llm-node completion`."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from llm_node import settings_file
from llm_node.cli import config
from llm_node.cli.command import command
from llm_node.settings import ALL, Setting, Settings, SettingsError
from support.node import RunningNode, node_environment

FILE = """\
# my node
gpu_backend = "cpu"  # no GPU here

# where models are
models_dir = "/models"
engines_dir = [
    "/a",  # first
    "/b",
]
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in os.environ:
        if name.startswith("LLM_NODE_"):
            monkeypatch.delenv(name)
    return lambda *arguments: CliRunner().invoke(command, arguments, prog_name="llm-node")


def in_shell(words: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command `"$@"` as these words have it run."""
    program = str(Path(sys.executable).with_name("llm-node"))
    return subprocess.run(
        ["bash", "-c", words, "bash", program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=node_environment(home),
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["config", "check", "/dev/zero"],
        ["--config", "/dev/zero", "config", "get", "home"],
        ["--chat-template", "m=/dev/zero", "config", "check"],
        ["--chat-template", "m=/dev/zero", "list"],
        ["--api-key-file", "/dev/zero", "config", "check"],
        ["run", "--format", "/dev/zero", "llm-node-demo", "hi"],
        ["serve", "--api-key-file", "/dev/zero"],
        ["serve", "--tls-cert", "/dev/zero", "--tls-key", "/dev/zero"],
    ],
    ids=" ".join,
)
def test_a_file_without_an_end_is_refused(arguments: list[str], engines: Path, tmp_path: Path) -> None:
    """In little memory: a device must not fill that of the machine."""
    named = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    ended = in_shell('ulimit -v 4000000; exec "$@"', tmp_path, *named, *arguments)
    assert ended.returncode in (1, 2), ended.stderr
    assert "/dev/zero" in ended.stderr and "more than 4 MiB" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_input_or_output_ends_no_command(closed: str, node: RunningNode, tmp_path: Path) -> None:
    arguments = ["run", "--node", node.url, "--verbose", "llm-node-demo", "hi"]
    ended = in_shell(f'"$@" {closed}', tmp_path, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_setting_of_the_whole_file_stays_one(tmp_path: Path) -> None:
    """A table that came before it would have it."""
    file = tmp_path / "config.toml"
    given = 'models.qwen.aliases = ["q"]\ncontext_length = 2048\n'
    file.write_text(given)
    with pytest.raises(SettingsError, match=r"config\.toml cannot be changed: .*by hand"):
        settings_file.add_alias(file, "llm-node-demo", "demo")
    assert file.read_text() == given
    file.write_text('context_length = 2048\nmodels.qwen.aliases = ["q"]\n')
    settings_file.add_alias(file, "qwen", "other")
    settings = Settings.load({"config": (str(file),)}, environment={})
    assert settings.context_length == 2048


def test_an_alias_that_moves_leaves_the_list_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('alias = ["a=one", "b=two"]\n')
    settings_file.add_alias(file, "three", "a")
    settings = Settings.load({"config": (str(file),)}, environment={})
    assert settings.alias == (("b", "two"),)
    assert settings.models["three"].aliases == ("a",)


def test_changes_that_come_together_are_all_made(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    names = [f"name-{number}" for number in range(16)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: settings_file.add_alias(file, "qwen", name), names))
    settings = Settings.load({"config": (str(file),)}, environment={})
    assert sorted(settings.models["qwen"].aliases) == sorted(names)


def test_an_option_that_json_cannot_tell_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[models."m"]\noptions = { x = nan }\n')
    with pytest.raises(SettingsError, match=r"options in .*: expected a table of texts, numbers"):
        Settings.load({"config": (str(file),)}, environment={})


def test_a_pipe_that_ends_is_a_file(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("llm-node"))
    checked = subprocess.run(
        ["bash", "-c", '"$1" config check <(echo "queue_limit = 9")', "bash", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=node_environment(tmp_path),
    )
    assert checked.returncode == 0, checked.stderr


def test_a_setting_that_is_set_is_found(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / ".llm-node/config.toml"
    assert run("config", "path").stdout == f"{file}\n"
    assert run("config", "set", "vram-limit", "8G").exit_code == 0
    assert file.read_text() == 'vram_limit = "8G"\n'
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert run("config", "get", "vram_limit").stdout == f"{8 << 30}\n"
    assert run("--vram-limit", "1K", "config", "get", "vram_limit").stdout == "1024\n"
    limits = "GPU-7f=8G,1=512M"
    assert (
        run("--vram-limit", limits, "config", "get", "vram_limit").stdout
        == f"GPU-7f={8 << 30}\n1={512 << 20}\n"
    )
    found = json.loads(run("config", "get", "--json").stdout)
    assert list(found) == [*(setting.name for setting in ALL), "models"]
    assert found["vram_limit"] == 8 << 30


def test_where_the_file_is_may_stand_behind_the_command(run: Callable[..., Result], tmp_path: Path) -> None:
    home = tmp_path / "other"
    assert run("config", "set", "port", "3001", "--home", str(home)).exit_code == 0
    assert (home / "config.toml").read_text() == "port = 3001\n"
    assert run("config", "get", "port", "--config", str(home / "config.toml")).stdout == "3001\n"
    assert run("config", "path", "--home", str(home)).stdout == f"{home / 'config.toml'}\n"
    assert run("--home", str(home), "config", "check").exit_code == 0


def test_a_key_is_shown_where_it_is_asked_for_alone(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_NODE_API_KEY", "sk-secret")
    assert run("config", "get", "api_key").stdout == "sk-secret\n"
    for shown in (run("config", "get"), run("config", "get", "--json")):
        assert shown.exit_code == 0
        assert "sk-secret" not in shown.stdout and "(not shown)" in shown.stdout


def test_one_line_changes_and_comments_stay(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(FILE)
    file.chmod(0o644)
    config.write(file, "models_dir", ("/elsewhere",))
    assert file.read_text() == FILE.replace('"/models"', '"/elsewhere"')
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    config.write(file, "--port", ("3001",))
    assert file.read_text() == FILE.replace('"/models"', '"/elsewhere"') + "port = 3001\n"
    config.write(file, "engines_dir", ("/c",))
    assert Settings.load({"config": (str(file),)}, {}).engines_dir == (Path("/c"),)
    assert "# no GPU here" in file.read_text()


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("prot", ("1",), "did you mean port"),
        ("models", ("x",), r'table of the file, \[models."NAME"\]: write it there; `llm-node config path`'),
        ("models.x.pin", ("yes",), "settings of one model stand in a table"),
        ("port", ("99999",), "port: expected a whole number"),
        ("port", ("1", "2"), "takes one value"),
        ("config", ("x",), "cannot be in the file"),
        ("cors_origin", ("nonsense",), "expected an origin"),
    ],
)
def test_what_would_be_wrong_is_not_written(
    tmp_path: Path, key: str, values: tuple[str, ...], words: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(FILE)
    with pytest.raises(click.UsageError, match=words):
        config.write(file, key, values)
    assert file.read_text() == FILE
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("setting", [setting for setting in ALL if setting.in_file], ids=lambda it: it.name)
def test_a_default_can_be_written_and_read(tmp_path: Path, setting: Setting) -> None:
    """What `get` prints, `set` takes."""
    value = config._plain(config._shown(getattr(Settings(home=tmp_path), setting.name)))
    if not value:  # it has none
        return
    config.write(tmp_path / "config.toml", setting.name, tuple(value.split("\n")))
    read = Settings.load({"home": (str(tmp_path),)}, {})
    assert getattr(read, setting.name) == getattr(Settings(home=tmp_path), setting.name)


def test_check_reads_without_starting(run: Callable[..., Result], tmp_path: Path) -> None:
    assert "not there, so the defaults hold" in run("config", "check").stderr
    (tmp_path / "wrong.toml").write_text("prot = 1\n")
    result = run("config", "check", str(tmp_path / "wrong.toml"))
    assert result.exit_code == 2
    assert "did you mean port" in result.stderr
    (tmp_path / "wrong.toml").write_text('models_dir = "/no/such/folder"\n')
    result = run("config", "check", str(tmp_path / "wrong.toml"))
    assert result.exit_code == 2
    assert "no such folder" in result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('host = "0.0.0.0"', "reached by other machines"),
        ('chat_template = ["x=/no/such"]', "--chat-template: /no/such: No such file"),
        ('[models."x"]\nchat_template = "/no/such"', 'chat_template in [models."x"]: /no/such: No such file'),
        ('tls_cert = "/no/such"\ntls_key = "/no/such"', "/no/such cannot be read"),
        ('api_key_file = "/no/such"', "the file of keys /no/such cannot be read"),
        ('alias = ["a=b", "a=c"]', "expected one model for 'a'"),
    ],
)
def test_check_refuses_what_no_node_starts_with(
    run: Callable[..., Result], tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "wrong.toml").write_text(content)
    result = run("config", "check", str(tmp_path / "wrong.toml"))
    assert result.exit_code != 0 and words in result.stderr, result.stderr


def test_what_is_said_of_models_is_listed(run: Callable[..., Result], tmp_path: Path) -> None:
    table = {"context_length": 512, "options": {"a": 1}, "aliases": ["x", "y"], "warm": True}
    (tmp_path / "c.toml").write_text(
        '[models."org/m"]\ncontext_length = 512\noptions = {a = 1}\naliases = ["x", "y"]\nwarm = true\n'
    )
    given = ("--config", str(tmp_path / "c.toml"), "config", "get")
    assert json.loads(run(*given, "models", "--json").stdout) == {"models": {"org/m": table}}
    rows = dict(line.split(maxsplit=1) for line in run(*given).stdout.splitlines() if "org/m" in line)
    assert rows == {
        'models."org/m".context_length': "512",
        'models."org/m".options': "a=1",
        'models."org/m".aliases': "x, y",
        'models."org/m".warm': "yes",
    }
    assert run(*given, "models").stdout.count("org/m") == 4


def test_a_key_that_cannot_be_written_is_a_sentence(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("key", "new", "x", "--home", str(tmp_path / "file"))
    assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path / 'file'}: File exists\n")


def test_completion(run: Callable[..., Result]) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_LLM_NODE_COMPLETE" in run("completion", shell).stdout


def test_a_word_is_completed(tmp_path: Path) -> None:
    words = {"COMP_WORDS": "llm-node eng", "COMP_CWORD": "1", "_LLM_NODE_COMPLETE": "bash_complete"}
    program = Path(sys.executable).with_name("llm-node")
    answered = subprocess.run(
        [program], env={**os.environ, **words}, capture_output=True, text=True, check=True
    )
    assert answered.stdout.splitlines() == ["plain,engines", "plain,engine"]
