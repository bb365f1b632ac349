"""Stop, undo, regenerate, continue, edits and deletions on the simulated Discord (asks 10 and 11)."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import discord
import pytest

from bot.on_discord.origins import bot_of
from engine.types import FinishReason
from tests.bot.e2e.world import World, labels, said
from tests.fakes import Script

pytestmark = pytest.mark.on_both


async def ask(world: World, text: str = "hi") -> discord.Message:
    return await world.anna.send(world.general, f"{world.me} {text}")


async def test_stop_by_command(world: World) -> None:
    world.answers("word ", loops=True)
    await ask(world)
    await world.run(2)
    assert "Only the person" in said(await world.bob.slash(world.general, "stop"))
    assert said(await world.anna.slash(world.general, "stop")) == "Stopped."
    await world.run(1)
    assert world.reply(world.general).content.endswith("-# Stopped.")
    assert "No answer" in said(await world.mod.slash(world.general, "stop"))
    assert "No answer" in said(await world.anna.user.slash("stop"))


async def test_undo_takes_the_last_turn_back_and_its_messages_away(world: World) -> None:
    world.answers("answer")
    await ask(world, "one")
    await world.run(2)
    await ask(world, "secret")
    await world.run(2)
    assert "Only the person" in said(await world.bob.slash(world.general, "undo"))
    assert "forgotten the last question" in said(await world.anna.slash(world.general, "undo"))
    assert [m.content for m in world.replies(world.general)] == ["answer"]
    assert [m.content for m in await world.stored(world.general)] == ["one", "answer"]
    await ask(world, "two")
    await world.run(2)
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["one", "answer", "two"]
    for _ in range(2):
        await world.mod.slash(world.general, "undo")
    assert "Nothing has been said" in said(await world.mod.slash(world.general, "undo"))


async def test_undo_of_an_answer_in_the_making_is_refused(world: World) -> None:
    world.answers("word ", loops=True)
    await ask(world)
    await world.run(2)
    assert "still being written" in said(await world.anna.slash(world.general, "undo"))
    assert world.engine.num_running == 1


async def test_undo_works_although_the_messages_cannot_be_deleted(world: World) -> None:
    world.answers("answer")
    await ask(world)
    await world.run(2)
    world.env.inject_error("DELETE", "/channels/*/messages/*", status=500, times=None)
    assert "forgotten the last question" in said(await world.anna.slash(world.general, "undo"))
    assert await world.stored(world.general) == []


async def test_regenerate_by_command_also_after_a_restart(world: World) -> None:
    world.engine.scripts = [Script(("one",), 30), Script(("two",), 30)]
    await ask(world)
    await world.run(2)
    await world.restart()
    assert "again" in said(await world.anna.slash(world.general, "regenerate"))
    assert "still being written" in said(await world.anna.slash(world.general, "regenerate"))
    await world.run(2)
    assert world.reply(world.general).content == "two"
    assert "Only the person" in said(await world.bob.slash(world.general, "regenerate"))
    assert "Nothing has been said" in said(await world.bob.slash(world.random, "regenerate"))


@pytest.mark.parametrize("by_button", [True, False])
async def test_a_cut_answer_goes_on_where_it_ended(world: World, by_button: bool) -> None:
    world.engine.scripts = [
        Script(("One,", " two,"), 30, finish_reason=FinishReason.LENGTH),
        Script((" three", "."), 30),
    ]
    await ask(world, "count")
    await world.run(3)
    answer = world.reply(world.general)
    assert labels(answer) == ["Regenerate", "Continue"]
    if by_button:
        await world.anna.click(answer, label="Continue")
    else:
        assert "carrying on" in said(await world.anna.slash(world.general, "continue"))
    await world.run(1)
    assert world.reply(world.general).content == "One, two, three"
    await world.run(2)
    answer = world.reply(world.general)
    assert (answer.content, labels(answer)) == ("One, two, three.", ["Regenerate"])
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["count", "One, two,"]
    assert "complete" in said(await world.anna.slash(world.general, "continue"))
    assert [m.content for m in await world.stored(world.general)] == ["count", "One, two, three."]


async def test_a_stopped_answer_goes_on_in_a_direct_message(world: World) -> None:
    world.engine.scripts = [Script(("One,",), 30, loops=True), Script((" two.",), 30)]
    await world.anna.send_dm("count")
    await world.run(1)
    await world.anna.user.slash("stop")
    await world.run(0)
    assert "carrying on" in said(await world.anna.user.slash("continue"))
    await world.run(2)
    assert world.reply(world.anna.user.dm_channel).content == "One, two."


async def test_an_edited_question_is_offered_to_be_answered_again(world: World) -> None:
    world.engine.scripts = [Script(("one",), 30), Script(("two",), 30)]
    question = await ask(world, "Waht?")
    await world.run(2)
    await world.anna.edit(question, f"{world.me} What?")
    answer = world.reply(world.general)
    assert (answer.content, labels(answer)) == ("one", ["Answer the edited question"])
    await world.anna.click(answer, label="Answer the edited question")
    await world.run(2)
    assert world.reply(world.general).content == "two"
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["What?"]


async def test_a_question_edited_while_it_is_answered(world: World) -> None:
    world.answers("one", " two")
    question = await ask(world, "Waht?")
    await world.run(1)
    await world.anna.edit(question, f"{world.me} What?")
    await world.run(2)
    answer = world.reply(world.general)
    assert answer.content == "one two\n-# The question was edited while I was answering it."
    assert labels(answer) == ["Answer the edited question"]


async def test_the_last_of_two_edits_counts_though_the_first_takes_longer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.answers("one")
    question = await ask(world, "Waht?")
    await world.run(2)
    changes, me = world.client._changes, world.client.user
    read, takes_s = changes._questions.content_of, iter((0.2, 0.0))

    async def read_slowly(*given: Any) -> str:
        content = await read(*given)
        await asyncio.sleep(next(takes_s))
        return content

    monkeypatch.setattr(changes._questions, "content_of", read_slowly)
    assert me is not None
    edits = [copy.copy(question), copy.copy(question)]
    for edit, text in zip(edits, ("Wat?", "What?"), strict=True):
        edit.content = f"{world.me} {text}"
    await asyncio.gather(*(changes.edited(edit, bot_of(me, question.guild)) for edit in edits))
    assert [m.content for m in await world.stored(world.general)] == ["What?", "one"]


async def test_an_edit_that_cannot_be_answered_changes_nothing(world: World) -> None:
    world.answers("one")
    question = await ask(world, "What?")
    await world.run(2)
    for text in ("<|im_start|>", "x" * 1900, ""):
        await world.anna.edit(question, f"{world.me} {text}")
    assert labels(world.reply(world.general)) == ["Regenerate"]
    assert [m.content for m in await world.stored(world.general)] == ["What?", "one"]


async def test_a_deleted_answer_leaves_the_history(world: World) -> None:
    """Deleted messages leave the history, answers too."""
    world.answers("secret answer")
    await ask(world, "one")
    await world.run(2)
    await world.mod.delete(world.reply(world.general))
    await ask(world, "two")
    await world.run(2)
    assert all("secret" not in m.content for m in world.engine.dialogs[-1])


async def test_a_deleted_part_of_a_long_answer_leaves_the_history(world: World) -> None:
    world.answers("a" * 1500 + " ", "b" * 1500 + " ", "c" * 1500)
    await ask(world, "one")
    await world.run(4)
    parts = world.replies(world.general)
    assert [part.content[0] for part in parts] == ["a", "b", "c"]
    await world.mod.delete(parts[1])
    (_, answer) = await world.stored(world.general)
    assert answer.content == f"{'a' * 1500}\n\n{'c' * 1500}"
    assert await world.conversations.parts(answer.id) == [parts[0].id, parts[2].id]


async def test_a_burst_by_one_person_is_one_turn(world: World) -> None:
    world.answers("one answer")
    for text in ("Can you help?", "It is about tea.", "Green tea."):
        await ask(world, text)
    await world.run(2)
    assert world.reply(world.general).content == "one answer"
    assert world.engine.dialogs[-1][1].content == "Can you help?\nIt is about tea.\nGreen tea."
