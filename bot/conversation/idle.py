"""What is done while nobody asks: the KV that the next questions will need is computed before they come.

Whatever is written may change a prompt: a stride, an answer made anew, a turn taken back, another system
prompt. So after every change, and after a start, the beginnings of the likeliest next prompts are given to
the engine, which has most of them already. All of it is given up as soon as somebody asks. Knows nothing of
Discord.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from bot.conversation.preferences import Preferences
from bot.conversation.prompting import MAX_MESSAGES, next_prefixes
from engine.types import Health, Prompt, TextEngine, Warming
from engine.waiting.room import WaitingRoom
from storage.conversations import Conversations
from storage.types import utc_now

_log = logging.getLogger(__name__)

QUIET_S = 0.3
"""How long nobody must have asked."""
RETRY_S = 60.0
"""How soon it is tried again where the machine has other things to do."""
MAX_CONVERSATIONS = 32
"""Computed ahead at most; what the engine has room for may be less."""
MAX_QUESTIONS = 500
"""The newest ones, by which it is guessed which conversations go on."""
_SOON, _DAILY, _DAILY_WEIGHT = timedelta(minutes=10), timedelta(days=1), 0.05


def likeliest(asked: Sequence[tuple[int, datetime]], now: datetime) -> list[int]:
    """Return conversations, the likeliest to go on first. asked: where and when questions were asked.

    Each question makes more of them likely for some minutes, and a little so for a day.
    """
    chances: defaultdict[int, float] = defaultdict(float)
    for conversation_id, at in asked:
        age = max(now - at, timedelta())
        chances[conversation_id] += math.exp(-age / _SOON) + _DAILY_WEIGHT * math.exp(-age / _DAILY)
    return sorted(chances, key=chances.__getitem__, reverse=True)


class IdleWork:
    """Works ahead while the room is idle. may_work: whether the machine has nothing better to do."""

    def __init__(
        self,
        engine: TextEngine,
        room: WaitingRoom,
        conversations: Conversations,
        preferences: Preferences,
        *,
        may_work: Callable[[], bool] = lambda: True,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._engine = engine
        self._room = room
        self._conversations = conversations
        self._preferences = preferences
        self._may_work = may_work
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

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            await self._has_changed.wait()
            await self._room.idle()
            await asyncio.sleep(QUIET_S)
            if self._engine.health is Health.READY and await asyncio.to_thread(self._may_work):
                await self._work()
            else:
                await asyncio.sleep(RETRY_S)

    async def _work(self) -> None:
        """Do all there is to do, or note that there is more."""
        self._has_changed.clear()
        self._is_working, self._is_given_up = True, False
        ticket = self._room.enter(give_way=self._give_up)
        try:
            await self._warm_all()
        except Exception:  # noqa: BLE001 - the edge of a task: the next change brings the next try
            _log.exception("What is done while nobody asks has failed")
        finally:
            self._is_working = False
            self._room.leave(ticket)
            if self._warming is not None:
                self._warming.cancel()
        if self._is_given_up:
            self._has_changed.set()

    def _give_up(self) -> None:
        self._is_given_up = True
        if self._warming is not None:
            self._warming.cancel()

    async def _warm_all(self) -> None:
        """Compute what the likeliest conversations need, as long as the engine has room."""
        asked = await self._conversations.recent_questions(MAX_QUESTIONS)
        num_left = self._engine.load.max_kv_tokens
        for conversation_id in likeliest(asked, self._now())[:MAX_CONVERSATIONS]:
            for prompt in await self._next_prefixes(conversation_id):
                num_left -= len(prompt.ids)
                if self._is_given_up or num_left < 0 or not await self._warm(prompt):
                    return

    async def _next_prefixes(self, conversation_id: int) -> list[Prompt]:
        history = await self._conversations.history_next(conversation_id, limit=MAX_MESSAGES + 1)
        parameters = await self._preferences.parameters(conversation_id)
        return await asyncio.to_thread(
            next_prefixes,
            self._engine,
            history,
            await self._preferences.told_in(conversation_id, parameters),
            parameters.prompt_budget(self._engine.info.context_length),
        )

    async def _warm(self, prompt: Prompt) -> bool:
        """Return whether the engine has the KV of a prompt now."""
        self._warming = self._engine.warm(prompt)
        try:
            return await self._warming
        finally:
            self._warming = None
