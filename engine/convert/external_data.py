"""Writes a graph's weights to one file beside it, as they come, so that memory holds one at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

_ALIGNMENT = 4096
"""ONNX Runtime memory-maps external data that begins at a page."""


class ExternalDataWriter:
    """Appends tensors to `path` and returns the initializers that point there."""

    def __init__(self, path: Path) -> None:
        self._location = path.name
        self._file = path.open("wb")

    def __enter__(self) -> ExternalDataWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, values: npt.NDArray[np.generic]) -> TensorProto:
        """Write `values` at the next page and return its initializer."""
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        data = np.ascontiguousarray(values).data
        self._file.write(data)
        tensor = TensorProto(
            name=name,
            dims=values.shape,
            data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": self._location, "offset": offset, "length": data.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor
