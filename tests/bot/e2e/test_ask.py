"""`/ask`, Ask about this, and answers where the bot may not write (asks 5 and 14)."""

from __future__ import annotations

from typing import Any

import discord
import pytest
import simcord

from bot.on_discord.answers.outboxes import TOKEN_LIFE_S
from bot.on_discord.interactions import GRACE_S
from bot.on_discord.origins import Interaction, are_we_there, conversation_of, writable_channel
from engine.types import FinishReason
from storage.conversations import ConversationKind
from tests.bot.e2e.world import TOKEN_S, World, labels
from tests.fakes import CONTROL_TAG, Script


def echo(world: World) -> None:
    world.engine.respond = lambda dialog: Script((f"heard: {dialog[-1].content}",), delay_s=TOKEN_S)


def alone(result: simcord.InteractionResult) -> str:
    """Return what only the person who asked was told last."""
    assert result.acknowledged
    message = result.followups[-1] if result.followups else result.response
    assert message is not None
    assert message.ephemeral
    return message.content


def closed_channel(world: World) -> simcord.ChannelHandle:
    """Return a channel that the bot may not write in, as where it is installed for one person only."""
    bot = world.guild.me
    assert bot is not None
    return world.guild.create_text_channel(
        "closed", overwrites={bot: discord.PermissionOverwrite(send_messages=False)}
    )


async def test_ask_shows_the_question_and_answers_below_it(world: World) -> None:
    echo(world)
    result = await world.anna.slash(world.general, "ask", prompt="Why is\nthe sky blue?")
    assert result.response is not None
    assert result.response.content == "**Anna** asks:\n> Why is the sky blue?"
    assert not result.response.ephemeral
    await world.run(2)
    answer = world.replies(world.general)[-1]
    assert answer.content == "heard: Why is\nthe sky blue?"
    assert answer.reference is not None
    assert answer.reference.message_id == result.response.id
    assert labels(answer)[0] == "Regenerate"
    await world.anna.send(world.general, f"{world.me} and the sea?")
    await world.run(2)
    assert [m.content for m in world.engine.dialogs[-1]][1:] == [
        "Why is\nthe sky blue?",
        "heard: Why is\nthe sky blue?",
        "and the sea?",
    ]


async def test_ask_with_options_sets_this_answer_alone(world: World) -> None:
    world.answers("one")
    await world.anna.slash(world.general, "ask", prompt="Hi", temperature=0.0, max_new_tokens=5)
    await world.run(2)
    assert (world.engine.params[-1].temperature, world.engine.params[-1].max_new_tokens) == (0.0, 5)
    await world.anna.send(world.general, f"{world.me} Hi")
    await world.run(2)
    assert (world.engine.params[-1].temperature, world.engine.params[-1].max_new_tokens) == (0.7, 512)


async def test_a_private_answer_is_seen_by_one_person_and_remembered_by_nobody(world: World) -> None:
    world.answers("sec", "ret")
    await world.mod.slash(world.general, "system set", text="Rhyme.")
    result = await world.anna.slash(world.general, "ask", prompt="my secret", private=True)
    await world.run(1)
    assert result.response is not None
    assert result.response.ephemeral
    assert result.response.content == "sec"
    await world.run(2)
    assert result.response.content == "secret"
    assert result.response.components == []
    assert "Rhyme." in world.engine.dialogs[-1][0].content
    assert world.replies(world.general) == []
    assert await world.database.fetch_all("SELECT content FROM messages") == []
    await world.anna.send(world.general, f"{world.me} what did I say?")
    await world.run(2)
    assert all("my secret" not in m.content for m in world.engine.dialogs[-1])


async def traces(world: World) -> dict[str, int]:
    """Return how many rows there are in each table that has any, without what only counts events."""
    tables = await world.database.fetch_all(
        "SELECT name FROM sqlite_master"
        " WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'counters'"
    )
    counted = {}
    for row in tables:
        found = await world.database.fetch_all(f"SELECT 1 FROM {row['name']}")  # noqa: S608 - a table's name
        counted[row["name"]] = len(found)
    return {name: num_rows for name, num_rows in counted.items() if num_rows}


