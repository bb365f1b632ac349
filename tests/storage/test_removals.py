"""What is removed for good is counted with it, once, and what is not is not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from storage.conversations import Conversations
from storage.database import Database
from storage.people import People
from storage.removals import Removals, Removed
from storage.retention import Place, Retention
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, asked_and_answered

LATER = NOW + timedelta(days=1)


class Kept:
    """A conversation with one question, 1, its answer, and a reset of another one."""

    def __init__(self, database: Database) -> None:
        self.conversations = Conversations(database, now=lambda: NOW)
        self.people = People(database)
        self.retention = Retention(database, now=lambda: NOW)


async def _edit(kept: Kept) -> None:
    assert await kept.conversations.turns.edit_question(1, "Another text")


async def _undo(kept: Kept) -> None:
    newest = await kept.conversations.turns.newest(await kept.conversations.open(CHANNEL))
    assert newest is not None
    await kept.conversations.turns.undo(newest.answer.id)


async def _shorten(kept: Kept) -> None:
    newest = await kept.conversations.turns.newest(await kept.conversations.open(CHANNEL))
    assert newest is not None
    await kept.conversations.turns.shorten_answer(newest.answer.id, "less")


async def _purge(kept: Kept) -> None:
    await kept.conversations.reset(await kept.conversations.open(CHANNEL), by_user_id=9, at=NOW)
    assert await kept.conversations.purge_resets(before=LATER)


async def _leave(kept: Kept) -> None:
    await kept.retention.mark_gone(Place.CHANNEL, CHANNEL.channel_id)
    assert await kept.retention.delete_gone(gone_before=LATER)


REMOVE: dict[str, Callable[[Kept], Awaitable[object]]] = {
    "a question is deleted": lambda kept: kept.conversations.delete_question(1),
    "a question is edited": _edit,
    "a question is moved": lambda kept: kept.conversations.turns.move_question(1, 99, "Anna", "Another text"),
    "a part of an answer is deleted": _shorten,
    "a turn is undone": _undo,
    "a conversation is deleted": lambda kept: kept.conversations.delete(CHANNEL.channel_id),
    "a reset is past": _purge,
    "somebody is forgotten": lambda kept: kept.people.forget(5),
    "messages are too old": lambda kept: kept.retention.delete_older(LATER),
    "a channel is gone": _leave,
}
KEEP: dict[str, Callable[[Kept], Awaitable[object]]] = {
    "another message is deleted": lambda kept: kept.conversations.delete_question(77),
    "what stands is edited in": lambda kept: kept.conversations.turns.edit_question(77, "Another text"),
    "nothing is too old": lambda kept: kept.retention.delete_older(NOW - timedelta(days=9)),
    "nobody quotes it": lambda kept: kept.conversations.turns.forget_quotes(77),
    "a reset can be undone": lambda kept: kept.conversations.purge_resets(before=NOW),
}


@pytest.mark.parametrize(
    ("what", "is_counted"), [*((one, True) for one in REMOVE), *((one, False) for one in KEEP)]
)
async def test_each_removal_is_counted(database: Database, what: str, is_counted: bool) -> None:
    kept, removals = Kept(database), Removals(database)
    await asked_and_answered(kept.conversations, 1)
    assert await removals.count() == Removed()
    await (REMOVE | KEEP)[what](kept)
    assert ((await removals.count()).num > 0) is is_counted


async def test_what_is_forgotten_is_never_less_than_before(database: Database) -> None:
    removals, conversations = Removals(database), Conversations(database, now=lambda: NOW)
    for number in (1, 11, 21):
        await asked_and_answered(conversations, number)
        await conversations.delete_question(number)
    assert (await removals.count()).is_owed
    await removals.forgotten(2)
    await removals.forgotten(1)
    assert await removals.count() == Removed(3, 2)
    assert (await removals.count()).is_owed
    await removals.forgotten(3)
    assert not (await removals.count()).is_owed
