"""People's rights over their data: how long it is kept, what deletes it, and all of it as a file to read.

Knows how long things are kept and when to look; what is deleted how, the storage knows. No Discord.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from bot.tasks import Pause
from storage.conversations import Conversations
from storage.database import Database
from storage.errors import StorageError
from storage.people import KeptChange, KeptData, KeptQuestion, People
from storage.removals import Removals
from storage.retention import Retention
from storage.types import utc_now

_log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 3600.0
PRIVATE_TIME = timedelta(hours=1)
"""How long a private question may take: Discord shows its answer within a quarter of an hour."""
PAUSE_S = 0.05
"""Between two transactions, for whoever else uses the disk."""
PURGE_INTERVAL_S = 60.0
LOOK_S = 1.0
"""How often it is asked whether all engines have forgotten."""
NUM_ROUNDS_OTHERS_HAVE = 3
"""How long somebody else's deletions are left to them, so that the engines do not forget once for each."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """In days.

    retention_days: messages; 0 is until somebody deletes them. grace_days: what belongs to servers that we
    were removed from and to deleted channels.
    """

    retention_days: int = 0
    grace_days: int = 30


class Sweeper:
    """Deletes what is too old. `keeping` may be replaced meanwhile; `on_deleted` is told of deletions."""

    def __init__(
        self,
        retention: Retention,
        keeping: Keeping,
        on_deleted: Callable[[], None],
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.keeping = keeping
        self._retention = retention
        self._on_deleted = on_deleted
        self._now = now

    async def run(self) -> None:
        """Sweep for ever; what the storage cannot do now it may be able to do later."""
        while True:
            try:
                await self.sweep()
            except StorageError as error:
                _log.error("What is too old could not be deleted: %s", error)
            except Exception:  # noqa: BLE001 - the edge of a task: what is too old must go, whatever went wrong
                _log.exception("A sweep failed; the next one is in %.0f s.", SWEEP_INTERVAL_S)
            await asyncio.sleep(SWEEP_INTERVAL_S)

    async def sweep(self) -> None:
        """Delete everything that is due."""
        num_questions = await self._sweep_old()
        is_place_gone = await self._sweep_gone()
        num_private = await self._retention.delete_private(begun_before=self._now() - PRIVATE_TIME)
        if num_questions or is_place_gone or num_private:
            await self._retention.scrub()
            self._on_deleted()
            _log.info("Deleted what is not kept any longer: %d questions for their age", num_questions)

    async def _sweep_old(self) -> int:
        if not self.keeping.retention_days:
            return 0
        than = self._now() - timedelta(days=self.keeping.retention_days)
        num_questions = 0
        while num_deleted := await self._retention.delete_older(than):
            num_questions += num_deleted
            await asyncio.sleep(PAUSE_S)
        return num_questions

    async def _sweep_gone(self) -> bool:
        before = self._now() - timedelta(days=self.keeping.grace_days)
        is_any = False
        while await self._retention.delete_gone(gone_before=before):
            is_any = True
            await asyncio.sleep(PAUSE_S)
        return is_any


class KeepsCache(Protocol):
    """An engine, as far as it matters here."""

    def drop_idle_cache(self) -> None:
        """Forget what was computed of texts, except for answers in the making."""

    @property
    def is_forgetting(self) -> bool:
        """Whether a server of it could not be told yet."""


class Purging:
    """Deletes for good what resets put aside and nobody brought back in time.

    Then the engines let go of what they keep of deleted texts, too: at most once a round, since it makes the
    next turn of every conversation slower. What they have not let go of when we end, or are killed, is owed
    by the next start, and after some rounds by whoever else uses the database.
    """

    def __init__(
        self,
        conversations: Conversations,
        removals: Removals,
        undo_time: timedelta,
        engines: Iterable[KeepsCache],
    ) -> None:
        self.undo_time = undo_time
        self._conversations = conversations
        self._removals = removals
        self._engines = tuple(engines)
        self._has_deleted = False
        self._told: int | None = None
        """How many removals the engines were told of, until that is noted."""
        self._num_rounds_owed = NUM_ROUNDS_OTHERS_HAVE
        self._was_forgotten = 0
        self._pause = Pause()
        self.on_dropped: Callable[[], None] = lambda: None
        """Called when the engines have forgotten."""

    def note(self) -> None:
        """Something was deleted."""
        self._has_deleted = True

    async def drop_caches(self) -> None:
        """Let the engines forget now what they computed of texts some of which were deleted."""
        self._has_deleted = False
        try:
            told = (await self._removals.count()).num
        except StorageError:
            told = None  # then it stays owed
        for engine in self._engines:
            engine.drop_idle_cache()
        self.on_dropped()
        self._told = told
        self._pause.end()

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            try:
                await self._round()
            except StorageError as error:
                _log.warning("What was forgotten could not be deleted yet: %s", error)
            if self._has_deleted:
                await self.drop_caches()
            await self._until_next_round()

    async def _round(self) -> None:
        if await self._conversations.purge_resets(before=datetime.now(UTC) - self.undo_time):
            self.note()
        count = await self._removals.count()
        if not count.is_owed or (self._told is not None and count.num <= self._told):
            self._num_rounds_owed = 0
        elif self._num_rounds_owed < NUM_ROUNDS_OTHERS_HAVE:
            is_same = count.num_forgotten == self._was_forgotten
            self._num_rounds_owed = self._num_rounds_owed + 1 if is_same else 1
        else:
            self._num_rounds_owed = 0
            self.note()
        self._was_forgotten = count.num_forgotten

    async def _until_next_round(self) -> None:
        """Wait, and note meanwhile when all engines have forgotten."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + PURGE_INTERVAL_S
        while (left_s := end_s - loop.time()) > 0:
            if self._told is not None and not any(engine.is_forgetting for engine in self._engines):
                await self._note_forgotten(self._told)
            await self._pause.wait(left_s if self._told is None else min(left_s, LOOK_S))

    async def _note_forgotten(self, num: int) -> None:
        try:
            await self._removals.forgotten(num)
        except StorageError as error:
            _log.debug("That deleted texts are forgotten could not be noted yet: %s", error)
        else:
            if self._told == num:
                self._told = None


