"""What the files that hold a tokenizer have in common, whatever their format."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the trained ones. What is not `special` is meant to be found in text."""

    token_id: int
    text: str
    special: bool


class TokenizerFile(Protocol):
    """The tokenizer in one file of somebody's."""

    file_name: str
    kind: str
    """As `TokenizerSpec` has it."""

    @property
    def ids(self) -> dict[str, int]:
        """Return the ids of all tokens by their written form."""

    @property
    def added(self) -> Collection[AddedToken]:
        """Return the tokens that are not of the trained text, whoever added them."""

    def save(self, path: Path, control: Collection[int]) -> None:
        """Write a file in which no text becomes one of the tokens `control`."""
