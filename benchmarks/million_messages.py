"""A million stored messages: what each act of the storage costs, and which statements look through a table.

    python -m benchmarks.million_messages                      both kinds of database
    python -m benchmarks.million_messages --kind sqlite --messages 100000

The messages are of 20,000 conversations, one of which has 40,000 of them, and of 5,000 people, one of whom
wrote 10,000. Made in the database itself, in under a minute. PostgreSQL is one that is started for this, as
the tests start theirs: without fsync, full_page_writes and autovacuum, so that the disk of the machine says
nothing. A server that keeps its data is slower where it writes. Prints milliseconds, the median and the 99th
percentile, and all plans that are no look-up in an index.
"""

# ruff: noqa: S608 - the statements are made of constants
from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from storage.conversations import ConversationKind, ConversationRef, Conversations, MessageState
from storage.copying import LEGS, NUMBERED
from storage.database import Database
from storage.people import People
from storage.retention import Place, Retention
from storage.types import to_milliseconds
from tests.postgres_server import PostgresServer, programs

NOW = datetime(2026, 11, 1, tzinfo=UTC)
NUM_CONVERSATIONS, NUM_PEOPLE, NUM_SERVERS = 20_000, 5_000, 2_000
LONG, HEAVY = 1, 1
"""The conversation, and the person, with most messages."""
TURNS = "WITH RECURSIVE turns (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM turns WHERE n < ?1)"
CONVERSATION = f"CASE WHEN n % 25 = 0 THEN {LONG} ELSE n % {NUM_CONVERSATIONS} + 1 END"
PERSON = f"CASE WHEN n % 50 = 7 THEN {HEAVY} ELSE n * 7 % {NUM_PEOPLE} + 1 END"
# Two years, evenly.
AT = f"{to_milliseconds(NOW - timedelta(days=730))} + n * ({730 * 86_400_000} / ?1)"
FILLING = (
    (
        NUM_CONVERSATIONS,
        f"""INSERT INTO conversations (id, channel_id, kind, guild_id, created_at)
        SELECT n, 1000000 + n, CASE WHEN n % 20 = 3 THEN 'direct' ELSE 'channel' END,
        CASE WHEN n % 20 = 3 THEN NULL ELSE n % {NUM_SERVERS} + 1 END, {AT} FROM turns""",
    ),
    (
        0,
        f"""INSERT INTO messages
        (id, conversation_id, role, state, author_id, author_name, content, created_at, ended_at)
        SELECT 2 * n - 1, {CONVERSATION}, 'user', 'complete', {PERSON}, 'Somebody',
        'A question of a usual length, the one with the number ' || n, {AT}, {AT} FROM turns""",
    ),
    (
        0,
        f"""INSERT INTO messages (id, conversation_id, role, state, author_name, content, created_at,
        ended_at, reply_to, num_prompt_tokens, num_tokens, finish_reason)
        SELECT 2 * n, {CONVERSATION}, 'assistant', 'complete', '', 'An answer, and not a very long one: ' || n
        || ', because it would only take longer to make and to read, but says as little in the end. '
        || 'So it stops here, after about two hundred characters.', {AT}, {AT}, 2 * n - 1, 800, 60, 'stop'
        FROM turns""",
    ),
    (0, "INSERT INTO discord_messages SELECT 100000000 + 2 * n, 2 * n - 1, 0 FROM turns"),
    (0, "INSERT INTO discord_messages SELECT 100000001 + 2 * n, 2 * n, 0 FROM turns"),
    (
        0,
        f"""INSERT INTO quotes SELECT 2 * n - 1, 0, 500000000 + n, n % {NUM_PEOPLE} + 1, 'Other', 'As said.'
        FROM turns WHERE n % 20 = 0""",
    ),
    (5_000, "INSERT INTO settings SELECT 4 * n - 3, 'temperature', '0.5', n, 0 FROM turns"),
    (NUM_SERVERS, "INSERT INTO server_settings SELECT n, 'language', '\"de\"', n, 0 FROM turns"),
    (20_000, f"INSERT INTO reports SELECT 20 * n, n % {NUM_PEOPLE} + 1, {AT} FROM turns"),
    (20_000, f"INSERT INTO blocks SELECT n % {NUM_SERVERS} + 1, n, n % 50, 0 FROM turns"),
    (
        20_000,
        f"""INSERT INTO resets (conversation_id, by_user_id, reset_at, num_messages)
        SELECT n, n % {NUM_PEOPLE} + 1, {AT}, 4 FROM turns""",
    ),
)
TABLES = sorted({leg.table for leg in LEGS})


