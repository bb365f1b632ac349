"""The connection: transactions, cancellation, locks, a full disk, and how it ends."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from storage.conversations import Conversations
from storage.database import Database
from storage.errors import DatabaseUnavailableError, StorageError, StorageFullError
from tests.storage.steps import CHANNEL, ask, asked_and_answered, finish, num_rows

INSERT = "INSERT INTO conversations (channel_id, kind, created_at) VALUES (?, 'channel', 0)"
# About half a second of work for SQLite's thread.
SLOW = """
WITH RECURSIVE counter (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < 2000000)
SELECT max(n) FROM counter"""


def files_beside(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()]


async def num_conversations(database: Database) -> int:
    return await num_rows(database, "conversations")


async def test_a_transaction_is_kept_at_its_end_and_undone_on_an_exception(database: Database) -> None:
    async with database.transaction() as transaction:
        await transaction.fetch_all(INSERT, (1,))

    async def fail() -> None:
        async with database.transaction() as transaction:
            await transaction.fetch_all(INSERT, (2,))
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    rows = await database.fetch_all("SELECT channel_id FROM conversations")
    assert [row[0] for row in rows] == [1]


async def test_nobody_sees_half_of_a_transaction(database: Database) -> None:
    async with database.transaction() as transaction:
        await transaction.fetch_all(INSERT, (1,))
        reader = asyncio.create_task(num_conversations(database))
        await asyncio.sleep(0.02)
        await transaction.fetch_all(INSERT, (2,))
        early = reader.done()
    assert await reader == (0 if early else 2)
    assert await num_conversations(database) == 2


async def test_writers_take_turns(database: Database) -> None:
    async def add(number: int) -> None:
        async with database.transaction() as transaction:
            rows = await transaction.fetch_all("SELECT count(*) FROM conversations")
            await asyncio.sleep(0)
            await transaction.fetch_all(INSERT, (rows[0][0],))

    await asyncio.gather(*(add(number) for number in range(50)))
    rows = await database.fetch_all("SELECT channel_id FROM conversations ORDER BY id")
    assert [row[0] for row in rows] == list(range(50))


async def test_the_database_inside_its_own_transaction_is_refused_rather_than_waited_for(
    database: Database,
) -> None:
    async with database.transaction():
        with pytest.raises(RuntimeError, match="Inside a transaction"):
            await database.fetch_all("SELECT 1")


async def test_a_transaction_that_ended_is_of_no_use(database: Database) -> None:
    async with database.transaction() as transaction:
        pass
    with pytest.raises(RuntimeError, match="ended"):
        await transaction.fetch_all(INSERT, (1,))


async def test_a_wrong_statement_is_an_error_of_the_storage(database: Database) -> None:
    with pytest.raises(StorageError) as raised:
        await database.fetch_all("SELECT * FROM nowhere")
    assert type(raised.value.__cause__).__module__.split(".")[0] in ("sqlite3", "psycopg")
    assert "nowhere" not in str(raised.value)


async def test_a_task_cancelled_inside_a_transaction_is_rolled_back(database: Database) -> None:
    inserted = asyncio.Event()

    async def hang() -> None:
        async with database.transaction() as transaction:
            await transaction.fetch_all(INSERT, (1,))
            inserted.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await num_conversations(database) == 0
    async with database.transaction() as transaction:
        await transaction.fetch_all(INSERT, (1,))
    assert await num_conversations(database) == 1


async def test_a_task_cancelled_during_a_statement_waits_for_it_and_is_rolled_back(
    database: Database, path: Path
) -> None:
    inserted = asyncio.Event()

    async def work() -> None:
        async with database.transaction() as transaction:
            await transaction.fetch_all(INSERT, (1,))
            inserted.set()
            await transaction.fetch_all(SLOW)

    task = asyncio.create_task(work())
    await inserted.wait()
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.02)
    assert not task.done()
    # Impatience changes nothing.
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await num_conversations(database) == 0


async def test_a_cancelled_reader_waits_for_its_statement(database: Database, path: Path) -> None:
    task = asyncio.create_task(database.fetch_all(SLOW))
    await asyncio.sleep(0.02)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_turn_cancelled_at_any_moment_is_stored_whole_or_not_at_all(
    conversations: Conversations, database: Database
) -> None:
    conversation_id = await conversations.open(CHANNEL)
    num_stored = 0
    for moment in range(60):
        task = asyncio.create_task(ask(conversations, 1000 + moment))
        # Each step lets the loop and SQLite's thread go a little further.
        for _ in range(moment):
            await asyncio.sleep(0.0001)
        task.cancel()
        await asyncio.wait([task])
        messages = await conversations.recent(conversation_id, 1000)
        assert len(messages) % 2 == 0
        assert len(messages) - num_stored in (0, 2)
        num_stored = len(messages)
    await ask(conversations, 2000)
    assert await num_rows(database, "discord_messages") == num_stored // 2 + 1


async def test_a_write_lock_held_by_another_program_is_a_clear_error_after_the_timeout(
    conversations: Conversations, path: Path
) -> None:
    turn = await ask(conversations, 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = asyncio.get_running_loop().time()
    with pytest.raises(DatabaseUnavailableError, match="Another program"):
        await finish(conversations, turn.answer.id)
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert len(await conversations.history_before(turn.answer.id)) == 1
    other.execute("ROLLBACK")
    other.close()
    assert await finish(conversations, turn.answer.id) is not None


async def test_a_lock_released_in_time_is_waited_for(path: Path) -> None:
    async with await Database.open(path, busy_timeout_s=5) as database:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(ask(Conversations(database), 1))
        await asyncio.sleep(0.1)
        assert not task.done()
        other.execute("COMMIT")
        other.close()
        assert (await task).question.content == "Why?"


async def limit_pages(database: Database, num_free: int) -> None:
    (row,) = await database.fetch_all("PRAGMA page_count")
    await database.fetch_all(f"PRAGMA max_page_count = {row[0] + num_free}")


async def test_a_full_disk_is_a_clear_error_and_loses_nothing(
    conversations: Conversations, database: Database, path: Path
) -> None:
    running = await ask(conversations, 1)
    before = await num_rows(database, "messages")
    await limit_pages(database, 2)
    with pytest.raises(StorageFullError, match="disk is full"):
        await ask(conversations, 2, "x" * 100_000)
    with pytest.raises(StorageFullError):
        await finish(conversations, running.answer.id, "y" * 100_000)
    assert await num_rows(database, "messages") == before
    # What fits is still stored, and with space everything is again.
    assert await finish(conversations, running.answer.id, "short") is not None
    await limit_pages(database, 1000)
    await asked_and_answered(conversations, 2, "x" * 100_000)
    assert await num_rows(database, "messages") == before + 2


async def test_closing_twice_and_at_once_is_fine(path: Path) -> None:
    database = await Database.open(path)
    await asyncio.gather(database.close(), database.close())
    await database.close()
    with pytest.raises(DatabaseUnavailableError, match="closed"):
        await database.fetch_all("SELECT 1")
    with pytest.raises(DatabaseUnavailableError, match="closed"):
        async with database.transaction():
            pass


async def test_closing_waits_for_the_transaction_that_runs(path: Path) -> None:
    database = await Database.open(path)
    begun = asyncio.Event()

    async def write() -> None:
        async with database.transaction() as transaction:
            begun.set()
            await asyncio.sleep(0.02)
            await transaction.fetch_all(INSERT, (1,))

    task = asyncio.create_task(write())
    await begun.wait()
    await database.close()
    await task
    async with await Database.open(path) as again:
        assert await num_conversations(again) == 1


async def test_closing_folds_the_log_into_the_file(path: Path) -> None:
    async with await Database.open(path) as database:
        await ask(Conversations(database), 1)
    assert files_beside(path) == [path.name]


async def test_closing_inside_a_transaction_is_refused(database: Database) -> None:
    async with database.transaction() as transaction:
        with pytest.raises(RuntimeError):
            await database.close()
        await transaction.fetch_all(INSERT, (1,))
    assert await num_conversations(database) == 1


async def test_a_cancelled_close_still_closes(path: Path) -> None:
    database = await Database.open(path)
    task = asyncio.create_task(database.close())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await database.close()
    with pytest.raises(DatabaseUnavailableError):
        await database.fetch_one("SELECT 1")
