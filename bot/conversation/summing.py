"""Sums up what the model no longer sees of a conversation, so that it does not just fall off.

Only what was said in the conversation itself goes into it, and it is screened as an answer is. Knows nothing
of when there is time for that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from bot.conversation.dialog import spoken, take_apart
from bot.conversation.mentions import label
from bot.conversation.prompting import last_view, place_of
from bot.errors import WithheldError
from bot.origin import Origin
from bot.servers.screening import Screening
from bot.tasks import Tasks
from engine.errors import PromptError, PromptTooLongError
from engine.types import (
    SUM_UP,
    SUM_UP_REQUEST,
    ChatMessage,
    FinishReason,
    Generation,
    ModelInfo,
    Prompt,
    SamplingParams,
    TextEngine,
)
from engine.waiting.room import WaitingRoom
from storage.conversations import ConversationRef, Message, Role
from storage.summaries import Summary

_log = logging.getLogger(__name__)

MAX_TOKENS = 192
"""Of a summary."""
MAX_THOUGHT = 768
"""Tokens that a model may think before, if it cannot be told not to: a sum needs no thought."""
MAX_MESSAGE_CHARS = 1500
"""What is read of one message."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A summary that is made and not yet kept. of: the messages that are in it."""

    conversation_id: int
    of: tuple[Message, ...]
    until_id: int
    content: str


def sum_tokens(info: ModelInfo, most: int) -> int:
    """Return how many tokens a sum of at most `most` may take, with what a model cannot help thinking."""
    return min(most + (MAX_THOUGHT if info.always_thinks else 0), info.context_length // 2)


def unsummed(history: Sequence[Message], summaries: Sequence[Summary]) -> list[Message]:
    """Return what was let go of a history and not summed up yet, oldest first."""
    view_from = last_view(history)
    done = max((summary.until_id for summary in summaries), default=0)
    return [message for message in history if done <= place_of(message) < view_from]


class Summing:
    """Makes summaries with one engine."""

    def __init__(self, engine: TextEngine, room: WaitingRoom, screening: Screening | None) -> None:
        self._engine = engine
        self._room = room
        self._screening = screening

    @property
    def _max_new_tokens(self) -> int:
        return sum_tokens(self._engine.info, MAX_TOKENS)

    async def draft(
        self, conversation_id: int, ref: ConversationRef, let_go: Sequence[Message], until_id: int
    ) -> Draft | None:
        """Sum up what was let go before a message; None as soon as somebody asks.

        It is empty where it must not be shown.
        """
        fitted = await asyncio.to_thread(self._fit, let_go)
        made = None if fitted is None else await self._made(fitted[1])
        if fitted is None or made is None:
            return None
        said = take_apart(made, self._engine.info.reasoning_when(False), final=True).answer
        content = await self._screened(conversation_id, ref, said.strip())
        return Draft(conversation_id, tuple(fitted[0]), until_id, content)

    async def _made(self, prompt: Prompt) -> str | None:
        """Return what the model says, None as soon as somebody asks."""
        params = SamplingParams(temperature=0.0, max_new_tokens=self._max_new_tokens)
        wanted = asyncio.Event()
        generating = self._room.generating(self._engine, prompt, params, give_way=wanted.set)
        async with generating as generation, Tasks() as tasks:
            tasks.start(_cancel_when(wanted, generation), "giving way")
            async for _ in generation:
                pass
        completion = generation.completion
        if completion is None or completion.finish_reason is FinishReason.CANCELLED:
            return None
        return completion.text

    def _fit(self, let_go: Sequence[Message]) -> tuple[list[Message], Prompt] | None:
        """Return the newest messages that can be summed up at once, and the prompt for that."""
        messages = [message for message in let_go if self._engine.is_safe(_line(message))]
        max_tokens = self._engine.info.context_length - self._max_new_tokens
        while messages:
            request = "\n\n".join((SUM_UP_REQUEST, *map(_line, messages)))
            try:
                dialog = (ChatMessage("system", SUM_UP), ChatMessage("user", request))
                return messages, self._engine.fit_prompt(dialog, max_tokens, thinking=False)
            except PromptTooLongError:
                messages = messages[len(messages) // 4 + 1 :]
            except PromptError:
                break
        return None

    async def _screened(self, conversation_id: int, ref: ConversationRef, text: str) -> str:
        """Return what may be kept of a summary: nothing where an answer like that would not be shown."""
        if self._screening is None:
            return text
        origin = Origin(0, ref.channel_id, ref.guild_id)
        screen = await self._screening.open(conversation_id, None, origin)
        try:
            await screen.check_question(SUM_UP_REQUEST)
            return (await screen.finished(text)).strip()
        except WithheldError:
            return ""


async def _cancel_when(wanted: asyncio.Event, generation: Generation) -> None:
    await wanted.wait()
    generation.cancel()


def _line(message: Message) -> str:
    name = label(message.author_name) if message.role is Role.USER else "Assistant"
    return f"{name}: {spoken(message)[:MAX_MESSAGE_CHARS]}"
