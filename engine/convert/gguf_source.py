"""Reads a GGUF file of the llama architecture. The only file that imports `gguf`.

Blocks are taken over where ours mean exactly the same weights: those of Q8_0, Q4_0, Q4_1 and Q4_K have 32
weights with a scale and at most a zero point each, in the layouts of llama.cpp's ggml-common.h. Other types
are dequantised and rounded anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import numpy.typing as npt

from engine.convert.quantize import BLOCK_SIZE, BlockQuantized, ByteArray, FloatArray, pack_nibbles, quantize
from engine.convert.source import SourceTensor
from engine.convert.tokenizer_files import save_tokenizer
from engine.describing.architecture import DecoderConfig, source_shapes
from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError
from engine.text.prompt import detect_chat

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
_OUTER_PARTS = {"embed", "final_norm", "head"}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_K_BLOCKS = 8
"""Blocks of 32 in one block of a K-quant."""
Row = TypeVar("Row", bound=np.generic)


class GGUFSource:
    """A `ModelSource` over one GGUF file, memory-mapped."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Raises `ModelFormatError` for a file that is truncated, no GGUF, or of another architecture."""
        self._path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except OSError as error:
            raise ModelFormatError(f"{path} cannot be read: {error.strerror}.") from error
        except Exception as error:
            raise ModelFormatError(f"{path} is not a readable GGUF file; it may be truncated.") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        try:
            self._read_description()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelFormatError(f"{path} has a damaged description: {error}.") from error

    def _read_description(self) -> None:
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise ModelFormatError(
                f"{self._path} is a {architecture!r} model; this program runs the llama architecture."
            )
        self.config = self._read_config()
        self._refuse_unknown_tensors()
        self.name = str(self._field("general.name", self._path.stem))
        self.bos_id = self._token_id("bos", 1)
        self.eos_id = self._token_id("eos", 2)
        self.stop_ids = tuple({self._token_id("eot", self.eos_id)} - {self.eos_id})
        self._chat_template = str(self._field("tokenizer.chat_template", " "))
        self.chat = detect_chat(self._chat_template)
        self.origin = {
            "format": "gguf",
            "file": self._path.name,
            "license": str(self._field("general.license", "unknown")),
        }

    def tensor(self, name: str) -> FloatArray:
        tensor = self._stored(name)
        try:
            values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError as error:
            raise ModelFormatError(
                f"{self._path} stores weights as {tensor.tensor_type.name}, which is not supported."
            ) from error
        return self._half_split(name, values)

    def blocks(self, name: str) -> BlockQuantized | None:
        tensor = self._stored(name)
        if tensor.tensor_type.name in _FLOATS:
            return None
        blocks = exact_blocks(tensor.tensor_type.name, tensor.data)
        if blocks is None:
            return quantize(self.tensor(name), 8)
        return blocks.rows(lambda rows: self._half_split(name, rows))

    def _stored(self, name: str) -> gguf.ReaderTensor:
        stored = _stored_name(name)
        if stored not in self._tensors:
            raise ModelFormatError(f"{self._path} has no tensor {stored}.")
        return self._tensors[stored]

    def catalogue(self) -> dict[str, SourceTensor]:
        """See `TensorCatalogue`. GGUF writes shapes in the opposite order."""
        names = {name: _stored_name(name) for name in source_shapes(self.config)}
        found = {name: self._tensors[stored] for name, stored in names.items() if stored in self._tensors}
        return {
            name: SourceTensor(t.tensor_type.name, tuple(int(n) for n in t.shape[::-1]), int(t.n_bytes))
            for name, t in found.items()
        }

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        num_rows = self.config.vocab_size
        try:
            num_tokens = len(set(self._field("tokenizer.ggml.tokens")))
            if num_tokens != num_rows:
                raise ModelFormatError(f"{self._path} has {num_tokens} tokens for {num_rows} embeddings.")
            ends = {self.bos_id, self.eos_id, *self.stop_ids}
            return save_tokenizer(self._field, folder, self._chat_template, ends)
        except (ModelFormatError, OSError):
            raise
        except Exception as error:
            raise ModelFormatError(f"{self._path} has a damaged tokenizer: {error}.") from error

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
        if self._size("rope.dimension_count", head_dim) != head_dim:
            raise ModelFormatError(f"{self._path} rotates only a part of each head, which is not supported.")
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
            rope_factor=self._rope_factor(),
        )

    def _rope_factor(self) -> float:
        """Return by what positions are divided. Without a type a factor is linear; older files call it so."""
        kind = self._field("llama.rope.scaling.type", "linear")
        if kind not in ("linear", "none"):
            raise ModelFormatError(
                f"{self._path} uses rope scaling of the kind {kind!r}, not supported here."
            )
        factor = self._field("llama.rope.scaling.factor", self._field("llama.rope.scale_linear", 1.0))
        return 1.0 if kind == "none" else float(factor) or 1.0

    def _refuse_unknown_tensors(self) -> None:
        """Biases, rotary factors, experts: leaving any of them out would change what the model says."""
        layers = [f"layers.{layer}." for layer in range(self.config.num_layers)]
        known = {_stored_name(part) for part in _OUTER_PARTS}
        known |= {_stored_name(layer + part) for layer in layers for part in _TENSORS.keys() - _OUTER_PARTS}
        unknown = sorted(self._tensors.keys() - known)
        if unknown:
            raise ModelFormatError(f"{self._path} has the tensor {unknown[0]}, which is not supported.")

    def _token_id(self, kind: str, default: int) -> int:
        token = int(self._field(f"tokenizer.ggml.{kind}_token_id", default))
        if not 0 <= token < self.config.vocab_size:
            raise ValueError(f"the {kind} token {token} is outside the vocabulary")
        return token

    def _size(self, key: str, default: int | None = None) -> int:
        return int(self._field(f"llama.{key}", default))

    def _half_split(self, name: str, rows: npt.NDArray[Row]) -> npt.NDArray[Row]:
        """Undo the interleaved rotary order of q and k: (0, 1, 2, 3 …) -> (0, 2 … | 1, 3 …) in each head."""
        heads = {"q": self.config.num_heads, "k": self.config.num_kv_heads}.get(name.rpartition(".")[2])
        if heads is None:
            return rows
        head_rows = rows.reshape(heads, -1, 2, *rows.shape[1:])
        return head_rows.swapaxes(1, 2).reshape(rows.shape)


