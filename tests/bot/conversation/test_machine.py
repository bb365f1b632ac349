"""A state machine over service and storage: everything that people do, at every await.

The engine holds little, and time is virtual: whatever is awaited of store, engine and views takes a while
that the machine chooses, so that anything may happen in between. One process on SQLite, and two on one
PostgreSQL, each with its own servers. For a long run: LLAMACORD_EXAMPLES=2000.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from bot.conversation.jobs import Question, StopReason
from bot.errors import ChatError
from bot.origin import Origin
from engine.errors import EngineError
from storage.conversations import ConversationKind, ConversationRef
from storage.errors import StorageError
from storage.shards import Shards
from tests.bot.conversation.bot_process import ACTING, BotProcess, Delays, Said, SlowView, World
from tests.bot.conversation.slow_databases import SlowDatabase, SlowSqlite, slow_postgres
from tests.postgres_server import PostgresServer
from tests.storage.test_two_processes import RULES
from tests.virtual_time import VirtualLoop

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SERVERS = (1 << 22, 2 << 22, 3 << 22)
"""With two shards, the second one has the first and the last of them."""
CHANNELS = {10: SERVERS[0], 11: SERVERS[0], 20: SERVERS[1], 30: SERVERS[2], 40: None}
"""Channels, each with its server; in the last one somebody writes to the bot itself."""
USERS = (1, 2, 3)
DIRECT = {40: 1}
"""Who writes there."""
EXPECTED = (ChatError, StorageError, EngineError)
"""What people are told a sentence for."""
NUM_EXAMPLES = int(os.environ.get("LLAMACORD_EXAMPLES", "0"))
Result = TypeVar("Result")


class Machine(RuleBasedStateMachine):
    """People in five channels, who do whatever people do."""

    def __init__(self, database: SlowDatabase, num_processes: int) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.loop.set_task_factory(self._task)
        self.world = World(dict(CHANNELS))
        self.world.discord_is_there.set()
        self.said: list[Said] = []
        self.forgotten: dict[int, set[str]] = {}
        self.standing: set[tuple[object, int]] = set()
        self.decisions: dict[tuple[object, int], int] = {}
        self.undecided: dict[tuple[object, int], int] = {}
        self.running: dict[asyncio.Task[Any], BotProcess] = {}
        self.repaired: set[int] = set()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(asyncio, "to_thread", self._inline)
        for level in ("error", "exception"):
            self._patch.setattr(
                logging.Logger, level, lambda _, *what, **__: self.world.check(False, str(what))
            )
        self._ids = itertools.count(1)
        self._database = database
        database.empty()
        self.processes = [
            self.run(self._open(Shards(number, number, num_processes))) for number in range(num_processes)
        ]
        for process in self.processes:
            self.run(process.start())

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        """Keep each task until it ends: those of a killed process would be collected, and say so."""
        task = asyncio.Task(work, loop=loop, **options)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _open(self, shards: Shards) -> BotProcess:
        return BotProcess(self.world, self._database, shards, self.forgotten, self.standing)

    async def _inline(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Stands for `asyncio.to_thread`."""
        if (process := ACTING.get()) is not None:
            await process.pause()
        return work(*arguments)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run_until_complete(work)

    def of(self, channel_id: int) -> BotProcess:
        """Return the process to which a channel belongs."""
        return next(one for one in self.processes if one.shards.has(CHANNELS[channel_id]))

    def begin(self, process: BotProcess, work: Coroutine[Any, Any, Any]) -> None:
        """Let somebody do something in a process; what comes of it is seen later."""

        async def do() -> None:
            ACTING.set(process)
            with suppress(*EXPECTED):
                await work

        self.running[self.loop.create_task(do())] = process

    @initialize(delays=st.lists(st.integers(0, 9), min_size=1, max_size=20))
    def choose_delays(self, delays: list[int]) -> None:
        self.world.delay = Delays(delays)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.3, 1.0, 5.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(channel_id=st.sampled_from(list(CHANNELS)), user_id=st.sampled_from(USERS))
    def ask(self, channel_id: int, user_id: int) -> None:
        number = next(self._ids)
        one = self._say(1000 + number, channel_id, DIRECT.get(channel_id, user_id), f"<m{number}>")
        self.world.by_text[one.text] = one
        question = Question(
            _ref(channel_id),
            one.discord_id,
            one.user_id,
            f"P{one.user_id}",
            one.text,
            NOW,
            origin=_origin(one),
        )

        async def do() -> None:
            try:
                answer_id = await one.process.chat.ask(question, one.view)
            except EXPECTED:
                one.is_taken = False
                raise
            one.is_taken = answer_id == one.view.answer_id

        self.begin(one.process, do())

    def _say(self, discord_id: int, channel_id: int, user_id: int, text: str) -> Said:
        process = self.of(channel_id)
        one = Said(discord_id, channel_id, user_id, text, process, SlowView(process, channel_id))
        self.said.append(one)
        return one

    @rule(channel_ids=st.lists(st.sampled_from(list(CHANNELS)), min_size=2, max_size=6))
    def many_ask(self, channel_ids: list[int]) -> None:
        for number, channel_id in enumerate(channel_ids):
            self.ask(channel_id, USERS[number % len(USERS)])

    @rule(index=st.integers(0, 30), reason=st.just(StopReason.USER))
    def stop(self, index: int, reason: StopReason) -> None:
        said = [one for one in self.said if one.view.answer_id]
        if said:
            one = said[index % len(said)]

            async def do() -> None:
                self.of(one.channel_id).chat.stop(one.view.answer_id, reason)

            self.run(do())

    @rule(index=st.integers(0, 30))
    def delete(self, index: int) -> None:
        if self.said:
            one = self.said[index % len(self.said)]
            process = self.of(one.channel_id)

            async def do() -> None:
                await process.chat.upkeep.message_deleted(one.channel_id, one.discord_id)
                process.gone_texts |= set(self._texts_of(one))

            self.begin(process, do())

    @rule(index=st.integers(0, 30))
    def edit(self, index: int) -> None:
        if self.said:
            one = self.said[index % len(self.said)]
            process = self.of(one.channel_id)
            new = f"<e{next(self._ids)}>"
            self.world.by_text[new] = one

            async def do() -> None:
                arrival = process.chat.arrivals.find(one.channel_id, one.discord_id)
                async with process.chat.upkeep.edits.turn(one.discord_id):
                    if arrival is not None:
                        await arrival.has_left.wait()
                    await process.chat.upkeep.question_edited(one.channel_id, one.discord_id, new)
                process.gone_texts |= set(itertools.takewhile(lambda text: text != new, self._texts_of(one)))

            self.begin(process, do())

    @rule(channel_id=st.sampled_from(list(CHANNELS)))
    def reset(self, channel_id: int) -> None:
        chat = self.of(channel_id).chat

        async def do() -> None:
            reset = await chat.memory.reset(_ref(channel_id), by_user_id=9, at=NOW)
            if next(self._ids) % 2:
                await chat.memory.undo_reset(reset, by_user_id=9, at=NOW)

        self.begin(self.of(channel_id), do())

    @rule(channel_id=st.sampled_from(list(CHANNELS)))
    def undo(self, channel_id: int) -> None:
        process = self.of(channel_id)
        self.begin(process, process.chat.steering.undo(_ref(channel_id), lambda _: True))

    @rule(channel_id=st.sampled_from(list(CHANNELS)), go_on=st.booleans())
    def again(self, channel_id: int, go_on: bool) -> None:
        process = self.of(channel_id)

        async def do() -> None:
            turn = await process.chat.steering.newest(_ref(channel_id), lambda _: True)
            asker = next((one for one in self.said if one.user_id == turn.asker_id), None)
            if asker is None:
                return
            one = self._say(0, channel_id, asker.user_id, "")
            try:
                await process.chat.regenerate(channel_id, turn.answer.id, one.view, _origin(one), go_on=go_on)
            except EXPECTED:
                one.is_taken = False
                raise
            one.is_taken = True

        self.begin(process, do())

    @rule(user_id=st.sampled_from(USERS), is_out=st.booleans(), channel_id=st.sampled_from(list(CHANNELS)))
    def opt(self, user_id: int, is_out: bool, channel_id: int) -> None:
        process = self.of(channel_id)
        act = process.opt_out(user_id) if is_out else process.people.opt_in(user_id)
        self.begin(process, self._decide(process, ("user", user_id), act, is_out))

    @rule(user_id=st.sampled_from(USERS), channel_id=st.sampled_from([10, 20]), is_blocked=st.booleans())
    def block(self, user_id: int, channel_id: int, is_blocked: bool) -> None:
        process, guild_id = self.of(channel_id), CHANNELS[channel_id]
        assert guild_id is not None

        async def do() -> None:
            if is_blocked:
                await process.moderation.blocks.add(guild_id, user_id, by_user_id=9, at=NOW)
                await process.chat.drop_person(user_id, StopReason.BLOCKED, guild_id=guild_id)
            else:
                await process.moderation.blocks.remove(guild_id, user_id)

        self.begin(process, self._decide(process, (guild_id, user_id), do(), is_blocked))

    async def _decide(
        self, process: BotProcess, about: tuple[object, int], act: Awaitable[object], is_refused: bool
    ) -> None:
        """Decide about a person, and hold the service to it once that is done and the last word.

        What two processes decide at once may come to be in either order.
        """
        self.standing.discard(about)
        for one in self.processes:
            one.refused.discard(about)
        self.decisions[about] = number = next(self._ids)
        is_alone = not self.undecided.get(about) or len(self.processes) == 1
        self.undecided[about] = self.undecided.get(about, 0) + 1
        await act
        self.undecided[about] -= 1
        if is_refused and is_alone and self.decisions[about] == number:
            self.standing.add(about)
            process.refused.add(about)

    @rule(user_id=st.sampled_from(USERS), channel_id=st.sampled_from(list(CHANNELS)))
    def forget_me(self, user_id: int, channel_id: int) -> None:
        process = self.of(channel_id)
        self.begin(process, process.forget(user_id))

    @rule(number=st.integers(0, 1))
    def a_process_is_killed_and_started(self, number: int) -> None:
        killed = self.processes[number % len(self.processes)]
        killed.kill()
        for one in self.said:
            one.process.gone_texts |= killed.gone_texts
        self.running = {task: process for task, process in self.running.items() if process is not killed}
        self.processes[self.processes.index(killed)] = process = self.run(self._open(killed.shards))
        process.gone_texts |= killed.gone_texts
        process.refused |= self.standing

        async def start() -> None:
            self.repaired |= set(await process.start())

        self.begin(process, start())

    @rule()
    def discord_goes_and_comes_back(self) -> None:
        if self.world.discord_is_there.is_set():
            self.world.discord_is_there.clear()
        else:
            self.world.discord_is_there.set()

    @rule(channel_id=st.sampled_from(list(CHANNELS)))
    def change_the_model(self, channel_id: int) -> None:
        process = self.of(channel_id)

        async def do() -> None:
            await process.chat.drain(3)
            await process.pause()
            process.chat.resume()

        self.begin(process, do())

    @invariant()
    def nothing_failed_that_nobody_is_told_of(self) -> None:
        assert self.world.faults == []
        for task in [task for task in self.running if task.done()]:
            del self.running[task]
            task.result()

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self.world.is_over = True
            self.run(self._clear_up())
            self._patch.undo()
            self.loop.close()

    async def _clear_up(self) -> None:
        """Let go of what is left of killed processes, and where something was wrong, of the others."""
        for process in self.processes:
            if not process.is_dead:
                process.kill()
        while left := self.tasks - {asyncio.current_task()}:  # some begin others in the end
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _end(self) -> None:
        self.world.discord_is_there.set()
        self.run(self._until_quiet())
        self.nothing_failed_that_nobody_is_told_of()
        assert not self.running
        for process in self.processes:
            assert process.chat.num_running == process.chat.num_waiting == process.chat.num_unshown == 0
            assert not process.room._tickets
            assert not process.chat._queues._lanes
            assert not process.chat.arrivals._lines
            assert process.engine.num_running == 0
        database = self.processes[0].database
        stored = self.run(database.fetch_all("SELECT * FROM messages"))
        self._check_endings({row["id"] for row in stored})
        assert not [row for row in stored if row["state"] == "pending"]
        texts = {row["content"] for row in stored if row["role"] == "user"}
        gone = set().union(*self.forgotten.values(), *(process.gone_texts for process in self.processes))
        assert not gone & texts
        for wrong, sql in RULES.items():
            assert not self.run(database.fetch_all(sql)), wrong
        for process in self.processes:
            self.run(process.close())
            process.is_dead = True

    def _check_endings(self, stored_ids: set[int]) -> None:
        for one in self.said:
            if not one.process.is_dead:
                assert len(one.view.endings) == (1 if one.is_taken else 0), one
            elif one.is_taken and one.view.answer_id in stored_ids:
                assert one.view.endings or one.view.answer_id in self.repaired, one
        for channel_id, answer_ids in self.world.shown.items():
            waited = [answer_id for answer_id in answer_ids if self._was_made(answer_id)]
            assert waited == sorted(waited), f"out of order in {channel_id}"

    async def _until_quiet(self) -> None:
        """Let everything come to its end; hours are no time here."""
        async with asyncio.timeout(24 * 3600):
            while self.running or any(process.chat._queues._lanes for process in self.processes):
                await asyncio.sleep(60)
                for task in [task for task in self.running if task.done() and not task.exception()]:
                    del self.running[task]

    def _texts_of(self, one: Said) -> list[str]:
        """Return what a message said, the newest text last."""
        return [text for text, said in self.world.by_text.items() if said is one]

    def _was_made(self, answer_id: int) -> bool:
        """Tell whether an answer had its turn: one that was stopped before is shown at once."""
        return any(one.view.answer_id == answer_id and one.view.is_working for one in self.said)


def _ref(channel_id: int) -> ConversationRef:
    kind = ConversationKind.DIRECT if channel_id in DIRECT else ConversationKind.CHANNEL
    return ConversationRef(channel_id, kind, CHANNELS[channel_id])


def _origin(one: Said) -> Origin:
    return Origin(one.user_id, one.channel_id, CHANNELS[one.channel_id])


def _run(database: SlowDatabase, num_processes: int, num_examples: int) -> None:
    run_state_machine_as_test(
        cast("Any", functools.partial(Machine, database, num_processes)),
        settings=settings(max_examples=NUM_EXAMPLES or num_examples, stateful_step_count=40, deadline=None),
    )


def test_whatever_people_do_one_process_keeps_to_its_rules() -> None:
    _run(SlowSqlite(), 1, 150)


@pytest.mark.skipif(sys.platform == "win32", reason="PostgreSQL is for Linux and macOS")
def test_whatever_people_do_two_processes_on_one_database_keep_to_their_rules(
    postgres: PostgresServer,
) -> None:
    with postgres.lent() as address, slow_postgres(address) as database:
        _run(database, 2, 25)
