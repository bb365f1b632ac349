"""`/history`: what is remembered of a conversation, as pages with buttons, or as a file.

Shown to one person alone, with a line where the model's view begins, and what was summed up of the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import discord
from discord import app_commands

from bot.conversation.dialog import spoken
from bot.conversation.mentions import label
from bot.conversation.prompting import last_view, place_of
from bot.conversation.service import ChatService
from bot.delivery.render import defuse
from bot.language.phrases import phrase, render
from bot.on_discord.buttons import Press, button, view_of
from bot.on_discord.interactions import check_moderator, reporting, say, show_instead, text_file
from bot.on_discord.origins import Interaction, actor_of, conversation_of
from bot.origin import may_moderate
from storage.conversations import Message, Role

MAX_MESSAGES = 400
MAX_PAGE_CHARS = 900
"""Escaping may double it."""
MAX_ENTRY_CHARS = 350
_NEWEST = 10_000
_FILE, _FORGET = "file", "forget"


class History:
    """Carries out `/history`, and the buttons below a page."""

    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    def command(self) -> app_commands.Command[Any, ..., None]:
        """Return `/history`."""

        @app_commands.command(name="history", description="What I remember of this conversation")
        @app_commands.describe(file="Get all of it as a text file")
        async def history(interaction: Interaction, file: bool = False) -> None:
            async with reporting(interaction):
                if file:
                    await self._send_file(interaction)
                else:
                    text, view = await self._page(interaction, _NEWEST)
                    await say(interaction, text, view=view)

        return history

    async def press(self, interaction: Interaction, argument: str) -> None:
        """Show what a button asks for, of the channel that it is pressed in and no other."""
        async with reporting(interaction):
            page = argument.rpartition(":")[2]
            if page == _FILE:
                await self._send_file(interaction)
                return
            if page == _FORGET:
                check_moderator(interaction)
                await self._chat.memory.forget_summaries(conversation_of(interaction))
            text, view = await self._page(interaction, _NEWEST if page == _FORGET else int(page))
            await show_instead(interaction, text, view=view)

    async def _send_file(self, interaction: Interaction) -> None:
        """Answer with everything as a text file."""
        messages = await self._chat.memory.transcript(conversation_of(interaction), MAX_MESSAGES)
        lines = await self._lines(interaction, messages)
        text = export(messages, _bot_name(interaction), lines)
        if not text:
            await say(interaction, phrase("errors.nothing_said"))
            return
        await say(interaction, file=text_file("conversation.txt", text))

    async def _page(self, interaction: Interaction, number: int) -> tuple[str, discord.ui.View | None]:
        """Return a page with its buttons; a number that is too high is the newest one."""
        locale = interaction.locale
        messages = await self._chat.memory.transcript(conversation_of(interaction), MAX_MESSAGES)
        lines = await self._lines(interaction, messages)
        all_pages = pages(messages, _bot_name(interaction), lines)
        if not all_pages:
            return render(phrase("errors.nothing_said"), locale), None
        number = min(number, len(all_pages) - 1)
        head = render(phrase("history.page", page=number + 1, pages=len(all_pages)), locale)
        targets = [("history.older", number - 1), ("history.newer", number + 1)]
        shown: list[tuple[str, object]] = [*filter(lambda one: 0 <= one[1] < len(all_pages), targets)]
        shown.append(("history.file", _FILE))
        if any(line.is_summary for line in lines) and may_moderate(actor_of(interaction)):
            shown.append(("history.forget_summary", _FORGET))
        view = view_of(
            *(
                button(Press.HISTORY, f"{interaction.channel_id or 0}:{target}", render(phrase(key), locale))
                for key, target in shown
            )
        )
        quoted = discord.utils.escape_markdown(all_pages[number])[:1850]
        return f"{head}\n{defuse(quoted)}", view

    async def _lines(self, interaction: Interaction, messages: Sequence[Message]) -> list[Line]:
        """Return where the model's view begins, and what was summed up of what is above that."""
        told = [Line(last_view(messages), render(phrase("history.view_begins"), interaction.locale))]
        for summary in await self._chat.memory.summaries(conversation_of(interaction)):
            text = render(phrase("history.summed_up", text=summary.content), interaction.locale)
            told.append(Line(summary.until_id, text, is_summary=True))
        return told


def _bot_name(interaction: Interaction) -> str:
    user = interaction.client.user
    return label("" if user is None else user.display_name)


@dataclass(frozen=True, slots=True)
class Line:
    """What stands between messages: above the first one whose place is `above`, or that comes later."""

    above: int
    text: str
    is_summary: bool = False


def pages(messages: Sequence[Message], bot_name: str, lines: Sequence[Line]) -> list[str]:
    """Return the pages, the newest one last, each fit for one Discord message."""
    cut = [dataclasses.replace(line, text=_cut(line.text)) for line in lines]
    filled: list[str] = []
    page = ""
    for entry in _with_lines([_entry(message, bot_name) for message in messages], messages, cut, "\n"):
        if page and len(page) + len(entry) + 1 > MAX_PAGE_CHARS:
            filled.append(page)
            page = ""
        page = f"{page}\n{entry}" if page else entry
    return [*filled, page] if page else filled


def export(messages: Sequence[Message], bot_name: str, lines: Sequence[Line]) -> str:
    """Return all of it as a text."""
    told = [message for message in messages if message.content]
    entries = [
        f"[{message.created_at:%Y-%m-%d %H:%M} UTC] {_name(message, bot_name)}:\n{spoken(message)}"
        for message in told
    ]
    return "\n\n".join(_with_lines(entries, told, lines, "\n\n"))


def _with_lines(
    entries: list[str], messages: Sequence[Message], lines: Sequence[Line], end: str
) -> list[str]:
    """Put lines above the messages that they belong to, the first one nearest, below at least one message."""
    for line in lines:
        num_above = sum(place_of(message) < line.above for message in messages)
        if 0 < num_above < len(entries):
            entries[num_above] = f"{line.text}{end}{entries[num_above]}"
    return entries


def _entry(message: Message, bot_name: str) -> str:
    """Return a message on one line, cut short."""
    return f"{_name(message, bot_name)}: {_cut(message.content)}"


def _cut(text: str) -> str:
    text = " ".join(text.replace("`", "'").split()) or "…"
    return text if len(text) <= MAX_ENTRY_CHARS else f"{text[:MAX_ENTRY_CHARS]}…"


def _name(message: Message, bot_name: str) -> str:
    return message.author_name if message.role is Role.USER else bot_name