class Recorder:
    """Remembers each statement that runs, with values that it ran with."""

    def __init__(self, database: Database) -> None:
        self.statements: dict[str, tuple[Any, ...]] = {}
        backend: Any = database._backend
        read, write = backend.read, backend.write

        async def recorded_read(sql: str, params: Any) -> list[Any]:
            self.statements.setdefault(sql, tuple(params))
            rows: list[Any] = await read(sql, params)
            return rows

        @asynccontextmanager
        async def recorded_write(within: Any) -> AsyncIterator[Callable[..., Awaitable[list[Any]]]]:
            async with write(within) as run:

                async def recorded_run(sql: str, params: Any = ()) -> list[Any]:
                    self.statements.setdefault(sql, tuple(params))
                    rows: list[Any] = await run(sql, params)
                    return rows

                yield recorded_run

        backend.read, backend.write = recorded_read, recorded_write


@dataclasses.dataclass(frozen=True, slots=True)
class Act:
    """One thing to measure: how often, and what; it gets the number of the round."""

    name: str
    num_rounds: int
    work: Callable[[int], Awaitable[object]]


async def fill(database: Database, num_turns: int) -> None:
    """Make everything."""
    for number, statement in FILLING:
        async with database.transaction() as transaction:
            await transaction.fetch_all(f"{_placed(statement)}", (number or num_turns,))


def _placed(statement: str) -> str:
    """Return an INSERT with its counter where both kinds of database take it."""
    head, _, select = statement.partition("SELECT")
    return f"{head}{TURNS} SELECT{select}"


