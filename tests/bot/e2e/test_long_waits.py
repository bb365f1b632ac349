"""Whoever waited long for an answer is notified where a server wants that; nothing else ever pings."""

from __future__ import annotations

import discord
import pytest
import simcord

from tests.bot.e2e.world import EDIT_S, TOKEN_S, World, labels
from tests.fakes import Script


def notices(world: World) -> list[discord.Message]:
    """Return the messages that ping somebody."""
    return [message for message in world.replies(world.general) if message.mentions]


async def after(world: World, seconds: int) -> None:
    await world.set_up(world.guild.id, {"notify_after_s": seconds})


async def test_whoever_waited_long_is_notified_once_the_answer_is_there(world: World) -> None:
    await after(world, 60)
    world.answers("one ", f"@everyone {world.bob.mention} ", "three")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert notices(world) == []
    await world.run(2)
    answer, notice = world.replies(world.general)
    assert labels(answer) == ["Regenerate"]
    assert notice.content == f"{world.anna.mention} your answer is ready."
    assert [user.id for user in notice.mentions] == [world.anna.id]
    assert notice.reference is not None
    assert notice.reference.message_id == answer.id
    await world.run(4)
    assert len(notices(world)) == 1


async def test_nobody_is_notified_unless_a_server_wants_it(world: World) -> None:
    world.answers("one ", "two ", "three")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(20)
    assert len(world.replies(world.general)) == 1


async def test_what_came_in_time_notifies_nobody(world: World) -> None:
    await after(world, 3600)
    world.answers("one ", "two ", "three")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(5)
    assert len(world.replies(world.general)) == 1


async def test_direct_messages_notify_by_themselves(world: World) -> None:
    await after(world, 5)
    world.answers("one ", "two")
    await world.anna.send_dm("hi")
    await world.run(4)
    assert len(world.replies(world.anna.user.dm_channel)) == 1


async def test_who_waits_in_the_queue_waits(world: World) -> None:
    await after(world, int(3 * TOKEN_S))
    world.answers("one ", "two")
    await world.anna.send(world.general, f"{world.me} one")
    await world.bob.send(world.general, f"{world.me} two")
    await world.run(6)
    assert [[user.id for user in one.mentions] for one in notices(world)] == [[world.bob.id]]


@pytest.mark.parametrize("by_asker", [True, False])
async def test_who_ends_an_answer_needs_no_notice(world: World, by_asker: bool) -> None:
    await after(world, 5)
    world.answers("word ", loops=True)
    question = await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    if by_asker:
        await world.anna.click(world.reply(world.general), label="Stop")
    else:
        await world.mod.delete(question)
    await world.run(2)
    assert notices(world) == []


async def test_a_failure_is_worth_a_notice_too(world: World) -> None:
    await after(world, 5)
    world.answers("one ", "two", fails_after=1)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(3)
    (notice,) = notices(world)
    assert notice.content == f"{world.anna.mention} I could not answer your question."


async def test_who_asked_is_notified_also_where_the_end_comes_late(world: World) -> None:
    await after(world, 5)
    world.answers("one ", "two")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(1)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=403, code=50013, times=None)
    for _ in range(5):
        await world.env.advance_time(TOKEN_S)
    assert notices(world) == []
    world.env.backend.faults.clear()
    world.client.dispatch("thread_join", None)
    for _ in range(5):
        await world.env.advance_time(TOKEN_S)
    assert [[user.id for user in one.mentions] for one in notices(world)] == [[world.anna.id]]


async def test_whoever_asks_for_another_answer_is_the_one_who_waits(world: World) -> None:
    world.engine.scripts = [Script(("one",), TOKEN_S), Script(("two ", "three"), TOKEN_S)]
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    await after(world, 5)
    await world.mod.click(world.reply(world.general), label="Regenerate")
    await world.run(3)
    assert [[user.id for user in one.mentions] for one in notices(world)] == [[world.mod.id]]


async def test_a_notice_that_cannot_be_sent_harms_nothing(world: World) -> None:
    await after(world, 5)
    world.answers("one ", "two")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(1)
    world.env.inject_error("POST", "/channels/*/messages", status=403, code=50013, times=None)
    await world.run(3)
    answer = world.reply(world.general)
    assert (answer.content, labels(answer)) == ("one two", ["Regenerate"])


async def test_an_answer_that_is_not_shown_notifies_nobody(world: World) -> None:
    await after(world, 5)
    world.answers("one ", "two")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(1)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=500, times=None)
    for _ in range(40):
        await world.env.advance_time(EDIT_S)
    assert notices(world) == []


async def test_a_command_that_everybody_sees_notifies_and_a_private_one_does_not(world: World) -> None:
    await after(world, 5)
    world.answers("one ", "two")
    await world.anna.slash(world.general, "ask", prompt="hi")
    await world.run(4)
    assert len(notices(world)) == 1
    await world.anna.slash(world.general, "ask", prompt="hi", private=True)
    await world.run(4)
    assert len(notices(world)) == 1


async def test_it_is_set_in_the_panel(world: World) -> None:
    opened = await world.chief.slash(world.general, "config")
    panel = opened.response
    assert panel is not None
    await world.chief.click(panel, custom_id="llamacord:config:page:second")

    async def set_to(text: str) -> simcord.InteractionResult:
        form = await world.chief.click(panel, custom_id="llamacord:config:notify")
        return await world.chief.submit_modal(form, {"notify_after_s": text})

    shown = await set_to("90")
    assert "I notify whoever asked after 90 s" in str(shown.response)
    for wrong in ("soon", "4", "3601", "-5", "9" * 10):
        refused = await set_to(wrong)
        assert "from 5 to 3600" in str(refused.followups)
    assert (await world.moderation.servers.config(world.guild.id)).notify_after_s == 90
    await set_to("")
    assert (await world.moderation.servers.config(world.guild.id)).notify_after_s is None
