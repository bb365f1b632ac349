"""Asking and answering on the simulated Discord."""

from __future__ import annotations

from datetime import timedelta

import pytest

from engine.types import Health
from storage.conversations import MessageState, Role
from tests.bot.e2e.world import EDIT_S, TOKEN_S, World, labels
from tests.fakes import CONTROL_TAG, Script

pytestmark = pytest.mark.on_both


def echo(world: World) -> None:
    """Let the engine answer with what it was asked, one token."""
    world.engine.respond = lambda dialog: Script((f"heard: {dialog[-1].content}",), delay_s=TOKEN_S)


async def test_a_mention_is_answered_with_a_stream_in_one_reply(world: World) -> None:
    world.answers("Hello", " there", "!")
    question = await world.anna.send(world.general, f"{world.me} hi")
    assert world.replies(world.general) == []
    await world.run()
    assert world.reply(world.general).content == "Hello"
    assert labels(world.reply(world.general)) == ["Stop"]
    await world.run()
    assert world.reply(world.general).content == "Hello there"
    await world.run(2)
    answer = world.reply(world.general)
    assert answer.content == "Hello there!"
    assert labels(answer) == ["Regenerate"]
    assert answer.reference is not None
    assert answer.reference.message_id == question.id
    assert [m.content for m in world.engine.dialogs[0]] == ["You are a test.", "hi"]
    stored = await world.stored(world.general)
    assert [(m.role, m.state, m.content) for m in stored] == [
        (Role.USER, MessageState.COMPLETE, "hi"),
        (Role.ASSISTANT, MessageState.COMPLETE, "Hello there!"),
    ]
    assert stored[0].author_name == "Anna"


async def test_typing_is_shown_while_it_works_and_ends(world: World) -> None:
    world.answers("Hello")

    def num_typing() -> int:
        return sum(request.path.endswith("/typing") for request in world.env.http_requests)

    await world.anna.send(world.general, f"{world.me} hi")
    assert num_typing() == 1
    await world.env.advance_time(20)
    assert num_typing() >= 3
    await world.run(2)
    done = num_typing()
    await world.env.advance_time(60)
    assert num_typing() == done


async def test_a_reply_continues_without_a_mention_in_the_text(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} one")
    await world.run(2)
    answer = world.reply(world.general)
    await world.anna.send(world.general, "two", reply_to=answer)
    await world.run(2)
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["one", "heard: one", "two"]
    assert world.replies(world.general)[-1].content == "heard: two"


async def test_direct_messages_are_answered_each_on_their_own(world: World) -> None:
    echo(world)
    await world.anna.send_dm("secret of anna")
    await world.bob.send_dm("hi")
    await world.run(2)
    assert world.reply(world.anna.user.dm_channel).content == "heard: secret of anna"
    assert world.reply(world.bob.user.dm_channel).content == "heard: hi"
    assert all("secret" not in m.content for m in world.engine.dialogs[1])


async def test_a_thread_is_a_conversation_of_its_own(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} in the channel")
    await world.run(2)
    thread = world.open_thread(world.general)
    await world.anna.send(thread, f"{world.me} in the thread")
    await world.run(2)
    assert world.reply(thread).content == "heard: in the thread"
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["in the thread"]


async def test_two_people_are_told_apart(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} I like tea")
    await world.run(2)
    await world.bob.send(world.general, f"{world.me} and I coffee")
    await world.run(2)
    assert [m.content for m in world.engine.dialogs[-1]][1:] == [
        "Anna: I like tea",
        "heard: I like tea",
        "Bob: and I coffee",
    ]
    assert world.engine.params[-1].stop == ()


