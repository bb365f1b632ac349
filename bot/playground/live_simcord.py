"""simcord's environment made to run live, for people to play with rather than for tests.

With `live_page.py` it owns every private name of simcord that this project touches; `bot.playground.serve`
checks that exactly the version they were read in is installed before anything imports these files. Knows
nothing of the bot but that it is a `discord.Client`, and nothing of the people and channels that there are.

simcord is made for tests: time stands still while the bot works, and everybody speaks English. `LiveEnv`
neither adopts the bot's tasks nor waits for them; clocks, timers and threads are the real ones. Only an
interaction is waited for, and only until its first response, as Discord does. People and servers have
languages of their own.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import discord
import simcord
from simcord import _dpy_internals, _runtime
from simcord.backend.models import Interaction

_RESPONSE_TIMEOUT_S = 3.0  # Discord's own limit for the first response to an interaction
_REQUEST_TIME_S = 0.05  # one REST call; the real one takes longer, but never no time at all
_NUM_LOG_ENTRIES = 200

_logger = logging.getLogger(__name__)


class _RealClock:
    """The backend's clock: real time that never goes backwards, so that newer messages have greater ids."""

    def __init__(self) -> None:
        self._epoch = datetime.now(UTC)
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def now(self) -> datetime:
        return self._epoch + timedelta(seconds=self.elapsed)

    def advance(self, seconds: float) -> None:
        """Do nothing: real time passes by itself."""


class _Recent(deque[Any]):
    """A bounded log in the place of simcord's endless ones; every entry tells that something happened."""

    def __init__(self, changed: asyncio.Event) -> None:
        super().__init__(maxlen=_NUM_LOG_ENTRIES)
        self._changed = changed

    def append(self, entry: Any) -> None:
        super().append(entry)
        self._changed.set()


class LiveEnv(simcord.Env):
    """simcord's environment without its hold on time and on the bot's work."""

    def __init__(self, client: discord.Client) -> None:
        # What the bot asks for is what it is granted, over REST as well.
        super().__init__(client, approved_intents=client.intents, check_errors=False)
        self.changed = asyncio.Event()
        backend: Any = self.backend
        backend.clock = _RealClock()
        backend.transcript = _Recent(self.changed)
        backend.http_requests = _Recent(self.changed)
        self._asked: Interaction | None = None
        self._locales: dict[int, str] = {}
        self._emit = backend.emit
        backend.emit = self._emit_in_language

    def speak(self, user_id: int, locale: str) -> None:
        """Let a person's Discord be in another language than English."""
        self._locales[user_id] = locale

    def _emit_in_language(self, event: str, payload: Mapping[str, Any]) -> None:
        if event == "INTERACTION_CREATE":
            who = payload.get("member", payload)["user"]
            payload = {**payload, "locale": self._locales.get(int(who["id"]), payload["locale"])}
            if "guild_id" in payload:
                guild = self.backend.get_guild(int(payload["guild_id"]))
                payload["guild_locale"] = guild.preferred_locale
        self._emit(event, payload)

    async def start(self) -> None:
        await super().start()
        _runtime._restore_loop(self)
        _dpy_internals.release_clocks(self)
        _make_lenient(self.bot.http)
        _make_lenient(self._webhook_adapter)

    @contextlib.contextmanager
    def _bot_scope(self) -> Iterator[None]:
        """Let the bot answer interactions, but do not claim its tasks and timers."""
        adapter = self._webhook_adapter
        previous = _dpy_internals.set_webhook_adapter(adapter) if adapter is not None else None
        try:
            yield
        finally:
            if adapter is not None:
                _dpy_internals.reset_webhook_adapter(previous)

    def _notify_dispatch_observers(self, interaction: Any) -> None:
        super()._notify_dispatch_observers(interaction)
        self._asked = interaction

    async def _settle_internal(self, **_options: Any) -> None:
        await asyncio.sleep(0)
        asked, self._asked = self._asked, None
        deadline = time.monotonic() + _RESPONSE_TIMEOUT_S
        while asked and not asked.responded and time.monotonic() < deadline:  # noqa: ASYNC110 - sets no event
            await asyncio.sleep(0.02)

    def _record_error(self, error: BaseException) -> None:
        """Keep nothing: discord.py logs what the bot raises, as it does in production."""
        _logger.debug("An error in the simulated Discord", exc_info=error)


def _make_lenient(transport: Any) -> None:
    """Let a request take time, and answer what simcord does not know with an HTTP error, not a crash."""
    request: Callable[..., Any] = transport.request

    async def lenient(route: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(_REQUEST_TIME_S)
        try:
            return await request(route, *args, **kwargs)
        except (simcord.RouteNotImplemented, simcord.UnsupportedField) as error:
            _logger.warning("The simulated Discord does not know this request: %s", error)
            raise discord.DiscordServerError(_NotImplementedResponse(), str(error)) from error  # type: ignore[arg-type]

    transport.request = lenient


class _NotImplementedResponse:
    status = 501
    reason = "Not Implemented"
