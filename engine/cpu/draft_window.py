"""One run over neighbouring slots that computes several tokens of each: where that fits and pays. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.cpu.kv_slots import KVSlots
from engine.runtime.speculation import MAX_ROWS

_ROWS_OF_A_RUN = 8
"""A run takes about as long as so many rows of it, beside these."""


@dataclass(frozen=True, slots=True)
class DraftWindow:
    """The slots from `first` on: as many ids of each, how many tokens it holds, how many ids are its own.

    The other ids fill up. Like the fillers of any step they write behind what a slot holds, a page at most.
    """

    first: int
    ids: Sequence[Sequence[int]]
    lengths: Sequence[int]
    wanted: Sequence[int]

    @classmethod
    def over(cls, slots: KVSlots, own: Mapping[int, Sequence[int]]) -> DraftWindow:
        """Return the window over the slots that have ids of their `own`."""
        window, num = range(min(own), max(own) + 1), max(map(len, own.values()))
        filled = [[*own.get(slot, ()), *[0] * (num - len(own.get(slot, ())))] for slot in window]
        wanted = [len(own.get(slot, ())) for slot in window]
        return cls(window[0], filled, [len(slots[slot].ids) for slot in window], wanted)

    def fits(self, page_tokens: int, max_tokens: int) -> bool:
        """Tell whether it writes no more than a page behind any slot, and none comes to hold too much."""
        num = len(self.ids[0])
        return num <= page_tokens and max(self.lengths) + num <= max_tokens and sum(self.wanted) <= MAX_ROWS

    @property
    def pays(self) -> bool:
        """Whether it computes less than a run for each draft and one for all slots without would."""
        num_runs = sum(number > 1 for number in self.wanted) + (1 in self.wanted)
        num_rows = len(self.ids) * len(self.ids[0])
        return num_runs > 1 and num_rows <= min(MAX_ROWS, sum(self.wanted) + _ROWS_OF_A_RUN * (num_runs - 1))
