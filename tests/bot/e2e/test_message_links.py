"""Links to messages: they are read, and nobody reads through them what they may not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord

from bot.on_discord.hearing.links import MAX_LINKS, MessageLink, links_in
from tests.bot.e2e.hearing_stage import asked, echo, post
from tests.bot.e2e.world import TOKEN_S, World, open_world
from tests.fakes import Script

HIDDEN = discord.PermissionOverwrite(view_channel=False)
SHOWN = discord.PermissionOverwrite(view_channel=True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A world in which Discord shows us the content of all messages."""
    async with open_world(tmp_path / "llamacord.sqlite3", sees_all_messages=True) as world:
        echo(world)
        yield world


def link(message: Any, host: str = "discord.com") -> str:
    guild = "@me" if message.guild is None else message.guild.id
    return f"https://{host}/channels/{guild}/{message.channel.id}/{message.id}"


async def private(world: World, name: str, *members: simcord.MemberActor) -> simcord.ChannelHandle:
    """Return a channel that only these members and the bot see."""
    overwrites: dict[Any, discord.PermissionOverwrite] = {
        world.guild.default_role: HIDDEN,
        world.client.user: SHOWN,
        **dict.fromkeys(members, SHOWN),
    }
    channel = world.guild.create_text_channel(name, overwrites=overwrites)
    await world.env.settle()
    return channel


def last(world: World, channel: simcord.ChannelHandle) -> str:
    return world.replies(channel)[-1].content


async def test_a_message_of_another_channel_is_quoted(world: World) -> None:
    said = await post(world, world.random, world.bob, "At nine.", files=[("plan.txt", b"Room 4")])
    await world.anna.send(world.general, f"{world.me} When? {link(said)}")
    await world.run(2)
    assert asked(world) == (
        f"About what Bob wrote:\n> At nine.\n> \n> File plan.txt:\n> Room 4\n\nWhen? {link(said)}"
    )
    await world.bob.delete(said)
    await world.anna.send(world.general, f"{world.me} Again?")
    await world.run(2)
    assert all("nine" not in one.content for one in world.engine.dialogs[-1] if one.role == "user")


async def test_a_linked_message_that_is_deleted_leaves_an_answer_that_has_not_begun(world: World) -> None:
    said = await world.bob.send(world.random, "the word is swordfish")
    world.engine.respond = lambda _: Script(("Fine.",), delay_s=TOKEN_S)
    await world.anna.send(world.general, f"{world.me} What is it? {link(said)}")
    assert "swordfish" in asked(world)
    await world.bob.delete(said)
    await world.run(2)
    assert "swordfish" not in asked(world)
    assert len(world.replies(world.general)) == 1


async def test_a_link_is_followed_from_a_command_and_in_a_direct_message_too(world: World) -> None:
    said = await world.bob.send(world.random, "At nine.")
    await world.anna.slash(world.general, "ask", prompt=f"When? {link(said, 'ptb.discord.com')}")
    await world.run(2)
    assert asked(world).startswith("About what Bob wrote:\n> At nine.")
    await world.anna.user.send_dm(f"When? {link(said, 'canary.discord.com')}")
    await world.run(2)
    assert asked(world).startswith("About what Bob wrote:\n> At nine.")


async def test_what_not_everybody_here_may_read_is_not_read_out_here(world: World) -> None:
    secret = await private(world, "secret", world.anna)
    said = await world.anna.send(secret, "the word is swordfish")
    for place in (world.general, world.open_thread(world.general)):
        await world.anna.send(place, f"{world.me} What is it? {link(said)}")
        await world.run(2)
        assert "swordfish" not in "".join(one.content for one in world.engine.dialogs[-1])
        assert "I left a link to a message unopened" in last(world, place)
    await world.anna.send(secret, f"{world.me} And here? {link(said)}")
    await world.run(2)
    assert "swordfish" in asked(world)


async def test_alone_with_us_a_person_reads_what_they_may(world: World) -> None:
    secret = await private(world, "secret", world.anna)
    said = await world.anna.send(secret, "the word is swordfish")
    await world.anna.user.send_dm(f"What is it? {link(said)}")
    await world.run(2)
    assert "swordfish" in asked(world)
    await world.anna.slash(world.general, "ask", prompt=f"And now? {link(said)}", private=True)
    await world.run(2)
    assert asked(world).startswith("About what Anna wrote:\n> the word is swordfish")
    await world.bob.user.send_dm(f"What is it? {link(said)}")
    await world.run(2)
    assert "swordfish" not in "".join(one.content for one in world.engine.dialogs[-1])
    await world.bob.slash(world.general, "ask", prompt=f"And for me? {link(said)}", private=True)
    await world.run(2)
    assert "swordfish" not in "".join(one.content for one in world.engine.dialogs[-1])


