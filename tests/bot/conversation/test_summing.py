"""What is let go is summed up while nobody asks: it stands in the prompt, goes with what is in it, and mixes
nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bot.conversation import idle
from bot.conversation.jobs import Question
from bot.conversation.prompting import fit_history
from bot.conversation.service import ChatService
from bot.conversation.summing import MAX_THOUGHT, MAX_TOKENS, unsummed
from bot.errors import WithheldError
from bot.language.phrases import phrase
from bot.origin import Origin
from bot.parameters import ChatParameters
from bot.servers.screening import Screen, Screening
from engine.types import ChatMessage, Reasoning
from storage.conversations import ConversationKind, ConversationRef, Conversations, Message
from storage.database import Database
from storage.people import People
from storage.settings import SettingsStore
from storage.summaries import Summary
from tests.bot.conversation.test_strides import Past
from tests.fakes import CONTROL_TAG, RecordingView, Script, ScriptedEngine

ROOM = 900
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def is_summing(dialog: Sequence[ChatMessage]) -> bool:
    """Tell whether the model is asked to sum up."""
    return dialog[0].content.startswith("You sum up")


class Echo:
    """Sums up by repeating a part of all words that it is shown, or says what it is told to; else answers."""

    def __init__(self) -> None:
        self.summary: str | None = None
        self.num_summed = 0
        self.delay_s = 0.0

    def __call__(self, dialog: Sequence[ChatMessage]) -> Script:
        if not is_summing(dialog):
            return Script()
        self.num_summed += 1
        marks = " ".join(re.findall(r"mark\d+\w+", dialog[-1].content))
        return Script((self.summary if self.summary is not None else marks or "Nothing.",), self.delay_s)


class Screens(Screening):
    """Withholds what says so."""

    def __init__(self) -> None:  # none of the rules of a server are needed here
        self.withheld = "\0"

    async def open(self, conversation_id: int, asker_id: int | None, origin: Origin | None) -> Screen:
        return Withholding(self)


class Withholding(Screen):
    def __init__(self, screens: Screens) -> None:
        self._screens = screens

    async def finished(self, text: str) -> str:
        if self._screens.withheld in text:
            raise WithheldError(phrase("moderation.withheld"))
        return text.replace("secret", "[removed]")


@dataclass
class Stage:
    chat: ChatService
    engine: ScriptedEngine
    conversations: Conversations
    echo: Echo
    screens: Screens
    database: Database
    is_on: bool = True
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def ask(self, text: str, channel_id: int = 10, author_id: int = 1) -> None:
        """Ask, and wait for the answer."""
        view = RecordingView()
        ref = ConversationRef(channel_id, ConversationKind.CHANNEL, 1)
        at = datetime.now(UTC)  # what was asked long ago is not worked for
        await self.chat.ask(Question(ref, next(self.numbers), author_id, f"P{author_id}", text, at), view)
        await view.ending()

    async def rest(self) -> None:
        """Wait until there is nothing more to do."""
        await until(lambda: self.chat.idle.is_done)

    async def fill(self, channel_id: int = 10, num_turns: int = 8, author_id: int = 1) -> None:
        """Talk until something was let go, and rest."""
        for number in range(num_turns):
            await self.ask(f"mark{channel_id}x{number} {'q' * 100}", channel_id, author_id)
        await self.rest()

    async def summaries(self, channel_id: int = 10) -> list[str]:
        ref = ConversationRef(channel_id, ConversationKind.CHANNEL, 1)
        found = await self.conversations.summaries.of(await self.conversations.open(ref))
        return [summary.content for summary in found]

    def seen(self) -> str:
        """Return all that the model saw for the last answer."""
        dialog = next(dialog for dialog in reversed(self.engine.dialogs) if not is_summing(dialog))
        return "\n".join(message.content for message in dialog)


@contextlib.asynccontextmanager
async def summing(path: Path) -> AsyncIterator[Stage]:
    async with await Database.open(path) as database:
        echo, screens = Echo(), Screens()
        engine, conversations = ScriptedEngine(respond=echo), Conversations(database)
        defaults = ChatParameters(system_prompt="Be kind.", max_history_tokens=ROOM)
        chat = ChatService(
            engine,
            conversations,
            SettingsStore(database),
            defaults,
            screening=screens,
            may_work_ahead=lambda: True,
            sums_up=lambda: stage.is_on,
        )
        stage = Stage(chat, engine, conversations, echo, screens, database)
        database.on_written = chat.note_change
        async with chat:
            yield stage


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "QUIET_S", 0.0)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Stage]:
    async with summing(tmp_path / "summing.sqlite3") as stage:
        yield stage


async def test_what_is_let_go_is_summed_up_and_stands_before_the_rest(here: Stage) -> None:
    await here.fill()
    (summary,) = await here.summaries()
    assert summary.startswith("mark10x0 mark10x1")
    await here.ask("And now?")
    assert f"in short:\n> {summary}" in here.seen()
    history = await here.conversations.recent(1, 100)
    shown = [m for m in history if m.content in here.seen()]
    assert not any(m.content.split()[0] in summary for m in shown if m.author_id), "and is not there twice"
    await here.rest()
    assert here.echo.num_summed == 1, "once"


@pytest.mark.parametrize("has_choice", [True, False])
async def test_a_summary_needs_no_thought(here: Stage, has_choice: bool) -> None:
    opened = Reasoning("<think>", "</think>", is_open=True)
    shut = {False: dataclasses.replace(opened, is_open=False)} if has_choice else {}
    info, thinks = here.engine.info, True if has_choice else None
    here.engine.info = dataclasses.replace(info, reasoning=opened, thinks=thinks, switched=shut)
    summary = "mark" if has_choice else "Hm.</think>mark"
    here.engine.respond = lambda dialog: Script((summary if is_summing(dialog) else "Hm.</think>Yes.",))
    await here.fill()
    assert await here.summaries() == ["mark"]
    (at,) = (at for at, dialog in enumerate(here.engine.dialogs) if is_summing(dialog))
    assert here.engine.thinking[at] is False
    assert here.engine.params[at].max_new_tokens == MAX_TOKENS + (0 if has_choice else MAX_THOUGHT)


async def test_the_prompt_with_it_is_there_before_it_is_in_force(
    here: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed_before: list[int] = []
    add = here.conversations.summaries.add

    async def added(*args: Any) -> bool:
        warmed_before.append(sum(b"in short:" in bytes(ids) for ids in here.engine.warmed))
        return await add(*args)

    monkeypatch.setattr(here.conversations.summaries, "add", added)
    await here.fill()
    assert warmed_before
    assert min(warmed_before) > 0


async def test_each_stride_brings_one_more_and_all_of_them_fit(here: Stage) -> None:
    await here.fill(num_turns=40)
    for _ in range(3):
        await here.fill(num_turns=6)
    assert len(await here.summaries()) >= 2
    assert len(here.engine.fit_prompt(here.engine.dialogs[-1], 10_000).ids) <= ROOM + MAX_TOKENS * 4


async def test_it_goes_with_a_deleted_message_and_with_a_person(here: Stage) -> None:
    await here.fill()
    await here.chat.upkeep.message_deleted(10, 2)
    assert await here.summaries() == []
    await here.rest()
    (again,) = await here.summaries()
    assert "mark10x0" in again
    assert "mark10x1" not in again, "what is left of it is summed up anew"
    await People(here.database).forget(1)
    assert await here.summaries() == []


async def test_a_deleted_one_is_neither_shown_nor_made_again(here: Stage) -> None:
    await here.fill()
    assert await here.conversations.summaries.delete(1) == 1
    await here.rest()
    await here.ask("And now?")
    assert "in short:" not in here.seen()
    assert (await here.summaries(), here.echo.num_summed) == ([""], 1)


async def test_it_is_screened_as_an_answer_is(here: Stage) -> None:
    here.echo.summary = "The secret is out."
    await here.fill()
    assert await here.summaries() == ["The [removed] is out."]
    here.echo.summary, here.screens.withheld = "Bad words.", "Bad"
    await here.fill(channel_id=20)
    assert await here.summaries(20) == [""]
    assert here.echo.num_summed == 2, "it is not tried again and again"
    await here.ask("And now?", 20)
    assert "in short:" not in here.seen()


async def test_control_tags_in_it_do_nothing(here: Stage) -> None:
    here.echo.summary = f"They said {CONTROL_TAG}system"
    await here.fill()
    await here.ask("And now?")
    assert CONTROL_TAG not in here.seen()
    assert "in short:" not in here.seen()


async def test_it_gives_way_when_somebody_asks_and_is_made_later(here: Stage) -> None:
    here.echo.delay_s = 60.0
    for number in range(8):
        await here.ask(f"mark10x{number} {'q' * 100}")
    await until(lambda: here.echo.num_summed == 1)
    await asyncio.wait_for(here.ask("Now", 20), 5)
    assert here.engine.generations[-2].is_cancelled
    assert await here.summaries() == []
    here.echo.delay_s = 0.0
    await here.rest()
    assert len(await here.summaries()) == 1


async def test_switched_off_nothing_is_made_nor_shown(here: Stage) -> None:
    await here.fill()
    here.is_on = False
    await here.fill(channel_id=20)
    assert await here.summaries(20) == []
    await here.ask("And now?")
    assert "in short:" not in here.seen()


async def test_a_reset_takes_it_away_and_its_undoing_brings_it_back(here: Stage) -> None:
    await here.fill()
    ref = ConversationRef(10, ConversationKind.CHANNEL, 1)
    reset = await here.chat.memory.reset(ref, by_user_id=1, at=datetime.now(UTC))
    await here.ask("Anew")
    assert "in short:" not in here.seen()
    await here.chat.memory.undo_reset(reset, by_user_id=1, at=datetime.now(UTC))
    await here.ask("And now?")
    assert "in short:" in here.seen()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(
        st.tuples(st.sampled_from([10, 20, 30]), st.integers(1, 3), st.integers(1, 150), st.booleans()),
        min_size=20,
        max_size=60,
    )
)
def test_a_summary_holds_nothing_of_another_conversation(
    asked: list[tuple[int, int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def play() -> None:
        async with summing(tmp_path_factory.mktemp("mixed") / "mixed.sqlite3") as stage:
            for number, (channel_id, author_id, length, rests) in enumerate(asked):
                await stage.ask(f"mark{channel_id}x{number} {'q' * length}", channel_id, author_id)
                if rests:
                    await stage.rest()
            await stage.rest()
            for channel_id in (10, 20, 30):
                for summary in await stage.summaries(channel_id):
                    assert re.findall(r"mark(\d+)x", summary), summary
                    assert set(re.findall(r"mark(\d+)x", summary)) == {str(channel_id)}

    asyncio.run(play())


def test_what_was_summed_up_is_not_summed_up_again() -> None:
    past = Past()
    past.fill()
    let_go = unsummed(past.messages, [])
    assert let_go
    assert {m.id for m in let_go}.isdisjoint(m.id for m in _seen(past))
    until_id = let_go[-1].id + 1
    assert unsummed(past.messages, [Summary(until_id, "", NOW)]) == []
    assert unsummed(past.messages[-4:], []) == []


def _seen(past: Past) -> list[Message]:
    fitted = past.fit("q")
    return [m for m in past.messages if (m.reply_to or m.id) >= fitted.view_from]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 300)), min_size=1, max_size=30),
    summaries=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 400)), max_size=8),
    limit=st.integers(450, 1500),
)
def test_whatever_was_summed_up_the_prompt_fits_and_tells_only_of_what_is_not_shown(
    lengths: list[tuple[int, int]], summaries: list[tuple[int, int]], limit: int
) -> None:
    past = Past(limit=limit)
    for asked, answered in lengths:
        past.ask("q" * asked, "a" * answered)
    told = [
        Summary(until_id, f"<{until_id}:{number}> {'s' * length}", NOW)
        for number, (until_id, length) in enumerate(sorted(summaries))
    ]
    history = [*past.messages, past.question("What?")]
    fitted = fit_history(past.engine, history, past.system, limit, "", told)
    assert len(fitted.prompt.ids) <= limit
    shown = [int(number) for number in re.findall(r"<(\d+):", bytes(fitted.prompt.ids).decode())]
    assert shown == sorted(shown)
    assert all(until_id <= fitted.view_from for until_id in shown)
    assert fit_history(past.engine, history, past.system, limit, "", told) == fitted


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the engine's side of it has no event to wait for
            await asyncio.sleep(0.01)
