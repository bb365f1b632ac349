"""An engine whose model can be changed while everybody holds on to it.

Owns the engine in use and closes it. Knows nothing of where engines come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from engine.types import (
    ChatMessage,
    EngineLoad,
    Generation,
    Health,
    ModelInfo,
    Prompt,
    SamplingParams,
    TextEngine,
)


class ClosableEngine(TextEngine, Protocol):
    """An engine that can be closed; closing twice is fine."""

    async def close(self) -> None: ...


class SwitchableEngine:
    """Passes everything on to the engine in use. A `TextEngine`; an async context manager that closes it."""

    def __init__(self, engine: ClosableEngine) -> None:
        self.current = engine
        self.is_switching = False

    async def __aenter__(self) -> SwitchableEngine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.current.close()

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        return self.current.info

    @property
    def health(self) -> Health:
        """How the engine is; while another model is loaded, it is not to be asked."""
        return Health.RECOVERING if self.is_switching else self.current.health

    @property
    def load(self) -> EngineLoad:
        """How much there is to do."""
        return self.current.load

    def fit_prompt(
        self, dialog: Sequence[ChatMessage], max_prompt_tokens: int, *, answer_so_far: str = ""
    ) -> Prompt:
        """See `TextEngine.fit_prompt`."""
        return self.current.fit_prompt(dialog, max_prompt_tokens, answer_so_far=answer_so_far)

    def count_tokens(self, text: str) -> int:
        """See `TextEngine.count_tokens`."""
        return self.current.count_tokens(text)

    def generate(self, prompt: Prompt, params: SamplingParams) -> Generation:
        """See `TextEngine.generate`."""
        return self.current.generate(prompt, params)

    def drop_idle_cache(self) -> None:
        """See `TextEngine.drop_idle_cache`."""
        self.current.drop_idle_cache()
