"""Shows one growing answer in Discord messages, at a pace that Discord allows.

Owns the one task that talks to the outbox for an answer: it does one request after another until Discord
shows what the newest text asks for. Its clock is the event loop's. Knows nothing of models or storage.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from bot.delivery.board import REFUSAL, Board, Delete, Edit, Look, Part, Request, Send
from bot.delivery.column import EDIT_INTERVAL_S, Column
from bot.delivery.outbox import (
    Buttons,
    Outbox,
    OutboxClosedError,
    OutboxError,
    OutboxForbiddenError,
    OutboxGoneError,
    OutboxRefusedError,
    OutboxRetryError,
)
from bot.delivery.render import render, with_note, with_note_inside, with_thought
from bot.tasks import Pause, Tasks

_log = logging.getLogger(__name__)

EMPTY_ANSWER = "The answer is empty."
"""The note below an answer that ended without any text."""
CLOSED = "I can't write here right now."
"""The note below an answer that goes on in messages that we may not send."""
MAX_PARTS = 5
"""Messages that one answer may take; a longer one ends as a text file."""
REQUEST_TIMEOUT_S = 30.0
FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 30.0
PATIENCE_S = 5.0
"""How often is looked whether an answer is held up by another one."""


class Outcome(Enum):
    """How a delivery ended."""

    SHOWN = auto()
    """The complete answer is shown, or all of it that Discord takes."""
    GONE = auto()
    """Somebody deleted the message or its channel."""
    FORBIDDEN = auto()
    """We may not write there now."""
    REFUSED = auto()
    """Discord takes nothing of it, not even that it does not."""
    FAILED = auto()
    """Discord did not take it in time, or something unexpected happened."""


UNSHOWN = {Outcome.FORBIDDEN, Outcome.REFUSED, Outcome.FAILED}
"""What may be shown later."""


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What is on Discord now: ids of the messages that show the answer."""

    outcome: Outcome
    parts: tuple[int, ...]


async def _ignore(_: object) -> None: ...


