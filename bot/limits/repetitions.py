"""The guard against loops: the same text from the same person in the same place, again and again.

Bots and webhooks are never answered; this ends what still goes in circles, as two programs that use a
person's account do. Keeps digests only. Pure, with a clock from outside; bounded memory.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable

MAX_TIMES = 5
WINDOW_S = 60.0
MAX_TEXTS = 10_000


class Repetitions:
    """Counts how often a text came lately."""

    def __init__(self, clock: Callable[[], float], *, max_texts: int = MAX_TEXTS) -> None:
        self._clock = clock
        self._max_texts = max_texts
        self._seen: OrderedDict[bytes, tuple[float, ...]] = OrderedDict()
        """By digest, when the text came, at most `MAX_TIMES` times."""

    def is_loop(self, user_id: int, channel_id: int, text: str) -> bool:
        """Count one more coming of `text`; tell whether it came too often within the window."""
        words = " ".join(text.casefold().split())
        key = hashlib.blake2b(f"{user_id} {channel_id} {words}".encode("utf-8", "replace")).digest()
        now_s = self._clock()
        times = tuple(at_s for at_s in self._seen.get(key, ()) if now_s - at_s < WINDOW_S)
        is_loop = len(times) >= MAX_TIMES
        self._seen[key] = (*times, now_s)[-MAX_TIMES:]
        self._seen.move_to_end(key)
        if len(self._seen) > self._max_texts:
            self._seen.popitem(last=False)
        return is_loop