def _stored_name(name: str) -> str:
    """Return what GGUF calls a tensor: `layers.0.q` is `blk.0.attn_q.weight`."""
    prefix, _, last = name.rpartition(".")
    return (f"blk.{prefix.removeprefix('layers.')}." if prefix else "") + _TENSORS[last]


def exact_blocks(kind: str, rows: ByteArray) -> BlockQuantized | None:
    """Return a tensor of the GGUF type `kind` as blocks, or None where they would not be exact.

    rows: uint8 [n, bytes of a row].
    """
    reader = _READERS.get(kind)
    return None if reader is None else reader(rows)


def _q8_0(rows: ByteArray) -> BlockQuantized:
    """Scale f16, 32 signed bytes."""
    blocks = rows.reshape(len(rows), -1, 2 + BLOCK_SIZE)
    return BlockQuantized(8, blocks[..., 2:] ^ np.uint8(0x80), _floats(blocks, 0))


def _q4_0(rows: ByteArray) -> BlockQuantized:
    """Scale f16, 16 bytes with weights 0-15 in the low and 16-31 in the high halves."""
    blocks = rows.reshape(len(rows), -1, 2 + BLOCK_SIZE // 2)
    return BlockQuantized(4, _nibbles(blocks[..., 2:]), _floats(blocks, 0))


def _q4_1(rows: ByteArray) -> BlockQuantized:
    """Scale f16, minimum f16, 16 bytes as in Q4_0; a weight is value * scale + minimum."""
    blocks = rows.reshape(len(rows), -1, 4 + BLOCK_SIZE // 2)
    scales, minimums = _floats(blocks, 0), _floats(blocks, 2)
    return BlockQuantized(4, _nibbles(blocks[..., 4:]), scales, minimums + 8 * scales)


def _q4_k(rows: ByteArray) -> BlockQuantized:
    """Super-blocks of 256: scale f16, minimum f16, 12 bytes of 6-bit factors for both, 128 bytes of values.

    A weight of block i is value * scale * factor[i] - minimum * minimum_factor[i]. Values lie as four times
    32 bytes, each with one block in the low and the next one in the high halves.
    """
    blocks = rows.reshape(len(rows), -1, 4 + 12 + 128)
    factors, minimum_factors = _k_factors(blocks[..., 4:16])
    shape = (len(rows), -1)
    scales = (_floats(blocks, 0)[..., None] * factors).reshape(shape)
    minimums = (_floats(blocks, 2)[..., None] * minimum_factors).reshape(shape)
    pairs = blocks[..., 16:].reshape(*blocks.shape[:2], _K_BLOCKS // 2, 1, BLOCK_SIZE)
    values = np.concatenate([pairs & 0xF, pairs >> 4], axis=-2).reshape(*scales.shape, BLOCK_SIZE)
    return BlockQuantized(4, pack_nibbles(values), scales, 8 * scales - minimums)


def _k_factors(packed: ByteArray) -> tuple[FloatArray, FloatArray]:
    """Unpack 12 bytes into 8 scale and 8 minimum factors of 6 bits.

    Bytes 0-3 and 4-7 hold the first four of each in their low 6 bits; bytes 8-11 hold the low 4 bits of the
    last four of each, whose high 2 bits are on top of bytes 0-3 and 4-7.
    """
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([first & 0x3F, third & 0xF | first >> 6 << 4], axis=-1)
    minimums = np.concatenate([second & 0x3F, third >> 4 | second >> 6 << 4], axis=-1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _floats(blocks: ByteArray, at: int) -> FloatArray:
    """Return the f16 that lies `at` bytes from the start of each block."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(halves: ByteArray) -> ByteArray:
    """Bring 16 bytes a block from llama.cpp's order (i, i + 16) to MatMulNBits' (2i, 2i + 1)."""
    return pack_nibbles(np.concatenate([halves & 0xF, halves >> 4], axis=-1))


_READERS: Mapping[str, Callable[[ByteArray], BlockQuantized]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
}
