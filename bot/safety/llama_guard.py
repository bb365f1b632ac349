"""The prompt of Llama Guard, and how its answer is read. Pure.

The task and the categories are those that Meta published with Llama Guard 7B (December 2023), which was
trained on them. What people wrote goes in as plain text that can neither end the conversation nor speak for
a role.
"""

from __future__ import annotations

import functools
import re
from enum import Enum, auto
from importlib import resources

MAX_NEW_TOKENS = 24

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
