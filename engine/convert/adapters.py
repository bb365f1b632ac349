"""Merges LoRA adapters, as the library peft saves them, into the weights that a source gives.

W + scale * B @ A, and what DoRA makes of it, as peft's own merge has it. An adapter is taken whole or
refused: leaving any of it out would change what the model says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.convert.quantize import BlockQuantized
from engine.convert.safetensors import SafetensorsFile
from engine.convert.source import FloatArray, MappedSource, ModelSource
from engine.describing.architecture import DecoderConfig, source_shapes
from engine.describing.manifest import TokenizerSpec
from engine.errors import ModelFormatError
from engine.files import read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_NAME = re.compile(
    r"base_model\.model\.(?P<module>[\w.]+?)\."
    r"(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|modules_to_save)?"
    r"(?:\.?default)?(?:\.?weight)?"
)
_MODULE = re.compile(r"(?:model\.|language_model\.)*(?:layers\.(?P<layer>\d{1,4})\.\w+\.)?(?P<last>\w+)")
_PARTS = {
    **{f"{part}_proj": (part,) for part in ("q", "k", "v", "o", "gate", "up", "down")},
    "qkv_proj": ("q", "k", "v"),
    "gate_up_proj": ("gate", "up"),
}
"""Matrices of a layer by Hugging Face's names; those that are stored as one are told apart by their rows."""
_OUTER = {"embed_tokens": "embed", "lm_head": "head"}
_PATTERN = re.compile(r"[\w.\\^$|\[\]()-]{1,200}")
"""No repeats: such an expression takes no time, whoever wrote it."""
_WITHOUT_EFFECT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules"),
        *("inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha"),
        *("lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version", "r", "revision"),
        *("rank_pattern", "alpha_pattern", "runtime_config", "target_modules", "task_type", "use_dora"),
        *("use_rslora", "bias", "init_lora_weights", "qalora_group_size", "ephemeral_gpu_offload"),
        "ensure_weight_tying",
    }
)
"""Keys that say nothing of the merge, or are read below. Any other that is set makes it another method."""
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin the training that leave the model's own weights as they were."""
_ROWS = 1024
"""Computed at once: the product of all rows would be as large as the matrix."""


@dataclass(frozen=True, slots=True)
class _Change:
    """What an adapter does to the rows `first` and following of a module, or instead of them."""

    first: int = 0
    scale: float = 1.0
    down: str = ""
    up: str = ""
    magnitude: str = ""
    instead: str = ""
    is_embedding: bool = False


