"""The wire as HTTP; the only file of the engine that imports `aiohttp`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp

from engine.remote.wire import MAX_REPLY_BYTES, Patience, RefusedError, WireError

_POOL_S = 15.0
"""How long an unused connection is kept: shorter than servers keep theirs."""
_MAX_ERROR_BYTES = 64 * 2**10
_SLOWEST = 100_000
"""Bytes that come in a second at least: a tokenizer of 30 MB has five minutes."""
_OK = range(200, 300)


class HttpWire:
    """Satisfies `Wire`. key: what the servers know us by, none if it is empty. Make it on the event loop."""

    def __init__(self, key: str, patience: Patience) -> None:
        self._patience = patience
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_POOL_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "llamacord", **({"Authorization": f"Bearer {key}"} if key else {})},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=patience.connect_s),
        )

    async def get(self, address: str, path: str, *, max_bytes: int = MAX_REPLY_BYTES) -> bytes:
        """See `Wire.get`."""
        response = await self._ask("GET", address, path)
        try:
            return await self._read(response, max_bytes)
        finally:
            response.release()

    async def post(self, address: str, path: str) -> None:
        """See `Wire.post`."""
        (await self._ask("POST", address, path, json={})).release()

    @asynccontextmanager
    async def stream(
        self, address: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Wire.stream`."""
        response = await self._ask("POST", address, path, json=body, headers=headers)
        chunks = self._chunks(response)
        try:
            yield chunks
        finally:
            await chunks.aclose()
            if not response.content.at_eof():
                response.close()  # the server ends what is left of it

    async def close(self) -> None:
        """See `Wire.close`."""
        await self._session.close()

    async def _ask(self, method: str, address: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        """Return the response. Redirections are not followed: they would carry the key somewhere else."""
        patience = self._patience
        with _as_wire_errors():
            async with asyncio.timeout(patience.connect_s + patience.silence_s):
                response = await self._session.request(
                    method, f"{address}{path}", allow_redirects=False, **options
                )
        if response.status in _OK:
            return response
        try:
            said = await self._read(response, _MAX_ERROR_BYTES)
        finally:
            response.close()
        raise RefusedError.of(response.status, said, response.headers.get("Retry-After", ""))

    async def _read(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        body = bytearray()
        with _as_wire_errors():
            async with asyncio.timeout(self._patience.ask_s + max_bytes / _SLOWEST):
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > max_bytes:
                        raise WireError("it sends more than it should", has_begun=True)
        return bytes(body)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        while True:
            with _as_wire_errors():
                async with asyncio.timeout(self._patience.silence_s):
                    chunk = await response.content.readany()
            if not chunk:
                return
            yield chunk


@contextmanager
def _as_wire_errors() -> Iterator[None]:
    """Only of a connection that was never there it is known that the request was not taken."""
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        reason = getattr(error, "strerror", None) or "there is no connection"
        raise WireError(str(reason)) from error
    except TimeoutError:
        raise WireError("it says nothing", has_begun=True) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise WireError(str(reason), has_begun=True) from error
