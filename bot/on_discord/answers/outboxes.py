"""The `Outbox` on discord.py: in a channel, and on an interaction, for answers that only one person sees.

Mentions are switched off on every send and every edit, because an edit rebuilds them. Turns Discord's errors
into the outbox's. Knows nothing of pacing and of what the texts mean.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

import aiohttp
import discord

from bot.delivery.outbox import (
    Buttons,
    OutboxClosedError,
    OutboxError,
    OutboxForbiddenError,
    OutboxGoneError,
    OutboxRefusedError,
    OutboxRetryError,
)
from bot.language.phrases import phrase, render
from bot.on_discord.buttons import Press, button, id_of, view_of
from bot.on_discord.interactions import SILENT, text_file
from bot.on_discord.origins import Channel, Interaction, may_open
from bot.on_discord.traffic import retry_after_s

_log = logging.getLogger(__name__)
Result = TypeVar("Result")

FILE_NAME = "answer.txt"
TOKEN_LIFE_S = 14 * 60.0
"""After this long the answer must have ended: a minute is left to show how."""
_BELOW_AN_ANSWER: Mapping[Buttons, tuple[tuple[Press, str], ...]] = {
    Buttons.STOP: ((Press.STOP, "buttons.stop"),),
    Buttons.REGENERATE: ((Press.REGENERATE, "buttons.regenerate"), (Press.REPORT, "moderation.report")),
    Buttons.REDO: ((Press.REGENERATE, "buttons.redo"), (Press.REPORT, "moderation.report")),
    Buttons.CONTINUE: (
        (Press.REGENERATE, "buttons.regenerate"),
        (Press.CONTINUE, "buttons.continue"),
        (Press.REPORT, "moderation.report"),
    ),
}
_OF_AN_ANSWER = re.compile(r"llamacord:(stop|regenerate|continue|report):(?P<number>[0-9]{1,20})")
_UNKNOWN_CHANNEL, _UNKNOWN_MESSAGE, _OLD_TOKEN = 10003, 10008, 50027
_ARCHIVED_THREAD, _LOCKED_THREAD = 50083, 160005
_GONE = {_UNKNOWN_CHANNEL, _UNKNOWN_MESSAGE, _OLD_TOKEN}
_REFUSED = {400, 405, 411, 413, 414, 415, 422}
"""Statuses that say that the request itself is at fault."""
_NO_REPLY_WITHOUT_HISTORY = 160002


class DiscordOutbox:
    """Writes an answer into a channel.

    `answer_id` is what its buttons carry. `trigger_id` is the message that the first one sent replies to.
    `locale`: of the readers. `on_delete` is told of a message before it is deleted.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        answer_id: int,
        trigger_id: int | None,
        locale: str,
        as_embeds: bool = False,
        hides_previews: bool = True,
        on_delete: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.answer_id = answer_id
        self._as_embeds = as_embeds
        self._hides_previews = hides_previews and not as_embeds  # our own embeds would be hidden, too
        self._on_delete = on_delete
        self._locale = locale
        self._channel = channel
        self._trigger_id = trigger_id
        self._shown: set[int] = set()
        self._newest_id = trigger_id or 0
        self._nonce = _new_nonce()

    def reply_to(self, trigger_id: int) -> None:
        """Reply to this message from now on."""
        self._trigger_id = trigger_id

    async def send(self, content: str, *, buttons: Buttons, attachment: str = "") -> int:
        """Send a message and return its id. A repeated attempt never makes a second message."""
        message = await self._opened(lambda: self._reply(content, buttons, attachment))
        if message.id <= self._newest_id or str(message.nonce or self._nonce) != self._nonce:
            # Discord takes our nonce for that of an earlier message, and has sent nothing.
            _log.warning("Answer %d: Discord answered a message with another one", self.answer_id)
            self._nonce = _new_nonce()
            raise OutboxRetryError
        self._note(message.id)
        if text_of(message, as_embeds=self._as_embeds).strip() != content.strip():
            await self.edit(message.id, content, buttons=buttons, attachment=attachment)
        self._nonce = _new_nonce()
        return message.id

    async def edit(self, discord_id: int, content: str, *, buttons: Buttons, attachment: str = "") -> None:
        """Replace content, buttons and file of a message."""
        await self._opened(
            lambda: self._message(discord_id).edit(
                content=None if self._as_embeds else content,
                embeds=self._embeds(content),
                view=answer_view(self.answer_id, buttons, self._locale),
                attachments=text_files(attachment),
                allowed_mentions=SILENT,
            )
        )
        self._note(discord_id)

    async def delete(self, discord_id: int) -> None:
        """Delete a message; one that is deleted already is what is wanted."""
        self._on_delete(discord_id)
        with suppress(OutboxGoneError):
            await self._opened(lambda: self._message(discord_id).delete())
        self._shown.discard(discord_id)

    async def notify(self, user_id: int, discord_id: int, sentence: str) -> None:
        """Send `sentence`, which mentions a person, as a reply to a message; nothing else ever pings."""
        pinged = discord.AllowedMentions(
            everyone=False, roles=False, replied_user=False, users=[discord.Object(user_id)]
        )
        reference = discord.MessageReference(
            message_id=discord_id, channel_id=self._channel.id, fail_if_not_exists=False
        )
        with translated():
            await self._channel.send(sentence, reference=reference, allowed_mentions=pinged)

    async def _opened(self, act: Callable[[], Awaitable[Result]]) -> Result:
        """Do it; if the thread is archived and we may open it, once more after that. Raises `OutboxError`."""
        try:
            with translated():
                return await act()
        except OutboxForbiddenError as error:
            if not isinstance(self._channel, discord.Thread):
                raise
            if not isinstance(error, OutboxClosedError):
                if self._channel.locked:
                    raise OutboxClosedError("Moderators locked the thread.") from error
                raise
            if not may_open(self._channel):
                raise
        try:
            with translated():
                await self._channel.edit(archived=False)
        except OutboxForbiddenError as error:
            raise OutboxClosedError("The thread is archived, and not for us to open.") from error
        with translated():
            return await act()

    def _note(self, discord_id: int) -> None:
        self._shown.add(discord_id)
        self._newest_id = max(self._newest_id, discord_id)

    def _embeds(self, content: str) -> list[discord.Embed]:
        return [discord.Embed(description=content)] if self._as_embeds else []

    def _message(self, discord_id: int) -> discord.PartialMessage:
        return discord.PartialMessage(channel=self._channel, id=discord_id)

    def _reference(self) -> discord.MessageReference | None:
        """Return what the first message replies to."""
        if self._trigger_id is None or self._shown:
            return None
        return discord.MessageReference(
            message_id=self._trigger_id, channel_id=self._channel.id, fail_if_not_exists=False
        )

    async def _reply(self, content: str, buttons: Buttons, attachment: str) -> discord.Message:
        reference = self._reference()
        try:
            return await self._send(content, buttons, attachment, reference)
        except discord.HTTPException as error:
            if reference is None or error.code != _NO_REPLY_WITHOUT_HISTORY:
                raise
            return await self._send(content, buttons, attachment, None)

    async def _send(
        self, content: str, buttons: Buttons, attachment: str, reference: discord.MessageReference | None
    ) -> discord.Message:
        """Send with a nonce that stays until a send succeeds: by it Discord recognises a repetition."""
        view = answer_view(self.answer_id, buttons, self._locale) or discord.utils.MISSING
        return await self._channel.send(
            None if self._as_embeds else content,
            embeds=self._embeds(content),
            files=text_files(attachment),
            view=view,
            nonce=self._nonce,
            reference=reference,  # type: ignore[arg-type]  # None is what leaves it out
            allowed_mentions=SILENT,
            suppress_embeds=self._hides_previews,
        )


