"""How the bot is, and the port where programs may ask: `/healthz`, and `/metrics` for Prometheus.

Owns which figures are read at each scrape. Knows nothing of how they are counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from bot.conversation.service import ChatService
from bot.operations.metrics import CONTENT_TYPE, Metrics
from bot.tasks import Tasks
from engine.types import Health
from storage.shards import EVERYTHING, Shards

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
LAG_INTERVAL_S = 0.5


class PortError(Exception):
    """The port cannot be had. The message is a sentence for the operator."""


class State(StrEnum):
    """What can be expected of the bot now."""

    READY = "ready"
    BUSY = "busy"
    """Questions wait."""
    RECOVERING = "recovering"
    """The model is being loaded anew after a fault, or its servers are away."""
    CONNECTING = "connecting"
    """The connection to Discord is not there, or not yet."""
    FAILED = "failed"
    """The model is gone for good: the operator is needed."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known at one moment."""

    engine: Health
    is_connected: bool
    num_running: int
    num_waiting: int
    shards: Shards = EVERYTHING

    @property
    def state(self) -> State:
        """The worst that applies."""
        if self.engine in (Health.UNHEALTHY, Health.CLOSED):
            return State.FAILED
        if self.engine in (Health.RECOVERING, Health.AWAY):
            return State.RECOVERING
        if not self.is_connected:
            return State.CONNECTING
        return State.BUSY if self.num_waiting else State.READY

    @property
    def is_well(self) -> bool:
        """Whether nothing needs to be done about it; a model that recovers does so by itself."""
        return self.state in (State.READY, State.BUSY, State.RECOVERING)


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
async def watched(bot: Watched, port: int, host: str = HOST) -> AsyncIterator[None]:
    """Count errors and, with a port, serve figures and health meanwhile. Raises `PortError`."""
    counter = bot.metrics.error_counter()
    logging.getLogger().addHandler(counter)
    try:
        if not port:
            yield
            return
        watch(bot)
        async with serving(port, bot.metrics, bot.vitals, host) as chosen:
            _log.info("Figures at http://%s:%d/metrics, health at /healthz", host, chosen)
            async with Tasks() as tasks:
                tasks.start(measure_lag(bot.metrics.lagged), "measuring the loop's lag")
                yield
    finally:
        logging.getLogger().removeHandler(counter)


def watch(bot: Watched) -> None:
    """Have the figures of `bot` read from now on. Call it once."""
    chat, metrics = bot.chat, bot.metrics
    metrics.watch("answers_running", "Answers being made.", lambda: chat.num_running)
    metrics.watch("questions_waiting", "Questions that wait for their turn.", lambda: chat.num_waiting)
    metrics.watch("answers_unshown", "Answers made and still to be shown.", lambda: chat.num_unshown)
    metrics.watch("engine_requests", "Requests in the engine.", lambda: chat.engine.load.num_requests)
    metrics.watch("kv_tokens", "Tokens whose KV is held.", lambda: chat.engine.load.num_kv_tokens)
    metrics.watch("kv_tokens_max", "Tokens whose KV may be held.", lambda: chat.engine.load.max_kv_tokens)
    metrics.watch("gateway_latency_seconds", "Latency of Discord's gateway.", lambda: bot.latency)
    shards = bot.vitals().shards
    metrics.watch("shards", "Shards that this process has.", lambda: len(shards))
    metrics.watch("shard_first", "The first of them.", lambda: shards.first)
    metrics.watch("shards_of_all", "Shards that the bot has in all processes.", lambda: shards.count)
    for state in State:
        metrics.watch(f"is_{state}", f"1 while the bot is {state}.", lambda s=state: bot.vitals().state is s)  # type: ignore[misc]


@asynccontextmanager
async def serving(
    port: int, metrics: Metrics, vitals: Callable[[], Vitals], host: str = HOST
) -> AsyncIterator[int]:
    """Serve until the end of the `async with`, whose value is the port. Raises `PortError`."""
    from aiohttp import web  # 13 ms of a start, for those who set a port

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def show_health(_request: web.Request) -> web.Response:
        now = vitals()
        found = {"state": str(now.state), "running": now.num_running, "waiting": now.num_waiting}
        if now.shards != EVERYTHING:
            found["shards"] = str(now.shards)
        return web.json_response(found, status=200 if now.is_well else 503)

    application = web.Application()
    application.add_routes([web.get("/metrics", show_metrics), web.get("/healthz", show_health)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise PortError(
                f"METRICS_PORT {port} at {host} cannot be used: {error.strerror or 'unknown reason'}."
                " Set another one."
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def measure_lag(report: Callable[[float], None]) -> None:
    """Sleep a known time again and again, and report how much longer it took."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        report(max(0.0, loop.time() - due_s))
