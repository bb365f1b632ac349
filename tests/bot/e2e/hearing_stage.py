"""Messages that hold more than typed words, and what the model was told of them."""

from __future__ import annotations

from typing import Any

import simcord
from simcord.backend.models.message import MessageSticker, Poll, PollAnswer
from simcord.results import to_discord_message

from tests.bot.e2e.world import TOKEN_S, World
from tests.fakes import Script

EMBED = {
    "type": "rich",
    "author": {"name": "Weather service"},
    "title": "Storm warning",
    "description": "From noon on.",
    "fields": [{"name": "Wind", "value": "90 km/h"}, {"name": "Rain", "value": "a lot"}],
    "footer": {"text": "Stay inside"},
}
EMBED_TEXT = "Weather service\nStorm warning\nFrom noon on.\nWind: 90 km/h\nRain: a lot\nStay inside"


def echo(world: World) -> None:
    world.engine.respond = lambda dialog: Script((f"heard: {dialog[-1].content}",), delay_s=TOKEN_S)


def asked(world: World) -> str:
    return world.engine.dialogs[-1][-1].content


def sticker(world: World, name: str) -> MessageSticker:
    return MessageSticker(id=1, name=name, format_type=1, guild_id=world.guild.id)


def poll(question: str, *answers: str) -> Poll:
    rows = [PollAnswer(number, text) for number, text in enumerate(answers, start=1)]
    return Poll(question, rows, expiry="2030-01-01T00:00:00+00:00")


async def post(
    world: World, channel: simcord.ChannelHandle, author: simcord.MemberActor, content: str = "", **held: Any
) -> Any:
    """Have somebody send a message that holds what `send` does not offer."""
    if (replied := held.pop("reply_to", None)) is not None:
        held["reference"] = {"channel_id": str(channel.id), "message_id": str(replied.id)}
    if (forwarded := held.pop("forwards", None)) is not None:
        source = {"channel_id": str(forwarded.channel.id), "message_id": str(forwarded.id)}
        held["reference"] = {"type": 1, **source}
    if files := held.pop("files", ()):
        held["attachments"] = [named(world, channel, name, data) for name, data in files]
    backend = world.env.backend
    if (kind := held.pop("message_type", None)) is not None:
        message = backend.create_system_message(channel.id, kind, author.id, **held)
    else:
        message = backend.create_message(channel.id, author.id, content, **held.pop("system", {}), **held)
    world.env._mark_mutation()
    await world.env.settle()
    return to_discord_message(world.env, message)


async def ask_about(world: World, channel: simcord.ChannelHandle, target: Any) -> simcord.InteractionResult:
    """Have Anna use Ask about this, and ask what it says; return what came of it."""
    form = await world.anna.context_menu(channel, "Ask about this", target)
    if form.modal is None:
        return form
    field = form.modal["components"][0]["components"][0]
    result = await world.anna.submit_modal(form, {field["custom_id"]: "What is it?"})
    await world.run(2)
    return result


def named(
    world: World, channel: simcord.ChannelHandle, name: str, data: bytes, **claimed: Any
) -> dict[str, Any]:
    """Return an attachment of which Discord says more than its name, its type, say."""
    (attachment,) = world.env.backend.store_attachments(channel.id, [(name, data)])
    return {**attachment, **claimed}


def voice(world: World, channel: simcord.ChannelHandle) -> dict[str, Any]:
    """Return a voice message as an attachment."""
    return named(
        world,
        channel,
        "voice-message.ogg",
        b"OggS" + bytes(90),
        content_type="audio/ogg",
        duration_secs=12.3,
        waveform="AAAA",
    )
