"""The waiting room of one engine: the only place where anything waits for it.

Whoever wants an answer takes a ticket, and is called in fair order as soon as the engine has room for what
the answer may need. The first in line is never overtaken by one that needs less. Knows nothing of who waits
and of how answers are made. Use it on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from engine.errors import EngineError, NoRoomError, TooManyWaitingError
from engine.types import EngineLoad, Generation, Prompt, SamplingParams, TextEngine
from engine.waiting.fairness import Claim, FairOrder, Turn

_log = logging.getLogger(__name__)

NUM_TOLD = 3
"""How many in line are told whenever their place changes; those behind them were told their first one."""
RECHECK_S = 5.0
"""How often the engine is asked again while somebody is in line, should it have room without our knowing."""
HOLD_S = 1.0
"""How long room is kept for an answer that begins anew."""

Begun = TypeVar("Begun")


class _State(Enum):
    APART = auto()
    """Has a ticket, and is not ready yet."""
    IN_LINE = auto()
    CALLED = auto()
    """Room is kept, which the engine does not count yet."""
    BEGUN = auto()


_MADE = (_State.CALLED, _State.BEGUN)


@dataclass(eq=False, slots=True)
class Ticket:
    """Somebody who wants an answer. Made by `WaitingRoom.enter`, and of use until `leave`."""

    claim: Claim
    state: _State = _State.APART
    num_tokens: int = 0
    call: asyncio.Future[None] | None = None
    turn: Turn | None = None
    tell: Callable[[int], object] | None = None
    place: int = 0
    """The last one that was told; 0 for none."""
    hold: asyncio.TimerHandle | None = None
    give_way: Callable[[], object] | None = None
    """What its owner does as soon as somebody else wants an answer; None for somebody like that."""

    @property
    def is_in_line(self) -> bool:
        """Whether its owner is ready and waits to be called."""
        return self.state is _State.IN_LINE


class WaitingRoom:
    """Calls tickets while there is room. load: the engine's, now. max_waiting: tickets that may wait."""

    def __init__(self, load: Callable[[], EngineLoad], *, max_waiting: int = 10_000) -> None:
        self.is_paused = False
        self._load = load
        self._max_waiting = max_waiting
        self._order = FairOrder()
        self._arrivals = itertools.count(1)
        self._tickets: dict[Claim, Ticket] = {}
        self._vacant: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._recheck: asyncio.TimerHandle | None = None

    @property
    def num_in_line(self) -> int:
        """Those who are ready and wait to be called."""
        return len(self._in(_State.IN_LINE))

    @property
    def has_space(self) -> bool:
        """Whether somebody who is ready now would be called at once, if the answer is short."""
        return not self.is_paused and not self.num_in_line and self._expected().has_room(1)

    async def idle(self) -> None:
        """Wait until nobody wants an answer, but for those who give way."""
        await self._idle.wait()

    def enter(
        self, keys: tuple[Hashable, ...] = (), *, give_way: Callable[[], object] | None = None
    ) -> Ticket:
        """Return a ticket. keys: who wants an answer, from the widest group to the narrowest.

        give_way: for work that is to be done while nobody wants an answer; called when that is over. Raises
        `TooManyWaitingError`.
        """
        load = self._expected()
        num_free = max(0, load.max_requests - load.num_requests) if load.has_room(1) else 0
        num_waiting = sum(ticket.give_way is None for ticket in self._in(_State.APART, _State.IN_LINE))
        if give_way is None and num_waiting - num_free >= self._max_waiting:
            raise TooManyWaitingError("Too many questions are waiting already. Try again in a minute.")
        ticket = Ticket(Claim(keys, next(self._arrivals)), give_way=give_way)
        self._tickets[ticket.claim] = ticket
        self._watch_idle()
        return ticket

    async def begin(
        self,
        ticket: Ticket,
        num_tokens: int,
        make: Callable[[], Awaitable[Begun]],
        tell: Callable[[int], object] | None = None,
    ) -> Begun:
        """Wait in line, begin with `make` when called, and return what it returns.

        num_tokens: what the answer may need (`TextEngine.tokens_needed`). make: has the engine begin, while
        room is kept; if it raises, no turn was taken. tell: learns the place in line; 1 is called next.
        If this is cancelled, the ticket stands where it stood.
        """
        while True:
            await self._turn(ticket, num_tokens, tell)
            try:
                begun = await make()
            except NoRoomError:
                _log.warning("The engine refused an answer for which it had said to have room")
                self._put_back(ticket)
            except BaseException:
                self._put_back(ticket)
                raise
            else:
                ticket.state = _State.BEGUN
                self._look()
                return begun
            await asyncio.sleep(RECHECK_S)

    def begin_anew(self, ticket: Ticket) -> None:
        """Give up an answer that begins anew with another prompt; for a moment its room is kept."""
        if ticket.state is _State.BEGUN:
            ticket.state = _State.CALLED
            ticket.hold = asyncio.get_running_loop().call_later(HOLD_S, self._put_back, ticket)

    def leave(self, ticket: Ticket) -> None:
        """Give a ticket back, with the room that was taken. Leaving twice is fine."""
        self._put_back(ticket)
        self._tickets.pop(ticket.claim, None)
        self._watch_idle()
        self._look()

    @contextlib.asynccontextmanager
    async def generating(
        self,
        engine: TextEngine,
        prompt: Prompt,
        params: SamplingParams,
        keys: tuple[Hashable, ...] = (),
        *,
        give_way: Callable[[], object] | None = None,
        tell: Callable[[int], object] | None = None,
    ) -> AsyncIterator[Generation]:
        """Give an answer of `engine` once there is room for it; what is left of it at the end is cancelled.

        `keys` and `give_way` are as for `enter`, `tell` as for `begin`. Raises `TooManyWaitingError` and what
        `TextEngine.generate` raises.
        """

        async def generate() -> Generation:
            return engine.generate(prompt, params)

        ticket = self.enter(keys, give_way=give_way)
        try:
            generation = await self.begin(ticket, engine.tokens_needed(prompt, params), generate, tell)
            try:
                yield generation
            finally:
                await end(generation)
        finally:
            self.leave(ticket)

    async def drain(self, timeout_s: float) -> bool:
        """Call nobody any more, and wait until nothing is being made; return whether that came in time."""
        self.is_paused = True
        self._watch_idle()
        try:
            async with asyncio.timeout(timeout_s):
                while self._in(*_MADE):
                    self._vacant = asyncio.get_running_loop().create_future()
                    await self._wait(self._vacant)
        except TimeoutError:
            return False
        return True

    def resume(self) -> None:
        """Call again."""
        self.is_paused = False
        self._watch_idle()
        self._look()

    def _watch_idle(self) -> None:
        """Tell those who give way when somebody wants an answer, or nobody any more."""
        if not self.is_paused and all(ticket.give_way is not None for ticket in self._tickets.values()):
            self._idle.set()
            return
        self._idle.clear()
        for ticket in list(self._tickets.values()):
            if ticket.give_way is not None:
                ticket.give_way()

    async def _turn(self, ticket: Ticket, num_tokens: int, tell: Callable[[int], object] | None) -> None:
        """Wait until the ticket is called."""
        is_held, ticket.state = ticket.state is _State.CALLED, _State.IN_LINE
        self._stop_holding(ticket)
        ticket.num_tokens, ticket.tell, ticket.place = num_tokens, tell, 0
        if is_held and not self.is_paused and self._expected().has_room(num_tokens):
            ticket.state = _State.CALLED
            return
        if is_held and ticket.turn is not None:
            self._order.returned(ticket.turn)
        ticket.call = asyncio.get_running_loop().create_future()
        self._look()
        try:
            await self._wait(ticket.call)
        except BaseException:
            self._put_back(ticket)
            raise

    async def _wait(self, future: asyncio.Future[None]) -> None:
        """Wait for what only others can bring about; a simulation needs to know of that."""
        await future

    def _put_back(self, ticket: Ticket) -> None:
        """Let a ticket stand apart, as if it had not been called unless it had begun."""
        self._stop_holding(ticket)
        if ticket.state is _State.CALLED and ticket.turn is not None:
            self._order.returned(ticket.turn)
        ticket.state = _State.APART
        self._look()

    def _stop_holding(self, ticket: Ticket) -> None:
        if ticket.hold is not None:
            ticket.hold.cancel()
            ticket.hold = None

    def _look(self) -> None:
        """Call whose turn it is while there is room, and tell the others their places."""
        if self._recheck is not None:
            self._recheck.cancel()
            self._recheck = None
        line = self._line()
        while line and not self.is_paused and self._expected().has_room(line[0].num_tokens):
            self._call(line[0])
            line = self._line()
        for place, ticket in enumerate(line, start=1):
            if ticket.tell is not None and ticket.place != place and (place <= NUM_TOLD or not ticket.place):
                ticket.tell(place)
                ticket.place = place
        if self._vacant is not None and not self._vacant.done() and not self._in(*_MADE):
            self._vacant.set_result(None)
        if line and not self.is_paused:
            self._recheck = asyncio.get_running_loop().call_later(RECHECK_S, self._look)

    def _line(self) -> list[Ticket]:
        """Return those in line, in the order in which they stand now."""
        # One whose wait was cancelled just now is about to step out.
        ready = {t.claim: t for t in self._in(_State.IN_LINE) if t.call is not None and not t.call.done()}
        return [ready[claim] for claim in self._order.ordered(ready)]

    def _call(self, ticket: Ticket) -> None:
        ticket.state = _State.CALLED
        ticket.turn = self._order.served(ticket.claim)
        if ticket.call is not None:
            ticket.call.set_result(None)

    def _expected(self) -> EngineLoad:
        """Return the load as it will be once all that were called have begun."""
        load, called = self._load(), self._in(_State.CALLED)
        return dataclasses.replace(
            load,
            num_requests=load.num_requests + len(called),
            num_reserved_tokens=load.num_reserved_tokens + sum(ticket.num_tokens for ticket in called),
        )

    def _in(self, *states: _State) -> list[Ticket]:
        return [ticket for ticket in self._tickets.values() if ticket.state in states]


async def end(generation: Generation) -> None:
    """Cancel what is left of an answer, and wait until the engine has let go of it."""
    generation.cancel()
    with contextlib.suppress(EngineError):
        async for _ in generation:
            pass