@dataclass(slots=True)
class Adapter:
    """One adapter's folder. Raises `ModelFormatError` for what cannot be merged exactly."""

    folder: Path
    name: str = field(init=False)
    base: str = field(init=False)
    """The model it was trained on, as it calls it; empty where it does not."""
    _config: Mapping[str, Any] = field(init=False)
    _file: SafetensorsFile = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.folder.resolve().name
        if not self.folder.is_dir():
            found = "is a file" if self.folder.exists() else "does not exist"
            raise ModelFormatError(
                f"--adapter {self.folder} {found}. Name the adapter's folder, as peft saves it."
            )
        if not is_adapter(self.folder):
            raise ModelFormatError(
                f"--adapter {self.folder} holds no LoRA adapter as peft saves it: it has no {ADAPTER_CONFIG}."
            )
        self._config = read_json(self.folder / ADAPTER_CONFIG)
        self.base = base_model(self._config)
        self._refuse_other_methods()
        if not (self.folder / ADAPTER_WEIGHTS).exists() and (self.folder / _PICKLE).exists():
            raise ModelFormatError(
                f"{self.folder} has only {_PICKLE}, a pickle, which may run any code. "
                f"Save the adapter as {ADAPTER_WEIGHTS}."
            )
        self._file = SafetensorsFile(self.folder / ADAPTER_WEIGHTS)

    def changes(self, config: DecoderConfig) -> dict[str, _Change]:
        """Return what changes in each tensor of a decoder. Raises `ModelFormatError` if one does not fit."""
        found: dict[str, dict[str, str]] = {}
        for name in sorted(self._file.names):
            match = _NAME.fullmatch(name)
            if match is None:
                raise self._refusal(f"has the tensor {name}, which is not supported")
            found.setdefault(match["module"], {})[match["kind"] or "modules_to_save"] = name
        if not found:
            raise self._refusal("holds no weights")
        made: dict[str, _Change] = {}
        for module, tensors in found.items():
            made.update(self._changes_of(module, tensors, config))
        return made

    def apply(self, values: FloatArray, change: _Change) -> FloatArray:
        """Return a tensor [rows, columns] as the adapter changes it; `values` may be overwritten."""
        rows = slice(change.first, change.first + len(values))
        if change.instead:
            return self._file.read(change.instead)[rows]
        down, up = self._file.read(change.down), self._file.read(change.up)
        if change.is_embedding:  # stored the other way round, [rank, tokens] and [width, rank]
            down, up = up.T, down.T
        up = up[rows]
        magnitude = self._file.read(change.magnitude)[rows] if change.magnitude else None
        scale = np.float32(change.scale)
        for start in range(0, len(values), _ROWS):
            part = slice(start, start + _ROWS)
            merged = values[part] + scale * (up[part] @ down)
            if magnitude is not None:  # DoRA: each row gets a length of its own
                merged *= (magnitude[part] / np.linalg.norm(merged, axis=1))[:, None]
            values[part] = merged
        return values

    def _changes_of(self, module: str, tensors: dict[str, str], config: DecoderConfig) -> dict[str, _Change]:
        parts, shapes = self._parts(module, config), source_shapes(config)
        rows, columns = sum(shapes[part][0] for part in parts), shapes[parts[0]][1]
        change, first = self._change(module, tensors, (rows, columns)), 0
        made: dict[str, _Change] = {}
        for part in parts:
            made[part] = replace(change, first=first)
            first += shapes[part][0]
        return made

    def _parts(self, module: str, config: DecoderConfig) -> list[str]:
        """Return the source's names of the matrices that a module is."""
        match, shapes = _MODULE.fullmatch(module), source_shapes(config)
        parts: list[str] = []
        if match is not None and match["layer"] is not None:
            parts = [f"layers.{int(match['layer'])}.{part}" for part in _PARTS.get(match["last"], ())]
        elif match is not None and match["last"] in _OUTER:
            parts = [_OUTER[match["last"]]]
            if config.tied_embeddings:
                raise self._refusal(
                    f"changes {module}, which is embedding and head at once here, and does not say which"
                )
        if not parts or any(part not in shapes for part in parts):
            raise self._refusal(f"changes {module}, which this model does not have or which cannot be merged")
        return parts

    def _change(self, module: str, tensors: dict[str, str], shape: tuple[int, int]) -> _Change:
        """Check what there is for one module against its shape."""
        kinds = set(tensors)
        if kinds == {"modules_to_save"}:
            self._check(tensors["modules_to_save"], shape)
            return _Change(instead=tensors["modules_to_save"])
        rows, columns = shape
        is_embedding = "lora_embedding_A" in kinds
        down, up = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
        needed = {down, up, *(("lora_magnitude_vector",) if self._config.get("use_dora") else ())}
        if kinds != needed or (is_embedding and self._config.get("use_dora")):
            raise self._refusal(f"does not have the tensors for {module} that its settings ask for")
        rank = self._file.stored(tensors[down]).shape[0]
        self._check(tensors[down], (rank, rows if is_embedding else columns))
        self._check(tensors[up], (columns if is_embedding else rows, rank))
        if "lora_magnitude_vector" in kinds:
            self._check(tensors["lora_magnitude_vector"], (rows,))
        if rank != self._pattern("rank_pattern", module, self._config.get("r")):
            raise self._refusal(f"has a rank of {rank} for {module}, which is not what its settings say")
        alpha = self._pattern("alpha_pattern", module, self._config.get("lora_alpha"))
        divisor = math.sqrt(rank) if self._config.get("use_rslora") else rank
        magnitude = tensors.get("lora_magnitude_vector", "")
        return _Change(0, alpha / divisor, tensors[down], tensors[up], magnitude, is_embedding=is_embedding)

    def _pattern(self, key: str, module: str, default: object) -> float:
        """Return a number that may be another one for some modules: the first pattern that fits counts."""
        value = default
        patterns = self._config.get(key) or {}
        for pattern, number in patterns.items() if isinstance(patterns, dict) else ():
            if not _PATTERN.fullmatch(pattern):
                raise self._refusal(f"names modules by {pattern!r}, which is not supported")
            try:
                fits = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error:
                raise self._refusal(f"names modules by {pattern!r}, which is not readable") from None
            if fits:
                value = number
                break
        if type(value) not in (int, float) or not 0 < value < math.inf:  # type: ignore[operator]
            raise self._refusal(f"has no usable {'r' if key == 'rank_pattern' else 'lora_alpha'}: {value!r}")
        return float(value)  # type: ignore[arg-type]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        found = self._file.stored(name).shape
        if found != shape:
            base = f" It was trained on {self.base}." if self.base else ""
            raise ModelFormatError(
                f"The adapter {self.folder} does not fit this model: {name} has the shape {found}, "
                f"not {shape}.{base}"
            )

    def _refuse_other_methods(self) -> None:
        config = self._config
        if config.get("peft_type") != "LORA":
            raise self._refusal(f"is of the kind {config.get('peft_type')!r}; only LoRA can be merged")
        if config.get("bias", "none") != "none":
            raise self._refusal("also trains biases, which cannot be merged")
        if config.get("init_lora_weights", True) not in _INITS:
            raise self._refusal(
                f"began with {config['init_lora_weights']!r}, which changes the model's own weights. Make a "
                "plain adapter of it (peft's save_pretrained, path_initial_model_for_weight_conversion)"
            )
        others = sorted(key for key, value in config.items() if value and key not in _WITHOUT_EFFECT)
        if others:
            raise self._refusal(f"uses {others[0]}, which cannot be merged here")

    def _refusal(self, reason: str) -> ModelFormatError:
        return ModelFormatError(
            f"The adapter {self.folder} {reason}. Merge it with peft, and convert what comes out."
        )


