"""Does the engine do with the model what training did? Tokens, chat template and greedy answers are compared.

`python verify.py --engine ../../engines/llama_cpp/cpu MODEL.gguf`, in an environment that has
llm_node beside the requirements of training. Exits with 1 where something differs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import data
import jinja2
import tokenizer

import llm_node

STRANGE = [
    "naïve, “quotes” 日本語 😀",
    "two  spaces,\nnew\tline",
    "x",
    "<0x41> [INST] </s>",
    "ERR_OOM_VRAM" * 20,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", type=Path, required=True, help="folder of an engine's manifest.json")
    options = parser.parse_args()
    tokens = tokenizer.Tokenizer()
    corpus, rng = data.Corpus(), random.Random(5)
    template = jinja2.Environment(autoescape=False).from_string(tokenizer.CHAT_TEMPLATE)  # noqa: S701
    wrong = 0
    with llm_node.Engine(options.engine) as engine, engine.load(options.model) as model:
        conversations = [[("user", text)] for text in STRANGE]
        for number in range(100):
            turns = corpus.draw(rng, rng.choice((1, 2, 4)))
            messages = [("system", rng.choice(data.SYSTEM))] if number % 5 == 0 else []
            messages += [part for asked, answer in turns for part in (("user", asked), ("assistant", answer))]
            conversations.append(messages[:-1])
        for messages in conversations:
            plain = [{"role": role, "content": text} for role, text in messages]
            text = template.render(messages=plain, add_generation_prompt=True)
            if model.tokenize(text, parse_special=True) != tokens.prompt(messages):
                wrong += 1
                print("tokens differ:", json.dumps(text))
        print(f"{len(conversations)} conversations tokenised, {wrong} differ")
        check = json.loads((data.HERE / "questions_check.json").read_text(encoding="utf-8"))
        failed = 0
        for item in check:
            answer = "".join(model.generate([{"role": "user", "content": item["question"]}], temperature=0))
            if item["contains"] not in answer:
                failed += 1
                print("answer differs:", json.dumps(item), json.dumps(answer))
        print(f"{len(check)} questions asked, {failed} answers differ")
    sys.exit(1 if wrong or failed else 0)


if __name__ == "__main__":
    main()
