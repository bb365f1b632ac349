"""The models that answer: which there are, what they need of memory, and how the engine is to run them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bot.config import Settings
from bot.conversation.model_switch import ClosableEngine
from bot.errors import ModelSwitchError
from bot.language.phrases import phrase
from engine.convert.default_model import (
    DEFAULT_PRECISION,
    NAME,
    Progress,
    default_model_folder,
    ensure_default_model,
)
from engine.describing.architecture import Precision
from engine.describing.footprint import GPU_LIBRARIES_BYTES
from engine.engine import EngineOptions, context_tokens, draft_bytes, kv_room
from engine.errors import ModelError
from engine.hub.address import HubAddress, pulled_folder
from engine.machine import machine
from engine.machine.cuda_device import CudaDevice, NoCudaError, find_device
from engine.opening import ConvertedFolder, open_folder
from engine.runtime.model_folder import DiskRoom, ModelFolder
from engine.types import ModelInfo

if TYPE_CHECKING:
    from engine.advising.catalogue import Here

MODERATION_ANSWERS = 2
"""Verdicts that a moderation model makes at once."""
MAX_MODELS = 25
"""As many as Discord offers at once."""


def default_precision(settings: Settings) -> Precision:
    """Return the precision of the default model."""
    return DEFAULT_PRECISION if settings.precision == "auto" else Precision(settings.precision)


def engine_options(settings: Settings) -> EngineOptions:
    """Return how the engine is to run."""
    return EngineOptions(
        num_threads=settings.threads,
        max_concurrent=settings.max_concurrent,
        context_tokens=settings.context_tokens,
        kv_cache_mb=settings.kv_cache_mb,
        device=settings.provider,
        chat_format=settings.chat_template,
        kv_disk=DiskRoom(settings.cache, settings.kv_disk_mb * 2**20) if settings.kv_disk_mb else None,
        draft_model=settings.draft_model,
    )


def find_model(settings: Settings, on_progress: Progress) -> Path:
    """Return the model's folder; fetch and convert it where it is the default one or at Hugging Face.

    Blocking, seconds to minutes the first time. Raises `ModelError`.
    """
    if isinstance(settings.model, HubAddress):
        from engine.hub.hub import Hub  # takes a start a third of a second
        from engine.hub.pulling import ensure_pulled

        hub = Hub(settings.hub_endpoint, settings.hub_token)
        return ensure_pulled(
            settings.cache,
            settings.model,
            _hub_precision(settings),
            hub,
            on_progress,
            has_chat_template=bool(settings.chat_template),
        )
    if settings.model is not None:
        return settings.model
    return ensure_default_model(settings.cache, default_precision(settings), on_progress)


def model_here(settings: Settings) -> Path | None:
    """Return the model's folder without fetching anything, None where it still has to be fetched."""
    if isinstance(settings.model, HubAddress):
        return pulled_folder(settings.cache, settings.model, _hub_precision(settings))
    if settings.model is not None:
        return settings.model
    folder = default_model_folder(settings.cache, default_precision(settings))
    return folder if folder.exists() else None


def _hub_precision(settings: Settings) -> Precision | None:
    """Return the precision of a model from Hugging Face, None for what suits file and machine."""
    return None if settings.precision == "auto" else Precision(settings.precision)


def better_model(settings: Settings) -> Here | None:
    """Return the model of the catalogue that suits this machine, None if none fits.

    Blocking: the speed of its memory is measured in a second at most.
    """
    from engine.advising.catalogue import on_this_machine, pick  # needed where the default model answers
    from engine.advising.measuring import memory_bandwidth

    device = None
    if settings.provider != "cpu":
        with contextlib.suppress(NoCudaError):
            device = find_device()
    resources = machine.resources()
    bandwidth = None if device is not None else memory_bandwidth(settings.threads or resources.num_cores)
    return pick(on_this_machine(resources, bandwidth, device))


def moderation_model(settings: Settings) -> ModelFolder | None:
    """Return the moderation model, None without a usable one: what is wrong with it is told elsewhere."""
    if settings.moderation_model is None:
        return None
    try:
        return open_folder(settings.moderation_model)
    except ModelError:
        return None


def moderation_options(options: EngineOptions) -> EngineOptions:
    """Return how a moderation model runs beside a model that runs with `options`: with little KV."""
    least = least_options(options)
    alone = dataclasses.replace(least, kv_disk=None, draft_model=None)
    return dataclasses.replace(alone, max_concurrent=MODERATION_ANSWERS, chat_format="llama-2")


