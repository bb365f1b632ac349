"""Changes the model for everybody: looks, waits for running answers, loads, and goes back if that fails.

Conversations are texts and survive. Knows nothing of folders and of engines' insides: `Shelf` does.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from bot.conversation.service import ChatService
from bot.errors import ModelSwitchError
from bot.language.phrases import phrase
from engine.types import (
    ChatMessage,
    EngineLoad,
    Generation,
    Health,
    ModelInfo,
    Prompt,
    SamplingParams,
    TextEngine,
    Warming,
)


class ClosableEngine(TextEngine, Protocol):
    """An engine that can be closed; closing twice is fine."""

    async def close(self) -> None: ...


class SwitchableEngine:
    """Passes everything on to the engine in use. A `TextEngine`; an async context manager that closes it."""

    def __init__(self, engine: ClosableEngine) -> None:
        self.current = engine
        self.is_switching = False

    async def __aenter__(self) -> SwitchableEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.current.close()

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return self.current.info

    @property
    def health(self) -> Health:
        """How the engine is; while another model is loaded, it is not to be asked."""
        return Health.RECOVERING if self.is_switching else self.current.health

    @property
    def load(self) -> EngineLoad:
        """How much there is to do."""
        return self.current.load

    def fit_prompt(
        self,
        dialog: Sequence[ChatMessage],
        max_prompt_tokens: int,
        *,
        answer_so_far: str = "",
        thinking: bool | None = None,
    ) -> Prompt:
        """See `TextEngine.fit_prompt`."""
        return self.current.fit_prompt(
            dialog, max_prompt_tokens, answer_so_far=answer_so_far, thinking=thinking
        )

    def is_safe(self, text: str) -> bool:
        """See `TextEngine.is_safe`."""
        return self.current.is_safe(text)

    def count_tokens(self, text: str) -> int:
        """See `TextEngine.count_tokens`."""
        return self.current.count_tokens(text)

    def tokens_needed(self, prompt: Prompt, params: SamplingParams) -> int:
        """See `TextEngine.tokens_needed`."""
        return self.current.tokens_needed(prompt, params)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        session: str = "",
        tell: Callable[[int], object] | None = None,
    ) -> Generation:
        """See `TextEngine.generate`."""
        return self.current.generate(prompt, params, session=session, tell=tell)

    def warm(self, prompt: Prompt, *, session: str = "") -> Warming:
        """See `TextEngine.warm`."""
        return self.current.warm(prompt, session=session)

    def drop_idle_cache(self) -> None:
        """See `TextEngine.drop_idle_cache`."""
        self.current.drop_idle_cache()

    @property
    def is_forgetting(self) -> bool:
        """See `TextEngine.is_forgetting`."""
        return self.current.is_forgetting


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


def mark_of(name: str) -> int:
    """Return what names a model to other processes: a number that the database can hold."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


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

    @property
    def is_answering(self) -> bool:
        """Whether the model in use is loaded, or about to be: one that was lost can be loaded again."""
        return self._engine.health in (Health.READY, Health.RECOVERING, Health.AWAY)

    async def use(self, name: str) -> None:
        """Load the model `name` for everybody. Raises `ModelSwitchError`; then the old one answers on."""
        if self._lock.locked():
            raise ModelSwitchError(phrase("model.busy"))
        async with self._lock:
            if name == self.name and self.is_answering:
                raise ModelSwitchError(phrase("model.same", name=name))
            await self._use(name)

    async def follow(self, mark: int) -> None:
        """Load the model of this mark, which another process was told to load, if there is one here."""
        async with self._lock:
            name = next((one for one in await self.names() if mark_of(one) == mark), None)
            if name is None:
                _log.warning("The other processes use a model that is not here; MODELS should be the same")
            elif name != self.name or not self.is_answering:
                try:
                    await self._use(name)
                except ModelSwitchError as error:
                    _log.error("This process could not change to %s as the others did: %s", name, error)

    async def _use(self, name: str) -> None:
        loaded = "" if self._engine.health is Health.CLOSED else self.name
        missing = await asyncio.to_thread(self._shelf.missing_bytes, name, loaded)
        if missing > 0:
            raise ModelSwitchError(phrase("model.memory", name=name, missing=-(-missing // 2**20)))
        await self._switch(name)

    async def _switch(self, name: str) -> None:
        self._engine.is_switching = True
        last = self._engine.current
        try:
            if not await self._chat.drain(DRAIN_TIMEOUT_S):
                raise ModelSwitchError(phrase("model.still_answering"))
            await last.close()
            if await self._load(name):
                self.name = name
            elif name != self.name and await self._load(self.name):
                raise ModelSwitchError(phrase("model.failed", name=name, old=self.name))
            else:
                raise ModelSwitchError(phrase("model.lost", name=name))
        finally:
            if last.is_forgetting:  # a server that is away; the new engine tells all of them, too
                self._engine.drop_idle_cache()
            self._engine.is_switching = False
            self._chat.resume()

    async def _load(self, name: str) -> bool:
        """Put a model in the place of the one that was closed; return whether that came about."""
        try:
            self._engine.current = await self._shelf.open(name)
        except Exception:  # noqa: BLE001 - a folder may hold anything, or be gone
            _log.exception("The model %s could not be loaded", name)
            return False
        _log.info("The model is now %s", name)
        return True
