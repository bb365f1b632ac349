"""`/reset`, `/block` and the moderators' log on the simulated Discord."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord

from bot.conversation.memory import UNDO_TIME
from storage.conversations import Conversations
from tests.bot.e2e.world import TOKEN_S, World, open_world, said
from tests.fakes import Script

SECRET = "the treasure lies beneath the old oak"
MODERATORS_ONLY = "Only moderators"


def shown(result: simcord.InteractionResult) -> discord.Message:
    """Return the message that a command answered with."""
    assert result.response is not None
    return result.response.message


async def ask(world: World, content: str, *, who: str = "anna", where: str = "general") -> None:
    await getattr(world, who).send(getattr(world, where), f"{world.me} {content}")
    await world.run(2)


async def history(world: World, where: str = "general") -> list[str]:
    """Ask once more and return what the model was shown of the conversation before."""
    await ask(world, "and now?", where=where)
    return [m.content for m in world.engine.dialogs[-1] if m.role != "system"][:-1]


async def open_log(world: World) -> simcord.ChannelHandle:
    log = world.guild.create_text_channel("mod-log")
    await world.set_up(world.guild.id, {"log_channel": log.id})
    return log


def logged(world: World, log: simcord.ChannelHandle) -> list[str]:
    return [m.content for m in world.replies(log)]


async def test_ask_16_a_reset_is_undone_with_its_button(world: World) -> None:
    """Ask 16, moderator permissions: a reset can be taken back for ten minutes."""
    world.answers("answer")
    await ask(world, "remember me")
    done = await world.mod.slash(world.general, "reset")
    assert "I forgot 2 messages." in said(done)
    undone = await world.mod.click(shown(done), label="Undo")
    assert undone.followups[0].content == "The conversation is back: 2 messages."
    assert await history(world) == ["remember me", "answer"]
    again = await world.mod.click(shown(done), label="Undo")
    assert "too late to undo" in again.followups[0].content


async def test_a_reset_is_undone_with_the_command_and_after_a_restart(world: World) -> None:
    world.answers("answer")
    await ask(world, "remember me")
    await world.mod.slash(world.general, "reset")
    await world.restart()
    assert "The conversation is back" in said(await world.mod.slash(world.general, "reset", undo=True))
    assert "nothing here to bring back" in said(await world.mod.slash(world.general, "reset", undo=True))
    assert await history(world) == ["remember me", "answer"]


async def test_after_ten_minutes_it_is_gone_for_good(world: World) -> None:
    world.answers("answer")
    await ask(world, SECRET)
    done = await world.mod.slash(world.general, "reset")
    conversations = Conversations(world.database)
    await conversations.purge_resets(before=discord.utils.utcnow() + timedelta(days=9999))
    result = await world.mod.click(shown(done), label="Undo")
    assert "too late to undo" in result.followups[0].content
    assert not any(SECRET.encode() in file.read_bytes() for file in world.path.parent.iterdir())


async def test_the_bot_itself_deletes_what_was_put_aside(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.answers("answer")
    await ask(world, SECRET)
    await world.mod.slash(world.general, "reset")
    world.privacy.purging.undo_time = -UNDO_TIME
    await world.env.advance_time(61)
    await world.env.settle()
    assert not any(SECRET.encode() in file.read_bytes() for file in world.path.parent.iterdir())


async def test_ask_16_any_conversation_of_the_server_can_be_reset_from_anywhere(world: World) -> None:
    """Ask 16, moderator permissions."""
    world.answers("answer")
    await ask(world, "remember me")
    thread = world.open_thread(world.random)
    await world.anna.send(thread, f"{world.me} me too")
    await world.run(2)
    for place in (world.general, thread):
        assert "I forgot 2" in said(await world.mod.slash(world.random, "reset", channel=place))
        assert await world.stored(place) == []


async def test_only_who_moderates_that_very_place_may_reset_it(world: World) -> None:
    world.answers("answer")
    await ask(world, "remember me")
    backend = world.env.backend
    helpers = world.guild.create_role("Helpers")
    helper = world.guild.add_member(world.env.create_user("hal", global_name="Hal"), roles=[helpers])
    room = world.guild.create_text_channel(
        "helpers", overwrites={helpers: discord.PermissionOverwrite(manage_messages=True)}
    )
    assert backend is world.env.backend
    assert MODERATORS_ONLY in said(await helper.slash(room, "reset", channel=world.general))
    assert "I forgot 0" in said(await helper.slash(room, "reset"))
    assert await history(world) == ["remember me", "answer"]


async def test_undo_belongs_to_its_server_and_its_moderators(world: World) -> None:
    world.answers("answer")
    await ask(world, "remember me")
    done = await world.mod.slash(world.general, "reset")
    elsewhere = world.env.create_guild("Elsewhere")
    lobby = elsewhere.create_text_channel("lobby")
    stranger = elsewhere.add_member(
        world.env.create_user("eve", global_name="Eve"),
        roles=[elsewhere.create_role("Admins", permissions=discord.Permissions.all())],
    )
    theirs = await stranger.slash(lobby, "reset")
    own = world.env.backend.get_message(lobby.id, shown(theirs).id)
    ours = world.env.backend.get_message(world.general.id, shown(done).id)
    own.components = ours.components
    refused = await stranger.click(shown(theirs), label="Undo")
    assert MODERATORS_ONLY in refused.followups[0].content
    assert await world.stored(world.general) == []


async def test_resets_go_to_the_log_with_a_button_that_works_there(world: World) -> None:
    world.answers("answer")
    log = await open_log(world)
    await ask(world, "remember me")
    await world.mod.slash(world.general, "reset")
    await world.env.settle()
    (line,) = world.replies(log)
    assert line.content == (
        f"{world.mod.mention} made me forget the conversation in {world.general.mention} (2 messages)."
    )
    refused = await world.anna.click(line, label="Undo")
    assert MODERATORS_ONLY in refused.followups[0].content
    await world.mod.click(line, label="Undo")
    await world.env.settle()
    assert "brought back the conversation" in logged(world, log)[-1]
    assert await history(world) == ["remember me", "answer"]


async def test_in_a_direct_message_one_undoes_ones_own_reset(world: World) -> None:
    world.answers("answer")
    await world.anna.send_dm("remember me")
    await world.run(2)
    done = await world.anna.user.slash("reset")
    assert "I forgot 2" in said(done)
    assert "The conversation is back" in said(await world.anna.user.slash("reset", undo=True))


async def test_reset_twice_at_once_forgets_once(world: World) -> None:
    world.answers("answer")
    await ask(world, "remember me")
    assert "I forgot 2" in said(await world.mod.slash(world.general, "reset"))
    assert "I forgot 0" in said(await world.mod.slash(world.general, "reset"))


# Blocks


async def test_ask_16_a_blocked_person_is_told_once_and_then_met_with_silence(world: World) -> None:
    """Ask 16, moderator permissions: a person can be shut out, recorded with who and when."""
    world.answers("answer")
    log = await open_log(world)
    assert "I no longer answer" in said(await world.mod.slash(world.general, "block", user=world.anna))
    for _ in range(5):
        await ask(world, "hello?")
    assert world.engine.dialogs == []
    assert [m.content for m in world.replies(world.general)] == [
        "The moderators of this server have blocked you, so I don't answer you here."
    ]
    assert logged(world, log) == [f"{world.mod.mention} blocked {world.anna.mention}."]
    listed = said(await world.mod.slash(world.general, "blocked"))
    assert listed.startswith(f"{world.anna.mention}, by {world.mod.mention}, since <t:")
    await world.bob.send(world.general, f"{world.me} and me?")
    await world.run(2)
    assert world.replies(world.general)[-1].content == "answer"


async def test_a_block_stops_the_running_answer_and_drops_what_waits_on_that_server(world: World) -> None:
    elsewhere = world.env.create_guild("Elsewhere")
    lobby = elsewhere.create_text_channel("lobby")
    anna_there = elsewhere.add_member(world.anna.user)
    world.answers("word ", loops=True)
    await world.anna.send(world.general, f"{world.me} running")
    await world.bob.send(world.random, f"{world.me} running too")
    await world.run(2)
    await world.anna.send(world.random, f"{world.me} {SECRET}")
    await world.bob.send(world.random, f"{world.me} last")
    await anna_there.send(lobby, f"{world.me} there")
    await world.run(1)
    await world.mod.slash(world.general, "block", user=world.anna)
    await world.run(1)
    answer = world.reply(world.general)
    assert answer.content.startswith("word word")
    assert answer.content.endswith("moderators blocked the person who asked.")
    assert [m.content.split()[0] for m in world.replies(world.random)] == ["word", "-#", "-#"]
    assert SECRET not in [m.content for m in await world.stored(world.random)]
    assert world.engine.num_running == 2  # Bob's, and Anna's on the other server
    await world.mod.click(world.replies(world.random)[0], label="Stop")
    await world.run(1)
    assert world.engine.dialogs[-1][-1].content == "last"
    assert not any(SECRET in message.content for dialog in world.engine.dialogs for message in dialog)


async def test_a_block_gives_the_answer_back_that_was_being_made_again(world: World) -> None:
    world.engine.scripts = [Script(("whole",), TOKEN_S), Script(("word ",), TOKEN_S, loops=True)]
    await ask(world, "hi")
    await world.anna.click(world.reply(world.general), label="Regenerate")
    await world.mod.slash(world.general, "block", user=world.anna)
    await world.run(1)
    assert world.reply(world.general).content.startswith("whole")
    assert [m.content for m in await world.stored(world.general)] == ["hi", "whole"]


async def test_a_block_holds_after_a_restart_and_until_unblocked(world: World) -> None:
    world.answers("answer")
    await world.mod.slash(world.general, "block", user=world.anna)
    await world.restart()
    await ask(world, "hello?")
    assert world.engine.dialogs == []
    assert "again" in said(await world.mod.slash(world.general, "unblock", user=world.anna))
    await ask(world, "hello again?")
    assert len(world.engine.dialogs) == 1
    assert "Nobody is blocked" in said(await world.mod.slash(world.general, "blocked"))


async def test_a_block_holds_on_its_server_only(world: World) -> None:
    world.answers("answer")
    await world.mod.slash(world.general, "block", user=world.anna)
    elsewhere = world.env.create_guild("Elsewhere")
    lobby = elsewhere.create_text_channel("lobby")
    await elsewhere.add_member(world.anna.user).send(lobby, f"{world.me} hi")
    await world.anna.send_dm("hi")
    await world.run(2)
    assert world.reply(lobby).content == "answer"
    assert world.reply(world.anna.user.dm_channel).content == "answer"


async def test_a_blocked_person_cannot_regenerate(world: World) -> None:
    world.answers("answer")
    await ask(world, "hi")
    await world.mod.slash(world.general, "block", user=world.anna)
    result = await world.anna.click(world.reply(world.general), label="Regenerate")
    assert "don't answer you here" in result.followups[0].content
    assert len(world.engine.dialogs) == 1


@pytest.mark.parametrize("who", ["mod", "robot"])
async def test_moderators_and_bots_cannot_be_blocked(world: World, who: str) -> None:
    robot = world.guild.add_member(world.env.create_user("robot", bot=True))
    whom: Any = {"mod": world.mod, "robot": robot}[who]
    assert "can't block" in said(await world.mod.slash(world.general, "block", user=whom))
    assert "Nobody is blocked" in said(await world.mod.slash(world.general, "blocked"))


async def test_twice_is_said(world: World) -> None:
    await world.mod.slash(world.general, "block", user=world.anna)
    assert "already blocked here" in said(await world.mod.slash(world.general, "block", user=world.anna))
    await world.mod.slash(world.general, "unblock", user=world.anna)
    assert "isn't blocked" in said(await world.mod.slash(world.general, "unblock", user=world.anna))


@pytest.mark.parametrize("name", ["block", "unblock", "blocked"])
async def test_a_member_to_whom_it_was_opened_is_refused_all_the_same(world: World, name: str) -> None:
    assert name not in world.anna.available_commands(world.general)
    command = next(c for c in await world.client.tree.fetch_commands() if c.name == name)
    world.guild.set_command_permissions(command, {world.anna: True})
    options = {} if name == "blocked" else {"user": world.bob}
    assert MODERATORS_ONLY in said(await world.anna.slash(world.general, name, **options))


@pytest.mark.parametrize("name", ["block", "unblock", "blocked", "reset"])
async def test_a_database_that_fails_is_told(world: World, name: str) -> None:
    await world.database.close()
    options = {"user": world.anna} if name in ("block", "unblock") else {}
    answer = said(await world.mod.slash(world.general, name, **options))
    assert "can't read or save" in answer


async def test_a_log_channel_that_is_gone_holds_nothing_up(world: World) -> None:
    world.answers("answer")
    log = await open_log(world)
    world.env.backend.delete_channel(log.id)
    await world.mod.slash(world.general, "block", user=world.bob)
    await ask(world, "hi")
    assert world.reply(world.general).content == "answer"


async def test_a_log_that_cannot_be_written_holds_nothing_up(world: World) -> None:
    log = await open_log(world)
    world.env.inject_error("POST", f"/channels/{log.id}/messages", status=403, code=50013, times=1)
    await world.mod.slash(world.general, "block", user=world.bob)
    await world.mod.slash(world.general, "block", user=world.anna)
    await world.env.settle()
    assert logged(world, log) == [f"{world.mod.mention} blocked {world.anna.mention}."]


# Reports


async def test_ask_16_an_answer_is_reported_once_to_the_log_with_a_link(world: World) -> None:
    """Ask 16, moderator permissions: anybody can call the moderators' attention to an answer."""
    world.answers(SECRET)
    log = await open_log(world)
    await ask(world, "hi")
    answer = world.reply(world.general)
    thanks = await world.bob.click(answer, label="Report")
    assert thanks.followups[0].content == "Thank you. I've told the moderators."
    assert thanks.followups[0].ephemeral
    again = await world.bob.click(answer, label="Report")
    assert "already reported this answer" in again.followups[0].content
    await world.anna.click(answer, label="Report")
    await world.env.settle()
    lines = logged(world, log)
    assert len(lines) == 2
    assert lines[0].endswith(answer.jump_url)
    assert world.bob.mention in lines[0]
    assert world.anna.mention in lines[0]
    assert SECRET not in "".join(lines)