class AdaptedSource:
    """A `ModelSource` with adapters merged into its weights, one after the other."""

    def __init__(self, source: ModelSource, adapters: Sequence[Adapter]) -> None:
        """Raises `ModelFormatError` where an adapter does not belong to this model."""
        self._source = source
        self._steps = [(adapter, adapter.changes(source.config)) for adapter in adapters]
        self.config, self.chat, self.notes = source.config, source.chat, source.notes
        self.bos_id, self.eos_id, self.stop_ids = source.bos_id, source.eos_id, source.stop_ids
        self.sampling = source.sampling
        self.name = "+".join([source.name, *(adapter.name for adapter in adapters)])
        self.origin = {**source.origin, "adapters": ", ".join(adapter.name for adapter in adapters)}

    def tensor(self, name: str) -> FloatArray:
        values = self._source.tensor(name)
        for adapter, changes in self._steps:
            if name in changes:
                values = adapter.apply(values if values.flags.writeable else values.copy(), changes[name])
        return values

    def blocks(self, name: str) -> BlockQuantized | None:
        """Return the source's own blocks of what no adapter changes."""
        if any(name in changes for _, changes in self._steps):
            return None
        return self._source.blocks(name)

    def let_go(self) -> None:
        """See `MappedSource`."""
        if isinstance(self._source, MappedSource):
            self._source.let_go()

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        return self._source.save_tokenizer(folder)


def base_model(config: Mapping[str, Any]) -> str:
    """Return the name of the model that an adapter's description says it was trained on."""
    name = config.get("base_model_name_or_path")
    return name if isinstance(name, str) else ""


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter, alone or beside a model."""
    return any((folder / name).exists() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, _PICKLE))
