"""One task for LiteLLM: a stream, and a loop with tools. usage: litellm_.py URL API

API: openai, anthropic or ollama.
"""

import json
import sys

import litellm

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
url, api = sys.argv[1:]
# The word before the model's name, and the address.
of_api = {"openai": ("openai", f"{url}/v1"), "anthropic": ("anthropic", url), "ollama": ("ollama_chat", url)}
word, base = of_api[api]
asked = {"model": f"{word}/says", "api_base": base, "api_key": "none", "temperature": 0}


def question(text):
    return [{"role": "user", "content": text}]


streamed = ""
for chunk in litellm.completion(**asked, messages=question("thinks"), stream=True):
    streamed += chunk.choices[0].delta.content or ""
messages, ran = question("several"), []
while True:
    message = litellm.completion(**asked, messages=messages, tools=TOOLS).choices[0].message
    messages.append(message)
    if not message.tool_calls:
        break
    for call in message.tool_calls:
        ran.append([call.function.name, json.loads(call.function.arguments)])
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
print(json.dumps({"streamed": streamed, "ran": ran, "answer": message.content}))
