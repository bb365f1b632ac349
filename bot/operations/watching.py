"""Which figures of a running bot are read at each scrape, and that they are served while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from bot.conversation.service import ChatService
from bot.operations.health import State, Vitals
from bot.operations.http import serving
from bot.operations.loop_lag import measure_lag
from bot.operations.metrics import Metrics

_log = logging.getLogger(__name__)


class Watched(Protocol):
    """What is looked at: the bot on Discord."""

    chat: ChatService
    metrics: Metrics

    @property
    def latency(self) -> float:
        """Seconds that Discord's gateway takes to answer a heartbeat; not a number before the first one."""

    def vitals(self) -> Vitals:
        """Return how the bot is now."""


@asynccontextmanager
async def watched(bot: Watched, port: int) -> AsyncIterator[None]:
    """Count errors and, with a port, serve figures and health meanwhile. Raises `PortError`."""
    counter = bot.metrics.error_counter()
    logging.getLogger().addHandler(counter)
    try:
        if not port:
            yield
            return
        watch(bot)
        async with serving(port, bot.metrics, bot.vitals) as chosen:
            _log.info("Figures at http://127.0.0.1:%d/metrics, health at /healthz", chosen)
            lag = asyncio.create_task(measure_lag(bot.metrics.lagged))
            try:
                yield
            finally:
                lag.cancel()
    finally:
        logging.getLogger().removeHandler(counter)


def watch(bot: Watched) -> None:
    """Have the figures of `bot` read from now on. Call it once."""
    chat, metrics = bot.chat, bot.metrics
    metrics.watch("answers_running", "Answers being made.", lambda: chat.num_running)
    metrics.watch("questions_waiting", "Questions that wait for their turn.", lambda: chat.num_waiting)
    metrics.watch("engine_requests", "Requests in the engine.", lambda: chat.engine.load.num_requests)
    metrics.watch("kv_tokens", "Tokens whose KV is held.", lambda: chat.engine.load.num_kv_tokens)
    metrics.watch("kv_tokens_max", "Tokens whose KV may be held.", lambda: chat.engine.load.max_kv_tokens)
    metrics.watch("gateway_latency_seconds", "Latency of Discord's gateway.", lambda: bot.latency)
    for state in State:
        metrics.watch(f"is_{state}", f"1 while the bot is {state}.", lambda s=state: bot.vitals().state is s)  # type: ignore[misc]
