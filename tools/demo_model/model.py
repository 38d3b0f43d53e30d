"""The network: a small llama (RMSNorm, interleaved RoPE, grouped-query attention, SwiGLU, tied embedding).

Owns the shape and the forward pass. It knows nothing of text, of training or of files.
RoPE turns the pairs (0,1), (2,3), ... of each head, which is what llama.cpp does for the architecture
"llama"; the weights can therefore be written to GGUF as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Shape:
    vocab: int
    width: int = 256
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 640
    context: int = 1024
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


Weights = dict[str, jax.Array]


def initial_weights(shape: Shape, seed: int) -> Weights:
    """Matrices are [layers, in, out]; the last of a layer start small, so that it begins near identity."""
    rng = np.random.default_rng(seed)
    layers, width, kv = shape.layers, shape.width, shape.kv_heads * shape.head_width

    def matrix(rows: int, columns: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(rng.normal(0, scale * rows**-0.5, (layers, rows, columns)), jnp.float32)

    small = (2 * layers) ** -0.5
    return {
        "embedding": jnp.asarray(rng.normal(0, 0.02, (shape.vocab, width)), jnp.float32),
        "norm": jnp.ones(width),
        "attention_norm": jnp.ones((layers, width)),
        "ffn_norm": jnp.ones((layers, width)),
        "q": matrix(width, width),
        "k": matrix(width, kv),
        "v": matrix(width, kv),
        "o": matrix(width, width, small),
        "gate": matrix(width, shape.hidden),
        "up": matrix(width, shape.hidden),
        "down": matrix(shape.hidden, width, small),
    }


def normalise(x: jax.Array, gain: jax.Array, epsilon: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * gain


def rope_tables(shape: Shape, length: int) -> tuple[jax.Array, jax.Array]:
    half = shape.head_width // 2
    frequency = shape.rope_base ** (-np.arange(half) * 2.0 / shape.head_width)
    angle = np.arange(length)[:, None] * frequency[None]
    return jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """x: [batch, length, heads, head width]; neighbours are a pair."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cosine, sine = cosine[None, :, None], sine[None, :, None]
    return jnp.stack([even * cosine - odd * sine, even * sine + odd * cosine], axis=-1).reshape(x.shape)


def logits(weights: Weights, shape: Shape, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """[batch, length] tokens to [batch, length, vocab]. A token sees only earlier ones of its own segment."""
    batch, length = tokens.shape
    group = shape.heads // shape.kv_heads
    cosine, sine = rope_tables(shape, length)
    visible = (segments[:, :, None] == segments[:, None, :]) & jnp.tril(jnp.ones((length, length), bool))
    bias = jnp.where(visible, 0.0, -1e9)[:, None, None]
    x = weights["embedding"][tokens]
    for layer in range(shape.layers):
        h = normalise(x, weights["attention_norm"][layer], shape.epsilon)
        q = rotate((h @ weights["q"][layer]).reshape(batch, length, shape.heads, -1), cosine, sine)
        k = rotate((h @ weights["k"][layer]).reshape(batch, length, shape.kv_heads, -1), cosine, sine)
        v = (h @ weights["v"][layer]).reshape(batch, length, shape.kv_heads, -1)
        q = q.reshape(batch, length, shape.kv_heads, group, -1)
        score = jnp.einsum("bikgd,bjkd->bkgij", q, k) * shape.head_width**-0.5 + bias
        mixed = jnp.einsum("bkgij,bjkd->bikgd", jax.nn.softmax(score, axis=-1), v)
        x = x + mixed.reshape(batch, length, -1) @ weights["o"][layer]
        h = normalise(x, weights["ffn_norm"][layer], shape.epsilon)
        x = (
            x
            + (jax.nn.silu(h @ weights["gate"][layer]) * (h @ weights["up"][layer])) @ weights["down"][layer]
        )
    return normalise(x, weights["norm"], shape.epsilon) @ weights["embedding"].T
