"""Ask a node with the official client, and print the answer as it comes."""

from __future__ import annotations

import os
import sys

from openai import OpenAI

url = os.environ.get("LLM_NODE_URL", "http://127.0.0.1:3000")
question = sys.argv[1] if len(sys.argv) > 1 else "What is an engine?"

with OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
    chunks = client.chat.completions.create(
        model="llm-node-demo",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        stream=True,
    )
    for chunk in chunks:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
