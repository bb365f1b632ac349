"""What goes wrong on the simulated Discord: restarts, deletions, lost rights, API errors, a full disk."""

from __future__ import annotations

import logging
from datetime import timedelta

import discord
import pytest

from storage import parts
from storage.conversations import MessageState, Role
from tests.bot.e2e.world import TOKEN_S, World, labels
from tests.fakes import Script


async def ask(world: World, text: str = "hi") -> discord.Message:
    return await world.anna.send(world.general, f"{world.me} {text}")


async def states(world: World) -> list[MessageState]:
    return [m.state for m in await world.stored(world.general)]


async def test_a_crash_in_the_middle_of_an_answer_is_marked_at_the_next_start(world: World) -> None:
    world.engine.scripts = [Script(("word ",), TOKEN_S, loops=True), Script(("whole",), TOKEN_S)]
    await ask(world)
    await world.run(2)
    await world.env.restart_bot(await world.new_client())
    answer = world.reply(world.general)
    assert answer.content.startswith("word word")
    assert answer.content.endswith("\n-# I was restarted before this answer was finished.")
    assert labels(answer) == ["Regenerate", "Continue"]
    assert await states(world) == [MessageState.COMPLETE, MessageState.INTERRUPTED]
    await world.anna.click(answer, label="Regenerate")
    await world.run(2)
    assert world.reply(world.general).content == "whole"


async def test_a_crash_before_the_first_word_is_told_and_can_be_made_good(world: World) -> None:
    world.answers("word")
    await ask(world)
    await world.env.restart_bot(await world.new_client())
    answer = world.reply(world.general)
    assert answer.content == "-# I was restarted before I could answer."
    await world.anna.click(answer, label="Regenerate")
    await world.run(2)
    assert world.reply(world.general).content == "word"


async def test_a_crash_in_the_middle_of_a_regeneration_brings_the_former_answer_back(world: World) -> None:
    world.engine.scripts = [Script(("one",), TOKEN_S), Script(("two",), TOKEN_S)]
    await ask(world)
    await world.run(2)
    await world.anna.click(world.reply(world.general), label="Regenerate")
    await world.env.restart_bot(await world.new_client())
    assert world.reply(world.general).content == "one"
    assert labels(world.reply(world.general)) == ["Regenerate"]
    assert await states(world) == [MessageState.COMPLETE, MessageState.COMPLETE]


async def test_an_ending_that_never_reached_discord_is_shown_at_the_next_start(world: World) -> None:
    """The answer was stored, and then the process died before the last edit."""
    world.answers("one ", "two")
    await world.chief.slash(world.general, "settings server", name="max_new_tokens", value="2")
    await ask(world)
    await world.run(1)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=500, times=None)
    await world.run(2)
    assert await states(world) == [MessageState.COMPLETE, MessageState.COMPLETE]
    assert labels(world.reply(world.general)) == ["Stop"]
    world.env.backend.faults.clear()
    await world.env.restart_bot(await world.new_client())
    answer = world.reply(world.general)
    assert answer.content.startswith("one two\n-# This answer reached its limit of 2 tokens.")
    assert labels(answer) == ["Regenerate", "Continue"]
    num_requests = len(world.env.http_requests)
    await world.restart()
    edits = [r for r in world.env.http_requests[num_requests:] if "/messages" in r.path]
    assert edits == [], "what is shown is not shown again"


async def test_the_last_full_message_that_nobody_recorded_is_found_at_the_next_start(world: World) -> None:
    """It has no buttons: they come with the note, in a message of its own, which was not sent any more."""
    world.answers(*(f"{letter} " * 995 for letter in "abcdef"))
    await ask(world)
    await world.run(12)
    *_, unrecorded, note = shown = world.replies(world.general)
    assert len(shown) == 6
    answer = (await world.stored(world.general))[1]
    await world.client.close()
    world.env.backend.delete_message(world.general.id, note.id)
    for message in (unrecorded, note):
        await world.conversations.detach_part(message.id)
    async with world.database.transaction() as transaction:
        await parts.note_unshown(transaction, answer.id, None)
    await world.env.restart_bot(await world.new_client())
    await world.run(1)
    now = world.replies(world.general)
    assert [m.content for m in now] == [m.content for m in shown]
    assert await world.conversations.parts(answer.id) == [m.id for m in now]
    assert labels(now[-1]) == ["Regenerate"]


