"""Stop and Regenerate on the simulated Discord."""

from __future__ import annotations

import discord
import pytest
import simcord

from storage.conversations import MessageState
from tests.bot.e2e.world import World, labels
from tests.fakes import Script

pytestmark = pytest.mark.on_both


async def ask(world: World, text: str = "hi") -> discord.Message:
    return await world.anna.send(world.general, f"{world.me} {text}")


@pytest.mark.parametrize("who", ["anna", "mod"])
async def test_stop_in_the_middle_keeps_what_is_there(world: World, who: str) -> None:
    world.answers("word ", loops=True)
    await ask(world)
    await world.run(3)
    person = getattr(world, who)
    result = await person.click(world.reply(world.general), label="Stop")
    assert result.acknowledged
    await world.run()
    answer = world.reply(world.general)
    assert answer.content.startswith("word word word")
    assert answer.content.endswith("\n-# Stopped.")
    assert labels(answer) == ["Regenerate", "Continue"]
    assert world.engine.num_running == 0
    assert (await world.stored(world.general))[-1].state is MessageState.STOPPED


async def test_others_may_not_stop_or_regenerate(world: World) -> None:
    world.answers("word", " word")
    await ask(world)
    await world.run(1)
    result = await world.bob.click(world.reply(world.general), label="Stop")
    assert "Only the person who asked" in result.followups[0].content
    assert result.followups[0].ephemeral
    await world.run(2)
    assert world.reply(world.general).content == "word word"
    result = await world.bob.click(world.reply(world.general), label="Regenerate")
    assert "Only the person who asked" in result.followups[0].content
    assert len(world.engine.dialogs) == 1


async def test_a_waiting_question_can_be_stopped(world: World) -> None:
    world.answers("word ", loops=True)
    await ask(world, "first")
    await world.bob.send(world.general, f"{world.me} second")
    await world.run(1)
    waiting = next(m for m in world.replies(world.general) if "Waiting" in m.content)
    await world.bob.click(waiting, label="Stop")
    await world.run(1)
    content = next(m.content for m in world.replies(world.general) if m.id == waiting.id)
    assert content.endswith("-# Stopped.")
    assert len(world.engine.dialogs) == 1


async def test_regenerate_writes_into_the_same_message(world: World) -> None:
    world.engine.scripts = [Script(("one",), delay_s=30), Script(("two",), delay_s=30)]
    await ask(world)
    await world.run(2)
    before = world.reply(world.general)
    await world.anna.click(before, label="Regenerate")
    await world.run(0)
    assert labels(world.reply(world.general)) == ["Stop"]
    await world.run(2)
    after = world.reply(world.general)
    assert (after.id, after.content) == (before.id, "two")
    assert labels(after) == ["Regenerate"]
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["hi"]
    assert [m.content for m in await world.stored(world.general)] == ["hi", "two"]


async def test_regenerating_a_long_answer_into_a_short_one_leaves_no_old_part(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def miss(payload: discord.RawMessageDeleteEvent) -> None:
        """The gateway may be away just then."""

    monkeypatch.setattr(world.client, "on_raw_message_delete", miss)
    world.engine.scripts = [
        Script(("x" * 1500 + " ", "y" * 1500), delay_s=30),
        Script(("short",), delay_s=30),
        Script(("a" * 1500 + " ", "b" * 1500), delay_s=30),
    ]
    await ask(world)
    await world.run(3)
    assert len(world.replies(world.general)) == 2
    await world.anna.click(world.replies(world.general)[-1], label="Regenerate")
    await world.run(3)
    assert world.reply(world.general).content == "short"
    await world.anna.click(world.reply(world.general), label="Regenerate")
    await world.run(3)
    assert [m.content[0] for m in world.replies(world.general)] == ["a", "b"]


async def test_only_the_newest_answer_is_regenerated(world: World) -> None:
    world.answers("answer")
    await ask(world)
    await world.run(2)
    old = world.reply(world.general)
    await ask(world, "more")
    await world.run(2)
    result = await world.anna.click(old, label="Regenerate")
    assert "newest answer" in result.followups[0].content
    assert len(world.engine.dialogs) == 2


async def test_pressed_twice_it_works_once(world: World) -> None:
    world.answers("answer")
    await ask(world)
    await world.run(2)
    answer = world.reply(world.general)
    await world.anna.click(answer, label="Regenerate")
    with pytest.raises(simcord.SetupError, match="No matching component"):
        await world.anna.click(world.reply(world.general), label="Regenerate")
    await world.run(2)
    assert len(world.engine.dialogs) == 2


async def test_a_failed_regeneration_shows_the_former_answer_and_can_be_tried_again(world: World) -> None:
    world.engine.scripts = [
        Script(("one",), delay_s=30),
        Script(fails_after=0, delay_s=30),
        Script(("three",), delay_s=30),
    ]
    await ask(world)
    await world.run(2)
    await world.anna.click(world.reply(world.general), label="Regenerate")
    await world.run(2)
    assert world.reply(world.general).content.startswith("one\n-# The model failed")
    await world.anna.click(world.reply(world.general), label="Regenerate")
    await world.run(2)
    assert world.reply(world.general).content == "three"


async def test_a_button_works_only_on_the_message_that_shows_its_answer(world: World) -> None:
    world.answers("answer")
    await ask(world)
    await world.anna.send(world.random, f"{world.me} hi")
    await world.run(2)
    foreign = world.reply(world.random).id
    own = world.env.backend.get_message(world.general.id, world.reply(world.general).id)
    other = world.env.backend.get_message(world.random.id, foreign)
    own.components, other.components = other.components, own.components
    result = await world.anna.click(world.reply(world.general), label="Regenerate")
    assert "no longer know" in result.followups[0].content
    assert len(world.engine.dialogs) == 2


async def test_buttons_live_on_after_a_restart(world: World) -> None:
    world.engine.scripts = [Script(("one",), delay_s=30), Script(("two",), delay_s=30)]
    await ask(world)
    await world.run(2)
    await world.restart()
    await world.anna.click(world.reply(world.general), label="Regenerate")
    await world.run(2)
    assert world.reply(world.general).content == "two"
