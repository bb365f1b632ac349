"""What is done while nobody asks: the KV that the next questions will need is computed before they come.

Whatever is written may change a prompt: a stride, an answer made anew, a turn taken back, another system
prompt. So after every change, and after a start, the beginnings of the likeliest next prompts are given to
the engine, which has most of them already. All of it is given up as soon as somebody asks. Knows nothing of
Discord.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bot.conversation.jobs import session_of
from bot.conversation.preferences import MINUTES, Preferences
from bot.conversation.prompting import MAX_MESSAGES, Prompts, last_view, next_prefixes
from bot.conversation.summing import Draft, Summing, unsummed
from bot.errors import is_expected
from engine.types import Health, Prompt, TextEngine, Warming
from engine.waiting.room import WaitingRoom
from storage.conversations import Conversations, Message
from storage.errors import NotFoundError
from storage.summaries import Summary
from storage.types import Asked, utc_now

_log = logging.getLogger(__name__)

QUIET_S = 0.3
"""How long nobody must have asked."""
RETRY_S = 60.0
"""How soon it is tried again where the machine has other things to do."""
MAX_CONVERSATIONS = 32
"""Computed ahead at most; what the engine has room for may be less."""
OF_LATE = timedelta(days=7)
"""By what was asked in this time it is guessed which conversations go on."""
FOR_LONG = timedelta(hours=12)
"""Where nobody asked for this time, no question is expected, so that the engine gives memory back."""
_GOES_ON, _PAUSE_S = 0.5, 60.0
_SECOND = 0.25
"""How likely a question is to need the second of the beginnings that are expected, where it comes."""


def likeliest(asked: Sequence[Asked], now: datetime) -> dict[int, float]:
    """Return how likely conversations are to go on, the likeliest first. asked: what came since `OF_LATE`.

    That is a rate: that of a burst, which falls as its age grows, and that of the last days.
    """

    def rate(one: Asked) -> float:
        age_s = max((now - one.last_at).total_seconds(), 0.0)
        return _GOES_ON / (age_s + _PAUSE_S) + one.num_questions / OF_LATE.total_seconds()

    return {one.conversation_id: rate(one) for one in sorted(asked, key=rate, reverse=True)}


@dataclass(frozen=True, slots=True)
class _Past:
    """A conversation as its next prompt is made of it."""

    conversation_id: int
    history: list[Message]
    summaries: list[Summary]


class IdleWork:
    """Works ahead while the room is idle. may_work: whether the machine has nothing better to do."""

    def __init__(
        self,
        engine: TextEngine,
        room: WaitingRoom,
        conversations: Conversations,
        preferences: Preferences,
        *,
        summing: Summing,
        may_work: Callable[[], bool] = lambda: True,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._engine = engine
        self._room = room
        self._conversations = conversations
        self._preferences = preferences
        self._may_work = may_work
        self._summing = summing
        self._draft: Draft | None = None
        """A summary that is made, and was to stand in prompts as soon as their KV is there."""
        self._now = now
        self._has_changed = asyncio.Event()
        self._has_changed.set()  # after a start nothing is there
        self._is_working = self._is_given_up = False
        self._warming: Warming | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do until something changes."""
        return not (self._has_changed.is_set() or self._is_working)

    def note_change(self) -> None:
        """Learn that the prompts of next questions, or what the engine keeps, may have changed."""
        self._has_changed.set()

    def forget(self) -> None:
        """Let go of texts, some of which were deleted; the engine has forgotten them too."""
        self._draft = None
        self.note_change()

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_changed.wait(), self._until_told_another_time())
            self._has_changed.set()
            await self._room.idle()
            await asyncio.sleep(QUIET_S)
            if self._engine.health is Health.READY and await asyncio.to_thread(self._may_work):
                await self._work()
            else:
                await asyncio.sleep(RETRY_S)

    def _until_told_another_time(self) -> float:
        """Return how many seconds later prompts that tell the time will tell another one."""
        return MINUTES * 60 - self._now().timestamp() % (MINUTES * 60) + 1

    async def _work(self) -> None:
        """Do all there is to do, or note that there is more."""
        self._has_changed.clear()
        self._is_working, self._is_given_up = True, False
        ticket = self._room.enter(give_way=self._give_up)
        try:
            await self._work_through()
        except Exception as error:  # noqa: BLE001 - the edge of a task: the next change brings the next try
            if is_expected(error):
                _log.warning("Nothing more was done while nobody asked: %s", error)
            else:
                _log.exception("What is done while nobody asks has failed")
        finally:
            self._is_working = False
            self._room.leave(ticket)
        if self._is_given_up:
            self._has_changed.set()

    def _give_up(self) -> None:
        self._is_given_up = True
        if self._warming is not None:
            self._warming.cancel()

    async def _work_through(self) -> None:
        """Compute what the likeliest conversations need, as long as the engine has room; then sum up."""
        now = self._now()
        asked = await self._conversations.asked_since(now - OF_LATE)
        if all(one.last_at < now - FOR_LONG for one in asked):
            return
        conversations = dict(itertools.islice(likeliest(asked, now).items(), MAX_CONVERSATIONS))
        await self._warm_all(conversations)
        for conversation_id in conversations:
            with contextlib.suppress(NotFoundError):  # it was deleted just now
                if not self._is_given_up and await self._preferences.sums_up(conversation_id):
                    await self._sum_up(conversation_id)

    async def _warm_all(self, conversations: Mapping[int, float]) -> None:
        num_left = self._engine.load.max_kv_tokens
        async with contextlib.aclosing(self._expected(conversations)) as prompts:
            async for conversation_id, prompt in prompts:
                num_left -= len(prompt.ids)
                if self._is_given_up or num_left < 0 or not await self._warm(conversation_id, prompt):
                    return

    async def _expected(self, conversations: Mapping[int, float]) -> AsyncGenerator[tuple[int, Prompt], None]:
        """Yield the beginnings of the next prompts with their conversations, the likelier first."""
        seconds: deque[tuple[float, int, Prompt]] = deque()
        for conversation_id, rate in conversations.items():
            while seconds and seconds[0][0] >= rate:
                yield seconds.popleft()[1:]
            with contextlib.suppress(NotFoundError):
                prefixes = await self._next_prefixes(await self._past_of(conversation_id))
                for prompt in prefixes[:1]:
                    yield conversation_id, prompt
                seconds.extend((rate * _SECOND, conversation_id, prompt) for prompt in prefixes[1:])
        for _, conversation_id, prompt in seconds:
            yield conversation_id, prompt

    async def _past_of(self, conversation_id: int) -> _Past:
        history = await self._conversations.history_next(conversation_id, limit=MAX_MESSAGES + 1)
        return _Past(conversation_id, history, await self._preferences.summaries(conversation_id))

    async def _next_prefixes(self, past: _Past) -> list[Prompt]:
        parameters = await self._preferences.parameters(past.conversation_id)
        return await asyncio.to_thread(
            next_prefixes,
            Prompts(self._engine, parameters.thinks),
            past.history,
            await self._preferences.told_in(past.conversation_id, parameters),
            parameters.prompt_budget(self._engine.info.context_length),
            past.summaries,
        )

    async def _sum_up(self, conversation_id: int) -> None:
        """Sum up what was let go, and have that stand in prompts as soon as their KV is there."""
        past = await self._past_of(conversation_id)
        draft = await self._drafted(past)
        if draft is None:
            return
        told = Summary(draft.until_id, draft.content, self._now())
        prefixes = await self._next_prefixes(dataclasses.replace(past, summaries=[*past.summaries, told]))
        for prompt in prefixes if draft.content else ():
            if not self._is_given_up:
                await self._warm(conversation_id, prompt)
        if self._is_given_up:
            self._draft = draft
        else:
            await self._conversations.summaries.add(conversation_id, draft.of, draft.until_id, draft.content)

    async def _drafted(self, past: _Past) -> Draft | None:
        """Return a summary of what is not summed up yet, the one that was made before if it still holds."""
        let_go = unsummed(past.history, past.summaries)
        if not let_go:
            return None
        known = self._draft
        if known is not None and known.conversation_id == past.conversation_id:
            self._draft = None
            if known.until_id == last_view(past.history) and set(known.of) <= set(let_go):
                return known
        ref = await self._conversations.ref_of(past.conversation_id)
        return await self._summing.draft(past.conversation_id, ref, let_go, last_view(past.history))

    async def _warm(self, conversation_id: int, prompt: Prompt) -> bool:
        """Return whether the engine has the KV of a prompt now."""
        self._warming = warming = self._engine.warm(prompt, session=session_of(conversation_id))
        try:
            return await warming
        finally:
            warming.cancel()
            self._warming = None
