"""PostgreSQL alone: several processes at once, connections that break, and a server that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from storage import answers, history, parts
from storage.address import PostgresAddress, without_password
from storage.conversations import Conversations, MessageState
from storage.database import Database, act, in_use
from storage.errors import (
    AnswerPendingError,
    CorruptDatabaseError,
    DatabaseUnavailableError,
    DuplicateMessageError,
    InUseError,
    NewerDatabaseError,
    NotFoundError,
    StorageError,
    TransactionLostError,
)
from storage.migrations import MIGRATIONS, Migration
from storage.postgres import backend
from storage.postgres.connection import Connection, lock_key
from storage.postgres.dialect import schema_statements, translated
from storage.shards import EVERYTHING
from tests.postgres_server import PostgresServer
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, ask, asked_and_answered, contents, finish, num_rows
from tests.virtual_time import run

INSERT = "INSERT INTO conversations (channel_id, kind, created_at) VALUES (?, 'channel', 0)"


@pytest.fixture
def address(postgres: PostgresServer) -> Iterator[PostgresAddress]:
    with postgres.lent() as lent:
        yield lent


@asynccontextmanager
async def two(address: PostgresAddress) -> AsyncIterator[tuple[Database, Database]]:
    """Open it twice, as two processes would."""
    async with await Database.open(address) as one, await Database.open(address) as other:
        yield one, other


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that only the server can tell."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def outcomes(*works: Awaitable[Any]) -> list[Any]:
    """Do it all at once; return what each returned, and the kind of what it raised."""
    results = await asyncio.gather(*works, return_exceptions=True)
    return [type(result) if isinstance(result, Exception) else result for result in results]


async def test_a_reader_does_not_wait_for_a_writer(address: PostgresAddress) -> None:
    async with await Database.open(address) as database:
        async with database.transaction() as transaction:
            await transaction.fetch_all(INSERT, (1,))
            reading = asyncio.create_task(num_rows(database, "conversations"))
            assert await reading == 0
        assert await num_rows(database, "conversations") == 1


async def test_a_cancelled_statement_ends_on_the_server_and_its_connection_goes_on(
    address: PostgresAddress, postgres: PostgresServer
) -> None:
    async with await Database.open(address) as database:
        await database.fetch_all("SELECT 1")
        task = asyncio.create_task(database.fetch_all("SELECT pg_sleep(1000)"))
        sleeps = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await until(lambda: bool(postgres.run(sleeps)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await database.fetch_all("SELECT 1")
        assert len(postgres.run("SELECT 1 FROM pg_stat_activity WHERE application_name = 'llamacord'")) == 1


async def test_of_two_processes_one_regenerates_an_answer(address: PostgresAddress) -> None:
    async with two(address) as (one, other):
        first, second = Conversations(one), Conversations(other)
        for number in range(10, 200, 10):
            turn = await asked_and_answered(first, number)
            begun = await outcomes(
                first.begin_regeneration(turn.answer.id), second.begin_regeneration(turn.answer.id)
            )
            assert AnswerPendingError in begun
            (new,) = [answer for answer in begun if answer is not AnswerPendingError]
            await finish(first, new.id)


async def test_of_two_processes_one_takes_a_message(address: PostgresAddress) -> None:
    async with two(address) as (one, other):
        first, second = Conversations(one), Conversations(other)
        await first.open(CHANNEL)
        for number in range(20):
            assert DuplicateMessageError in await outcomes(ask(first, number), ask(second, number))
        # Also in two conversations, which exclude each other in nothing.
        await second.open(OTHER_CHANNEL)
        for number in range(20, 40):
            took = await outcomes(ask(first, number), ask(second, number, ref=OTHER_CHANNEL))
            assert DuplicateMessageError in took
        assert await num_rows(one, "messages") == 2 * 40


async def test_two_processes_put_two_messages_at_two_places(address: PostgresAddress) -> None:
    async with two(address) as (one, other):
        first, second = Conversations(one), Conversations(other)
        turn = await ask(first, 1)
        for number in range(10, 50, 2):
            await asyncio.gather(
                first.attach_part(turn.answer.id, number, 0),
                second.attach_part(turn.answer.id, number + 1, 0),
            )
        assert sorted(await first.parts(turn.answer.id)) == list(range(10, 50))


async def test_an_answer_ends_once_and_a_question_is_joined_before_that_or_refused(
    address: PostgresAddress,
) -> None:
    async with two(address) as (one, other):
        first, second = Conversations(one), Conversations(other)
        for number in range(100, 1000, 50):
            turn = await ask(first, number)
            more = Conversations(other).turns.ask_on(turn.answer.id, _question(number + 1))
            ended, _, joined = await outcomes(
                finish(first, turn.answer.id), finish(second, turn.answer.id), more
            )
            stored = await first.find_answer(turn.answer.id)
            assert stored is not None
            assert stored.state is MessageState.COMPLETE
            assert ended is None or ended.id == turn.answer.id
            is_joined = joined is not NotFoundError
            assert stored.reply_to == (joined.id if is_joined else turn.question.id)
            assert len(await first.recent(turn.answer.conversation_id, 1000)) > 0


async def test_a_reset_leaves_nothing_of_what_was_asked_meanwhile_behind(address: PostgresAddress) -> None:
    async with two(address) as (one, other):
        first, second = Conversations(one), Conversations(other)
        for number in range(100, 1000, 50):
            turn = await asked_and_answered(first, number)
            conversation_id = turn.answer.conversation_id
            reset, again = await outcomes(
                first.reset(conversation_id, by_user_id=1, at=NOW),
                second.begin_regeneration(turn.answer.id),
            )
            # Either it was put aside before, or both the old and the new one lie on the shelf.
            assert await first.recent(conversation_id, 10) == []
            assert reset.num_messages == (2 if again is NotFoundError else 3)


async def test_other_conversations_go_on_beside_a_transaction(address: PostgresAddress) -> None:
    async with two(address) as (one, other):
        first, second = Conversations(one), Conversations(other)
        mine, theirs = await ask(first, 1), await ask(first, 2, ref=OTHER_CHANNEL)
        async with one.transaction(_within(mine.answer.conversation_id)):
            assert await second.checkpoint(theirs.answer.id, "there")
            blocked = asyncio.create_task(second.checkpoint(mine.answer.id, "here"))
            done, _ = await asyncio.wait([blocked], timeout=0.2)
            assert not done
        assert await blocked


async def test_a_transaction_without_a_conversation_excludes_all(address: PostgresAddress) -> None:
    async with two(address) as (one, other):
        turn = await ask(Conversations(one), 1)
        async with one.transaction():
            blocked = asyncio.create_task(Conversations(other).checkpoint(turn.answer.id, "here"))
            done, _ = await asyncio.wait([blocked], timeout=0.2)
            assert not done
        assert await blocked


class Breaker:
    """Ends the writer's connection before, or right after, the n-th of its statements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server: PostgresServer, *, at: int) -> None:
        self.num_left = at
        self.has_broken = False
        self._server = server
        self._run = backend._run
        monkeypatch.setattr(backend, "_run", self.run)

    async def run(self, connection: Connection, sql: str, params: Any) -> Any:
        self.num_left -= 1
        if self.num_left == 0:
            self.has_broken = True
            self._server.run(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        return await self._run(connection, sql, params)


@pytest.mark.parametrize("at", range(2, 10))
async def test_a_question_is_stored_once_whenever_its_connection_breaks(
    address: PostgresAddress, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    async with await Database.open(address) as database:
        conversations = Conversations(database)
        await conversations.open(CHANNEL)
        breaker = Breaker(monkeypatch, postgres, at=at)
        turn = await ask(conversations, 1)
        assert await contents(conversations, turn.answer.id) == ["Why?"]
        assert await num_rows(database, "messages") == 2
        assert breaker.has_broken


async def test_what_is_no_act_gets_an_error_that_says_that_nothing_is_stored(
    address: PostgresAddress, postgres: PostgresServer
) -> None:
    async with await Database.open(address) as database:

        async def break_off() -> None:
            async with database.transaction() as transaction:
                await transaction.fetch_all(INSERT, (1,))
                postgres.kill_connections(address)
                await transaction.fetch_all(INSERT, (2,))

        with pytest.raises(TransactionLostError, match="cannot be reached"):
            await break_off()
        assert await num_rows(database, "conversations") == 0


class LostAnswer:
    """Lets a COMMIT reach the server, or not, and its answer never come back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, reaches: bool) -> None:
        self.num_lost = 0
        self._reaches = reaches
        self._execute = psycopg.AsyncConnection.execute
        monkeypatch.setattr(psycopg.AsyncConnection, "execute", self._wrapped())

    def _wrapped(self) -> Callable[..., Awaitable[Any]]:
        async def execute(connection: Connection, query: Any, *given: Any) -> Any:
            if query != b"COMMIT" or self.num_lost:
                return await self._execute(connection, query, *given)
            self.num_lost += 1
            if self._reaches:
                await self._execute(connection, query)
            await connection.close()
            raise psycopg.OperationalError("the connection is lost")

        return execute


@pytest.mark.parametrize("reaches", [True, False])
async def test_a_commit_without_an_answer_is_neither_lost_nor_doubled(
    address: PostgresAddress, monkeypatch: pytest.MonkeyPatch, *, reaches: bool
) -> None:
    async with await Database.open(address) as database:
        conversations = Conversations(database)
        await conversations.open(CHANNEL)
        lost = LostAnswer(monkeypatch, reaches=reaches)
        turn = await ask(conversations, 1)
        assert lost.num_lost == 1
        assert await num_rows(database, "messages") == 2
        assert await contents(conversations, turn.answer.id) == ["Why?"]


@pytest.mark.parametrize("is_crash", [False, True])
async def test_a_server_that_starts_again_costs_nothing_that_was_asked(
    address: PostgresAddress, postgres: PostgresServer, *, is_crash: bool
) -> None:
    async with two(address) as databases:
        first, second = (Conversations(database) for database in databases)
        await first.open(CHANNEL)
        await first.open(OTHER_CHANNEL)

        async def talk(conversations: Conversations, start: int) -> None:
            for number in range(start, start + 200, 10):
                ref = CHANNEL if number % 20 else OTHER_CHANNEL
                await asked_and_answered(conversations, number, str(number), ref=ref)

        talks = [asyncio.create_task(talk(one, start)) for one, start in ((first, 1000), (second, 5000))]
        await asyncio.wait(talks, timeout=0.2)
        await asyncio.to_thread(postgres.stop, is_crash=is_crash)
        await asyncio.to_thread(postgres.start)
        await asyncio.gather(*talks)
        asked = "SELECT content FROM messages WHERE role = 'user' ORDER BY content"
        rows = await databases[0].fetch_all(asked)
        expected = [str(start + number) for start in (1000, 5000) for number in range(0, 200, 10)]
        assert [row[0] for row in rows] == sorted(expected)
        ended = await databases[0].fetch_all("SELECT 1 FROM messages WHERE state = 'complete'")
        assert len(ended) == 2 * len(expected)


async def test_a_server_that_stays_away_is_a_sentence_and_forgotten_when_it_is_back(
    address: PostgresAddress, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.PostgresBackend, "patience_s", 0.3)
    async with await Database.open(address) as database:
        conversations = Conversations(database)
        turn = await ask(conversations, 1)
        postgres.stop()
        try:
            with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
                await conversations.recent(turn.answer.conversation_id, 10)
            with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
                await finish(conversations, turn.answer.id)
            with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
                await Database.open(address)
        finally:
            postgres.start()
        assert await finish(conversations, turn.answer.id) is not None


async def test_a_lock_is_held_by_one_process_or_shared(address: PostgresAddress) -> None:
    async with two(address) as (one, other):
        async with one.locked("shards 0-3", waits=False):
            with pytest.raises(InUseError):
                async with other.locked("shards 0-3", waits=False):
                    pass
            async with other.locked("shards 4-7", waits=False):
                pass
            waiting = asyncio.create_task(_held(other, "shards 0-3"))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        await waiting
        async with one.locked("x", is_shared=True), other.locked("x", waits=False, is_shared=True):
            with pytest.raises(InUseError):
                async with other.locked("x", waits=False):
                    pass


async def test_a_process_that_dies_gives_its_locks_back(
    address: PostgresAddress, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(address) as (one, other), one.locked("x") as lock:
        postgres.kill_connections(address, "query LIKE '%advisory_lock%'")
        async with other.locked("x"):
            pass
        assert not lock.lost.is_set()


async def test_a_lock_whose_connection_broke_is_taken_anew_or_known_to_be_lost(
    address: PostgresAddress, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.PostgresBackend, "watch_s", 0.05)
    held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock'"
    async with two(address) as (one, other), one.locked("x") as lock:
        postgres.kill_connections(address)
        await until(lambda: bool(postgres.run(held)))
        assert not lock.lost.is_set()
        monkeypatch.setattr(backend.PostgresBackend, "watch_s", 1000.0)
        while True:  # until the other one is the quicker one
            postgres.kill_connections(address)
            try:
                async with other.locked("x", waits=False):
                    await asyncio.wait_for(lock.lost.wait(), 30)
                    break
            except InUseError:
                continue


async def test_a_second_bot_on_one_database_is_refused_unless_both_share_it(address: PostgresAddress) -> None:
    async with in_use(address):
        with pytest.raises(InUseError, match="Another Llamacord"):
            async with in_use(address):
                pass
    async with in_use(address, is_shared=True), in_use(address, is_shared=True):
        with pytest.raises(InUseError):
            async with in_use(address):
                pass


async def test_another_programs_database_is_left_alone(postgres: PostgresServer) -> None:
    foreign = postgres.new_database()
    name = foreign.url.split("?")[0].rpartition("/")[2]
    postgres.run("CREATE TABLE bookmarks (url TEXT)", name)
    with pytest.raises(CorruptDatabaseError, match="another program"):
        await Database.open(foreign)
    assert postgres.run("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [(1,)]


async def test_a_newer_schema_is_left_alone(postgres: PostgresServer) -> None:
    newer = postgres.migrated()
    postgres.run("UPDATE llamacord_schema SET version = 1000", newer.url.split("?")[0].rpartition("/")[2])
    with pytest.raises(NewerDatabaseError):
        await Database.open(newer)


async def test_a_migration_that_fails_leaves_the_version_before(postgres: PostgresServer) -> None:
    address = postgres.new_database()
    half = Migration("half", ("CREATE TABLE half (id INTEGER PRIMARY KEY) STRICT", "CREATE NONSENSE"))
    with pytest.raises(StorageError):
        await Database.open(address, migrations=(*MIGRATIONS, half))
    async with await Database.open(address) as database:
        found = await database.fetch_all("SELECT to_regclass('half'), version FROM llamacord_schema")
        assert tuple(found[0]) == (None, len(MIGRATIONS))


async def test_processes_that_migrate_at_once_apply_each_step_once(postgres: PostgresServer) -> None:
    address = postgres.new_database()
    databases = await asyncio.gather(*(Database.open(address) for _ in range(3)))
    assert await num_rows(databases[0], "llamacord_schema") == 1
    for database in databases:
        await database.close()


async def test_a_step_that_takes_another_process_long_is_waited_for(
    address: PostgresAddress, postgres: PostgresServer
) -> None:
    name = address.url.split("?")[0].rpartition("/")[2]
    with psycopg.connect(postgres.address(name).url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key("public", "schema"),))
        opening = asyncio.create_task(Database.open(address, busy_timeout_s=0.05))
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await until(lambda: bool(postgres.run(waits, name)) or opening.done())
        await asyncio.sleep(0.2)
        assert not opening.done()
    await (await opening).close()


async def test_what_is_wrong_with_a_database_is_said(postgres: PostgresServer) -> None:
    missing = PostgresAddress(postgres.address("nowhere").url)
    with pytest.raises(DatabaseUnavailableError, match="does not let us in"):
        await Database.open(missing)
    postgres.run("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(StorageError, match="UTF-8"):
        await Database.open(postgres.address("latin"))
    postgres.run("CREATE USER guest")
    guest = PostgresAddress(postgres.new_database().url.replace("llamacord@", "guest@"))
    postgres.run("REVOKE CREATE ON SCHEMA public FROM PUBLIC", guest.url.split("?")[0].rpartition("/")[2])
    with pytest.raises(DatabaseUnavailableError, match="may not make"):
        await Database.open(guest)
    readable = postgres.migrated()
    name = readable.url.split("?")[0].rpartition("/")[2]
    postgres.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailableError, match="only lets us read"):
        await Database.open(readable)


def test_those_who_wait_for_a_server_that_stays_away_wait_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_self: object) -> Connection:
        raise psycopg.OperationalError

    async def write(database: Database) -> None:
        async with database.transaction():
            pass

    async def play() -> float:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        database = Database(backend.PostgresBackend(PostgresAddress("postgresql://h/d"), "public", 5.0))
        found = await outcomes(*(write(database) for _ in range(20)))
        assert found == [DatabaseUnavailableError] * 20
        return loop.time() - began_s

    monkeypatch.setattr(backend.PostgresBackend, "_connect", fails)
    assert backend.PATIENCE_S <= run(play()) < 2 * backend.PATIENCE_S


async def test_a_table_that_an_update_changes_meanwhile_is_read_and_written_on(
    address: PostgresAddress, postgres: PostgresServer
) -> None:
    name = address.url.split("?")[0].rpartition("/")[2]
    async with await Database.open(address) as database:
        again = [lambda: database.fetch_all("SELECT * FROM opt_outs"), _written(database)]
        for _ in range(20):
            for work in again:
                await work()
        postgres.run("ALTER TABLE opt_outs ADD COLUMN later BIGINT", name)
        try:
            for work in again:
                await work()
        finally:
            postgres.run("ALTER TABLE opt_outs DROP COLUMN later", name)


def _written(database: Database) -> Callable[[], Awaitable[Any]]:
    @act
    async def write() -> None:
        async with database.transaction() as transaction:
            await transaction.fetch_all("SELECT * FROM opt_outs")

    return write


@pytest.mark.parametrize(
    ("processes", "is_refused"), [([1, 1, 1, 1, 1], True), ([1, 1, 2, 3, 2], True), ([1, 1, 2, 1, 2], False)]
)
async def test_a_pooler_that_does_not_keep_sessions_apart_is_refused(
    address: PostgresAddress, processes: list[int], is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(processes)
    monkeypatch.setattr("storage.postgres.connection._process", lambda _connection: next(told))
    if is_refused:
        with pytest.raises(StorageError, match="session mode"):
            await Database.open(address)
    else:
        await (await Database.open(address)).close()


async def test_a_number_that_no_column_holds_is_nothings_number(address: PostgresAddress) -> None:
    async with await Database.open(address) as database:
        with pytest.raises(NotFoundError):
            await Conversations(database).find_answer(2**63)


@pytest.mark.parametrize(
    "statement",
    [
        history.VISIBLE_TO_MODEL, history.VISIBLE_BEFORE_THREAD, history.NEWEST, parts.SHOWN_MESSAGE,
        parts.OF_MESSAGE, answers.NEWEST, answers.PENDING, answers.SUPERSEDED,
    ],
)  # fmt: skip
async def test_no_statement_needs_to_scan_a_table(address: PostgresAddress, statement: str) -> None:
    """Whether one does is a matter of costs; with scans made dear, a plan that has one has no index."""
    async with await Database.open(address) as database, database.transaction() as transaction:
        await transaction.fetch_all("SET LOCAL enable_seqscan = off")
        statement = statement.format(ours=EVERYTHING.condition("guild_id"))
        plan = await transaction.fetch_all("EXPLAIN " + statement, (1,) * statement.count("?"))
        assert not [row[0] for row in plan if "Seq Scan" in row[0]]


def test_the_password_is_shown_nowhere() -> None:
    address = PostgresAddress.parse("postgresql://ada:se%40cret@host:5432/llamacord?sslmode=require")
    assert "cret" not in f"{address} {address!r}"
    assert str(address) == "postgresql://ada@host:5432/llamacord?sslmode=require"
    assert "cret" not in without_password("postgresql://ada:se@cret@host")
    assert "cret" not in str(PostgresAddress.parse("postgres://host/name?user=ada&password=secret"))


@pytest.mark.parametrize(
    "written", ["postgresql:/host/name", "postgres://", "postgresql://host", "postgresql://["]
)
def test_an_address_that_cannot_be_one_is_a_sentence(written: str) -> None:
    with pytest.raises(ValueError, match="must"):
        PostgresAddress.parse(written)


def test_statements_are_translated() -> None:
    assert translated("SELECT ?, 'a?b', ?") == "SELECT $1, 'a?b', $2"
    assert translated("SELECT ?2, ?1, ?2") == "SELECT $2, $1, $2"


def test_every_trigger_of_the_schema_is_translated() -> None:
    statements = [statement for step in MIGRATIONS for statement in step.statements]
    written = [statement for statement in statements if "CREATE TRIGGER" in statement]
    assert len(written) >= 4
    for statement in written:
        function, trigger = schema_statements(statement)
        assert function.startswith("CREATE OR REPLACE FUNCTION")
        assert "EXECUTE FUNCTION" in trigger


def _within(conversation_id: int) -> Any:
    from storage.scopes import conversation

    return conversation(conversation_id)


def _question(discord_id: int) -> Any:
    from storage.turns import NewQuestion

    return NewQuestion(discord_id, 42, "Ada", "And?", NOW)


async def _held(database: Database, name: str) -> None:
    async with database.locked(name):
        pass
