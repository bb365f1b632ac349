"""Where answers come from: a model in this process, or servers somewhere else. Chosen here and nowhere else.

What only one of the two needs is imported only then: a bot whose model runs elsewhere has nothing here that
could run one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

from bot.config import Settings
from bot.conversation.model_switch import ClosableEngine, Shelf
from bot.errors import ModelSwitchError
from bot.language.phrases import phrase
from engine.convert.default_model import NAME, Progress
from engine.remote.remote_engine import RemoteEngine, Servers
from engine.types import ModelInfo

SERVERS_FOLDER = "servers"
"""In the cache: the small files of models that run elsewhere."""


class Engines(Protocol):
    """Opens what answers. on_other_model: called when servers have another model and prompts are stale."""

    on_other_model: Callable[[], object]

    @property
    def name(self) -> str:
        """Return what the model of the start is called among others. Call it when that is open."""

    async def open(self) -> ClosableEngine:
        """Open the model of the start. Raises `ModelError`."""

    def shelf(self) -> Shelf:
        """Return the models that can take its place."""

    def may_work_ahead(self) -> Callable[[], bool] | None:
        """Return what tells whether there is time for what nobody waits for; None where it is not wished."""

    def greeting(self) -> Callable[[object], str] | None:
        """Return what the playground's bot says first in a language, where there is much to say. Blocking."""


def choose_engines(settings: Settings, on_progress: Progress) -> Engines:
    """Return where answers come from. Fetches a model that is to run here and is not here: `find_model`."""
    if settings.engine:
        return RemoteEngines(settings)
    from bot.models import LocalEngines
    from engine.configuring.models import find_model

    return LocalEngines(settings, find_model(settings, on_progress))


async def open_moderation(settings: Settings) -> ClosableEngine | None:
    """Open the moderation model, here or elsewhere, where there is to be one. Raises `ModelError`."""
    if settings.moderation_model is None:
        return None
    if isinstance(settings.moderation_model, Path):
        from bot.models import open_moderation_here

        return await open_moderation_here(settings, settings.moderation_model)
    return await RemoteEngine.open(servers_of(settings, settings.moderation_model, chat_format="llama-2"))


def servers_of(
    settings: Settings,
    addresses: tuple[str, ...],
    replicas: tuple[str, ...] = (),
    chat_format: str = "",
) -> Servers:
    """Return how servers are asked. Which conversation is whose is hidden by what only this bot knows."""
    secret = f"sessions {settings.discord_token or ''} {settings.engine_key or ''}"
    return Servers(
        addresses,
        settings.cache / SERVERS_FOLDER,
        key=settings.engine_key or "",
        replicas=replicas,
        secret=hashlib.sha256(secret.encode()).digest(),
        chat_format=chat_format,
    )


def sums_up(settings: Settings, info: ModelInfo) -> bool:
    """Tell whether conversations are summed up: as chosen, or unless the model is the default one."""
    return settings.summaries == "on" or (settings.summaries == "auto" and info.name != NAME)


class RemoteEngines:
    """Servers: those of ENGINE, and those that MODELS names. Satisfies `Engines`."""

    def __init__(self, settings: Settings) -> None:
        self.on_other_model: Callable[[], object] = lambda: None
        self.name = ""
        self._settings = settings
        models = settings.models
        self._others = {} if models is None or isinstance(models, Path) else models
        # Servers that are not in use now still hold what they computed when they were.
        self._everybody = tuple(
            dict.fromkeys(
                [*(settings.engine_replicas or settings.engine), *itertools.chain(*self._others.values())]
            )
        )
        self._first = servers_of(
            settings, settings.engine, self._everybody, chat_format=settings.chat_template
        )

    async def open(self) -> ClosableEngine:
        """See `Engines.open`."""
        engine = await self._open(self._first)
        self.name = engine.info.name
        return engine

    def shelf(self) -> Shelf:
        """See `Engines.shelf`."""
        servers = {
            name: servers_of(self._settings, addresses, self._everybody)
            for name, addresses in self._others.items()
        }
        return RemoteShelf({self.name: self._first, **servers}, self._open)

    def may_work_ahead(self) -> Callable[[], bool] | None:
        """See `Engines.may_work_ahead`: whether a server has time is known there."""
        return None if self._settings.works_ahead == "off" else lambda: True

    def greeting(self) -> Callable[[object], str] | None:
        """See `Engines.greeting`."""
        return None

    async def _open(self, servers: Servers) -> ClosableEngine:
        engine = await RemoteEngine.open(servers)
        engine.on_other_model = lambda: self.on_other_model()
        return engine


class RemoteShelf:
    """A `Shelf` of servers by the names of their models."""

    def __init__(
        self, servers: Mapping[str, Servers], open_engine: Callable[[Servers], Awaitable[ClosableEngine]]
    ) -> None:
        self._servers = servers
        self._open_engine = open_engine

    def names(self) -> list[str]:
        """Return the names of the models."""
        return list(self._servers)

    def missing_bytes(self, name: str, current: str) -> int:  # noqa: ARG002 - they are loaded already
        """Return 0: none of them takes memory here. Raises `ModelSwitchError` for an unknown one."""
        if name not in self._servers:
            raise ModelSwitchError(phrase("model.unknown", names=", ".join(self._servers)))
        return 0

    async def open(self, name: str) -> ClosableEngine:
        """Turn to the servers that have a model. Raises `EngineError`."""
        return await self._open_engine(self._servers[name])
