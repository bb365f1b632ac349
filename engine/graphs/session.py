"""Loads a graph into ONNX Runtime. Imports `onnxruntime`."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import onnxruntime

from engine.errors import ModelFormatError, ModelResourceError

_SPIN_MICROSECONDS = "5000"
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_NO_CUDA = (
    "There is no usable CUDA device here: an NVIDIA GPU is needed, and CUDA's libraries, which "
    "`.venv/bin/python -m pip install 'onnxruntime-gpu[cuda]==1.31.1' 'nvidia-cublas>=13,<14'` installs."
)
_CPU_ONLY = (
    "This ONNX Runtime only computes on the CPU: builds with CUDA are only for x86-64, on Linux and Windows."
)
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested"}


def open_session(
    model: Path | bytes,
    num_threads: int,
    device: str = "cpu",
    *,
    lean: bool = False,
    weights: Path | None = None,
    captured: bool = False,
    operators: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load a graph, a file's or one of our own, on `device`: "cpu" or "cuda".

    `lean` leaves the weights in their files, mapped, instead of rearranging copies: slow, for models that
    memory cannot hold. `weights` is the folder of the weights of a graph that is no file. `captured` lets
    runs become graphs of the device. `operators` is a library of operators that the graph has. Raises
    `ModelFormatError` or `ModelResourceError`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A plan of memory for each shape of a run would keep memory of its own beside what the others left.
    options.enable_mem_pattern = device != "cpu"
    # Spin long enough to bridge the gaps inside a step, not through idle time.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    if lean:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    if isinstance(model, bytes) and weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    providers: list[str | tuple[str, dict[str, str]]] = [_CPU]
    if device == "cuda":
        if _CUDA not in onnxruntime.get_available_providers():
            raise ModelResourceError(_CPU_ONLY)
        _find_cuda()
        # Weights of few bits in blocks of 32 are multiplied as they are, many rows at once.
        options.add_session_config_entry("ep.cuda.fpa_intb_gemm", "1")
        providers.insert(0, (_CUDA, {**_CUDA_OPTIONS, "enable_cuda_graph": str(int(captured))}))
    try:
        if operators is not None:
            options.register_custom_ops_library(str(operators))
        source = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:
        if "bad_alloc" in str(error) or "Failed to allocate" in str(error):
            raise ModelResourceError("There is not enough memory to load the model.") from error
        name = weights or ("A part of the graph" if isinstance(model, bytes) else model)
        raise ModelFormatError(f"{name} could not be loaded: {_first_line(error)}") from error
    if device == "cuda" and session.get_providers()[0] != _CUDA:
        raise ModelResourceError(_NO_CUDA)
    return session


def _find_cuda() -> None:
    """Load CUDA's libraries where they are packages. What is missing shows in the providers of a session."""
    onnxruntime.set_default_logger_severity(4)
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["unknown reason"])[0][:300]
