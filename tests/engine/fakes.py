"""Stand-ins for the model and its surroundings: exact, fast, and unforgiving about a wrong cache."""

from __future__ import annotations

import functools
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.describing.architecture import DecoderConfig, Precision, decoder_tensors
from engine.describing.manifest import (
    WEIGHTS_FILE,
    ChatSpec,
    FileEntry,
    Manifest,
    TokenizerSpec,
)
from engine.describing.stored import DenseTensor, StoredTensor
from engine.runtime.request import Request
from engine.runtime.runner import StepResult
from engine.runtime.sampling import FloatArray, Sampler
from engine.runtime.scheduler import PrefillPace, StepPlan
from engine.text.detokenizer import StreamDecoder
from engine.text.tokenizer import BpeTokenizer
from engine.types import Prompt, SamplingParams
from tests.engine.tiny_model import CONTROL_TOKENS, tiny_config, tiny_tokenizer

VOCAB_SIZE = 64
STOP_ID = 2
TOKEN_BYTES = [b"", b"", b"", *(bytes([33 + token]) for token in range(3, VOCAB_SIZE))]
NEVER_WRITTEN = -1
_ROWS = np.random.default_rng(20).normal(0.0, 3.0, (1021, VOCAB_SIZE)).astype(np.float32)


def history_logits(history: Sequence[int] | npt.NDArray[np.int64]) -> FloatArray:
    """Return logits [VOCAB_SIZE] that depend on every token of `history` and its position."""
    row: FloatArray = _ROWS[zlib.crc32(np.asarray(history, np.int64).tobytes()) % len(_ROWS)]
    return row.copy()


