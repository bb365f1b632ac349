"""Tells what lies in a folder, a converted model or a release as it is, and describes it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engine.cpu.drafting import Drafter
from engine.cpu.kv_buffers import page_tokens
from engine.cpu.model import CpuModel, ModelOptions, rows_are_exact
from engine.cpu.runner import SlotRunner
from engine.describing.architecture import Precision
from engine.describing.footprint import (
    beside_bytes,
    held_in,
    kv_token_bytes,
    kv_value_bytes,
    running_weight_bytes,
)
from engine.describing.manifest import (
    MANIFEST_FILE,
    ChatSpec,
    Manifest,
    TokenizerSpec,
    load_manifest,
    verify_files,
)
from engine.errors import ModelError, ModelFormatError, ModelResourceError
from engine.machine.cuda_device import NoCudaError, find_device
from engine.release.files import find_release, is_release
from engine.runtime.model_folder import ModelFolder, RunnerSize
from engine.runtime.runner import Runner, SlotModel
from engine.text.tokenizer import Tokenizer, load_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConvertedFolder:
    """A `ModelFolder` with a manifest."""

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
    def sampling(self) -> Mapping[str, float]:
        values = self.manifest.sampling
        return {name: int(value) if name == "top_k" else value for name, value in values.items()}

    @property
    def context_length(self) -> int:
        return self.manifest.decoder.context_length

    @property
    def vocab_size(self) -> int:
        return self.manifest.decoder.vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        return kv_token_bytes(self.manifest.decoder, self.manifest.precision)

    @property
    def page_tokens(self) -> int:
        return page_tokens(
            self.manifest.decoder, kv_value_bytes(self.manifest.decoder, self.manifest.precision)
        )

    @property
    def num_bytes(self) -> int:
        return sum(entry.size for entry in self.manifest.files.values())

    @property
    def running_bytes(self) -> int:
        decoder, precision = self.manifest.decoder, self.manifest.precision
        held = held_in(self.manifest.tensors)
        return running_weight_bytes(decoder, precision, held) + beside_bytes(decoder, precision, held)

    def verify(self) -> None:
        verify_files(self.folder, self.manifest, full=True)

    @property
    def tokenizer_spec(self) -> TokenizerSpec:
        return self.manifest.tokenizer

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / self.manifest.tokenizer.file

    def load_tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder, self.manifest.tokenizer)

    def load_model(self, size: RunnerSize) -> SlotModel:
        verify_files(self.folder, self.manifest)
        options = ModelOptions(size.num_threads, size.num_slots, size.max_tokens)
        return CpuModel(self.folder, self.manifest, options)

    def load_runner(self, size: RunnerSize) -> Runner:
        """Load the model on the best device that `size.device` allows.

        What cannot be used is said in a line of the log, and the next best is taken; unless the GPU was asked
        for by name.
        """
        if size.device != "cpu":
            try:
                return self._load_on_gpu(size)
            except (NoCudaError, ModelError) as error:
                if size.device == "cuda":
                    raise ModelResourceError(f"The GPU cannot be used: {error}") from error
                level = logging.INFO if isinstance(error, NoCudaError) else logging.WARNING
                _log.log(level, "The model runs on the CPU: %s", error)
        return self._load_on_cpu(size)

    def _load_on_gpu(self, size: RunnerSize) -> Runner:
        device = find_device()
        if not self.manifest.precision.runs_on_gpu:
            raise NoCudaError(
                f"{self.folder} only runs on the CPU (fp32): convert it again, to fp16, int8 or int4"
            )
        from engine.gpu.loading import load_paged_runner  # where the CPU answers, nobody needs it

        return load_paged_runner(self.folder, self.manifest, size, device)

    def _load_on_cpu(self, size: RunnerSize) -> Runner:
        is_exact = rows_are_exact(self.manifest)
        return SlotRunner(
            lambda: self.load_model(size),
            size.num_slots,
            size.max_kv_tokens,
            num_warm_rows=size.num_answers,
            min_exact_rows=2 if self.manifest.precision is Precision.INT4 and not is_exact else 1,
            is_exact=is_exact,
            kv_disk=size.kv_disk,
            load_drafter=None if size.draft is None else partial(self._load_drafter, size.draft, size),
        )

    def _load_drafter(self, draft: ModelFolder, size: RunnerSize) -> Drafter:
        max_tokens = min(size.max_tokens, draft.context_length)
        model = draft.load_model(replace(size, num_answers=1, max_tokens=max_tokens, draft=None))
        return Drafter(model, max_tokens, min(draft.vocab_size, self.vocab_size))


def open_draft(folder: Path, model: ModelFolder) -> ModelFolder:
    """Describe the small model that is to draft for `model`. Raises `ModelFormatError` where it cannot."""
    if not isinstance(model, ConvertedFolder):
        raise ModelFormatError(
            f"{model.name} runs as it was released, without drafts. Convert it, or unset DRAFT_MODEL."
        )
    draft = open_folder(folder)
    if not isinstance(draft, ConvertedFolder):
        raise ModelFormatError(f"{draft.name} runs as it was released and cannot draft. Convert it first.")
    theirs, ours = draft.load_tokenizer(), model.load_tokenizer()
    if theirs.token_bytes != ours.token_bytes or dict(theirs.special_ids) != dict(ours.special_ids):
        raise ModelFormatError(
            f"{draft.name} has another tokenizer than {model.name} and cannot draft for it. Set DRAFT_MODEL "
            "to a smaller model of the same family, or to nothing."
        )
    return draft


def open_folder(folder: Path) -> ModelFolder:
    """Describe the model in `folder`. Raises `ModelFormatError`."""
    if is_release(folder):
        from engine.release.folder import ReleasedFolder

        return ReleasedFolder(find_release(folder))
    if folder.exists() and not (folder / MANIFEST_FILE).exists():
        from engine.convert.converter import open_source  # takes a start a third of a second

        open_source(folder)  # what cannot be converted either is said to be that
    return ConvertedFolder(folder, load_manifest(folder))