async def test_a_longer_answer_above_is_not_cut_by_the_one_below_after_a_restart(world: World) -> None:
    """The process died before the place in the queue was taken away, where the rest had to stand."""
    long, short = Script(("a" * 900 + " ", "b " * 900), TOKEN_S), Script(("short",))
    world.engine.respond = lambda dialog: long if "long" in dialog[-1].content else short
    for text, person in (("long", world.anna), ("two", world.bob)):
        await person.send(world.general, f"{world.me} {text}")
    await world.run(1)
    world.env.inject_error("DELETE", "/channels/*/messages/*", status=500, times=None)
    await world.run(4)
    assert [m.content[0] for m in world.replies(world.general)] == ["a", "-"]
    assert await states(world) == [MessageState.COMPLETE] * 4
    world.env.backend.faults.clear()
    await world.env.restart_bot(await world.new_client())
    await world.run(1)
    assert [m.content[0] for m in world.replies(world.general)] == ["a", "b", "s"]
    stored = [m for m in await world.stored(world.general) if m.role is Role.ASSISTANT]
    shown_by = [await world.conversations.parts(m.id) for m in stored]
    assert [one for ids in shown_by for one in ids] == [m.id for m in world.replies(world.general)]


async def test_the_engine_does_not_stand_idle_while_discord_refuses_edits(world: World) -> None:
    world.engine.max_requests = 1
    world.answers("one ", "two")
    channels = [world.general, world.random, world.guild.create_text_channel("third")]
    for channel in channels:
        await world.newcomer().send(channel, f"{world.me} hi")
    await world.run(1)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=429, times=None)
    world.env.inject_error("POST", "/channels/*/messages", status=500, times=None)
    await world.run(9)
    first, second, third = world.engine.generations
    assert first.ended_at_s == second.begun_at_s
    assert second.ended_at_s == third.begun_at_s
    assert third.completion is not None
    world.env.backend.faults.clear()
    await world.env.advance_time(120)
    assert [world.reply(channel).content for channel in channels] == ["one two"] * 3


async def test_what_was_deleted_while_the_bot_was_away_is_not_shown_again(world: World) -> None:
    world.answers(*(f"{letter * 900} " for letter in "abcd"))
    await ask(world)
    await world.run(4)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=500, times=None)
    await world.run(5)
    first, second = world.replies(world.general)
    await world.client.close()
    world.env.backend.faults.clear()
    world.env.backend.delete_message(world.general.id, first.id)
    await world.env.restart_bot(await world.new_client())
    await world.run(1)
    answer = world.reply(world.general)
    assert (answer.id, answer.content) == (second.id, f"{'c' * 900} {'d' * 900}")
    assert labels(answer) == ["Regenerate"]
    assert [m.content for m in await world.stored(world.general)][1] == answer.content


async def test_an_ending_that_nobody_can_see_any_more_is_given_up_at_the_next_start(world: World) -> None:
    world.answers("one")
    await ask(world)
    world.env.inject_error("POST", "/channels/*/messages", status=500, times=None)
    await world.run(2)
    world.env.backend.faults.clear()
    world.env.backend.delete_channel(world.general.id)
    await world.env.restart_bot(await world.new_client())
    assert await world.conversations.unshown(within=timedelta(days=1), limit=10) == []


async def test_an_ending_of_long_ago_is_not_shown_any_more(world: World) -> None:
    world.answers("one ", "two")
    await ask(world)
    await world.run(1)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=500, times=None)
    await world.run(2)
    world.env.backend.faults.clear()
    await world.database.fetch_all("UPDATE messages SET ended_at = 1 WHERE ended_at IS NOT NULL")
    await world.env.restart_bot(await world.new_client())
    assert labels(world.reply(world.general)) == ["Stop"]
    assert await world.database.fetch_all("SELECT * FROM unshown_endings") == []


async def test_a_shutdown_marks_what_runs_while_it_still_can(world: World) -> None:
    world.answers("word ", loops=True)
    await ask(world, "one")
    await world.bob.send(world.general, f"{world.me} two")
    await world.run(2)
    await world.close()
    for message in world.replies(world.general):
        assert "Interrupted by a restart" in message.content
        assert labels(message) == ["Regenerate", *(["Continue"] if "word" in message.content else [])]
    assert (await states(world)).count(MessageState.INTERRUPTED) == 2
    await world.restart()
    assert sum("by a restart" in m.content for m in world.replies(world.general)) == 2


async def test_a_question_deleted_while_it_is_answered_is_forgotten(world: World) -> None:
    world.answers("word ", loops=True)
    question = await ask(world)
    await world.run(2)
    await world.anna.delete(question)
    await world.run(1)
    answer = world.reply(world.general)
    assert answer.content.endswith("-# Stopped, because the question was deleted.")
    assert labels(answer) == []
    assert world.engine.num_running == 0
    assert await world.stored(world.general) == []


async def test_a_question_deleted_before_the_first_word(world: World) -> None:
    world.answers("word")
    question = await ask(world)
    await world.anna.delete(question)
    await world.run(2)
    assert "was deleted" in world.reply(world.general).content


