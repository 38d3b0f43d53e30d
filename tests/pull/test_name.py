"""What was typed to get a model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_node import NodeError
from llm_node.pull.name import HubName, Link, read

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("typed", "means"),
    [
        ("org/repo", HubName("org/repo")),
        (" org/repo ", HubName("org/repo")),
        ("org/repo:Q4_K_M", HubName("org/repo", "Q4_K_M")),
        ("org/repo:sub/model-Q8_0.gguf", HubName("org/repo", "sub/model-Q8_0.gguf")),
        ("org/repo@v1:Q4_K_M", HubName("org/repo", "Q4_K_M", "v1")),
        ("org/repo:Q4_K_M@v1", HubName("org/repo", "Q4_K_M", "v1")),
        ("hf.co/org/repo:Q4_K_M", HubName("org/repo", "Q4_K_M")),
        ("hf://org/repo", HubName("org/repo")),
        ("https://huggingface.co/org/repo", HubName("org/repo")),
        (
            "https://huggingface.co/org/repo/blob/main/a%20b-Q4_0.gguf",
            HubName("org/repo", "a b-Q4_0.gguf", "main"),
        ),
        ("https://hf.co/org/repo/resolve/v2/x/m.gguf?download=true", HubName("org/repo", "x/m.gguf", "v2")),
        ("https://example.com/a/My-Model.gguf", Link("https://example.com/a/My-Model.gguf", "My-Model")),
        (f"http://example.com/m.gguf#sha256={HEX}", Link("http://example.com/m.gguf", "m", HEX)),
        ("http://127.0.0.1:8000/m.gguf", Link("http://127.0.0.1:8000/m.gguf", "m")),
    ],
)
def test_what_is_meant(typed: str, means: HubName | Link) -> None:
    assert read(typed) == means


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("qwen3", "neither a repository of the hub"),
        ("a/b/c", "neither a repository of the hub"),
        ("../etc/passwd", "looks like a file of this machine"),
        ("/models/mine.gguf", "looks like a file of this machine"),
        ("~/mine.gguf", "looks like a file of this machine"),
        ("mine.gguf", "looks like a file of this machine"),
        ("C:\\models\\mine.gguf", "looks like a file of this machine"),
        ("org/repo:../../x.gguf", "neither a repository of the hub"),
        ("org/..", "neither a repository of the hub"),
        ("https://example.com/model.bin", "neither a repository of the hub"),
        ("https://example.com/.gguf", "neither a repository of the hub"),
        ("file:///etc/passwd", "neither a repository of the hub"),
        ("http://example.com/m.gguf", "over plain http anybody on the way can change the file"),
        ("http://example.com/m.gguf#sha256=abc", "expected 64 hexadecimal digits"),
        ("http://[::1/m.gguf", "neither a repository of the hub"),
    ],
)
def test_what_is_no_name(typed: str, says: str) -> None:
    with pytest.raises(NodeError) as caught:
        read(typed)
    assert caught.value.code == "invalid_request"
    assert says in caught.value.message


@given(st.text(alphabet=st.sampled_from("ab/:@.-_#%\\ ~\0é"), max_size=40) | st.text(max_size=60))
def test_whatever_is_typed_leads_nowhere_else(typed: str) -> None:
    try:
        source = read(typed)
    except NodeError as fault:
        assert fault.code == "invalid_request"
        return
    if isinstance(source, HubName):
        organisation, _, name = source.repository.partition("/")
        for part in (organisation, name):
            assert part and part not in (".", "..") and "/" not in part and "\\" not in part
            assert not part.startswith(".")
    else:
        assert source.name and "/" not in source.name and not source.name.startswith(".")
