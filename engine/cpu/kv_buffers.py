"""The memory of the CPU's KV cache, for each layer a buffer of keys and one of values; and huge pages.

A decode step reads all weights once, and with pages of 4 KiB looks up more addresses than the processor
remembers. ONNX Runtime allocates its rearranged weights as any other memory, so that the kernel has to be
asked afterwards (`madvise(2)`: MADV_COLLAPSE, Linux 6.1). Portable: elsewhere nothing is moved.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from engine.describing.architecture import DecoderConfig
from engine.errors import ModelResourceError

_MADV_COLLAPSE = 25
_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MAPS = Path("/proc/self/maps")
_PAGEMAP = Path("/proc/self/pagemap")
_ENTRY_BYTES = 8
_PRESENT = np.uint64(1 << 63)


def page_tokens(config: DecoderConfig, value_bytes: int) -> int:
    """Return the tokens of one head that fill whole pages: memory is taken and given back in such blocks."""
    return mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, value_bytes * config.head_dim)


class KVBuffers:
    """The memory of the KV cache: for each layer a key and a value buffer. Untouched pages take no memory."""

    def __init__(self, config: DecoderConfig, num_slots: int, num_tokens: int, value_bytes: int = 4) -> None:
        """Give each slot room for `num_tokens`, in whole pages. value_bytes: 2 for half precision."""
        self.dtype = np.dtype(f"f{value_bytes}")
        self.page_tokens = page_tokens(config, value_bytes)
        max_len = -(-num_tokens // self.page_tokens) * self.page_tokens
        self.shape = (num_slots, config.num_kv_heads, max_len, config.head_dim)
        self._token_bytes = config.head_dim * value_bytes
        self._head_bytes = max_len * self._token_bytes
        size = num_slots * config.num_kv_heads * self._head_bytes
        try:
            self._maps = [_private_memory(size) for _ in range(2 * config.num_layers)]
        except OSError as error:
            raise ModelResourceError(
                f"No room for the KV cache ({2 * config.num_layers * size / 2**30:.1f} GiB of addresses). "
                "Lower CONTEXT_TOKENS or MAX_CONCURRENT."
            ) from error
        self.arrays = [np.frombuffer(memory, self.dtype).reshape(self.shape) for memory in self._maps]

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

    def pieces(self, slot: int, first: int, end: int) -> list[npt.NDArray[Any]]:
        """Return the memory of a slot's tokens `first` to `end`: for each layer and head, keys and values."""
        return [array[slot, head, first:end] for array in self.arrays for head in range(self.shape[1])]

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


def use_huge_pages(deadline_s: float = 2.0) -> int:
    """Move memory that is in use throughout into huge pages and return how many bytes were moved.

    Takes no further memory. What `deadline_s` leaves over is marked, for the kernel to move in time.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return 0
    try:
        size = int(_SIZE_FILE.read_text())
        madvise = ctypes.CDLL(None, use_errno=True).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        blocks = list(_resident_blocks(size))
    except (OSError, ValueError, AttributeError):  # an older kernel, or a container that hides it
        return 0
    ends_at = time.monotonic() + deadline_s
    num_moved = 0
    for address in blocks:
        marked = madvise(address, size, mmap.MADV_HUGEPAGE) == 0
        if marked and time.monotonic() < ends_at:
            num_moved += madvise(address, size, _MADV_COLLAPSE) == 0
    return num_moved * size


def _private_memory(size: int) -> mmap.mmap:
    """Map memory of this process alone: shared memory would not be freed by `give_back`."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would make a few tokens take the memory of thousands
        with contextlib.suppress(OSError):  # the kernel has no huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def _resident_blocks(size: int) -> Iterator[int]:
    """Yield the addresses of aligned blocks of `size` bytes, all of whose pages are in memory."""
    with _PAGEMAP.open("rb", buffering=0) as pages:
        for line in _MAPS.read_text().splitlines():
            span, mode, _offset, _device, inode, *name = line.split(maxsplit=5)
            if not mode.startswith("rw") or inode != "0" or name not in ([], ["[heap]"]):
                continue
            first, end = (int(address, 16) for address in span.split("-"))
            start = -(-first // size) * size
            if start + size <= end:
                yield from _resident(pages, start, (end - start) // size, size)


def _resident(pages: BinaryIO, start: int, num_blocks: int, size: int) -> Iterator[int]:
    pages_per_block = size // mmap.PAGESIZE
    pages.seek(start // mmap.PAGESIZE * _ENTRY_BYTES)
    raw = pages.read(num_blocks * pages_per_block * _ENTRY_BYTES)
    entries = np.frombuffer(raw, np.uint64).reshape(-1, pages_per_block)
    for index in np.flatnonzero(((entries & _PRESENT) != 0).all(axis=1)):
        yield start + int(index) * size
