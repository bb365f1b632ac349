"""The constants of a graph that was written already, for another graph over the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper


class StoredConstants:
    """The initializers of one graph file, whose large ones lie in files beside it."""

    def __init__(self, graph: Path) -> None:
        """Read the graph at `graph`, not its weights."""
        self._folder = graph.parent
        model = onnx.load(str(graph), load_external_data=False)
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> TensorProto:
        """Return an initializer as it is, which points at the bytes where they lie."""
        return self._tensors[name]

    def read(self, name: str) -> npt.NDArray[np.generic]:
        """Return a constant's values; large ones are mapped, not read at once."""
        tensor = self._tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return np.asarray(numpy_helper.to_array(tensor))
        place = {entry.key: entry.value for entry in tensor.external_data}
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape = tuple(tensor.dims)
        return np.memmap(self._folder / place["location"], kind, "r", int(place["offset"]), shape)
