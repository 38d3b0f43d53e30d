"""Settings: who wins, what is refused, and that no one else knows one."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import llm_node
from llm_node import _core, settings, settings_file, settings_values
from llm_node.cli.command import command
from llm_node.schema.admin import LoadRequest
from llm_node.settings import Settings, SettingsError, SettingsFileError
from llm_node.settings_values import parse_size

unhurried = hypothesis_settings(deadline=None)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_command_line_over_environment_over_file_over_default(home: Path) -> None:
    assert Settings.load({}, {}).port == 3000
    write(home / ".llm-node/config.toml", "port = 1\n")
    assert Settings.load({}, {}).port == 1
    assert Settings.load({}, {"LLM_NODE_PORT": "2"}).port == 2
    assert Settings.load({"port": ["3"]}, {"LLM_NODE_PORT": "2"}).port == 3


def test_tool_syntaxes_are_those_of_the_core() -> None:
    assert list(settings_values.TOOL_SYNTAXES) == _core.TOOL_SYNTAXES
    asked = Settings.load({"tool_syntax": ["off,a=b=hermes"]}, {})
    assert asked.tool_syntax == ((settings_values.ALL_MODELS, "off"), ("a=b", "hermes"))
    config = asked.node_config()
    assert config["defaults"]["tool_syntax"] == "off"
    assert config["models"] == {"a=b": {"tool_syntax": "hermes"}}
    for wrong in ("martian", "llama=", "=hermes", "llama=martian"):
        with pytest.raises(SettingsError, match="pythonic, off"):
            Settings.load({"tool_syntax": [wrong]}, {})


def test_every_setting_can_come_from_each_source(tmp_path: Path) -> None:
    samples = {
        "engines_dir": "/e",
        "models_dir": "/m",
        "demo_model": "no",
        "caches": "ollama",
        "offline": "yes",
        "web": "no",
        "engine_packages": "no",
        "prefix_cache": "no",
        "speculation": "off",
        "unknown_fields": "ignore",
        "gpu_backend": "vulkan",
        "vram_limit": "8G",
        "host": "0.0.0.0",
        "allow_open": "yes",
        "behind_balancer": "yes",
        "allow_host": "llm.example.com",
        "cors_origin": "https://chat.example.com",
        "alias": "claude=llama",
        "chat_template": "llama=chatml",
        "tool_syntax": "llama=hermes",
        "node": "http://10.0.0.1:3000",
        "engine_option": "a=b",
        "engine_env": "HF_HOME",
        "log_level": "debug",
        "max_body": "1M",
    }
    for setting in settings.ALL:
        if not setting.in_file:
            continue
        text = samples.get(setting.name, "77")
        wanted = setting.parse(text)
        wanted = (wanted,) if setting.many else wanted
        assert wanted != getattr(Settings(), setting.name), "the sample is the default: it shows nothing"
        file = write(tmp_path / f"{setting.name}.toml", f'{setting.name} = "{text}"\n')
        for found in (
            Settings.load({setting.name: [text]}, {}),
            Settings.load({}, {setting.environment: text}),
            Settings.load({}, {"LLM_NODE_CONFIG": str(file)}),
        ):
            assert getattr(found, setting.name) == wanted


def test_names_of_the_specification() -> None:
    named = {setting.flag: setting.environment for setting in settings.ALL}
    assert named["--engines-dir"] == "LLM_NODE_ENGINES_DIR"
    assert named["--vram-limit"] == "LLM_NODE_VRAM_LIMIT"
    assert named["--monitor-interval"] == "LLM_NODE_MONITOR_INTERVAL_MS"
    assert named["--models-dir"] == "LLM_NODE_MODELS_DIR"
    assert named["--gpu-backend"] == "LLM_NODE_GPU_BACKEND"


def test_flags_and_variables_are_unique() -> None:
    assert len({setting.flag for setting in settings.ALL}) == len(settings.ALL)
    assert len({setting.environment for setting in settings.ALL}) == len(settings.ALL)


def test_several_folders() -> None:
    both = (Path("/a"), Path("/b"))
    assert Settings.load({"engines_dir": ["/a", "/b"]}, {}).engines_dir == both
    joined = os.pathsep.join(("/a", "/b"))
    assert Settings.load({}, {"LLM_NODE_ENGINES_DIR": joined}).engines_dir == both


def test_several_names_stand_between_commas() -> None:
    both = ("a.example.com", "b.example.com")
    text = "A.example.com, b.example.com.,"
    assert Settings.load({"allow_host": [text]}, {}).allow_host == both
    assert Settings.load({"allow_host": list(both)}, {}).allow_host == both
    assert Settings.load({}, {"LLM_NODE_ALLOW_HOST": text}).allow_host == both


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://Chat.Example.com", "https://chat.example.com"),
        ("https://chat.example.com:443", "https://chat.example.com"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[0:0::1]:80", "http://[::1]"),
    ],
)
def test_origins_are_kept_as_browsers_write_them(text: str, kept: str) -> None:
    assert Settings.load({}, {"LLM_NODE_CORS_ORIGIN": text}).cors_origin == (kept,)


@pytest.mark.parametrize("text", ["::1", "[::1]", " ::1 "])
def test_an_address_of_ipv6_with_brackets_and_without(text: str) -> None:
    assert Settings.load({"host": [text]}, {}).host == "::1"


def test_a_list_in_the_file(tmp_path: Path) -> None:
    text = 'engines_dir = ["/a", "/b"]\ndemo_model = false\nping_interval = 2.5\n'
    file = write(tmp_path / "some.toml", text)
    found = Settings.load({"config": [str(file)]}, {})
    assert found.engines_dir == (Path("/a"), Path("/b"))
    assert found.demo_model is False
    assert found.ping_interval == 2.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", ["prot", "did you mean port?"]),
        ("[server]\nport = 1", ["server"]),
        ("port = [1, 2]", ["port"]),
        ("port = 1979-05-27", ["port"]),
        ("port = ", ["not TOML"]),
        ("port = -1", ["port in", "0 to 65535"]),
        ('config = "other.toml"', ["config"]),
    ],
)
def test_a_bad_file_is_an_error(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path / "bad.toml", text)
    with pytest.raises(SettingsError) as caught:
        Settings.load({"config": [str(file)]}, {})
    for word in [*words, str(file)]:
        assert word in str(caught.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read"):
        Settings.load({"config": [str(tmp_path / "absent.toml")]}, {})


def test_an_unknown_variable_names_its_neighbours() -> None:
    with pytest.raises(SettingsError, match="LLM_NODE_VRAM_LIMT; did you mean LLM_NODE_VRAM_LIMIT"):
        Settings.load({}, {"LLM_NODE_VRAM_LIMT": "8G"})


def test_a_former_name_is_refused_and_says_the_one_now(tmp_path: Path) -> None:
    """What it was is a model's now."""
    rest = "how long a model stays loaded says"
    with pytest.raises(SettingsError) as caught:
        Settings.load({}, {"LLM_NODE_KEEP_ALIVE": "5"})
    now = f"is called LLM_NODE_PING_INTERVAL now; {rest} LLM_NODE_MODEL_KEEP_ALIVE"
    assert str(caught.value) == f"LLM_NODE_KEEP_ALIVE {now}"
    file = write(tmp_path / "some.toml", "keep_alive = 5\n")
    with pytest.raises(SettingsError) as caught:
        Settings.load({"config": [str(file)]}, {})
    now = f"is called ping_interval now; {rest} model_keep_alive"
    assert str(caught.value) == f"{file}: keep_alive {now}"
    runner = CliRunner()
    refused = runner.invoke(command, ["--keep-alive", "5", "serve"])
    assert refused.exit_code == 2
    now = f"is called --ping-interval now; {rest} --model-keep-alive"
    assert f"--keep-alive {now}" in " ".join(refused.output.split())
    refused = runner.invoke(command, ["--config", str(file), "config", "set", "keep-alive", "5"])
    assert refused.exit_code == 2
    assert "is called ping_interval now" in " ".join(refused.output.split())
    assert "--keep-alive" not in runner.invoke(command, ["--help"]).output.replace("--model-keep-alive", "")


