"""Which of a bot's servers are one process's own. Discord deals them out by their ids: that is a shard.

Direct messages belong to the first shard. Pure; the condition that it gives holds for every dialect of SQL.
"""

from __future__ import annotations

from dataclasses import dataclass

_SHIFT = 22
"""Ids of Discord hold milliseconds above so many bits."""


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards from `first` to `last`, both included, of `count`."""

    first: int = 0
    last: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last < self.count:
            raise ValueError("There are no such shards.")

    def __str__(self) -> str:
        """Return them as people write them, like `0-3/16`."""
        return f"{self.first}{'' if self.first == self.last else f'-{self.last}'}/{self.count}"

    def __len__(self) -> int:
        """Return how many there are."""
        return self.last - self.first + 1

    @property
    def ids(self) -> range:
        """Their numbers."""
        return range(self.first, self.last + 1)

    @property
    def are_all(self) -> bool:
        """Whether no other process has any."""
        return len(self) == self.count

    @property
    def have_direct_messages(self) -> bool:
        """Whether what people write to the bot itself is for this process."""
        return self.first == 0

    def has(self, guild_id: int | None) -> bool:
        """Tell whether a server is ours; None is a direct message."""
        return shard_of(guild_id, self.count) in self.ids

    def condition(self, column: str) -> str:
        """Return a condition on a column with ids of servers, NULL for direct messages. All: it is true."""
        if self.are_all:
            return "1 = 1"
        return f"(COALESCE({column}, 0) >> {_SHIFT}) % {self.count} BETWEEN {self.first} AND {self.last}"


def shard_of(guild_id: int | None, count: int) -> int:
    """Return the shard that a server, or with None a direct message, belongs to."""
    return 0 if guild_id is None else (guild_id >> _SHIFT) % count


EVERYTHING = Shards()
"""What the only process of a bot has."""
