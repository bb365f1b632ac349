"""A decoder as the papers have it: float64 numpy, no cache, no fusion. The engine must equal it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from engine.describing.architecture import DecoderConfig
from engine.describing.layers import Activation, Norms, QueryKeyNorm, Rotation

Float64Array = npt.NDArray[np.float64]
Weight = Callable[[str], Float64Array]


def reference_logits(
    config: DecoderConfig,
    tensor: Callable[[str], npt.NDArray[np.float32]],
    ids: Sequence[int],
    max_tokens: int = 0,
) -> Float64Array:
    """Return the logits [len(ids), vocab] of every position, in a model for sequences of `max_tokens`."""

    def weight(name: str) -> Float64Array:
        return tensor(name).astype(np.float64)

    def norm(x: Float64Array, name: str) -> Float64Array:
        scaled: Float64Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.rms_norm_eps)
        return scaled * weight(name)

    def linear(x: Float64Array, name: str, *, has_bias: bool) -> Float64Array:
        product: Float64Array = x @ weight(name).T
        return product + weight(f"{name}_bias") if has_bias else product

    embed = weight("embed")
    hidden = embed[list(ids)] * config.embedding_scale
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        before = config.norms is not Norms.AFTER
        normed = norm(hidden, f"{prefix}attn_norm") if before else hidden
        query, key, value = (linear(normed, prefix + part, has_bias=config.qkv_bias) for part in "qkv")
        if config.query_key_norm is QueryKeyNorm.WHOLE:
            query, key = norm(query, f"{prefix}q_norm"), norm(key, f"{prefix}k_norm")
        queries, keys = _heads(query, config.num_heads), _heads(key, config.num_kv_heads)
        if config.query_key_norm is QueryKeyNorm.HEAD:
            queries, keys = norm(queries, f"{prefix}q_norm"), norm(keys, f"{prefix}k_norm")
        attended = _attention(
            config, layer, queries, keys, _heads(value, config.num_kv_heads), max_tokens or len(ids)
        )
        update = linear(attended, f"{prefix}o", has_bias=config.output_bias)
        if config.norms is not Norms.BEFORE:
            update = norm(update, f"{prefix}attn_post_norm")
        hidden = hidden + config.residual_scale * update
        normed = norm(hidden, f"{prefix}mlp_norm") if before else hidden
        gate, up = (linear(normed, prefix + part, has_bias=config.mlp_bias) for part in ("gate", "up"))
        update = linear(_activated(config, gate) * up, f"{prefix}down", has_bias=config.mlp_bias)
        if config.norms is not Norms.BEFORE:
            update = norm(update, f"{prefix}mlp_post_norm")
        hidden = hidden + config.residual_scale * update
    logits = norm(hidden, "final_norm") @ (embed if config.tied_embeddings else weight("head")).T
    logits = logits * config.logit_scale
    return _capped(logits, config.logit_softcap)


def _activated(config: DecoderConfig, x: Float64Array) -> Float64Array:
    if config.activation is Activation.SILU:
        return x / (1.0 + np.exp(-x))
    bent: Float64Array = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1.0 + bent)


def _capped(x: Float64Array, cap: float) -> Float64Array:
    capped: Float64Array = np.tanh(x / cap) * cap if cap else x
    return capped


def _attention(
    config: DecoderConfig,
    layer: int,
    queries: Float64Array,
    keys: Float64Array,
    values: Float64Array,
    max_tokens: int,
) -> Float64Array:
    """Attend causally, [heads, tokens, head_dim] each; groups of heads share a key/value head."""
    group = config.num_heads // config.num_kv_heads
    own = config.layer(layer)
    queries = _rotate(config, own.rotation, queries, max_tokens)
    keys = _rotate(config, own.rotation, keys, max_tokens).repeat(group, axis=0)
    scale = config.attention_scale or 1 / np.sqrt(config.head_dim)
    scores = _capped(queries @ keys.swapaxes(1, 2) * scale, config.attention_softcap)
    num_tokens = queries.shape[1]
    back = np.arange(num_tokens)[:, None] - np.arange(num_tokens)
    scores[:, (back < 0) | ((back >= own.window) & (own.window > 0))] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended: Float64Array = weights @ values.repeat(group, axis=0)
    return attended.swapaxes(0, 1).reshape(num_tokens, -1)


def _heads(rows: Float64Array, num_heads: int) -> Float64Array:
    """[tokens, heads * head_dim] -> [heads, tokens, head_dim]."""
    return rows.reshape(len(rows), num_heads, -1).swapaxes(0, 1)


def _rotate(config: DecoderConfig, rotation: Rotation, heads: Float64Array, max_tokens: int) -> Float64Array:
    """Rotate the pairs (i, i + r/2) of the first r values of [heads, tokens, d] by each token's position."""
    if rotation is Rotation.NONE:
        return heads
    size = config.rope_size or config.head_dim
    scaling, theta, factor = config.rope_scaling, config.rope_theta, config.rope_factor
    divisors, magnitude = scaling.divisors, scaling.magnitude
    if rotation is Rotation.LOCAL:
        theta, factor, divisors, magnitude = config.local_rope_theta, 1.0, (), 1.0
    elif scaling.original_context and max_tokens > scaling.original_context:
        divisors = scaling.long_divisors or divisors
        ratio = scaling.ntk_factor * max_tokens / scaling.original_context - scaling.ntk_factor + 1
        theta *= ratio ** (size / (size - 2)) if scaling.ntk_factor > 1 else 1.0
    frequencies = theta ** -(np.arange(size // 2) * 2 / size)
    frequencies = frequencies / np.array(divisors or 1.0) / factor
    angles = np.arange(heads.shape[1])[:, None] * frequencies
    first, second, rest = heads[..., : size // 2], heads[..., size // 2 : size], heads[..., size:]
    cos, sin = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
