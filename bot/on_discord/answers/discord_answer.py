"""Shows one answer in a Discord channel: delivery, typing, and the record of which messages show it.

An `AnswerView` of the conversation service. Knows nothing of how the answer is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bot.conversation.views import Ending
from bot.delivery.column import EDIT_INTERVAL_S, Column, Columns
from bot.delivery.delivery import UNSHOWN, Delivery, Outcome
from bot.delivery.outbox import Buttons, OutboxError
from bot.language.phrases import phrase, render
from bot.on_discord.answers.outboxes import TOKEN_LIFE_S, DiscordOutbox, InteractionOutbox
from bot.on_discord.interactions import DISCORD_FAILURES
from bot.on_discord.origins import Channel
from bot.servers.rates import loop_seconds
from bot.tasks import Tasks
from storage.conversations import Conversations, MessageState
from storage.errors import StorageError

_log = logging.getLogger(__name__)

TYPING_INTERVAL_S = 8.0
"""Discord shows typing for 10 seconds."""
GIVE_UP_AFTER_S = 90.0
"""From then on the ending is owed: it is shown when Discord or a permission is back."""


class _Notice(str):
    """What is shown and is no part of the answer."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Waiter:
    """Who waits for an answer, and from which time of the loop on they are notified once it is shown."""

    user_id: int
    notify_at_s: float
    has_failed: bool = False

    async def notify(self, outbox: DiscordOutbox, discord_id: int, locale: str) -> None:
        """Notify them, if they waited so long, of what a message shows: edits notify nobody. Never raises."""
        if loop_seconds() <= self.notify_at_s:
            return
        key = "answer.notify_failed" if self.has_failed else "answer.notify"
        try:
            sentence = render(phrase(key, user=f"<@{self.user_id}>"), locale)
            await outbox.notify(self.user_id, discord_id, sentence)
        except OutboxError as error:
            _log.info("Answer %d: nobody was notified: %s", outbox.answer_id, error)


