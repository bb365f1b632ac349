"""Bytes of real sockets: servers that refuse, cut, stall, redirect, send too much, or talk nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.remote.http_wire import HttpWire
from engine.remote.wire import MAX_LINE_BYTES, Event, EventReader, Patience, RefusedError, WireError

PATIENCE = Patience(connect_s=20.0, silence_s=20.0, ask_s=20.0)
QUICK = Patience(connect_s=0.1, silence_s=0.1, ask_s=0.1)
EVENTS = (
    b': waiting 3\n\n: \n\ndata: {"a": 1}\n\ndata:two\r\ndata: lines\r\n\r\n'
    b"id: 7\nevent: x\n\ndata: \xc3\xa9\n\n"
)
EXPECTED = [
    Event(comment=b"waiting 3"),
    Event(comment=b" "),
    Event(data=b'{"a": 1}'),
    Event(data=b"two\nlines"),
    Event(data="é".encode()),
]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@given(st.lists(st.integers(0, len(EVENTS)), max_size=12))
def test_events_are_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    reader, places = EventReader(), sorted({0, len(EVENTS), *cuts})
    found = [event for at, end in itertools.pairwise(places) for event in reader.feed(EVENTS[at:end])]
    assert found == EXPECTED


def test_what_has_no_end_is_no_event_and_not_collected_for_ever() -> None:
    assert EventReader().feed(b"data: half") == []
    for endless in (b"x" * 1000, b"data: " + b"x" * 1000 + b"\n"):
        reader = EventReader()

        def read(reader: EventReader = reader, endless: bytes = endless) -> None:
            for _ in range(MAX_LINE_BYTES):
                reader.feed(endless)

        with pytest.raises(WireError, match="end"):
            read()


@asynccontextmanager
async def talking(talk: Talk) -> AsyncIterator[str]:
    """Give the address of a server that does with each connection what it is told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def saying(*parts: bytes, then_s: float = 0.0) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        await asyncio.sleep(then_s)

    return talk


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


@asynccontextmanager
async def wire(patience: Patience = PATIENCE) -> AsyncIterator[HttpWire]:
    made = HttpWire("a key", patience)
    try:
        yield made
    finally:
        await made.close()


async def streamed(address: str, patience: Patience = PATIENCE) -> bytes:
    """Return all that comes. Raises what the wire raises, with what had come as its last argument."""
    found = bytearray()
    async with wire(patience) as http:
        try:
            async with http.stream(address, "/v1/completions", {"prompt": [1]}, {"x-a": "b"}) as chunks:
                async for chunk in chunks:
                    found += chunk
        except WireError as error:
            error.args = (*error.args, bytes(found))
            raise
    return bytes(found)


async def test_a_whole_stream_comes_whole_and_the_connection_is_used_again() -> None:
    heads: list[bytes] = []
    num_connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        while True:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readuntil(b"}")
            writer.write(HEAD + chunked(EVENTS) + b"0\r\n\r\n")

    async with talking(talk) as address, wire() as http:
        for _ in range(3):
            async with http.stream(address, "/v1/completions", {"prompt": [1]}, {"x-a": "b"}) as chunks:
                assert b"".join([chunk async for chunk in chunks]) == EVENTS
    assert num_connections == 1
    assert all(b"Authorization: Bearer a key" in head and b"x-a: b" in head for head in heads)


@pytest.mark.parametrize("at", [0, 1, 12, len(HEAD) - 1, len(HEAD), len(HEAD) + 2, len(HEAD) + 40])
async def test_a_stream_that_is_cut_anywhere_is_an_error(at: int) -> None:
    whole = HEAD + chunked(EVENTS)
    async with talking(saying(whole[:at])) as address:
        with pytest.raises(WireError) as caught:
            await streamed(address)
    assert caught.value.has_begun
    assert EVENTS.startswith(caught.value.args[-1])


async def test_a_connection_that_falls_silent_is_noticed() -> None:
    for said in (b"", HEAD, HEAD + chunked(EVENTS)):
        async with talking(saying(said, then_s=30)) as address:
            with pytest.raises(WireError, match="says nothing") as caught:
                await streamed(address, QUICK)
            assert caught.value.has_begun


async def test_a_server_that_says_that_it_lives_is_waited_for() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        for _ in range(12):
            writer.write(chunked(b": \n\n"))
            await asyncio.sleep(0.2)
        writer.write(chunked(b"data: 1\n\n") + b"0\r\n\r\n")

    async with talking(talk) as address:
        for _ in range(3):  # a machine that stands still for so long proves nothing
            with contextlib.suppress(WireError):
                assert (await streamed(address, Patience(silence_s=2.0))).endswith(b"data: 1\n\n")
                return
        pytest.fail("it was not waited for")


async def test_whoever_leaves_closes_the_connection() -> None:
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(HEAD + chunked(b": \n\n"))
        await reader.read()
        left.set()

    async with talking(talk) as address, wire() as http:
        async with http.stream(address, "/", {}, {}) as chunks:
            assert await anext(chunks) == b": \n\n"
        async with asyncio.timeout(10):
            await left.wait()


@pytest.mark.parametrize(
    ("said", "status", "retry_s"),
    [
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", 401, 0),
        (b"HTTP/1.1 429 Slow\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n", 429, 9),
        (b"HTTP/1.1 302 There\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", 302, 0),
        (b"HTTP/1.1 503 Away\r\nContent-Length: 5\r\n\r\n<htm>", 503, 0),
    ],
)
async def test_a_refusal_says_why_and_a_redirection_is_not_followed(
    said: bytes, status: int, retry_s: float
) -> None:
    async with talking(saying(said)) as address:
        for ask in (streamed, _get, _post):
            with pytest.raises(RefusedError) as caught:
                await ask(address)
            assert (caught.value.status, caught.value.retry_after_s) == (status, retry_s)


async def _get(address: str) -> bytes:
    async with wire() as http:
        return await http.get(address, "/engine/load", max_bytes=1000)


async def _post(address: str) -> bytes:
    async with wire() as http:
        await http.post(address, "/engine/forget")
    return b""


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_no_proper_reply_is_an_error_of_the_wire(said: bytes) -> None:
    async with talking(saying(said)) as address:
        with pytest.raises(WireError):
            await _get(address)


async def test_where_nobody_listens_there_is_nobody() -> None:
    async with talking(saying()) as address:
        pass
    for ask in (streamed, _get, _post):
        with pytest.raises(WireError) as caught:
            await ask(address)
        assert not caught.value.has_begun
    with pytest.raises(WireError):
        await _get("http://nowhere.invalid:1")


async def test_a_large_file_may_take_longer_than_a_short_reply() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
        for _ in range(3):
            await asyncio.sleep(0.2)
            writer.write(b"x")

    patience = Patience(ask_s=0.1)
    async with talking(drip) as address, wire(patience) as http:
        assert await http.get(address, "/engine/files/a", max_bytes=2**23) == b"xxx"
        with pytest.raises(WireError, match="says nothing"):
            await http.get(address, "/engine/load", max_bytes=3)
