"""What a source of weights offers to the converter, whatever its file format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engine.architecture import DecoderConfig
from engine.convert.quantize import BlockQuantized
from engine.manifest import ChatSpec, TokenizerSpec

FloatArray = npt.NDArray[np.float32]


def tensor_shape(config: DecoderConfig, name: str) -> tuple[int, ...]:
    """Return the shape that the tensor `name` of a source must have."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (config.vocab_size, hidden),
        "head": (config.vocab_size, hidden),
        "q": (queries, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "o": (hidden, queries),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    return shapes.get(name.rpartition(".")[2], (hidden,))


class ModelSource(Protocol):
    """One tensor at a time, so that no source is ever whole in memory.

    Tensor names: `embed`, `final_norm`, `head`, and per layer `layers.{i}.` with `attn_norm`, `q`, `k`,
    `v`, `o`, `mlp_norm`, `gate`, `up`, `down`. Matrices are [out_features, in_features]; the rows of q and
    k are in half-split rotary order.
    """

    name: str
    config: DecoderConfig
    chat: ChatSpec
    bos_id: int
    eos_id: int
    stop_ids: tuple[int, ...]
    """What ends the model's turn beside `eos_id`, often nothing."""
    origin: dict[str, str]

    def tensor(self, name: str) -> FloatArray:
        """Return one tensor as float32. Raises `ModelFormatError` when it is missing or unreadable."""

    def blocks(self, name: str) -> BlockQuantized | None:
        """Return one matrix in blocks where the source itself holds it in blocks, else None.

        They stand for what `tensor` returns: exactly where our blocks can, else rounded to 8 bits.
        """

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        """Write the tokenizer's file into `folder` and describe it."""


@runtime_checkable
class VerifiableSource(Protocol):
    """A source that can tell whether a finished model says what it would say itself."""

    def verify(self, folder: Path) -> None:
        """Compare the model in `folder` with the source. Raises `ModelFormatError` where they differ."""
