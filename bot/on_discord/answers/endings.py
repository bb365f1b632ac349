"""Shows every ending that people have not seen: of answers that a stop cut off, and of those that Discord did
not take when they ended.

What stands on Discord is compared with what is stored, and edited where it differs. That is done at a start,
when Discord or a permission is back, and now and then while something is owed. Knows nothing of how answers
are made.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

import discord

from bot.conversation.outcome import can_go_on
from bot.delivery.column import Columns
from bot.delivery.delivery import MAX_PARTS, UNSHOWN, Delivery, Outcome
from bot.delivery.outbox import Buttons, OutboxError, OutboxRetryError
from bot.delivery.render import render as cut
from bot.delivery.render import stretches
from bot.language.phrases import phrase, render, unpacked
from bot.on_discord.answers.discord_answer import Waiter
from bot.on_discord.answers.outboxes import (
    DiscordOutbox,
    numbers_below,
    translated,
)
from bot.on_discord.answers.standing import Standing, is_gone, is_open, read_standing
from bot.on_discord.origins import Channel, Locales, may_embed
from bot.servers.server_config import ServerConfig
from bot.servers.servers import Servers
from bot.tasks import Pause, Tasks
from storage.conversations import Conversations, InterruptedAnswer, MessageState
from storage.errors import StorageError

_log = logging.getLogger(__name__)

MAX_AT_ONCE = 4
"""Channels that are written in at the same time."""
PAUSES_S = (5.0, 10.0, 20.0)
"""Between attempts while Discord is away; the last one for as long as it takes."""
CLOSED_PAUSE_S = 600.0
"""Between attempts where we may not write: that changes with an event, mostly."""
FAILED_PAUSE_S = 45.0
"""Between attempts where Discord answers, and yet does not take all of it."""
MANY_FAILURES = 20
LEAST_PAUSE_S = 5.0


@dataclass(slots=True)
class Debt:
    """The answers of one channel whose endings are owed. Times are the loop's."""

    answer_ids: set[int] = field(default_factory=set)
    waiters: dict[int, Waiter] = field(default_factory=dict)
    due_s: float = 0.0
    not_before_s: float = 0.0
    num_failures: int = 0

    def postpone(self, now_s: float, wait_s: float, retry_after_s: float | None = None) -> None:
        """Let the next attempt be in `wait_s`, or sooner if something comes back, after `retry_after_s`."""
        self.not_before_s = now_s + (LEAST_PAUSE_S if retry_after_s is None else retry_after_s)
        self.due_s = max(now_s + wait_s, self.not_before_s)


