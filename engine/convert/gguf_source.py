"""Reads the weights of a GGUF file; what they belong to, `gguf_config.py` reads.

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
from engine.convert.gguf_config import ROPE_TENSORS, GGUFConfigReader
from engine.convert.gguf_files import GGUFFiles
from engine.convert.gguf_tokenizer import save_tokenizer
from engine.convert.model_advice import END_TOKENS, read_gguf_sampling
from engine.convert.quantize import BlockQuantized, FloatArray, quantize_rows
from engine.convert.source import SourceTensor
from engine.describing.architecture import source_shapes
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
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "attn_post_norm": "post_attention_norm.weight",
    "mlp_post_norm": "post_ffw_norm.weight",
}
_FUSED = {
    **dict.fromkeys(("q", "k", "v"), "attn_qkv"),
    **dict.fromkeys(("gate", "up"), "ffn_up"),
}
"""Matrices, and biases, that some files have as one, in this order."""
_FLOATS = {"F64", "F32", "F16", "BF16"}
Row = TypeVar("Row", bound=np.generic)


class GGUFSource:
    """A `ModelSource` over a GGUF file, or over all parts of one, memory-mapped."""

    def __init__(self, path: Path, chat: ChatSpec | None = None) -> None:
        """`chat` is used in the place of the file's own.

        Raises `ModelFormatError` for a file that is truncated, no GGUF, or of another architecture.
        """
        files = GGUFFiles(path)
        self._path, self.let_go = files.path, files.let_go
        self._fields, self._tensors = files.fields, files.tensors
        try:
            self._read_description(chat)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelFormatError(f"{path} has a damaged description: {error}.") from error

    def _read_description(self, chat: ChatSpec | None) -> None:
        embed = self._tensors.get(_TENSORS["embed"])
        if embed is None:
            raise ModelFormatError(f"{self._path} has no token embeddings.")
        reader = GGUFConfigReader(self._field, self._tensors, int(embed.shape[1]), self._floats)
        self.config, self.notes = reader.config, reader.notes
        self._is_permuted = reader.architecture.is_permuted
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
        tensor, rows = self._stored(name)
        return self._half_split(name, self._numbers(tensor, tensor.data[rows]))

    def blocks(self, name: str) -> BlockQuantized | None:
        tensor, rows = self._stored(name)
        if tensor.tensor_type.name in _FLOATS:
            return None
        blocks = exact_blocks(tensor.tensor_type.name, tensor.data[rows])
        if blocks is None:
            data, columns = tensor.data[rows], int(tensor.shape[0])
            blocks = quantize_rows(len(data), columns, 8, lambda part: self._numbers(tensor, data[part]))
        return blocks.rows(lambda part: self._half_split(name, part))

    def _floats(self, stored: str) -> FloatArray:
        return self._numbers(self._tensors[stored], self._tensors[stored].data)

    def _numbers(self, tensor: gguf.ReaderTensor, data: npt.NDArray[Any]) -> FloatArray:
        try:
            return np.asarray(gguf.dequantize(data, tensor.tensor_type), np.float32)
        except NotImplementedError as error:
            raise ModelFormatError(
                f"{self._path} stores weights as {tensor.tensor_type.name}, which is not supported."
            ) from error

    def _stored(self, name: str) -> tuple[gguf.ReaderTensor, slice]:
        """Return what the file has of a tensor, and which rows of it are meant."""
        stored, rows = self._place(name)
        if stored not in self._tensors:
            raise ModelFormatError(f"{self._path} has no tensor {stored}.")
        tensor = self._tensors[stored]
        if rows.stop is not None and rows.stop > len(tensor.data):
            raise ModelFormatError(f"The tensor {stored} has {len(tensor.data)} rows: some are missing.")
        return tensor, rows

    def _place(self, name: str) -> tuple[str, slice]:
        """Return what GGUF calls a tensor, and which rows of it are meant: `blk.0.attn_q.weight`, all."""
        layer, _, part = name.rpartition(".")
        part, is_bias = part.removesuffix("_bias"), part.endswith("_bias")
        kind = "bias" if is_bias else "weight"
        prefix = f"blk.{layer.removeprefix('layers.')}." if layer else ""
        own = f"{prefix}{_TENSORS[part].removesuffix('weight')}{kind}"
        fused = f"{prefix}{_FUSED.get(part)}.{kind}"
        is_whole = part not in _FUSED or fused not in self._tensors
        if is_whole or (f"{prefix}ffn_gate.{kind}" in self._tensors and part in ("gate", "up")):
            return own, slice(None)
        shapes, start, suffix = source_shapes(self.config), 0, "_bias" if is_bias else ""
        for other in (key for key in _FUSED if _FUSED[key] == _FUSED[part]):
            size = shapes[f"{layer}.{other}{suffix}"][0]
            if other == part:
                break
            start += size
        return fused, slice(start, start + size)

    def catalogue(self) -> dict[str, SourceTensor]:
        """See `TensorCatalogue`. GGUF writes shapes in the opposite order."""
        found: dict[str, SourceTensor] = {}
        for name in source_shapes(self.config):
            stored, rows = self._place(name)
            if stored in self._tensors:
                tensor = self._tensors[stored]
                shape = tuple(int(n) for n in tensor.shape[::-1])
                whole = SourceTensor(tensor.tensor_type.name, shape, int(tensor.n_bytes))
                found[name] = whole if rows.stop is None else whole.part(range(rows.start, rows.stop))
        return found

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

    def _refuse_unknown_tensors(self) -> None:
        """Experts, sinks, adapters: leaving any of them out would change what the model says."""
        known = {self._place(name)[0] for name in source_shapes(self.config)} | ROPE_TENSORS
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

    def _half_split(self, name: str, rows: npt.NDArray[Row]) -> npt.NDArray[Row]:
        """Undo the interleaved rotary order of q and k: (0, 1, 2, 3 …) -> (0, 2 … | 1, 3 …) in each head."""
        part = name.rpartition(".")[2].removesuffix("_bias")
        heads = {"q": self.config.num_heads, "k": self.config.num_kv_heads}.get(part)
        if heads is None or not self._is_permuted:
            return rows
        head_rows = rows.reshape(heads, -1, 2, *rows.shape[1:])
        return head_rows.swapaxes(1, 2).reshape(rows.shape)
