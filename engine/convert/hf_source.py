"""Reads a Hugging Face folder of a Llama model: config, safetensors, tokenizer, chat template."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.convert.hf_config import read_decoder_config, read_token_ids
from engine.convert.hf_tokenizer import HuggingFaceTokenizer
from engine.convert.quantize import BlockQuantized
from engine.convert.safetensors import SafetensorsFolder
from engine.convert.source import SourceTensor
from engine.describing.architecture import source_shapes
from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError
from engine.files import read_json, read_optional_json
from engine.text.prompt import detect_chat

CONFIG_FILE = "config.json"
_OUTER = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_IN_LAYER = {
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
_DEFAULT_IDS = {"bos": 1, "eos": 2}
"""Those of LlamaConfig."""
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")
_DERIVED = "self_attn.rotary_emb.inv_freq"
"""Old files store what follows from the configuration."""


class HuggingFaceSource:
    """A `ModelSource` over a folder as `save_pretrained` writes it. Its q and k are in half-split order."""

    def __init__(self, folder: Path) -> None:
        """Raises `ModelFormatError` for a folder that is incomplete, damaged or of another architecture."""
        config = read_json(folder / CONFIG_FILE)
        self.config = read_decoder_config(config)
        self._tensors = SafetensorsFolder(folder)
        self._refuse_unknown_tensors(folder)
        self._tokenizer = HuggingFaceTokenizer(folder)
        vocab_size = self.config.vocab_size
        generation = read_optional_json(folder / "generation_config.json")
        begins, ends = (
            [
                *self._tokenizer.token_ids(f"{kind}_token"),
                *read_token_ids(config, f"{kind}_token_id", vocab_size, default),
                *read_token_ids(generation, f"{kind}_token_id", vocab_size),
            ]
            for kind, default in _DEFAULT_IDS.items()
        )
        if not ends:
            raise ModelFormatError(f"{folder} names no token that ends a text.")
        # Without a token that begins a text, nothing asks for one.
        self.bos_id, self.eos_id = (*begins, *ends)[0], ends[0]
        self.stop_ids = tuple(sorted(set(ends) - {self.eos_id}))
        self.chat = detect_chat(self._tokenizer.chat_template)
        self.name = _name(folder.resolve())
        self.origin = {"format": "huggingface", "folder": self.name}

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        return self._tensors.read(_stored_name(name))

    def blocks(self, name: str) -> BlockQuantized | None:  # noqa: ARG002
        return None

    def catalogue(self) -> dict[str, SourceTensor]:
        """See `TensorCatalogue`."""
        names = {name: _stored_name(name) for name in source_shapes(self.config)}
        there = self._tensors.names
        return {name: self._tensors.stored(stored) for name, stored in names.items() if stored in there}

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        written = {self.bos_id, self.eos_id, *self.stop_ids}
        return self._tokenizer.save(folder, self.config.vocab_size, written)

    def _refuse_unknown_tensors(self, folder: Path) -> None:
        """Biases, adapters, experts: leaving any of them out would change what the model says."""
        outer = {f"{stored}.weight" for stored in _OUTER.values()}
        inner = {_DERIVED, *(f"{stored}.weight" for stored in _IN_LAYER.values())}
        for name in sorted(self._tensors.names - outer):
            layer = _LAYER.fullmatch(name)
            if not layer or layer[2] not in inner or int(layer[1]) >= self.config.num_layers:
                raise ModelFormatError(f"{folder} has the tensor {name}, which is not supported.")


def _stored_name(name: str) -> str:
    """Return what Hugging Face calls a tensor: `layers.0.q` is `model.layers.0.self_attn.q_proj.weight`."""
    prefix, _, last = name.rpartition(".")
    return f"model.{prefix}.{_IN_LAYER[last]}.weight" if prefix else f"{_OUTER[last]}.weight"


def _name(folder: Path) -> str:
    """Return the folder's name; in Hugging Face's cache that is models--owner--NAME/snapshots/hash."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.rpartition("--")[2]
    return folder.name
