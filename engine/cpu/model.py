"""The decoder on ONNX Runtime's CPU provider, with its KV cache. Imports `onnxruntime`.

The cache of each layer is one buffer [slots, kv_heads, max_len, head_dim]. A run binds a row of slots as
past and present at once, so that KV is written in place and never copied. Arguments are validated before
every run: the operators trust them, and some wrong ones would end the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from engine import kernels
from engine.cpu.kv_buffers import KVBuffers, use_huge_pages
from engine.describing.footprint import kv_value_bytes
from engine.describing.manifest import WEIGHTS_FILE, Manifest
from engine.graphs.attention import OwnSlotAttention
from engine.graphs.decoder import slot_graph
from engine.graphs.graph_builder import is_ours
from engine.graphs.session import open_session
from engine.runtime.sampling import FloatArray
from engine.runtime.speculation import MAX_ROWS


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How to run: threads of one operator, cache slots, and the longest sequence in tokens."""

    num_threads: int
    num_slots: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class _DecodeStep:
    """A decode step over one window of slots, bound once: what changes lies in its arrays."""

    binding: onnxruntime.IOBinding
    ids: npt.NDArray[np.int64]
    seqlens: npt.NDArray[np.int32]
    longest: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    logits: FloatArray

    @property
    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {
            "input_ids": self.ids,
            "seqlens_k": self.seqlens,
            "total_sequence_length": self.longest,
            "logit_rows": self.rows,
        }


