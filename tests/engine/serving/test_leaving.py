"""A client that leaves takes its request with it: in mid-answer, in line, and where nothing is streamed."""

from __future__ import annotations

import asyncio

import pytest

from engine.serving.service import ServingSettings
from engine.serving.streaming import STALLED_S
from tests.engine.serving.served import ENDLESS, Client, ServedScripts, served
from tests.fakes import Script
from tests.virtual_time import settle


@pytest.mark.parametrize("is_stream", [True, False])
def test_200_clients_that_leave_in_mid_answer_leave_nothing_running(is_stream: bool) -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        calls = [client.begin_chat(stream=is_stream) for _ in range(200)]
        await asyncio.sleep(1.5)
        assert engine.num_running == 8
        assert client.app.service.room.num_in_line == 192
        for call in calls:
            call.leave()
        await settle()  # no time passes
        assert engine.num_running == 0
        assert client.app.service.room.num_in_line == 0
        assert len(engine.generations) == 8, "whoever had left was not called any more"
        await asyncio.gather(*(call.task for call in calls))

    served(scene, ServedScripts([ENDLESS], max_kv_tokens=8 * 4096), ServingSettings(max_waiting=200))


def test_whoever_leaves_makes_room_for_the_next() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        first, second = client.begin_chat(stream=True), client.begin_chat(stream=True)
        await asyncio.sleep(1.2)
        assert second.answer.comments == [": waiting 1"]
        first.leave()
        await asyncio.sleep(1)
        assert second.answer.text.startswith("word ")
        assert not first.answer.is_whole
        second.leave()
        await asyncio.gather(first.task, second.task)

    served(scene, ServedScripts([ENDLESS], max_requests=1))


def test_a_stream_tells_the_place_in_line_and_that_it_lives() -> None:
    async def scene(client: Client, _engine: ServedScripts) -> None:
        first = client.begin_chat(stream=True)
        await asyncio.sleep(0.001)
        others = [client.begin_chat(stream=True) for _ in range(2)]
        await asyncio.sleep(8.5)
        assert first.answer.comments == [": ", ": "], "at first, and after five quiet seconds"
        assert others[0].answer.comments == [": waiting 1"] * 8
        assert others[1].answer.comments == [": waiting 2"] * 8
        for call in (*others, first):
            call.leave()
            await call.task

    served(scene, ServedScripts([Script(first_delay_s=30.0)], max_requests=1))


def test_a_client_that_reads_nothing_is_left() -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        call = client.begin_chat(stream=True)
        await asyncio.sleep(1)
        call.reads.clear()
        await asyncio.sleep(STALLED_S - 1)
        assert not call.task.done()
        await asyncio.sleep(3)
        assert call.task.done()
        assert engine.num_running == 0

    served(scene, ServedScripts([ENDLESS]))


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_reads_nothing_is_left_while_it_waits_and_at_the_end(is_stream: bool) -> None:
    async def scene(client: Client, engine: ServedScripts) -> None:
        call = client.begin_chat(stream=is_stream)
        await asyncio.sleep(3)
        call.reads.clear()  # a stream's next comment cannot be sent, and then its first word
        await asyncio.sleep(30 + STALLED_S + 3)
        assert call.task.done()
        assert engine.num_running == client.app.service.num_open == 0

    served(scene, ServedScripts([Script(first_delay_s=30.0)]))
