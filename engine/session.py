"""Loads a graph into ONNX Runtime. Imports `onnxruntime`."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import onnxruntime

from engine.errors import ModelFormatError, ModelResourceError

_SPIN_MICROSECONDS = "1000"
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}


def open_session(
    model: Path | bytes, num_threads: int, device: str = "cpu", *, lean: bool = False
) -> onnxruntime.InferenceSession:
    """Load a graph, a file's or a small one of our own, on `device`: "cpu" or "cuda".

    `lean` leaves the weights in their files, mapped, instead of rearranging copies: slow, for models that
    memory cannot hold. Raises `ModelFormatError` or `ModelResourceError`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Spin long enough to bridge the gaps inside a step, not through idle time.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    if lean:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    if device == "cuda":
        _find_cuda()
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(source, options, providers=_PROVIDERS[device])
    except Exception as error:
        if "bad_alloc" in str(error) or "Failed to allocate" in str(error):
            raise ModelResourceError("There is not enough memory to load the model.") from error
        name = "A part of the graph" if isinstance(model, bytes) else str(model)
        raise ModelFormatError(f"{name} could not be loaded: {_first_line(error)}") from error
    if session.get_providers()[0] != _PROVIDERS[device][0]:
        raise ModelResourceError("There is no usable CUDA device here. Leave out the device, or name cpu.")
    return session


def _find_cuda() -> None:
    """Load CUDA's libraries where they are packages. What is missing shows in the providers of a session."""
    onnxruntime.set_default_logger_severity(4)
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["unknown reason"])[0][:300]
