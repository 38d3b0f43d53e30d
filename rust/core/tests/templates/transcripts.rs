//! What models write, by their cards, their makers' descriptions and the reports of people who run them, and what is
//! read in it. Control tokens are spelled as the template spells them.

use std::{collections::BTreeMap, sync::Arc};

use llm_node_core::chat::{
    conversation::{Conversation, Thinking},
    parse::{Found, Parsed, Parser},
};

use super::{
    calls::{Model, Written, joined, push},
    support::{TEMPLATES, of, tool, user},
};

const KOELN: &str = r#"{"city": "Köln", "days": 3}"#;

fn text(text: &str) -> Found {
    Found::Text(text.to_owned())
}

fn thought(text: &str) -> Found {
    Found::Reasoning(text.to_owned())
}

fn call(name: &str, input: &str) -> Vec<Found> {
    vec![Found::CallBegan(name.to_owned()), Found::Input(input.to_owned()), Found::CallEnded]
}

fn weather() -> Vec<Found> {
    call("get_weather", KOELN)
}

fn both() -> Vec<Found> {
    [weather(), call("now", "{}")].concat()
}

fn after(first: Found, rest: Vec<Found>) -> Vec<Found> {
    [vec![first], rest].concat()
}

/// What an answer is read as, behind the prompt of a question with tools, whole and character by character.
fn read(model: &Model, thinking: Thinking, answer: &str) -> Vec<Found> {
    let schema = r#"{"type": "object", "properties": {"city": {"type": "string", "description": "Where."},
        "days": {"type": "integer", "description": "How long."}}}"#;
    let nothing = r#"{"type": "object", "properties": {}}"#;
    let tools = [tool("get_weather", "The weather.", schema), tool("now", "The time.", nothing)];
    let asked = model.asked(&Conversation { thinking, ..of(vec![user("Well?")], &tools) }).unwrap();
    let watch = Arc::new(asked.watch);
    let whole = model.spelled(answer);
    let pieces = whole.iter().flat_map(|it| match it {
        Written::Text(text) => text.chars().map(|it| Written::Text(it.to_string())).collect(),
        Written::Control(_) => vec![it.clone()],
    });
    let [whole, pieces] = [whole.clone(), pieces.collect()].map(|answer| {
        let (mut parser, mut out) = (Parser::new(Arc::clone(&watch)), Vec::<Parsed>::new());
        parser.push(&asked.begun, &mut Vec::new());
        for written in &answer {
            push(&mut parser, written, &mut out);
        }
        parser.finish(true, &mut out);
        assert_eq!(parser.held(), 0);
        joined(&out)
    });
    assert_eq!(whole, pieces, "{answer}");
    whole
}

/// A template, whether thinking is asked for, what the model writes behind the prompt, and what that is.
type Transcript = (&'static str, bool, &'static str, Vec<Found>);

fn transcripts() -> Vec<Transcript> {
    [
        deepseek(),
        qwen(),
        mistral(),
        meta(),
        cohere(),
        openai_and_google(),
        glm_kimi_and_minimax(),
        muse_and_kimi_k3(),
        others(),
    ]
    .concat()
}

fn deepseek() -> Vec<Transcript> {
    let v3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Köln\", \"days\": 3}\n```<｜tool▁call▁end｜>";
    vec![
        // R1 opens its reasoning in the prompt, and speaks or calls behind it.
        (
            "llama-cpp-deepseek-r1",
            true,
            "Hm.\n</think>\n\nIt is fine.",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (
            "llama-cpp-deepseek-r1",
            true,
            "Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Köln\", \"days\": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            after(thought("Hm."), weather()),
        ),
        // It forgets to close what it thinks.
        (
            "llama-cpp-deepseek-r1",
            true,
            "Hm.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            after(thought("Hm."), call("now", "{}")),
        ),
        (
            "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
            true,
            "Hm.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Köln\", \"days\": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            after(thought("Hm."), both()),
        ),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", true, v3, weather()),
        // V3.1: no kind, no block of code; and without what stands around all calls.
        (
            "deepseek-ai-DeepSeek-V3.1",
            false,
            "Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Köln\", \"days\": 3}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            after(text("Let me look."), both()),
        ),
        (
            "deepseek-ai-DeepSeek-V3.1",
            false,
            "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Köln\", \"days\": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            weather(),
        ),
        (
            "deepseek-ai-DeepSeek-V3.1",
            true,
            "Hm.</think>It is fine.",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (
            "deepseek-ai-DeepSeek-V3.2",
            true,
            "Hm.</think>I look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Köln</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            [vec![thought("Hm."), text("I look.")], both()].concat(),
        ),
        (
            "deepseek-ai-DeepSeek-V4",
            false,
            "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Köln</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
            weather(),
        ),
    ]
}

fn qwen() -> Vec<Transcript> {
    let hermes = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let coder = "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>";
    // Qwen3-Coder leaves out the first mark behind text.
    let headless = "I look.\n\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
    let bare = "<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n\n<function=now>\n</function>";
    vec![
        ("Qwen-Qwen2.5-7B-Instruct", false, hermes, both()),
        (
            "Qwen-Qwen2.5-7B-Instruct",
            false,
            "```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n```",
            weather(),
        ),
        (
            "Qwen-Qwen3-0.6B",
            true,
            "<think>\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n</tool_call>",
            after(thought("Hm."), weather()),
        ),
        (
            "Qwen-QwQ-32B",
            true,
            "Hm.\n</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n</tool_call>",
            after(thought("Hm."), weather()),
        ),
        ("Qwen3-Coder", false, coder, both()),
        ("Qwen3-Coder", false, headless, after(text("I look."), weather())),
        ("Qwen3-Coder", false, bare, both()),
        (
            "Qwen3.5-4B",
            true,
            "Hm.\n</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            after(thought("Hm."), weather()),
        ),
        ("MiMo-VL", false, hermes, both()),
        ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", false, hermes, both()),
        (
            "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
            false,
            "<tool_call>\n{\"arguments\": {\"city\": \"Köln\", \"days\": 3}, \"name\": \"get_weather\"}\n</tool_call>",
            weather(),
        ),
        ("ibm-granite-granite-4.0", false, hermes, both()),
    ]
}

fn mistral() -> Vec<Transcript> {
    vec![
        // v3 and v7: a list.
        (
            "mistralai-Mistral-Nemo-Instruct-2407",
            false,
            "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}, {\"name\": \"now\", \"arguments\": {}}]",
            both(),
        ),
        (
            "mistralai-Mistral-Nemo-Instruct-2407",
            false,
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}, \"id\": \"a1b2c3d4e\"}]",
            weather(),
        ),
        // v11: with an id and without.
        (
            "Mistral-Small-3.2-24B-Instruct-2506",
            false,
            "[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{\"city\": \"Köln\", \"days\": 3}",
            weather(),
        ),
        (
            "Mistral-Small-3.2-24B-Instruct-2506",
            false,
            "I look.[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Köln\", \"days\": 3}[TOOL_CALLS]now[ARGS]{}",
            after(text("I look."), both()),
        ),
        // v13.
        (
            "unsloth-mistral-Devstral-Small-2507",
            false,
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Köln\", \"days\": 3}[TOOL_CALLS]now[ARGS]{}",
            both(),
        ),
        (
            "mistralai-Ministral-3-14B-Reasoning-2512",
            false,
            "[THINK]Hm.[/THINK][TOOL_CALLS]get_weather[ARGS]{\"city\": \"Köln\", \"days\": 3}",
            after(thought("Hm."), weather()),
        ),
        (
            "mistralai-Ministral-3-14B-Reasoning-2512",
            false,
            "[THINK]Hm.[/THINK]It is fine.",
            vec![thought("Hm."), text("It is fine.")],
        ),
    ]
}

fn meta() -> Vec<Transcript> {
    let mut all = Vec::new();
    for name in [
        "meta-llama-Llama-3.1-8B-Instruct",
        "meta-llama-Llama-3.2-3B-Instruct",
        "meta-llama-Llama-3.3-70B-Instruct",
    ] {
        all.extend([
            (name, false, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 3}}", weather()),
            (name, false, "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 3}}", weather()),
            (
                name,
                false,
                "{\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 3}}",
                weather(),
            ),
            (
                name,
                false,
                "{\"type\": \"function\", \"function\": \"now\", \"parameters\": {}}",
                vec![text("{\"type\": \"function\", \"function\": \"now\", \"parameters\": {}}")],
            ),
        ]);
    }
    all.extend([
        (
            "meta-llama-Llama-3.1-8B-Instruct",
            false,
            "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 3}}; {\"name\": \"now\", \"parameters\": {}}",
            both(),
        ),
        (
            "meetkai-functionary-medium-v3.1",
            false,
            "<function=get_weather>{\"city\": \"Köln\", \"days\": 3}</function><function=now>{}</function>",
            both(),
        ),
        // 3.2: the prompt has written the first mark.
        ("meetkai-functionary-medium-v3.2", false, "get_weather\n{\"city\": \"Köln\", \"days\": 3}>>>now\n{}", both()),
        (
            "meetkai-functionary-medium-v3.2",
            false,
            "all\nI look.\n>>>get_weather\n{\"city\": \"Köln\", \"days\": 3}",
            after(text("I look."), weather()),
        ),
        ("meetkai-functionary-medium-v3.2", false, "all\nIt is fine.", vec![text("It is fine.")]),
    ]);
    all
}

