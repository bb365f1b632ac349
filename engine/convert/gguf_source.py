"""Reads a GGUF file of the llama architecture.

Blocks are taken over where ours mean exactly the same weights (`gguf_blocks.py`). Those of other types are
dequantised and rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import numpy.typing as npt

from engine.convert.gguf_blocks import exact_blocks
from engine.convert.gguf_files import GGUFFiles
from engine.convert.gguf_tokenizer import save_tokenizer
from engine.convert.model_advice import END_TOKENS, read_gguf_sampling
from engine.convert.quantize import BlockQuantized, FloatArray, quantize
from engine.convert.source import SourceTensor
from engine.describing.architecture import DecoderConfig, source_shapes
from engine.describing.manifest import ChatSpec, TokenizerSpec
from engine.errors import ModelFormatError
from engine.text.chat_choice import check_tokens, detect_chat, writes

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
Row = TypeVar("Row", bound=np.generic)


class GGUFSource:
    """A `ModelSource` over a GGUF file, or over all parts of one, memory-mapped."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, chat: ChatSpec | None = None) -> None:
        """`chat` is used in the place of the file's own.

        Raises `ModelFormatError` for a file that is truncated, no GGUF, or of another architecture.
        """
        files = GGUFFiles(path)
        self._path = files.path
        self._fields, self._tensors = files.fields, files.tensors
        try:
            self._read_description(chat)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelFormatError(f"{path} has a damaged description: {error}.") from error

    def _read_description(self, chat: ChatSpec | None) -> None:
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
        self.stop_ids = tuple(sorted(self._ends() - {self.eos_id}))
        template = str(self._field("tokenizer.chat_template", " ")) if chat is None else chat.template
        self.chat = chat if chat is not None and not template else self._detected(template)
        self.sampling: Mapping[str, float] = read_gguf_sampling(self._field)
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
            check_tokens(self.chat, self._field("tokenizer.ggml.tokens"))
            ends = {self.bos_id, self.eos_id, *self.stop_ids}

            def is_control(token: str, token_id: int) -> bool:
                return token_id in ends or writes(self.chat, token)

            return save_tokenizer(self._field, folder, is_control, strips_right=self._strips_right())
        except (ModelFormatError, OSError):
            raise
        except Exception as error:
            raise ModelFormatError(f"{self._path} has a damaged tokenizer: {error}.") from error

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
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

    def _ends(self) -> set[int]:
        """Return what ends a turn: what the file names, and control tokens that do so in every model."""
        pieces, types = self._field("tokenizer.ggml.tokens", ()), self._field("tokenizer.ggml.token_type", ())
        control = {piece: i for i, (piece, kind) in enumerate(zip(pieces, types, strict=False)) if kind == 3}
        known = {control[text] for text in END_TOKENS if text in control}
        return known | {self._token_id(kind, self.eos_id) for kind in ("eot", "eom")}

    def _detected(self, template: str) -> ChatSpec:
        """Return the chat format of a template in this model."""
        pieces = self._field("tokenizer.ggml.tokens", ())
        names = {
            f"{kind}_token": pieces[token]
            for kind, token in (("bos", self.bos_id), ("eos", self.eos_id))
            if token < len(pieces)
        }
        return detect_chat(template, names, set(pieces), is_only_text=not self._strips_right())

    def _strips_right(self) -> bool:
        """Tell whether control tokens swallow white space, as Phi-3's do; no file says so."""
        name = str(self._field("general.name", " ")).lower()
        is_phi_3 = self._field("general.architecture") == "phi3" or "phi-3" in name or "phi3" in name
        return is_phi_3 and self._field("tokenizer.ggml.model", " ") == "llama"

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
