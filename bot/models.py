"""The models that answer: which there are, what they need of memory, and how the engine is to run them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from bot.config import Settings
from bot.conversation.model_switch import ClosableEngine
from bot.errors import ModelSwitchError
from bot.language.phrases import phrase
from engine.configuring.models import engine_options
from engine.convert.default_model import NAME
from engine.describing.footprint import GPU_LIBRARIES_BYTES, gpu_kv_token_bytes
from engine.engine import Engine, EngineOptions, context_tokens, draft_bytes, kv_room
from engine.errors import ModelError
from engine.machine import machine
from engine.machine.cuda_device import CudaDevice, NoCudaError, find_device
from engine.opening import ConvertedFolder, open_folder
from engine.runtime.model_folder import ModelFolder

if TYPE_CHECKING:
    from engine.advising.catalogue import Here

MODERATION_ANSWERS = 2
"""Verdicts that a moderation model makes at once."""
MAX_MODELS = 25
"""As many as Discord offers at once."""


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
    """Return the moderation model that runs here, None without a usable one; `check` says what is wrong."""
    if not isinstance(settings.moderation_model, Path):
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


def runs_on_gpu(model: ModelFolder) -> TypeGuard[ConvertedFolder]:
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


def gpu_bytes(model: ConvertedFolder, num_tokens: int) -> int:
    """Estimate what a model takes of a GPU's memory with the KV of so many tokens, in half precision."""
    return model.num_bytes + GPU_LIBRARIES_BYTES + num_tokens * gpu_kv_token_bytes(model.manifest.decoder)


def model_bytes(options: EngineOptions, model: ModelFolder) -> int:
    """Estimate the memory that a model takes with its draft model and the KV of its answers at most."""
    return model.running_bytes + draft_bytes(model, options) + kv_bytes(options, model)


def kv_bytes(options: EngineOptions, model: ModelFolder) -> int:
    """Return the bytes of KV that a model comes to hold at most, of those that are free now."""
    return kv_room(model, options).num_bytes


async def open_moderation_here(settings: Settings, folder: Path) -> ClosableEngine:
    """Load the moderation model. Raises `ModelError`."""
    return await Engine.open(folder, moderation_options(engine_options(settings)))


class LocalEngines:
    """Models that run in this process. Satisfies `bot.engines.Engines`."""

    def __init__(self, settings: Settings, model: Path) -> None:
        self.on_other_model: Callable[[], object] = lambda: None
        self.name = model.name
        self._settings = settings
        self._model = model
        self._guard = moderation_model(settings)

    async def open(self) -> ClosableEngine:
        """See `Engines.open`."""
        options = beside(engine_options(self._settings), self._guard, is_loaded=False)
        return await Engine.open(self._model, options)

    def shelf(self) -> ModelShelf:
        """See `Engines.shelf`."""
        options = beside(engine_options(self._settings), self._guard, is_loaded=True)
        models = self._settings.models
        return ModelShelf(models if isinstance(models, Path) else None, self._model, options, Engine.open)

    def may_work_ahead(self) -> Callable[[], bool] | None:
        """See `Engines.may_work_ahead`."""
        return machine.spare_time(self._settings.works_ahead)

    def greeting(self) -> Callable[[object], str] | None:
        """See `Engines.greeting`."""
        if open_folder(self._model).name != NAME:
            return None
        from bot.greeting import greeting, spoken

        return functools.partial(spoken, greeting("Llamacord", better_model(self._settings)))


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
        if device is not None and runs_on_gpu(wanted):
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
