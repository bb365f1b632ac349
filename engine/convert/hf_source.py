"""Reads a Hugging Face folder: configuration, safetensors, tokenizer, chat template.

The tokenizer becomes one file in which no text can become a control token: those are what the folder calls
special, what the model ends with, and what the chat template writes, for not all authors mark the last ones.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.convert.hf_config import check_family, describe_decoder, text_part
from engine.convert.hf_tokenizer import HuggingFaceTokenizer
from engine.convert.keys import Json
from engine.convert.model_advice import read_sampling
from engine.convert.other_files import CONFIG_FILE
from engine.convert.quantize import BlockQuantized
from engine.convert.safetensors import SafetensorsFolder
from engine.convert.source import SourceTensor
from engine.describing.architecture import source_shapes
from engine.describing.manifest import ChatSpec, TokenizerSpec
from engine.errors import ModelFormatError
from engine.files import read_json, read_optional_json

_log = logging.getLogger(__name__)
_OUTER = {"embed": "embed_tokens", "final_norm": "norm"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_WITH_NORMS_BEHIND = {
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_FUSED = {
    **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj"),
    **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
}
_PREFIXES = ("model.", "language_model.model.", "model.language_model.")
"""Of a decoder's tensors, by itself and as a part of a model for images too."""
_OTHER_PARTS = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
_DERIVED = "self_attn.rotary_emb.inv_freq"
"""Old files store what follows from the configuration."""


class HuggingFaceSource:
    """A `ModelSource` over a folder as `save_pretrained` writes it. Its q and k are in half-split order."""

    def __init__(self, folder: Path, chat: ChatSpec | None = None) -> None:
        """`chat` is used in the place of the folder's own.

        Raises `ModelFormatError` for a folder that is incomplete, damaged or of another architecture.
        """
        config = read_json(folder / CONFIG_FILE)
        check_family(config)
        self._tensors = SafetensorsFolder(folder)
        names = self._tensors.names
        self._prefix = next((p for p in _PREFIXES if f"{p}{_OUTER['embed']}.weight" in names), _PREFIXES[0])
        self._head = "lm_head.weight"
        if self._prefix == _PREFIXES[1]:
            self._head = "language_model.lm_head.weight"
        embed = f"{self._prefix}{_OUTER['embed']}.weight"
        stored_as = self._tensors.stored(embed).kind if embed in names else "F32"
        described = describe_decoder(config, has_head=self._head in names, stored_as=stored_as)
        self.config, self._family, self.notes = described.config, described.family, described.notes
        self._refuse_unknown_tensors(folder, text_part(config)[1])
        vocab_size = self.config.vocab_size
        self._tokenizer = HuggingFaceTokenizer(folder, vocab_size, chat)
        generation = read_optional_json(folder / "generation_config.json")
        begins, ends = (
            [
                *self._tokenizer.token_ids(f"{kind}_token"),
                *read_token_ids(text_part(config)[0], f"{kind}_token_id", vocab_size, default),
                *read_token_ids(generation, f"{kind}_token_id", vocab_size, is_optional=True),
            ]
            for kind, default in zip(("bos", "eos"), self._family.ends, strict=True)
        )
        if not ends:
            raise ModelFormatError(f"{folder} names no token that ends a text.")
        # Without a token that begins a text, nothing asks for one.
        self.bos_id, self.eos_id = (*begins, *ends)[0], ends[0]
        self.stop_ids = tuple(sorted({*ends, *self._tokenizer.known_ends()} - {self.eos_id}))
        self.chat = self._tokenizer.chat
        self.sampling: Mapping[str, float] = read_sampling(generation)
        self.name = _name(folder.resolve())
        self.origin = {"format": "huggingface", "folder": self.name}

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        stored, rows = self._place(name)
        values = self._tensors.read(stored, rows)
        return values + np.float32(self._family.norm_offset) if name.endswith("norm") else values

    def blocks(self, name: str) -> BlockQuantized | None:  # noqa: ARG002
        return None

    def catalogue(self) -> dict[str, SourceTensor]:
        """See `TensorCatalogue`."""
        found: dict[str, SourceTensor] = {}
        for name in source_shapes(self.config):
            stored, rows = self._place(name)
            if stored in self._tensors.names:
                tensor = self._tensors.stored(stored)
                found[name] = tensor if rows is None else tensor.part(rows)
        return found

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        return self._tokenizer.save(folder, {self.bos_id, self.eos_id, *self.stop_ids})

    def _refuse_unknown_tensors(self, folder: Path, is_part: bool) -> None:
        """Biases, adapters, experts: leaving any of them out would change what the model says."""
        known = {self._head, *(self._place(name)[0] for name in source_shapes(self.config))}
        known |= {f"{self._prefix}layers.{layer}.{_DERIVED}" for layer in range(self.config.num_layers)}
        for name in sorted(self._tensors.names - known):
            if not (is_part and name.startswith(_OTHER_PARTS)):
                raise ModelFormatError(f"{folder} has the tensor {name}, which is not supported.")

    def _place(self, name: str) -> tuple[str, range | None]:
        """Return what Hugging Face calls a tensor, and which rows of it are meant where not all are.

        `layers.0.q` is `model.layers.0.self_attn.q_proj.weight`.
        """
        layer, _, part = name.rpartition(".")
        if part == "head":
            return self._head, None
        if not layer:
            return f"{self._prefix}{_OUTER[part]}.weight", None
        kind = "bias" if part.endswith("_bias") else "weight"
        part = part.removesuffix("_bias")
        names = _IN_LAYER | (_WITH_NORMS_BEHIND if self.config.norms.has_after else {})
        rows = self._rows(name, part) if self._family.is_fused and part in _FUSED else None
        stem = names[part] if rows is None else _FUSED[part]
        return f"{self._prefix}{layer}.{stem}.{kind}", rows

    def _rows(self, name: str, part: str) -> range:
        """Return where a matrix lies in the one that several share, in their order."""
        shapes, start = source_shapes(self.config), 0
        for other in _FUSED:
            size = shapes[f"{name.rpartition('.')[0]}.{other}"][0]
            if other == part:
                return range(start, start + size)
            start += size if _FUSED[other] == _FUSED[part] else 0
        raise LookupError(part)


def _name(folder: Path) -> str:
    """Return the folder's name; in Hugging Face's cache that is models--owner--NAME/snapshots/hash."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name


def read_token_ids(
    config: Json, key: str, vocab_size: int, default: int | None = None, *, is_optional: bool = False
) -> list[int]:
    """Return the ids under `key`, if any; `default` where there is no such key.

    Raises `ModelFormatError` for one outside the vocabulary; `is_optional` has it left out with a warning.
    """
    raw = config.get(key, default if default is None or default < vocab_size else None)
    ids = raw if isinstance(raw, list) else [] if raw is None else [raw]
    known = [token for token in ids if type(token) is int and 0 <= token < vocab_size]
    if len(known) < len(ids):
        wrong = next(token for token in ids if token not in known)
        what = f"The model's {key} {wrong!r} is outside its vocabulary."
        if not is_optional:
            raise ModelFormatError(what)
        _log.warning("%s It is left out.", what)
    return known
