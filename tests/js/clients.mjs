// One task for each client: a stream, and a loop with tools. Prints what came of it as JSON.
// usage: node clients.mjs URL CLIENT
const [url, name] = process.argv.slice(2);
const model = "says";
const weather = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city"],
};
const nothing = { type: "object", properties: {} };
const question = (content) => [{ role: "user", content }];
const ran = [];
const run = (tool, input) => {
  ran.push([tool, input]);
  return "rain";
};

const clients = {
  async openai() {
    const { default: OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
    let streamed = "";
    const stream = client.chat.completions
      .stream({ model, messages: question("thinks"), temperature: 0 })
      .on("content", (delta) => (streamed += delta));
    const whole = await stream.finalContent();
    const described = (name, parameters) => ({
      type: "function",
      function: { name, description: name, parameters, parse: JSON.parse, function: (input) => run(name, input) },
    });
    const runner = client.chat.completions.runTools({
      model,
      messages: question("several"),
      temperature: 0,
      tools: [described("get_weather", weather), described("now", nothing)],
    });
    return { streamed, whole, answer: await runner.finalContent() };
  },

  async anthropic() {
    const { default: Anthropic } = await import("@anthropic-ai/sdk");
    const client = new Anthropic({ baseURL: url, apiKey: "none" });
    const asked = { model, max_tokens: 400, temperature: 0 };
    let streamed = "";
    const stream = client.messages
      .stream({ ...asked, messages: question("thinks") })
      .on("text", (delta) => (streamed += delta));
    const text = (message) => message.content.filter((it) => it.type === "text").map((it) => it.text).join("");
    const whole = text(await stream.finalMessage());
    const tools = [
      { name: "get_weather", input_schema: weather },
      { name: "now", input_schema: nothing },
    ];
    const messages = question("several");
    let message;
    do {
      message = await client.messages.stream({ ...asked, messages, tools }).finalMessage();
      messages.push({ role: "assistant", content: message.content });
      const results = message.content
        .filter((it) => it.type === "tool_use")
        .map((it) => ({ type: "tool_result", tool_use_id: it.id, content: run(it.name, it.input) }));
      if (results.length > 0) messages.push({ role: "user", content: results });
    } while (message.stop_reason === "tool_use");
    return { streamed, whole, answer: text(message) };
  },

  async ollama() {
    const { Ollama } = await import("ollama");
    const client = new Ollama({ host: url });
    const asked = { model, options: { temperature: 0 } };
    let streamed = "";
    const stream = await client.chat({ ...asked, messages: question("thinks"), stream: true });
    for await (const part of stream) streamed += part.message.content;
    const { content: whole } = (await client.chat({ ...asked, messages: question("thinks") })).message;
    const described = (name, parameters) => ({ type: "function", function: { name, description: name, parameters } });
    const tools = [described("get_weather", weather), described("now", nothing)];
    const messages = question("several");
    let calls;
    do {
      const { message } = await client.chat({ ...asked, messages, tools });
      messages.push(message);
      calls = message.tool_calls ?? [];
      for (const { function: call } of calls)
        messages.push({ role: "tool", tool_name: call.name, content: run(call.name, call.arguments) });
    } while (calls.length > 0);
    return { streamed, whole, answer: messages.at(-1).content };
  },

  async ai() {
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    const { generateText, jsonSchema, stepCountIs, streamText, tool } = await import("ai");
    const provider = createOpenAICompatible({ name: "llm-node", baseURL: `${url}/v1`, apiKey: "none" });
    const asked = { model: provider(model), temperature: 0, maxRetries: 0 };
    const stream = streamText({ ...asked, prompt: "thinks" });
    let streamed = "";
    for await (const delta of stream.textStream) streamed += delta;
    const described = (name, schema) =>
      tool({ description: name, inputSchema: jsonSchema(schema), execute: (input) => run(name, input) });
    const { text } = await generateText({
      ...asked,
      prompt: "several",
      tools: { get_weather: described("get_weather", weather), now: described("now", nothing) },
      stopWhen: stepCountIs(4),
    });
    return { streamed, whole: await stream.text, answer: text };
  },
};

const found = await clients[name]();
process.stdout.write(`${JSON.stringify({ ...found, ran })}\n`);