class InteractionOutbox:
    """Writes an answer as the response to a command that was deferred, and as messages that follow it.

    Also for places where we are no member. Discord takes them for a quarter of an hour.
    """

    def __init__(self, interaction: Interaction, *, is_private: bool, locale: str) -> None:
        self.answer_id = 0
        self._interaction = interaction
        self._is_private = is_private
        self._locale = locale
        self._first_id: int | None = None

    async def send(self, content: str, *, buttons: Buttons, attachment: str = "") -> int:
        """Write the next message and return its id. The first one can be repeated without harm."""
        view = answer_view(self.answer_id, buttons, self._locale)
        with translated():
            if self._first_id is None:
                first = await self._interaction.edit_original_response(
                    content=content, view=view, attachments=text_files(attachment), allowed_mentions=SILENT
                )
                self._first_id = first.id
                return first.id
            message = await self._interaction.followup.send(
                content,
                view=view or discord.utils.MISSING,
                files=text_files(attachment),
                ephemeral=self._is_private,
                allowed_mentions=SILENT,
                suppress_embeds=True,
                wait=True,
            )
            return message.id

    async def edit(self, discord_id: int, content: str, *, buttons: Buttons, attachment: str = "") -> None:
        """Replace content, buttons and file of a message."""
        with translated():
            await self._interaction.followup.edit_message(
                discord_id,
                content=content,
                view=answer_view(self.answer_id, buttons, self._locale),
                attachments=text_files(attachment),
                allowed_mentions=SILENT,
            )

    async def delete(self, discord_id: int) -> None:
        """Delete a message; one that is deleted already is what is wanted."""
        with translated(), suppress(discord.NotFound):
            await self._interaction.followup.delete_message(discord_id)


