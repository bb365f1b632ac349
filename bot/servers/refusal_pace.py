"""How often the same person is told the same refusal in public, so that refusals are no spam. Pure.

Bounded memory; its clock comes from outside.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from bot.servers.refusals import RefusalError

MAX_KEPT = 10_000


class RefusalPace:
    """Remembers what was said lately."""

    def __init__(self, clock: Callable[[], float], *, max_kept: int = MAX_KEPT) -> None:
        self._clock = clock
        self._max_kept = max_kept
        self._quiet_until_s: OrderedDict[tuple[int, int, str], float] = OrderedDict()

    def may_tell(self, user_id: int, guild_id: int | None, refusal: RefusalError) -> bool:
        """Tell whether to answer with `refusal`, and if so count it as said."""
        key = (user_id, guild_id or 0, type(refusal).__name__)
        now_s = self._clock()
        if self._quiet_until_s.get(key, now_s) > now_s:
            return False
        self._quiet_until_s[key] = now_s + refusal.quiet_s
        self._quiet_until_s.move_to_end(key)
        if len(self._quiet_until_s) > self._max_kept:
            self._quiet_until_s.popitem(last=False)
        return True
