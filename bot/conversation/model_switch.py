"""Changes the model for everybody: looks, waits for running answers, loads, and goes back if that fails.

Conversations are texts and survive. Knows nothing of folders and of engines' insides: `Shelf` does.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from bot.conversation.service import ChatService
from bot.conversation.switchable_engine import ClosableEngine, SwitchableEngine
from bot.errors import ModelSwitchError
from bot.language.phrases import phrase
from engine.errors import EngineError

_log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 120.0


class Shelf(Protocol):
    """The models that the operator put there."""

    def names(self) -> list[str]:
        """Return their names. Reads the disk: call it in a thread."""

    def missing_bytes(self, name: str, current: str) -> int:
        """Return how much memory is missing to load one in the place of another; 0 or less if it fits.

        Raises `ModelSwitchError` for an unknown one. Reads the disk.
        """

    async def open(self, name: str) -> ClosableEngine:
        """Load one. Raises `EngineError`."""


class ModelSwitch:
    """Switches, one at a time. `name` is that of the model in use."""

    def __init__(self, chat: ChatService, engine: SwitchableEngine, shelf: Shelf, name: str) -> None:
        self.name = name
        self._chat = chat
        self._engine = engine
        self._shelf = shelf
        self._lock = asyncio.Lock()

    async def names(self) -> list[str]:
        """Return the models there are."""
        return await asyncio.to_thread(self._shelf.names)

    async def use(self, name: str) -> None:
        """Load the model `name` for everybody. Raises `ModelSwitchError`; then the old one answers on."""
        if self._lock.locked():
            raise ModelSwitchError(phrase("model.busy"))
        async with self._lock:
            if name == self.name:
                raise ModelSwitchError(phrase("model.same", name=name))
            missing = await asyncio.to_thread(self._shelf.missing_bytes, name, self.name)
            if missing > 0:
                raise ModelSwitchError(phrase("model.memory", name=name, missing=-(-missing // 2**20)))
            await self._switch(name)

    async def _switch(self, name: str) -> None:
        self._engine.is_switching = True
        try:
            if not await self._chat.drain(DRAIN_TIMEOUT_S):
                raise ModelSwitchError(phrase("model.still_answering"))
            await self._engine.current.close()
            try:
                self._engine.current = await self._shelf.open(name)
            except Exception as error:
                _log.exception("The model %s could not be loaded", name)
                self._engine.current = await self._shelf.open(self.name)
                raise ModelSwitchError(phrase("model.failed", name=name, old=self.name)) from error
            self.name = name
            _log.info("The model is now %s", name)
        except EngineError as error:
            _log.error("The former model could not be loaded again: %s", error)
            raise ModelSwitchError(phrase("errors.engine_unavailable")) from error
        finally:
            self._engine.is_switching = False
            self._chat.resume()
