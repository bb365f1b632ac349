"""Which messages are meant for the bot: mentions of all kinds, edits, and free channels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import discord
import pytest
import simcord

from bot.on_discord.asking.messages import BEFORE_TIME, EDIT_TIME, MAX_TRIES, SENTENCES_PER_MINUTE
from storage.conversations import Role
from tests.bot.e2e.world import TOKEN_S, World, open_world
from tests.fakes import Script


@pytest.fixture
async def seeing(tmp_path: Path) -> AsyncIterator[World]:
    """Return a world whose bot was given the message content intent."""
    async with open_world(tmp_path / "seeing.sqlite3", sees_all_messages=True) as world:
        echo(world)
        yield world


@pytest.fixture
async def free(seeing: World) -> World:
    """Return a world where every message in #general is answered."""
    await seeing.set_up(seeing.guild.id, {"free_channels": [seeing.general.id]})
    return seeing


def echo(world: World) -> None:
    """Let the engine answer with what it was asked, one token."""
    world.engine.respond = lambda dialog: Script((f"heard: {dialog[-1].content}",), delay_s=TOKEN_S)


@pytest.fixture
def own_role(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], simcord.RoleHandle]:
    """Return what gives a bot the role that Discord makes for it, which simcord does not."""

    def give(world: World) -> simcord.RoleHandle:
        role = world.guild.create_role("Llamacord")
        monkeypatch.setattr(discord.Guild, "self_role", property(lambda guild: guild.get_role(role.id)))
        return role

    return give


def asked(world: World) -> list[str]:
    """Return what the model was asked, the newest of each dialog."""
    return [dialog[-1].content for dialog in world.engine.dialogs]


# Code and quotes


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("What does ``` do in Markdown, {me}?", "What does ``` do in Markdown, @simcord-bot?"),
        ("It ends with a ` somewhere, {me} why?", "It ends with a ` somewhere, @simcord-bot why?"),
        ("``` opens it and {me} never closes", "``` opens it and @simcord-bot never closes"),
        ("```py\nprint(1)\n``` {me} what is this?", "```py\nprint(1)\n``` @simcord-bot what is this?"),
    ],
)
async def test_backticks_that_nothing_closes_are_no_code(world: World, text: str, heard: str) -> None:
    echo(world)
    await world.anna.send(world.general, text.format(me=world.me))
    await world.run(2)
    assert [one.replace(name_of(world), "simcord-bot") for one in asked(world)] == [heard]


def name_of(world: World) -> str:
    return world.env.backend.bot_user.name


@pytest.mark.parametrize(
    "text", ["`{me}` is how it looks", "```\n{me} hi\n```", "``{me} ` hi``", "> {me} hi", ">>> a\n{me} hi"]
)
async def test_who_shows_a_mention_does_not_speak_to_us(world: World, text: str) -> None:
    await world.anna.send(world.general, text.format(me=world.me))
    await world.run(2)
    assert world.replies(world.general) == []


async def test_a_mention_counts_also_where_discord_does_not_list_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo(world)
    monkeypatch.setattr(
        discord.Message, "_handle_mentions", lambda message, _: setattr(message, "mentions", [])
    )
    thread = world.open_thread(world.general)
    await world.anna.send(thread, f"{world.me} hi")
    await world.anna.send(thread, f"\\{world.me} is how it is written")
    await world.run(2)
    assert asked(world) == ["hi"]


# Edits


async def test_an_edit_that_mentions_us_is_a_question_once(world: World) -> None:
    echo(world)
    message = await world.anna.send(world.general, "hello")
    await world.anna.edit(message, f"{world.me} hello")
    await world.run(2)
    assert world.reply(world.general).content == "heard: hello"
    await world.anna.edit(message, "hello")
    await world.anna.edit(message, f"{world.me} hello")
    await world.run(2)
    assert asked(world) == ["hello"]
    assert world.reply(world.general).content == "heard: hello"


