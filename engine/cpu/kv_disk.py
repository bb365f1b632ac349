"""KV that memory has no room for, on disk: which tokens' KV lies in which block of a file, and the file.

A block holds the KV of `BLOCK_TOKENS` tokens in a row, and is found under these tokens and the block before
it. Tokens are compared, never a hash alone. The file has no name, and only this process can read it; it is
gone with the process. Nothing is read that is not asked for, and what was deleted is cut off at once.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from engine.runtime.model_folder import DiskRoom

BLOCK_TOKENS = 32
"""As much as is read and written at once: 0.7 MiB of SmolLM2-135M in few bits, 16 MiB of Llama 2 7B."""
_ROOT = 0
_MAX_PIECES = 512
"""Of memory, in one call of the system, which may refuse more than 1,024."""

_Key = tuple[int, tuple[int, ...]]


@runtime_checkable
class InPieces(Protocol):
    """KV memory that can be written to a file as it lies there."""

    def pieces(self, slot: int, first: int, end: int) -> list[npt.NDArray[Any]]:
        """Return the memory of a slot's tokens `first` to `end` in contiguous pieces, always in one order."""


@dataclass(slots=True)
class _Block:
    """Where a block lies in the file, and what blocks that build on it call it."""

    place: int
    identity: int


@dataclass(slots=True)
class DiskBlocks:
    """The bookkeeping: it holds token ids, not tensors.

    The least recently used block goes first, and none before those that build on it.
    """

    num_blocks: int
    block_size: int = BLOCK_TOKENS
    _kept: OrderedDict[_Key, _Block] = field(default_factory=OrderedDict, init=False)
    """The least recently used first, each behind all that build on it."""
    _free: list[int] = field(default_factory=list, init=False)
    _identities: count[int] = field(default_factory=lambda: count(_ROOT + 1), init=False)

    def __post_init__(self) -> None:
        self.clear()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, ids: Sequence[int]) -> list[int]:
        """Return the places of the blocks with which `ids` begins, in order; they are used now."""
        chain = list(self._chain(ids))
        for key in reversed(chain):
            self._kept.move_to_end(key)
        return [self._kept[key].place for key in chain]

    def add(self, ids: Sequence[int]) -> int | None:
        """Return the place for the last block of `ids`, all others of which are kept, and only whole ones.

        None where they alone take all the room.
        """
        *_, parent = _ROOT, *(self._kept[key].identity for key in self._chain(ids[: -self.block_size]))
        if not self._free:
            oldest = next(iter(self._kept), None)
            if oldest is None or oldest in set(self._chain(ids)):
                return None
            self._free.append(self._kept.pop(oldest).place)
        block = _Block(self._free.pop(), next(self._identities))
        self._kept[parent, tuple(ids[-self.block_size :])] = block
        self.find(ids)
        return block.place

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._free = list(reversed(range(self.num_blocks)))

    def check(self) -> None:
        """Raise `RuntimeError` where a place is given twice or lost."""
        places = [*self._free, *(block.place for block in self._kept.values())]
        if sorted(places) != list(range(self.num_blocks)):
            raise RuntimeError("The books of the KV on disk are wrong.")

    def _chain(self, ids: Sequence[int]) -> Iterator[_Key]:
        identity = _ROOT
        for start in range(0, len(ids) - self.block_size + 1, self.block_size):
            key = (identity, tuple(ids[start : start + self.block_size]))
            if key not in self._kept:
                return
            yield key
            identity = self._kept[key].identity


class KVDisk:
    """Blocks of KV in a file. One thread only. Each act may raise `OSError`."""

    def __init__(self, room: DiskRoom, memory: InPieces) -> None:
        """Make the file, which has no name and grows as it is written. Raises `OSError`."""
        self._memory = memory
        self._block_bytes = sum(piece.nbytes for piece in memory.pieces(0, 0, BLOCK_TOKENS))
        self._blocks = DiskBlocks(room.num_bytes // self._block_bytes)
        room.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=room.folder, buffering=0)  # noqa: SIM115 - it lives as long as we
        weakref.finalize(self, self._file.close)

    @property
    def max_tokens(self) -> int:
        """Tokens whose KV there is room for."""
        return self._blocks.num_blocks * BLOCK_TOKENS

    def find(self, ids: Sequence[int]) -> list[int]:
        """Return where the blocks are with which `ids` begins; they are used now."""
        return self._blocks.find(ids)

    def write(self, slot: int, ids: Sequence[int]) -> bool:
        """Write the last block of `ids`, with which a slot begins; False where there is no room for it."""
        place = self._blocks.add(ids)
        if place is None:
            return False
        self._move(os.pwritev, slot, len(ids) - BLOCK_TOKENS, place)
        return True

    def read(self, slot: int, first: int, place: int) -> None:
        """Read a block to where a slot's token `first` and the following ones have their KV."""
        self._move(os.preadv, slot, first, place)

    def clear(self) -> None:
        """Let go of everything, on disk too."""
        if len(self._blocks):
            self._blocks.clear()
            self._file.truncate(0)

    def check(self) -> None:
        """Raise `RuntimeError` where the books are wrong."""
        self._blocks.check()

    def _move(self, move: Callable[[int, list[Any], int], int], slot: int, first: int, place: int) -> None:
        pieces = self._memory.pieces(slot, first, first + BLOCK_TOKENS)
        at = place * self._block_bytes
        for start in range(0, len(pieces), _MAX_PIECES):
            some = pieces[start : start + _MAX_PIECES]
            num_bytes = sum(piece.nbytes for piece in some)
            if move(self._file.fileno(), some, at) != num_bytes:
                raise OSError("A block of KV could not be moved as a whole.")
            at += num_bytes


def is_possible() -> bool:
    """Return whether this system can do it."""
    return hasattr(os, "preadv") and hasattr(os, "pwritev")
