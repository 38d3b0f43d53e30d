"""One task for LangChain: a stream, and a loop with tools. usage: langchain_openai_.py URL"""

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

ran = []


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


model = ChatOpenAI(model="says", base_url=f"{sys.argv[1]}/v1", api_key="none", temperature=0)
streamed = "".join(chunk.content for chunk in model.stream("thinks"))
tools = {each.name: each for each in (get_weather, now)}
messages = [HumanMessage("several")]
while True:
    message = model.bind_tools(list(tools.values())).invoke(messages)
    messages.append(message)
    if not message.tool_calls:
        break
    messages += [tools[call["name"]].invoke(call) for call in message.tool_calls]
print(json.dumps({"streamed": streamed, "ran": ran, "answer": message.content}))
