"""Plural systems: a bot posts for a member what they wrote, under another name, and deletes the original."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import discord
import pytest
import simcord

from bot.on_discord.asking.proxies import SEEN_S, WAIT_S
from storage.conversations import Role
from tests.bot.e2e.world import EDIT_S, TOKEN_S, World, applications_of_webhooks, labels, open_world
from tests.fakes import Script

PLURAL, OTHER = 466378653216014359, 77


@pytest.fixture(autouse=True)
def applications(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    return applications_of_webhooks(monkeypatch)


@pytest.fixture
async def plural(world: World) -> World:
    """Return a world that answers what one such bot posts, with what was asked."""
    world.engine.respond = lambda dialog: Script((f"heard: {dialog[-1].content}", " done"), delay_s=TOKEN_S)
    await world.set_up(world.guild.id, {"proxies": [PLURAL]})
    return world


@pytest.fixture
def hook(world: World, applications: dict[int, int]) -> simcord.WebhookHandle:
    """Return the webhook of the bot that is allowed."""
    webhook = world.guild.create_webhook(world.general)
    applications[webhook.id] = PLURAL
    return webhook


def shown(world: World) -> list[str]:
    return [message.content for message in world.replies(world.general)]


async def questions(world: World) -> list[tuple[str, str]]:
    """Return name and text of what is stored of questions."""
    return [(m.author_name, m.content) for m in await world.stored(world.general) if m.role is Role.USER]


async def check_one_answer(world: World, copy: discord.Message) -> None:
    """Assert that there is one answer, to the copy, and not a word of a deletion."""
    await world.run(4)
    answer = world.reply(world.general)
    assert answer.content == "heard: hello done"
    assert labels(answer) == ["Regenerate"]
    assert answer.reference is not None
    assert answer.reference.message_id == copy.id
    assert await questions(world) == [("Luna", "hello")]


async def test_a_copy_is_answered_once_and_nothing_is_said_of_a_deletion(
    plural: World, hook: simcord.WebhookHandle
) -> None:
    original = await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    copy = await hook.send(f"{plural.me} hello", username="Luna")
    await plural.anna.delete(original)
    await check_one_answer(plural, copy)


async def test_a_copy_that_comes_while_the_answer_is_shown_already(
    plural: World, hook: simcord.WebhookHandle
) -> None:
    original = await plural.anna.send(plural.general, f"{plural.me} hello -l")
    await plural.bob.send(plural.general, f"{plural.me} second")
    await plural.env.advance_time(EDIT_S)
    assert len(shown(plural)) == 2
    copy = await hook.send(f"{plural.me} hello", username="Luna")
    await plural.anna.delete(original)
    await plural.run(8)
    first, second = plural.replies(plural.general)
    assert (first.content, second.content) == ("heard: hello done", "heard: Bob: second done")
    assert first.reference is not None
    assert first.reference.message_id == copy.id
    assert "deleted" not in str(shown(plural))


async def test_a_deletion_that_comes_before_the_copy_waits_for_it(
    plural: World, hook: simcord.WebhookHandle
) -> None:
    original = await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    plural.env.backend.delete_message(plural.general.id, original.id)
    await plural.env.advance_time(WAIT_S / 2)
    copy = await hook.send(f"{plural.me} hello", username="Luna")
    await check_one_answer(plural, copy)


async def test_a_deletion_without_a_copy_is_one(plural: World) -> None:
    original = await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    plural.env.backend.delete_message(plural.general.id, original.id)
    await plural.env.advance_time(WAIT_S + 1)
    await plural.run(2)
    assert "was deleted" in plural.reply(plural.general).content
    assert await questions(plural) == []


async def test_of_whoever_was_copied_before_the_copy_alone_is_taken(
    plural: World, hook: simcord.WebhookHandle
) -> None:
    for number in range(2):
        original = await plural.anna.send(plural.general, f"luna: {plural.me} {number}")
        await hook.send(f"{plural.me} {number}", username="Luna")
        await plural.anna.delete(original)
        await plural.run(4)
    assert len(plural.engine.dialogs) == 3, "the first one was begun for the original"
    assert shown(plural) == ["heard: 0 done", "heard: 1 done"]
    await plural.anna.send(plural.general, f"{plural.me} without a copy")
    await plural.env.advance_time(WAIT_S + 1)
    await plural.run(4)
    assert "without a copy" in shown(plural)[-1]


async def test_of_a_message_of_several_the_copy_that_asks_us_is_answered(
    plural: World, hook: simcord.WebhookHandle
) -> None:
    """Such bots post one copy for each member who speaks in it."""
    original = await plural.anna.send(plural.general, f"m: I am tired.\nl: {plural.me} hello")
    await hook.send("I am tired.", username="Mira")
    copy = await hook.send(f"{plural.me} hello", username="Luna")
    await plural.anna.delete(original)
    await check_one_answer(plural, copy)


async def test_without_the_setting_a_copy_is_nothing_to_us(world: World, hook: simcord.WebhookHandle) -> None:
    world.answers("answer")
    original = await world.anna.send(world.general, f"luna: {world.me} hello")
    await hook.send(f"{world.me} hello", username="Luna")
    await world.anna.delete(original)
    await world.run(3)
    assert len(world.engine.dialogs) == 1
    assert "was deleted" in world.reply(world.general).content


@pytest.mark.parametrize("application_id", [OTHER, None])
async def test_webhooks_of_others_are_left_alone(
    plural: World, applications: dict[int, int], application_id: int | None
) -> None:
    webhook = plural.guild.create_webhook(plural.general, "PluralKit")
    if application_id is not None:
        applications[webhook.id] = application_id
    await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    await webhook.send(f"{plural.me} hello", username="Luna")
    await plural.run(4)
    assert len(plural.engine.dialogs) == 1
    assert [name for name, _ in await questions(plural)] == ["Anna"]
    assert len(shown(plural)) == 1


async def test_what_no_member_wrote_is_left_alone(plural: World, hook: simcord.WebhookHandle) -> None:
    await hook.send(f"{plural.me} hello", username="Luna")
    await plural.anna.send(plural.general, f"hello {plural.bob.mention}")
    await hook.send(f"{plural.me} obey me", username="Anna")
    await plural.run(4)
    assert plural.engine.dialogs == []
    assert shown(plural) == []


async def test_one_message_has_one_copy(plural: World, hook: simcord.WebhookHandle) -> None:
    await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    for _ in range(5):
        await hook.send(f"{plural.me} hello", username="Luna")
    await plural.run(6)
    assert len(shown(plural)) == 1


async def test_a_copy_that_comes_too_late_is_none(plural: World, hook: simcord.WebhookHandle) -> None:
    await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    await plural.env.advance_time(SEEN_S + 1)
    await hook.send(f"{plural.me} hello", username="Luna")
    await plural.run(4)
    assert len(plural.engine.dialogs) == 1


async def test_whoever_is_blocked_stays_so_under_another_name(
    plural: World, hook: simcord.WebhookHandle
) -> None:
    await plural.mod.slash(plural.general, "block", user=plural.anna)
    num = len(shown(plural))
    original = await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    await hook.send(f"{plural.me} hello", username="Luna")
    await plural.anna.delete(original)
    await plural.run(4)
    assert plural.engine.dialogs == []
    assert len(shown(plural)) == num + 1, "it is told once"


async def test_a_copy_belongs_to_the_member_who_wrote_it(plural: World, hook: simcord.WebhookHandle) -> None:
    original = await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    copy = await hook.send(f"{plural.me} hello", username="Max")
    await plural.anna.delete(original)
    await plural.run(1)
    result = await plural.bob.click(plural.reply(plural.general), label="Stop")
    assert "Only the person who asked" in result.followups[0].content
    await plural.anna.click(plural.reply(plural.general), label="Stop")
    await plural.run(2)
    assert "Stopped" in plural.reply(plural.general).content
    plural.env.backend.delete_message(plural.general.id, copy.id)
    await plural.env.settle()
    assert await questions(plural) == []


async def test_a_copy_that_is_edited_is_an_edited_question(
    plural: World, hook: simcord.WebhookHandle
) -> None:
    original = await plural.anna.send(plural.general, f"luna: {plural.me} hello")
    copy = await hook.send(f"{plural.me} hello", username="Luna")
    await plural.anna.delete(original)
    await plural.run(4)
    plural.env.backend.edit_message(plural.general.id, copy.id, {"content": f"{plural.me} good evening"})
    await plural.env.settle()
    assert await questions(plural) == [("Luna", "good evening")]


@pytest.fixture
async def free(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path / "free.sqlite3", sees_all_messages=True) as world:
        world.engine.respond = lambda dialog: Script((f"heard: {dialog[-1].content}",), delay_s=TOKEN_S)
        await world.set_up(world.guild.id, {"proxies": [PLURAL], "free_channels": [world.general.id]})
        yield world


async def test_in_a_free_channel_a_copy_needs_no_mention(free: World, applications: dict[int, int]) -> None:
    webhook = free.guild.create_webhook(free.general)
    applications[webhook.id] = PLURAL
    original = await free.anna.send(free.general, "luna: hello")
    await webhook.send("hello", username="Luna")
    await free.anna.delete(original)
    await free.run(3)
    assert free.reply(free.general).content == "heard: hello"


async def test_the_thread_of_a_question_keeps_its_name_where_a_copy_stands_for_it(
    free: World, applications: dict[int, int]
) -> None:
    webhook = free.guild.create_webhook(free.general)
    applications[webhook.id] = PLURAL
    await free.set_up(free.guild.id, {"thread_channels": [free.general.id], "free_channels": []})
    original = await free.anna.send(free.general, f"luna: {free.me} hello")
    await webhook.send(f"{free.me} hello", username="Luna")
    await free.anna.delete(original)
    await free.run(3)
    (thread,) = free.general.threads
    assert "hello" in str(thread.name)
    assert len(free.replies(thread)) == 1


async def test_what_we_edit_ourselves_is_no_edit_of_a_question(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discord gives our answers to commands a webhook as well: it is our own."""
    edited: list[int] = []

    async def note(message: discord.Message, _: object) -> None:
        edited.append(message.id)

    monkeypatch.setattr(world.client._changes, "edited", note)
    copy = await world.guild.create_webhook(world.general).send("hello", username="Luna")
    for author_id in (copy.author.id, world.env.backend.bot_user.id):
        world.env.backend.messages[world.general.id][copy.id].author_id = author_id
        changed = {"content": f"{world.me} by {author_id}"}
        world.env.backend.edit_message(world.general.id, copy.id, changed)
        await world.env.settle()
    assert edited == [copy.id]


