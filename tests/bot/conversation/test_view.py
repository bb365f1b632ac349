"""Where the model's view of a conversation begins: stored, said once, and shown in the transcript."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bot.conversation.jobs import Question
from bot.conversation.prompting import last_view
from bot.conversation.service import ChatService
from bot.language.phrases import phrase
from bot.on_discord.asking.history import Line, export, pages
from bot.parameters import ChatParameters
from engine.types import FinishReason
from storage.conversations import ConversationKind, ConversationRef, Conversations, Message, MessageState
from storage.database import Database
from storage.settings import SettingsStore
from tests.bot.conversation.test_strides import Past
from tests.fakes import RecordingView, Script, ScriptedEngine

HERE = ConversationRef(10, ConversationKind.CHANNEL, 1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOST = phrase("answer.view_begins")
ROOM = 330
"""Tokens: three turns of `Talk.ask`."""


@dataclass
class Talk:
    """One conversation that outgrows what the model sees with the fourth question."""

    chat: ChatService
    engine: ScriptedEngine
    conversations: Conversations
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    last: RecordingView = field(default_factory=RecordingView)

    async def ask(self) -> str | None:
        """Ask one more question; return what is said below the answer."""
        number = next(self.numbers)
        content = f"question {number} {'x' * 60}"
        self.last = RecordingView()
        await self.chat.ask(Question(HERE, number, 1, "Anna", content, NOW), self.last)
        return (await self.last.ending()).note

    async def regenerate(self) -> str | None:
        """Have the last answer made anew; return what is said below it."""
        last, self.last = self.last, RecordingView()
        await self.chat.regenerate(HERE.channel_id, last.answer_id, self.last)
        return (await self.last.ending()).note

    def num_seen(self) -> int:
        """Return how many questions the model saw the last time."""
        return sum(message.role == "user" for message in self.engine.dialogs[-1])

    async def transcript(self) -> list[Message]:
        return await self.chat.memory.transcript(HERE, 100)


@contextlib.asynccontextmanager
async def talking(path: Path, first_number: int = 1) -> AsyncIterator[Talk]:
    async with await Database.open(path) as database:
        engine, conversations = ScriptedEngine(), Conversations(database)
        defaults = ChatParameters(system_prompt="Be kind.", max_history_tokens=ROOM)
        async with ChatService(engine, conversations, SettingsStore(database), defaults) as chat:
            yield Talk(chat, engine, conversations, itertools.count(first_number))


@pytest.fixture
async def talk(tmp_path: Path) -> AsyncIterator[Talk]:
    async with talking(tmp_path / "talk.sqlite3") as talk:
        yield talk


async def test_it_is_said_once_when_the_beginning_gets_out_of_sight(talk: Talk) -> None:
    assert [await talk.ask() for _ in range(3)] == [None] * 3
    assert talk.num_seen() == 3
    assert await talk.ask() == LOST
    assert talk.num_seen() == 2, "half of the room is free again"
    assert [await talk.ask() for _ in range(3)] == [None] * 3
    views = [message.view_from for message in await talk.transcript() if message.author_id is None]
    assert views == [None, None, None, 5, 5, 9, 9]


async def test_it_is_not_said_again_after_a_restart(tmp_path: Path) -> None:
    async with talking(tmp_path / "talk.sqlite3") as talk:
        assert [await talk.ask() for _ in range(4)] == [None, None, None, LOST]
    async with talking(tmp_path / "talk.sqlite3", 5) as talk:
        assert await talk.ask() is None
        assert talk.num_seen() == 3


async def test_it_is_said_again_after_a_reset_but_not_where_that_is_undone(talk: Talk) -> None:
    assert [await talk.ask() for _ in range(4)][-1] == LOST
    reset = await talk.chat.memory.reset(HERE, by_user_id=1, at=datetime.now(UTC))
    assert [await talk.ask() for _ in range(4)] == [None, None, None, LOST]
    second = await talk.chat.memory.reset(HERE, by_user_id=1, at=datetime.now(UTC))
    assert await talk.ask() is None
    assert reset.num_messages == second.num_messages
    await talk.chat.memory.undo_reset(second, by_user_id=1, at=datetime.now(UTC))
    assert [await talk.ask() for _ in range(4)] == [None] * 4


async def test_the_note_stays_below_an_answer_that_is_made_anew_and_goes_with_one_that_is_undone(
    talk: Talk,
) -> None:
    assert [await talk.ask() for _ in range(4)][-1] == LOST
    assert await talk.regenerate() == LOST
    assert await talk.ask() is None
    assert await talk.regenerate() is None
    await talk.conversations.turns.undo(talk.last.answer_id)
    fourth = next(m for m in await talk.transcript() if m.view_from is not None)
    await talk.conversations.turns.undo(fourth.id)
    assert await talk.ask() == LOST


async def test_an_answer_that_fails_does_not_use_the_note_up(talk: Talk) -> None:
    for _ in range(3):
        await talk.ask()
    talk.engine.scripts = [Script(fails_after=1), Script()]
    failed = await talk.ask()
    assert failed is not None
    assert LOST not in failed
    assert await talk.ask() == LOST


async def test_more_messages_than_are_read_are_out_of_sight_too(
    talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.conversation.answering.MAX_MESSAGES", 3)
    monkeypatch.setattr("bot.conversation.prompting.MAX_MESSAGES", 3)
    assert [await talk.ask() for _ in range(4)] == [None, None, LOST, None]
    assert talk.num_seen() == 2


LINE = "-- line --"


def lines(messages: Sequence[Message]) -> list[Line]:
    return [Line(last_view(messages), LINE)]


async def test_the_line_stands_above_what_the_model_saw(talk: Talk) -> None:
    for _ in range(3):
        await talk.ask()
    assert LINE not in "".join(pages(await talk.transcript(), "Bot", lines(await talk.transcript())))
    assert LINE not in export(await talk.transcript(), "Bot", lines(await talk.transcript()))
    for _ in range(2):
        await talk.ask()
    messages = await talk.transcript()
    text = "\n".join(pages(messages, "Bot", lines(messages)))
    above, below = text.split(f"\n{LINE}\n")
    assert (above.count("question"), below.count("question")) == (2, 3)
    assert below.startswith("Anna: question 3")
    above, below = export(messages, "Bot", lines(messages)).split(f"\n\n{LINE}\n\n")
    assert (above.count("question"), below.count("question")) == (2, 3)
    running = dataclasses.replace(messages[-1], state=MessageState.PENDING, content="", view_from=None)
    now = [*messages[:-1], running]
    assert LINE in "".join(pages(now, "Bot", lines(now))), "the answer before it is what counts"
    newest = messages[4:]
    assert LINE not in "".join(pages(newest, "Bot", lines(newest))), "all that is shown is in sight"


async def test_an_answer_that_is_gone_on_with_and_stopped_at_once_keeps_its_view(talk: Talk) -> None:
    for _ in range(3):
        await talk.ask()
    talk.engine.scripts = [Script(finish_reason=FinishReason.LENGTH)]
    await talk.ask()
    view_from = (await talk.transcript())[-1].view_from
    last, talk.last = talk.last, RecordingView()
    answer_id = await talk.chat.regenerate(HERE.channel_id, last.answer_id, talk.last, go_on=True)
    assert talk.chat.stop(answer_id)
    await talk.last.ending()
    newest = (await talk.transcript())[-1]
    assert (newest.state, newest.view_from) == (MessageState.STOPPED, view_from)
    assert view_from is not None


def test_a_summary_stands_below_what_is_in_it_and_is_cut_on_a_page() -> None:
    past = Past()
    past.fill(4)
    place = past.messages[4].id
    summary = Line(place, "In short: " + "s" * 1000, is_summary=True)
    text = export(past.messages, "Bot", [Line(place, LINE), summary])
    above, below = text.split(f"\n\n{summary.text}\n\n{LINE}\n\n")
    assert (above.count("Anna"), below.count("Anna")) == (2, 2)
    shown = "\n".join(pages(past.messages, "Bot", [Line(place, LINE), summary]))
    assert "sss…\n" + LINE in shown
    assert summary.text not in shown
    assert max(map(len, pages(past.messages, "Bot", [Line(place, LINE), summary]))) <= 900
    assert pages(past.messages[4:], "Bot", [summary]) == pages(past.messages[4:], "Bot", [])
