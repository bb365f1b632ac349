"""The playground's page, used as a person uses it: typing, sending, commands, buttons, menus, another seat.

Owns how the page is found its way around in. Knows nothing of what the bot answers.
"""

import json
from pathlib import Path

from bot.playground.chromium import ChromiumError, Tab

_ENTER, _ESCAPE = 13, 27
_INPUT = "document.getElementById('channel-composer-input')"
_LIST = "document.getElementById('channel-message-list')"
_MESSAGES = "[...document.querySelectorAll('.channel-message')]"
_TIMELINE = "document.getElementById('channel-timeline')"
_BUTTONS = f"{_MESSAGES}.flatMap(m => [...m.querySelectorAll('button')])"
_IDLE = "!window.simcordPreview.pendingAction"
_MARGIN = 12  # pixels of the page above the first message of a picture
_TALLEST = 1000
_SCALE = 1.25


class Page:
    """One open page of the playground."""

    def __init__(self, tab: Tab, *, width: int = 860) -> None:
        self.tab = tab
        self._width = width
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

    async def until_answered(self, *, timeout_s: float = 300.0) -> None:
        """Wait until the newest message is an answer that has ended."""
        newest = f"{_MESSAGES}.at(-1)"
        ended = f"[...({newest}?.querySelectorAll('button') ?? [])].some(b => b.innerText === 'Report')"
        await self._until(ended, "the end of an answer", timeout_s)

    async def until_grown(self, num_characters: int, *, timeout_s: float = 60.0) -> None:
        """Wait until the newest message has so much text."""
        long = f"{_MESSAGES}.at(-1)?.innerText.length > {num_characters}"
        await self._until(long, f"{num_characters} characters", timeout_s)

    async def type(self, text: str) -> None:
        """Type where messages are written."""
        await self.tab.evaluate(f"{_INPUT}.focus()")
        await self.tab.type(text)

    async def send(self, text: str) -> None:
        """Type a message, press Enter once, and wait until the page took it."""
        await self.type(text)
        await self.tab.press("Enter", _ENTER)
        await self._until(f"{_INPUT}.value === '' && {_IDLE}", "a message that was sent")

    async def command(self, name: str, /, **options: str) -> None:
        """Run a slash command: pick it from the list, fill in its options, and send it."""
        await self.type(f"/{name}")
        await self._until("document.querySelector('.command-entry')", f"the command /{name}")
        await self.tab.press("Enter", _ENTER)
        await self._until("document.querySelector('.command-row')", f"the form of /{name}")
        for option, value in options.items():
            await self._fill_in(option, value)
        await self.tab.press("Escape", _ESCAPE)  # closes what is still offered
        await self.tab.evaluate("document.getElementById('send-message').click()")
        await self._until(f"!document.querySelector('.command-row') && {_IDLE}", f"the end of /{name}")

    async def _fill_in(self, option: str, value: str) -> None:
        field = f"document.querySelector('.command-option-input[data-option={json.dumps(option)}]')"
        if not await self.tab.evaluate(f"{field} !== null"):
            await self.tab.evaluate("document.querySelector('.command-ghost').click()")
            offered = f"document.querySelector('.command-suggestion[data-value={json.dumps(option)}]')"
            await self._until(offered, f"the option {option}")
            await self.tab.evaluate(f"{offered}.click()")
        await self.tab.evaluate(f"{field}.focus()")
        await self.tab.type(value)
        if await self.tab.evaluate("document.querySelector('.command-popup:not([hidden])') !== null"):
            await self.tab.press("Enter", _ENTER)  # takes the first of the choices that are left

    async def click(self, label: str) -> None:
        """Press the newest button with this label."""
        found = f"{_BUTTONS}.findLast(b => b.innerText === {json.dumps(label)} && !b.disabled)"
        await self._until(f"{_IDLE} && {found}", f"a button {label}")
        await self.tab.evaluate(f"{found}.click()")

    async def choose(self, menu: str, option: str) -> None:
        """Open the newest menu with this placeholder and choose one thing in it."""
        menus = "[...document.querySelectorAll('.select-trigger')]"
        found = f"{menus}.findLast(m => m.innerText.includes({json.dumps(menu)}) && !m.disabled)"
        await self._until(f"{_IDLE} && {found}", f"a menu {menu!r}")
        await self.tab.evaluate(f"{found}.click()")
        search = "document.querySelector('.is-open .select-candidate-search')"
        if await self.tab.evaluate(f"{search} !== null"):
            await self.tab.evaluate(f"{search}.focus()")
            await self.tab.type(option)
        options = "[...document.querySelectorAll('.is-open .select-option')]"
        wanted = f"{options}.find(o => o.innerText.includes({json.dumps(option)}))"
        await self._until(wanted, f"the choice {option!r}")
        await self.tab.evaluate(f"{wanted}.click()")

    async def fill_in_form(self, **fields: str) -> None:
        """Write into the fields of the form that is open, by their ids, and submit it."""
        for name, text in fields.items():
            field = f"document.querySelector('.modal-input[name={name}]')"
            await self._until(field, f"a form with {name}")
            await self.tab.evaluate(f"{field}.focus()")
            await self.tab.type(text)
        await self.tab.evaluate("document.querySelector('.modal-dialog .button-primary').click()")
        await self._until(f"!document.querySelector('.modal-dialog') && {_IDLE}", "the end of a form")

    async def sit(self, label: str) -> None:
        """Become another person, or go to another channel: what "Viewing as" offers under this name."""
        await self.tab.evaluate(
            "(() => { const picker = document.getElementById('viewer-picker');"
            f" picker.value = [...picker.options].find(o => o.text === {json.dumps(label)}).value;"
            " picker.dispatchEvent(new Event('change')) })()"
        )
        await self._until(
            f"{_IDLE} && window.simcordPreview.ready &&"
            f" document.getElementById('viewer-picker').selectedOptions[0]?.text === {json.dumps(label)}",
            f"the seat {label!r}",
        )

    async def begin_picture(self, *, with_all: bool = False) -> None:
        """Let the next picture begin with the message that comes next, or with the first that there is."""
        newest = await self.tab.evaluate(f"{_MESSAGES}.at(-1)?.dataset.messageId")
        self._begins_after = "0" if with_all else newest or "0"

    async def picture(self, file: Path) -> None:
        """Save the conversation since `begin_picture`, as people see it, as a PNG."""
        await self.tab.evaluate(
            "for (const id of ['toolbar', 'messages-sidebar'])"
            " document.getElementById(id).style.display = 'none'"
        )
        await self._until_settled()
        for _ in range(2):  # the text may run differently in the new size
            await self.tab.resize(self._width, await self._needed_height(), scale=_SCALE)
            await self._until_settled()
        await self.tab.picture(file)

    async def _needed_height(self) -> int:
        height = await self.tab.evaluate(
            f"(() => {{ const first = {_MESSAGES}.find("
            f"m => BigInt(m.dataset.messageId) > {self._begins_after}n);"
            f" const shown = {_LIST}.getBoundingClientRect().bottom - first.getBoundingClientRect().top;"
            f" return Math.ceil(innerHeight - {_TIMELINE}.clientHeight + shown + {_MARGIN}) }})()"
        )
        return min(int(height), _TALLEST)

    async def _until_settled(self) -> None:
        """Wait until the page fills its window, shows its newest message and lets everything be pressed."""
        fills = "(r => r.top < 1 && Math.abs(innerHeight - r.bottom) < 1)"
        await self._until(
            f"{_IDLE} && window.simcordPreview.ready && !document.querySelector('.component-button:disabled')"
            f" && {fills}(document.getElementById('channel-layout').getBoundingClientRect())",
            "the conversation alone",
        )
        await self.tab.evaluate(f"{_TIMELINE}.scrollTop = {_TIMELINE}.scrollHeight")

    async def _until(self, script: str, what: str, timeout_s: float = 10.0) -> None:
        try:
            await self.tab.wait_for(f"Boolean({script})", timeout_s=timeout_s)
        except TimeoutError:
            raise ChromiumError(f"The page did not show {what} within {timeout_s:.0f} seconds.") from None
