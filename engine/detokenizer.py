"""From token ids to text, one token at a time.

Invariants: what was given out is always a prefix of the whole text, no character is ever given out in
part, and nothing that could still become a stop string is given out before that is decided.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class StreamDecoder:
    """Decodes one answer. `stopped` becomes true when a stop string came; the text ends before it."""

    def __init__(
        self, token_bytes: Sequence[bytes], stop: Sequence[str] = (), *, strips_first_space: bool = False
    ) -> None:
        self._token_bytes = token_bytes
        self._stop = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip_next = strips_first_space
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token; return the text that became certain, possibly none."""
        return self._advance(self._utf8.decode(self._token_bytes[token_id]))

    def finish(self) -> str:
        """Return what was still held back; half a character becomes U+FFFD."""
        text = self._advance(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _advance(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if self._strip_next:
            text, self._strip_next = text.removeprefix(" "), False
        self._held += text
        cut = min((at for at in map(self._held.find, self._stop) if at >= 0), default=-1)
        if cut >= 0:
            self.stopped = True
        else:
            cut = len(self._held) - self._num_undecided()
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready

    def _num_undecided(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stop):
                return size
        return 0
