"""The decoder on ONNX Runtime's CPU provider, with its KV cache. Imports `onnxruntime`.

The cache of each layer is one buffer [slots, kv_heads, max_len, head_dim]. A run binds a row of slots as
past and present at once, so that KV is written in place and never copied. Arguments are validated before
every run: the operators trust them, and some wrong ones would end the process.
"""

from __future__ import annotations

import contextlib
import io
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from engine.architecture import DecoderConfig
from engine.errors import ModelFormatError, ModelResourceError
from engine.huge_pages import use_huge_pages
from engine.manifest import DECODER_FILE
from engine.sampling import FloatArray
from engine.speculation import MAX_GUESS

_SPIN_MICROSECONDS = "1000"
_PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
_PAGE_TOKENS = 64
"""max_len is a multiple of this: each slot then has whole pages, as head sizes are multiples of 16."""


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


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How to run: threads of one operator, cache slots, and the longest sequence in tokens."""

    num_threads: int
    num_slots: int
    max_tokens: int


class CpuModel:
    """One ONNX session with its cache. Calls come from one thread at a time."""

    def __init__(self, folder: Path, config: DecoderConfig, options: ModelOptions) -> None:
        """Load the graph. Raises `ModelFormatError` or `ModelResourceError`."""
        if options.max_tokens > config.context_length:
            raise ValueError(
                f"The model takes {config.context_length} tokens at most, not {options.max_tokens}."
            )
        self._config = config
        self._max_tokens = options.max_tokens
        self._session = open_session(folder / DECODER_FILE, options.num_threads)
        _check_shapes(self._session, config)
        # One position more than a sequence may have: a filler row of a full slot writes there.
        max_len = -(-(options.max_tokens + 1) // _PAGE_TOKENS) * _PAGE_TOKENS
        self.kv = KVBuffers(config, options.num_slots, max_len)
        # The last row belongs to prefill, so that one step can have both.
        num_rows = max(options.num_slots, 1 + MAX_GUESS) + 1
        self._logits = np.empty((num_rows, config.vocab_size), np.float32)
        self._bindings: dict[tuple[int, int], onnxruntime.IOBinding] = {}
        use_huge_pages()

    def prefill(self, slot: int, ids: Sequence[int], num_past: int) -> FloatArray:
        """Compute `ids` after `num_past` tokens of a slot; return the last one's logits [vocab].

        The returned array is overwritten by the next prefill.
        """
        logits = self._logits[-1:]
        self._run_chunk(slot, ids, num_past, [len(ids) - 1], logits)
        return logits.reshape(-1)

    def decode_several(self, slot: int, ids: Sequence[int], num_past: int) -> FloatArray:
        """Compute several ids of one slot; return the logits [len(ids), vocab] of all of them.

        At most 1 + MAX_GUESS. The returned array is overwritten by the next decode.
        """
        logits = self._logits[: min(len(ids), len(self._logits) - 1)]
        self._run_chunk(slot, ids, num_past, range(len(ids)), logits)
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
        logits = self._logits[: len(ids)]
        rows = np.array(ids, np.int64)[:, None]
        self._run(first_slot, rows, [length + 1 for length in lengths], range(len(ids)), logits)
        return logits

    def _run_chunk(
        self, slot: int, ids: Sequence[int], num_past: int, logit_rows: Sequence[int], logits: FloatArray
    ) -> None:
        if not ids or num_past < 0 or num_past + len(ids) > self._max_tokens:
            raise ValueError(f"{len(ids)} tokens after {num_past} do not fit {self._max_tokens}.")
        if len(logit_rows) != len(logits):
            raise ValueError(f"There is no room for the logits of {len(logit_rows)} rows.")
        self._run(slot, np.array([ids], np.int64), [num_past + len(ids)], logit_rows, logits)

    def _run(
        self,
        first_slot: int,
        ids: npt.NDArray[np.int64],
        totals: Sequence[int],
        logit_rows: Sequence[int],
        logits: FloatArray,
    ) -> None:
        """Run `ids` [slots, tokens] over a window of slots and write the logits of the rows asked for."""
        if ids.min() < 0 or ids.max() >= self._config.vocab_size:
            raise ValueError("A token id is outside the vocabulary.")
        binding = self._binding(first_slot, first_slot + len(ids))
        feeds = {
            "input_ids": ids,
            "seqlens_k": np.array(totals, np.int32) - 1,
            "total_sequence_length": np.array(max(totals), np.int32),
            "logit_rows": np.array(logit_rows, np.int64),
        }
        for name, values in feeds.items():
            binding.bind_cpu_input(name, values)
        _bind_output(binding, "logits", logits)
        self._session.run_with_iobinding(binding)

    def _binding(self, first: int, end: int) -> onnxruntime.IOBinding:
        """Return the binding whose cache is the slots first … end - 1, made once for each such window."""
        if not 0 <= first < end <= self.kv.shape[0]:
            raise ValueError(f"There are no slots {first} to {end - 1}.")
        if (first, end) not in self._bindings:
            binding = self._session.io_binding()
            names = [
                f"{part}.{layer}" for layer in range(self._config.num_layers) for part in ("key", "value")
            ]
            for name, array in zip(names, self.kv.arrays, strict=True):
                window = array[first:end]
                binding.bind_input(f"past_{name}", "cpu", 0, np.float32, window.shape, window.ctypes.data)
                _bind_output(binding, f"present_{name}", window)
            self._bindings[first, end] = binding
        return self._bindings[first, end]


def _private_memory(size: int) -> mmap.mmap:
    """Map memory of this process alone: shared memory would not be freed by `give_back`."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would make a few tokens take the memory of thousands
        with contextlib.suppress(OSError):  # the kernel has no huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def _bind_output(binding: onnxruntime.IOBinding, name: str, array: FloatArray) -> None:
    binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)


