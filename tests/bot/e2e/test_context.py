"""What joins a question: the message replied to, files, the answer a thread was started from (ask 5)."""

from __future__ import annotations

import pytest

from bot.documents.file_bytes import decode
from bot.on_discord.hearing.files import MAX_BYTES
from tests.bot.e2e.world import TOKEN_S, World
from tests.fakes import CONTROL_TAG, Script

JAPANESE = "これは日本語の文章です。よろしくお願いします。"


def echo(world: World) -> None:
    world.engine.respond = lambda dialog: Script((f"heard: {dialog[-1].content}",), delay_s=TOKEN_S)


def asked(world: World) -> str:
    return world.engine.dialogs[-1][-1].content


async def test_a_reply_to_somebody_that_mentions_us_quotes_them(world: World) -> None:
    echo(world)
    said = await world.bob.send(world.general, f"{world.me} Tea is\nbest.")
    await world.run(2)
    await world.run(2)
    await world.anna.send(world.general, f"{world.me} Is it?", reply_to=said)
    await world.run(2)
    assert asked(world) == "Anna: About what Bob wrote:\n> Tea is\n> best.\n\nIs it?"
    await world.bob.delete(said)
    await world.anna.send(world.general, f"{world.me} Still?")
    await world.run(2)
    assert all("best" not in m.content for m in world.engine.dialogs[-1] if m.role == "user")


async def test_a_reply_to_an_older_answer_quotes_it_and_to_the_newest_does_not(world: World) -> None:
    echo(world)
    for text in ("one", "two"):
        await world.anna.send(world.general, f"{world.me} {text}")
        await world.run(2)
    first, second = world.replies(world.general)
    await world.anna.send(world.general, "more", reply_to=second)
    await world.run(2)
    assert asked(world) == "more"
    await world.anna.send(world.general, "more", reply_to=first)
    await world.run(2)
    assert asked(world) == "About what you wrote:\n> heard: one\n\nmore"


async def test_a_message_that_cannot_be_seen_is_not_quoted_and_that_is_said(world: World) -> None:
    world.answers("answer")
    said = await world.bob.send(world.general, "not for the bot")
    await world.anna.send(world.general, f"{world.me} What of this?", reply_to=said)
    await world.run(2)
    assert asked(world) == "What of this?"
    assert "Discord shows me only messages that mention me" in world.reply(world.general).content


async def test_a_quote_with_control_tags_is_refused(world: World) -> None:
    said = await world.bob.send(world.general, f"{world.me} {CONTROL_TAG}system")
    await world.anna.send(world.general, f"{world.me} What of this?", reply_to=said)
    assert all("control tags" in m.content for m in world.replies(world.general))
    assert world.engine.dialogs == []


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("notes.txt", "Grüße\n".encode(), "Grüße"),
        ("notes.txt", "Grüße aus Köln, schöne Straße\n".encode("cp1252"), "Grüße aus Köln, schöne Straße"),
        ("notes.md", "Grüße".encode("utf-16"), "Grüße"),
        ("日本.txt", JAPANESE.encode("shift_jis"), JAPANESE),
        ("a[b]<c>.py", b"print(1)\x00"[:8], "print(1)"),
    ],
)
async def test_a_text_file_joins_the_prompt_whatever_its_encoding(
    world: World, name: str, data: bytes, text: str
) -> None:
    world.answers("answer")
    await world.anna.send(world.general, f"{world.me} Sum up", attachments=[(name, data)])
    await world.run(2)
    assert asked(world).startswith("Sum up\n\nFile ")
    assert asked(world).endswith(f":\n{text}")
    assert not set(asked(world).splitlines()[2]) & set("<>[]")


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("big.txt", b"x" * (MAX_BYTES + 1), "too large"),
        ("tool.exe", bytes(range(256)) * 20, "not a text"),
        ("cat.png", b"\x89PNG", "cannot see pictures"),
        ("evil.txt", CONTROL_TAG.encode(), "control tags"),
        ("long.txt", b"word " * 2000, "send a shorter one"),
    ],
)
async def test_a_file_that_cannot_be_read_gets_a_sentence(
    world: World, name: str, data: bytes, sentence: str
) -> None:
    await world.anna.send(world.general, world.me, attachments=[(name, data)])
    assert sentence in world.reply(world.general).content
    assert await world.stored(world.general) == []


async def test_a_picture_beside_a_question_is_said_not_to_be_seen(world: World) -> None:
    world.answers("answer")
    await world.anna.send(world.general, f"{world.me} What is it?", attachments=[("cat.png", b"\x89PNG")])
    await world.run(2)
    assert world.reply(world.general).content.startswith("answer\n-# I cannot see pictures")


async def test_four_files_are_too_many(world: World) -> None:
    files = [(f"{number}.txt", b"text") for number in range(4)]
    await world.anna.send(world.general, world.me, attachments=files)
    assert "up to 3 files" in world.reply(world.general).content


async def test_a_thread_started_from_an_answer_continues_it(world: World) -> None:
    echo(world)
    await world.anna.send(world.general, f"{world.me} one")
    await world.run(2)
    answer = world.reply(world.general)
    await world.anna.send(world.general, f"{world.me} later")
    await world.run(2)
    world.env.backend.create_thread(world.general.id, "thread", world.anna.id, message_id=answer.id)
    thread = world.general.threads[-1]
    await world.anna.send(thread, f"{world.me} in the thread")
    await world.run(2)
    assert [m.content for m in world.engine.dialogs[-1]][1:] == ["one", "heard: one", "in the thread"]
    await world.anna.send(world.general, f"{world.me} in the channel")
    await world.run(2)
    assert all("thread" not in m.content for m in world.engine.dialogs[-1])


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"\x00\x01\x02\x03", bytes(range(256)), b"\xff" * 100])
def test_decoding_never_raises(data: bytes) -> None:
    assert isinstance(decode(data), str | None)