async def test_channels_that_the_same_people_see_may_be_read_in_each_other(world: World) -> None:
    one, other = await private(world, "one", world.anna), await private(world, "other", world.anna)
    wider = await private(world, "wider", world.anna, world.bob)
    said = await world.anna.send(one, "the word is swordfish")
    await world.anna.send(other, f"{world.me} What is it? {link(said)}")
    await world.run(2)
    assert "swordfish" in asked(world)
    await world.anna.send(wider, f"{world.me} What is it? {link(said)}")
    await world.run(2)
    assert "swordfish" not in "".join(m.content for m in world.engine.dialogs[-1])


@pytest.mark.parametrize("permission", ["view_channel", "read_message_history"])
async def test_a_channel_that_one_role_may_not_read_is_not_open_to_all(world: World, permission: str) -> None:
    muted = world.guild.create_role("Muted")
    denied = discord.PermissionOverwrite(**{permission: False})
    channel = world.guild.create_text_channel("half", overwrites={muted: denied})
    said = await world.bob.send(channel, "the word is swordfish")
    await world.anna.send(world.general, f"{world.me} What is it? {link(said)}")
    await world.run(2)
    assert "swordfish" not in asked(world)


async def test_what_we_may_not_read_ourselves_is_left_and_told_alike(world: World) -> None:
    ours = {world.client.user: HIDDEN}
    channel = world.guild.create_text_channel("without us", overwrites=ours)  # type: ignore[arg-type]
    said = await world.bob.send(channel, "the word is swordfish")
    elsewhere = f"https://discord.com/channels/{world.guild.id}/{world.random.id}/123456789012345678"
    other_server = "https://discord.com/channels/123456789012345678/123456789012345678/123456789012345678"
    sentences = set()
    for target in (link(said), elsewhere, other_server):
        await world.anna.send(world.general, f"{world.me} What is it? {target}")
        await world.run(2)
        assert asked(world) == f"What is it? {target}"
        sentences.add(last(world, world.general).partition("-# ")[2])
    (sentence,) = sentences
    assert sentence.startswith("I left a link to a message unopened")


async def test_a_few_links_are_followed_and_of_more_it_is_said(world: World) -> None:
    said = [await world.bob.send(world.random, f"word {number}") for number in range(MAX_LINKS + 1)]
    num_before = len(world.env.http_requests)
    await world.anna.send(world.general, f"{world.me} {' '.join(map(link, said))} {link(said[0])}")
    await world.run(2)
    assert asked(world).count("About what Bob wrote") == MAX_LINKS
    assert f"I open up to {MAX_LINKS} links" in last(world, world.general)
    fetches = [r for r in world.env.http_requests[num_before:] if r.method == "GET"]
    assert len(fetches) == MAX_LINKS


async def test_a_link_in_what_others_wrote_opens_nothing(world: World) -> None:
    said = await world.bob.send(world.random, "the word is swordfish")
    quoted = await world.bob.send(world.general, f"see {link(said)}")
    await world.anna.send(world.general, f"{world.me} What does he mean?", reply_to=quoted)
    await world.run(2)
    assert "swordfish" not in asked(world)


async def test_whoever_opted_out_is_not_kept_through_a_link(world: World) -> None:
    await world.bob.slash(world.general, "opt-out")
    said = await world.bob.send(world.random, "the word is swordfish")
    await world.anna.send(world.general, f"{world.me} What is it? {link(said)}")
    await world.run(2)
    assert "swordfish" not in asked(world)
    assert all("swordfish" not in message.content for message in await world.stored(world.general))


def test_links_are_found_once_and_not_in_code_or_quotes() -> None:
    one = "https://discord.com/channels/111111111111111111/222222222222222222/333333333333333333"
    direct = "https://discordapp.com/channels/@me/222222222222222222/333333333333333333"
    content = f"{one} <{one}> {direct}\n```\n{one.replace('3', '4')}\n```\n> {one.replace('3', '5')}"
    assert links_in(content) == [
        MessageLink(111111111111111111, 222222222222222222, 333333333333333333),
        MessageLink(None, 222222222222222222, 333333333333333333),
    ]
    assert links_in(f"{one}4444 https://evil.example/channels/1/2/3 {one[:-19]}") == []