class DiscordAnswer:
    """One answer on its way into a channel."""

    def __init__(
        self,
        channel: Channel | None,
        trigger_id: int | None,
        conversations: Conversations,
        *,
        locale: str,
        as_embeds: bool = False,
        hides_previews: bool = True,
        shows_thoughts: bool = False,
        notify_after_s: int | None = None,
        edit_interval_s: float = EDIT_INTERVAL_S,
        outbox: InteractionOutbox | None = None,
        columns: Columns | None = None,
        on_owed: OnOwed = lambda *_: None,
        on_shown: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`locale`: of the readers. `outbox`: shows it instead of the channel. `columns`: of all channels.
        `notify_after_s`: whoever waited longer than that, from now on, is notified.

        `on_owed` is told of channel, answer, outcome and who waits where the ending could not be shown;
        `on_shown` is called once nothing is left to be shown.
        """
        self._given_outbox = outbox
        self._on_owed = on_owed
        self._on_shown = on_shown
        self._channel = channel
        self._trigger_id = trigger_id
        self._conversations = conversations
        self._locale = locale
        self._as_embeds = as_embeds
        self._hides_previews = hides_previews
        self.shows_thoughts = shows_thoughts
        self._notify_at_s = None if notify_after_s is None else loop_seconds() + notify_after_s
        self._edit_interval_s = edit_interval_s
        self._columns = Columns() if columns is None else columns
        self._column = Column() if channel is None else self._columns.of(channel.id)
        self._answer_id = 0
        self._part_ids: list[int] = []
        self._outbox: DiscordOutbox | InteractionOutbox | None = None
        self._delivery: Delivery | None = None
        self._moving = Tasks()
        self._typing = Tasks()
        self._is_typing = False

    @property
    def part_ids(self) -> Sequence[int]:
        """The messages that show the answer."""
        return self._part_ids

    @property
    def is_lost(self) -> bool:
        """Whether the answer can no longer be shown."""
        return self._delivery is not None and self._delivery.is_lost

    def opened(self, answer_id: int, parts: Sequence[int]) -> None:
        """Learn which answer is shown, and the messages that show it already."""
        self._answer_id = answer_id
        self._part_ids = list(parts)
        self._has_message = bool(parts)
        self._outbox = self._open_outbox(answer_id)
        self._delivery = Delivery(
            self._outbox,
            answer_id=answer_id,
            on_part=self._attach,
            on_gone=self._detach,
            on_text=self._keep,
            min_interval_s=self._edit_interval_s,
            existing_parts=parts,
            can_move=not parts,
            give_up_after_s=GIVE_UP_AFTER_S if self._given_outbox is None else TOKEN_LIFE_S,
            column=self._column,
            refusal=f"-# {render(phrase('answer.refused'), self._locale)}",
            closed_note=render(phrase("answer.closed"), self._locale),
        )

    def waiting(self, place: int, *, for_others: bool) -> None:
        """Show the place in the queue; a new one only if no answer in the channel needs the edits."""
        self._is_typing = False
        self._typing.cancel()
        if not self._part_ids or self._column.pace.has_room(loop_seconds()):
            key = "answer.waiting_for_others" if for_others else "answer.waiting"
            self._say(phrase(key, place=place))

    def working(self) -> None:
        """Show typing until the end."""
        if self._channel is not None and not self._is_typing:
            self._is_typing = True
            self._typing.start(self._keep_typing(self._channel), "typing")
        if self._part_ids:
            self.update("")

    def followed(self) -> None:
        """Take a message now: it would come below the next answer's if it waited for the first word."""
        if not self._has_message and self._given_outbox is None:
            self.update("")

    def moved(self, from_id: int, to_id: int) -> None:
        """Reply to the message that has taken the place of the one asked; what is shown comes anew."""
        if self._trigger_id != from_id or not isinstance(self._outbox, DiscordOutbox):
            return
        self._trigger_id = to_id
        self._outbox.reply_to(to_id)
        if self._part_ids and self._delivery is not None:
            self._moving.start(self._move(self._delivery), "replying to a copy")

    async def _move(self, delivery: Delivery) -> None:
        try:
            await delivery.withdraw()
        except OutboxError as error:
            _log.info("Answer %d: what is shown could not be taken away: %s", self._answer_id, error)

    def thinking(self, seconds: int) -> None:
        """Show for how long the model has been thinking."""
        self._say(phrase("answer.thinking", seconds=seconds))

    def update(self, text: str) -> None:
        """Show the text so far."""
        self._has_message = True
        if self._delivery is not None:
            self._delivery.update(text)

    async def finish(self, ending: Ending) -> None:
        """Show the ending, unless nobody can see it."""
        await self._typing.close()
        if self._delivery is None or self._outbox is None:
            return
        if self.is_lost:
            _log.info("Answer %d ended out of sight: its messages are gone or closed to us", self._answer_id)
        self._outbox.answer_id = ending.answer_id
        result = await self._delivery.finish(
            ending.text,
            note=self._note_of(ending),
            buttons=buttons_of(ending) if self._given_outbox is None else Buttons.NONE,
            file_note=render(phrase("answer.in_file"), self._locale),
            thought=ending.thought if self.shows_thoughts else "",
        )
        _log.info("Answer %d: its last edit is done: %s", ending.answer_id, result.outcome.name.lower())
        waiter = self._waiter_of(ending)
        if result.outcome not in UNSHOWN or self._channel is None:
            await self._note_shown(ending.answer_id)
        else:
            self._on_owed(self._channel.id, ending.answer_id, result.outcome, waiter)
        shown = result.parts if result.outcome is Outcome.SHOWN else ()
        if waiter is not None and shown and isinstance(self._outbox, DiscordOutbox):
            await waiter.notify(self._outbox, shown[0], self._locale)
        if self._on_shown is not None:
            await self._on_shown()

    def _waiter_of(self, ending: Ending) -> Waiter | None:
        if self._notify_at_s is None or ending.waiter_id is None:
            return None
        return Waiter(ending.waiter_id, self._notify_at_s, ending.state is MessageState.FAILED)

    def _open_outbox(self, answer_id: int) -> DiscordOutbox | InteractionOutbox:
        if self._given_outbox is not None:
            self._given_outbox.answer_id = answer_id
            return self._given_outbox
        if self._channel is None:
            raise ValueError("An answer needs a channel or an outbox.")
        return DiscordOutbox(
            self._channel,
            answer_id=answer_id,
            trigger_id=self._trigger_id,
            locale=self._locale,
            as_embeds=self._as_embeds,
            hides_previews=self._hides_previews,
            on_delete=self._columns.delete,
        )

    def _say(self, sentence: str) -> None:
        """Show a sentence where there is no text yet."""
        self.update(_Notice(f"-# {render(sentence, self._locale)}"))

    def _note_of(self, ending: Ending) -> str | None:
        nothing = "" if ending.text.strip() else phrase("answer.nothing")
        outdated = phrase("answer.question_edited") if ending.is_outdated else ""
        notes = (ending.note or nothing, outdated)
        return " ".join(render(note, self._locale) for note in notes if note) or None

    async def _attach(self, position: int, discord_id: int) -> None:
        """Record that a message shows a part; an answer goes on without the record."""
        if discord_id not in self._part_ids:
            self._part_ids.append(discord_id)
        try:
            await self._conversations.attach_part(self._answer_id, discord_id, position)
        except StorageError as error:
            _log.warning("Answer %d: part %d was not recorded: %s", self._answer_id, position, error)

    async def _keep(self, text: str) -> None:
        """Save a text before it is shown: what is shown is never more than what is stored."""
        if isinstance(text, _Notice) or not text.strip():
            return
        try:
            await self._conversations.checkpoint(self._answer_id, text)
        except StorageError as error:
            _log.warning("Answer %d: the partial text was not saved: %s", self._answer_id, error)

    async def _note_shown(self, answer_id: int) -> None:
        """Record that nothing is left to be shown; without the record the next start does it once more."""
        try:
            await self._conversations.note_shown(answer_id)
        except StorageError as error:
            _log.warning("Answer %d: that it is shown was not recorded: %s", answer_id, error)

    async def _detach(self, discord_id: int) -> None:
        if discord_id in self._part_ids:
            self._part_ids.remove(discord_id)
        try:
            await self._conversations.detach_part(discord_id)
        except StorageError as error:
            _log.warning("Answer %d: a part that is gone was not forgotten: %s", self._answer_id, error)

    async def _keep_typing(self, channel: Channel) -> None:
        try:
            while True:
                await channel.typing()
                await asyncio.sleep(TYPING_INTERVAL_S)
        except DISCORD_FAILURES as error:
            _log.debug("Typing could not be shown: %s", type(error).__name__)


def buttons_of(ending: Ending) -> Buttons:
    """Return what is offered below an answer that has ended."""
    if not ending.can_regenerate:
        return Buttons.NONE
    if ending.is_outdated:
        return Buttons.REDO
    return Buttons.CONTINUE if ending.can_continue else Buttons.REGENERATE


OnOwed = Callable[[int, int, Outcome, "Waiter | None"], None]
MakeAnswer = Callable[[Channel, int | None], Awaitable[DiscordAnswer]]
"""Returns what shows an answer in a channel, as a reply to a message. Raises `StorageError`."""
