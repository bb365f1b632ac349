"""What a model says of a few tokens, recorded by the CPU when it is converted: what a GPU must say too.

A driver, a library or a kernel may fail silently; a model that speaks nonsense is worse than a slow one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.cpu.model import CpuModel, ModelOptions
from engine.describing.manifest import Manifest, Reference
from engine.errors import ModelResourceError
from engine.gpu.step import PagedRow
from engine.runtime.sampling import CHOSEN_BY_HOST, FloatArray, SampledRow

_NUM_IDS = 24
_NUM_FOLLOWED = 4
"""So many of the last ids are computed one by one on a GPU, the others at once."""
_NUM_LIKELIEST = 8
_MAX_DEVIATION = 0.6
"""Nats between a GPU's and the CPU's log-probabilities on average; of unrelated logits it is several."""


class RowModel(Protocol):
    """A model over blocks, as `engine.gpu.model.PagedModel`."""

    def run(self, rows: Sequence[PagedRow]) -> list[SampledRow]: ...


def record_reference(folder: Path, manifest: Manifest, num_threads: int) -> Reference:
    """Compute some tokens with the converted model in `folder`. Takes the memory of the model."""
    config = manifest.decoder
    num_ids = min(_NUM_IDS, config.context_length)
    model = CpuModel(folder, manifest, ModelOptions(num_threads, 1, num_ids))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, num_ids).tolist()
    said = _log_probabilities(model.score(0, ids, 0)[-_NUM_FOLLOWED - 1 :])
    likeliest = np.argsort(-said, axis=1)[:, :_NUM_LIKELIEST]
    values = np.take_along_axis(said, likeliest, axis=1)
    return Reference(
        tuple(ids),
        tuple(tuple(row) for row in likeliest.tolist()),
        tuple(tuple(round(value, 4) for value in row) for row in values.tolist()),
    )


def check_reference(model: RowModel, blocks: Sequence[int], reference: Reference) -> None:
    """Compute the same tokens with `model` in `blocks`, in both ways that it has: at once, and one by one.

    Raises `ModelResourceError` where it says something else.
    """
    num_at_once = len(reference.ids) - len(reference.likeliest) + 1
    first = [PagedRow(reference.ids[:num_at_once], 0, blocks, 0, CHOSEN_BY_HOST)]
    followed = [
        [PagedRow((token,), past, blocks, 0, CHOSEN_BY_HOST)]
        for past, token in enumerate(reference.ids[num_at_once:], num_at_once)
    ]
    deviations = []
    for rows, ids, expected in zip(
        [first, *followed], reference.likeliest, reference.log_probabilities, strict=True
    ):
        row = model.run(rows)[0]
        if row.logits is None:
            raise ModelResourceError("It computes no numbers.")
        said = _log_probabilities(row.logits[None])[0, list(ids)]
        deviations.append(np.abs(said - np.array(expected)).mean())
    if not max(deviations) <= _MAX_DEVIATION:
        raise ModelResourceError(
            f"It computes something else than the CPU does: {max(deviations):.2f} nats apart."
        )


def _log_probabilities(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
