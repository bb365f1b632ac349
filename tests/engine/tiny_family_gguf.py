"""The tiny models of every family as GGUF files, as llama.cpp's converter writes them.

Their fields are recorded from it; the tensors are made anew, and a checksum tells that they are the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from engine.convert.source import FloatArray, ModelSource
from engine.describing.architecture import source_shapes
from tests.engine.tiny_gguf import TinyGGUF, add_field, gguf_name

_DATA = Path(__file__).parents[1] / "data"
GGUF_FIELDS_FILE, GGUF_LOGITS_FILE = _DATA / "families_gguf.json", _DATA / "families_gguf.npz"
_INTERLEAVED = {"llama", "mistral3", "smollm3", "granite"}
_FUSED = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")}
"""In files of Phi-3."""


def digest(tensors: Mapping[str, Any]) -> str:
    """Return a checksum of names, shapes and numbers; not of what stretches a rotation, which is rounded."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        if not name.startswith("rope_"):
            values = np.ascontiguousarray(tensors[name], np.float32)
            found.update(f"{name} {values.shape}".encode() + values.tobytes())
    return found.hexdigest()[:16]


@functools.cache
def recorded_files() -> dict[str, Any]:
    """Return what is recorded of each case's file."""
    found: dict[str, Any] = json.loads(GGUF_FIELDS_FILE.read_text(encoding="utf-8"))
    return found


def gguf_tensors(name: str, source: ModelSource) -> dict[str, FloatArray]:
    """Return a case's tensors under GGUF's names; `source` is its folder."""
    recorded = recorded_files()[name]
    kind = recorded["fields"]["general.architecture"]
    found: dict[str, FloatArray] = {}
    for own in source_shapes(source.config):
        bare = own.rpartition(".")[2].removesuffix("_bias")
        values = source.tensor(own)
        if bare in ("q", "k") and kind in _INTERLEAVED:
            heads = source.config.num_heads if bare == "q" else source.config.num_kv_heads
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        found[gguf_name(own)] = values
    if kind == "phi3":
        for number in range(source.config.num_layers):
            for fused, parts in _FUSED.items():
                joined = np.concatenate([found.pop(f"blk.{number}.{part}.weight") for part in parts])
                found[f"blk.{number}.{fused}.weight"] = joined
    rope = {key: np.array(values, np.float32) for key, values in recorded["rope"].items()}
    return {**found, **rope}


def save_family_gguf(
    name: str, source: ModelSource, path: Path, kind: str = "F32", tensors: Mapping[str, Any] | None = None
) -> Path:
    """Write a case's file, its matrices as `kind`, and return its path; `tensors` are in place of its own."""
    recorded = recorded_files()[name]["fields"]
    own = {key: value for key, value in TinyGGUF().fields.items() if not key.startswith("llama.")}
    fields = {**own, **recorded}
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture"))
    for field, value in fields.items():
        add_field(writer, field, value)
    for key, values in (tensors or gguf_tensors(name, source)).items():
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        writer.add_tensor(key, gguf.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
