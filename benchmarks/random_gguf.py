"""Writes GGUF files of true dimensions with random weights, which the engine and llama.cpp both read.

Matrices are Q4_0 or Q8_0, and the embedding, which is the head too, Q8_0. The tokenizer is the tests' tiny
one with fillers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engine.convert.converter import convert, open_source
from engine.convert.gguf_config import ROPE_FREQS
from engine.describing.architecture import DecoderConfig, DecoderTensor, Precision, Role, decoder_tensors
from engine.describing.layers import Norms
from tests.engine.tiny_gguf import TinyGGUF, add_field, gguf_name

_Types = gguf.GGMLQuantizationType
_POOL = 2**24


def random_gguf(folder: Path, name: str, config: DecoderConfig, bits: int = 4) -> Path:
    """Return the file of these dimensions in `folder`, written first where it is not there."""
    path = folder / f"{_named(name, bits)}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path.with_suffix(".part"), config, bits)
        path.with_suffix(".part").rename(path)
    return path


def random_folder(folder: Path, name: str, config: DecoderConfig, bits: int = 4) -> Path:
    """Return the same model converted, made first where it is not there."""
    path, converted = random_gguf(folder, name, config, bits), folder / _named(name, bits)
    if not converted.exists():
        convert(open_source(path), converted, Precision.INT4 if bits == 4 else Precision.INT8)
    return converted


def _named(name: str, bits: int) -> str:
    return name if bits == 4 else f"{name}-q{bits}_0"


def _write(path: Path, config: DecoderConfig, bits: int) -> None:
    architecture = "qwen2" if config.qkv_bias else "llama"
    if config.norms is Norms.AROUND:
        architecture = "gemma3"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**_tokenizer(config.vocab_size), **_fields(config, architecture)}.items():
        add_field(writer, key, value)
    random = np.random.default_rng(0)
    pool = random.integers(0, 256, _POOL, np.uint8)
    if config.rope_scaling.divisors:
        writer.add_tensor(ROPE_FREQS, np.array(config.rope_scaling.divisors, np.float32))
    for tensor in decoder_tensors(config):
        for part, rows in tensor.parts.items():
            if tensor.role is Role.VECTOR:
                value = 0.0 if part.endswith("bias") else 1.0
                writer.add_tensor(gguf_name(part), np.full(rows, value, np.float32))
            else:
                kind = _Types.Q4_0 if tensor.role is Role.LINEAR and bits == 4 else _Types.Q8_0
                start = int(random.integers(0, _POOL // 2))
                blocks = _blocks(np.roll(pool, start), rows, tensor, kind)
                writer.add_tensor(gguf_name(part), blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(pool: Any, rows: int, tensor: DecoderTensor, kind: gguf.GGMLQuantizationType) -> Any:
    """Return random blocks of a matrix whose product with a vector has about the vector's size."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.resize(pool, (rows, tensor.columns // 32, size))
    spread = 16 / 12**0.5 if kind is _Types.Q4_0 else 256 / 12**0.5
    scale = np.float16(1 / (spread * tensor.columns**0.5))
    blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    fields = {key: value for key, value in TinyGGUF().fields.items() if not key.startswith("llama.")}
    del fields["general.architecture"]
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    fillers = [f"<filler {index}>" for index in range(vocab_size - len(tokens))]
    fields["tokenizer.ggml.tokens"] = [*tokens, *fillers]
    fields["tokenizer.ggml.token_type"] = [*types, *[1] * len(fillers)]
    return fields


def _fields(config: DecoderConfig, architecture: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    windows = [layer.window for layer in config.layers if layer.window]
    if windows:
        fields |= {"attention.sliding_window": windows[0], "rope.freq_base_swa": config.local_rope_theta}
    return {f"{architecture}.{key}": value for key, value in fields.items()}
