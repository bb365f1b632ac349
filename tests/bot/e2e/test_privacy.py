"""Ask 23, opt-out and "delete my data": people's rights over their data, on the simulated Discord."""

from __future__ import annotations

import itertools
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import simcord

from bot.conversation.memory import UNDO_TIME
from bot.language.phrases import LANGUAGES, render
from bot.on_discord.privacy import policy_lines
from bot.privacy import Keeping
from engine.logs import LineFormatter
from storage.address import PostgresAddress
from storage.retention import Retention
from tests.bot.e2e.world import World, labels, open_world, said
from tests.fakes import CONTROL_TAG, Script

CANARY = "xylophonequartz"


def echo(world: World) -> None:
    world.engine.respond = lambda dialog: Script((f"heard: {dialog[-1].content}",), delay_s=30)


async def forget(person: Any, *where: Any) -> str:
    """Use `/forget-me`, confirm, and return what then stands in the place of the question."""
    asked = await person.slash(*where, "forget-me")
    assert "can't be undone" in said(asked)
    assert (await person.click(asked.response.message, label="Delete it all")).acknowledged
    assert asked.response.components == []
    return str(asked.response.content)


async def num_messages(world: World) -> int:
    rows = await world.database.fetch_all("SELECT count(*) AS num FROM messages")
    return int(rows[0]["num"])


async def later(world: World) -> None:
    """Let everything that is gone be gone for long enough."""
    while await Retention(world.database).delete_gone(gone_before=datetime.now(UTC) + timedelta(seconds=1)):
        pass


async def test_privacy_says_what_is_kept_in_every_language_within_one_message(world: World) -> None:
    answer = said(await world.anna.slash(world.general, "privacy"))
    assert all(
        word in answer for word in ("What I keep", "/forget-me", "/opt-out", "/export-data", "30 days")
    )
    for language in LANGUAGES:
        for days, erases in itertools.product((0, 1, 90), (True, False)):
            policy = policy_lines(Keeping(days, days), reads_along=True, erases=erases)
            assert len("\n".join(render(line, language) for line in policy)) <= 2000, language


@pytest.mark.on_both
async def test_privacy_says_what_a_deletion_is_worth_where_it_is_stored(world: World) -> None:
    answer = said(await world.anna.slash(world.general, "privacy"))
    is_on_server = isinstance(world.location, PostgresAddress)
    assert ("PostgreSQL" in answer) == ("until it is overwritten" in answer) == is_on_server


async def test_the_retention_period_is_stated(tmp_path: Path) -> None:
    async with open_world(tmp_path / "db.sqlite3", keeping=Keeping(90, 10)) as world:
        answer = said(await world.anna.slash(world.general, "privacy"))
        assert "at most 90 days" in answer
        assert "after 10 days" in answer


async def test_forget_me_deletes_everywhere_with_a_receipt_and_leaves_others_alone(world: World) -> None:
    echo(world)
    for channel in (world.general, world.random):
        await world.anna.send(channel, f"{world.me} {CANARY}")
    await world.bob.send(world.random, f"{world.me} bob")
    await world.anna.send_dm(CANARY)
    await world.anna.user.slash("settings set", name="top_k", value="3")
    await world.run(4)
    receipt = await forget(world.anna, world.general)
    assert "3 questions, 3 answers and 1 direct conversation" in receipt
    assert [m.content for m in await world.stored(world.random)] == ["bob", "heard: Bob: bob"]
    assert await num_messages(world) == 2
    assert "`40` (default" in said(await world.anna.user.slash("settings show"))
    assert "deleted 0 questions, 0 answers" in await forget(world.anna.user)


async def test_forget_me_ends_the_answer_that_is_being_written(world: World) -> None:
    world.answers("word ", loops=True)
    await world.anna.send(world.general, f"{world.me} {CANARY}")
    await world.bob.send(world.random, f"{world.me} bob")
    await world.run(1)
    await forget(world.anna, world.general)
    await world.run(1)
    assert "no longer wants an answer" in world.reply(world.general).content
    assert world.engine.num_running == 1
    assert await num_messages(world) == 2


