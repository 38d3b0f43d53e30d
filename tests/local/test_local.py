"""`llm_node.Engine` and `llm_node.Model`: an engine inside this process."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llm_node
from support.engines import fake_engine

STORY = (
    ", there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


@pytest.fixture(scope="module")
def engine(llama_cpp: Path) -> Iterator[llm_node.Engine]:
    with llm_node.Engine(llama_cpp) as engine:
        yield engine


@pytest.fixture(scope="module")
def model(engine: llm_node.Engine, demo_model: Path) -> Iterator[llm_node.Model]:
    with engine.load(demo_model, threads=1) as model:
        yield model


def test_the_engine_says_what_it_is(engine: llm_node.Engine) -> None:
    assert engine.id == "llama_cpp"
    assert engine.gpu_backend == "cpu"
    assert engine.version
    assert "engine.batch/1" in engine.extensions


def test_the_model_says_what_it_is(model: llm_node.Model) -> None:
    facts = model.facts
    assert facts["architecture"] == "llama"
    assert facts["format"] == "gguf"
    assert facts["context_length"] > 0


def test_a_chat_template_takes_the_place_of_the_model_s_own(
    engine: llm_node.Engine, model: llm_node.Model, demo_model: Path
) -> None:
    def said(by: llm_node.Model, text: str) -> str:
        return "".join(by.generate([{"role": "user", "content": text}], max_tokens=10, temperature=0))

    questions = ("What is an engine?", "Hello")
    assert said(model, questions[0]) != said(model, questions[1])
    with engine.load(demo_model, threads=1, chat_template="{{ 'What is' }}") as deaf:
        assert said(deaf, questions[0]) == said(deaf, questions[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_a_forked_process_is_told_to_open_its_own(engine: llm_node.Engine, model: llm_node.Model) -> None:
    """It hung for ever: the threads that compute are not there."""
    child = os.fork()
    if child == 0:
        told = 0
        for call in (
            lambda: list(model.generate("x")),
            lambda: model.tokenize("x"),
            lambda: engine.load("x"),
        ):
            try:
                call()
            except llm_node.NodeError as error:
                told += "forked" in str(error)
        model.close()
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert model.tokenize("x")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_an_iterator_under_way_is_of_no_use_in_a_forked_process(model: llm_node.Model) -> None:
    """Nobody would ever bring it another piece."""
    begun, fresh = (iter(model.generate("The", max_tokens=40)) for _ in range(2))
    next(begun)
    child = os.fork()
    if child == 0:
        told = 0
        for pieces in (begun, fresh):
            try:
                next(pieces)
            except llm_node.NodeError as error:
                told += "forked" in str(error)
        del begun, fresh, pieces
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert "".join(begun) and "".join(fresh), "they go on where they were made"


@pytest.mark.parametrize("little", [{"top_p": 1e-300}, {"repeat_penalty": 1e-300}])
def test_a_number_above_0_stays_above_0(model: llm_node.Model, little: dict[str, float]) -> None:
    """However little; the core has shorter numbers."""
    assert "".join(model.generate("The", max_tokens=4, **little))  # type: ignore[arg-type]


def test_a_prompt_of_nothing_is_refused(model: llm_node.Model) -> None:
    with pytest.raises(llm_node.NodeError, match="prompt"):
        model.generate([])


def test_the_story(engine: llm_node.Engine, stories: Path) -> None:
    with engine.load(stories, threads=1) as model:
        text = "".join(model.generate("Once upon a time", temperature=0, max_tokens=80))
    assert text.startswith(STORY)


def test_pieces_make_the_answer(model: llm_node.Model) -> None:
    messages = [{"role": "user", "content": "What is an engine?"}]
    pieces = list(model.generate(messages, temperature=0))
    assert len(pieces) > 4
    assert "shared library" in "".join(pieces)


def test_text_and_tokens_are_the_same_prompt(model: llm_node.Model) -> None:
    tokens = model.tokenize("An engine is")
    assert "".join(model.generate(tokens, temperature=0, max_tokens=8)) == "".join(
        model.generate("An engine is", temperature=0, max_tokens=8)
    )
    assert model.detokenize(model.tokenize("An engine is", add_special=False)).strip() == "An engine is"


def test_equal_seeds_give_equal_answers(model: llm_node.Model) -> None:
    def ask(seed: int) -> str:
        return "".join(model.generate("The", temperature=2.0, seed=seed, max_tokens=24))

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(8)}) > 2


def test_leaving_early_cancels_and_the_next_one_works(model: llm_node.Model) -> None:
    for _ in range(20):
        pieces = iter(model.generate("The", max_tokens=400))
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    assert "".join(model.generate("The", temperature=0, max_tokens=4))


def test_two_at_once(model: llm_node.Model) -> None:
    prompts = ("The node", "An engine")
    alone = ["".join(model.generate(prompt, temperature=0, max_tokens=12)) for prompt in prompts]
    streams = [model.generate(prompt, temperature=0, max_tokens=12) for prompt in prompts]
    texts = ["", ""]
    for pieces in itertools.zip_longest(*streams, fillvalue=""):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == alone


def test_errors_are_typed(engine: llm_node.Engine, model: llm_node.Model, tmp_path: Path) -> None:
    with pytest.raises(llm_node.NodeError) as caught:
        llm_node.Engine(tmp_path)
    assert caught.value.code in ("engine_not_found", "load_failed")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(llm_node.NodeError) as caught:
        engine.load(tmp_path / "bad.gguf")
    assert caught.value.code in ("model_corrupt", "load_failed")
    with pytest.raises(llm_node.NodeError) as caught:
        list(model.generate("engine " * 50_000))
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("arguments", "param", "words"),
    [
        ({"context_length": "long"}, "context_length", 'context_length is "long": '),
        ({"max_sequences": -1}, "max_sequences", "max_sequences is -1: "),
        ({"speculation": "sometimes"}, "speculation", "`off` or `lookup`"),
        ({"draft_model": 3}, "draft_model", "draft_model is 3: it has to be a path"),
        ({"options": 5}, "options", "options is 5: it has to be a mapping"),
        ({"options": {"threads": [1]}}, "options.threads", "options.threads is [1]: "),
        ({"options": {"threads": {1}}}, "options.threads", "options.threads is {1}: "),
        # Of very many the outer ones are looked at.
        ({"options": {**dict.fromkeys(map(str, range(999)), ""), "threads": [1]}}, "options", "options is {"),
        ({"path": None}, "path", "path is None: it has to be a path"),
        ({"context_length": 2**40}, "context_length", f"expected a whole number from 1 to {2**31 - 1}"),
        ({"context_length": 2**70}, "context_length", f"expected a whole number from 1 to {2**31 - 1}"),
        ({"context_length": 0}, "context_length", "context_length is 0: expected a whole number from 1"),
        ({"cache_tokens": 2**31}, "cache_tokens", f"expected a whole number from 1 to {2**31 - 1}"),
        ({"max_sequences": 5000}, "max_sequences", "expected a whole number from 1 to 4096"),
        ({"threads": 5000}, "threads", "expected a whole number from 0 to 4096"),
        ({"gpu_layers": -2}, "gpu_layers", "expected a number of layers, or -1 for all"),
        ({"options": {"threads": "\ud800"}}, "options.threads", "half of a surrogate pair"),
    ],
)
def test_a_wrong_argument_of_a_load_is_named(
    engine: llm_node.Engine, demo_model: Path, arguments: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(llm_node.NodeError) as caught:
        engine.load(**{"path": demo_model, **arguments})
    assert (caught.value.code, caught.value.param) == ("invalid_request", param)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "param", "words"),
    [
        ({"prompt": 5}, "prompt", "prompt is 5: "),
        ({"prompt": [{"role": "user"}]}, "prompt", "prompt[0] is {'role': 'user'}: "),
        ({"prompt": b"x"}, "prompt", "prompt is b'x': these are bytes; decode them to text"),
        ({"prompt": bytearray(b"x")}, "prompt", "these are bytes"),
        ({"prompt": "a\ud800"}, "prompt", r"prompt is 'a\ud800': there is half of a surrogate pair in it"),
        (
            {"prompt": [{"role": "user", "content": "\udc00"}]},
            "prompt",
            r"prompt[0].content is '\udc00': there is half of a surrogate pair in it",
        ),
        ({"stop": ["\ud800"]}, "stop", "half of a surrogate pair"),
        ({"max_tokens": "few"}, "max_tokens", 'max_tokens is "few": '),
        ({"max_tokens": 2**70}, "max_tokens", f"expected a whole number from 1 to {2**31 - 1}"),
        ({"max_tokens": 0}, "max_tokens", f"expected a whole number from 1 to {2**31 - 1}"),
        ({"top_k": 2**40}, "top_k", "expected a whole number from 0 to 4294967295"),
        ({"top_p": 0}, "top_p", "above 0 and at most 1, not 0"),
        ({"temperature": "hot"}, "temperature", 'temperature is "hot": '),
        ({"temperature": float("nan")}, "temperature", "temperature is nan: "),
        ({"seed": -1}, "seed", "seed is -1: "),
        ({"stop": 5}, "stop", "stop is 5: "),
        ({"stop": [5]}, "stop", "stop is [5]: "),
    ],
)
def test_a_wrong_argument_of_a_request_is_named(
    model: llm_node.Model, arguments: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(llm_node.NodeError) as caught:
        list(model.generate(**{"prompt": "a", **arguments}))
    assert (caught.value.code, caught.value.param) == ("invalid_request", param)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("method", "param", "wrong"),
    [
        ("tokenize", "text", 5),
        ("tokenize", "text", "\ud800"),
        ("detokenize", "tokens", 5),
        ("detokenize", "tokens", b"a"),
        ("detokenize", "tokens", ["a"]),
        ("detokenize", "tokens", [*range(10_000), "a"]),
    ],
)
def test_a_wrong_argument_of_a_tokenizer_is_named(
    model: llm_node.Model, method: str, param: str, wrong: Any
) -> None:
    with pytest.raises(llm_node.NodeError, match=f"{param} is ") as caught:
        getattr(model, method)(wrong)
    assert caught.value.param == param
    assert len(str(caught.value)) < 1000


def test_a_setting_that_the_engine_does_not_know_is_refused(
    engine: llm_node.Engine, demo_model: Path
) -> None:
    with pytest.raises(llm_node.NodeError, match=r"knows no option 'treads'; it knows .*threads") as caught:
        engine.load(demo_model, options={"treads": "1"})
    assert caught.value.param == "options.treads"


def test_the_snippet_of_the_documentation(llama_cpp: Path, demo_model: Path) -> None:
    """In a process of its own: it must also end cleanly."""
    code = (
        "import sys, llm_node\n"
        "with llm_node.Engine(sys.argv[1]) as e, e.load(sys.argv[2]) as m:\n"
        "    for piece in m.generate('Once upon a time', max_tokens=8): print(piece, end='')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(llama_cpp), str(demo_model)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_a_gpu_that_shares_the_host_s_memory_has_no_more_than_that(tmp_path: Path) -> None:
    file = tmp_path / "large.toy"
    file.write_text(f"TOY1\nestimate_bytes={1 << 48}\n")

    def sequences(kind: str) -> int:
        """Of a model that takes a part of the GPU, and more than the host has."""
        defines = {"FAKE_DEVICE_KIND": f"ENGINE_DEVICE_{kind}", "FAKE_DEVICE_BYTES": 1 << 50}
        folder = fake_engine(tmp_path / kind, "toy", backend="cuda", defines=defines)
        with llm_node.Engine(folder) as engine, engine.load(file) as model:
            return int(model.facts["max_sequences"])

    assert sequences("GPU") > sequences("INTEGRATED") == 1
