"""What LiteLLM makes of errors: the class that it raises for each. usage: litellm_errors_.py URL API

API: openai, anthropic or ollama.
"""

import json
import sys

import litellm

url, api = sys.argv[1:]
of_api = {"openai": ("openai", f"{url}/v1"), "anthropic": ("anthropic", url), "ollama": ("ollama_chat", url)}
word, base = of_api[api]
question = [{"role": "user", "content": "finds"}]
asked = {"model": f"{word}/says", "api_base": base, "api_key": "none", "messages": question, "max_tokens": 3}
wrong = {
    "long": {"messages": [{"role": "user", "content": "word " * 20_000}]},
    "model": {"model": f"{word}/none-such"},
    "value": {"temperature": 3},
}
raised = {}
for name, change in wrong.items():
    try:
        litellm.completion(**{**asked, **change}, num_retries=0)
    except Exception as error:
        raised[name] = type(error).__name__
print(json.dumps(raised))
