"""A state machine over service and storage: everything that people do, at every await.

SQLite is real, the engine holds little, and time is virtual: whatever is awaited of store, engine and views
takes a while that the machine chooses, so that anything may happen in between.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import aiosqlite
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bot.conversation.jobs import Question, StopReason
from bot.conversation.service import ChatService
from bot.conversation.views import Ending
from bot.errors import ChatError
from bot.origin import Origin
from bot.parameters import ChatParameters
from bot.servers.moderation import Moderation
from bot.servers.rates import Allowance
from engine.errors import EngineError
from engine.types import ChatMessage, Generation, Prompt, SamplingParams
from engine.waiting.room import Ticket, WaitingRoom, _State
from storage.conversations import ConversationKind, ConversationRef, Conversations
from storage.database import Database
from storage.errors import StorageError
from storage.migrations import MIGRATIONS
from storage.opening import _prepare
from storage.people import People
from storage.settings import SettingsStore
from storage.sqlite import SqliteBackend
from tests.fakes import RecordingView, Script, ScriptedEngine
from tests.virtual_time import VirtualLoop

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHANNELS = {10: 1, 11: 1, 20: 2, 30: 3}
"""Channels, each with its server."""
USERS = (1, 2, 3)
EXPECTED = (ChatError, StorageError, EngineError)
"""What people are told a sentence for."""
Result = TypeVar("Result")
Pause = Callable[[], Awaitable[None]]


@functools.cache
def template() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    _prepare(connection, MIGRATIONS)
    return connection


class Inline:
    """SQLite in memory, where `Database` expects aiosqlite: no thread, but a pause before each statement."""

    def __init__(self, pause: Pause) -> None:
        self._pause = pause
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        template().backup(self.connection)
        self.connection.row_factory = sqlite3.Row
        self.connection.execute("PRAGMA foreign_keys = ON")

    @property
    def in_transaction(self) -> bool:
        return self.connection.in_transaction

    async def execute_fetchall(self, sql: str, params: Sequence[Any] = ()) -> list[sqlite3.Row]:
        await self._pause()
        return self.connection.execute(sql, params).fetchall()

    async def close(self) -> None:
        self.connection.close()


@dataclass(eq=False)
class Said:
    """A message that somebody sent, and what became of it."""

    discord_id: int
    channel_id: int
    user_id: int
    text: str
    view: SlowView
    is_gone: bool = False
    is_taken: bool | None = None


class SlowView(RecordingView):
    """Takes its time to show an ending; while Discord is out, as long as that lasts."""

    def __init__(self, machine: Machine, channel_id: int) -> None:
        super().__init__()
        self._machine = machine
        self.channel_id = channel_id

    def update(self, text: str) -> None:
        self._machine.check_order(self)
        super().update(text)

    def waiting(self, place: int, *, for_others: bool) -> None:
        self._machine.check_order(self)
        super().waiting(place, for_others=for_others)

    async def finish(self, ending: Ending) -> None:
        self._machine.check(not self.endings, "an answer ended twice")
        await self._machine.pause()
        await self._machine.discord_is_there.wait()
        await super().finish(ending)
        self._machine.shown.setdefault(self.channel_id, []).append(self.answer_id)


class WatchedEngine(ScriptedEngine):
    """Echoes what it is asked, and has each beginning looked at."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(max_requests=2, max_kv_tokens=1200, respond=self._echo)
        self._machine = machine

    def _echo(self, dialog: Sequence[ChatMessage]) -> Script:
        return Script(("You", " said", " that", "."), delay_s=self._machine.delay())

    def generate(self, prompt: Prompt, params: SamplingParams, **options: Any) -> Generation:
        generation = super().generate(prompt, params, **options)
        self._machine.check_beginning(self.dialogs[-1])
        return generation


