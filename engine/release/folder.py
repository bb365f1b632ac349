"""A released Llama-2-Onnx model on disk, run as it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from engine.cpu.runner import SlotRunner
from engine.describing.footprint import MAX_CHUNK
from engine.describing.manifest import ChatSpec, TokenizerSpec
from engine.errors import ModelFormatError
from engine.release.files import ReleaseFiles, read_embeddings
from engine.release.model import ReleaseModel, describe_release
from engine.runtime.model_folder import RunnerSize
from engine.runtime.runner import Runner, SlotModel
from engine.text.chat_choice import llama2_chat
from engine.text.tokenizer import SentencePieceTokenizer, Tokenizer

_log = logging.getLogger(__name__)


class ReleasedFolder:
    """A `ModelFolder` whose graph takes one sequence at a time."""

    max_answers = page_tokens = 1
    stop_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = MappingProxyType({})

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
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Each step joins its keys, or values, anew: for a moment there are two of both."""
        values = 2 * 2 * self._contract.num_layers * self._contract.num_heads * self._contract.head_dim
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

    @property
    def running_bytes(self) -> int:
        """The CPU widens half precision; and a step needs the scores of all heads, twice."""
        scores = 2 * 4 * MAX_CHUNK * self.context_length * self._contract.num_heads
        return (2 if self.precision == "fp16" else 1) * self.num_bytes + scores

    @property
    def tokenizer_spec(self) -> TokenizerSpec:
        return release_tokenizer_spec(self.files)

    @property
    def tokenizer_file(self) -> Path:
        return self.files.tokenizer

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
