"""The playground in a real browser: what a person sees and does. Fails when simcord's private names move."""

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bot.playground.chromium import Tab, find_chromium, launch
from bot.playground.serve import screenshot, serve
from tests.bot.playground.demo_client import WORDS, DemoClient

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed here"),
]

_ENTER, _TAB = 13, 9
_MESSAGES = "[...document.querySelectorAll('.channel-message')]"


class Page:
    """The playground's page, used as a person uses it."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab

    async def text(self) -> str:
        text = await self.tab.evaluate("document.getElementById('channel-message-list').innerText")
        return str(text)

    async def until_shown(self, text: str) -> None:
        await self.tab.wait_for(
            f"document.getElementById('channel-message-list').innerText.includes({json.dumps(text)})"
        )

    async def type(self, text: str) -> None:
        await self.tab.evaluate("document.getElementById('channel-composer-input').focus()")
        await self.tab.type(text)

    async def send(self, text: str) -> None:
        """Type a message, press Enter once, and wait until the page took it."""
        await self.type(text)
        await self.tab.press("Enter", _ENTER)
        await self.tab.wait_for(
            "document.getElementById('channel-composer-input').value === ''"
            " && !window.simcordPreview.pendingAction"
        )

    async def click(self, label: str) -> None:
        button = f"{_MESSAGES}.flatMap(m => [...m.querySelectorAll('button')])"
        await self.tab.wait_for(f"{button}.some(b => b.innerText === '{label}')")
        await self.tab.evaluate(f"{button}.findLast(b => b.innerText === '{label}').click()")

    async def sit(self, label: str) -> None:
        await self.tab.evaluate(
            "(() => { const picker = document.getElementById('viewer-picker');"
            f" picker.value = [...picker.options].find(o => o.text === '{label}').value;"
            " picker.dispatchEvent(new Event('change')) })()"
        )
        await self.tab.wait_for(
            "!window.simcordPreview.pendingAction && window.simcordPreview.ready &&"
            f" document.getElementById('viewer-picker').selectedOptions[0]?.text === '{label}'"
        )

    async def offered_commands(self) -> str:
        await self.type("/")
        text = await self.tab.wait_for("document.querySelector('[role=listbox]')?.innerText")
        await self.tab.evaluate("document.execCommand('selectAll')")
        await self.tab.press("Backspace", 8)
        return str(text)


@pytest.fixture
async def client() -> DemoClient:
    return DemoClient()


@pytest.fixture
async def page(client: DemoClient) -> AsyncIterator[Page]:
    stop = asyncio.Event()
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    served = asyncio.create_task(serve(lambda: client, port=0, on_ready=url.set_result, stop=stop))
    either: list[asyncio.Future[Any]] = [served, url]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    async with launch(width=1100, height=700) as tab:
        await tab.open(await url)
        await tab.wait_for("window.simcordPreview?.ready", timeout_s=30.0)
        yield Page(tab)
    stop.set()
    await served


async def test_mention_streams_and_stop_works(page: Page, client: DemoClient) -> None:
    await page.send("@Llamacord hello")
    shown: set[str] = set()
    slowest_s = 0.0
    for _ in range(200):
        asked = time.monotonic()
        body = await page.tab.evaluate(f"{_MESSAGES}[1]?.innerText ?? ''")
        slowest_s = max(slowest_s, time.monotonic() - asked)
        shown |= {line for line in body.splitlines() if line.startswith(WORDS[0])}
        if " ".join(WORDS) in shown:
            break
        await asyncio.sleep(0.05)
    assert " ".join(WORDS) in shown
    assert len(shown - {" ".join(WORDS)}) >= 3
    assert slowest_s < 1.0

    await page.click("Regenerate")
    await page.until_shown("one two")
    await page.click("Stop")
    await page.until_shown("(stopped)")
    assert " ".join(WORDS) not in await page.text()
    assert client.num_regenerated == 1


async def test_command_while_streaming_keeps_what_is_typed(page: Page) -> None:
    await page.send("@Llamacord hello")
    await page.until_shown("one two")
    await page.type("/echo")
    await page.tab.wait_for("document.querySelector('[role=listbox]')?.innerText.includes('/echo')")
    await page.tab.press("Enter", _ENTER)
    await page.tab.wait_for("document.activeElement?.closest('#channel-composer') && true")
    for letter in "live":
        await page.tab.type(letter)
        await asyncio.sleep(0.15)  # the page is drawn anew in between
    await page.tab.press("Enter", _ENTER)
    await page.until_shown("echo: live")
    assert "Stop" in await page.text()


async def test_member_and_moderator(page: Page) -> None:
    assert "/reset" not in await page.offered_commands()
    await page.sit("Max (moderator) in #general")
    assert "/reset" in await page.offered_commands()
    await page.sit("Max (moderator) in a direct message")
    await page.send("hello")
    await page.until_shown("one two")
    await page.sit("Mia (member) in #random")
    assert "hello" not in await page.text()


async def test_many_sends_in_a_row_while_the_bot_edits(page: Page) -> None:
    for number in range(55):  # more than the page shows, which must still follow the newest
        await page.send(f"message {number} @Llamacord" if number % 10 == 0 else f"message {number}")
    await page.until_shown("message 54")
    text = await page.text()
    places = [text.index(f"message {number}") for number in range(20, 55)]
    assert places == sorted(places)
    await page.tab.wait_for(
        "(t => t.scrollTop > 0 && t.scrollHeight - t.scrollTop - t.clientHeight < 2)"
        "(document.getElementById('channel-timeline'))"
    )


async def test_screenshot_is_a_picture_of_the_finished_answers(tmp_path: Path) -> None:
    file = tmp_path / "conversation.png"
    script = [("member", "@Llamacord hello"), ("moderator", "@Llamacord and again")]
    client = DemoClient()
    await screenshot(lambda: client, script=script, file=file, width=640, height=480)
    head = file.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1280, 960)
    assert len(client.heard) == 2
    assert client.is_closed()