async def test_a_question_deleted_later_leaves_the_history(world: World) -> None:
    world.answers("answer")
    question = await ask(world, "secret")
    await world.run(2)
    await world.anna.delete(question)
    await ask(world, "what did I say?")
    await world.run(2)
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["what did I say?"]


async def test_an_answer_deleted_while_it_is_written_is_stopped_quietly(world: World) -> None:
    world.answers("word ", loops=True)
    await ask(world)
    await world.run(2)
    await world.mod.delete(world.reply(world.general))
    await world.run(2)
    assert world.replies(world.general) == []
    assert world.engine.num_running == 0
    assert await states(world) == [MessageState.COMPLETE, MessageState.STOPPED]


async def test_a_channel_deleted_while_it_is_answered_in(world: World) -> None:
    world.answers("word ", loops=True)
    await ask(world)
    await world.run(2)
    world.env.backend.delete_channel(world.general.id)
    await world.run(3)
    assert world.engine.num_running == 0


async def test_the_right_to_send_is_lost_in_the_middle(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.answers("word ", loops=True)
    await ask(world, "secret question")
    await world.run(2)
    caplog.set_level(logging.INFO)
    world.env.inject_error(
        "PATCH", "/channels/*/messages/*", status=403, code=50013, message="Missing Permissions", times=None
    )
    await world.run(3)
    assert world.engine.num_running == 0
    assert await states(world) == [MessageState.COMPLETE, MessageState.STOPPED]
    assert "out of sight" in caplog.text
    assert "secret" not in caplog.text
    assert "word word" not in caplog.text


async def test_where_the_bot_may_not_write_it_does_not_begin(world: World) -> None:
    bot = world.guild.me
    assert bot is not None
    closed = world.guild.create_text_channel(
        "closed", overwrites={bot: discord.PermissionOverwrite(send_messages=False)}
    )
    await world.anna.send(closed, f"{world.me} hi")
    await world.run(1)
    assert world.engine.dialogs == []


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_api_errors_delay_the_answer_and_lose_nothing(world: World, status: int) -> None:
    world.answers("one ", "two ", "three")
    world.env.inject_error("POST", "/channels/*/messages", status=status, times=2)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=status, times=2)
    await ask(world)
    await world.run(4)
    await world.env.advance_time(60)
    assert world.reply(world.general).content == "one two three"
    assert labels(world.reply(world.general)) == ["Regenerate"]
    assert await states(world) == [MessageState.COMPLETE, MessageState.COMPLETE]


async def test_an_api_that_stays_down_costs_nothing_but_time(world: World) -> None:
    world.answers("one")
    world.env.inject_error("POST", "/channels/*/messages", status=500, times=None)
    question = await ask(world)
    await world.run(2)
    for _ in range(20):
        await world.env.advance_time(30)
    assert world.replies(world.general) == []
    assert await states(world) == [MessageState.COMPLETE, MessageState.COMPLETE]
    world.env.backend.faults.clear()
    again = await ask(world, "again")
    await world.run(2)
    shown = {m.reference.message_id: m.content for m in world.replies(world.general) if m.reference}
    assert shown == {question.id: "one", again.id: "one"}
    assert len(world.replies(world.general)) == 2
    assert await world.conversations.unshown(within=timedelta(days=1), limit=10) == []


async def test_typing_that_fails_is_no_fault(world: World) -> None:
    world.answers("one")
    world.env.inject_error("POST", "/channels/*/typing", status=403, code=50013, times=None)
    await ask(world)
    await world.run(2)
    assert world.reply(world.general).content == "one"


async def test_a_full_disk_keeps_the_answer_on_screen_and_says_so(world: World) -> None:
    pieces = [f"{letter * 900} " for letter in "abcdef"]
    world.answers(*pieces)
    await ask(world)
    await world.run(1)
    await world.fill_disk()
    await world.run(7)
    shown = [m.content for m in world.replies(world.general)]
    assert [text[0] for text in " ".join(shown).split()][:6] == list("abcdef")
    assert shown[-1].endswith("\n-# I couldn't save this answer, so I won't remember it.")
    assert [label for m in world.replies(world.general) for label in labels(m)] == []
    for _ in range(20):  # a page of some index may have room for one or two more
        await ask(world, "again " * 60)
        if "disk that holds my conversations is full" in world.replies(world.general)[-1].content:
            return
        await world.run(7)
    pytest.fail("A full disk is never told of")


async def test_the_same_event_twice_is_answered_once(world: World) -> None:
    world.answers("one")
    question = await ask(world)
    world.client.dispatch("message", question)
    await world.run(2)
    assert world.reply(world.general).content == "one"
    assert len(world.engine.dialogs) == 1
