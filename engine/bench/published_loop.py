"""The loop of the example that was published with the models, over a release's graph as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.release_embeddings import read_embeddings
from engine.release_files import find_release
from engine.session import open_session


class PublishedLoop:
    """Generates greedily as the published example does: all in and out through numpy, at every step."""

    def __init__(self, folder: Path, num_threads: int = 1, device: str = "cpu") -> None:
        """Load the release in `folder` on "cpu" or "cuda". Raises `ModelError`."""
        files = find_release(folder)
        self._session = open_session(files.graph, num_threads, device)
        shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self._embeddings = read_embeddings(files.embeddings)
        self._type = self._embeddings.dtype
        _, layers, _, heads, dim = shapes["k_cache"]
        self._cache_shape = (1, layers, shapes["attn_mask"][1], heads, dim)
        self._mask = (-10000.0 * np.triu(np.ones(shapes["attn_mask"]), 1)).astype(self._type)
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._keys = np.zeros(self._cache_shape, self._type)
        self._values = np.zeros(self._cache_shape, self._type)
        self.position = 0

    def feed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Compute tokens after what was fed before; return the last one's logits."""
        start, end = self.position, self.position + len(ids)
        logits, keys, values = self._session.run(
            None,
            {
                "x": self._embeddings[list(ids)][None],
                "attn_mask": self._mask,
                "k_cache": self._keys[:, :, :start],
                "v_cache": self._values[:, :, :start],
                "pos": np.array(start),
            },
        )
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values
        self.position = end
        return np.asarray(logits[0], np.float32)

    def generate(self, ids: Sequence[int], num_new: int, eos_id: int | None = 2) -> list[int]:
        """Return the ids that follow greedily, EOS included."""
        self.forget()
        new: list[int] = []
        pending = list(ids)
        while len(new) < num_new and (not new or new[-1] != eos_id):
            pending = [int(self.feed(pending).argmax())]
            new += pending
        return new