@dataclass(frozen=True, slots=True)
class Privacy:
    """The parts, each of which knows its own business."""

    people: People
    retention: Retention
    sweeper: Sweeper
    purging: Purging
    erases: bool = True
    """Whether what is deleted is gone from the disk, too; see `Database.erases`."""

    @classmethod
    def over(
        cls,
        database: Database,
        conversations: Conversations,
        keeping: Keeping,
        *,
        undo_time: timedelta,
        engines: Iterable[KeepsCache],
    ) -> Privacy:
        """Return the parts over one database. `engines` are those that may keep something of texts."""
        retention = Retention(database, shards=conversations.shards)
        purging = Purging(conversations, Removals(database), undo_time, engines)
        sweeper = Sweeper(retention, keeping, purging.note)
        return cls(People(database), retention, sweeper, purging, database.erases)


def to_json(user_id: int, data: KeptData, *, at: datetime) -> bytes:
    """Return all that is kept of a person as JSON. Ids are texts: many programs would round such numbers."""
    return json.dumps(
        {
            "about": "All that this bot keeps about you. Times are UTC.",
            "user_id": str(user_id),
            "exported_at": at.isoformat(),
            "opted_out_at": None if data.opted_out_at is None else data.opted_out_at.isoformat(),
            "blocked_on_servers": [str(guild_id) for guild_id in data.blocked_on],
            "questions": [_question(question) for question in data.questions],
            "summaries_with_your_messages": [
                {
                    "server_id": _id(summary.guild_id),
                    "channel_id": _id(summary.channel_id),
                    "at": summary.created_at.isoformat(),
                    "text": summary.content,
                }
                for summary in data.summaries
            ],
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