SERVICE = {
    "LLM_NODE_SERVICE_HOST": "10.96.3.7",
    "LLM_NODE_SERVICE_PORT": "3000",
    "LLM_NODE_SERVICE_PORT_HTTP": "3000",
    "LLM_NODE_PORT": "tcp://10.96.3.7:3000",
    "LLM_NODE_PORT_3000_TCP": "tcp://10.96.3.7:3000",
    "LLM_NODE_PORT_3000_TCP_PROTO": "tcp",
    "LLM_NODE_PORT_3000_TCP_PORT": "3000",
    "LLM_NODE_PORT_3000_TCP_ADDR": "10.96.3.7",
    # Others that begin alike: llm-node-host, llm-node-metrics.
    "LLM_NODE_HOST_PORT": "udp://[fd00::7]:53",
    "LLM_NODE_METRICS_SERVICE_HOST": "10.96.3.8",
    "LLM_NODE_METRICS_PORT_9090_UDP_ADDR": "10.96.3.8",
}


def test_where_a_kubernetes_service_is_is_no_setting() -> None:
    assert Settings.load({}, SERVICE) == Settings.load({}, {})
    assert settings.service_variables({**SERVICE, "LLM_NODE_QUEUE_LIMIT": "5", "PORT": "1"}) == sorted(
        SERVICE
    )
    assert settings.service_variables({"LLM_NODE_PORT": "3001"}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLM_NODE_PORT", "tcp:3000"),
        ("LLM_NODE_PORT", "http://10.96.3.7:3000"),
        ("LLM_NODE_PROT", "3000"),
        ("LLM_NODE_HOST_PORT", "3000"),
        ("LLM_NODE_SERVICE", "10.96.3.7"),
        ("LLM_NODE_PORT_TCP", "3000"),
    ],
)
def test_what_is_not_shaped_like_one_stays_an_error(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.load({}, {name: value})


def test_variables_of_others_are_left_alone() -> None:
    Settings.load({}, {"LLM_NODE_WORKER_SECRET": "x", "LLM": "x", "NODE_PORT": "x", "LLM_NODE_PORT": ""})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "65536"),
        ("port", "x"),
        ("port", "٣"),
        ("gpu_backend", "tpu"),
        ("vram_limit", "8X"),
        ("vram_limit", "0"),
        ("vram_limit", "-1G"),
        ("vram_limit", "GPU-7f=8X"),
        ("vram_limit", "GPU-7f=8G,4G"),
        ("vram_limit", "=8G"),
        ("vram_limit", "1=8G,1=4G"),
        ("load_timeout", "nan"),
        ("load_timeout", "inf"),
        ("demo_model", "maybe"),
        ("models_dir", " "),
        ("monitor_interval", "0"),
        ("engine_env", "NAME=VALUE"),
        ("engine_env", "LLM_NODE_PORT"),
        ("host", "http://localhost"),
        ("host", "a..b"),
        ("host", "\udcff"),
        ("host", "a" * 64),
        ("node", "http://a..b:3000"),
        ("allow_host", "https://llm.example.com"),
        ("allow_host", "llm.example.com:3000"),
        ("cors_origin", "*"),
        ("cors_origin", "null"),
        ("cors_origin", "chat.example.com"),
        ("cors_origin", "https://chat.example.com/"),
        ("max_connections", "0"),
    ],
)
def test_a_bad_value_names_its_source(name: str, text: str) -> None:
    setting = settings.BY_NAME[name]
    with pytest.raises(SettingsError, match=f"{setting.flag}: expected"):
        Settings.load({name: [text]}, {})
    with pytest.raises(SettingsError, match=f"{setting.environment}: expected"):
        Settings.load({}, {setting.environment: text})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 << 30),
        ("8g", 8 << 30),
        ("8GiB", 8 << 30),
        ("8 GB", 8 << 30),
        ("512M", 512 << 20),
        ("1.5K", 1536),
        ("2T", 2 << 40),
        ("8589934592", 8 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@unhurried
@given(st.integers(min_value=1, max_value=2**53 - 1))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(str(size)) == size


@pytest.mark.parametrize("parse", [setting.parse for setting in settings.ALL])
def test_any_text_is_read_or_refused(parse: Callable[[str], object]) -> None:
    @unhurried
    @given(st.text(max_size=40))
    @example("0\x1f")  # a space for str.strip, and none for int
    def check(text: str) -> None:
        try:
            parse(text)
        except ValueError as error:
            assert "expected" in str(error) or "null" in str(error)

    check()


# ---- settings of one model -------------------------------------------------------------------------

MODELS = """\
context_length = 8192

[models."llama-8b:Q4_K_M"]
aliases = ["gpt-4o-mini"]
context_length = 65536
threads = 4
gpu_layers = -1
tool_syntax = "hermes"
speculation = "off"
keep_alive = "1h30m"
replicas = 2
devices = ["GPU-7f3a", 0]
warm = true
options = { cache_type_k = "q8_0", flash_attn = true }
"""


def test_what_is_said_of_one_model_goes_to_the_node_beside_what_is_said_of_all(tmp_path: Path) -> None:
    file = write(tmp_path / "models.toml", MODELS)
    config = Settings.load({"config": [str(file)], "alias": ["claude=other"]}, {}).node_config()
    assert config["defaults"]["context_length"] == 8192
    assert config["models"] == {
        "llama-8b:Q4_K_M": {
            "context_length": 65536,
            "threads": 4,
            "gpu_layers": -1,
            "tool_syntax": "hermes",
            "speculation": "off",
            "keep_alive": 5400.0,
            "replicas": 2,
            "devices": ["GPU-7f3a", 0],
            "options": {"cache_type_k": "q8_0", "flash_attn": True},
        }
    }
    assert config["aliases"] == {"claude": "other", "gpt-4o-mini": "llama-8b:Q4_K_M"}


def test_an_alias_of_the_command_line_comes_before_that_of_a_table(tmp_path: Path) -> None:
    file = write(tmp_path / "models.toml", '[models."m"]\naliases = ["a", "b"]\n')
    config = Settings.load({"config": [str(file)], "alias": ["a=x"]}, {}).node_config()
    assert config["aliases"] == {"a": "x", "b": "m"}


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    """As Notepad and PowerShell write it."""
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbfqueue_limit = 9\r\n")
    assert Settings.load({"config": [str(file)]}, {}).queue_limit == 9
    settings_file.write(file, "max_wait", 7)
    assert file.read_text(encoding="utf-8") == "queue_limit = 9\nmax_wait = 7\n"


def test_what_is_right_without_the_file_is_told_from_what_is_not(tmp_path: Path) -> None:
    file = write(tmp_path / "config.toml", "queue_limit = many\n")
    given = {"config": [str(file)], "port": ["3001"]}
    with pytest.raises(SettingsFileError, match="is not TOML"):
        Settings.load(given, {})
    assert Settings.load(given, {}, reads_file=False).port == 3001
    with pytest.raises(SettingsError) as caught:
        Settings.load({**given, "port": ["x"]}, {})
    assert not isinstance(caught.value, SettingsFileError), "the command line is wrong"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models = 1", ["models", "expected tables"]),
        ('[models."m"]\ncontext = 1', ["context", 'models."m"', "did you mean context_length"]),
        ('[models."m"]\ncontext_length = 0', ["context_length", "1 to"]),
        ('[models."m"]\nport = 1', ["port"]),
        ('[models."m"]\naliases = "a"', ["aliases", "a list"]),
        ('[models."m"]\naliases = ["x\\u202e"]', ["aliases", "control characters"]),
        ('[models."m"]\naliases = ["n"]\n[models."n"]', ["alias 'n'", "a model"]),
        ('[models."m"]\naliases = ["a"]\n[models."n"]\naliases = ["a"]', ["alias 'a'", "'m'"]),
        ('[models."m"]\naliases = ["n:latest"]\n[models."n"]', ["alias 'n:latest'", "a model"]),
        ('[models."m"]\naliases = ["a"]\n[models."n"]\naliases = ["a:latest"]', ["'a:latest'", "'m'"]),
        ('alias = ["a=x"]\n[models."m"]\naliases = ["a"]', ["alias 'a'", "'x'", "'m'"]),
        ('alias = ["a:latest=x"]\n[models."m"]\naliases = ["a"]', ["alias 'a:latest'", "'m'"]),
        ('alias = ["m=x"]\n[models."m"]', ["alias 'm'", "'x'", "'m'"]),
        ('[models."m"]\noptions = 1', ["options", "a table"]),
        ('[models."m"]\ntool_syntax = "martian"', ["tool_syntax", "pythonic, off"]),
        ('[models."m"]\ngpu_layers = -2', ["gpu_layers", "-1 for all"]),
        ('[models."m"]\nkeep_alive = "soon"', ["keep_alive", "30m"]),
        ('[models."m"]\nreplicas = 0', ["replicas", "1 to"]),
        ('[models."m"]\ndevices = 0', ["devices", "how many GPUs"]),
        ('[models."m"]\ndevices = []', ["devices", "or a list of which"]),
        ('[models."m"]\ndevices = "GPU-7f3a"', ["devices", '["GPU-7f3a"]']),
        ('[models."m"]\ndevices = [true]', ["devices", "or [0]"]),
        ('[models."m"]\nwarm = 1', ["warm", "true or false"]),
    ],
)
def test_what_is_wrong_with_one_model_is_named(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path / "bad.toml", text)
    with pytest.raises(SettingsError) as caught:
        Settings.load({"config": [str(file)]}, {})
    for word in [*words, str(file)]:
        assert word in str(caught.value)


