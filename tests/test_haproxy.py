"""deploy/haproxy.cfg, run by HAProxy: who gets what, and what is never cut."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

CONFIG = Path(__file__).parents[1] / "deploy" / "haproxy.cfg"
SESSIONS = [f"{n:032x}" for n in range(40)]

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")


class Replica:
    """Answers with its name at once, and with the end when it may."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.is_closing = False
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.num_begun = 0
        self.client_left = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def die(self) -> None:
        """Be gone as after SIGKILL."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                is_check = b" /health " in head.partition(b"\r\n")[0]
                if self.is_closing:
                    writer.write(b"HTTP/1.1 503 Closing\r\nContent-Length: 0\r\n\r\n")
                elif is_check:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    break
                else:
                    await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_begun += 1
        name = self.name.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(name), name))
        waiting = asyncio.ensure_future(self.may_end.wait())
        leaving = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            self.client_left.set()
            raise ConnectionError
        leaving.cancel()
        await asyncio.wait({leaving})
        writer.write(b"4\r\n end\r\n0\r\n\r\n")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Cluster:
    """Two replicas behind HAProxy."""

    def __init__(self, replicas: list[Replica], http: aiohttp.ClientSession, url: str) -> None:
        self.replicas = replicas
        self.http = http
        self.url = url

    def asking(self, session: str) -> aiohttp.client._RequestContextManager:
        return self.http.post(self.url + "/v1/completions", headers={"x-session-id": session})

    async def ask(self, session: str) -> tuple[int, str]:
        async with self.asking(session) as response:
            return response.status, (await response.text()).removesuffix(" end")

    async def owners(self) -> list[str]:
        """Return which replica answers each session. All are answered."""
        found = [await self.ask(session) for session in SESSIONS]
        assert {status for status, _ in found} == {200}
        return [name for _, name in found]

    async def until_known(self, replica: Replica) -> None:
        """Wait until a replica gets requests."""
        before = replica.num_begun
        while replica.num_begun == before:
            await self.owners()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        replicas = [Replica("first"), Replica("second")]
        for replica in replicas:
            await replica.start()
            stack.push_async_callback(replica.die)
        port = free_port()
        text = CONFIG.read_text(encoding="utf-8")
        text = text.replace("127.0.0.1:8320", f"127.0.0.1:{port}")
        for replica, given in zip(replicas, (8324, 8325), strict=True):
            text = text.replace(f"127.0.0.1:{given}", f"127.0.0.1:{replica.port}")
        config = folder / "haproxy.cfg"
        config.write_text(text, encoding="utf-8")
        process = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", str(config))
        stack.push_async_callback(process.wait)
        stack.callback(process.kill)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        cluster = Cluster(replicas, http, f"http://127.0.0.1:{port}")
        for _ in range(600):
            try:
                if (await cluster.ask("x"))[0] == 200:
                    break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
        for replica in replicas:
            await cluster.until_known(replica)
        yield cluster


async def test_a_session_stays_and_only_those_of_a_dead_replica_move(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        first, _ = cluster.replicas
        owners = await cluster.owners()
        assert await cluster.owners() == owners
        assert min(owners.count("first"), owners.count("second")) >= len(SESSIONS) // 5
        await first.die()
        assert await cluster.owners() == ["second"] * len(SESSIONS)
        await first.start()
        await cluster.until_known(first)
        assert await cluster.owners() == owners


async def test_what_a_closing_replica_has_begun_ends_and_new_questions_go_elsewhere(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        first, _ = cluster.replicas
        owners = await cluster.owners()
        mine = SESSIONS[owners.index("first")]
        first.may_end.clear()
        async with cluster.asking(mine) as response:
            assert await response.content.readexactly(5) == b"first"
            first.is_closing = True
            assert await cluster.ask(mine) == (200, "second")  # before any check has seen it
            await asyncio.sleep(3)  # checks see it: the replica is down, as HAProxy knows
            assert await cluster.owners() == ["second"] * len(SESSIONS)
            first.may_end.set()
            assert await response.read() == b" end"


async def test_a_client_that_leaves_is_gone_for_the_replica_too(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        for replica in cluster.replicas:
            replica.may_end.clear()
        response = await cluster.asking(SESSIONS[0])
        name = (await response.content.readany()).decode()
        response.close()
        (replica,) = (one for one in cluster.replicas if one.name == name)
        await asyncio.wait_for(replica.client_left.wait(), 30)


async def test_where_no_replica_is_left_clients_are_told_as_openai_tells_it(tmp_path: Path) -> None:
    async with running(tmp_path) as cluster:
        for replica in cluster.replicas:
            await replica.die()
        async with cluster.asking("x") as response:
            assert response.status == 503
            assert response.headers["retry-after"] == "2"
            assert (await response.json())["error"]["code"] == "unavailable"
        for written in ("/metrics", "/%6Detrics", "/metric%73?x=1"):
            async with cluster.http.get(URL(cluster.url + written, encoded=True)) as response:
                assert response.status == 404


def test_the_engines_are_those_of_the_documentation() -> None:
    ports = re.findall(r"server engine\d 127\.0\.0\.1:(\d+) id \d", CONFIG.read_text(encoding="utf-8"))
    assert ports == ["8324", "8325"]
