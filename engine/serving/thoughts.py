"""Parts what a model thinks from what it says, as the answer grows. Pure.

Thoughts stand at the beginning of an answer, between the marks of its model; a mark anywhere else is text.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.types import Reasoning


class Parted(NamedTuple):
    """More of an answer: what is thought in it and what is said."""

    thought: str = ""
    said: str = ""


class Thoughts:
    """One growing answer. Without `marks` all of it is said."""

    def __init__(self, marks: Reasoning | None) -> None:
        self._marks = marks
        self._held = ""
        """What is not given out yet: it may be white space at an end, or become a mark."""
        self._may_open = marks is not None
        self._is_thinking = marks is not None and marks.is_open
        self._is_begun = False
        """Whether anything of the running thought is given out."""
        self._is_behind = False
        """Whether a thought has ended: white space behind it is no part of what is said."""

    def add(self, piece: str) -> Parted:
        """Return what is certain once `piece` is there."""
        if self._marks is None or not (self._may_open or self._is_thinking):
            return Parted("", piece)
        self._held += piece
        thoughts: list[str] = []
        while self._may_open or self._is_thinking:
            if self._may_open and not self._has_opened(self._marks.opening):
                return Parted("".join(thoughts))
            if not self._is_thinking:
                break
            thought, is_closed = self._more_thought(self._marks.closing)
            thoughts.append(thought)
            if not is_closed:
                return Parted("".join(thoughts))
            self._is_thinking, self._is_begun = False, False
            self._may_open = self._is_behind = True
        said, self._held = self._held, ""
        return Parted("".join(thoughts), said)

    def end(self) -> Parted:
        """Return what was held back: nothing follows."""
        rest, self._held = self._held, ""
        if self._is_thinking:
            return Parted(rest.rstrip() if self._is_begun else rest.strip())
        return Parted("", rest.lstrip() if self._is_behind else rest)

    def _has_opened(self, opening: str) -> bool:
        """Tell whether it is known if a thought begins here, and take its mark away."""
        begun = self._held.lstrip()
        if begun.startswith(opening):
            self._held, self._is_thinking = begun[len(opening) :], True
        elif opening.startswith(begun):
            return False
        elif self._is_behind:
            self._held = begun
        self._may_open = False
        return True

    def _more_thought(self, closing: str) -> tuple[str, bool]:
        """Take out what is certainly thought; tell whether that is all of it."""
        thought, mark, rest = self._held.partition(closing)
        if mark:
            self._held = rest
            thought = thought.rstrip()
        else:
            begun = next(
                (size for size in range(len(closing) - 1, 0, -1) if thought.endswith(closing[:size])), 0
            )
            certain = thought[: len(thought) - begun].rstrip()
            self._held, thought = thought[len(certain) :], certain
        if not self._is_begun:
            thought = thought.lstrip()
            self._is_begun = bool(thought)
        return thought, bool(mark)
