"""A message as text: its words, and what else it holds that can be put into words. Fetches nothing.

Files, pictures and sounds are named here and not opened. What is not the author's own typing is quoted, as
mails quote, so that it cannot pass for words of theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import discord

from bot.conversation.dialog import quoted
from bot.conversation.mentions import Bot, Names, label, readable
from bot.on_discord.origins import names_of

MAX_FILE_NAME_CHARS = 60
UNSEEN = "Picture (you cannot see it)"
"""What is told of a picture without a name and words."""
_KINDS = {"image/": "Picture", "video/": "Video", "audio/": "Sound"}
_PERCEIVED = {"Picture": "see", "Video": "see", "Sound": "hear", "Voice message": "hear"}
_Type = discord.MessageType
_WRITTEN = frozenset({_Type.default, _Type.reply, _Type.chat_input_command, _Type.context_menu_command})
_SYSTEM = {
    _Type.recipient_add: "{name} added {other}.",
    _Type.recipient_remove: "{name} removed {other}.",
    _Type.call: "{name} started a call.",
    _Type.channel_name_change: "{name} gave this place the name {words}.",
    _Type.channel_icon_change: "{name} changed the icon.",
    _Type.pins_add: "{name} pinned a message here.",
    _Type.new_member: "{name} joined the server.",
    _Type.premium_guild_subscription: "{name} boosted the server.",
    _Type.premium_guild_tier_1: "{name} boosted the server, which is now on level 1.",
    _Type.premium_guild_tier_2: "{name} boosted the server, which is now on level 2.",
    _Type.premium_guild_tier_3: "{name} boosted the server, which is now on level 3.",
    _Type.channel_follow_add: "{name} has messages of {words} shown here.",
    _Type.thread_created: "{name} started the thread {words}.",
    _Type.auto_moderation_action: "AutoMod stopped a message of {name}.",
    _Type.stage_start: "{name} started the stage {words}.",
    _Type.stage_end: "{name} ended the stage {words}.",
    _Type.stage_speaker: "{name} is now a speaker.",
    _Type.stage_raise_hand: "{name} asked to speak.",
    _Type.stage_topic: "{name} gave the stage the topic {words}.",
}
"""Messages of Discord itself that mean something; all others say nothing."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a message says itself, or what it forwards: blocks of text, and attachments."""

    blocks: list[str]
    attachments: list[discord.Attachment]
    is_forwarded: bool = False

    def told(self, of_attachments: Iterable[str]) -> str:
        """Return it as text, with what there is to tell of its attachments."""
        text = told([*self.blocks, *of_attachments])
        return f"Forwarded message:\n{quoted(text)}" if self.is_forwarded and text else text


def text_of(message: discord.Message, bot: Bot) -> str:
    """Return all that a message says, with its files and pictures by name; empty if it says nothing."""
    return told([part.told(map(line_of, part.attachments)) for part in parts_of(message, bot)])


def told(blocks: Iterable[str]) -> str:
    """Return blocks one below the other."""
    return "\n\n".join(block for block in blocks if block.strip())


def parts_of(message: discord.Message, bot: Bot) -> list[Part]:
    """Return what a message says itself, and what it forwards."""
    if message.type is _Type.poll_result:
        return [Part([_poll_result(message)], [])]
    if message.type not in _WRITTEN:
        return [Part([_system(message)], [])]
    names = names_of(message)
    blocks = [readable(message.content, bot, names), *_holdings(message, bot, names)]
    if message.poll is not None:
        blocks.append(_poll(message.poll))
    parts = [Part(blocks, message.attachments)]
    for one in message.message_snapshots:
        inside = [readable(one.content, bot, Names()), *_holdings(one, bot, Names())]
        parts.append(Part(inside, one.attachments, is_forwarded=True))
    return parts


def claimed_kind(attachment: discord.Attachment) -> str:
    """Return what an attachment is said to be, a picture, say; empty for what may be a text."""
    if attachment.is_voice_message():
        return "Voice message"
    claimed = attachment.content_type or ""
    return next((kind for prefix, kind in _KINDS.items() if claimed.startswith(prefix)), "")


def line_of(attachment: discord.Attachment, kind: str | None = None, *, state: str = "not opened") -> str:
    """Return the line that tells of an attachment that is not read, of its kind if that is known better."""
    kind = claimed_kind(attachment) if kind is None else kind
    if kind == "Voice message":
        return f"Voice message of {round(attachment.duration or 0)} seconds (you cannot hear it)"
    name = label(attachment.filename, MAX_FILE_NAME_CHARS)
    state = f"you cannot {_PERCEIVED[kind]} it" if kind else state
    line = f"{kind or 'File'} {name} ({state})"
    described = " ".join((attachment.description or "").split())
    return f"{line}, described as: {described}" if described else line


def _holdings(holder: discord.Message | discord.MessageSnapshot, bot: Bot, names: Names) -> Iterator[str]:
    """Give what a message or a forwarded one holds besides its words and attachments."""
    for text in _displays(holder.components):
        yield readable(text, bot, names)
    for embed in holder.embeds:
        if text := readable(_embed(embed), bot, names):
            is_alone = text == UNSEEN or (not holder.content and len(holder.embeds) == 1)
            yield text if is_alone else f"Embed:\n{quoted(text)}"
    if holder.stickers:
        yield "\n".join(f"Sticker: {label(sticker.name)}" for sticker in holder.stickers)


def _displays(components: Iterable[object]) -> Iterator[str]:
    """Give the texts of a message that is made of components."""
    for component in components:
        if isinstance(component, discord.TextDisplay):
            yield component.content
        elif isinstance(component, (discord.SectionComponent, discord.Container)):
            yield from _displays(component.children)


def _embed(embed: discord.Embed) -> str:
    lines = [
        embed.author.name,
        embed.title,
        embed.description,
        *(f"{field.name}: {field.value}" for field in embed.fields),
        embed.footer.text,
    ]
    text = "\n".join(line for line in lines if line and line.strip())
    return text or (UNSEEN if embed.image or embed.thumbnail or embed.video else "")


def _poll(poll: discord.Poll) -> str:
    lines = [f"Poll: {_one_line(poll.question)}{' (it has ended)' if poll.is_finalised() else ''}"]
    for answer in poll.answers:
        words = answer.text or "" if answer.emoji is None else f"{answer.emoji.name} {answer.text or ''}"
        votes = f" ({_votes(answer.vote_count)})" if answer.vote_count else ""
        lines.append(f"- {_one_line(words)}{votes}")
    return "\n".join(lines)


def _poll_result(message: discord.Message) -> str:
    """Return how a poll ended. Discord says so in an embed of its own kind."""
    said = {field.name: field.value or "" for embed in message.embeds for field in embed.fields}
    question, winner = said.get("poll_question_text"), said.get("victor_answer_text")
    if not question:
        return ""
    if not winner:
        return f"The poll has ended without a winner: {_one_line(question)}"
    votes = f"{said.get('victor_answer_votes', '0')} of {said.get('total_votes', '0')} votes"
    return f"The poll has ended: {_one_line(question)}\nThe winner is {_one_line(winner)}, with {votes}."


def _system(message: discord.Message) -> str:
    """Return what Discord says in a message of its own, empty for what has no meaning in words."""
    if message.type not in _SYSTEM:
        return ""
    return _SYSTEM[message.type].format(
        name=label(message.author.display_name),
        other=label(message.mentions[0].display_name if message.mentions else "somebody"),
        words=label(message.content, 100),
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _votes(num: int) -> str:
    return "1 vote" if num == 1 else f"{num} votes"
