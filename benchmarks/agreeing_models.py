"""Makes of the default model a large one that says the same, and small ones that nearly agree with it.

There is no larger model with its tokenizer that can be had without an account. The large one has three times
the default model's width, two thirds of it zeros: the same probabilities, in the time and memory of a true
model of its dimensions. In the small ones each weight is off by a random share of its size: the more, the
less they guess.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.common import cache_folder
from engine.convert.converter import convert, open_source
from engine.convert.default_model import fetch_gguf
from engine.convert.source import FloatArray, ModelSource
from engine.describing.architecture import Precision, source_shapes
from engine.describing.manifest import TokenizerSpec

TIMES_WIDER = 3
NOISE = {"very well": 0.05, "well": 0.1, "badly": 0.2, "not at all": 0.4}
"""Share of its size by which each weight of a draft is off, as a standard deviation."""


class _Changed:
    """A `ModelSource` whose tensors are those of another one, changed."""

    notes: tuple[str, ...] = ()

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.name, self.config, self.chat = source.name, source.config, source.chat
        self.bos_id, self.eos_id, self.stop_ids = source.bos_id, source.eos_id, source.stop_ids
        self.origin, self.sampling = source.origin, source.sampling

    def tensor(self, name: str) -> FloatArray:
        return self._source.tensor(name)

    def blocks(self, name: str) -> None:
        """What was changed is rounded anew."""

    def save_tokenizer(self, folder: Path) -> TokenizerSpec:
        return self._source.save_tokenizer(folder)


class _Widened(_Changed):
    """Zeros in most of its width; a norm sees the mean of them all, which its weights make good."""

    def __init__(self, source: ModelSource) -> None:
        super().__init__(source)
        small, times = source.config, TIMES_WIDER
        self.config = replace(
            small,
            hidden_size=times * small.hidden_size,
            intermediate_size=times * small.intermediate_size,
            num_heads=times * small.num_heads,
            num_kv_heads=times * small.num_kv_heads,
            rms_norm_eps=small.rms_norm_eps / times,
        )

    def tensor(self, name: str) -> FloatArray:
        values = self._source.tensor(name)
        if values.ndim == 1:
            values = values / np.float32(TIMES_WIDER**0.5)
        wide = np.zeros(source_shapes(self.config)[name], np.float32)
        wide[tuple(slice(size) for size in values.shape)] = values
        return wide


class _Blurred(_Changed):
    """Each weight of a matrix is off by a random share of its size."""

    def __init__(self, source: ModelSource, noise: float) -> None:
        super().__init__(source)
        self._noise = np.float32(noise)

    def tensor(self, name: str) -> FloatArray:
        values = self._source.tensor(name)
        if values.ndim == 1 or name == "embed":
            return values
        random = np.random.default_rng(list(name.encode()))
        return values * (1 + self._noise * random.standard_normal(values.shape, np.float32))


def large_model() -> Path:
    """Return the large model, made first where it is not there: a gigabyte, a minute."""
    return _made(_Widened(_default()), f"{TIMES_WIDER}-times-wider")


def draft_model(name: str) -> Path:
    """Return the small model that guesses so well, made first where it is not there."""
    return _made(_Blurred(_default(), NOISE[name]), f"off-by-{NOISE[name]}")


def _default() -> ModelSource:
    return open_source(fetch_gguf(cache_folder()))


def _made(source: ModelSource, name: str) -> Path:
    folder = cache_folder() / "benchmarks" / name
    if not folder.exists():
        convert(source, folder, Precision.INT8)
    return folder
