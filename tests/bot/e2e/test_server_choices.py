"""What servers choose: defaults and presets of answers, free channels, embeds (asks 5, 12 and 22)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bot.parameters import ChatParameters, read_limits
from tests.bot.e2e.world import World, labels, open_world, said


@pytest.fixture
async def seeing(tmp_path: Path) -> AsyncIterator[World]:
    """Return a world whose bot was given the message content intent."""
    async with open_world(tmp_path / "seeing.sqlite3", sees_all_messages=True) as world:
        yield world


async def test_defaults_of_a_server_hold_where_a_conversation_sets_nothing(world: World) -> None:
    world.answers("answer")
    changed = await world.chief.slash(world.general, "settings server", name="temperature", value="0,3")
    assert said(changed).startswith("**temperature** is now `0,3` on this server")
    await world.mod.slash(world.random, "settings set", name="temperature", value="1")
    shown = said(await world.anna.slash(world.general, "settings show"))
    assert "**temperature** = `0.3` (this server's default; mine is 0.7" in shown
    shown = said(await world.anna.slash(world.random, "settings show"))
    assert "**temperature** = `1` (set here; otherwise 0.3" in shown
    for channel in (world.general, world.random):
        await world.anna.send(channel, f"{world.me} hi")
    await world.run(2)
    assert sorted(params.temperature for params in world.engine.params) == [0.3, 1.0]
    await world.chief.slash(world.general, "settings server", name="temperature")
    assert "`0.7` (default" in said(await world.anna.slash(world.general, "settings show"))


async def test_only_who_manages_the_server_sets_its_defaults(world: World) -> None:
    for person in (world.anna, world.mod):
        result = await person.slash(world.general, "settings server", name="top_k", value="1")
        assert "Manage Server" in said(result)
    assert "only works on a server" in said(
        await world.anna.user.slash("settings server", name="top_k", value="1")
    )
    bad = await world.chief.slash(world.general, "settings server", name="top_k", value="many")
    assert said(bad).startswith("top_k must be")


async def test_nobody_goes_beyond_the_operators_limits(world: World) -> None:
    world.answers("answer")
    await world.mod.slash(world.general, "settings set", name="temperature", value="1.5")
    world.defaults = ChatParameters(limits=read_limits("temperature=0..1"), max_history_tokens=1024)
    await world.restart()
    result = await world.mod.slash(world.general, "settings set", name="temperature", value="1.5")
    assert said(result) == "temperature must be a number from 0 to 1."
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert world.engine.params[-1].temperature == 0.7


async def test_presets_set_several_parameters_at_once(world: World) -> None:
    assert "Only moderators" in said(await world.anna.slash(world.general, "settings preset", name="precise"))
    assert "precise" in said(await world.mod.slash(world.general, "settings preset", name="precise"))
    shown = said(await world.anna.slash(world.general, "settings show"))
    assert "**temperature** = `0.2` (set here" in shown
    assert "**min_p** = `0.05` (set here" in shown
    assert "creative" in said(await world.anna.user.slash("settings preset", name="creative"))


async def test_the_same_seed_reaches_every_answer(world: World) -> None:
    world.answers("answer")
    await world.mod.slash(world.general, "settings set", name="seed", value="42")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert world.engine.params[-1].seed == 42


async def test_free_channels_need_the_intent_and_that_is_said(world: World) -> None:
    result = await world.chief.slash(world.general, "free", on=True)
    assert "MESSAGE_CONTENT_INTENT=on" in said(result)
    await world.anna.send(world.general, "hello?")
    await world.run(2)
    assert world.replies(world.general) == []


async def test_in_a_free_channel_every_message_of_people_is_answered(seeing: World) -> None:
    seeing.answers("answer")
    robot = seeing.guild.add_member(seeing.env.create_user("robot", bot=True))
    await seeing.anna.send(seeing.general, "not yet")
    assert "no mention needed" in said(await seeing.chief.slash(seeing.general, "free", on=True))
    await robot.send(seeing.general, "I am a bot")
    await seeing.anna.send(seeing.general, f"{seeing.bob.mention} this is for you")
    await seeing.anna.send(seeing.random, "elsewhere")
    await seeing.run(2)
    assert seeing.engine.dialogs == []
    await seeing.anna.send(seeing.general, "hello?")
    await seeing.run(2)
    assert seeing.reply(seeing.general).content == "answer"
    await seeing.restart()
    await seeing.chief.slash(seeing.general, "free", on=False)
    await seeing.anna.send(seeing.general, "hello?")
    await seeing.run(2)
    assert len(seeing.replies(seeing.general)) == 1


async def test_in_a_thread_started_from_an_answer_no_mention_is_needed(seeing: World) -> None:
    seeing.answers("answer")
    await seeing.anna.send(seeing.general, f"{seeing.me} hi")
    await seeing.run(2)
    answer = seeing.reply(seeing.general)
    seeing.env.backend.create_thread(seeing.general.id, "thread", seeing.anna.id, message_id=answer.id)
    thread = seeing.general.threads[-1]
    await seeing.anna.send(thread, "and more?")
    await seeing.run(2)
    assert [m.content for m in seeing.engine.dialogs[-1]][1:] == ["hi", "answer", "and more?"]
    other = seeing.open_thread(seeing.general)
    await seeing.anna.send(other, "not for the bot")
    await seeing.run(2)
    assert seeing.replies(other) == []


async def test_with_the_intent_a_reply_quotes_any_message(seeing: World) -> None:
    seeing.answers("answer")
    said_before = await seeing.bob.send(seeing.general, "Tea is best.")
    await seeing.anna.send(seeing.general, f"{seeing.me} Is it?", reply_to=said_before)
    await seeing.run(2)
    assert seeing.engine.dialogs[-1][-1].content == "About what Bob wrote:\n> Tea is best.\n\nIs it?"


async def test_answers_as_embeds_or_as_plain_text_by_setting(world: World) -> None:
    """Plain text unless a server chooses embeds."""
    world.answers("Hello", " there")
    assert "embeds" in said(await world.chief.slash(world.general, "embeds", on=True))
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(3)
    answer = world.reply(world.general)
    assert (answer.content, [embed.description for embed in answer.embeds]) == ("", ["Hello there"])
    assert labels(answer)[0] == "Regenerate"
    await world.chief.slash(world.general, "embeds", on=False)
    await world.anna.click(answer, label="Regenerate")
    await world.run(3)
    answer = world.reply(world.general)
    assert (answer.content, answer.embeds) == ("Hello there", [])


async def test_a_crash_in_the_middle_of_an_embed_loses_nothing(world: World) -> None:
    world.answers("word ", loops=True)
    await world.chief.slash(world.general, "embeds", on=True)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    await world.env.restart_bot(await world.new_client())
    (embed,) = world.reply(world.general).embeds
    assert (embed.description or "").startswith("word word")
