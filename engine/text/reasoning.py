"""How models mark what they think before they answer. Pure."""

from __future__ import annotations

from engine.types import Reasoning

KNOWN = (
    Reasoning("<think>", "</think>"),
    Reasoning("<thinking>", "</thinking>"),
    Reasoning("<thought>", "</thought>"),
    Reasoning("<reasoning>", "</reasoning>"),
    Reasoning("<reflection>", "</reflection>"),
    Reasoning("<seed:think>", "</seed:think>"),
    Reasoning("<|begin_of_thought|>", "<|end_of_thought|>"),
    Reasoning("[THINK]", "[/THINK]"),
)
"""The marks of published models, which count at the beginning of an answer whatever its model says."""


def marks_in(template: str) -> tuple[str, ...]:
    """Return the two marks that a chat template speaks of, nothing where it knows none."""
    known = (marks for marks in KNOWN if marks.closing in template)
    return next(((marks.opening, marks.closing) for marks in known), ())


def is_open_after(prompt: str, marks: tuple[str, ...]) -> bool:
    """Tell whether a prompt ends inside a block of thinking, which the answer then goes on with."""
    opening, closing = marks
    return prompt.rfind(opening) > prompt.rfind(closing)
