"""From token ids to text, one token at a time.

Invariants: what was given out is always a prefix of the whole text, no character is ever given out in
part, and nothing that could still become a stop string is given out before that is decided.
"""

from __future__ import annotations

import codecs
from collections.abc import Container, Sequence


class StreamDecoder:
    """Decodes one answer. `stopped` becomes true when a stop string came; the text ends before it."""

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        stop: Sequence[str] = (),
        *,
        opening_space_ids: Container[int] = (),
    ) -> None:
        self._token_bytes = token_bytes
        self._stop = tuple(stop)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._opening_space_ids = opening_space_ids
        self._at_start = True
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Add a token; return the text that became certain, possibly none."""
        added = self._token_bytes[token_id]
        if self._at_start and added:
            self._at_start = False
            if token_id in self._opening_space_ids:
                added = added.removeprefix(b" ")
        return self._advance(self._utf8.decode(added))

    def finish(self) -> str:
        """Return what was still held back; half a character becomes U+FFFD."""
        text = self._advance(self._utf8.decode(b"", final=True))
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _advance(self, text: str) -> str:
        if self.stopped or not text:
            return ""
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


def padded(token_bytes: Sequence[bytes], vocab_size: int) -> list[bytes]:
    """Return what each of a model's ids adds to a text: nothing for the rows that only pad its embeddings.

    Nothing stops a model from choosing one of these.
    """
    return [*token_bytes, *[b""] * (vocab_size - len(token_bytes))]
