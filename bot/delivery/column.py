"""What the answers in one channel share: how often messages are edited there, and the order they stand in.

Discord counts the edits of a channel. The parts of an answer stand together: while it may need more messages,
no answer below it sends one, and what was sent below it already goes, to come anew later. Times are values
it is given. Knows nothing of Discord and of how answers are shown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakSet, WeakValueDictionary

from bot.delivery.budget import RequestBudget
from bot.tasks import Pause

EDIT_INTERVAL_S = 1.3
"""Between two edits of one message: fewer than five in five seconds."""
MAX_EDITS = 4
WINDOW_S = 5.2
"""A little more than the five seconds in which Discord takes five: not all requests are equally fast."""
MAX_DELETED = 4096
"""Messages that we deleted ourselves and know of."""


class ChannelPace:
    """When the next edit in one channel may be."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=MAX_EDITS)

    @property
    def free_at_s(self) -> float:
        """From when on one more edit is allowed."""
        return self._times_s[0] + WINDOW_S if len(self._times_s) == MAX_EDITS else 0.0

    def edits_at(self, at_s: float) -> None:
        """Count an edit."""
        self._times_s.append(at_s)

    def has_room(self, at_s: float) -> bool:
        """Tell whether edits that matter little may be made: answers themselves leave half of them."""
        return sum(at_s - edited_s < WINDOW_S for edited_s in self._times_s) < MAX_EDITS // 2


class Shown(Protocol):
    """An answer that is being shown. Answers stand in the order of their ids."""

    @property
    def answer_id(self) -> int:
        """Which answer."""

    @property
    def part_ids(self) -> Sequence[int]:
        """The messages that show it."""

    @property
    def may_grow(self) -> bool:
        """Whether it may need more messages, which are to stand below those it has."""

    @property
    def can_move(self) -> bool:
        """Whether its messages may go and come again below others'."""

    async def withdraw(self) -> None:
        """Delete its messages, to send them anew."""

    def give_way(self) -> None:
        """Show nothing more: another one shows something else in the same messages."""


class Column:
    """The answers that are being shown in one channel, one below the other."""

    def __init__(self, crowd_interval_s: Callable[[], float] = lambda: 0.0) -> None:
        """`crowd_interval_s`: what is to be between two edits of an answer that grows, so many others do."""
        self.pace = ChannelPace()
        self.crowd_interval_s = crowd_interval_s
        self._shown: WeakSet[Shown] = WeakSet()  # whoever is dropped on the way holds up nobody
        self._pause = Pause()

    @property
    def num_shown(self) -> int:
        """How many answers are being shown."""
        return len(self._shown)

    def enter(self, one: Shown) -> None:
        """Take part; whoever uses the same messages gives way."""
        for other in tuple(self._shown):
            if set(other.part_ids) & set(one.part_ids):
                other.give_way()
        self._shown.add(one)

    def leave(self, one: Shown) -> None:
        """Take part no longer."""
        self._shown.discard(one)
        self.moved()

    def has(self, one: Shown) -> bool:
        """Tell whether `one` takes part."""
        return one in self._shown

    def moved(self) -> None:
        """Have all look again whether they may go on."""
        self._pause.end()

    def is_below_others(self, one: Shown) -> bool:
        """Tell whether an answer above `one` has not ended."""
        return any(other.answer_id < one.answer_id for other in self._shown)

    def is_held(self, one: Shown) -> bool:
        """Tell whether `one` may send nothing yet, because what stands above it may need more messages."""
        return any(other.may_grow for other in self._shown if other.answer_id < one.answer_id)

    async def wait(self, longest_s: float) -> None:
        """Wait until something has moved."""
        await self._pause.wait(longest_s)

    async def make_room(self, one: Shown) -> None:
        """Take away what stands below `one` and can come again later. Raises what `withdraw` raises."""
        below = [other for other in self._shown if other.answer_id > one.answer_id]
        for other in sorted(below, key=lambda other: other.answer_id):
            if other.can_move and other.part_ids:
                await other.withdraw()


class Columns:
    """The column of each channel for as long as somebody holds it, and the messages that we took away."""

    def __init__(self, budget: RequestBudget | None = None) -> None:
        self._budget = budget or RequestBudget()
        self._columns: WeakValueDictionary[int, Column] = WeakValueDictionary()
        self._deleted: dict[int, None] = {}

    def of(self, channel_id: int) -> Column:
        """Return the one column of a channel."""
        column = self._columns.get(channel_id)
        if column is None:
            column = self._columns[channel_id] = Column(self._crowd_interval_s)
        return column

    @property
    def num_shown(self) -> int:
        """How many answers are being shown, in all channels."""
        return sum(column.num_shown for column in self._columns.values())

    def _crowd_interval_s(self) -> float:
        return self._budget.interval_s(self.num_shown)

    def delete(self, discord_id: int) -> None:
        """Note that we delete a message: that it goes is nobody's wish to forget what it says."""
        self._deleted[discord_id] = None
        while len(self._deleted) > MAX_DELETED:
            del self._deleted[next(iter(self._deleted))]

    def is_deleted(self, discord_id: int) -> bool:
        """Tell whether it was us who deleted a message, or tried to."""
        return discord_id in self._deleted

    def __len__(self) -> int:
        """Return how many columns there are."""
        return len(self._columns)