def least_options(options: EngineOptions) -> EngineOptions:
    """Return `options` with the KV that is set, or else that of one whole context."""
    return dataclasses.replace(options, kv_cache_mb=options.kv_cache_mb or 1)


def beside(options: EngineOptions, moderation: ModelFolder | None, *, is_loaded: bool) -> EngineOptions:
    """Return `options` for a model that leaves the moderation model what that still comes to take."""
    if moderation is None or gpu_for(options.device, moderation) is not None:
        return options
    still_needed = kv_bytes if is_loaded else model_bytes
    return dataclasses.replace(options, reserved_bytes=still_needed(moderation_options(options), moderation))


def runs_on_gpu(model: ModelFolder) -> bool:
    """Return whether a model can run on a GPU."""
    return isinstance(model, ConvertedFolder) and model.manifest.precision.runs_on_gpu


def gpu_for(device: str, model: ModelFolder) -> CudaDevice | None:
    """Return the GPU that a model is to run on, None for the CPU; `device` is as in `EngineOptions`."""
    if device == "cpu" or not runs_on_gpu(model):
        return None
    try:
        return find_device()
    except NoCudaError:
        return None


def gpu_bytes(model: ModelFolder, num_tokens: int) -> int:
    """Estimate what a model takes of a GPU's memory with the KV of so many tokens, in half precision."""
    return model.num_bytes + GPU_LIBRARIES_BYTES + num_tokens * model.kv_bytes_per_token // 2


def model_bytes(options: EngineOptions, model: ModelFolder) -> int:
    """Estimate the memory that a model takes with its draft model and the KV of its answers at most."""
    return model.running_bytes + draft_bytes(model, options) + kv_bytes(options, model)


def kv_bytes(options: EngineOptions, model: ModelFolder) -> int:
    """Return the bytes of KV that a model comes to hold at most, of those that are free now."""
    return kv_room(model, options).num_bytes


def sums_up(settings: Settings, info: ModelInfo) -> bool:
    """Tell whether conversations are summed up: as chosen, or unless the model is the default one."""
    return settings.summaries == "on" or (settings.summaries == "auto" and info.name != NAME)


class ModelShelf:
    """A `Shelf` of folders: the one of the start, and those that lie directly in `folder`."""

    def __init__(
        self,
        folder: Path | None,
        first: Path,
        options: EngineOptions,
        open_engine: Callable[[Path, EngineOptions], Awaitable[ClosableEngine]],
    ) -> None:
        self._folder = folder
        self._first = first
        self._options = options
        self._open_engine = open_engine

    def names(self) -> list[str]:
        """Return the names of the folders that hold a model."""
        return list(self._models())[:MAX_MODELS]

    def missing_bytes(self, name: str, current: str) -> int:
        """Return how much memory is missing, negative where some is left over.

        The model in use gives its weights back first; how much KV it holds besides is not known.
        """
        models = self._models()
        if name not in models:
            raise ModelSwitchError(phrase("model.unknown", names=", ".join(models) or "-"))
        wanted = open_folder(models[name])
        device = gpu_for(self._options.device, wanted)
        if device is not None:
            return gpu_bytes(wanted, context_tokens(wanted, self._options)) - device.total_bytes
        free = machine.free_memory_bytes()
        if free is None:
            return 0
        options = self._options_of(models[name])
        needed = model_bytes(least_options(options), wanted) + options.reserved_bytes
        return needed - free - (open_folder(models[current]).running_bytes if current in models else 0)

    async def open(self, name: str) -> ClosableEngine:
        """Load a model. Raises `EngineError`."""
        folder = self._models()[name]
        return await self._open_engine(folder, self._options_of(folder))

    def _options_of(self, folder: Path) -> EngineOptions:
        """Return how a model is to run: CHAT_TEMPLATE and DRAFT_MODEL are about the first one."""
        if folder == self._first:
            return self._options
        return dataclasses.replace(self._options, chat_format="", draft_model=None)

    def _models(self) -> dict[str, Path]:
        found = {self._first.name: self._first}
        try:
            folders = sorted(self._folder.iterdir()) if self._folder is not None else []
        except OSError:
            folders = []
        for folder in folders:
            if folder.is_dir() and _is_chat_model(folder):
                found.setdefault(folder.name, folder)
        return found


def _is_chat_model(folder: Path) -> bool:
    try:
        return open_folder(folder).chat.format is not None
    except ModelError:
        return False