class WatchedRoom(WaitingRoom):
    """Counts who is overtaken by whom: each waiting one by how many turns of each server."""

    def __init__(self, machine: Machine, engine: WatchedEngine) -> None:
        super().__init__(lambda: engine.load, max_waiting=50)
        self._machine = machine
        self._overtaken: dict[Ticket, dict[object, int]] = {}

    def _call(self, ticket: Ticket) -> None:
        super()._call(ticket)
        self._overtaken.pop(ticket, None)
        for other in self._line():
            counts = self._overtaken.setdefault(other, {})
            server, own = ticket.claim.keys[0], other.claim.keys[0]
            counts[server] = counts.get(server, 0) + 1
            self._machine.check(counts[server] <= 1 + counts.get(own, 0), f"{server} twice before {own}")

    def _put_back(self, ticket: Ticket) -> None:
        if ticket.state is _State.CALLED:  # that turn came to nothing, so it overtook nobody
            for counts in self._overtaken.values():
                if ticket.claim.keys[0] in counts:
                    counts[ticket.claim.keys[0]] -= 1
        super()._put_back(ticket)


@dataclass
class Delays:
    """How long each thing takes, over and over."""

    given: Sequence[int] = (0,)
    _next: itertools.cycle[int] = field(default_factory=lambda: itertools.cycle((0,)))

    def __post_init__(self) -> None:
        self._next = itertools.cycle(self.given)

    def __call__(self) -> float:
        return next(self._next) / 10


