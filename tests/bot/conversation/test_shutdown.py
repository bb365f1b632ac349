"""The end of a run: answers get their grace, then they are marked, and nothing new is taken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot.conversation.jobs import Question
from bot.conversation.service import ChatService
from bot.errors import ShuttingDownError
from bot.parameters import ChatParameters
from storage.conversations import ConversationKind, ConversationRef, Conversations, MessageState
from storage.database import Database
from storage.settings import SettingsStore
from tests.fakes import RecordingView, Script, ScriptedEngine

HERE = ConversationRef(10, ConversationKind.CHANNEL, 1)


@asynccontextmanager
async def chatting(path: Path, script: Script, grace_s: float) -> AsyncIterator[ChatService]:
    async with await Database.open(path / "test.sqlite3") as database:
        yield ChatService(
            ScriptedEngine(scripts=[script]),
            Conversations(database),
            SettingsStore(database),
            ChatParameters(),
            shutdown_grace_s=grace_s,
        )


async def ask(chat: ChatService, discord_id: int) -> RecordingView:
    view = RecordingView()
    await chat.ask(Question(HERE, discord_id, discord_id, "Anna", "Hi", datetime.now(UTC)), view)
    return view


async def test_running_and_waiting_answers_end_within_the_grace(tmp_path: Path) -> None:
    async with chatting(tmp_path, Script(delay_s=0.02), grace_s=10) as chat:
        views = [await ask(chat, number) for number in (1, 2)]
        started = time.monotonic()
        await chat.close()
        assert time.monotonic() - started < 5
        assert [(await view.ending()).state for view in views] == [MessageState.COMPLETE] * 2


async def test_what_takes_longer_is_marked(tmp_path: Path) -> None:
    async with chatting(tmp_path, Script(("word ",), delay_s=0.01, loops=True), grace_s=0.2) as chat:
        views = [await ask(chat, number) for number in (1, 2)]
        await chat.close()
        for view in views:
            ending = await view.ending()
            assert ending.state is MessageState.INTERRUPTED
            assert ending.note is not None
            assert ending.note.startswith("Interrupted")


async def test_nothing_new_is_taken_meanwhile(tmp_path: Path) -> None:
    async with chatting(tmp_path, Script(delay_s=0.05), grace_s=10) as chat:
        view = await ask(chat, 1)
        closing = asyncio.create_task(chat.close())
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDownError):
            await ask(chat, 2)
        await closing
        assert (await view.ending()).state is MessageState.COMPLETE


@pytest.mark.parametrize("num_closes", [2, 3])
async def test_closing_again_waits_for_no_further_grace(tmp_path: Path, num_closes: int) -> None:
    async with chatting(tmp_path, Script(), grace_s=10) as chat:
        view = await ask(chat, 1)
        started = time.monotonic()
        await asyncio.gather(*(chat.close() for _ in range(num_closes)))
        assert time.monotonic() - started < 5
        assert (await view.ending()).state is MessageState.COMPLETE


async def test_with_nothing_to_wait_for_it_ends_at_once(tmp_path: Path) -> None:
    async with chatting(tmp_path, Script(), grace_s=60) as chat:
        started = time.monotonic()
        await chat.close()
        assert time.monotonic() - started < 1
