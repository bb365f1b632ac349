"""The memory of the CPU's KV cache: for each layer one buffer of keys and one of values."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

from engine.describing.architecture import DecoderConfig
from engine.errors import ModelResourceError


class KVBuffers:
    """The memory of the KV cache: for each layer a key and a value buffer. Untouched pages take no memory."""

    def __init__(self, config: DecoderConfig, num_slots: int, max_len: int) -> None:
        self.shape = (num_slots, config.num_kv_heads, max_len, config.head_dim)
        self._slot_bytes = int(np.prod(self.shape[1:])) * 4
        size = self._slot_bytes * num_slots
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

    def swap(self, first: int, second: int, num_tokens: int) -> None:
        """Exchange the first tokens' KV of two slots."""
        for array in self.arrays:
            kept = array[first, :, :num_tokens].copy()
            array[first, :, :num_tokens] = array[second, :, :num_tokens]
            array[second, :, :num_tokens] = kept

    def give_back(self, slot: int) -> None:
        """Return a slot's memory to the operating system; it reads as zeros afterwards."""
        start = slot * self._slot_bytes
        if (
            start % mmap.PAGESIZE == 0
            and self._slot_bytes % mmap.PAGESIZE == 0
            and hasattr(mmap, "MADV_DONTNEED")
        ):
            for memory in self._maps:
                memory.madvise(mmap.MADV_DONTNEED, start, self._slot_bytes)


def _private_memory(size: int) -> mmap.mmap:
    """Map memory of this process alone: shared memory would not be freed by `give_back`."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would make a few tokens take the memory of thousands
        with contextlib.suppress(OSError):  # the kernel has no huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