class Machine(RuleBasedStateMachine):
    """People in four channels of three servers, who do whatever people do."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.delay = Delays()
        self.discord_is_there = asyncio.Event()
        self.discord_is_there.set()
        self.said: list[Said] = []
        self.shown: dict[int, list[int]] = {}
        self.gone_texts: set[str] = set()
        self.refused: set[tuple[object, int]] = set()
        self.decisions: dict[tuple[object, int], int] = {}
        self.running: set[asyncio.Task[Any]] = set()
        self.by_text: dict[str, Said] = {}
        self.faults: list[str] = []
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(asyncio, "to_thread", self._inline)
        for level in ("error", "exception"):
            self._patch.setattr(logging.Logger, level, lambda _, *what, **__: self.faults.append(str(what)))
        self._ids = itertools.count(1)
        self.run(self._open())

    async def _open(self) -> None:
        database = Database(SqliteBackend(cast("aiosqlite.Connection", Inline(self.pause))))
        self.engine = WatchedEngine(self)
        self.room = WatchedRoom(self, self.engine)
        self.conversations = Conversations(database)
        self.moderation = Moderation.over(
            database, self.conversations, Allowance(per_user=0, per_server=0), clock=self.loop.time
        )
        self.people = People(database)
        self.chat = ChatService(
            self.engine,
            self.conversations,
            SettingsStore(database),
            ChatParameters(SamplingParams(max_new_tokens=300)),
            gate=self.moderation.gate,
            servers=self.moderation.servers,
            screening=self.moderation.screening,
            room=self.room,
        )
        self.database = database

    async def _inline(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Stands for `asyncio.to_thread`."""
        await self.pause()
        return work(*arguments)

    async def pause(self) -> None:
        """Take as long as the machine wants."""
        await asyncio.sleep(self.delay())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(work)

    def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let somebody do something; what comes of it is seen later."""

        async def do() -> None:
            with suppress(*EXPECTED):
                await work

        self.running.add(self.loop.create_task(do()))

    def check_beginning(self, dialog: Sequence[ChatMessage]) -> None:
        """Look at what the model is given."""
        text = "\n".join(message.content for message in dialog)
        for gone in self.gone_texts:
            self.check(gone not in text, f"{gone} was deleted before")
        (turn,) = [message.content for message in dialog if message.role == "user"][-1:]
        asked = self.by_text[turn[turn.rindex("<") :]]
        server_id = CHANNELS[asked.channel_id]
        self.check(("user", asked.user_id) not in self.refused, "somebody opted out before")
        self.check((server_id, asked.user_id) not in self.refused, "somebody was blocked before")

    def check_order(self, view: SlowView) -> None:
        """Look whether all answers before this one that were made are shown."""
        lane = self.chat._queues._lanes[view.channel_id]
        before = [job for job in lane.unshown if job.answer_id != view.answer_id]
        self.check(not before, "an answer is shown above the end of another one")

    def check(self, is_right: bool, what: str) -> None:
        """Note what is wrong: the code that is tested would log what is raised inside it, and go on."""
        if not is_right:
            self.faults.append(what)

    @initialize(delays=st.lists(st.integers(0, 9), min_size=1, max_size=20))
    def choose_delays(self, delays: list[int]) -> None:
        self.delay = Delays(delays)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.3, 1.0, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(channel_id=st.sampled_from(list(CHANNELS)), user_id=st.sampled_from(USERS))
    def ask(self, channel_id: int, user_id: int) -> None:
        number = next(self._ids)
        one = Said(1000 + number, channel_id, user_id, f"<m{number}>", SlowView(self, channel_id))
        self.said.append(one)
        self.by_text[one.text] = one
        question = Question(
            _ref(channel_id), one.discord_id, user_id, f"P{user_id}", one.text, NOW, origin=_origin(one)
        )

        async def do() -> None:
            one.is_taken = False
            answer_id = await self.chat.ask(question, one.view)
            one.is_taken = answer_id == one.view.answer_id

        self.begin(do())

    @rule(channel_ids=st.lists(st.sampled_from(list(CHANNELS)), min_size=2, max_size=6))
    def many_ask(self, channel_ids: list[int]) -> None:
        for number, channel_id in enumerate(channel_ids):
            self.ask(channel_id, USERS[number % len(USERS)])

    @rule(index=st.integers(0, 30), reason=st.just(StopReason.USER))
    def stop(self, index: int, reason: StopReason) -> None:
        views = [one.view for one in self.said if one.view.answer_id]
        if views:

            async def do() -> None:
                self.chat.stop(views[index % len(views)].answer_id, reason)

            self.run(do())

    @rule(index=st.integers(0, 30))
    def delete(self, index: int) -> None:
        if self.said:
            one = self.said[index % len(self.said)]

            async def do() -> None:
                await self.chat.upkeep.message_deleted(one.channel_id, one.discord_id)
                one.is_gone = True
                self.gone_texts |= set(self._texts_of(one))

            self.begin(do())

    @rule(index=st.integers(0, 30))
    def edit(self, index: int) -> None:
        if self.said:
            one = self.said[index % len(self.said)]
            new = f"<e{next(self._ids)}>"
            self.by_text[new] = one

            async def do() -> None:
                if (arrival := self.chat.arrivals.find(one.channel_id, one.discord_id)) is not None:
                    await arrival.has_left.wait()
                await self.chat.upkeep.question_edited(one.channel_id, one.discord_id, new)
                self.gone_texts |= set(itertools.takewhile(lambda text: text != new, self._texts_of(one)))

            self.begin(do())

    @rule(channel_id=st.sampled_from(list(CHANNELS)))
    def reset(self, channel_id: int) -> None:
        async def do() -> None:
            reset = await self.chat.memory.reset(_ref(channel_id), by_user_id=9, at=NOW)
            if next(self._ids) % 2:
                await self.chat.memory.undo_reset(reset, by_user_id=9, at=NOW)

        self.begin(do())

    @rule(channel_id=st.sampled_from(list(CHANNELS)))
    def undo(self, channel_id: int) -> None:
        self.begin(self.chat.steering.undo(_ref(channel_id), lambda _: True))

    @rule(channel_id=st.sampled_from(list(CHANNELS)), go_on=st.booleans())
    def again(self, channel_id: int, go_on: bool) -> None:
        async def do() -> None:
            turn = await self.chat.steering.newest(_ref(channel_id), lambda _: True)
            asker = next((one for one in self.said if one.user_id == turn.asker_id), None)
            if asker is None:
                return
            one = Said(0, channel_id, asker.user_id, "", SlowView(self, channel_id), is_taken=False)
            origin = Origin(asker.user_id, channel_id, CHANNELS[channel_id])
            self.said.append(one)
            await self.chat.regenerate(channel_id, turn.answer.id, one.view, origin, go_on=go_on)
            one.is_taken = True

        self.begin(do())

    @rule(user_id=st.sampled_from(USERS), is_out=st.booleans())
    def opt(self, user_id: int, is_out: bool) -> None:
        async def do() -> None:
            if is_out:
                await self.people.opt_out(user_id)
                await self.chat.drop_person(user_id)
            else:
                await self.people.opt_in(user_id)

        self.begin(self._decide(("user", user_id), do(), is_out))

    @rule(user_id=st.sampled_from(USERS), guild_id=st.sampled_from([1, 2]), is_blocked=st.booleans())
    def block(self, user_id: int, guild_id: int, is_blocked: bool) -> None:
        async def do() -> None:
            if is_blocked:
                await self.moderation.blocks.add(guild_id, user_id, by_user_id=9, at=NOW)
                await self.chat.drop_person(user_id, StopReason.BLOCKED, guild_id=guild_id)
            else:
                await self.moderation.blocks.remove(guild_id, user_id)

        self.begin(self._decide((guild_id, user_id), do(), is_blocked))

    async def _decide(self, about: tuple[object, int], act: Awaitable[None], is_refused: bool) -> None:
        """Decide about a person, and hold the service to it once that is done and the last word."""
        self.refused.discard(about)
        self.decisions[about] = number = next(self._ids)
        await act
        if is_refused and self.decisions[about] == number:
            self.refused.add(about)

    @rule()
    def discord_goes_and_comes_back(self) -> None:
        if self.discord_is_there.is_set():
            self.discord_is_there.clear()
        else:
            self.discord_is_there.set()

    @rule()
    def change_the_model(self) -> None:
        async def do() -> None:
            await self.chat.drain(3)
            await self.pause()
            self.chat.resume()

        self.begin(do())

    @invariant()
    def nothing_failed_that_nobody_is_told_of(self) -> None:
        assert self.faults == []
        for task in [task for task in self.running if task.done()]:
            self.running.remove(task)
            task.result()

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self._patch.undo()
            self.loop.close()

    def _end(self) -> None:
        self.discord_is_there.set()
        self.run(self._until_quiet())
        self.nothing_failed_that_nobody_is_told_of()
        assert not self.running
        assert self.chat.num_running == self.chat.num_waiting == self.chat.num_unshown == 0
        assert not self.room._tickets
        assert not self.chat._queues._lanes
        assert not self.chat.arrivals._lines
        assert self.engine.num_running == 0
        for one in self.said:
            assert len(one.view.endings) == (1 if one.is_taken else 0), one
        for channel_id, answer_ids in self.shown.items():
            waited = [answer_id for answer_id in answer_ids if self._was_made(answer_id)]
            assert waited == sorted(waited), f"out of order in {channel_id}"
        stored = self.run(self.database.fetch_all("SELECT role, state, content FROM messages"))
        assert not [row for row in stored if row["state"] == "pending"]
        texts = {row["content"] for row in stored if row["role"] == "user"}
        assert not self.gone_texts & texts
        self.run(self.chat.close())
        self.run(self.database.close())

    async def _until_quiet(self) -> None:
        """Let everything come to its end; hours are no time here."""
        async with asyncio.timeout(24 * 3600):
            while self.running or self.chat._queues._lanes:
                await asyncio.sleep(60)
                self.running = {task for task in self.running if not task.done() or task.exception()}

    def _texts_of(self, one: Said) -> list[str]:
        """Return what a message said, the newest text last."""
        return [text for text, said in self.by_text.items() if said is one]

    def _was_made(self, answer_id: int) -> bool:
        """Tell whether an answer had its turn: one that was stopped before is shown at once."""
        return any(one.view.answer_id == answer_id and one.view.is_working for one in self.said)


def _ref(channel_id: int) -> ConversationRef:
    return ConversationRef(channel_id, ConversationKind.CHANNEL, CHANNELS[channel_id])


def _origin(one: Said) -> Origin:
    return Origin(one.user_id, one.channel_id, CHANNELS[one.channel_id])


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
