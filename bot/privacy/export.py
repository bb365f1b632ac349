"""All that is kept of a person, as a JSON file they can read. Pure."""

from __future__ import annotations

import gzip
import json
from datetime import datetime
from typing import Any

from storage.people import KeptChange, KeptData, KeptQuestion


def to_json(user_id: int, data: KeptData, *, at: datetime) -> bytes:
    """Return the file. Ids are texts: as numbers, many programs would round them."""
    return json.dumps(
        {
            "about": "All that this bot keeps about you. Times are UTC.",
            "user_id": str(user_id),
            "exported_at": at.isoformat(),
            "opted_out_at": None if data.opted_out_at is None else data.opted_out_at.isoformat(),
            "blocked_on_servers": [str(guild_id) for guild_id in data.blocked_on],
            "questions": [_question(question) for question in data.questions],
            "settings_you_changed": [_change(change) for change in data.changes],
        },
        ensure_ascii=False,
        indent=2,
    ).encode("utf-8", "replace")


def fitting(name: str, content: bytes, max_bytes: int) -> tuple[str, bytes] | None:
    """Return name and content of a file of at most `max_bytes`, packed if need be; None if nothing helps."""
    if len(content) <= max_bytes:
        return name, content
    packed = gzip.compress(content)
    return (f"{name}.gz", packed) if len(packed) <= max_bytes else None


def _question(question: KeptQuestion) -> dict[str, Any]:
    return {
        "server_id": _id(question.guild_id),
        "channel_id": str(question.channel_id),
        "place": question.kind,
        "asked_at": question.created_at.isoformat(),
        "your_name": question.author_name,
        "text": question.content,
        "answers": [
            {"at": answer.created_at.isoformat(), "state": answer.state, "text": answer.content}
            for answer in question.answers
        ],
    }


def _change(change: KeptChange) -> dict[str, Any]:
    return {
        "server_id": _id(change.guild_id),
        "channel_id": _id(change.channel_id),
        "setting": change.key,
        "value": json.loads(change.value),
        "at": change.changed_at.isoformat(),
    }


def _id(discord_id: int | None) -> str | None:
    return None if discord_id is None else str(discord_id)
