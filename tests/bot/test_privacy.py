"""Privacy: what is due goes and what is not stays, whatever fails; and all that is kept is in the export."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bot import privacy as privacy_module
from bot.privacy import Keeping, Sweeper, fitting, to_json
from storage import retention as retention_module
from storage.conversations import ConversationKind, ConversationRef, Conversations
from storage.database import Database
from storage.people import KeptAnswer, KeptChange, KeptData, KeptQuestion, KeptSummary
from storage.retention import Place, Retention
from tests.storage.conftest import NOW
from tests.storage.steps import CHANNEL, asked_and_answered


def _ignore() -> None: ...


async def num_kept(tmp_path: Path, keeping: Keeping, *, age_days: float, is_gone: bool = False) -> int:
    """Return how many of three questions are left after a sweep when they are so old."""
    async with await Database.open(tmp_path / "db.sqlite3") as database:
        conversations, retention = Conversations(database), Retention(database, now=lambda: NOW)
        for number in range(3):
            await asked_and_answered(conversations, 10 * number + 1)
        if is_gone:
            await retention.mark_gone(Place.SERVER, 7)
        await Sweeper(retention, keeping, _ignore, now=lambda: NOW + timedelta(days=age_days)).sweep()
        return len(await conversations.recent(await conversations.open(CHANNEL), 100)) // 2


@pytest.mark.parametrize(
    ("retention_days", "age_days", "kept"), [(0, 9999, 3), (7, 6.9, 3), (7, 7.1, 0), (1, 1.1, 0)]
)
async def test_messages_are_kept_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retention_days: int, age_days: float, kept: int
) -> None:
    monkeypatch.setattr(retention_module, "BATCH_SIZE", 2)
    assert await num_kept(tmp_path, Keeping(retention_days=retention_days), age_days=age_days) == kept


@pytest.mark.parametrize(("grace_days", "age_days", "kept"), [(30, 29, 3), (30, 30, 0), (0, 0, 0)])
async def test_what_is_gone_has_its_grace(
    tmp_path: Path, grace_days: int, age_days: float, kept: int
) -> None:
    assert await num_kept(tmp_path, Keeping(grace_days=grace_days), age_days=age_days, is_gone=True) == kept


async def test_a_storage_that_fails_is_logged_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(privacy_module, "SWEEP_INTERVAL_S", 0.001)
    database = await Database.open(tmp_path / "db.sqlite3")
    await database.close()
    with caplog.at_level(logging.ERROR):
        running = asyncio.create_task(Sweeper(Retention(database), Keeping(), _ignore).run())
        while len(caplog.records) < 2:  # noqa: ASYNC110 - a log record is no event
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_fault_does_not_end_the_sweeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(privacy_module, "SWEEP_INTERVAL_S", 0.001)
    num_sweeps = 0

    def now() -> datetime:
        nonlocal num_sweeps
        num_sweeps += 1
        raise ArithmeticError

    async with await Database.open(tmp_path / "db.sqlite3") as database:
        with caplog.at_level(logging.ERROR):
            running = asyncio.create_task(Sweeper(Retention(database), Keeping(), _ignore, now=now).run())
            while num_sweeps < 3:  # noqa: ASYNC110 - nothing tells of a sweep
                await asyncio.sleep(0.001)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert "A sweep failed" in caplog.text


async def test_a_private_question_that_was_left_behind_goes_after_an_hour(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "db.sqlite3") as database:
        conversations = Conversations(database, now=lambda: NOW)
        retention, told = Retention(database), list[str]()
        await asked_and_answered(conversations, 900, ref=ConversationRef(900, ConversationKind.DIRECT, 7))
        ages_h = [0.9, 1.1]
        now = lambda: NOW + timedelta(hours=ages_h[0])  # noqa: E731
        sweeper = Sweeper(retention, Keeping(), lambda: told.append("deleted"), now=now)
        for num_left in (2, 0):
            await sweeper.sweep()
            ages_h.reverse()
            assert len(await database.fetch_all("SELECT id FROM messages")) == num_left
        assert told == ["deleted"]
        assert await database.fetch_all("SELECT id FROM conversations") == []


AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DATA = KeptData(
    questions=(
        KeptQuestion(7, 2**60 + 1, "channel", "Anna", "Größe?", AT, (KeptAnswer("complete", "42", AT),)),
    ),
    changes=(KeptChange(None, 900, "top_k", "3", AT),),
    opted_out_at=None,
    blocked_on=(8,),
    summaries=(KeptSummary(7, 9, "Anna asked.", AT),),
)


def test_the_file_is_json_with_ids_as_texts() -> None:
    read = json.loads(to_json(5, DATA, at=AT))
    assert (read["user_id"], read["blocked_on_servers"], read["opted_out_at"]) == ("5", ["8"], None)
    assert read["questions"] == [
        {
            "server_id": "7",
            "channel_id": str(2**60 + 1),
            "place": "channel",
            "asked_at": "2026-01-02T03:04:05+00:00",
            "your_name": "Anna",
            "text": "Größe?",
            "answers": [{"at": "2026-01-02T03:04:05+00:00", "state": "complete", "text": "42"}],
        }
    ]
    assert read["summaries_with_your_messages"] == [
        {"server_id": "7", "channel_id": "9", "at": "2026-01-02T03:04:05+00:00", "text": "Anna asked."}
    ]
    assert read["settings_you_changed"][0] == {
        "server_id": None,
        "channel_id": "900",
        "setting": "top_k",
        "value": 3,
        "at": "2026-01-02T03:04:05+00:00",
    }


def test_a_file_that_is_too_long_is_packed_and_one_that_stays_so_is_none() -> None:
    content = b"x" * 10_000
    assert fitting("a.json", content, 10_000) == ("a.json", content)
    found = fitting("a.json", content, 500)
    assert found is not None
    assert found[0] == "a.json.gz"
    assert gzip.decompress(found[1]) == content
    assert fitting("a.json", content, 10) is None
