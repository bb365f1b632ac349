"""A person's data: forgotten everywhere, handed out whole, and none of it anybody else's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from storage import people as people_module
from storage.conversations import ConversationKind, ConversationRef, Conversations
from storage.database import Database
from storage.moderation import Blocks
from storage.people import Forgotten, KeptData, People
from storage.settings import ServerSettingsStore, SettingsStore
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, OTHER_CHANNEL, finish

ANNA, BOB, MOD = 1001, 1002, 1003
ANNAS_DM = ConversationRef(900, ConversationKind.DIRECT, None)
KEPT_ON_PURPOSE = {("opt_outs", "user_id"), ("blocks", "user_id")}


@pytest.fixture
def people(database: Database) -> People:
    return People(database, now=lambda: NOW)


async def say(
    conversations: Conversations, who: int, text: str, ref: ConversationRef = CHANNEL, *, discord_id: int
) -> None:
    """Store a question and its answer."""
    turn = await conversations.begin_turn(
        await conversations.open(ref),
        discord_id=discord_id,
        author_id=who,
        author_name=f"name{who}",
        content=text,
        created_at=NOW,
    )
    await finish(conversations, turn.answer.id, f"answer to {text}")


async def everything(database: Database, conversations: Conversations) -> None:
    """Let Anna leave traces in every table, and others beside her."""
    await say(conversations, ANNA, "anna one", discord_id=1)
    await say(conversations, BOB, "bob one", discord_id=2)
    await say(conversations, ANNA, "anna two", OTHER_CHANNEL, discord_id=3)
    await say(conversations, ANNA, "anna direct", ANNAS_DM, discord_id=4)
    dm, channel = await conversations.open(ANNAS_DM), await conversations.open(CHANNEL)
    settings = SettingsStore(database)
    await settings.set(dm, "top_k", 3, by_user_id=ANNA, at=NOW)
    await settings.set(channel, "temperature", 0.5, by_user_id=ANNA, at=NOW)
    await ServerSettingsStore(database).set(7, "label", True, by_user_id=ANNA, at=NOW)
    blocks = Blocks(database)
    await blocks.add(7, BOB, by_user_id=ANNA, at=NOW)
    await blocks.add(8, ANNA, by_user_id=MOD, at=NOW)
    async with database.transaction() as transaction:
        await transaction.fetch_all("INSERT INTO reports VALUES (1, ?, 0)", (ANNA,))
        bobs = "(SELECT id FROM messages WHERE content = 'bob one')"
        await transaction.fetch_all(
            f"INSERT INTO quotes VALUES ({bobs}, 0, 9, ?, ?, 'anna said')",  # noqa: S608
            (ANNA, f"name{ANNA}"),
        )
        await transaction.fetch_all(
            "INSERT INTO resets (conversation_id, by_user_id, reset_at, num_messages, undone_by_user_id)"
            " VALUES (?, ?, 0, 0, ?)",
            (channel, ANNA, ANNA),
        )


async def columns(database: Database, kind: str) -> list[tuple[str, str]]:
    """Return every table and column there is."""
    of_sqlite = (
        "SELECT tables.name AS place, columns.name FROM sqlite_master AS tables,"
        " pragma_table_info(tables.name) AS columns WHERE tables.type = 'table'"
    )
    of_postgres = (
        "SELECT table_name AS place, column_name AS name FROM information_schema.columns"
        " WHERE table_schema = current_schema()"
    )
    rows = await database.fetch_all(of_sqlite if kind == "sqlite" else of_postgres)
    return [(row["place"], row["name"]) for row in rows]


async def where(database: Database, kind: str, user_id: int) -> set[tuple[str, str]]:
    """Return every table and column that holds the id, whatever the columns are called."""
    found = set()
    for table, column in await columns(database, kind):
        sql = f"SELECT 1 FROM {table} WHERE CAST({column} AS TEXT) LIKE ?"  # noqa: S608 - names of our own
        if await database.fetch_all(sql, (f"%{user_id}%",)):
            found.add((table, column))
    return found


async def test_nothing_in_any_table_names_a_person_who_was_forgotten(
    database: Database, kind: str, conversations: Conversations, people: People
) -> None:
    await everything(database, conversations)
    assert len(await where(database, kind, ANNA)) >= 8
    assert await people.forget(ANNA) == Forgotten(num_questions=3, num_answers=3, num_conversations=1)
    assert await where(database, kind, ANNA) == {("blocks", "user_id")}
    assert await people.forget(ANNA) == Forgotten()


async def test_every_column_that_can_hold_a_person_is_cleaned(
    database: Database, kind: str, conversations: Conversations, people: People
) -> None:
    """A table that is added later shows up here."""
    of_people = {
        place for place in await columns(database, kind) if place[1].endswith(("user_id", "author_id"))
    }
    await everything(database, conversations)
    await people.opt_out(ANNA)
    filled = await where(database, kind, ANNA)
    assert of_people <= filled, "let `everything` leave a trace there, and `People.forget` clean it"
    await people.forget(ANNA)
    assert await where(database, kind, ANNA) == KEPT_ON_PURPOSE


async def test_what_others_said_and_what_was_decided_stays(
    database: Database, conversations: Conversations, people: People
) -> None:
    await everything(database, conversations)
    await people.forget(ANNA)
    channel = await conversations.open(CHANNEL)
    assert [m.content for m in await conversations.recent(channel, 10)] == ["bob one", "answer to bob one"]
    assert await SettingsStore(database).all(channel) == {"temperature": 0.5}
    assert await Blocks(database).is_blocked(7, BOB)
    assert await Blocks(database).is_blocked(8, ANNA)


async def test_the_text_is_gone_from_the_files_too(
    path: Path, database: Database, conversations: Conversations, people: People
) -> None:
    await say(conversations, ANNA, "an unmistakable text", discord_id=1)
    assert any(b"unmistakable" in entry.read_bytes() for entry in path.parent.iterdir())
    await people.forget(ANNA)
    assert not any(b"unmistakable" in entry.read_bytes() for entry in path.parent.iterdir())


async def test_many_questions_go_in_several_transactions(
    conversations: Conversations, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people_module, "BATCH_SIZE", 2)
    for number in range(5):
        await say(conversations, ANNA, f"text {number}", discord_id=number + 1)
    assert [q.content for q in (await people.kept(ANNA)).questions] == [f"text {n}" for n in range(5)]
    assert (await people.forget(ANNA)).num_questions == 5


async def test_what_is_kept_of_a_person_is_handed_out_and_nothing_of_others(
    database: Database, conversations: Conversations, people: People
) -> None:
    await everything(database, conversations)
    await people.opt_out(ANNA)
    kept = await people.kept(ANNA)
    assert [q.content for q in kept.questions] == ["anna one", "anna two", "anna direct"]
    assert [a.content for q in kept.questions for a in q.answers] == [
        "answer to anna one",
        "answer to anna two",
        "answer to anna direct",
    ]
    assert {(c.guild_id, c.channel_id, c.key, c.value) for c in kept.changes} == {
        (7, 100, "temperature", "0.5"),
        (None, 900, "top_k", "3"),
        (7, None, "label", "true"),
    }
    assert kept.opted_out_at is not None
    assert abs(kept.opted_out_at - NOW) < timedelta(milliseconds=1)
    assert kept.blocked_on == (8,)
    assert await people.kept(5) == KeptData((), (), None, ())


async def test_a_summary_of_a_persons_messages_is_handed_out_and_forgotten(
    database: Database, conversations: Conversations, people: People
) -> None:
    await everything(database, conversations)
    channel = await conversations.open(CHANNEL)
    messages = await conversations.recent(channel, 10)
    await conversations.summaries.add(channel, messages[:2], messages[-1].id, "Of Anna.")
    await conversations.summaries.add(channel, messages[2:3], messages[-1].id + 1, "Of Bob, who quotes her.")
    await conversations.summaries.add(channel, messages[3:], messages[-1].id + 2, "Of his answer.")
    assert [s.content for s in (await people.kept(ANNA)).summaries] == ["Of Anna."]
    await people.forget(ANNA)
    assert [s.content for s in await conversations.summaries.of(channel)] == ["Of his answer."]


async def test_opting_out_and_in_again(people: People) -> None:
    assert not await people.is_opted_out(ANNA)
    assert [await people.opt_out(ANNA), await people.opt_out(ANNA)] == [True, False]
    assert await people.is_opted_out(ANNA)
    assert not await people.is_opted_out(BOB)
    assert [await people.opt_in(ANNA), await people.opt_in(ANNA)] == [True, False]
    assert not await people.is_opted_out(ANNA)
