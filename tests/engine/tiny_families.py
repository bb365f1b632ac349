"""Tiny random models of every family, as Hugging Face folders that transformers reads.

Each case is the `config.json` that such a model has. The tensors have transformers' names, and are made anew
from a seed; what transformers says of them is recorded (benchmarks/record_families.py).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from engine.convert.source import FloatArray
from tests.engine.tiny_hf import TinyHuggingFace
from tests.engine.tiny_model import VOCAB_SIZE

Json = dict[str, Any]
NUM_PROMPT, NUM_GREEDY = 668, 32
MAX_TOKENS = NUM_PROMPT + NUM_GREEDY
_BASE: Json = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 4,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA_3: Json = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_FACTORS = [1.0 + 0.15 * i for i in range(8)]
_GEMMA: Json = {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 48,
    "rms_norm_eps": 1e-6,
}


def _case(kind: str, *without: str, **keys: object) -> Json:
    config = {**_BASE, "hidden_act": "silu", **keys, "model_type": kind}
    return {key: value for key, value in config.items() if key not in without}


def _long(original: int) -> Json:
    return {
        "original_max_position_embeddings": original,
        "rope_scaling": {"type": "longrope", "short_factor": _FACTORS, "long_factor": [*_FACTORS[1:], 9.0]},
    }


_VISION: Json = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 0,
}
_GEMMA_3: Json = {
    **_GEMMA,
    "num_hidden_layers": 7,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 16,
}
CASES: dict[str, Json] = {
    "llama-2": _case("llama", hidden_act="swish"),
    "llama-3.1": _case("llama", rope_theta=500000.0, rope_scaling=_LLAMA_3),
    "llama-3.2": _case(
        "llama", rope_parameters={**_LLAMA_3, "rope_theta": 500000.0}, tie_word_embeddings=True
    ),
    "llama-biases": _case("llama", attention_bias=True, mlp_bias=True),
    "llama-linear": _case("llama", rope_scaling={"type": "linear", "factor": 4.0}),
    "llama-dynamic": _case(
        "llama", max_position_embeddings=256, rope_scaling={"type": "dynamic", "factor": 4.0}
    ),
    "llama-dynamic-within": _case("llama", rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama-yarn": _case(
        "llama",
        max_position_embeddings=256,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    ),
    "llama-yarn-magnitudes": _case(
        "llama",
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            "mscale": 0.7,
            "mscale_all_dim": 1.3,
            "beta_fast": 8,
            "beta_slow": 2,
            "truncate": False,
        },
    ),
    "llama-both-ropes": _case(
        "llama",
        rope_theta=20000.0,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "mistral": _case("mistral", sliding_window=64),
    "mistral-nemo": _case("mistral", head_dim=32, sliding_window=None, rope_theta=1000000.0),
    "mistral-small": {
        "model_type": "mistral3",
        "eos_token_id": 2,
        "text_config": _case("mistral", head_dim=32, sliding_window=None, rope_theta=1e8),
        "vision_config": {"model_type": "pixtral", "hidden_size": 32, "num_hidden_layers": 0},
    },
    "ministral": _case(
        "ministral",
        sliding_window=64,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    ),
    "ministral-3": _case(
        "ministral3",
        head_dim=32,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 768,
            "rope_theta": 1000000.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    ),
    "qwen2": _case("qwen2", "head_dim", rope_theta=1000000.0, tie_word_embeddings=True),
    "qwen2-windows": _case(
        "qwen2", "head_dim", use_sliding_window=True, sliding_window=64, max_window_layers=2
    ),
    "qwen2-yarn": _case(
        "qwen2",
        "head_dim",
        max_position_embeddings=256,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    ),
    "qwen3": _case("qwen3", head_dim=32, rope_theta=1000000.0, tie_word_embeddings=True),
    "qwen3-biases": _case("qwen3", attention_bias=True),
    "gemma-2": _case(
        "gemma2",
        **_GEMMA,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma-3": _case("gemma3_text", **_GEMMA_3),
    "gemma-3-linear": {
        "model_type": "gemma3",
        "eos_token_id": [2, 1],
        "text_config": _case("gemma3_text", **_GEMMA_3, rope_scaling={"rope_type": "linear", "factor": 8.0}),
        "vision_config": _VISION,
    },
    "gemma-3-new-keys": _case(
        "gemma3_text",
        "rope_theta",
        "rope_local_base_freq",
        **{
            **_GEMMA_3,
            "query_pre_attn_scalar": 40,
            "layer_types": [*["sliding_attention", "full_attention"] * 3, "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
            },
        },
    ),
    "phi-3": _case("phi3", "head_dim", sliding_window=100, **_long(1024)),
    "phi-3-plain": _case("phi3", "head_dim", sliding_window=None, rope_scaling=None),
    "phi-3-long": _case("phi3", "head_dim", sliding_window=2000, **_long(256)),
    "phi-4-mini": _case(
        "phi3",
        "head_dim",
        num_attention_heads=2,
        num_key_value_heads=1,
        partial_rotary_factor=0.5,
        tie_word_embeddings=True,
        **_long(256),
    ),
    "smollm3": _case("smollm3", "head_dim", tie_word_embeddings=True, no_rope_layers=[1, 1, 0, 1]),
    "smollm3-interval": _case("smollm3", "head_dim", no_rope_layer_interval=2, rope_theta=5000000.0),
    "olmo-2": _case("olmo2", "head_dim", rope_theta=500000.0),
    "olmo-3": _case(
        "olmo3",
        "head_dim",
        sliding_window=64,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            "attention_factor": 1.2,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    ),
    "granite": _case(
        "granite",
        "head_dim",
        tie_word_embeddings=True,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.0625,
        logits_scaling=8.0,
    ),
    "falcon-3": _case("llama", head_dim=32, num_key_value_heads=1, rope_theta=1000042.0),
}


@dataclass
class TinyFamily:
    """One case as a folder to be, in float32."""

    name: str
    config: Json = field(init=False)

    def __post_init__(self) -> None:
        self.config = json.loads(json.dumps(CASES[self.name]))

    @property
    def text_config(self) -> Json:
        text: Json = self.config.get("text_config", self.config)
        return text

    def tensors(self) -> dict[str, FloatArray]:
        """Return all tensors under transformers' names."""
        return {name: self._values(name, shape) for name, shape in self._shapes()}

    def save(self, folder: Path) -> Path:
        """Write the folder and return its path."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        (folder / "tokenizer.json").write_bytes(TinyHuggingFace().files["tokenizer.json"])
        save_file(self.tensors(), folder / "model.safetensors", {"format": "pt"})
        return folder

    @property
    def _is_tied(self) -> bool:
        return bool(self.text_config["tie_word_embeddings"])

    @property
    def prefix(self) -> str:
        return "language_model." if "text_config" in self.config else ""

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        config, kind = self.text_config, self.text_config["model_type"]
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        size = config.get("head_dim", hidden // heads)
        queries, keys = heads * size, kv_heads * size
        yield f"{self.prefix}model.embed_tokens.weight", (config["vocab_size"], hidden)
        yield f"{self.prefix}model.norm.weight", (hidden,)
        if not self._is_tied:
            yield f"{self.prefix}lm_head.weight", (config["vocab_size"], hidden)
        norms = ["post_attention_layernorm"]
        if not kind.startswith("olmo"):
            norms.append("input_layernorm")
        if kind.startswith(("olmo", "gemma")):
            norms.append("post_feedforward_layernorm")
        if kind.startswith("gemma"):
            norms.append("pre_feedforward_layernorm")
        matrices = {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        if kind == "phi3":
            matrices = {
                "self_attn.qkv_proj": (queries + 2 * keys, hidden),
                "self_attn.o_proj": (hidden, queries),
                "mlp.gate_up_proj": (2 * inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }
        biased = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] if kind == "qwen2" else []
        if config.get("attention_bias"):
            biased = [name for name in matrices if name.startswith("self_attn")]
        if config.get("mlp_bias"):
            biased += [name for name in matrices if name.startswith("mlp")]
        for layer in range(config["num_hidden_layers"]):
            start = f"{self.prefix}model.layers.{layer}."
            for name in norms:
                yield f"{start}{name}.weight", (hidden,)
            for name, shape in matrices.items():
                yield f"{start}{name}.weight", shape
            for name in biased:
                yield f"{start}{name}.bias", matrices[name][:1]
            if kind.startswith(("qwen3", "gemma3", "olmo")):
                is_whole = kind.startswith("olmo")
                yield f"{start}self_attn.q_norm.weight", (queries if is_whole else size,)
                yield f"{start}self_attn.k_norm.weight", (keys if is_whole else size,)

    def _values(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        """Return random weights by which a tiny model says many different tokens."""
        random = np.random.default_rng([7, zlib.crc32(name.removeprefix(self.prefix).encode())])
        drawn = random.standard_normal(shape)
        if name.endswith("bias"):
            drawn *= 0.3
        elif name.endswith("norm.weight"):
            # Gemma stores what is above 1.
            drawn = 0.2 * drawn + (not self.text_config["model_type"].startswith("gemma"))
        elif "embed_tokens" in name or "lm_head" in name:
            drawn *= 0.3
        else:
            drawn /= np.sqrt(shape[1])
        return drawn.astype(np.float32)
