"""Writes the tiny model as a GGUF file, as llama.cpp's converter would; tests may spoil it before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import pre_tokenizers

from engine.convert.source import FloatArray
from engine.describing.architecture import DecoderConfig, source_shapes
from tests.engine.tiny_model import (
    BOS_ID,
    CONTROL_TOKENS,
    EOS_ID,
    SYSTEM_PROMPT,
    TinySource,
    tiny_config,
    tiny_tokenizer,
)

QuantType = gguf.GGMLQuantizationType
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_NAMES = {
    "embed": "token_embd",
    "final_norm": "output_norm",
    "head": "output",
    "attn_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "attn_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}


@dataclass
class TinyGGUF:
    """A GGUF file to be. Matrices are stored as `quant_type`, norms as float32."""

    config: DecoderConfig = field(default_factory=tiny_config)
    quant_type: int = QuantType.F32
    kinds: dict[str, int] = field(default_factory=dict)
    """Of tensors that are stored in another type than the others, by the file's names."""
    fields: dict[str, Any] = field(init=False)
    tensors: dict[str, FloatArray] = field(init=False)

    def __post_init__(self) -> None:
        self.fields = _fields(self.config)
        self.tensors = {
            gguf_name(name): self._interleaved(name, self.source.tensor(name))
            for name in source_shapes(self.config)
        }

    @property
    def source(self) -> TinySource:
        return TinySource(self.config)

    def tensor(self, name: str) -> FloatArray:
        """Return a tensor in half-split order as it can be read back: rounded to the file's type."""
        return self._rounded(self.source.tensor(name))

    def save(self, path: Path) -> Path:
        """Write the file and return its path."""
        fields = dict(self.fields)
        writer = gguf.GGUFWriter(path, fields.pop("general.architecture"))
        for key, value in fields.items():
            add_field(writer, key, value)
        for name, values in self.tensors.items():
            kind = self.kinds.get(name, self.quant_type) if values.ndim == 2 else QuantType.F32
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _rounded(self, values: FloatArray) -> FloatArray:
        if values.ndim == 1:
            return values
        rounded: FloatArray = gguf.dequantize(gguf.quantize(values, self.quant_type), self.quant_type)
        return rounded

    def _interleaved(self, name: str, values: FloatArray) -> FloatArray:
        """Permute q and k as `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py does."""
        last = name.rpartition(".")[2]
        if last not in ("q", "k"):
            return values
        heads = self.config.num_heads if last == "q" else self.config.num_kv_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
        return halves.swapaxes(1, 2).reshape(values.shape)


def tiny_smollm_tokenizer() -> tokenizers.Tokenizer:
    """Return what the file's tokenizer must equal: the tiny one, with each digit by itself."""
    tokenizer = tokenizers.Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _fields(config: DecoderConfig) -> dict[str, Any]:
    model = json.loads(tiny_tokenizer().to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "general.license": "mit",
        "llama.block_count": config.num_layers,
        "llama.context_length": config.context_length,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_heads,
        "llama.attention.head_count_kv": config.num_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [3 if piece in CONTROL_TOKENS else 1 for piece in pieces],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": BOS_ID,
        "tokenizer.ggml.eos_token_id": EOS_ID,
        "tokenizer.chat_template": CHATML,
    }


def gguf_name(own: str) -> str:
    """Return what GGUF calls a tensor of the engine: `layers.0.q_bias` is `blk.0.attn_q.bias`."""
    layer, _, part = own.rpartition(".")
    kind = "bias" if part.endswith("_bias") else "weight"
    stored = f"{_NAMES[part.removesuffix('_bias')]}.{kind}"
    return f"blk.{layer.removeprefix('layers.')}.{stored}" if layer else stored


def add_field(writer: gguf.GGUFWriter, key: str, value: str | float | Sequence[object]) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)
