"""All addresses at which a model answers: which one is asked, how they are, and who is to forget texts.

Each is asked about once a second how it is while there is something to do, and less often otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Collection, Sequence

from engine.remote.replica import Replica, Report, State, joined
from engine.remote.wire import Patience, RefusedError, Wire, WireError
from engine.types import EngineLoad, Health

_log = logging.getLogger(__name__)

_UNKNOWN_KEY = frozenset({401, 403})
FULL = frozenset({429, 503})
_MAX_WAIT_S = 15.0
_LEVELS = {State.READY: logging.INFO, State.CLOSING: logging.INFO}


class Replicas:
    """Knows the addresses. forgetters: those at which texts are forgotten, where these are others.

    Use it on one event loop.
    """

    def __init__(
        self, wire: Wire, addresses: Sequence[str], forgetters: Sequence[str], patience: Patience
    ) -> None:
        loop = asyncio.get_running_loop()
        self.fingerprint = ""
        self.on_other_model: Callable[[], object] = lambda: None
        """Called where all that answer have another model than the one that is known."""
        self.all = [Replica(address, loop.time) for address in addresses]
        self._wire = wire
        self._patience = patience
        self._changed = asyncio.Event()
        self._is_wanted = asyncio.Event()
        self._num_waiting = 0
        self._forgetters = [Forgetter(wire, address, patience) for address in (forgetters or addresses)]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to ask how they are."""
        self._tasks = [
            asyncio.ensure_future(work)
            for work in (*map(self._watch, self.all), *(forgetter.run() for forgetter in self._forgetters))
        ]

    async def close(self) -> None:
        """End; what is still to be forgotten gets a last try."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(forgetter.last_try() for forgetter in self._forgetters))

    @property
    def health(self) -> Health:
        """How they are together."""
        states = {replica.state for replica in self.all}
        if State.READY in states:
            return Health.READY
        if states <= {State.UNHEALTHY, State.REFUSED}:
            return Health.UNHEALTHY
        return Health.RECOVERING if states <= {State.RECOVERING, State.CLOSING} else Health.AWAY

    @property
    def room(self) -> EngineLoad:
        """Return what those that are ready have room for together, and what others do there."""
        return joined([replica.others for replica in self.all if replica.state is State.READY])

    def choose(self, session: str, num_tokens: int, shunned: Collection[Replica] = ()) -> Replica | None:
        """Return who is to make an answer, None while nobody can: for a conversation always the same one.

        While that has no room it is the next one, for this conversation. Without a session it is the one that
        has the least to do. The `shunned` only where there is nobody else.
        """
        able = [replica for replica in self.all if replica.is_open]
        able = [replica for replica in able if replica not in shunned] or able
        if not able:
            return None
        if not session:
            return min(able, key=lambda replica: replica.busyness)
        ranked = sorted(able, key=lambda replica: _rank(session, replica.address))
        roomy = (replica for replica in ranked if replica.load.has_room(num_tokens))
        return next(roomy, ranked[0])

    async def until_known(self) -> None:
        """Wait until one is ready, or of all it is known that they are not."""
        while self.health is Health.AWAY and any(one.state is State.UNKNOWN for one in self.all):
            await self.until_changed(self._patience.ask_s)

    async def until_changed(self, timeout_s: float) -> None:
        """Wait until an address is another way than before, for so long at most."""
        self._num_waiting += 1
        self._wake()
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass
        finally:
            self._num_waiting -= 1

    def failed(self, replica: Replica, error: WireError | RefusedError) -> None:
        """Learn that an address could not do what it was asked for."""
        if isinstance(error, WireError) and error.has_begun and replica.is_balancer:
            pass  # one server behind it broke off; whether there are others is asked at once
        elif isinstance(error, WireError):
            self._set(replica, State.AWAY, str(error))
        elif error.status in _UNKNOWN_KEY:
            self._set(replica, State.REFUSED, f"it does not take our key (ENGINE_KEY): {error}")
        elif error.status in FULL:
            replica.pause(error.retry_after_s)
        elif error.status == 409:
            self._set(replica, State.REFUSED, "it has another model now")
        elif error.status >= 500:
            self._set(replica, State.AWAY, f"status {error.status}")
        else:
            self._set(replica, State.REFUSED, f"it is no server of this kind: {error}")
        self._wake()

    def forget(self) -> None:
        """Have every server forget texts, as soon as it can be reached."""
        for forgetter in self._forgetters:
            forgetter.owe()

    @property
    def are_forgetting(self) -> bool:
        """Whether one of them could not be told yet."""
        return any(forgetter.owes for forgetter in self._forgetters)

    async def look(self, replica: Replica) -> None:
        """Ask an address how it is."""
        was = replica.fingerprint
        try:
            report = Report.read(await self._wire.get(replica.address, "/engine/load"))
        except (WireError, RefusedError) as error:
            if isinstance(error, RefusedError) and error.status in FULL:
                self._set(replica, State.AWAY, f"status {error.status}")
            else:
                self.failed(replica, error)
            return
        before = replica.state
        if self.fingerprint and report.fingerprint != self.fingerprint:
            replica.reports(dataclasses.replace(report, state=State.REFUSED))
            replica.reason = "it has another model than the one that this bot began with"
            if before is not State.REFUSED or was != report.fingerprint:
                self._tell(replica)
            self._check_others()
            return
        replica.reports(report)
        if before is not report.state:
            self._tell(replica)
        if report.state is State.READY:
            self._changed.set()

    def _check_others(self) -> None:
        """Tell where nobody has the model any more that is known."""
        answering = [one for one in self.all if one.state not in (State.AWAY, State.UNKNOWN)]
        if (
            all(one.state is State.REFUSED for one in answering)
            and len({one.fingerprint for one in answering}) == 1
        ):
            self.on_other_model()

    def _set(self, replica: Replica, state: State, reason: str) -> None:
        is_news = (replica.state, replica.reason) != (state, reason)
        replica.fails(state, reason)
        if is_news:
            self._tell(replica)
            self._changed.set()

    def _tell(self, replica: Replica) -> None:
        reason = f": {replica.reason}" if replica.reason else ""
        level = _LEVELS.get(replica.state, logging.WARNING)
        _log.log(level, "The engine at %s is %s%s", replica.address, replica.state, reason)

    async def _watch(self, replica: Replica) -> None:
        """Ask one address again and again."""
        while True:
            await self.look(replica)
            is_busy = self._num_waiting or replica.state is State.AWAY or any(one.num_own for one in self.all)
            wait_s = self._patience.busy_poll_s if is_busy else self._patience.idle_poll_s
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._is_wanted.wait()
                    await asyncio.sleep(self._patience.busy_poll_s / 4)
            self._is_wanted.clear()

    def _wake(self) -> None:
        """Have them asked soon."""
        self._is_wanted.set()


class Forgetter:
    """Sees to it that one server forgets texts, however long it is away."""

    def __init__(self, wire: Wire, address: str, patience: Patience) -> None:
        self._wire = wire
        self._address = address
        self._patience = patience
        self._owed = asyncio.Event()
        self._num_owed = 0

    def owe(self) -> None:
        """Note that there is something to forget."""
        self._num_owed += 1
        self._owed.set()

    @property
    def owes(self) -> bool:
        """Whether the server has not been told yet."""
        return self._owed.is_set()

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            await self._owed.wait()
            wait_s = self._patience.busy_poll_s
            while not await self._try():
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _MAX_WAIT_S)

    async def last_try(self) -> None:
        """Try once more, where something is still to be forgotten."""
        if self._owed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience.connect_s):
                    await self._try()
        if self._owed.is_set():
            _log.warning("The engine at %s could not be told to forget deleted texts", self._address)

    async def _try(self) -> bool:
        num_owed = self._num_owed
        try:
            await self._wire.post(self._address, "/engine/forget")
        except (WireError, RefusedError):
            return False
        if num_owed == self._num_owed:
            self._owed.clear()
        return True


def _rank(session: str, address: str) -> bytes:
    """Return where an address stands for a conversation: one that comes or goes changes no other's place."""
    return hashlib.sha256(f"{session}\0{address}".encode()).digest()
