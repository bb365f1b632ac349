"""Chooses what a converted model runs on: the GPU, with the attention that it can do, or else the CPU.

What cannot be used is said in a line of the log, and the next best is taken; unless the GPU was asked for by
name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from engine.describing.manifest import Manifest
from engine.errors import ModelError, ModelResourceError
from engine.gpu.loading import Attention, load_paged_model
from engine.gpu.runner import PagedRunner
from engine.graphs.sampler_graph import seen_graph
from engine.graphs.session import open_session
from engine.machine.cuda_device import CudaDevice, NoCudaError, find_device
from engine.runtime.model_folder import RunnerSize
from engine.runtime.runner import Runner

logger = logging.getLogger(__name__)

_CPU = "The model runs on the CPU: %s"


def choose_runner(folder: Path, manifest: Manifest, size: RunnerSize, on_cpu: Callable[[], Runner]) -> Runner:
    """Load the model in `folder` on the best device that `size.device` allows; `on_cpu` loads it there.

    Raises `ModelFormatError` or `ModelResourceError` where it cannot be loaded, on a GPU only if "cuda" is
    asked.
    """
    if size.device == "cpu":
        return on_cpu()
    try:
        return _on_gpu(folder, manifest, size)
    except (NoCudaError, ModelError) as error:
        if size.device == "cuda":
            raise ModelResourceError(f"The GPU cannot be used: {error}") from error
        logger.log(logging.INFO if isinstance(error, NoCudaError) else logging.WARNING, _CPU, error)
    return on_cpu()


def _on_gpu(folder: Path, manifest: Manifest, size: RunnerSize) -> Runner:
    """Load the model on the GPU. Raises `NoCudaError`, or `ModelError` where nothing that was tried works."""
    device = find_device()
    if not manifest.precision.runs_on_gpu:
        raise NoCudaError(f"{folder} is for the CPU alone (fp32): convert it anew, to fp16, int8 or int4")
    logger.info("Found %s.", device.describe())
    open_session(seen_graph(), 1, "cuda")  # says what is missing where CUDA's libraries are
    for attention in _attentions(device):
        load = partial(load_paged_model, folder, manifest, size, attention)
        try:
            runner = PagedRunner(load, "cuda", attention.pace)
        except ModelError as error:
            logger.warning("%s attention does not work on %s: %s", attention.capitalize(), device.name, error)
            failure = error
        else:
            logger.info("The model runs on %s with %s attention.", device.name, attention)
            return runner
    raise failure


def _attentions(device: CudaDevice) -> tuple[Attention, ...]:
    return (Attention.PAGED, Attention.PLAIN) if device.has_paged_attention else (Attention.PLAIN,)
