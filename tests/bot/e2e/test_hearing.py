"""What people send besides typed words, and what the model is told of it."""

from __future__ import annotations

from typing import Any

import simcord
from simcord.backend.models.message import MessageSticker, Poll, PollAnswer

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
        held["attachments"] = world.env.backend.store_attachments(channel.id, files)
    message = world.env.backend.create_message(channel.id, author.id, content, **held)
    world.env._mark_mutation()
    await world.env.settle()
    return message


async def test_a_forwarded_message_is_asked_about(world: World) -> None:
    echo(world)
    said = await world.bob.send(world.general, "The meeting is at nine.")
    await post(world, world.anna.user.dm_channel, world.anna, forwards=said)
    await world.run(2)
    assert asked(world) == "Forwarded message:\n> The meeting is at nine."


async def test_a_sticker_alone_and_beside_words_reaches_the_model(world: World) -> None:
    echo(world)
    direct = world.anna.user.dm_channel
    await post(world, direct, world.anna, stickers=[sticker(world, "thumbs up")])
    await world.run(2)
    assert asked(world) == "Sticker: thumbs up"
    await post(world, direct, world.anna, "What do you think?", stickers=[sticker(world, "thumbs up")])
    await world.run(2)
    assert asked(world) == "What do you think?\n\nSticker: thumbs up"


async def test_a_poll_reaches_the_model_with_its_answers(world: World) -> None:
    echo(world)
    await post(
        world,
        world.general,
        world.anna,
        f"{world.me} which one is best?",
        poll=poll("What shall we drink?", "Tea", "Coffee", "Water"),
    )
    await world.run(2)
    assert asked(world) == "which one is best?\n\nPoll: What shall we drink?\n- Tea\n- Coffee\n- Water"
    await post(world, world.anna.user.dm_channel, world.anna, poll=poll("Now?", "Yes", "No"))
    await world.run(2)
    assert asked(world) == "Poll: Now?\n- Yes\n- No"


async def test_a_time_is_told_as_people_read_it(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} is <t:1700000000:R> before <t:1700000000:t>?")
    await world.run(2)
    assert asked(world) == "is 2023-11-14 22:13 UTC before 22:13 UTC?"
