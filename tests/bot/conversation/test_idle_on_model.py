"""What is done while nobody asks changes no answer, on a tiny real model."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot.conversation import idle
from bot.conversation.jobs import Question
from bot.conversation.service import ChatService
from bot.parameters import ChatParameters
from engine.engine import Engine, EngineOptions
from engine.types import Completion
from storage.conversations import ConversationKind, ConversationRef, Conversations, MessageState
from storage.database import Database
from storage.settings import SettingsStore
from tests.bot.conversation.test_idle import until
from tests.engine.tiny_model import make_tiny_model
from tests.fakes import RecordingView

CHANNELS = (10, 20)
NUM_TURNS = 24


@dataclass
class Talk:
    """A service over a real model, and what its answers took."""

    chat: ChatService
    works_ahead: bool
    taken: list[Completion] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def ask(self, channel_id: int) -> str:
        """Ask; return the answer. Where work is done ahead, it is cut short every third time."""
        number, view = next(self.numbers), RecordingView()
        ref = ConversationRef(channel_id, ConversationKind.CHANNEL, 1)
        text = f"Question {number} about water and salt"
        await self.chat.ask(Question(ref, number, 1, "Anna", text, datetime.now(UTC)), view)
        ending = await view.ending()
        if self.works_ahead and number % 3:
            await until(lambda: self.chat.idle.is_done)
        return ending.text


@contextlib.asynccontextmanager
async def talking(folder: Path, path: Path, *, works_ahead: bool) -> AsyncIterator[Talk]:
    def answered(_state: MessageState, completion: Completion | None) -> None:
        assert completion is not None
        talk.taken.append(completion)

    options = EngineOptions(num_threads=1, max_concurrent=4, kv_cache_mb=2)
    async with await Engine.open(folder, options) as engine, await Database.open(path) as database:
        defaults = ChatParameters(system_prompt="Be kind.", max_history_tokens=300)
        chat = ChatService(
            engine,
            Conversations(database),
            SettingsStore(database),
            defaults.with_values({"max_new_tokens": 12, "seed": 7, "temperature": 1.0}),
            may_work_ahead=(lambda: True) if works_ahead else None,
            on_answered=answered,
        )
        database.on_written = chat.note_change
        talk = Talk(chat, works_ahead)
        async with chat:
            yield talk


async def test_answers_with_a_seed_are_the_same_with_work_done_ahead_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "QUIET_S", 0.0)
    folder = await asyncio.to_thread(make_tiny_model, tmp_path / "tiny")
    texts, kept = [], []
    for works_ahead in (True, False):
        async with talking(folder, tmp_path / f"{works_ahead}.sqlite3", works_ahead=works_ahead) as talk:
            texts.append([await talk.ask(CHANNELS[turn % 2]) for turn in range(NUM_TURNS)])
            kept.append(sum(completion.usage.num_cached_tokens for completion in talk.taken))
            views = [m.view_from for m in await talk.chat.conversations.recent(1, 100)]
            assert len(set(views) - {None}) > 1, "some of it was let go"
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > NUM_TURNS // 2
    assert kept[0] > kept[1], "what was done ahead was of use"
