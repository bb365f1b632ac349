"""Places that change while an answer is being written, and between its last word and its last edit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import discord
import pytest
import simcord

from storage.conversations import MessageState, Role
from tests.bot.e2e.world import EDIT_S, TOKEN_S, World, labels
from tests.fakes import Script

LATER_S = 30.0
"""More than the longest pause between two attempts."""


class Threads:
    """Threads as Discord has them: in one that is archived nothing is edited, and sending opens it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.opened: list[int] = []
        """Those that the bot opened."""
        self._edit_channel = world.env.backend.edit_channel

    def edit_channel(self, channel_id: int, *args: Any, **options: Any) -> Any:
        """Do as simcord does, and let messages of the thread be edited as it is then."""
        changed = options.get("thread_metadata") or {}
        if "archived" in changed:
            self._forbid(channel_id, is_archived=changed["archived"])
            if not changed["archived"]:
                self.opened.append(channel_id)
        return self._edit_channel(channel_id, *args, **options)

    async def archive(self, thread: simcord.ChannelHandle, *, locked: bool = False) -> None:
        """Let a moderator archive a thread."""
        self._set(thread, archived=True, locked=locked)
        await self._world.env.settle()

    def lock(self, thread: simcord.ChannelHandle) -> None:
        """Let a moderator lock a thread that stays where it is."""
        self._edit_channel(thread.id, {}, thread_metadata={"locked": True})

    async def open(self, thread: simcord.ChannelHandle) -> None:
        """Let a moderator open a thread again."""
        self._set(thread, archived=False, locked=False)
        await self._world.env.settle()

    def _set(self, thread: simcord.ChannelHandle, *, archived: bool, locked: bool) -> None:
        self._forbid(thread.id, is_archived=archived)
        self._edit_channel(thread.id, {}, thread_metadata={"archived": archived, "locked": locked})

    def _forbid(self, channel_id: int, *, is_archived: bool) -> None:
        faults = self._world.env.backend.faults
        faults[:] = [one for one in faults if f"/{channel_id}/" not in one["path"]]
        if is_archived:
            for method, path in (("PATCH", "messages/*"), ("DELETE", "messages/*"), ("POST", "messages")):
                self._world.env.inject_error(
                    method, f"/channels/{channel_id}/{path}", status=400, code=50083, times=None
                )