def open_session(
    model: Path | bytes, num_threads: int, device: str = "cpu", *, lean: bool = False
) -> onnxruntime.InferenceSession:
    """Load a graph, a file's or a small one of our own, on `device`: "cpu" or "cuda".

    `lean` leaves the weights in their files, mapped, instead of rearranging copies: slow, for models that
    memory cannot hold. Raises `ModelFormatError` or `ModelResourceError`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Spin long enough to bridge the gaps inside a step, not through idle time.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    if lean:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    if device == "cuda":
        _find_cuda()
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(source, options, providers=_PROVIDERS[device])
    except Exception as error:
        if "bad_alloc" in str(error) or "Failed to allocate" in str(error):
            raise ModelResourceError("There is not enough memory to load the model.") from error
        name = "A part of the graph" if isinstance(model, bytes) else str(model)
        raise ModelFormatError(f"{name} could not be loaded: {_first_line(error)}") from error
    if session.get_providers()[0] != _PROVIDERS[device][0]:
        raise ModelResourceError("There is no usable CUDA device here. Leave out the device, or name cpu.")
    return session


def _find_cuda() -> None:
    """Load CUDA's libraries where they are packages. What is missing shows in the providers of a session."""
    onnxruntime.set_default_logger_severity(4)
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _check_shapes(session: onnxruntime.InferenceSession, config: DecoderConfig) -> None:
    """Raise `ModelFormatError` unless the graph's caches and logits have the dimensions of `config`."""
    parts = [f"{part}.{layer}" for layer in range(config.num_layers) for part in ("key", "value")]
    expected = {f"past_{part}": (config.num_kv_heads, config.head_dim) for part in parts}
    caches = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past_")}
    shapes = {name: (shape[1], shape[3]) for name, shape in caches.items() if len(shape) == 4}
    if shapes != expected or session.get_outputs()[0].shape[-1:] != [config.vocab_size]:
        raise ModelFormatError(f"{DECODER_FILE} does not fit its manifest. Convert the model anew.")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["unknown reason"])[0][:300]
