"""The GPU's whole path on the CPU: the same graph, with elementary operators in paged attention's place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.describing.architecture import DecoderConfig
from engine.describing.manifest import load_manifest
from engine.gpu.model import PagedModel, PagedOptions
from engine.gpu.step import PagedRow
from engine.runtime.sampling import CHOSEN_BY_HOST, FloatArray
from tests.engine.tiny_model import VOCAB_SIZE

BLOCK_SIZE = 16
GPU_SIZED = DecoderConfig(
    num_layers=2,
    hidden_size=256,
    intermediate_size=512,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    vocab_size=VOCAB_SIZE,
    context_length=1024,
    rope_theta=10000.0,
    rms_norm_eps=1e-5,
    tied_embeddings=True,
)
"""The smallest dimensions that the GPU's operators take."""


def open_paged(
    folder: Path,
    *,
    num_slots: int = 8,
    num_blocks: int = 64,
    max_tokens: int = 256,
    block_size: int = BLOCK_SIZE,
) -> PagedModel:
    """Return the converted model in `folder` with blocks of 16 tokens."""
    options = PagedOptions(
        device="cpu", num_slots=num_slots, max_tokens=max_tokens, block_size=block_size, is_paged=False
    )
    model = PagedModel(folder, load_manifest(folder), options)
    model.allocate(num_blocks)
    model.warm_up()
    return model


def row(ids: Sequence[int], past: int, blocks: Sequence[int], slot: int = 0) -> PagedRow:
    """Return a row whose logits come back whole."""
    return PagedRow(tuple(ids), past, blocks, slot, CHOSEN_BY_HOST)


def said(model: PagedModel, *rows: PagedRow) -> FloatArray:
    """Return the logits [rows, vocab] of a run over rows of `row`."""
    chosen = [sampled.logits for sampled in model.run(rows)]
    assert all(logits is not None for logits in chosen)
    return np.stack([logits for logits in chosen if logits is not None])
