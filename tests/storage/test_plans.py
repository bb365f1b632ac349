"""What looks at many people's messages does so by an index, on either kind of database."""

from __future__ import annotations

import re

import pytest

from storage import history, parts, people, resets, retention
from storage.database import Database
from storage.shards import Shards

LARGE = {"messages", "discord_messages", "conversations", "settings", "server_settings", "resets", "reports"}
LARGE |= {"blocks", "quotes"}
STATEMENTS = (
    history.VISIBLE_TO_MODEL,
    history.VISIBLE_BEFORE_THREAD,
    history.ASKED_SINCE,
    parts._FORGET_OLD,
    people._DIRECT,
    people._BATCH,
    people._COUNT_ANSWERS,
    people._QUESTIONS,
    people._CHANGES,
    *people._ANONYMISE,
    *people._DELETE_OWN,
    "SELECT guild_id FROM blocks WHERE user_id = ?",
    resets._PURGE,
    retention._DELETE_OLD,
    *retention._DELETE_OLD_RECORDS,
    retention._DELETE_PRIVATE,
    *(
        statement.replace("{conversations}", conversations)
        for statement in (retention._MESSAGES, retention._SHELVES, retention._DELETE_CONVERSATIONS)
        for conversations in retention._CONVERSATIONS.values()
    ),
)


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_no_statement_looks_through_a_large_table(
    database: Database, kind: str, statement: str
) -> None:
    statement = statement.replace("{ours}", Shards(1, 2, 16).condition("guild_id"))
    is_numbered = re.findall(r"\?(\d)", statement)
    params = (1,) * (int(max(is_numbered)) if is_numbered else statement.count("?"))
    async with database.transaction() as transaction:
        if kind == "sqlite":
            rows = await transaction.fetch_all(f"EXPLAIN QUERY PLAN {statement}", params)
            scans = [re.match(r"SCAN (\w+)", row["detail"]) for row in rows]
        else:
            # Tables are empty here: with scans made dear, a plan that has one has no index to use.
            await transaction.fetch_all("SET LOCAL enable_seqscan = off")
            rows = await transaction.fetch_all(f"EXPLAIN {statement}", params)
            scans = [re.search(r"Seq Scan on (\w+)", row[0]) for row in rows]
    assert rows
    assert not {scan[1] for scan in scans if scan} & LARGE