async def test_the_bots_are_chosen_in_the_panel(world: World) -> None:
    robot = world.guild.add_member(world.env.create_user("plural", bot=True))
    opened = await world.chief.slash(world.general, "config")
    assert opened.response is not None
    await world.chief.click(opened.response, custom_id="llamacord:config:page:second")
    await world.chief.select(opened.response, [robot.user], custom_id="llamacord:config:proxies")
    assert (await world.moderation.servers.config(world.guild.id)).proxies == {robot.id}
    refused = await world.chief.select(
        opened.response, [world.bob.user], custom_id="llamacord:config:proxies"
    )
    assert "Choose bots here" in str(refused.followups)
    assert (await world.moderation.servers.config(world.guild.id)).proxies == {robot.id}


async def test_a_copy_with_a_file_is_asked_with_the_rights_of_whoever_wrote_it(
    plural: World, hook: simcord.WebhookHandle
) -> None:
    role = plural.guild.create_role("Friends")
    member = plural.guild.add_member(plural.env.create_user("eve", global_name="Eve"), roles=[role])
    await plural.set_up(plural.guild.id, {"allowed_roles": [role.id]})
    for text in ("hello", "again"):
        original = await member.send(plural.general, f"luna: {plural.me} {text}")
        await hook.send(f"{plural.me} {text}", username="Luna", attachments=[("notes.txt", b"Tea.")])
        await plural.mod.delete(original)
        await plural.run(4)
    assert plural.engine.dialogs[-1][-1].content == "again\n\nFile notes.txt:\nTea."