def _new_nonce() -> str:
    """Return what no message of any run had: Discord remembers nonces for minutes, over our restarts too."""
    return str(secrets.randbits(63))


def text_of(message: discord.Message, *, as_embeds: bool) -> str:
    """Return what a message of ours says."""
    return "".join(embed.description or "" for embed in message.embeds) if as_embeds else message.content


def text_files(attachment: str) -> list[discord.File]:
    """Return a text as a file to send, none for an empty one."""
    return [text_file(FILE_NAME, attachment)] if attachment else []


def answer_view(answer_id: int, buttons: Buttons, locale: object) -> discord.ui.View | None:
    """Return the buttons below an answer, labelled for the readers there; None for none."""
    if buttons is Buttons.NONE:
        return None
    keys = _BELOW_AN_ANSWER[buttons]
    return view_of(*(button(press, answer_id, render(phrase(key), locale)) for press, key in keys))


def buttons_below(message: discord.Message, answer_id: int, locale: object) -> Buttons | None:
    """Return which buttons of an answer a message has, None for any others."""
    found = [(item.custom_id, item.label) for item in _buttons_of(message)]
    for buttons in Buttons:
        wanted = _BELOW_AN_ANSWER.get(buttons, ())
        if found == [(id_of(press, answer_id), render(phrase(key), locale)) for press, key in wanted]:
            return buttons
    return None


def numbers_below(message: discord.Message) -> set[int]:
    """Return the numbers of the answers that a message has buttons for."""
    found = (_OF_AN_ANSWER.fullmatch(item.custom_id or "") for item in _buttons_of(message))
    return {int(one["number"]) for one in found if one is not None}


def _buttons_of(message: discord.Message) -> list[discord.Button]:
    rows = (row for row in message.components if isinstance(row, discord.ActionRow))
    return [item for row in rows for item in row.children if isinstance(item, discord.Button)]


@contextmanager
def translated() -> Iterator[None]:
    """Turn discord.py's errors into the outbox's."""
    try:
        yield
    except discord.RateLimited as error:
        raise OutboxRetryError(error.retry_after) from error
    except discord.HTTPException as error:
        raise _outbox_error(error) from error
    except (aiohttp.ClientError, OSError, json.JSONDecodeError) as error:
        raise OutboxRetryError from error


def _outbox_error(error: discord.HTTPException) -> OutboxError:
    if error.code in _GONE or isinstance(error, discord.NotFound):
        return OutboxGoneError("The message or its channel was deleted.")
    if error.code in (_ARCHIVED_THREAD, _LOCKED_THREAD):
        return OutboxClosedError("The thread is archived or locked.")
    if isinstance(error, discord.Forbidden):
        return OutboxForbiddenError("We may not write there now.")
    if error.status in _REFUSED:
        _log.error("Discord refused a message: status %d, code %d", error.status, error.code)
        return OutboxRefusedError("Discord does not take this content.")
    return OutboxRetryError(retry_after_s(error.response))
