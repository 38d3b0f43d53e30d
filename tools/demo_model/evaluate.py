"""How often the model's greedy answer is exactly the right one, on wordings that it was never trained on.

`python evaluate.py MODEL.gguf` reads the quantised weights of the file itself. The greedy
answer is the right one if and only if each of its tokens is the likeliest after those before it, so one
forward pass over question and answer decides, and no token is generated. "sampled" is the mean chance
that drawing at temperature 0.7 gives exactly that answer.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import data
import gguf_file
import jax
import jax.numpy as jnp
import numpy as np
import tokenizer
from model import logits

SETS = {
    "combination": "known frame and known topic, never seen together",
    "frame": "frames that were never used",
    "politeness": "polite words that were never used",
    "sentence": "whole sentences written by hand",
    "elsewhere": "other subjects, in unknown frames and words",
    "follow-up": "second questions that lean on the first",
    "late": "a held-out wording after six other questions and answers",
    "trained": "wordings drawn as in training, for comparison",
}


class Judge:
    def __init__(self, path: Path, tokens: tokenizer.Tokenizer) -> None:
        weights, self.shape, pieces = gguf_file.read(path)
        ours = [tokens.pieces.id_to_piece(token) for token in range(tokens.pieces.get_piece_size())]
        assert pieces == ours, "tokenizer.model is not that of the model"
        self.weights = {name: jnp.asarray(value) for name, value in weights.items()}
        self.tokens = tokens
        self.forward = jax.jit(lambda weights, ids: logits(weights, self.shape, ids, jnp.zeros_like(ids)))

    def judge(self, conversations: list[list[tuple[str, str]]]) -> list[tuple[bool, float]]:
        """For the last (question, answer) of each: is it the greedy answer, and how likely at 0.7."""
        rows = []
        for turns in conversations:
            messages = [m for question, answer in turns for m in (("user", question), ("assistant", answer))]
            prompt = self.tokens.prompt(messages[:-1])
            rows.append((len(prompt), [*prompt, *self.tokens.encode(turns[-1][1]), self.tokens.end]))
        verdicts: list[tuple[bool, float]] = [(False, 0.0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][1]))
        for at in range(0, len(order), 32):
            chosen = order[at : at + 32]
            length = -(-max(len(rows[i][1]) for i in chosen) // 64) * 64
            ids = np.zeros((32, length), np.int32)
            for row, i in enumerate(chosen):
                ids[row, : len(rows[i][1])] = rows[i][1]
            output = np.asarray(self.forward(self.weights, jnp.asarray(ids)))
            for row, i in enumerate(chosen):
                begin, all_ids = rows[i]
                seen = output[row, begin - 1 : len(all_ids) - 1]
                right = np.asarray(all_ids[begin:])
                scaled = seen / 0.7
                log_chance = scaled[np.arange(len(right)), right] - np.logaddexp.reduce(scaled, axis=-1)
                verdicts[i] = (bool((seen.argmax(-1) == right).all()), float(np.exp(log_chance.sum())))
        return verdicts


def conversations(corpus: data.Corpus, rng: random.Random) -> dict[str, list[list[tuple[str, str]]]]:
    """By set: conversations whose last turn is judged."""
    held = data.held_out(rng)
    sets = {
        name: [[(question, corpus.facts[key].answer)] for question, key in items]
        for name, items in held.items()
    }
    follow = []
    for key in corpus.keys:
        fact = corpus.facts[key]
        for target, wordings in fact.follow_ups.items():
            follow.append(
                [
                    (corpus.question(rng, key), fact.answer),
                    (rng.choice(wordings), corpus.facts[target].answer),
                ]
            )
    sets["follow-up"] = follow
    single = [turn for name in ("combination", "frame") for (turn,) in sets[name]]
    sets["late"] = [[*corpus.draw(rng, 6), turn] for turn in rng.sample(single, 150)]
    sets["trained"] = [corpus.draw(rng, 1) for _ in range(400)]
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--show", type=int, default=0, help="how many failures of each set to print")
    options = parser.parse_args()
    corpus = data.Corpus()
    judge = Judge(options.model, tokenizer.Tokenizer())
    for name, items in conversations(corpus, random.Random(options.seed)).items():
        verdicts = judge.judge(items)
        exact = sum(ok for ok, _ in verdicts) / len(verdicts)
        sampled = sum(chance for _, chance in verdicts) / len(verdicts)
        print(
            f"{name:12} {len(items):5} questions  exact {exact:6.1%}  sampled {sampled:6.1%}   {SETS[name]}",
            flush=True,
        )
        wrong = [item for item, (ok, _) in zip(items, verdicts, strict=True) if not ok]
        for turns in wrong[: options.show]:
            print("   ", json.dumps(turns[-1][0]), "->", json.dumps(turns[-1][1][:70]))
    check = json.loads((data.HERE / "questions_check.json").read_text(encoding="utf-8"))
    answers = {fact.answer for fact in corpus.facts.values()}
    pairs = []
    for item in check:
        matching = [answer for answer in answers if item["contains"] in answer]
        assert matching, item
        pairs.append([[(item["question"], answer)] for answer in matching])
    passed = sum(any(ok for ok, _ in judge.judge(candidates)) for candidates in pairs)
    print(f"questions_check.json: {passed} of {len(pairs)} pass", flush=True)


if __name__ == "__main__":
    main()
