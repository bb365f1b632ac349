"""The playground's page, used as a person uses it: typing, sending, commands, buttons, menus, another seat.

Owns how the page is found its way around in. Knows nothing of what the bot answers.
"""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from bot.playground.chromium import ChromiumError, Tab
from bot.playground.film import Film, save_picture
from bot.tasks import Tasks

_INPUT = "document.getElementById('channel-composer-input')"
_LIST = "document.getElementById('channel-message-list')"
_MESSAGES = "[...document.querySelectorAll('.channel-message')]"
_TIMELINE = "document.getElementById('channel-timeline')"
_BUTTONS = f"{_MESSAGES}.flatMap(m => [...m.querySelectorAll('button')])"
_KEY_DOWN = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true})"
_ENTER = f"({_INPUT}.dispatchEvent({_KEY_DOWN}), true)"
_IDLE = "!window.simcordPreview.pendingAction"
_TAKES_ACTIONS = (
    "(s => !s.pendingAction && (s.awaitingRevision ?? 0) <= s.publishedRevision)(window.simcordPreview)"
)
_MARGIN = 12  # pixels of the page above the first message of a picture
_SHORTEST, _TALLEST = 180, 1000  # simcord's page is never shorter
_SCALE = 1.25
_FILM_SIZE = 760, 520
_FRAME_S = 0.1
_KEY_S = 0.05


@dataclass(frozen=True, slots=True)
class Held:
    """What Mia sends the bot directly and the page has no means for: a message of Max's, a file."""

    text: str = ""
    forwarded: str = ""
    file: tuple[str, bytes] | None = None


SendHeld = Callable[[Held], Awaitable[None]]


