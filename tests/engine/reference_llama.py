"""Llama's forward pass as the paper has it: float64 numpy, no cache, no fusion. The engine must equal it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engine.describing.architecture import DecoderConfig

Float64Array = npt.NDArray[np.float64]


def reference_logits(
    config: DecoderConfig, tensor: Callable[[str], npt.NDArray[np.float32]], ids: Sequence[int]
) -> Float64Array:
    """Return the logits [len(ids), vocab] of every position."""

    def weight(name: str) -> Float64Array:
        return tensor(name).astype(np.float64)

    def norm(x: Float64Array, name: str) -> Float64Array:
        scaled: Float64Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.rms_norm_eps)
        return scaled * weight(name)

    embed = weight("embed")
    hidden = embed[list(ids)]
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        normed = norm(hidden, f"{prefix}attn_norm")
        query, key, value = (normed @ weight(prefix + part).T for part in "qkv")
        hidden = hidden + _attention(config, query, key, value) @ weight(f"{prefix}o").T
        normed = norm(hidden, f"{prefix}mlp_norm")
        gate, up = normed @ weight(f"{prefix}gate").T, normed @ weight(f"{prefix}up").T
        hidden = hidden + (gate / (1.0 + np.exp(-gate)) * up) @ weight(f"{prefix}down").T
    return norm(hidden, "final_norm") @ (embed if config.tied_embeddings else weight("head")).T


def _attention(
    config: DecoderConfig, query: Float64Array, key: Float64Array, value: Float64Array
) -> Float64Array:
    """Attend causally, [tokens, heads * head_dim] each; groups of heads share a key/value head."""
    group = config.num_heads // config.num_kv_heads
    queries = _rotate(config, _heads(query, config.num_heads))
    keys = _rotate(config, _heads(key, config.num_kv_heads)).repeat(group, axis=0)
    values = _heads(value, config.num_kv_heads).repeat(group, axis=0)
    scores = queries @ keys.swapaxes(1, 2) / np.sqrt(config.head_dim)
    num_tokens = len(query)
    scores[:, np.triu(np.ones((num_tokens, num_tokens), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended: Float64Array = weights @ values
    return attended.swapaxes(0, 1).reshape(num_tokens, -1)


def _heads(rows: Float64Array, num_heads: int) -> Float64Array:
    """[tokens, heads * head_dim] -> [heads, tokens, head_dim]."""
    return rows.reshape(len(rows), num_heads, -1).swapaxes(0, 1)


def _rotate(config: DecoderConfig, heads: Float64Array) -> Float64Array:
    """Rotate the pairs (i, i + d/2) of [heads, tokens, d] by position / factor * theta^(-2i / d)."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** -(np.arange(half) * 2 / config.head_dim)
    angles = np.arange(heads.shape[1])[:, None] / config.rope_factor * frequencies
    first, second = heads[..., :half], heads[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
