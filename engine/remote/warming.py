"""A prompt that is computed ahead somewhere else."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from engine.remote.answer import Asked
from engine.remote.replicas import Replicas
from engine.remote.wire import EventReader, RefusedError, Wire, WireError, parse_object


class RemoteWarming:
    """Satisfies `engine.types.Warming`. It begins at once, where the conversation's answers are made."""

    def __init__(self, asked: Asked, replicas: Replicas, wire: Wire) -> None:
        self._asked = asked
        self._replicas = replicas
        self._wire = wire
        self._ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self._make())
        self._task.add_done_callback(self._end)

    def __await__(self) -> Generator[Any, None, bool]:
        return asyncio.shield(self._ended).__await__()

    def cancel(self) -> None:
        """Give it up: the connection is closed."""
        self._task.cancel()

    def _end(self, task: asyncio.Task[bool]) -> None:
        has_failed = task.cancelled() or task.exception() is not None
        if not self._ended.done():
            self._ended.set_result(not has_failed and task.result())

    async def _make(self) -> bool:
        asked = self._asked
        replica = self._replicas.choose(asked.session, len(asked.prompt.ids))
        if replica is None:
            return False
        headers = {"x-fingerprint": asked.model.description.fingerprint}
        if asked.session:
            headers["x-session-id"] = asked.session
        reader = EventReader()
        try:
            stream = self._wire.stream(
                replica.address, "/engine/warm", {"prompt": list(asked.prompt.ids)}, headers
            )
            async with stream as chunks:
                async for chunk in chunks:
                    for event in reader.feed(chunk):
                        if event.data:
                            return parse_object(event.data).get("kept") is True
        except (WireError, RefusedError):
            return False
        return False