fn cohere() -> Vec<Transcript> {
    let r7b = "CohereForAI-c4ai-command-r7b-12-2024-tool_use";
    let action = "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 3}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"now\", \"parameters\": {}}\n]<|END_ACTION|>";
    vec![
        (
            "CohereForAI-c4ai-command-r-plus-tool_use",
            false,
            "Action: ```json\n[\n    {\n        \"tool_name\": \"get_weather\",\n        \"parameters\": {\"city\": \"Köln\", \"days\": 3}\n    }\n]```",
            weather(),
        ),
        (
            r7b,
            true,
            "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>It is fine.<|END_RESPONSE|>",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (r7b, false, action, both()),
        (r7b, false, "<|START_RESPONSE|>It is fine.<|END_RESPONSE|>", vec![text("It is fine.")]),
        (
            "Cohere2MoE",
            true,
            "Hm.<|END_THINKING|><|START_TEXT|>It is fine.<|END_TEXT|>",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (
            "Cohere2MoE",
            true,
            "Hm.<|END_THINKING|><|START_ACTION|>[{\"tool_call_id\": \"0\", \"tool_name\": \"now\", \"parameters\": {}}]<|END_ACTION|>",
            after(thought("Hm."), call("now", "{}")),
        ),
    ]
}

fn openai_and_google() -> Vec<Transcript> {
    let oss = "openai-gpt-oss-120b";
    let gemma = "google-gemma-4-31B-it";
    vec![
        (
            oss,
            false,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is fine.",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (
            oss,
            false,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Köln\", \"days\": 3}<|call|>",
            after(thought("Hm."), weather()),
        ),
        (
            gemma,
            true,
            "<|channel>thought\nHm.\n<channel|>It is fine.",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (
            gemma,
            true,
            "<|channel>thought\nHm.\n<channel|><|tool_call>call:get_weather{city:<|\"|>Köln<|\"|>,days:3}<tool_call|>",
            after(thought("Hm."), weather()),
        ),
        (
            gemma,
            false,
            "<|tool_call>call:get_weather{city:<|\"|>Köln<|\"|>,days:3}<tool_call|><|tool_call>call:now{}<tool_call|>",
            both(),
        ),
        (gemma, true, "It is fine.", vec![text("It is fine.")]),
    ]
}

fn glm_kimi_and_minimax() -> Vec<Transcript> {
    let glm = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>";
    let kimi = "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Köln\", \"days\": 3}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>";
    vec![
        (
            "GLM-4.6",
            false,
            "I look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
            after(text("I look."), both()),
        ),
        (
            "GLM-4.6",
            true,
            "\n<think>Hm.</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
            after(thought("Hm."), weather()),
        ),
        ("GLM-4.6", false, glm, weather()),
        (
            "GLM-4.7-Flash",
            true,
            "Hm.</think>I look.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Köln</arg_value><arg_key>days</arg_key><arg_value>3</arg_value></tool_call><tool_call>now</tool_call>",
            [vec![thought("Hm."), text("I look.")], both()].concat(),
        ),
        ("moonshotai-Kimi-K2", false, kimi, both()),
        (
            "Kimi-K2-Instruct",
            false,
            "I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Köln\", \"days\": 3}<|tool_call_end|><|tool_calls_section_end|>",
            after(text("I look."), weather()),
        ),
        // Without what stands around all calls, and without the word before the name.
        (
            "Kimi-K2-Instruct",
            false,
            "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Köln\", \"days\": 3}<|tool_call_end|>",
            weather(),
        ),
        (
            "Kimi-K2-Instruct",
            false,
            "<|tool_calls_section_begin|><|tool_call_begin|>get_weather:0<|tool_call_argument_begin|>{\"city\": \"Köln\", \"days\": 3}<|tool_call_end|><|tool_calls_section_end|>",
            weather(),
        ),
        (
            "Kimi-K2-Thinking",
            true,
            "<think>Hm.</think><|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
            after(thought("Hm."), call("now", "{}")),
        ),
        (
            "MiniMax-M1",
            false,
            "<tool_calls>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n{\"name\": \"now\", \"arguments\": {}}\n</tool_calls>",
            both(),
        ),
        (
            "MiniMax-M2",
            true,
            "Hm.\n</think>\n\nI look.\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Köln</parameter>\n<parameter name=\"days\">3</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
            [vec![thought("Hm."), text("I look.")], both()].concat(),
        ),
        (
            "ByteDance-Seed-OSS",
            false,
            "<seed:think>Hm.</seed:think>\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Köln</parameter>\n<parameter=days>3</parameter>\n</function>\n</seed:tool_call>",
            after(thought("Hm."), weather()),
        ),
        (
            "StepFun3.5-Flash",
            true,
            "Hm.\n</think>\n<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            after(thought("Hm."), weather()),
        ),
        (
            "tencent-Hy3",
            false,
            "<tool_calls:opensource>\n<tool_call:opensource>get_weather<tool_sep:opensource>\n<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>Köln</arg_value:opensource>\n<arg_key:opensource>days</arg_key:opensource>\n<arg_value:opensource>3</arg_value:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>",
            weather(),
        ),
    ]
}

/// Messages and elements, as the cards' templates have them.
fn muse_and_kimi_k3() -> Vec<Transcript> {
    let (muse, kimi) = ("muse-glimmer", "Kimi-K3");
    vec![
        (muse, false, " to=user<|message|>It is fine.<|eot|>", vec![text("It is fine.")]),
        (
            muse,
            false,
            " to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>It is fine.<|eot|>",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (
            muse,
            false,
            " to=self<|message|>Hm.<|eom|><|start|>assistant to=get_weather<|message|><atem:function_calls>\n<atem:invoke name=\"get_weather\">\n<atem:parameter name=\"city\">Köln</atem:parameter>\n<atem:parameter name=\"days\">3</atem:parameter>\n</atem:invoke>\n</atem:function_calls><|eom|><|start|>assistant to=now<|message|><atem:function_calls>\n<atem:invoke name=\"now\">\n</atem:invoke>\n</atem:function_calls><|eot|>",
            after(thought("Hm."), both()),
        ),
        // It answers and calls in one turn.
        (
            muse,
            false,
            " to=user<|message|>I look.<|eom|><|start|>assistant to=now<|message|><atem:function_calls>\n<atem:invoke name=\"now\">\n</atem:invoke>\n</atem:function_calls><|eot|>",
            after(text("I look."), call("now", "{}")),
        ),
        (
            kimi,
            true,
            "Hm.<|close|>think<|sep|><|open|>response<|sep|>It is fine.<|close|>response<|sep|><|close|>message<|sep|>",
            vec![thought("Hm."), text("It is fine.")],
        ),
        // The prompt opens the text.
        (
            kimi,
            false,
            "It is fine.<|close|>response<|sep|><|close|>message<|sep|>",
            vec![text("It is fine.")],
        ),
        (
            kimi,
            true,
            "Hm.<|close|>think<|sep|><|open|>response<|sep|>I look.<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool=\"get_weather\" index=\"1\"<|sep|><|open|>argument key=\"city\" type=\"string\"<|sep|>Köln<|close|>argument<|sep|><|open|>argument key=\"days\" type=\"number\"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool=\"now\" index=\"2\"<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
            [vec![thought("Hm."), text("I look.")], both()].concat(),
        ),
        (
            kimi,
            false,
            "<|close|>response<|sep|><|open|>tools<|sep|><|open|>call tool=\"now\" index=\"1\"<|sep|><|close|>call<|sep|><|close|>tools<|sep|><|close|>message<|sep|>",
            call("now", "{}"),
        ),
    ]
}

fn others() -> Vec<Transcript> {
    vec![
        (
            "ibm-granite-granite-3.3-2B-Instruct",
            false,
            "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}, {\"name\": \"now\", \"arguments\": {}}]",
            both(),
        ),
        (
            "ibm-granite-granite-3.3-2B-Instruct",
            true,
            "<think>Hm.</think>\n<response>It is fine.</response>",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (
            "LFM2-8B-A1B",
            false,
            "<|tool_call_start|>[get_weather(city=\"Köln\", days=3), now()]<|tool_call_end|>I look.",
            [both(), vec![text("I look.")]].concat(),
        ),
        (
            "LFM2.5-8B-A1B",
            false,
            "<think>Hm.</think><|tool_call_start|>[get_weather(city='Köln', days=3)]<|tool_call_end|>",
            after(thought("Hm."), weather()),
        ),
        (
            "NVIDIA-Nemotron-Nano-v2",
            true,
            "Hm.\n</think>\n\n<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}, {\"name\": \"now\", \"arguments\": {}}]</TOOLCALL>",
            after(thought("Hm."), both()),
        ),
        (
            "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
            true,
            "Hm.\n</think>\n<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n",
            after(thought("Hm."), weather()),
        ),
        (
            "Apertus-8B-Instruct",
            false,
            "<|inner_prefix|>Hm.<|inner_suffix|><|tools_prefix|>[{\"get_weather\": {\"city\": \"Köln\", \"days\": 3}}, {\"now\": {}}]<|tools_suffix|>",
            after(thought("Hm."), both()),
        ),
        (
            "Apriel-1.6-15b-Thinker-fixed",
            false,
            "I compare.\n[BEGIN FINAL RESPONSE]\nIt is fine.",
            vec![thought("I compare."), text("It is fine.")],
        ),
        (
            "unsloth-Apriel-1.5",
            false,
            "Here are my reasoning steps:\nI compare.\n[BEGIN FINAL RESPONSE]\nIt is fine.\n[END FINAL RESPONSE]",
            vec![thought("I compare."), text("It is fine.")],
        ),
        (
            "upstage-Solar-Open-100B",
            false,
            "<|think|>Hm.<|end|><|begin|>assistant<|content|>It is fine.",
            vec![thought("Hm."), text("It is fine.")],
        ),
        (
            "upstage-Solar-Open-100B",
            false,
            "<|think|>Hm.<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2<|tool_call:name|>get_weather<|tool_call:args|>{\"city\": \"Köln\", \"days\": 3}<|tool_call:end|>",
            after(thought("Hm."), weather()),
        ),
        (
            "openbmb-MiniCPM5-1B",
            true,
            "Hm.\n</think>\n\n<function name=\"get_weather\"><param name=\"city\">Köln</param><param name=\"days\">3</param></function>",
            after(thought("Hm."), weather()),
        ),
        (
            "GigaChat3.1-10B-A1.8B",
            false,
            "<|function_call|>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}",
            weather(),
        ),
    ]
}

#[test]
fn what_models_write_is_read() {
    let (mut models, mut wrong) = (BTreeMap::new(), Vec::new());
    for (name, thinks, answer, expected) in transcripts() {
        let Some((_, source)) = TEMPLATES.iter().find(|it| it.0 == name) else {
            assert!(TEMPLATES.is_empty(), "{name}");
            return;
        };
        let thinking = if thinks { Thinking::On { effort: None, budget: None } } else { Thinking::Off };
        let model = models.entry(name).or_insert_with(|| Model::of(source));
        let found = read(model, thinking, answer);
        if found != expected {
            wrong.push(format!("{name}: {answer:?}\n  is read as {found:?}\n  and not as {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} are misread\n{}", wrong.len(), wrong.join("\n"));
}