class Endings:
    """Owes people endings, and pays. No method raises."""

    def __init__(
        self,
        client: discord.Client,
        conversations: Conversations,
        servers: Servers,
        locales: Locales,
        columns: Columns,
        on_deleted: Callable[[int, int], Awaitable[None]],
    ) -> None:
        """`on_deleted` is told of channel and message where somebody deleted a part of an answer."""
        self._on_deleted = on_deleted
        self._client = client
        self._conversations = conversations
        self._servers = servers
        self._locales = locales
        self._columns = columns
        self._debts: dict[int, Debt] = {}
        self._pause = Pause()
        self._tasks = Tasks()

    def owe(
        self,
        channel_id: int,
        answer_id: int,
        outcome: Outcome | None = None,
        waiter: Waiter | None = None,
    ) -> None:
        """Note an ending that is to be shown: at once, or later after an outcome that is no better now.

        waiter: is notified then.
        """
        debt = self._debts.setdefault(channel_id, Debt())
        debt.answer_ids.add(answer_id)
        if waiter is not None:
            debt.waiters[answer_id] = waiter
        if outcome is None:
            debt.due_s = debt.not_before_s
        else:
            debt.postpone(_now_s(), PAUSES_S[0] if outcome is Outcome.FAILED else CLOSED_PAUSE_S)
        self._pause.end()
        if not self._tasks:
            self._tasks.start(self._run(), "endings")

    def look(self) -> None:
        """Something may have come back: look at once."""
        for debt in self._debts.values():
            debt.due_s = debt.not_before_s
        self._pause.end()

    async def close(self) -> None:
        """Owe the rest until the next start."""
        await self._tasks.close()

    async def _run(self) -> None:
        """Show what is owed as soon as it can be."""
        await self._client.wait_until_ready()
        while self._debts:
            due = [one for one, debt in self._debts.items() if debt.due_s <= _now_s()]
            for start in range(0, len(due), MAX_AT_ONCE):
                paid = await asyncio.gather(*(self._pay(one) for one in due[start : start + MAX_AT_ONCE]))
                if not any(paid):
                    self._spare(due[start + MAX_AT_ONCE :])
                    break
            due_s = min((debt.due_s for debt in self._debts.values()), default=_now_s())
            await self._pause.wait(max(0.0, due_s - _now_s()))

    def _spare(self, channel_ids: Sequence[int]) -> None:
        """Where several channels take nothing the others would neither: ask for them later."""
        for debt in (self._debts[one] for one in channel_ids):
            debt.postpone(_now_s(), PAUSES_S[-1])

    async def _pay(self, channel_id: int) -> bool:
        """Show what is owed in a channel; return whether Discord answers at all."""
        debt = self._debts[channel_id] = self._debts.pop(channel_id)  # whoever fails is asked for last
        try:
            outcomes = await self._show_all(channel_id, sorted(debt.answer_ids))
        except OutboxRetryError as error:
            debt.num_failures += 1
            debt.postpone(_now_s(), _pause_s(debt), error.retry_after)
            return False
        except Exception as error:  # noqa: BLE001 - the edge of a task: the others get theirs
            if not isinstance(error, (StorageError, OutboxError)):
                _log.exception("Endings could not be shown")
            outcomes = dict.fromkeys(debt.answer_ids, Outcome.FAILED)
        left = {one: outcome for one, outcome in outcomes.items() if outcome in UNSHOWN}
        debt.answer_ids -= outcomes.keys() - left.keys()
        if not debt.answer_ids:
            del self._debts[channel_id]
        elif Outcome.FAILED in left.values():  # though Discord answers: that will not change within seconds
            debt.num_failures += 1
            is_lasting = debt.num_failures > MANY_FAILURES
            debt.postpone(_now_s(), CLOSED_PAUSE_S if is_lasting else FAILED_PAUSE_S)
        elif left:
            debt.postpone(_now_s(), CLOSED_PAUSE_S)
        return True

    async def _show_all(self, channel_id: int, answer_ids: Sequence[int]) -> Mapping[int, Outcome]:
        """Show answers of one channel, one below the other, and return what became of each.

        Raises `StorageError` or `OutboxError`.
        """
        found = await self._find(channel_id)
        if not is_open(found):
            return dict.fromkeys(answer_ids, Outcome.FORBIDDEN)
        here = await self._open(cast("Channel", found), await self._answers(answer_ids))
        await self._forget_deleted(here)
        await self._take_lost(here)
        await self._drop_leftovers(here)
        answers = await self._answers(answer_ids)
        outcomes = await asyncio.gather(*(self._show(here, one) for one in answers))
        shown = {one.answer.id: outcome for one, outcome in zip(answers, outcomes, strict=True)}
        return dict.fromkeys(answer_ids, Outcome.GONE) | shown

    async def _find(self, channel_id: int) -> object:
        """Return a channel: threads that are archived are asked for. Raises `OutboxError`."""
        found = self._client.get_channel(channel_id)
        if found is None:
            with translated(), suppress(discord.NotFound, discord.Forbidden, discord.InvalidData):
                found = await self._client.fetch_channel(channel_id)
        return found or self._client.get_partial_messageable(channel_id)

    async def _answers(self, answer_ids: Sequence[int]) -> list[InterruptedAnswer]:
        """Return those that are there and not shown yet."""
        found = [await self._conversations.find_unshown(one) for one in answer_ids]
        return [one for one in found if one is not None]

    async def _open(self, channel: Channel, answers: Sequence[InterruptedAnswer]) -> Standing:
        """Look what stands in a channel. Raises `OutboxError`."""
        guild = getattr(channel, "guild", None)
        config = await self._servers.config(None if guild is None else guild.id)
        config = dataclasses.replace(config, uses_embeds=config.uses_embeds and may_embed(channel))
        locale = await self._locales.of(guild)
        return await read_standing(channel, answers, config, locale, by=self._client.user)

    async def _forget_deleted(self, here: Standing) -> None:
        """Forget, as if we had been there, what people deleted of answers while we were not."""
        for one in here.answers:
            needed = one.part_ids[: len(stretches(one.answer.content, MAX_PARTS))]
            for part_id in (part_id for part_id in needed if here.lacks(part_id)):
                if await is_gone(here.channel, part_id):
                    await self._on_deleted(here.channel.id, part_id)

    async def _take_lost(self, here: Standing) -> None:
        """Record the messages that were sent and whose record we did not live to make."""
        for one in here.answers:
            whole = cut(one.answer.content, final=True)[:MAX_PARTS]
            lost = [
                message.id
                for message in here.seen.values()
                if (one.answer.id in numbers_below(message) or here.says_plainly(message, whole))
                and not await self._is_known(message.id)
            ]
            for position, part_id in enumerate(sorted((*one.part_ids, *lost)) if lost else ()):
                await self._conversations.attach_part(one.answer.id, part_id, position)

    async def _drop_leftovers(self, here: Standing) -> None:
        """Delete messages whose answers are no more: they were sent for one that gave way to its former."""
        for message in here.seen.values():
            for number in numbers_below(message):
                is_left = await self._conversations.find_answer(number) is None
                if is_left and not await self._is_known(message.id):
                    with translated(), suppress(discord.NotFound):
                        await message.delete()
                    break

    async def _is_known(self, discord_id: int) -> bool:
        return await self._conversations.find_by_discord_id(discord_id) is not None

    async def _show(self, here: Standing, one: InterruptedAnswer) -> Outcome:
        """Show the whole of an answer with its ending. Raises `StorageError`."""
        answer_id, note = one.answer.id, _note_of(one, here.config, here.locale)
        outbox = DiscordOutbox(
            here.channel,
            answer_id=answer_id,
            trigger_id=one.question_discord_id,
            locale=here.locale,
            as_embeds=here.config.uses_embeds,
            hides_previews=here.config.hides_previews,
            on_delete=self._columns.delete,
        )
        delivery = Delivery(
            outbox,
            answer_id=answer_id,
            on_part=functools.partial(self._attach, answer_id),
            on_gone=self._conversations.detach_part,
            existing_parts=one.part_ids,
            looks=here.looks(one),
            can_move=here.can_move(one),
            column=self._columns.of(here.channel.id),
            refusal=f"-# {render(phrase('answer.refused'), here.locale)}",
            closed_note=render(phrase("answer.closed"), here.locale),
        )
        result = await delivery.finish(
            one.answer.content,
            note=note,
            buttons=await self._offered(one),
            file_note=render(phrase("answer.in_file"), here.locale),
        )
        if result.outcome not in UNSHOWN:
            await self._conversations.note_shown(answer_id)
            waiter = self._debts[here.channel.id].waiters.pop(answer_id, None)
            if waiter is not None and result.outcome is Outcome.SHOWN and result.parts:
                await waiter.notify(outbox, result.parts[0], here.locale)
        return result.outcome

    async def _attach(self, answer_id: int, position: int, discord_id: int) -> None:
        await self._conversations.attach_part(answer_id, discord_id, position)

    async def _offered(self, one: InterruptedAnswer) -> Buttons:
        """Return the buttons: of answers that were cut off only the newest can be made again."""
        if one.answer.state is MessageState.INTERRUPTED and one.note is None:
            newest = await self._conversations.turns.newest(one.answer.conversation_id)
            if newest is None or newest.answer.id != one.answer.id:
                return Buttons.NONE
        return Buttons.CONTINUE if can_go_on(one.answer) else Buttons.REGENERATE


def _note_of(one: InterruptedAnswer, config: ServerConfig, locale: str) -> str | None:
    """Return what is said below an answer; of one that came back, only what its server wants below all."""
    if one.note is not None:
        return render(unpacked(one.note), locale) or None
    if one.answer.state is MessageState.INTERRUPTED:
        key = "answer.cut_short" if one.answer.content.strip() else "answer.never_begun"
        return render(phrase(key), locale)
    return render(phrase("moderation.label"), locale) if config.labels_answers else None


def _pause_s(debt: Debt) -> float:
    return PAUSES_S[min(debt.num_failures, len(PAUSES_S)) - 1]


def _now_s() -> float:
    return asyncio.get_running_loop().time()
