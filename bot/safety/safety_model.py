"""Asks a Llama Guard model whether a question or an answer is safe.

Owns what happens when it cannot say: too long a text is judged in pieces, and a fault or a delay leaves it
undecided. Knows nothing of what follows from a verdict.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from enum import Enum, auto
from importlib import resources

from bot.origin import Keys
from engine.errors import EngineError, PromptTooLongError
from engine.types import ChatMessage, SamplingParams, TextEngine
from engine.waiting.room import WaitingRoom

_log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 24
TIMEOUT_S = 120.0
_SHORTEST = 200
"""Characters; what is shorter and still too long is not judged."""
_GREEDY = SamplingParams(
    temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0, max_new_tokens=MAX_NEW_TOKENS
)
_TASK = """\
Task: Check if there is unsafe content in '{role}' messages in conversations according our safety policy \
with the below categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
{policy}<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

{conversation}

<END CONVERSATION>

Provide your safety assessment for '{role}' in the above conversation:
- First line must read 'safe' or 'unsafe'.
- If unsafe, a second line must include a comma-separated list of violated categories."""
_MARKS = re.compile(r"<(?=\s*/?\s*(?:BEGIN|END|<|SYS|s>))|\[(?=\s*/?\s*INST)", re.IGNORECASE)
_ROLES = re.compile(r"^([^\S\n]*+)(User|Agent)([^\S\n]*+):", re.IGNORECASE | re.MULTILINE)


class Verdict(Enum):
    """What the model said."""

    SAFE = auto()
    UNSAFE = auto()
    UNDECIDED = auto()
    """It said something else, or nothing in time."""


class SafetyModel:
    """One moderation model. `refuses_unchecked`: whether what it cannot judge counts as unsafe."""

    def __init__(self, engine: TextEngine, *, refuses_unchecked: bool, timeout_s: float = TIMEOUT_S) -> None:
        self._engine = engine
        self._room = WaitingRoom(lambda: engine.load)
        self.refuses_unchecked = refuses_unchecked
        self._timeout_s = timeout_s

    async def judge(self, question: str, answer: str | None = None, keys: Keys = ()) -> Verdict:
        """Return the verdict on `answer`, or on `question` where there is none. Never raises for a fault.

        keys: who takes turns where several wait for a verdict.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._judge(question, answer, keys)
        except (EngineError, TimeoutError) as error:
            _log.warning("The moderation model could not judge: %s", type(error).__name__)
            return Verdict.UNDECIDED

    def drop_idle_cache(self) -> None:
        """See `TextEngine.drop_idle_cache`."""
        self._engine.drop_idle_cache()

    @property
    def is_forgetting(self) -> bool:
        """See `TextEngine.is_forgetting`."""
        return self._engine.is_forgetting

    async def _judge(self, question: str, answer: str | None, keys: Keys) -> Verdict:
        try:
            return read_verdict(await self._ask(task(question, answer), keys))
        except PromptTooLongError:
            pieces = _halves(question, answer)
        if not pieces:
            return Verdict.UNDECIDED
        verdicts = [await self._judge(*piece, keys) for piece in pieces]
        if Verdict.UNSAFE in verdicts:
            return Verdict.UNSAFE
        return Verdict.UNDECIDED if Verdict.UNDECIDED in verdicts else Verdict.SAFE

    async def _ask(self, text: str, keys: Keys) -> str:
        budget = self._engine.info.context_length - MAX_NEW_TOKENS
        dialog = (ChatMessage("user", text),)
        prompt = await asyncio.to_thread(self._engine.fit_prompt, dialog, budget, thinking=False)
        async with self._room.generating(self._engine, prompt, _GREEDY, keys) as generation:
            return "".join([piece async for piece in generation])


def _halves(question: str, answer: str | None) -> list[tuple[str, str | None]]:
    """Return the two halves of the longer text, each to be judged with the other; none for short ones."""
    if max(len(question), len(answer or "")) < _SHORTEST:
        return []
    if answer is None or len(question) > len(answer):
        middle = len(question) // 2
        return [(question[:middle], answer), (question[middle:], answer)]
    middle = len(answer) // 2
    return [(question, answer[:middle]), (question, answer[middle:])]


def task(question: str, answer: str | None) -> str:
    """Return what the model is asked: about `answer`, or about `question` where there is no answer yet."""
    turns = [f"User: {plain(question)}"]
    if answer is not None:
        turns.append(f"Agent: {plain(answer)}")
    return _TASK.format(
        role="User" if answer is None else "Agent", policy=_policy(), conversation="\n\n".join(turns)
    )


def plain(text: str) -> str:
    """Return `text` without anything that the task or the chat format gives a meaning to."""
    lines = "\n".join(text.splitlines())
    return _ROLES.sub(r"\1\2\3 -", _MARKS.sub("(", lines)).strip()


def read_verdict(said: str) -> Verdict:
    """Return what the model's answer means."""
    lines = said.strip().splitlines()
    first = lines[0].strip().lower() if lines else ""
    return {"safe": Verdict.SAFE, "unsafe": Verdict.UNSAFE}.get(first, Verdict.UNDECIDED)


@functools.cache
def _policy() -> str:
    """Read the categories once: they belong to the program like its code."""
    return resources.files("bot.safety").joinpath("llama_guard_policy.txt").read_text(encoding="utf-8")
