"""Compares what a Discord shows with what a bot's database holds: for each answer, and for nothing else."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from bot.delivery.delivery import MAX_PARTS
from bot.delivery.render import render
from tests.bot.operations.local_discord import DiscordPlace

_NOTE = re.compile(r"(^|\n)-# [^\n]*\Z")
_REFUSAL = re.compile(r"waiting here already|Please ask again in a minute|Too many people are asking")
_ANSWERS = """
SELECT id, content, state FROM messages
WHERE role = 'assistant' AND superseded_by IS NULL AND id > ? AND id <= ? ORDER BY id"""
_OWED = """
SELECT answer_id FROM unshown_endings JOIN messages ON messages.id = answer_id
WHERE superseded_by IS NULL AND answer_id > ? AND answer_id <= ?"""
_PARTS = "SELECT discord_id FROM discord_messages WHERE message_id = ? ORDER BY position"
_OWNER = "SELECT message_id FROM discord_messages WHERE discord_id = ?"
_LARGEST = 2**62


class Difference(NamedTuple):
    """What is not shown as it is stored, in words; answer 0 where a message is of no answer."""

    answer_id: int
    text: str


def differences(
    place: DiscordPlace, database: Path, *, above: int = 0, up_to: int = _LARGEST
) -> list[Difference]:
    """Return whatever is not shown as it is stored; nothing where all is well.

    Of answers with ids in these bounds. Without an upper one all messages of the bot are looked at too.
    """
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return list(_differences(place, connection, above, up_to))


def _differences(
    place: DiscordPlace, connection: sqlite3.Connection, above: int, up_to: int
) -> Iterator[Difference]:
    for row in connection.execute(_OWED, (above, up_to)):
        yield Difference(row["answer_id"], "its ending is still owed")
    for row in connection.execute(_ANSWERS, (above, up_to)):
        parts = [part["discord_id"] for part in connection.execute(_PARTS, (row["id"],))]
        yield from (Difference(row["id"], text) for text in _of_answer(place, row, parts))
    if up_to == _LARGEST:
        yield from _of_places(place, connection)


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


def _of_places(place: DiscordPlace, connection: sqlite3.Connection) -> Iterator[Difference]:
    """Look at every message: whose it is, what it stands between, and that nothing can be stopped."""
    for channel_id in place.channel_ids:
        closed: set[int] = set()
        last = 0
        for message in place.ours(channel_id):
            row = connection.execute(_OWNER, (int(message["id"]),)).fetchone()
            answer_id = 0 if row is None else row["message_id"]
            if not answer_id and _REFUSAL.search(said(message)) is None:
                yield Difference(0, f"message {message['id']} is nobody's: {said(message)[:80]!r}")
            if answer_id and answer_id != last:
                if answer_id in closed:
                    yield Difference(answer_id, "another one stands between its parts")
                closed.add(last)
                last = answer_id
            if any(":stop:" in custom_id for custom_id in buttons(message)):
                yield Difference(answer_id, f"message {message['id']} has a Stop button")


def said(message: dict[str, Any]) -> str:
    """Return what a message says."""
    text: str = message["content"]
    return text


def buttons(message: dict[str, Any]) -> list[str]:
    """Return what a message's buttons carry."""
    return [item["custom_id"] for row in message["components"] for item in row["components"]]
