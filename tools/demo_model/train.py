"""Trains the demo model on the CPU: `python train.py --out build`. Then export.py.

The learning rate is constant and falls to zero over the last steps, so a run can be lengthened from a
checkpoint. What a step sees depends on the seed and its number alone. Matrices are trained with Muon
(orthogonalised momentum; Jordan et al. 2024), the embedding and the gains with Adam.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import data
import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
import tokenizer
from model import Shape, Weights, initial_weights, logits

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


# How many turns a conversation has, by the length of the rows. Rows of 128 hold single questions,
# most of them with the beginning of the answer only: what is hard is which answer, and that is decided there.
TURNS = {128: (1,), 256: (1, 1, 1, 2, 2, 3, 4, 6), 1024: (1, 1, 1, 2, 3, 6, 12, 24)}
BEGINNING = 10


@dataclass
class Example:
    """A conversation in tokens."""

    ids: list[int] = field(default_factory=list)
    learn: list[float] = field(default_factory=list)
    """How much each token counts: what the user says, nothing."""
    answers: list[tuple[int, str]] = field(default_factory=list)
    """Where the answer to which fact begins."""

    def add(self, more: list[int], weight: float = 0.0) -> None:
        self.ids += more
        self.learn += [weight] * len(more)

    def add_answer(self, more: list[int], key: str, cut: bool = False) -> None:
        self.answers.append((len(self.ids), key))
        self.add(more[:BEGINNING], 1.0)
        if not cut:
            self.add(more[BEGINNING:], 0.4)


def conversation(
    corpus: data.Corpus, tokens: tokenizer.Tokenizer, rng: random.Random, length: int
) -> Example:
    example = Example()

    def ask(text: str) -> list[int]:
        return tokens.encode(text, dropout=0.1 if rng.random() < 0.25 else 0.0)

    if rng.random() < 0.1:  # some hosts put it there
        example.add([tokens.begin])
    form = rng.random()
    if form < 0.06:  # no chat: a question continued by its answer
        asked, answer = corpus.draw(rng, 1)[0]
        example.add(ask(asked if asked[-1] in "?.!" else asked + "?"))
        example.add_answer([*tokens.encode(" " + answer), tokens.end], corpus.key_of[answer])
        return example
    if form < 0.07:  # no chat: a text that goes on
        _, answer = corpus.draw(rng, 1)[0]
        begun = tokens.encode(answer)
        example.add(begun[:4])
        example.add([*begun[4:], tokens.end], 0.4)
        return example
    if rng.random() < 0.12:
        example.add([tokens.system, *tokens.encode(rng.choice(data.SYSTEM)), tokens.end])
    for asked, answer in corpus.draw(rng, rng.choice(TURNS[length])):
        example.add([tokens.user, *ask(asked), tokens.end, tokens.assistant])
        cut = length == 128 and rng.random() < 0.8
        example.add_answer([*tokens.encode(answer), tokens.end], corpus.key_of[answer], cut)
    return example


def batch(
    corpus: data.Corpus, tokens: tokenizer.Tokenizer, rng: random.Random, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, int, str]]]:
    """Rows filled with conversations, the last one cut: tokens, segments, weights; (row, place, fact)."""
    ids = np.zeros((rows, length + 1), np.int32)
    segments = np.zeros((rows, length + 1), np.int32)
    learn = np.zeros((rows, length + 1), np.float32)
    answers: list[tuple[int, int, str]] = []
    for row in range(rows):
        at, segment = 0, 0
        while at <= length:
            example = conversation(corpus, tokens, rng, length)
            end = min(length + 1, at + len(example.ids))
            ids[row, at:end] = example.ids[: end - at]
            learn[row, at:end] = example.learn[: end - at]
            segments[row, at:end] = segment
            answers += [
                (row, at + place, key) for place, key in example.answers if at + place + BEGINNING <= end
            ]
            at, segment = end, segment + 1
    return ids, segments, learn, answers


def loss_of(
    weights: Weights, shape: Shape, ids: jax.Array, segments: jax.Array, learn: jax.Array
) -> tuple[jax.Array, jax.Array]:
    output = logits(weights, shape, ids[:, :-1], segments[:, :-1])
    right = jnp.take_along_axis(output, ids[:, 1:, None], axis=-1)[..., 0]
    cost = jax.nn.logsumexp(output, axis=-1) - right
    counted = learn[:, 1:] * (segments[:, 1:] == segments[:, :-1])
    return jnp.sum(cost * counted) / jnp.sum(counted), cost


def orthogonalise(matrix: jax.Array) -> jax.Array:
    """The nearest matrix with equal singular values, nearly: five Newton-Schulz steps."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


