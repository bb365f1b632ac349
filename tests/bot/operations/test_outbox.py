"""What Discord answers to a message of ours, over real HTTP, and what the outbox makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import discord
import pytest
from discord.http import Route

from bot.delivery.outbox import (
    Buttons,
    OutboxClosedError,
    OutboxError,
    OutboxForbiddenError,
    OutboxGoneError,
    OutboxRefusedError,
    OutboxRetryError,
)
from bot.on_discord.answers.outboxes import DiscordOutbox
from tests.bot.operations.discord_api import Reply, refused
from tests.bot.operations.local_discord import (
    CHANNEL_ID,
    READ_HISTORY,
    Fault,
    LocalDiscord,
    banned,
    local_discord,
)


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalDiscord]:
    async with local_discord() as place:
        monkeypatch.setattr(Route, "BASE", place.url)
        yield place


@pytest.fixture
async def client(place: LocalDiscord) -> AsyncIterator[discord.Client]:
    async with discord.Client(intents=discord.Intents.none()) as client:
        await client.login("token")
        yield client


def outbox_of(client: discord.Client, question_id: int | None, answer_id: int = 7) -> DiscordOutbox:
    channel = client.get_partial_messageable(CHANNEL_ID)
    return DiscordOutbox(channel, answer_id=answer_id, trigger_id=question_id, locale="en")


async def test_a_run_after_a_restart_never_gets_the_messages_of_the_one_before(
    place: LocalDiscord, client: discord.Client
) -> None:
    """Discord knows nonces for minutes, and answers a repeated one with the message that had it."""
    question = place.ask("hi")
    first = outbox_of(client, question)
    shown = [await first.send(text, buttons=Buttons.STOP) for text in ("one", "two")]
    after_restart = outbox_of(client, question)
    await after_restart.edit(shown[1], "two and a half", buttons=Buttons.NONE)
    shown.append(await after_restart.send("three", buttons=Buttons.REGENERATE))
    assert place.texts == ["one", "two and a half", "three"]
    assert sorted(set(shown)) == shown


async def test_a_send_that_is_answered_with_another_message_is_noticed_and_sent_anew(
    place: LocalDiscord, client: discord.Client
) -> None:
    outbox = outbox_of(client, place.ask("hi"))
    shown = await outbox.send("one", buttons=Buttons.STOP)
    place.faults.append(Fault("POST", "/messages$", reply=Reply(dict(place.messages[shown]))))
    with pytest.raises(OutboxRetryError):
        await outbox.send("two", buttons=Buttons.STOP)
    assert await outbox.send("two", buttons=Buttons.STOP) != shown
    assert place.texts == ["one", "two"]


async def test_a_send_whose_answer_is_lost_is_repeated_without_a_second_message(
    place: LocalDiscord, client: discord.Client
) -> None:
    outbox = outbox_of(client, place.ask("hi"))
    place.faults.append(Fault("POST", "/messages$", is_lost=True))
    with pytest.raises(OutboxRetryError):
        await outbox.send("one", buttons=Buttons.STOP)
    await outbox.send("one and more", buttons=Buttons.STOP)
    assert place.texts == ["one and more"], "what the first attempt lacks is an edit afterwards"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refused(400, 50035), OutboxRefusedError),
        (refused(400, 200000, "Message was blocked by automatic moderation"), OutboxRefusedError),
        (refused(413), OutboxRefusedError),
        (refused(400, 50083, "Thread is archived"), OutboxClosedError),
        (refused(400, 160005, "Thread is locked"), OutboxClosedError),
        (refused(403, 160005, "Thread is locked"), OutboxClosedError),
        (refused(403, 50013), OutboxForbiddenError),
        (refused(403, 50001), OutboxForbiddenError),
        (refused(404, 10003), OutboxGoneError),
        (refused(401), OutboxRetryError),
        (refused(503), OutboxRetryError),
        (Reply(text="{", headers={"Content-Type": "application/json"}), OutboxRetryError),
    ],
)
async def test_what_discord_answers_says_what_is_to_be_done(
    place: LocalDiscord, client: discord.Client, reply: Reply, kind: type[OutboxError]
) -> None:
    place.faults.append(Fault("POST", "/messages$", reply=reply))
    with pytest.raises(kind) as caught:
        await outbox_of(client, place.ask("hi")).send("one", buttons=Buttons.STOP)
    assert type(caught.value) is kind


async def test_a_ban_says_how_long_it_lasts(place: LocalDiscord, client: discord.Client) -> None:
    place.faults.append(Fault("POST", "/messages$", reply=banned(61)))
    with pytest.raises(OutboxRetryError) as caught:
        await outbox_of(client, place.ask("hi")).send("one", buttons=Buttons.STOP)
    assert caught.value.retry_after == 61


async def test_an_answer_is_a_reply_once_also_when_its_only_message_was_taken_away(
    place: LocalDiscord, client: discord.Client
) -> None:
    question = place.ask("hi")
    outbox = outbox_of(client, question)
    gone = await outbox.send("one", buttons=Buttons.STOP)
    await outbox.delete(gone)
    for text in ("one", "two"):
        await outbox.send(text, buttons=Buttons.STOP)
    replies = [message.get("message_reference", {}).get("message_id") for message in place.ours()]
    assert replies == [question, None]


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_what_cannot_be_a_reply_is_a_message_of_its_own(
    place: LocalDiscord, client: discord.Client, *, is_deleted: bool
) -> None:
    question = place.ask("hi")
    if is_deleted:
        del place.messages[question]
    else:
        place.permit(CHANNEL_ID, denied=READ_HISTORY)
    await outbox_of(client, question).send("one", buttons=Buttons.STOP)
    assert place.texts == ["one"]
    assert "message_reference" not in place.ours()[0]
