"""What answers in one channel share: the pace of edits, with times as values, and the order they stand in."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, field

import pytest

from bot.delivery.column import MAX_DELETED, MAX_EDITS, WINDOW_S, ChannelPace, Column, Columns
from bot.delivery.delivery import Delivery, Outcome
from bot.delivery.outbox import Buttons, OutboxGoneError, OutboxRetryError
from bot.delivery.render import render
from tests.bot.delivery.delivery_stage import WORDS, in_virtual_time


def test_as_many_edits_as_allowed_go_at_once_and_the_next_one_waits_for_the_first_to_be_old() -> None:
    pace = ChannelPace()
    for number in range(MAX_EDITS):
        assert pace.free_at_s <= 100.0
        pace.edits_at(100.0 + number)
    assert pace.free_at_s == 100.0 + WINDOW_S
    pace.edits_at(pace.free_at_s)
    assert pace.free_at_s == 101.0 + WINDOW_S


def test_what_matters_little_has_room_only_while_half_of_the_edits_are_left() -> None:
    pace = ChannelPace()
    assert pace.has_room(100.0)
    pace.edits_at(100.0)
    assert pace.has_room(100.0)
    pace.edits_at(101.0)
    assert not pace.has_room(101.0)
    assert pace.has_room(100.0 + WINDOW_S)


def test_a_channel_has_one_column_while_somebody_holds_it_and_nothing_is_kept_after() -> None:
    columns = Columns()
    column = columns.of(1)
    assert columns.of(1) is column
    assert columns.of(2) is not column
    del column
    gc.collect()
    assert len(columns) == 0


def test_what_we_deleted_ourselves_is_known_for_a_while() -> None:
    columns = Columns()
    for number in range(MAX_DELETED + 1):
        columns.delete(number)
    assert [columns.is_deleted(number) for number in (0, 1, MAX_DELETED, MAX_DELETED + 1)] == [
        False,
        True,
        True,
        False,
    ]


@dataclass
class Wall:
    """A channel: its messages in order, each with the answer it is of and what it says."""

    column: Column = field(default_factory=Column)
    messages: dict[int, tuple[int, str]] = field(default_factory=dict)
    is_away: bool = False
    loses_answers: bool = False
    """Of deletions that are carried out."""
    records: dict[int, int] = field(default_factory=dict)
    """The answer of each message as it is recorded."""

    def answer(self, answer_id: int, *existing: int, can_move: bool = True) -> Delivery:
        """Return an answer that is shown here, in messages that are there already or not."""
        self.messages |= dict.fromkeys(existing, (answer_id, "old"))

        async def record(_position: int, discord_id: int) -> None:
            self.records[discord_id] = answer_id

        async def forget(discord_id: int) -> None:
            self.records.pop(discord_id, None)

        return Delivery(
            WallOutbox(self, answer_id),
            answer_id=answer_id,
            on_part=record,
            on_gone=forget,
            existing_parts=existing,
            column=self.column,
            can_move=can_move,
        )

    @property
    def answer_ids(self) -> list[int]:
        return [answer_id for answer_id, _ in self.messages.values()]

    def check(self) -> None:
        """Assert that parts of one answer stand together, the older answers above."""
        assert self.answer_ids == sorted(self.answer_ids)


@dataclass
class WallOutbox:
    wall: Wall
    answer_id: int

    async def send(self, content: str, *, buttons: Buttons, attachment: str = "") -> int:
        await self._take()
        discord_id = max(self.wall.messages, default=0) + 1
        self.wall.messages[discord_id] = self.answer_id, content
        self.wall.check()
        return discord_id

    async def edit(self, discord_id: int, content: str, *, buttons: Buttons, attachment: str = "") -> None:
        await self._take()
        if discord_id not in self.wall.messages:
            raise OutboxGoneError
        self.wall.messages[discord_id] = self.answer_id, content

    async def delete(self, discord_id: int) -> None:
        await self._take()
        self.wall.messages.pop(discord_id)
        if self.wall.loses_answers:
            raise OutboxRetryError

    async def _take(self) -> None:
        await asyncio.sleep(0.05)
        if self.wall.is_away:
            raise OutboxRetryError


async def grow(delivery: Delivery, text: str, seconds: float) -> None:
    for step in range(1, 101):
        delivery.update(text[: len(text) * step // 100])
        await asyncio.sleep(seconds / 100)


@pytest.mark.parametrize("is_told_first", [True, False])
def test_the_parts_of_a_long_answer_stand_together_above_those_who_wait(*, is_told_first: bool) -> None:
    """What was said to those who wait goes when the answer needs its place, and comes again below it."""

    async def scene() -> Wall:
        wall = Wall()
        first, second, third = (wall.answer(answer_id) for answer_id in (1, 2, 3))
        first.update("")
        await asyncio.sleep(1)
        if is_told_first:
            second.update("Waiting: place 1")
            third.update("Waiting: place 2")
            await asyncio.sleep(1)
            assert wall.answer_ids == [1, 2, 3]
        growing = asyncio.create_task(grow(first, WORDS[:9000], 60))
        await asyncio.sleep(40)
        second.update("Waiting: place 1")
        third.update("Waiting: place 2")
        await growing
        assert set(wall.answer_ids) == {1}, "nobody is told a place where it would cut"
        await first.finish(WORDS[:9000])
        await asyncio.sleep(2)
        assert [said for answer_id, said in wall.messages.values() if answer_id > 1] == [
            "Waiting: place 1",
            "Waiting: place 2",
        ]
        for delivery in (second, third):
            assert (await delivery.finish("an answer")).outcome is Outcome.SHOWN
        return wall

    wall = in_virtual_time(scene())
    said = {
        answer_id: [text for _, (one, text) in wall.messages.items() if one == answer_id]
        for answer_id in (1, 2, 3)
    }
    assert said == {1: render(WORDS[:9000], final=True), 2: ["an answer"], 3: ["an answer"]}


def test_an_answer_that_ended_waits_for_the_one_above_it_and_gives_nothing_up_meanwhile() -> None:
    async def scene() -> tuple[Wall, Outcome]:
        wall = Wall()
        first, second = wall.answer(1), wall.answer(2)
        growing = asyncio.create_task(grow(first, WORDS[:9000], 300))
        await asyncio.sleep(100)
        ending = asyncio.create_task(second.finish("stopped"))
        await growing
        assert not ending.done()
        await first.finish(WORDS[:9000])
        return wall, (await ending).outcome

    wall, outcome = in_virtual_time(scene())
    assert outcome is Outcome.SHOWN
    assert wall.answer_ids[-2:] == [1, 2]


def test_an_answer_that_ended_while_it_waited_goes_too_when_the_one_above_grows() -> None:
    async def scene() -> Wall:
        wall = Wall()
        first, second = wall.answer(1), wall.answer(2)
        first.update("a short beginning")
        await asyncio.sleep(1)
        second.update("Waiting: place 1")
        await asyncio.sleep(1)
        ending = asyncio.create_task(second.finish("stopped"))
        await asyncio.sleep(10)
        first.update(WORDS[:3000])
        await asyncio.sleep(30)
        await first.finish(WORDS[:3000])
        assert (await ending).outcome is Outcome.SHOWN
        return wall

    assert in_virtual_time(scene()).answer_ids == [1, 1, 2]


def test_nobody_waits_for_an_answer_that_can_be_shown_no_more() -> None:
    async def scene() -> Wall:
        wall = Wall()
        first, second = wall.answer(1), wall.answer(2)
        await grow(first, WORDS[:9000], 60)
        wall.is_away = True
        asyncio.get_running_loop().call_later(50, setattr, wall, "is_away", False)
        ends = [first.finish(WORDS[:9500]), second.finish("short")]
        outcomes = [result.outcome for result in await asyncio.gather(*ends)]
        assert Outcome.FAILED not in outcomes
        await first.close()
        third = wall.answer(3)
        await asyncio.wait_for(third.finish("third"), 5)
        return wall

    assert in_virtual_time(scene()).answer_ids[-2:] == [2, 3]


def test_an_answer_that_was_dropped_on_the_way_holds_up_nobody() -> None:
    async def scene() -> list[int]:
        wall = Wall()
        dropped = wall.answer(1, 11, 12)
        second = wall.answer(2)
        del dropped
        gc.collect()
        await asyncio.wait_for(second.finish("text"), 5)
        return wall.answer_ids

    assert in_virtual_time(scene()) == [1, 1, 2]


def test_a_message_that_is_taken_away_has_no_record_when_it_goes() -> None:
    """Should the process die in between, what is missing is sent anew: nobody else deleted it."""

    async def scene() -> None:
        wall = Wall()
        one = wall.answer(1)
        one.update("Waiting: place 1")
        await asyncio.sleep(1)
        (discord_id,) = wall.messages
        assert discord_id in wall.records
        wall.is_away = True
        with pytest.raises(OutboxRetryError):
            await one.withdraw()
        assert discord_id not in wall.records
        wall.is_away = False
        await one.finish("an answer")
        assert wall.messages[discord_id] == (1, "an answer")
        assert wall.records == {discord_id: 1}, "it is there after all"

    in_virtual_time(scene())


def test_a_message_that_went_unknown_to_us_comes_again() -> None:
    """Discord deleted it, and what it answered was lost; that is no deletion by somebody else."""

    async def scene() -> None:
        wall = Wall(loses_answers=True)
        one = wall.answer(1)
        one.update("Waiting: place 1")
        await asyncio.sleep(1)
        with pytest.raises(OutboxRetryError):
            await one.withdraw()
        assert not wall.messages
        assert (await one.finish("an answer")).outcome is Outcome.SHOWN
        ((discord_id, said),) = wall.messages.items()
        assert (said, wall.records) == ((1, "an answer"), {discord_id: 1})

    in_virtual_time(scene())


def test_messages_of_before_are_moved_only_where_nothing_is_lost_by_it() -> None:
    async def scene(*, can_move: bool) -> list[int]:
        wall = Wall()
        first, second = wall.answer(1, 11), wall.answer(2, 12, can_move=can_move)
        wall.check = lambda: None  # type: ignore[method-assign]
        await asyncio.gather(first.finish(WORDS[:3000]), second.finish("I was restarted."))
        return wall.answer_ids

    assert in_virtual_time(scene(can_move=True)) == [1, 1, 2]
    assert in_virtual_time(scene(can_move=False)) == [1, 2, 1]


def test_who_shows_something_else_in_the_same_messages_is_not_disturbed() -> None:
    async def scene() -> str:
        wall = Wall()
        repair = wall.answer(1, 11)
        ending = asyncio.create_task(repair.finish("the former answer"))
        await asyncio.sleep(0)
        again = wall.answer(5, 11)
        again.update("the new answer")
        assert (await ending).outcome is Outcome.FAILED
        await again.finish("the new answer")
        await asyncio.sleep(60)
        (said,) = [text for _, text in wall.messages.values()]
        return said

    assert in_virtual_time(scene()) == "the new answer"
