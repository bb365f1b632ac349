"""What of a model's output is its answer: without what it thinks, and without a name in front. Pure.

While the output grows, what is given is always the beginning of what is given for more of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.types import REASONING_MARKS, Reasoning

MAX_UNDECIDED = 200
"""Characters of a first line; a speech in a dialogue is shorter."""
_LABEL = re.compile(r"(?:\*\*|__)?[^\W\d_][\w'-]*(?: [\w'-]+){0,2}(?:\*\*|__)?(?::|：)(?:\*\*|__)?[ \t]*\S")
"""Begins a line in which somebody speaks."""
_FENCE = re.compile(r"^[ \t]*(?:`{3}|~{3})", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Said:
    """An output taken apart. `is_thinking`: it ends inside of what the model thinks."""

    answer: str
    thought: str = ""
    is_thinking: bool = False


def take_apart(output: str, reasoning: Reasoning | None, *, final: bool) -> Said:
    """Part what a model thinks from what it says.

    Without marks of the model's own (`reasoning`) those of all models count, at the beginning alone.
    """
    known = REASONING_MARKS if reasoning is None else (reasoning,)
    thoughts: list[str] = []
    rest = output
    if reasoning is not None and reasoning.is_open and not rest.lstrip().startswith(reasoning.opening):
        if not final and reasoning.opening.startswith(rest.lstrip()):
            return Said("", "", is_thinking=True)
        rest = reasoning.opening + rest
    while True:
        begun = rest.lstrip()
        answer = begun if thoughts else rest
        marks = next((marks for marks in known if begun.startswith(marks.opening)), None)
        if marks is None:
            break
        thought, closing, rest = begun[len(marks.opening) :].partition(marks.closing)
        thoughts.append(thought.strip())
        if not closing:
            return Said("", _joined(thoughts), is_thinking=True)
    if not final and any(marks.opening.startswith(begun) for marks in known):
        return Said("", _joined(thoughts))
    # A thought in the middle of an answer counts where the model's own marks are around it.
    while reasoning is not None and (found := _next_thought(answer, reasoning)) is not None:
        before, after = answer[: found.start()], answer[found.end() :]
        thought, closing, rest = after.partition(reasoning.closing)
        thoughts.append(thought.strip())
        if not closing:
            return Said(before.rstrip(), _joined(thoughts), is_thinking=True)
        answer = f"{before.rstrip()}\n\n{rest.lstrip()}"
    if not final and reasoning is not None:
        answer = _without_begun_mark(answer, reasoning)
    return Said(answer, _joined(thoughts))


def _next_thought(text: str, reasoning: Reasoning) -> re.Match[str] | None:
    """Find where a line begins with the mark of a thought, outside of code."""
    marks = re.finditer(rf"^[ \t]*{re.escape(reasoning.opening)}", text, re.MULTILINE)
    return next((one for one in marks if len(_FENCE.findall(text[: one.start()])) % 2 == 0), None)


def _without_begun_mark(text: str, reasoning: Reasoning) -> str:
    """Return `text` without a last line that may become a mark, and the white space before it."""
    start = text.rfind("\n") + 1
    line = text[start:].strip()
    return text[:start].rstrip() if start and reasoning.opening.startswith(line) else text


def _joined(thoughts: Sequence[str]) -> str:
    return "\n\n".join(filter(None, thoughts))


def without_name(answer: str, names: Sequence[str], *, final: bool) -> str:
    """Return an answer without one of `names` and a colon in front, where no dialogue begins with it."""
    marked = [
        mark for name in names if name for mark in (f"**{name}:**", f"**{name}**:", f"{name}:", f"{name}：")
    ]
    text = answer.lstrip()
    mark = next((mark for mark in marked if text.startswith(mark)), None)
    if mark is None:
        is_begun = not final and any(mark.startswith(text) for mark in marked)
        return "" if is_begun else answer
    speech = text[len(mark) :].lstrip()
    first_line, _, others = speech.partition("\n")
    if len(first_line) > MAX_UNDECIDED:
        return speech
    following = others.lstrip()
    if _LABEL.match(following):
        return answer
    is_sure = final or "\n" in following or len(following) > MAX_UNDECIDED
    return speech if is_sure else ""
