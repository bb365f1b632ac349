"""The engine's asyncio face: opens a model folder, takes dialogs, streams answers.

Loop and engine thread meet in two places: `Worker.submit`, and at most one `call_soon_threadsafe` a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.describing.footprint import (
    PROCESS_BYTES,
    USEFUL_CONTEXTS,
    kv_token_bound,
    room_sentence,
)
from engine.errors import (
    EngineError,
    EngineUnavailableError,
    ModelFormatError,
    NoRoomError,
    PromptTooLongError,
)
from engine.machine import machine
from engine.opening import open_draft, open_folder
from engine.runtime.model_folder import DiskRoom, ModelFolder, RunnerSize
from engine.runtime.request import Delta, Request
from engine.runtime.runner import Runner
from engine.runtime.sampling import Sampler
from engine.runtime.speculation import Speculation
from engine.runtime.worker import Worker
from engine.text.detokenizer import StreamDecoder
from engine.text.model_text import ModelText
from engine.text.text_files import TextFiles
from engine.types import (
    ChatMessage,
    Completion,
    EngineLoad,
    FinishReason,
    Generation,
    Health,
    ModelInfo,
    Prompt,
    SamplingParams,
    Warming,
    tokens_needed,
)

logger = logging.getLogger(__name__)

DEFAULT_CONTEXT_TOKENS = 4096
_AHEAD = SamplingParams(temperature=0.0, repetition_penalty=1.0, max_new_tokens=1)
"""Of prompts that nobody asks an answer to."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine runs; 0 lets it choose.

    num_threads: of one operator; the physical cores. max_concurrent: answers generated at once.
    context_tokens: longest prompt and answer together; the model's, at most 4096. kv_cache_mb: memory for KV
    in MiB; what the answers can use, as far as it is free. reserved_bytes: free memory that others are going
    to need. chat_format: a name, or a file with a template (`named_chat`), used in the place of the model's
    own, as for Llama Guard, whose template writes a task around each dialog.
    speculation: draft tokens where an answer repeats what was said. device:
    "cpu", "cuda", which is an error where it cannot be used, or "auto", the best that can; on a GPU
    kv_cache_mb is of its memory, and 0 is as much as is useful and free. kv_disk: where KV is written
    that the CPU's memory has no room for. draft_model: a small converted model with the same tokenizer, which
    drafts for a single answer on the CPU.
    """

    num_threads: int = 0
    max_concurrent: int = 8
    context_tokens: int = 0
    kv_cache_mb: int = 0
    reserved_bytes: int = 0
    chat_format: str = ""
    speculation: bool = True
    device: str = "auto"
    kv_disk: DiskRoom | None = None
    draft_model: Path | None = None


class Engine:
    """A loaded model that answers. Satisfies `engine.types.TextEngine`. Use as an async context manager."""

    def __init__(
        self, folder: Path, options: EngineOptions, load_runner: Callable[[], Runner] | None = None
    ) -> None:
        """Read the folder's description; `open` loads the weights. `load_runner` replaces the model in tests.

        Raises `ModelFormatError`.
        """
        self._model = open_folder(folder)
        self._options = options
        self._draft = open_draft(options.draft_model, self._model) if options.draft_model else None
        self._num_answers = num_answers(self._model, options)
        self.text = ModelText(self._model, self._model.load_tokenizer(), options.chat_format)
        self._context = context_tokens(self._model, options)
        self._streams: dict[int, _Stream] = {}
        self._warmings: dict[int, _Warming] = {}
        self._request_ids = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker = Worker(load_runner or self._load_runner, self._deliver)

    @classmethod
    async def open(cls, folder: Path, options: EngineOptions) -> Engine:
        """Load and warm up the model in `folder`. Raises `ModelFormatError` or `ModelResourceError`."""
        engine = await asyncio.to_thread(cls, folder, options)
        try:
            await engine.start()
        except asyncio.CancelledError:
            engine._worker.close()
            raise
        return engine

    async def start(self) -> None:
        """Start the engine thread and wait until the model is loaded."""
        self._loop = loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()

        def on_started(error: Exception | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, started, error)

        self._worker.start(on_started)
        await started
        logger.info("%s", room_sentence(self._worker.max_kv_tokens, self._context, self._num_answers))

    async def close(self) -> None:
        """End running requests with an error and free the model. Closing twice is fine."""
        self._worker.close()
        await asyncio.to_thread(self._worker.join)

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return ModelInfo(
            name=self._model.name,
            precision=self._model.precision,
            provider=self._worker.device,
            chat_format=self.text.chat.format,
            context_length=self._context,
            default_system_prompt=self.text.chat.default_system_prompt,
            reasoning=self.text.reasoning,
            ends_turns=self.text.ends_turns,
            sampling=self._model.sampling,
            thinks=self.text.thinks,
            switched=self.text.switched,
        )

    @property
    def health(self) -> Health:
        return self._worker.health

    @property
    def load(self) -> EngineLoad:
        """See `EngineLoad`. An answer counts until its end is delivered: its room is free by then."""
        return EngineLoad(
            num_requests=len(self._streams),
            max_requests=self._num_answers,
            num_kv_tokens=self._worker.num_kv_tokens,
            num_reserved_tokens=sum(stream.num_tokens for stream in self._streams.values()),
            max_kv_tokens=self._worker.max_kv_tokens,
        )

    def fit_prompt(
        self,
        dialog: Sequence[ChatMessage],
        max_prompt_tokens: int,
        *,
        answer_so_far: str = "",
        thinking: bool | None = None,
    ) -> Prompt:
        """See `TextEngine.fit_prompt`."""
        return self.text.fit_prompt(dialog, max_prompt_tokens, answer_so_far=answer_so_far, thinking=thinking)

    def is_safe(self, text: str) -> bool:
        """See `TextEngine.is_safe`."""
        return self.text.is_safe(text)

    def count_tokens(self, text: str) -> int:
        """See `TextEngine.count_tokens`."""
        return self.text.count_tokens(text)

    def text_files(self) -> TextFiles:
        """Return what somebody needs who makes prompts elsewhere. Reads the tokenizer's file."""
        return TextFiles.of(self._model, self._options.chat_format)

    def encode(self, text: str) -> Prompt:
        """Return the ids of a text that is to be gone on with, without a chat format. Call it in a thread."""
        return Prompt((self._model.bos_id, *self.text.tokenizer.encode(text)), is_continued=True)

    @property
    def vocab_size(self) -> int:
        """Return how many tokens the model knows."""
        return self._model.vocab_size

    def tokens_needed(self, prompt: Prompt, params: SamplingParams) -> int:
        """See `TextEngine.tokens_needed`."""
        return tokens_needed(len(prompt.ids), params, self._context, self.kv_page)

    @property
    def kv_page(self) -> int:
        """Return of how many tokens room is taken at once."""
        return self._worker.block_size

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        session: str = "",  # noqa: ARG002 - all KV is here
        tell: Callable[[int], object] | None = None,  # noqa: ARG002 - nothing waits here
    ) -> Generation:
        """See `TextEngine.generate`. What begins while a fault is mended is answered after that."""
        if self._loop is None or self.health in (Health.UNHEALTHY, Health.CLOSED):
            raise EngineUnavailableError(f"The model is {self.health}. Try again later.")
        if not 0 < len(prompt.ids) < self._context:
            raise PromptTooLongError(len(prompt.ids), self._context - 1)
        num_tokens = self.tokens_needed(prompt, params)
        if not self.load.has_room(num_tokens):
            raise NoRoomError("There is no room for another answer now. Try again in a minute.")
        request = self._make_request(prompt, params)
        stream = _Stream(num_tokens, lambda: self._worker.cancel(request.request_id))
        self._worker.submit(request)
        self._streams[request.request_id] = stream
        return stream

    def warm(self, prompt: Prompt, *, session: str = "") -> Warming:  # noqa: ARG002 - all KV is here
        """See `TextEngine.warm`."""
        request = self._make_request(prompt, _AHEAD, is_ahead=True)
        warming = _Warming(lambda: self._worker.cancel(request.request_id))
        if self.health is not Health.READY or not 0 < len(prompt.ids) < self._context:
            warming.end(is_kept=False)
            return warming
        self._worker.submit(request)
        self._warmings[request.request_id] = warming
        return warming

    def drop_idle_cache(self) -> None:
        """See `TextEngine.drop_idle_cache`."""
        self.text.forget()
        self._worker.forget()

    @property
    def is_forgetting(self) -> bool:
        """See `TextEngine.is_forgetting`."""
        return False

    def _make_request(self, prompt: Prompt, params: SamplingParams, *, is_ahead: bool = False) -> Request:
        return Request(
            request_id=next(self._request_ids),
            prompt=prompt,
            params=params,
            sampler=Sampler(params, prompt.ids, self.text.control_ids),
            decoder=StreamDecoder(
                self.text.token_bytes,
                params.stop,
                opening_space_ids=() if prompt.is_continued else self.text.tokenizer.opening_space_ids,
            ),
            stop_ids=self.text.stop_ids,
            max_tokens=self._context,
            speculation=Speculation() if self._options.speculation else None,
            is_ahead=is_ahead,
        )

    def _load_runner(self) -> Runner:
        options = self._options
        return self._model.load_runner(
            RunnerSize(
                num_threads=options.num_threads or machine.num_physical_cores(),
                num_answers=self._num_answers,
                max_tokens=self._context,
                max_kv_tokens=kv_room(self._model, options).num_tokens,
                device=options.device,
                kv_cache_mb=options.kv_cache_mb,
                kv_disk=options.kv_disk,
                unpenalised=self.text.control_ids,
                draft=self._draft if options.speculation else None,
            )
        )

    def _deliver(self, deltas: list[Delta]) -> None:
        """Called by the engine thread. Raises `RuntimeError` when the loop is closed."""
        if self._loop is None:
            raise RuntimeError("The engine was not started.")
        self._loop.call_soon_threadsafe(self._dispatch, deltas)

    def _dispatch(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if (warming := self._warmings.pop(delta.request_id, None)) is not None:
                completion = delta.completion
                warming.end(
                    is_kept=completion is not None and completion.finish_reason is FinishReason.LENGTH
                )
                continue
            stream = (
                self._streams.pop(delta.request_id) if delta.is_final else self._streams[delta.request_id]
            )
            stream.push(delta)


class _Stream:
    """One answer on the event loop's side. Satisfies `engine.types.Generation`.

    num_tokens: those that it may come to need.
    """

    def __init__(self, num_tokens: int, cancel: Callable[[], None]) -> None:
        self.num_tokens = num_tokens
        self._cancel = cancel
        self._deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self._completion: Completion | None = None
        self._error: EngineError | None = None

    @property
    def completion(self) -> Completion | None:
        return self._completion

    def cancel(self) -> None:
        self._cancel()

    def push(self, delta: Delta) -> None:
        if delta.text or delta.is_final:
            self._deltas.put_nowait(delta)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self._error is not None:
            raise self._error
        if self._completion is not None:
            raise StopAsyncIteration
        delta = await self._deltas.get()
        self._completion, self._error = delta.completion, delta.error
        return delta.text or await self.__anext__()


class _Warming:
    """A prompt that is computed ahead, on the event loop's side. Satisfies `engine.types.Warming`."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[Any, None, bool]:
        return asyncio.shield(self._ended).__await__()

    def cancel(self) -> None:
        self._cancel()

    def end(self, *, is_kept: bool) -> None:
        self._ended.set_result(is_kept)


def context_tokens(model: ModelFolder, options: EngineOptions) -> int:
    """Return the longest prompt and answer together, in tokens."""
    return min(model.context_length, options.context_tokens or DEFAULT_CONTEXT_TOKENS)


def num_answers(model: ModelFolder, options: EngineOptions) -> int:
    """Return how many answers are made at once at most."""
    return min(options.max_concurrent, model.max_answers or options.max_concurrent)


@dataclass(frozen=True, slots=True)
class KVRoom:
    """How many tokens' KV is held at most, and the memory that it takes then."""

    num_tokens: int
    num_bytes: int


def kv_room(model: ModelFolder, options: EngineOptions) -> KVRoom:
    """Return how much KV a model may hold on the CPU, of the memory that is free before it is loaded."""
    free = machine.free_memory_bytes()
    if free is None:
        free = machine.memory_bytes() // 2
    num_slots = model.max_answers or USEFUL_CONTEXTS * options.max_concurrent
    # Rows that only fill a step up may write a page behind what a slot holds.
    beside = num_slots * model.page_tokens * model.kv_bytes_per_token
    used_bytes = model.running_bytes + draft_bytes(model, options)
    num_tokens = kv_token_bound(
        model.kv_bytes_per_token,
        context=-(-context_tokens(model, options) // model.page_tokens) * model.page_tokens,
        num_contexts=num_slots,
        spare_bytes=free - options.reserved_bytes - used_bytes - PROCESS_BYTES - beside,
        kv_cache_mb=options.kv_cache_mb,
    )
    return KVRoom(num_tokens, num_tokens * model.kv_bytes_per_token + beside)


def draft_bytes(model: ModelFolder, options: EngineOptions) -> int:
    """Return the memory that the draft model takes with its KV of one answer on the CPU, 0 without one."""
    if options.draft_model is None:
        return 0
    try:
        draft = open_folder(options.draft_model)
    except ModelFormatError:  # which ends the start, and is told there
        return 0
    num_tokens = min(context_tokens(model, options), draft.context_length)
    return draft.running_bytes + num_tokens * draft.kv_bytes_per_token


def _resolve(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