@pytest.fixture
def threads(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    threads = Threads(world)
    monkeypatch.setattr(world.env.backend, "edit_channel", threads.edit_channel)
    yield threads
    world.env.backend.faults.clear()


@pytest.fixture
async def thread(world: World, threads: Threads) -> simcord.ChannelHandle:
    """Return a thread in which an answer of three words is being written, of which one is shown."""
    world.answers("one ", "two ", "three")
    thread = world.open_thread(world.general)
    await world.anna.send(thread, f"{world.me} hi")
    await world.run(1)
    assert world.reply(thread).content == "one"
    return thread


async def owed(world: World) -> int:
    """Return how many endings were not shown."""
    return len(await world.conversations.unshown(within=timedelta(days=1), limit=10))


async def check_whole(world: World, channel: simcord.ChannelHandle, text: str = "one two three") -> None:
    """Assert that an answer is shown to its end, with buttons that do something."""
    answer = world.reply(channel)
    assert answer.content == text
    assert labels(answer) == ["Regenerate"]
    assert await owed(world) == 0


# Threads


async def test_a_thread_that_is_archived_meanwhile_is_opened(
    world: World, threads: Threads, thread: simcord.ChannelHandle
) -> None:
    await threads.archive(thread)
    await world.run(3)
    assert threads.opened == [thread.id]
    await check_whole(world, thread)


async def test_a_thread_that_is_archived_between_the_last_word_and_the_last_edit(
    world: World, threads: Threads, thread: simcord.ChannelHandle
) -> None:
    await world.env.advance_time(2 * TOKEN_S - 1)
    await threads.archive(thread)
    await world.run(2)
    assert threads.opened == [thread.id]
    await check_whole(world, thread)


async def test_a_thread_that_moderators_locked_is_theirs_to_open_and_then_all_of_it_comes(
    world: World, threads: Threads, thread: simcord.ChannelHandle
) -> None:
    await threads.archive(thread, locked=True)
    await world.run(8)
    assert threads.opened == []
    assert world.reply(thread).content == "one"
    assert await owed(world) == 1, "what is not shown does not count as shown"
    stored = await world.stored(thread)
    assert [(m.state, m.content) for m in stored if m.role is Role.ASSISTANT] == [
        (MessageState.COMPLETE, "one two three")
    ]
    await threads.open(thread)
    await world.env.advance_time(LATER_S)
    await check_whole(world, thread)


async def test_a_locked_thread_that_is_opened_in_time_goes_on_as_if_nothing_were(
    world: World, threads: Threads, thread: simcord.ChannelHandle
) -> None:
    await threads.archive(thread, locked=True)
    await world.run(1)
    await threads.open(thread)
    await world.env.advance_time(LATER_S)
    assert "two" in world.reply(thread).content
    await world.run(3)
    await check_whole(world, thread)


async def test_the_bot_restarts_while_a_thread_is_locked(
    world: World, threads: Threads, thread: simcord.ChannelHandle
) -> None:
    await threads.archive(thread, locked=True)
    await world.run(8)
    await world.restart()
    assert await owed(world) == 1
    await threads.open(thread)
    await world.env.advance_time(LATER_S)
    await check_whole(world, thread)


async def test_a_restart_opens_a_thread_that_was_archived_meanwhile(
    world: World, threads: Threads, thread: simcord.ChannelHandle
) -> None:
    world.engine.scripts = [Script(("word ",), TOKEN_S, loops=True)]
    await threads.archive(thread)
    await world.env.restart_bot(await world.new_client())
    await world.env.advance_time(LATER_S)
    assert threads.opened == [thread.id]
    answer = world.reply(thread)
    assert answer.content.endswith("-# I was restarted before this answer was finished.")
    assert "Stop" not in labels(answer)


async def test_an_archived_thread_whose_parent_is_closed_to_us_waits(
    world: World, threads: Threads, thread: simcord.ChannelHandle
) -> None:
    world.env.inject_error("PATCH", f"/channels/{thread.id}", status=403, code=50013, times=None)
    await threads.archive(thread)
    await world.run(8)
    assert await owed(world) == 1
    world.env.backend.faults.clear()
    await threads.open(thread)
    await world.env.advance_time(LATER_S)
    await check_whole(world, thread)


@pytest.mark.parametrize(("status", "code"), [(403, 50013), (400, 160005), (400, 50083)])
async def test_a_thread_that_is_locked_and_not_archived_is_closed_to_us_as_well(
    world: World, threads: Threads, thread: simcord.ChannelHandle, status: int, code: int
) -> None:
    """Who may not manage threads cannot even edit their own messages in one that is locked."""
    for method, path in (("PATCH", "messages/*"), ("POST", "messages")):
        world.env.inject_error(method, f"/channels/{thread.id}/{path}", status=status, code=code, times=None)
    threads.lock(thread)
    await world.env.settle()
    await world.run(8)
    assert threads.opened == []
    assert await owed(world) == 1
    await threads.open(thread)
    await world.env.advance_time(LATER_S)
    await check_whole(world, thread)


@pytest.mark.parametrize("may_manage", [False, True])
async def test_in_a_locked_thread_nothing_is_begun_unless_we_may_manage_it(
    world: World, may_manage: bool
) -> None:
    bot = world.guild.me
    assert bot is not None
    strict = world.guild.create_text_channel(
        "strict", overwrites={bot: discord.PermissionOverwrite(manage_threads=may_manage)}
    )
    thread = world.open_thread(strict)
    world.env.backend.edit_channel(thread.id, {}, thread_metadata={"locked": True})
    await world.env.settle()
    await world.anna.send(thread, f"{world.me} hi")
    await world.run(1)
    assert len(world.engine.dialogs) == may_manage
    refused = await world.mod.slash(thread, "regenerate")
    told = refused.followups[0].content if refused.followups else str(refused.response)
    assert ("not allowed to write here" in told) is not may_manage


async def test_a_thread_that_is_deleted_costs_the_model_nothing_more(
    world: World, thread: simcord.ChannelHandle
) -> None:
    world.env.backend.delete_channel(thread.id)
    await world.env.settle()
    assert world.engine.num_running == 0
    await world.run(3)
    assert await owed(world) == 0


# Permissions


async def forbid_sending(world: World) -> None:
    world.env.inject_error("POST", "/channels/*/messages", status=403, code=50013, times=None)
    await world.env.settle()


async def test_where_no_more_may_be_sent_what_stands_has_no_dead_button(world: World) -> None:
    """Half of a long answer stands, and its next message is forbidden: the first one can still be edited."""
    world.answers(*(f"{letter * 900} " for letter in "abcdef"))
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert labels(world.reply(world.general)) == ["Stop"]
    await forbid_sending(world)
    await world.run(6)
    answer = world.reply(world.general)
    assert labels(answer) == []
    assert answer.content.endswith("\n-# I can't write here right now.")
    assert await owed(world) == 1
    world.env.backend.faults.clear()
    world.guild.create_role("any")
    world.client.dispatch("guild_role_delete", world.client.guilds[0].default_role)
    await world.env.advance_time(LATER_S)
    assert await owed(world) == 0
    shown = world.replies(world.general)
    assert "I can't write here right now" not in str([m.content for m in shown])
    assert labels(shown[-1]) == ["Regenerate", "Continue"]


@pytest.mark.parametrize(("status", "code"), [(403, 50013), (403, 50001)])
async def test_a_right_that_is_lost_before_the_last_edit_owes_the_end(
    world: World, status: int, code: int
) -> None:
    world.answers("one ", "two")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.env.advance_time(2 * TOKEN_S - 1)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=status, code=code, times=None)
    await world.run(2)
    assert await owed(world) == 1
    assert "does not take" not in world.reply(world.general).content
    world.env.backend.faults.clear()
    world.client.dispatch("thread_join", None)
    await world.env.advance_time(LATER_S)
    await check_whole(world, world.general, "one two")


