"""`/metrics` and `/healthz` on a loopback port. Knows nothing of what the figures mean."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from bot.operations.health import Vitals
from bot.operations.metrics import CONTENT_TYPE, Metrics

HOST = "127.0.0.1"


class PortError(Exception):
    """The port cannot be had. The message is a sentence for the operator."""


@asynccontextmanager
async def serving(port: int, metrics: Metrics, vitals: Callable[[], Vitals]) -> AsyncIterator[int]:
    """Serve until the end of the `async with`, whose value is the port. Raises `PortError`."""

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def show_health(_request: web.Request) -> web.Response:
        now = vitals()
        found = {"state": str(now.state), "running": now.num_running, "waiting": now.num_waiting}
        return web.json_response(found, status=200 if now.is_well else 503)

    application = web.Application()
    application.add_routes([web.get("/metrics", show_metrics), web.get("/healthz", show_health)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            raise PortError(
                f"METRICS_PORT {port} cannot be used: {error.strerror or 'unknown reason'}. Set another one."
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
