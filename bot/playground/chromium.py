"""A headless Chromium, driven over its DevTools protocol.

Owns the browser's process, its temporary profile and the connection to it. Knows nothing of the pages.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from bot.tasks import Tasks

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--remote-debugging-port=0",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
)
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.05


class ChromiumError(Exception):
    """No Chromium was found, or it did not do what it was asked; the message is a sentence for the user."""


def find_chromium() -> Path | None:
    """Return where a Chromium or Chrome is installed, if one is."""
    found = (shutil.which(name) for name in _NAMES)
    return next((Path(path) for path in found if path), None)


class Tab:
    """The browser's one page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def open(self, url: str) -> None:
        """Go to a page; `wait_for` then tells when it is there."""
        await self.command("Page.navigate", url=url)

    async def evaluate(self, script: str) -> Any:
        """Return what a JavaScript expression, awaited where it is a promise, comes to."""
        answer = await self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise ChromiumError(f"The page could not run a script: {answer['exceptionDetails'].get('text')}")
        return answer["result"].get("value")

    async def wait_for(self, script: str, *, timeout_s: float = 10.0) -> Any:
        """Return a JavaScript expression's value once it is true; TimeoutError where it never is."""
        async with asyncio.timeout(timeout_s):
            while not (value := await self.evaluate(script)):  # noqa: ASYNC110 - a page sets no events
                await asyncio.sleep(_POLL_S)
        return value

    async def type(self, text: str) -> None:
        """Put text in where the cursor is, as a keyboard would."""
        await self.command("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        """Press and release one key, given by its name and its Windows key code."""
        text = {"text": "\r"} if key == "Enter" else {}
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.command("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
        await self.command("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def picture(self) -> bytes:
        """Return what the page looks like as a PNG."""
        answer = await self.command("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])

    async def resize(self, width: int, height: int, *, scale: float) -> None:
        """Give the page another size, in its own pixels; `scale` of a picture's pixels are one of them."""
        await self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one DevTools command and return its result."""
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send_json({"id": number, "method": method, "params": params})
            result: dict[str, Any] = await answer
            return result
        finally:
            del self._waiting[number]

    async def listen(self) -> None:
        """Hand the browser's answers to those who wait for them, until it goes away."""
        try:
            async for message in self._socket:
                answer = json.loads(message.data)
                waiting = self._waiting.get(answer.get("id"))
                if waiting is None or waiting.done():
                    continue
                if "error" in answer:
                    waiting.set_exception(
                        ChromiumError(f"Chromium refused: {answer['error'].get('message')}")
                    )
                else:
                    waiting.set_result(answer["result"])
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ChromiumError("Chromium went away."))


@contextlib.asynccontextmanager
async def launch(*, width: int, height: int, scale: float = 1.0) -> AsyncIterator[Tab]:
    """Start a headless Chromium with an empty profile and yield its page."""
    program = find_chromium()
    if program is None:
        raise ChromiumError("No Chromium was found. Install Debian's package chromium, or Google Chrome.")
    async with contextlib.AsyncExitStack() as stack:
        profile = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="llamacord-chromium-", ignore_cleanup_errors=True)
            )
        )
        process = await _start(program, profile)
        stack.push_async_callback(_stop, process)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        address = await _page_address(process, profile, session)
        socket = await stack.enter_async_context(session.ws_connect(address, max_msg_size=0))
        tab = Tab(socket)
        tasks = await stack.enter_async_context(Tasks())
        tasks.start(tab.listen(), "listening to Chromium")
        await tab.resize(width, height, scale=scale)
        try:
            yield tab
        finally:
            with contextlib.suppress(ChromiumError, ConnectionError, TimeoutError):
                await asyncio.wait_for(tab.command("Browser.close"), _STOP_TIMEOUT_S)


async def _start(program: Path, profile: Path) -> asyncio.subprocess.Process:
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()  # Chromium refuses to start as root with one
    return await asyncio.create_subprocess_exec(
        program,
        *_FLAGS,
        *root,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def _page_address(
    process: asyncio.subprocess.Process, profile: Path, session: aiohttp.ClientSession
) -> str:
    """Return where the page's DevTools listen, which Chromium tells in a file of its profile."""
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while process.returncode is None:
                with contextlib.suppress(OSError, IndexError, StopIteration, aiohttp.ClientError):
                    port = (profile / "DevToolsActivePort").read_text(encoding="ascii").splitlines()[0]
                    async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                        targets = await response.json()
                    return str(next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page"))
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise ChromiumError(f"Chromium did not start within {_START_TIMEOUT_S:.0f} seconds.") from None
    raise ChromiumError(f"Chromium ended at once with exit code {process.returncode}.")


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Wait for a browser that was told to close, and end it if it does not."""
    for end in (process.terminate, process.kill):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
            return
        end()
    await process.wait()
