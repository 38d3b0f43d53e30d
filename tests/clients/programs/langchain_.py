"""One task for LangChain: a stream, and a loop with tools. usage: langchain_.py URL API

API: openai, anthropic or ollama.
"""

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

url, api = sys.argv[1:]
ran = []


def model_of(api):
    if api == "openai":
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model="says", base_url=f"{url}/v1", api_key="none", temperature=0)
    if api == "anthropic":
        from langchain_anthropic import ChatAnthropic

        return ChatAnthropic(model="says", base_url=url, api_key="none", max_tokens=400, temperature=0)
    from langchain_ollama import ChatOllama

    return ChatOllama(model="says", base_url=url, temperature=0)


@tool
def get_weather(city: str) -> str:
    """The weather."""
    ran.append(["get_weather", {"city": city}])
    return "rain"


@tool
def now() -> str:
    """The time."""
    ran.append(["now", {}])
    return "late"


model = model_of(api)
streamed = "".join(chunk.text for chunk in model.stream("thinks"))
tools = {each.name: each for each in (get_weather, now)}
messages = [HumanMessage("several")]
while True:
    message = model.bind_tools(list(tools.values())).invoke(messages)
    messages.append(message)
    if not message.tool_calls:
        break
    messages += [tools[call["name"]].invoke(call) for call in message.tool_calls]
print(json.dumps({"streamed": streamed, "ran": ran, "answer": message.text}))
