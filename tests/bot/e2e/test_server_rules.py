"""`/config` and what it decides, limits, lists and the moderation model, on the simulated Discord."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import discord
import pytest
import simcord

from bot.safety.safety_model import SafetyModel
from bot.servers.server_config import AgeRestricted, ServerConfig
from storage.conversations import MessageState
from tests.bot.e2e.test_moderation import ask, logged, open_log, shown
from tests.bot.e2e.world import EDIT_S, World, labels, open_world, said
from tests.fakes import CONTROL_TAG, Script, ScriptedEngine

FORBIDDEN_QUESTION = "The rules of this server don't allow this text, so I can't answer it."
WITHHELD = "-# This answer isn't shown, because it breaks the rules here."


async def admin_of(world: World) -> simcord.MemberActor:
    role = world.guild.create_role("Admins", permissions=discord.Permissions(manage_guild=True))
    return world.guild.add_member(world.env.create_user("ada", global_name="Ada"), roles=[role])


async def change(world: World, **changes: object) -> None:
    await world.set_up(world.guild.id, changes)


async def config(world: World) -> ServerConfig:
    return await world.moderation.servers.config(world.guild.id)


async def panel(world: World, who: simcord.MemberActor) -> discord.Message:
    return shown(await who.slash(world.general, "config"))


# The panel


async def test_ask_12_a_server_is_set_up_in_one_panel_and_it_holds_at_once(world: World) -> None:
    """Ask 12, parameters per server by command: everything in one panel, in force at once."""
    world.answers("answer")
    admin = await admin_of(world)
    message = await panel(world, admin)
    assert message.content.startswith("**Server settings.**")
    await admin.select(message, [world.random], custom_id="llamacord:config:allowed_channels")
    assert (await config(world)).allowed_channels == {world.random.id}
    await ask(world, "hi")
    assert world.reply(world.general).content == f"On this server I only answer in {world.random.mention}."
    await ask(world, "hi", where="random")
    assert world.reply(world.random).content == "answer"
    assert world.random.mention in (await panel(world, admin)).content


async def test_switches_log_roles_and_age_are_set_in_the_panel(world: World) -> None:
    admin = await admin_of(world)
    log = world.guild.create_text_channel("mod-log")
    friends = world.guild.create_role("Friends")
    message = await panel(world, admin)
    await admin.select(message, [log], custom_id="llamacord:config:log_channel")
    await admin.select(message, [friends], custom_id="llamacord:config:allowed_roles")
    await admin.select(message, ["labels_answers"], custom_id="llamacord:config:switches")
    await admin.click(message, custom_id="llamacord:config:age:never")
    await world.env.settle()
    held = await config(world)
    assert held.log_channel == log.id
    assert held.allowed_roles == {friends.id}
    assert (held.labels_answers, held.removes_invites, held.refuses_unchecked) == (True, False, False)
    assert held.age_restricted == "never"
    changed = f"{admin.mention} changed a setting: "
    assert f"{changed}label below answers." in logged(world, log)
    await admin.select(message, [], custom_id="llamacord:config:log_channel")
    assert (await config(world)).log_channel is None


async def test_the_log_names_what_was_changed_and_only_that(world: World) -> None:
    log = await open_log(world)
    admin = await admin_of(world)
    for sent in ({"user_per_minute": "3", "server_per_minute": ""}, {"user_per_minute": "3"}):
        form = await admin.click(await panel(world, admin), custom_id="llamacord:config:limits")
        await admin.submit_modal(form, {"server_per_minute": "", **sent})
    await admin.slash(world.general, "embeds", on=True)
    await admin.slash(world.general, "embeds", on=True)
    await world.env.settle()
    changed = f"{admin.mention} changed a setting: "
    assert logged(world, log) == [
        f"{changed}questions per minute, one person.",
        f"{changed}answers as embeds.",
    ]


async def second_page(world: World, who: simcord.MemberActor) -> discord.Message:
    message = await panel(world, who)
    await who.click(message, custom_id="llamacord:config:page:second")
    return message


def content(world: World, message: discord.Message) -> str:
    """Return what a message of the panel shows now."""
    return str(world.env.backend.get_message(world.general.id, message.id).content)


async def test_language_free_channels_and_looks_are_set_in_the_panel(tmp_path: Path) -> None:
    async with open_world(tmp_path / "seeing.sqlite3", sees_all_messages=True) as world:
        world.answers("answer")
        admin = await admin_of(world)
        message = await second_page(world, admin)
        await admin.select(message, ["de"], custom_id="llamacord:config:language")
        assert "**Language:** Deutsch" in content(world, message)
        await admin.select(message, [world.random], custom_id="llamacord:config:free_channels")
        await admin.click(message, custom_id="llamacord:config:page:first")
        await admin.select(message, ["uses_embeds"], custom_id="llamacord:config:switches")
        await world.restart()
        await world.anna.send(world.random, "no mention")
        await world.run(2)
        (answer,) = world.replies(world.random)
        assert [embed.description for embed in answer.embeds] == ["answer"], "the first one already"
        assert "Neu antworten" in str(labels(answer))
        message = await second_page(world, admin)
        await admin.select(message, ["discord"], custom_id="llamacord:config:language")
        await admin.select(message, [], custom_id="llamacord:config:free_channels")
        held = await config(world)
        assert (held.language, held.free_channels) == (None, frozenset())


async def test_free_channels_need_the_intent_in_the_panel_too(world: World) -> None:
    admin = await admin_of(world)
    message = await second_page(world, admin)
    chosen = await admin.select(message, [world.random], custom_id="llamacord:config:free_channels")
    assert "MESSAGE_CONTENT_INTENT=on" in chosen.followups[0].content
    assert (await config(world)).free_channels == frozenset()


async def test_a_servers_system_prompt_holds_where_a_conversation_has_none(world: World) -> None:
    world.answers("answer")
    admin = await admin_of(world)
    log = await open_log(world)
    message = await second_page(world, admin)
    form = await admin.click(message, custom_id="llamacord:config:prompt")
    await admin.submit_modal(form, {"text": "Speak like a pirate."})
    assert content(world, message).startswith("**Not saved yet.** 20 characters")
    assert (await config(world)).system_prompt is None
    await admin.click(message, label="Save")
    assert content(world, message).startswith("Saved the system prompt for every conversation here")
    assert logged(world, log)[-1] == f"{admin.mention} changed a setting: this server's system prompt."
    await world.mod.slash(world.random, "system set", text="Rhyme.")
    for where in ("general", "random"):
        await ask(world, "hi", where=where)
    assert [dialog[0].content for dialog in world.engine.dialogs] == ["Speak like a pirate.", "Rhyme."]
    shown_here = said(await world.anna.slash(world.general, "settings show"))
    assert "**system_prompt** (this server's default): 20 of at most" in shown_here
    elsewhere = said(await world.anna.slash(world.random, "settings show"))
    assert "**system_prompt** (set for this conversation): 6 of at most" in elsewhere
    assert "Speak like a pirate." in said(await world.anna.slash(world.general, "system show"))
    await world.mod.slash(world.random, "system clear")
    assert "this server's default" in said(await world.anna.slash(world.random, "system show"))
    form = await admin.click(await second_page(world, admin), custom_id="llamacord:config:prompt")
    await admin.submit_modal(form, {"text": ""})
    assert "You are a test." in said(await world.anna.slash(world.general, "system show"))


async def test_a_servers_system_prompt_stays_within_the_operators_rules(world: World) -> None:
    admin = await admin_of(world)
    message = await second_page(world, admin)
    for bad, sentence in ((CONTROL_TAG, "control tags"), ("x" * 1200, "1200 tokens; the limit is 512")):
        form = await admin.click(message, custom_id="llamacord:config:prompt")
        await admin.submit_modal(form, {"text": bad})
        assert sentence in content(world, message)
        message = await second_page(world, admin)
    form = await admin.click(message, custom_id="llamacord:config:prompt")
    await admin.submit_modal(form, {"text": "x" * 400})
    await admin.click(message, label="Save")
    short = await admin.slash(world.general, "settings server", name="max_history_tokens", value="256")
    assert "too little room" in said(short)


async def test_defaults_of_answers_are_set_in_the_panel(world: World) -> None:
    admin = await admin_of(world)
    message = await second_page(world, admin)
    form = await admin.click(message, custom_id="llamacord:config:answers")
    await admin.submit_modal(form, {"answer_defaults": "temperature = 0,3\ntop_k: 7\n"})
    assert "temperature = 0.3, top_k = 7" in content(world, message)
    form = await admin.click(message, custom_id="llamacord:config:answers")
    result = await admin.submit_modal(form, {"answer_defaults": "temperature = 99"})
    assert "temperature must be a number from" in result.followups[0].content
    form = await admin.click(message, custom_id="llamacord:config:answers")
    result = await admin.submit_modal(form, {"answer_defaults": "very hot"})
    assert "one setting per line" in result.followups[0].content
    assert (await config(world)).answer_defaults == (("temperature", 0.3), ("top_k", 7))


async def test_lists_and_limits_are_set_in_forms_also_after_a_restart(world: World) -> None:
    admin = await admin_of(world)
    message = await panel(world, admin)
    await world.restart()
    form = await admin.click(message, custom_id="llamacord:config:question_lists")
    done = await admin.submit_modal(
        form, {"question_words": "badger\n\n weasel ", "question_patterns": "call \\d+"}
    )
    assert done.acknowledged
    held = await config(world)
    assert held.question_words == ("badger", "weasel")
    assert held.question_patterns == (r"call \d+",)
    form = await admin.click(message, custom_id="llamacord:config:limits")
    await admin.submit_modal(form, {"user_per_minute": "3", "server_per_minute": ""})
    assert ((await config(world)).user_per_minute, (await config(world)).server_per_minute) == (3, None)


async def test_ask_14_a_form_that_was_open_over_a_restart_is_taken(world: World) -> None:
    """Ask 14, buttons dead after a restart: not even what was being filled in is lost."""
    admin = await admin_of(world)
    form = await admin.click(await panel(world, admin), custom_id="llamacord:config:answer_lists")
    await world.restart()
    await admin.submit_modal(form, {"answer_words": "badger", "answer_patterns": ""})
    assert (await config(world)).answer_words == ("badger",)


@pytest.mark.parametrize(
    ("form_id", "values", "sentence"),
    [
        (
            "question_lists",
            {"question_words": "ok", "question_patterns": "("},
            "isn't a valid regular expression",
        ),
        ("question_lists", {"question_words": "x" * 61, "question_patterns": ""}, "is too long"),
        ("answer_lists", {"answer_words": "", "answer_patterns": "(a|aa)+$"}, "takes too long"),
        ("answer_lists", {"answer_words": "", "answer_patterns": "@everyone|x*"}, "matches any text"),
        ("limits", {"user_per_minute": "many", "server_per_minute": ""}, "whole number from 1 to 1000"),
        ("limits", {"user_per_minute": "0", "server_per_minute": "5"}, "whole number from 1 to 1000"),
    ],
)
async def test_a_bad_value_in_a_form_is_told_changes_nothing_and_is_given_back(
    world: World, form_id: str, values: dict[str, str], sentence: str
) -> None:
    admin = await admin_of(world)
    form = await admin.click(await panel(world, admin), custom_id=f"llamacord:config:{form_id}")
    result = await admin.submit_modal(form, values)
    assert sentence in result.followups[0].content
    assert result.followups[0].ephemeral
    assert [a.filename for a in result.followups[0].message.attachments] == ["input.txt"]
    assert await config(world) == ServerConfig()


async def test_a_log_channel_that_is_closed_to_us_is_refused(world: World) -> None:
    admin = await admin_of(world)
    bot = world.guild.me
    assert bot is not None
    closed = world.guild.create_text_channel(
        "closed", overwrites={bot: discord.PermissionOverwrite(send_messages=False)}
    )
    result = await admin.select(await panel(world, admin), [closed], custom_id="llamacord:config:log_channel")
    assert "I'm not allowed to write in that channel" in result.followups[0].content
    assert (await config(world)).log_channel is None


async def test_only_who_manages_the_server_may_use_the_panel(world: World) -> None:
    """Discord hides the command from others; who was let in all the same, or lost the right, is refused."""
    assert "config" not in world.mod.available_commands(world.general)
    command = next(c for c in await world.client.tree.fetch_commands() if c.name == "config")
    world.guild.set_command_permissions(command, {world.mod: True})
    assert "Only people who manage this server" in said(await world.mod.slash(world.general, "config"))
    admin = await admin_of(world)
    message = await panel(world, admin)
    form = await admin.click(message, custom_id="llamacord:config:limits")
    world.env.backend.get_member(world.guild.id, admin.id).role_ids.clear()
    pressed = await admin.click(message, custom_id="llamacord:config:age:never")
    assert "Only people who manage this server" in said(pressed)
    sent = await admin.submit_modal(form, {"user_per_minute": "1", "server_per_minute": ""})
    assert sent.acknowledged
    assert await config(world) == ServerConfig()


async def test_two_at_once_each_change_their_own(world: World) -> None:
    first, second = await admin_of(world), await admin_of(world)
    one, two = await panel(world, first), await panel(world, second)
    await first.click(one, custom_id="llamacord:config:age:never")
    await second.select(two, [world.random], custom_id="llamacord:config:allowed_channels")
    held = await config(world)
    assert held.age_restricted is AgeRestricted.NEVER
    assert held.allowed_channels == {world.random.id}


async def test_a_database_that_fails_is_told_on_the_panel(world: World) -> None:
    admin = await admin_of(world)
    message = await panel(world, admin)
    await world.database.close()
    result = await admin.click(message, custom_id="llamacord:config:age:never")
    assert "can't read or save" in result.followups[0].content


async def test_a_server_never_touches_another(world: World) -> None:
    elsewhere = world.env.create_guild("Elsewhere")
    lobby = elsewhere.create_text_channel("lobby")
    eve = elsewhere.add_member(
        world.env.create_user("eve", global_name="Eve"),
        roles=[elsewhere.create_role("Admins", permissions=discord.Permissions.all())],
    )
    theirs = shown(await eve.slash(lobby, "config"))
    await eve.click(theirs, custom_id="llamacord:config:age:never")
    assert await config(world) == ServerConfig()
    assert (await world.moderation.servers.config(elsewhere.id)).age_restricted == "never"


# Limits and places


async def test_ask_13_who_asks_too_much_is_told_when_to_ask_again(world: World) -> None:
    """Ask 13, cooldowns and quotas."""
    world.answers("answer")
    await change(world, user_per_minute=2)
    for number in range(5):
        await world.anna.send(world.general, f"{world.me} question {number}")
    refusals = [m.content for m in world.replies(world.general) if "asked a lot" in m.content]
    assert refusals == ["You've asked a lot in the last minute. Please try again in 30 s."]
    await world.run(6)
    assert len(world.engine.dialogs) == 2
    await world.anna.send(world.general, f"{world.me} and now?")
    await world.run(2)
    assert len(world.engine.dialogs) == 3


async def test_ask_13_regenerating_counts_too(world: World) -> None:
    """Ask 13, cooldowns and quotas: no way around them by button."""
    world.engine.scripts = [Script(("answer",))]
    await change(world, user_per_minute=1)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.env.advance_time(EDIT_S)
    result = await world.anna.click(world.reply(world.general), label="Regenerate")
    assert "You've asked a lot" in result.followups[0].content
    assert len(world.engine.dialogs) == 1


async def test_a_server_has_a_limit_of_its_own(world: World) -> None:
    world.answers("answer")
    await change(world, server_per_minute=1)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.bob.send(world.general, f"{world.me} hi too")
    assert any("People here have asked a lot" in m.content for m in world.replies(world.general))


async def test_ask_24_the_same_text_again_and_again_is_left_alone(world: World) -> None:
    """Ask 24, two bots talking to each other for ever: neither bots, webhooks, quotes nor loops go on."""
    world.answers("answer")
    for _ in range(9):
        await world.anna.send(world.general, f"{world.me} ping")
    await world.run(12)
    assert len(world.engine.dialogs) <= 5
    assert sum("several times" in m.content for m in world.replies(world.general)) == 1


async def test_ask_24_quoting_a_mention_is_not_asking(world: World) -> None:
    """Ask 24: text that only quotes us, from a person or through a webhook, starts nothing."""
    world.answers("answer")
    hook = world.guild.create_webhook(world.general)
    await world.anna.send(world.general, f"> {world.me} what is this?\nhe asked")
    await world.anna.send(world.general, f"look\n>>> {world.me} hi\nmore")
    await world.anna.send(world.general, f"```\n{world.me} hi\n```")
    await hook.send(f"> {world.me} hi\n{world.me} go on")
    await world.run(2)
    assert world.engine.dialogs == []
    await world.anna.send(world.general, f"> quoted\n{world.me} what is this?")
    await world.run(2)
    assert len(world.engine.dialogs) == 1


async def test_roles_decide_whom_it_answers_and_moderators_may_always_ask(world: World) -> None:
    world.answers("answer")
    friends = world.guild.create_role("Friends")
    await change(world, allowed_roles=[friends.id])
    await ask(world, "hi")
    assert "only answer people with certain roles" in world.reply(world.general).content
    await ask(world, "hi", who="mod")
    friend = world.guild.add_member(world.env.create_user("fay", global_name="Fay"), roles=[friends])
    await friend.send(world.general, f"{world.me} hi")
    await world.run(2)
    assert len(world.engine.dialogs) == 2


async def test_a_thread_is_allowed_where_its_channel_is(world: World) -> None:
    world.answers("answer")
    await change(world, allowed_channels=[world.general.id])
    for channel, count in ((world.general, 1), (world.random, 1)):
        thread = world.open_thread(channel)
        await world.anna.send(thread, f"{world.me} hi")
        await world.run(2)
        assert len(world.engine.dialogs) == count


@pytest.mark.parametrize(("rule", "asked"), [("anywhere", 2), ("never", 1), ("only", 1)])
async def test_age_restricted_channels_are_respected(world: World, rule: str, asked: int) -> None:
    world.answers("answer")
    await change(world, age_restricted=rule)
    adult = world.guild.create_text_channel("adult")
    channel = world.client.get_channel(adult.id)
    assert isinstance(channel, discord.TextChannel)
    channel.nsfw = True
    for place in (world.general, adult):
        await world.anna.send(place, f"{world.me} hi")
        await world.run(2)
    assert len(world.engine.dialogs) == asked
    answered = [m.content for m in world.replies(adult)]
    assert answered == (
        ["answer"] if rule != "never" else ["On this server I don't answer in age-restricted channels."]
    )


async def test_in_a_free_channel_who_may_not_ask_may_talk_to_others_in_peace(tmp_path: Path) -> None:
    async with open_world(tmp_path / "llamacord.sqlite3", sees_all_messages=True) as world:
        world.answers("answer")
        friends = world.guild.create_role("Friends")
        await change(world, allowed_roles=[friends.id], free_channels=[world.general.id])
        await world.mod.slash(world.random, "block", user=world.bob)
        await world.anna.send(world.general, "hello Bob")
        await world.bob.send(world.general, "hello Anna")
        await world.run(2)
        assert world.replies(world.general) == []
        await ask(world, "and me?")
        assert "only answer people with certain roles" in world.reply(world.general).content


async def test_edits_are_held_to_the_lists_and_other_messages_are_no_business_of_ours(
    tmp_path: Path,
) -> None:
    async with open_world(tmp_path / "llamacord.sqlite3", sees_all_messages=True) as world:
        world.answers("answer")
        log = await open_log(world)
        await change(world, question_words=["badger"])
        chat = await world.anna.send(world.general, "hello Bob")
        await world.anna.edit(chat, "hello badger")
        question = await world.anna.send(world.general, f"{world.me} a cat?")
        await world.run(2)
        assert logged(world, log) == []
        await world.anna.edit(question, f"{world.me} a badger?")
        await world.run(2)
        assert len(logged(world, log)) == 1
        assert [m.content for m in await world.stored(world.general)] == ["a cat?", "answer"]


# Lists and labels


@pytest.mark.parametrize("question", ["a BADGER", "b4dg3r", "b a d g e r", "please call 123"])
async def test_a_question_that_the_lists_forbid_is_refused_and_logged_without_content(
    world: World, question: str
) -> None:
    log = await open_log(world)
    await change(world, question_words=["badger"], question_patterns=[r"call \d+"])
    await ask(world, question)
    assert world.reply(world.general).content == FORBIDDEN_QUESTION
    assert world.engine.dialogs == []
    assert await world.stored(world.general) == []
    (line,) = logged(world, log)
    assert "was refused" in line
    assert question not in line


async def test_a_forbidden_answer_is_withheld_and_never_shown_not_even_in_part(world: World) -> None:
    log = await open_log(world)
    await change(world, answer_words=["badger"])
    world.answers("It is a b", "ad", "ger of", " course.")
    await world.anna.send(world.general, f"{world.me} what is it?")
    for _ in range(6):
        await world.run(1)
        assert "badger" not in "".join(m.content for m in world.replies(world.general))
    assert world.reply(world.general).content == WITHHELD
    bodies = [str(request.json) for request in world.env.http_requests]
    assert not any("badger" in body for body in bodies)
    assert (await world.stored(world.general))[-1].state is MessageState.FAILED
    assert (await world.stored(world.general))[-1].content == ""
    assert len(logged(world, log)) == 1


async def test_an_answer_that_the_lists_allow_streams_as_ever(world: World) -> None:
    await change(world, answer_words=["badger"])
    world.answers("It is", " a cat", " of course.")
    await world.anna.send(world.general, f"{world.me} what is it?")
    await world.run(2)
    assert world.reply(world.general).content == "It is a"
    await world.run(3)
    assert world.reply(world.general).content == "It is a cat of course."


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_list_that_takes_too_long_refuses_or_not_as_the_server_wants(
    world: World, refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.safety.lists.TIMEOUT_S", 0.02)
    monkeypatch.setattr("bot.safety.lists.search.__defaults__", (0.02,))
    log = await open_log(world)
    await change(world, question_patterns=[r"(\w|\w\w)+\d$X"], refuses_unchecked=refuses)
    world.answers("answer")
    await ask(world, "x" * 900 + "!")
    assert world.reply(world.general).content == (FORBIDDEN_QUESTION if refuses else "answer")
    assert len(logged(world, log)) == (1 if refuses else 0)


async def test_ask_7_invitations_secrets_and_mass_mentions_never_reach_discord(world: World) -> None:
    """Ask 7, the model pings @everyone: nor does it invite or leak, not even in pieces."""
    pieces = ("@every", "one! Join dis", "cord.g", "g/abc", "def now. ", "AKIAIOSF", "ODNN7EXAMPLE", " bye")
    world.answers(*pieces)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(10)
    assert (
        world.reply(world.general).content
        == "@\u200beveryone! Join [invitation removed] now. [secret removed] bye"
    )
    sent = "".join(str(request.json) for request in world.env.http_requests)
    assert "discord.gg" not in sent
    assert "@everyone" not in sent
    assert "AKIAIOSFODNN7EXAMPLE" not in sent
    assert "discord.gg" not in (await world.stored(world.general))[-1].content


async def test_answers_are_labelled_where_the_server_wants_it(world: World) -> None:
    world.answers("answer")
    await change(world, labels_answers=True)
    await ask(world, "hi")
    assert world.reply(world.general).content == "answer\n-# Written by a language model; it can be wrong."


# The moderation model


async def guarded(world: World, *verdicts: str, refuses: bool = True, **script: Any) -> ScriptedEngine:
    """Start the bot anew with a moderation model that says these one after the other."""
    guard = ScriptedEngine([Script((verdict,), **script) for verdict in verdicts])
    guard.info = type(guard.info)("guard", "int8", "cpu", "llama-2", 20_000, "")
    world.safety_model = SafetyModel(guard, refuses_unchecked=refuses)
    await world.restart()
    return guard


async def test_the_moderation_model_checks_question_and_answer(world: World) -> None:
    guard = await guarded(world, "safe")
    world.answers("good ", "answer")
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(1)
    assert not any("good" in m.content for m in world.replies(world.general))
    await world.run(2)
    assert world.reply(world.general).content == "good answer"
    assert "User: hi" in guard.dialogs[0][0].content
    assert "Agent: good answer" in guard.dialogs[1][0].content


async def test_an_unsafe_question_is_not_answered(world: World) -> None:
    log = await open_log(world)
    await guarded(world, "unsafe\nO3")
    await ask(world, "how do I steal?")
    assert "I can't answer this question" in world.reply(world.general).content
    assert world.engine.dialogs == []
    assert logged(world, log) == [
        f"A question from {world.anna.mention} in {world.general.mention} "
        "was refused by the moderation model."
    ]


async def test_an_unsafe_answer_is_withheld(world: World) -> None:
    await guarded(world, "safe", "unsafe\nO1")
    world.answers("terrible things")
    await ask(world, "hi")
    assert world.reply(world.general).content == WITHHELD
    assert not any("terrible" in str(request.json) for request in world.env.http_requests)


@pytest.mark.parametrize("said", ["perhaps", ""])
@pytest.mark.parametrize("refuses", [True, False])
async def test_what_it_cannot_judge_is_refused_or_not_as_the_operator_wants(
    world: World, said: str, refuses: bool
) -> None:
    await guarded(world, said or "x", refuses=refuses, fails_after=None if said else 0)
    world.answers("answer")
    await ask(world, "hi")
    content = world.reply(world.general).content
    assert content == "answer" if not refuses else "couldn't check this" in content
