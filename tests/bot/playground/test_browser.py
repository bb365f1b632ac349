"""The playground in a real browser: what a person sees and does. Fails when simcord's private names move."""

import asyncio
import contextlib
import statistics
import struct
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from bot.playground import chromium, live_page
from bot.playground import serve as playground
from bot.playground.chromium import Tab, find_chromium, launch
from bot.playground.page import Page
from bot.playground.pictures import SCENES
from bot.playground.serve import make_pictures, serve
from engine.types import ChatMessage
from tests.bot.e2e.world import World
from tests.bot.playground.demo_client import WORDS, DemoClient
from tests.fakes import Script

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed here"),
]

_ENTER, _BACKSPACE = 13, 8
_MESSAGES = "[...document.querySelectorAll('.channel-message')]"


# The page asks for news twice a second, and gives up and tries again as slowly.
_HASTE = "(wait => window.setTimeout = (call, ms, ...rest) => wait(call, ms / 5, ...rest))(setTimeout)"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def tab() -> AsyncIterator[Tab]:
    """One browser for all, in which time passes five times as fast."""
    async with launch(width=1100, height=700) as tab:
        await tab.command("Page.enable")
        await tab.command("Page.addScriptToEvaluateOnNewDocument", source=_HASTE)
        yield tab


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_page, "_PUBLISH_INTERVAL_S", 0.05)
    monkeypatch.setattr(chromium, "_POLL_S", 0.01)


@pytest.fixture
def client() -> DemoClient:
    return DemoClient()


@pytest_asyncio.fixture(loop_scope="module")
async def page(client: DemoClient, tab: Tab) -> AsyncIterator[Page]:
    stop = asyncio.Event()
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    served = asyncio.create_task(serve(lambda: client, port=0, on_ready=url.set_result, stop=stop))
    either: list[asyncio.Future[Any]] = [served, url]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    page = Page(tab)
    await page.open(await url)
    yield page
    await tab.open("about:blank")
    stop.set()
    await served


async def test_mention_streams_and_stop_works(page: Page, client: DemoClient) -> None:
    client.may_count_to = 2
    await page.send("@Llamacord hello")
    await page.until_shown("one two")
    assert "three" not in await page.text()
    client.may_count_to = 5
    await page.until_shown("one two three four five")
    client.may_count_to = len(WORDS)
    await page.until_shown(" ".join(WORDS))

    client.may_count_to = 9
    await page.click("Regenerate")
    await page.click("Stop")
    await page.until_shown("(stopped)")
    assert " ".join(WORDS) not in await page.text()
    assert client.num_regenerated == 1


async def test_page_answers_while_it_is_drawn_anew(page: Page) -> None:
    await page.send("@Llamacord hello")
    looks_s = []
    text = ""
    while " ".join(WORDS) not in text:
        asked = time.monotonic()
        text = await page.text()
        looks_s.append(time.monotonic() - asked)
        await asyncio.sleep(0.02)
    assert statistics.median(looks_s) < 0.2


async def test_command_while_streaming_keeps_what_is_typed(page: Page, client: DemoClient) -> None:
    client.may_count_to = 9
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
    client.may_count_to = len(WORDS)
    await page.until_shown(" ".join(WORDS))


async def _offered_commands(page: Page) -> str:
    await page.type("/")
    await page.tab.wait_for("document.querySelector('.command-entry') !== null")  # and not "Loading commands"
    text = await page.tab.evaluate("document.querySelector('[role=listbox]').innerText")
    await page.tab.evaluate("document.execCommand('selectAll')")
    await page.tab.press("Backspace", _BACKSPACE)
    return str(text)


async def test_member_and_moderator(page: Page) -> None:
    assert "/reset" not in await _offered_commands(page)
    await page.sit("Max (moderator) in #general")
    assert "/reset" in await _offered_commands(page)
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
    assert await follows_the_newest(page)


async def follows_the_newest(page: Page) -> bool:
    """Tell whether the end of a full channel stays in view when something is added there.

    Now and then simcord's page, drawn anew while it is being laid out, takes us for somebody who reads
    further up; so whoever goes to the end must be taken along at one of three times.
    """
    timeline = "document.getElementById('channel-timeline')"
    for number in range(3):
        await page.tab.evaluate(f"(t => t.scrollTop = t.scrollHeight)({timeline})")
        await page.send(f"one more {number}")
        await page.until_shown(f"one more {number}")
        with contextlib.suppress(TimeoutError):
            await page.tab.wait_for(
                f"(t => t.scrollTop > 0 && t.scrollHeight - t.scrollTop - t.clientHeight < 2)({timeline})"
            )
            return True
    return False


async def test_a_picture_leaves_the_window_as_it_was(page: Page, tmp_path: Path) -> None:
    await page.send("hello")
    window = "[innerWidth, innerHeight, devicePixelRatio, document.getElementById('toolbar').offsetHeight]"
    before = await page.tab.evaluate(window)
    await page.picture(tmp_path / "hello.png")
    assert await page.tab.evaluate(window) == before
    assert before[3] > 0
    head = (tmp_path / "hello.png").read_bytes()[:24]
    assert struct.unpack(">II", head[16:24])[1] < before[1]


_CODE = "Here it is:\n\n```python\n" + "balance = balance + amount  # deposit\n" * 80 + "```\n\nThat is all."


def _respond(dialog: Sequence[ChatMessage]) -> Script:
    question = dialog[-1].content
    if "lighthouse" in question:
        return Script(["The keeper climbed ", "the stairs. "], delay_s=0.1, loops=True)
    return Script([_CODE if "reverses" in question else "Read, write, repeat."])


async def test_every_scene_of_the_documentation_is_played_by_the_real_bot(
    tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked, stopped, set up, reported, reset: what people and moderators do, in a real browser."""

    @contextlib.asynccontextmanager
    async def lend(*, width: int, height: int) -> AsyncIterator[Tab]:
        await tab.resize(width, height, scale=1)
        yield tab

    monkeypatch.setattr(playground, "launch", lend)
    async with contextlib.AsyncExitStack() as stack:
        world = World(tmp_path / "bot.db", stack)
        world.edit_interval_s = 0.5
        world.sees_all_messages = True
        world.engine.respond = _respond
        client = await world.new_client()
        await make_pictures(lambda: client, tmp_path / "pictures")
    assert client.is_closed()
    assert {file.stem for file in (tmp_path / "pictures").glob("*.png")} == set(SCENES)
    with Image.open(tmp_path / "pictures" / "llamacord.gif") as film:
        assert getattr(film, "n_frames") > 5  # noqa: B009 - Pillow's types do not know it
    assert (tmp_path / "pictures" / "llamacord.gif").stat().st_size < 2_000_000
    for file in (tmp_path / "pictures").glob("*.png"):
        head = file.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", head[16:24])
        assert width == 1075
        assert 200 < height <= 1250