async def test_nothing_at_all_is_left_of_a_private_question(world: World) -> None:
    world.answers("secret")
    await world.anna.slash(world.general, "ask", prompt="my secret", private=True)
    await world.run(2)
    assert await traces(world) == {}
    assert "control tags" in alone(
        await world.anna.slash(world.general, "ask", prompt=CONTROL_TAG, private=True)
    )
    assert await traces(world) == {}
    elsewhere, _, lobby = leave(world)
    await elsewhere.slash(lobby, "ask", prompt="my secret", private=True)
    await world.run(2)
    assert await traces(world) == {}
    await world.client.close()
    assert b"my secret" not in world.path.read_bytes()


async def test_nothing_is_left_of_a_private_question_that_a_crash_cut_off(world: World) -> None:
    world.answers("word ", loops=True)
    await world.anna.slash(world.general, "ask", prompt="my secret", private=True)
    await world.run(2)
    assert (await traces(world))["messages"] == 2
    await world.env.restart_bot(await world.new_client())
    assert await traces(world) == {}


async def test_a_private_question_has_the_settings_of_its_channel_and_the_server(world: World) -> None:
    world.answers("one")
    await world.set_up(world.guild.id, {"answer_defaults": ["top_k=7"]})
    await world.anna.slash(world.general, "ask", prompt="Hi", private=True)
    await world.run(2)
    assert world.engine.params[-1].top_k == 7
    await world.mod.slash(world.general, "settings set", name="top_k", value="9")
    await world.anna.slash(world.general, "ask", prompt="Hi", private=True)
    await world.run(2)
    assert world.engine.params[-1].top_k == 9


async def test_a_private_answer_that_reaches_its_limit_does_not_offer_to_go_on(world: World) -> None:
    world.answers("word", finish_reason=FinishReason.LENGTH)
    result = await world.anna.slash(world.general, "ask", prompt="Hi", private=True)
    await world.run(3)
    assert result.response is not None
    assert "reached its limit" in result.response.content
    assert "/continue" not in result.response.content


async def test_a_private_answer_can_be_stopped(world: World) -> None:
    world.answers("word ", loops=True)
    result = await world.anna.slash(world.general, "ask", prompt="Hi", private=True)
    await world.run(2)
    assert result.response is not None
    await world.anna.click(result.response.message, label="Stop")
    await world.run(1)
    assert result.response.content.endswith("-# Stopped.")


async def test_a_long_private_answer_goes_on_in_further_private_messages(world: World) -> None:
    world.answers("a" * 1500 + " ", "b" * 1500)
    result = await world.anna.slash(world.general, "ask", prompt="Hi", private=True)
    await world.run(4)
    assert result.response is not None
    (second,) = result.followups
    assert (result.response.content[0], second.content[0], second.ephemeral) == ("a", "b", True)


async def test_an_answer_in_a_response_ends_before_discord_takes_no_more(world: World) -> None:
    world.answers("word ", loops=True)
    result = await world.anna.slash(world.general, "ask", prompt="Hi", private=True)
    for _ in range(int(TOKEN_LIFE_S / TOKEN_S)):
        await world.env.advance_time(TOKEN_S)
    await world.run(0)
    assert world.engine.num_running == 0
    assert result.response is not None
    assert "15 minutes" in result.response.content


async def test_where_the_bot_may_not_write_the_answer_is_the_response(world: World) -> None:
    echo(world)
    closed = closed_channel(world)
    result = await world.anna.slash(closed, "ask", prompt="Hi")
    await world.run(2)
    assert result.response is not None
    assert result.response.content == "heard: Hi"
    assert not result.response.ephemeral
    assert not [request for request in world.env.http_requests if request.path.endswith("/typing")]
    assert "not allowed to write" in alone(await world.mod.slash(closed, "regenerate"))


async def test_ask_in_a_direct_message_and_in_a_thread(world: World) -> None:
    echo(world)
    await world.anna.user.slash("ask", prompt="Hi")
    await world.run(2)
    assert world.replies(world.anna.user.dm_channel)[-1].content == "heard: Hi"
    thread = world.open_thread(world.general)
    await world.anna.slash(thread, "ask", prompt="Hi there")
    await world.run(2)
    assert world.replies(thread)[-1].content == "heard: Hi there"


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    ("prompt", "sentence"), [(CONTROL_TAG, "control tags"), ("x" * 3000, "send a shorter one")]
)
async def test_a_refusal_is_told_to_the_person_alone(
    world: World, prompt: str, sentence: str, *, private: bool
) -> None:
    result = await world.anna.slash(world.general, "ask", prompt=prompt, private=private)
    assert sentence in alone(result)
    assert world.replies(world.general) == []
    assert await world.stored(world.general) == []