async def test_ask_14_a_report_works_after_a_restart_and_without_a_log(world: World) -> None:
    """Ask 14, buttons dead after a restart."""
    world.answers("answer")
    await ask(world, "hi")
    await world.restart()
    thanks = await world.bob.click(world.reply(world.general), label="Report")
    assert "no moderator log here" in thanks.followups[0].content


async def test_a_report_counts_only_on_the_message_that_shows_the_answer(world: World) -> None:
    world.answers("answer")
    log = await open_log(world)
    await ask(world, "hi")
    await ask(world, "hi", where="random")
    own = world.env.backend.get_message(world.general.id, world.reply(world.general).id)
    other = world.env.backend.get_message(world.random.id, world.reply(world.random).id)
    own.components = other.components
    result = await world.anna.click(world.reply(world.general), label="Report")
    assert "no longer know" in result.followups[0].content
    assert logged(world, log) == []


async def test_reports_in_a_flood_are_slowed_down(world: World) -> None:
    world.answers("answer")
    log = await open_log(world)
    for number in range(7):
        await ask(world, f"question {number}")
    said = [
        (await world.bob.click(message, label="Report")).followups[0].content
        for message in world.replies(world.general)
    ]
    assert sum("Please wait" in line for line in said) >= 1
    await world.env.settle()
    assert len(logged(world, log)) == sum("told the moderators" in line for line in said)


async def test_the_log_of_one_server_says_nothing_of_another(tmp_path: Path) -> None:
    async with open_world(tmp_path / "llamacord.sqlite3") as world:
        log = await open_log(world)
        elsewhere = world.env.create_guild("Elsewhere")
        lobby = elsewhere.create_text_channel("lobby")
        admin = elsewhere.add_member(
            world.env.create_user("eve", global_name="Eve"),
            roles=[elsewhere.create_role("Admins", permissions=discord.Permissions.all())],
        )
        await world.set_up(elsewhere.id, {"log_channel": log.id})
        await admin.slash(lobby, "reset")
        await world.env.settle()
        assert logged(world, log) == []
