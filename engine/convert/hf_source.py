"""Reads a Hugging Face folder of a Llama model: config, safetensors, tokenizer, chat template.

Defaults of the config are those of transformers' `LlamaConfig`. What would change the model's results and is
not computed here is refused by its name. The tokenizer becomes one file in which no text can become a
control token: those are what the folder calls special, what the model ends with, and what the chat template
writes, for not all authors mark the last ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.convert.other_files import CONFIG_FILE, another_form, quantisation
from engine.convert.quantize import BlockQuantized
from engine.convert.safetensors import SafetensorsFolder
from engine.convert.source import SourceTensor
from engine.convert.tokenizer_files import AddedToken, SentencePieceFile, TokenizerFile, TokenizersFile
from engine.describing.architecture import DecoderConfig, source_shapes
from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError
from engine.files import read_json, read_optional_json, refuse_pointer
from engine.text.prompt import detect_chat

_FILE = "chat_template.jinja"
Json = Mapping[str, Any]
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
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.(.+)")
_DERIVED = "self_attn.rotary_emb.inv_freq"
"""Old files store what follows from the configuration."""
_DEFAULT_IDS = {"bos": 1, "eos": 2}
"""Those of LlamaConfig."""
_MOST_PADDING = 2048
"""Embeddings are padded to a round number of rows for the sake of the hardware they were trained on."""


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


def read_decoder_config(config: Json) -> DecoderConfig:
    """Return the decoder's dimensions. Raises `ModelFormatError`."""
    _refuse_unsupported(config)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    theta, factor = _rope(config)
    return DecoderConfig(
        num_layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=_size(config, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=_size(config, "num_key_value_heads", heads),
        head_dim=_size(config, "head_dim", hidden // heads),
        vocab_size=_size(config, "vocab_size"),
        context_length=_size(config, "max_sequence_length", _size(config, "max_position_embeddings", 2048)),
        rope_theta=theta,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        tied_embeddings=config.get("tie_word_embeddings") is True,
        rope_factor=factor,
    )


def read_token_ids(config: Json, key: str, vocab_size: int, default: int | None = None) -> list[int]:
    """Return the ids under `key`, if any; `default` where there is no such key. Raises `ModelFormatError`."""
    raw = config.get(key, default)
    ids = raw if isinstance(raw, list) else [] if raw is None else [raw]
    for token in ids:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise ModelFormatError(f"The model's {key} {token!r} is outside its vocabulary.")
    return ids


def _refuse_unsupported(config: Json) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise ModelFormatError(
            f"The model is of the type {kind!r}; this program runs the llama architecture."
        )
    method = quantisation(config)
    if method:
        raise ModelFormatError(f"The model's weights are quantised already. {another_form(method)}")
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise ModelFormatError(f"The model has biases ({key}), which are not supported.")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelFormatError(f"The model's activation is {activation!r}; only silu is supported.")


def _rope(config: Json) -> tuple[float, float]:
    """Return theta and the linear scaling factor, from the new key or the old ones."""
    new, old = (config.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise ModelFormatError("The model's rope settings are damaged.")
    scaling = new or old
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ModelFormatError(f"The model uses rope scaling of the type {kind!r}, which is not supported.")
    for holder in (config, scaling):
        if holder.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelFormatError("The model rotates only a part of each head, which is not supported.")
    theta = _number(config, "rope_theta", 10000.0)
    factor = _number(scaling, "factor", 1.0) if kind == "linear" else 1.0
    return _number(new, "rope_theta", theta), factor


def _size(config: Json, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if type(value) is not int or value < 1:
        raise ModelFormatError(f"The model's {key} must be a whole number above 0, not {value!r}.")
    return value


def _number(config: Json, key: str, default: float) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float):
        raise ModelFormatError(f"The model's {key} must be a number, not {value!r}.")
    return float(value)


class HuggingFaceTokenizer:
    """The tokenizer of a folder, and the chat template that comes with it. Raises `ModelFormatError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = read_optional_json(folder / "tokenizer_config.json")
        self.chat_template = read_chat_template(folder, self._config)
        try:
            self._file = self._open()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelFormatError(f"{folder} has a damaged tokenizer ({error}).") from error

    def token_ids(self, key: str) -> list[int]:
        """Return the id of the token that the configuration names under `key`, if it does."""
        text = _written(self._config.get(key))
        return [self._file.ids[text]] if text in self._file.ids else []

    def save(self, folder: Path, num_rows: int, ends: Iterable[int]) -> TokenizerSpec:
        """Write the tokenizer's file for `num_rows` embeddings. `ends` are control tokens in any case."""
        ids = self._file.ids
        num_tokens = max(ids.values(), default=-1) + 1
        if not 0 <= num_rows - num_tokens <= min(_MOST_PADDING, num_tokens // 8):
            raise ModelFormatError(f"{self._folder} has {num_tokens} tokens for {num_rows} embeddings.")
        added, template = self._file.added, self.chat_template
        control = {token.token_id for token in added if token.special or token.text in template}
        control |= set(ends) & set(ids.values())
        self._file.save(folder / self._file.file_name, control)
        special = {text: token for text, token in ids.items() if token in control}
        return TokenizerSpec(self._file.kind, self._file.file_name, special)

    def _open(self) -> TokenizerFile:
        if (self._folder / SentencePieceFile.file_name).exists():
            return SentencePieceFile(self._folder, self._added_tokens())
        if (self._folder / TokenizersFile.file_name).exists():
            return TokenizersFile(self._folder)
        raise ModelFormatError(f"{self._folder} has neither a tokenizer.model nor a tokenizer.json.")

    def _added_tokens(self) -> list[AddedToken]:
        """Return what was added to a SentencePiece model; its file does not know of it."""
        names = read_optional_json(self._folder / "special_tokens_map.json") | self._config
        special = {_written(value) for key, value in names.items() if key.endswith("_token")}
        special |= {_written(value) for value in names.get("additional_special_tokens") or ()}
        older = read_optional_json(self._folder / "added_tokens.json")
        added = {token_id: AddedToken(token_id, text, text in special) for text, token_id in older.items()}
        for index, token in (self._config.get("added_tokens_decoder") or {}).items():
            added[int(index)] = AddedToken(int(index), token["content"], bool(token.get("special")))
        return [added[token_id] for token_id in sorted(added)]


def _written(token: object) -> str:
    """Return a token's written form: folders have it as text or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def read_chat_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str:
    """Return the template's source, nothing where there is none. Raises `ModelFormatError`."""
    path = folder / _FILE
    if path.exists():
        refuse_pointer(path)
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelFormatError(f"{path} cannot be read.") from error
    found = tokenizer_config.get("chat_template")
    found = found or read_optional_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several by name, of which "default" is for plain chat
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""
