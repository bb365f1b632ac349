"""`/history` on the simulated Discord: pages, file, rights, restart."""

from __future__ import annotations

import discord
import simcord

from bot.conversation.prompting import last_view, place_of
from storage.conversations import ConversationKind, ConversationRef
from tests.bot.e2e.world import World, labels
from tests.fakes import Script


async def talk(world: World, num_turns: int) -> None:
    world.engine.respond = lambda dialog: Script((f"answer to {dialog[-1].content}",), delay_s=1)
    for number in range(num_turns):
        await world.anna.send(world.general, f"{world.me} question {number} " + "x" * 300)
        await world.env.advance_time(20)


def shown(result: simcord.InteractionResult) -> discord.Message:
    assert result.acknowledged
    assert result.response is not None
    assert result.response.ephemeral
    return result.response.message


async def test_history_is_paged_and_the_buttons_outlive_a_restart(world: World) -> None:
    await talk(world, 3)
    page = shown(await world.bob.slash(world.general, "history"))
    assert page.content.startswith("**What I remember here**, page 3 of 3\n")
    assert "Anna: question 2" in page.content
    assert labels(page) == ["Older", "As a file"]
    await world.restart()
    await world.bob.click(page, label="Older")
    page = shown_again(world, page)
    assert "page 2 of 3" in page.content
    assert labels(page) == ["Older", "Newer", "As a file"]
    result = await world.bob.click(page, label="As a file")
    assert result.response is not None
    (file,) = result.response.attachments
    text = (await file.read()).decode()
    assert text.count("question") == 6
    assert "UTC] Anna:\nquestion 0" in text


def shown_again(world: World, message: discord.Message) -> discord.Message:
    return next(m for m in world.general.history(viewer=world.bob) if m.id == message.id)


async def test_history_as_a_file_and_of_nothing(world: World) -> None:
    assert "Nothing has been said" in shown(await world.anna.slash(world.general, "history")).content
    assert "Nothing" in shown(await world.anna.slash(world.general, "history", file=True)).content
    await world.anna.send_dm("hi")
    await world.run(2)
    assert "hi" in shown(await world.anna.user.slash("history")).content


async def test_history_shows_no_other_channel_and_pings_nobody(world: World) -> None:
    await world.anna.send(world.random, f"{world.me} secret")
    await world.run(2)
    await world.anna.send(world.general, f"{world.me} @everyone || hidden ||")
    await world.run(2)
    page = shown(await world.bob.slash(world.general, "history"))
    assert "secret" not in page.content
    assert "@everyone" not in page.content
    own = world.env.backend.get_message(world.general.id, page.id)
    own.components[0]["components"][-1]["custom_id"] = f"llamacord:history:{world.random.id}:0"
    await world.bob.click(page, custom_id=f"llamacord:history:{world.random.id}:0")
    assert "secret" not in shown_again(world, page).content


async def test_what_the_model_no_longer_sees_is_said_once_and_shown_in_the_history(world: World) -> None:
    await talk(world, 4)
    told = [
        message
        for message in world.replies(world.general)
        if "no longer see the beginning" in message.content
    ]
    assert len(told) == 1
    assert told[0].content.endswith(
        "\n-# I can no longer see the beginning of this conversation. `/history` shows where my view begins."
    )
    (file,) = shown(await world.bob.slash(world.general, "history", file=True)).attachments
    above, below = (
        (await file.read()).decode().split("\n\n— I can't see anything above this line any more —\n\n")
    )
    seen = [message.content for message in world.engine.dialogs[-1] if message.role == "user"]
    assert [below.count(f"Anna:\n{content}") for content in seen] == [1] * len(seen)
    assert above.count("Anna:\n") == 4 - len(seen)
    page = shown(await world.bob.slash(world.general, "history"))
    while "Older" in labels(page) and "above this line" not in page.content:
        await world.bob.click(page, label="Older")
        page = shown_again(world, page)
    assert "— I can't see anything above this line any more —\nAnna: question" in page.content


async def test_what_was_summed_up_is_shown_and_moderators_can_have_it_forgotten(world: World) -> None:
    await talk(world, 4)
    conversation_id = await world.conversations.open(
        ConversationRef(world.general.id, ConversationKind.CHANNEL, world.guild.id)
    )
    messages = await world.conversations.recent(conversation_id, 100)
    until_id = last_view(messages)
    let_go = [message for message in messages if place_of(message) < until_id]
    assert await world.conversations.summaries.add(
        conversation_id, let_go, until_id, "Anna asked about @everyone."
    )
    world.engine.respond = None
    await world.anna.send(world.general, f"{world.me} and now?")
    await world.run(20)
    assert "> Anna asked about" in world.engine.dialogs[-1][1].content
    page = shown(await world.bob.slash(world.general, "history"))
    assert "Forget the summary" not in labels(page)
    page = shown(await world.mod.slash(world.general, "history"))
    assert "Forget the summary" in labels(page)
    (file,) = shown(await world.mod.slash(world.general, "history", file=True)).attachments
    assert "My summary of what is above: Anna asked about @everyone." in (await file.read()).decode()
    await world.mod.click(page, label="Forget the summary")
    page = next(m for m in world.general.history(viewer=world.mod) if m.id == page.id)
    assert "Forget the summary" not in labels(page)
    await world.anna.send(world.general, f"{world.me} and now?")
    await world.run(20)
    assert "Anna asked about" not in str(world.engine.dialogs[-1])


async def test_a_server_may_want_no_summaries(world: World) -> None:
    await talk(world, 4)
    world.engine.respond = None
    ref = ConversationRef(world.general.id, ConversationKind.CHANNEL, world.guild.id)
    conversation_id = await world.conversations.open(ref)
    messages = await world.conversations.recent(conversation_id, 100)
    await world.conversations.summaries.add(conversation_id, messages[:2], last_view(messages), "Anna asked.")
    await world.set_up(world.guild.id, {"sums_up": False})
    await world.anna.send(world.general, f"{world.me} and now?")
    await world.run(20)
    assert "Anna asked" not in str(world.engine.dialogs[-1])
    await world.set_up(world.guild.id, {"sums_up": True})
    await world.anna.send(world.general, f"{world.me} and now?")
    await world.run(20)
    assert "Anna asked" in str(world.engine.dialogs[-1])


async def test_who_is_no_moderator_cannot_have_a_summary_forgotten(world: World) -> None:
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(5)
    page = shown(await world.bob.slash(world.general, "history"))
    custom_id = f"llamacord:history:{world.general.id}:forget"
    own = world.env.backend.get_message(world.general.id, page.id)
    own.components[0]["components"][-1]["custom_id"] = custom_id
    result = await world.bob.click(page, custom_id=custom_id)
    assert result.response is not None
    assert "Only moderators" in str(result.response.message.content)
