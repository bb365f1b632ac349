"""The setting SHARDS: which of the bot's servers a process is to have. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from storage.shards import Shards

MAX_SHARDS = 16_384
_RULE = (
    "must be like 0-3/16 (these four shards of sixteen), 5/16 (that one), or 4 of 16 (any four that no"
    " other process has)"
)
_FIXED = re.compile(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*/\s*(\d{1,5})")
_ANY = re.compile(r"(\d{1,5})\s*of\s*(\d{1,5})")


@dataclass(frozen=True, slots=True)
class ShardChoice:
    """Certain shards, or with `first` None any `size` that are free."""

    size: int = 1
    count: int = 1
    first: int | None = 0

    @property
    def is_fixed(self) -> bool:
        """Whether only certain ones will do."""
        return self.first is not None

    @property
    def are_all(self) -> bool:
        """Whether nothing is left for other processes."""
        return self.size == self.count

    @property
    def needs_postgres(self) -> str:
        """The sentence for whoever wants some of all shards with a database in a file."""
        return (
            "A database in a file belongs to one process, which has all shards: set"
            f" SHARDS=0-{self.count - 1}/{self.count}, or set DATABASE to the address of a PostgreSQL server"
            " for several processes."
        )

    def candidates(self) -> Iterator[Shards]:
        """Give the ranges of which one will do. They do not overlap: no shard is left over between them."""
        if self.first is not None:
            yield Shards(self.first, self.first + self.size - 1, self.count)
            return
        for first in range(0, self.count, self.size):
            yield Shards(first, min(first + self.size, self.count) - 1, self.count)


def read_shards(written: str) -> ShardChoice:
    """Return what SHARDS says. Raises `ValueError` with the rule."""
    if (fixed := _FIXED.fullmatch(written)) is not None:
        first, count = int(fixed[1]), int(fixed[3])
        last = first if fixed[2] is None else int(fixed[2])
        if first <= last < count <= MAX_SHARDS:
            return ShardChoice(last - first + 1, count, first)
        raise ValueError(f"{_RULE}; shards are counted from 0, and the last one here is {count - 1}")
    if (some := _ANY.fullmatch(written)) is not None:
        size, count = int(some[1]), int(some[2])
        if 0 < size <= count <= MAX_SHARDS:
            return ShardChoice(size, count, None)
    raise ValueError(_RULE)
