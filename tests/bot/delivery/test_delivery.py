"""The pace and the order of a delivery, and what it makes of the messages of an earlier answer."""

from __future__ import annotations

import asyncio
import itertools
import re
import time

import pytest

from bot.delivery.board import PLACEHOLDER
from bot.delivery.delivery import EMPTY_ANSWER, DeliveryResult, Outcome
from bot.delivery.outbox import Buttons
from bot.delivery.render import render
from tests.bot.delivery.delivery_stage import INTERVAL_S, WORDS, Stage, play


async def stream_and_finish(stage: Stage) -> DeliveryResult:
    await stage.stream(WORDS, num_steps=400)
    return await stage.delivery.finish(WORDS)


@pytest.mark.parametrize("latency_s", [0.0, 0.05, 0.7, 3.0])
def test_no_message_is_edited_more_often_than_the_interval(latency_s: float) -> None:
    result, stage = play(stream_and_finish, latency_s=latency_s)
    assert result.outcome is Outcome.SHOWN
    for discord_id in result.parts:
        times = stage.discord.times_of(discord_id)
        gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert all(gap >= INTERVAL_S - 1e-9 for gap in gaps)
    assert len(stage.discord.calls) >= 5


def test_a_stream_is_shown_as_it_grows_and_completely_at_the_end() -> None:
    result, stage = play(stream_and_finish)
    assert stage.discord.contents == render(WORDS, final=True)
    assert list(result.parts) == list(stage.discord.messages) == list(stage.parts.values())
    assert list(stage.parts) == list(range(len(result.parts)))
    lengths = [len(call.content) for call in stage.discord.calls if call.discord_id == 100]
    assert lengths == sorted(lengths)
    assert len(lengths) > 3


def test_only_the_last_message_has_buttons() -> None:
    result, stage = play(stream_and_finish)
    num_parts = len(result.parts)
    assert num_parts > 3
    assert stage.discord.buttons == [Buttons.NONE] * (num_parts - 1) + [Buttons.REGENERATE]
    shown: dict[int, Buttons] = {}
    for call in stage.discord.calls:
        shown[call.discord_id] = call.buttons
        assert sum(buttons is not Buttons.NONE for buttons in shown.values()) <= 1
    assert {call.buttons for call in stage.discord.calls} == {
        Buttons.NONE,
        Buttons.STOP,
        Buttons.REGENERATE,
    }


def test_a_part_that_is_full_is_edited_once_more_and_then_left_alone() -> None:
    _, stage = play(stream_and_finish)
    last_first = max(index for index, call in enumerate(stage.discord.calls) if call.discord_id == 100)
    first_second = min(index for index, call in enumerate(stage.discord.calls) if call.discord_id == 101)
    assert last_first < first_second


def test_the_newest_text_wins() -> None:
    async def scene(stage: Stage) -> None:
        stage.delivery.update("one")
        await asyncio.sleep(0.1)
        for text in ("two", "three", "four"):
            stage.delivery.update(text)
            await asyncio.sleep(0.1)
        await asyncio.sleep(5)

    _, stage = play(scene)
    assert [call.content for call in stage.discord.calls] == ["one", "four"]


def test_a_burst_of_updates_costs_nothing() -> None:
    async def scene(stage: Stage) -> float:
        started = time.process_time()
        for _ in range(100_000):
            stage.delivery.update(WORDS)
        elapsed_s = time.process_time() - started
        assert not stage.discord.calls, "an update does no work itself"
        await stage.delivery.finish(WORDS)
        return elapsed_s

    elapsed_s, stage = play(scene)
    assert elapsed_s < 1
    assert len(stage.discord.calls) == len(render(WORDS, final=True))


def test_an_unchanged_text_asks_for_nothing() -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(100):
            stage.delivery.update("same")
            await asyncio.sleep(0.1)

    _, stage = play(scene)
    assert len(stage.discord.calls) == 1


def test_finish_before_the_first_send_sends_the_answer_at_once() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        return await stage.delivery.finish("short", note="Stopped.")

    result, stage = play(scene)
    assert result == DeliveryResult(Outcome.SHOWN, (100,))
    assert stage.discord.messages == {100: ("short\n-# Stopped.", Buttons.REGENERATE)}
    assert len(stage.discord.calls) == 1