def acts(database: Database, num_turns: int) -> list[Act]:
    """Return what is measured, in order: what deletes most comes last."""
    conversations, people = Conversations(database, now=lambda: NOW), People(database)
    retention = Retention(database, now=lambda: NOW)
    numbers = itertools.count(900_000_000)
    newest_of_long = 2 * (num_turns // 25 * 25)

    async def turn(_: int) -> None:
        ref = ConversationRef(1_000_000 + LONG, ConversationKind.CHANNEL, 2)
        begun = await conversations.begin_turn(
            await conversations.open(ref), discord_id=next(numbers), author_id=77, author_name="Ada",
            content="Why?", created_at=NOW,
        )  # fmt: skip
        await conversations.attach_part(begun.answer.id, next(numbers), 0)
        await conversations.finish_answer(
            begun.answer.id, content="So.", state=MessageState.COMPLETE, finish_reason="stop",
            num_prompt_tokens=9, num_tokens=2,
        )  # fmt: skip

    async def leave_server(number: int) -> None:
        await retention.mark_gone(Place.SERVER, number + 100)
        while await retention.delete_gone(gone_before=NOW + timedelta(days=1)):
            pass

    return [
        Act("history of the long conversation", 100, lambda _: conversations.history_before(newest_of_long)),
        Act(
            "history of a usual one",
            200,
            lambda n: conversations.history_before(2 * (7919 * n % num_turns + 1)),
        ),
        Act("newest turn of a conversation", 200, lambda n: conversations.turns.newest(n + 2)),
        Act("a whole turn, stored", 100, turn),
        Act("asked in the last week", 10, lambda _: conversations.asked_since(NOW - timedelta(days=7))),
        Act("start: interrupted, unshown", 10, lambda _: _start(conversations)),
        Act("start: clear up", 3, lambda _: retention.clear_up()),
        Act("export of a person", 50, lambda n: people.kept(2 + 3 * n)),
        Act("export of the one who wrote 10,000", 3, lambda _: people.kept(HEAVY)),
        Act("sweep: private questions", 10, lambda _: retention.delete_private(begun_before=NOW)),
        Act("sweep: 200 old questions", 50, lambda _: retention.delete_older(NOW - timedelta(days=600))),
        Act("sweep: what resets put aside", 10, lambda _: conversations.purge_resets(before=NOW)),
        Act("sweep: a server that is gone", 5, leave_server),
        Act("forget a person", 20, lambda n: people.forget(4_000 + 3 * n)),
        Act("forget the one who wrote 10,000", 1, lambda _: people.forget(HEAVY)),
    ]


async def _start(conversations: Conversations) -> None:
    await conversations.interrupt_pending()
    await conversations.unshown(within=timedelta(days=1), limit=100)


async def measure(database: Database, num_turns: int) -> None:
    """Print a line for each act."""
    for act in acts(database, num_turns):
        took = []
        for number in range(act.num_rounds):
            begun = time.perf_counter()
            await act.work(number)
            took.append((time.perf_counter() - begun) * 1000)
        p99 = statistics.quantiles(took, n=100)[98] if len(took) > 1 else took[0]
        print(f"  {act.name:36} {statistics.median(took):9.1f} {min(p99, max(took)):9.1f}", flush=True)


async def plans(database: Database, statements: dict[str, tuple[Any, ...]], *, is_postgres: bool) -> None:
    """Print the statements whose plans look through a whole table, but one of a few rows."""
    explain, sign = (
        ("EXPLAIN ", r"Seq Scan on (\w+)") if is_postgres else ("EXPLAIN QUERY PLAN ", r"^SCAN (\w+)")
    )
    tables = {
        table for table in TABLES if len(await database.fetch_all(f"SELECT 1 FROM {table} LIMIT 501")) > 500
    }
    num_found = 0
    for sql, params in statements.items():
        if sql.startswith(("PRAGMA", "BEGIN")):
            continue
        steps = [str(row[-1]).strip() for row in await database.fetch_all(explain + sql, params)]
        found = [step for step in steps if (scan := re.search(sign, step)) and scan[1] in tables]
        if found:
            num_found += 1
            print(f"  {' '.join(sql.split())[:150]}\n      {'; '.join(found)}")
    print(f"  {len(statements)} statements, {num_found} of them look through a table")


async def run(kind: str, num_turns: int, folder: Path, *, fills: bool, measures: bool) -> None:
    """Fill one kind of database and measure it."""
    server = _server(folder / "server", is_new=fills) if kind == "postgres" else None
    try:
        location = folder / "million.sqlite3" if server is None else server.address("million")
        if fills and server is not None:
            server.run("CREATE DATABASE million")
        async with await Database.open(location) as database:
            if fills:
                begun = time.perf_counter()
                await fill(database, num_turns)
                if server is not None:
                    for table in NUMBERED:
                        await database.fetch_all(f"SELECT setval('{table}_id_seq', 10000000)")
                    server.run("VACUUM ANALYZE", "million")
                print(f"{kind}: {2 * num_turns:,} messages, made in {time.perf_counter() - begun:.0f} s")
            if measures:
                print(f"{kind}: milliseconds                     {'median':>9} {'p99':>9}")
                recorder = Recorder(database)
                await measure(database, num_turns)
                print(f"{kind}: plans")
                await plans(database, dict(recorder.statements), is_postgres=server is not None)
    finally:
        if server is not None:
            server.stop()


def _server(folder: Path, *, is_new: bool) -> PostgresServer:
    found = programs()
    if found is None:
        raise SystemExit("There is no PostgreSQL here: apt install postgresql")
    folder.mkdir(exist_ok=True)
    folder.parent.chmod(0o755)
    server = PostgresServer(found, folder)
    if is_new:
        server.make()
    server.start()
    return server


def main() -> None:
    """Measure one kind or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kind", choices=["sqlite", "postgres"])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--fill", type=Path, metavar="FOLDER", help="only make the databases, in this folder")
    parser.add_argument("--filled", type=Path, metavar="FOLDER", help="measure those in this folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lc-mm-") as temporary:
        folder = given.fill or given.filled or Path(temporary)
        folder.mkdir(exist_ok=True)
        for kind in [given.kind] if given.kind else ["sqlite", "postgres"]:
            work = run(
                kind, given.messages // 2, folder, fills=given.filled is None, measures=given.fill is None
            )
            asyncio.run(work)


if __name__ == "__main__":
    main()