class Delivery:
    """The way of one answer to its readers. Use it on one event loop.

    on_part: told position and Discord id of every message that is sent. on_gone: told the id of every one
    that is there no more. on_text: told of every text before it is shown. min_interval_s: between two edits
    of one message. existing_parts: messages to reuse, as when an answer is made anew; those not needed are
    deleted at the end. looks: what they show, where that is known. can_move: whether messages may be taken
    away and come again below others'. max_parts: messages that the answer may take. give_up_after_s: how long
    `finish` may take, but for the time in which another answer holds it up. column: shared with the other
    answers in the channel. refusal: shown where Discord does not take what is to be shown. closed_note: said
    below what stands where no more may be sent.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        answer_id: int,
        on_part: Callable[[int, int], Awaitable[None]],
        on_gone: Callable[[int], Awaitable[None]] = _ignore,
        on_text: Callable[[str], Awaitable[None]] = _ignore,
        min_interval_s: float = EDIT_INTERVAL_S,
        existing_parts: Sequence[int] = (),
        looks: Mapping[int, Look] = MappingProxyType({}),
        can_move: bool = True,
        give_up_after_s: float = 90.0,
        max_parts: int = MAX_PARTS,
        column: Column | None = None,
        refusal: str = REFUSAL,
        closed_note: str = CLOSED,
    ) -> None:
        self.lost = asyncio.Event()
        """Set when the answer can no longer be shown, so that nobody needs to go on making it."""
        self.answer_id = answer_id
        self.can_move = can_move
        self._outbox = outbox
        self._on_part = on_part
        self._on_gone = on_gone
        self._on_text = on_text
        self._min_interval_s = min_interval_s
        self._max_parts = max_parts
        self._give_up_after_s = give_up_after_s
        self._closed_note = closed_note
        self._board = Board(existing_parts, looks, refusal)
        self._newest: str | None = None
        self._untold: str | None = None
        self._num_failures = 0
        self._is_closed = False
        """The thread was archived when it was last asked for."""
        self._blocked_until_s = 0.0
        self._pause = Pause()
        self._requesting = asyncio.Lock()
        self._tasks = Tasks()
        self._worker: asyncio.Task[Outcome] | None = None
        self._ending: asyncio.Task[DeliveryResult] | None = None
        self._column = column or Column()
        self._column.enter(self)

    @property
    def part_ids(self) -> tuple[int, ...]:
        """The messages that show the answer."""
        return self._board.ids

    @property
    def may_grow(self) -> bool:
        """Whether the answer may need more messages."""
        return not self.is_lost and self._board.may_grow

    @property
    def is_lost(self) -> bool:
        """Whether the answer can no longer be shown."""
        return self.lost.is_set()

    def update(self, text: str) -> None:
        """Show the whole text so far when it is time; a newer text takes its place. Blank: a placeholder."""
        if self._ending is None and not self.is_lost:
            self._newest = text
            self._start()

    async def finish(
        self,
        text: str,
        *,
        note: str | None = None,
        buttons: Buttons = Buttons.REGENERATE,
        file_note: str = "The whole answer is in the file.",
        thought: str = "",
    ) -> DeliveryResult:
        """Show the complete text, `note` in small below it, and `buttons`; return how that went.

        `thought` comes below the text, behind a spoiler, as much of it as one message takes.
        Of a text longer than `max_parts` messages the beginning is shown, with `file_note` and the whole of
        it as a file.

        Goes on to the end even if the caller is cancelled. Called again it returns the first call's result.
        """
        if self._ending is None:
            parts = render(text, final=True)
            note = note or ("" if parts else EMPTY_ANSWER)
            is_long = len(parts) > self._max_parts
            if is_long:
                parts, note = parts[: self._max_parts], f"{note} {file_note}".strip()
            parts = with_thought(parts, thought)
            self._newest = self._untold = None
            self._board.want(
                with_note(parts, note) if note else parts,
                buttons,
                final=True,
                attachment=text if is_long else "",
            )
            self._column.moved()
            self._pause.end()
            self._ending = self._tasks.start(self._end(), f"end of answer {self.answer_id}")
        return await asyncio.shield(self._ending)

    async def withdraw(self) -> None:
        """Delete the messages, to send them anew when it is their turn. Raises `OutboxError`s."""
        async with self._requesting:
            while self._column.has(self) and (part := self._board.last) is not None:
                await self._take_away(part)
        self._start()

    def give_way(self) -> None:
        """Show nothing more: another answer is shown in the same messages."""
        self.lost.set()
        if self._worker is not None:
            self._worker.cancel()

    async def close(self) -> None:
        """Give up whatever is still to be shown. Closing twice is fine."""
        self._column.leave(self)
        self.give_way()
        if self._worker is not None:
            await asyncio.wait({self._worker})

    def _start(self) -> asyncio.Task[Outcome]:
        if self._worker is None or (self._worker.done() and not self.is_lost):
            self._worker = self._tasks.start(self._work(), f"delivery of answer {self.answer_id}")
        return self._worker

    async def _end(self) -> DeliveryResult:
        left_s = self._give_up_after_s
        while left_s > 0.001:
            worker = self._start()
            began_s, is_held = _now_s(), self._column.is_held(self)
            await asyncio.wait({worker}, timeout=min(left_s, PATIENCE_S))
            left_s -= 0.0 if is_held else _now_s() - began_s
            if worker.done():
                async with self._requesting:  # or our messages are being taken away
                    is_shown = self.is_lost or self._board.next_request() is None
                    if is_shown and not self._may_have_to_move:
                        outcome = await self._show_what_can_be(_outcome_of(worker))
                        self._column.leave(self)
                        return DeliveryResult(outcome, self._board.ids)
                if is_shown:
                    await self._column.wait(PATIENCE_S)
        _log.warning("Answer %d could not be shown completely in time.", self.answer_id)
        worker.cancel()
        self._column.leave(self)
        return DeliveryResult(Outcome.FORBIDDEN if self._is_closed else Outcome.FAILED, self._board.ids)

    async def _show_what_can_be(self, outcome: Outcome) -> Outcome:
        """Where no more may be sent, let the messages that stand say what they can, and that this is not all.

        Return the outcome: by then all of it may be shown.
        """
        if outcome is not Outcome.FORBIDDEN or self._board.last is None:
            return outcome
        with contextlib.suppress(OutboxError, TimeoutError):
            while isinstance(request := self._board.next_request(), Edit):
                await self._edit(request.part, request.look)
            last = self._board.last
            if isinstance(request, Send) and last is not None and last.look is not None:
                content = with_note_inside(last.look.content, self._closed_note)
                await self._edit(last, Look(content, Buttons.NONE))
        return outcome if self._board.next_request() is not None else Outcome.SHOWN

    @property
    def _may_have_to_move(self) -> bool:
        """Whether an answer above may still need the place below it: then nothing is shown for good."""
        return self.can_move and not self.is_lost and self._column.is_below_others(self)

    async def _work(self) -> Outcome:
        """Bring Discord to what is wanted until the end; whatever goes wrong ends here."""
        if self.is_lost:
            return Outcome.FAILED
        try:
            await self._show_all()
        except OutboxGoneError:
            return self._lose(Outcome.GONE)
        except OutboxForbiddenError:
            return self._lose(Outcome.FORBIDDEN)
        except OutboxRefusedError:
            return self._lose(Outcome.REFUSED)
        except Exception:  # noqa: BLE001 - the edge of the task: the answer ends as one that failed
            _log.exception("The delivery of answer %d failed.", self.answer_id)
            return self._lose(Outcome.FAILED)
        return Outcome.SHOWN

    def _lose(self, outcome: Outcome) -> Outcome:
        self.lost.set()
        return outcome

    async def _show_all(self) -> None:
        """Do one request after another until nothing differs; the next text starts this anew."""
        while True:
            if self._newest is not None:
                parts = render(self._newest, final=False)[: self._max_parts]
                self._board.want(parts, Buttons.STOP, final=False)
                self._untold, self._newest = self._newest, None
            request = self._board.next_request()
            if request is not None:
                await self._do_when_due(request)
            else:
                return

    async def _do_when_due(self, request: Request) -> None:
        """Do `request`, or only wait for its time: by then a newer text may ask for something else."""
        if isinstance(request, Send) and self._column.is_held(self):
            await self._column.wait(self._min_interval_s)
            return
        due_s = max(self._due_s(request), self._column.pace.free_at_s) if isinstance(request, Edit) else 0.0
        wait_s = max(due_s, self._blocked_until_s) - _now_s()
        if wait_s > 0:
            await self._pause.wait(wait_s)
            return
        if self._untold is not None:
            text, self._untold = self._untold, None
            await self._on_text(text)
        try:
            if isinstance(request, Send):
                await self._column.make_room(self)
            async with self._requesting:
                if request == self._board.next_request():  # or it was withdrawn meanwhile
                    await self._do(request)
        except (OutboxRetryError, OutboxClosedError, TimeoutError) as error:
            self._is_closed = isinstance(error, OutboxClosedError)
            self._back_off(error.retry_after if isinstance(error, OutboxRetryError) else None)
        except OutboxRefusedError:
            if isinstance(request, Delete) or not self._board.refuse(request.look):
                raise
            self._blocked_until_s = _now_s() + self._min_interval_s
        else:
            self._num_failures, self._is_closed = 0, False

    def _due_s(self, edit: Edit) -> float:
        """Return when an edit may be: while many answers grow all do so more slowly, and none ends later."""
        if self._ending is not None:
            return edit.due_s
        return edit.due_s + max(0.0, self._column.crowd_interval_s() - self._min_interval_s)

    async def _do(self, request: Request) -> None:
        match request:
            case Send(look):
                await self._send(look)
            case Edit(part, look):
                await self._edit(part, look)
            case Delete(part):
                await self._delete(part)

    async def _send(self, look: Look) -> None:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            discord_id = await self._outbox.send(
                look.content, buttons=look.buttons, attachment=look.attachment
            )
        position = self._board.note_sent(discord_id, look, _now_s() + self._min_interval_s)
        self._column.moved()
        await self._record(position, discord_id)

    async def _edit(self, part: Part, look: Look) -> None:
        self._column.pace.edits_at(_now_s())
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._outbox.edit(
                    part.discord_id, look.content, buttons=look.buttons, attachment=look.attachment
                )
        except OutboxGoneError:
            if not self._board.is_expendable(part):
                raise
            await self._forget(part)
        else:
            part.look = look
            part.editable_at_s = _now_s() + self._min_interval_s
            if part.may_be_gone:
                part.may_be_gone = False
                await self._record(self._board.ids.index(part.discord_id), part.discord_id)

    async def _delete(self, part: Part) -> None:
        with contextlib.suppress(OutboxGoneError):
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._outbox.delete(part.discord_id)
        await self._forget(part)

    async def _take_away(self, part: Part) -> None:
        """Delete a message whose text comes again, but its record first.

        Should we not live to send it, it is missing, and nobody else has deleted it.
        """
        part.look, part.may_be_gone = None, True
        await self._on_gone(part.discord_id)
        await self._delete(part)

    async def _record(self, position: int, discord_id: int) -> None:
        try:
            await self._on_part(position, discord_id)
        except Exception:  # noqa: BLE001 - the answer goes on, whatever its record says
            _log.exception("A message of answer %d could not be recorded.", self.answer_id)

    async def _forget(self, part: Part) -> None:
        self._board.remove(part)
        await self._on_gone(part.discord_id)

    def _back_off(self, retry_after_s: float | None) -> None:
        backoff_s = min(FIRST_BACKOFF_S * 2**self._num_failures, LONGEST_BACKOFF_S)
        wait_s = max(backoff_s, retry_after_s or 0.0, self._min_interval_s)
        self._num_failures = min(self._num_failures + 1, 10)
        self._blocked_until_s = _now_s() + wait_s
        _log.info("Answer %d: Discord did not take a request; again in %.1f s.", self.answer_id, wait_s)


def _outcome_of(worker: asyncio.Task[Outcome]) -> Outcome:
    return Outcome.FAILED if worker.cancelled() else worker.result()


def _now_s() -> float:
    return asyncio.get_running_loop().time()