async def test_a_refused_question_can_be_mended_by_an_edit(world: World) -> None:
    echo(world)
    message = await world.anna.send(world.general, world.me)
    assert world.reply(world.general).content.startswith("You mentioned me without a question.")
    await world.anna.edit(message, f"{world.me} how are you?")
    await world.run(2)
    assert world.replies(world.general)[-1].content == "heard: how are you?"


async def test_an_edit_long_after_it_was_written_is_none_of_ours(world: World) -> None:
    message = await world.anna.send(world.general, "hello")
    await world.env.advance_time(EDIT_TIME.total_seconds() + 1)
    await world.anna.edit(message, f"{world.me} hello")
    await world.run(2)
    assert world.replies(world.general) == []


async def test_an_edit_after_the_answer_that_adds_a_second_mention_asks_nothing_new(world: World) -> None:
    echo(world)
    message = await world.anna.send(world.general, f"{world.me} hello")
    await world.run(2)
    await world.anna.edit(message, f"{world.me} hello {world.me} {world.me}")
    await world.run(2)
    assert asked(world) == ["hello"]


async def test_edits_without_end_are_told_of_a_few_times(world: World) -> None:
    message = await world.anna.send(world.general, "hello")
    for number in range(8):
        await world.anna.edit(message, world.me + " " * number)
        await world.env.advance_time(60)
    assert len(world.replies(world.general)) == MAX_TRIES


async def test_a_flood_of_mentions_is_not_answered_with_one(world: World) -> None:
    for _ in range(3 * SENTENCES_PER_MINUTE):
        await world.anna.send(world.general, world.me)
    assert len(world.replies(world.general)) == SENTENCES_PER_MINUTE


async def test_the_preview_of_a_link_is_no_edit(world: World) -> None:
    message = await world.anna.send(world.general, world.me)
    world.env.backend.edit_message(world.general.id, message.id, {"embeds": [{"title": "x"}]})
    await world.env.settle()
    assert len(world.replies(world.general)) == 1


async def test_a_free_question_that_is_edited_to_mention_us_is_asked_once(free: World) -> None:
    message = await free.anna.send(free.general, "hello")
    await free.run(2)
    await free.anna.edit(message, f"{free.me} hello")
    await free.run(2)
    assert asked(free) == ["hello"]


async def test_an_edit_by_somebody_who_opted_out_is_no_question(world: World) -> None:
    await world.anna.slash(world.general, "opt-out")
    message = await world.anna.send(world.general, "hello")
    await world.anna.edit(message, f"{world.me} hello")
    await world.run(2)
    assert world.engine.dialogs == []
    assert await world.stored(world.general) == []


# Our role


async def test_a_mention_of_our_role_is_told_how_to_ask_where_discord_hides_its_text(
    world: World, own_role: Callable[[World], simcord.RoleHandle]
) -> None:
    role = own_role(world)
    await world.anna.send(world.general, f"{role.mention} hi")
    await world.run(2)
    assert world.reply(world.general).content == (
        f"Discord doesn't show me messages that mention my role. Please mention {world.me} instead."
    )


async def test_a_mention_of_our_role_is_answered_where_its_text_is_shown(
    seeing: World, own_role: Callable[[World], simcord.RoleHandle]
) -> None:
    role = own_role(seeing)
    await seeing.anna.send(seeing.general, f"{role.mention} hi")
    await seeing.run(2)
    assert seeing.reply(seeing.general).content == "heard: hi"


async def test_a_mention_of_another_role_is_left_alone(
    world: World, own_role: Callable[[World], simcord.RoleHandle]
) -> None:
    own_role(world)
    other = world.guild.create_role("Helpers")
    await world.anna.send(world.general, f"{other.mention} hi")
    await world.run(2)
    assert world.replies(world.general) == []


async def test_a_role_mention_that_is_edited_to_mention_us_is_answered(
    world: World, own_role: Callable[[World], simcord.RoleHandle]
) -> None:
    echo(world)
    message = await world.anna.send(world.general, f"{own_role(world).mention} hi")
    await world.anna.edit(message, f"{world.me} hi")
    await world.run(2)
    assert world.replies(world.general)[-1].content == "heard: hi"


