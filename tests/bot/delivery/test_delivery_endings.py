"""What a delivery does when Discord refuses, hangs or takes the message away, and when its caller goes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re

import pytest

import bot.delivery.delivery as delivery_module
from bot.delivery.board import REFUSAL
from bot.delivery.delivery import DeliveryResult, Outcome
from bot.delivery.outbox import (
    Buttons,
    OutboxClosedError,
    OutboxForbiddenError,
    OutboxGoneError,
    OutboxRefusedError,
    OutboxRetryError,
)
from bot.delivery.render import render
from tests.bot.delivery.delivery_stage import (
    INTERVAL_S,
    WORDS,
    FakeDiscord,
    Stage,
    in_virtual_time,
    now_s,
    play,
)


def test_finish_twice_is_one_ending_and_updates_after_it_are_ignored() -> None:
    async def scene(stage: Stage) -> tuple[DeliveryResult, DeliveryResult]:
        both = await asyncio.gather(stage.delivery.finish("first"), stage.delivery.finish("second"))
        stage.delivery.update("third")
        assert await stage.delivery.finish("fourth") is both[0]
        await asyncio.sleep(10)
        return both

    (first, second), stage = play(scene)
    assert first is second
    assert [call.content for call in stage.discord.calls] == ["first"]


def test_the_ending_is_shown_even_if_the_caller_is_cancelled() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream("text", num_steps=1)
        caller = asyncio.create_task(stage.delivery.finish("the whole text"))
        await asyncio.sleep(0.2)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert stage.discord.contents == ["text"]
        return await stage.delivery.finish("ignored")

    result, stage = play(scene)
    assert result.outcome is Outcome.SHOWN
    assert stage.discord.messages == {100: ("the whole text", Buttons.REGENERATE)}


@pytest.mark.parametrize("error", [OutboxRetryError(), OutboxRetryError(4.0), TimeoutError()])
def test_a_refused_edit_comes_again_later_with_the_newest_text(error: Exception) -> None:
    async def scene(stage: Stage) -> None:
        stage.delivery.update("one")
        await asyncio.sleep(2)
        stage.discord.failures = [error, error]
        for n in range(200):
            stage.delivery.update(f"text {n}")
            await asyncio.sleep(0.1)

    _, stage = play(scene)
    _, first, second, third, *_ = stage.discord.calls
    known_s = error.retry_after if isinstance(error, OutboxRetryError) and error.retry_after else INTERVAL_S
    assert second.at_s - first.at_s == pytest.approx(max(known_s, INTERVAL_S), abs=0.2)
    assert third.at_s - second.at_s == pytest.approx(max(known_s, 2.0), abs=0.2)
    numbers = [int(call.content.split()[1]) for call in (first, second, third)]
    assert numbers[2] - numbers[1] > 15


def test_a_send_that_may_have_arrived_is_repeated_unchanged_and_edited_afterwards() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        stage.delivery.update("begin")
        await asyncio.sleep(0.5)
        return await stage.delivery.finish("beginning and end")

    result, stage = play(scene, failures=[OutboxRetryError()])
    assert result.outcome is Outcome.SHOWN
    assert [call.content for call in stage.discord.calls] == ["begin", "begin", "beginning and end"]
    assert stage.discord.buttons == [Buttons.REGENERATE]
    assert stage.parts == {0: result.parts[0]}


def test_the_final_edit_is_tried_again_until_it_is_shown() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream("text", num_steps=1)
        stage.discord.failures = [OutboxRetryError() for _ in range(5)]
        return await stage.delivery.finish("the whole text")

    result, stage = play(scene)
    assert result.outcome is Outcome.SHOWN
    assert stage.discord.contents == ["the whole text"]
    waits = [later.at_s - sooner.at_s for sooner, later in itertools.pairwise(stage.discord.calls)]
    assert waits[1:] == pytest.approx([1.2, 2, 4, 8, 16])


def test_finish_gives_up_in_time_and_says_so() -> None:
    async def scene(stage: Stage) -> tuple[DeliveryResult, float]:
        await stage.stream("text", num_steps=1)
        stage.discord.failures = [OutboxRetryError() for _ in range(1000)]
        started = now_s()
        return await stage.delivery.finish("the whole text"), now_s() - started

    (result, took_s), stage = play(scene)
    assert result == DeliveryResult(Outcome.FAILED, (100,))
    assert took_s == pytest.approx(90)
    assert len(stage.discord.calls) < 12


def test_finish_does_not_wait_for_a_limit_longer_than_its_time() -> None:
    async def scene(stage: Stage) -> tuple[DeliveryResult, float]:
        stage.delivery.update("text")
        await asyncio.sleep(1)
        started = now_s()
        return await stage.delivery.finish("the whole text"), now_s() - started

    (result, took_s), _ = play(scene, failures=[OutboxRetryError(3600)])
    assert result.outcome is Outcome.FAILED
    assert took_s == pytest.approx(90)


def test_a_request_that_hangs_is_given_up_and_done_again() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream("text", num_steps=1)
        stage.discord.failures = [1e6]
        return await stage.delivery.finish("the whole text")

    result, stage = play(scene)
    assert result.outcome is Outcome.SHOWN
    hung, again = stage.discord.times_of(100)[1:]
    assert again - hung > delivery_module.REQUEST_TIMEOUT_S


def test_an_outbox_that_does_not_let_go_cannot_hold_the_caller() -> None:
    class Stubborn(FakeDiscord):
        async def edit(
            self, discord_id: int, content: str, *, buttons: Buttons, attachment: str = ""
        ) -> None:
            release = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(500, release.set_result, None)
            while not release.done():
                try:
                    await asyncio.shield(release)
                except asyncio.CancelledError:
                    continue

    async def main() -> tuple[DeliveryResult, float]:
        stage = Stage(Stubborn())
        await stage.stream("text", num_steps=1)
        started = now_s()
        result = await stage.delivery.finish("the whole text")
        took_s = now_s() - started
        await stage.delivery.close()
        return result, took_s

    result, took_s = in_virtual_time(main())
    assert result.outcome is Outcome.FAILED
    assert took_s == pytest.approx(90)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OutboxGoneError(), Outcome.GONE),
        (OutboxForbiddenError(), Outcome.FORBIDDEN),
        (RuntimeError("a fault of ours"), Outcome.FAILED),
    ],
)
@pytest.mark.parametrize("num_before", [0, 1, 4])
def test_an_answer_that_cannot_be_shown_any_more_is_reported(
    error: Exception, outcome: Outcome, num_before: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        streaming = asyncio.create_task(stage.stream(WORDS, num_steps=500))
        await stage.delivery.lost.wait()
        assert stage.delivery.is_lost
        num_calls = len(stage.discord.calls)
        await streaming
        result = await stage.delivery.finish(WORDS)
        assert num_calls == num_before + 1
        after = stage.discord.calls[num_calls:]
        is_closed = outcome is Outcome.FORBIDDEN and num_before > 0
        assert {call.verb for call in after} == ({"edit"} if is_closed else set()), "nothing more is sent"
        return result

    with caplog.at_level(logging.DEBUG):
        result, stage = play(scene, failures=[*([0.05] * num_before), error])
    assert result.outcome is outcome
    assert result.parts == tuple(stage.parts.values())
    assert not re.search(r"word\d+ word", caplog.text), "what people write is not logged"


def test_a_thread_that_is_closed_for_a_while_loses_nothing() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream("one", num_steps=1)
        stage.discord.failures = [OutboxClosedError() for _ in range(4)]
        stage.delivery.update("one two")
        await asyncio.sleep(20)
        assert not stage.delivery.is_lost, "somebody may open it soon"
        assert stage.discord.contents == ["one two"]
        return await stage.delivery.finish("one two three")

    result, stage = play(scene)
    assert result.outcome is Outcome.SHOWN
    assert stage.discord.contents == ["one two three"]


def test_a_thread_that_stays_closed_is_forbidden_and_asked_for_seldom() -> None:
    async def scene(stage: Stage) -> tuple[DeliveryResult, float]:
        await stage.stream("one", num_steps=1)
        stage.discord.failures = [OutboxClosedError() for _ in range(1000)]
        started_s = now_s()
        return await stage.delivery.finish("one two"), now_s() - started_s

    (result, took_s), stage = play(scene)
    assert result == DeliveryResult(Outcome.FORBIDDEN, (100,)), (
        "so that it is looked at when the thread opens"
    )
    assert took_s == pytest.approx(90)
    assert len(stage.discord.calls) < 12


def test_where_no_more_may_be_sent_the_last_message_says_so_without_buttons() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream("one", num_steps=1)
        stage.discord.failures = [0.05, OutboxForbiddenError()]
        return await stage.delivery.finish(WORDS)

    result, stage = play(scene)
    assert result.outcome is Outcome.FORBIDDEN
    ((content, buttons),) = stage.discord.messages.values()
    assert content.endswith(f"\n-# {delivery_module.CLOSED}")
    assert content.startswith(render(WORDS, final=True)[0][:1900])
    assert len(content) <= 2000
    assert buttons is Buttons.NONE


def test_loss_at_the_final_edit_is_a_result_and_not_an_error() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream("text", num_steps=1)
        stage.discord.messages.clear()
        return await stage.delivery.finish("the whole text")

    result, stage = play(scene)
    assert result.outcome is Outcome.GONE
    assert stage.delivery.is_lost


def test_a_record_that_fails_does_not_stop_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    class FullDisk(Stage):
        async def record(self, position: int, discord_id: int) -> None:
            raise OSError("disk full")

    async def main() -> tuple[DeliveryResult, list[str]]:
        stage = FullDisk(FakeDiscord())
        await stage.stream(WORDS, num_steps=20)
        return await stage.delivery.finish(WORDS), stage.discord.contents

    result, contents = in_virtual_time(main())
    assert result.outcome is Outcome.SHOWN
    assert contents == render(WORDS, final=True)
    assert "could not be recorded" in caplog.text


def test_close_gives_up_and_finish_says_so() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        stage.discord.failures = [1e6]
        ending = asyncio.create_task(stage.delivery.finish("text"))
        await asyncio.sleep(1)
        await stage.delivery.close()
        return await ending

    result, stage = play(scene)
    assert result == DeliveryResult(Outcome.FAILED, ())
    assert stage.discord.num_in_flight == 0


def test_a_very_long_answer_ends_as_a_text_file() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        await stage.stream(WORDS, num_steps=100)
        return await stage.delivery.finish(WORDS, note="Stopped.", file_note="All of it is in the file.")

    result, stage = play(scene, max_parts=3)
    assert result.outcome is Outcome.SHOWN
    parts = render(WORDS, final=True)
    assert len(parts) > 3
    assert "\n".join(stage.discord.contents) == "\n".join(
        [*parts[:3], "-# Stopped. All of it is in the file."]
    )
    *others, last = stage.discord.attachments.values()
    assert (set(others), last) == ({""}, WORDS)
    assert stage.discord.buttons[-1] is Buttons.REGENERATE


def test_a_file_goes_when_the_next_answer_is_short() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        stage.discord.attachments[1] = "old"
        return await stage.delivery.finish("short")

    _, stage = play(scene, existing=[1])
    assert stage.discord.attachments == {1: ""}


def test_what_discord_does_not_take_is_given_up_at_once_with_what_can_still_be_shown() -> None:
    async def scene(stage: Stage) -> tuple[DeliveryResult, float]:
        await stage.stream("text", num_steps=1)
        stage.discord.failures = [OutboxRefusedError()]
        started = now_s()
        return await stage.delivery.finish("text that is refused", note="Stopped."), now_s() - started

    (result, took_s), stage = play(scene)
    assert result.outcome is Outcome.SHOWN
    assert took_s < 2 * INTERVAL_S
    assert stage.discord.messages == {100: (REFUSAL, Buttons.REGENERATE)}


def test_a_refusal_in_the_middle_delays_nothing_but_the_text_it_is_of() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        stage.delivery.update("one")
        await asyncio.sleep(2)
        stage.discord.failures = [OutboxRefusedError()]
        stage.delivery.update("one two")
        await asyncio.sleep(5)
        assert stage.discord.contents == ["one"]
        assert len(stage.discord.calls) == 2, "it is not asked for again"
        stage.delivery.update("one two three")
        await asyncio.sleep(2)
        assert stage.discord.contents == ["one two three"]
        return await stage.delivery.finish("one two three four")

    result, stage = play(scene)
    assert result.outcome is Outcome.SHOWN
    assert stage.discord.contents == ["one two three four"]


def test_a_refused_part_of_a_long_answer_does_not_take_the_others_with_it() -> None:
    async def scene(stage: Stage) -> DeliveryResult:
        stage.discord.failures = [0.05, OutboxRefusedError()]
        return await stage.delivery.finish(WORDS[:5000])

    result, stage = play(scene)
    parts = render(WORDS[:5000], final=True)
    assert result.outcome is Outcome.SHOWN
    assert stage.discord.contents == [parts[0], REFUSAL, parts[2]]