async def test_twice_at_once_is_two_questions_and_no_failure(world: World) -> None:
    echo(world)
    first = await world.anna.slash(world.general, "ask", prompt="one", temperature=0.0)
    second = await world.bob.slash(world.general, "ask", prompt="two")
    assert first.acknowledged
    assert second.acknowledged
    await world.run(4)
    answers = {m.content for m in world.replies(world.general) if m.content.startswith("heard")}
    assert answers == {"heard: one", "heard: Bob: two"}


async def test_an_api_that_fails_at_the_response_loses_no_answer_of_others(world: World) -> None:
    world.answers("one")
    world.env.inject_error("POST", "/interactions/*/*/callback", status=500, times=None)
    await world.anna.slash(world.general, "ask", prompt="Hi")
    world.env.backend.faults.clear()
    await world.anna.send(world.general, f"{world.me} Hi")
    await world.run(2)
    assert world.replies(world.general)[-1].content == "one"


async def test_ask_about_a_message_that_was_not_for_us(world: World) -> None:
    """The menu of a message lets us see it without any privileged intent."""
    echo(world)
    said = await world.bob.send(world.general, "E = mc²")
    form = await world.anna.context_menu(world.general, "Ask about this", said)
    assert form.modal is not None
    field = form.modal["components"][0]["components"][0]
    assert field["value"] == "What does this mean?"
    result = await world.anna.submit_modal(form, {field["custom_id"]: "Who found that?"})
    assert result.response is not None
    assert result.response.content == "**Anna** asks about a message by Bob:\n> Who found that?"
    await world.run(2)
    assert world.engine.dialogs[-1][-1].content == "About what Bob wrote:\n> E = mc²\n\nWho found that?"


async def test_asking_about_a_message_without_text_is_told(world: World) -> None:
    said = await world.bob.send(world.general, "", attachments=[("cat.png", b"\x89PNG")])
    assert "cannot see pictures" in alone(
        await world.anna.context_menu(world.general, "Ask about this", said)
    )


async def test_a_form_of_before_a_restart_gives_back_what_was_typed(world: World) -> None:
    """Ask 14: never Interaction failed."""
    said = await world.bob.send(world.general, "E = mc²")
    form = await world.anna.context_menu(world.general, "Ask about this", said)
    await world.restart()
    assert form.modal is not None
    field = form.modal["components"][0]["components"][0]
    result = await world.anna.submit_modal(form, {field["custom_id"]: "Who found that?"})
    await world.env.advance_time(GRACE_S)
    assert "I've restarted" in alone(result)
    assert "Who found that?" in alone(result)


def leave(world: World) -> tuple[simcord.MemberActor, simcord.MemberActor, simcord.ChannelHandle]:
    """Return two members and a channel of a server that the bot is no member of.

    simcord has no such servers: the bot is made to know nothing of this one. discord.py then makes of an
    interaction what it makes of one from a real server without the bot.
    """
    elsewhere = world.env.create_guild("Elsewhere")
    lobby = elsewhere.create_text_channel("lobby")
    members = [elsewhere.add_member(one.user) for one in (world.anna, world.bob)]
    guild = world.client.get_guild(elsewhere.id)
    assert guild is not None
    world.client._connection._remove_guild(guild)
    return members[0], members[1], lobby


def written(world: World, channel: simcord.ChannelHandle) -> list[str]:
    """Return what was written to a channel otherwise than by an interaction."""
    prefix = f"/channels/{channel.id}"
    return [r.path for r in world.env.http_requests if r.path.startswith(prefix) and r.method != "GET"]


