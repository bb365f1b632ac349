"""The memory of the CPU's KV cache: for each layer one buffer of keys and one of values."""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np

from engine.describing.architecture import DecoderConfig
from engine.errors import ModelResourceError


def page_tokens(config: DecoderConfig) -> int:
    """Return the tokens of one head that fill whole pages: memory is taken and given back in such blocks."""
    return mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, 4 * config.head_dim)


class KVBuffers:
    """The memory of the KV cache: for each layer a key and a value buffer. Untouched pages take no memory."""

    def __init__(self, config: DecoderConfig, num_slots: int, num_tokens: int) -> None:
        """Give each slot room for `num_tokens`, in whole pages."""
        self.page_tokens = page_tokens(config)
        max_len = -(-num_tokens // self.page_tokens) * self.page_tokens
        self.shape = (num_slots, config.num_kv_heads, max_len, config.head_dim)
        self._token_bytes = config.head_dim * 4
        self._head_bytes = max_len * self._token_bytes
        size = num_slots * config.num_kv_heads * self._head_bytes
        try:
            self._maps = [_private_memory(size) for _ in range(2 * config.num_layers)]
        except OSError as error:
            raise ModelResourceError(
                f"No room for the KV cache ({2 * config.num_layers * size / 2**30:.1f} GiB of addresses). "
                "Lower CONTEXT_TOKENS or MAX_CONCURRENT."
            ) from error
        self.arrays = [np.frombuffer(memory, np.float32).reshape(self.shape) for memory in self._maps]

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the KV of a slot's first tokens to another slot."""
        for array in self.arrays:
            array[target, :, :num_tokens] = array[source, :, :num_tokens]

    def swap(self, first: int, second: int, num_first: int, num_second: int) -> None:
        """Exchange the KV of two slots, which hold so many tokens, and give back what neither needs then."""
        for memory, array in zip(self._maps, self.arrays, strict=True):
            moved = array[first, :, :num_first].copy()
            array[first, :, :num_second] = array[second, :, :num_second]
            array[second, :, :num_first] = moved
            self._give_back(memory, first, num_second)
            self._give_back(memory, second, num_first)

    def give_back(self, slot: int, num_kept: int = 0) -> None:
        """Return the memory behind a slot's first tokens to the system; it reads as zeros afterwards."""
        for memory in self._maps:
            self._give_back(memory, slot, num_kept)

    def _give_back(self, memory: mmap.mmap, slot: int, num_kept: int) -> None:
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        num_heads = self.shape[1]
        kept = -(-num_kept // self.page_tokens) * self.page_tokens * self._token_bytes
        start = slot * num_heads * self._head_bytes
        if not kept:
            memory.madvise(mmap.MADV_DONTNEED, start, num_heads * self._head_bytes)
        elif kept < self._head_bytes:
            for head in range(num_heads):
                begin = start + head * self._head_bytes + kept
                memory.madvise(mmap.MADV_DONTNEED, begin, self._head_bytes - kept)


def _private_memory(size: int) -> mmap.mmap:
    """Map memory of this process alone: shared memory would not be freed by `give_back`."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would make a few tokens take the memory of thousands
        with contextlib.suppress(OSError):  # the kernel has no huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