# A mention without words


async def test_a_bare_mention_asks_what_was_said_right_before(seeing: World) -> None:
    await seeing.anna.send(seeing.general, "How do I reset my router?")
    await seeing.anna.send(seeing.general, seeing.me)
    await seeing.run(2)
    assert asked(seeing) == ["How do I reset my router?"]
    assert seeing.reply(seeing.general).content == "heard: How do I reset my router?"


async def test_a_bare_mention_asks_all_that_was_said_in_a_row(seeing: World) -> None:
    await seeing.bob.send(seeing.general, "mine is fine")
    question = await seeing.anna.send(seeing.general, "How do I reset my router?")
    await seeing.anna.send(seeing.general, "It is an old one.")
    await seeing.bob.send(seeing.general, "no idea")
    await seeing.anna.send(seeing.general, f"{seeing.me}!")
    await seeing.run(2)
    told = [m.content for m in seeing.engine.dialogs[-1]][1:]
    assert told == ["How do I reset my router?\nIt is an old one."]
    answer = seeing.reply(seeing.general)
    assert answer.reference is not None
    assert answer.reference.message_id == question.id
    await seeing.anna.delete(question)
    questions = [m.content for m in await seeing.stored(seeing.general) if m.role is Role.USER]
    assert questions == ["It is an old one."]


async def test_a_bare_mention_does_not_ask_again_what_is_answered(seeing: World) -> None:
    await seeing.anna.send(seeing.general, f"{seeing.me} hello")
    await seeing.run(2)
    await seeing.anna.send(seeing.general, seeing.me)
    await seeing.run(2)
    assert asked(seeing) == ["hello"]
    assert seeing.replies(seeing.general)[-1].content.startswith("You mentioned me without a question.")


async def test_a_bare_mention_asks_nothing_of_others_and_nothing_old(seeing: World) -> None:
    await seeing.anna.send(seeing.general, "How do I reset my router?")
    await seeing.env.advance_time(BEFORE_TIME.total_seconds() + 1)
    await seeing.bob.send(seeing.general, "I have a secret.")
    await seeing.anna.send(seeing.general, seeing.me)
    await seeing.run(2)
    assert asked(seeing) == []
    assert seeing.reply(seeing.general).content.startswith("You mentioned me without a question.")


async def test_without_the_intent_a_bare_mention_is_told_how_to_ask(world: World) -> None:
    await world.anna.send(world.general, "How do I reset my router?")
    await world.anna.send(world.general, world.me)
    await world.run(2)
    assert "Add one to that message" in world.reply(world.general).content
    assert all("/messages?" not in request.path for request in world.env.http_requests)


async def test_a_bare_mention_in_a_reply_asks_about_what_it_replies_to(seeing: World) -> None:
    said = await seeing.bob.send(seeing.general, "Tea is best.")
    await seeing.anna.send(seeing.general, seeing.me, reply_to=said)
    await seeing.run(2)
    assert asked(seeing) == ["About what Bob wrote:\n> Tea is best.\n\nWhat do you say to this?"]


async def test_where_the_history_is_closed_a_bare_mention_is_told_how_to_ask(seeing: World) -> None:
    await seeing.anna.send(seeing.general, "How do I reset my router?")
    seeing.env.inject_error("GET", "/channels/*/messages", status=403, code=50013, times=None)
    await seeing.anna.send(seeing.general, seeing.me)
    await seeing.run(2)
    assert "Add one to that message" in seeing.reply(seeing.general).content


async def test_a_mention_with_a_question_mark_points_at_what_was_said_before(seeing: World) -> None:
    await seeing.anna.send(seeing.general, "How do I reset my router?")
    await seeing.anna.send(seeing.general, f"{seeing.me} ??")
    await seeing.run(2)
    assert asked(seeing) == ["How do I reset my router?"]


# Free channels