@pytest.mark.parametrize("alias", ["a", "a:latest", "b", "b:latest"])
def test_an_alias_has_one_meaning_and_the_command_line_comes_first(tmp_path: Path, alias: str) -> None:
    file = write(tmp_path / "m.toml", '[models."m"]\naliases = ["a"]\n[models."n"]\naliases = ["b:latest"]')
    said = {"config": [str(file)], "alias": [f"{alias}=other"]}
    aliases = Settings.load(said, {}).node_config()["aliases"]
    kept = {"b:latest": "n"} if alias.startswith("a") else {"a": "m"}
    assert aliases == {alias: "other", **kept}
    with pytest.raises(SettingsError, match="expected one model for 'x:latest'"):
        Settings.load({"alias": ["x=m", "x:latest=n"]}, {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("1h30m", 5400), ("90", 90), ("0.5", 0.5), ("2d", 172_800), ("-1", -1)],
)
def test_how_long_a_model_stays(text: str, seconds: float) -> None:
    assert Settings.load({"model_keep_alive": [text]}, {}).node_config()["defaults"]["keep_alive"] == seconds


@pytest.mark.parametrize("text", ["", "m", "1w", "5 minutes", "-2", "1e3", "9999999999"])
def test_what_is_no_time_to_stay(text: str) -> None:
    with pytest.raises(SettingsError, match="--model-keep-alive: expected a time such as 30m"):
        Settings.load({"model_keep_alive": [text]}, {})


OF_A_NODE = {"engine", "pin", "keep_alive", "replicas", "devices", "tool_syntax"}
"""They say nothing to somebody who has an engine in their own process, and calls of no tools."""


def test_an_option_of_a_load_is_a_setting_of_a_model() -> None:
    of_a_model = {*settings.OF_MODELS, settings.ENGINE_OPTIONS}
    assert of_a_model == set(LoadRequest.model_fields) - {"model_id", "format"}
    arguments = set(inspect.signature(llm_node.Engine.load).parameters) - {"self", "path"}
    assert arguments == of_a_model - OF_A_NODE
    # The core names those that it knows.
    config = {**Settings().node_config(), "gpu_backend": None, "devices": [], "packaged": []}
    config |= {"worker_command": ["x"], "start_timeout_seconds": 1, "probe_timeout_seconds": 1}
    with pytest.raises(_core.Fault) as caught:
        _core.Supervisor(json.dumps({**config, "defaults": {"nope": 1}}))
    _, expected = caught.value.message.split("unknown field `nope`, expected one of ")
    assert set(re.findall(r"`(\w+)`", expected)) == of_a_model