def test_an_update_just_before_finish_is_not_shown_apart() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        stage.delivery.update("sho")
        return await stage.delivery.finish("short", buttons=Buttons.NONE)

    _, stage = play(scene)
    assert [(call.content, call.buttons) for call in stage.discord.calls] == [("short", Buttons.NONE)]


def test_a_blank_text_shows_a_placeholder_and_an_empty_answer_says_so() -> None:
    async def scene(stage: Stage) -> str:
        stage.delivery.update("")
        await asyncio.sleep(1)
        shown = stage.discord.contents[0]
        await stage.delivery.finish(" \n")
        return shown

    shown, stage = play(scene)
    assert shown == PLACEHOLDER
    assert stage.discord.contents == [f"-# {EMPTY_ANSWER}"]


def test_a_regenerated_answer_reuses_its_messages_and_deletes_those_left_over() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        stage.delivery.update("")
        await asyncio.sleep(1)
        assert stage.discord.contents == [PLACEHOLDER] * 3, "no old text stays below the new one"
        assert stage.discord.buttons == [Buttons.STOP, Buttons.NONE, Buttons.NONE]
        await stage.stream("a shorter text", num_steps=20)
        return await stage.delivery.finish("a shorter text")

    result, stage = play(scene, existing=[11, 12, 13])
    assert result == DeliveryResult(Outcome.SHOWN, (11,))
    assert stage.gone == [13, 12]
    assert stage.discord.messages == {11: ("a shorter text", Buttons.REGENERATE)}
    assert not stage.parts, "nothing new was sent"


def test_a_regenerated_answer_that_grows_goes_on_in_new_messages() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream(WORDS, num_steps=100)
        return await stage.delivery.finish(WORDS)

    result, stage = play(scene, existing=[11, 12])
    assert result.parts[:2] == (11, 12)
    assert stage.discord.contents == render(WORDS, final=True)
    assert stage.parts == dict(enumerate(result.parts[2:], start=2))
    assert not stage.gone


def test_finish_alone_replaces_old_messages() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        return await stage.delivery.finish("old text", note="Stopped.")

    result, stage = play(scene, existing=[11, 12])
    assert result == DeliveryResult(Outcome.SHOWN, (11,))
    assert stage.gone == [12]
    assert stage.discord.contents == ["old text\n-# Stopped."]


def test_an_old_message_that_is_gone_is_done_without() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        del stage.discord.messages[11], stage.discord.messages[13]
        return await stage.delivery.finish(WORDS)

    result, stage = play(scene, existing=[11, 12, 13])
    assert result.outcome is Outcome.SHOWN
    assert stage.gone == [11, 13]
    assert stage.discord.contents == render(WORDS, final=True)
    assert min(stage.parts) == 3, "a new message does not take the position of an old one"


def test_a_regenerated_answer_is_lost_when_its_only_message_is_gone() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        stage.discord.messages.clear()
        return await stage.delivery.finish("text")

    result, _ = play(scene, existing=[11])
    assert result.outcome is Outcome.GONE


def test_a_left_over_message_that_somebody_deleted_is_no_loss() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        del stage.discord.messages[12]
        return await stage.delivery.finish("text")

    result, stage = play(scene, existing=[11, 12])
    assert result == DeliveryResult(Outcome.SHOWN, (11,))
    assert stage.gone == [12]


def test_code_that_is_still_being_written_is_shown_as_code() -> None:
    text = "Look:\n```py\n" + "print('hello')\n" * 300 + "```\nDone."

    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream(text, num_steps=300)
        return await stage.delivery.finish(text)

    _, stage = play(scene)
    for call in stage.discord.calls:
        assert len(re.findall("```", call.content)) % 2 == 0


def test_old_messages_are_cleared_even_while_the_first_one_changes_all_the_time() -> None:
    async def scene(stage: Stage) -> None:
        await stage.stream(WORDS[:500], num_steps=50, interval_s=0.02)
        assert stage.discord.contents[1:] == [PLACEHOLDER] * 2

    play(scene, existing=[11, 12, 13])
