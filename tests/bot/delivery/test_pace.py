"""Twenty streams at once stay below Discord's limits, and each ends complete (ask 8)."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from bot.delivery.column import EDIT_INTERVAL_S
from bot.delivery.delivery import Delivery
from bot.delivery.render import render
from tests.bot.delivery.delivery_stage import FakeDiscord, Stage, in_virtual_time

NUM_STREAMS = 20
MAX_EDITS = 5
WINDOW_S = 5.0
TEXT = "".join(f"word{number} " for number in range(900))


@pytest.mark.parametrize("latency_s", [0.0, 0.2, 1.0])
def test_twenty_streams_stay_below_five_edits_in_five_seconds_each(latency_s: float) -> None:
    async def stream(number: int) -> Stage:
        stage = Stage(FakeDiscord(latency_s=latency_s))
        stage.delivery = Delivery(
            stage.discord, answer_id=number, on_part=stage.record, min_interval_s=EDIT_INTERVAL_S
        )
        await asyncio.sleep(number * 0.013)
        await stage.stream(TEXT, num_steps=600, interval_s=0.03)
        await stage.delivery.finish(TEXT)
        return stage

    async def main() -> list[Stage]:
        return await asyncio.gather(*(stream(number) for number in range(NUM_STREAMS)))

    for stage in in_virtual_time(main()):
        of_channel = [call.at_s for call in stage.discord.calls]
        assert len(of_channel) > 10, "it is a stream"
        for discord_id in stage.discord.messages:
            times = stage.discord.times_of(discord_id)
            for first, fifth in zip(times, itertools.islice(times, MAX_EDITS - 1, None), strict=False):
                assert fifth - first >= WINDOW_S, "fewer than five requests in any five seconds"
        assert stage.discord.contents == render(TEXT, final=True), "the last edit is the complete answer"