@partial(jax.jit, static_argnums=1, donate_argnums=(0, 2))
def step(
    weights: Weights, shape: Shape, state: dict[str, Weights], number: jax.Array, rate: jax.Array,
    ids: jax.Array, segments: jax.Array, learn: jax.Array,
) -> tuple[Weights, dict[str, Weights], jax.Array, jax.Array]:  # fmt: skip
    (loss, cost), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, shape, ids, segments, learn)
    new: Weights = {}
    first, second = dict(state["first"]), dict(state["second"])
    for name, value in weights.items():
        gradient = gradients[name]
        if name in MATRICES:
            first[name] = 0.95 * first[name] + gradient
            direction = jax.vmap(orthogonalise)(gradient + 0.95 * first[name])
            rows, columns = value.shape[1:]
            new[name] = (
                value * (1 - 0.02 * 0.05 * rate) - 0.02 * rate * max(1, columns / rows) ** 0.5 * direction
            )
        else:
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient**2
            mean = first[name] / (1 - 0.9 ** (number + 1))
            spread = jnp.sqrt(second[name] / (1 - 0.98 ** (number + 1))) + 1e-10
            new[name] = value - 0.004 * rate * mean / spread
    return new, {"first": first, "second": second}, loss, cost


def rate_at(done: int, number: int, steps: int, falling: int) -> float:
    return min(1.0, (done + 1) / 30, max(0.0, (steps - number) / falling))


class Attention:
    """Asks more often what is not yet known, by a running mean of what the beginning of an answer costs."""

    def __init__(self, corpus: data.Corpus) -> None:
        self.corpus = corpus
        self.base = list(corpus.weights)
        self.cost = dict.fromkeys(corpus.keys, 1.0)

    def learn(self, answers: list[tuple[int, int, str]], cost: np.ndarray) -> None:
        for row, place, key in answers:
            if key in self.cost:
                # cost[i] is that of token i + 1
                now = float(cost[row, place - 1 : place - 1 + BEGINNING].sum())
                self.cost[key] += 0.15 * (min(now, 4.0) - self.cost[key])
        self.corpus.weights = [
            base * (0.25 + self.cost[key]) for base, key in zip(self.base, self.corpus.keys, strict=True)
        ]


def save(path: Path, weights: Weights, state: dict[str, Weights], number: int) -> None:
    arrays = {f"weights.{name}": value for name, value in weights.items()}
    arrays |= {f"{part}.{name}": value for part, values in state.items() for name, value in values.items()}
    np.savez(path, step=number, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--falling", type=int, default=2000, help="steps over which the learning rate falls to zero"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--resume", type=Path, help="a checkpoint")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    tokens = tokenizer.Tokenizer()
    shape = Shape(vocab=tokens.pieces.get_piece_size())
    (options.out / "shape.json").write_text(json.dumps(asdict(shape)))
    weights = initial_weights(shape, options.seed)
    state = {
        part: {name: jnp.zeros_like(value) for name, value in weights.items()} for part in ("first", "second")
    }
    begin = 0
    if options.resume:
        stored = np.load(options.resume)
        weights = {name: jnp.asarray(stored[f"weights.{name}"]) for name in weights}
        state = {part: {name: jnp.asarray(stored[f"{part}.{name}"]) for name in weights} for part in state}
        begin = int(stored["step"])
    print(f"{sum(value.size for value in weights.values()) / 1e6:.2f} M parameters", flush=True)

    corpus = data.Corpus()
    attention = Attention(corpus)
    started, seen, smooth = time.time(), 0, 0.0
    for number in range(begin, options.steps):
        rng = random.Random(f"{options.seed}/{number}")
        sentencepiece.set_random_generator_seed(options.seed * 1_000_000 + number)
        length = 128 if number % 2 else 1024 if number % 8 == 0 else 256
        rows = 2048 // length
        ids, segments, learn, answers = batch(corpus, tokens, rng, rows, length)
        rate = rate_at(number - begin, number, options.steps, options.falling)
        weights, state, loss, cost = step(
            weights, shape, state, jnp.float32(number), jnp.float32(rate), ids, segments, learn
        )
        attention.learn(answers, np.asarray(cost))
        seen += rows * length
        smooth = float(loss) if number == begin else 0.95 * smooth + 0.05 * float(loss)
        if number % 20 == 19 or number == options.steps - 1:
            spent = time.time() - started
            print(
                f"step {number + 1} loss {smooth:.4f} rate {rate:.2f}"
                f" choice {sum(attention.cost.values()) / len(attention.cost):.3f}"
                f" {seen / spent:.0f} tokens/s {spent:.0f} s",
                flush=True,
            )
        if number % 50 == 49 or number == options.steps - 1:
            save(options.out / "checkpoint.npz", weights, state, number + 1)
        if number + 1 == options.steps - options.falling:  # a longer run can begin here
            save(options.out / "constant.npz", weights, state, number + 1)
    np.savez(options.out / "weights.npz", **weights)


if __name__ == "__main__":
    main()
