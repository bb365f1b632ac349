"""What one message says in words, whatever it holds; nothing is fetched for that."""

from __future__ import annotations

import dataclasses
from typing import Any

import discord
import pytest
from simcord.enums import MessageType

from bot.on_discord.hearing.message_text import text_of
from bot.on_discord.origins import bot_of
from tests.bot.e2e.hearing_stage import EMBED, EMBED_TEXT, named, poll, post, sticker, voice
from tests.bot.e2e.world import World


def text(world: World, message: discord.Message) -> str:
    user = world.client.user
    assert user is not None
    return text_of(message, bot_of(user, message.guild))


@pytest.mark.parametrize(
    ("kind", "content", "told"),
    [
        (MessageType.RECIPIENT_ADD, "-", "Bob added somebody."),
        (MessageType.RECIPIENT_REMOVE, "-", "Bob removed somebody."),
        (MessageType.CALL, "-", "Bob started a call."),
        (MessageType.CHANNEL_NAME_CHANGE, "tea [INST]", "Bob gave this place the name tea INST."),
        (MessageType.CHANNEL_ICON_CHANGE, "-", "Bob changed the icon."),
        (MessageType.PINS_ADD, "-", "Bob pinned a message here."),
        (MessageType.NEW_MEMBER, "-", "Bob joined the server."),
        (MessageType.PREMIUM_GUILD_SUBSCRIPTION, "3", "Bob boosted the server."),
        (MessageType.PREMIUM_GUILD_TIER_2, "-", "Bob boosted the server, which is now on level 2."),
        (MessageType.CHANNEL_FOLLOW_ADD, "News #all", "Bob has messages of News #all shown here."),
        (MessageType.THREAD_CREATED, "Tea", "Bob started the thread Tea."),
        (MessageType.AUTO_MODERATION_ACTION, "what was blocked", "AutoMod stopped a message of Bob."),
        (MessageType.STAGE_START, "Tea", "Bob started the stage Tea."),
        (MessageType.STAGE_END, "Tea", "Bob ended the stage Tea."),
        (MessageType.STAGE_SPEAKER, "-", "Bob is now a speaker."),
        (MessageType.STAGE_TOPIC, "Tea", "Bob gave the stage the topic Tea."),
        (MessageType.GUILD_INVITE_REMINDER, "-", ""),
        (MessageType.PURCHASE_NOTIFICATION, "-", ""),
        (MessageType.INTERACTION_PREMIUM_UPSELL, "-", ""),
    ],
)
async def test_what_discord_says_itself_is_told_or_nothing(
    world: World, kind: MessageType, content: str, told: str
) -> None:
    message = await post(world, world.general, world.bob, content, system={"message_type": kind})
    assert text(world, message) == told


async def test_how_a_poll_stands_and_ends(world: World) -> None:
    asked = poll("Tea\nor coffee?", "Tea", "Coffee")
    asked.votes = {1: {world.anna.id, world.bob.id}, 2: {world.mod.id}}
    asked.answers[1] = dataclasses.replace(asked.answers[1], emoji="☕")
    message = await post(world, world.general, world.bob, poll=asked)
    assert text(world, message) == "Poll: Tea or coffee?\n- Tea (2 votes)\n- ☕ Coffee (1 vote)"
    asked.finalized = True
    message = await post(world, world.general, world.bob, poll=asked)
    assert text(world, message).startswith("Poll: Tea or coffee? (it has ended)\n")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {
                "poll_question_text": "Tea?",
                "victor_answer_text": "Yes",
                "victor_answer_votes": "3",
                "total_votes": "4",
            },
            "The poll has ended: Tea?\nThe winner is Yes, with 3 of 4 votes.",
        ),
        ({"poll_question_text": "Tea?", "total_votes": "0"}, "The poll has ended without a winner: Tea?"),
        ({}, ""),
    ],
)
async def test_the_result_of_a_poll_is_told(world: World, fields: dict[str, str], told: str) -> None:
    embed = {
        "type": "poll_result",
        "fields": [{"name": name, "value": value} for name, value in fields.items()],
    }
    kind = {"message_type": MessageType.POLL_RESULT}
    message = await post(world, world.general, world.bob, "-", embeds=[embed], system=kind)
    assert text(world, message) == told


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"embeds": [EMBED]}, EMBED_TEXT),
        ({"content": "look", "embeds": [{"title": "One"}]}, "look\n\nEmbed:\n> One"),
        ({"embeds": [{"title": "One"}, {"title": "Two"}]}, "Embed:\n> One\n\nEmbed:\n> Two"),
        (
            {"embeds": [{"type": "image", "image": {"url": "https://e.com/a.png"}}]},
            "Picture (you cannot see it)",
        ),
        ({"content": "hi", "embeds": [{}]}, "hi"),
        (
            {
                "flags": 1 << 15,
                "components": [
                    {
                        "type": 17,
                        "components": [
                            {"type": 10, "content": "# Head"},
                            {
                                "type": 9,
                                "components": [{"type": 10, "content": "Body"}],
                                "accessory": {"type": 2, "style": 2, "label": "Press", "custom_id": "x"},
                            },
                        ],
                    }
                ],
            },
            "# Head\n\nBody",
        ),
    ],
)
async def test_embeds_and_components_are_told(world: World, held: dict[str, Any], told: str) -> None:
    assert text(world, await post(world, world.general, world.bob, **held)) == told


async def test_what_is_not_opened_is_named(world: World) -> None:
    files = [
        named(world, world.general, "notes.txt", b"x"),
        named(world, world.general, "cat.png", b"x", description="a\ncat"),
        named(world, world.general, "film.mp4", b"x", content_type="video/mp4"),
        named(world, world.general, f"{'x' * 90}.mp3", b"x", content_type="audio/mpeg"),
    ]
    message = await post(
        world, world.general, world.bob, "All:", attachments=files, stickers=[sticker(world, "wave")]
    )
    assert text(world, message) == (
        "All:\n\nSticker: wave\n\nFile notes.txt (not opened)\n\n"
        "Picture cat.png (you cannot see it), described as: a cat\n\nVideo film.mp4 (you cannot see it)\n\n"
        f"Sound {'x' * 60} (you cannot hear it)"
    )
    message = await post(world, world.general, world.bob, attachments=[voice(world, world.general)])
    assert text(world, message) == "Voice message of 12 seconds (you cannot hear it)"


async def test_a_forward_is_told_with_what_it_holds_and_without_names_of_elsewhere(world: World) -> None:
    source = await post(
        world,
        world.random,
        world.bob,
        f"{world.anna.mention} see <#{world.random.id}>",
        embeds=[{"title": "One"}],
        files=[("a.txt", b"x")],
    )
    message = await post(world, world.general, world.anna, forwards=source)
    assert text(world, message) == (
        "Forwarded message:\n> @someone see #a channel\n> \n> Embed:\n> > One\n> \n> File a.txt (not opened)"
    )
