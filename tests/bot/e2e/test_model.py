"""`/model` and `/system edit` on the simulated Discord: rights, a switch while people talk, failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import simcord

from bot.conversation.model_switch import ClosableEngine, mark_of
from bot.errors import ModelSwitchError
from bot.fleet.fleet import Fleet, Kind
from engine.errors import ModelFormatError
from engine.types import Health
from storage.fleet import News
from tests.bot.e2e.world import TOKEN_S, World, labels, open_world, said
from tests.fakes import Script, ScriptedEngine


class FakeShelf:
    """Three models: one to start with, one to switch to, and one that cannot be loaded."""

    def __init__(self) -> None:
        self.missing = 0
        self.broken: dict[str, Exception] = {"broken": ModelFormatError("It is broken.")}
        self.asked_for: list[tuple[str, str]] = []
        self.opened: list[str] = []
        self.engines: dict[str, ScriptedEngine] = {}

    def names(self) -> list[str]:
        return ["small", "large", "broken"]

    def missing_bytes(self, name: str, current: str) -> int:
        if name not in self.names():
            raise ModelSwitchError("There is no such model.")
        self.asked_for.append((name, current))
        return self.missing

    async def open(self, name: str) -> ClosableEngine:
        self.opened.append(name)
        if name in self.broken:
            raise self.broken[name]
        engine = ScriptedEngine([Script((f"I am {name}",), delay_s=TOKEN_S)])
        self.engines[name] = engine
        return engine


@pytest.fixture
async def shelf() -> FakeShelf:
    return FakeShelf()


@pytest.fixture
async def world(tmp_path: Path, shelf: FakeShelf) -> AsyncIterator[World]:
    async with open_world(tmp_path / "models.sqlite3") as world:
        world.shelf, world.operator_ids = shelf, frozenset({world.chief.id})
        await world.restart()
        yield world


async def use(world: World, name: str) -> str:
    """Let the operator switch to a model; return what is said."""
    return said(await world.chief.slash(world.general, "model use", name=name))


async def test_operators_switch_and_conversations_survive(world: World, shelf: FakeShelf) -> None:
    world.answers("I am small")
    await world.anna.send(world.general, f"{world.me} who are you?")
    await world.run(2)
    assert (await use(world, "large")).startswith("`large` now answers")
    assert world.engine.health is Health.CLOSED
    await world.anna.send(world.general, f"{world.me} and now?")
    await world.run(2)
    assert world.replies(world.general)[-1].content == "I am large"
    assert [m.content for m in shelf.engines["large"].dialogs[-1]][1:] == [
        "who are you?",
        "I am small",
        "and now?",
    ]
    assert await use(world, "large") == "`large` is already answering."


async def test_members_neither_see_nor_switch_and_moderators_only_see(world: World) -> None:
    assert "Only moderators" in said(await world.anna.slash(world.general, "model show"))
    assert "`small` is answering. Available: `small`, `large`" in said(
        await world.mod.slash(world.general, "model show")
    )
    for person in (world.anna, world.mod):
        assert "OPERATOR_IDS" in said(await person.slash(world.general, "model use", name="large"))
    assert "OPERATOR_IDS" in said(await world.anna.user.slash("model use", name="large"))
    assert world.engine.health is Health.READY


async def test_the_names_are_offered_to_operators_alone(world: World) -> None:
    offered = await world.chief.autocomplete(world.general, "model use", "name", "lar")
    assert [choice["value"] for choice in offered] == ["large"]
    assert await world.anna.autocomplete(world.general, "model use", "name", "") == []


async def test_without_memory_or_with_a_wrong_name_nothing_is_closed(world: World, shelf: FakeShelf) -> None:
    shelf.missing = 3 * 2**20
    assert "needs 3 MiB more" in await use(world, "large")
    assert "no such model" in await use(world, "other")
    assert world.engine.health is Health.READY
    assert shelf.opened == []


async def test_a_model_that_cannot_be_loaded_gives_way_to_the_old_one(world: World, shelf: FakeShelf) -> None:
    text = await use(world, "broken")
    assert text.startswith("`broken` couldn't be loaded, so `small` is back.")
    assert shelf.opened == ["broken", "small"]
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert world.replies(world.general)[-1].content == "I am small"


@pytest.mark.parametrize("fault", [ModelFormatError("It is gone."), OSError("The disk is gone.")])
async def test_after_both_models_failed_the_old_one_can_be_loaded_again(
    world: World, shelf: FakeShelf, fault: Exception
) -> None:
    shelf.broken["small"] = fault
    assert await use(world, "broken") == (
        "`broken` couldn't be loaded, and now no model is answering."
        " The log says why; `/model use` tries again."
    )
    assert "No model is answering: `small` isn't loaded." in said(
        await world.mod.slash(world.general, "model show")
    )
    await world.anna.send(world.general, f"{world.me} hi")
    assert "isn't available right now" in world.reply(world.general).content
    assert (await use(world, "small")).startswith(
        "`small` couldn't be loaded, and now no model is answering."
    )
    assert shelf.opened == ["broken", "small", "small"], "one that just failed is not tried twice"
    del shelf.broken["small"]
    assert (await use(world, "small")).startswith("`small` now answers everyone")
    assert shelf.asked_for == [("broken", "small"), ("small", ""), ("small", "")], "nothing gives memory back"
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert world.replies(world.general)[-1].content == "I am small"
    assert await use(world, "small") == "`small` is already answering."


async def test_a_model_that_broke_down_can_be_loaded_anew(world: World, shelf: FakeShelf) -> None:
    world.engine.health = Health.UNHEALTHY
    assert (await use(world, "small")).startswith("`small` now answers everyone")
    assert shelf.asked_for == [("small", "small")]
    assert world.engine.health is Health.CLOSED


async def test_a_switch_waits_for_answers_and_refuses_questions_meanwhile(
    world: World, shelf: FakeShelf
) -> None:
    world.answers("one", " two")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(1)
    result = await world.chief.slash(world.general, "model use", name="large")
    await world.bob.send(world.random, f"{world.me} hi")
    assert "isn't available right now" in world.reply(world.random).content
    assert "being loaded" in said(await world.chief.slash(world.random, "model use", name="large"))
    await world.run(2)
    assert world.reply(world.general).content == "one two"
    assert said(result).startswith("`large` now answers everyone")


async def test_the_system_prompt_is_edited_in_a_form_that_tells_its_cost(world: World) -> None:
    assert "Only moderators" in said(await world.anna.slash(world.general, "system edit"))
    form = await world.mod.slash(world.general, "system edit")
    assert form.modal is not None
    field = form.modal["components"][0]["components"][0]
    assert field["value"] == "You are a test."
    assert field["label"].startswith("Now 15 of ")
    assert field["max_length"] == 1500
    draft = await world.mod.submit_modal(form, {field["custom_id"]: "Be **brief**."})
    assert said(draft).startswith(
        "**Not saved yet.** 13 characters. With everything that comes before it, the model"
    )
    assert "13 of at most 512 tokens" in said(draft)
    assert "leaves 1011 tokens for the conversation and 512 for an answer." in said(draft)
    assert drafted(draft) == "Be **brief**."
    assert "You are a test." in said(await world.anna.slash(world.general, "system show"))
    assert draft.response is not None
    saved = await world.mod.click(draft.response.message, label="Save")
    assert said_instead(draft).startswith("Saved the system prompt: 13 characters.")
    assert saved.acknowledged
    assert "Be \\*\\*brief" in said(await world.anna.slash(world.general, "system show"))


async def test_a_draft_that_is_too_long_can_be_edited_again_but_not_saved(world: World) -> None:
    form = await world.mod.slash(world.general, "system edit")
    draft = await world.mod.submit_modal(form, {field_id(form): "x" * 1400})
    assert "1400 tokens; the limit is 512" in said(draft)
    assert drafted(draft) == "x" * 1400, "what was typed is not lost"
    assert draft.response is not None
    assert labels(draft.response.message) == ["Edit again", "Discard"]
    await world.restart()
    form = await world.mod.click(draft.response.message, label="Edit again")
    assert form.modal is not None
    assert form.modal["components"][0]["components"][0]["value"] == "x" * 1400
    await world.mod.submit_modal(form, {field_id(form): "Rhyme."})
    assert said_instead(draft).startswith("**Not saved yet.** 6 characters")
    assert labels(draft.response.message) == ["Save", "Edit again", "Discard"]
    await world.mod.click(draft.response.message, label="Discard")
    assert said_instead(draft) == "Nothing was changed."
    assert labels(draft.response.message) == []
    assert "You are a test." in said(await world.anna.slash(world.general, "system show"))


async def test_who_lost_the_right_cannot_save_a_draft(world: World) -> None:
    form = await world.mod.slash(world.general, "system edit")
    draft = await world.mod.submit_modal(form, {field_id(form): "Rhyme."})
    assert draft.response is not None
    world.env.backend.get_member(world.guild.id, world.mod.id).role_ids.clear()
    refused = await world.mod.click(draft.response.message, label="Save")
    assert "Only moderators" in said(refused)
    assert "You are a test." in said(await world.anna.slash(world.general, "system show"))


def drafted(result: simcord.InteractionResult) -> str | None:
    """Return the draft that a preview shows."""
    assert result.response is not None
    (embed,) = result.response.message.embeds
    return embed.description


def said_instead(result: simcord.InteractionResult) -> str:
    """Return what stands now where a command had answered."""
    assert result.response is not None
    return result.response.message.content


def field_id(form: simcord.InteractionResult) -> str:
    assert form.modal is not None
    return str(form.modal["components"][0]["components"][0]["custom_id"])


async def test_what_servers_of_the_last_model_did_not_hear_the_next_engine_tells_them(
    world: World, shelf: FakeShelf
) -> None:
    await use(world, "large")
    assert shelf.engines["large"].num_drops == 0
    shelf.engines["large"].is_forgetting = True
    await use(world, "small")
    assert shelf.engines["small"].num_drops == 1


async def test_a_model_that_another_process_was_switched_to_is_used_here_too(
    world: World, shelf: FakeShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []

    async def chosen_model(_: Fleet) -> int | None:
        return chosen[-1]

    monkeypatch.setattr(Fleet, "chosen_model", chosen_model)
    for name in ("large", "large", "unknown", "broken"):
        chosen.append(mark_of(name))
        await world.client._hear(News(Kind.MODEL_CHANGED, 0))
        await world.run(1)
    assert shelf.opened == ["large", "broken", "large"]
    await world.anna.send(world.general, f"{world.me} who are you?")
    await world.run(2)
    assert world.reply(world.general).content == "I am large"


async def test_the_other_processes_hear_of_a_switch(
    world: World, shelf: FakeShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []

    async def choose_model(_: Fleet, mark: int) -> None:
        chosen.append(mark)

    monkeypatch.setattr(Fleet, "choose_model", choose_model)
    monkeypatch.setattr(Fleet, "has_others", True)
    assert "My other processes switch now" in await use(world, "large")
    assert "couldn't be loaded" in await use(world, "broken")
    assert "My other processes switch now" in await use(
        world, "large"
    )  # one of them may not have been able to
    assert chosen == [mark_of("large")] * 2
    assert shelf.opened == ["large", "broken", "large"]
