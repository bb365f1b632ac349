"""Writes tiny LoRA adapters as peft saves them; what peft's own merge makes of them is recorded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from engine.convert.source import FloatArray
from engine.describing.architecture import DecoderConfig
from tests.engine.tiny_hf import TinyHuggingFace
from tests.engine.tiny_model import tiny_config

BASE = "somebody/Tiny-Llama"
PREFIX = "base_model.model."
UNTIED = dataclasses.replace(tiny_config(), tied_embeddings=False)


def base() -> TinyHuggingFace:
    """Return the model that all of them belong to."""
    return TinyHuggingFace(UNTIED)


@dataclasses.dataclass
class TinyAdapter:
    """A folder to be; tests may spoil it before it is saved."""

    config: dict[str, Any]
    tensors: dict[str, FloatArray]

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(self.config))
        save_file(self.tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        return folder


def module_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Return the shape of each matrix by Hugging Face's name of its module."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {"model.embed_tokens": (config.vocab_size, hidden), "lm_head": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        shapes |= {attention + "q_proj": (queries, hidden), attention + "o_proj": (hidden, queries)}
        shapes |= {attention + name: (keys, hidden) for name in ("k_proj", "v_proj")}
        shapes |= {mlp + "gate_proj": (inner, hidden), mlp + "up_proj": (inner, hidden)}
        shapes[mlp + "down_proj"] = (hidden, inner)
    return shapes


def make_adapter(
    targets: tuple[str, ...], *, seed: int, ranks: Mapping[str, int] | None = None, **settings: Any
) -> TinyAdapter:
    """Return an adapter of random weights for the modules whose names end with one of `targets`."""
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": 4,
        "lora_alpha": 8,
        "target_modules": list(targets),
        "rank_pattern": dict(ranks or {}),
    } | settings
    rng, tensors = np.random.default_rng(seed), {}
    for module, (rows, columns) in module_shapes(UNTIED).items():
        if not module.endswith(targets):
            continue
        rank = next((r for end, r in (ranks or {}).items() if module.endswith(end)), config["r"])
        if module.endswith("embed_tokens"):
            shapes: dict[str, tuple[int, ...]] = {
                "lora_embedding_A": (rank, rows),
                "lora_embedding_B": (columns, rank),
            }
        else:
            shapes = {"lora_A.weight": (rank, columns), "lora_B.weight": (rows, rank)}
        if config.get("use_dora"):
            shapes["lora_magnitude_vector"] = (rows,)
        for name, shape in shapes.items():
            values = rng.standard_normal(shape, np.float32) * 0.2
            tensors[f"{PREFIX}{module}.{name}"] = np.abs(values) + 1 if len(shape) == 1 else values
    for name in config.get("modules_to_save") or []:
        shape = module_shapes(UNTIED)[name]
        tensors[f"{PREFIX}{name}.weight"] = rng.standard_normal(shape, np.float32)
    return TinyAdapter(config, tensors)


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ADAPTERS = {
    "attention": [make_adapter(ATTENTION, seed=1)],
    "all, rsLoRA": [make_adapter(ALL, seed=2, use_rslora=True, lora_alpha=3)],
    "patterns": [
        make_adapter(
            ALL,
            seed=3,
            ranks={"layers.1.self_attn.q_proj": 8, "down_proj": 2},
            alpha_pattern={"layers.1.self_attn.q_proj": 32, r"layers\.[02]\.mlp\.(up|gate)_proj": 5},
        )
    ],
    "DoRA": [make_adapter(("q_proj", "v_proj", "up_proj"), seed=4, use_dora=True)],
    "embedding and head": [make_adapter(("embed_tokens", "lm_head", "k_proj"), seed=5)],
    "saved modules": [make_adapter(("q_proj",), seed=6, modules_to_save=["lm_head"])],
    "two in order": [
        make_adapter(ATTENTION, seed=7, use_dora=True),
        make_adapter(("q_proj", "up_proj"), seed=8, r=2),
    ],
}
"""What peft was asked about: benchmarks/record_lora_reference.py."""


def probe(matrix: FloatArray) -> FloatArray:
    """Return a matrix's product with a fixed vector: enough to tell it from any other, and small."""
    vector = np.random.default_rng(99).standard_normal(matrix.shape[1], np.float32)
    return np.asarray(matrix @ vector, np.float32)
