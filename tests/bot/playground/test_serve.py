"""The playground without a browser: its page's own requests, made here."""

import asyncio
import importlib.metadata
import importlib.util
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import pytest

from bot.playground import live_page, live_simcord
from bot.playground import serve as playground
from bot.playground.serve import PlaygroundError, make_pictures, serve
from tests.bot.playground.demo_client import PAUSE_S, WORDS, DemoClient


class Visitor:
    """One open page: what the browser's script would ask the server for."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self._headers = {"X-Simcord-Capability": parts.fragment}
        self._sequence = itertools.count(1)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        self.seen = await self._request("POST", "/api/pages", {})
        self._headers["X-Simcord-Context"] = self.seen["context"]["id"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _request(self, method: str, path: str, body: Any = None) -> Any:
        async with self._session.request(
            method, self.origin + path, json=body, headers=self._headers
        ) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def look(self) -> dict[str, Any]:
        """Read the page anew, as the browser does twice a second."""
        self.seen = await self._request("GET", "/api/state")
        return self.seen  # type: ignore[no-any-return]

    async def act(self, kind: str, **what: Any) -> dict[str, Any]:
        """Do something on the page as it was last looked at."""
        envelope = {
            "protocol_version": 3,
            "kind": kind,
            "sequence": next(self._sequence),
            "request_id": f"{kind}-{time.monotonic()}",
            "generation": self.seen["context"]["generation"],
            "bot_generation": self.seen["botGeneration"],
            "published_revision": self.seen["publishedRevision"],
        }
        receipt = await self._request("POST", "/api/action", envelope | what)
        self._sequence = itertools.count(receipt["expectedSequence"] + 1)
        return receipt  # type: ignore[no-any-return]

    async def say(self, text: str) -> dict[str, Any]:
        return await self.act("send_message", content=text)

    async def click(self, label: str) -> dict[str, Any]:
        """Press the newest button of that name that was seen."""
        message, button = self.buttons(label)[-1]
        return await self.act("click", target_id=message["id"], control_key=button["control_key"])

    async def sit(self, label: str) -> None:
        """Become the person in the channel that "Viewing as" offers under this name."""
        seat = next(viewer["id"] for viewer in self.seen["viewers"] if viewer["name"] == label)
        receipt = await self.act("viewer", viewer_id=seat)
        assert not receipt["rejected"]
        assert (await self.look())["viewerId"] == seat

    async def run(self, name: str, **options: Any) -> dict[str, Any]:
        """Run one of the slash commands on offer."""
        entry = (await self.commands())[name]
        return await self.act(
            "run_command",
            command_id=entry["commandId"],
            path=entry["path"],
            schema_fingerprint=entry["schemaFingerprint"],
            options=options,
        )

    async def commands(self) -> dict[str, Any]:
        catalog = await self._request("GET", "/api/commands")
        return {entry["invocation"]: entry for entry in catalog["entries"]}

    def texts(self) -> list[str]:
        return [self.seen["messages"][key]["content"] for key in self.seen["timeline"]]

    def buttons(self, label: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [
            (message, button)
            for message in (self.seen["messages"][key] for key in self.seen["timeline"])
            for row in message["components"]
            for button in row["components"]
            if button["label"] == label
        ]

    async def until(self, true: Callable[[], object], *, timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not true():
                await asyncio.sleep(0.02)
                await self.look()


class Running:
    """A playground that serves."""

    def __init__(self) -> None:
        self.client = DemoClient()
        self.stop = asyncio.Event()
        self.url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.served = asyncio.create_task(
            serve(lambda: self.client, port=0, on_ready=self.url.set_result, stop=self.stop)
        )


async def test_the_bot_speaks_first_on_each_server_in_its_language() -> None:
    stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
    served = asyncio.create_task(
        serve(
            lambda: DemoClient(), port=0, on_ready=url.set_result, stop=stop,
            greeting=lambda locale: f"Hello in {locale}, @everyone",
        )
    )  # fmt: skip
    async with Visitor(await url) as browser:
        await browser.until(lambda: browser.texts() == ["Hello in en-US, @everyone"])
        await browser.sit("Lea (moderator, in German) in #allgemein")
        await browser.until(lambda: browser.texts() == ["Hello in de, @everyone"])
        await browser.sit("Max (moderator) in #random")
        assert browser.texts() == []
    stop.set()
    await served


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_page, "_PUBLISH_INTERVAL_S", 0.02)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    running = Running()
    either: list[asyncio.Future[Any]] = [running.served, running.url]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    yield running
    running.stop.set()
    await running.served


@pytest.fixture
async def visitor(running: Running) -> AsyncIterator[Visitor]:
    async with Visitor(await running.url) as visitor:
        yield visitor


async def test_typed_name_is_a_mention_and_the_answer_streams(running: Running, visitor: Visitor) -> None:
    running.client.may_count_to = 1
    assert not (await visitor.say("@llamacord, hello; no mail to me@llamacord or @Llamacords"))["rejected"]
    shown: list[str] = []
    async with asyncio.timeout(30):
        while " ".join(WORDS) not in shown:
            await visitor.look()
            shown += [text for text in visitor.texts()[1:] if text not in shown]
            running.client.may_count_to = len(shown) + 1  # on a busy machine, too, it is seen to grow
            await asyncio.sleep(0.02)
    assert len(shown) >= 5
    assert shown == sorted(shown, key=len)
    assert running.client.user is not None
    mention = running.client.user.mention
    assert running.client.heard == [f"{mention}, hello; no mail to me@llamacord or @Llamacords"]


async def test_time_and_threads_are_real(running: Running, visitor: Visitor) -> None:
    loop = asyncio.get_running_loop()
    before = time.monotonic()
    await visitor.say("@Llamacord go")
    await visitor.until(lambda: len(running.client.times) >= 4)
    assert all(before < mine <= thread <= time.monotonic() for mine, thread in running.client.times)
    for (earlier, _), (later, _) in itertools.pairwise(running.client.times[:4]):
        assert PAUSE_S <= later - earlier < 1.0
    assert getattr(loop.call_later, "__func__", None) is asyncio.BaseEventLoop.call_later
    sent_at = datetime.fromisoformat(visitor.seen["messages"][visitor.seen["timeline"][0]]["timestamp"])
    assert abs(datetime.now(UTC) - sent_at) < timedelta(seconds=10)


async def test_stop_in_the_middle_and_regenerate(running: Running, visitor: Visitor) -> None:
    running.client.may_count_to = 9
    await visitor.say("@Llamacord go")
    await visitor.until(lambda: "one two" in visitor.texts())
    await asyncio.sleep(0.5)  # the page that is clicked on is older than the newest one
    receipt = await visitor.click("Stop")
    assert receipt["acknowledgement"] == "deferred"
    await visitor.until(lambda: "(stopped)" in visitor.texts()[-1])
    assert " ".join(WORDS) not in visitor.texts()[-1]
    running.client.may_count_to = len(WORDS)
    assert (await visitor.click("Regenerate"))["settlement"] == "settled"
    await visitor.until(lambda: visitor.texts()[-1] == " ".join(WORDS))


async def test_late_stop_does_not_press_what_took_its_place(running: Running, visitor: Visitor) -> None:
    await visitor.say("@Llamacord go")
    await visitor.until(lambda: visitor.buttons("Stop"))
    async with Visitor(await running.url) as other:
        await other.until(lambda: other.buttons("Regenerate"))
    assert (await visitor.click("Stop"))["rejected"]
    await asyncio.sleep(0.3)
    assert running.client.num_regenerated == 0


async def test_many_sends_while_the_bot_edits(running: Running, visitor: Visitor) -> None:
    await visitor.say("@Llamacord go")
    await visitor.until(lambda: len(visitor.texts()) == 2)
    receipts = []
    for number in range(24):
        receipts.append(await visitor.say(f"message {number}"))
        await asyncio.sleep(0.03)  # never looks, so that each is made on an ever older page
    assert [receipt["settlement"] for receipt in receipts] == ["settled"] * 24
    await visitor.until(lambda: visitor.texts()[1] == " ".join(WORDS) and len(visitor.texts()) == 2 + 24)
    assert visitor.texts()[2:] == [f"message {number}" for number in range(24)]


async def test_commands_while_streaming_and_by_permission(running: Running, visitor: Visitor) -> None:
    await visitor.say("@Llamacord go")
    await visitor.until(lambda: "one two" in visitor.texts())
    assert (await visitor.run("echo", text="hi"))["settlement"] == "settled"
    await visitor.until(lambda: "echo: hi" in visitor.texts())
    assert visitor.buttons("Stop")
    assert "reset" not in await visitor.commands()

    await visitor.sit("Max (moderator) in #general")
    assert "echo: hi" not in visitor.texts()  # only Mia can see it
    await visitor.run("reset")
    await visitor.until(lambda: "reset" in visitor.texts())


async def test_channels_and_direct_messages_are_apart(running: Running, visitor: Visitor) -> None:
    await visitor.say("in general")
    await visitor.sit("Mia (member) in #random")
    assert visitor.texts() == []
    await visitor.say("in random")
    await visitor.sit("Max (moderator) in a direct message")
    await visitor.say("no mention needed here")
    await visitor.until(lambda: "one two" in visitor.texts())
    assert (await visitor.run("echo", text="direct"))["settlement"] == "settled"
    await visitor.sit("Mia (member) in a direct message")
    assert visitor.texts() == []
    await visitor.sit("Max (moderator) in #random")
    assert visitor.texts() == ["in random"]
    assert running.client.heard == ["no mention needed here"]


async def test_two_pages_and_an_unanswered_command(
    running: Running, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_simcord, "_RESPONSE_TIMEOUT_S", 1.0)
    async with Visitor(await running.url) as other:
        await other.sit("Max (moderator) in #general")
        silent = asyncio.create_task(visitor.run("silent"))
        await asyncio.sleep(0.2)
        assert (await other.say("meanwhile"))["settlement"] == "settled"
        assert (await silent)["acknowledgement"] == "unacknowledged"
        await visitor.until(lambda: "meanwhile" in visitor.texts())


async def test_what_simcord_does_not_know_is_an_http_error(running: Running, visitor: Visitor) -> None:
    await visitor.run("strange")
    await visitor.until(lambda: "status 501" in visitor.texts())


async def test_page_needs_the_secret_and_is_on_loopback(running: Running) -> None:
    parts = urlsplit(await running.url)
    assert parts.hostname == "127.0.0.1"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{parts.netloc}/") as response:
            assert "Llamacord playground" in await response.text()
        async with session.post(f"http://{parts.netloc}/api/pages", json={}) as response:
            assert response.status == 401


async def test_ends_when_told_and_leaves_nothing(running: Running) -> None:
    port = urlsplit(await running.url).port
    running.stop.set()
    await running.served
    assert running.client.is_closed()
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))


async def test_ends_when_the_session_is_ended_in_the_browser(running: Running, visitor: Visitor) -> None:
    await visitor.act("close")
    await asyncio.wait_for(running.served, 5)


async def test_a_port_in_use_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PlaygroundError, match=f"Port {port} is in use"):
            await serve(DemoClient, port=port, on_ready=print, stop=asyncio.Event())


async def test_what_the_bot_cannot_start_with_is_its_own_error() -> None:
    class Broken(DemoClient):
        async def setup_hook(self) -> None:
            raise RuntimeError("no model")

    client = Broken()
    with pytest.raises(RuntimeError, match="no model"):
        await serve(lambda: client, port=0, on_ready=print, stop=asyncio.Event())
    assert client.is_closed()


async def test_another_simcord_or_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def attempt() -> None:
        await serve(DemoClient, port=0, on_ready=print, stop=asyncio.Event())

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda _name: "3.2.2")
        with pytest.raises(PlaygroundError, match=r"needs simcord 3\.2\.1, and version 3\.2\.2 is installed"):
            await attempt()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", _not_installed)
        with pytest.raises(PlaygroundError, match=r"make run.*llamacord\[playground\]"):
            await attempt()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda _name: None)
        with pytest.raises(PlaygroundError, match="packages linkify_it, markdown_it, PIL, regex"):
            await attempt()


def _not_installed(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


async def test_pictures_that_cannot_be_made_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def attempt() -> None:
        await make_pictures(DemoClient, tmp_path)

    monkeypatch.setattr(playground, "find_chromium", lambda: None)
    with pytest.raises(PlaygroundError, match="No Chromium was found"):
        await attempt()
    monkeypatch.undo()
    monkeypatch.setattr("bot.playground.chromium.find_chromium", lambda: Path("/bin/false"))
    monkeypatch.setattr(playground, "find_chromium", lambda: Path("/bin/false"))
    with pytest.raises(PlaygroundError, match="could not be made: Chromium ended at once"):
        await attempt()
