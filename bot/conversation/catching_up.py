"""Sums up for one person what was said while they were away, in parts where it is too much for one look.

Each part is summed up by itself, and the sums are put together; each waits for the engine in fair order as
any question does. Nothing is stored. Knows nothing of Discord.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bot.conversation.dialog import quoted, take_apart
from bot.conversation.summing import sum_tokens
from bot.conversation.talk import Heard, lines_of
from bot.origin import Origin
from bot.servers.moderation import Gate
from bot.servers.screening import Screen, Screening
from engine.types import (
    CATCH_UP,
    CATCH_UP_REQUEST,
    PUT_TOGETHER,
    ChatMessage,
    FinishReason,
    Generation,
    ModelInfo,
    Prompt,
    SamplingParams,
    TextEngine,
)
from engine.waiting.room import Ticket, WaitingRoom, end
from storage.conversations import ConversationRef

MAX_TOKENS = 320
"""Of a sum."""
MAX_PARTS = 8
"""The newest ones; each is one answer of the engine."""
_DURATION = re.compile(r"(\d{1,6})\s*([^\W\d_]+)\.?")
_TIMESTAMP = re.compile(r"<t:(\d{1,12})(?::[tTdDfFRsS])?>")
_DATE = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d))?")
_UNITS = {
    timedelta(minutes=1): {
        *(
            "m",
            "min",
            "mins",
            "minute",
            "minutes",
            "minuten",
            "minuto",
            "minutos",
            "minut",
            "minuta",
            "minuty",
        )
    },
    timedelta(hours=1): {
        *("h", "hr", "hrs", "hour", "hours", "std", "stunde", "stunden", "heure", "heures", "hora", "horas"),
        *("godz", "godzina", "godziny", "godzin"),
    },
    timedelta(days=1): {
        *(
            "d",
            "day",
            "days",
            "t",
            "tag",
            "tage",
            "tagen",
            "j",
            "jour",
            "jours",
            "día",
            "días",
            "dia",
            "dias",
        ),
        *("dzień", "dni"),
    },
    timedelta(weeks=1): {
        *("w", "week", "weeks", "woche", "wochen", "sem", "semaine", "semaines", "semana", "semanas"),
        *("tydz", "tydzień", "tygodnie", "tygodni"),
    },
}
"""As people write them, in all our languages."""

Tell = Callable[[int, int], Awaitable[None]]
"""Learns how many of how many answers of the engine are there."""


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What was said, in short. num_left_out: messages before those that it tells of. is_whole: all of it."""

    text: str
    num_left_out: int = 0
    is_whole: bool = True


def read_since(text: str, now: datetime) -> datetime | None:
    """Return the time that somebody means by `2h`, `3 days`, a date or Discord's `<t:…>`; None if none. Pure.

    Dates are in UTC.
    """
    text = text.strip()
    try:
        if found := _DURATION.fullmatch(text):
            unit = next((one for one, names in _UNITS.items() if found[2].casefold() in names), None)
            return None if unit is None else now - int(found[1]) * unit
        if found := _TIMESTAMP.fullmatch(text):
            return _past(datetime.fromtimestamp(int(found[1]), UTC), now)
        if found := _DATE.fullmatch(text):
            return _past(datetime.fromisoformat(f"{found[1]}T{found[2] or '00:00'}+00:00"), now)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _past(at: datetime, now: datetime) -> datetime | None:
    return at if at <= now else None


