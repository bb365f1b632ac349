"""What people send besides typed words, and what the model is told of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import discord
import pytest
import simcord
from simcord.enums import MessageType

from bot.on_discord.hearing.files import MAX_BYTES
from bot.on_discord.hearing.hearing import MAX_QUOTE_CHARS
from bot.parameters import ChatParameters
from tests.bot.documents.made import paragraph, pdf, word
from tests.bot.e2e.hearing_stage import (
    EMBED,
    EMBED_TEXT,
    ask_about,
    asked,
    echo,
    named,
    poll,
    post,
    sticker,
    voice,
)
from tests.bot.e2e.world import World, open_world

CAT = ("cat.png", b"\x89PNG\r\n")


@pytest.fixture
async def open_eyed(tmp_path: Path) -> AsyncIterator[World]:
    """A world in which Discord shows us the content of all messages."""
    async with open_world(tmp_path / "llamacord.sqlite3", sees_all_messages=True) as world:
        echo(world)
        yield world


def last(world: World, channel: simcord.ChannelHandle) -> str:
    return world.replies(channel)[-1].content


async def test_a_forwarded_message_is_asked_about(world: World) -> None:
    echo(world)
    said = await world.bob.send(world.general, "The meeting is at nine.")
    await post(world, world.anna.user.dm_channel, world.anna, forwards=said)
    await world.run(2)
    assert asked(world) == "Forwarded message:\n> The meeting is at nine."


async def test_a_sticker_alone_and_beside_words_reaches_the_model(world: World) -> None:
    echo(world)
    direct = world.anna.user.dm_channel
    await post(world, direct, world.anna, stickers=[sticker(world, "thumbs up")])
    await world.run(2)
    assert asked(world) == "Sticker: thumbs up"
    await post(world, direct, world.anna, "What do you think?", stickers=[sticker(world, "thumbs up")])
    await world.run(2)
    assert asked(world) == "What do you think?\n\nSticker: thumbs up"


async def test_a_poll_reaches_the_model_with_its_answers(world: World) -> None:
    echo(world)
    await post(
        world,
        world.general,
        world.anna,
        f"{world.me} which one is best?",
        poll=poll("What shall we drink?", "Tea", "Coffee", "Water"),
    )
    await world.run(2)
    assert asked(world) == "which one is best?\n\nPoll: What shall we drink?\n- Tea\n- Coffee\n- Water"
    await post(world, world.anna.user.dm_channel, world.anna, poll=poll("Now?", "Yes", "No"))
    await world.run(2)
    assert asked(world) == "Poll: Now?\n- Yes\n- No"


async def test_a_time_is_told_as_people_read_it(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} is <t:1700000000:R> before <t:1700000000:t>?")
    await world.run(2)
    assert asked(world) == "is 2023-11-14 22:13 UTC before 22:13 UTC?"


async def test_a_voice_message_a_video_and_a_sound_each_get_a_true_sentence(world: World) -> None:
    direct = world.anna.user.dm_channel
    for attachment, sentence in (
        (voice(world, direct), "I cannot listen to voice messages"),
        (
            named(world, direct, "a.mp4", b"\0\0\0\x18ftypmp42", content_type="video/mp4"),
            "I cannot watch videos",
        ),
        (
            named(world, direct, "a.mp3", b"ID3" + bytes(9), content_type="audio/mpeg"),
            "I cannot listen to sounds",
        ),
        (named(world, direct, *CAT), "I cannot see pictures"),
        (named(world, direct, "x", CAT[1], content_type="text/plain"), "I cannot see pictures"),
    ):
        await post(world, direct, world.anna, attachments=[attachment])
        assert sentence in last(world, direct)
        assert "pictures" in sentence or "pictures" not in last(world, direct)
    assert world.engine.dialogs == []


async def test_the_model_knows_of_a_picture_that_it_does_not_see_and_reads_what_describes_it(
    world: World,
) -> None:
    echo(world)
    picture = named(world, world.general, *CAT, description="a cat\non a sofa")
    await post(world, world.general, world.anna, f"{world.me} What colour is it?", attachments=[picture])
    await world.run(2)
    assert asked(world) == (
        "What colour is it?\n\nPicture cat.png (you cannot see it), described as: a cat on a sofa"
    )
    assert "I cannot see pictures" in last(world, world.general)


@pytest.mark.parametrize(
    ("name", "claimed", "data"),
    [
        ("app.ts", "video/MP2T", b"const x: number = 1"),
        ("logo.svg", "image/svg+xml", b"<svg><title>Logo</title></svg>"),
        ("notes.png", "image/png", "Grüße".encode()),
        ("song.mp3", "audio/mpeg", "schöne Grüße aus Köln am Rhein".encode("cp1252")),
        ("data", "application/octet-stream", b"a,b\n1,2"),
        ("table.xls", "application/vnd.ms-excel", b"a;b\n1;2"),
    ],
)
async def test_the_bytes_of_a_file_decide_and_not_what_it_is_called(
    world: World, name: str, claimed: str, data: bytes
) -> None:
    echo(world)
    file = named(world, world.general, name, data, content_type=claimed)
    await post(world, world.general, world.anna, f"{world.me} Read it", attachments=[file])
    await world.run(2)
    text = data.decode("utf-8" if name != "song.mp3" else "cp1252")
    assert asked(world) == f"Read it\n\nFile {name}:\n{text}"
    assert "I cannot" not in last(world, world.general)


async def test_a_pdf_and_a_word_document_join_the_question(world: World) -> None:
    echo(world)
    files = [("report.pdf", pdf("One.", "Two.")), ("letter.docx", word(paragraph("Dear Anna,")))]
    await post(world, world.general, world.anna, f"{world.me} Sum up", files=files)
    await world.run(2)
    assert asked(world) == "Sum up\n\nFile report.pdf:\nOne.\n\nTwo.\n\nFile letter.docx:\nDear Anna,"


async def test_of_a_long_pdf_it_is_said_how_far_it_was_read(world: World) -> None:
    echo(world)
    await post(world, world.general, world.anna, world.me, files=[("long.pdf", pdf(*["Page."] * 60))])
    await world.run(2)
    assert "I read pages 1 to 50 of 60 in long.pdf." in last(world, world.general)
    assert asked(world).endswith("\n…")


async def test_of_a_document_as_much_is_read_as_there_is_room_for(world: World) -> None:
    echo(world)
    pages = [f"{number}{' word' * 40}." for number in range(1, 13)]
    await post(world, world.general, world.anna, f"{world.me} Sum up", files=[("long.pdf", pdf(*pages))])
    await world.run(2)
    assert asked(world).endswith("\n".join(["\n3" + " word" * 40 + ".", "…"]))
    assert "I read pages 1 to 3 of 12 in long.pdf." in last(world, world.general)
    letter = ("letter.docx", word(paragraph("word " * 500)))
    await post(world, world.general, world.anna, f"{world.me} Sum up", files=[letter])
    await world.run(2)
    assert asked(world).endswith("word\n…")
    assert "letter.docx is long, so I read only the beginning." in last(world, world.general)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("scan.pdf", pdf(""), "I found no text in scan.pdf"),
        ("half.pdf", b"%PDF-1.7 half", "I could not read half.pdf"),
        ("sheet.xlsx", word("", name="xl/workbook.xml"), "sheet.xlsx is not a text that I can read"),
        ("bomb.docx", word("", before='<!DOCTYPE a [<!ENTITY a "b">]>'), "I could not read bomb.docx"),
        ("huge.docx", b"PK\x03\x04" + bytes(9 * 2**20), "up to 8 MB"),
        ("long.pdf", b"x" * (MAX_BYTES + 1), "up to 64 KB"),
    ],
)
async def test_a_document_that_cannot_be_read_gets_its_sentence(
    world: World, name: str, data: bytes, sentence: str
) -> None:
    await post(world, world.general, world.anna, f"{world.me} Sum up", files=[(name, data)])
    assert sentence in last(world, world.general)
    assert await world.stored(world.general) == []


async def test_a_reply_quotes_all_that_an_embed_says(open_eyed: World) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, embeds=[EMBED])
    await post(world, world.general, world.anna, f"{world.me} Do I stay?", reply_to=said)
    await world.run(2)
    quoted = "\n".join(f"> {line}" for line in EMBED_TEXT.splitlines())
    assert asked(world) == f"About what Bob wrote:\n{quoted}\n\nDo I stay?"
    assert "-#" not in last(world, world.general)


async def test_a_reply_reads_somebodys_file_and_goes_with_it(open_eyed: World) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, "Mine:", files=[("notes.txt", b"Tea.\nMilk.")])
    await post(world, world.general, world.anna, f"{world.me} What is it?", reply_to=said)
    await world.run(2)
    assert asked(world) == (
        "About what Bob wrote:\n> Mine:\n> \n> File notes.txt:\n> Tea.\n> Milk.\n\nWhat is it?"
    )
    await world.bob.delete(said)
    await post(world, world.general, world.anna, f"{world.me} And now?")
    await world.run(2)
    assert all("Milk" not in one.content for one in world.engine.dialogs[-1] if one.role == "user")


async def test_a_reply_to_a_picture_is_told_what_is_true(open_eyed: World) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, files=[CAT])
    await post(world, world.general, world.anna, f"{world.me} What is it?", reply_to=said)
    await world.run(2)
    assert asked(world) == "About what Bob wrote:\n> Picture cat.png (you cannot see it)\n\nWhat is it?"
    assert "I cannot see pictures" in last(world, world.general)


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        ({"files": [CAT]}, "I cannot see pictures"),
        ({"embeds": [{"type": "image", "image": {"url": "https://e.com/a.png"}}]}, "I cannot see pictures"),
        ({"files": [("empty.txt", b"")]}, "nothing I can read"),
    ],
)
async def test_a_mention_alone_in_a_reply_to_what_cannot_be_read_gets_a_sentence(
    open_eyed: World, held: dict[str, Any], sentence: str
) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, **held)
    await post(world, world.general, world.anna, world.me, reply_to=said)
    await world.run(2)
    assert sentence in last(world, world.general)
    assert world.engine.dialogs == []


@pytest.mark.parametrize(
    ("held", "quoted"),
    [
        ({"poll": poll("Tea?", "Yes", "No")}, "> Poll: Tea?\n> - Yes\n> - No"),
        ({"message_type": MessageType.NEW_MEMBER}, "> Bob joined the server."),
        ({"message_type": MessageType.PREMIUM_GUILD_SUBSCRIPTION}, "> Bob boosted the server."),
        (
            {
                "components": [{"type": 17, "components": [{"type": 10, "content": "Shown"}]}],
                "flags": 1 << 15,
            },
            "> Shown",
        ),
    ],
)
async def test_a_reply_quotes_whatever_is_replied_to(
    open_eyed: World, held: dict[str, Any], quoted: str
) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, **held)
    await post(world, world.general, world.anna, f"{world.me} And?", reply_to=said)
    await world.run(2)
    assert asked(world) == f"About what Bob wrote:\n{quoted}\n\nAnd?"
    assert "-#" not in last(world, world.general)


async def test_a_long_message_is_quoted_from_its_beginning_and_that_is_said(open_eyed: World) -> None:
    world = open_eyed
    world.client.chat.preferences.defaults = ChatParameters(max_history_tokens=4000)
    world.engine.info = dataclasses.replace(world.engine.info, context_length=8192)
    said = await post(world, world.general, world.bob, "x " * 500, embeds=[{"description": "y " * 2000}])
    await post(world, world.general, world.anna, f"{world.me} And?", reply_to=said)
    await world.run(2)
    (quoted,) = [line for line in asked(world).splitlines() if "y" in line]
    assert quoted.endswith("y y y…")
    assert asked(world).count("x") + asked(world).count("y") < MAX_QUOTE_CHARS / 2
    assert "is long, so I read only the beginning" in last(world, world.general)


async def test_a_reply_to_a_forward_quotes_what_was_forwarded(open_eyed: World) -> None:
    world = open_eyed
    source = await post(world, world.random, world.bob, "At nine.", files=[("plan.txt", b"Room 4")])
    forwarded = await world.bob.forward(source, world.general)
    await post(world, world.general, world.anna, f"{world.me} When?", reply_to=forwarded)
    await world.run(2)
    assert asked(world) == (
        "About what Bob wrote:\n> Forwarded message:\n> > At nine.\n> > \n> > File plan.txt:\n> > Room 4"
        "\n\nWhen?"
    )


async def test_without_the_intent_it_is_said_that_discord_does_not_show_it(world: World) -> None:
    echo(world)
    said = await post(world, world.general, world.bob, embeds=[EMBED], files=[CAT])
    await post(world, world.general, world.anna, f"{world.me} Do I stay?", reply_to=said)
    await world.run(2)
    assert asked(world) == "Do I stay?"
    assert "Discord shows me only messages that mention me" in last(world, world.general)
    assert "I cannot see" not in last(world, world.general)


async def test_a_reply_to_what_is_gone_or_empty_is_told_so(open_eyed: World) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, "soon gone")
    empty = await post(world, world.general, world.bob, message_type=MessageType.GUILD_INVITE_REMINDER)
    await world.bob.delete(said)
    await post(world, world.general, world.anna, f"{world.me} And?", reply_to=said)
    await world.run(2)
    assert "may have been deleted" in last(world, world.general)
    await post(world, world.general, world.anna, f"{world.me} And?", reply_to=empty)
    await world.run(2)
    assert "nothing I can read" in last(world, world.general)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"embeds": [EMBED]}, "> Weather service"),
        ({"files": [("app.ts", b"const x = 1")]}, "> File app.ts:\n> const x = 1"),
        ({"files": [("a.pdf", pdf("Hello."))]}, "> File a.pdf:\n> Hello."),
        ({"stickers": True}, "> Sticker: thumbs up"),
        ({"poll": poll("Tea?", "Yes")}, "> Poll: Tea?"),
    ],
)
async def test_ask_about_this_works_on_all_of_it(world: World, held: dict[str, Any], told: str) -> None:
    echo(world)
    if "stickers" in held:
        held = {"stickers": [sticker(world, "thumbs up")]}
    said = await post(world, world.general, world.bob, **held)
    await ask_about(world, world.general, said)
    assert asked(world).startswith(f"About what Bob wrote:\n{told}")
    assert asked(world).endswith("\n\nWhat is it?")


async def test_ask_about_this_says_what_is_true_of_what_cannot_be_read(world: World) -> None:
    for held, sentence in (
        ({"files": [CAT]}, "cannot see pictures"),
        ({"embeds": [{"type": "image", "image": {"url": "https://e.com/a.png"}}]}, "cannot see pictures"),
        ({"attachments": [voice(world, world.general)]}, "cannot listen to voice messages"),
        ({"files": [("x.bin", bytes(range(256)) * 9)]}, "not a text that I can read"),
    ):
        said = await post(world, world.general, world.bob, **held)
        result = await ask_about(world, world.general, said)
        told = result.followups[-1] if result.followups else result.response
        assert told is not None
        assert sentence in told.content
    assert world.engine.dialogs == []
    assert world.replies(world.general) == []


async def test_a_thread_on_somebodys_message_begins_with_it(open_eyed: World) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, "My router is down.")
    world.env.backend.create_thread(world.general.id, "Router", world.bob.id, message_id=said.id)
    thread = world.general.threads[-1]
    await world.anna.send(thread, f"{world.me} any idea?")
    await world.run(2)
    assert asked(world) == ("About what Bob wrote:\n> Thread: Router\n> \n> My router is down.\n\nany idea?")
    await world.anna.send(thread, f"{world.me} none?")
    await world.run(2)
    assert asked(world) == "none?"


async def test_a_reply_to_what_stands_above_a_thread_quotes_what_it_points_to(open_eyed: World) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, "My router is down.")
    world.env.backend.create_thread(world.general.id, "Router", world.bob.id, message_id=said.id)
    thread = world.general.threads[-1]
    kind = MessageType.THREAD_STARTER_MESSAGE
    above = world.env.backend.prepare_message(thread.id, world.bob.id, "-", message_type=kind)
    above.reference = {"type": 0, "channel_id": str(world.general.id), "message_id": str(said.id)}
    world.env.backend.commit_message(above)
    await post(world, thread, world.anna, f"{world.me} any idea?", reply_to=above)
    await world.run(2)
    assert asked(world) == "About what Bob wrote:\n> My router is down.\n\nany idea?"


async def test_a_forum_post_has_its_title_and_tags(open_eyed: World) -> None:
    world = open_eyed
    thread = await forum_post(world, "No light", "The lamp is dark.")
    await world.anna.send(thread, f"{world.me} any idea?")
    await world.run(2)
    assert asked(world) == (
        "About what Bob wrote:\n> Forum post: No light (tags: lamps)\n> \n> The lamp is dark.\n\nany idea?"
    )


async def test_a_forum_post_that_asks_us_has_its_title_and_tags(world: World) -> None:
    echo(world)
    await forum_post(world, "No light", f"{world.me} The lamp is dark.")
    await world.run(2)
    assert asked(world) == "Forum post: No light (tags: lamps)\n\nThe lamp is dark."


async def forum_post(world: World, title: str, content: str) -> simcord.ChannelHandle:
    """Have Bob post in a forum."""
    backend = world.env.backend
    forum = world.guild.create_forum_channel("help")
    backend.edit_channel(
        forum.id,
        {
            "available_tags": [
                {"id": "77", "name": "lamps", "moderated": False, "emoji_id": None, "emoji_name": None}
            ]
        },
    )
    post = backend.create_thread(forum.id, title, world.bob.id, applied_tags=[77])
    starter = backend.prepare_message(post.id, world.bob.id, content)
    starter.id = post.id
    backend.commit_message(starter)
    world.env._mark_mutation()
    await world.env.settle()
    return simcord.builders.ChannelHandle(world.env, world.guild, post)


async def test_a_second_message_with_a_picture_shows_its_note(world: World) -> None:
    world.answers("heard", "both")
    await world.anna.send(world.general, f"{world.me} Look")
    await world.anna.send(world.general, f"{world.me} at this", attachments=[CAT])
    await world.run(3)
    assert "I cannot see pictures" in world.reply(world.general).content


async def test_what_somebody_forwards_and_then_asks_about_is_quoted(open_eyed: World) -> None:
    """Discord sends a forward and the words beside it as two messages."""
    world = open_eyed
    source = await world.bob.send(world.random, "The lamp is dark.")
    await post(world, world.general, world.anna, forwards=source)
    await world.anna.send(world.general, f"{world.me} any idea what happens here?")
    await world.run(2)
    assert asked(world) == (
        "About what Anna wrote:\n> Forwarded message:\n> > The lamp is dark.\n\nany idea what happens here?"
    )
    await post(world, world.general, world.anna, forwards=source)
    await world.anna.send(world.general, "never mind")
    await world.anna.send(world.general, f"{world.me} what is the time?")
    await world.run(2)
    assert asked(world) == "what is the time?"
    await post(world, world.general, world.anna, forwards=source)
    await world.env.advance_time(100)
    await world.anna.send(world.general, f"{world.me} still there?")
    await world.run(2)
    assert asked(world) == "still there?"


async def test_without_the_intent_a_forward_before_a_question_is_told_not_to_be_shown(world: World) -> None:
    echo(world)
    source = await world.bob.send(world.random, "The lamp is dark.")
    await post(world, world.general, world.anna, forwards=source)
    await world.anna.send(world.general, f"{world.me} any idea?")
    await world.run(2)
    assert asked(world) == "any idea?"
    assert "Discord shows me only messages that mention me" in last(world, world.general)


async def test_a_long_text_that_discord_made_a_file_of_is_read(world: World) -> None:
    """A paste of over 2000 characters becomes `message.txt`, of which no type is told."""
    echo(world)
    text = "Grüße 👋 " * 60
    file = named(world, world.general, "message.txt", text.encode(), content_type=None)
    await post(world, world.general, world.anna, world.me, attachments=[file])
    await world.run(2)
    assert asked(world) == f"File message.txt:\n{text.strip()}"


async def test_a_message_replied_to_that_discord_did_not_send_along_is_fetched(
    open_eyed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = open_eyed
    take = world.client.on_message

    async def take_without_reference(message: discord.Message) -> None:
        if message.reference is not None:
            message.reference.resolved = None
        await take(message)

    monkeypatch.setattr(world.client, "on_message", take_without_reference)
    said = await world.bob.send(world.general, "Tea is best.")
    await world.anna.send(world.general, f"{world.me} Is it?", reply_to=said)
    await world.run(2)
    assert asked(world) == "About what Bob wrote:\n> Tea is best.\n\nIs it?"


async def test_what_is_deleted_while_it_is_read_is_not_kept(
    open_eyed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = open_eyed
    said = await post(world, world.general, world.bob, "a secret", files=[("a.txt", b"another")])
    read = discord.Attachment.read

    async def read_late(attachment: discord.Attachment) -> bytes:
        data = await read(attachment)
        await asyncio.sleep(5)
        return data

    monkeypatch.setattr(discord.Attachment, "read", read_late)
    await post(world, world.general, world.anna, f"{world.me} What is it?", reply_to=said)
    await world.bob.delete(said)
    await world.run(2)
    assert asked(world) == "What is it?"


async def test_whoever_may_not_ask_has_no_file_opened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = discord.Attachment.read

    async def note(attachment: discord.Attachment) -> bytes:
        opened.append(attachment.filename)
        return await read(attachment)

    monkeypatch.setattr(discord.Attachment, "read", note)
    await world.anna.slash(world.general, "opt-out")
    await post(world, world.general, world.anna, f"{world.me} Sum up", files=[("a.pdf", pdf("x"))])
    await world.run(2)
    assert opened == []
    assert "opted out" in last(world, world.general)
