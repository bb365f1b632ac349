"""The event loop ends before the database does: nothing hangs, nothing is half written."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from storage.database import Database
from storage.errors import DatabaseUnavailableError

PRELUDE = """
import asyncio, sys
from pathlib import Path
from storage.database import Database

INSERT = "INSERT INTO conversations (channel_id, kind, created_at) VALUES (?, 'channel', 0)"
SLOW = '''
WITH RECURSIVE counter (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < 2000000)
SELECT max(n) FROM counter'''
databases = []

async def write_slowly():
    database = await Database.open(Path(sys.argv[1]))
    databases.append(database)
    async with database.transaction() as transaction:
        await transaction.fetch_all(INSERT, (1,))
    async with database.transaction() as transaction:
        await transaction.fetch_all(INSERT, (2,))
        begun.set()
        await transaction.fetch_all(SLOW)
"""
# asyncio.run cancels what is left, as it does on Ctrl-C, and closes the loop.
RUN_ENDS = """
async def main():
    global begun, task
    begun = asyncio.Event()
    task = asyncio.create_task(write_slowly())
    await begun.wait()
asyncio.run(main())
"""
RUN_ENDS_READING = """
async def read_slowly():
    async with await Database.open(Path(sys.argv[1])) as database:
        begun.set()
        await database.fetch_all(SLOW)

async def main():
    global begun, task
    begun = asyncio.Event()
    task = asyncio.create_task(read_slowly())
    await begun.wait()
    await asyncio.sleep(0.02)
asyncio.run(main())
"""
# The loop is closed over a running statement, and nobody is told.
LOOP_IS_CLOSED = """
async def main():
    global begun, task
    begun = asyncio.Event()
    task = asyncio.create_task(write_slowly())
    await begun.wait()
    await asyncio.sleep(0)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
"""
NOT_CLOSED = """
async def main():
    databases.append(await Database.open(Path(sys.argv[1])))
asyncio.run(main())
"""


OPEN_FAILS = """
for _ in range(20):
    try:
        asyncio.run(Database.open(Path("/proc/version")))
    except Exception as error:
        print(error)
"""
OPEN_IS_CANCELLED = """
async def main(delay):
    task = asyncio.create_task(Database.open(Path(sys.argv[1])))
    await asyncio.sleep(delay)
for moment in range(20):
    asyncio.run(main(moment * 0.002))
"""


def run(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  (this file's own scripts)
        [sys.executable, "-c", PRELUDE + script, path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def channels(path: Path) -> list[int]:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute("SELECT channel_id FROM conversations").fetchall()
    connection.close()
    return [channel_id for (channel_id,) in rows]


def test_a_loop_that_cancels_its_tasks_ends_in_silence(path: Path) -> None:
    result = run(RUN_ENDS, path)
    assert (result.returncode, result.stderr) == (0, "")
    assert channels(path) == [1]


def test_a_loop_that_cancels_a_reader_ends_in_silence(path: Path) -> None:
    result = run(RUN_ENDS_READING, path)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_loop_closed_over_a_statement_neither_hangs_nor_leaves_half_a_transaction(path: Path) -> None:
    assert run(LOOP_IS_CLOSED, path).returncode == 0
    assert channels(path) == [1]


def test_a_database_that_nobody_closes_does_not_keep_the_process_alive(path: Path) -> None:
    assert run(NOT_CLOSED, path).returncode == 0
    assert channels(path) == []


def test_an_open_that_fails_leaves_nothing_behind(path: Path) -> None:
    result = run(OPEN_FAILS, path)
    assert result.stdout.count("cannot be opened or written") == 20
    assert result.stderr == ""


def test_an_open_that_is_cancelled_leaves_no_lock(path: Path) -> None:
    result = run(OPEN_IS_CANCELLED, path)
    assert (result.returncode, result.stdout) == (0, "")
    assert channels(path) == []


def test_after_its_loop_a_database_refuses_work_and_can_be_closed(path: Path) -> None:
    database = asyncio.run(Database.open(path))
    with pytest.raises(DatabaseUnavailableError):
        asyncio.run(database.fetch_all("SELECT 1"))
    asyncio.run(database.close())
    asyncio.run(database.close())
