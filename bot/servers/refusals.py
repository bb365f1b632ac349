"""Why a question is not taken: each refusal with its sentence, and how often it is worth saying.

ChatError
└── RefusalError
    ├── OptedOutError        this person wants no answers
    ├── BlockedError         moderators blocked this person here
    ├── NotHereError         not in this channel, or not for this person
    ├── RateLimitedError     asked too much; says when to ask again
    ├── RepeatedError        the same text again and again: a loop
    └── ForbiddenTextError   the server's lists do not allow the text
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from bot.errors import ChatError
from bot.language.phrases import phrase


class RefusalError(ChatError):
    """A question is not taken. `quiet_s`: for so long the same person is not told the same in public."""

    quiet_s = 10.0


class OptedOutError(RefusalError):
    """This person wants no answers."""

    quiet_s = 3600.0

    def __init__(self) -> None:
        super().__init__(phrase("opt.refused"))


class BlockedError(RefusalError):
    """Moderators blocked this person here."""

    quiet_s = 3600.0

    def __init__(self) -> None:
        super().__init__(phrase("refusals.blocked"))


class NotHereError(RefusalError):
    """Not in this channel, or not for this person."""

    quiet_s = 60.0


class RateLimitedError(RefusalError):
    """Asked too much."""

    def __init__(self, wait_s: float, *, is_server: bool) -> None:
        self.wait_s = wait_s
        self.quiet_s = min(wait_s, 30.0)
        key = "refusals.server_rate" if is_server else "refusals.user_rate"
        super().__init__(phrase(key, seconds=max(1, math.ceil(wait_s))))


class RepeatedError(RefusalError):
    """The same text again and again."""

    quiet_s = 600.0

    def __init__(self) -> None:
        super().__init__(phrase("refusals.repeated"))


class ForbiddenTextError(RefusalError):
    """The server's lists do not allow the text."""

    def __init__(self) -> None:
        super().__init__(phrase("refusals.text"))


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