class CpuModel:
    """One ONNX session with its cache. Calls come from one thread at a time."""

    def __init__(self, folder: Path, manifest: Manifest, options: ModelOptions) -> None:
        """Load the converted model in `folder`. Raises `ModelFormatError` or `ModelResourceError`."""
        config = manifest.decoder
        if options.max_tokens > config.context_length:
            raise ValueError(
                f"The model takes {config.context_length} tokens at most, not {options.max_tokens}."
            )
        self._config = config
        self._max_tokens = options.max_tokens
        operators = kernels.library()
        own_products = folder.resolve() / WEIGHTS_FILE if operators else None
        graph = slot_graph(manifest, options.max_tokens, own_products)
        self._session = open_session(graph, options.num_threads, weights=folder, operators=operators)
        # One position more than a sequence may have: a filler row of a full slot writes there.
        self.kv = KVBuffers(
            config, options.num_slots, options.max_tokens + 1, kv_value_bytes(config, manifest.precision)
        )
        # The last row belongs to prefill, so that one step can have both.
        num_rows = options.num_slots + MAX_ROWS + 1
        self._logits = np.empty((num_rows, config.vocab_size), np.float32)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}
        self._decode_steps: dict[tuple[int, int], _DecodeStep] = {}
        use_huge_pages()

    def prefill(self, slot: int, ids: Sequence[int], num_past: int) -> FloatArray:
        """Compute `ids` after `num_past` tokens of a slot; return the last one's logits [vocab].

        The returned array is overwritten by the next prefill.
        """
        logits = self._logits[-1:]
        self._run_chunk(slot, ids, num_past, [len(ids) - 1], logits)
        return logits.reshape(-1)

    def decode_several(self, slot: int, ids: Sequence[int], num_past: int, first_row: int = 0) -> FloatArray:
        """Compute several ids of one slot; return the logits [len(ids), vocab] of all of them.

        They follow the first `first_row` rows of the same step, which stay, and are at most MAX_ROWS beside
        one of each slot. The next decode overwrites what is returned.
        """
        logits = self._logits[first_row : min(first_row + len(ids), len(self._logits) - 1)]
        self._run_chunk(slot, ids, num_past, range(len(ids)), logits)
        return logits

    @property
    def max_window_tokens(self) -> int:
        """Tokens that a slot may come to hold in `decode_window`; 0 where it does not work.

        ONNX Runtime's attention takes several tokens of one sequence only.
        """
        return self._max_tokens + 1 if OwnSlotAttention.takes(self._config) else 0

    def decode_window(
        self, first_slot: int, ids: Sequence[Sequence[int]], lengths: Sequence[int], wanted: Sequence[int]
    ) -> FloatArray:
        """Compute as many ids of each of the slots from `first_slot` on, in one run.

        Of each slot the logits of its first `wanted` ids are returned, [sum(wanted), vocab], slot after slot.
        `lengths` are the tokens that each slot holds before. The next decode overwrites what is returned.
        """
        num = len(ids[0])
        if max(lengths) + num > self.max_window_tokens or min(lengths) < 0 or max(wanted) > num:
            raise ValueError(f"Cannot decode {num} ids over slots of {lengths} tokens.")
        rows = [slot * num + row for slot, number in enumerate(wanted) for row in range(number)]
        logits = self._logits[: min(len(rows), len(self._logits) - 1)]
        self._run(first_slot, ids, [length + num for length in lengths], rows, logits)
        return logits

    def score(self, slot: int, ids: Sequence[int], num_past: int) -> FloatArray:
        """Compute `ids` as `prefill` does, but return the logits [len(ids), vocab] of all of them, anew."""
        logits = np.empty((len(ids), self._config.vocab_size), np.float32)
        self._run_chunk(slot, ids, num_past, range(len(ids)), logits)
        return logits

    def decode(self, first_slot: int, ids: Sequence[int], lengths: Sequence[int]) -> FloatArray:
        """Compute one id for each of the slots from `first_slot` on; return logits [len(ids), vocab].

        `lengths` [len(ids)] are the tokens that each slot holds before. The returned array is overwritten
        by the next decode.
        """
        if not ids or len(ids) != len(lengths) or min(lengths) < 0 or max(lengths) > self._max_tokens:
            raise ValueError(f"Cannot decode {len(ids)} ids over slots of {lengths} tokens.")
        step = self._decode_step(first_slot, first_slot + len(ids))
        step.ids[:, 0] = ids
        self._check_ids(step.ids)
        step.seqlens[:] = lengths
        step.longest[...] = max(lengths) + 1
        self._session.run_with_iobinding(step.binding)
        return step.logits

    def _run_chunk(
        self, slot: int, ids: Sequence[int], num_past: int, logit_rows: Sequence[int], logits: FloatArray
    ) -> None:
        if not ids or num_past < 0 or num_past + len(ids) > self._max_tokens:
            raise ValueError(f"{len(ids)} tokens after {num_past} do not fit {self._max_tokens}.")
        self._run(slot, [ids], [num_past + len(ids)], logit_rows, logits)

    def _run(
        self,
        first: int,
        ids: Sequence[Sequence[int]],
        totals: Sequence[int],
        logit_rows: Sequence[int],
        logits: FloatArray,
    ) -> None:
        """Compute ids [slots, n] of the slots from `first` on, which come to hold `totals` tokens."""
        if len(logit_rows) != len(logits):
            raise ValueError(f"There is no room for the logits of {len(logit_rows)} rows.")
        feeds: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": np.array(ids, np.int64),
            "seqlens_k": np.array(totals, np.int32) - np.int32(1),
            "total_sequence_length": np.array(max(totals), np.int32),
            "logit_rows": np.array(logit_rows, np.int64),
        }
        self._check_ids(feeds["input_ids"])
        window = first, first + len(ids)
        if window not in self._bindings:
            self._bindings[window] = self._bind_cache(*window)
        binding = self._bindings[window]
        for name, values in feeds.items():
            binding.bind_cpu_input(name, values)
        _bind_output(binding, "logits", logits)
        self._session.run_with_iobinding(binding)

    def _check_ids(self, ids: npt.NDArray[np.generic]) -> None:
        if ids.min() < 0 or ids.max() >= self._config.vocab_size:
            raise ValueError("A token id is outside the vocabulary.")

    def _decode_step(self, first: int, end: int) -> _DecodeStep:
        """Return the step over the slots first … end - 1, made once for each such window."""
        if (first, end) not in self._decode_steps:
            num_rows = end - first
            step = _DecodeStep(
                self._bind_cache(first, end),
                ids=np.zeros((num_rows, 1), np.int64),
                seqlens=np.zeros(num_rows, np.int32),
                longest=np.zeros((), np.int32),
                rows=np.arange(num_rows),
                logits=self._logits[:num_rows],
            )
            for name, array in step.arrays.items():
                step.binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            _bind_output(step.binding, "logits", step.logits)
            self._decode_steps[first, end] = step
        return self._decode_steps[first, end]

    def _bind_cache(self, first: int, end: int) -> onnxruntime.IOBinding:
        """Return a new binding whose cache is the slots first … end - 1."""
        if not 0 <= first < end <= self.kv.shape[0]:
            raise ValueError(f"There are no slots {first} to {end - 1}.")
        binding = self._session.io_binding()
        names = [f"{part}.{layer}" for layer in range(self._config.num_layers) for part in ("key", "value")]
        for name, array in zip(names, self.kv.arrays, strict=True):
            window = array[first:end]
            binding.bind_input(f"past_{name}", "cpu", 0, window.dtype, window.shape, window.ctypes.data)
            _bind_output(binding, f"present_{name}", window)
        return binding


def rows_are_exact(manifest: Manifest) -> bool:
    """Tell whether a token's logits are bit for bit the same in any run: all products are our own operator's.

    ONNX Runtime's round otherwise for one row than for several.
    """
    return (
        kernels.library() is not None
        and OwnSlotAttention.takes(manifest.decoder)
        and all(
            is_ours(tensor)
            for name, tensor in manifest.tensors.items()
            if len(tensor.shape) > 1 and not (name == "embed" and "head" in manifest.tensors)
        )
    )


def _bind_output(binding: onnxruntime.IOBinding, name: str, array: npt.NDArray[np.floating]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
