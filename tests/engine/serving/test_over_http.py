"""The server on a real port, asked by OpenAI's own client and by clients that mean no good."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from engine.engine import Engine, EngineOptions
from engine.serving import server
from engine.serving.app import App, make_app
from engine.serving.keys import parse_keys
from engine.serving.service import ServingSettings
from tests.engine.engine_stage import END, Stage, wait_until

SECRET = "sk-0123456789abcdef"
SAYS = 'Grüße: "quoted"\n\ndata: 你好 🙂'
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello?"}]


@dataclass(frozen=True)
class Running:
    """A server that runs. `stop` tells it to end as the system does."""

    engine: Engine
    app: App
    url: str
    ended: asyncio.Task[None]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = SECRET) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@asynccontextmanager
async def serving(stage: Stage, settings: ServingSettings | None = None) -> AsyncIterator[Running]:
    """Serve what a stage says, on a port of its own."""
    engine = await stage.open(EngineOptions(speculation=False))
    app = make_app(engine, settings or ServingSettings())
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    ended = asyncio.ensure_future(server.serve(app, "127.0.0.1", 0, on_ready=ready.set_result))
    try:
        yield Running(engine, app, await ready, ended)
    finally:
        ended.cancel()
        await asyncio.wait({ended})


async def test_openais_client_gets_whole_answers_and_pieces(stage: Stage) -> None:
    stage.says(SAYS)
    async with serving(stage) as running, running.client() as client:
        models = await client.models.list()
        name = models.data[0].id
        assert (await client.models.retrieve(name)).id == name
        whole = await client.chat.completions.create(
            model=name, messages=HELLO, temperature=0, seed=7, max_completion_tokens=100, user="u"
        )
        assert whole.choices[0].message.content == SAYS
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == len(stage.encode(SAYS)) + 1
        pieces = await client.chat.completions.create(
            model=name, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in pieces]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAYS
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        assert chunks[-2].choices[0].finish_reason == "stop"
        short = await client.completions.create(model=name, prompt="Once", stop=["quoted"], max_tokens=100)
        assert short.choices[0].text == SAYS.partition("quoted")[0]
        ids = await client.completions.create(model=name, prompt=[5, 6, 7], max_tokens=2)
        assert (ids.choices[0].finish_reason, ids.usage and ids.usage.prompt_tokens) == ("length", 3)


async def test_openais_client_knows_our_errors(stage: Stage) -> None:
    stage.says(SAYS)
    settings = ServingSettings(keys=parse_keys(f"bot:{SECRET} per_minute=3"))
    async with serving(stage, settings) as running, running.client() as client:
        name = running.engine.info.name
        async with running.client("sk-wrong") as stranger:
            with pytest.raises(openai.AuthenticationError, match="not known"):
                await stranger.models.list()
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as long:
            await client.completions.create(model=name, prompt=[5] * 4096)
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "prompt")
        with pytest.raises(openai.BadRequestError, match="tools is not supported"):
            await client.chat.completions.create(
                model=name, messages=HELLO, tools=[{"type": "function", "function": {"name": "f"}}]
            )
        with pytest.raises(openai.RateLimitError) as often:
            await client.chat.completions.create(model=name, messages=HELLO)
        assert int(often.value.response.headers["retry-after"]) == 20


async def test_openais_client_hears_of_a_fault_in_mid_answer(stage: Stage) -> None:
    stage.answers([*stage.encode("one"), -1, END], step_s=0.1)
    async with serving(stage) as running, running.client() as client:
        name = running.engine.info.name
        pieces = await client.chat.completions.create(model=name, messages=HELLO, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in pieces:
                pass


async def test_clients_that_leave_end_their_requests(stage: Stage) -> None:
    stage.says_for_ever("a", step_s=0.005)
    async with serving(stage, ServingSettings(max_waiting=100)) as running:
        body = b'{"messages": [{"role": "user", "content": "a"}], "stream": %s}'
        writers = []
        for number in range(60):
            _reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            asked = body % (b"true" if number % 2 else b"false")
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(asked)}\r\n\r\n".encode() + asked)
            writers.append(writer)
        await wait_until(lambda: running.app.service.num_open == 60)
        assert running.engine.load.num_requests == 8
        for writer in writers:
            writer.close()
        await wait_until(lambda: running.engine.load.num_requests == running.app.service.num_open == 0)
        assert running.app.service.room.num_in_line == 0


async def test_told_to_end_it_lets_answers_end_and_takes_no_others(stage: Stage) -> None:
    stage.answers([*stage.encode("a") * 30, END], step_s=0.02)
    async with serving(stage) as running, running.client() as client:
        name = running.engine.info.name
        pieces = await client.chat.completions.create(model=name, messages=HELLO, stream=True)
        texts = [(await anext(pieces)).choices[0].delta.content or ""]
        running.stop()
        await wait_until(lambda: running.app.service.is_draining)
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(model=name, messages=HELLO)
        assert (refused.value.status_code, refused.value.code) == (503, "draining")
        texts += [chunk.choices[0].delta.content or "" async for chunk in pieces]
        assert "".join(texts) == "a" * 30
        await running.ended


async def test_told_twice_it_ends_at_once(stage: Stage) -> None:
    stage.says_for_ever("a", step_s=0.02)
    async with serving(stage) as running, running.client() as client:
        name = running.engine.info.name
        pieces = await client.chat.completions.create(model=name, messages=HELLO, stream=True)
        await anext(pieces)
        running.stop()
        await wait_until(lambda: running.app.service.is_draining)
        running.stop()
        await running.ended
        await wait_until(lambda: running.engine.load.num_requests == 0)
        await pieces.close()


async def exchange(port: int, *sent: bytes, pause_s: float = 0.0) -> bytes:
    """Send bytes, one piece after another, and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = bytearray()

    async def read() -> None:
        # Meanwhile: what is sent to a server that has closed makes the system drop what was not read.
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(2**16):
                got.extend(piece)

    reading = asyncio.ensure_future(read())
    with contextlib.suppress(ConnectionError):
        for piece in sent:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
    await reading
    writer.close()
    return bytes(got)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"a" * 40_000, b"400"),
        (b"GET /" + b"a" * 40_000, b"400"),
        (b"".join(b"x-%d: a\r\n" % number for number in range(9000)), b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"400"),
    ],
)
async def test_heads_that_are_no_heads_are_refused(stage: Stage, sent: bytes, status: bytes) -> None:
    async with serving(stage) as running:
        async with asyncio.timeout(30):
            assert (await exchange(running.port, sent)).split(b" ")[1:2] in ([status], [])
        async with running.client() as client:
            assert (await client.models.list()).data