async def test_who_installed_the_bot_alone_is_answered_in_the_response_and_remembered_apart(
    world: World,
) -> None:
    echo(world)
    anna, bob, lobby = leave(world)
    await world.anna.send(world.general, f"{world.me} on our server")
    await world.run(2)
    first = await anna.slash(lobby, "ask", prompt="one")
    await world.run(2)
    assert first.response is not None
    assert (first.response.content, first.response.ephemeral) == ("heard: one", False)
    await bob.slash(lobby, "ask", prompt="of Bob")
    await world.run(2)
    await anna.slash(lobby, "ask", prompt="two")
    await world.run(2)
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["one", "heard: one", "two"]
    assert written(world, lobby) == []
    assert await world.stored(lobby) == []
    await world.client.privacy.people.forget(anna.id)
    kept = await world.database.fetch_all("SELECT content FROM messages WHERE role = 'user'")
    assert [row["content"] for row in kept] == ["of Bob"]


async def test_a_long_answer_where_the_bot_is_no_member_goes_on_in_follow_ups(world: World) -> None:
    world.answers("a" * 1500 + " ", "b" * 1500)
    anna, _, lobby = leave(world)
    result = await anna.slash(lobby, "ask", prompt="Hi")
    await world.run(4)
    assert result.response is not None
    (second,) = result.followups
    assert (result.response.content[0], second.content[0]) == ("a", "b")
    assert written(world, lobby) == []


async def test_ask_about_a_message_of_a_server_that_the_bot_is_no_member_of(world: World) -> None:
    echo(world)
    anna, bob, lobby = leave(world)
    said = await bob.send(lobby, "E = mc²")
    form = await anna.context_menu(lobby, "Ask about this", said)
    assert form.modal is not None
    field = form.modal["components"][0]["components"][0]
    result = await anna.submit_modal(form, {field["custom_id"]: "Who found that?"})
    await world.run(2)
    assert result.response is not None
    assert "heard: About what Bob wrote:" in result.response.content
    assert written(world, lobby) == []
    assert await world.stored(lobby) == []


async def test_a_message_of_a_server_that_is_not_known_is_not_taken_for_a_direct_one(world: World) -> None:
    echo(world)
    anna, _, lobby = leave(world)
    await anna.send(lobby, "just talking")
    await world.run(2)
    assert written(world, lobby) == []
    assert await world.stored(lobby) == []


async def test_both_entries_are_offered_to_who_installs_the_bot_alone_and_nothing_else_is(
    world: World,
) -> None:
    everywhere = {
        command.name
        for command in world.client.tree.get_commands()
        + world.client.tree.get_commands(type=discord.AppCommandType.message)
        if command.allowed_installs is not None and command.allowed_installs.user
    }
    assert everywhere == {"ask", "Ask about this"}
    for name, kind in (("ask", 1), ("Ask about this", 3)):
        command = world.client.tree.get_command(name, type=discord.AppCommandType(kind))
        payload = command.to_dict(world.client.tree)  # type: ignore[union-attr]
        assert (payload["integration_types"], payload["contexts"]) == ([0, 1], [0, 1, 2])


@pytest.mark.parametrize(("kind", "context"), [(1, 2), (3, 2), (1, 1)])
async def test_other_peoples_messages_and_groups_are_no_place_of_ours(
    world: World, kind: int, context: int
) -> None:
    """Channel types 1 and 3 are a direct message and a group; context 1 is a direct message with the bot."""
    anna = world.anna.user
    person = {"id": str(anna.id), "username": "anna", "discriminator": "0", "avatar": None}
    payload: Any = {
        "id": "1",
        "application_id": "2",
        "type": 2,
        "token": "t",
        "version": 1,
        "data": {"id": "3", "name": "ask", "type": 1},
        "channel": {"id": "77", "type": kind, "recipients": [person], "name": None, "icon": None},
        "user": person,
        "context": context,
        "attachment_size_limit": 1,
    }
    interaction: Interaction = discord.Interaction(data=payload, state=world.client._connection)
    is_ours = context == 1
    assert are_we_there(interaction) == is_ours
    assert (writable_channel(interaction) is not None) == is_ours
    ref = conversation_of(interaction)
    assert (ref.channel_id == 77) == is_ours
    assert (ref.kind, ref.guild_id) == (ConversationKind.DIRECT, None)
    assert conversation_of(interaction) == ref
