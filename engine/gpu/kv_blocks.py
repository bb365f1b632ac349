"""Which sequence's KV lies in which blocks of a paged cache. Bookkeeping only: it holds token ids, not
tensors.

A block holds the KV of `block_size` tokens in a row. A full one is published under its tokens and the block
before it, so that whoever begins with the same tokens shares it: the next turn of a conversation, or another
conversation with the same system prompt. Published blocks that nobody uses stay until room is needed, the
least recently used first, and so that no block goes before those that build on it. Blocks are compared by
their tokens, never by a hash alone: no chance lets a conversation read another one's text.

All blocks that a sequence may come to need are taken when it is admitted. What runs never waits for a block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from engine.runtime.request import reusable

SCRATCH_BLOCK = 0
"""Filler rows of a step write and read here; no sequence gets it."""
_ROOT = 0

_Key = tuple[int, tuple[int, ...]]


@dataclass(slots=True, eq=False)
class BlockTable:
    """The blocks of one running sequence, in order. `ids` are the tokens whose KV is valid."""

    blocks: list[int]
    ids: list[int]
    num_reserved: int
    """Tokens that the blocks are for."""
    identity: int = _ROOT
    """Of its last full block."""
    duplicates: dict[int, int] = field(default_factory=dict)
    """Published blocks with the content of its own, which is private; known once it is released."""
    is_kept: bool = True
    """Whether anything of it may be shared."""


@dataclass(slots=True)
class _Block:
    """`key` and `identity` of a block that is published: what it is found under, and what others build on."""

    num_users: int = 0
    num_tokens: int = 0
    key: _Key | None = None
    identity: int = _ROOT


@dataclass(slots=True)
class KVBlocks:
    """Owns the blocks of one cache, the scratch block among them. One thread only."""

    num_blocks: int
    block_size: int
    num_tokens: int = field(default=0, init=False)
    """Tokens whose KV is held, in use or kept; what is shared counts once."""
    _blocks: list[_Block] = field(default_factory=list, init=False)
    _free: list[int] = field(default_factory=list, init=False)
    _idle: OrderedDict[int, None] = field(default_factory=OrderedDict, init=False)
    _ahead: dict[int, None] = field(default_factory=dict, init=False)
    """Blocks that are kept for questions that are expected, since the last one came. Those of the likeliest
    are the last, the first of its prompt behind the others."""
    _published: dict[_Key, int] = field(default_factory=dict, init=False)
    _tables: set[BlockTable] = field(default_factory=set, init=False)
    _identities: count[int] = field(default_factory=lambda: count(_ROOT + 1), init=False)

    def __post_init__(self) -> None:
        if self.num_blocks < 2 or self.block_size < 1:
            raise ValueError(f"{self.num_blocks} blocks of {self.block_size} tokens are no cache.")
        self.clear()

    @property
    def num_free(self) -> int:
        """Blocks that a new sequence can have, those that are merely kept included."""
        return len(self._free) + len(self._idle)

    @property
    def num_running(self) -> int:
        """Sequences that have blocks."""
        return len(self._tables)

    def num_needed(self, num_tokens: int) -> int:
        """Return how many blocks so many tokens take."""
        return -(-num_tokens // self.block_size)

    def acquire(self, ids: Sequence[int], num_tokens: int) -> BlockTable | None:
        """Give a sequence that begins with the prompt `ids` room for `num_tokens` in all.

        The table's ids are that part of the prompt whose KV is there already. None when there is no room now;
        nothing changes then. Raises `ValueError` when there never is.
        """
        self._ahead.clear()
        num_wanted = self.num_needed(max(num_tokens, len(ids)))
        if num_wanted > self.num_blocks - 1:
            raise ValueError(f"{num_tokens} tokens need {num_wanted} blocks of {self.num_blocks - 1}.")
        return self._acquire(ids, num_tokens, self._find(reusable(ids)))

    def find_ahead(self, ids: Sequence[int]) -> bool:
        """Tell whether all of `ids`, which fill blocks, is published; if so, it is kept for them."""
        found = self._find(ids)
        is_all = len(found) == self.num_needed(len(ids))
        if is_all:
            self._expect(found)
        return is_all

    def acquire_ahead(self, ids: Sequence[int]) -> BlockTable | None:
        """Give a prompt that is computed ahead its blocks; None, changing nothing, where there is no room.

        What was computed or found ahead stays: the questions that are likelier to come are told first. Call
        only when `find_ahead` has not found all of it.
        """
        shared = self._find(ids)
        stays = {*self._ahead, *shared}
        if self.num_needed(len(ids)) - len(shared) > self.num_free - sum(n in self._idle for n in stays):
            return None
        table = self._acquire(ids, len(ids), shared)
        if table is not None:
            self._expect(table.blocks)
        return table

    def _expect(self, blocks: Sequence[int]) -> None:
        """Keep blocks for a question that is expected: longer than for those that are less likely to come."""
        self._ahead = {**dict.fromkeys(n for n in reversed(blocks) if n not in self._ahead), **self._ahead}
        self._put_ahead_last()

    def _put_ahead_last(self) -> None:
        for number in self._ahead:
            if number in self._idle:
                self._idle.move_to_end(number)

    def _acquire(self, ids: Sequence[int], num_tokens: int, shared: Sequence[int]) -> BlockTable | None:
        """Give a sequence the blocks `shared` and as many empty ones as it needs; None without room."""
        num_new = self.num_needed(max(num_tokens, len(ids))) - len(shared)
        if num_new > self.num_free - sum(number in self._idle for number in shared):
            return None
        for number in shared:
            self._blocks[number].num_users += 1
            self._idle.pop(number, None)
        blocks = [*shared, *(self._take() for _ in range(num_new))]
        identity = self._blocks[shared[-1]].identity if shared else _ROOT
        table = BlockTable(blocks, list(ids[: len(shared) * self.block_size]), num_tokens, identity)
        self._tables.add(table)
        return table

    def extend(self, table: BlockTable, ids: Sequence[int]) -> None:
        """Take note that the KV of `ids` was computed after the table's own; publish what became full.

        Raises `ValueError` when its blocks are not for so many.
        """
        if len(table.ids) + len(ids) > table.num_reserved:
            sizes = f"{len(table.ids)} + {len(ids)} tokens"
            raise ValueError(f"{sizes} exceed the {table.num_reserved} reserved.")
        first = len(table.ids) // self.block_size
        table.ids += ids
        self.num_tokens += len(ids)
        for index in range(first, self.num_needed(len(table.ids))):
            block = self._blocks[table.blocks[index]]
            block.num_tokens = min(self.block_size, len(table.ids) - index * self.block_size)
            if block.num_tokens == self.block_size:
                self._publish(table, index)

    def release(self, table: BlockTable, *, keep: bool) -> None:
        """Take a sequence's blocks back. Those that nobody else has stay published with `keep`, else go."""
        self._tables.remove(table)
        if keep and table.is_kept:
            self._link(table)
        # The last block first: it is to go before those that it builds on.
        for number in reversed(table.blocks):
            block = self._blocks[number]
            if number in table.duplicates and table.duplicates[number] in self._idle:
                self._idle.move_to_end(table.duplicates[number])
            block.num_users -= 1
            if block.num_users:
                continue
            if keep and table.is_kept and block.key is not None:
                self._idle[number] = None
            else:
                self._empty(number)
        self._put_ahead_last()

    def forget(self) -> None:
        """Unpublish everything. What is in use goes when it is released, and is not shared any more."""
        for table in self._tables:
            table.is_kept = False
        for number in self._published.values():
            self._blocks[number].key = None
        self._published.clear()
        self._ahead.clear()
        while self._idle:
            self._empty(self._idle.popitem()[0])

    def clear(self) -> None:
        """Start empty. Tables that were given out are void."""
        self._blocks = [_Block() for _ in range(self.num_blocks)]
        self._free = list(range(self.num_blocks - 1, SCRATCH_BLOCK, -1))
        self._idle.clear()
        self._ahead.clear()
        self._published.clear()
        self._tables.clear()
        self.num_tokens = 0

    def check(self) -> None:
        """Raise `RuntimeError` where the books do not agree with the tables that are out."""
        users = [0] * self.num_blocks
        for table in self._tables:
            for number in table.blocks:
                users[number] += 1
        unused = {*self._free, *self._idle}
        for number, block in enumerate(self._blocks):
            is_published = block.key is not None and self._published.get(block.key) == number
            faults = {
                "users": block.num_users != users[number],
                "use": number != SCRATCH_BLOCK and (number in unused) == (users[number] > 0),
                "key": (block.key is not None) != is_published or (number in self._idle and not is_published),
                "tokens": number in self._free and block.num_tokens > 0,
            }
            if any(faults.values()):
                wrong = ", ".join(name for name, is_wrong in faults.items() if is_wrong)
                raise RuntimeError(f"The books of block {number} are wrong: {wrong}.")
        is_scratch_out = SCRATCH_BLOCK in unused or users[SCRATCH_BLOCK] > 0
        if is_scratch_out or len(unused) != self.num_free:
            raise RuntimeError("The free blocks are wrong.")
        if self.num_tokens != sum(block.num_tokens for block in self._blocks):
            raise RuntimeError("The number of tokens is wrong.")

    def _find(self, ids: Sequence[int]) -> list[int]:
        """Return the published blocks that hold the beginning of `ids`."""
        found: list[int] = []
        identity = _ROOT
        for index in range(len(ids) // self.block_size):
            number = self._published.get((identity, self._tokens(ids, index)))
            if number is None:
                break
            found.append(number)
            identity = self._blocks[number].identity
        return found

    def _tokens(self, ids: Sequence[int], index: int) -> tuple[int, ...]:
        return tuple(ids[index * self.block_size : (index + 1) * self.block_size])

    def _publish(self, table: BlockTable, index: int) -> None:
        """Let others find a full block, unless one like it can be found already; go on from that one then."""
        if not table.is_kept:
            return
        key = (table.identity, self._tokens(table.ids, index))
        number = self._published.setdefault(key, table.blocks[index])
        if number == table.blocks[index]:
            block = self._blocks[number]
            block.key, block.identity = key, next(self._identities)
        table.identity = self._blocks[number].identity

    def _link(self, table: BlockTable) -> None:
        """Publish a sequence's full blocks where they can be found, should what they built on have gone."""
        identity = _ROOT
        for index, own in enumerate(table.blocks[: len(table.ids) // self.block_size]):
            block, key = self._blocks[own], (identity, self._tokens(table.ids, index))
            number = self._published.setdefault(key, own)
            if block.key is not None and block.key != key:
                del self._published[block.key]
                block.key = None
            if number == own:
                block.key, block.identity = key, block.identity or next(self._identities)
            else:
                table.duplicates[own] = number
            identity = self._blocks[number].identity

    def _take(self) -> int:
        """Return an empty block for one user."""
        if not self._free:
            self._empty(self._idle.popitem(last=False)[0])
        number = self._free.pop()
        self._blocks[number].num_users = 1
        return number

    def _empty(self, number: int) -> None:
        """Forget what a block that nobody uses holds."""
        block = self._blocks[number]
        if block.key is not None:
            del self._published[block.key]
        self.num_tokens -= block.num_tokens
        self._blocks[number] = _Block()
        self._free.append(number)
