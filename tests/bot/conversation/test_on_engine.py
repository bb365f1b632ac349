"""The service on the real engine, where that holds one answer: two servers, one of them busy."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot.conversation.jobs import Question
from bot.conversation.service import ChatService
from bot.parameters import ChatParameters, Guidance, GuidanceChoice
from engine.engine import Engine, EngineOptions
from engine.types import SamplingParams
from engine.waiting.room import WaitingRoom
from storage.conversations import ConversationKind, ConversationRef, Conversations
from storage.database import Database
from storage.settings import SettingsStore
from tests.engine.releases import release
from tests.engine.tiny_model import make_tiny_model
from tests.fakes import RecordingView

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NUM_NEW = 8


class Watched(RecordingView):
    """Notes in `began` when its answer begins."""

    def __init__(self, name: str, began: list[str]) -> None:
        super().__init__()
        self._name = name
        self._began = began

    def working(self) -> None:
        self._began.append(self._name)


@pytest.mark.parametrize("holds", ["the KV of one long prompt, as with 7B", "one answer, as a release does"])
async def test_the_quiet_server_is_next_and_told_so(tmp_path: Path, holds: str) -> None:
    is_release = holds.startswith("one")
    options = EngineOptions(num_threads=1, max_concurrent=8, kv_cache_mb=1)
    folder = release() if is_release else make_tiny_model(tmp_path / "tiny", num_kv_heads=4)
    text = "Hi" if is_release else "Why is the sea salty? " * 25
    parameters = ChatParameters(
        SamplingParams(max_new_tokens=NUM_NEW, seed=1),
        system_prompt="",
        guidance=Guidance(GuidanceChoice.NONE),
    )
    async with (
        await Engine.open(folder, options) as engine,
        await Database.open(tmp_path / "test.sqlite3") as database,
    ):
        room = WaitingRoom(lambda: engine.load)
        began: list[str] = []
        async with ChatService(
            engine, Conversations(database), SettingsStore(database), parameters, room=room
        ) as chat:

            async def ask(name: str, server: int, channel: int) -> Watched:
                ref = ConversationRef(channel, ConversationKind.CHANNEL, server)
                view = Watched(name, began)
                await chat.ask(Question(ref, channel, server, "Somebody", text, NOW), view)
                await view.told.wait()
                return view

            room.is_paused = True  # until all have come
            views = [await ask(f"flood {number}", 1, 100 + number) for number in range(8)]
            views.append(await ask("quiet", 2, 200))
            most = 0
            room.resume()
            while not all(view.ended.is_set() for view in views):
                most = max(most, engine.load.num_requests)
                await asyncio.sleep(0.001)
    assert most == 1
    assert began == ["flood 0", "quiet", *(f"flood {number}" for number in range(1, 8))]
    assert views[-1].places == [9, 1]
    assert [len(view.endings) for view in views] == [1] * 9
