"""What lies in the folder that a user names as the model: a converted model, or a release as it is.

Describes it and knows how to run it; the weights are loaded by `load_runner`, in the engine's thread.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from engine.convert.chat_detection import llama2_chat
from engine.errors import ModelFormatError
from engine.manifest import ChatSpec, Manifest, TokenizerSpec, load_manifest, verify_files
from engine.model import CpuModel, ModelOptions
from engine.release_embeddings import read_embeddings
from engine.release_files import ReleaseFiles, find_release, is_release
from engine.release_model import ReleaseModel, describe_release
from engine.runner import Runner, SlotModel, SlotRunner
from engine.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerSize:
    """How much is run at once: threads of an operator, answers, tokens of one answer and of all of them."""

    num_threads: int
    num_answers: int
    max_tokens: int
    max_kv_tokens: int


class ModelFolder(Protocol):
    """A model on disk."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def chat(self) -> ChatSpec: ...

    @property
    def bos_id(self) -> int: ...

    @property
    def eos_id(self) -> int: ...

    @property
    def stop_ids(self) -> tuple[int, ...]: ...

    @property
    def context_length(self) -> int: ...

    @property
    def kv_bytes_per_token(self) -> int: ...

    @property
    def max_answers(self) -> int | None:
        """Return how many answers can be made at once, None for as many as there is memory for."""

    @property
    def notice(self) -> str:
        """Return what its user should know of it, often nothing."""

    @property
    def num_bytes(self) -> int:
        """Return the size of its weights."""

    def verify(self) -> None:
        """Read everything and compare it with what it should be. Raises `ModelFormatError`."""

    def load_tokenizer(self) -> Tokenizer:
        """Open the tokenizer. Raises `ModelFormatError`."""

    def load_model(self, size: RunnerSize) -> SlotModel:
        """Load the weights. Raises `ModelFormatError` or `ModelResourceError`."""

    def load_runner(self, size: RunnerSize) -> Runner:
        """Load the weights and warm up. Raises `ModelFormatError` or `ModelResourceError`."""


def open_folder(folder: Path) -> ModelFolder:
    """Tell what lies in `folder` and describe it. Raises `ModelFormatError`."""
    if is_release(folder):
        return ReleasedFolder(find_release(folder))
    return ConvertedFolder(folder, load_manifest(folder))


@dataclass(frozen=True, slots=True)
class ConvertedFolder:
    """What `python -m engine convert` has made."""

    folder: Path
    manifest: Manifest

    max_answers = None
    notice = ""

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def precision(self) -> str:
        return self.manifest.precision

    @property
    def chat(self) -> ChatSpec:
        return self.manifest.chat

    @property
    def bos_id(self) -> int:
        return self.manifest.bos_id

    @property
    def eos_id(self) -> int:
        return self.manifest.eos_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.manifest.stop_ids

    @property
    def context_length(self) -> int:
        return self.manifest.decoder.context_length

    @property
    def kv_bytes_per_token(self) -> int:
        return self.manifest.decoder.kv_bytes_per_token()

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entry in self.manifest.files.values())

    def verify(self) -> None:
        verify_files(self.folder, self.manifest, full=True)

    def load_tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder, self.manifest.tokenizer)

    def load_model(self, size: RunnerSize) -> SlotModel:
        options = ModelOptions(size.num_threads, 2 * size.num_answers, size.max_tokens)
        return CpuModel(self.folder, self.manifest.decoder, options)

    def load_runner(self, size: RunnerSize) -> Runner:
        verify_files(self.folder, self.manifest)
        num_slots = 2 * size.num_answers
        return SlotRunner(
            lambda: self.load_model(size), num_slots, size.max_kv_tokens, num_warm_rows=size.num_answers
        )


class ReleasedFolder:
    """A released Llama-2-Onnx model, run as it is: one answer at a time."""

    max_answers = 1
    stop_ids: tuple[int, ...] = ()

    def __init__(self, files: ReleaseFiles, device: str = "cpu") -> None:
        """Describe what runs on `device`, "cpu" or "cuda". Raises `ModelFormatError`."""
        self.files = files
        self._device = device
        self.chat = llama2_chat() if files.is_fine_tuned else ChatSpec(None)
        self._contract = describe_release(files)

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def precision(self) -> str:
        return self._contract.precision

    @property
    def bos_id(self) -> int:
        return self._tokenizer.special_ids["<s>"]

    @property
    def eos_id(self) -> int:
        return self._tokenizer.special_ids["</s>"]

    @property
    def context_length(self) -> int:
        return self._contract.context_length

    @property
    def kv_bytes_per_token(self) -> int:
        values = 2 * self._contract.num_layers * self._contract.num_heads * self._contract.head_dim
        return values * self._contract.dtype(0).itemsize

    @property
    def notice(self) -> str:
        return (
            f"{self.name} runs as it was released, one answer at a time. Converted it answers several "
            f"people at once, and faster: python -m engine convert {self.files.folder} DESTINATION"
        )

    @property
    def num_bytes(self) -> int:
        return self.files.num_bytes

    def verify(self) -> None:
        check_vocabulary(self.files, len(read_embeddings(self.files.embeddings)), self._tokenizer)

    def load_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def load_model(self, size: RunnerSize) -> SlotModel:
        model = ReleaseModel(self.files, size.num_threads, self._device)
        check_vocabulary(self.files, model.vocab_size, self._tokenizer)
        return model

    def load_runner(self, size: RunnerSize) -> Runner:
        _log.warning("%s", self.notice)
        return SlotRunner(lambda: self.load_model(size), 1, size.max_tokens)

    @cached_property
    def _tokenizer(self) -> SentencePieceTokenizer:
        return open_release_tokenizer(self.files)


def open_release_tokenizer(files: ReleaseFiles) -> SentencePieceTokenizer:
    """Open a release's tokenizer, which must have Llama's control tokens. Raises `ModelFormatError`."""
    return SentencePieceTokenizer(files.tokenizer, release_tokenizer_spec(files).special_ids)


def check_vocabulary(files: ReleaseFiles, num_embeddings: int, tokenizer: Tokenizer) -> None:
    """Raise `ModelFormatError` unless there is an embedding for each token."""
    if tokenizer.vocab_size != num_embeddings:
        raise ModelFormatError(
            f"{files.tokenizer} has {tokenizer.vocab_size} tokens for {num_embeddings} embeddings. "
            "It is another model's."
        )


def release_tokenizer_spec(files: ReleaseFiles) -> TokenizerSpec:
    """Describe a release's tokenizer: Llama 2 has `<s>` as 1 and `</s>` as 2."""
    return TokenizerSpec("sentencepiece", files.tokenizer.name, {"<s>": 1, "</s>": 2})