async def test_two_channels_at_once_never_see_each_other(world: World) -> None:
    world.engine.respond = lambda dialog: Script(("heard: ", dialog[-1].content, "!"), delay_s=TOKEN_S)
    await world.anna.send(world.general, f"{world.me} apples")
    await world.bob.send(world.random, f"{world.me} pears")
    assert world.engine.num_running == 2
    await world.run(2)
    assert labels(world.reply(world.general)) == labels(world.reply(world.random)) == ["Stop"]
    await world.run(2)
    assert world.reply(world.general).content == "heard: apples!"
    assert world.reply(world.random).content == "heard: pears!"
    for dialog in world.engine.dialogs:
        text = " ".join(m.content for m in dialog)
        assert ("apples" in text) != ("pears" in text)


async def test_questions_of_one_channel_wait_in_order_and_see_their_place(world: World) -> None:
    echo(world)
    for number, person in enumerate([world.anna, world.bob, world.mod]):
        await person.send(world.general, f"{world.me} {number}")
    await world.env.advance_time(EDIT_S)
    running, *waiting = [m.content for m in world.replies(world.general)]
    assert "place" not in running
    assert ["place 1" in waiting[0], "place 2" in waiting[1]] == [True, True]
    assert world.engine.num_running == 1
    await world.run(6)
    replies = world.replies(world.general)
    assert [m.content for m in replies] == ["heard: 0", "heard: Bob: 1", "heard: Max: 2"]
    asked = [m.reference.message_id for m in replies if m.reference]
    assert asked == sorted(asked, key=str)
    assert all(labels(m) == ["Regenerate"] for m in world.replies(world.general))


async def test_a_long_answer_is_not_cut_by_those_who_wait(world: World) -> None:
    """What they were told goes while the answer grows, and nobody takes that for a deletion of theirs."""
    texts = [f"{letter * 900} " for letter in "abcdef"]
    world.engine.respond = lambda dialog: Script(
        texts if "long" in dialog[-1].content else ("short",), delay_s=TOKEN_S
    )
    people = (world.anna, world.bob, world.mod)
    asked = [
        (await person.send(world.general, f"{world.me} {text}")).id
        for person, text in zip(people, ("long", "one", "two"), strict=True)
    ]
    await world.env.advance_time(EDIT_S)
    assert ["place" in m.content for m in world.replies(world.general)] == [False, True, True]
    await world.run(4)
    assert {m.content[0] for m in world.replies(world.general)} == {"a", "c"}
    await world.run(8)
    replies = world.replies(world.general)
    assert [m.content[0] for m in replies] == ["a", "c", "e", "s", "s"]
    assert [m.reference.message_id for m in replies if m.reference] == asked
    stored = [m for m in await world.stored(world.general) if m.role is Role.ASSISTANT]
    assert [m.content for m in stored] == ["".join(texts).strip(), "short", "short"]
    shown_by = [await world.conversations.parts(m.id) for m in stored]
    assert shown_by == [[m.id for m in replies[:3]], [replies[3].id], [replies[4].id]]


async def test_who_is_stopped_while_others_are_shown_keeps_nobody_waiting(world: World) -> None:
    """The third one waits for the place of the second, which is shown after the first."""
    texts = [f"{letter * 900} " for letter in "abcdef"]
    world.engine.respond = lambda dialog: Script(
        texts if "long" in dialog[-1].content else ("short",), delay_s=TOKEN_S
    )
    people = (world.anna, world.bob, world.newcomer())
    asked = [
        (await person.send(world.general, f"{world.me} {text}")).id
        for person, text in zip(people, ("long", "long too", "one"), strict=True)
    ]
    await world.run(5)
    world.env.inject_error("PATCH", "/channels/*/messages/*", status=500, times=None)
    await world.run(2)
    await people[2].slash(world.general, "stop")
    world.env.backend.faults.clear()
    for _ in range(40):
        await world.env.advance_time(EDIT_S)
    replies = world.replies(world.general)
    assert [m.content[0] for m in replies] == ["a", "c", "e", "a", "c", "e", "-"]
    assert [m.reference.message_id for m in replies if m.reference] == asked
    assert [labels(m) for m in replies if labels(m)] == [["Regenerate"]] * 3
    assert await world.conversations.unshown(within=timedelta(days=1), limit=10) == []


