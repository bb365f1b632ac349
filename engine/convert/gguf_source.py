"""Reads a GGUF file of the llama architecture. The only file that imports `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engine.architecture import DecoderConfig
from engine.convert.chat_detection import detect_chat
from engine.convert.gguf_tokenizer import save_tokenizer
from engine.convert.source import FloatArray
from engine.errors import ModelFormatError
from engine.manifest import TokenizerSpec

_TENSORS = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}


class GGUFSource:
    """A `ModelSource` over one GGUF file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        """Raises `ModelFormatError` for a file that is truncated, no GGUF, or of another architecture."""
        try:
            self._reader = gguf.GGUFReader(path)
        except Exception as error:
            raise ModelFormatError(f"{path} is not a readable GGUF file; it may be truncated.") from error
        self._path = path
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise ModelFormatError(
                f"{path} is a {architecture!r} model; this program runs the llama architecture."
            )
        self.config = self._read_config()
        self.name = str(self._field("general.name", path.stem))
        self.bos_id = int(self._field("tokenizer.ggml.bos_token_id", 1))
        self.eos_id = int(self._field("tokenizer.ggml.eos_token_id", 2))
        self.chat = detect_chat(str(self._field("tokenizer.chat_template", " ")))
        self.origin = {
            "format": "gguf",
            "file": path.name,
            "license": str(self._field("general.license", "unknown")),
        }

    def tensor(self, name: str) -> FloatArray:
        prefix, _, last = name.rpartition(".")
        stored = (f"blk.{prefix.removeprefix('layers.')}." if prefix else "") + _TENSORS[last]
        if stored not in self._tensors:
            raise ModelFormatError(f"{self._path} has no tensor {stored}.")
        tensor = self._tensors[stored]
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if last in ("q", "k"):
            values = self._half_split(
                values, self.config.num_heads if last == "q" else self.config.num_kv_heads
            )
        return values

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        return save_tokenizer(self._field, folder)

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        if field is None:
            if default is None:
                raise ModelFormatError(f"{self._path} lacks the field {key}.")
            return default
        return field.contents()

    def _read_config(self) -> DecoderConfig:
        hidden, heads = self._size("embedding_length"), self._size("attention.head_count")
        head_dim = self._size("attention.key_length", hidden // heads)
        if (
            self._size("rope.dimension_count", head_dim) != head_dim
            or self._field("llama.rope.scaling.type", "none") != "none"
        ):
            raise ModelFormatError(f"{self._path} scales or limits rotary embedding, which is not supported.")
        embed = self._tensors.get(_TENSORS["embed"])
        if embed is None:
            raise ModelFormatError(f"{self._path} has no token embeddings.")
        return DecoderConfig(
            num_layers=self._size("block_count"),
            hidden_size=hidden,
            intermediate_size=self._size("feed_forward_length"),
            num_heads=heads,
            num_kv_heads=self._size("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab_size=int(embed.shape[1]),
            context_length=self._size("context_length"),
            rope_theta=float(self._field("llama.rope.freq_base", 10000.0)),
            rms_norm_eps=float(np.float32(self._field("llama.attention.layer_norm_rms_epsilon"))),
            tied_embeddings=_TENSORS["head"] not in self._tensors,
        )

    def _size(self, key: str, default: int | None = None) -> int:
        return int(self._field(f"llama.{key}", default))

    @staticmethod
    def _half_split(rows: FloatArray, num_heads: int) -> FloatArray:
        """Undo GGUF's interleaved rotary order: (0, 1, 2, 3 …) -> (0, 2 … | 1, 3 …) within each head."""
        head_rows = rows.reshape(num_heads, -1, 2, rows.shape[1])
        return head_rows.swapaxes(1, 2).reshape(rows.shape)
