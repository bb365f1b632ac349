"""A model on disk, as the engine sees it: described, and not loaded yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.describing.footprint import USEFUL_CONTEXTS
from engine.describing.manifest import TokenizerSpec
from engine.runtime.runner import Runner, SlotModel
from engine.text.prompt import ChatModel
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """Where KV may be written that memory has no room for, and how many bytes of it at most."""

    folder: Path
    num_bytes: int


@dataclass(frozen=True, slots=True)
class RunnerSize:
    """How much is run at once: threads of an operator, answers, tokens of one answer and of all of them.

    max_kv_tokens: of all of them on the CPU. device: "auto", "cpu" or "cuda". kv_cache_mb: bound of the KV on
    a GPU, in MiB; 0 is what is useful and free. kv_disk: for what the CPU's memory has no room for.
    unpenalised: ids that a repetition penalty leaves alone. draft: the small model that drafts on the CPU.
    """

    num_threads: int
    num_answers: int
    max_tokens: int
    max_kv_tokens: int
    device: str = "auto"
    kv_cache_mb: int = 0
    kv_disk: DiskRoom | None = None
    unpenalised: frozenset[int] = frozenset()
    draft: ModelFolder | None = None

    @property
    def num_slots(self) -> int:
        """Return of how many sequences the CPU keeps the KV."""
        return USEFUL_CONTEXTS * self.num_answers


class ModelFolder(ChatModel, Protocol):
    """A model on disk."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def sampling(self) -> Mapping[str, float]:
        """Return its authors' advice on how to sample, by the names of `SamplingParams`."""

    @property
    def context_length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def kv_bytes_per_token(self) -> int: ...

    @property
    def page_tokens(self) -> int:
        """Return of how many tokens' KV the CPU's memory is taken at once."""

    @property
    def max_answers(self) -> int | None:
        """Return how many answers can be made at once, None for as many as there is memory for."""

    @property
    def notice(self) -> str:
        """Return what its user should know of it, often nothing."""

    @property
    def num_bytes(self) -> int:
        """Return the size of its weights."""

    @property
    def running_bytes(self) -> int:
        """Return the memory that it takes on the CPU, without its KV."""

    @property
    def tokenizer_spec(self) -> TokenizerSpec: ...

    @property
    def tokenizer_file(self) -> Path: ...

    def verify(self) -> None:
        """Read everything and compare it with what it should be. Raises `ModelFormatError`."""

    def load_tokenizer(self) -> Tokenizer:
        """Open the tokenizer. Raises `ModelFormatError`."""

    def load_model(self, size: RunnerSize) -> SlotModel:
        """Load the weights. Raises `ModelFormatError` or `ModelResourceError`."""

    def load_runner(self, size: RunnerSize) -> Runner:
        """Load the weights and warm up. Raises `ModelFormatError` or `ModelResourceError`."""
