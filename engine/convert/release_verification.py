"""Runs an imported model against the released graph it came from, and refuses it where they differ.

One after the other, so that memory holds one of them; of the released one a few rows of logits are kept, and
a release larger than memory runs from its files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine import machine
from engine.architecture import Precision
from engine.errors import ModelFormatError
from engine.manifest import Manifest, load_manifest
from engine.model import CpuModel, ModelOptions
from engine.release_files import ReleaseFiles
from engine.release_model import ReleaseModel
from engine.runner import SlotModel

_NUM_PREFILL, _NUM_CHUNK, _NUM_STEPS = 40, 7, 8
_MAX_ERROR = {"fp32": 1e-3, "fp16": 5e-2}
"""Largest difference of two logits, as a share of their spread, at the lower of both precisions."""
_MAX_DIVERGENCE = 0.05
"""Mean Kullback-Leibler divergence, in nats, for 8-bit weights."""
_MAX_DIVERGENCE_4_BITS = 0.5
FloatArray = npt.NDArray[np.float64]


def verify_import(files: ReleaseFiles, folder: Path) -> None:
    """Raise `ModelFormatError` unless the model in `folder` says what the release says."""
    manifest = load_manifest(folder)
    num_threads = machine.num_physical_cores()
    num_tokens = min(_NUM_PREFILL + _NUM_CHUNK + _NUM_STEPS, manifest.decoder.context_length)
    ids = np.random.default_rng(0).integers(3, manifest.decoder.vocab_size, num_tokens).tolist()
    # A copy of the weights for each matrix product, widened where they are float16, is what loading may take.
    release = ReleaseModel(files, num_threads, lean=3 * files.num_bytes > machine.memory_bytes())
    precision = release.contract.precision
    expected = np.array(list(_logits(release, ids)))
    del release
    imported = CpuModel(folder, manifest.decoder, ModelOptions(num_threads, 1, num_tokens))
    _compare(expected, np.array(list(_logits(imported, ids))), manifest, precision)


def _logits(model: SlotModel, ids: list[int]) -> Iterator[FloatArray]:
    """Give the logits after a prompt, after a chunk behind it, and after single cached steps."""
    ends = [len(ids) - _NUM_CHUNK - _NUM_STEPS, *range(len(ids) - _NUM_STEPS, len(ids) + 1)]
    start = 0
    for end in ends:
        yield model.prefill(0, ids[start:end], start).astype(np.float64)
        start = end


def _compare(expected: FloatArray, imported: FloatArray, manifest: Manifest, released: str) -> None:
    precision = str(manifest.precision)
    if precision in _MAX_ERROR:
        limit = max(_MAX_ERROR[precision], _MAX_ERROR[released])
        found = float(np.abs(imported - expected).max() / expected.std())
        what = "logits differ by {:.1%} of their spread"
    else:
        limit = _MAX_DIVERGENCE if manifest.precision is Precision.INT8 else _MAX_DIVERGENCE_4_BITS
        found = _divergence(expected, imported)
        what = "probabilities diverge by {:.3f} nats"
    if not found <= limit:
        raise ModelFormatError(
            f"The converted model does not say what the released one says: {what.format(found)}, more than "
            f"{limit:g} at {precision}. Nothing was written."
        )


def _divergence(expected: FloatArray, imported: FloatArray) -> float:
    """Return the mean Kullback-Leibler divergence of the rows."""
    first, second = _log_softmax(expected), _log_softmax(imported)
    return float((np.exp(first) * (first - second)).sum(axis=-1).mean())


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    rest: FloatArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return rest