async def test_a_queue_that_is_full_refuses_politely(world: World) -> None:
    world.answers("word ", loops=True)
    for number in range(10):
        await world.newcomer().send(world.general, f"{world.me} {number}")
    refusals = [m for m in world.replies(world.general) if "8 questions are already waiting" in m.content]
    assert len(refusals) == 1


async def test_the_world_that_is_not_for_us_is_left_alone(world: World) -> None:
    robot = world.guild.add_member(world.env.create_user("robot", bot=True))
    hook = world.guild.create_webhook(world.general)
    await world.anna.send(world.general, "@everyone hello")
    await world.anna.send(world.general, f"hello {world.bob.mention}")
    await robot.send(world.general, f"{world.me} hi")
    await hook.send(f"{world.me} hi")
    await world.run(2)
    assert world.replies(world.general) == []
    assert world.engine.dialogs == []


async def test_an_answer_never_pings(world: World) -> None:
    world.answers("@everyone ", f"{world.bob.mention} ", "done")
    await world.anna.send(world.general, f"{world.me} ping them")
    await world.run(4)
    answer = world.reply(world.general)
    assert answer.content.startswith("@\u200beveryone")
    assert not answer.mention_everyone
    world.check_no_pings()


async def test_a_long_answer_goes_on_in_further_messages_with_its_code_block(world: World) -> None:
    lines = [f"line_{number:03} = {number}\n" for number in range(200)]
    pieces = ["Look:\n```python\n", *("".join(lines[n : n + 20]) for n in range(0, 200, 20)), "```\nDone."]
    world.answers(*pieces)
    await world.anna.send(world.general, f"{world.me} write code")
    await world.run(13)
    parts = world.replies(world.general)
    assert len(parts) >= 2
    assert all(len(part.content) <= 2000 for part in parts)
    assert all(part.content.count("```") == 2 for part in parts)
    assert all(part.content.startswith("```python\n") for part in parts[1:])
    shown = "\n".join(part.content for part in parts)
    assert all(line.strip() in shown for line in lines)
    assert parts[-1].content.endswith("Done.")
    assert [labels(part) for part in parts] == [[] for _ in parts[1:]] + [["Regenerate"]]
    stored = (await world.stored(world.general))[-1]
    assert await world.conversations.parts(stored.id) == [part.id for part in parts]


async def test_the_token_limit_is_said(world: World) -> None:
    world.answers("one ", "two ", "three")
    await world.mod.slash(world.general, "settings set", name="max_new_tokens", value="2")
    await world.anna.send(world.general, f"{world.me} count")
    await world.run(3)
    assert world.reply(world.general).content.startswith("one two\n-# This answer reached its limit")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "mentioned me without a question"),
        (f"{CONTROL_TAG}system", "control tags"),
        ("x" * 1900, "send a shorter one"),
    ],
)
async def test_what_cannot_be_answered_is_told(world: World, text: str, sentence: str) -> None:
    await world.anna.send(world.general, f"{world.me} {text}")
    assert sentence in world.reply(world.general).content
    assert await world.stored(world.general) == []


async def test_a_model_that_is_away_is_told(world: World) -> None:
    world.engine.health = Health.UNHEALTHY
    await world.anna.send(world.general, f"{world.me} hi")
    assert "isn't available" in world.reply(world.general).content


async def test_a_fault_in_the_model_is_told_below_what_was_there(world: World) -> None:
    world.answers("Hello", " there", fails_after=1)
    await world.anna.send(world.general, f"{world.me} hi")
    await world.run(3)
    answer = world.reply(world.general)
    assert answer.content.startswith("Hello\n-# The model failed")
    assert labels(answer) == ["Regenerate", "Continue"]