async def test_in_a_free_channel_a_question_mark_does_not_ask_what_was_for_others(free: World) -> None:
    await free.anna.send(free.general, f"{free.bob.mention} are you there")
    await free.anna.send(free.general, "??")
    await free.run(2)
    assert asked(free) == ["??"]


@pytest.mark.parametrize(
    "text",
    [
        "😂😂",
        "<:wave:123456789012345678>",
        "https://tenor.com/view/cat-dance-gif-12345",
        "!play something",
        "pk;switch Luna",
        "?rank",
        "/imagine a cat",
        ".play never gonna give you up",
        "@everyone dinner is ready",
        "Bob, are you there?",
        "Can you help me, Bob?",
        "@Bob look at that",
        "@zoe are you there?",
    ],
)
async def test_in_a_free_channel_what_is_for_somebody_else_is_left_alone(free: World, text: str) -> None:
    await free.bob.send(free.general, "hello")
    await free.run(2)
    await free.anna.send(free.general, text)
    await free.run(2)
    assert asked(free) == ["hello"]
    assert len(free.replies(free.general)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "hello?",
        "??",
        "What is 2 + 2?",
        ".env files, what are they?",
        "- one\n- two\nwhich one?",
        "-1 is what in binary?",
        "What did Bob mean?",
        "https://example.com what is that?",
        "> quoted\nwhat is that?",
        "*sighs* I am tired",
    ],
)
async def test_in_a_free_channel_questions_are_answered(free: World, text: str) -> None:
    await free.bob.send(free.general, "hello")
    await free.run(2)
    await free.anna.send(free.general, text)
    await free.run(2)
    assert len(asked(free)) == 2


async def test_in_a_free_channel_our_own_name_calls_us(free: World) -> None:
    await free.anna.send(free.general, f"@{name_of(free).title()} hello?")
    await free.run(2)
    assert len(asked(free)) == 1


async def test_in_a_free_channel_pictures_without_words_are_left_alone(free: World) -> None:
    picture = b"\x89PNG\r\n\x1a\n" + bytes(200)
    await free.anna.send(free.general, attachments=[(f"{n}.png", picture) for n in range(3)])
    await free.anna.send(free.general, attachments=[("voice.ogg", b"OggS" + bytes(99))])
    await free.run(2)
    assert free.replies(free.general) == []
    assert free.engine.dialogs == []


async def test_in_a_free_channel_a_text_file_is_a_question(free: World) -> None:
    await free.anna.send(free.general, attachments=[("message.txt", b"What is the sea?")])
    await free.run(2)
    assert "What is the sea?" in asked(free)[0]


async def test_in_a_free_channel_a_reply_between_members_is_left_alone(free: World) -> None:
    said = await free.bob.send(free.general, f"{free.mod.mention} hello")
    await free.anna.send(free.general, "I think so too", reply_to=said)
    await free.run(2)
    assert free.replies(free.general) == []
    own = await free.anna.send(free.general, f"{free.mod.mention} the sea is wide")
    await free.anna.send(free.general, "how wide is it?", reply_to=own)
    await free.run(2)
    assert len(asked(free)) == 1


async def test_in_a_free_channel_a_reply_to_us_is_a_question(free: World) -> None:
    await free.anna.send(free.general, "hello")
    await free.run(2)
    await free.bob.send(free.general, "hello to you, too", reply_to=free.reply(free.general))
    await free.run(2)
    assert len(asked(free)) == 2


async def test_in_a_free_channel_a_reply_to_a_message_that_is_gone_is_left_alone(free: World) -> None:
    said = await free.bob.send(free.general, f"{free.mod.mention} hello")
    reply = await free.anna.send(free.general, f"{free.mod.mention} yes", reply_to=said)
    assert reply.type is discord.MessageType.reply
    await free.bob.delete(said)
    await free.anna.send(free.general, "that is true", reply_to=reply)
    await free.run(2)
    assert len(asked(free)) == 1, "a reply to oneself is a question"
