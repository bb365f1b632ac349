"""After a restart nothing is lost, nothing is there twice, and what was pending is marked."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from storage.conversations import Conversations, MessageState
from storage.database import Database
from storage.types import utc_now
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, ask, asked_and_answered, contents, finish


async def test_pending_answers_are_found_marked_and_returned_once(path: Path) -> None:
    async with await Database.open(path) as database:
        before = Conversations(database)
        await asked_and_answered(before, 1, "one", "first")
        running = await ask(before, 11, "two")
        await before.attach_part(running.answer.id, 12, 0)
        await before.attach_part(running.answer.id, 13, 1)
        await before.checkpoint(running.answer.id, "secon")
        waiting = await ask(before, 21, "three", OTHER_CHANNEL)

    async with await Database.open(path) as database:
        after = Conversations(database)
        first, second = await after.interrupt_pending()
        assert (first.answer.id, first.answer.state) == (running.answer.id, MessageState.INTERRUPTED)
        assert first.answer.content == "secon"
        assert (first.channel_id, first.part_ids) == (CHANNEL.channel_id, (12, 13))
        assert first.question_discord_id == 11
        assert (second.answer.id, second.answer.content) == (waiting.answer.id, "")
        assert (second.channel_id, second.part_ids) == (OTHER_CHANNEL.channel_id, ())
        assert second.question_discord_id == 21
        assert await after.interrupt_pending() == []
        assert await finish(after, running.answer.id) is None
        following = await ask(after, 31, "and?")
        assert await contents(after, following.answer.id) == ["one", "first", "two", "secon", "and?"]


async def test_an_interrupted_regeneration_with_text_stands(path: Path) -> None:
    async with await Database.open(path) as database:
        before = Conversations(database)
        turn = await asked_and_answered(before, 1)
        new = await before.begin_regeneration(turn.answer.id)
        await before.checkpoint(new.id, "Be")
    async with await Database.open(path) as database:
        after = Conversations(database)
        (one,) = await after.interrupt_pending()
        assert (one.answer.id, one.answer.state) == (new.id, MessageState.INTERRUPTED)
        assert one.part_ids == (2,)
        assert await after.find_answer(turn.answer.id) is None


async def test_an_interrupted_regeneration_without_text_brings_the_old_answer_back(path: Path) -> None:
    async with await Database.open(path) as database:
        before = Conversations(database)
        turn = await asked_and_answered(before, 1, answer="Old.")
        new = await before.begin_regeneration(turn.answer.id)
    async with await Database.open(path) as database:
        after = Conversations(database)
        (one,) = await after.interrupt_pending()
        assert (one.answer.id, one.answer.state) == (turn.answer.id, MessageState.COMPLETE)
        assert (one.answer.content, one.part_ids) == ("Old.", (2,))
        assert await after.find_answer(new.id) is None


async def test_endings_that_were_not_shown_are_found_newest_first_kept_and_bounded(path: Path) -> None:
    within = timedelta(days=1)
    async with await Database.open(path) as database:
        conversations = Conversations(database)
        turns = [await asked_and_answered(conversations, 10 * number) for number in range(1, 5)]
        await conversations.note_shown(turns[1].answer.id)
        await conversations.note_shown(turns[1].answer.id)
        put_aside = await asked_and_answered(conversations, 90, ref=OTHER_CHANNEL)
        await conversations.reset(put_aside.answer.conversation_id, by_user_id=1, at=utc_now())
    async with await Database.open(path) as database:
        after = Conversations(database)
        found = await after.unshown(within=within, limit=2)
        assert [one.answer.id for one in found] == [turns[2].answer.id, turns[3].answer.id]
        assert (found[0].channel_id, found[0].question_discord_id) == (CHANNEL.channel_id, 30)
        await after.delete_question(30)
        found = await after.unshown(within=within, limit=9)
        assert [one.answer.id for one in found] == [turns[0].answer.id, turns[3].answer.id]
        later = Conversations(database, now=lambda: utc_now() + timedelta(days=2))
        assert await later.unshown(within=within, limit=9) == []
        assert await database.fetch_all("SELECT * FROM unshown_endings") == []


KILLED = """
import asyncio, os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from storage.conversations import ConversationKind, ConversationRef, Conversations
from storage.database import Database
from storage.types import utc_now

async def main():
    database = await Database.open(Path(sys.argv[1]))
    conversations = Conversations(database)
    conversation_id = await conversations.open(ConversationRef(1, ConversationKind.DIRECT, None))
    turn = await conversations.begin_turn(conversation_id, discord_id=5, author_id=2, author_name="A",
        content="kept", created_at=datetime.now(UTC))
    await conversations.checkpoint(turn.answer.id, "half")
    async with database.transaction() as transaction:
        await transaction.fetch_all("DELETE FROM messages")
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def kill_in_the_middle(path: Path) -> int:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, os.fspath(path)]
    return subprocess.run(command, cwd=root, timeout=60, check=False).returncode  # noqa: S603


async def test_a_killed_process_loses_only_the_transaction_it_was_in(path: Path) -> None:
    assert kill_in_the_middle(path) == -signal.SIGKILL
    async with await Database.open(path) as database:
        await database.check()
        conversations = Conversations(database)
        (one,) = await conversations.interrupt_pending()
        assert one.answer.content == "half"
        assert await contents(conversations, one.answer.id) == ["kept"]


async def test_an_id_never_comes_back_after_a_restart(path: Path) -> None:
    async with await Database.open(path) as database:
        turn = await ask(Conversations(database), 1)
        await Conversations(database).delete_question(1)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    connection.close()
    async with await Database.open(path) as database:
        assert (await ask(Conversations(database), 1)).question.id > turn.answer.id
