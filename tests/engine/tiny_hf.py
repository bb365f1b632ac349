"""Writes a tiny random Llama as a Hugging Face folder, as `save_pretrained` would; tests may spoil it before.

The files are written with the safetensors library, whose reader the engine does not use.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from engine.convert.source import FloatArray
from engine.describing.architecture import DecoderConfig, source_shapes
from tests.engine.tiny_model import CONTROL_TOKENS, TinySource, tiny_config, tiny_tokenizer
from tests.engine.tiny_sentencepiece import tiny_model_bytes, tiny_processor

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_OUTER_NAMES = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


@dataclass
class TinyHuggingFace:
    """A folder to be. Weights are stored as `dtype`, in `num_shards` files."""

    decoder: DecoderConfig = field(default_factory=tiny_config)
    dtype: str = "float32"
    num_shards: int = 1
    seed: int = 0
    config: dict[str, Any] = field(init=False)
    tensors: dict[str, Any] = field(init=False)
    files: dict[str, bytes] = field(init=False)
    """The other files by name: here the tokenizer is one of tokenizers' own."""

    def __post_init__(self) -> None:
        self.config = _config(self.decoder)
        source = TinySource(self.decoder, self.seed)
        self.tensors = {
            stored_name(name): source.tensor(name).astype(DTYPES[self.dtype])
            for name in source_shapes(self.decoder)
        }
        added = [{"id": i, "content": text, "special": True} for i, text in enumerate(CONTROL_TOKENS)]
        tokenizer = json.loads(tiny_tokenizer().to_str()) | {
            "added_tokens": [
                entry | {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
                for entry in added
            ]
        }
        self.files = {"tokenizer.json": json.dumps(tokenizer).encode()}

    def tensor(self, name: str) -> FloatArray:
        """Return a tensor as it can be read back: rounded to the files' type."""
        values: FloatArray = self.tensors[stored_name(name)].astype(np.float32)
        return values

    def save(self, folder: Path) -> Path:
        """Write the folder and return its path."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        names = sorted(self.tensors)
        if self.num_shards == 1:
            save_file(self.tensors, folder / "model.safetensors", {"format": "pt"})
            return folder
        places: dict[str, str] = {}
        for shard in range(self.num_shards):
            file_name = f"model-{shard + 1:05}-of-{self.num_shards:05}.safetensors"
            held = names[shard :: self.num_shards]
            save_file({name: self.tensors[name] for name in held}, folder / file_name, {"format": "pt"})
            places |= dict.fromkeys(held, file_name)
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder


_WIDE = dataclasses.replace(
    tiny_config(context_length=768), hidden_size=256, num_layers=2, intermediate_size=160
)
_64, _128 = (dataclasses.replace(_WIDE, head_dim=size) for size in (64, 128))
CHECKPOINTS: dict[str, Callable[[], TinyHuggingFace]] = {
    "gqa-64-bf16": lambda: TinyHuggingFace(_64, "bfloat16"),
    "mha-64-fp16-sharded": lambda: TinyHuggingFace(
        dataclasses.replace(_64, num_kv_heads=4, tied_embeddings=False), "float16", 3
    ),
    "gqa-128-fp32": lambda: TinyHuggingFace(dataclasses.replace(_128, tied_embeddings=False)),
    "mha-128-bf16-sharded": lambda: TinyHuggingFace(
        dataclasses.replace(_128, num_heads=2, num_kv_heads=2, tied_embeddings=False), "bfloat16", 2
    ),
    "wide-heads-fp16": lambda: TinyHuggingFace(
        dataclasses.replace(tiny_config(context_length=768), head_dim=32), "float16"
    ),
    "linear-rope-fp32-sharded": lambda: TinyHuggingFace(
        dataclasses.replace(_64, rope_factor=4.0, rope_theta=50000.0, tied_embeddings=False), "float32", 4
    ),
}
"""What transformers was asked about: benchmarks/record_hf_reference.py."""


def with_sentencepiece(**options: Any) -> TinyHuggingFace:
    """Return a folder whose tokenizer is the tiny SentencePiece model."""
    size = tiny_processor().vocab_size()
    model = TinyHuggingFace(tiny_config(vocab_size=size), **options)
    model.files = {"tokenizer.model": tiny_model_bytes()}
    return model


def stored_name(name: str) -> str:
    """Return what Hugging Face calls a tensor."""
    prefix, _, last = name.rpartition(".")
    return f"model.{prefix}.{_LAYER_NAMES[last]}.weight" if prefix else f"{_OUTER_NAMES[last]}.weight"


def _config(decoder: DecoderConfig) -> dict[str, Any]:
    """Describe the model as transformers 5 does."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": decoder.rope_theta}
    if decoder.rope_factor != 1.0:
        rope |= {"rope_type": "linear", "factor": decoder.rope_factor}
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": decoder.head_dim,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "max_position_embeddings": decoder.context_length,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": decoder.num_heads,
        "num_hidden_layers": decoder.num_layers,
        "num_key_value_heads": decoder.num_kv_heads,
        "rms_norm_eps": decoder.rms_norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": decoder.tied_embeddings,
        "vocab_size": decoder.vocab_size,
    }
