"""The GPU's whole path on the CPU: the same graph, with elementary operators in paged attention's place."""

from __future__ import annotations

from pathlib import Path

from engine.convert.plain_attention import plain_graph
from engine.manifest import CUDA_DECODER_FILE, load_manifest
from engine.paged_model import PagedModel, PagedOptions

BLOCK_SIZE = 16


def open_paged(
    folder: Path,
    *,
    num_seats: int = 8,
    num_blocks: int = 64,
    max_tokens: int = 256,
    block_size: int = BLOCK_SIZE,
) -> PagedModel:
    """Return the converted model in `folder` with blocks of 16 tokens."""
    config = load_manifest(folder).decoder
    options = PagedOptions(
        device="cpu", num_seats=num_seats, max_tokens=max_tokens, block_size=block_size, is_paged=False
    )
    model = PagedModel(plain_graph(folder / CUDA_DECODER_FILE, config), folder, config, options)
    model.allocate(num_blocks)
    model.warm_up()
    return model
