"""Compares what a Discord shows with what a bot's database holds: for each answer, and for nothing else."""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bot.delivery.delivery import MAX_PARTS
from bot.delivery.render import render
from tests.bot.operations.local_discord import DiscordPlace

_NOTE = re.compile(r"(^|\n)-# [^\n]*\Z")
_ANSWERS = """
SELECT id, content, state FROM messages WHERE role = 'assistant' AND superseded_by IS NULL ORDER BY id"""
_PARTS = "SELECT message_id, discord_id FROM discord_messages ORDER BY message_id, position"


def differences(place: DiscordPlace, database: Path) -> list[str]:
    """Return in words whatever is not shown as it is stored; nothing where all is well."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return list(_differences(place, connection))


def _differences(place: DiscordPlace, connection: sqlite3.Connection) -> Iterator[str]:
    recorded: dict[int, list[int]] = defaultdict(list)
    rows = connection.execute(
        "SELECT message_id, discord_id FROM discord_messages ORDER BY message_id, position"
    )
    for row in rows:
        recorded[row["message_id"]].append(row["discord_id"])
    for row in connection.execute("SELECT answer_id FROM unshown_endings"):
        yield f"answer {row['answer_id']}: its ending is still owed"
    owner: dict[int, int] = {}
    for row in connection.execute(_ANSWERS):
        parts = recorded[row["id"]]
        owner |= dict.fromkeys(parts, row["id"])
        yield from (f"answer {row['id']}: {text}" for text in _of_answer(place, row, parts))
    yield from _of_places(place, owner)


def _of_answer(place: DiscordPlace, row: sqlite3.Row, parts: Sequence[int]) -> Iterator[str]:
    if row["state"] == "pending":
        yield "it is pending"
    if missing := [part for part in parts if part not in place.messages]:
        yield f"messages {missing} are not there"
        return
    shown = [said(place.messages[part]) for part in parts]
    if sorted(parts) != list(parts):
        yield "its parts are out of order"
    wanted = render(row["content"], final=True)[:MAX_PARTS]
    if not shown:
        yield "nothing of it is shown"
    elif not _shows(shown, wanted):
        yield f"it shows {shown} and not {wanted}"


def _shows(shown: list[str], wanted: list[str]) -> bool:
    """Tell whether messages say what is wanted, and perhaps a note below it."""
    if shown == wanted:
        return True
    rest = _NOTE.sub("", shown[-1])
    return rest != shown[-1] and [*shown[:-1], *([rest] if rest else [])] == wanted


def _of_places(place: DiscordPlace, owner: dict[int, int]) -> Iterator[str]:
    """Look at every message: whose it is, what it stands between, and that nothing can be stopped."""
    for channel_id in place.channel_ids:
        ours = [int(message["id"]) for message in place.ours(channel_id)]
        closed: set[int] = set()
        last = 0
        for message_id in ours:
            answer_id = owner.get(message_id, 0)
            if not answer_id:
                yield f"message {message_id} is nobody's: {said(place.messages[message_id])[:80]!r}"
            elif answer_id != last:
                if answer_id in closed:
                    yield f"answer {answer_id}: another one stands between its parts"
                closed.add(last)
            last = answer_id or last
            if any(":stop:" in custom_id for custom_id in buttons(place.messages[message_id])):
                yield f"message {message_id} has a Stop button"


def said(message: dict[str, Any]) -> str:
    """Return what a message says."""
    text: str = message["content"]
    return text


def buttons(message: dict[str, Any]) -> list[str]:
    """Return what a message's buttons carry."""
    return [item["custom_id"] for row in message["components"] for item in row["components"]]