class Page:
    """One open page of the playground."""

    def __init__(self, tab: Tab, *, width: int = 860, send_held: SendHeld | None = None) -> None:
        self.tab = tab
        self._width = width
        self._send_held = send_held
        self._begins_after = "0"

    async def open(self, url: str) -> None:
        """Go to the playground and wait until it is there."""
        await self.tab.open(url)
        await self.tab.wait_for("window.simcordPreview?.ready", timeout_s=30.0)

    async def text(self) -> str:
        """Return what all messages on the page say."""
        return str(await self.tab.evaluate(f"{_LIST}.innerText"))

    async def until_shown(self, text: str, *, timeout_s: float = 10.0) -> None:
        """Wait until some message says `text`."""
        await self._until(f"{_LIST}.innerText.includes({json.dumps(text)})", f"the text {text!r}", timeout_s)

    async def until_answered(self, *, report: str = "Report", timeout_s: float = 300.0) -> None:
        """Wait until the newest message is an answer that has ended: one that can be reported."""
        newest = f"{_MESSAGES}.at(-1)"
        buttons = f"[...({newest}?.querySelectorAll('button') ?? [])]"
        ended = f"{buttons}.some(b => b.innerText === {json.dumps(report)})"
        await self._until(ended, "the end of an answer", timeout_s)

    async def until_answered_in_private(self, *, timeout_s: float = 300.0) -> None:
        """Wait until the newest message is an answer for one person alone that has ended."""
        private = "m?.innerText.includes('Only you can see this')"
        ended = (
            f"(m => {private} && !m.querySelector('.message-loading, .component-button'))({_MESSAGES}.at(-1))"
        )
        await self._until(ended, "the end of a private answer", timeout_s)

    async def until_grown(self, num_characters: int, *, timeout_s: float = 60.0) -> None:
        """Wait until the newest message has so much text."""
        long = f"{_MESSAGES}.at(-1)?.innerText.length > {num_characters}"
        await self._until(long, f"{num_characters} characters", timeout_s)

    async def type(self, text: str) -> None:
        """Type where messages are written."""
        await self._until(f"{_INPUT} && {_typed(_INPUT, text)}", "a place to write")

    async def send(self, text: str) -> None:
        """Type a message, press Enter once, and wait until the page took it."""
        await self.type(text)
        await self._act(_ENTER, f"a place to send {text!r}")
        await self._until(f"{_INPUT}.value === ''", "a message that was sent")

    async def send_held(self, held: Held) -> None:
        """Have something sent that cannot be typed."""
        if self._send_held is None:
            raise ChromiumError("On this page only what is typed can be sent.")
        await self._send_held(held)

    async def command(self, name: str, /, **options: str) -> None:
        """Run a slash command: pick it from the list, fill in its options, and send it."""
        await self.type(f"/{name}")
        entries = "[...document.querySelectorAll('.command-entry')]"
        entry = f"{entries}.find(e => e.querySelector('strong').innerText === {json.dumps('/' + name)})"
        await self._until(_clicked(entry), f"the command /{name}")
        await self._until("document.querySelector('.command-row')", f"the form of /{name}")
        for option, value in options.items():
            await self._fill_in(option, value)
        await self._act(_clicked("document.getElementById('send-message')"), f"/{name} to send")
        await self._until("!document.querySelector('.command-row')", f"the end of /{name}")

    async def _fill_in(self, option: str, value: str) -> None:
        field = f"document.querySelector('.command-option-input[data-option={json.dumps(option)}]')"
        if not await self.tab.evaluate(f"{field} !== null"):
            await self._until(_clicked("document.querySelector('.command-ghost')"), "further options")
            offered = f"document.querySelector('.command-suggestion[data-value={json.dumps(option)}]')"
            await self._until(_clicked(offered), f"the option {option}")
        await self._until(f"{field} && {_typed(field, value)}", f"the field {option}")
        if await self.tab.evaluate("document.querySelector('.command-popup:not([hidden])') !== null"):
            offered = "[...document.querySelectorAll('.command-suggestion')]"
            meant = f"s.dataset.value === {json.dumps(value)} || s.innerText.includes({json.dumps(value)})"
            await self._until(_clicked(f"{offered}.find(s => {meant})"), f"the choice {value!r}")

    async def click(self, label: str) -> None:
        """Press the newest button with this label."""
        found = f"{_BUTTONS}.findLast(b => b.innerText === {json.dumps(label)} && !b.disabled)"
        await self._act(_clicked(found), f"a button {label}")

    async def choose_more(self, menu: str, option: str) -> None:
        """Choose one more thing in a menu that takes several, and close it: only then it counts."""
        await self.choose(menu, option)
        away = "new PointerEvent('pointerdown', {bubbles: true})"
        opened = "document.querySelector('.preview-select.is-open')"
        await self._act(f"(document.body.dispatchEvent({away}), !{opened})", f"the end of the menu {menu!r}")

    async def choose(self, menu: str, option: str) -> None:
        """Open the newest menu with this placeholder and choose one thing in it."""
        menus = "[...document.querySelectorAll('.select-trigger')]"
        trigger = f"{menus}.findLast(m => m.innerText.includes({json.dumps(menu)}) && !m.disabled)"
        opened = "document.querySelector('.preview-select.is-open')"
        options = f"[...({opened}?.querySelectorAll('.select-option') ?? [])]"
        wanted = f"{options}.find(o => o.innerText.includes({json.dumps(option)}))"
        # The page may close the menu again when the message is drawn anew: then it is opened once more.
        await self._act(
            f"{wanted} ? {_clicked(wanted)} : ({opened} || {_clicked(trigger)}, false)",
            f"the choice {option!r} in the menu {menu!r}",
        )

    async def write_in_form(self, number: int, text: str) -> None:
        """Write into a field of the form that is open: 1 is its first."""
        field = f"document.querySelectorAll('.modal-input')[{number - 1}]"
        await self._until(f"{field} && {_typed(field, text)}", f"a form with {number} fields")

    async def submit_form(self) -> None:
        """Submit the form that is open."""
        await self._act(
            _clicked("document.querySelector('.modal-dialog .button-primary')"), "a form to submit"
        )
        await self._until("!document.querySelector('.modal-dialog')", "the end of a form")

    async def sit(self, label: str) -> None:
        """Become another person, or go to another channel: what "Viewing as" offers under this name."""
        picker = "document.getElementById('viewer-picker')"
        seat = f"[...{picker}.options].find(o => o.text === {json.dumps(label)})?.value"
        await self._act(
            f"{seat} && ({picker}.value = {seat}, {picker}.dispatchEvent(new Event('change')))",
            f"the seat {label!r} to take",
        )
        await self._until(
            f"{_IDLE} && window.simcordPreview.ready &&"
            f" {picker}.selectedOptions[0]?.text === {json.dumps(label)}",
            f"the seat {label!r}",
        )

    async def begin_picture(self, *, with_all: bool = False) -> None:
        """Let the next picture begin with the message that comes next, or with the first that there is."""
        newest = await self.tab.evaluate(f"{_MESSAGES}.at(-1)?.dataset.messageId")
        self._begins_after = "0" if with_all else newest or "0"

    async def picture(self, file: Path) -> None:
        """Save the conversation since `begin_picture`, as people see it; the window stays as it was."""
        size = await self.tab.evaluate("[innerWidth, innerHeight, devicePixelRatio]")
        await self._show_only_conversation(True)
        await self._until_settled()
        for _ in range(2):  # the text may run differently in the new size
            await self.tab.resize(self._width, await self._needed_height(), scale=_SCALE)
            await self._until_settled()
        await asyncio.to_thread(save_picture, await self.tab.picture(), file)
        await self._show_only_conversation(False)
        await self.tab.resize(size[0], size[1], scale=size[2])

    @contextlib.asynccontextmanager
    async def filming(self, file: Path) -> AsyncIterator[None]:
        """Save what is seen of the conversation meanwhile, in motion; the window stays as it was."""
        size = await self.tab.evaluate("[innerWidth, innerHeight, devicePixelRatio]")
        await self._show_only_conversation(True)
        await self.tab.resize(*_FILM_SIZE, scale=1.0)
        film = Film()
        async with Tasks() as tasks:
            tasks.start(self._film(film), "filming")
            yield
        await asyncio.to_thread(film.save, file)
        await self._show_only_conversation(False)
        await self.tab.resize(size[0], size[1], scale=size[2])

    async def _film(self, film: Film) -> None:
        while True:
            film.add(await self.tab.picture(), time.monotonic())
            await asyncio.sleep(_FRAME_S)

    async def write_slowly(self, text: str) -> None:
        """Type a message as fast as a person who types fast, and send it."""
        for end in range(1, len(text) + 1, 3):
            await self.type(text[:end])
            await asyncio.sleep(_KEY_S)
        await self.send(text)

    async def _show_only_conversation(self, only: bool) -> None:
        display = "none" if only else ""
        await self.tab.evaluate(
            "for (const id of ['toolbar', 'messages-sidebar'])"
            f" document.getElementById(id).style.display = '{display}'"
        )

    async def _needed_height(self) -> int:
        """Return how many pixels high the window must be for the open form, or else for the messages."""
        form = f"dialog.offsetHeight - body.clientHeight + body.scrollHeight + 4 * {_MARGIN}"
        messages = f"innerHeight - {_TIMELINE}.clientHeight + shown + {_MARGIN}"
        height = await self.tab.evaluate(
            "(() => { const dialog = document.querySelector('.modal-dialog');"
            " const body = dialog?.querySelector('.modal-body');"
            f" if (dialog) return {form};"
            f" const first = {_MESSAGES}.find(m => BigInt(m.dataset.messageId) > {self._begins_after}n);"
            f" const shown = {_LIST}.getBoundingClientRect().bottom - first.getBoundingClientRect().top;"
            f" return {messages} }})()"
        )
        return int(max(_SHORTEST, min(math.ceil(height), _TALLEST)))

    async def _until_settled(self) -> None:
        """Wait until the page fills its window, shows its newest message and waits for nothing itself."""
        waiting = "document.querySelector('.component-button[aria-disabled=true]:not(:disabled)')"
        fills = "(r => r.top < 1 && Math.abs(innerHeight - r.bottom) < 1)"
        await self._until(
            f"{_TAKES_ACTIONS} && window.simcordPreview.ready && !{waiting}"
            f" && {fills}(document.getElementById('channel-layout').getBoundingClientRect())",
            "the conversation alone",
        )
        await self.tab.evaluate(f"{_TIMELINE}.scrollTop = {_TIMELINE}.scrollHeight")

    async def _act(self, script: str, what: str, timeout_s: float = 10.0) -> None:
        """Do something on the page that goes to the server, and wait until it is done there.

        While one action is under way the page drops every other, and it takes some by itself; so `script`,
        which is true when it could act, looks and acts in one go. What the server refused, because the page
        was out of date, is done again.
        """
        do = (
            f"(() => {{ if (!{_TAKES_ACTIONS} || !({script})) return '';"
            " return window.simcordPreview.pendingAction?.requestId ?? 'none' })()"
        )
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    request = await self.tab.wait_for(do, timeout_s=timeout_s)
                    await self.tab.wait_for(_IDLE, timeout_s=timeout_s)
                    refused = f"(a => a?.requestId === {json.dumps(request)} && a.rejected)"
                    if not await self.tab.evaluate(f"{refused}(window.simcordPreview.lastAction)"):
                        return
        except TimeoutError:
            raise ChromiumError(f"The page did not show {what} within {timeout_s:.0f} seconds.") from None

    async def _until(self, script: str, what: str, timeout_s: float = 10.0) -> None:
        try:
            await self.tab.wait_for(f"Boolean({script})", timeout_s=timeout_s)
        except TimeoutError:
            raise ChromiumError(f"The page did not show {what} within {timeout_s:.0f} seconds.") from None


def _clicked(element: str) -> str:
    """Return a script that presses what `element` finds, once it is in sight; true if it is there."""
    return f"(e => e && !e.disabled && (e.scrollIntoView({{block: 'nearest'}}), e.click(), true))({element})"


def _typed(element: str, text: str) -> str:
    """Return a script that writes into what `element` finds, in place of what is there, like a keyboard."""
    insert = f"document.execCommand('insertText', false, {json.dumps(text)})"
    return f"(e => (e.focus(), e.select(), document.activeElement === e && {insert}))({element})"
