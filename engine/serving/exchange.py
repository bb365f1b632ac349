"""One answer on its way to a client: whole, or as a stream of events; it ends when the client leaves.

Speaks ASGI.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Hashable
from typing import Any

from starlette.types import Receive, Send

from engine.serving.answers import Wording, dump, event
from engine.serving.errors import ApiError
from engine.serving.requests import Asked
from engine.serving.service import Record, Service
from engine.serving.streaming import STALLED_S, EventStream, Pieces
from engine.types import Usage


class ClientGoneError(Exception):
    """The client left before the end."""


class Exchange:
    """Carries out one request. keys: who asks, from the widest group to the narrowest."""

    def __init__(
        self,
        service: Service,
        asked: Asked,
        keys: tuple[Hashable, ...],
        record: Record,
        receive: Receive,
        send: Send,
    ) -> None:
        self._service = service
        self._asked = asked
        self._keys = keys
        self._record = record
        self._receive = receive
        self._send = send
        self._came_s = asyncio.get_running_loop().time()
        self._is_turned_away = False
        self._work: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Answer. Raises `ApiError` unless the answer has begun, and `ClientGoneError`."""
        name, fingerprint = self._service.engine.info.name, f"fp_{self._service.fingerprint[:12]}"
        wording = Wording(self._asked, name, self._record.request_id, int(time.time()), fingerprint)
        if not self._asked.is_stream:
            await self._race(self._whole(wording))
            return
        stream = EventStream(self._send)
        pieces = Pieces(stream, wording, wording.opening())
        try:
            await self._race(self._stream(wording, stream, pieces), stream.keep_alive())
        except ApiError as error:
            if not stream.is_begun:
                raise
            self._record.tokens += f" failed={error.code}"
            await _unless_stalled(pieces.end(event(error.body)))
        finally:
            pieces.close()

    async def _stream(self, wording: Wording, stream: EventStream, pieces: Pieces) -> None:
        def tell(place: int) -> None:
            stream.place = place

        mark = self._asked.mark
        async with self._service.answering(self._asked, self._keys, tell) as generation:
            self._begin()
            async for piece in generation:
                await pieces.add(mark + piece)
                mark = ""
        if (completion := generation.completion) is None:
            raise ApiError(500, "The answer has no end.", code="generation_failed")
        self._note(completion.usage)
        await pieces.end(wording.ending(completion))

    async def _whole(self, wording: Wording) -> None:
        async with self._service.answering(self._asked, self._keys, lambda _place: None) as generation:
            self._begin()
            text = self._asked.mark + "".join([piece async for piece in generation])
        if (completion := generation.completion) is None:
            raise ApiError(500, "The answer has no end.", code="generation_failed")
        self._note(completion.usage)
        await _unless_stalled(send_body(self._send, wording.whole(text, completion)))

    async def _race(self, work: Coroutine[Any, Any, None], *besides: Coroutine[Any, Any, None]) -> None:
        with self._service.open(self._turn_away) as self._begun:
            self._work = asyncio.ensure_future(work)
            try:
                await until_gone(self._work, self._receive, *besides)
            except ClientGoneError:
                if self._is_turned_away:
                    self._service.check_open()
                raise

    def _begin(self) -> None:
        self._begun()
        self._service.metrics.began(asyncio.get_running_loop().time() - self._came_s)

    def _turn_away(self) -> None:
        self._is_turned_away = True
        if self._work is not None:
            self._work.cancel()

    def _note(self, usage: Usage) -> None:
        self._service.metrics.answered(self._record.key, usage)
        self._record.tokens = (
            f" prompt={usage.num_prompt_tokens} cached={usage.num_cached_tokens} new={usage.num_new_tokens}"
            f" first={usage.time_to_first_token_s:.3f}s"
        )


async def until_gone(work: asyncio.Task[None], receive: Receive, *besides: Coroutine[Any, Any, None]) -> None:
    """Wait for `work`, and cancel it when the client leaves or one of `besides` ends.

    Raises what `work` raises, or `ClientGoneError` where it was cancelled.
    """
    others = [asyncio.ensure_future(one) for one in (_gone(receive), *besides)]
    try:
        await asyncio.wait({work, *others}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (work, *others):
            task.cancel()
        await asyncio.wait({work, *others})
        for task in others:  # what a client that left causes there is told to nobody
            if not task.cancelled():
                task.exception()
    if work.cancelled():
        raise ClientGoneError
    work.result()


async def _unless_stalled(sending: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(STALLED_S):
            await sending
    except TimeoutError:
        raise ClientGoneError from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_body(
    send: Send, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None
) -> None:
    """Send a whole response of JSON."""
    fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    """Send an error."""
    await send_body(send, dump(error.body), status=error.status, headers=error.headers)
