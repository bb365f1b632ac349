"""Figures and health over HTTP on the loopback."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bot.errors import EmptyQuestionError
from bot.operations.health import PortError, Vitals, measure_lag, serving, watched
from bot.operations.metrics import Metrics
from engine.types import Completion, FinishReason, Health, Usage
from storage.conversations import MessageState
from tests.fakes import ScriptedEngine

WELL = Vitals(Health.READY, True, 1, 2)


def figures(exposition: bytes) -> dict[str, float]:
    """Read the figures as Prometheus does; labels are part of the name."""
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


def test_an_answer_counts_with_its_tokens_and_times() -> None:
    metrics = Metrics()
    usage = Usage(30, 10, 12, 7, time_to_first_token_s=0.3, duration_s=2.5)
    metrics.answered(MessageState.COMPLETE, Completion("text", FinishReason.STOP, usage))
    metrics.answered(MessageState.FAILED, None)
    found = figures(metrics.exposition())
    assert found["llamacord_answers_total/complete"] == found["llamacord_answers_total/failed"] == 1
    assert found["llamacord_tokens_total/prompt"] == 12, "what was computed of it until it was stopped"
    assert found["llamacord_tokens_total/cached"] == 10
    assert found["llamacord_tokens_total/answer"] == 7
    assert found["llamacord_time_to_first_token_seconds_sum"] == 0.3
    assert found["llamacord_answer_duration_seconds_count"] == 1


def test_refusals_and_errors_count_by_reason_and_origin() -> None:
    metrics = Metrics()
    metrics.refused(EmptyQuestionError())
    log = logging.getLogger("bot.some.file")
    log.addHandler(counter := metrics.error_counter())
    log.error("what happened is not in the figures")
    log.warning("no error")
    log.removeHandler(counter)
    found = figures(metrics.exposition())
    assert found["llamacord_refusals_total/EmptyQuestion"] == 1
    assert found["llamacord_errors_total/bot.some.file"] == 1
    assert b"what happened" not in metrics.exposition()


def test_two_bots_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.answered(MessageState.COMPLETE, None)
    assert "llamacord_answers_total/complete" not in figures(second.exposition())


async def test_a_blocked_loop_shows() -> None:
    metrics = Metrics()
    lag = asyncio.create_task(measure_lag(metrics.lagged))
    await asyncio.sleep(0.3)
    time.sleep(0.4)  # noqa: ASYNC251 - this is the fault that is to be found
    await asyncio.sleep(0.01)
    lag.cancel()
    found = figures(metrics.exposition())
    assert 0.1 < found["llamacord_loop_lag_seconds_sum"] < 0.5


async def test_figures_and_health_are_served_on_the_loopback_only() -> None:
    metrics, vitals = Metrics(), [WELL]
    metrics.watch("questions_waiting", "Waiting.", lambda: vitals[0].num_waiting)
    async with serving(0, metrics, lambda: vitals[0]) as port, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            assert figures(await response.read())["llamacord_questions_waiting"] == 2
        async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
            assert response.status == 200
            assert await response.json() == {"state": "busy", "running": 1, "waiting": 2}
        vitals[0] = Vitals(Health.UNHEALTHY, True, 0, 0)
        async with session.get(f"http://127.0.0.1:{port}/healthz") as response:
            assert (response.status, (await response.json())["state"]) == (503, "failed")
        with socket.socket() as elsewhere:
            elsewhere.bind(("0.0.0.0", 0))  # noqa: S104 - an address that is not the loopback
            assert elsewhere.connect_ex(("127.0.0.2", port)) != 0


async def test_a_port_in_use_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortError, match=r"METRICS_PORT .* at 127\.0\.0\.1 .* in use"):
            async with serving(taken.getsockname()[1], Metrics(), lambda: WELL):
                pass


@dataclass
class Bot:
    """What is watched, standing still."""

    chat: Any
    metrics: Metrics
    latency: float = 0.05

    def vitals(self) -> Vitals:
        return WELL


async def test_a_running_bot_is_served_and_its_errors_count() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chat = SimpleNamespace(num_running=1, num_waiting=2, num_unshown=0, engine=ScriptedEngine())
    async with watched(Bot(chat, Metrics()), port), aiohttp.ClientSession() as session:
        logging.getLogger("bot.some.file").error("it broke")
        async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
            found = figures(await response.read())
    assert found["llamacord_gateway_latency_seconds"] == 0.05
    assert found["llamacord_kv_tokens_max"] == chat.engine.max_kv_tokens
    assert found["llamacord_is_busy"] == 1
    assert found["llamacord_errors_total/bot.some.file"] == 1


async def test_other_machines_see_the_figures_where_the_operator_says_so() -> None:
    async with serving(0, Metrics(), lambda: WELL, "0.0.0.0") as port:  # noqa: S104 - as in a container
        with socket.create_connection(("127.0.0.2", port)):
            pass
    async with serving(0, Metrics(), lambda: WELL) as port:
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port)):
            pass


async def test_without_a_port_nothing_is_served() -> None:
    metrics = Metrics()
    async with watched(Bot(SimpleNamespace(), metrics), 0):
        logging.getLogger("bot.some.file").error("it broke")
    assert "llamacord_is_busy" not in figures(metrics.exposition())
    assert figures(metrics.exposition())["llamacord_errors_total/bot.some.file"] == 1