class CatchingUp:
    """Sums up with one engine."""

    def __init__(
        self, engine: TextEngine, room: WaitingRoom, gate: Gate | None, screening: Screening | None
    ) -> None:
        self._engine = engine
        self._room = room
        self._gate = gate
        self._screening = screening

    async def sum_up(
        self, heard: Sequence[Heard], ref: ConversationRef, origin: Origin, tell: Tell, until_s: float
    ) -> CaughtUp:
        """Return what was said, oldest first. until_s: when the loop's clock says so, what is there must do.

        Raises `WithheldError`, what the waiting room raises, and `EngineError`.
        """
        screen = Screen() if self._screening is None else await self._screening.open_at(ref, None, origin)
        lines = dict(zip((one.discord_id for one in heard), lines_of(heard), strict=True))
        parts, num_left_out = await asyncio.to_thread(self._in_parts, heard, lines)
        sums: list[str] = []
        is_whole = True
        try:
            async with asyncio.timeout_at(until_s):
                for number, part in enumerate(parts):
                    await tell(number, len(parts) + (len(parts) > 1))
                    said = "\n".join(lines[one.discord_id] for one in await self._still(part, origin))
                    if said:
                        sums.append(await self._summed(f"{CATCH_UP_REQUEST}\n\n{said}", origin))
                if len(sums) > 1:
                    await tell(len(parts), len(parts) + 1)
                sums = await self._put_together(sums, origin)
        except TimeoutError:
            is_whole = False
        await screen.check_question(CATCH_UP_REQUEST)
        text = (await screen.finished("\n\n".join(filter(None, sums)))).strip()
        return CaughtUp(text, num_left_out, is_whole)

    async def _still(self, part: Sequence[Heard], origin: Origin) -> Sequence[Heard]:
        """Return what may still be heard: it may have waited."""
        return part if self._gate is None else await self._gate.may_be_heard(origin, part)

    async def _put_together(self, sums: list[str], origin: Origin) -> list[str]:
        """Return fewer sums of the same, one if that is possible."""
        while len(sums) > 1:
            packs = await asyncio.to_thread(self._packs, [quoted(one) for one in sums])
            if len(packs) == len(sums):
                break
            requests = ["\n\n".join((PUT_TOGETHER, *pack)) for pack in packs]
            sums = [await self._summed(request, origin) for request in requests]
        return sums

    async def _summed(self, request: str, origin: Origin) -> str:
        """Return what the model says to a request, after a wait for the engine."""
        ticket = self._room.enter(origin.keys)
        try:
            generation = await self._begin(ticket, request)
            try:
                async for _ in generation:
                    pass
            finally:
                await end(generation)
        finally:
            self._room.leave(ticket)
        completion = generation.completion
        if completion is None:
            return ""
        said = take_apart(completion.text, self._engine.info.reasoning_when(False), final=True).answer.strip()
        return f"{said}…" if completion.finish_reason is FinishReason.LENGTH and said else said

    async def _begin(self, ticket: Ticket, request: str) -> Generation:
        """Begin when it is our turn, with a prompt for the model that is loaded then."""
        while True:
            info = self._engine.info
            prompt = await asyncio.to_thread(self._prompt, request)
            params = SamplingParams(temperature=0.0, max_new_tokens=self._max_new_tokens)
            begin = functools.partial(self._generate, prompt, params, info)
            num_tokens = self._engine.tokens_needed(prompt, params)
            generation = await self._room.begin(ticket, num_tokens, begin)
            if generation is not None:
                return generation
            self._room.begin_anew(ticket)

    async def _generate(self, prompt: Prompt, params: SamplingParams, info: ModelInfo) -> Generation | None:
        """Have the engine begin, unless it has another model by now."""
        return self._engine.generate(prompt, params) if self._engine.info == info else None

    @property
    def _max_new_tokens(self) -> int:
        return sum_tokens(self._engine.info, MAX_TOKENS)

    @property
    def _room_for_lines(self) -> int:
        """Tokens of what is summed up at once, beside what says what to do."""
        info = self._engine.info
        spent = (
            self._engine.count_tokens(f"{CATCH_UP}{PUT_TOGETHER}{CATCH_UP_REQUEST}")
            + info.context_length // 32
        )
        return info.context_length - self._max_new_tokens - spent

    def _prompt(self, request: str) -> Prompt:
        dialog = (ChatMessage("system", CATCH_UP), ChatMessage("user", request))
        max_tokens = self._engine.info.context_length - self._max_new_tokens
        return self._engine.fit_prompt(dialog, max_tokens, thinking=False)

    def _in_parts(self, heard: Sequence[Heard], lines: dict[int, str]) -> tuple[list[list[Heard]], int]:
        """Return messages in parts that fit, and how many are left out. What is unsafe is in none."""
        safe = [one for one in heard if self._engine.is_safe(lines[one.discord_id])]
        packs = self._packs([lines[one.discord_id] for one in safe])
        rest = iter(safe)
        parts = [[next(rest) for _ in pack] for pack in packs]
        left_out = parts[: max(0, len(parts) - MAX_PARTS)]
        return parts[len(left_out) :], sum(map(len, left_out))

    def _packs(self, texts: Sequence[str]) -> list[list[str]]:
        """Return texts in order, together as far as there is room."""
        packs: list[list[str]] = []
        left = 0
        for text in texts:
            num_tokens = self._engine.count_tokens(f"{text}\n\n")
            if not packs or num_tokens > left:
                packs.append([])
                left = self._room_for_lines
            packs[-1].append(text)
            left -= num_tokens
        return packs
