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
from dataclasses import asdict
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


TURNS = (1, 1, 1, 1, 2, 2, 3, 4, 6)
MANY_TURNS = (1, 1, 1, 2, 3, 6, 12, 24)


def conversation(
    corpus: data.Corpus, tokens: tokenizer.Tokenizer, rng: random.Random, turns: tuple[int, ...]
) -> tuple[list[int], list[float]]:
    """Tokens, and for each whether the model is to learn to say it."""
    ids: list[int] = []
    learn: list[float] = []

    def add(more: list[int], weight: float) -> None:
        ids.extend(more)
        learn.extend([weight] * len(more))

    def ask(text: str) -> list[int]:
        return tokens.encode(text, dropout=0.1 if rng.random() < 0.25 else 0.0)

    if rng.random() < 0.1:  # some hosts put it there
        add([tokens.begin], 0)
    form = rng.random()
    if form < 0.08:  # no chat: a question continued by its answer
        asked, answer = corpus.draw(rng, 1)[0]
        add(ask(asked if asked[-1] in "?.!" else asked + "?"), 0)
        add([*tokens.encode(" " + answer), tokens.end], 1)
        return ids, learn
    if form < 0.10:  # no chat: a text that goes on
        _, answer = corpus.draw(rng, 1)[0]
        add([*tokens.encode(answer), tokens.end], 1)
        learn[:4] = [0] * len(learn[:4])
        return ids, learn
    if rng.random() < 0.15:
        add([tokens.system, *tokens.encode(rng.choice(data.SYSTEM)), tokens.end], 0)
    for asked, answer in corpus.draw(rng, rng.choice(turns)):
        add([tokens.user, *ask(asked), tokens.end, tokens.assistant], 0)
        add([*tokens.encode(answer), tokens.end], 1)
    return ids, learn


def batch(
    corpus: data.Corpus, tokens: tokenizer.Tokenizer, rng: random.Random, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows filled with whole conversations, the last one cut: tokens, segments, weights."""
    ids = np.zeros((rows, length), np.int32)
    segments = np.zeros((rows, length), np.int32)
    learn = np.zeros((rows, length), np.float32)
    for row in range(rows):
        at, segment = 0, 0
        while at < length:
            more, weights = conversation(corpus, tokens, rng, TURNS if length < 512 else MANY_TURNS)
            end = min(length, at + len(more))
            ids[row, at:end] = more[: end - at]
            learn[row, at:end] = weights[: end - at]
            segments[row, at:end] = segment
            at, segment = end, segment + 1
    return ids, segments, learn


def loss_of(
    weights: Weights, shape: Shape, ids: jax.Array, segments: jax.Array, learn: jax.Array
) -> jax.Array:
    output = logits(weights, shape, ids[:, :-1], segments[:, :-1])
    right = jnp.take_along_axis(output, ids[:, 1:, None], axis=-1)[..., 0]
    cost = jax.nn.logsumexp(output, axis=-1) - right
    counted = learn[:, 1:] * (segments[:, 1:] == segments[:, :-1])
    return jnp.sum(cost * counted) / jnp.sum(counted)


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
) -> tuple[Weights, dict[str, Weights], jax.Array]:  # fmt: skip
    loss, gradients = jax.value_and_grad(loss_of)(weights, shape, ids, segments, learn)
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
    return new, {"first": first, "second": second}, loss


def rate_at(number: int, steps: int, falling: int) -> float:
    return min(1.0, (number + 1) / 30, max(0.0, (steps - number) / falling))


def save(path: Path, weights: Weights, state: dict[str, Weights], number: int) -> None:
    arrays = {f"weights.{name}": value for name, value in weights.items()}
    arrays |= {f"{part}.{name}": value for part, values in state.items() for name, value in values.items()}
    np.savez(path, step=number, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument(
        "--falling", type=int, default=300, help="steps over which the learning rate falls to zero"
    )
    parser.add_argument("--vocab", type=int, default=1536)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--resume", type=Path, help="a checkpoint")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    model = options.out / "tokenizer.model"
    if not model.exists():
        tokenizer.train(model.with_suffix(""), options.vocab, options.seed)
    tokens = tokenizer.Tokenizer(model)
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
    started, seen, smooth = time.time(), 0, 0.0
    for number in range(begin, options.steps):
        rng = random.Random(f"{options.seed}/{number}")
        sentencepiece.set_random_generator_seed(options.seed * 1_000_000 + number)
        # While the rate falls, each fourth step has rows as long as the context.
        long = number >= options.steps - options.falling and number % 4 == 0
        rows, length = (2, shape.context) if long else (8, 256)
        ids, segments, learn = batch(corpus, tokens, rng, rows, length + 1)
        rate = rate_at(number, options.steps, options.falling)
        weights, state, loss = step(
            weights, shape, state, jnp.float32(number), jnp.float32(rate), ids, segments, learn
        )
        seen += rows * length
        smooth = float(loss) if number == begin else 0.95 * smooth + 0.05 * float(loss)
        if number % 20 == 19 or number == options.steps - 1:
            spent = time.time() - started
            print(
                f"step {number + 1} loss {smooth:.4f} rate {rate:.2f}"
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
