"""The models in the folder that the operator set: their names, what they need, and how they are opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from bot.conversation.model_switch import ClosableEngine
from bot.errors import ModelSwitchError
from bot.language.phrases import phrase
from bot.model_memory import gpu_bytes, gpu_for, kv_bytes, model_bytes, moderation_options
from engine.describing.footprint import running_bytes
from engine.engine import EngineOptions, context_tokens
from engine.errors import ModelError
from engine.machine import machine
from engine.opening import open_folder

MAX_MODELS = 25
"""As many as Discord offers at once."""


class ModelShelf:
    """A `Shelf` of folders: the one of the start, and those that lie directly in `folder`.

    `moderation` is the folder of the moderation model that stays loaded beside whichever is in use.
    """

    def __init__(
        self,
        folder: Path | None,
        first: Path,
        options: EngineOptions,
        open_engine: Callable[[Path], Awaitable[ClosableEngine]],
        *,
        moderation: Path | None = None,
    ) -> None:
        self._folder = folder
        self._first = first
        self._options = options
        self._open_engine = open_engine
        self._moderation = moderation

    def names(self) -> list[str]:
        """Return the names of the folders that hold a model."""
        return list(self._models())[:MAX_MODELS]

    def missing_bytes(self, name: str, current: str) -> int:
        """Return how much memory is missing, negative where some is left over.

        The model in use gives its weights back first; how much KV it holds besides is not known. The
        moderation model's weights are loaded, and its KV may still grow.
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
        needed = model_bytes(self._options, wanted)
        if self._moderation is not None:
            needed += kv_bytes(moderation_options(self._options), open_folder(self._moderation))
        return needed - free - (_weight_bytes(models[current]) if current in models else 0)

    async def open(self, name: str) -> ClosableEngine:
        """Load a model. Raises `EngineError`."""
        return await self._open_engine(self._models()[name])

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


def _weight_bytes(folder: Path) -> int:
    model = open_folder(folder)
    return running_bytes(model.num_bytes, model.precision)


def _is_chat_model(folder: Path) -> bool:
    try:
        return open_folder(folder).chat.format is not None
    except ModelError:
        return False
