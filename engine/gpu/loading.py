"""Loads a converted model on a GPU with the attention that it can do, fills its memory, and checks it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path

from engine.describing.architecture import DecoderConfig
from engine.describing.footprint import USEFUL_CONTEXTS, gpu_kv_token_bytes
from engine.describing.manifest import Manifest, verify_files
from engine.errors import ModelError, ModelResourceError
from engine.gpu.kv_blocks import SCRATCH_BLOCK
from engine.gpu.model import PagedModel, PagedOptions
from engine.gpu.reference import check_reference
from engine.gpu.runner import PagedRunner
from engine.gpu.step import GREEDY, PagedRow
from engine.graphs.sampler_graph import seen_graph
from engine.graphs.session import open_session
from engine.machine.cuda_device import CudaDevice, NoCudaError, free_bytes
from engine.runtime.model_folder import RunnerSize
from engine.runtime.scheduler import PrefillPace

logger = logging.getLogger(__name__)

_SHARE_OF_FREE = 0.92
"""Of the memory that is free once the largest step has run; the rest is for captured graphs."""


class Attention(StrEnum):
    """How a GPU computes attention."""

    PAGED = "paged"
    PLAIN = "plain"
    """By elementary operators: slower, a few tokens of a prompt at once, nothing captured."""

    @property
    def pace(self) -> PrefillPace:
        """How much of prompts a step computes; one that arrives may make a step of others twice as long."""
        largest = 2048 if self is Attention.PAGED else 64
        return PrefillPace(largest=largest, alone_s=0.1, beside_steps=1.0, first_tokens_per_s=8000.0)


def load_paged_runner(folder: Path, manifest: Manifest, size: RunnerSize, device: CudaDevice) -> PagedRunner:
    """Load the model in `folder` on a GPU, with the attention that it can do.

    Raises `ModelError` where nothing that was tried works.
    """
    logger.info("Found %s.", device.describe())
    open_session(seen_graph(), 1, "cuda")  # says what is missing where CUDA's libraries are
    attentions = (Attention.PAGED, Attention.PLAIN) if device.has_paged_attention else (Attention.PLAIN,)
    for attention in attentions:
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


def load_paged_model(
    folder: Path,
    manifest: Manifest,
    size: RunnerSize,
    attention: Attention,
    *,
    device: str = "cuda",
    free: Callable[[], int] = free_bytes,
) -> PagedModel:
    """Load the model in `folder`; `free` tells the bytes that are free on `device`.

    Raises `ModelFormatError`, or `ModelResourceError` where memory does not suffice or it computes nonsense.
    """
    verify_files(folder, manifest)
    config = manifest.decoder
    options = PagedOptions(
        device=device,
        num_slots=size.num_answers,
        max_tokens=size.max_tokens,
        block_size=block_size(config),
        unpenalised=size.unpenalised,
        is_paged=attention is Attention.PAGED,
        num_threads=size.num_threads,
    )
    model = PagedModel(folder, manifest, options)
    try:
        _make_room(model, config, size, attention.pace.largest, free)
        model.warm_up(_report)
        if manifest.reference is None:
            logger.warning(
                "The model was converted without a GPU, so there is nothing to compare this one with. "
                "Converted here it is compared with the CPU whenever it is loaded."
            )
        elif len(manifest.reference.ids) <= size.max_tokens:
            check_reference(model, _some_blocks(model, len(manifest.reference.ids)), manifest.reference)
    except BaseException:
        model.close()
        raise
    return model


def block_size(config: DecoderConfig) -> int:
    """Return the tokens of a block: as few as paged attention reads straight from the blocks."""
    return 128 if config.head_dim >= 128 else 256


def num_blocks(config: DecoderConfig, size: RunnerSize, num_free_bytes: int) -> int:
    """Return how many blocks to allocate where so many bytes are free, the scratch block included.

    Raises `ModelResourceError` where not even one answer's KV fits.
    """
    tokens = block_size(config)
    block_bytes = gpu_kv_token_bytes(config) * tokens
    one_answer = -(-size.max_tokens // tokens)
    useful = USEFUL_CONTEXTS * size.num_answers * one_answer
    fitting = int(num_free_bytes * _SHARE_OF_FREE) // block_bytes - 1
    if fitting < one_answer:
        raise ModelResourceError(
            f"{num_free_bytes / 2**30:.1f} GiB are free on the GPU beside the weights, and one answer of "
            f"{size.max_tokens} tokens needs {one_answer * block_bytes / 2**30:.1f}. Lower CONTEXT_TOKENS, "
            "or convert to fewer bits."
        )
    allowed = size.kv_cache_mb * 2**20 // block_bytes if size.kv_cache_mb else useful
    return 1 + max(one_answer, min(fitting, allowed))


def _make_room(
    model: PagedModel, config: DecoderConfig, size: RunnerSize, most_at_once: int, free: Callable[[], int]
) -> None:
    """Run the largest step, so that what it needs is taken, and give KV what is left then."""
    largest = min(most_at_once, size.max_tokens)
    model.allocate(1 + -(-largest // model.block_size))
    row = PagedRow([1] * largest, 0, _some_blocks(model, largest), 0, GREEDY)
    model.run([row])
    taken = model.num_blocks
    try:
        spare = free()
    except NoCudaError as error:
        raise ModelResourceError(f"It cannot be told how much memory is free: {error}.") from error
    block_bytes = gpu_kv_token_bytes(config) * model.block_size
    wanted = num_blocks(config, size, spare + taken * block_bytes)
    while True:
        try:
            model.allocate(wanted)
        except ModelResourceError:
            smallest = 1 + -(-size.max_tokens // model.block_size)
            if wanted == smallest:
                raise
            wanted = max(smallest, wanted * 3 // 4)
        else:
            return


def _some_blocks(model: PagedModel, num_tokens: int) -> list[int]:
    """Return blocks for so many tokens of a cache that nobody uses."""
    first = SCRATCH_BLOCK + 1
    return list(range(first, first + -(-num_tokens // model.block_size)))


def _report(done: int, total: int) -> None:
    if done % max(1, total // 4) == 0:
        logger.info("Preparing decode steps: %d of %d.", done, total)
