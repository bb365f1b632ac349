"""Any message that can be composed gives text, or one true sentence, or silence."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
from simcord.enums import MessageType

from tests.bot.documents.made import paragraph, pdf, word
from tests.bot.e2e.hearing_stage import EMBED, named, poll, post, sticker, voice
from tests.bot.e2e.world import World, open_world
from tests.fakes import CONTROL_TAG, Script

NUM_MESSAGES = 30
WORDS = (
    "",
    "",
    "hello",
    "What do you think?",
    "<t:1700000000:R> <t:9999999999999:f>",
    "<@1> <@&2> <#3> <a:x_y:4> </a b:5>",
    "```",
    "> quoted",
    "\u200b",
    "||x||",
    "https://discord.com/channels/@me/123456789012345678/123456789012345678",
    "👩‍👩‍👧",
    "x" * 700,
    CONTROL_TAG,
    "\n\n",
    "@everyone",
)
FILES: tuple[tuple[str, bytes, dict[str, Any]], ...] = (
    ("a.txt", b"text", {}),
    ("a.ts", b"const x = 1", {"content_type": "video/MP2T"}),
    ("a.png", b"\x89PNG", {"description": "a \n cat"}),
    ("a.mp4", b"\0\0\0\x18ftypmp42", {"content_type": "video/mp4"}),
    ("a.mp3", b"ID3" + bytes(9), {"content_type": "audio/mpeg"}),
    ("a.bin", bytes(range(256)) * 9, {}),
    ("empty", b"", {"content_type": None}),
    ("a.pdf", pdf("Page one."), {}),
    ("scan.pdf", pdf(""), {}),
    ("broken.pdf", b"%PDF-", {}),
    ("a.docx", word(paragraph("Dear you,")), {}),
    ("a.zip", word("", name="x"), {}),
    ("big.txt", b"x" * 70_000, {}),
    ("big.jpg", b"\xff\xd8\xff" + bytes(90_000), {}),
)
EMBEDS: tuple[dict[str, Any], ...] = (
    EMBED,
    {},
    {"type": "image", "image": {"url": "https://example.com/a.png"}},
    {"fields": []},
    {"title": " "},
    {"description": CONTROL_TAG},
    {"footer": {"text": "only this"}},
)
SYSTEM = (
    MessageType.RECIPIENT_ADD,
    MessageType.PINS_ADD,
    MessageType.NEW_MEMBER,
    MessageType.PREMIUM_GUILD_TIER_3,
    MessageType.CHANNEL_FOLLOW_ADD,
    MessageType.AUTO_MODERATION_ACTION,
    MessageType.STAGE_TOPIC,
    MessageType.POLL_RESULT,
    MessageType.PURCHASE_NOTIFICATION,
    MessageType.GUILD_INCIDENT_REPORT_RAID,
)


class Composer:
    """Composes messages by chance, the same ones for the same seed."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = random.Random(seed)
        self._said: list[Any] = []

    async def next(self) -> Any:
        """Have somebody say something in the channel, or ask the bot about what was said."""
        world, chance = self._world, self._random
        channel = world.general
        author = chance.choice([world.anna, world.bob])
        if chance.random() < 0.2:
            kind = {"message_type": chance.choice(SYSTEM)}
            message = await post(world, channel, author, chance.choice(WORDS).strip() or "-", system=kind)
            self._said.append(message)
            return message
        holds = self._holds()
        words = chance.choice(WORDS)
        refers = bool(self._said) and chance.random() < 0.6
        reference = {"reply_to": chance.choice(self._said)} if refers else {}
        if not words.strip() and not holds and not reference:
            words = "hello"
        asks = chance.random() < 0.7
        message = await post(
            world,
            channel,
            author,
            f"{world.me} {words}" if asks else words.strip() or "-",
            **holds,
            **reference,
        )
        self._said.append(message)
        return message

    def _holds(self) -> dict[str, Any]:
        world, chance = self._world, self._random
        holds: dict[str, Any] = {}
        if chance.random() < 0.4:
            holds["embeds"] = chance.sample(EMBEDS, chance.randint(1, 3))
        if chance.random() < 0.2:
            holds["poll"] = poll("Which \n one?", *(["Yes", "No"] * chance.randint(1, 5)))
        if chance.random() < 0.2:
            holds["stickers"] = [sticker(world, chance.choice(["wave", "[INST]", " "]))]
        if chance.random() < 0.5:
            files = chance.sample(FILES, chance.randint(1, 4))
            holds["attachments"] = [
                named(world, world.general, name, data, **more) for name, data, more in files
            ]
        elif chance.random() < 0.2:
            holds["attachments"] = [voice(world, world.general)]
        return holds


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sees_all", [False, True])
async def test_a_message_gives_text_or_one_sentence_or_silence(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, seed: int, sees_all: bool
) -> None:
    async with open_world(tmp_path / "llamacord.sqlite3", sees_all_messages=sees_all) as world:
        composer = Composer(world, seed)
        for _ in range(NUM_MESSAGES):
            num_asked, num_said = len(world.engine.dialogs), len(world.replies(world.general))
            world.engine.respond = lambda _: Script(("Fine.",))
            message = await composer.next()
            await world.run(3)
            new = world.replies(world.general)[num_said:]
            is_asked = len(world.engine.dialogs) > num_asked
            assert len(new) <= 1, message
            assert all("Something went wrong" not in one.content for one in new)
            if is_asked:
                assert new[0].content.startswith("Fine.")
                assert all(one.content.strip() for one in world.engine.dialogs[-1])
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
