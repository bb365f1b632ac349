"""What `/help` and `/privacy` say. Pure."""

from __future__ import annotations

from engine.types import ModelInfo

_HELP = """\
I answer when you mention me, reply to me or write to me directly. Answers are made by a language model \
({model}) that runs on my own host; they can be wrong.
- Each channel, thread and direct message is a conversation of its own, and I remember it until it is reset.
- **Stop** and **Regenerate** below an answer are for the person who asked, and for moderators.
- `/settings show` and `/system show` tell how answers are made here; moderators can change that.
- `/reset` (moderators) makes me forget this conversation. `/privacy` tells what I keep."""

_PRIVACY = """\
**What I keep:** the messages that are meant for me (mentions, replies to me, direct messages) with their \
author's id and display name and the time, my answers, and the settings of a conversation. I never see or \
keep other messages.
**Where:** in one database on the host that runs me. The model runs there too; no text is sent to any other \
service, and nothing is used for training. Logs hold no text of messages.
**How long:** until the message is deleted on Discord (then the answer to it is forgotten too) or the \
conversation is forgotten with `/reset`, which you can use yourself in a direct message."""


_BASE_MODEL = """

**The model here is a base model: it only continues text and cannot hold a conversation.** Whoever runs me \
needs to choose a fine-tuned one."""


def help_text(info: ModelInfo) -> str:
    """Return what `/help` says."""
    return _HELP.format(model=info.name) + (_BASE_MODEL if info.chat_format is None else "")


def privacy_text() -> str:
    """Return what `/privacy` says."""
    return _PRIVACY
