"""Moves what this process holds in memory into huge pages, where Linux can. Portable: elsewhere does nothing.

A decode step reads all weights once, and with pages of 4 KiB looks up more addresses than the processor
remembers. ONNX Runtime allocates its rearranged weights as any other memory, so that the kernel has to be
asked afterwards (`madvise(2)`: MADV_COLLAPSE, Linux 6.1).
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

_MADV_COLLAPSE = 25
_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MAPS = Path("/proc/self/maps")
_PAGEMAP = Path("/proc/self/pagemap")
_ENTRY_BYTES = 8
_PRESENT = np.uint64(1 << 63)


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
