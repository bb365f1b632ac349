"""The slash commands on the simulated Discord: rights, values, direct messages, registration."""

from __future__ import annotations

import pytest
import simcord

from tests.bot.e2e.world import World, said

MODERATORS_ONLY = "Only moderators"


async def settings(world: World) -> str:
    result = await world.anna.slash(world.general, "settings show")
    assert result.ephemeral
    assert result.response is not None
    return result.response.content


async def test_help_and_privacy_answer_everybody_everywhere(world: World) -> None:
    assert "scripted" in said(await world.anna.slash(world.general, "help"))
    assert "What I keep" in said(await world.bob.slash(world.general, "privacy"))
    assert "What I keep" in said(await world.anna.user.slash("privacy"))


async def test_a_moderator_resets_and_the_model_forgets(world: World) -> None:
    world.answers("answer")
    await world.anna.send(world.general, f"{world.me} remember me")
    await world.run(2)
    assert said(await world.mod.slash(world.general, "reset")).startswith("Done: I forgot 2 messages.")
    await world.anna.send(world.general, f"{world.me} who am I?")
    await world.run(2)
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["who am I?"]


async def test_a_member_is_neither_shown_nor_allowed_reset(world: World) -> None:
    assert "reset" not in world.anna.available_commands(world.general)
    with pytest.raises(simcord.SetupError):
        await world.anna.slash(world.general, "reset")
    command = next(c for c in await world.client.tree.fetch_commands() if c.name == "reset")
    world.guild.set_command_permissions(command, {world.anna: True})
    assert MODERATORS_ONLY in said(await world.anna.slash(world.general, "reset"))


async def test_reset_stops_what_runs_and_waits(world: World) -> None:
    world.answers("word ", loops=True)
    for number in range(2):
        await world.anna.send(world.general, f"{world.me} {number}")
    await world.run(1)
    await world.mod.slash(world.general, "reset")
    await world.run(1)
    assert world.engine.num_running == 0
    assert all("this conversation was reset" in m.content for m in world.replies(world.general))
    assert await world.stored(world.general) == []


async def test_in_a_direct_message_one_resets_oneself(world: World) -> None:
    world.answers("answer")
    await world.anna.send_dm("hi")
    await world.run(2)
    assert "I forgot 2 messages." in said(await world.anna.user.slash("reset"))


async def test_settings_are_shown_set_and_reset(world: World) -> None:
    assert "**temperature** = `0.7` (default, 0 to 2)" in await settings(world)
    changed = await world.mod.slash(world.general, "settings set", name="temperature", value="0,25")
    assert said(changed) == "**temperature** is now `0.25` in this conversation."
    assert "**temperature** = `0.25` (set here; otherwise 0.7, 0 to 2)" in await settings(world)
    assert "`0.7`" in said(await world.mod.slash(world.random, "settings show"))
    reset = await world.mod.slash(world.general, "settings reset", name="temperature")
    assert said(reset) == "Done: 1 setting is back to its default."
    assert "**temperature** = `0.7` (default, 0 to 2)" in await settings(world)
    assert (
        said(await world.mod.slash(world.general, "settings reset"))
        == "Nothing to reset: everything here is at its default."
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("temperature", "3"), ("top_k", "1.5"), ("max_new_tokens", "0")],
)
async def test_bad_values_are_refused_with_what_is_allowed(world: World, name: str, value: str) -> None:
    answer = said(await world.mod.slash(world.general, "settings set", name=name, value=value))
    assert answer.startswith(f"{name} must be")
    assert " from " in answer


async def test_a_member_reads_and_does_not_change(world: World) -> None:
    assert MODERATORS_ONLY in said(
        await world.anna.slash(world.general, "settings set", name="top_k", value="1")
    )
    assert MODERATORS_ONLY in said(await world.anna.slash(world.general, "settings reset"))
    assert MODERATORS_ONLY in said(await world.anna.slash(world.general, "system set", text="Be rude."))
    assert MODERATORS_ONLY in said(await world.anna.slash(world.general, "system clear"))
    assert "You are a test." in said(await world.anna.slash(world.general, "system show"))


async def test_in_a_direct_message_one_sets_ones_own(world: World) -> None:
    world.answers("answer")
    await world.anna.user.slash("settings set", name="temperature", value="0")
    await world.anna.user.slash("system set", text="Rhyme.")
    await world.anna.send_dm("hi")
    await world.run(2)
    assert world.engine.params[-1].temperature == 0
    assert world.engine.dialogs[-1][0].content == "Rhyme."


async def test_the_system_prompt_is_shown_set_and_cleared(world: World) -> None:
    world.answers("answer")
    changed = await world.mod.slash(world.general, "system set", text="Talk like a pirate.")
    assert said(changed) == "Saved the system prompt: 19 tokens."
    shown = said(await world.anna.slash(world.general, "system show"))
    assert shown == "System prompt (set for this conversation):\nTalk like a pirate."
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert world.engine.dialogs[-1][0].content == "Talk like a pirate."
    cleared = await world.mod.slash(world.general, "system clear")
    assert said(cleared) == "Done: back to the default system prompt."
    again = await world.mod.slash(world.general, "system clear")
    assert said(again) == "It was already the default."


@pytest.mark.parametrize(
    ("prompt", "sentence"), [("x" * 1400, "1400 tokens"), ("<|im_start|>", "control tags"), (" ", "empty")]
)
async def test_a_bad_system_prompt_is_refused(world: World, prompt: str, sentence: str) -> None:
    assert sentence in said(await world.mod.slash(world.general, "system set", text=prompt))
    assert "the default" in said(await world.mod.slash(world.general, "system show"))


async def test_a_prompt_that_mentions_everyone_pings_nobody(world: World) -> None:
    await world.mod.slash(world.general, "system set", text="@everyone")
    shown = await world.anna.slash(world.general, "system show")
    assert shown.response is not None
    assert not shown.response.message.mention_everyone


async def test_commands_are_registered_once(world: World) -> None:
    """Ask 21, commands that do not appear: registered when they changed, and only then."""

    def num_syncs() -> int:
        return sum(r.method == "PUT" and r.path.endswith("/commands") for r in world.env.http_requests)

    assert num_syncs() == 1
    await world.restart()
    assert num_syncs() == 1
    client = await world.new_client()
    client.tree.remove_command("privacy")
    await world.env.restart_bot(client)
    assert num_syncs() == 2


async def test_a_registration_that_fails_does_not_stop_the_bot(world: World) -> None:
    await world.close()
    world.env.inject_error("GET", "/applications/*/commands", status=500)
    await world.env.restart_bot(await world.new_client())
    world.answers("answer")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert world.reply(world.general).content == "answer"


async def test_a_database_that_fails_is_told(world: World) -> None:
    await world.database.close()
    answer = said(await world.mod.slash(world.general, "settings show"))
    assert answer == "I can't read or save conversations right now. Please try again in a minute."
    await world.anna.send(world.general, f"{world.me} hi")
    assert "can't read or save" in world.reply(world.general).content