@pytest.mark.parametrize(
    "sent",
    [
        (),
        (b"GET /health HTTP/1.1\r\n", b"x: y\r\n", b"x: y\r\n", b"x: y\r\n"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /health HTTP/1.1\r\n", b"x: y\r\n"),
    ],
)
async def test_a_connection_without_a_whole_head_is_closed(
    stage: Stage, sent: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.2)
    async with serving(stage) as running, asyncio.timeout(30):
        got = await exchange(running.port, *sent, pause_s=0.1)
        assert got.count(b"200 OK") == (b"\r\n\r\n" in b"".join(sent))


async def test_a_body_by_drops_ends_with_a_sentence(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.serving.bodies.BODY_TIMEOUT_S", 0.2)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    async with serving(stage) as running, asyncio.timeout(30):
        got = await exchange(running.port, head + b"Content-Length: 100\r\n\r\n{", b" ", b" ", pause_s=0.1)
        assert b"408" in got.partition(b"\r\n")[0]
        assert b"did not arrive" in got


async def test_an_address_that_cannot_be_had_is_told_in_a_sentence(stage: Stage) -> None:
    app = make_app(await stage.open(), ServingSettings())
    told: Callable[[str], None] = lambda _url: None  # noqa: E731
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(server.AddressError, match=f"port {port} cannot be listened on: Address already"):
            await server.serve(app, "127.0.0.1", port, on_ready=told)
    with pytest.raises(server.AddressError, match="Choose another one"):
        await server.serve(app, "192.0.2.1", 0, on_ready=told)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_a_clients_host_that_goes_without_a_word_is_noticed() -> None:
    with server._listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 15
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000


async def test_connections_without_number_leave_room_for_others(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_OPEN", 3)
    async with serving(stage) as running, asyncio.timeout(30):
        opened = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(6)]
        for reader, _ in opened[3:]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        reader, writer = opened[0]
        writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200" in await reader.readline()
        for _, one in opened:
            one.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_server_may_have_as_many_files_as_connections_need() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        server._allow_files()
        found, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert found == hard or found >= server.MAX_OPEN + server._BACKLOG + 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
