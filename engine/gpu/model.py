"""The decoder on a GPU over a paged KV cache, with the sampler behind it. Imports `onnxruntime`.

The cache of each layer is one tensor [blocks, block size, kv_heads, head_dim], bound once as input and
output. Decode steps are captured as graphs of the device, one for each bucket of rows and of table width,
and replayed; steps with prompts run eagerly. All runs are made by one thread, since captured graphs belong
to the thread that made them. A decode step leaves the chosen ids where the next one reads them, so that it
can be started before anybody has seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from engine.describing.manifest import Manifest
from engine.errors import ModelResourceError
from engine.gpu.step import Limits, PackedStep, PagedRow, buckets, pack, sampled_rows, widths
from engine.graphs.decoder import paged_graph
from engine.graphs.sampler_graph import seen_graph
from engine.graphs.session import open_session
from engine.runtime.sampling import DEVICE_ROW, SampledRow
from engine.runtime.speculation import MAX_DRAFT

Array = npt.NDArray[np.generic]
T = TypeVar("T")

_EAGER = "-1"
_RESULTS = ("next_ids", "chosen", "logits")


@dataclass(frozen=True, slots=True)
class PagedOptions:
    """How to run.

    device: "cuda"; "cpu" runs a graph with plain attention, as tests do. num_slots: sequences at once.
    max_tokens: longest sequence. block_size: tokens of a block. unpenalised: ids that repetition penalty
    leaves alone. is_captured: whether decode steps become graphs of the device.
    """

    device: str
    num_slots: int
    max_tokens: int
    block_size: int
    unpenalised: Collection[int] = ()
    is_paged: bool = True
    num_threads: int = 1

    @property
    def table_width(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.max_tokens // self.block_size)


@dataclass(slots=True)
class _Bucket:
    """The small tensors of decode steps of one number of rows, and a binding for each table width."""

    num_rows: int
    values: dict[str, onnxruntime.OrtValue]
    tables: dict[int, onnxruntime.OrtValue] = field(default_factory=dict)
    bindings: dict[int, onnxruntime.IOBinding] = field(default_factory=dict)
    uploaded: dict[str, Array] = field(default_factory=dict)
    """What the inputs hold that rarely change."""


class PagedModel:
    """One ONNX session with its cache, and the one thread that runs it."""

    def __init__(self, folder: Path, manifest: Manifest, options: PagedOptions) -> None:
        """Load the converted model in `folder`. Raises `ModelFormatError` or `ModelResourceError`."""
        self._config = config = manifest.decoder
        self._options = options
        self._limits = Limits(config.vocab_size, options.max_tokens, options.num_slots)
        self._widths = widths(options.table_width)
        self._buckets = buckets(max(options.num_slots, 1 + MAX_DRAFT))
        graph = paged_graph(manifest, options.max_tokens, options.block_size, is_plain=not options.is_paged)
        self._thread = ThreadPoolExecutor(1, "llamacord-device")
        self._session = self._do(
            lambda: open_session(
                graph,
                options.num_threads,
                options.device,
                weights=folder,
                captured=options.is_paged,
            )
        )
        self._seeing = self._do(lambda: open_session(seen_graph(), 1, options.device))
        counts = np.ones(config.vocab_size, bool)
        counts[list(options.unpenalised)] = False
        self._penalised = self._tensor(counts)
        self._seen = self._tensor(np.zeros((options.num_slots + 1, config.vocab_size), bool))
        self._caches: dict[str, onnxruntime.OrtValue] = {}
        self._made: dict[int, _Bucket] = {}
        self._eager: onnxruntime.IOBinding | None = None
        self._unseen: dict[int, Array] = {}
        self.num_blocks = 0

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._options.block_size

    @property
    def num_slots(self) -> int:
        """Sequences at once."""
        return self._options.num_slots

    def bucket(self, num_rows: int) -> int:
        """Return the rows that a decode step of `num_rows` is padded to."""
        return next(size for size in self._buckets if size >= num_rows)

    def allocate(self, num_blocks: int) -> None:
        """Make room for the KV of so many blocks, the scratch block included; what was there is gone.

        Raises `ModelResourceError` when the device has not got it.
        """
        self._do(lambda: self._allocate(num_blocks))

    def warm_up(self, on_progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Run a decode step of each kind, and capture it; `on_progress` is told how many are done."""
        kinds = [(rows, width) for rows in reversed(self._buckets) for width in self._widths]
        for done, (num_rows, width) in enumerate(kinds):
            on_progress(done, len(kinds))
            filler = [PagedRow((0,), 0, (0,), self._options.num_slots)] * num_rows
            step = self._pack(filler, num_rows, width)
            self._do(partial(self._prepare, step))
        on_progress(len(kinds), len(kinds))

    def start(self, rows: Sequence[PagedRow]) -> Future[list[SampledRow]]:
        """Compute the rows' tokens, and choose the one that follows each row.

        Returns at once; runs are made in the order of calls. Raises `ValueError` for rows that do not fit.
        """
        self._limits.check(rows, self.num_blocks)
        widest = max(-(-(row.past + len(row.ids)) // self.block_size) for row in rows)
        width = next(width for width in self._widths if width >= widest)
        if any(len(row.ids) > 1 for row in rows) or len(rows) > self._buckets[-1]:
            step = self._pack(rows, len(rows), width)
            return self._submit(lambda: self._run_eagerly(step))
        step = self._pack(rows, self.bucket(len(rows)), width)
        return self._submit(lambda: self._decode(step, len(rows), follow=False))

    def run(self, rows: Sequence[PagedRow]) -> list[SampledRow]:
        """Compute as `start` does, and wait for it."""
        return self.start(rows).result()

    def follow(self, rows: Sequence[PagedRow | None]) -> Future[list[SampledRow]]:
        """Compute the tokens that the run before chooses, whether it has ended or not.

        That was a decode step of as many rows in the same order; their ids are not read. None is a row that
        has ended meanwhile.
        """
        filler = PagedRow((0,), 0, (0,), self._options.num_slots)
        present = [row or filler for row in rows]
        self._limits.check(present, self.num_blocks)
        widest = max(-(-(row.past + 1) // self.block_size) for row in present)
        width = next(width for width in self._widths if width >= widest)
        step = self._pack(present, self.bucket(len(rows)), width)
        return self._submit(lambda: self._decode(step, len(rows), follow=True))

    def saw(self, slot: int, ids: Iterable[int]) -> None:
        """Let the tokens that the sequence at `slot` has had be `ids`, for the runs that come after."""
        row = np.zeros((1, self._config.vocab_size), bool)
        row[0, np.fromiter(ids, np.int64)] = True
        self._unseen[slot] = row

    def close(self) -> None:
        """Wait for what was started and let everything go."""
        self._thread.shutdown(wait=True)
        self._made.clear()
        self._caches.clear()
        self._eager = None

    def _pack(self, rows: Sequence[PagedRow], num_rows: int, width: int) -> PackedStep:
        return pack(
            rows,
            num_rows=num_rows,
            width=width,
            block_size=self.block_size,
            scratch_slot=self._options.num_slots,
        )

    def _submit(self, run: Callable[[], T]) -> Future[T]:
        """Have the device's thread mark what was seen meanwhile, then run. A fault of either is the run's."""
        unseen, self._unseen = self._unseen, {}

        def act() -> T:
            for slot, row in unseen.items():
                self._see(slot, row)
            return run()

        return self._thread.submit(act)

    def _do(self, act: Callable[[], T]) -> T:
        """Have the device's thread do something, and wait for it."""
        return self._thread.submit(act).result()

    def _tensor(self, values: Array) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(values, self._options.device, 0)

    def _allocate(self, num_blocks: int) -> None:
        self._made.clear()
        self._eager = None
        self._caches.clear()
        config = self._config
        shape = (num_blocks, self.block_size, config.num_kv_heads, config.head_dim)
        names = [
            f"{part}_cache{{}}.{layer}" for layer in range(config.num_layers) for part in ("key", "value")
        ]
        try:
            for name in names:
                self._caches[name] = self._new_cache(shape)
        except Exception as error:
            self._caches.clear()
            tokens = num_blocks * self.block_size
            raise ModelResourceError(
                f"The device has no room for the KV of {tokens} tokens. Lower KV_CACHE_MB."
            ) from error
        self.num_blocks = num_blocks
        self._eager = self._bind_fixed()

    def _new_cache(self, shape: tuple[int, ...]) -> onnxruntime.OrtValue:
        """Return a tensor of zeros: what a step must not see it multiplies by 0, so that must be numbers."""
        if not self._caches:
            return self._tensor(np.zeros(shape, np.float16))
        cache = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.float16, self._options.device, 0)
        cache.update_inplace(next(iter(self._caches.values())))  # a copy within the device
        return cache

    def _bind_fixed(self) -> onnxruntime.IOBinding:
        """Return a binding of what is the same in all runs: the cache and what the sampler keeps."""
        binding = self._session.io_binding()
        for name, cache in self._caches.items():
            binding.bind_ortvalue_input(name.format(""), cache)
            binding.bind_ortvalue_output(name.format("_out"), cache)
        binding.bind_ortvalue_input("penalised", self._penalised)
        binding.bind_ortvalue_input("seen", self._seen)
        binding.bind_ortvalue_output("seen_out", self._seen)
        return binding

    def _run_eagerly(self, step: PackedStep) -> list[SampledRow]:
        binding = self._eager
        if binding is None:
            raise RuntimeError("The KV cache was not allocated.")
        for name, values in step.arrays.items():
            binding.bind_ortvalue_input(name, self._tensor(values))
        binding.bind_cpu_input("attention_metadata", step.bounds)
        for name in _RESULTS:
            binding.bind_output(name, self._options.device, 0)
        self._run(binding, _EAGER)
        _, chosen, logits = binding.get_outputs()[-len(_RESULTS) :]
        return _sampled(chosen, logits, len(step.past))

    def _prepare(self, step: PackedStep) -> None:
        """Run a step as it is, for operators that choose how to work in their first run; then capture it."""
        bucket, width = self._bucket(len(step.past)), step.table.shape[1]
        self._bind_decode(bucket, step)
        self._run(bucket.bindings[width], _EAGER)
        self._decode(step, len(step.past), follow=False)

    def _decode(self, step: PackedStep, num_rows: int, *, follow: bool) -> list[SampledRow]:
        """Run a decode step; with `follow` over the ids that lie on the device already."""
        bucket = self._bucket(len(step.past))
        width = step.table.shape[1]
        if not follow:
            bucket.values["input_ids"].update_inplace(step.ids)
        for name in ("past", "sampling"):
            bucket.values[name].update_inplace(step.arrays[name])
        self._upload(bucket, "slots", bucket.values["slots"], step.slots)
        self._upload(bucket, f"table.{width}", bucket.tables[width], step.table)
        self._run(bucket.bindings[width], self._graph_id(bucket.num_rows, width))
        return _sampled(bucket.values["chosen"], bucket.values["logits"], num_rows)

    def _upload(self, bucket: _Bucket, name: str, target: onnxruntime.OrtValue, values: Array) -> None:
        if name not in bucket.uploaded or not np.array_equal(bucket.uploaded[name], values):
            target.update_inplace(values)
            bucket.uploaded[name] = values

    def _bucket(self, num_rows: int) -> _Bucket:
        """Return the tensors of decode steps of so many rows, made once."""
        if num_rows not in self._made:
            made: dict[str, Array] = {
                "input_ids": np.zeros(num_rows, np.int64),
                "cumulative": np.arange(num_rows + 1, dtype=np.int32),
                "past": np.zeros(num_rows, np.int32),
                "slots": np.zeros(num_rows, np.int64),
                "sampling": np.zeros((num_rows, len(DEVICE_ROW)), np.float32),
                "chosen": np.zeros((num_rows, 3), np.float32),
                "logits": np.zeros((num_rows, self._config.vocab_size), np.float32),
            }
            values = {name: self._tensor(array) for name, array in made.items()}
            self._made[num_rows] = _Bucket(num_rows, values)
        return self._made[num_rows]

    def _bind_decode(self, bucket: _Bucket, step: PackedStep) -> None:
        width = step.table.shape[1]
        table = self._tensor(np.zeros_like(step.table))
        binding = self._bind_fixed()
        for name in ("input_ids", "cumulative", "past", "slots", "sampling"):
            binding.bind_ortvalue_input(name, bucket.values[name])
        binding.bind_ortvalue_input("block_table", table)
        binding.bind_cpu_input("attention_metadata", step.bounds)
        # The chosen ids come to lie where the next step reads its own.
        binding.bind_ortvalue_output("next_ids", bucket.values["input_ids"])
        binding.bind_ortvalue_output("chosen", bucket.values["chosen"])
        binding.bind_ortvalue_output("logits", bucket.values["logits"])
        bucket.tables[width], bucket.bindings[width] = table, binding

    def _graph_id(self, num_rows: int, width: int) -> str:
        if not self._options.is_paged:
            return _EAGER
        return str(self._buckets.index(num_rows) * len(self._widths) + self._widths.index(width))

    def _see(self, slot: int, row: Array) -> None:
        binding = self._seeing.io_binding()
        binding.bind_ortvalue_input("seen", self._seen)
        binding.bind_ortvalue_input("slot", self._tensor(np.array([[slot]], np.int64)))
        binding.bind_ortvalue_input("row", self._tensor(row))
        binding.bind_ortvalue_output("seen_out", self._seen)
        self._seeing.run_with_iobinding(binding)

    def _run(self, binding: onnxruntime.IOBinding, graph_id: str) -> None:
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", graph_id)
        self._session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()  # a replayed graph may still be running


def _sampled(chosen: onnxruntime.OrtValue, logits: onnxruntime.OrtValue, num_rows: int) -> list[SampledRow]:
    """Download what was chosen, and the whole rows of those sequences where that does not tell the token."""
    return sampled_rows(chosen.numpy()[:num_rows], lambda needed: np.array(logits.numpy()[needed]))
