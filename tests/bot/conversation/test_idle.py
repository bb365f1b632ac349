"""What is done while nobody asks: the next prompts are there before they are needed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.conversation import idle
from bot.conversation.idle import likeliest
from bot.conversation.jobs import Question
from bot.conversation.prompting import TURNS_AHEAD, next_prefixes
from bot.conversation.service import ChatService
from bot.parameters import ChatParameters
from engine.types import Prompt
from storage.conversations import ConversationKind, ConversationRef, Conversations
from storage.database import Database
from storage.settings import SettingsStore
from storage.types import Asked
from tests.bot.conversation.test_strides import SYSTEM, Past
from tests.fakes import RecordingView, ScriptedEngine

ROOM = 500


@dataclass
class Stage:
    """A service that works ahead."""

    chat: ChatService
    engine: ScriptedEngine
    conversations: Conversations
    is_free: bool = True
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    last: RecordingView = field(default_factory=RecordingView)
    ago: timedelta = timedelta()
    """How long ago questions are asked."""

    async def ask(self, text: str, channel_id: int = 10) -> None:
        """Ask, and wait for the answer."""
        self.last = RecordingView()
        ref = ConversationRef(channel_id, ConversationKind.CHANNEL, 1)
        question = Question(ref, next(self.numbers), 1, "Anna", text, datetime.now(UTC) - self.ago)
        await self.chat.ask(question, self.last)
        await self.last.ending()

    async def rested(self) -> list[bytes]:
        """Wait until there is nothing more to do ahead; return what was computed since the last time."""
        await until(lambda: self.chat.idle.is_done)
        warmed = [bytes(ids) for ids in self.engine.warmed]
        self.engine.warmed.clear()
        return warmed

    async def is_ready_for(self, text: str, channel_id: int = 10) -> bool:
        """Tell whether all but the question is computed ahead of a prompt."""
        warmed = await self.rested()
        await self.ask(text, channel_id)
        dialog = self.engine.dialogs[-1]
        prompt = bytes(self.engine.fit_prompt(dialog, 10_000).ids)
        return any(prompt.startswith(one) and len(prompt) - len(one) <= len(text) for one in warmed)


@contextlib.asynccontextmanager
async def working(path: Path, engine: ScriptedEngine | None = None) -> AsyncIterator[Stage]:
    async with await Database.open(path) as database:
        engine, conversations = engine or ScriptedEngine(), Conversations(database)
        defaults = ChatParameters(system_prompt=SYSTEM, max_history_tokens=ROOM)
        chat = ChatService(
            engine,
            conversations,
            SettingsStore(database),
            defaults,
            may_work_ahead=lambda: here.is_free,
        )
        here = Stage(chat, engine, conversations)
        database.on_written = chat.note_change
        async with chat:
            yield here


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "QUIET_S", 0.0)
    monkeypatch.setattr(idle, "RETRY_S", 0.01)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with working(tmp_path / "idle.sqlite3") as stage:
        yield stage


async def test_the_next_prompt_is_there_after_an_answer_and_after_a_restart(
    stage: Stage, tmp_path: Path
) -> None:
    await stage.ask("Hi")
    assert await stage.is_ready_for("And now?")
    async with working(tmp_path / "idle.sqlite3") as again:
        again.numbers = itertools.count(100)
        assert await again.is_ready_for("And again?")


async def test_at_the_limit_a_restart_changes_nothing_of_the_beginning(stage: Stage, tmp_path: Path) -> None:
    for _ in range(20):
        await stage.ask("q" * 30)
    beginning = (await stage.rested())[0]
    async with working(tmp_path / "idle.sqlite3") as again:
        assert (await again.rested())[0] == beginning
        again.numbers = itertools.count(100)
        await again.ask("q")
        newest = (await again.conversations.recent(1, 1))[0]
        assert newest.view_from
        assert bytes(again.engine.fit_prompt(again.engine.dialogs[-1], 10_000).ids).startswith(beginning)


async def test_the_next_prompt_is_there_before_every_stride_and_after_it(stage: Stage) -> None:
    await stage.ask("q" * 30)
    views = set()
    for _ in range(30):
        assert await stage.is_ready_for("q" * 30)
        newest = (await stage.conversations.recent(1, 1))[0]
        views.add(newest.view_from)
    assert len(views) > 3


async def test_the_next_prompt_is_there_after_every_change_of_the_past(stage: Stage) -> None:
    ref = ConversationRef(10, ConversationKind.CHANNEL, 1)
    for text in ("one", "two", "three"):
        await stage.ask(text)
    await stage.chat.regenerate(10, stage.last.answer_id, again := RecordingView())
    await again.ending()
    assert await stage.is_ready_for("four")
    await stage.chat.steering.undo(ref, lambda _: True)
    assert await stage.is_ready_for("five")
    await stage.chat.upkeep.message_deleted(10, 2)
    assert await stage.is_ready_for("six")
    await stage.chat.upkeep.question_edited(10, 3, "Three!")
    assert await stage.is_ready_for("seven")
    await stage.chat.preferences.set(ref, "max_history_tokens", "128", by_user_id=1)
    assert await stage.is_ready_for("eight")
    await stage.chat.system_prompts.set(ref, "Be short.", by_user_id=1)
    assert await stage.is_ready_for("nine")
    assert stage.engine.dialogs[-1][0].content.startswith("Be short.")
    await stage.rested()
    reset = await stage.chat.memory.reset(ref, by_user_id=1, at=datetime.now(UTC))
    assert await stage.rested() == []
    await stage.chat.memory.undo_reset(reset, by_user_id=1, at=datetime.now(UTC))
    assert await stage.is_ready_for("ten")
    stage.chat.note_change()  # as when the engine forgot, or is another one
    assert await stage.is_ready_for("eleven")


async def test_where_nobody_asked_for_long_nothing_is_kept_ready(stage: Stage) -> None:
    stage.ago = idle.FOR_LONG + timedelta(minutes=1)
    await stage.ask("Hi")
    assert await stage.rested() == []
    stage.ago = timedelta()
    await stage.ask("Good morning", channel_id=20)
    assert {b"Hi" in warmed for warmed in await stage.rested()} == {False, True}, "all of them again"


async def test_it_is_given_up_when_somebody_asks_and_taken_up_again(stage: Stage) -> None:
    await stage.ask("Hi")
    await stage.rested()
    stage.engine.warm_s = 60.0
    stage.chat.note_change()
    await until(lambda: bool(stage.engine.warmings))
    stage.engine.warmed.clear()
    await stage.ask("Now")
    assert stage.engine.warmed == []
    stage.engine.warm_s = 0.0
    await until(lambda: len(stage.engine.warmed) > 0)


async def test_nothing_is_done_while_others_need_the_machine(stage: Stage) -> None:
    stage.is_free = False
    await stage.ask("Hi")
    await asyncio.sleep(0.1)
    assert stage.engine.warmed == []
    stage.is_free = True
    await until(lambda: len(stage.engine.warmed) > 0)


async def test_where_there_is_no_room_less_likely_conversations_are_not_tried(stage: Stage) -> None:
    for channel_id in range(10, 15):
        await stage.ask("Hi", channel_id)
    await stage.rested()
    stage.engine.has_idle_room = False
    stage.chat.note_change()
    await until(lambda: stage.engine.num_refused > 0)
    await stage.rested()
    assert stage.engine.num_refused == 1


async def test_no_more_is_computed_than_the_engine_can_keep_and_the_likeliest_first(tmp_path: Path) -> None:
    engine = ScriptedEngine(max_kv_tokens=400, max_requests=1)
    async with working(tmp_path / "bounded.sqlite3", engine) as stage:
        for channel_id in range(10, 20):
            await stage.ask(f"Hi in {channel_id} {'x' * 40}", channel_id)
        await stage.rested()
        stage.chat.note_change()
        warmed = await stage.rested()
        assert 2 <= len(warmed) <= 5
        assert sum(map(len, warmed)) <= 400
        assert b"Hi in 19" in warmed[0]
        assert b"Hi in 18" in warmed[1]


@pytest.mark.parametrize(
    ("minutes", "channels"),
    [(0, ["20", "10", "20"]), (180, ["20", "20", "10"])],
    ids=["both now", "one long ago"],
)
async def test_what_a_question_may_need_besides_comes_after_what_others_are_as_likely_to_need(
    stage: Stage, minutes: int, channels: list[str]
) -> None:
    warmed = list[bytes]()
    stage.ago = timedelta(minutes=minutes)
    for _ in range(8):
        await stage.ask(f"in 10 {'q' * 20}", 10)
    stage.ago = timedelta()
    for _ in range(30):
        await stage.ask(f"in 20 {'q' * 20}", 20)
        await stage.rested()
        stage.chat.note_change()
        warmed = await stage.rested()
        if sum(b"in 20" in one for one in warmed) == 2:  # a stride is near
            break
    assert ["20" if b"in 20" in one else "10" for one in warmed][:3] == channels


def test_where_a_stride_leads_is_expected_some_turns_before_it() -> None:
    past, before = Past(limit=2000), list[list[Prompt]]()
    view, num_strides = 0, 0
    for _ in range(120):
        before.append([Prompt(())])
        if past.messages:
            before[-1] = next_prefixes(past.engine, past.messages, past.system, past.limit)
        fitted = past.ask("q" * 20)
        if fitted.num_left_out and fitted.view_from != view:
            expected = before[-TURNS_AHEAD][-1].ids
            assert len(expected) > 500
            assert fitted.prompt.ids[: len(expected)] == expected
            view, num_strides = fitted.view_from, num_strides + 1
    assert num_strides > 2


async def test_without_leave_nothing_is_done(tmp_path: Path) -> None:
    async with await Database.open(tmp_path / "off.sqlite3") as database:
        engine, conversations = ScriptedEngine(), Conversations(database)
        async with ChatService(engine, conversations, SettingsStore(database), ChatParameters()) as chat:
            await Stage(chat, engine, conversations).ask("Hi")
            await asyncio.sleep(0.05)
    assert engine.warmed == []


async def test_private_questions_are_not_gone_on_with(stage: Stage) -> None:
    private = ConversationRef(77, ConversationKind.DIRECT, 1)
    view = RecordingView()
    await stage.chat.ask(Question(private, 77, 1, "Anna", "Psst", datetime.now(UTC)), view)
    await view.ending()
    assert await stage.rested() == []


NOW = datetime(2026, 1, 2, tzinfo=UTC)


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


def test_the_likeliest_conversation_goes_on_now_or_was_asked_much_of_late() -> None:
    def order(*asked: Asked) -> list[int]:
        return list(likeliest(asked, NOW))

    assert order(Asked(2, 1, ago(2)), Asked(1, 1, ago(1))) == [1, 2]
    assert order(Asked(1, 1, ago(60)), Asked(2, 700, ago(600))) == [2, 1], "busy all week"
    assert order(Asked(1, 1, ago(1)), Asked(2, 700, ago(600))) == [1, 2], "but this one is now"
    assert order(Asked(1, 1, NOW + timedelta(days=1))) == [1], "a clock may be wrong"
    assert order() == []


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 150), st.integers(0, 300)), min_size=1, max_size=25),
    limit=st.integers(400, 1200),
    next_length=st.integers(1, 150),
)
def test_one_of_the_beginnings_is_that_of_the_next_prompt(
    lengths: list[tuple[int, int]], limit: int, next_length: int
) -> None:
    past = Past(limit=limit)
    for asked, answered in lengths:
        past.ask("q" * asked, "a" * answered)
    prefixes = [one.ids for one in next_prefixes(past.engine, past.messages, past.system, limit)]
    longest = max(asked for asked, _ in lengths[-8:])
    question = "n" * min(next_length, longest)
    ids = past.fit(question).prompt.ids
    assert any(ids[: len(one)] == one and len(one) + len(question) >= len(ids) for one in prefixes)
    assert len(prefixes) <= 2


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the engine's side of it has no event to wait for
            await asyncio.sleep(0.01)