async def test_a_press_on_a_button_that_was_left_behind_shows_the_end(world: World) -> None:
    world.answers("one ", "two")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(1)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=403, code=50013, times=None)
    await world.run(4)
    world.env.backend.faults.clear()
    answer = world.reply(world.general)
    assert labels(answer) == ["Stop"]
    result = await world.anna.click(answer, label="Stop")
    assert "has already ended" in result.followups[0].content
    await world.env.advance_time(LATER_S)
    assert "Stop" not in labels(world.reply(world.general))
    assert await owed(world) == 0


async def test_embeds_that_are_not_allowed_are_text(world: World) -> None:
    bot = world.guild.me
    assert bot is not None
    plain = world.guild.create_text_channel(
        "plain", overwrites={bot: discord.PermissionOverwrite(embed_links=False)}
    )
    await world.set_up(world.guild.id, {"uses_embeds": True})
    world.answers("one ", "two")
    await world.anna.send(plain, f"{world.me} hi")
    await world.run(3)
    await check_whole(world, plain, "one two")


# Slow mode


async def test_slow_mode_only_delays(world: World) -> None:
    """Bots are not bound by it; should one be all the same, Discord says when the next message may come."""
    world.answers("one ", "two")
    world.env.inject_error("POST", "/channels/*/messages", status=429, code=20016, times=3)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(3)
    for _ in range(10):
        await world.env.advance_time(EDIT_S)
    await check_whole(world, world.general, "one two")


# Deleted places


async def test_a_channel_that_is_deleted_costs_the_model_nothing_more(world: World) -> None:
    world.answers("word ", loops=True)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.bob.send(world.general, f"{world.me} hi, too")
    await world.run(1)
    world.env.backend.delete_channel(world.general.id)
    await world.env.settle()
    assert world.engine.num_running == 0
    await world.run(3)
    assert len(world.engine.dialogs) == 1, "who waited there is not answered"
    assert await owed(world) == 0


async def test_a_server_that_removes_us_costs_the_model_nothing_more(world: World) -> None:
    world.answers("word ", loops=True)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.anna.send_dm("hi")
    await world.run(1)
    assert world.engine.num_running == 2
    guild = world.client.get_guild(world.guild.id)
    world.client.dispatch("guild_remove", guild)
    await world.env.settle()
    assert world.engine.num_running == 1
