"""What official clients of several dialects get of nodes behind something."""

from __future__ import annotations

import ollama
import openai
import pytest

WORD = [{"role": "user", "content": "Say a word."}]
GREEDY = {"temperature": 0, "num_predict": 12}


def ollama_and_embeddings(dialect: ollama.Client, client: openai.OpenAI, model: str) -> str:
    """Ollama's client chats with `model` and embeds as OpenAI's client does. Gives the text of the chat."""
    assert f"{model}:latest" in [each.model for each in dialect.list().models]
    text = dialect.chat(model, WORD, options=GREEDY).message.content
    *lines, last = dialect.chat(model, WORD, options=GREEDY, stream=True)
    assert text and "".join(line.message.content or "" for line in lines) == text
    assert last.done
    embedded = dialect.embed("slow", ["a dog", "a node"]).embeddings
    with pytest.raises(ollama.ResponseError, match="none-such"):
        dialect.chat("none-such", WORD)
    made = client.embeddings.create(model="slow", input=["a dog", "a node"]).data
    assert [each.embedding for each in made] == [pytest.approx(each, abs=1e-6) for each in embedded]
    assert made[0].embedding != made[1].embedding
    return text