async def test_forget_me_is_confirmed_after_a_restart_and_only_by_the_person(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    asked = await world.anna.slash(world.general, "forget-me")
    assert asked.response is not None
    await world.restart()
    button = asked.response.message
    with pytest.raises(simcord.SetupError):
        await world.mod.click(button, label="Delete it all")
    assert await num_messages(world) == 2
    await world.anna.click(button, label="Delete it all")
    assert await num_messages(world) == 0


async def test_whoever_opts_out_is_neither_answered_nor_stored_and_told_once(world: World) -> None:
    echo(world)
    assert "won't answer you" in said(await world.anna.slash(world.general, "opt-out"))
    assert "already" in said(await world.anna.slash(world.general, "opt-out"))
    for _ in range(3):
        await world.anna.send(world.general, f"{world.me} {CANARY}")
        await world.anna.send_dm(CANARY)
    await world.run(2)
    assert world.reply(world.general).content.startswith("You've")
    assert world.reply(world.anna.user.dm_channel).content.startswith("You've")
    assert world.engine.dialogs == []
    assert await num_messages(world) == 0
    await world.bob.send(world.general, f"{world.me} bob")
    await world.run(2)
    assert [m.content for m in await world.stored(world.general)] == ["bob", "heard: bob"]


async def test_opting_out_holds_after_a_restart_and_ends_with_opting_in(world: World) -> None:
    echo(world)
    await world.anna.user.slash("opt-out")
    await world.restart()
    await world.anna.send(world.general, f"{world.me} hi")
    assert await num_messages(world) == 0
    assert "again" in said(await world.anna.slash(world.general, "opt-in"))
    assert "hadn't opted out" in said(await world.anna.slash(world.general, "opt-in"))
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert await num_messages(world) == 2


async def test_ones_own_data_comes_as_a_file_that_only_one_sees(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} {CANARY}")
    await world.bob.send(world.general, f"{world.me} of bob")
    await world.run(4)
    result = await world.anna.slash(world.general, "export-data")
    assert "1 question with its answers" in said(result)
    assert result.response is not None
    (attachment,) = result.response.attachments
    assert attachment.filename == "llamacord-data.json"
    read = json.loads(await attachment.read())
    assert [q["text"] for q in read["questions"]] == [CANARY]
    assert [a["text"] for q in read["questions"] for a in q["answers"]] == [f"heard: {CANARY}"]
    assert "of bob" not in json.dumps(read)


@pytest.mark.parametrize("command", ["forget-me", "opt-out", "opt-in", "export-data", "privacy"])
async def test_every_command_answers_as_moderator_in_direct_messages_and_twice(
    world: World, command: str
) -> None:
    for _ in range(2):
        assert said(await world.mod.slash(world.general, command))
        assert said(await world.anna.user.slash(command))


@pytest.mark.parametrize("command", ["opt-out", "opt-in", "export-data"])
async def test_a_database_that_fails_is_told(world: World, command: str) -> None:
    await world.database.close()
    assert "can't read or save" in said(await world.anna.slash(world.general, command))


async def test_confirming_while_the_database_fails_is_told(world: World) -> None:
    asked = await world.anna.slash(world.general, "forget-me")
    assert asked.response is not None
    await world.database.close()
    pressed = await world.anna.click(asked.response.message, label="Delete it all")
    assert "can't read or save" in pressed.followups[0].content


async def test_a_server_that_removes_the_bot_is_forgotten_after_the_grace_and_not_if_it_comes_back(
    world: World,
) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    guild = world.client.get_guild(world.guild.id)
    assert guild is not None
    await world.client.on_guild_remove(guild)
    await world.client.on_guild_join(guild)
    await later(world)
    assert await num_messages(world) == 2
    world.env.backend.remove_guild(world.guild.id)
    await world.env.settle()
    await later(world)
    assert await num_messages(world) == 0


async def test_a_removal_while_the_bot_was_away_is_found_at_the_start(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    await world.close()
    world.env.backend.remove_guild(world.guild.id)
    await world.env.restart_bot(await world.new_client())
    await world.env.settle()
    await later(world)
    assert await num_messages(world) == 0


async def test_a_deleted_channel_is_forgotten_with_its_threads(world: World) -> None:
    echo(world)
    thread = world.open_thread(world.general)
    for channel in (world.general, thread, world.random):
        await world.anna.send(channel, f"{world.me} hi")
    await world.run(4)
    world.env.backend.delete_channel(world.general.id)
    await world.env.settle()
    await later(world)
    assert await num_messages(world) == 2
    assert len(await world.stored(world.random)) == 2


async def test_no_log_holds_what_people_or_the_model_write(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Every log record of ours at debug level, and the libraries' at the level they are kept at."""
    for name in ("bot", "engine", "storage"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    with caplog.at_level(logging.INFO):
        await conversations_of_all_kinds(world)
    for name in ("bot", "engine", "storage"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    assert len(caplog.records) > 2
    formatter = LineFormatter(None)
    assert [line for record in caplog.records if CANARY in (line := formatter.format(record))] == []


async def conversations_of_all_kinds(world: World) -> None:
    """Say the canary in every way that there is, also where things go wrong."""
    echo(world)
    await world.mod.slash(world.general, "system set", text=CANARY)
    await world.anna.send(world.general, f"{world.me} {CANARY}")
    await world.anna.send(world.general, f"{world.me} {CANARY} {CONTROL_TAG}")
    await world.anna.send(world.general, f"{world.me} {CANARY * 120}")
    await world.run(3)
    answer = next(m for m in world.replies(world.general) if "Regenerate" in labels(m))
    await world.anna.click(answer, label="Regenerate")
    await world.run(2)
    await world.mod.slash(world.general, "settings set", name="top_k", value=CANARY)
    world.engine.respond = None
    world.answers(f"{CANARY} ", fails_after=1)
    await world.anna.send_dm(CANARY)
    await world.run(2)
    world.env.inject_error("POST", "/channels/*/messages", status=500)
    await world.anna.send(world.random, f"{world.me} {CANARY}")
    await world.run(3)
    await world.anna.slash(world.general, "export-data")
    await forget(world.anna, world.general)
    await world.database.close()
    await world.anna.send(world.general, f"{world.me} {CANARY}")
    await world.mod.slash(world.general, "system set", text=CANARY)
    await world.run(1)


async def test_what_is_deleted_leaves_the_memory_of_the_engine_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo(world)
    question = await world.anna.send(world.general, f"{world.me} {CANARY}")
    other = await world.bob.send(world.general, "just talking")
    await world.run(2)
    await world.bob.delete(other)
    await world.env.advance_time(61)
    assert world.engine.num_drops == 0
    await world.anna.delete(question)
    await world.env.advance_time(61)
    assert world.engine.num_drops == 1
    await world.mod.slash(world.general, "reset")
    world.privacy.purging.undo_time = -UNDO_TIME
    await world.env.advance_time(61)
    assert world.engine.num_drops == 2
    await forget(world.anna, world.general)
    assert world.engine.num_drops == 3


@pytest.mark.parametrize("how", ["undo", "reset", "edit"])
async def test_what_is_taken_back_leaves_the_memory_of_the_engine_too(world: World, how: str) -> None:
    echo(world)
    question = await world.anna.send(world.general, f"{world.me} {CANARY}")
    await world.run(2)
    await world.env.advance_time(61)
    assert world.engine.num_drops == 0
    if how == "edit":
        await world.anna.edit(question, f"{world.me} nothing")
    else:
        await world.mod.slash(world.general, how)
    await world.env.advance_time(61)
    assert world.engine.num_drops == 1


async def test_what_waits_of_a_person_who_opts_out_is_forgotten(world: World) -> None:
    echo(world)
    await world.bob.send(world.general, f"{world.me} first")
    await world.anna.send(world.general, f"{world.me} {CANARY}")
    await world.anna.slash(world.general, "opt-out")
    await world.run(2)
    await world.bob.send(world.general, f"{world.me} second")
    await world.run(2)
    assert not any(CANARY in message.content for dialog in world.engine.dialogs for message in dialog)
    assert not any(CANARY in message.content for message in await world.stored(world.general))
