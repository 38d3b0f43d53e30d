"""One task for LlamaIndex: a stream, and a loop with tools. usage: llama_index_.py URL openai"""

import json
import sys

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

ran = []


def get_weather(city: str) -> str:
    """The weather."""
    ran.append(["get_weather", {"city": city}])
    return "rain"


def now() -> str:
    """The time."""
    ran.append(["now", {}])
    return "late"


model = OpenAILike(
    model="says",
    api_base=f"{sys.argv[1]}/v1",
    api_key="none",
    temperature=0,
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=4096,
)
streamed = "".join(
    part.delta or "" for part in model.stream_chat([ChatMessage(role="user", content="thinks")])
)
tools = {each.metadata.name: each for each in map(FunctionTool.from_defaults, (get_weather, now))}
messages = [ChatMessage(role="user", content="several")]
while True:
    answer = model.chat_with_tools(
        list(tools.values()), chat_history=messages, allow_parallel_tool_calls=True
    )
    messages.append(answer.message)
    calls = model.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
    if not calls:
        break
    for call in calls:
        result = tools[call.tool_name](**call.tool_kwargs)
        messages.append(
            ChatMessage(role="tool", content=str(result), additional_kwargs={"tool_call_id": call.tool_id})
        )
print(json.dumps({"streamed": streamed, "ran": ran, "answer": answer.message.content}))