class HistoryMemory:
    """A cache whose KV is the token ids themselves: `ids` [slots, positions]."""

    def __init__(self, num_slots: int, max_len: int, page_tokens: int = 1) -> None:
        self.page_tokens = page_tokens
        self.ids = np.full((num_slots, max_len), NEVER_WRITTEN, np.int64)
        self.num_copies = self.num_swaps = self.num_given_back = 0

    @property
    def num_touched(self) -> int:
        """Positions whose memory is taken, in whole pages: one was written since it was last given back."""
        starts = np.arange(0, self.ids.shape[1], self.page_tokens)
        return int(np.logical_or.reduceat(self.ids != NEVER_WRITTEN, starts, axis=1).sum()) * self.page_tokens

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        self.ids[target, :num_tokens] = self.ids[source, :num_tokens]
        self.num_copies += 1

    def swap(self, first: int, second: int, num_first: int, num_second: int) -> None:
        moved = self.ids[first, :num_first].copy()
        self.ids[first, :num_second] = self.ids[second, :num_second]
        self.ids[second, :num_first] = moved
        self._give_back(first, num_second)
        self._give_back(second, num_first)
        self.num_swaps += 1

    def pieces(self, slot: int, first: int, end: int) -> list[npt.NDArray[np.int64]]:
        return [self.ids[slot, first:end]]

    def give_back(self, slot: int, num_kept: int = 0) -> None:
        self._give_back(slot, num_kept)
        self.num_given_back += 1

    def _give_back(self, slot: int, num_kept: int) -> None:
        self.ids[slot, -(-num_kept // self.page_tokens) * self.page_tokens :] = NEVER_WRITTEN


class HistoryModel:
    """A `SlotModel` whose logits come from the history that lies in its memory, and from nothing else."""

    def __init__(self, num_slots: int, max_tokens: int, page_tokens: int = 1) -> None:
        self.kv = HistoryMemory(num_slots, max_tokens + 1, page_tokens)
        self._max_tokens = max_tokens
        self.chunks: list[int] = []
        self.windows: list[int] = []
        self.drafts: list[int] = []
        self.num_windows = 0
        """Runs over several tokens of several slots."""
        self.fault: Exception | None = None
        """Raised by every run while it is set."""

    def prefill(self, slot: int, ids: Sequence[int], num_past: int) -> FloatArray:
        self._check(ids, [num_past + len(ids)])
        self.chunks.append(len(ids))
        self.kv.ids[slot, num_past : num_past + len(ids)] = ids
        return history_logits(self.kv.ids[slot, : num_past + len(ids)])

    def decode(self, first_slot: int, ids: Sequence[int], lengths: Sequence[int]) -> FloatArray:
        self._check(ids, [length + 1 for length in lengths], room=1)
        self.windows.append(len(ids))
        slots = range(first_slot, first_slot + len(ids))
        self.kv.ids[list(slots), list(lengths)] = ids
        histories = (self.kv.ids[slot, : length + 1] for slot, length in zip(slots, lengths, strict=True))
        return np.stack([history_logits(history) for history in histories])

    def decode_several(self, slot: int, ids: Sequence[int], num_past: int, first_row: int = 0) -> FloatArray:
        if first_row < len(self.kv.ids):
            raise ValueError("These rows are those of a run over the slots.")
        self._check(ids, [num_past + len(ids)])
        self.drafts.append(len(ids) - 1)
        self.kv.ids[slot, num_past : num_past + len(ids)] = ids
        ends = range(num_past + 1, num_past + len(ids) + 1)
        return np.stack([history_logits(self.kv.ids[slot, :end]) for end in ends])

    @property
    def max_window_tokens(self) -> int:
        return self._max_tokens + 1

    def decode_window(
        self, first_slot: int, ids: Sequence[Sequence[int]], lengths: Sequence[int], wanted: Sequence[int]
    ) -> FloatArray:
        self.windows.append(len(ids))
        rows = []
        for slot, (own, length, number) in enumerate(zip(ids, lengths, wanted, strict=True), first_slot):
            self._check(own, [length + len(own)], room=1)
            if len(own) != len(ids[0]):
                raise ValueError("Each slot has as many.")
            self.kv.ids[slot, length : length + len(own)] = own
            rows += [history_logits(self.kv.ids[slot, : length + row + 1]) for row in range(number)]
        self.num_windows += len(ids[0]) > 1
        return np.stack(rows)

    def _check(self, ids: Sequence[int], totals: Sequence[int], room: int = 0) -> None:
        if self.fault is not None:
            raise self.fault
        if not ids or max(totals) > self._max_tokens + room or not 0 <= min(ids) <= max(ids) < VOCAB_SIZE:
            raise ValueError(f"Bad run: ids {list(ids)}, totals {list(totals)}.")


def make_request(
    request_id: int, ids: Sequence[int], params: SamplingParams, max_tokens: int = 256
) -> Request:
    """Return a request for a `HistoryModel`."""
    return Request(
        request_id=request_id,
        prompt=Prompt(tuple(ids)),
        params=params,
        sampler=Sampler(params, ids, {STOP_ID}),
        decoder=StreamDecoder(TOKEN_BYTES, params.stop),
        stop_ids=frozenset({STOP_ID}),
        max_tokens=max_tokens,
    )


def run_alone(ids: Sequence[int], params: SamplingParams, max_tokens: int = 256) -> list[int]:
    """Return the ids that a request ends with when nothing else runs and nothing is cached."""
    sampler = Sampler(params, ids, {STOP_ID})
    history = list(ids)
    while len(history) - len(ids) < params.max_new_tokens and len(history) < max_tokens:
        history.append(sampler.sample(history_logits(history)))
        if history[-1] == STOP_ID:
            break
    return history


Answer = Callable[[Request], int]
"""Names the next token of a request's answer; may raise."""


class ScriptedRunner:
    """A `Runner` without a cache whose next tokens a function names."""

    device = "cpu"
    is_exact = False
    pace = PrefillPace()
    max_drafting = 1
    block_size = 1
    max_kv_tokens = 4096

    def __init__(self, answer: Answer, vocab_size: int, on_step: Callable[[StepPlan], None]) -> None:
        self.answer = answer
        self.num_reloads = self.num_forgotten = self.num_drops = 0
        self.reload_error: Exception | None = None
        self.num_checks = self.num_idle_pieces = 0
        self.check_error: Exception | None = None
        self.num_refusals_due = 0
        self.placed: set[int] = set()
        self.ever_placed: set[int] = set()
        self._vocab_size = vocab_size
        self._on_step = on_step

    def place(self, request: Request) -> bool:
        if self.num_refusals_due:
            self.num_refusals_due -= 1
            return False
        self.placed.add(request.request_id)
        self.ever_placed.add(request.request_id)
        return True

    def place_ahead(self, request: Request) -> bool:
        return self.place(request)

    def draft(self, plan: StepPlan) -> StepPlan:
        return plan

    def step(self, plan: StepPlan) -> StepResult:
        self._on_step(plan)
        rows = list(plan.decode)
        for chunk in plan.prefill:
            chunk.request.num_computed += chunk.num_tokens
            if chunk.request.num_computed == chunk.request.num_prompt:
                rows.append(chunk.request)
        return StepResult(tuple((request, self._logits(request)[None]) for request in rows), 0.001, 0.001)

    def confirm(self, request: Request, num_accepted: int) -> None:
        raise AssertionError("Nothing was computed for a draft.")

    def forget(self) -> None:
        self.num_forgotten += 1

    def use_idle_time(self) -> bool:
        self.num_idle_pieces = max(0, self.num_idle_pieces - 1)
        return self.num_idle_pieces > 0

    def drop_unused(self) -> None:
        self.num_drops += 1

    def release(self, request: Request, *, keep: bool) -> None:
        self.placed.discard(request.request_id)

    @property
    def num_kv_tokens(self) -> int:
        return len(self.placed)

    def check(self) -> None:
        self.num_checks += 1
        if self.check_error is not None:
            raise self.check_error

    def reload(self) -> None:
        self.num_reloads += 1
        self.placed.clear()
        if self.reload_error is not None:
            raise self.reload_error

    def _logits(self, request: Request) -> FloatArray:
        token = self.answer(request)
        logits = np.full(self._vocab_size, np.nan if token < 0 else -50.0, np.float32)
        if token >= 0:
            logits[token] = 50.0
        return logits


@functools.cache
def tiny_bpe() -> BpeTokenizer:
    """Return the tiny byte-level BPE as the engine has it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tiny_tokenizer().save(str(path))
        return BpeTokenizer(path, {piece: index for index, piece in enumerate(CONTROL_TOKENS)})


def fake_tensors(config: DecoderConfig) -> tuple[dict[str, StoredTensor], int]:
    """Describe a decoder's tensors, all of them at the beginning of a file of the size that is returned."""
    tensors = {
        tensor.name: DenseTensor("float32", tensor.dense_shape, 0) for tensor in decoder_tensors(config)
    }
    return dict(tensors), max(tensor.end for tensor in tensors.values())


def make_model_folder(
    folder: Path, *, chat_format: str | None = "chatml", template: str = "", context_length: int = 512
) -> Path:
    """Write a manifest and a tiny tokenizer, and no weights: for engines whose runner is scripted."""
    folder.mkdir(parents=True)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    spec = TokenizerSpec("bpe", "tokenizer.json", {piece: i for i, piece in enumerate(CONTROL_TOKENS)})
    decoder = tiny_config(context_length=context_length)
    tensors, size = fake_tensors(decoder)
    Manifest(
        name="fake",
        precision=Precision.FP32,
        decoder=decoder,
        tokenizer=spec,
        chat=ChatSpec(chat_format, "You are a fake.", template),
        bos_id=1,
        eos_id=2,
        source={},
        files={WEIGHTS_FILE: FileEntry(size, ""), spec.file: FileEntry(0, "")},
        tensors=tensors,
    ).save(folder)
    return folder
