"""`llm-node run` on a terminal: keys, Ctrl-C at each state, pasting, resizing; what an answer cannot do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from support.engines import fake_engine
from support.node import RunningNode, node_environment, running_node
from support.terminal import Terminal, on_a_terminal

PROGRAM = Path(sys.executable).with_name("llm-node")
ASK = ">>>"
QUESTION = "What is an engine?"


@contextlib.contextmanager
def chat(home: Path, *arguments: str, columns: int = 80, **environment: str) -> Iterator[Terminal]:
    command = [PROGRAM, "run", "--temperature", "0", *arguments]
    with on_a_terminal(command, node_environment(home, **environment), columns=columns, cwd=home) as terminal:
        yield terminal


@pytest.fixture
def talking(node: RunningNode, tmp_path: Path) -> Iterator[Terminal]:
    """A chat with the demo model, which asks for the first question."""
    with chat(tmp_path, "--node", node.url, "llm-node-demo") as terminal:
        terminal.expect(ASK)
        yield terminal


def test_a_question_its_answer_and_the_end(talking: Terminal, tmp_path: Path) -> None:
    talking.type(f"{QUESTION}\r")
    talking.expect("An engine is a shared library")
    talking.expect("tokens/s")
    assert re.search(r"context \d+ of 1024", talking.expect(ASK))
    talking.type("\x04")
    assert talking.wait() == 0
    history = tmp_path / ".llm-node/history"
    assert QUESTION in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_ctrl_c_at_each_state(talking: Terminal, tmp_path: Path) -> None:
    # With a text: it is cleared, and not sent.
    talking.type("never sent\x03")
    talking.type("\x03")
    talking.expect("Ctrl-D or /bye leaves.")
    talking.expect(ASK)
    # While it answers: the answer stops and is kept, and the next prompt works.
    talking.type("/set ignore_eos true\r")
    talking.expect("ignore_eos is True")
    talking.expect(ASK)
    talking.type(f"{QUESTION}\r")
    talking.expect("An engine is")
    talking.type("\x03")
    talking.expect("stopped")
    talking.expect(ASK)
    talking.type("/save kept.json\r")
    talking.expect("saved in kept.json")
    kept = json.loads((tmp_path / "kept.json").read_text())["messages"]
    assert [message["role"] for message in kept] == ["user", "assistant"]
    assert kept[0]["content"] == QUESTION, "what was cleared was sent"
    assert kept[1]["content"].startswith("An engine is")
    talking.expect(ASK)
    talking.type("/set ignore_eos none\r")
    talking.expect(ASK)
    talking.type(f"{QUESTION}\r")
    talking.expect("tokens/s")
    talking.expect(ASK)
    talking.type("/bye\r")
    assert talking.wait() == 0


def test_ctrl_c_while_it_loads(tmp_path: Path) -> None:
    fake_engine(tmp_path / "engines", defines={"FAKE_HANG_IN_LOAD": 1})
    (tmp_path / "models").mkdir()
    (tmp_path / "models/slow.toy").write_bytes(b"TOY1")
    folders = ["--engines-dir", str(tmp_path / "engines"), "--models-dir", str(tmp_path / "models")]
    with (
        running_node(tmp_path / "node", [*folders, "--gpu-backend", "cpu"]) as node,
        chat(tmp_path, "--node", node.url, "slow") as terminal,
    ):
        terminal.expect("loading slow")
        terminal.type("\x03")
        assert terminal.wait() == 130


def test_a_text_of_several_lines_pasted_or_typed(talking: Terminal, tmp_path: Path) -> None:
    talking.type("/set max_tokens 1\r")
    pasted = "\x1b[200~one\ntwo\x1b[201~\r"
    typed = ["one\\\rtwo\r", "one\x1b\rtwo\r", '"""one\rtwo"""\r', '"""\rone\rtwo\r"""\r']
    for keys in [pasted, *typed]:
        talking.expect(ASK)
        talking.type(keys)
        talking.expect("cut by its length")
    talking.expect(ASK)
    talking.type("/save lines.json\r")
    talking.expect("saved")
    saved = json.loads((tmp_path / "lines.json").read_text())["messages"]
    said = [message["content"] for message in saved if message["role"] == "user"]
    assert said == ["one\ntwo"] * 5


def test_answers_wrap_at_the_width_that_the_terminal_has_by_then(talking: Terminal) -> None:
    talking.resize(30)
    talking.type(f"{QUESTION}\r")
    answer = talking.expect("tokens/s").partition("An engine")[2]
    widths = [len(line) for line in f"An engine{answer}".splitlines()[:-1]]
    assert max(widths) <= 30 and len(widths) > 3, widths


def test_ctrl_c_ends_the_wait_for_a_silent_pipe(talking: Terminal, tmp_path: Path) -> None:
    for command, words in [
        ("/file", "does not go with what you say next"),
        ("/load", "the chat stays as it is"),
    ]:
        # One for each: who read the first may not have let go of it.
        pipe = tmp_path / f"pipe-of-{command[1:]}"
        os.mkfifo(pipe)
        talking.type(f"{command} {pipe.name}\r")
        # Its other end opens once somebody reads it: before, Ctrl-C would end the line.
        with pipe.open("wb"):
            talking.type("\x03")
            talking.expect(words)
        talking.expect(ASK)


def test_commands(talking: Terminal, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a note")
    os.mkfifo(tmp_path / "silent")
    for typed, answered in [
        ("/help", "/clear"),
        ("/nonsense", "no command /nonsense"),
        ("/model", "llm-node-demo"),
        ("/model no-such", "model_not_found"),
        ("/undo", "nothing to take back"),
        ("/retry", "nothing was asked yet"),
        ("/copy", "there is no answer yet"),
        ("/file note.txt", "note.txt goes with"),
        ("/file absent.txt", "absent.txt: No such file"),
        ("/file /dev/zero", "/dev/zero: there are more than 4 MiB in it, or no end at all"),
        ("/file silent", "silent: nothing came for 5 s: this is no file"),
        ("/load /dev/zero", "/dev/zero: there are more than 64 MiB in it, or no end at all"),
        ("/load note.txt", "is no saved chat"),
        ("/set max_tokens 3", "max_tokens is 3"),
        ("//slash", "cut by its length; 3 tokens"),
        ("/retry", "cut by its length; 3 tokens"),
        ("/copy", "in the clipboard"),
        ("/tokens", " of 1024"),
        ("/save chat.json", "saved in chat.json"),
        ("/undo", "taken back: note.txt"),
        ("/load chat.json", "2 messages"),
        ("/clear", "the chat is empty"),
    ]:
        talking.type(f"{typed}\r")
        talking.expect(answered)
        talking.expect(ASK)
    saved = json.loads((tmp_path / "chat.json").read_text())
    assert saved["messages"][0]["content"] == "note.txt:\n```txt\na note\n```\n\n/slash"
    assert saved["parameters"]["max_tokens"] == 3


def test_tab_completes_commands_models_and_files(talking: Terminal, tmp_path: Path) -> None:
    (tmp_path / "a-note.txt").write_text("a note")
    for typed, completed, answered in [
        ("/hel", "p", "/clear"),
        ("/model llm-node-d", "emo", "llm-node-demo"),
        ("/file a-no", "te.txt", "a-note.txt goes with"),
    ]:
        talking.type(typed)
        talking.expect(typed)
        talking.type("\t")
        talking.expect(completed)
        talking.type("\r")
        talking.expect(answered)
        talking.expect(ASK)


def test_what_fails_leaves_the_chat_as_it_was(node: RunningNode, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "wrong.json").write_text(
        json.dumps(
            {"format": "llm-node-chat/1", "system": None, "messages": [{"role": "user"}], "parameters": {}}
        )
    )
    with chat(tmp_path, "--node", node.url, "llm-node-demo", EDITOR="false", VISUAL="false") as talking:
        for typed, answered in [
            ("/set max_tokens 3", "max_tokens is 3"),
            (QUESTION, "cut by its length"),
            ("/save before.json", "saved"),
            ("/edit", "false: Editing failed"),
            ("/set temperature abc", "temperature: Input should be a valid number"),
            ("/set temperature 9", "temperature: Input should be less than or equal to 2"),
            ("/set temperature NaN", "temperature: Input should be a valid number"),
            ("/set n 2", "a chat shows one answer"),
            ("/load wrong.json", "is no saved chat"),
            ("/set no_such_thing 1", "no_such_thing is 1"),
            ("/retry", "no_such_thing is not a parameter"),
            ("/file note.txt", "note.txt goes with"),
            ("what is this?", "no_such_thing is not a parameter"),
            ("/set no_such_thing none", "max_tokens is 3"),
            ("/save after.json", "saved"),
            ("what is it?", "cut by its length"),
            ("/save then.json", "saved"),
        ]:
            talking.expect(ASK)
            talking.type(f"{typed}\r")
            talking.expect(answered)
    before, after = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("before", "after"))
    assert [message["role"] for message in before["messages"]] == ["user", "assistant"]
    assert after == before
    *_, asked, _ = json.loads((tmp_path / "then.json").read_text())["messages"]
    assert asked["content"] == "note.txt:\n```txt\na note\n```\n\nwhat is it?", "the file was not lost"


def test_without_colours(node: RunningNode, tmp_path: Path) -> None:
    with chat(tmp_path, "--node", node.url, "llm-node-demo", QUESTION, NO_COLOR="1") as terminal:
        assert terminal.wait() == 0
        assert "An engine is a shared library" in terminal.raw
        assert "\x1b" not in terminal.raw


def test_nothing_is_kept_where_nobody_wants_it(node: RunningNode, tmp_path: Path) -> None:
    with chat(tmp_path, "--node", node.url, "--no-history", "llm-node-demo") as terminal:
        terminal.expect(ASK)
        terminal.type("/bye\r")
        assert terminal.wait() == 0
    assert not (tmp_path / ".llm-node/history").exists()


@pytest.mark.parametrize(("answer", "code"), [("no", 1), ("always", 0)])
def test_without_a_gpu_somebody_is_asked(tmp_path: Path, engines: Path, answer: str, code: int) -> None:
    from llm_node.devices import nvidia_gpus

    if nvidia_gpus() or sys.platform == "darwin":
        pytest.skip("this machine has a GPU")
    with chat(tmp_path, "--engines-dir", str(engines), "llm-node-demo", QUESTION) as terminal:
        terminal.expect("Use this CPU?")
        terminal.type(f"{answer}\n")
        assert terminal.wait() == code
    config = tmp_path / ".llm-node/config.toml"
    assert config.exists() == (answer == "always")
    if answer == "always":
        assert config.read_text() == 'gpu_backend = "cpu"\n'
        assert "An engine is a shared library" in terminal.text


# ---- what a model may write ----------------------------------------------------------------------------

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;ZXZpbA==\x07\r\x08\x9b31m\u202e**bold** done"


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    """A server that answers what no model of ours would, in the node's form."""
    events = [
        {"choices": [{"index": 0, "delta": {"role": "assistant"}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": f"let me see {HOSTILE}"}}]},
        *({"choices": [{"index": 0, "delta": {"content": character}}]} for character in HOSTILE),
        {"choices": [{"index": 0, "delta": {"tool_calls": [
            {"index": 0, "id": "1", "function": {"name": "f\x1b[2J", "arguments": '{"a": "\x07'}}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 7, "total_tokens": 9}},
    ]  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/models/load":
                body = json.dumps({"model_id": "evil\x1b[2J", "facts": {"context_length": 64}}).encode()
            else:
                body = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events)
                body += b"data: [DONE]\n\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_does_not_drive_the_terminal(hostile: str, tmp_path: Path) -> None:
    with chat(tmp_path, "--node", hostile, "evil", "hi") as terminal:
        assert terminal.wait() == 0
    ours = re.compile(r"\x1b\[[\d;]*m")  # colours, which we wrote
    shown = ours.sub("", terminal.raw.replace("\r\n", "\n"))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown), shown
    assert "␛[2J␛]0;owned␇" in shown
    assert "\\u009b31m\\u202ebold done" in shown
    assert shown.index("let me see") < shown.index("\\u202ebold done")
    assert "→ f␛[2J({" in shown


def test_thinking_is_hidden_where_nobody_wants_it(hostile: str, tmp_path: Path) -> None:
    with chat(tmp_path, "--node", hostile, "--hide-thinking", "--no-markdown", "evil", "hi") as terminal:
        assert terminal.wait() == 0
    assert "let me see" not in terminal.text
    assert re.search(r"thinking …\s+… for \d+\.\d s", terminal.text)
    assert "**bold** done" in terminal.text
