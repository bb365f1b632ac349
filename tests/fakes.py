"""Fakes that stand in for the engine: real interfaces, scripted behaviour, no randomness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bot.conversation.views import Ending
from engine.errors import (
    EngineUnavailableError,
    GenerationFailedError,
    NoRoomError,
    PromptTooLongError,
    UnsafePromptError,
)
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
    Usage,
)

CONTROL_TAG = "<|im_start|>"


@dataclass
class Script:
    """What one answer is: its pieces, the pause before each, and how it ends."""

    pieces: Sequence[str] = ("Hello", " there", ".")
    delay_s: float = 0.0
    fails_after: int | None = None
    """Pieces that come before a fault; None for no fault."""
    loops: bool = False
    """Repeat the pieces until cancelled."""
    finish_reason: FinishReason = FinishReason.STOP
    first_delay_s: float = 0.0
    """Before the first piece, besides."""
    num_breaks: int = 0
    """How often it broke off and was gone on with elsewhere."""
    places: Sequence[int] = ()
    """In a line that others stand in too, as they are told before the first piece."""


class ScriptedGeneration:
    """One scripted answer; ends early when cancelled, at a stop string or at the token limit."""

    def __init__(self, script: Script, prompt: Prompt, params: SamplingParams, num_tokens: int) -> None:
        self.script = script
        self.num_tokens = num_tokens
        self.params = params
        self.is_cancelled = False
        self._prompt = prompt
        self._num_given = 0
        self._sleep: asyncio.Task[None] | None = None
        self._text = ""
        self._completion: Completion | None = None
        self.has_failed = False
        self.begun_at_s = asyncio.get_running_loop().time()
        self.ended_at_s: float | None = None

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if self._completion is not None:
            raise StopAsyncIteration
        await self._pause()
        if self.is_cancelled:
            self._end(FinishReason.CANCELLED)
        if self.script.fails_after == self._num_given:
            self.has_failed = True
            raise GenerationFailedError("The scripted engine failed.")
        if self._num_given == self.params.max_new_tokens:
            self._end(FinishReason.LENGTH)
        if not self.script.loops and self._num_given == len(self.script.pieces):
            self._end(self.script.finish_reason)
        piece = self.script.pieces[self._num_given % len(self.script.pieces)]
        self._num_given += 1
        self._text += piece
        self._stop_at_stop_string()
        return piece

    def cancel(self) -> None:
        """End at once, as an engine does within one step."""
        self.is_cancelled = True
        if self._sleep is not None:
            self._sleep.cancel()

    async def _pause(self) -> None:
        if not self.is_cancelled:
            delay_s = self.script.delay_s + (0.0 if self._num_given else self.script.first_delay_s)
            self._sleep = asyncio.ensure_future(asyncio.sleep(delay_s))
            try:
                await asyncio.wait({self._sleep})
            finally:
                self._sleep.cancel()

    @property
    def completion(self) -> Completion | None:
        return self._completion

    @property
    def is_running(self) -> bool:
        """Whether it takes room in the engine."""
        return not (self.is_cancelled or self.has_failed or self._completion is not None)

    def _stop_at_stop_string(self) -> None:
        found = [self._text.index(stop) for stop in self.params.stop if stop in self._text]
        if found:
            self._text = self._text[: min(found)]
            self._end(FinishReason.STOP_TEXT)

    def _end(self, reason: FinishReason) -> None:
        usage = Usage(len(self._prompt.ids), 0, len(self._prompt.ids), self._num_given, 0.0, 0.0)
        self._completion = Completion(self._text, reason, usage, self.script.num_breaks)
        self.ended_at_s = asyncio.get_running_loop().time()
        raise StopAsyncIteration


class ScriptedWarming:
    """A prompt that takes a while to be computed ahead."""

    def __init__(self, engine: ScriptedEngine, prompt: Prompt) -> None:
        self._engine = engine
        self._prompt = prompt
        self._sleep = asyncio.ensure_future(asyncio.sleep(engine.warm_s))

    def cancel(self) -> None:
        """Give it up."""
        self._sleep.cancel()

    def __await__(self) -> Generator[Any, None, bool]:
        return self._end().__await__()

    async def _end(self) -> bool:
        await asyncio.wait({self._sleep})
        self._engine.warmings.remove(self)
        is_kept = not self._sleep.cancelled() and self._engine.has_idle_room
        self._engine.num_refused += not self._engine.has_idle_room
        if is_kept:
            self._engine.warmed.append(self._prompt.ids)
        return is_kept


@dataclass
class ScriptedEngine:
    """A `TextEngine` whose tokens are bytes, whose answers are scripted, and which holds so many and no more.

    `scripts` are used one after the other, the last one for ever; `respond` instead makes an answer from the
    dialog. Records every dialog and every set of parameters.
    """

    scripts: list[Script] = field(default_factory=lambda: [Script()])
    respond: Callable[[Sequence[ChatMessage]], Script] | None = None
    info: ModelInfo = field(
        default_factory=lambda: ModelInfo("scripted", "fp32", "cpu", "bytes", 4096, "You are a test.")
    )
    health: Health = Health.READY
    max_requests: int = 8
    max_kv_tokens: int = 4 * 4096
    dialogs: list[tuple[ChatMessage, ...]] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    generations: list[ScriptedGeneration] = field(default_factory=list)
    num_drops: int = 0
    """How often the cache was dropped."""
    is_forgetting: bool = False
    warm_s: float = 0.0
    """How long it takes to compute a prompt ahead."""
    has_idle_room: bool = True
    num_refused: int = 0
    """How often there was no room to compute ahead."""
    warmed: list[tuple[int, ...]] = field(default_factory=list)
    """The prompts that were computed ahead."""
    warmings: list[ScriptedWarming] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)
    """The conversations of answers and of what was computed ahead."""
    thinking: list[bool | None] = field(default_factory=list)
    """Whether the model was to think, of each answer."""
    _thinking: dict[tuple[int, ...], bool | None] = field(default_factory=dict)
    _running: list[ScriptedGeneration] = field(default_factory=list)
    _fitted: dict[tuple[int, ...], tuple[ChatMessage, ...]] = field(default_factory=dict)

    @property
    def load(self) -> EngineLoad:
        self._running = [generation for generation in self._running if generation.is_running]
        num_reserved = sum(generation.num_tokens for generation in self._running)
        return EngineLoad(
            len(self._running), self.max_requests, num_reserved, num_reserved, self.max_kv_tokens
        )

    async def close(self) -> None:
        """End; closing twice is fine."""
        self.health = Health.CLOSED

    def fit_prompt(
        self,
        dialog: Sequence[ChatMessage],
        max_prompt_tokens: int,
        *,
        answer_so_far: str = "",
        thinking: bool | None = None,
    ) -> Prompt:
        """Drop the oldest turns until the bytes fit."""
        if any(CONTROL_TAG in message.content for message in dialog):
            raise UnsafePromptError("A message contains control tags.")
        system = [m for m in dialog if m.role == "system"]
        turns = [m for m in dialog if m.role != "system"]
        num_dropped = 0
        begun = (ChatMessage("assistant", answer_so_far),) if answer_so_far else ()
        while len(ids := _encoded(kept := (*system, *turns, *begun))) > max_prompt_tokens:
            if len(turns) < 3:
                raise PromptTooLongError(len(ids), max_prompt_tokens)
            turns, num_dropped = turns[2:], num_dropped + 2
        self._fitted[ids] = kept
        self._thinking[ids] = thinking
        return Prompt(ids, num_dropped, is_continued=bool(answer_so_far))

    def is_safe(self, text: str) -> bool:
        """Look for the control tag."""
        return CONTROL_TAG not in text

    def count_tokens(self, text: str) -> int:
        """Count bytes."""
        return len(text.encode("utf-8", "replace"))

    def tokens_needed(self, prompt: Prompt, params: SamplingParams) -> int:
        """Return what prompt and answer take, at most the context."""
        return min(len(prompt.ids) + params.max_new_tokens, self.info.context_length)

    def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        session: str = "",
        tell: Callable[[int], object] | None = None,
    ) -> Generation:
        """Begin the next scripted answer."""
        if self.health is not Health.READY:
            raise EngineUnavailableError("The scripted engine is not ready.")
        num_tokens = self.tokens_needed(prompt, params)
        if not self.load.has_room(num_tokens):
            raise NoRoomError("The scripted engine is full.")
        dialog = self._fitted[prompt.ids]
        self.dialogs.append(dialog)
        self.thinking.append(self._thinking.get(prompt.ids))
        self.params.append(params)
        self.sessions.append(session)
        for warming in self.warmings:
            warming.cancel()
        generation = ScriptedGeneration(self._next_script(dialog), prompt, params, num_tokens)
        self.generations.append(generation)
        self._running.append(generation)
        if tell is not None:
            for place in generation.script.places:
                asyncio.get_running_loop().call_soon(tell, place)
        return generation

    def warm(self, prompt: Prompt, *, session: str = "") -> ScriptedWarming:
        """Compute a prompt ahead."""
        self.sessions.append(session)
        self.warmings.append(warming := ScriptedWarming(self, prompt))
        return warming

    @property
    def num_running(self) -> int:
        """Answers that have not ended."""
        return self.load.num_requests

    def drop_idle_cache(self) -> None:
        """Count it."""
        self.num_drops += 1

    def _next_script(self, dialog: Sequence[ChatMessage]) -> Script:
        if self.respond is not None:
            return self.respond(dialog)
        return self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]


def _encoded(dialog: Sequence[ChatMessage]) -> tuple[int, ...]:
    return tuple("\n".join(f"{m.role}\n{m.content}" for m in dialog).encode("utf-8", "replace"))


class RecordingView:
    """An `AnswerView` that remembers what it was told."""

    def __init__(self) -> None:
        self.answer_id = 0
        self.places: list[int] = []
        self.waits_for_others = False
        self.updates: list[str] = []
        self.seconds: list[int] = []
        self.shows_thoughts = False
        self.endings: list[Ending] = []
        self.is_working = False
        self.is_followed = False
        self.states: list[str] = []
        self.is_lost = False
        self.part_ids: Sequence[int] = ()
        self.ended = asyncio.Event()
        self.shown = asyncio.Event()
        self.told = asyncio.Event()

    def opened(self, answer_id: int, parts: Sequence[int]) -> None:
        self.answer_id = answer_id
        self.part_ids = parts

    def waiting(self, place: int, *, for_others: bool) -> None:
        self.waits_for_others = for_others
        self.places.append(place)
        self.told.set()

    def working(self) -> None:
        self.is_working = True
        self.states.append("working")

    def moved(self, from_id: int, to_id: int) -> None: ...

    def followed(self) -> None:
        self.is_followed = True
        self.states.append("followed")

    def thinking(self, seconds: int) -> None:
        self.seconds.append(seconds)

    def update(self, text: str) -> None:
        self.updates.append(text)
        self.shown.set()

    async def finish(self, ending: Ending) -> None:
        self.endings.append(ending)
        self.ended.set()

    async def ending(self) -> Ending:
        """Wait for the one ending."""
        async with asyncio.timeout(10):
            await self.ended.wait()
        assert len(self.endings) == 1
        return self.endings[0]
